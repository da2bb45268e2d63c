//! From an address to a connection that may carry channels: dial, handshake, attach.
//! Does not know what the connection is for.

use std::time::Duration;

use bytes::BytesMut;
use ringpost_wire::control::{Attach, Body, Hello, Welcome};
use ringpost_wire::{
    Code, Cut, ENVELOPE_BYTES, FRAGMENT_BYTES_MAX, FRAME_BYTES_MAX_HANDSHAKE, FRAME_HEADER_BYTES,
    FrameHeader, FrameKind, HEARTBEAT_MS_DEFAULT, frame, version,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Lost;
use crate::options::{Limits, Options};
use crate::{Error, ErrorKind};

/// A connection after its handshake.
#[derive(Debug)]
pub(crate) struct Link {
    pub stream: TcpStream,
    /// Bytes received after the handshake.
    pub received: BytesMut,
    pub limits: Limits,
}

/// Dials `options.address`, agrees with the broker and moves to the core of `queue`, if any.
pub(crate) async fn dial(options: &Options, queue: Option<&str>) -> Result<Link, Lost> {
    match tokio::time::timeout(options.connect_timeout, dial_patiently(options, queue)).await {
        Ok(result) => result,
        Err(_) => Err(Lost::passing(Error::new(
            ErrorKind::Connect,
            format!(
                "no connection to {} within {:?}",
                options.address, options.connect_timeout
            ),
        ))),
    }
}

async fn dial_patiently(options: &Options, queue: Option<&str>) -> Result<Link, Lost> {
    let failed = |error: std::io::Error| {
        let text = format!("cannot connect to {}", options.address);
        Lost::passing(Error::new(ErrorKind::Connect, text).with_source(error))
    };
    let mut stream = TcpStream::connect(&options.address).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let hello = Hello {
        magic: version::MAGIC,
        version_min: version::VERSION_MIN,
        version_max: version::VERSION_MAX,
        heartbeat_ms: options.heartbeat_ms(),
        message_bytes_max: options.message_bytes_max,
        tenant: options.tenant.as_bytes(),
        client: options.name.as_bytes(),
    };
    let mut out = Vec::with_capacity(512);
    hello.write(&mut out, FrameHeader::bare(FrameKind::Hello, 0, 0));
    stream.write_all(&out).await.map_err(failed)?;
    let mut received = BytesMut::new();
    let (header, body) = next_frame(&mut stream, &mut received).await?;
    let limits = match header.kind {
        FrameKind::Welcome => welcome(options, &body)?,
        FrameKind::Close => return Err(Lost::by_broker(&body)),
        _ => {
            let text = "before the handshake";
            return Err(Lost::malformed(Code::UnexpectedFrame, text));
        }
    };
    if let Some(queue) = queue {
        out.clear();
        let attach = Attach {
            queue: queue.as_bytes(),
        };
        attach.write(&mut out, FrameHeader::bare(FrameKind::Attach, 0, 1));
        stream.write_all(&out).await.map_err(failed)?;
        loop {
            let (header, body) = next_frame(&mut stream, &mut received).await?;
            match header.kind {
                FrameKind::Attached => break,
                FrameKind::Heartbeat => {}
                FrameKind::Failed | FrameKind::Close => return Err(Lost::by_broker(&body)),
                _ => return Err(Lost::malformed(Code::UnexpectedFrame, "before the attach")),
            }
        }
    }
    Ok(Link {
        stream,
        received,
        limits,
    })
}

/// The next frame, of handshake size.
async fn next_frame(
    stream: &mut TcpStream,
    received: &mut BytesMut,
) -> Result<(FrameHeader, BytesMut), Lost> {
    loop {
        match ringpost_wire::cut(received, FRAME_BYTES_MAX_HANDSHAKE) {
            Cut::Complete { header, length } => {
                let mut body = received.split_to(length).split_off(FRAME_HEADER_BYTES);
                body.truncate(header.body_bytes as usize);
                frame::check_body(&header, &body)
                    .map_err(|code| Lost::malformed(code, "in the handshake"))?;
                return Ok((header, body));
            }
            Cut::Malformed(code) => return Err(Lost::malformed(code, "in the handshake")),
            Cut::Incomplete { .. } => {
                received.reserve(FRAME_BYTES_MAX_HANDSHAKE);
                match stream.read_buf(received).await {
                    Ok(0) => {
                        return Err(Lost::passing(Error::new(
                            ErrorKind::Connect,
                            "the peer hung up during the handshake",
                        )));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        let text = "the connection was lost during the handshake";
                        return Err(Lost::passing(
                            Error::new(ErrorKind::Connect, text).with_source(error),
                        ));
                    }
                }
            }
        }
    }
}

/// Checks a `Welcome` (P-7, P-8) and reads the limits out of it.
fn welcome(options: &Options, body: &[u8]) -> Result<Limits, Lost> {
    let welcome = Welcome::decode(body)
        .map_err(|code| Lost::malformed(code, "the broker's welcome cannot be read"))?;
    if welcome.magic != version::MAGIC {
        return Err(Lost::malformed(
            Code::FrameMalformed,
            "the peer is not a broker",
        ));
    }
    if !(version::VERSION_MIN..=version::VERSION_MAX).contains(&welcome.version) {
        let text = format!(
            "the broker speaks version {}, this client {} to {}",
            welcome.version,
            version::VERSION_MIN,
            version::VERSION_MAX
        );
        return Err(Lost::malformed(Code::VersionUnsupported, &text));
    }
    // A piece of a large message, two heads and the frame header have to fit.
    if (welcome.frame_bytes_max as usize) < FRAGMENT_BYTES_MAX + ENVELOPE_BYTES
        || (welcome.message_bytes_max as usize) < ENVELOPE_BYTES
    {
        let text = format!(
            "the broker takes frames of {} B and messages of {} B, which is less than the protocol needs",
            welcome.frame_bytes_max, welcome.message_bytes_max
        );
        return Err(Lost::malformed(Code::BodyMalformed, &text));
    }
    let heartbeat_ms = match (welcome.heartbeat_ms, options.heartbeat_ms()) {
        (0, 0) => HEARTBEAT_MS_DEFAULT,
        (0, asked) => asked,
        (given, _) => given,
    };
    Ok(Limits {
        message_bytes_max: welcome.message_bytes_max,
        frame_bytes_max: welcome.frame_bytes_max,
        channels_max: welcome.channels_max,
        credit_messages_max: welcome.credit_messages_max,
        heartbeat: Duration::from_millis(u64::from(heartbeat_ms)),
        cores: welcome.cores,
        server: String::from_utf8_lossy(welcome.server).into_owned(),
    })
}
