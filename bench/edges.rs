//! Soaks the place where a core waits: millions of edges from idle to busy between two cores, by
//! ring, socket, write, deadline and task, and the longest that any of them took. It does not know
//! the engine or the protocol, and does not judge: what is lost, and nothing else, is a failure.
//!
//! `edges [--directory DIR] [--edges N] [--seconds S] [--neighbours K]`
//!
//! Edges take turns with pauses from none to 120 ms, so that the cores are met looking, spinning, and
//! at every length of sleep. Neighbours are threads that compute, half on each of the two CPUs.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use ringpost::data::buffers::BufferPool;
use ringpost::data::mesh::{self, MeshEndpoint, PeerIdx};
use ringpost::rt::disk::{SegmentFile, create_segment};
use ringpost::rt::net::{Connection, Listener, Received};
use ringpost::rt::time::Monotonic;
use ringpost::rt::{
    Bell, CoreConfig, CoreHandle, CoreRuntime, Events, OperationId, PollerStats, Token, spawn_core,
};

const BLOCK_BYTES: u32 = 4096;
const MESSAGE_BYTES: usize = 64;
/// An edge that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(30);
/// The last request, after which the answering core ends.
const LAST: u64 = u64::MAX;
const DOOR: Token = Token::new(0);
const SOCKET: Token = Token::new(1);

/// What wakes a core.
const KINDS: [(Kind, &str); 5] = [
    (Kind::Ring, "ring and bell, there and back"),
    (Kind::Socket, "socket, there and back"),
    (Kind::Write, "durable write of 4 KiB"),
    (Kind::Deadline, "deadline, how late"),
    (Kind::Task, "task of the other core, and back"),
];

#[derive(Clone, Copy, Debug)]
enum Kind {
    Ring,
    Socket,
    Write,
    Deadline,
    Task,
}

/// Soak the edges from idle to busy of two cores
#[derive(Parser, Debug)]
#[command(version)]
struct Args {
    /// Where the segment is made that is written to
    #[arg(long, default_value = ".", value_name = "directory")]
    directory: PathBuf,
    /// Edges at most
    #[arg(long, default_value_t = 1_000_000)]
    edges: u64,
    /// Seconds at most
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Threads that compute beside the cores
    #[arg(long, default_value_t = 0)]
    neighbours: usize,
}

fn main() -> ExitCode {
    match soak(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What the asking core brings back.
struct Outcome {
    times: Vec<Histogram<u64>>,
    stats: PollerStats,
}

fn soak(args: &Args) -> io::Result<()> {
    for number in 0..args.neighbours {
        std::thread::spawn(move || {
            core_affinity::set_for_current(core_affinity::CoreId { id: number % 2 });
            loop {
                std::hint::spin_loop();
            }
        });
    }
    let directory = tempfile::tempdir_in(&args.directory)?;
    let path = directory.path().join("segment");
    create_segment(&path, 1 << 20, |_| ())?;
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into())?;
    let address = listener.local_address()?;
    let configs = [config("asks", 0)?, config("answers", 1)?];
    let bells: Vec<Arc<Bell>> = configs.iter().map(|config| config.bell.clone()).collect();
    let mut ends = mesh::build::<u64>(&bells, 64);
    let (there, here) = (ends.pop().expect("two"), ends.pop().expect("two"));
    let (ask, asked) = flume::bounded(1);
    let (answer, answered) = flume::bounded(1);
    let tasks = Tasks { ask, answered };
    let passed = Arc::new(AtomicU64::new(0));
    let counter = passed.clone();
    let (edges, time) = (args.edges, Duration::from_secs_f64(args.seconds));
    let start = Instant::now();
    let [asks, answers] = configs;
    let bell = bells[0].clone();
    let answering = spawn_core(answers, move |core| {
        answer_all(core, there, listener, (asked, answer, bell))
    })?;
    let asking = spawn_core(asks, move |core| {
        let asker = Asker::new(core, here, tasks, &path, address);
        async move { asker?.ask_all(edges, time, &counter).await }
    })?;
    let outcome = watch(asking, &passed)??;
    answering.join().map_err(io::Error::other)??;
    report(&outcome, start.elapsed(), args.neighbours);
    Ok(())
}

fn config(name: &str, cpu: usize) -> io::Result<CoreConfig> {
    let mut config = CoreConfig::new(name)?;
    config.cpu = Some(cpu);
    Ok(config)
}

/// Waits for the core's result; an error if no edge passes for long.
fn watch<T: Send + 'static>(core: CoreHandle<T>, passed: &AtomicU64) -> io::Result<T> {
    let (say, said) = flume::bounded(1);
    std::thread::spawn(move || say.send(core.join()));
    let mut seen = (0, Instant::now());
    loop {
        match said.recv_timeout(Duration::from_millis(200)) {
            Ok(ended) => return ended.map_err(io::Error::other),
            Err(flume::RecvTimeoutError::Disconnected) => {
                return Err(io::Error::other("a core ended without a word"));
            }
            Err(flume::RecvTimeoutError::Timeout) => {}
        }
        let now = passed.load(Ordering::Relaxed);
        if now != seen.0 {
            seen = (now, Instant::now());
        } else if seen.1.elapsed() > PATIENCE {
            let kind = KINDS[now as usize % KINDS.len()].1;
            let text = format!("edge {now} is lost ({kind}): nothing for {PATIENCE:?}");
            return Err(io::Error::other(text));
        }
    }
}

fn report(outcome: &Outcome, time: Duration, neighbours: usize) {
    let edges: u64 = outcome.times.iter().map(Histogram::len).sum();
    println!("# {edges} edges in {time:.1?} beside {neighbours} busy neighbours, none lost");
    for ((_, name), times) in KINDS.iter().zip(&outcome.times) {
        let us = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
        println!(
            "{name:<34} {:>9}  p50 {:>9.1}  p99 {:>9.1}  p99.99 {:>10.1}  longest {:>10.1} us",
            times.len(),
            us(0.5),
            us(0.99),
            us(0.9999),
            us(1.0)
        );
    }
    let stats = outcome.stats;
    println!(
        "the asking core waited {} times, spun {} (won {}), slept {} and gave {} rounds",
        stats.waits, stats.spins, stats.spins_won, stats.blocks, stats.rounds
    );
}

/// Answers requests, echoes, and lets a task answer, until the last request.
async fn answer_all(
    mut core: CoreRuntime,
    mut mesh: MeshEndpoint<u64>,
    listener: Listener,
    (asked, answer, bell): (flume::Receiver<u64>, flume::Sender<u64>, Arc<Bell>),
) -> io::Result<()> {
    let peer = PeerIdx(0);
    let task = core.background.spawn(async move {
        while let Ok(question) = asked.recv_async().await {
            if answer.send(question).is_err() {
                return;
            }
            bell.ring();
        }
    });
    core.poller.register(listener.as_fd(), DOOR)?;
    let (mut connection, mut events) = (None::<Connection>, Events::new());
    let mut room = [0u8; 4096];
    let mut is_last = false;
    while !is_last {
        core.poller
            .wait(None, &mut events, || mesh.has_incoming())
            .await?;
        while let Some(request) = mesh.take_request(peer) {
            mesh.reply(peer, request);
            mesh.publish();
            is_last |= request == LAST;
        }
        for event in &events.sockets {
            if event.token == DOOR {
                let accepted = listener.accept()?.expect("an event");
                core.poller.register(accepted.as_fd(), SOCKET)?;
                connection = Some(accepted);
            } else if let Some(connection) = &connection
                && let Received::Bytes(count) = connection.receive(&mut room)?
            {
                connection.send(&room[..count])?;
            }
        }
    }
    task.cancel().await;
    Ok(())
}

/// The two ends of the other core's task.
struct Tasks {
    ask: flume::Sender<u64>,
    answered: flume::Receiver<u64>,
}

/// The core that asks, with all it asks through.
struct Asker {
    core: CoreRuntime,
    mesh: MeshEndpoint<u64>,
    tasks: Tasks,
    pool: BufferPool,
    file: SegmentFile,
    connection: Connection,
    events: Events,
}

impl Asker {
    fn new(
        mut core: CoreRuntime,
        mesh: MeshEndpoint<u64>,
        tasks: Tasks,
        path: &Path,
        address: SocketAddr,
    ) -> io::Result<Self> {
        let connection = Connection::adopt(TcpStream::connect(address)?)?;
        core.poller.register(connection.as_fd(), SOCKET)?;
        Ok(Asker {
            core,
            mesh,
            tasks,
            pool: BufferPool::new(1, BLOCK_BYTES)?,
            file: SegmentFile::open_for_writing(path)?,
            connection,
            events: Events::new(),
        })
    }

    async fn ask_all(
        mut self,
        edges: u64,
        time: Duration,
        passed: &AtomicU64,
    ) -> io::Result<Outcome> {
        let mut times = vec![
            Histogram::new_with_bounds(1, 100_000_000_000, 3)
                .expect("the bounds are valid");
            KINDS.len()
        ];
        let block = self.pool.acquire().expect("the pool has one");
        self.pool.open_bytes(block, 0).fill(2);
        self.pool.seal(block, BLOCK_BYTES);
        let start = Monotonic::now();
        let mut edge = 0;
        while edge < edges && Monotonic::now().since(start) < time {
            self.rest(pause(edge)).await?;
            let before = Monotonic::now();
            let place = edge as usize % KINDS.len();
            match KINDS[place].0 {
                Kind::Ring => self.by_ring(edge).await?,
                Kind::Socket => self.by_socket().await?,
                Kind::Write => {
                    let window = self.pool.lend_sealed(block, 0..BLOCK_BYTES);
                    let operation = OperationId(edge);
                    let poller = &mut self.core.poller;
                    let queued = poller.submit_write(operation, &self.file, 0, window);
                    queued.expect("none is in flight");
                    self.completion().await?;
                }
                Kind::Deadline => {}
                Kind::Task => self.by_task(edge).await?,
            }
            let now = Monotonic::now();
            let took = match KINDS[place].0 {
                Kind::Deadline => {
                    let deadline = now.plus(Duration::from_micros(edge % 977));
                    self.rest(deadline.since(now)).await?;
                    Monotonic::now().since(deadline)
                }
                Kind::Ring | Kind::Socket | Kind::Write | Kind::Task => now.since(before),
            };
            times[place].saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
            edge += 1;
            passed.store(edge, Ordering::Relaxed);
        }
        self.by_ring(LAST).await?;
        Ok(Outcome {
            times,
            stats: self.core.poller.stats(),
        })
    }

    async fn rest(&mut self, pause: Duration) -> io::Result<()> {
        let deadline = Monotonic::now().plus(pause);
        while Monotonic::now() < deadline {
            let wait = self
                .core
                .poller
                .wait(Some(deadline), &mut self.events, || false);
            wait.await?;
        }
        Ok(())
    }

    async fn by_ring(&mut self, edge: u64) -> io::Result<()> {
        let peer = PeerIdx(1);
        self.mesh.request(peer, edge).expect("one is outstanding");
        self.mesh.publish();
        while self.mesh.take_reply(peer).is_none() {
            let mesh = &self.mesh;
            let wait = self
                .core
                .poller
                .wait(None, &mut self.events, || mesh.has_incoming());
            wait.await?;
        }
        Ok(())
    }

    async fn by_socket(&mut self) -> io::Result<()> {
        self.connection.send(&[1; MESSAGE_BYTES])?;
        let (mut room, mut left) = ([0; MESSAGE_BYTES], MESSAGE_BYTES);
        loop {
            match self.connection.receive(&mut room[..left])? {
                Received::Bytes(count) => left -= count,
                Received::WouldBlock => {
                    let wait = self.core.poller.wait(None, &mut self.events, || false);
                    wait.await?;
                }
                Received::Closed => return Err(io::Error::other("the other core hung up")),
            }
            if left == 0 {
                return Ok(());
            }
        }
    }

    async fn completion(&mut self) -> io::Result<()> {
        while self.events.completions.is_empty() {
            let wait = self.core.poller.wait(None, &mut self.events, || false);
            wait.await?;
        }
        let completion = self.events.completions.remove(0);
        completion.outcome().map_err(io::Error::other)?;
        self.pool.take_back(completion.window);
        Ok(())
    }

    async fn by_task(&mut self, edge: u64) -> io::Result<()> {
        self.tasks.ask.send(edge).map_err(io::Error::other)?;
        while self.tasks.answered.try_recv().is_err() {
            let answered = &self.tasks.answered;
            let wait = self
                .core
                .poller
                .wait(None, &mut self.events, || !answered.is_empty());
            wait.await?;
        }
        Ok(())
    }
}

/// Mostly none: a core that just had work is met spinning or looking. Now and then long enough for
/// each stage of its sleep.
fn pause(edge: u64) -> Duration {
    match edge % 20_011 {
        0 => Duration::from_millis(120),
        place if place % 997 == 0 => Duration::from_millis(5),
        place if place % 31 == 0 => Duration::from_micros(place % 400),
        _ => Duration::ZERO,
    }
}
