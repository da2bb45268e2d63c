//! The two tasks of a session: one reads frames and hands them over, one writes what waits.
//! Does not know what frames mean.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::BytesMut;
use ringpost_wire::{Cut, FrameHeader, FrameKind, control};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::{Connection, Lost, Written};
use crate::producer::Segment;
use crate::{Error, ErrorKind};

/// Bytes of a read buffer. Frames are cut out of it without a copy, so batches of deliveries share
/// it; a frame that would straddle its end is moved to the next one.
const READ_BYTES: usize = 512 * 1024;
/// A buffer with less room is not read into any more.
const READ_ROOM_MIN: usize = 32 * 1024;
/// Most slices of one vectored write; the operating system's own bound is 1024.
const SLICES_MAX: usize = 512;

fn io_lost(error: std::io::Error) -> Lost {
    let text = "the connection was lost";
    Lost::passing(Error::new(ErrorKind::Disconnected, text).with_source(error))
}

/// Reads until something ends the session.
pub(super) async fn read(
    connection: Arc<Connection>,
    session: u32,
    mut half: OwnedReadHalf,
    mut buffer: BytesMut,
) -> Lost {
    let frame_bytes_max = connection.limits().frame_bytes_max as usize;
    loop {
        let bytes_needed = loop {
            match ringpost_wire::cut(&buffer, frame_bytes_max) {
                Cut::Complete { header, length } => {
                    let frame = buffer.split_to(length).freeze();
                    match connection.receive(session, &header, frame) {
                        Ok(None) => {}
                        // Its owner does not keep up and settles nothing: stop reading.
                        Ok(Some(consumer)) => consumer.wait_for_room(&connection.heard).await,
                        Err(lost) => return lost,
                    }
                }
                Cut::Incomplete { bytes_needed } => break bytes_needed,
                Cut::Malformed(code) => {
                    return Lost::malformed(code, "bytes from the broker are no frame");
                }
            }
        };
        let room = buffer.capacity() - buffer.len();
        if room < READ_ROOM_MIN.max(bytes_needed - buffer.len()) {
            buffer.reserve(READ_BYTES.max(bytes_needed));
        }
        match half.read_buf(&mut buffer).await {
            Ok(0) => return Lost::passing(Error::disconnected("the broker hung up")),
            Ok(_) => connection.heard.store(true, Ordering::Relaxed),
            Err(error) => return io_lost(error),
        }
    }
}

/// Writes until the session ends or the connection was closed and everything is written.
pub(super) async fn write(
    connection: Arc<Connection>,
    session: u32,
    mut half: OwnedWriteHalf,
) -> Result<(), Lost> {
    let mut control = Vec::new();
    let mut segments = Vec::new();
    let mut written = Vec::new();
    loop {
        connection.gather(session, &mut control, &mut segments, &mut written);
        if control.is_empty() && segments.is_empty() {
            let Some(code) = connection.goodbye() else {
                connection.wake.notified().await;
                continue;
            };
            let header = FrameHeader::bare(FrameKind::Close, 0, 0);
            control::write_failure(&mut control, header, code, "says the client");
            write_all(&mut half, &control, &[]).await.map_err(io_lost)?;
            return half.shutdown().await.map_err(io_lost);
        }
        write_all(&mut half, &control, &segments)
            .await
            .map_err(io_lost)?;
        connection.spoke.store(true, Ordering::Relaxed);
        control.clear();
        segments.clear();
        for Written { producer, upto } in written.drain(..) {
            producer.written(upto);
        }
    }
}

async fn write_all(
    half: &mut OwnedWriteHalf,
    control: &[u8],
    segments: &[Segment],
) -> std::io::Result<()> {
    let mut slices = Vec::with_capacity(1 + 2 * segments.len());
    slices.push(IoSlice::new(control));
    for segment in segments {
        slices.push(IoSlice::new(segment.head()));
        slices.push(IoSlice::new(segment.body()));
    }
    let mut rest = &mut slices[..];
    // Drops slices that are empty from the start.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let now = rest.len().min(SLICES_MAX);
        let count = half.write_vectored(&rest[..now]).await?;
        if count == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, count);
    }
    Ok(())
}
