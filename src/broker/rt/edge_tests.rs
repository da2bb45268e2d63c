//! Edges from idle to busy, a thousand of each kind on cores that have too few CPUs. Does not measure:
//! an edge that is lost is found by whoever waits for it in vain.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration;

use super::disk::{SegmentFile, create_segment};
use super::net::{Listener, Received, Sent};
use super::time::Monotonic;
use super::{CoreConfig, CoreHandle, CoreRuntime, Events, OperationId, Token, ring, spawn_core};
use crate::data::buffers::BufferPool;

/// Edges of each kind.
const EDGES: u32 = 1_000;
/// Words that a core may say before anybody hears them: all, so that it never waits to say one.
const WORDS_MAX: usize = EDGES as usize + 1;
/// Threads that compute beside the cores.
const NEIGHBOURS: usize = 4;
/// How long an edge may take before it counts as lost; on a machine with nothing else to do, a
/// thousand times what it takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `test` beside threads that never rest, on the CPU where [`start`] puts its cores and on
/// those where the scheduler moves them.
fn beside_neighbours(test: impl FnOnce()) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..NEIGHBOURS {
            let over = &over;
            scope.spawn(move || {
                if number % 2 == 0
                    && let Some(cpu) = first_cpu()
                {
                    core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
                }
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        // However the test ends, the neighbours have to.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    });
}

fn first_cpu() -> Option<usize> {
    let cpus = core_affinity::get_core_ids()?;
    cpus.first().map(|cpu| cpu.id)
}

fn config() -> CoreConfig {
    let mut config = CoreConfig::new("edges").expect("there are descriptors");
    config.cpu = first_cpu();
    config
}

/// Waits for a word of the core; a core that says nothing has lost an edge. It is not joined then:
/// it would never end.
fn heard<T>(from: &Receiver<T>) -> T {
    from.recv_timeout(PATIENCE)
        .expect("the core wakes for every edge")
}

/// Waits for the core to end, which takes a last edge.
fn ended<T: Send + 'static>(core: CoreHandle<T>) -> T {
    let (say, said) = mpsc::sync_channel(WORDS_MAX);
    std::thread::spawn(move || say.send(core.join()));
    heard(&said).expect("the core ends well")
}

/// A pause that differs from edge to edge, so that the core is met at every depth of its sleep.
fn pause(edge: u32) {
    match edge % 16 {
        0 => std::thread::park_timeout(Duration::from_millis(3)),
        1..8 => std::thread::yield_now(),
        _ => {}
    }
}

fn rings() {
    let config = config();
    let bell = config.bell.clone();
    let (mut post, mut inbox) = ring::<u32>(2);
    let (answer, answers) = mpsc::sync_channel(WORDS_MAX);
    let core = spawn_core(config, move |mut core| async move {
        let (mut events, mut expected) = (Events::new(), 0);
        while expected < EDGES {
            let waited = core.poller.wait(None, &mut events, || !inbox.is_empty());
            waited.await.expect("it works");
            while let Some(entry) = inbox.pop() {
                assert_eq!(entry, expected);
                expected += 1;
                answer.send(entry).expect("the test waits");
            }
        }
    });
    for edge in 0..EDGES {
        pause(edge);
        post.push(edge).expect("one is outstanding");
        post.publish();
        bell.ring();
        assert_eq!(heard(&answers), edge);
    }
    ended(core.expect("a thread"));
}

async fn echo(mut core: CoreRuntime, listener: Listener) {
    let (door, guest) = (Token::new(0), Token::new(1));
    core.poller
        .register(listener.as_fd(), door)
        .expect("it is a socket");
    let (mut connection, mut events) = (None, Events::new());
    let mut room = [0u8; 64];
    loop {
        let waited = core.poller.wait(None, &mut events, || false);
        waited.await.expect("it works");
        if let Some(accepted) = listener.accept().expect("there are descriptors") {
            core.poller
                .register(accepted.as_fd(), guest)
                .expect("it is a socket");
            connection = Some(accepted);
        }
        let Some(connection) = &connection else {
            continue;
        };
        match connection.receive(&mut room).expect("the peer lives") {
            Received::Closed => return,
            Received::WouldBlock => {}
            Received::Bytes(count) => {
                let sent = connection.send(&room[..count]).expect("the peer lives");
                assert_eq!(sent, Sent::Bytes(count));
            }
        }
    }
}

fn sockets() {
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
    let address = listener.local_address().expect("it is bound");
    let core = spawn_core(config(), move |core| echo(core, listener)).expect("a thread");
    let mut client = TcpStream::connect(address).expect("it listens");
    client
        .set_read_timeout(Some(PATIENCE))
        .expect("it is a socket");
    for edge in 0..EDGES {
        pause(edge);
        let sent = [edge as u8];
        client.write_all(&sent).expect("the core lives");
        let mut answer = [0];
        client
            .read_exact(&mut answer)
            .expect("the core wakes for every edge");
        assert_eq!(answer, sent);
    }
    drop(client);
    ended(core);
}

/// Says each time that a write is complete or a deadline has come.
async fn write_and_rest(mut core: CoreRuntime, file: SegmentFile, say: SyncSender<()>) {
    let mut pool = BufferPool::new(1, 4096).expect("there is address space");
    let block = pool.acquire().expect("one is free");
    pool.open_bytes(block, 0).fill(1);
    pool.seal(block, 4096);
    let mut events = Events::new();
    for edge in 0..EDGES {
        let window = pool.lend_sealed(block, 0..4096);
        let operation = OperationId(u64::from(edge));
        core.poller
            .submit_write(operation, &file, 0, window)
            .expect("none is in flight");
        while events.completions.is_empty() {
            let waited = core.poller.wait(None, &mut events, || false);
            waited.await.expect("the ring works");
        }
        let completion = events.completions.pop().expect("one was in flight");
        completion.outcome().expect("the disk works");
        pool.take_back(completion.window);
        say.send(()).expect("the test waits");

        let pause = Duration::from_micros(u64::from(edge % 7) * 700);
        let deadline = Monotonic::now().plus(pause);
        while Monotonic::now() < deadline {
            let waited = core.poller.wait(Some(deadline), &mut events, || false);
            waited.await.expect("it works");
        }
        say.send(()).expect("the test waits");
    }
}

fn writes_and_deadlines() {
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("it is writable");
    let path = directory.path().join("segment");
    create_segment(&path, 64 << 10, |_| ()).expect("there is room");
    let file = SegmentFile::open_for_writing(&path).expect("direct I/O works here");
    let (say, said) = mpsc::sync_channel(WORDS_MAX);
    let core = spawn_core(config(), move |core| write_and_rest(core, file, say));
    for _ in 0..2 * EDGES {
        heard(&said);
    }
    ended(core.expect("a thread"));
}

/// Two tasks beside a driver that waits for nothing but the end: one that another thread wakes, and
/// one that sleeps.
async fn tasks(mut core: CoreRuntime, asked: flume::Receiver<u32>, say: SyncSender<Option<u32>>) {
    let over = Arc::new(AtomicBool::new(false));
    let (background, say_too) = (core.background.clone(), say.clone());
    let sleeper = core.background.spawn(async move {
        for _ in 0..EDGES {
            background.sleep(Duration::from_millis(1)).await;
            say_too.send(None).expect("the test waits");
        }
    });
    let ended = over.clone();
    let woken = core.background.spawn(async move {
        while let Ok(edge) = asked.recv_async().await {
            say.send(Some(edge)).expect("the test waits");
        }
        ended.store(true, Ordering::Relaxed);
    });
    let mut events = Events::new();
    while !over.load(Ordering::Relaxed) {
        let waited = core
            .poller
            .wait(None, &mut events, || over.load(Ordering::Relaxed));
        waited.await.expect("it works");
    }
    woken.join().await;
    sleeper.join().await;
}

fn background() {
    let (ask, asked) = flume::bounded(1);
    let (say, said) = mpsc::sync_channel(WORDS_MAX);
    let core = spawn_core(config(), move |core| tasks(core, asked, say));
    let (mut answered, mut slept) = (0, 0);
    for edge in 0..EDGES {
        pause(edge);
        ask.send(edge).expect("the task lives");
        while answered == edge {
            match heard(&said) {
                Some(answer) => {
                    assert_eq!(answer, edge);
                    answered += 1;
                }
                None => slept += 1,
            }
        }
    }
    while slept < EDGES {
        assert_eq!(heard(&said), None);
        slept += 1;
    }
    drop(ask);
    ended(core.expect("a thread"));
}

#[test]
fn no_edge_is_lost_beside_busy_neighbours() {
    beside_neighbours(|| {
        std::thread::scope(|scope| {
            for kind in [rings, sockets, writes_and_deadlines, background] {
                scope.spawn(kind);
            }
        });
    });
}
