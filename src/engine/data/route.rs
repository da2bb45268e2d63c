//! From an address (tenant, exchange, routing key, headers) to the queues that take the message.
//! Does not know how topology is decided, stored or replicated, only what is bound now.
//!
//! ```text
//! resolve ── memo (exact addresses, route/memo.rs) ── hit ──────────────────────────► targets
//!              │ miss
//!              └─ tenant ─ exchange ─┬ ""       queue of that name
//!                                    ├ direct   table: key → Bound
//!                                    ├ fanout   Bound
//!                                    ├ topic    trie of words, route/topic.rs
//!                                    ├ headers  every binding in turn, route/headers.rs
//!                                    ├ filter   every condition in turn, route/filter.rs
//!                                    └ consistent-hash, random  one of all, route/shares.rs
//! ```
//!
//! A binding may lead to another exchange instead of a queue, and an exchange may name another one
//! that takes what nothing matched. So the look-up is a walk over exchanges, each at most once for a
//! message: a circle ends where it began.
//!
//! A stream of several lanes among what is found gives way to the lane that takes the message
//! (route/lanes.rs).
//!
//! Whatever the path, targets come out in ascending order of queue id and each queue once.
//! The changes that keep this in step with the catalog arrive through `control/routing.rs`.

mod filter;
pub mod headers;
mod lanes;
mod memo;
pub mod settings;
mod shares;
mod topic;

use ringpost_wire::control::ExchangeKind;
use ringpost_wire::ids::{CoreId, ExchangeId, PartitionId, QueueId, TenantId};
use ringpost_wire::limits::{
    ENVELOPE_BYTES_MAX, FILTER_BODY_BYTES_MAX, FRAGMENT_BYTES_MAX, HEADERS_BYTES_MAX,
    KEY_BYTES_MAX, NAME_BYTES_MAX, PROPERTIES_BYTES_MAX,
};
use ringpost_wire::{Code, Envelope};

pub use self::filter::Condition;
use self::filter::{FilterBindings, Workspace};
use self::headers::HeaderBindings;
pub use self::lanes::Lanes;
use self::memo::Memo;
use self::settings::{HashOf, Settings};
use self::shares::Shares;
pub use self::shares::{SHARES_MAX, lot_of};
use self::topic::Trie;
use crate::data::table::Table;

#[cfg(test)]
pub(crate) use self::{
    shares::{
        exchange_seed, naive_by_hash, naive_by_lot, queue_seed, weight_of as naive_weight_of,
    },
    topic::naive_match as naive_topic_match,
};

/// A queue that takes a message, and where it lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Target {
    /// The queue.
    pub queue: QueueId,
    /// Its partition.
    pub partition: PartitionId,
    /// The core that owns the partition now.
    pub core: CoreId,
    /// Whether its messages are journaled.
    pub durable: bool,
}

/// A queue as bindings know it: a [`Target`] without the core, which placement decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Destination {
    /// The queue.
    pub queue: QueueId,
    /// Its partition.
    pub partition: PartitionId,
    /// Whether its messages are journaled.
    pub durable: bool,
}

/// Where a binding leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// To a queue.
    Queue(Destination),
    /// To another exchange, which routes the message on.
    Exchange(ExchangeId),
}

/// As [`End`], with the exchange's slot instead of its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hop {
    Queue(Destination),
    Exchange(u32),
}

impl Hop {
    /// Queues before exchanges, each in the order of their numbers.
    const fn order(self) -> (bool, u32) {
        match self {
            Self::Queue(queue) => (false, queue.queue.0),
            Self::Exchange(slot) => (true, slot),
        }
    }
}

/// Who publishes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Publisher {
    /// A client, to whom internal exchanges are closed.
    #[default]
    Client,
    /// The broker itself.
    Broker,
}

/// What an answer of [`Router::resolve`] holds for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decides {
    /// Every message with the same exchange and routing key, until the topology changes.
    Address,
    /// This message alone: more of it was looked at.
    Message,
}

// Fields are those of whole bodies: a first piece is too long to be looked at.
const _: () = assert!(
    FRAGMENT_BYTES_MAX
        > FILTER_BODY_BYTES_MAX
            + ENVELOPE_BYTES_MAX
            + NAME_BYTES_MAX
            + KEY_BYTES_MAX
            + PROPERTIES_BYTES_MAX
            + HEADERS_BYTES_MAX
);

/// What of a publish routing may look at besides the message's address.
#[derive(Clone, Copy, Default, Debug)]
pub struct Facts<'a> {
    /// An AMQP 0-9-1 field table without its length prefix.
    pub headers: &'a [u8],
    /// AMQP 0-9-1 property bytes.
    pub properties: &'a [u8],
    /// The body, or what of it is there: of a large message the first piece.
    pub payload: &'a [u8],
    /// Bytes of the whole body.
    pub body_bytes: u64,
    /// 0 is the lowest.
    pub priority: u8,
    /// Wall clock in µs since 1970, 0 = none.
    pub timestamp_us: u64,
    /// Time to live in milliseconds, 0 = none.
    pub ttl_ms: u32,
    /// What chance is made of: see [`lot_of`].
    pub lot: u64,
    /// Who publishes it.
    pub by: Publisher,
}

impl<'a> Facts<'a> {
    /// Those of a message of a client with this lot.
    #[must_use]
    pub fn of(message: &Envelope<'a>, lot: u64) -> Self {
        Self {
            headers: message.headers(),
            properties: message.properties(),
            payload: message.payload(),
            body_bytes: message.payload_bytes() as u64,
            priority: message.priority(),
            timestamp_us: message.timestamp_us(),
            ttl_ms: message.ttl_ms(),
            lot,
            by: Publisher::Client,
        }
    }

    /// Those of a message that has headers and nothing else: for tests and measurements.
    #[must_use]
    pub fn of_headers(headers: &'a [u8]) -> Self {
        Self {
            headers,
            ..Self::default()
        }
    }
}

/// Everything a core needs to route: derived from the catalog, never a source of truth.
pub struct Router {
    /// Changes applied so far; equals the version of the catalog it follows.
    version: u64,
    /// Counts up with every change and every new placement; what the memo was filled under.
    stamp: u64,
    /// Core of each partition.
    placement: Vec<CoreId>,
    tenants: Table<TenantId, TenantRoutes>,
    /// Exchanges of all tenants; bindings name them by their slots.
    exchanges: Vec<Option<Exchange>>,
    free: Vec<u32>,
    slots: Table<ExchangeId, u32>,
    /// Streams of several lanes, which hold nothing themselves.
    lanes: Table<QueueId, Lanes>,
    walk: Walk,
    work: Workspace,
    memo: Memo,
}

#[derive(Default)]
struct TenantRoutes {
    queues: Table<Box<[u8]>, Destination>,
    /// Slots of the exchanges.
    exchanges: Table<Box<[u8]>, u32>,
}

struct Exchange {
    id: ExchangeId,
    rules: Rules,
    /// Clients may not publish to it.
    is_internal: bool,
    /// Name of the exchange that takes what nothing matches here.
    alternate: Option<Box<[u8]>>,
}

enum Rules {
    Direct(Table<Box<[u8]>, Bound>),
    Fanout(Bound),
    Topic(Trie),
    Headers(HeaderBindings),
    Filter(FilterBindings),
    ConsistentHash(Shares, HashOf),
    Random(Shares),
}

/// The walk of a message over exchanges. Its memory is that of its exchanges, all of them: a walk
/// allocates nothing.
#[derive(Default)]
struct Walk {
    /// Counts walks.
    number: u64,
    /// By slot: the last walk that came there.
    marks: Vec<u64>,
    /// Slots in the order in which they were come to.
    slots: Vec<u32>,
}

impl Walk {
    fn begin(&mut self, slot: u32) {
        self.number += 1;
        self.slots.clear();
        self.come_to(slot);
    }

    fn come_to(&mut self, slot: u32) {
        let mark = &mut self.marks[slot as usize];
        if *mark != self.number {
            *mark = self.number;
            self.slots.push(slot);
        }
    }

    fn has_room_for(&mut self, exchanges: usize) {
        self.marks.resize(exchanges, 0);
        self.slots.clear();
        self.slots.reserve(exchanges);
    }
}

/// What one exchange found.
struct Found<'a> {
    placement: &'a [CoreId],
    targets: &'a mut Vec<Target>,
    walk: &'a mut Walk,
    /// Lists that targets came from: two may name the same queue, and are not in order.
    lists: u32,
    /// Whether anything matched.
    is_any: bool,
}

impl Found<'_> {
    /// Everything bound at one place.
    fn all(&mut self, bound: &Bound) {
        self.is_any |= !bound.is_empty();
        self.lists += u32::from(!bound.queues.is_empty());
        bound.append(self.placement, self.targets);
        for (slot, _) in &bound.exchanges {
            self.walk.come_to(*slot);
        }
    }

    /// One of a list that is in order.
    fn one(&mut self, hop: Hop) {
        self.is_any = true;
        match hop {
            Hop::Queue(queue) => self.targets.push(place(self.placement, queue)),
            Hop::Exchange(slot) => self.walk.come_to(slot),
        }
    }
}

impl Router {
    /// A router that knows no tenant. `placement` names the core of each partition, from 0.
    ///
    /// # Panics
    /// If `placement` is empty.
    #[must_use]
    pub fn new(version: u64, placement: &[CoreId]) -> Self {
        assert!(!placement.is_empty(), "there is at least one partition");
        Self {
            version,
            stamp: 0,
            placement: placement.to_vec(),
            tenants: Table::new(),
            exchanges: Vec::new(),
            free: Vec::new(),
            slots: Table::new(),
            lanes: Table::new(),
            walk: Walk::default(),
            work: Workspace::default(),
            memo: Memo::new(),
        }
    }

    /// Version of the catalog that this router follows.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Core of a partition.
    ///
    /// # Panics
    /// If there is no such partition.
    #[must_use]
    pub fn core_of(&self, partition: PartitionId) -> CoreId {
        self.placement[partition.0 as usize]
    }

    /// How many partitions there are.
    #[must_use]
    pub fn partitions(&self) -> usize {
        self.placement.len()
    }

    /// Says anew which core owns each partition.
    ///
    /// # Panics
    /// If the number of partitions differs: it is fixed when a data directory is created.
    pub fn set_placement(&mut self, placement: &[CoreId]) {
        assert_eq!(
            placement.len(),
            self.placement.len(),
            "partitions are fixed"
        );
        self.placement.copy_from_slice(placement);
        self.stamp += 1;
    }

    /// The queue of this name.
    #[must_use]
    pub fn queue(&self, tenant: TenantId, name: &[u8]) -> Option<Target> {
        let destination = self.tenants.get(&tenant)?.queues.get(name)?;
        Some(place(&self.placement, *destination))
    }

    /// The lanes of a stream of several.
    #[must_use]
    pub fn lanes_of(&self, stream: QueueId) -> Option<&Lanes> {
        self.lanes.get(&stream)
    }

    /// Whether there is an exchange of this name.
    #[must_use]
    pub fn has_exchange(&self, tenant: TenantId, name: &[u8]) -> bool {
        let tenant = self.tenants.get(&tenant);
        tenant.is_some_and(|tenant| tenant.exchanges.get(name).is_some())
    }

    /// Replaces `targets` by the queues that take a message with this address, each once, in
    /// ascending order of id; none if no binding matches. `facts` are looked at by the exchanges
    /// whose kind does.
    ///
    /// # Errors
    /// [`Code::ExchangeUnknown`]; an unknown tenant has no exchange. [`Code::PermissionDenied`] for an
    /// internal exchange and a client.
    pub fn resolve(
        &mut self,
        tenant: TenantId,
        exchange: &[u8],
        routing_key: &[u8],
        facts: &Facts<'_>,
        targets: &mut Vec<Target>,
    ) -> Result<Decides, Code> {
        let address = memo::Address {
            tenant,
            exchange,
            key: routing_key,
        };
        targets.clear();
        let Err(spot) = self.memo.find(self.stamp, &address, targets) else {
            return Ok(Decides::Address);
        };
        let decides = self.look_up(&address, facts, targets)?;
        let decides = self.choose_lanes(decides, routing_key, facts, targets);
        // What is no part of the address is not what the memo knows an answer by.
        if decides == Decides::Address || crate::mutant!(LotRemembered) {
            self.memo.keep(self.stamp, &address, spot, targets);
        }
        Ok(decides)
    }

    /// As [`Self::resolve`], without the memo: for tests and measurements.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn resolve_afresh(
        &mut self,
        tenant: TenantId,
        exchange: &[u8],
        routing_key: &[u8],
        facts: &Facts<'_>,
        targets: &mut Vec<Target>,
    ) -> Result<(), Code> {
        let address = memo::Address {
            tenant,
            exchange,
            key: routing_key,
        };
        targets.clear();
        let decides = self.look_up(&address, facts, targets)?;
        self.choose_lanes(decides, routing_key, facts, targets);
        Ok(())
    }

    /// Lanes instead of streams that have some. A stream's lanes follow it by number, so the order holds.
    fn choose_lanes(
        &self,
        mut decides: Decides,
        routing_key: &[u8],
        facts: &Facts<'_>,
        targets: &mut [Target],
    ) -> Decides {
        if self.lanes.is_empty() {
            return decides;
        }
        for target in targets {
            let Some(lanes) = self.lanes.get(&target.queue) else {
                continue;
            };
            let (number, by) = lanes.lane_of(routing_key, facts);
            if by == Decides::Message {
                decides = by;
            }
            (target.queue, target.partition) = lanes.lane(number, self.placement.len());
            target.core = self.core_of(target.partition);
        }
        decides
    }

    /// Appends what the tables say; whether the answer depended on `facts`.
    fn look_up(
        &mut self,
        address: &memo::Address<'_>,
        facts: &Facts<'_>,
        targets: &mut Vec<Target>,
    ) -> Result<Decides, Code> {
        let tenant = self
            .tenants
            .get(&address.tenant)
            .ok_or(Code::ExchangeUnknown)?;
        if address.exchange.is_empty() {
            let queue = tenant.queues.get(address.key);
            targets.extend(queue.map(|queue| place(&self.placement, *queue)));
            return Ok(Decides::Address);
        }
        let first = tenant
            .exchanges
            .get(address.exchange)
            .ok_or(Code::ExchangeUnknown)?;
        let mut decides = Decides::Address;
        self.walk.begin(*first);
        let mut found = Found {
            placement: &self.placement,
            targets,
            walk: &mut self.walk,
            lists: 0,
            is_any: false,
        };
        let mut at = 0;
        while let Some(slot) = found.walk.slots.get(at) {
            let exchange = self.exchanges[*slot as usize].as_mut();
            let exchange = exchange.expect("a binding to it would have gone with it");
            if exchange.is_internal && at == 0 {
                //= P-73
                if facts.by == Publisher::Client {
                    return Err(Code::PermissionDenied);
                }
                // The memo does not know who asks.
                decides = Decides::Message;
            }
            at += 1;
            found.is_any = false;
            if exchange
                .rules
                .look_up(address, facts, &mut self.work, &mut found)
                == Decides::Message
            {
                decides = Decides::Message;
            }
            //= P-74
            match &exchange.alternate {
                Some(alternate) if !found.is_any => match tenant.exchanges.get(alternate) {
                    Some(slot) => found.walk.come_to(*slot),
                    None if alternate.is_empty() => {
                        let queue = tenant.queues.get(address.key);
                        found.lists += 1;
                        found
                            .targets
                            .extend(queue.map(|queue| place(&self.placement, *queue)));
                    }
                    // It may come, or come back.
                    None => {}
                },
                _ => {}
            }
        }
        //= P-64
        if found.lists > 1 {
            targets.sort_unstable();
            targets.dedup();
        }
        debug_assert!(targets.is_sorted_by(|a, b| a.queue < b.queue));
        Ok(decides)
    }
}

impl Rules {
    fn of(kind: ExchangeKind, hash: HashOf) -> Self {
        match kind {
            ExchangeKind::Direct => Self::Direct(Table::new()),
            ExchangeKind::Fanout => Self::Fanout(Bound::default()),
            ExchangeKind::Topic => Self::Topic(Trie::new()),
            ExchangeKind::Headers => Self::Headers(HeaderBindings::new()),
            ExchangeKind::Filter => Self::Filter(FilterBindings::new()),
            ExchangeKind::ConsistentHash => Self::ConsistentHash(Shares::default(), hash),
            ExchangeKind::Random => Self::Random(Shares::default()),
        }
    }

    /// Says where a message goes from here, and whether that depended on `facts`.
    fn look_up(
        &mut self,
        address: &memo::Address<'_>,
        facts: &Facts<'_>,
        work: &mut Workspace,
        found: &mut Found<'_>,
    ) -> Decides {
        let key = address.key;
        match self {
            Self::Direct(keys) => {
                if let Some(bound) = keys.get(key) {
                    found.all(bound);
                }
            }
            Self::Fanout(bound) => found.all(bound),
            Self::Topic(trie) => trie.matches(key, |bound| found.all(bound)),
            Self::Headers(bindings) => {
                found.lists += 1;
                bindings.matches(facts.headers, |hop| found.one(hop));
                return Decides::Message;
            }
            Self::Filter(bindings) => {
                found.lists += 1;
                bindings.matches(address, facts, work, |hop| found.one(hop));
                return Decides::Message;
            }
            Self::ConsistentHash(shares, of) => {
                let (hash, decides) = of.hash(key, facts);
                found.lists += 1;
                if let Some(hop) = shares.by_hash(hash) {
                    found.one(hop);
                }
                return decides;
            }
            Self::Random(shares) => {
                found.lists += 1;
                if let Some(hop) = shares.by_lot(facts.lot) {
                    found.one(hop);
                }
                return Decides::Message;
            }
        }
        Decides::Address
    }

    fn bind(&mut self, hop: Hop, binding: &Binding<'_>, work: &mut Workspace) {
        match self {
            Self::Direct(keys) => {
                let bound = match keys.get_mut(binding.key) {
                    Some(bound) => bound,
                    None => keys.get_or_insert_with(binding.key.into(), Bound::default),
                };
                bound.add(hop);
            }
            Self::Fanout(bound) => bound.add(hop),
            Self::Topic(trie) => trie.bind(binding.key, hop),
            Self::Headers(bindings) => bindings.bind(hop, binding),
            Self::Filter(bindings) => bindings.bind(hop, binding, work),
            Self::ConsistentHash(shares, _) | Self::Random(shares) => {
                shares.bind(hop, binding.name, binding.key);
            }
        }
    }

    fn unbind(&mut self, hop: Hop, binding: &Binding<'_>) {
        match self {
            Self::Direct(keys) => {
                let bound = keys.get_mut(binding.key).expect("the binding exists");
                bound.remove(hop);
                if bound.is_empty() {
                    keys.remove(binding.key);
                }
            }
            Self::Fanout(bound) => bound.remove(hop),
            Self::Topic(trie) => trie.unbind(binding.key, hop),
            Self::Headers(bindings) => bindings.unbind(hop, binding),
            Self::Filter(bindings) => bindings.unbind(hop, binding),
            Self::ConsistentHash(shares, _) | Self::Random(shares) => {
                shares.unbind(hop, binding.key);
            }
        }
    }
}

/// What `control/routing.rs` does with the router, one change at a time. The catalog has checked
/// every change before, so that what cannot be done here is a bug and panics.
impl Router {
    /// The change is complete: the router now follows the catalog's next version.
    pub(crate) fn changed(&mut self) {
        self.version += 1;
        self.stamp += 1;
    }

    pub(crate) fn add_tenant(&mut self, tenant: TenantId) {
        let before = self.tenants.insert(tenant, TenantRoutes::default());
        assert!(before.is_none(), "tenant {tenant} is new");
    }

    pub(crate) fn remove_tenant(&mut self, tenant: TenantId) {
        let routes = self.tenants.remove(&tenant).expect("the tenant exists");
        assert!(routes.queues.is_empty(), "tenant {tenant} is empty");
        for name in routes.exchanges.keys_sorted() {
            self.give_back(*routes.exchanges.get(&name).expect("just listed"));
        }
    }

    /// The default exchange needs no entry: its name is empty and its bindings are the queues.
    pub(crate) fn add_exchange(
        &mut self,
        tenant: TenantId,
        id: ExchangeId,
        name: &[u8],
        kind: ExchangeKind,
        arguments: &[u8],
    ) {
        if name.is_empty() {
            return;
        }
        let settings = Settings::of(kind, arguments).expect("the settings were checked");
        let exchange = Exchange {
            id,
            rules: Rules::of(kind, settings.hash),
            is_internal: settings.is_internal,
            alternate: settings.alternate,
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.exchanges.push(None);
            self.walk.has_room_for(self.exchanges.len());
            u32::try_from(self.exchanges.len() - 1).expect("exchanges are limited")
        });
        self.exchanges[slot as usize] = Some(exchange);
        let before = self.slots.insert(id, slot);
        assert!(before.is_none(), "exchange is new");
        let before = self.routes(tenant).exchanges.insert(name.into(), slot);
        assert!(before.is_none(), "exchange is new");
    }

    /// Who takes what an exchange does not route is another one from now on.
    pub(crate) fn set_alternate(&mut self, exchange: ExchangeId, alternate: Option<Box<[u8]>>) {
        self.exchange(exchange).alternate = alternate;
    }

    /// Takes every binding of the exchange with it; those to it must have been removed before.
    pub(crate) fn remove_exchange(&mut self, tenant: TenantId, name: &[u8]) {
        let slot = self.routes(tenant).exchanges.remove(name);
        self.give_back(slot.expect("exchange exists"));
    }

    fn give_back(&mut self, slot: u32) {
        let exchange = self.exchanges[slot as usize].take();
        let id = exchange.expect("exchange exists").id;
        assert_eq!(self.slots.remove(&id), Some(slot));
        self.free.push(slot);
    }

    pub(crate) fn add_queue(&mut self, tenant: TenantId, name: &[u8], queue: Destination) {
        assert!((queue.partition.0 as usize) < self.placement.len());
        let before = self.routes(tenant).queues.insert(name.into(), queue);
        assert!(before.is_none(), "queue is new");
    }

    /// Its bindings must have been removed before.
    pub(crate) fn remove_queue(&mut self, tenant: TenantId, name: &[u8]) {
        let before = self.routes(tenant).queues.remove(name);
        assert!(before.is_some(), "queue exists");
    }

    /// A queue that was added is a stream of several lanes, which are added, too.
    pub(crate) fn add_lanes(&mut self, stream: QueueId, lanes: Lanes) {
        let before = self.lanes.insert(stream, lanes);
        assert!(before.is_none(), "stream is new");
    }

    pub(crate) fn remove_lanes(&mut self, stream: QueueId) {
        self.lanes.remove(&stream);
    }

    pub(crate) fn bind(&mut self, exchange: ExchangeId, binding: &Binding<'_>) {
        let hop = self.hop(binding.end);
        let slot = self.slot(exchange);
        let exchange = self.exchanges[slot as usize].as_mut();
        let rules = &mut exchange.expect("the exchange exists").rules;
        rules.bind(hop, binding, &mut self.work);
    }

    pub(crate) fn unbind(&mut self, exchange: ExchangeId, binding: &Binding<'_>) {
        let hop = self.hop(binding.end);
        self.exchange(exchange).rules.unbind(hop, binding);
    }

    fn hop(&self, end: End) -> Hop {
        match end {
            End::Queue(queue) => Hop::Queue(queue),
            End::Exchange(id) => Hop::Exchange(self.slot(id)),
        }
    }

    fn slot(&self, id: ExchangeId) -> u32 {
        *self.slots.get(&id).expect("the exchange exists")
    }

    fn routes(&mut self, tenant: TenantId) -> &mut TenantRoutes {
        self.tenants.get_mut(&tenant).expect("the tenant exists")
    }

    fn exchange(&mut self, id: ExchangeId) -> &mut Exchange {
        let slot = self.slot(id);
        let exchange = self.exchanges[slot as usize].as_mut();
        exchange.expect("the exchange exists")
    }

    /// Tenants, queues, exchanges, direct keys, trie nodes, words, header and filter bindings and their names,
    /// streams of several lanes held:
    /// what a router that was kept in step must share with one built afresh.
    #[cfg(test)]
    pub(crate) fn footprint(&self) -> [usize; 9] {
        let mut sum = [0; 9];
        for tenant in self.tenants.keys_sorted() {
            let routes = self.tenants.get(&tenant).expect("just listed");
            sum[0] += 1;
            sum[1] += routes.queues.len();
            for name in routes.exchanges.keys_sorted() {
                sum[2] += 1;
                let slot = *routes.exchanges.get(&name).expect("just listed");
                let exchange = self.exchanges[slot as usize].as_ref();
                match &exchange.expect("its tenant names it").rules {
                    Rules::Direct(keys) => sum[3] += keys.len(),
                    Rules::Fanout(bound) => sum[3] += bound.queues.len() + bound.exchanges.len(),
                    Rules::ConsistentHash(shares, _) | Rules::Random(shares) => {
                        sum[3] += shares.len();
                    }
                    Rules::Topic(trie) => {
                        sum[4] += trie.nodes();
                        sum[5] += trie.words();
                    }
                    Rules::Headers(bindings) => {
                        sum[6] += bindings.len();
                        sum[7] += bindings.names();
                    }
                    Rules::Filter(bindings) => {
                        sum[6] += bindings.len();
                        sum[7] += bindings.slots();
                    }
                }
            }
        }
        sum[8] = self.lanes.len();
        assert_eq!(sum[2], self.slots.len());
        assert_eq!(sum[2], self.exchanges.len() - self.free.len());
        sum
    }
}

/// One binding as the router is told of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Binding<'a> {
    /// Where it leads.
    pub end: End,
    /// Name of that queue or exchange.
    pub name: &'a [u8],
    /// Binding key.
    pub key: &'a [u8],
    /// Field table bytes, looked at by `headers` exchanges only.
    pub arguments: &'a [u8],
}

fn place(placement: &[CoreId], destination: Destination) -> Target {
    Target {
        queue: destination.queue,
        partition: destination.partition,
        core: placement[destination.partition.0 as usize],
        durable: destination.durable,
    }
}

/// What is bound at one place (a key, a trie node, a whole fanout exchange), ascending by number, each
/// with the number of its bindings there: a queue may be bound twice with other arguments.
#[derive(Default, Debug)]
struct Bound {
    queues: Vec<(Destination, u32)>,
    /// By slot.
    exchanges: Vec<(u32, u32)>,
}

impl Bound {
    fn is_empty(&self) -> bool {
        self.queues.is_empty() && self.exchanges.is_empty()
    }

    fn add(&mut self, hop: Hop) {
        match hop {
            Hop::Queue(queue) => add_to(&mut self.queues, queue, |queue| queue.queue.0),
            Hop::Exchange(slot) => add_to(&mut self.exchanges, slot, |slot| *slot),
        }
    }

    fn remove(&mut self, hop: Hop) {
        match hop {
            Hop::Queue(queue) => remove_from(&mut self.queues, &queue, |queue| queue.queue.0),
            Hop::Exchange(slot) => remove_from(&mut self.exchanges, &slot, |slot| *slot),
        }
    }

    fn append(&self, placement: &[CoreId], targets: &mut Vec<Target>) {
        targets.extend(
            self.queues
                .iter()
                .map(|(queue, _)| place(placement, *queue)),
        );
    }
}

fn add_to<T>(list: &mut Vec<(T, u32)>, one: T, number: impl Fn(&T) -> u32) {
    match list.binary_search_by_key(&number(&one), |(bound, _)| number(bound)) {
        Ok(at) => list[at].1 += 1,
        Err(at) => list.insert(at, (one, 1)),
    }
}

fn remove_from<T>(list: &mut Vec<(T, u32)>, one: &T, number: impl Fn(&T) -> u32) {
    let at = list.binary_search_by_key(&number(one), |(bound, _)| number(bound));
    let at = at.expect("the binding exists");
    list[at].1 -= 1;
    if list[at].1 == 0 {
        list.remove(at);
    }
}
