//! Cores on a machine that is all memory: a device that has written what it is given by the next
//! turn, lanes between cores, sockets that take everything. Does not know what clients want.

#![allow(dead_code)]

use std::collections::VecDeque;
use std::ops::Range;

use ringpost_engine::config::{CoreConfig, Limits};
use ringpost_engine::core::Core;
use ringpost_engine::data::stages::Sample;
use ringpost_engine::data::trace::{NotFollowed, TraceId, Traced, Wanted};
use ringpost_engine::effect::{Buffers, Effect, Effects, FileOp, Severity};
use ringpost_engine::input::Found;
use ringpost_engine::input::{FileReply, Input, IoFault, SlotHead};
use ringpost_engine::mesh::MeshMessage;
use ringpost_engine::{BufferId, ConnId, Mono, OpId, SlotId};
use ringpost_wire::ids::CoreId;

/// What passes from one turn to the next.
pub const TURN_NS: u64 = 200_000;

/// Bytes of a buffer, and so of the largest block.
pub const BUFFER_BYTES: u32 = 256 << 10;

/// What a machine has.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Cores.
    pub cores: u16,
    /// Buffers of each.
    pub buffers: u32,
    /// Bytes of a segment.
    pub segment_bytes: u32,
    /// Most slots of each core.
    pub slots_max: u32,
}

struct Pool {
    bytes: Vec<Vec<u8>>,
    /// Holders of each buffer: the engine, and operations in flight.
    holders: Vec<u32>,
    free: Vec<u32>,
}

impl Pool {
    fn new(count: u32) -> Self {
        Self {
            bytes: (0..count).map(|_| vec![0; BUFFER_BYTES as usize]).collect(),
            holders: vec![0; count as usize],
            free: (0..count).rev().collect(),
        }
    }

    fn release(&mut self, buffer: BufferId) {
        let holders = &mut self.holders[buffer.0 as usize];
        *holders -= 1;
        if *holders == 0 {
            self.free.push(buffer.0);
        }
    }
}

impl Buffers for Pool {
    fn buffer_bytes(&self) -> u32 {
        BUFFER_BYTES
    }

    fn available(&self) -> usize {
        self.free.len()
    }

    fn acquire(&mut self) -> Option<BufferId> {
        let id = self.free.pop()?;
        self.holders[id as usize] = 1;
        Some(BufferId(id))
    }

    fn bytes(&self, buffer: BufferId, range: Range<u32>) -> &[u8] {
        &self.bytes[buffer.0 as usize][range.start as usize..range.end as usize]
    }

    fn open_bytes(&mut self, buffer: BufferId, from: u32) -> &mut [u8] {
        &mut self.bytes[buffer.0 as usize][from as usize..]
    }

    fn seal(&mut self, _buffer: BufferId, _upto: u32) {}
}

/// Slots and checkpoint files of a core.
type Disk = (Vec<Vec<u8>>, Vec<Vec<u8>>);

/// The power has failed.
const DARK: Outage = Outage {
    after: u64::MAX,
    is_torn: false,
};

/// Something that is done, to be told in the next turn.
enum Done {
    Io(OpId, BufferId, Result<(), IoFault>),
    Read(OpId, BufferId),
    File(OpId),
    Sent(ConnId, u32),
}

struct Place {
    core: Core,
    pool: Pool,
    effects: Effects,
    slots: Vec<Vec<u8>>,
    done: VecDeque<Done>,
    mail: VecDeque<(CoreId, MeshMessage)>,
    /// What each connection was sent and has not taken, by its number.
    received: Vec<Vec<u8>>,
    reads: u64,
    read_bytes: u64,
    written_bytes: u64,
    writes: u64,
    checkpoints: u64,
    /// Its device answers nothing.
    is_stalled: bool,
    /// Its device reads nothing.
    is_read_stalled: bool,
    /// Its device writes nothing more, and says so.
    is_failing: bool,
    /// Connections may be closed, and are if they are listed here.
    closed: Option<Vec<ConnId>>,
    /// Buffers that somebody else holds.
    hogged: Vec<u32>,
    /// What it has said of stages, if that is kept.
    samples: Option<Vec<Sample>>,
    /// What it has said of messages that are followed.
    traced: Vec<Traced>,
    /// Its checkpoint files: the last one, and the one before.
    files: Vec<Vec<u8>>,
}

/// When the power of a machine fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outage {
    /// After so many writes and file operations of all cores.
    pub after: u64,
    /// Half of the next write gets to the disk.
    pub is_torn: bool,
}

/// Cores, with everything they need.
pub struct Machine {
    places: Vec<Place>,
    now: Mono,
    size: Size,
    outage: Option<Outage>,
}

impl Machine {
    /// A machine whose cores have started on empty directories.
    pub fn start(size: Size) -> Self {
        let found = (0..size.cores).map(|_| (Vec::new(), Vec::new())).collect();
        Self::boot(size, Mono(1_000_000_000), found)
    }

    /// The power fails, and comes again. What connections were sent is gone, as they are.
    pub fn restart(self) -> Self {
        let places = self.places.into_iter();
        let found = places.map(|place| (place.slots, place.files)).collect();
        Self::boot(self.size, Mono(self.now.0 + 1_000_000), found)
    }

    /// The power will fail.
    pub fn fail_power(&mut self, outage: Outage) {
        self.outage = Some(outage);
    }

    /// Whether it has failed: nothing gets to a disk any more.
    pub fn is_dark(&self) -> bool {
        self.outage == Some(DARK)
    }

    fn boot(size: Size, now: Mono, found: Vec<Disk>) -> Self {
        let place = |(core, (slots, files)): (usize, Disk)| {
            let core = core as u16;
            let heads = slots
                .iter()
                .enumerate()
                .filter(|(_, slot)| !slot.is_empty());
            let heads = heads.map(|(number, slot)| SlotHead {
                slot: SlotId(number as u32),
                head: slot[..4096].to_vec(),
                file_bytes: slot.len() as u64,
            });
            let found = Found {
                slots: heads.collect(),
                checkpoints: files.clone(),
            };
            let buffers = u64::from(size.buffers) * u64::from(BUFFER_BYTES);
            let config = CoreConfig {
                core: CoreId(core),
                cores: size.cores,
                partitions: 64,
                cluster: 7,
                segment_bytes: size.segment_bytes,
                server: "memory".into(),
                limits: Limits {
                    hold_bytes_max: buffers / 2,
                    window_bytes_max: 16 << 20,
                    buffers_free_min: size.buffers / 4 + 5,
                    slots_max: size.slots_max,
                    ..Limits::default()
                },
            };
            Place {
                core: Core::boot(config, found, now),
                pool: Pool::new(size.buffers),
                effects: Effects::default(),
                slots,
                files,
                done: VecDeque::new(),
                mail: VecDeque::new(),
                received: Vec::new(),
                reads: 0,
                read_bytes: 0,
                written_bytes: 0,
                writes: 0,
                checkpoints: 0,
                is_stalled: false,
                is_read_stalled: false,
                is_failing: false,
                closed: None,
                hogged: Vec::new(),
                samples: None,
                traced: Vec::new(),
            }
        };
        let mut machine = Self {
            places: found.into_iter().enumerate().map(place).collect(),
            now,
            size,
            outage: None,
        };
        for _ in 0..1_000 {
            machine.turn();
            if machine.places.iter().all(|place| place.core.is_running()) {
                return machine;
            }
        }
        panic!("a core does not start");
    }

    /// A new connection on a core.
    pub fn connect(&mut self, core: usize) -> ConnId {
        let place = &mut self.places[core];
        let conn = ConnId(1 << 32 | place.received.len() as u64);
        place.received.push(Vec::new());
        place.step(self.now, Input::Opened { conn });
        conn
    }

    /// A new connection that speaks AMQP on a core. From now on connections of that core may be closed.
    pub fn connect_amqp(&mut self, core: usize, is_local: bool) -> ConnId {
        let place = &mut self.places[core];
        let conn = ConnId(1 << 32 | place.received.len() as u64);
        place.received.push(Vec::new());
        place.closed.get_or_insert_default();
        place.step(self.now, Input::OpenedAmqp { conn, is_local });
        conn
    }

    /// Whether a connection was closed.
    pub fn is_closed(&self, core: usize, conn: ConnId) -> bool {
        let closed = self.places[core].closed.as_ref();
        closed.is_some_and(|closed| closed.contains(&conn))
    }

    /// Whole frames arrive on a connection.
    pub fn send(&mut self, core: usize, conn: ConnId, bytes: &[u8]) {
        self.places[core].step(self.now, Input::Frames { conn, bytes });
    }

    /// A client hangs up.
    pub fn hang_up(&mut self, core: usize, conn: ConnId) {
        self.places[core].step(self.now, Input::Closed { conn });
    }

    /// What a connection was sent; the caller empties it.
    pub fn received(&mut self, core: usize, conn: ConnId) -> &mut Vec<u8> {
        &mut self.places[core].received[(conn.0 & u64::from(u32::MAX)) as usize]
    }

    /// Ends a turn of every core and does what they ask for. What is done is told in the next one.
    pub fn turn(&mut self) {
        self.now = Mono(self.now.0 + TURN_NS);
        for core in 0..self.places.len() {
            let place = &mut self.places[core];
            place.hear(self.now);
            place.step(self.now, Input::TurnEnd);
            place.perform(&mut self.outage);
            let mut effects = std::mem::take(&mut place.effects);
            for effect in effects.list.drain(..) {
                if let Effect::Mesh { to, message } = effect {
                    let mail = &mut self.places[usize::from(to.0)].mail;
                    mail.push_back((CoreId(core as u16), message));
                }
            }
            let place = &mut self.places[core];
            if let Some(samples) = &mut place.samples {
                samples.append(&mut effects.samples);
            }
            place.traced.append(&mut effects.traced);
            effects.clear();
            place.effects = effects;
        }
    }

    /// What a core has said of stages since this was last asked; nothing the first time.
    pub fn samples(&mut self, core: usize) -> Vec<Sample> {
        let samples = self.places[core].samples.replace(Vec::new());
        samples.unwrap_or_default()
    }

    /// Follows the next message of a queue of a core.
    pub fn follow(&mut self, core: usize, wanted: Wanted) -> Result<TraceId, NotFollowed> {
        self.places[core].core.follow(wanted)
    }

    /// Nobody wants to hear of a trace of a core any more.
    pub fn unfollow(&mut self, core: usize, trace: TraceId) {
        self.places[core].core.unfollow(trace);
    }

    /// What a core has said of messages that are followed since this was last asked.
    pub fn traced(&mut self, core: usize) -> Vec<Traced> {
        std::mem::take(&mut self.places[core].traced)
    }

    /// The device of a core stands still, or goes on.
    pub fn stall(&mut self, core: usize, is_stalled: bool) {
        self.places[core].is_stalled = is_stalled;
    }

    /// The device of a core reads nothing, or does again.
    pub fn stall_reads(&mut self, core: usize, is_stalled: bool) {
        self.places[core].is_read_stalled = is_stalled;
    }

    /// The device of a core fails every write from now on.
    pub fn fail_writes(&mut self, core: usize) {
        self.places[core].is_failing = true;
    }

    /// Takes every buffer of a core that is free.
    pub fn hog(&mut self, core: usize) {
        let place = &mut self.places[core];
        place.hogged.append(&mut place.pool.free);
    }

    /// Gives back what was taken.
    pub fn unhog(&mut self, core: usize) {
        let place = &mut self.places[core];
        place.pool.free.append(&mut place.hogged);
    }

    /// A core is asked to end.
    pub fn shut_down(&mut self, core: usize) {
        self.places[core].step(self.now, Input::Shutdown);
    }

    /// The engine of a core.
    pub fn core(&self, core: usize) -> &Core {
        &self.places[core].core
    }

    /// Checkpoints written so far.
    pub fn checkpoints(&self, core: usize) -> u64 {
        self.places[core].checkpoints
    }

    /// What the clock says.
    pub fn now(&self) -> Mono {
        self.now
    }

    /// Bytes written to the journal's segments so far.
    pub fn written_bytes(&self, core: usize) -> u64 {
        self.places[core].written_bytes
    }

    /// Writes to the journal's segments so far.
    pub fn writes(&self, core: usize) -> u64 {
        self.places[core].writes
    }

    /// Reads from the device so far, and their bytes.
    pub fn reads(&self, core: usize) -> (u64, u64) {
        (self.places[core].reads, self.places[core].read_bytes)
    }
}

impl Place {
    #[inline(never)]
    fn step(&mut self, now: Mono, input: Input<'_>) {
        self.core
            .step(now, input, &mut self.pool, &mut self.effects);
    }

    fn hear(&mut self, now: Mono) {
        self.step(now, Input::Tick { wall_us: now.0 });
        for _ in 0..self.done.len() {
            let done = self.done.pop_front().expect("it was counted");
            let is_read = matches!(done, Done::Read(..));
            let is_device = is_read || matches!(done, Done::Io(..) | Done::File(_));
            if (self.is_stalled && is_device) || (self.is_read_stalled && is_read) {
                self.done.push_back(done);
                continue;
            }
            let input = match done {
                Done::Io(op, buffer, result) => {
                    self.pool.release(buffer);
                    Input::Io { op, buffer, result }
                }
                Done::Read(op, buffer) => {
                    self.pool.release(buffer);
                    let result = Ok(());
                    Input::Io { op, buffer, result }
                }
                Done::File(op) => {
                    let result = Ok(FileReply::Done);
                    Input::File { op, result }
                }
                Done::Sent(conn, bytes) => Input::Sent { conn, bytes },
            };
            self.step(now, input);
        }
        for _ in 0..self.mail.len() {
            let (from, message) = self.mail.pop_front().expect("it was counted");
            self.step(now, Input::Mesh { from, message });
        }
    }

    fn perform(&mut self, outage: &mut Option<Outage>) {
        for effect in &self.effects.list {
            match effect {
                Effect::Send { conn, range } => {
                    let bytes = &self.effects.bytes[range.start as usize..range.end as usize];
                    let idx = (conn.0 & u64::from(u32::MAX)) as usize;
                    self.received[idx].extend_from_slice(bytes);
                    self.done.push_back(Done::Sent(*conn, bytes.len() as u32));
                }
                Effect::SendBuffer {
                    conn,
                    buffer,
                    range,
                } => {
                    let bytes = self.pool.bytes(*buffer, range.clone());
                    let idx = (conn.0 & u64::from(u32::MAX)) as usize;
                    self.received[idx].extend_from_slice(bytes);
                    self.done.push_back(Done::Sent(*conn, bytes.len() as u32));
                }
                Effect::Write {
                    op,
                    slot,
                    position,
                    buffer,
                    range,
                } => {
                    let mut bytes = self.pool.bytes(*buffer, range.clone());
                    let at = *position as usize;
                    match outage {
                        Some(DARK) => continue,
                        Some(Outage { after: 0, is_torn }) => {
                            bytes = &bytes[..if *is_torn { bytes.len() / 2 } else { 0 }];
                            self.slots[slot.0 as usize][at..at + bytes.len()]
                                .copy_from_slice(bytes);
                            *outage = Some(DARK);
                            continue;
                        }
                        Some(outage) => outage.after -= 1,
                        None => {}
                    }
                    self.slots[slot.0 as usize][at..at + bytes.len()].copy_from_slice(bytes);
                    self.written_bytes += bytes.len() as u64;
                    self.writes += 1;
                    self.pool.holders[buffer.0 as usize] += 1;
                    let result = match self.is_failing {
                        true => Err(IoFault::Error(5)),
                        false => Ok(()),
                    };
                    self.done.push_back(Done::Io(*op, *buffer, result));
                }
                Effect::Read {
                    op,
                    slot,
                    position,
                    buffer,
                    range,
                } => {
                    let bytes = &mut self.pool.bytes[buffer.0 as usize]
                        [range.start as usize..range.end as usize];
                    let at = *position as usize;
                    bytes.copy_from_slice(
                        &self.slots[slot.0 as usize][at..at + (range.end - range.start) as usize],
                    );
                    self.reads += 1;
                    self.read_bytes += bytes.len() as u64;
                    self.pool.holders[buffer.0 as usize] += 1;
                    self.done.push_back(Done::Read(*op, *buffer));
                }
                Effect::Release { buffer } => self.pool.release(*buffer),
                Effect::File { op, what } => {
                    match outage {
                        Some(DARK) => continue,
                        Some(Outage { after: 0, .. }) => {
                            *outage = Some(DARK);
                            continue;
                        }
                        Some(outage) => outage.after -= 1,
                        None => {}
                    }
                    match what {
                        FileOp::CreateSlot { slot, bytes } => {
                            let idx = slot.0 as usize;
                            if self.slots.len() <= idx {
                                self.slots.resize(idx + 1, Vec::new());
                            }
                            self.slots[idx] = vec![0; *bytes as usize];
                        }
                        FileOp::RemoveSlot { slot } => self.slots[slot.0 as usize] = Vec::new(),
                        FileOp::WriteCheckpoint { content, .. } => {
                            self.checkpoints += 1;
                            self.files.push(content.clone());
                            if self.files.len() > 2 {
                                self.files.remove(0);
                            }
                        }
                    }
                    self.done.push_back(Done::File(*op));
                }
                Effect::Mesh { .. } => {}
                Effect::Close { conn } => match &mut self.closed {
                    Some(closed) => closed.push(*conn),
                    None => panic!("connection {conn:?} was closed"),
                },
                Effect::Handover { .. } => panic!("nobody attaches here"),
                Effect::FailStop { reason, .. } => assert!(self.is_failing, "{reason}"),
                Effect::Report { severity, text } => {
                    let may_warn = self.is_failing || self.closed.is_some();
                    assert!(*severity == Severity::Info || may_warn, "{text}");
                }
            }
        }
    }
}
