//! The state that messages flow through on one core, and the helpers its stages share.
//! The stages are `publish.rs` and `deliver.rs`; does not know topology requests, recovery or checkpoints.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::ops::Range;

use ringpost_wire::control::{Durability, write_failure};
use ringpost_wire::envelope::Terms;
use ringpost_wire::ids::{CoreId, PartitionId, QueueId, QueueSequence, TenantId};
use ringpost_wire::{Code, FrameHeader, FrameKind, envelope, padded};

use crate::config::CoreConfig;
use crate::data::admit::{LargeRest, Underway};
use crate::data::block::Blocks;
use crate::data::consumer::{EarlyFrame, Forwarded, Sink};
use crate::data::coordinator::{Coordinators, LaneOf};
use crate::data::dead_letter::{DeadLetter, DeadLetterTo, DeadLetters};
use crate::data::dedup::Dedup;
use crate::data::fanout::Fanout;
use crate::data::fence::Opening;
use crate::data::journal::record::{Kind, PARTITION_META};
use crate::data::journal::segment::SlotState;
use crate::data::journal::volatile::Volatile;
use crate::data::journal::{Age, Appended, Journal, NoRoom, Note, RunHead, Urgency};
use crate::data::lifetime::{Leave, Mortal};
use crate::data::places::Places;
use crate::data::producer::{Producer, Word};
use crate::data::queue::{
    CountRange, CountsUpto, Marking, Offer, Queue, Ranges, SequenceRange, Settings,
};
use crate::data::recent::{Recent, RecentFigures};
use crate::data::route::{Router, Target};
use crate::data::session::Session;
use crate::data::slab::Slab;
use crate::data::spread::Spread;
use crate::data::stages::{Entries, Stage};
use crate::data::streams::GroupAsker;
use crate::data::trace::Tracer;
use crate::data::transaction::{TransactionWaiter, Transactions};
use crate::effect::{Buffers, Severity};
use crate::ids::{ConnId, Mono, Owner, Place, SegmentIdx};
use crate::mesh::{MeshMessage, Peer, QueueFigures, RemotePublish, Reply, Request};
use crate::{Effect, Effects};

/// Bytes of answers that a connection may leave unread, deliveries apart.
const ANSWERS_UNREAD_MAX: u64 = 1 << 20;
/// Bytes that a connection may be behind and still get the next page of a list.
const PAGE_UNSENT_MAX: u64 = 64 << 10;
/// How long a socket may take nothing while the memory for such bytes is used up.
const STALLED_MS: u64 = 10_000;

/// A queue of this core, with what connects it to the journal.
pub struct QueueState {
    /// Its number.
    pub id: QueueId,
    /// Its name.
    pub name: Box<[u8]>,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its partition.
    pub partition: PartitionId,
    /// Journaled.
    pub durable: bool,
    /// Refuses service because of a damaged range.
    pub damaged: bool,
    /// Messages and consumers.
    pub queue: Queue,
    /// The block it last put itself on the waiting list for, and where it stands there.
    pub waits_for: u64,
    /// Its entry in the list of what waits for blocks.
    pub waits_at: u64,
    /// Is on the list of queues to dispatch.
    pub awake: bool,
    /// Ranges of queue sequences settled in this turn.
    pub settled: Ranges,
    /// Is on the list of queues with settled ranges.
    pub settling: bool,
    /// Messages came back whose delivery counts are to be recorded.
    pub counting: bool,
    /// Delivery counts that are not in a block yet, and what is durable with the last of them.
    pub counts: Vec<CountRange>,
    /// As [`QueueState::counts`] are written down to here.
    pub counts_upto: Option<CountsUpto>,
    /// A mark that found no room in the journal.
    pub mark_due: Option<QueueSequence>,
    /// What was asked for ahead of dispatch, while messages come from disk.
    pub ahead: ReadAhead,
    /// Where its publishes of this turn are kept, if that place says so too.
    pub spread_at: u32,
    /// Since when messages that were not delivered yet may be.
    pub ready_since: Entries,
    /// What it did lately.
    pub recent: Recent,
    /// Where its dead messages go.
    pub dead_letter: Option<Box<DeadLetterTo>>,
    /// When it wants to be looked at because a message expires.
    pub expires_at: Option<Mono>,
    /// When it goes by itself, if it does.
    pub mortal: Option<Box<Mortal>>,
    /// Which lane of a stream of several it is.
    pub lane: Option<LaneOf>,
    /// The core that decides who reads it was told who its members are, and has not answered.
    pub is_saying_members: bool,
}

impl QueueState {
    /// A queue without messages and consumers.
    #[must_use]
    pub fn new(id: QueueId, tenant: TenantId, partition: PartitionId, settings: Settings) -> Self {
        Self {
            id,
            name: Box::default(),
            tenant,
            partition,
            durable: settings.durability == Durability::Durable,
            damaged: false,
            queue: Queue::new(settings),
            waits_for: 0,
            waits_at: 0,
            awake: false,
            settled: Ranges::default(),
            settling: false,
            counting: false,
            counts: Vec::new(),
            counts_upto: None,
            mark_due: None,
            ahead: ReadAhead::default(),
            spread_at: 0,
            ready_since: Entries::default(),
            recent: Recent::default(),
            dead_letter: None,
            expires_at: None,
            mortal: None,
            lane: None,
            is_saying_members: false,
        }
    }
}

impl QueueState {
    /// Every message up to `last` may be delivered from now on.
    pub(crate) fn may_be_delivered(&mut self, last: QueueSequence, now: Mono) {
        let first = self.queue.durable().0 + 1;
        self.queue.durable_through(last);
        if first <= last.0 {
            self.recent.arrived(last.0 - first + 1, now);
            if !self.queue.is_stream() {
                self.ready_since.enter(first, last.0, now);
            }
        }
    }

    /// Messages are done with for good; see [`Queue::forget`].
    pub(crate) fn forget(
        &mut self,
        ranges: &[SequenceRange],
        now: Mono,
        per_segment: &mut impl FnMut(SegmentIdx, u32),
    ) {
        self.queue.forget(ranges, per_segment);
        let count = ranges.iter().map(SequenceRange::count).sum();
        self.recent.left(count, now);
    }

    /// Messages are ready no longer: a consumer holds them.
    pub(crate) fn not_ready(
        &mut self,
        offer: &Offer,
        count: u32,
        now: Mono,
        effects: &mut Effects,
    ) {
        // What was delayed, or was delivered before, was not ready all that time.
        if let Some(is_apart) = offer.was_ready() {
            let (first, last) = (offer.first.0, offer.first.0 + u64::from(count) - 1);
            let recent = &mut self.recent;
            self.ready_since
                .leave(first, last, is_apart, now, |ns, count| {
                    effects.sample(Stage::Ready, ns, count);
                    recent.taken(count, ns, now);
                });
        }
    }

    /// Messages from `first` on were appended to its journal.
    pub(crate) fn took(
        &mut self,
        first: QueueSequence,
        count: u32,
        messages: &[u8],
        to: Appended,
        now: Mono,
    ) {
        let bytes = messages.len() as u32;
        match to {
            Appended::New(place) => {
                self.queue
                    .push_run(first, count, bytes, place, Marking::Plain);
            }
            Appended::Merged => self.queue.extend_last(count, bytes),
        }
        self.note_arrivals(first, messages, now);
    }

    /// Notes when messages came and what they ask, if any asks for anything.
    fn note_arrivals(&mut self, first: QueueSequence, messages: &[u8], now: Mono) {
        if self.queue.is_stream() {
            // Whatever they ask for, and however many they are.
            self.note_arrival(first, 1, Terms::default(), now);
            return;
        }
        let (mut at, mut sequence) = (0, first);
        // Messages that ask for the same, which was not said yet.
        let mut open: Option<(QueueSequence, u32, Terms)> = None;
        while at < messages.len() {
            let terms = envelope::terms_of(&messages[at..]).expect("it was checked");
            match &mut open {
                Some((_, count, known)) if *known == terms => *count += 1,
                before => {
                    if let Some((first, count, terms)) = before.replace((sequence, 1, terms)) {
                        self.note_arrival(first, count, terms, now);
                    }
                }
            }
            at += padded(envelope::length_of(&messages[at..]).expect("it was checked"));
            sequence = sequence.plus(1);
        }
        if let Some((first, count, terms)) = open {
            self.note_arrival(first, count, terms, now);
        }
    }

    /// The same of messages that ask for the same.
    pub(crate) fn note_arrival(
        &mut self,
        first: QueueSequence,
        count: u32,
        terms: Terms,
        now: Mono,
    ) {
        if self.queue.heeds(&terms) {
            self.queue.arrived(first, count, now, terms);
        }
    }
}

/// Windows that a queue asked for before it needs them, in the order in which it will.
#[derive(Clone, Debug, Default)]
pub struct ReadAhead {
    /// The first message of each, and where its record lies.
    pub windows: VecDeque<(QueueSequence, Place)>,
    /// The first message that no window was asked for.
    pub next: QueueSequence,
}

impl ReadAhead {
    /// The first message behind the window at the front.
    #[must_use]
    pub fn first_behind(&self) -> QueueSequence {
        self.windows.get(1).map_or(self.next, |window| window.0)
    }

    /// Starts anew at `first` if that is not where the windows are.
    pub fn turn_to(&mut self, first: QueueSequence) {
        let is_there = self.windows.front().is_some_and(|front| front.0 <= first);
        if !is_there || first > self.next {
            self.windows.clear();
            self.next = first;
        }
    }
}

/// Which queues have messages in blocks that are not durable, in the order of blocks. What a queue
/// waits for stands here and not with the queue: the list is walked, and is where it was left.
#[derive(Debug, Default)]
pub(crate) struct QueueWaits {
    /// Block, queue, and its last message in that block.
    list: VecDeque<(u64, QueueId, QueueSequence)>,
    /// Entries that were taken off the front.
    passed: u64,
}

impl QueueWaits {
    /// A queue has messages up to `last` in `block`. Returns where that stands, for
    /// [`QueueWaits::extend`].
    fn add(&mut self, block: u64, queue: QueueId, last: QueueSequence) -> u64 {
        self.list.push_back((block, queue, last));
        self.passed + self.list.len() as u64 - 1
    }

    /// More messages of the same queue came into the same block, which is not durable.
    fn extend(&mut self, at: u64, last: QueueSequence) {
        let entry = usize::try_from(at - self.passed).ok();
        let entry = entry.and_then(|idx| self.list.get_mut(idx));
        entry.expect("what is not durable is waited for").2 = last;
    }

    /// Takes the first entry, if its block is durable.
    fn next_durable(&mut self, durable: u64) -> Option<(QueueId, QueueSequence)> {
        let (_, queue, last) = *self.list.front().filter(|(block, ..)| *block <= durable)?;
        self.list.pop_front();
        self.passed += 1;
        Some((queue, last))
    }

    fn clear(&mut self) {
        self.passed += self.list.len() as u64;
        self.list.clear();
    }
}

/// Queues of a page of [`Queues`].
const QUEUES_PER_PAGE: usize = 1 << 10;

/// The queues of this core, by their numbers. These are dense at first, are never used again and belong
/// to all cores: pages of which no queue is left are given back, or every queue that ever was would
/// cost its place for ever.
#[derive(Default)]
pub struct Queues {
    pages: Vec<Option<Box<QueuePage>>>,
}

struct QueuePage {
    states: [Option<Box<QueueState>>; QUEUES_PER_PAGE],
    /// Those that are there.
    count: usize,
}

impl QueuePage {
    fn empty() -> Box<Self> {
        Box::new(Self {
            states: [const { None }; QUEUES_PER_PAGE],
            count: 0,
        })
    }
}

/// The page of a queue, and its place there.
const fn place_of(id: QueueId) -> (usize, usize) {
    let number = id.0 as usize;
    (number / QUEUES_PER_PAGE, number % QUEUES_PER_PAGE)
}

impl Queues {
    /// The queue `id`, if it lives here.
    #[must_use]
    pub fn get(&self, id: QueueId) -> Option<&QueueState> {
        let (page, place) = place_of(id);
        self.pages.get(page)?.as_ref()?.states[place].as_deref()
    }

    /// The queue `id`, if it lives here.
    pub fn get_mut(&mut self, id: QueueId) -> Option<&mut QueueState> {
        let (page, place) = place_of(id);
        self.pages.get_mut(page)?.as_mut()?.states[place].as_deref_mut()
    }

    /// Adds a queue.
    pub fn insert(&mut self, state: QueueState) {
        let (page, place) = place_of(state.id);
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, || None);
        }
        let page = self.pages[page].get_or_insert_with(QueuePage::empty);
        assert!(
            page.states[place].is_none(),
            "queue numbers are never reused"
        );
        page.states[place] = Some(Box::new(state));
        page.count += 1;
    }

    /// Removes a queue.
    pub fn remove(&mut self, id: QueueId) -> Option<Box<QueueState>> {
        let (at, place) = place_of(id);
        let page = self.pages.get_mut(at)?.as_mut()?;
        let state = page.states[place].take()?;
        page.count -= 1;
        if page.count == 0 {
            self.pages[at] = None;
        }
        Some(state)
    }

    /// Every queue, by number.
    pub fn iter(&self) -> impl Iterator<Item = &QueueState> {
        let pages = self.pages.iter().flatten();
        pages.flat_map(|page| page.states.iter().flatten().map(|state| &**state))
    }

    /// Every queue, by number.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut QueueState> {
        let pages = self.pages.iter_mut().flatten();
        pages.flat_map(|page| page.states.iter_mut().flatten().map(|state| &mut **state))
    }
}

/// The connections of this core. The low 32 bits of a [`ConnId`] are a dense index.
#[derive(Debug, Default)]
pub struct Sessions {
    sessions: Vec<Option<Box<Session>>>,
    count: u32,
}

impl Sessions {
    fn idx(conn: ConnId) -> usize {
        (conn.0 & u64::from(u32::MAX)) as usize
    }

    /// The session of `conn`, if it is still there.
    #[must_use]
    pub fn get(&self, conn: ConnId) -> Option<&Session> {
        self.sessions
            .get(Self::idx(conn))?
            .as_deref()
            .filter(|session| session.conn == conn)
    }

    /// The session of `conn`, if it is still there.
    pub fn get_mut(&mut self, conn: ConnId) -> Option<&mut Session> {
        self.sessions
            .get_mut(Self::idx(conn))?
            .as_deref_mut()
            .filter(|session| session.conn == conn)
    }

    /// Adds a session.
    pub fn insert(&mut self, session: Session) {
        let idx = Self::idx(session.conn);
        if self.sessions.len() <= idx {
            self.sessions.resize_with(idx + 1, || None);
        }
        assert!(
            self.sessions[idx].is_none(),
            "the shell reuses an index only after the close"
        );
        self.sessions[idx] = Some(Box::new(session));
        self.count += 1;
    }

    /// Removes a session.
    pub fn remove(&mut self, conn: ConnId) -> Option<Box<Session>> {
        self.get(conn)?;
        self.count -= 1;
        self.sessions[Self::idx(conn)].take()
    }

    /// Sessions held.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.count
    }

    /// Whether nobody is connected.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Every session, by index.
    pub fn iter(&self) -> impl Iterator<Item = &Session> {
        self.sessions
            .iter()
            .filter_map(|session| session.as_deref())
    }
}

/// Who waits for the answer of another core.
#[derive(Debug)]
pub enum Waiter {
    /// A span of a producer.
    Publish {
        /// The producer.
        producer: u64,
        /// Number of the span.
        span: u64,
        /// Bytes that were sent.
        bytes: u64,
    },
    /// A producer that is being opened: its key among the openings.
    Fence {
        /// The key.
        opening: u64,
    },
    /// A large message, and the cores that get it after this one.
    Large(Box<LargeRest>),
    /// A dead letter.
    DeadLetter {
        /// Its key among the dead letters.
        key: u64,
        /// Bytes that count for what may be on its way.
        bytes: u64,
    },
    /// A channel that becomes a consumer.
    Subscribe {
        /// The connection.
        conn: ConnId,
        /// The channel.
        channel: u16,
        /// Sequence of the request frame.
        sequence: u64,
    },
    /// A remote sink whose frames were forwarded.
    Forward {
        /// The consumer on this core.
        consumer: u64,
        /// Which of its forwards.
        number: u64,
    },
    /// A lane that has said who the members of its groups are.
    Members(QueueId),
    /// A part of a transaction, or its outcome.
    Transaction(TransactionWaiter),
    /// Producers that are blocked by a queue of the other core.
    Room {
        /// The queue.
        queue: QueueId,
    },
    /// Topology work: its number in the control plane.
    Control(u64),
    /// Nobody.
    Nobody,
}

/// A forwarded publish whose answer waits for the disk.
#[derive(Debug)]
pub struct ForwardedPublish {
    /// Who forwarded it.
    pub from: CoreId,
    /// Number of the request.
    pub id: u32,
    /// What is known already.
    pub outcome: Result<(), Code>,
    /// If it is a refusal: how many messages at the start were taken all the same.
    pub taken: u32,
    /// One of its queues, if that is full and blocks.
    pub full: Option<QueueId>,
    /// The vector to give back.
    pub bytes: Vec<u8>,
}

/// Counters since the start; the shell turns them into metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Messages published to this core's connections.
    pub published: u64,
    /// Their padded bytes.
    pub published_bytes: u64,
    /// Messages published that came to rest: taken, refused or lost.
    pub rested: u64,
    /// Of those, the ones that were not taken, or of which nobody can say.
    pub refused: u64,
    /// Messages delivered.
    pub delivered: u64,
    /// Their padded bytes.
    pub delivered_bytes: u64,
    /// Messages delivered that may have been delivered before.
    pub redelivered: u64,
    /// Messages acked or rejected.
    pub settled: u64,
    /// Messages that returned to their queue.
    pub returned: u64,
    /// Connections opened or adopted.
    pub connections: u64,
    /// Connections ended because of what they sent.
    pub violations: u64,
    /// Publishes, requests, consumers and connections that were refused or ended, by code.
    pub refusals: Refusals,
    /// Messages passed on to other cores.
    pub forwarded: u64,
    /// Messages that a queue shares with others instead of having a copy; once for each of the queues.
    pub shared: u64,
    /// Messages that died and that their dead-letter exchange has dealt with.
    pub dead_lettered: u64,
    /// Of those, the ones that it routed to no queue.
    pub dead_unroutable: u64,
    /// Messages that died in queues that are gone, by reason; see [`Flow::deaths`].
    pub deaths_elsewhere: [u64; 4],
}

/// How often each code was said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusals([u64; Code::ALL.len()]);

impl Default for Refusals {
    fn default() -> Self {
        Self([0; Code::ALL.len()])
    }
}

impl Refusals {
    /// Counts a code that was said of so many; [`Code::Normal`] refuses nothing.
    pub fn add(&mut self, code: Code, count: u64) {
        let place = Code::ALL.iter().position(|known| *known == code);
        if let Some(place) = place.filter(|_| code != Code::Normal) {
            self.0[place] += count;
        }
    }

    /// Every code and how often it was said.
    pub fn iter(&self) -> impl Iterator<Item = (Code, u64)> + '_ {
        Code::ALL.iter().copied().zip(self.0.iter().copied())
    }
}

/// The state that messages flow through on one core.
pub struct Flow {
    pub(crate) config: CoreConfig,
    pub(crate) now: Mono,
    /// The wall clock in µs since 1970: only written down.
    pub(crate) wall_us: u64,
    pub(crate) sessions: Sessions,
    pub(crate) producers: Slab<Producer>,
    /// The names of producers, with their keys: who is ended by a newer epoch.
    pub(crate) names: BTreeSet<(u64, u64)>,
    /// Producers that other cores are asked about.
    pub(crate) openings: Slab<Opening>,
    pub(crate) sinks: Slab<Sink>,
    /// Messages on their way to dead-letter exchanges.
    pub(crate) dead_letters: Slab<DeadLetter>,
    pub(crate) dead: DeadLetters,
    pub(crate) transactions: Transactions,
    /// Who is blocked by full queues.
    pub(crate) blocks: Blocks,
    /// What is asked about messages by their places.
    pub(crate) places: Places,
    pub(crate) queues: Queues,
    pub(crate) dedup: Dedup,
    pub(crate) coordinators: Coordinators,
    pub(crate) router: Router,
    pub(crate) journal: Journal,
    pub(crate) volatile: Volatile,
    pub(crate) peers: Vec<Peer<Waiter>>,
    /// Bytes of topology requests that wait on this core: the control plane's figure.
    pub(crate) change_bytes: u64,
    /// Too many requests wait; see [`Flow::press`].
    pub(crate) is_pressed: bool,
    /// Counts the times that they did.
    pub(crate) presses: u64,
    /// The journal has failed: nothing durable is confirmed or delivered any more.
    pub(crate) failed: bool,
    /// When the shutdown began: nothing is published or delivered any more.
    pub(crate) shut_down: Option<Mono>,
    pub(crate) stats: Stats,
    /// Messages that somebody follows.
    pub(crate) tracer: Tracer,

    // What waits for a block to be durable, in the order of blocks.
    pub(crate) queue_waits: QueueWaits,
    pub(crate) confirm_waits: VecDeque<(u64, u64)>,
    pub(crate) settle_waits: VecDeque<(u64, u64, u64)>,
    pub(crate) forget_waits: VecDeque<(u64, QueueId, SequenceRange)>,
    pub(crate) count_waits: VecDeque<(u64, QueueId, CountsUpto)>,
    pub(crate) group_waits: VecDeque<(u64, GroupAsker, bool)>,
    pub(crate) mark_waits: VecDeque<(u64, QueueId, u64)>,
    pub(crate) forwarded: VecDeque<(u64, ForwardedPublish)>,
    pub(crate) dead_waits: VecDeque<(u64, u64)>,
    /// Other cores whose consumers wait until a connection of this core has room.
    pub(crate) held_back: Vec<(CoreId, ConnId)>,
    /// Frames for consumers that are being opened.
    pub(crate) early: Vec<EarlyFrame>,
    /// Bytes of those.
    pub(crate) early_bytes: u64,
    /// What other cores sent for consumers ahead of the answer that opens them; bounded by their
    /// requests.
    pub(crate) ahead: Vec<Forwarded>,
    /// Publishes of other cores that wait for their turn.
    pub(crate) waiting: VecDeque<(CoreId, u32, Box<RemotePublish>)>,
    /// The publish that is being copied into queues of this core.
    pub(crate) underway: Option<Underway>,
    /// Publishes of this turn that go to many queues.
    pub(crate) spread: Spread,
    /// Producers that hold publishes, those whose turn is next first.
    pub(crate) holding: VecDeque<u64>,
    /// Bytes of what they hold.
    pub(crate) held_bytes: u64,
    /// Bytes of them that are pieces of large messages.
    pub(crate) held_piece_bytes: u64,
    /// Producers that have begun a large message for all of which there is no memory yet, in order.
    pub(crate) beginnings: VecDeque<u64>,
    /// Bytes reserved for those.
    pub(crate) beginning_bytes: u64,

    // What to look at when the turn ends.
    pub(crate) dirty_producers: Vec<u64>,
    pub(crate) awake: VecDeque<QueueId>,
    /// Durable queues with something settled: see [`Flow::are_acks_due`].
    pub(crate) settling: Vec<QueueId>,
    /// Since when acks of many queues are gathered.
    pub(crate) settling_since: Option<Mono>,
    /// Messages settled since acks were last written.
    pub(crate) settling_messages: u64,
    /// What is to be journaled does not wait for company.
    pub(crate) is_settling_urgent: bool,
    /// Volatile queues with something settled.
    pub(crate) forgetting: Vec<QueueId>,
    /// Settle frames that asked for an answer: consumer, sequence, and which dead messages of the queue
    /// must be done with, by the numbers of [`Queue::died`].
    pub(crate) settle_asks: Vec<(u64, u64, Range<u64>)>,
    /// Who changed a group of which queue, and whether that has changed anything; not in a block yet.
    pub(crate) group_asks: Vec<(QueueId, GroupAsker, bool)>,
    /// Blocks with records of new groups: of which stream, and which of them.
    pub(crate) new_groups: VecDeque<(u64, QueueId, u64)>,
    /// Remote sinks with frames to forward.
    pub(crate) outgoing: Vec<u64>,
    /// Sinks that have some pieces of a large message and not all.
    pub(crate) larges: Vec<u64>,
    /// Queues that wait for a read from disk, and how old what they wait for is.
    pub(crate) reading: Vec<(Age, QueueId)>,
    /// When gets stop waiting for a first message, with their consumers: those that are not due yet.
    pub(crate) gets_until: BTreeSet<(Mono, u64)>,
    /// Consumers whose gets are to be looked at: time is over, or they got something.
    pub(crate) gets_due: Vec<u64>,
    /// When consumers of queues that bound how long a message may be held are to be looked at: those
    /// that hold something, each once. See `hold.rs`.
    pub(crate) holds_until: BTreeSet<(Mono, u64)>,
    /// When queues want to be looked at because a message expires.
    pub(crate) expiring: BTreeSet<(Mono, QueueId)>,
    /// When queues that nobody uses have been so for too long.
    pub(crate) unused_until: BTreeSet<(Mono, QueueId)>,
    /// Queues that are to go, for the control plane to see to.
    pub(crate) retiring: Vec<Leave>,
    /// Connections that are gone and owned queues, for the same.
    pub(crate) owners_gone: Vec<Owner>,
    /// A producer got less credit than its share, since there was none.
    pub(crate) hungry: bool,
    /// A producer got no credit at all, since much is held.
    pub(crate) starved: bool,
    /// Bytes of large messages on their way in or to their queues.
    pub(crate) assembly_bytes: u64,
    /// Bytes given to connections and not taken by their sockets.
    pub(crate) unsent: u64,
    /// Bytes of credit given beyond everybody's least and not come to rest.
    pub(crate) granted_bytes: u64,

    // Scratch, kept for its memory.
    pub(crate) targets: Vec<Target>,
    pub(crate) targets_other: Vec<Target>,
    pub(crate) fanout: Fanout,
    pub(crate) address_decides: bool,
    pub(crate) words: Vec<Word>,
    pub(crate) parcels: Vec<Vec<u8>>,
    pub(crate) keys: Vec<u64>,
    pub(crate) body: Vec<u8>,
    pub(crate) lengths: Vec<u32>,
}

impl Flow {
    /// An empty core around a recovered journal.
    #[must_use]
    pub fn new(
        config: CoreConfig,
        now: Mono,
        router: Router,
        journal: Journal,
        volatile: Volatile,
    ) -> Self {
        let peers = (0..config.cores)
            .map(|core| Peer::new(CoreId(core), config.limits.requests_per_peer_max))
            .collect();
        Self {
            config,
            now,
            wall_us: 0,
            sessions: Sessions::default(),
            producers: Slab::default(),
            names: BTreeSet::new(),
            openings: Slab::default(),
            sinks: Slab::default(),
            dead_letters: Slab::default(),
            dead: DeadLetters::default(),
            transactions: Transactions::default(),
            blocks: Blocks::default(),
            places: Places::default(),
            queues: Queues::default(),
            dedup: Dedup::default(),
            coordinators: Coordinators::default(),
            router,
            journal,
            volatile,
            peers,
            change_bytes: 0,
            is_pressed: false,
            presses: 0,
            failed: false,
            shut_down: None,
            stats: Stats::default(),
            tracer: Tracer::default(),
            queue_waits: QueueWaits::default(),
            confirm_waits: VecDeque::new(),
            settle_waits: VecDeque::new(),
            forget_waits: VecDeque::new(),
            count_waits: VecDeque::new(),
            group_waits: VecDeque::new(),
            group_asks: Vec::new(),
            new_groups: VecDeque::new(),
            mark_waits: VecDeque::new(),
            forwarded: VecDeque::new(),
            dead_waits: VecDeque::new(),
            held_back: Vec::new(),
            early: Vec::new(),
            early_bytes: 0,
            ahead: Vec::new(),
            waiting: VecDeque::new(),
            underway: None,
            spread: Spread::default(),
            holding: VecDeque::new(),
            held_bytes: 0,
            held_piece_bytes: 0,
            beginnings: VecDeque::new(),
            beginning_bytes: 0,
            dirty_producers: Vec::new(),
            awake: VecDeque::new(),
            settling: Vec::new(),
            settling_since: None,
            settling_messages: 0,
            is_settling_urgent: false,
            forgetting: Vec::new(),
            settle_asks: Vec::new(),
            outgoing: Vec::new(),
            larges: Vec::new(),
            reading: Vec::new(),
            gets_until: BTreeSet::new(),
            gets_due: Vec::new(),
            holds_until: BTreeSet::new(),
            expiring: BTreeSet::new(),
            unused_until: BTreeSet::new(),
            retiring: Vec::new(),
            owners_gone: Vec::new(),
            hungry: false,
            starved: false,
            assembly_bytes: 0,
            granted_bytes: 0,
            unsent: 0,
            targets: Vec::new(),
            targets_other: Vec::new(),
            fanout: Fanout::default(),
            address_decides: true,
            words: Vec::new(),
            parcels: Vec::new(),
            keys: Vec::new(),
            body: Vec::new(),
            lengths: Vec::new(),
        }
    }

    /// Whether nobody consumes any more, and everything that anybody settled is on disk.
    pub(crate) fn is_left(&self) -> bool {
        self.sinks.is_empty()
            && self.settling.is_empty()
            && self.forgetting.is_empty()
            && self.forget_waits.is_empty()
            && self.count_waits.is_empty()
            && self.underway.is_none()
            && self.spread.is_empty()
            && self.transactions.is_idle()
    }

    /// Whether something comes back to its queue later: consumers that are to be closed on other
    /// cores, or messages of which the delivery counts are not durable yet.
    pub(crate) fn is_returning(&self) -> bool {
        let is_held = !self.failed && self.queues.iter().any(|state| state.queue.is_holding());
        is_held || self.peers.iter().any(|peer| !peer.is_idle())
    }

    /// Whether the shutdown has begun.
    pub(crate) const fn is_shutting_down(&self) -> bool {
        self.shut_down.is_some()
    }

    /// Sends frames to a connection, if it is still there.
    pub(crate) fn say(
        &mut self,
        conn: ConnId,
        effects: &mut Effects,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        if self.sessions.get(conn).is_some() {
            let bytes = effects.send(conn, write);
            self.note_unsent(conn, bytes);
        }
    }

    /// So many bytes more were given to a connection.
    pub(crate) fn note_unsent(&mut self, conn: ConnId, bytes: u32) {
        let session = self.sessions.get_mut(conn).expect("it is there");
        if session.unsent == 0 {
            session.took = self.now;
        }
        session.unsent += u64::from(bytes);
        session.spoke = self.now;
        self.unsent += u64::from(bytes);
    }

    /// So many bytes do not leave as they were said.
    pub(crate) fn unsay(&mut self, conn: ConnId, bytes: u64) {
        if let Some(session) = self.sessions.get_mut(conn) {
            let bytes = bytes.min(session.unsent);
            session.unsent -= bytes;
            self.unsent -= bytes;
        }
    }

    /// Whether sockets are so far behind that nobody is offered anything.
    pub(crate) fn is_crowded(&self) -> bool {
        self.unsent >= self.config.limits.unsent_bytes_total
    }

    /// Bytes that a connection may be behind before its consumers pause: nothing, while there is
    /// little memory for that.
    pub(crate) fn unsent_bytes_max(&self) -> u64 {
        let limits = &self.config.limits;
        if self.unsent * 2 >= limits.unsent_bytes_total {
            0
        } else {
            u64::from(limits.unsent_bytes_max)
        }
    }

    /// Whether a connection has read so much of what it was given that the next page of an answer may
    /// be put together; also if it is gone.
    pub(crate) fn takes_a_page(&self, conn: ConnId) -> bool {
        let room = PAGE_UNSENT_MAX.min(self.unsent_bytes_max());
        let has_room = |session: &Session| session.unsent <= room && !self.is_crowded();
        self.sessions.get(conn).is_none_or(has_room)
    }

    /// Whether a connection leaves more answers unread than deliveries alone can be.
    pub(crate) fn is_deaf(&self, conn: ConnId) -> bool {
        let unsent = self.sessions.get(conn).map_or(0, |session| session.unsent);
        unsent > u64::from(self.config.limits.unsent_bytes_max) + ANSWERS_UNREAD_MAX
    }

    /// Removes a session, and what was not sent to it from the sum.
    pub(crate) fn remove_session(&mut self, conn: ConnId) -> Option<Box<Session>> {
        let session = self.sessions.remove(conn)?;
        self.unsent -= session.unsent;
        Some(session)
    }

    /// Asks another core.
    pub(crate) fn ask(
        &mut self,
        core: CoreId,
        request: Request,
        waiter: Waiter,
        effects: &mut Effects,
    ) {
        assert!(core != self.config.core, "a core does not ask itself");
        self.peers[usize::from(core.0)].ask(effects, request, waiter);
    }

    /// Bytes of clients' requests that wait for the disk or for another core.
    pub(crate) fn request_bytes(&self) -> u64 {
        let peers = self.peers.iter().map(Peer::asked_bytes);
        peers.sum::<u64>() + self.early_bytes + self.change_bytes
    }

    /// A connection has sent a request, `None`: some may have been answered. While too many wait, who
    /// asks is not read until they are few: requests come as fast as the network brings them, and
    /// what they wait for may be slower. Others are read as long as there is room at all.
    //= P-18
    pub(crate) fn press(&mut self, asks: Option<ConnId>) {
        let (waits, most) = (self.request_bytes(), self.config.limits.request_bytes_max);
        if !self.is_pressed && waits >= most / 2 {
            self.is_pressed = true;
            self.presses += 1;
        }
        self.is_pressed &= waits >= most / 4;
        if let Some(session) = asks.and_then(|conn| self.sessions.get_mut(conn))
            && self.is_pressed
        {
            session.pressed_in = self.presses;
        }
    }

    /// Whether a connection must wait until requests that wait are fewer.
    pub(crate) fn is_held_up(&self, session: &Session) -> bool {
        self.is_pressed
            && (session.pressed_in == self.presses
                || self.request_bytes() >= self.config.limits.request_bytes_max)
    }

    /// Answers another core.
    pub(crate) fn reply(&mut self, to: CoreId, id: u32, reply: Reply, effects: &mut Effects) {
        effects.push(Effect::Mesh {
            to,
            message: MeshMessage::Reply { id, reply },
        });
    }

    /// Puts a queue on the list of those to dispatch when the turn ends.
    pub(crate) fn wake(&mut self, queue: QueueId) {
        if let Some(state) = self.queues.get_mut(queue)
            && !state.awake
        {
            state.awake = true;
            self.awake.push_back(queue);
        }
    }

    /// Ends a connection that did what it may not.
    pub(crate) fn violate(
        &mut self,
        conn: ConnId,
        code: Code,
        reason: &str,
        effects: &mut Effects,
    ) {
        self.stats.violations += 1;
        let text = format!("connection {} closed: {code}: {reason}", conn.0);
        effects.push(Effect::Report {
            severity: Severity::Warning,
            text,
        });
        self.hang_up(conn, code, reason, effects);
    }

    /// Says why and hangs up.
    pub(crate) fn hang_up(
        &mut self,
        conn: ConnId,
        code: Code,
        reason: &str,
        effects: &mut Effects,
    ) {
        if self.sessions.get(conn).is_none() {
            return;
        }
        self.stats.refusals.add(code, 1);
        self.say(conn, effects, |out| {
            write_failure(out, FrameHeader::bare(FrameKind::Close, 0, 0), code, reason);
        });
        effects.push(Effect::Close { conn });
        self.forget_connection(conn, effects);
    }

    /// The journal's durable prefix has grown (or the journal has failed): everything that waited
    /// for it moves on.
    pub(crate) fn durable_advanced(&mut self, effects: &mut Effects) {
        let durable = self.journal.durable_block().0;
        while let Some((queue, last)) = self.queue_waits.next_durable(durable) {
            if let Some(state) = self.queues.get_mut(queue) {
                state.may_be_delivered(last, self.now);
                self.wake(queue);
            }
        }
        if self.tracer.is_armed() {
            self.tracer.durable(durable, self.now);
        }
        while let Some((block, key)) = self.confirm_waits.front().copied()
            && block <= durable
        {
            self.confirm_waits.pop_front();
            self.dirty(key);
        }
        while let Some((block, queue, sequence)) = self.mark_waits.front().copied()
            && block <= durable
        {
            self.mark_waits.pop_front();
            if let Some(state) = self.queues.get_mut(queue) {
                state
                    .queue
                    .mark_durable(ringpost_wire::ids::QueueSequence(sequence));
                self.wake(queue);
            }
        }
        while let Some((block, queue, range)) = self.forget_waits.front().copied()
            && block <= durable
        {
            self.forget_waits.pop_front();
            if let Some(state) = self.queues.get_mut(queue) {
                let journal = &mut self.journal;
                state.forget(&[range], self.now, &mut |segment, count| {
                    journal.drop_live(segment, count);
                });
                // A transaction is decided by that, and its keys are free.
                if state.queue.has_ready_key() {
                    self.wake(queue);
                }
            }
            if self.tracer.is_armed() {
                self.tracer.forgotten(queue, &[range], self.now);
            }
        }
        while let Some((block, queue, upto)) = self.count_waits.front().copied()
            && block <= durable
        {
            self.count_waits.pop_front();
            if let Some(state) = self.queues.get_mut(queue) {
                state.queue.counts_durable(upto);
                self.wake(queue);
            }
        }
        while let Some((block, consumer, sequence)) = self.settle_waits.front().copied()
            && block <= durable
        {
            self.settle_waits.pop_front();
            self.settled(consumer, sequence, effects);
        }
        self.groups_are_durable(durable, effects);
        self.places_are_durable(durable, effects);
        self.dead_are_durable(durable);
        self.transactions_are_durable(durable, effects);
        self.answer_forwarded(effects);
    }

    /// A queue of this core has messages up to `last` in `block`, which is open.
    pub(crate) fn wait_durable(&mut self, queue: QueueId, block: u64, last: QueueSequence) {
        let state = self.queues.get_mut(queue).expect("it has messages");
        if block > state.waits_for {
            state.waits_for = block;
            state.waits_at = self.queue_waits.add(block, queue, last);
        } else {
            self.queue_waits.extend(state.waits_at, last);
        }
    }

    /// Adds a queue that lives on this core; others are not kept here.
    pub(crate) fn add_queue(&mut self, state: QueueState) {
        if self.router.core_of(state.partition) == self.config.core {
            let id = state.id;
            self.queues.insert(state);
            self.begin_unused(id);
        }
    }

    /// A queue of this core is to keep to other settings from now on, and its messages with it.
    pub(crate) fn set_queue(
        &mut self,
        id: QueueId,
        settings: Settings,
        dead_letter: Option<DeadLetterTo>,
    ) {
        let now = self.now;
        let Some(state) = self.queues.get_mut(id) else {
            return;
        };
        let is_same = *state.queue.settings() == settings;
        if is_same
            && (dead_letter.is_none() || state.dead_letter.as_deref() == dead_letter.as_ref())
        {
            return;
        }
        state.queue.set_now(now);
        state.queue.set(settings);
        if let Some(to) = dead_letter {
            state.dead_letter = Some(Box::new(to));
        }
        // What is dead already goes where it was to go, also if nothing that dies from now on does.
        self.wake(id);
    }

    /// Removes a queue that was deleted. Returns the messages dropped.
    pub(crate) fn delete_queue(&mut self, id: QueueId, effects: &mut Effects) -> u64 {
        let Some(state) = self.queues.get(id) else {
            return 0;
        };
        let keys: Vec<u64> = state.queue.consumers().map(|key| key.0).collect();
        for key in keys {
            self.end_consumer(key, Code::QueueDeleted, "the queue was deleted", effects);
        }
        self.say_members(id, effects);
        self.tracer.deleted(id, self.now);
        if let Some(at) = self
            .queues
            .get_mut(id)
            .and_then(|state| state.expires_at.take())
        {
            self.expiring.remove(&(at, id));
        }
        self.end_unused(id);
        let state = self.queues.remove(id).expect("it was just looked at");
        self.dead_source_is_gone(id);
        let counters = state.queue.counters();
        for (sum, count) in self.stats.deaths_elsewhere.iter_mut().zip(counters.deaths) {
            *sum += count;
        }
        if state.durable {
            let journal = &mut self.journal;
            state
                .queue
                .for_each_live_run(|segment, count| journal.drop_live(segment, count));
        } else {
            let volatile = &mut self.volatile;
            state.queue.for_each_live_run(|segment, count| {
                volatile.drop_live(Place { segment, offset: 0 }, count, effects);
            });
        }
        counters.ready + counters.unacked + counters.delayed + counters.dead
    }

    /// Drops the ready messages of a queue of this core. Returns how many.
    pub(crate) fn purge(&mut self, id: QueueId) -> Result<u64, Code> {
        let state = self.queues.get_mut(id).ok_or(Code::QueueUnknown)?;
        // What is ready is not known of a queue that lost something, so it refuses this, too.
        if state.damaged && !crate::mutant!(PurgeOfDamaged) {
            return Err(Code::QueueDamaged);
        }
        if self.failed && state.durable {
            return Err(Code::JournalFailed);
        }
        //= P-69
        let purged = state.queue.purge(&mut state.settled);
        if crate::mutant!(PurgeNotRecorded) {
            state.settled.clear();
            return Ok(purged.messages);
        }
        self.note_settled(id, purged.messages);
        self.tracer.purged(id, self.now);
        Ok(purged.messages)
    }

    /// What a queue of this core holds.
    pub(crate) fn figures_of(&self, id: QueueId) -> Option<QueueFigures> {
        let state = self.queues.get(id)?;
        Some(self.figures_with_recent(state))
    }

    fn figures_with_recent(&self, state: &QueueState) -> QueueFigures {
        QueueFigures {
            recent: state.recent.figures(self.now),
            ..figures(state, self.now)
        }
    }

    /// The queues of this core to which the most has happened lately, the busiest first; of those to
    /// which nothing has, the fullest. Looks at all of them.
    pub(crate) fn busiest(
        &self,
        count: usize,
    ) -> impl Iterator<Item = (&QueueState, QueueFigures)> {
        // The least busy of those that were found comes out first.
        let mut found = BinaryHeap::with_capacity(count + 1);
        for state in self.queues.iter() {
            let ready = state.queue.counters().ready;
            found.push(Reverse((
                state.recent.moved(self.now),
                ready,
                Reverse(state.id),
            )));
            if found.len() > count {
                found.pop();
            }
        }
        let found = found.into_sorted_vec().into_iter();
        found.filter_map(|Reverse((_, _, Reverse(queue)))| {
            let state = self.queues.get(queue)?;
            Some((state, self.figures_with_recent(state)))
        })
    }

    /// Connections of a tenant on this core.
    pub(crate) fn connections_of(&self, tenant: TenantId) -> u32 {
        let of_tenant = |session: &&Session| {
            session
                .agreed()
                .is_some_and(|agreed| agreed.tenant == tenant)
        };
        u32::try_from(self.sessions.iter().filter(of_tenant).count()).unwrap_or(u32::MAX)
    }

    /// What the queues of this core hold; what they did lately is left out.
    pub fn figures(&self) -> impl Iterator<Item = QueueFigures> + '_ {
        self.queues.iter().map(|state| figures(state, self.now))
    }

    /// Checks what must hold between two steps; O(n). For tests.
    ///
    /// # Panics
    /// If it does not.
    pub fn invariants(&self) {
        self.journal.invariants();
        self.check_held();
        self.check_transactions();
        self.check_blocks();
        let early = self.early.iter().map(EarlyFrame::cost).sum::<u64>();
        assert_eq!(early, self.early_bytes);
        // What a damaged queue misses is in none of its sets, so they do not add up.
        for state in self.queues.iter().filter(|state| !state.damaged) {
            state.queue.invariants();
        }
    }

    /// Slots of the journal: free ones, and those that hold a segment.
    #[must_use]
    pub fn slots(&self) -> (u32, u32) {
        let mut counts = (0, 0);
        for (_, segment) in self.journal.segments() {
            match segment.state {
                SlotState::Free => counts.0 += 1,
                _ => counts.1 += 1,
            }
        }
        counts
    }

    /// The other cores, and how many requests to each are unanswered.
    pub fn lanes(&self) -> impl Iterator<Item = (CoreId, u32)> + '_ {
        let own = self.config.core;
        let others = self.peers.iter().filter(move |peer| peer.core != own);
        others.map(|peer| (peer.core, peer.unanswered()))
    }

    /// Messages that came to rest and messages delivered, since the start.
    #[must_use]
    pub const fn told(&self) -> (u64, u64) {
        (self.stats.rested, self.stats.delivered)
    }

    /// Messages that died since the start, by reason as in
    /// [`Death::ALL`](crate::data::queue::Death::ALL).
    #[must_use]
    pub fn deaths(&self) -> [u64; 4] {
        let mut sums = self.stats.deaths_elsewhere;
        for state in self.queues.iter() {
            for (sum, count) in sums.iter_mut().zip(state.queue.counters().deaths) {
                *sum += count;
            }
        }
        sums
    }

    /// Counters since the start.
    #[must_use]
    pub const fn stats(&self) -> Stats {
        self.stats
    }

    /// Writes a topology change into the open block; says which one that is.
    pub(crate) fn journal_change<B: Buffers>(
        &mut self,
        change: &[u8],
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Result<u64, NoRoom> {
        let note = Note {
            kind: Kind::Catalog,
            head: RunHead::of_partition(PARTITION_META),
            count: 1,
            urgency: Urgency::Now,
        };
        self.journal
            .append_record(buffers, effects, &note, change)?;
        Ok(self.journal.open_block().0)
    }

    /// Puts a producer on the list of those to look at when the turn ends.
    pub(crate) fn dirty(&mut self, key: u64) {
        if let Some(producer) = self.producers.get_mut(key)
            && !producer.dirty
        {
            producer.dirty = true;
            self.dirty_producers.push(key);
        }
    }

    /// Bytes of credit beyond everybody's least that may be given now: what this core can hold, and
    /// what the journal has room for. When the disk is really full credit is given all the same and publishes are
    /// refused, so that producers hear why.
    pub(crate) fn credit_free(&self) -> u64 {
        let room = self.config.limits.publish_bytes();
        let room = self
            .journal
            .publish_space()
            .map_or(room, |space| room.min(space));
        room.saturating_sub(self.granted_bytes)
    }

    /// Gives credit to producers that got less than their share when there was none.
    pub(crate) fn feed_hungry(&mut self) {
        let is_fed = self.hungry && self.credit_free() >= self.config.limits.window_bytes_min;
        if (is_fed || self.starved) && !self.holds_much() {
            self.hungry = false;
            self.starved = false;
            let mut keys = std::mem::take(&mut self.keys);
            keys.extend(self.producers.keys());
            for key in keys.drain(..) {
                self.dirty(key);
            }
            self.keys = keys;
        }
    }

    /// Ends connections that were silent too long and says a heartbeat where nothing else was said.
    pub(crate) fn sweep(&mut self, effects: &mut Effects) {
        self.refuse_stalled();
        self.expire_transactions(effects);
        if self.holds_much() || self.is_pressed {
            // Nobody is silent who is not listened to.
            let unread: Vec<ConnId> = self
                .sessions
                .iter()
                .map(|session| session.conn)
                .filter(|conn| !self.is_read(*conn))
                .collect();
            for conn in unread {
                let session = self.sessions.get_mut(conn).expect("it was just found");
                session.heard = self.now;
            }
        }
        let handshake_ms = self.config.limits.handshake_ms;
        let mut late = Vec::new();
        let mut quiet = Vec::new();
        for session in self.sessions.iter() {
            if self.now > session.silent_deadline(handshake_ms) {
                late.push(session.conn);
            } else if let Some(agreed) = session.agreed()
                && self.now.ms_since(session.spoke) * 2 >= u64::from(agreed.heartbeat_ms)
            {
                quiet.push(session.conn);
            }
        }
        if self.is_crowded()
            && let Some(session) = self
                .sessions
                .iter()
                .filter(|session| session.unsent > 0)
                .min_by_key(|session| session.took.0)
            && self.now.ms_since(session.took) >= STALLED_MS
        {
            let reason = "it takes nothing, and there is no more memory for what waits for it";
            self.violate(session.conn, Code::Overloaded, reason, effects);
        }
        for conn in late {
            self.violate(conn, Code::TimedOut, "nothing was heard in time", effects);
        }
        for conn in quiet {
            self.say(conn, effects, |out| {
                ringpost_wire::frame::write_bare(out, FrameKind::Heartbeat, 0, 0);
            });
        }
    }

    /// Frames that another core's consumer sends through a connection of this core.
    pub(crate) fn take_forward(
        &mut self,
        from: CoreId,
        id: u32,
        conn: ConnId,
        mut bytes: Vec<u8>,
        effects: &mut Effects,
    ) {
        self.say(conn, effects, |out| out.extend_from_slice(&bytes));
        bytes.clear();
        self.look_behind(conn);
        let behind = self
            .sessions
            .get(conn)
            .is_some_and(|session| session.behind);
        if behind && !self.held_back.contains(&(from, conn)) {
            self.held_back.push((from, conn));
        }
        let room = !behind;
        self.reply(from, id, Reply::Forwarded { room, bytes }, effects);
    }

    /// Keeps a vector that came back from another core for the next request.
    pub(crate) fn keep_parcel(&mut self, mut bytes: Vec<u8>) {
        const PARCELS_MAX: usize = 64;
        const PARCEL_BYTES_MAX: usize = 1 << 20;
        if self.parcels.len() < PARCELS_MAX && bytes.capacity() <= PARCEL_BYTES_MAX {
            bytes.clear();
            self.parcels.push(bytes);
        }
    }

    /// The journal has failed: the fate of what was on its way is unknown, and all are told so.
    pub(crate) fn fail_stop(&mut self, effects: &mut Effects) {
        if self.failed {
            return;
        }
        self.failed = true;
        let queues = &self.queues;
        let is_durable = |queue| queues.get(queue).is_some_and(|state| state.durable);
        self.tracer.journal_failed(is_durable, self.now);
        let keys: Vec<u64> = self.producers.keys().collect();
        for key in keys {
            self.dirty(key);
        }
        self.confirm_waits.clear();
        self.queue_waits.clear();
        self.settle_waits.clear();
        self.forget_waits.clear();
        self.mark_waits.clear();
        self.count_waits.clear();
        self.dead_has_failed();
        self.fail_groups(effects);
        self.transactions_have_failed(effects);
        self.fail_places(effects);
        self.answer_forwarded(effects);
        self.end_durable_consumers(effects);
    }
}

fn figures(state: &QueueState, now: Mono) -> QueueFigures {
    let counters = state.queue.counters();
    let due = state.queue.next_due();
    QueueFigures {
        queue: state.id,
        ready: counters.ready,
        unacked: counters.unacked,
        delayed: counters.delayed,
        due_ms: due.map_or(0, |due| due.0.saturating_sub(now.0).div_ceil(1_000_000)),
        dead: counters.dead,
        bytes: counters.bytes,
        published: counters.published,
        settled: counters.settled,
        consumers: counters.consumers,
        damaged: state.damaged,
        is_stream: state.queue.is_stream(),
        recent: RecentFigures::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_that_are_gone_cost_nothing() {
        let settings = Settings::plain(Durability::Volatile);
        let queue =
            |number| QueueState::new(QueueId(number), TenantId(1), PartitionId(0), settings);
        let mut queues = Queues::default();
        let stays = 5;
        queues.insert(queue(stays));
        for number in 6..5_000 {
            queues.insert(queue(number));
            assert_eq!(queues.iter().count(), 2);
            assert!(queues.remove(QueueId(number)).is_some());
            assert!(queues.remove(QueueId(number)).is_none());
        }
        assert_eq!(queues.pages.iter().flatten().count(), 1);
        queues.insert(queue(4_000));
        let numbers: Vec<u32> = queues.iter().map(|state| state.id.0).collect();
        assert_eq!(numbers, [stays, 4_000]);
        assert!(queues.get(QueueId(stays)).is_some());
        assert!(queues.get_mut(QueueId(4_000)).is_some());
        assert!(queues.get(QueueId(4_001)).is_none());
        assert!(queues.get(QueueId(u32::MAX)).is_none());
    }
}
