//! What connections keep: of buffers when their peers do not read, of frames that are not whole.
//! Time is an argument here; sockets are real.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use ringpost_wire::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};

use super::*;
use crate::rt::{CoreConfig, CoreRuntime, Events, spawn_core};

const SLICE: u32 = 64 << 10;
const ROOMY: ConnLimits = ConnLimits {
    parts_max: 16,
    copied_bytes_max: usize::MAX,
};

fn on_core<Driver, T>(drive: impl FnOnce(CoreRuntime) -> Driver + Send + 'static) -> T
where
    Driver: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let config = CoreConfig::new("conns").expect("there are descriptors");
    spawn_core(config, drive)
        .expect("threads can be started")
        .join()
        .expect("the core ends")
}

/// A connection that has greeted, and its other end.
fn connect(conns: &mut Conns, core: &mut CoreRuntime) -> (ConnId, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let peer = TcpStream::connect(address).expect("it listens");
    let (socket, _) = listener.accept().expect("the peer connected");
    let socket = Connection::adopt(socket).expect("it is a TCP socket");
    let id = conns.adopt(socket, Vec::new(), &mut core.poller);
    (id.expect("there is memory"), peer)
}

/// A buffer of which the caller holds the one reference; each byte differs from its neighbours.
fn buffer(pool: &mut BufferPool) -> BufferId {
    let id = pool.acquire().expect("one is free");
    for (place, byte) in pool.open_bytes(id, 0).iter_mut().enumerate() {
        *byte = (place % 251) as u8;
    }
    pool.seal(id, SLICE);
    id
}

/// Sends the buffer again and again until the socket does not take all of it; how much was offered.
fn stall(
    conns: &mut Conns,
    id: ConnId,
    buffer: BufferId,
    now: Monotonic,
    pool: &mut BufferPool,
) -> usize {
    let mut offered = 0;
    while pool.references(buffer) == 1 {
        conns.send_buffer(id, buffer, 0..SLICE, pool);
        conns.flush(now, &[], pool, |_, _| {});
        offered += SLICE as usize;
    }
    offered
}

#[test]
fn what_a_socket_does_not_take_is_copied_out_after_ten_milliseconds() {
    on_core(|mut core| async move {
        let mut pool = BufferPool::new(1, SLICE).expect("there is address space");
        let mut conns = Conns::new(ROOMY);
        let (id, mut peer) = connect(&mut conns, &mut core);
        let buffer = buffer(&mut pool);
        let start = Monotonic::now();
        let offered = stall(&mut conns, id, buffer, start, &mut pool);
        pool.release(buffer);
        let due = start.plus(COPY_AFTER);
        assert_eq!(conns.next_deadline(), Some(due));
        conns.copy_out(start.plus(COPY_AFTER - Duration::from_nanos(1)), &mut pool);
        assert_eq!(pool.free_count(), 0, "it is too early");
        assert!(!conns.take_freed());
        conns.copy_out(due, &mut pool);
        assert_eq!(pool.free_count(), 1);
        assert!(conns.take_freed(), "the engine has to hear of it");
        assert!(conns.copied_bytes > 0 && conns.copied_bytes <= SLICE as usize);
        assert_eq!(conns.next_deadline(), None);

        // The peer reads at last, and finds every byte.
        let (say, said) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let mut bytes = vec![0; offered];
            let read = peer.read_exact(&mut bytes);
            say.send((read.is_ok(), bytes)).expect("the test waits");
        });
        let mut events = Events::new();
        while conns.copied_bytes > 0 {
            let waited = core.poller.wait(None, &mut events, || false);
            waited.await.expect("it works");
            for event in &events.sockets {
                conns.note(event);
            }
            conns.flush(Monotonic::now(), &[], &mut pool, |_, _| {});
        }
        let (is_whole, bytes) = said.recv().expect("the peer reads");
        assert!(is_whole);
        let expected = |place: usize| (place % SLICE as usize % 251) as u8;
        let wrong = (0..offered).find(|&place| bytes[place] != expected(place));
        assert_eq!(wrong, None);
    });
}

#[test]
fn who_reads_in_time_is_not_copied_for() {
    on_core(|mut core| async move {
        let mut pool = BufferPool::new(1, SLICE).expect("there is address space");
        let mut conns = Conns::new(ROOMY);
        let (id, mut peer) = connect(&mut conns, &mut core);
        let buffer = buffer(&mut pool);
        let start = Monotonic::now();
        let offered = stall(&mut conns, id, buffer, start, &mut pool);
        std::thread::spawn(move || {
            let mut bytes = vec![0; offered];
            peer.read_exact(&mut bytes).map(|()| peer)
        });
        let mut events = Events::new();
        while pool.references(buffer) > 1 {
            let waited = core.poller.wait(None, &mut events, || false);
            waited.await.expect("it works");
            for event in &events.sockets {
                conns.note(event);
            }
            conns.flush(start, &[], &mut pool, |_, _| {});
        }
        conns.copy_out(start.plus(COPY_AFTER), &mut pool);
        assert_eq!(conns.copied_bytes, 0);
        assert_eq!(conns.next_deadline(), None, "what is over is forgotten");
    });
}

#[test]
fn a_copy_is_as_long_as_what_is_left_and_goes_with_it() {
    on_core(|mut core| async move {
        let mut pool = BufferPool::new(1, SLICE).expect("there is address space");
        let mut conns = Conns::new(ROOMY);
        let (id, _peer) = connect(&mut conns, &mut core);
        let buffer = buffer(&mut pool);
        let start = Monotonic::now();
        stall(&mut conns, id, buffer, start, &mut pool);
        conns.copy_out(start.plus(COPY_AFTER), &mut pool);
        // Small frames, as an idle queue has them: a head of the arena, a body, padding.
        let arena = [7; 48];
        for number in 1..=1_000 {
            let now = start.plus(COPY_AFTER * number);
            conns.send_arena(id, 0..40);
            conns.send_buffer(id, buffer, 0..100, &mut pool);
            conns.send_arena(id, 40..48);
            conns.flush(now, &arena, &mut pool, |_, _| {});
            conns.copy_out(now, &mut pool);
        }
        conns.copy_out(start.plus(COPY_AFTER * 1_001), &mut pool);
        assert_eq!(pool.references(buffer), 1, "the test's own");
        let unsent: usize = conn(&mut conns, id).out.iter().map(Piece::length).sum();
        assert!(unsent >= 148 * 1_000);
        let memory: usize = conn(&mut conns, id)
            .out
            .iter()
            .map(|piece| match piece {
                Piece::Copied(bytes, _) => bytes.capacity(),
                Piece::Arena(_) | Piece::Buffer(..) => panic!("{piece:?} is left"),
            })
            .sum();
        assert_eq!(conns.copied_bytes, memory);
        assert!(
            memory <= unsent + 2 * COPY_BYTES_MAX,
            "{memory} for {unsent}"
        );
        assert!(conn(&mut conns, id).out.len() <= unsent / COPY_BYTES_MAX + 2);
        conns.drop_gone(id, &mut pool);
        assert_eq!(conns.copied_bytes, 0);
    });
}

#[test]
fn who_found_no_room_for_a_copy_gets_it_when_there_is_some() {
    on_core(|mut core| async move {
        let mut pool = BufferPool::new(2, SLICE).expect("there is address space");
        let mut conns = Conns::new(ConnLimits {
            copied_bytes_max: 2 * SLICE as usize,
            ..ROOMY
        });
        let start = Monotonic::now();
        let [first, second] = [(); 2].map(|()| {
            let (id, peer) = connect(&mut conns, &mut core);
            let buffer = buffer(&mut pool);
            stall(&mut conns, id, buffer, start, &mut pool);
            // More than one slice and at most two: one of them finds room, both do not.
            conns.send_buffer(id, buffer, 0..SLICE, &mut pool);
            conns.flush(start, &[], &mut pool, |_, _| {});
            pool.release(buffer);
            (id, buffer, peer)
        });
        let due = start.plus(COPY_AFTER);
        conns.copy_out(due, &mut pool);
        assert_eq!(pool.references(first.1), 0);
        assert_eq!(pool.references(second.1), 2);
        assert_eq!(conns.next_deadline(), None, "nobody is woken for nothing");
        conns.copy_out(due.plus(LINGER), &mut pool);
        assert_eq!(pool.references(second.1), 2);
        conns.drop_gone(first.0, &mut pool);
        conns.copy_out(due, &mut pool);
        assert_eq!(pool.free_count(), 2);
        assert!(conns.copied_bytes > SLICE as usize);
        assert!(!conns.cut_longest_pinning(&mut pool), "it holds nothing");
    });
}

#[test]
fn without_room_for_copies_who_holds_longest_is_cut_off() {
    on_core(|mut core| async move {
        let mut pool = BufferPool::new(2, SLICE).expect("there is address space");
        let mut conns = Conns::new(ConnLimits {
            copied_bytes_max: 0,
            ..ROOMY
        });
        let start = Monotonic::now();
        let peers = [0, 1].map(|number| {
            let (id, peer) = connect(&mut conns, &mut core);
            let buffer = buffer(&mut pool);
            let now = start.plus(Duration::from_millis(number));
            stall(&mut conns, id, buffer, now, &mut pool);
            pool.release(buffer);
            (id, buffer, peer)
        });
        assert!(
            !conns.cut_longest_pinning(&mut pool),
            "none has held one for long"
        );
        conns.copy_out(start.plus(COPY_AFTER * 2), &mut pool);
        assert_eq!(pool.free_count(), 0);
        assert_eq!(conns.next_deadline(), None, "nobody is woken for nothing");
        for (number, (id, buffer, _)) in peers.iter().enumerate() {
            assert!(conns.cut_longest_pinning(&mut pool));
            assert!(conns.take_freed());
            assert_eq!(pool.free_count(), number + 1);
            assert_eq!(pool.references(*buffer), 0);
            let mut is_gone = false;
            assert_eq!(conns.next_readable(), Some(*id));
            conns.receive(*id, |conn, arrival| {
                is_gone = conn == *id && matches!(arrival, Arrival::Gone);
            });
            assert!(is_gone, "the engine hears of it");
            conns.drop_gone(*id, &mut pool);
        }
        assert!(!conns.cut_longest_pinning(&mut pool));
        assert_eq!(conns.len(), 0);
    });
}

/// The bytes of one long frame.
fn long_frame() -> Vec<u8> {
    let header = FrameHeader {
        kind: FrameKind::Publish,
        flags: 0,
        channel: 1,
        sequence: 1,
        count: 1,
        body_bytes: 40_000,
        body_crc: 0,
    };
    let mut bytes = header.encode().to_vec();
    bytes.resize(FRAME_HEADER_BYTES + 40_000, 7);
    bytes
}

/// Reads what comes until `enough`; the lengths of the frames that came, by connection.
async fn read_until(
    conns: &mut Conns,
    core: &mut CoreRuntime,
    enough: impl Fn(&mut Conns, &[(ConnId, usize)]) -> bool,
) -> Vec<(ConnId, usize)> {
    let (mut frames, mut events) = (Vec::new(), Events::new());
    loop {
        while let Some(id) = conns.next_readable() {
            conns.receive(id, |conn, arrival| match arrival {
                Arrival::Frames(bytes) => frames.push((conn, bytes.len())),
                Arrival::Nothing => {}
                Arrival::Malformed(_) | Arrival::Gone => panic!("{arrival:?}"),
            });
        }
        if enough(conns, &frames) {
            return frames;
        }
        let waited = core.poller.wait(None, &mut events, || false);
        waited.await.expect("it works");
        for event in &events.sockets {
            conns.note(event);
        }
    }
}

fn conn(conns: &mut Conns, id: ConnId) -> &mut Conn {
    conns.get_mut(id).expect("it lives")
}

/// One connection for each that began a long frame of 40,000 bytes, with 20,000 of them; the first
/// has the only place.
async fn crowd<const COUNT: usize>(
    conns: &mut Conns,
    core: &mut CoreRuntime,
) -> [(ConnId, TcpStream); COUNT] {
    let frame = long_frame();
    let start = &frame[..20_000];
    let mut peers = [(); COUNT].map(|()| connect(conns, core));
    for (number, (id, peer)) in peers.iter_mut().enumerate() {
        peer.write_all(start).expect("the core lives");
        let has_come = |conns: &mut Conns, _: &[_]| match number {
            0 => conn(conns, *id).partial.len() == start.len(),
            _ => conns.crowded.len() == number,
        };
        let frames = read_until(conns, core, has_come).await;
        assert_eq!(frames, []);
    }
    peers
}

const ONE_PLACE: ConnLimits = ConnLimits {
    parts_max: 1,
    ..ROOMY
};

#[test]
fn starts_of_long_frames_wait_for_a_place_and_idle_connections_keep_little() {
    on_core(|mut core| async move {
        let mut conns = Conns::new(ONE_PLACE);
        let mut pool = BufferPool::new(1, SLICE).expect("there is address space");
        let frame = long_frame();
        let mut peers = crowd::<4>(&mut conns, &mut core).await;
        assert_eq!(conns.parts, 1);
        for (id, _) in &peers[1..] {
            let partial = &conn(&mut conns, *id).partial;
            assert_eq!(partial.len(), PARTIAL_BYTES_KEPT);
            assert_eq!(partial.capacity(), PARTIAL_BYTES_KEPT);
        }
        // One that waits goes, and nobody waits for it.
        conns.drop_gone(peers[1].0, &mut pool);
        // Each that waits gets in when the one before it is done.
        for left in [&[0, 2, 3][..], &[2, 3], &[3]] {
            let holds = |number: &usize| is_long(&conn(&mut conns, peers[*number].0).partial);
            let mut holding = left.iter().copied().filter(holds);
            let number = holding.next().expect("somebody has the place");
            assert_eq!(holding.next(), None);
            drop(holding);
            let (id, peer) = &mut peers[number];
            peer.write_all(&frame[20_000..]).expect("the core lives");
            let is_whole = |conns: &mut Conns, frames: &[_]| {
                !frames.is_empty() && (left.len() == 1 || conns.parts == 1)
            };
            let frames = read_until(&mut conns, &mut core, is_whole).await;
            assert_eq!(frames, [(*id, frame.len())]);
            assert_eq!(conn(&mut conns, *id).partial.capacity(), 0);
        }
        assert_eq!(conns.parts, 0);
    });
}

#[test]
fn who_holds_a_place_in_silence_is_found_once_somebody_waits_for_it() {
    on_core(|mut core| async move {
        let mut conns = Conns::new(ONE_PLACE);
        let (holder, _peer) = crowd::<1>(&mut conns, &mut core)
            .await
            .into_iter()
            .next()
            .expect("one");
        let heard = conn(&mut conns, holder).part_heard;
        let late = heard.plus(PART_PATIENCE);
        assert_eq!(conns.next_deadline(), None, "nobody waits");
        assert_eq!(conns.silent(late), []);

        let (waits, mut peer) = connect(&mut conns, &mut core);
        peer.write_all(&long_frame()[..20_000])
            .expect("the core lives");
        let is_crowded = |conns: &mut Conns, _: &[_]| !conns.crowded.is_empty();
        read_until(&mut conns, &mut core, is_crowded).await;
        let look = conns.next_deadline().expect("somebody waits");
        assert_eq!(conns.silent(look), [], "it was heard of a moment ago");
        assert_eq!(
            conns.next_deadline(),
            Some(late),
            "and is looked for in time"
        );
        assert_eq!(conns.silent(late), [holder]);
        conns.close(holder, late);
        let has_place = |conns: &mut Conns, _: &[_]| is_long(&conn(conns, waits).partial);
        read_until(&mut conns, &mut core, has_place).await;
        assert_eq!(conns.parts, 1);
    });
}
