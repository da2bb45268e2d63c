//! How a transaction ends over all cores: its parts are divided, prepared, decided, and carried out.
//! Does not know how a share is written.
//!
//! The core of the connection decides. If one core alone has a part, that part is the whole and is
//! written at once. Else every other core prepares its share; then the deciding core writes its own
//! share and the decision in one block, and when that is durable the transaction has happened. What is
//! not decided came to nothing: nothing is written for that, and whoever asks hears it.

use std::collections::BTreeMap;

use ringpost_wire::ids::{CoreId, QueueId};
use ringpost_wire::{Code, Messages};

use crate::Effects;
use crate::data::flow::{Flow, Waiter};
use crate::data::route::{Facts, lot_of};
use crate::data::transaction::Stage;
use crate::data::transaction::part::{Decision, Part, PartAck, PartRun, Share, TransactionId};
use crate::data::transaction::share::{Answer, What, Work};
use crate::effect::{Buffers, Effect, Severity};
use crate::mesh::{Reply, Request};

/// What one core asks another about a transaction.
#[derive(Clone, Hash, Debug)]
pub enum TransactionAsk {
    /// This is all of one: do it or not.
    Whole(Part),
    /// Keep this until it is decided.
    Prepare {
        /// Which one.
        id: TransactionId,
        /// Your part of it.
        part: Part,
    },
    /// It has happened: do your part.
    Commit {
        /// Which one.
        id: TransactionId,
    },
    /// It came to nothing.
    Drop {
        /// Which one.
        id: TransactionId,
    },
    /// The asking core has done its part of one that you have decided.
    Applied {
        /// Its number there.
        number: u64,
    },
    /// After a start: what became of it?
    Outcome {
        /// Its number there.
        number: u64,
    },
    /// It came to nothing, or a part of it is not there: what these consumers hold returns.
    Return(Vec<PartAck>),
}

impl TransactionAsk {
    /// Bytes of memory that it takes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Whole(part) | Self::Prepare { part, .. } => part.bytes(),
            Self::Return(acks) => size_of_val(acks.as_slice()) as u64,
            Self::Commit { .. }
            | Self::Drop { .. }
            | Self::Applied { .. }
            | Self::Outcome { .. } => 0,
        }
    }
}

/// What became of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum OutcomeOf {
    /// It has happened.
    Committed,
    /// It came to nothing.
    Dropped,
    /// Nobody knows: what was written of decisions is damaged.
    Unknown,
}

/// Who waits for what another core says of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransactionWaiter {
    /// The channel of one that is the other core's as a whole.
    Whole(u64),
    /// One that this core decides.
    Prepared(u64),
    /// A share that was prepared before the start.
    Outcome(TransactionId),
}

/// A transaction that this core decides, until all shares are prepared.
#[derive(Debug)]
pub(super) struct Coordinated {
    key: u64,
    own: Share,
    waits: u32,
    prepared: Vec<CoreId>,
    failed: Option<Code>,
}

impl Coordinated {
    pub(super) fn memory(&self) -> u64 {
        self.own.memory()
    }
}

impl Part {
    fn bytes(&self) -> u64 {
        (self.messages.len() + size_of_val(self.acks.as_slice())) as u64
    }
}

impl Flow {
    /// A commit was asked for.
    pub(super) fn begin_commit(&mut self, key: u64, effects: &mut Effects) {
        let parts = self.divide(key);
        let transaction = self.transactions.open.get_mut(key);
        let transaction = transaction.expect("its frame is being stepped");
        transaction.stage = Stage::Committing;
        let mut parts = match parts {
            Ok(parts) => parts,
            Err(code) => {
                self.return_all(key, effects);
                self.transaction_over(key, Err(code), effects);
                return;
            }
        };
        // What it gathered is in its parts.
        transaction.batches = Vec::new();
        transaction.messages = Vec::new();
        transaction.acks = Vec::new();
        let published = u64::from(transaction.published);
        self.stats.published += published;
        self.stats.rested += published;
        let own = parts.remove(&self.config.core);
        // That counts as a share from now on.
        let own_bytes = own.as_ref().map_or(0, |part| part.messages.len() as u64);
        let own_bytes = own_bytes.min(transaction.memory);
        transaction.memory -= own_bytes;
        self.transactions.bytes -= own_bytes;
        let is_alone = own.is_none() && parts.len() == 1;
        let share = match own.map(|part| self.take_share(part, effects)) {
            None => Share::default(),
            Some(Ok(share)) => share,
            Some(Err(code)) => {
                for (core, part) in parts {
                    self.return_part_of(core, part.acks, effects);
                }
                self.transaction_over(key, Err(code), effects);
                return;
            }
        };
        if parts.is_empty() {
            let work = Work::new(What::Whole(Answer::Channel(key)), share);
            self.transactions.work.push_back(work);
            return;
        }
        if is_alone && let Some((core, part)) = parts.pop_first() {
            let waiter = TransactionWaiter::Whole(key);
            self.ask_transaction(core, TransactionAsk::Whole(part), Some(waiter), effects);
            return;
        }
        self.transactions.begun += 1;
        let number = u64::from(self.journal.incarnation()) << 32 | self.transactions.begun;
        let id = TransactionId {
            core: self.config.core,
            number,
        };
        let coordinated = Coordinated {
            key,
            own: share,
            waits: parts.len() as u32,
            prepared: Vec::new(),
            failed: None,
        };
        self.transactions.coordinated.insert(number, coordinated);
        for (core, part) in parts {
            let waiter = TransactionWaiter::Prepared(number);
            let ask = TransactionAsk::Prepare { id, part };
            self.ask_transaction(core, ask, Some(waiter), effects);
        }
    }

    fn ask_transaction(
        &mut self,
        core: CoreId,
        ask: TransactionAsk,
        waiter: Option<TransactionWaiter>,
        effects: &mut Effects,
    ) {
        let waiter = waiter.map_or(Waiter::Nobody, Waiter::Transaction);
        self.ask(core, Request::Transaction(Box::new(ask)), waiter, effects);
    }

    /// Divides what a transaction gathered among the cores: routed as the topology is now.
    fn divide(&mut self, key: u64) -> Result<BTreeMap<CoreId, Part>, Code> {
        let transaction = self.transactions.open.get(key).ok_or(Code::Internal)?;
        if let Some(code) = transaction.doomed {
            return Err(code);
        }
        if self.is_shutting_down() {
            return Err(Code::ShuttingDown);
        }
        let mut runs: BTreeMap<(CoreId, QueueId), (u32, Vec<u8>)> = BTreeMap::new();
        let (tenant, lot) = (transaction.tenant, lot_of(key, transaction.number));
        let mut targets = std::mem::take(&mut self.targets);
        let (mut start, mut number, mut bytes) = (0, 0, 0);
        let mut verdict = Ok(());
        // More than all cores together take is too much, whatever each gets.
        let most = u64::from(self.journal.group_bytes_max()) * u64::from(self.config.cores);
        'all: for batch in &transaction.batches {
            let end = start + batch.bytes as usize;
            for message in Messages::new(&transaction.messages[start..end]) {
                let message = message.expect("it was checked when it came");
                let envelope = &message.envelope;
                targets.clear();
                number += 1;
                let routed = self.router.resolve(
                    tenant,
                    envelope.exchange(),
                    envelope.routing_key(),
                    &Facts::of(envelope, lot_of(lot, number)),
                    &mut targets,
                );
                verdict = match routed {
                    Err(code) => Err(code),
                    Ok(_) if targets.is_empty() && batch.mandatory => Err(Code::Unroutable),
                    Ok(_) if targets.iter().any(|target| !target.durable) => {
                        Err(Code::LevelUnavailable)
                    }
                    Ok(_) => {
                        bytes += (targets.len() * message.bytes.len()) as u64;
                        match bytes > most {
                            true => Err(Code::TransactionTooLarge),
                            false => Ok(()),
                        }
                    }
                };
                if verdict.is_err() {
                    break 'all;
                }
                for target in &targets {
                    let run = runs.entry((target.core, target.queue)).or_default();
                    run.0 += 1;
                    run.1.extend_from_slice(message.bytes);
                }
            }
            start = end;
        }
        targets.clear();
        self.targets = targets;
        verdict?;
        let mut parts: BTreeMap<CoreId, Part> = BTreeMap::new();
        for ((core, queue), (count, messages)) in runs {
            let part = parts.entry(core).or_default();
            part.runs.push(PartRun {
                queue,
                count,
                bytes: messages.len() as u32,
            });
            part.messages.extend_from_slice(&messages);
        }
        for (core, ack) in &transaction.acks {
            parts.entry(*core).or_default().acks.push(*ack);
        }
        // Messages for many queues are kept for each of them.
        let more = bytes.saturating_sub(transaction.messages.len() as u64);
        if !self.has_transaction_room(more) {
            return Err(Code::Overloaded);
        }
        let transaction = self.transactions.open.get_mut(key).ok_or(Code::Internal)?;
        transaction.memory += more;
        self.transactions.bytes += more;
        Ok(parts)
    }

    /// What these consumers hold returns to its places, wherever they are.
    pub(super) fn return_acks(&mut self, acks: Vec<(CoreId, PartAck)>, effects: &mut Effects) {
        let mut by_core: BTreeMap<CoreId, Vec<PartAck>> = BTreeMap::new();
        for (core, ack) in acks {
            by_core.entry(core).or_default().push(ack);
        }
        for (core, acks) in by_core {
            self.return_part_of(core, acks, effects);
        }
    }

    fn return_part_of(&mut self, core: CoreId, acks: Vec<PartAck>, effects: &mut Effects) {
        if acks.is_empty() {
            return;
        }
        if core == self.config.core {
            self.return_part(&acks, effects);
        } else {
            self.ask_transaction(core, TransactionAsk::Return(acks), None, effects);
        }
    }

    /// Another core asks.
    pub(crate) fn take_transaction<B: Buffers>(
        &mut self,
        from: CoreId,
        request: u32,
        ask: TransactionAsk,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        let mut reply = Reply::Done;
        match ask {
            TransactionAsk::Whole(part) => {
                let what = What::Whole(Answer::Core(from, request));
                return self.take_part(from, request, part, what, effects);
            }
            TransactionAsk::Prepare { id, part } => {
                let what = What::Prepare { from, request, id };
                return self.take_part(from, request, part, what, effects);
            }
            TransactionAsk::Commit { id } => {
                self.apply_prepared(id, effects);
                // What the deciding core is asked for next comes behind it.
                self.work_transactions(buffers, effects);
            }
            TransactionAsk::Drop { id } => self.drop_prepared(id, buffers, effects),
            TransactionAsk::Applied { number } => {
                self.share_is_applied(from, number, buffers, effects);
            }
            TransactionAsk::Outcome { number } => {
                reply = Reply::TransactionOutcome(self.outcome_of(number));
            }
            TransactionAsk::Return(acks) => self.return_part(&acks, effects),
        }
        self.reply(from, request, reply, effects);
    }

    fn take_part(
        &mut self,
        from: CoreId,
        request: u32,
        part: Part,
        what: What,
        effects: &mut Effects,
    ) {
        let is_closed = match self.admits() {
            Ok(()) => Ok(()),
            Err(code) => {
                self.return_part(&part.acks, effects);
                Err(code)
            }
        };
        match is_closed.and_then(|()| self.take_share(part, effects)) {
            Ok(share) => self.transactions.work.push_back(Work::new(what, share)),
            Err(code) => self.reply(from, request, Reply::Transaction(Err(code)), effects),
        }
    }

    /// Another core has answered.
    pub(crate) fn transaction_answered(
        &mut self,
        from: CoreId,
        waiter: TransactionWaiter,
        reply: Reply,
        effects: &mut Effects,
    ) {
        match (waiter, reply) {
            (TransactionWaiter::Whole(key), Reply::Transaction(outcome)) => {
                self.transaction_over(key, outcome.map(|()| true), effects);
            }
            (TransactionWaiter::Prepared(number), Reply::Transaction(outcome)) => {
                self.share_is_prepared(number, from, outcome, effects);
            }
            (TransactionWaiter::Outcome(id), Reply::TransactionOutcome(outcome)) => {
                self.hear_outcome(id, outcome, effects);
            }
            (waiter, reply) => panic!("{reply:?} does not answer {waiter:?}"),
        }
    }

    fn share_is_prepared(
        &mut self,
        number: u64,
        from: CoreId,
        outcome: Result<(), Code>,
        effects: &mut Effects,
    ) {
        let coordinated = self.transactions.coordinated.get_mut(&number);
        let coordinated = coordinated.expect("it waits for as many as were asked");
        match outcome {
            Ok(()) => coordinated.prepared.push(from),
            Err(code) => {
                coordinated.failed.get_or_insert(code);
            }
        }
        coordinated.waits -= 1;
        if coordinated.waits > 0 {
            return;
        }
        let coordinated = self.transactions.coordinated.remove(&number);
        let Coordinated {
            key,
            own,
            prepared,
            failed,
            ..
        } = coordinated.expect("it was just looked at");
        if let Some(code) = failed {
            self.drop_shares(number, &prepared, effects);
            self.give_back_share(own);
            self.transaction_over(key, Err(code), effects);
            return;
        }
        let what = What::Decide {
            key,
            number,
            cores: prepared,
        };
        self.transactions.work.push_back(Work::new(what, own));
    }

    /// Nothing came of a transaction that these have prepared.
    pub(super) fn drop_shares(&mut self, number: u64, cores: &[CoreId], effects: &mut Effects) {
        let id = TransactionId {
            core: self.config.core,
            number,
        };
        for core in cores {
            self.ask_transaction(*core, TransactionAsk::Drop { id }, None, effects);
        }
    }

    /// The decision is durable: those who take part carry it out.
    pub(super) fn tell_decided(&mut self, number: u64, effects: &mut Effects) {
        let id = TransactionId {
            core: self.config.core,
            number,
        };
        let cores = self.transactions.decided.get(&number).cloned();
        for core in cores.unwrap_or_default() {
            self.ask_transaction(core, TransactionAsk::Commit { id }, None, effects);
        }
    }

    fn apply_prepared(&mut self, id: TransactionId, effects: &mut Effects) {
        match self.transactions.prepared.remove(&id) {
            Some(share) => {
                let work = Work::new(What::Apply(id), share);
                self.transactions.work.push_back(work);
            }
            // Told again after a start. What is on its way, or in the journal but not durable, tells
            // it in its time; told earlier, the decision would be forgotten before it is carried out.
            None => {
                if !self.failed && !self.transactions.is_being_applied(id) {
                    self.tell_applied(id, effects);
                }
            }
        }
    }

    fn drop_prepared<B: Buffers>(
        &mut self,
        id: TransactionId,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        if let Some(share) = self.transactions.prepared.remove(&id) {
            self.note_decision(id, &Decision::Dropped, buffers, effects);
            self.give_back_share(share);
        }
    }

    fn share_is_applied<B: Buffers>(
        &mut self,
        from: CoreId,
        number: u64,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        let Some(left) = self.transactions.decided.get_mut(&number) else {
            return;
        };
        left.remove(&from);
        if left.is_empty() {
            self.transactions.decided.remove(&number);
            let id = TransactionId {
                core: self.config.core,
                number,
            };
            self.note_decision(id, &Decision::Done, buffers, effects);
        }
    }

    fn outcome_of(&self, number: u64) -> OutcomeOf {
        if self.transactions.decided.contains_key(&number) {
            OutcomeOf::Committed
        } else if self.transactions.is_unsure {
            OutcomeOf::Unknown
        } else {
            OutcomeOf::Dropped
        }
    }

    fn hear_outcome(&mut self, id: TransactionId, outcome: OutcomeOf, effects: &mut Effects) {
        match outcome {
            OutcomeOf::Committed => self.apply_prepared(id, effects),
            OutcomeOf::Dropped => {
                if let Some(share) = self.transactions.prepared.remove(&id) {
                    self.give_back_share(share);
                }
            }
            OutcomeOf::Unknown => {
                let text = format!(
                    "transaction {:x} of core {} stays prepared: what core {} has decided may be \
                     lost; `ringpost verify` names the range",
                    id.number, id.core.0, id.core.0
                );
                effects.push(Effect::Report {
                    severity: Severity::Error,
                    text,
                });
            }
        }
    }

    /// A start: whoever has decided is asked what became of what was prepared, and tells it.
    pub(crate) fn resume_transactions(&mut self, effects: &mut Effects) {
        let here = self.config.core;
        let prepared: Vec<TransactionId> = self.transactions.prepared.keys().copied().collect();
        for id in prepared {
            if id.core == here || id.core.0 >= self.config.cores {
                let outcome = match id.core == here {
                    true => self.outcome_of(id.number),
                    false => OutcomeOf::Unknown,
                };
                self.hear_outcome(id, outcome, effects);
                continue;
            }
            let ask = TransactionAsk::Outcome { number: id.number };
            let waiter = TransactionWaiter::Outcome(id);
            self.ask_transaction(id.core, ask, Some(waiter), effects);
        }
        let decided: Vec<u64> = self.transactions.decided.keys().copied().collect();
        for number in decided {
            self.tell_decided(number, effects);
        }
    }
}
