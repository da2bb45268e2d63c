//! Transactions of the connections of this core: what they gather, and how each one ends (ADR 0022).
//! Does not know how a share is written (`share.rs`), nor what other cores say (`commit.rs`).
//!
//! A transaction is a channel's. It keeps what it is to publish, and which deliveries it is to
//! acknowledge; nothing of that is in a queue, or known to other cores, before it is committed. What
//! it may keep is bounded: one that passes a bound goes on to be read, keeps nothing, and fails.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ringpost_wire::control::{
    Body, TransactionOpen, TransactionOpened, TransactionSettle, write_failure,
};
use ringpost_wire::header::{PUBLISH_MANDATORY, TRANSACTION_COMMITTED};
use ringpost_wire::ids::{CoreId, QueueId, TenantId};
use ringpost_wire::{
    Code, FrameHeader, FrameKind, Messages, SettleRange, TRANSACTION_BYTES_MAX,
    TRANSACTION_CHANNELS_MAX, TRANSACTION_MESSAGES_MAX, TRANSACTION_MS_DEFAULT, TRANSACTION_MS_MAX,
    frame,
};

use crate::Effects;
use crate::data::flow::Flow;
use crate::data::publish::check_transaction_batch;
use crate::data::queue::Taken;
use crate::data::session::Channel;
use crate::data::slab::Slab;
use crate::data::transaction::commit::Coordinated;
use crate::data::transaction::share::{Wait, What, Work};
use crate::ids::{ConnId, Mono};

mod commit;
mod part;
mod share;

pub use commit::{OutcomeOf, TransactionAsk, TransactionWaiter};
pub use part::{Decision, Part, PartAck, PartRun, Share, TransactionId};

/// Bytes of memory that a batch takes beside its messages, and an acknowledgement.
const NOTE_BYTES: u64 = 32;

/// Consecutive messages of one frame.
#[derive(Clone, Copy, Debug)]
struct Batch {
    bytes: u32,
    mandatory: bool,
}

/// How far a transaction has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// It gathers.
    Open,
    /// Its commit is under way.
    Committing,
}

/// The transaction of a channel: when it ends, the next one begins in its place.
#[derive(Debug)]
pub(crate) struct Transaction {
    conn: ConnId,
    channel: u16,
    tenant: TenantId,
    timeout_ms: u32,
    /// Its number on its channel, from 1.
    number: u64,
    stage: Stage,
    /// When it began, if it has.
    since: Option<Mono>,
    batches: Vec<Batch>,
    messages: Vec<u8>,
    published: u32,
    /// What it acknowledges, and on which cores.
    acks: Vec<(CoreId, PartAck)>,
    /// Why nothing can come of it.
    doomed: Option<Code>,
    /// The `TransactionClose` that is answered when its commit has ended.
    closing: Option<u64>,
    /// Bytes that it counts for.
    memory: u64,
}

/// What a core knows of transactions.
#[derive(Debug, Default)]
pub struct Transactions {
    open: Slab<Transaction>,
    /// Bytes of memory that all of them take.
    bytes: u64,
    /// Those that this core decides, by number, until all shares are prepared.
    coordinated: BTreeMap<u64, Coordinated>,
    /// How many this core has begun to decide since its start.
    begun: u64,
    /// Those that it has committed, by number: who has not said that it is done.
    pub(super) decided: BTreeMap<u64, BTreeSet<CoreId>>,
    /// Shares of this core that wait for a decision.
    pub(super) prepared: BTreeMap<TransactionId, Share>,
    /// What is to be written, in order.
    work: VecDeque<Work>,
    /// What waits for a block to be durable, in the order of blocks.
    waits: VecDeque<(u64, Wait)>,
    /// Something that was decided here may be lost: nobody is told that a transaction came to nothing.
    pub(crate) is_unsure: bool,
    /// Transactions committed and rolled back by connections of this core.
    pub(crate) ended: (u64, u64),
}

impl Transactions {
    /// What a start found.
    pub(crate) fn restored(
        prepared: BTreeMap<TransactionId, Share>,
        decided: BTreeMap<u64, BTreeSet<CoreId>>,
        is_unsure: bool,
    ) -> Self {
        let bytes = prepared.values().map(Share::memory).sum();
        Self {
            prepared,
            decided,
            is_unsure,
            bytes,
            ..Self::default()
        }
    }

    /// Whether a share that was prepared is on its way into the journal or to the disk.
    pub(crate) fn is_being_applied(&self, id: TransactionId) -> bool {
        let mut work = self.work.iter();
        let mut waits = self.waits.iter();
        work.any(|work| work.what == What::Apply(id))
            || waits.any(|(_, wait)| matches!(wait, Wait::Applied(of) if *of == id))
    }

    /// After a start: of a queue only these messages that shares acknowledge are there.
    pub(crate) fn keep_taken(&mut self, queue: QueueId, there: &[Taken]) {
        for share in self.prepared.values_mut() {
            let before = share.memory();
            for (_, taken) in share.taken.iter_mut().filter(|(of, _)| *of == queue) {
                taken.retain(|one| {
                    let at = there.binary_search_by_key(&one.sequence, |there| there.sequence);
                    at.is_ok()
                });
            }
            share.taken.retain(|(_, taken)| !taken.is_empty());
            self.bytes -= before - share.memory();
        }
    }

    /// Whether nothing is on its way.
    pub(crate) fn is_idle(&self) -> bool {
        self.work.is_empty() && self.waits.is_empty() && self.coordinated.is_empty()
    }

    /// Whether something is to be written.
    pub(crate) fn has_work(&self) -> bool {
        !self.work.is_empty()
    }

    /// Shares that are prepared and not carried out.
    pub(crate) fn prepared(&self) -> impl Iterator<Item = (TransactionId, &Share)> {
        let decided = self.work.iter().filter_map(Work::applies);
        let prepared = self.prepared.iter().map(|(id, share)| (*id, share));
        prepared.chain(decided)
    }

    /// Those that this core has committed: who has not said that it is done.
    pub(crate) fn decided(&self) -> impl Iterator<Item = (u64, &BTreeSet<CoreId>)> {
        self.decided.iter().map(|(number, cores)| (*number, cores))
    }
}

impl Flow {
    /// Transactions that are open, shares that wait for a decision, and decisions that others have not
    /// heard: for figures and for tests.
    #[must_use]
    pub fn transaction_figures(&self) -> TransactionFigures {
        let transactions = &self.transactions;
        TransactionFigures {
            channels: transactions.open.len() as u64,
            prepared: transactions.prepared.len() as u64,
            decided: transactions.decided.len() as u64,
            committed: transactions.ended.0,
            rolled_back: transactions.ended.1,
            bytes: transactions.bytes,
        }
    }

    /// Whether so many more bytes of transactions may be kept.
    fn has_transaction_room(&self, bytes: u64) -> bool {
        self.transactions.bytes + bytes <= self.config.limits.transaction_bytes_max
    }

    /// Most padded bytes that a transaction may publish to the queues of one core.
    fn transaction_bytes_max(&self) -> u32 {
        TRANSACTION_BYTES_MAX.min(self.journal.group_bytes_max())
    }

    /// `TransactionOpen` (P-94).
    pub(crate) fn transaction_open(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        body: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Code> {
        let open = TransactionOpen::decode(body)?;
        let session = self.sessions.get_mut(conn).ok_or(Code::Internal)?;
        let agreed = session.agreed().ok_or(Code::UnexpectedFrame)?;
        session.ask(header.channel)?;
        let channels = session.channels();
        let others = channels.filter(|(_, channel)| matches!(channel, Channel::Transaction(_)));
        if others.count() >= TRANSACTION_CHANNELS_MAX as usize {
            let reason = "a connection has at most 64 channels for transactions";
            self.fail(conn, header, Code::LimitReached, reason, effects);
            return Ok(());
        }
        let timeout_ms = match open.timeout_ms {
            0 => TRANSACTION_MS_DEFAULT,
            asked if asked > TRANSACTION_MS_MAX => {
                let reason = "timeout_ms is at most 3,600,000";
                self.fail(conn, header, Code::SettingInvalid, reason, effects);
                return Ok(());
            }
            asked => asked,
        };
        let key = self.transactions.open.insert(Transaction {
            conn,
            channel: header.channel,
            tenant: agreed.tenant,
            timeout_ms,
            number: 1,
            stage: Stage::Open,
            since: None,
            batches: Vec::new(),
            messages: Vec::new(),
            published: 0,
            acks: Vec::new(),
            doomed: None,
            closing: None,
            memory: 0,
        });
        let session = self.sessions.get_mut(conn).expect("it was just looked at");
        session.claim(header.channel, Channel::Transaction(key));
        let opened = TransactionOpened {
            messages_max: TRANSACTION_MESSAGES_MAX,
            bytes_max: self.transaction_bytes_max(),
            timeout_ms,
            reserved: 0,
        };
        let header = FrameHeader::bare(
            FrameKind::TransactionOpened,
            header.channel,
            header.sequence,
        );
        self.say(conn, effects, |out| opened.write(out, header));
        Ok(())
    }

    /// The transaction of a channel; `None` if the frame is late and ignored.
    fn transaction_key(&self, conn: ConnId, header: FrameHeader) -> Result<Option<u64>, Code> {
        let session = self.sessions.get(conn);
        match session.map(|session| session.channel(header.channel)) {
            Some(Channel::Transaction(key)) => Ok(Some(key)),
            Some(Channel::Closed) => Ok(None),
            _ => Err(Code::UnexpectedFrame),
        }
    }

    /// The same for a frame of the transaction itself, which must gather.
    fn transaction_of(&self, conn: ConnId, header: FrameHeader) -> Result<Option<u64>, Code> {
        let Some(key) = self.transaction_key(conn, header)? else {
            return Ok(None);
        };
        let transaction = self.transactions.open.get(key).ok_or(Code::Internal)?;
        //= P-95
        if transaction.stage != Stage::Open || transaction.closing.is_some() {
            return Err(Code::UnexpectedFrame);
        }
        if transaction.number != header.sequence {
            return Err(Code::SequenceGap);
        }
        Ok(Some(key))
    }

    /// `TransactionPublish` (P-96).
    pub(crate) fn transaction_publish(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        body: &[u8],
    ) -> Result<(), Code> {
        if header.count == 0 || header.body_crc != 0 {
            return Err(Code::BodyMalformed);
        }
        check_transaction_batch(header.count, body)?;
        let Some(key) = self.transaction_of(conn, header)? else {
            return Ok(());
        };
        let agreed = self.sessions.get(conn).and_then(|session| session.agreed());
        let message_bytes_max = agreed.ok_or(Code::Internal)?.message_bytes_max as usize;
        let is_too_large = Messages::new(body).any(|message| {
            message.is_ok_and(|message| message.envelope.length() > message_bytes_max)
        });
        let memory = body.len() as u64 + NOTE_BYTES;
        let has_room = self.has_transaction_room(memory);
        let transaction = self.transactions.open.get_mut(key).ok_or(Code::Internal)?;
        transaction.since.get_or_insert(self.now);
        let messages = transaction.published.saturating_add(header.count);
        let bytes = transaction.messages.len() + body.len();
        //= P-92
        let fault = if header.flags & !PUBLISH_MANDATORY != 0 {
            Some(Code::SettingInvalid)
        } else if is_too_large {
            Some(Code::MessageTooLarge)
        } else if messages > TRANSACTION_MESSAGES_MAX || bytes > TRANSACTION_BYTES_MAX as usize {
            Some(Code::TransactionTooLarge)
        } else if !has_room {
            Some(Code::Overloaded)
        } else {
            None
        };
        if let Some(code) = fault {
            self.doom(key, code);
        }
        let transaction = self.transactions.open.get_mut(key).ok_or(Code::Internal)?;
        if transaction.doomed.is_none() {
            transaction.published = messages;
            transaction.messages.extend_from_slice(body);
            transaction.batches.push(Batch {
                bytes: body.len() as u32,
                mandatory: header.flags & PUBLISH_MANDATORY != 0,
            });
            transaction.memory += memory;
            self.transactions.bytes += memory;
        }
        Ok(())
    }

    /// `TransactionSettle` (P-97).
    pub(crate) fn transaction_settle(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        body: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Code> {
        let settle = TransactionSettle::decode(body)?;
        if header.count == 0 || header.flags != 0 {
            return Err(Code::BodyMalformed);
        }
        let ranges = SettleRange::parse(settle.ranges, header.count)?;
        let Some(key) = self.transaction_of(conn, header)? else {
            return Ok(());
        };
        let session = self.sessions.get(conn).ok_or(Code::Internal)?;
        let consumer = match session.channel(settle.consumer) {
            Channel::Consumer { owner, key, .. } => Some((owner, key)),
            // What it held is on its way back.
            Channel::ConsumerClosing { .. } | Channel::Closed => None,
            _ => return Err(Code::UnexpectedFrame),
        };
        let memory = u64::from(header.count) * NOTE_BYTES;
        let has_room = self.has_transaction_room(memory);
        let transaction = self.transactions.open.get_mut(key).ok_or(Code::Internal)?;
        transaction.since.get_or_insert(self.now);
        let count = transaction.acks.len() + header.count as usize;
        let Some((owner, consumer)) = consumer else {
            self.doom(key, Code::UnknownDelivery);
            return Ok(());
        };
        let acks = ranges.map(|range| (owner, PartAck { consumer, range }));
        if transaction.doomed == Some(Code::TransactionTimedOut) {
            // It keeps nothing any more: what comes for it returns at once.
            let acks = acks.collect();
            self.return_acks(acks, effects);
            return Ok(());
        }
        if count > TRANSACTION_MESSAGES_MAX as usize || !has_room {
            let code = match has_room {
                true => Code::TransactionTooLarge,
                false => Code::Overloaded,
            };
            let acks = acks.collect();
            self.doom(key, code);
            self.return_acks(acks, effects);
            return Ok(());
        }
        transaction.acks.extend(acks);
        transaction.memory += memory;
        self.transactions.bytes += memory;
        Ok(())
    }

    /// `TransactionCommit` (P-98).
    pub(crate) fn transaction_commit(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        effects: &mut Effects,
    ) -> Result<(), Code> {
        if let Some(key) = self.transaction_of(conn, header)? {
            self.begin_commit(key, effects);
        }
        Ok(())
    }

    /// `TransactionRollback` (P-99).
    pub(crate) fn transaction_rollback(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        effects: &mut Effects,
    ) -> Result<(), Code> {
        let Some(key) = self.transaction_of(conn, header)? else {
            return Ok(());
        };
        self.return_all(key, effects);
        self.transaction_over(key, Ok(false), effects);
        Ok(())
    }

    /// `TransactionClose` (P-100).
    pub(crate) fn transaction_close(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        effects: &mut Effects,
    ) -> Result<(), Code> {
        let Some(key) = self.transaction_key(conn, header)? else {
            return Ok(());
        };
        let transaction = self.transactions.open.get_mut(key).ok_or(Code::Internal)?;
        if transaction.closing.is_some() {
            return Err(Code::UnexpectedFrame);
        }
        transaction.closing = Some(header.sequence);
        if transaction.stage == Stage::Open {
            self.return_all(key, effects);
            self.close_transactions(key, effects);
        }
        Ok(())
    }

    fn close_transactions(&mut self, key: u64, effects: &mut Effects) {
        let Some(transaction) = self.drop_transaction(key) else {
            return;
        };
        let (conn, channel) = (transaction.conn, transaction.channel);
        if let Some(session) = self.sessions.get_mut(conn) {
            session.set(channel, Channel::Closed);
        }
        let sequence = transaction.closing.unwrap_or(0);
        let header = FrameHeader::bare(FrameKind::TransactionClosed, channel, sequence);
        self.say(conn, effects, |out| {
            write_failure(out, header, Code::Normal, "closed by the client");
        });
    }

    /// Nothing can come of a transaction: it keeps nothing that it was to publish.
    fn doom(&mut self, key: u64, code: Code) {
        let Some(transaction) = self.transactions.open.get_mut(key) else {
            return;
        };
        if transaction.doomed.is_none() {
            transaction.doomed = Some(code);
        }
        let freed =
            transaction.messages.len() as u64 + transaction.batches.len() as u64 * NOTE_BYTES;
        transaction.messages = Vec::new();
        transaction.batches = Vec::new();
        transaction.published = 0;
        transaction.memory -= freed;
        self.transactions.bytes -= freed;
    }

    /// What a transaction was to acknowledge returns to its places.
    fn return_all(&mut self, key: u64, effects: &mut Effects) {
        if let Some(transaction) = self.transactions.open.get_mut(key) {
            let acks = std::mem::take(&mut transaction.acks);
            let freed = acks.len() as u64 * NOTE_BYTES;
            transaction.memory -= freed;
            self.transactions.bytes -= freed;
            self.return_acks(acks, effects);
        }
    }

    /// A transaction has ended: the next one begins, and its client is told.
    pub(super) fn transaction_over(
        &mut self,
        key: u64,
        outcome: Result<bool, Code>,
        effects: &mut Effects,
    ) {
        let ended = &mut self.transactions.ended;
        match outcome {
            Ok(true) => ended.0 += 1,
            Ok(false) | Err(_) => ended.1 += 1,
        }
        let Some(transaction) = self.transactions.open.get_mut(key) else {
            return;
        };
        let (conn, channel, number) = (transaction.conn, transaction.channel, transaction.number);
        self.transactions.bytes -= transaction.memory;
        *transaction = Transaction {
            number: number + 1,
            stage: Stage::Open,
            since: None,
            batches: Vec::new(),
            messages: Vec::new(),
            published: 0,
            acks: Vec::new(),
            doomed: None,
            memory: 0,
            ..*transaction
        };
        let is_closing = transaction.closing.is_some();
        match outcome {
            Ok(committed) => {
                let header = FrameHeader {
                    flags: if committed { TRANSACTION_COMMITTED } else { 0 },
                    ..FrameHeader::bare(FrameKind::TransactionDone, channel, number)
                };
                self.say(conn, effects, |out| frame::write(out, header, &[]));
            }
            Err(code) => {
                let header = FrameHeader::bare(FrameKind::TransactionCommit, channel, number);
                self.fail(conn, header, code, text_of(code), effects);
            }
        }
        if is_closing {
            self.close_transactions(key, effects);
        }
    }

    /// Forgets a channel's transaction: its connection is gone, or it is closed. What is under way of
    /// it goes on.
    pub(crate) fn drop_transaction(&mut self, key: u64) -> Option<Transaction> {
        let transaction = self.transactions.open.remove(key)?;
        self.transactions.bytes -= transaction.memory;
        Some(transaction)
    }

    /// Ends transactions that are open for too long.
    pub(crate) fn expire_transactions(&mut self, effects: &mut Effects) {
        let now = self.now;
        let is_over = |transaction: &Transaction| {
            transaction.stage == Stage::Open
                && transaction.doomed != Some(Code::TransactionTimedOut)
                && transaction
                    .since
                    .is_some_and(|since| now.ms_since(since) > u64::from(transaction.timeout_ms))
        };
        let open = &self.transactions.open;
        let over: Vec<u64> = open
            .keys()
            .filter(|key| open.get(*key).is_some_and(is_over))
            .collect();
        for key in over {
            if let Some(transaction) = self.transactions.open.get_mut(key) {
                transaction.doomed = None;
            }
            self.doom(key, Code::TransactionTimedOut);
            self.return_all(key, effects);
        }
    }

    /// Checks that what transactions keep is counted; O(n).
    pub(super) fn check_transactions(&self) {
        let transactions = &self.transactions;
        let open = &transactions.open;
        let open = open.keys().filter_map(|key| open.get(key));
        let gathered: u64 = open.map(|transaction| transaction.memory).sum();
        let prepared: u64 = transactions.prepared.values().map(Share::memory).sum();
        let coordinated = transactions.coordinated.values();
        let coordinated: u64 = coordinated.map(Coordinated::memory).sum();
        let work: u64 = transactions.work.iter().map(Work::memory).sum();
        assert_eq!(gathered + prepared + coordinated + work, transactions.bytes);
    }
}

/// What of transactions is on a core.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TransactionFigures {
    /// Channels for transactions.
    pub channels: u64,
    /// Shares that wait for a decision.
    pub prepared: u64,
    /// Decisions that some of those who take part have not carried out.
    pub decided: u64,
    /// Transactions committed since the start.
    pub committed: u64,
    /// Transactions that came to nothing since the start.
    pub rolled_back: u64,
    /// Bytes of memory that they take.
    pub bytes: u64,
}

/// Why a transaction came to nothing, for people.
fn text_of(code: Code) -> &'static str {
    match code {
        Code::TransactionTimedOut => "it was open for longer than its timeout_ms",
        Code::TransactionTooLarge => {
            "more messages or bytes than one transaction may have; see the limits of its channel"
        }
        Code::Overloaded => "as much is kept for transactions as there is memory for; try again",
        Code::Unroutable => "no queue takes one of its messages",
        Code::ExchangeUnknown => "there is no such exchange",
        Code::PermissionDenied => "an exchange is internal: it is reached over other exchanges",
        Code::QueueFull => "a target queue is at its maximum length or bytes",
        Code::DiskFull => "the disk has no room for publishes; consume or free space",
        Code::LevelUnavailable => "a queue is volatile: transactions are durable",
        Code::JournalFailed => "the journal of a queue has failed; restart the broker",
        Code::QueueDamaged => "a queue refuses service because of a damaged range",
        Code::QueueUnknown => "a queue was deleted meanwhile",
        Code::ShuttingDown => "the broker is shutting down",
        Code::MessageTooLarge => "a message is larger than agreed in the handshake",
        Code::UnknownDelivery => "an acknowledged delivery tag is not outstanding",
        Code::SettingInvalid => {
            "a flag is not known, or a stream's deliveries were acknowledged: streams are read, not taken"
        }
        Code::Indeterminate => {
            "the outcome is unknown: the journal has failed while it was being committed; all of it \
             has happened, or nothing"
        }
        _ => "nothing of it has happened",
    }
}
