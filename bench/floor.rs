//! The floors of this machine: a durable write and an echo, by plain blocking loops. Does not know
//! the broker.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringpost_load::device::{ALIGN, FILE_BYTES, write_again};
use ringpost_load::tally::latencies;

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
        let own = FILE_BYTES / depth as u64 / ALIGN as u64 * ALIGN as u64;
        let first = own * place as u64;
        write_again(&file, first..first + own, bytes, time)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..depth)
            .map(|place| scope.spawn(move || one(place)))
            .collect();
        let mut all = latencies();
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
            let (mut histogram, start) = (latencies(), Instant::now());
            while start.elapsed() < time {
                let before = Instant::now();
                write_all(&mut socket, &message)?;
                read_all(&mut socket, &mut room)?;
                let took = u64::try_from(before.elapsed().as_nanos()).unwrap_or(u64::MAX);
                histogram.saturating_record(took);
            }
            Ok(histogram)
        });
        let panicked = |_| io::Error::other("a thread panicked");
        let histogram = client.join().map_err(panicked)??;
        server.join().map_err(panicked)??;
        Ok(histogram)
    })
}

/// Bytes a second that one thread takes in and gives back on a CPU of its own, both ways counted, from
/// another that keeps it busy in writes of `bytes`.
///
/// # Errors
/// If sockets fail.
pub fn stream(
    bytes: usize,
    (server_cpu, client_cpu): (usize, usize),
    time: Duration,
) -> io::Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::thread::scope(|scope| {
        let server = scope.spawn(move || -> io::Result<()> {
            pin(server_cpu);
            let (mut guest, _) = listener.accept()?;
            guest.set_nodelay(true)?;
            let mut room = vec![0; bytes];
            loop {
                match guest.read(&mut room)? {
                    0 => return Ok(()),
                    count => guest.write_all(&room[..count])?,
                }
            }
        });
        let client = scope.spawn(move || -> io::Result<f64> {
            pin(client_cpu);
            let mut socket = TcpStream::connect(address)?;
            socket.set_nodelay(true)?;
            socket.set_nonblocking(true)?;
            let (message, mut room) = (vec![2; bytes], vec![0; bytes]);
            let (mut sum, start) = (0u64, Instant::now());
            let count = |done: io::Result<usize>| match done {
                Ok(count) => Ok(count as u64),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                Err(error) => Err(error),
            };
            while start.elapsed() < time {
                let moved = count(socket.write(&message))? + count(socket.read(&mut room))?;
                sum += moved;
                if moved == 0 {
                    std::thread::yield_now();
                }
            }
            Ok(sum as f64 / start.elapsed().as_secs_f64())
        });
        let panicked = |_| io::Error::other("a thread panicked");
        let rate = client.join().map_err(panicked)??;
        // What lay in the sockets when the client left is no failure.
        let _ = server.join().map_err(panicked)?;
        Ok(rate)
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
