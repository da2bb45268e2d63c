//! The smallest shell that an engine of one core can live in: memory for a disk, connections that
//! are vectors, a clock that is a number. Whoever drives it says when things complete.
//! Does not know what clients say; what the broker says to them, it checks frame by frame.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use ringpost_amqp::{FRAME_BYTES_MAX as AMQP_FRAME_BYTES_MAX, PROTOCOL_HEADER};
use ringpost_engine::config::{CoreConfig, Limits};
use ringpost_engine::core::Core;
use ringpost_engine::data::flow::Flow;
use ringpost_engine::effect::Severity;
use ringpost_engine::input::Found;
use ringpost_engine::{
    BufferId, Buffers, ConnId, Effect, Effects, FileOp, FileReply, Input, IoFault, Mono, OpId,
    SlotHead, SlotId,
};
use ringpost_sim::memory::Pool;
use ringpost_wire::ids::CoreId;
use ringpost_wire::{
    Code, Cut, FRAME_BYTES_MAX, FRAME_BYTES_MAX_HANDSHAKE, FRAME_HEADER_BYTES, FrameHeader,
    FrameKind, cut, frame,
};

use crate::frames;

/// Identity of the data directory.
pub const CLUSTER: u64 = 0x5EED;
/// Partitions of the data directory.
pub const PARTITIONS: u16 = 4;
/// Microseconds since 1970 when the clock begins.
const WALL_US: u64 = 1_700_000_000_000_000;
/// EIO.
const EIO: i32 = 5;

/// How large everything is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Size {
    /// Blocks of 16 KiB: no message travels in pieces.
    Small,
    /// Blocks of a whole frame.
    Whole,
}

impl Size {
    /// Bytes of a buffer.
    #[must_use]
    pub const fn buffer_bytes(self) -> u32 {
        match self {
            Self::Small => 16 << 10,
            Self::Whole => 256 << 10,
        }
    }

    /// Bytes of a segment.
    #[must_use]
    pub const fn segment_bytes(self) -> u32 {
        4 * self.buffer_bytes()
    }

    /// What the engine is told.
    #[must_use]
    pub fn config(self) -> CoreConfig {
        CoreConfig {
            core: CoreId(0),
            cores: 1,
            partitions: PARTITIONS,
            cluster: CLUSTER,
            segment_bytes: self.segment_bytes(),
            server: "fuzz".to_owned(),
            limits: Limits {
                message_bytes_max: match self {
                    Self::Small => 8 << 10,
                    Self::Whole => 1 << 20,
                },
                producers_max: 8,
                consumers_max: 8,
                hold_bytes_max: 2 << 20,
                window_bytes_max: 512 << 10,
                unsent_bytes_max: 16 << 10,
                volatile_buffers: 4,
                buffers_free_min: 6,
                buffer_bytes: self.buffer_bytes(),
                slots_max: 16,
                assembly_bytes_max: 2 << 20,
                beginning_bytes_max: 1 << 20,
                ..Limits::default()
            },
        }
    }
}

/// What is on the disk.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Disk {
    /// Slot files.
    pub slots: BTreeMap<SlotId, Vec<u8>>,
    /// The two generations.
    pub checkpoints: [Option<Vec<u8>>; 2],
}

impl Disk {
    /// What a start finds.
    #[must_use]
    pub fn found(&self) -> Found {
        let slots = self.slots.iter().map(|(slot, bytes)| SlotHead {
            slot: *slot,
            file_bytes: bytes.len() as u64,
            head: bytes[..bytes.len().min(4096)].to_vec(),
        });
        Found {
            slots: slots.collect(),
            checkpoints: self.checkpoints.iter().flatten().cloned().collect(),
        }
    }

    /// Reads as far as the file goes.
    ///
    /// # Errors
    /// If that is not far enough.
    pub fn read(&self, slot: SlotId, position: u32, into: &mut [u8]) -> Result<(), IoFault> {
        let file = self.slots.get(&slot).map_or(&[][..], Vec::as_slice);
        let start = (position as usize).min(file.len());
        let there = into.len().min(file.len() - start);
        into[..there].copy_from_slice(&file[start..start + there]);
        if there == into.len() {
            Ok(())
        } else {
            Err(IoFault::Short { done: there as u32 })
        }
    }

    fn write(&mut self, slot: SlotId, position: u32, bytes: &[u8]) {
        let file = self
            .slots
            .get_mut(&slot)
            .expect("a slot is made before it is written");
        let at = position as usize;
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn file(&mut self, what: FileOp) {
        match what {
            FileOp::CreateSlot { slot, bytes } => {
                self.slots.insert(slot, vec![0; bytes as usize]);
            }
            FileOp::RemoveSlot { slot } => {
                self.slots.remove(&slot);
            }
            FileOp::WriteCheckpoint {
                generation,
                content,
            } => self.checkpoints[(generation % 2) as usize] = Some(content),
        }
    }
}

/// Something the engine asked for and was not answered yet.
#[derive(Debug)]
enum Work {
    Write(SlotId, u32, BufferId, Range<u32>),
    Read(SlotId, u32, BufferId, Range<u32>),
    File(FileOp),
}

/// A connection, as the shell sees it.
#[derive(Default, Debug)]
struct Conn {
    /// Bytes of the client that are no whole frame yet.
    arrived: Vec<u8>,
    /// It speaks AMQP, and so is answered.
    is_amqp: bool,
    /// Nothing more is read.
    is_deaf: bool,
    /// A `Welcome` was sent.
    is_welcome: bool,
    /// The client does not read.
    is_stuck: bool,
    /// Bytes that the socket has not taken, and the buffers that hold them.
    unsent_bytes: u32,
    held: Vec<BufferId>,
    /// Bytes of the broker that are no whole frame yet.
    said: Vec<u8>,
}

/// A frame that the broker sent.
#[derive(Debug)]
pub struct Heard {
    /// To whom.
    pub conn: ConnId,
    /// Its header.
    pub header: FrameHeader,
    /// Its body.
    pub body: Vec<u8>,
}

/// An engine with everything around it.
pub struct Shell {
    core: Core,
    pool: Pool,
    effects: Effects,
    /// Content of the disk.
    pub disk: Disk,
    in_flight: VecDeque<(OpId, Work)>,
    conns: BTreeMap<ConnId, Conn>,
    conns_ever: u64,
    now: u64,
    /// Frames that were sent and not looked at.
    pub heard: Vec<Heard>,
    /// Bytes sent to clients, ever.
    pub said_bytes: u64,
    /// Why the journal stopped, if it did.
    pub fail_stop: Option<String>,
    /// What operators were told that is bad.
    pub errors: Vec<String>,
}

impl Shell {
    /// Starts an engine on a disk.
    #[must_use]
    pub fn boot(size: Size, disk: Disk) -> Self {
        let now = 1_000_000_000;
        let count = match size {
            Size::Small => 24,
            Size::Whole => 16,
        };
        Self {
            core: Core::boot(size.config(), disk.found(), Mono(now)),
            pool: Pool::new(size.buffer_bytes(), count),
            effects: Effects::default(),
            disk,
            in_flight: VecDeque::new(),
            conns: BTreeMap::new(),
            conns_ever: 0,
            now,
            heard: Vec::new(),
            said_bytes: 0,
            fail_stop: None,
            errors: Vec::new(),
        }
    }

    /// Lets recovery come to its end: the engine runs then, or has said why not.
    pub fn start(&mut self) {
        self.rest();
        assert!(
            self.core.is_running() || self.core.has_failed(),
            "recovery came to rest in the middle"
        );
    }

    /// The engine.
    #[must_use]
    pub const fn core(&self) -> &Core {
        &self.core
    }

    /// What every queue holds: its number, and its messages, delivered or not.
    #[must_use]
    pub fn holdings(&self) -> BTreeMap<u32, u64> {
        let figures = self.core.flow().into_iter().flat_map(Flow::figures);
        figures
            .map(|queue| (queue.queue.0, queue.ready + queue.unacked))
            .collect()
    }

    // ---- connections -------------------------------------------------------------------------

    /// A client connects.
    pub fn open(&mut self) -> ConnId {
        self.conns_ever += 1;
        let conn = ConnId(self.conns_ever);
        self.conns.insert(conn, Conn::default());
        self.step(Input::Opened { conn });
        conn
    }

    /// A client that speaks AMQP connects.
    pub fn open_amqp(&mut self) -> ConnId {
        self.conns_ever += 1;
        let conn = ConnId(self.conns_ever);
        let entry = Conn {
            is_amqp: true,
            ..Conn::default()
        };
        self.conns.insert(conn, entry);
        let is_local = true;
        self.step(Input::OpenedAmqp { conn, is_local });
        conn
    }

    /// Bytes of a client that speaks AMQP arrive: the protocol header, then whole frames.
    pub fn arrive_amqp(&mut self, conn: ConnId, bytes: &[u8]) {
        if !self.core.is_read(conn) {
            // They wait in the socket, which has no bound here: the client says less instead.
            return;
        }
        let Some(entry) = self.conns.get_mut(&conn).filter(|entry| !entry.is_deaf) else {
            return;
        };
        entry.arrived.extend_from_slice(bytes);
        let mut end = 0;
        if !entry.is_welcome && entry.arrived.len() >= PROTOCOL_HEADER.len() {
            entry.is_welcome = true;
            end = PROTOCOL_HEADER.len();
        }
        let (mut is_bad, is_welcome) = (false, entry.is_welcome);
        loop {
            if !is_welcome {
                break;
            }
            match ringpost_amqp::cut(&entry.arrived[end..], AMQP_FRAME_BYTES_MAX) {
                ringpost_amqp::Cut::Complete { length, .. } => end += length,
                ringpost_amqp::Cut::Incomplete { .. } => break,
                ringpost_amqp::Cut::Malformed(_) => {
                    is_bad = true;
                    break;
                }
            }
        }
        let rest = entry.arrived.split_off(end);
        let frames = core::mem::replace(&mut entry.arrived, rest);
        entry.is_deaf = is_bad;
        if !frames.is_empty() {
            let bytes = &frames;
            self.step(Input::Frames { conn, bytes });
        }
        if is_bad && self.is_open(conn) {
            let code = Code::FrameMalformed;
            self.step(Input::Malformed { conn, code });
        }
    }

    /// Whether a connection is open.
    #[must_use]
    pub fn is_open(&self, conn: ConnId) -> bool {
        self.conns.contains_key(&conn)
    }

    /// Bytes of a client arrive: whole frames go to the engine, as the broker's loop gives them.
    pub fn arrive(&mut self, conn: ConnId, bytes: &[u8]) {
        let Some(entry) = self.conns.get_mut(&conn).filter(|entry| !entry.is_deaf) else {
            return;
        };
        entry.arrived.extend_from_slice(bytes);
        let most = if entry.is_welcome {
            FRAME_BYTES_MAX
        } else {
            FRAME_BYTES_MAX_HANDSHAKE
        };
        let (mut end, mut bad) = (0, None);
        loop {
            match cut(&entry.arrived[end..], most) {
                Cut::Complete { length, .. } => end += length,
                Cut::Incomplete { .. } => break,
                Cut::Malformed(code) => {
                    bad = Some(code);
                    break;
                }
            }
        }
        let rest = entry.arrived.split_off(end);
        let frames = core::mem::replace(&mut entry.arrived, rest);
        entry.is_deaf = bad.is_some();
        if !frames.is_empty() {
            self.step(Input::Frames {
                conn,
                bytes: &frames,
            });
        }
        if let Some(code) = bad
            && self.is_open(conn)
        {
            self.step(Input::Malformed { conn, code });
        }
    }

    /// A client vanishes.
    pub fn hang_up(&mut self, conn: ConnId) {
        if self.conns.contains_key(&conn) {
            self.forget(conn);
            self.step(Input::Closed { conn });
        }
    }

    /// A client stops reading, or reads on.
    pub fn set_stuck(&mut self, conn: ConnId, is_stuck: bool) {
        if let Some(entry) = self.conns.get_mut(&conn) {
            entry.is_stuck = is_stuck;
            self.drain(conn);
        }
    }

    fn drain(&mut self, conn: ConnId) {
        let Some(entry) = self.conns.get_mut(&conn).filter(|entry| !entry.is_stuck) else {
            return;
        };
        let bytes = core::mem::take(&mut entry.unsent_bytes);
        for buffer in entry.held.drain(..) {
            self.pool.unhold(buffer);
        }
        if bytes > 0 {
            self.step(Input::Sent { conn, bytes });
        }
    }

    fn forget(&mut self, conn: ConnId) {
        if let Some(entry) = self.conns.remove(&conn) {
            for buffer in entry.held {
                self.pool.unhold(buffer);
            }
        }
    }

    /// Takes what the broker said since the last time.
    pub fn take_heard(&mut self) -> Vec<Heard> {
        core::mem::take(&mut self.heard)
    }

    // ---- time --------------------------------------------------------------------------------

    /// Time passes.
    pub const fn pass(&mut self, ms: u64) {
        self.now += ms * 1_000_000;
    }

    /// The end of a turn.
    pub fn turn(&mut self) {
        let wall_us = WALL_US + self.now / 1_000;
        self.step(Input::Tick { wall_us });
        self.step(Input::TurnEnd);
        let conns: Vec<ConnId> = self.conns.keys().copied().collect();
        for conn in conns {
            self.drain(conn);
        }
        assert!(
            self.in_flight.len() < 256,
            "more and more is asked of the disk"
        );
    }

    /// Completes everything and turns until the engine waits for time to pass, or for somebody. What
    /// it only holds for a moment is waited for, but not for ever: a client may be stuck.
    ///
    /// # Panics
    /// If it never does.
    pub fn rest(&mut self) {
        const TURNS_MAX: u32 = 20_000;
        const MOMENT_MS: u64 = 1;
        let mut moments = 100;
        for _ in 0..TURNS_MAX {
            while !self.in_flight.is_empty() {
                self.complete(0);
            }
            self.turn();
            let deadline = self.core.next_deadline(Mono(self.now));
            if !self.in_flight.is_empty() || deadline.is_some_and(|at| at.0 <= self.now) {
                continue;
            }
            let moment = Mono(self.now).plus_ms(MOMENT_MS);
            match deadline.filter(|at| *at <= moment && moments > 0) {
                Some(at) => {
                    moments -= 1;
                    self.now = at.0;
                }
                None => return,
            }
        }
        panic!("the engine never comes to rest");
    }

    /// Shuts down in good order.
    ///
    /// # Panics
    /// If that does not end.
    pub fn shut_down(&mut self) {
        self.step(Input::Shutdown);
        for _ in 0..1_000 {
            self.rest();
            if self.core.is_drained() {
                return;
            }
            match self.core.next_deadline(Mono(self.now)) {
                Some(at) => self.now = self.now.max(at.0),
                None => self.pass(1),
            }
        }
        panic!("the shutdown never ends");
    }

    // ---- the disk ----------------------------------------------------------------------------

    /// Operations that were not answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Does one operation in flight.
    pub fn complete(&mut self, at: usize) {
        let Some((op, work)) = self.in_flight.remove(at) else {
            return;
        };
        match work {
            Work::Write(slot, position, buffer, range) => {
                let bytes = self.pool.shell_bytes(buffer, range);
                self.disk.write(slot, position, bytes);
                self.pool.unhold(buffer);
                let result = Ok(());
                self.step(Input::Io { op, buffer, result });
            }
            Work::Read(slot, position, buffer, range) => {
                let mut bytes = vec![0; range.len()];
                let result = self.disk.read(slot, position, &mut bytes);
                if let Err(IoFault::Short { done }) = result {
                    bytes.truncate(done as usize);
                }
                self.pool.fill(buffer, range, &bytes);
                self.step(Input::Io { op, buffer, result });
            }
            Work::File(what) => {
                self.disk.file(what);
                let result = Ok(FileReply::Done);
                self.step(Input::File { op, result });
            }
        }
    }

    /// Fails one operation in flight; `done` bytes of a write arrived.
    pub fn fail(&mut self, at: usize, done: u32) {
        let Some((op, work)) = self.in_flight.remove(at) else {
            return;
        };
        match work {
            Work::Write(slot, position, buffer, range) => {
                self.tear(slot, position, buffer, range, done);
                let result = Err(IoFault::Error(EIO));
                self.step(Input::Io { op, buffer, result });
            }
            Work::Read(_, _, buffer, range) => {
                self.pool.fill(buffer, range, &[]);
                let result = Err(IoFault::Error(EIO));
                self.step(Input::Io { op, buffer, result });
            }
            Work::File(_) => {
                let result = Err(IoFault::NoSpace);
                self.step(Input::File { op, result });
            }
        }
    }

    fn tear(
        &mut self,
        slot: SlotId,
        position: u32,
        buffer: BufferId,
        range: Range<u32>,
        done: u32,
    ) {
        let end = range.start + done.min(range.end - range.start);
        let bytes = self.pool.shell_bytes(buffer, range.start..end);
        self.disk.write(slot, position, bytes);
        self.pool.unhold(buffer);
    }

    /// The power fails: of every write in flight the first `done` bytes arrived.
    #[must_use]
    pub fn crash(mut self, done: u32) -> Disk {
        while let Some((_, work)) = self.in_flight.pop_front() {
            if let Work::Write(slot, position, buffer, range) = work {
                self.tear(slot, position, buffer, range, done);
            }
        }
        self.disk
    }

    // ---- the engine --------------------------------------------------------------------------

    /// Gives the engine one input and does what it wants done.
    pub fn step(&mut self, input: Input<'_>) {
        self.core
            .step(Mono(self.now), input, &mut self.pool, &mut self.effects);
        self.core.invariants();
        let mut effects = core::mem::take(&mut self.effects);
        for effect in effects.list.drain(..) {
            self.perform(effect, &effects.bytes);
        }
        effects.clear();
        self.effects = effects;
        assert!(
            self.pool.available() + self.pool.engine_held() + self.in_flight.len() > 0,
            "every buffer is lost"
        );
    }

    fn perform(&mut self, effect: Effect, arena: &[u8]) {
        match effect {
            Effect::Send { conn, range } => {
                self.say(conn, &arena[range.start as usize..range.end as usize]);
            }
            Effect::SendBuffer {
                conn,
                buffer,
                range,
            } => {
                self.pool.hold_sealed(buffer, &range);
                let bytes = self.pool.shell_bytes(buffer, range).to_vec();
                match self.conns.get_mut(&conn) {
                    Some(entry) => entry.held.push(buffer),
                    None => self.pool.unhold(buffer),
                }
                self.say(conn, &bytes);
            }
            Effect::Close { conn } => {
                if let Some(entry) = self.conns.get(&conn) {
                    assert!(entry.said.is_empty(), "the last frame is cut short");
                }
                self.forget(conn);
            }
            Effect::Write {
                op,
                slot,
                position,
                buffer,
                range,
            } => {
                self.pool.hold_sealed(buffer, &range);
                let work = Work::Write(slot, position, buffer, range);
                self.in_flight.push_back((op, work));
            }
            Effect::Read {
                op,
                slot,
                position,
                buffer,
                range,
            } => {
                self.pool.hold_open(buffer, &range);
                let work = Work::Read(slot, position, buffer, range);
                self.in_flight.push_back((op, work));
            }
            Effect::Release { buffer } => self.pool.release(buffer),
            Effect::File { op, what } => self.in_flight.push_back((op, Work::File(what))),
            Effect::FailStop { reason, .. } => {
                self.fail_stop.get_or_insert(reason);
            }
            Effect::Report { severity, text } => match severity {
                Severity::Info | Severity::Warning => {}
                Severity::Error => self.errors.push(text),
            },
            Effect::Handover { .. } | Effect::Mesh { .. } => panic!("there is one core"),
        }
    }

    /// The broker says something: every byte of it must make sense to a client.
    fn say(&mut self, conn: ConnId, bytes: &[u8]) {
        self.said_bytes += bytes.len() as u64;
        let Some(entry) = self.conns.get_mut(&conn) else {
            return;
        };
        entry.unsent_bytes += bytes.len() as u32;
        entry.said.extend_from_slice(bytes);
        let mut end = 0;
        if entry.is_amqp {
            if entry.said.starts_with(&PROTOCOL_HEADER) {
                end = PROTOCOL_HEADER.len();
            }
            while let ringpost_amqp::Cut::Complete { frame, length } =
                ringpost_amqp::cut(&entry.said[end..], AMQP_FRAME_BYTES_MAX)
            {
                crate::amqp::check_said(&frame);
                end += length;
            }
            entry.said.drain(..end);
            return;
        }
        while end < entry.said.len() {
            let (header, length) = match cut(&entry.said[end..], FRAME_BYTES_MAX) {
                Cut::Complete { header, length } => (header, length),
                Cut::Incomplete { .. } => break,
                Cut::Malformed(code) => panic!("the broker sends what is no frame: {code:?}"),
            };
            let body = &entry.said[end + FRAME_HEADER_BYTES..][..header.body_bytes as usize];
            assert_eq!(frame::check_body(&header, body), Ok(()), "{header:?}");
            assert_eq!(frames::read(&header, body), Ok(()), "{header:?}");
            assert!(is_of_broker(header.kind), "{header:?}");
            entry.is_welcome |= header.kind == FrameKind::Welcome;
            self.heard.push(Heard {
                conn,
                header,
                body: body.to_vec(),
            });
            end += length;
        }
        entry.said.drain(..end);
    }
}

/// Whether a broker sends frames of this kind.
const fn is_of_broker(kind: FrameKind) -> bool {
    use FrameKind as K;
    match kind {
        K::Welcome
        | K::Attached
        | K::Heartbeat
        | K::Close
        | K::Failed
        | K::Done
        | K::ProducerOpened
        | K::Confirm
        | K::Refused
        | K::ProducerCredit
        | K::ProducerClosed
        | K::ConsumerOpened
        | K::Deliver
        | K::DeliverFragment
        | K::Settled
        | K::ConsumerClosed
        | K::GetDone
        | K::ConsumerActive
        | K::ConsumerInfo
        | K::ConsumerPosition
        | K::GroupInfo
        | K::QueueInfo
        | K::ExchangeInfo
        | K::BindingInfo
        | K::TenantInfo
        | K::QueueDescription
        | K::PolicyInfo
        | K::QueueBrowsed
        | K::QueueOutcome
        | K::TransactionOpened
        | K::TransactionDone
        | K::TransactionClosed => true,
        K::Hello
        | K::Attach
        | K::ProducerOpen
        | K::Publish
        | K::PublishFragment
        | K::ProducerClose
        | K::ConsumerOpen
        | K::Settle
        | K::ConsumerCredit
        | K::ConsumerClose
        | K::Get
        | K::ConsumerInspect
        | K::QueueDeclare
        | K::QueueDelete
        | K::QueuePurge
        | K::QueueInspect
        | K::QueueList
        | K::ExchangeDeclare
        | K::ExchangeDelete
        | K::ExchangeList
        | K::Bind
        | K::Unbind
        | K::BindingList
        | K::TenantDeclare
        | K::TenantDelete
        | K::TenantList
        | K::QueueDescribe
        | K::PolicySet
        | K::PolicyDelete
        | K::PolicyList
        | K::GroupList
        | K::GroupReset
        | K::GroupDelete
        | K::TransactionOpen
        | K::TransactionPublish
        | K::TransactionSettle
        | K::TransactionCommit
        | K::TransactionRollback
        | K::TransactionClose
        | K::QueueBrowse
        | K::QueueCancel
        | K::QueueMove => false,
    }
}
