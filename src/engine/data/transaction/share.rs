//! A core's share of a transaction: taken, judged, written in one block, and what waits for that.
//! Does not know who else takes part.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_wire::ids::{CoreId, QueueId, QueueSequence};
use ringpost_wire::{Code, TRANSACTION_MESSAGES_MAX};

use crate::Effects;
use crate::data::admit::Stop;
use crate::data::flow::{Flow, Waiter};
use crate::data::journal::record::{Kind, PARTITION_TRANSACTIONS};
use crate::data::journal::{Appended, GroupBy, GroupRecord, NoRoom, Note, RunHead, Urgency};
use crate::data::notes;
use crate::data::queue::{ConsumerKey, Outcome, SequenceRange, Taken};
use crate::data::transaction::commit::TransactionAsk;
use crate::data::transaction::part::{Decision, Part, PartAck, Share, TakenOf, TransactionId};
use crate::effect::Buffers;
use crate::mesh::{Reply, Request};

/// Who is told how a transaction ends that is written as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// A channel of this core.
    Channel(u64),
    /// Another core, by the number of its request.
    Core(CoreId, u32),
}

/// What is to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum What {
    /// A share that is the whole transaction.
    Whole(Answer),
    /// A share that waits for a decision then.
    Prepare {
        from: CoreId,
        request: u32,
        id: TransactionId,
    },
    /// The decision, and the share of the core that decides; the other cores have theirs prepared.
    Decide {
        key: u64,
        number: u64,
        cores: Vec<CoreId>,
    },
    /// A prepared share that was decided.
    Apply(TransactionId),
}

/// Something to be written, all in one block.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) what: What,
    pub(super) share: Share,
    /// The disk had no room for it when it was tried last.
    is_short: bool,
}

impl Work {
    pub(super) const fn new(what: What, share: Share) -> Self {
        Self {
            what,
            share,
            is_short: false,
        }
    }

    pub(super) fn memory(&self) -> u64 {
        self.share.memory()
    }

    fn is_decided(&self) -> bool {
        matches!(self.what, What::Apply(_))
    }

    /// The share that it carries out, if that was prepared.
    pub(super) fn applies(&self) -> Option<(TransactionId, &Share)> {
        match self.what {
            What::Apply(id) => Some((id, &self.share)),
            What::Whole(_) | What::Prepare { .. } | What::Decide { .. } => None,
        }
    }
}

/// What is said when a block is durable.
#[derive(Debug)]
pub(super) enum Wait {
    Whole(Answer),
    Prepared(CoreId, u32),
    Decided { key: u64, number: u64 },
    Applied(TransactionId),
}

impl Flow {
    /// Takes what a transaction acknowledges on this core out of the hands of its consumers. If some of
    /// it cannot be had, all of it returns to its places.
    pub(super) fn take_share(&mut self, part: Part, effects: &mut Effects) -> Result<Share, Code> {
        let (taken, verdict) = self.take_acks(&part.acks, effects);
        let share = Share {
            runs: part.runs,
            messages: part.messages,
            taken,
        };
        let count: usize = share.taken.iter().map(|(_, taken)| taken.len()).sum();
        let verdict = verdict.and_then(|()| {
            let fits = share.group_bytes(usize::from(self.config.cores))
                <= u64::from(self.journal.group_bytes_max());
            if !fits || count > TRANSACTION_MESSAGES_MAX as usize {
                Err(Code::TransactionTooLarge)
            } else if !self.has_transaction_room(share.memory()) {
                Err(Code::Overloaded)
            } else {
                Ok(())
            }
        });
        if let Err(code) = verdict {
            self.give_back_taken(share.taken);
            return Err(code);
        }
        self.transactions.bytes += share.memory();
        Ok(share)
    }

    /// Takes as many of these as are outstanding, by queue and in order; an error if not all are.
    fn take_acks(
        &mut self,
        acks: &[PartAck],
        effects: &mut Effects,
    ) -> (TakenOf, Result<(), Code>) {
        let mut all: BTreeMap<QueueId, Vec<Taken>> = BTreeMap::new();
        let mut verdict = Ok(());
        for ack in acks {
            if let Err(code) = self.take_ack(ack, &mut all, effects) {
                verdict = verdict.and(Err(code));
            }
        }
        for taken in all.values_mut() {
            taken.sort_unstable_by_key(|one| one.sequence);
        }
        all.retain(|_, taken| !taken.is_empty());
        (all.into_iter().collect(), verdict)
    }

    fn take_ack(
        &mut self,
        ack: &PartAck,
        all: &mut BTreeMap<QueueId, Vec<Taken>>,
        effects: &mut Effects,
    ) -> Result<(), Code> {
        let now = self.now;
        let sink = self.sinks.get_mut(ack.consumer);
        let sink = sink.ok_or(Code::UnknownDelivery)?;
        let queue = sink.queue;
        let state = self.queues.get_mut(queue).ok_or(Code::QueueUnknown)?;
        if !state.durable {
            return Err(Code::LevelUnavailable);
        }
        state.queue.set_now(now);
        let (key, range) = (ConsumerKey(ack.consumer), ack.range);
        let taken = all.entry(queue).or_default();
        state.queue.take_acked(key, range, taken)?;
        let is_apart = range.first != 0;
        sink.held_since
            .leave(range.first, range.last, is_apart, now, |ns, count| {
                effects.sample(crate::data::stages::Stage::Held, ns, count);
            });
        if self.tracer.is_armed() {
            self.tracer.settled(ack.consumer, range, Outcome::Ack, now);
        }
        // Its consumer has room again.
        self.wake(queue);
        Ok(())
    }

    /// Nothing comes of a share: what it acknowledged returns to its places.
    pub(super) fn give_back_share(&mut self, share: Share) {
        self.transactions.bytes -= share.memory();
        self.give_back_taken(share.taken);
    }

    fn give_back_taken(&mut self, taken: TakenOf) {
        for (queue, taken) in taken {
            // With its queue they are gone.
            let Some(state) = self.queues.get_mut(queue) else {
                continue;
            };
            state.queue.set_now(self.now);
            state.queue.give_back_acked(&taken, &mut state.settled);
            self.stats.returned += taken.len() as u64;
            self.note_settled(queue, taken.len() as u64);
            self.note_counts(queue);
            self.wake(queue);
        }
    }

    /// What consumers of this core hold returns to its places, as far as they hold it.
    pub(super) fn return_part(&mut self, acks: &[PartAck], effects: &mut Effects) {
        let (taken, _) = self.take_acks(acks, effects);
        self.give_back_taken(taken);
    }

    /// Whether the queues of this core take a share now.
    fn judge_share(&self, share: &Share) -> Result<(), Code> {
        if self.failed {
            return Err(Code::JournalFailed);
        }
        for run in &share.runs {
            let state = self.queues.get(run.queue).ok_or(Code::QueueUnknown)?;
            if state.damaged {
                return Err(Code::QueueDamaged);
            }
            if !state.durable {
                return Err(Code::LevelUnavailable);
            }
            if state.queue.would_overflow(run.count, u64::from(run.bytes)) {
                return Err(Code::QueueFull);
            }
        }
        if !share.runs.is_empty() && self.journal.is_publish_refused() {
            return Err(Code::DiskFull);
        }
        Ok(())
    }

    /// Whether a decided share waits for its place: what is published meanwhile comes behind it.
    pub(crate) fn is_share_due(&self) -> bool {
        let mut work = self.transactions.work.iter();
        work.any(|work| work.is_decided() && !work.is_short)
    }

    /// Writes what is to be written, as far as there is room, in order.
    pub(crate) fn work_transactions<B: Buffers>(&mut self, buffers: &mut B, effects: &mut Effects) {
        if self.transactions.work.is_empty() {
            return;
        }
        self.place_spread(buffers, effects);
        // What is under way has its numbers in its queues already.
        let is_blocked = self.underway.is_some() || self.spread.is_stuck();
        let mut is_waiting = false;
        for _ in 0..self.transactions.work.len() {
            let Some(mut work) = self.transactions.work.pop_front() else {
                return;
            };
            let is_prepare = matches!(work.what, What::Prepare { .. });
            let outcome = if is_waiting || (is_blocked && !is_prepare) {
                Err(Stop::Wait)
            } else {
                self.write_work(&work, buffers, effects)
            };
            match outcome {
                Ok(()) => self.work_is_written(work, effects),
                Err(Stop::Wait) => {
                    is_waiting = true;
                    self.transactions.work.push_back(work);
                }
                // What was promised waits for room, and holds up nobody.
                Err(Stop::Disk) if work.is_decided() => {
                    work.is_short = true;
                    self.transactions.work.push_back(work);
                }
                Err(Stop::Disk) => self.work_is_refused(work, Code::DiskFull, effects),
                Err(Stop::Refused(code)) => self.work_is_refused(work, code, effects),
            }
        }
    }

    fn write_work<B: Buffers>(
        &mut self,
        work: &Work,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Result<(), Stop> {
        let own = |number| TransactionId {
            core: self.config.core,
            number,
        };
        if !work.is_decided() {
            self.judge_share(&work.share).map_err(Stop::Refused)?;
        }
        let written = match &work.what {
            What::Prepare { id, .. } => self.write_prepared(*id, &work.share, buffers, effects),
            What::Whole(_) => self.write_share(&work.share, None, false, buffers, effects),
            What::Decide { number, cores, .. } => {
                let decision = (own(*number), Decision::Commit(cores.clone()));
                self.write_share(&work.share, Some(&decision), false, buffers, effects)
            }
            What::Apply(id) => {
                let decision = (*id, Decision::Applied);
                self.write_share(&work.share, Some(&decision), true, buffers, effects)
            }
        };
        written.map_err(Stop::of)
    }

    fn write_prepared<B: Buffers>(
        &mut self,
        id: TransactionId,
        share: &Share,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Result<(), NoRoom> {
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        share.encode(id, &mut body);
        let record = GroupRecord {
            kind: Kind::Prepare,
            head: RunHead::of_partition(PARTITION_TRANSACTIONS),
            count: 0,
            body: &body,
        };
        let by = by_of(share, false);
        let appended = self.journal.append_group(buffers, effects, by, &[record]);
        self.body = body;
        appended.map(|_| ())
    }

    /// Writes a share as it is to be found: runs and acks, and a decision beside them, in one block.
    fn write_share<B: Buffers>(
        &mut self,
        share: &Share,
        decision: Option<&(TransactionId, Decision)>,
        is_decided: bool,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Result<(), NoRoom> {
        if share.is_empty() && decision.is_none() {
            return if self.failed {
                Err(NoRoom::Closed)
            } else {
                Ok(())
            };
        }
        let mut records = Vec::with_capacity(share.runs.len() + share.taken.len() + 1);
        let mut appended = Vec::with_capacity(share.runs.len());
        let mut start = 0;
        for run in &share.runs {
            let body = &share.messages[start..start + run.bytes as usize];
            start += run.bytes as usize;
            // With its queue what it was to get is gone.
            let Some(state) = self.queues.get(run.queue) else {
                continue;
            };
            let first = state.queue.next_sequence();
            appended.push((run, body));
            records.push(GroupRecord {
                kind: Kind::Run,
                head: RunHead::of_queue(state.partition, run.queue, first),
                count: run.count,
                body,
            });
        }
        let mut ranges = Vec::with_capacity(share.taken.len());
        for (queue, taken) in &share.taken {
            if let Some(state) = self.queues.get(*queue) {
                ranges.push((*queue, state.partition, ranges_of(taken)));
            }
        }
        let bodies: Vec<Vec<u8>> = ranges
            .iter()
            .map(|(.., ranges)| {
                let mut body = Vec::with_capacity(ranges.len() * notes::RANGE_BYTES);
                notes::encode_ranges(ranges, &mut body);
                body
            })
            .collect();
        for ((queue, partition, ranges), body) in ranges.iter().zip(&bodies) {
            records.push(GroupRecord {
                kind: Kind::Ack,
                head: RunHead::of_queue(*partition, *queue, QueueSequence(0)),
                count: ranges.len() as u32,
                body,
            });
        }
        let mut body = Vec::new();
        if let Some((id, decision)) = decision {
            decision.encode(*id, &mut body);
            records.push(GroupRecord {
                kind: Kind::Decide,
                head: RunHead::of_partition(PARTITION_TRANSACTIONS),
                count: 0,
                body: &body,
            });
        }
        if records.is_empty() {
            return Ok(());
        }
        let by = by_of(share, is_decided);
        let places = self.journal.append_group(buffers, effects, by, &records)?;
        let heads: Vec<RunHead> = records.iter().map(|record| record.head).collect();
        for (((run, body), place), head) in appended.iter().zip(places).zip(heads) {
            let state = self
                .queues
                .get_mut(run.queue)
                .expect("it was just looked at");
            let to = Appended::New(place);
            state.took(head.queue_sequence, run.count, body, to, self.now);
            if self.tracer.is_armed() {
                self.trace_appended(&head, body, |_| 0);
            }
            self.appended(run.queue);
        }
        let block = self.journal.open_block().0;
        for (queue, _, ranges) in ranges {
            self.forget_waits
                .extend(ranges.iter().map(|range| (block, queue, *range)));
            let count: u64 = ranges.iter().map(SequenceRange::count).sum();
            self.stats.settled += count;
        }
        Ok(())
    }

    fn work_is_written(&mut self, work: Work, effects: &mut Effects) {
        let Work { what, share, .. } = work;
        let wait = match what {
            What::Prepare { from, request, id } => {
                self.transactions.prepared.insert(id, share);
                self.wait_transaction(Wait::Prepared(from, request), effects);
                return;
            }
            What::Whole(answer) => Wait::Whole(answer),
            What::Decide { key, number, cores } => {
                let cores: BTreeSet<CoreId> = cores.into_iter().collect();
                self.transactions.decided.insert(number, cores);
                Wait::Decided { key, number }
            }
            What::Apply(id) => Wait::Applied(id),
        };
        self.transactions.bytes -= share.memory();
        self.wait_transaction(wait, effects);
    }

    fn wait_transaction(&mut self, wait: Wait, effects: &mut Effects) {
        let block = self.journal.open_block().0;
        let is_early = match wait {
            Wait::Whole(_) => crate::mutant!(CommittedBeforeSync),
            Wait::Prepared(..) => crate::mutant!(PreparedBeforeSync),
            Wait::Decided { .. } => crate::mutant!(DecidedBeforeSync),
            Wait::Applied(_) => false,
        };
        if block <= self.journal.durable_block().0 || is_early {
            self.transaction_is_durable(wait, effects);
        } else {
            self.transactions.waits.push_back((block, wait));
        }
    }

    fn work_is_refused(&mut self, work: Work, code: Code, effects: &mut Effects) {
        let Work { what, share, .. } = work;
        match what {
            What::Whole(answer) => {
                self.give_back_share(share);
                self.answer_whole(answer, Err(code), effects);
            }
            What::Prepare { from, request, .. } => {
                self.give_back_share(share);
                self.reply(from, request, Reply::Transaction(Err(code)), effects);
            }
            What::Decide { key, number, cores } => {
                self.give_back_share(share);
                self.drop_shares(number, &cores, effects);
                self.transaction_over(key, Err(code), effects);
            }
            // The journal has failed: the next start asks again.
            What::Apply(id) => {
                self.transactions.prepared.insert(id, share);
            }
        }
    }

    fn answer_whole(&mut self, answer: Answer, outcome: Result<(), Code>, effects: &mut Effects) {
        match answer {
            Answer::Channel(key) => {
                self.transaction_over(key, outcome.map(|()| true), effects);
            }
            Answer::Core(from, request) => {
                self.reply(from, request, Reply::Transaction(outcome), effects);
            }
        }
    }

    /// What waited for blocks up to the durable one goes on.
    pub(crate) fn transactions_are_durable(&mut self, durable: u64, effects: &mut Effects) {
        while let Some((block, _)) = self.transactions.waits.front()
            && *block <= durable
        {
            let (_, wait) = self.transactions.waits.pop_front().expect("just looked at");
            self.transaction_is_durable(wait, effects);
        }
    }

    fn transaction_is_durable(&mut self, wait: Wait, effects: &mut Effects) {
        match wait {
            Wait::Whole(answer) => self.answer_whole(answer, Ok(()), effects),
            Wait::Prepared(from, request) => {
                self.reply(from, request, Reply::Transaction(Ok(())), effects);
            }
            Wait::Decided { key, number } => {
                self.tell_decided(number, effects);
                self.transaction_over(key, Ok(true), effects);
            }
            Wait::Applied(id) => self.tell_applied(id, effects),
        }
    }

    pub(super) fn tell_applied(&mut self, id: TransactionId, effects: &mut Effects) {
        if id.core == self.config.core {
            return;
        }
        let ask = TransactionAsk::Applied { number: id.number };
        let request = Request::Transaction(Box::new(ask));
        self.ask(id.core, request, Waiter::Nobody, effects);
    }

    /// The journal has failed: of what is in it nobody knows whether it is durable.
    pub(crate) fn transactions_have_failed(&mut self, effects: &mut Effects) {
        for (_, wait) in std::mem::take(&mut self.transactions.waits) {
            match wait {
                Wait::Whole(answer) => {
                    self.answer_whole(answer, Err(Code::Indeterminate), effects);
                }
                Wait::Prepared(from, request) => {
                    let reply = Reply::Transaction(Err(Code::JournalFailed));
                    self.reply(from, request, reply, effects);
                }
                // The next start knows; until then the others wait.
                Wait::Decided { key, .. } => {
                    self.transaction_over(key, Err(Code::Indeterminate), effects);
                }
                Wait::Applied(_) => {}
            }
        }
        for work in std::mem::take(&mut self.transactions.work) {
            self.work_is_refused(work, Code::JournalFailed, effects);
        }
    }

    /// Writes what nobody waits for: that a transaction is done with. If there is no room, the next
    /// checkpoint says so.
    pub(super) fn note_decision<B: Buffers>(
        &mut self,
        id: TransactionId,
        decision: &Decision,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        let mut body = Vec::new();
        decision.encode(id, &mut body);
        let note = Note {
            kind: Kind::Decide,
            head: RunHead::of_partition(PARTITION_TRANSACTIONS),
            count: 0,
            urgency: Urgency::Trickle,
        };
        let _is_said_later = self.journal.append_record(buffers, effects, &note, &body);
    }
}

/// Whose slots a share may take: what was promised takes those of the broker, and what only frees
/// those of acks.
const fn by_of(share: &Share, is_decided: bool) -> GroupBy {
    if share.runs.is_empty() {
        GroupBy::Settler
    } else if is_decided {
        GroupBy::Broker
    } else {
        GroupBy::Publisher
    }
}

/// Consecutive messages as ranges.
fn ranges_of(taken: &[Taken]) -> Vec<SequenceRange> {
    let mut ranges: Vec<SequenceRange> = Vec::new();
    for one in taken {
        match ranges.last_mut() {
            Some(last) if last.last.0 + 1 == one.sequence => last.last.0 = one.sequence,
            _ => {
                let sequence = QueueSequence(one.sequence);
                ranges.push(SequenceRange::new(sequence, sequence));
            }
        }
    }
    ranges
}
