//! Transactions of a client over queues that it has to itself: numbers are fed to one queue, and moved
//! from it to two others. What they must hold at the end is known by `transactions.rs`.

use ringpost_wire::control::{
    self, Body, ConsumerOpen, Durability, Failure, Named, QueueDeclare, QueueInfo, TransactionOpen,
    TransactionSettle,
};
use ringpost_wire::header::{PUBLISH_MANDATORY, TRANSACTION_COMMITTED};
use ringpost_wire::{
    Code, DeliverHead, FrameHeader, FrameKind, MessageParts, Messages, SettleRange, frame,
};

use super::{Channel, Client, Link, Request};
use crate::plan::{Fault, Mode};
use crate::random::Random;
use crate::say;
use crate::scene::Scene;
use crate::transactions::{Ending, Fate};

const MS: u64 = 1_000_000;
/// The queue that is fed, and those that are moved to.
const LETTERS: [&str; 3] = ["ti", "ta", "tb"];
/// How long what is missing may be under way when a drain looks.
const PATIENCE: u64 = 20_000 * MS;

/// A step whose answer is out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Declares the next queue.
    Declare,
    /// Opens the channel for transactions.
    Open,
    /// Opens the consumer of the queue that is fed.
    Consume,
    /// At the end: reads a queue.
    Read(usize),
    /// At the end: asks what a queue holds.
    Count(usize),
}

/// What one client does with transactions.
#[derive(Debug)]
pub(super) struct Desk {
    random: Random,
    /// Queues that are there.
    declared: usize,
    /// A step is out.
    is_out: bool,
    /// The channel for transactions, if it is open, and the number of the next one.
    channel: Option<u16>,
    number: u64,
    /// The consumer's channel.
    consumer: Option<u16>,
    /// Numbers that it holds, by delivery tag.
    held: Vec<(u64, u32)>,
    /// The transaction whose end was asked for.
    ending: Option<Ending>,
    drain: Drain,
}

/// How far a drain is with the queues of all clients.
#[derive(Default, Debug)]
struct Drain {
    /// The clients whose queues are to be read, the next one last.
    clients: Option<Vec<usize>>,
    /// Of that one: the queues.
    queues: [Reading; 3],
    /// Since when what they hold cannot be.
    since: Option<u64>,
    asked_at: u64,
}

#[derive(Clone, Default, Debug)]
struct Reading {
    stage: Stage,
    channel: Option<u16>,
    /// Places and numbers.
    seen: Vec<(u64, u32)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Stage {
    #[default]
    Begin,
    Asking,
    Reading,
    Done,
}

impl Desk {
    pub(super) fn new(id: usize, seed: u64) -> Self {
        Self {
            random: Random::new(seed, 4_000 + id as u64),
            declared: 0,
            is_out: false,
            channel: None,
            number: 1,
            consumer: None,
            held: Vec::new(),
            ending: None,
            drain: Drain::default(),
        }
    }
}

/// Whether this world has transactions, and what they find can be judged.
fn has(scene: &Scene) -> bool {
    scene.plan.mode != Mode::Detect && scene.plan.faults.has(Fault::Transactions)
}

/// The broker did not do it, and that says nothing.
fn is_excused(code: Code) -> bool {
    matches!(
        code,
        Code::TopologyReadOnly
            | Code::JournalFailed
            | Code::ShuttingDown
            | Code::Indeterminate
            | Code::LimitReached
            | Code::Overloaded
            | Code::DiskFull
    )
}

fn queue_of(client: usize, which: usize) -> String {
    format!("{}{client}", LETTERS[which])
}

fn number_of(payload: &[u8]) -> Result<u32, String> {
    let text = core::str::from_utf8(payload).ok();
    let number = text.and_then(|text| text.parse().ok());
    number.ok_or_else(|| "a message that is no number".to_owned())
}

impl Client {
    /// Does something with transactions, now and then.
    pub(super) fn transact(&mut self, scene: &mut Scene) -> bool {
        if !has(scene) || self.is_guilty || self.desk.random.below(3) > 0 {
            return false;
        }
        let desk = &self.desk;
        if desk.is_out || desk.ending.is_some() {
            return false;
        }
        if desk.declared < LETTERS.len() {
            self.declare_next();
        } else if desk.channel.is_none() {
            self.open_transactions();
        } else if desk.consumer.is_none() {
            self.consume_numbers();
        } else {
            self.run_transaction(scene);
        }
        true
    }

    /// Whether the end of a transaction is not known yet.
    pub(super) fn waits_for_transaction(&self) -> bool {
        self.link == Link::Open && self.desk.ending.is_some()
    }

    fn desk_step(&mut self, step: Step) -> u64 {
        self.request(Request::Desk(step))
    }

    fn declare_next(&mut self) {
        let name = queue_of(self.id, self.desk.declared);
        self.desk.is_out = true;
        let id = self.desk_step(Step::Declare);
        let body = QueueDeclare {
            messages_max: 0,
            bytes_max: 0,
            durability: Durability::Durable as u8,
            flags: 0,
            partition: control::PARTITION_BY_NAME,
            name: name.as_bytes(),
            arguments: b"",
        };
        let header = FrameHeader::bare(FrameKind::QueueDeclare, 0, id);
        body.write(&mut self.out, header);
    }

    fn open_transactions(&mut self) {
        let Some(channel) = self.free_channel() else {
            return;
        };
        self.desk.is_out = true;
        self.channels.insert(channel, Channel::Desk);
        let id = self.desk_step(Step::Open);
        let body = TransactionOpen {
            timeout_ms: 0,
            reserved: 0,
        };
        let header = FrameHeader::bare(FrameKind::TransactionOpen, channel, id);
        body.write(&mut self.out, header);
    }

    fn consume_numbers(&mut self) {
        let Some(channel) = self.free_channel() else {
            return;
        };
        self.desk.is_out = true;
        let id = self.desk_step(Step::Consume);
        self.read_queue(&queue_of(self.id, 0), channel, 10, id);
    }

    fn read_queue(&mut self, name: &str, channel: u16, credit: u32, id: u64) {
        self.channels.insert(channel, Channel::Desk);
        let body = ConsumerOpen {
            credit_bytes: 0,
            credit_messages: credit.min(self.welcome.credit_messages_max),
            flags: 0,
            queue: name.as_bytes(),
            arguments: b"",
        };
        let header = FrameHeader::bare(FrameKind::ConsumerOpen, channel, id);
        body.write(&mut self.out, header);
    }

    /// A whole transaction, but for the answer.
    fn run_transaction(&mut self, scene: &mut Scene) {
        let Some(channel) = self.desk.channel else {
            return;
        };
        let mut ending = Ending::default();
        let feeds = match self.desk.held.len() {
            0 => self.desk.random.within(1..=4),
            _ => self.desk.random.below(3),
        };
        for _ in 0..feeds {
            let ledger = scene.ledgers.entry(self.id).or_default();
            ending.feeds.extend(ledger.next_number());
        }
        let moves = self.desk.random.below(5).min(self.desk.held.len() as u64);
        let from = self
            .desk
            .random
            .below(self.desk.held.len() as u64 - moves + 1) as usize;
        let taken: Vec<(u64, u32)> = self.desk.held.drain(from..from + moves as usize).collect();
        ending.moves = taken.iter().map(|(_, number)| *number).collect();
        if ending.feeds.is_empty() && taken.is_empty() {
            return;
        }
        let mut batches: Vec<(String, Vec<u32>)> = vec![
            (queue_of(self.id, 0), ending.feeds.clone()),
            (queue_of(self.id, 1), ending.moves.clone()),
            (queue_of(self.id, 2), ending.moves.clone()),
        ];
        let kind = match self.desk.random.below(8) {
            0 => FrameKind::TransactionRollback,
            1 => {
                batches.push(("nowhere".to_owned(), vec![0]));
                FrameKind::TransactionCommit
            }
            _ => FrameKind::TransactionCommit,
        };
        ending.is_vain = kind == FrameKind::TransactionRollback || batches.len() > 3;
        let number = self.desk.number;
        for (name, numbers) in batches.iter().filter(|(_, numbers)| !numbers.is_empty()) {
            let mut body = Vec::new();
            for number in numbers {
                let payload = number.to_string();
                let parts = MessageParts {
                    routing_key: name.as_bytes(),
                    payload: payload.as_bytes(),
                    ..MessageParts::default()
                };
                parts.write(&mut body).expect("a small message");
            }
            let header = FrameHeader {
                flags: PUBLISH_MANDATORY,
                count: numbers.len() as u32,
                ..FrameHeader::bare(FrameKind::TransactionPublish, channel, number)
            };
            frame::write(&mut self.out, header, &body);
        }
        if let (Some(consumer), false) = (self.desk.consumer, taken.is_empty()) {
            let ranges: Vec<u8> = taken
                .iter()
                .flat_map(|(tag, _)| {
                    let (first, last) = (*tag, *tag);
                    SettleRange { first, last }.encode()
                })
                .collect();
            let settle = TransactionSettle {
                consumer,
                reserved: 0,
                ranges: &ranges,
            };
            let header = FrameHeader {
                count: taken.len() as u32,
                ..FrameHeader::bare(FrameKind::TransactionSettle, channel, number)
            };
            settle.write(&mut self.out, header);
        }
        say!(
            scene,
            "client {}: transaction {number} {kind:?}: {ending:?}",
            self.id
        );
        frame::write_bare(&mut self.out, kind, channel, number);
        self.desk.number += 1;
        scene.ledgers.entry(self.id).or_default().begin(&ending);
        self.desk.ending = Some(ending);
    }

    // ---- answers -----------------------------------------------------------------------------

    /// Whether a frame is about transactions or their queues.
    pub(super) fn is_of_desk(&self, head: &FrameHeader) -> bool {
        let is_answer = matches!(
            head.kind,
            FrameKind::Done | FrameKind::Failed | FrameKind::QueueInfo
        );
        let is_here = matches!(self.channels.get(&head.channel), Some(Channel::Desk));
        let is_asked = matches!(self.requests.get(&head.sequence), Some(Request::Desk(_)));
        is_here || (is_answer && head.channel == 0 && is_asked)
    }

    /// Such a frame.
    ///
    /// # Errors
    /// It should not have come.
    pub(super) fn on_desk_frame(
        &mut self,
        head: &FrameHeader,
        body: &[u8],
        scene: &mut Scene,
    ) -> Result<(), String> {
        let is_transactions = head.channel != 0 && self.desk.channel == Some(head.channel);
        match head.kind {
            FrameKind::TransactionDone => {
                let committed = head.flags & TRANSACTION_COMMITTED != 0;
                self.transaction_ended(head, Ok(committed), scene)
            }
            FrameKind::Failed if is_transactions => {
                let code = code_of(body)?;
                scene.marks.hit(code.word());
                self.transaction_ended(head, Err(code), scene)
            }
            FrameKind::Deliver => self.numbers_delivered(head, body, scene),
            FrameKind::ConsumerClosed => self.desk_consumer_closed(head, body),
            FrameKind::ConsumerActive => Ok(()),
            FrameKind::Failed => {
                let code = code_of(body)?;
                scene.marks.hit(code.word());
                self.desk_answered(head, Err(code), None)
            }
            FrameKind::QueueInfo => {
                let info = QueueInfo::decode(body).map_err(|code| format!("QueueInfo: {code}"))?;
                let holds = (info.ready + info.delayed, info.unacked);
                self.desk_answered(head, Ok(()), Some(holds))
            }
            FrameKind::Done | FrameKind::TransactionOpened | FrameKind::ConsumerOpened => {
                self.desk_answered(head, Ok(()), None)
            }
            kind => Err(format!("{kind:?} on a channel of transactions")),
        }
    }

    fn transaction_ended(
        &mut self,
        head: &FrameHeader,
        outcome: Result<bool, Code>,
        scene: &mut Scene,
    ) -> Result<(), String> {
        let ending = self.desk.ending.take();
        let ending = ending.ok_or_else(|| "no transaction is being ended".to_owned())?;
        if head.sequence + 1 != self.desk.number {
            return Err(format!("transaction {} has ended", head.sequence));
        }
        say!(
            scene,
            "client {}: transaction {}: {outcome:?}",
            self.id,
            head.sequence
        );
        let fate = match outcome {
            Ok(true) => {
                scene.marks.hit("transaction committed");
                if !ending.moves.is_empty() {
                    scene.marks.hit("transaction moves");
                }
                Fate::Yes
            }
            Ok(false) => Fate::No,
            Err(Code::Indeterminate) => Fate::Maybe,
            Err(Code::Unroutable) if ending.is_vain => Fate::No,
            Err(code) if is_excused(code) => {
                scene.marks.hit("transaction refused");
                Fate::No
            }
            // Its consumer has ended: what it held has gone back.
            Err(Code::UnknownDelivery) if self.desk.consumer.is_none() => Fate::No,
            Err(code) => return Err(format!("a transaction failed with {code}")),
        };
        match (ending.is_vain, fate) {
            (true, Fate::Yes) => return Err("what could not be committed was".to_owned()),
            (true, _) => scene.marks.hit("transaction rolled back"),
            (false, Fate::No) if outcome.is_ok() => {
                return Err("rolled back, and nobody asked for it".to_owned());
            }
            (false, _) => {}
        }
        scene.ledgers.entry(self.id).or_default().end(&ending, fate);
        Ok(())
    }

    fn numbers_delivered(
        &mut self,
        head: &FrameHeader,
        body: &[u8],
        scene: &mut Scene,
    ) -> Result<(), String> {
        let (place, messages) = DeliverHead::split(body).map_err(|code| code.to_string())?;
        for (at, message) in (0..).zip(Messages::new(messages)) {
            let message = message.map_err(|code| code.to_string())?;
            message
                .envelope
                .check_crc()
                .map_err(|code| code.to_string())?;
            let number = number_of(message.envelope.payload())?;
            if self.drain.is_none() {
                scene
                    .ledgers
                    .entry(self.id)
                    .or_default()
                    .delivered(number)?;
                self.desk.held.push((head.sequence + at, number));
                continue;
            }
            let readings = self.desk.drain.queues.iter_mut();
            let mut of_channel = readings.filter(|one| one.channel == Some(head.channel));
            let Some(reading) = of_channel.next() else {
                continue;
            };
            reading.seen.push((place.queue_sequence + at, number));
        }
        Ok(())
    }

    fn desk_consumer_closed(&mut self, head: &FrameHeader, body: &[u8]) -> Result<(), String> {
        let code = code_of(body)?;
        self.channels.remove(&head.channel);
        if self.desk.consumer == Some(head.channel) {
            self.desk.consumer = None;
            self.desk.held.clear();
        }
        let readings = self.desk.drain.queues.iter_mut();
        for reading in readings.filter(|one| one.channel == Some(head.channel)) {
            *reading = Reading::default();
        }
        match code {
            Code::Normal => Ok(()),
            code if is_excused(code) => Ok(()),
            code => Err(format!("a consumer of a transaction ended with {code}")),
        }
    }

    fn desk_answered(
        &mut self,
        head: &FrameHeader,
        outcome: Result<(), Code>,
        holds: Option<(u64, u64)>,
    ) -> Result<(), String> {
        let Some(Request::Desk(step)) = self.requests.remove(&head.sequence) else {
            return Err("it answers nothing".to_owned());
        };
        if let (Err(_), true) = (outcome, head.channel != 0) {
            self.channels.remove(&head.channel);
        }
        match step {
            Step::Read(which) | Step::Count(which) => {
                return self.reading_answered(step, which, outcome, holds);
            }
            Step::Declare | Step::Open | Step::Consume => self.desk.is_out = false,
        }
        match (step, outcome) {
            (Step::Declare, Ok(())) => self.desk.declared += 1,
            (Step::Open, Ok(())) => {
                self.desk.channel = Some(head.channel);
                self.desk.number = 1;
            }
            (Step::Consume, Ok(())) => self.desk.consumer = Some(head.channel),
            (_, Err(code)) if is_excused(code) => {}
            (step, outcome) => return Err(format!("{step:?} ended with {outcome:?}")),
        }
        Ok(())
    }

    /// The connection is gone: what was being ended may have happened.
    pub(super) fn desk_over(&mut self, scene: &mut Scene) {
        let desk = &mut self.desk;
        if let Some(ending) = desk.ending.take() {
            if ending.is_vain {
                scene
                    .ledgers
                    .entry(self.id)
                    .or_default()
                    .end(&ending, Fate::No);
            } else {
                scene.marks.hit("transaction without an answer");
            }
        }
        desk.is_out = false;
        desk.channel = None;
        desk.consumer = None;
        desk.held.clear();
        desk.drain.queues = Default::default();
    }

    // ---- the end -----------------------------------------------------------------------------

    /// Reads the queues of all clients, one client after the other, and judges what they hold.
    pub(super) fn drain_desks(&mut self, scene: &mut Scene) {
        if !has(scene) {
            return;
        }
        let tenant = self.tenant;
        let tenants = scene.plan.tenants;
        let all = scene.ledgers.keys().copied();
        let clients = self
            .desk
            .drain
            .clients
            .get_or_insert_with(|| all.filter(|id| tenants == 1 || id % 2 == tenant).collect());
        let Some(client) = clients.last().copied() else {
            return;
        };
        if self
            .desk
            .drain
            .queues
            .iter()
            .all(|one| one.stage == Stage::Done)
        {
            return self.judge_desk(client, scene);
        }
        for which in 0..LETTERS.len() {
            let name = queue_of(client, which);
            match self.desk.drain.queues[which].stage {
                Stage::Begin => {
                    let Some(channel) = self.free_channel() else {
                        continue;
                    };
                    let id = self.desk_step(Step::Read(which));
                    self.read_queue(&name, channel, 1_000, id);
                    self.desk.drain.queues[which] = Reading {
                        stage: Stage::Asking,
                        channel: Some(channel),
                        seen: Vec::new(),
                    };
                }
                Stage::Reading if scene.now >= self.desk.drain.asked_at + 20 * MS => {
                    self.desk.drain.asked_at = scene.now;
                    let id = self.desk_step(Step::Count(which));
                    self.desk.drain.queues[which].stage = Stage::Asking;
                    let body = Named {
                        name: name.as_bytes(),
                    };
                    let header = FrameHeader::bare(FrameKind::QueueInspect, 0, id);
                    body.write(&mut self.out, header);
                }
                Stage::Reading | Stage::Asking | Stage::Done => {}
            }
        }
    }

    fn reading_answered(
        &mut self,
        step: Step,
        which: usize,
        outcome: Result<(), Code>,
        holds: Option<(u64, u64)>,
    ) -> Result<(), String> {
        let reading = &mut self.desk.drain.queues[which];
        match (step, outcome) {
            // It was never declared.
            (_, Err(Code::QueueUnknown)) => {
                *reading = Reading {
                    stage: Stage::Done,
                    ..Reading::default()
                };
            }
            (_, Err(code)) if is_excused(code) => *reading = Reading::default(),
            (_, Err(code)) => return Err(format!("reading a queue of transactions: {code}")),
            (Step::Count(_), Ok(())) if reading.stage == Stage::Asking => {
                let seen = reading.seen.len() as u64;
                let is_all = holds == Some((0, seen));
                reading.stage = match is_all {
                    true => Stage::Done,
                    false => Stage::Reading,
                };
            }
            (_, Ok(())) if reading.stage == Stage::Asking => reading.stage = Stage::Reading,
            // It has begun again since.
            (_, Ok(())) => {}
        }
        Ok(())
    }

    fn judge_desk(&mut self, client: usize, scene: &mut Scene) {
        let drain = &mut self.desk.drain;
        let numbers = drain.queues.each_mut().map(|reading| {
            reading.seen.sort_unstable();
            reading.seen.iter().map(|(_, number)| *number).collect()
        });
        let [input, one, other]: [Vec<u32>; 3] = numbers;
        let ledger = scene.ledgers.entry(client).or_default();
        let verdict = ledger.judge([&input, &one, &other]);
        let channels: Vec<u16> = drain.queues.iter().filter_map(|one| one.channel).collect();
        drain.queues = Default::default();
        match verdict {
            Ok(()) => {
                drain.since = None;
                drain.clients.iter_mut().for_each(|clients| {
                    clients.pop();
                });
                let has_doubts = ledger.has_doubts();
                scene.marks.hit("transactions judged");
                if has_doubts {
                    scene.marks.hit("transactions judged in doubt");
                }
            }
            // What was decided may be under way.
            Err(text) => {
                let since = *drain.since.get_or_insert(scene.now);
                if scene.now > since + PATIENCE {
                    scene.fail(format!("transactions of client {client}: {text}"));
                }
            }
        }
        for channel in channels {
            frame::write_bare(&mut self.out, FrameKind::ConsumerClose, channel, 1 << 61);
        }
    }

    /// Whether everything was read and judged that a drain looks at.
    pub(super) fn desks_are_drained(&self) -> bool {
        let clients = self.desk.drain.clients.as_ref();
        clients.is_none_or(Vec::is_empty)
    }

    /// A drain begins, or begins again.
    pub(super) fn forget_desks(&mut self) {
        self.desk.drain.clients = None;
        self.desk.drain.since = None;
    }
}

fn code_of(body: &[u8]) -> Result<Code, String> {
    let failure = Failure::decode(body).map_err(|code| format!("a failure: {code}"))?;
    Ok(Code::from_number(failure.code))
}
