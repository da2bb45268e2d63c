//! Rebuilds queues and topology from what a journal says. Takes the journal's word for what is
//! true; does not read disks.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_wire::control::Durability;
use ringpost_wire::envelope::Terms;
use ringpost_wire::ids::{CoreId, ProducerId, QueueId, QueueSequence};
use ringpost_wire::{FragmentHead, Messages, envelope, padded};

use crate::control::catalog::{Catalog, Change};
use crate::control::recovery::pieces::Pieces;
use crate::control::{recovery, state};
use crate::data::dedup::Dedup;
use crate::data::journal::Damage;
use crate::data::journal::record::{
    Kind, PARTITION_META, PARTITION_TRANSACTIONS, RecordHead, u64_at,
};
use crate::data::journal::segment::RunEntry;
use crate::data::notes;
use crate::data::queue::{self, Arrival, KeptOffset, Marking, Settings, decode_offsets};
use crate::data::transaction::{Decision, Share, TransactionId, Transactions};
use crate::ids::Place;

/// What was found so far of a large message.
#[derive(Default)]
struct Large {
    pieces: Pieces<Place>,
    /// Producer, epoch and sequence, if a record said so.
    origin: Option<(ProducerId, u32, u64)>,
    /// When it came, and how long it may live.
    arrival: Option<Arrival>,
}

/// Whether changes of the topology are lost from the journal that has it. Without them the messages
/// of a queue would be those of one that was deleted, and a publish would miss a binding: unlike a
/// partition's, the loss is not bounded, so nothing can be served (rulings 10).
pub(crate) fn has_lost_topology(catalog: Option<&Catalog>, damages: &[Damage]) -> bool {
    catalog.is_some() && damages.iter().any(|d| d.partition == PARTITION_META)
}

/// How far groups of streams have come.
#[derive(Default)]
pub struct KeptGroups(BTreeMap<QueueId, BTreeMap<Box<[u8]>, u64>>);

impl KeptGroups {
    /// The later one holds.
    fn came_to(&mut self, queue: QueueId, offsets: Vec<KeptOffset>) {
        let groups = self.0.entry(queue).or_default();
        for KeptOffset { name, offset } in offsets {
            match offset {
                0 => {
                    groups.remove(&name);
                }
                offset => {
                    groups.insert(name, offset);
                }
            }
        }
    }

    /// Those of a stream, by name.
    pub fn take(&mut self, queue: QueueId) -> Vec<KeptOffset> {
        let groups = self.0.remove(&queue).unwrap_or_default();
        let kept = groups.into_iter();
        kept.map(|(name, offset)| KeptOffset { name, offset })
            .collect()
    }
}

/// What a journal has said so far.
pub struct Restore {
    /// The topology, if this is the meta core's journal.
    pub catalog: Option<Catalog>,
    queues: BTreeMap<QueueId, queue::Replay>,
    larges: BTreeMap<(QueueId, QueueSequence), Large>,
    /// What the producers have stored.
    pub dedup: Dedup,
    /// How far groups of streams have come.
    pub groups: KeptGroups,
    /// Shares of transactions that are prepared.
    prepared: BTreeMap<TransactionId, Share>,
    /// Those that are decided here, by number, and who has not said that it is done.
    decided: BTreeMap<u64, BTreeSet<CoreId>>,
    /// What did not fit, for people: proved records that contradict each other are bugs or worse.
    contradictions: Vec<String>,
    /// Topology changes that did not fit, as those behind a lost one may.
    topology_faults: Vec<String>,
    /// Somebody gave up topology changes that were lost.
    topology_loss_accepted: bool,
    /// Wall clock of the block that is replayed, in ms since 1970.
    wall_ms: i64,
}

/// Numbers skipped for topology changes that are lost from a place on, as far as anybody knows: more
/// than a segment of the smallest ones.
const LOST_CHANGES_MAX: u64 = 1 << 20;

impl Restore {
    /// Nothing said yet. `catalog` is given for the meta core's journal.
    #[must_use]
    pub fn new(catalog: Option<Catalog>) -> Self {
        Self {
            catalog,
            queues: BTreeMap::new(),
            larges: BTreeMap::new(),
            dedup: Dedup::default(),
            groups: KeptGroups::default(),
            prepared: BTreeMap::new(),
            decided: BTreeMap::new(),
            contradictions: Vec::new(),
            topology_faults: Vec::new(),
            topology_loss_accepted: false,
            wall_ms: 0,
        }
    }

    /// Whether changes of the topology are lost: nothing can be served then.
    #[must_use]
    pub fn has_lost_topology(&self, damages: &[Damage]) -> bool {
        has_lost_topology(self.catalog.as_ref(), damages)
    }

    /// What contradicts what: a bug or worse. Topology changes behind lost ones need not fit.
    #[must_use]
    pub fn contradiction(&self, damages: &[Damage]) -> Option<&str> {
        let has_hole = self.has_lost_topology(damages) || self.topology_loss_accepted;
        let faults: &[String] = if has_hole { &[] } else { &self.topology_faults };
        let mut all = self.contradictions.iter().chain(faults);
        all.next().map(String::as_str)
    }

    /// Shares of transactions that are prepared.
    #[must_use]
    pub const fn prepared(&self) -> &BTreeMap<TransactionId, Share> {
        &self.prepared
    }

    /// Transactions that are decided and not done everywhere, by number.
    #[must_use]
    pub const fn decided(&self) -> &BTreeMap<u64, BTreeSet<CoreId>> {
        &self.decided
    }

    /// What the journal says of transactions.
    pub(crate) fn take_transactions(&mut self, damages: &[Damage]) -> Transactions {
        let is_unsure = damages
            .iter()
            .any(|damage| damage.partition == PARTITION_TRANSACTIONS);
        let prepared = std::mem::take(&mut self.prepared);
        Transactions::restored(prepared, std::mem::take(&mut self.decided), is_unsure)
    }

    fn note_prepared(&mut self, body: &[u8]) {
        match Share::decode(body) {
            Some((id, share)) => {
                // Who could take a message proves that nothing came of those that had taken it before:
                // for that nothing is written (presumed abort).
                self.prepared
                    .retain(|_, before| !before.shares_with(&share));
                self.prepared.insert(id, share);
            }
            None => self
                .contradictions
                .push("a prepared transaction cannot be read".to_owned()),
        }
    }

    fn note_decision(&mut self, body: &[u8]) {
        match Decision::decode(body) {
            Some((id, Decision::Commit(cores))) => {
                self.decided.insert(id.number, cores.into_iter().collect());
            }
            Some((id, Decision::Done)) => {
                self.decided.remove(&id.number);
            }
            Some((id, Decision::Applied | Decision::Dropped)) => {
                self.prepared.remove(&id);
            }
            None => self
                .contradictions
                .push("what became of a transaction cannot be read".to_owned()),
        }
    }

    fn queue(&mut self, id: QueueId) -> &mut queue::Replay {
        self.queues
            .entry(id)
            .or_insert_with(|| queue::Replay::new(Settings::plain(Durability::Durable)))
    }

    fn note<E: std::fmt::Debug>(&mut self, what: &str, queue: QueueId, result: Result<(), E>) {
        if let Err(fault) = result {
            self.contradictions.push(format!(
                "{what} of queue {} does not fit: {fault:?}",
                queue.0
            ));
        }
    }

    fn piece(
        &mut self,
        queue: QueueId,
        sequence: QueueSequence,
        number: u32,
        bytes: u32,
        place: Place,
    ) {
        let large = self.larges.entry((queue, sequence)).or_default();
        if large.pieces.note(number, bytes, place) {
            large.origin = None;
        }
    }

    /// A piece lies here; whether the body is one.
    fn moved_piece(&mut self, head: &RecordHead, body: &[u8], place: Place) -> bool {
        let Ok((fragment, _)) = FragmentHead::split(body) else {
            return false;
        };
        let bytes = fragment.message_bytes;
        self.piece(head.queue, head.queue_sequence, head.count, bytes, place);
        true
    }

    /// Everything was said: the queues, each with its replay.
    pub fn finish(&mut self) -> BTreeMap<QueueId, queue::Replay> {
        for ((queue, sequence), large) in std::mem::take(&mut self.larges) {
            let pieces = large.pieces;
            if !pieces.is_whole() && !crate::mutant!(IncompleteKept) {
                continue;
            }
            if let Some((producer, epoch, number)) = large.origin {
                self.dedup.store(producer, epoch, queue, (number, number));
            }
            if let Some(arrival) = large.arrival {
                self.queue(queue).arrived_alone(arrival);
            }
            let bytes = padded(pieces.message_bytes() as usize) as u32;
            let places: Vec<Place> = pieces.into_found().collect();
            let result = self
                .queue(queue)
                .fragmented(sequence, bytes, &places, Marking::Plain);
            self.note("a large message", queue, result);
        }
        std::mem::take(&mut self.queues)
    }
}

impl recovery::Replay for Restore {
    fn block(&mut self, wall_us: u64) {
        self.wall_ms = (wall_us / 1_000) as i64;
    }

    fn checkpoint(&mut self, bytes: &[u8]) {
        let Some(state) = state::decode(bytes) else {
            self.contradictions
                .push("the checkpoint's state cannot be read".to_owned());
            return;
        };
        match Dedup::decode(state.dedup) {
            Some(dedup) => self.dedup = dedup,
            None => self
                .contradictions
                .push("the checkpoint's producers cannot be read".to_owned()),
        }
        for (id, bytes) in &state.groups {
            match decode_offsets(bytes) {
                Some(offsets) => self.groups.came_to(QueueId(*id), offsets),
                None => self.contradictions.push(format!(
                    "the checkpoint of queue {id}: its groups cannot be read"
                )),
            }
        }
        for body in &state.prepared {
            self.note_prepared(body);
        }
        for body in &state.decided {
            self.note_decision(body);
        }
        if self.catalog.is_some() {
            match Catalog::decode(state.catalog) {
                Ok(catalog) => self.catalog = Some(catalog),
                Err(fault) => {
                    self.contradictions
                        .push(format!("the checkpoint's topology: {fault:?}"));
                }
            }
        }
        for (id, bytes) in state.queues {
            let settings = Settings::plain(Durability::Durable);
            match queue::Replay::decode(settings, bytes) {
                Ok(replay) => {
                    self.queues.insert(QueueId(id), replay);
                }
                Err(fault) => {
                    self.contradictions
                        .push(format!("the checkpoint of queue {id}: {fault:?}"));
                }
            }
        }
    }

    fn index(&mut self, entry: &RunEntry, place: Place) {
        let queue = entry.queue;
        if entry.kind == Kind::Fragment {
            let bytes = entry.message_bytes;
            self.piece(queue, entry.queue_sequence, entry.count, bytes, place);
        } else if entry.is_relocated {
            let (first, count) = (entry.queue_sequence, entry.count);
            let result = self
                .queue(queue)
                .moved_run(first, count, entry.body_bytes, place);
            self.note("an indexed move", queue, result);
        } else {
            let result = self.queue(queue).run(
                entry.queue_sequence,
                entry.count,
                entry.body_bytes,
                place,
                Marking::Plain,
            );
            self.note("an indexed run", queue, result);
        }
    }

    fn run(&mut self, head: &RecordHead, messages: &[u8], place: Place) {
        let bytes = messages.len() as u32;
        let result = self.queue(head.queue).run(
            head.queue_sequence,
            head.count,
            bytes,
            place,
            Marking::Plain,
        );
        self.note("a run", head.queue, result);
        let wall_ms = self.wall_ms;
        let replay = self.queue(head.queue);
        let mut sequence = head.queue_sequence;
        for message in Messages::new(messages) {
            replay.arrived(Arrival {
                sequence,
                wall_ms,
                terms: message.map_or_else(|_| Terms::default(), |m| m.envelope.terms()),
            });
            sequence = sequence.plus(1);
        }
        let first = head.producer_sequence.0;
        let last = first + u64::from(head.count).saturating_sub(1);
        if !crate::mutant!(DedupForgottenAtRestart) {
            self.dedup.store(
                head.producer,
                head.producer_epoch,
                head.queue,
                (first, last),
            );
        }
    }

    fn fragment(&mut self, head: &RecordHead, body: &[u8], place: Place) {
        if self.moved_piece(head, body, place) {
            let key = (head.queue, head.queue_sequence);
            let origin = (head.producer, head.producer_epoch, head.producer_sequence.0);
            let wall_ms = self.wall_ms;
            if let Some(large) = self.larges.get_mut(&key) {
                large.origin = Some(origin);
                if head.count == 0
                    && let Ok((_, piece)) = FragmentHead::split(body)
                {
                    large.arrival = Some(Arrival {
                        sequence: head.queue_sequence,
                        wall_ms,
                        terms: envelope::terms_of(piece).unwrap_or_default(),
                    });
                }
            }
        }
    }

    fn relocated(&mut self, head: &RecordHead, body: &[u8], place: Place) {
        if head.kind == Kind::Fragment {
            self.moved_piece(head, body, place);
        } else {
            let bytes = body.len() as u32;
            let (first, count) = (head.queue_sequence, head.count);
            let result = self.queue(head.queue).moved_run(first, count, bytes, place);
            self.note("a move", head.queue, result);
        }
    }

    fn record(&mut self, head: &RecordHead, body: &[u8]) {
        let queue = head.queue;
        match head.kind {
            Kind::Ack => match notes::decode_ranges(body) {
                Some(ranges) => {
                    for range in ranges {
                        let result = self.queue(queue).settled(range);
                        self.note("an ack", queue, result);
                    }
                }
                None => self.note("an ack", queue, Err("its body is malformed")),
            },
            Kind::Counts => match notes::decode_counts(body) {
                Some(counts) => {
                    for count in counts {
                        let result = self.queue(queue).counts(count);
                        self.note("a delivery count", queue, result);
                    }
                }
                None => self.note("a delivery count", queue, Err("its body is malformed")),
            },
            Kind::Offsets => match decode_offsets(body) {
                Some(offsets) => self.groups.came_to(queue, offsets),
                None => self.note("an offset of a group", queue, Err("its body is malformed")),
            },
            Kind::Prepare => self.note_prepared(body),
            Kind::Decide => self.note_decision(body),
            Kind::Mark => self.queue(queue).mark(head.queue_sequence),
            Kind::Sequences => match notes::decode_sequences(head.producer_sequence.0, body) {
                Some(sequences) => {
                    let (producer, epoch) = (head.producer, head.producer_epoch);
                    if !crate::mutant!(SequencesForgotten) {
                        self.dedup.store_each(producer, epoch, queue, &sequences);
                    }
                }
                None => self.note("a run's sequences", queue, Err("its body is malformed")),
            },
            Kind::Catalog => {
                let Some(catalog) = &mut self.catalog else {
                    return;
                };
                let applied = Change::decode(body)
                    .map_err(|fault| format!("{fault:?}"))
                    .and_then(|change| {
                        catalog
                            .replay(&change)
                            .map_err(|fault| format!("{fault:?}"))
                    });
                if let Err(fault) = applied {
                    self.topology_faults
                        .push(format!("a topology change: {fault}"));
                }
            }
            Kind::Loss if head.partition == PARTITION_META => {
                self.topology_loss_accepted = true;
                // What the lost ones numbered is in the journal still and must not come to belong to
                // others.
                if let (Some(catalog), 16) = (&mut self.catalog, body.len()) {
                    let count = u64_at(body, 8).saturating_sub(u64_at(body, 0));
                    catalog.skip_numbers(count.min(LOST_CHANGES_MAX) as u32);
                }
            }
            // The journal's own, and what it hands over in other ways.
            Kind::Run
            | Kind::Fragment
            | Kind::Relocated
            | Kind::Watermark
            | Kind::Truncate
            | Kind::Loss
            | Kind::Index
            | Kind::Adopt
            | Kind::Body
            | Kind::Entry => {}
            Kind::Seal | Kind::HardState | Kind::Expire | Kind::Purge => self.note(
                "a record",
                queue,
                Err("this version does not read its kind"),
            ),
        }
    }

    fn incomplete(&mut self, queue: QueueId, sequence: QueueSequence) {
        self.larges.remove(&(queue, sequence));
    }
}
