//! The floors of this machine: a durable write and an echo, by plain blocking loops. Does not know
//! the broker.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Bytes of the file that is written over and over.
const FILE_BYTES: u64 = 32 << 20;
const ALIGN: usize = 4096;

/// A histogram of ns.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are valid")
}

fn record(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}

/// Pins this thread.
pub fn pin(cpu: usize) {
    core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
}

/// Blocking writes of `bytes` with O_DIRECT and O_DSYNC to a file that was written before, from one
/// thread a place in the queue.
///
/// # Errors
/// If the file system has no O_DIRECT or the disk fails.
pub fn device(
    directory: &Path,
    bytes: usize,
    depth: usize,
    cpu: usize,
    time: Duration,
) -> io::Result<Histogram<u64>> {
    let path = directory.join("floor");
    if !path.exists() {
        std::fs::write(&path, vec![1; FILE_BYTES as usize])?;
        std::fs::File::open(&path)?.sync_all()?;
    }
    let one = |place: usize| -> io::Result<Histogram<u64>> {
        pin(cpu);
        let file = std::fs::OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
            .open(&path)?;
        let bytes = bytes.next_multiple_of(ALIGN);
        let room = vec![2u8; bytes + ALIGN];
        let from = room.as_ptr().align_offset(ALIGN);
        let block = &room[from..from + bytes];
        let own = FILE_BYTES / depth as u64 / ALIGN as u64 * ALIGN as u64;
        let base = own * place as u64;
        let (mut histogram, start, mut offset) = (histogram(), Instant::now(), 0);
        while start.elapsed() < time {
            let before = Instant::now();
            file.write_all_at(block, base + offset)?;
            record(&mut histogram, before.elapsed());
            offset += bytes as u64;
            if offset + bytes as u64 > own {
                offset = 0;
            }
        }
        Ok(histogram)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..depth)
            .map(|place| scope.spawn(move || one(place)))
            .collect();
        let mut all = histogram();
        for thread in threads {
            let own = thread
                .join()
                .map_err(|_| io::Error::other("a thread panicked"))??;
            all.add(&own).map_err(io::Error::other)?;
        }
        Ok(all)
    })
}

/// A blocking echo: `request` bytes there, `answer` bytes back, server and client pinned. `spin`:
/// both look again and again instead of sleeping.
///
/// # Errors
/// If sockets fail.
pub fn echo(
    request: usize,
    answer: usize,
    (server_cpu, client_cpu): (usize, usize),
    spin: bool,
    time: Duration,
) -> io::Result<Histogram<u64>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::thread::scope(|scope| {
        let server = scope.spawn(move || -> io::Result<()> {
            pin(server_cpu);
            let (mut guest, _) = listener.accept()?;
            guest.set_nodelay(true)?;
            guest.set_nonblocking(spin)?;
            let mut room = vec![0; request];
            let reply = vec![1; answer];
            while read_all(&mut guest, &mut room)? {
                write_all(&mut guest, &reply)?;
            }
            Ok(())
        });
        let client = scope.spawn(move || -> io::Result<Histogram<u64>> {
            pin(client_cpu);
            let mut socket = TcpStream::connect(address)?;
            socket.set_nodelay(true)?;
            socket.set_nonblocking(spin)?;
            let message = vec![2; request];
            let mut room = vec![0; answer];
            let (mut histogram, start) = (histogram(), Instant::now());
            while start.elapsed() < time {
                let before = Instant::now();
                write_all(&mut socket, &message)?;
                read_all(&mut socket, &mut room)?;
                record(&mut histogram, before.elapsed());
            }
            Ok(histogram)
        });
        let panicked = |_| io::Error::other("a thread panicked");
        let histogram = client.join().map_err(panicked)??;
        server.join().map_err(panicked)??;
        Ok(histogram)
    })
}

/// Fills `room`; false at the end of the stream.
fn read_all(socket: &mut TcpStream, room: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < room.len() {
        match socket.read(&mut room[filled..]) {
            Ok(0) => return Ok(false),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn write_all(socket: &mut TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
