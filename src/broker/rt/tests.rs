//! Tests of a whole core: executor, poller, ring, sockets and bell together.

use std::cell::Cell;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use super::disk::{SegmentFile, create_segment};
use super::net::{Connection, Listener, Received, Sent};
use super::time::Monotonic;
use super::{
    CoreConfig, CoreRuntime, Events, IoFailure, OperationId, Poller, RingFull, Token, ring,
    spawn_core,
};
use crate::data::buffers::BufferPool;

/// Runs one driver to its end on a core of its own.
fn on_core<Driver, T>(drive: impl FnOnce(CoreRuntime) -> Driver + Send + 'static) -> T
where
    Driver: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let config = CoreConfig::new("test").expect("there are descriptors");
    spawn_core(config, drive)
        .expect("threads can be started")
        .join()
        .expect("the core ends")
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("the source tree is writable")
}

fn segment(directory: &tempfile::TempDir) -> PathBuf {
    let path = directory.path().join("segment");
    create_segment(&path, 64 << 10, |_| ()).expect("there is room");
    path
}

/// Waits without a deadline until there are completions.
async fn completions(poller: &mut Poller, count: usize) -> Vec<super::Completion> {
    let mut events = Events::new();
    let mut all = Vec::new();
    while all.len() < count {
        poller
            .wait(None, &mut events, || false)
            .await
            .expect("the ring works");
        all.append(&mut events.completions);
    }
    all
}

#[test]
fn a_written_block_is_read_back() {
    let directory = scratch();
    let path = segment(&directory);
    on_core(move |mut core| async move {
        let mut pool = BufferPool::new(2, 8192).expect("there is address space");
        let file = SegmentFile::open_for_writing(&path).expect("direct I/O works here");
        let block = pool.acquire().expect("one is free");
        pool.open_bytes(block, 0).fill(0xA5);
        pool.seal(block, 8192);
        let window = pool.lend_sealed(block, 0..8192);
        core.poller
            .submit_write(OperationId(7), &file, 4096, window)
            .expect("there is room");
        let written = completions(&mut core.poller, 1).await.remove(0);
        assert_eq!(written.operation, OperationId(7));
        written.outcome().expect("the disk works");
        pool.take_back(written.window);

        let target = pool.acquire().expect("one is free");
        let window = pool.lend_to_fill(target, 4096..8192);
        core.poller
            .submit_read(OperationId(8), &file, 8192, window)
            .expect("there is room");
        drop(file);
        let read = completions(&mut core.poller, 1).await.remove(0);
        read.outcome().expect("the disk works");
        assert_eq!(pool.take_back(read.window), (target, 4096..8192));
        pool.seal(target, 8192);
        assert!(
            pool.bytes(target, 4096..8192)
                .iter()
                .all(|&byte| byte == 0xA5)
        );
    });
}

#[test]
fn short_and_failed_operations_are_reported_as_they_are() {
    let directory = scratch();
    let path = segment(&directory);
    on_core(move |mut core| async move {
        let mut pool = BufferPool::new(2, 8192).expect("there is address space");
        let file = SegmentFile::open_for_reading(&path).expect("direct I/O works here");
        let buffer = pool.acquire().expect("one is free");
        let window = pool.lend_to_fill(buffer, 0..8192);
        let last_block = (64 << 10) - 4096;
        core.poller
            .submit_read(OperationId(1), &file, last_block, window)
            .expect("room");
        let short = completions(&mut core.poller, 1).await.remove(0);
        assert_eq!(
            short.outcome(),
            Err(IoFailure::Short {
                moved: 4096,
                asked: 8192
            })
        );
        pool.take_back(short.window);

        pool.seal(buffer, 4096);
        let window = pool.lend_sealed(buffer, 0..4096);
        core.poller
            .submit_write(OperationId(2), &file, 0, window)
            .expect("room");
        let failed = completions(&mut core.poller, 1).await.remove(0);
        assert_eq!(failed.outcome(), Err(IoFailure::Error(libc::EBADF)));
        pool.take_back(failed.window);
    });
}

#[test]
fn a_full_ring_gives_the_window_back_and_drop_waits_for_the_rest() {
    let directory = scratch();
    let path = segment(&directory);
    let mut config = CoreConfig::new("test").expect("there are descriptors");
    config.operations_in_flight_max = 2;
    let core = spawn_core(config, move |mut core| async move {
        let mut pool = BufferPool::new(1, 4096).expect("there is address space");
        let file = SegmentFile::open_for_writing(&path).expect("direct I/O works here");
        let block = pool.acquire().expect("one is free");
        pool.open_bytes(block, 0).fill(0x5A);
        pool.seal(block, 4096);
        for operation in 0..2 {
            let window = pool.lend_sealed(block, 0..4096);
            let id = OperationId(operation);
            core.poller
                .submit_write(id, &file, operation * 4096, window)
                .expect("there is room");
        }
        let window = pool.lend_sealed(block, 0..4096);
        let refused = core.poller.submit_write(OperationId(2), &file, 0, window);
        let RingFull(window) = refused.expect_err("two are in flight");
        pool.take_back(window);
        assert_eq!(core.poller.in_flight(), 2);
        // Neither was handed to the kernel yet; dropping the poller does it and waits.
        drop(core.poller);
        let contents = fs::read(&path).expect("it exists");
        assert!(contents[..8192].iter().all(|&byte| byte == 0x5A));
    });
    core.expect("threads can be started")
        .join()
        .expect("the core ends");
}

#[test]
fn a_deadline_ends_a_wait_with_nothing() {
    on_core(|mut core| async move {
        let mut events = Events::new();
        // Past, within a heartbeat, and beyond it.
        for pause in [0, 200, 130_000].map(Duration::from_micros) {
            let deadline = Monotonic::now().plus(pause);
            core.poller
                .wait(Some(deadline), &mut events, || false)
                .await
                .expect("it works");
            assert!(events.is_empty());
            assert!(Monotonic::now() >= deadline);
        }
        assert!(core.poller.stats().blocks > 0);
    });
}

#[test]
fn background_tasks_run_beside_a_driver_that_never_rests() {
    on_core(|mut core| async move {
        let count = Rc::new(Cell::new(0));
        let (counter, background) = (count.clone(), core.background.clone());
        let task = core.background.spawn(async move {
            loop {
                background.sleep(Duration::from_millis(1)).await;
                counter.set(counter.get() + 1);
            }
        });
        let mut events = Events::new();
        while count.get() < 5 {
            core.poller
                .wait(None, &mut events, || true)
                .await
                .expect("it works");
            assert!(events.pending);
        }
        assert_eq!(task.cancel().await, None::<()>);
        assert_eq!(Rc::strong_count(&count), 1);
    });
}

/// Accepts one connection and echoes what comes until it closes; returns the bytes echoed.
async fn echo(mut core: CoreRuntime, listener: Listener) -> usize {
    let (door, guest) = (Token::new(0), Token::new(1));
    core.poller
        .register(listener.as_fd(), door)
        .expect("it is a socket");
    let mut connection: Option<Connection> = None;
    let mut events = Events::new();
    let mut room = [0u8; 1024];
    let mut echoed = 0;
    loop {
        core.poller
            .wait(None, &mut events, || false)
            .await
            .expect("it works");
        for event in &events.sockets {
            if event.token == door {
                let accepted = listener
                    .accept()
                    .expect("there are descriptors")
                    .expect("an event");
                core.poller
                    .register(accepted.as_fd(), guest)
                    .expect("it is a socket");
                connection = Some(accepted);
                continue;
            }
            assert_eq!(event.token, guest);
            let guest = connection.as_ref().expect("it was registered");
            loop {
                match guest.receive(&mut room).expect("the peer lives") {
                    Received::Closed => return echoed,
                    Received::WouldBlock => break,
                    Received::Bytes(count) => {
                        echoed += count;
                        let sent = guest.send(&room[..count]).expect("the peer lives");
                        assert_eq!(sent, Sent::Bytes(count), "the peer reads all it sends");
                    }
                }
            }
        }
    }
}

#[test]
fn sockets_are_accepted_read_written_and_closed() {
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
    let address = listener.local_address().expect("it is bound");
    let config = CoreConfig::new("echo").expect("there are descriptors");
    let core = spawn_core(config, move |core| echo(core, listener)).expect("a thread");
    let mut client = TcpStream::connect(address).expect("it listens");
    let mut total = 0;
    for bytes in [1usize, 64, 1023, 1024, 1025, 5000] {
        let message = vec![u8::try_from(bytes % 251).expect("small"); bytes];
        client.write_all(&message).expect("the core lives");
        let mut answer = vec![0; bytes];
        client.read_exact(&mut answer).expect("the core lives");
        assert_eq!(answer, message);
        total += bytes;
    }
    drop(client);
    assert_eq!(core.join().expect("the core ends"), total);
}

#[test]
fn a_connection_is_handed_to_another_core_with_what_is_unread() {
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
    let address = listener.local_address().expect("it is bound");
    let target = CoreConfig::new("target").expect("there are descriptors");
    let bell = target.bell.clone();
    let (mut give, mut take) = ring::<Connection>(1);
    let mut client = TcpStream::connect(address).expect("it listens");
    client
        .write_all(b"before")
        .expect("it is in the socket's buffer");

    let source = spawn_core(
        CoreConfig::new("source").expect("descriptors"),
        move |mut core| async move {
            let mut events = Events::new();
            core.poller
                .register(listener.as_fd(), Token::new(0))
                .expect("it is a socket");
            core.poller
                .wait(None, &mut events, || false)
                .await
                .expect("it works");
            let connection = listener.accept().expect("descriptors").expect("an event");
            core.poller
                .register(connection.as_fd(), Token::new(1))
                .expect("it is a socket");
            core.poller
                .wait(None, &mut events, || false)
                .await
                .expect("it works");
            assert!(
                events
                    .sockets
                    .iter()
                    .any(|event| event.token == Token::new(1))
            );
            core.poller
                .deregister(connection.as_fd())
                .expect("it was registered");
            give.push(connection).expect("there is room");
            give.publish();
            bell.ring();
        },
    );
    let target = spawn_core(target, move |mut core| async move {
        let mut events = Events::new();
        let connection = loop {
            core.poller
                .wait(None, &mut events, || !take.is_empty())
                .await
                .expect("it works");
            if let Some(connection) = take.pop() {
                break connection;
            }
        };
        core.poller
            .register(connection.as_fd(), Token::new(5))
            .expect("it is a socket");
        core.poller
            .wait(None, &mut events, || false)
            .await
            .expect("it works");
        assert_eq!(events.sockets[0].token, Token::new(5));
        assert!(events.sockets[0].readable);
        let mut room = [0u8; 16];
        assert_eq!(
            connection.receive(&mut room).expect("alive"),
            Received::Bytes(6)
        );
        connection.send(b"after").expect("alive");
    });
    source.expect("a thread").join().expect("the core ends");
    target.expect("a thread").join().expect("the core ends");
    let mut answer = String::new();
    client
        .read_to_string(&mut answer)
        .expect("the core closed it");
    assert_eq!(answer, "after");
}

#[test]
fn a_bell_wakes_a_core_from_every_stage_of_sleep() {
    let config = CoreConfig::new("sleeper").expect("there are descriptors");
    let bell = config.bell.clone();
    let (mut post, mut inbox) = ring::<u32>(2);
    let (mut answer, mut answers) = ring::<u32>(2);
    let core = spawn_core(config, move |mut core| async move {
        let mut events = Events::new();
        let mut expected = 0;
        while expected < 200 {
            core.poller
                .wait(None, &mut events, || !inbox.is_empty())
                .await
                .expect("it works");
            while let Some(entry) = inbox.pop() {
                assert_eq!(entry, expected);
                expected += 1;
                answer.push(entry).expect("one is outstanding");
                answer.publish();
            }
        }
    });
    for entry in 0..200 {
        // Pauses of different lengths, so that the core is met awake, blocked and parked; what is
        // asserted does not depend on which.
        if entry % 10 == 9 {
            std::thread::park_timeout(Duration::from_millis(u64::from(entry) / 10));
        }
        post.push(entry).expect("one is outstanding");
        post.publish();
        bell.ring();
        while answers.pop().is_none() {
            std::thread::yield_now();
        }
    }
    core.expect("a thread").join().expect("the core ends");
}

#[test]
fn a_core_that_cannot_start_says_so() {
    let mut config = CoreConfig::new("nowhere").expect("there are descriptors");
    config.cpu = Some(usize::MAX);
    spawn_core(config, |_| async {}).expect_err("there is no such CPU");
}
