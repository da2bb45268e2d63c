//! Measures the broker's runtime against the floors of this machine: durable writes, TCP echo,
//! rings between cores, idle cost. It does not know the engine or the protocol.
//!
//! `bench-rt DIRECTORY SECONDS`; the directory has to be on the disk that counts. Each figure
//! stands beside its floor, a plain blocking loop measured in the same run.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringpost::data::buffers::BufferPool;
use ringpost::data::mesh::{self, Incoming, MeshEndpoint, PeerIdx};
use ringpost::rt::disk::{SegmentFile, create_segment};
use ringpost::rt::net::{Connection, Listener, Received};
use ringpost::rt::time::Monotonic;
use ringpost::rt::{CoreConfig, CoreHandle, CoreRuntime, Events, OperationId, Token, spawn_core};

const SEGMENT_BYTES: u64 = 64 << 20;
const BLOCK_BYTES: u32 = 4096;
const MESSAGE_BYTES: usize = 64;
const DISK_ROUNDS: usize = 15;
const NEVER: Duration = Duration::ZERO;
const USUAL: Duration = Duration::from_micros(50);
const LONG: Duration = Duration::from_micros(300);

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().unwrap_or_else(|| ".".into()));
    let seconds = arguments
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(2.0);
    let time = Duration::from_secs_f64(seconds);
    disk(&directory, time)?;
    echo_all(time)?;
    rings(time)?;
    idle(time.max(Duration::from_secs(3)))
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("the bounds are valid")
}

fn record(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}

fn report(name: &str, histogram: &Histogram<u64>, time: Duration) {
    let us = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    let rate = histogram.len() as f64 / time.as_secs_f64();
    println!(
        "{name:<44} {rate:>9.0}/s  p50 {:>8.2}  p99 {:>8.2}  p99.9 {:>8.2}  max {:>9.1} us",
        us(0.5),
        us(0.99),
        us(0.999),
        us(1.0)
    );
}

fn pin(cpu: usize) {
    core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
}

/// CPU time of the calling thread.
fn thread_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text
        .split(' ')
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0);
    Duration::from_nanos(nanos)
}

fn core_config(name: &str, cpu: usize, spin: Duration) -> io::Result<CoreConfig> {
    let mut config = CoreConfig::new(name)?;
    config.cpu = Some(cpu);
    config.spin = spin;
    Ok(config)
}

fn join<T: Send + 'static>(core: CoreHandle<T>) -> io::Result<T> {
    core.join().map_err(io::Error::other)
}

// Disk

#[repr(align(4096))]
struct Block([u8; BLOCK_BYTES as usize]);

fn disk(directory: &Path, time: Duration) -> io::Result<()> {
    let directory = tempfile::tempdir_in(directory)?;
    let path = directory.path().join("segment");
    create_segment(&path, SEGMENT_BYTES, |_| ())?;
    println!("# durable 4 KiB writes, median and (range) of the p50 of {DISK_ROUNDS} rounds");
    // The disk drifts by a factor of two within seconds: variants take turns in short rounds, and
    // the spread is printed beside the median.
    let slice = time / 4;
    let modes = [("parked", NEVER), ("spin 50", USUAL), ("spin 300", LONG)];
    let mut blocking = Vec::new();
    let mut pollers = vec![Vec::new(); modes.len() * 2];
    for _ in 0..DISK_ROUNDS {
        blocking.push(blocking_writes(&path, slice)?.value_at_quantile(0.5));
        for (place, medians) in pollers.iter_mut().enumerate() {
            let (_, spin) = modes[place / 2];
            let (path, depth) = (path.clone(), place % 2 + 1);
            let core = spawn_core(core_config("disk", 0, spin)?, move |core| {
                core_writes(core, path, depth, slice)
            })?;
            medians.push(join(core)??.value_at_quantile(0.5));
        }
    }
    report_rounds("blocking pwrite O_DSYNC d1", &blocking, &blocking);
    for (place, medians) in pollers.iter().enumerate() {
        let name = format!("poller {} d{}", modes[place / 2].0, place % 2 + 1);
        report_rounds(&name, medians, &blocking);
    }
    Ok(())
}

/// Prints the median of the rounds, their range, and the median ratio to the floor's same round.
fn report_rounds(name: &str, medians: &[u64], floor: &[u64]) {
    let mut us: Vec<f64> = medians.iter().map(|&nanos| nanos as f64 / 1e3).collect();
    let mut ratios: Vec<f64> = medians
        .iter()
        .zip(floor)
        .map(|(&own, &floor)| own as f64 / floor as f64)
        .collect();
    us.sort_by(f64::total_cmp);
    ratios.sort_by(f64::total_cmp);
    println!(
        "{name:<44} p50 {:>7.2} us ({:.2} to {:.2}), x {:.2} of blocking ({:.2} to {:.2})",
        us[us.len() / 2],
        us[0],
        us[us.len() - 1],
        ratios[ratios.len() / 2],
        ratios[0],
        ratios[ratios.len() - 1]
    );
}

fn blocking_writes(path: &Path, time: Duration) -> io::Result<Histogram<u64>> {
    const DIRECT_AND_DSYNC: i32 = 0o40000 | 0o10000;
    pin(0);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .custom_flags(DIRECT_AND_DSYNC)
        .open(path)?;
    let block = Block([1; BLOCK_BYTES as usize]);
    let mut histogram = histogram();
    let (start, mut offset) = (Instant::now(), 0);
    while start.elapsed() < time {
        let before = Instant::now();
        file.write_all_at(&block.0, offset)?;
        record(&mut histogram, before.elapsed());
        offset = (offset + u64::from(BLOCK_BYTES)) % SEGMENT_BYTES;
    }
    Ok(histogram)
}

async fn core_writes(
    mut core: CoreRuntime,
    path: PathBuf,
    depth: usize,
    time: Duration,
) -> io::Result<Histogram<u64>> {
    let mut pool = BufferPool::new(1, BLOCK_BYTES)?;
    let file = SegmentFile::open_for_writing(&path)?;
    let block = pool.acquire().expect("the pool has one");
    pool.open_bytes(block, 0).fill(2);
    pool.seal(block, BLOCK_BYTES);
    let (mut histogram, mut events) = (histogram(), Events::new());
    let (start, mut offset) = (Monotonic::now(), 0);
    loop {
        let now = Monotonic::now();
        let more = now.since(start) < time;
        while more && core.poller.in_flight() < depth {
            let window = pool.lend_sealed(block, 0..BLOCK_BYTES);
            let operation = OperationId(Monotonic::now().as_nanos());
            let queued = core.poller.submit_write(operation, &file, offset, window);
            queued.expect("the depth is below the limit");
            offset = (offset + u64::from(BLOCK_BYTES)) % SEGMENT_BYTES;
        }
        if core.poller.in_flight() == 0 {
            return Ok(histogram);
        }
        core.poller.wait(None, &mut events, || false).await?;
        let now = Monotonic::now();
        for completion in events.completions.drain(..) {
            completion.outcome().map_err(io::Error::other)?;
            record(
                &mut histogram,
                now.since(Monotonic::from_nanos(completion.operation.0)),
            );
            pool.take_back(completion.window);
        }
    }
}

// Sockets

fn echo_all(time: Duration) -> io::Result<()> {
    for round in 0..2 {
        println!("# echo of 64 bytes, server on CPU 0, client on CPU 1, round {round}");
        let address = blocking_echo()?;
        report(
            "std blocking echo, 1 connection",
            &ping_pong(address, time)?,
            time,
        );
        for (name, spin) in [("parked", NEVER), ("spin 50", USUAL)] {
            for connections in [1, 64] {
                let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into())?;
                let address = listener.local_address()?;
                let stop = Arc::new(AtomicBool::new(false));
                let config = core_config("echo", 0, spin)?;
                let bell = config.bell.clone();
                let stopped = stop.clone();
                let core = spawn_core(config, move |core| core_echo(core, listener, stopped))?;
                let histogram = if connections == 1 {
                    ping_pong(address, time)?
                } else {
                    many(address, connections, time)?
                };
                stop.store(true, Ordering::SeqCst);
                bell.ring();
                let cpu = join(core)??.as_secs_f64() * 1e6 / histogram.len() as f64;
                let name = format!("poller {name}, {connections} connections ({cpu:.1} us cpu)");
                report(&name, &histogram, time);
            }
        }
    }
    Ok(())
}

fn blocking_echo() -> io::Result<std::net::SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        pin(0);
        let Ok((mut guest, _)) = listener.accept() else {
            return;
        };
        let _ = guest.set_nodelay(true);
        let mut room = [0u8; 4096];
        while let Ok(count @ 1..) = guest.read(&mut room) {
            if guest.write_all(&room[..count]).is_err() {
                return;
            }
        }
    });
    Ok(address)
}

fn ping_pong(address: std::net::SocketAddr, time: Duration) -> io::Result<Histogram<u64>> {
    pin(1);
    let mut client = TcpStream::connect(address)?;
    client.set_nodelay(true)?;
    let mut room = [0u8; MESSAGE_BYTES];
    let mut histogram = histogram();
    let start = Instant::now();
    while start.elapsed() < time {
        let before = Instant::now();
        client.write_all(&room)?;
        client.read_exact(&mut room)?;
        record(&mut histogram, before.elapsed());
    }
    Ok(histogram)
}

/// One outstanding message on each of many connections; the client is itself a poller, since a
/// thread for each would measure the scheduler.
fn many(
    address: std::net::SocketAddr,
    connections: usize,
    time: Duration,
) -> io::Result<Histogram<u64>> {
    let client = spawn_core(
        core_config("client", 1, NEVER)?,
        move |mut core| async move {
            let message = [1u8; MESSAGE_BYTES];
            let mut open = Vec::new();
            for index in 0..connections {
                let connection = Connection::adopt(TcpStream::connect(address)?)?;
                core.poller
                    .register(connection.as_fd(), Token::new(index as u64))?;
                connection.send(&message)?;
                open.push((connection, Monotonic::now()));
            }
            let (mut histogram, mut events) = (histogram(), Events::new());
            let mut room = [0u8; 4096];
            let start = Monotonic::now();
            while Monotonic::now().since(start) < time {
                core.poller.wait(None, &mut events, || false).await?;
                for event in &events.sockets {
                    let index = usize::try_from(event.token.value()).expect("it was a usize");
                    let (connection, sent) = &mut open[index];
                    if let Received::Bytes(MESSAGE_BYTES) = connection.receive(&mut room)? {
                        let now = Monotonic::now();
                        record(&mut histogram, now.since(*sent));
                        *sent = now;
                        connection.send(&message)?;
                    }
                }
            }
            Ok(histogram)
        },
    )?;
    join(client)?
}

/// Echoes until it is stopped; returns the CPU time used.
async fn core_echo(
    mut core: CoreRuntime,
    listener: Listener,
    stop: Arc<AtomicBool>,
) -> io::Result<Duration> {
    const DOOR: Token = Token::new(Token::MAX);
    let mut guests: Vec<Option<Connection>> = Vec::new();
    let mut events = Events::new();
    let mut room = vec![0u8; 64 << 10];
    core.poller.register(listener.as_fd(), DOOR)?;
    let cpu = thread_cpu();
    while !stop.load(Ordering::Relaxed) {
        core.poller
            .wait(None, &mut events, || stop.load(Ordering::Relaxed))
            .await?;
        for event in &events.sockets {
            if event.token == DOOR {
                while let Some(guest) = listener.accept()? {
                    core.poller
                        .register(guest.as_fd(), Token::new(guests.len() as u64))?;
                    guests.push(Some(guest));
                }
                continue;
            }
            let place = usize::try_from(event.token.value()).expect("it was a usize");
            let Some(guest) = &guests[place] else {
                continue;
            };
            match guest.receive(&mut room) {
                Ok(Received::Bytes(count)) => {
                    let _ = guest.send(&room[..count]);
                }
                Ok(Received::WouldBlock) => {}
                Ok(Received::Closed) | Err(_) => guests[place] = None,
            }
        }
    }
    Ok(thread_cpu() - cpu)
}

// Rings

fn rings(time: Duration) -> io::Result<()> {
    println!("# request and reply between two cores");
    for (name, spin) in [("parked", NEVER), ("spin 50", USUAL)] {
        let configs = [core_config("ring", 0, spin)?, core_config("ring", 1, spin)?];
        let bells: Vec<_> = configs.iter().map(|config| config.bell.clone()).collect();
        let mut ends = mesh::build::<u64>(&bells, 1024);
        let (second, first) = (ends.pop().expect("two"), ends.pop().expect("two"));
        let [first_config, second_config] = configs;
        let asking = spawn_core(first_config, move |core| ask(core, first, time))?;
        let answering = spawn_core(second_config, move |core| answer(core, second, PeerIdx(0)))?;
        let histogram = join(asking)??;
        join(answering)??;
        report(&format!("mesh round trip, {name}"), &histogram, time);
    }
    Ok(())
}

async fn ask(
    mut core: CoreRuntime,
    mut mesh: MeshEndpoint<u64>,
    time: Duration,
) -> io::Result<Histogram<u64>> {
    let peer = PeerIdx(1);
    let (mut histogram, mut events) = (histogram(), Events::new());
    let start = Monotonic::now();
    let mut last = false;
    while !last {
        let before = Monotonic::now();
        last = before.since(start) >= time;
        mesh.request(peer, u64::from(last))
            .expect("one is outstanding");
        mesh.publish();
        while mesh.take_reply(peer).is_none() {
            core.poller
                .wait(None, &mut events, || mesh.has_incoming())
                .await?;
        }
        record(&mut histogram, Monotonic::now().since(before));
    }
    Ok(histogram)
}

/// Answers every request of `peer`, the last of which is 1.
async fn answer(
    mut core: CoreRuntime,
    mut mesh: MeshEndpoint<u64>,
    peer: PeerIdx,
) -> io::Result<()> {
    let mut events = Events::new();
    loop {
        core.poller
            .wait(None, &mut events, || mesh.has_incoming())
            .await?;
        while let Some(request) = mesh.take_request(peer) {
            mesh.reply(peer, request);
            mesh.publish();
            if request == 1 {
                return Ok(());
            }
        }
        if let Some(Incoming::Control(message)) = mesh.take_reply(peer) {
            return Err(io::Error::other(format!("nobody says {message}")));
        }
    }
}

// Idle

fn idle(time: Duration) -> io::Result<()> {
    println!("# a core with nothing to do");
    let core = spawn_core(core_config("idle", 0, USUAL)?, move |mut core| async move {
        let mut events = Events::new();
        let quiet = Monotonic::now().plus(Duration::from_millis(200));
        core.poller.wait(Some(quiet), &mut events, || false).await?;
        let cpu = thread_cpu();
        core.poller
            .wait(Some(Monotonic::now().plus(time)), &mut events, || false)
            .await?;
        Ok::<_, io::Error>(thread_cpu() - cpu)
    })?;
    let cpu = join(core)??;
    println!(
        "idle CPU {:.3} %",
        cpu.as_secs_f64() / time.as_secs_f64() * 100.0
    );

    // Edges from idle to busy at pauses that cross all stages of sleep, and the longest answer.
    let bells = [
        core_config("sleeper", 0, USUAL)?,
        core_config("unused", 1, USUAL)?,
    ];
    let shared: Vec<_> = bells.iter().map(|config| config.bell.clone()).collect();
    let mut ends = mesh::build::<u64>(&shared, 2);
    let (mut waker, sleeper) = (ends.pop().expect("two"), ends.pop().expect("two"));
    let [config, _] = bells;
    let core = spawn_core(config, move |core| answer(core, sleeper, PeerIdx(1)))?;
    pin(1);
    let (mut histogram, start) = (histogram(), Instant::now());
    let mut pause_us = 0;
    let mut last = false;
    while !last {
        std::thread::sleep(Duration::from_micros(pause_us));
        pause_us = (pause_us + 97) % 15_000;
        last = start.elapsed() >= time;
        let before = Instant::now();
        waker
            .request(PeerIdx(0), u64::from(last))
            .expect("one is outstanding");
        waker.publish();
        while waker.take_reply(PeerIdx(0)).is_none() {
            std::thread::yield_now();
        }
        record(&mut histogram, before.elapsed());
    }
    join(core)??;
    report("idle to busy, answered", &histogram, time);
    Ok(())
}
