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
//!                                    └ headers  every binding in turn, route/headers.rs
//! ```
//!
//! Whatever the path, targets come out in ascending order of queue id and each queue once.
//! The changes that keep this in step with the catalog arrive through `control/routing.rs`.

pub mod headers;
mod memo;
mod topic;

use ringpost_wire::Code;
use ringpost_wire::control::ExchangeKind;
use ringpost_wire::ids::{CoreId, PartitionId, QueueId, TenantId};

use self::headers::HeaderBindings;
use self::memo::Memo;
use self::topic::Trie;
use crate::data::table::Table;

#[cfg(test)]
pub(crate) use self::topic::naive_match as naive_topic_match;

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

/// What an answer of [`Router::resolve`] holds for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decides {
    /// Every message with the same exchange and routing key, until the topology changes.
    Address,
    /// This message alone: its headers were looked at.
    Headers,
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
    memo: Memo,
}

#[derive(Default)]
struct TenantRoutes {
    queues: Table<Box<[u8]>, Destination>,
    exchanges: Table<Box<[u8]>, Exchange>,
}

enum Exchange {
    Direct(Table<Box<[u8]>, Bound>),
    Fanout(Bound),
    Topic(Trie),
    Headers(HeaderBindings),
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

    /// Replaces `targets` by the queues that take a message with this address, each once, in
    /// ascending order of id; none if no binding matches. `headers` is an AMQP 0-9-1 field table
    /// without its length prefix and looked at by `headers` exchanges only.
    ///
    /// # Errors
    /// [`Code::ExchangeUnknown`]; an unknown tenant has no exchange.
    pub fn resolve(
        &mut self,
        tenant: TenantId,
        exchange: &[u8],
        routing_key: &[u8],
        headers: &[u8],
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
        let by_headers = self.look_up(&address, headers, targets)?;
        // Headers are no part of the address, so that answer holds for this message alone.
        if by_headers {
            return Ok(Decides::Headers);
        }
        self.memo.keep(self.stamp, &address, spot, targets);
        Ok(Decides::Address)
    }

    /// As [`Self::resolve`], without the memo: for tests and measurements.
    ///
    /// # Errors
    /// [`Code::ExchangeUnknown`].
    pub fn resolve_afresh(
        &mut self,
        tenant: TenantId,
        exchange: &[u8],
        routing_key: &[u8],
        headers: &[u8],
        targets: &mut Vec<Target>,
    ) -> Result<(), Code> {
        let address = memo::Address {
            tenant,
            exchange,
            key: routing_key,
        };
        targets.clear();
        self.look_up(&address, headers, targets).map(|_| ())
    }

    /// Appends what the tables say; whether the answer depended on `headers`.
    fn look_up(
        &mut self,
        address: &memo::Address<'_>,
        headers: &[u8],
        targets: &mut Vec<Target>,
    ) -> Result<bool, Code> {
        let placement = &self.placement;
        let tenant = self
            .tenants
            .get_mut(&address.tenant)
            .ok_or(Code::ExchangeUnknown)?;
        if address.exchange.is_empty() {
            let queue = tenant.queues.get(address.key);
            targets.extend(queue.map(|queue| place(placement, *queue)));
            return Ok(false);
        }
        let exchange = tenant
            .exchanges
            .get_mut(address.exchange)
            .ok_or(Code::ExchangeUnknown)?;
        match exchange {
            Exchange::Direct(keys) => {
                if let Some(bound) = keys.get(address.key) {
                    bound.append(placement, targets);
                }
            }
            Exchange::Fanout(bound) => bound.append(placement, targets),
            Exchange::Topic(trie) => {
                let mut lists = 0;
                trie.matches(address.key, |bound| {
                    lists += 1;
                    bound.append(placement, targets);
                });
                if lists > 1 {
                    targets.sort_unstable();
                    targets.dedup();
                }
            }
            Exchange::Headers(bindings) => {
                bindings.matches(headers, |queue| targets.push(place(placement, queue)));
            }
        }
        debug_assert!(targets.is_sorted_by(|a, b| a.queue < b.queue));
        Ok(matches!(exchange, Exchange::Headers(_)))
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
    }

    /// The default exchange needs no entry: its name is empty and its bindings are the queues.
    pub(crate) fn add_exchange(&mut self, tenant: TenantId, name: &[u8], kind: ExchangeKind) {
        let exchange = match kind {
            _ if name.is_empty() => return,
            ExchangeKind::Direct => Exchange::Direct(Table::new()),
            ExchangeKind::Fanout => Exchange::Fanout(Bound::default()),
            ExchangeKind::Topic => Exchange::Topic(Trie::new()),
            ExchangeKind::Headers => Exchange::Headers(HeaderBindings::new()),
        };
        let before = self.routes(tenant).exchanges.insert(name.into(), exchange);
        assert!(before.is_none(), "exchange is new");
    }

    /// Takes every binding of the exchange with it.
    pub(crate) fn remove_exchange(&mut self, tenant: TenantId, name: &[u8]) {
        let before = self.routes(tenant).exchanges.remove(name);
        assert!(before.is_some(), "exchange exists");
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

    pub(crate) fn bind(&mut self, tenant: TenantId, exchange: &[u8], binding: &Binding<'_>) {
        let Binding { queue, key, .. } = *binding;
        match self.exchange(tenant, exchange) {
            Exchange::Direct(keys) => {
                let bound = match keys.get_mut(key) {
                    Some(bound) => bound,
                    None => keys.get_or_insert_with(key.into(), Bound::default),
                };
                bound.add(queue);
            }
            Exchange::Fanout(bound) => bound.add(queue),
            Exchange::Topic(trie) => trie.bind(key, queue),
            Exchange::Headers(bindings) => bindings.bind(binding),
        }
    }

    pub(crate) fn unbind(&mut self, tenant: TenantId, exchange: &[u8], binding: &Binding<'_>) {
        let Binding { queue, key, .. } = *binding;
        match self.exchange(tenant, exchange) {
            Exchange::Direct(keys) => {
                let bound = keys.get_mut(key).expect("the binding exists");
                bound.remove(queue.queue);
                if bound.is_empty() {
                    keys.remove(key);
                }
            }
            Exchange::Fanout(bound) => bound.remove(queue.queue),
            Exchange::Topic(trie) => trie.unbind(key, queue.queue),
            Exchange::Headers(bindings) => bindings.unbind(binding),
        }
    }

    fn routes(&mut self, tenant: TenantId) -> &mut TenantRoutes {
        self.tenants.get_mut(&tenant).expect("the tenant exists")
    }

    fn exchange(&mut self, tenant: TenantId, name: &[u8]) -> &mut Exchange {
        let exchange = self.routes(tenant).exchanges.get_mut(name);
        exchange.expect("the exchange exists")
    }

    /// Tenants, queues, exchanges, direct keys, trie nodes, words, header bindings and names held:
    /// what a router that was kept in step must share with one built afresh.
    #[cfg(test)]
    pub(crate) fn footprint(&self) -> [usize; 8] {
        let mut sum = [0; 8];
        for tenant in self.tenants.keys_sorted() {
            let routes = self.tenants.get(&tenant).expect("just listed");
            sum[0] += 1;
            sum[1] += routes.queues.len();
            for name in routes.exchanges.keys_sorted() {
                sum[2] += 1;
                match routes.exchanges.get(&name).expect("just listed") {
                    Exchange::Direct(keys) => sum[3] += keys.len(),
                    Exchange::Fanout(bound) => sum[3] += bound.queues.len(),
                    Exchange::Topic(trie) => {
                        sum[4] += trie.nodes();
                        sum[5] += trie.words();
                    }
                    Exchange::Headers(bindings) => {
                        sum[6] += bindings.len();
                        sum[7] += bindings.names();
                    }
                }
            }
        }
        sum
    }
}

/// One binding as the router is told of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Binding<'a> {
    /// The queue at its end.
    pub queue: Destination,
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

/// The queues bound at one place (a key, a trie node, a whole fanout exchange), ascending by id,
/// each with the number of its bindings there: a queue may be bound twice with other arguments.
#[derive(Default, Debug)]
struct Bound {
    queues: Vec<(Destination, u32)>,
}

impl Bound {
    fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    fn add(&mut self, queue: Destination) {
        match self.find(queue.queue) {
            Ok(at) => self.queues[at].1 += 1,
            Err(at) => self.queues.insert(at, (queue, 1)),
        }
    }

    fn remove(&mut self, queue: QueueId) {
        let at = self.find(queue).expect("the binding exists");
        self.queues[at].1 -= 1;
        if self.queues[at].1 == 0 {
            self.queues.remove(at);
        }
    }

    fn find(&self, queue: QueueId) -> Result<usize, usize> {
        self.queues
            .binary_search_by_key(&queue, |(bound, _)| bound.queue)
    }

    fn append(&self, placement: &[CoreId], targets: &mut Vec<Target>) {
        targets.extend(
            self.queues
                .iter()
                .map(|(queue, _)| place(placement, *queue)),
        );
    }
}
