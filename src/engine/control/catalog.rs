//! The topology: tenants, exchanges, queues and bindings, and how it changes.
//! Does not know connections, messages, journals or cores.
//!
//! ```text
//! meta core        plan(request) ──► Change ──► meta journal (synced) ──► every core, in order
//!                  (catalog/plan.rs)  (catalog/change.rs)                    │
//! every core                                      routing::apply: Router, then Catalog::apply
//! start            decode(snapshot), then replay(changes of the meta journal behind it)
//! ```
//!
//! Every core holds a full copy and applies the same changes in the same order, so that all copies
//! of one version are equal. Names belong to one thing at a time, ids to one thing for ever.

pub mod change;
pub mod lanes;
pub mod plan;
pub mod policy;
pub mod settings;
pub mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use ringpost_wire::checksum;
use ringpost_wire::control::{self, Durability, ExchangeKind};
use ringpost_wire::ids::{CoreId, ExchangeId, PartitionId, QueueId, TenantId};
use ringpost_wire::table::Table;

pub use self::change::{Change, ChangeError};
pub use self::lanes::Lane;
pub use self::plan::{Plan, QueueUse, Request};
pub use self::policy::Policy;
pub use self::snapshot::SnapshotError;
use crate::data::queue::LANES_MAX;
use crate::data::route::settings::{Settings, check_binding};
use crate::ids::Owner;

/// Most tenants of a broker.
pub const TENANTS_MAX: usize = 1_000;
/// Most exchanges of a broker, the predeclared ones included.
pub const EXCHANGES_MAX: usize = 100_000;
/// Most queues of a broker.
pub const QUEUES_MAX: usize = 1_000_000;
/// Most bindings of a broker, those of the default exchange not counted.
pub const BINDINGS_MAX: usize = 1_000_000;
/// Most partitions: one number is kept for "by name".
pub const PARTITIONS_MAX: u16 = 4_096;

const _: () = assert!(TENANTS_MAX * PREDECLARED.len() <= EXCHANGES_MAX);
const _: () = assert!(PARTITIONS_MAX < control::PARTITION_BY_NAME);

/// The tenant of who names none; always there.
pub const TENANT_DEFAULT: TenantId = TenantId(1);
/// Its name.
pub const TENANT_DEFAULT_NAME: &[u8] = b"default";

/// The exchanges that every tenant is born with. The first one is the default exchange: it has no
/// bindings but an implicit one to each queue, by its name.
pub const PREDECLARED: [(&[u8], ExchangeKind); 6] = [
    (b"", ExchangeKind::Direct),
    (b"amq.direct", ExchangeKind::Direct),
    (b"amq.fanout", ExchangeKind::Fanout),
    (b"amq.topic", ExchangeKind::Topic),
    (b"amq.headers", ExchangeKind::Headers),
    (b"amq.match", ExchangeKind::Headers),
];

/// A tenant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tenant {
    /// Its number.
    pub id: TenantId,
    /// Its name, unique in the broker.
    pub name: Box<[u8]>,
    /// Number of its first predeclared exchange; the others follow it.
    pub predeclared: ExchangeId,
    exchanges: BTreeMap<Box<[u8]>, ExchangeId>,
    queues: BTreeMap<Box<[u8]>, QueueId>,
    policies: BTreeMap<Box<[u8]>, Policy>,
}

/// An exchange.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exchange {
    /// Its number.
    pub id: ExchangeId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its name, unique in the tenant; empty for the default exchange.
    pub name: Box<[u8]>,
    /// How it routes.
    pub kind: ExchangeKind,
    /// Whether it outlives the process.
    pub durability: Durability,
    /// Further settings, a field table.
    pub arguments: Box<[u8]>,
}

/// A queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Queue {
    /// Its number.
    pub id: QueueId,
    /// Counts up when the queue comes to be served by other data than before; now always 1.
    pub epoch: u32,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its name, unique in the tenant.
    pub name: Box<[u8]>,
    /// Whether it and its messages outlive the process.
    pub durability: Durability,
    /// Where it lives.
    pub partition: PartitionId,
    /// Most messages, 0 = no limit.
    pub messages_max: u64,
    /// Most padded bytes, 0 = no limit.
    pub bytes_max: u64,
    /// Further settings, a field table.
    pub arguments: Box<[u8]>,
    /// The connection that it is exclusive to; a volatile queue then.
    pub owner: Option<Owner>,
}

/// Where a binding leads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum End {
    /// To a queue.
    Queue(QueueId),
    /// To an exchange, which routes messages on.
    Exchange(ExchangeId),
}

impl End {
    /// Before every other one.
    const FIRST: Self = Self::Queue(QueueId(0));
}

/// What a binding leads to.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A queue.
    Queue(&'a Queue),
    /// An exchange.
    Exchange(&'a Exchange),
}

impl<'a> Target<'a> {
    /// As a binding names it.
    #[must_use]
    pub const fn end(self) -> End {
        match self {
            Self::Queue(queue) => End::Queue(queue.id),
            Self::Exchange(exchange) => End::Exchange(exchange.id),
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'a [u8] {
        match self {
            Self::Queue(queue) => &queue.name,
            Self::Exchange(exchange) => &exchange.name,
        }
    }

    const fn tenant(self) -> TenantId {
        match self {
            Self::Queue(queue) => queue.tenant,
            Self::Exchange(exchange) => exchange.tenant,
        }
    }

    /// Whether it outlives the process.
    #[must_use]
    pub const fn durability(self) -> Durability {
        match self {
            Self::Queue(queue) => queue.durability,
            Self::Exchange(exchange) => exchange.durability,
        }
    }
}

/// A binding: the ends, the key and the arguments together are its identity.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Binding {
    /// From.
    pub exchange: ExchangeId,
    /// To.
    pub end: End,
    /// Binding key.
    pub key: Box<[u8]>,
    /// A field table, its fields sorted by name.
    pub arguments: Box<[u8]>,
}

/// The whole topology at one version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Catalog {
    /// Changes applied since the catalog was created.
    version: u64,
    partitions: u16,
    /// Numbers that the next tenant, exchange and queue get.
    tenant_next: u32,
    exchange_next: u32,
    queue_next: u32,
    tenants: BTreeMap<TenantId, Tenant>,
    tenant_names: BTreeMap<Box<[u8]>, TenantId>,
    exchanges: BTreeMap<ExchangeId, Exchange>,
    queues: BTreeMap<QueueId, Queue>,
    /// Streams of several lanes, which follow them by number; how many.
    lanes: BTreeMap<QueueId, u8>,
    /// Those that belong to connections.
    owned: BTreeSet<(Owner, QueueId)>,
    bindings: BTreeSet<Binding>,
    /// The same bindings from the other end.
    bound: BTreeSet<Reverse>,
    /// Memory of all that, with what follows it: see [`Catalog::bytes`].
    bytes: u64,
}

/// Memory of a queue, an exchange or a tenant without its names and arguments, and of a binding
/// without its key: structures, nodes of trees and slots of tables, wherever one is kept.
const ENTRY_BYTES: u64 = 512;
/// How often a name is kept: with the thing and in an index, by the catalog and on the meta core by
/// the planned one, and by the router.
const NAME_COPIES: u64 = 5;
/// How often the key and the arguments of a binding are kept: from both ends, by both catalogs, and
/// by the router as they are and taken apart.
const BINDING_COPIES: u64 = 6;
/// Memory of a compiled filter for each byte of its text: a field of one letter takes a step, a name, a
/// slot and a place in a table.
const FILTER_COPIES: u64 = 24;
/// How often the arguments of a queue or an exchange are kept: by both catalogs.
const ARGUMENT_COPIES: u64 = 2;

fn entry_bytes(name: &[u8], arguments: &[u8]) -> u64 {
    ENTRY_BYTES + NAME_COPIES * name.len() as u64 + ARGUMENT_COPIES * arguments.len() as u64
}

/// A [`Binding`] ordered by its end.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Reverse {
    end: End,
    exchange: ExchangeId,
    key: Box<[u8]>,
    arguments: Box<[u8]>,
}

/// Why a change cannot be applied: it was not planned on this version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApplyError {
    /// A number that belongs or belonged to something already.
    IdTaken,
    /// A name that belongs to something already.
    NameTaken,
    /// Something that it needs does not exist.
    Missing,
    /// The binding exists already.
    Bound,
    /// The tenant still has queues or exchanges of its own, or is the default one.
    NotEmpty,
    /// The partition does not exist, the durability is not that of the ends, or the like.
    Inconsistent,
}

impl Catalog {
    /// Version 0: the default tenant and its predeclared exchanges.
    ///
    /// # Panics
    /// If `partitions` is 0 or above [`PARTITIONS_MAX`].
    #[must_use]
    pub fn new(partitions: u16) -> Self {
        let mut catalog = Self::empty(partitions);
        let born = catalog.apply(&Change::TenantCreated {
            id: TENANT_DEFAULT,
            name: TENANT_DEFAULT_NAME.into(),
            predeclared: ExchangeId(1),
        });
        assert_eq!(born, Ok(1));
        catalog.version = 0;
        catalog
    }

    fn empty(partitions: u16) -> Self {
        assert!((1..=PARTITIONS_MAX).contains(&partitions));
        Self {
            version: 0,
            partitions,
            tenant_next: 1,
            exchange_next: 1,
            queue_next: 1,
            tenants: BTreeMap::new(),
            tenant_names: BTreeMap::new(),
            exchanges: BTreeMap::new(),
            queues: BTreeMap::new(),
            lanes: BTreeMap::new(),
            owned: BTreeSet::new(),
            bindings: BTreeSet::new(),
            bound: BTreeSet::new(),
            bytes: 0,
        }
    }

    /// Memory that the topology takes on a core, at most: the catalog and the router that follows it.
    /// Queues' contents and their indexes are counted elsewhere.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Changes applied so far.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Partitions of the broker.
    #[must_use]
    pub fn partitions(&self) -> u16 {
        self.partitions
    }

    /// The partition of a queue that asks for none: crc32c of the tenant's name, a zero byte and the
    /// queue's name, modulo the number of partitions. Fixed for ever (ADR 7); names hold no zero
    /// byte, so no two pairs of names are the same bytes.
    #[must_use]
    pub fn partition_by_name(&self, tenant: &[u8], queue: &[u8]) -> PartitionId {
        let hash = checksum::crc32c_append(checksum::crc32c(tenant), &[0]);
        let hash = checksum::crc32c_append(hash, queue);
        PartitionId((hash % u32::from(self.partitions)) as u16)
    }

    /// A tenant by number.
    #[must_use]
    pub fn tenant(&self, id: TenantId) -> Option<&Tenant> {
        self.tenants.get(&id)
    }

    /// A tenant by name; the empty name is the default tenant.
    #[must_use]
    pub fn tenant_by_name(&self, name: &[u8]) -> Option<&Tenant> {
        let id = match name {
            b"" => TENANT_DEFAULT,
            _ => *self.tenant_names.get(name)?,
        };
        self.tenant(id)
    }

    /// An exchange by number.
    #[must_use]
    pub fn exchange(&self, id: ExchangeId) -> Option<&Exchange> {
        self.exchanges.get(&id)
    }

    /// An exchange by name.
    #[must_use]
    pub fn exchange_by_name(&self, tenant: TenantId, name: &[u8]) -> Option<&Exchange> {
        let id = self.tenant(tenant)?.exchanges.get(name)?;
        self.exchange(*id)
    }

    /// A queue by number.
    #[must_use]
    pub fn queue(&self, id: QueueId) -> Option<&Queue> {
        self.queues.get(&id)
    }

    /// A queue by name.
    #[must_use]
    pub fn queue_by_name(&self, tenant: TenantId, name: &[u8]) -> Option<&Queue> {
        let id = self.tenant(tenant)?.queues.get(name)?;
        self.queue(*id)
    }

    /// The queues that belong to a connection, in the order of their numbers.
    pub fn queues_of(&self, owner: Owner) -> impl Iterator<Item = &Queue> {
        let owned = (owner, QueueId(0))..=(owner, QueueId(u32::MAX));
        let ids = self.owned.range(owned).map(|(_, id)| *id);
        ids.filter_map(|id| self.queue(id))
    }

    /// Every queue, in the order of their numbers.
    pub fn all_queues(&self) -> impl Iterator<Item = &Queue> {
        self.queues.values()
    }

    /// Whether this is one of the exchanges that its tenant was born with.
    #[must_use]
    pub fn is_predeclared(&self, exchange: &Exchange) -> bool {
        exchange.name.is_empty() || exchange.name.starts_with(b"amq.")
    }

    /// Bindings of an exchange: those to queues and then those to exchanges, each in order of numbers,
    /// key and arguments.
    pub fn bindings_from(&self, exchange: ExchangeId) -> impl Iterator<Item = &Binding> {
        let first = Binding {
            exchange,
            end: End::FIRST,
            key: Box::default(),
            arguments: Box::default(),
        };
        self.bindings
            .range(first..)
            .take_while(move |binding| binding.exchange == exchange)
    }

    /// Bindings to a queue or an exchange, in order of exchange number, key and arguments.
    pub fn bindings_to(&self, end: End) -> impl Iterator<Item = Binding> {
        let first = Reverse {
            end,
            exchange: ExchangeId(0),
            key: Box::default(),
            arguments: Box::default(),
        };
        self.bound
            .range(first..)
            .take_while(move |bound| bound.end == end)
            .map(move |bound| Binding {
                exchange: bound.exchange,
                end,
                key: bound.key.clone(),
                arguments: bound.arguments.clone(),
            })
    }

    /// The exchanges that are to go when they lose their last binding and would lose it by `change`,
    /// which is not applied yet; and those that lose theirs with them, and so on.
    #[must_use]
    pub fn orphans(&self, change: &Change) -> Vec<Change> {
        let mut gone = BTreeSet::new();
        let mut lost: Vec<Binding> = Vec::new();
        let changes = match change {
            Change::Together(changes) => changes.as_slice(),
            one => std::slice::from_ref(one),
        };
        let unbound = changes.iter().find_map(|change| match change {
            Change::Unbound { binding, .. } => Some(binding),
            _ => None,
        });
        lost.extend(unbound.cloned());
        for change in changes {
            let end = match change {
                Change::QueueDeleted { id, .. } => End::Queue(*id),
                Change::ExchangeDeleted { id, .. } => End::Exchange(*id),
                _ => continue,
            };
            gone.insert(end);
            lost.extend(self.bindings_to(end));
        }
        let mut orphans = Vec::new();
        while let Some(binding) = lost.pop() {
            let end = End::Exchange(binding.exchange);
            let Some(exchange) = self.exchange(binding.exchange) else {
                continue;
            };
            let goes = |binding: &Binding| gone.contains(&binding.end) || unbound == Some(binding);
            let is_orphan = !gone.contains(&end)
                && exchange.is_auto_delete()
                && self.bindings_from(exchange.id).all(goes);
            if is_orphan {
                gone.insert(end);
                lost.extend(self.bindings_to(end));
                orphans.push(Change::ExchangeDeleted {
                    id: exchange.id,
                    durability: exchange.durability,
                });
            }
        }
        orphans
    }

    /// What a binding between two ends is: durable only if both are.
    fn durability_of(&self, binding: &Binding) -> Option<Durability> {
        let exchange = self.exchange(binding.exchange)?;
        let target = self.target(binding.end)?;
        Some(exchange.durability.min(target.durability()))
    }

    /// What a binding leads to.
    #[must_use]
    pub fn target(&self, end: End) -> Option<Target<'_>> {
        match end {
            End::Queue(id) => self.queue(id).map(Target::Queue),
            End::Exchange(id) => self.exchange(id).map(Target::Exchange),
        }
    }
}

/// Lists, sorted by name. Each goes on behind a cursor that may name something long gone.
impl Catalog {
    /// Tenants behind the name `after`.
    pub fn list_tenants(&self, after: Option<&[u8]>) -> impl Iterator<Item = &Tenant> {
        let behind = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.tenant_names
            .range::<[u8], _>((behind, Bound::Unbounded))
            .filter_map(|(_, id)| self.tenant(*id))
    }

    /// Exchanges of a tenant behind the name `after`.
    pub fn list_exchanges(
        &self,
        tenant: TenantId,
        after: Option<&[u8]>,
    ) -> impl Iterator<Item = &Exchange> {
        let behind = after.map_or(Bound::Unbounded, Bound::Excluded);
        let names = self.tenant(tenant).map(|tenant| {
            tenant
                .exchanges
                .range::<[u8], _>((behind, Bound::Unbounded))
        });
        names
            .into_iter()
            .flatten()
            .filter_map(|(_, id)| self.exchange(*id))
    }

    /// Policies of a tenant behind the name `after`.
    pub fn list_policies(
        &self,
        tenant: TenantId,
        after: Option<&[u8]>,
    ) -> impl Iterator<Item = &Policy> {
        let behind = after.map_or(Bound::Unbounded, Bound::Excluded);
        let policies = self
            .tenant(tenant)
            .map(|tenant| tenant.policies.range::<[u8], _>((behind, Bound::Unbounded)));
        policies.into_iter().flatten().map(|(_, policy)| policy)
    }

    /// Queues of a tenant behind the name `after`.
    pub fn list_queues(
        &self,
        tenant: TenantId,
        after: Option<&[u8]>,
    ) -> impl Iterator<Item = &Queue> {
        let behind = after.map_or(Bound::Unbounded, Bound::Excluded);
        let names = self
            .tenant(tenant)
            .map(|tenant| tenant.queues.range::<[u8], _>((behind, Bound::Unbounded)));
        names
            .into_iter()
            .flatten()
            .filter_map(|(_, id)| self.queue(*id))
    }

    /// Bindings of a tenant behind `after`, by the exchange's name; those of one exchange as
    /// [`Self::bindings_from`] has them.
    pub fn list_bindings<'a>(
        &'a self,
        tenant: TenantId,
        after: Option<&'a BindingCursor>,
    ) -> impl Iterator<Item = Listed<'a>> {
        let from = after.map_or(&[][..], |cursor| &cursor.exchange);
        let names = self.tenant(tenant).map(|tenant| {
            tenant
                .exchanges
                .range::<[u8], _>((Bound::Included(from), Bound::Unbounded))
        });
        names
            .into_iter()
            .flatten()
            .filter_map(|(_, id)| self.exchange(*id))
            .flat_map(move |exchange| {
                let behind = after.filter(|cursor| cursor.exchange == exchange.name);
                let first = Binding {
                    exchange: exchange.id,
                    end: behind.map_or(End::FIRST, |cursor| cursor.end),
                    key: behind.map_or(Box::default(), |cursor| cursor.key.clone()),
                    arguments: behind.map_or(Box::default(), |cursor| cursor.arguments.clone()),
                };
                self.bindings
                    .range((Bound::Excluded(first), Bound::Unbounded))
                    .take_while(|binding| binding.exchange == exchange.id)
                    .filter_map(|binding| {
                        Some(Listed {
                            exchange,
                            target: self.target(binding.end)?,
                            binding,
                        })
                    })
            })
    }
}

impl Queue {
    /// What it was declared to be, and what is [in force](Catalog::options_of).
    #[must_use]
    pub fn description<'a>(&'a self, options: &'a [u8]) -> control::QueueDescription<'a> {
        control::QueueDescription {
            messages_max: self.messages_max,
            bytes_max: self.bytes_max,
            id: self.id.0,
            partition: self.partition.0,
            durability: self.durability as u8,
            reserved: 0,
            name: &self.name,
            arguments: &self.arguments,
            options,
        }
    }

    /// What the catalog knows of the queue; the owner's core fills in what it holds.
    #[must_use]
    pub fn info(&self, core: CoreId) -> control::QueueInfo<'_> {
        control::QueueInfo {
            ready: 0,
            unacked: 0,
            bytes: 0,
            published: 0,
            settled: 0,
            messages_max: self.messages_max,
            bytes_max: self.bytes_max,
            delayed: 0,
            due_ms: 0,
            dead: 0,
            recent_ms: 0,
            recent_arrived: 0,
            recent_left: 0,
            recent_taken: 0,
            wait_mean_us: 0,
            wait_p50_us: 0,
            wait_p99_us: 0,
            wait_max_us: 0,
            id: self.id.0,
            consumers: 0,
            core: core.0,
            partition: self.partition.0,
            durability: self.durability as u8,
            flags: 0,
            lanes: 0,
            name: &self.name,
        }
    }
}

impl Exchange {
    /// The exchange as it is said in a list.
    #[must_use]
    pub fn info(&self) -> control::ExchangeDeclare<'_> {
        control::ExchangeDeclare {
            kind: self.kind as u8,
            durability: self.durability as u8,
            flags: 0,
            reserved: 0,
            name: &self.name,
            arguments: &self.arguments,
        }
    }
}

impl Tenant {
    /// The tenant as it is said in a list.
    #[must_use]
    pub fn info(&self) -> control::Named<'_> {
        control::Named { name: &self.name }
    }
}

/// A binding in a list, with its ends.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// From.
    pub exchange: &'a Exchange,
    /// To.
    pub target: Target<'a>,
    /// The binding itself.
    pub binding: &'a Binding,
}

impl Listed<'_> {
    /// The binding as it is said in a list.
    #[must_use]
    pub fn info(&self) -> control::Bind<'_> {
        control::Bind {
            flags: match self.target {
                Target::Queue(_) => 0,
                Target::Exchange(_) => control::BIND_TO_EXCHANGE,
            },
            exchange: &self.exchange.name,
            target: self.target.name(),
            key: &self.binding.key,
            arguments: &self.binding.arguments,
        }
    }

    /// Where a list goes on behind this binding.
    #[must_use]
    pub fn cursor(&self) -> BindingCursor {
        BindingCursor {
            exchange: self.exchange.name.clone(),
            end: self.binding.end,
            key: self.binding.key.clone(),
            arguments: self.binding.arguments.clone(),
        }
    }
}

/// A place in the list of bindings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BindingCursor {
    exchange: Box<[u8]>,
    end: End,
    key: Box<[u8]>,
    arguments: Box<[u8]>,
}

/// How it changes.
impl Catalog {
    /// Applies a change that was planned on this very version; the new version. A change that was
    /// not is refused whole.
    ///
    /// # Errors
    /// [`ApplyError`]; nothing has changed then.
    pub fn apply(&mut self, change: &Change) -> Result<u64, ApplyError> {
        self.check(change)?;
        match change {
            Change::TenantCreated {
                id,
                name,
                predeclared,
            } => self.create_tenant(*id, name, *predeclared),
            Change::TenantDeleted { id } => self.delete_tenant(*id),
            Change::ExchangeCreated(exchange) => self.create_exchange(exchange.clone()),
            Change::ExchangeDeleted { id, .. } => self.delete_exchange(*id),
            Change::QueueCreated(queue) => {
                self.create_queue(queue.clone());
                self.create_lanes(queue);
            }
            Change::QueueDeleted { id, .. } => {
                self.delete_lanes(*id);
                self.delete_queue(*id);
            }
            Change::Bound { binding, .. } => {
                self.bytes += binding.bytes();
                self.bindings.insert(binding.clone());
                self.bound.insert(Reverse::of(binding.clone()));
            }
            Change::Unbound { binding, .. } => self.forget(binding.clone()),
            Change::PolicySet(policy) => {
                self.bytes += policy.bytes();
                let tenant = self.tenant_mut(policy.tenant);
                let before = tenant.policies.insert(policy.name.clone(), policy.clone());
                self.bytes -= before.map_or(0, |before| before.bytes());
            }
            Change::PolicyDeleted { tenant, name } => {
                let gone = self.tenant_mut(*tenant).policies.remove(name);
                self.bytes -= gone.expect("the change was checked").bytes();
            }
            Change::Together(changes) => {
                for change in changes {
                    self.apply(change).expect("each holds by itself");
                }
                return Ok(self.version);
            }
        }
        self.version += 1;
        Ok(self.version)
    }

    /// As [`Self::apply`], for a change that an earlier process made: what was volatile is gone
    /// with it, only its number stays used.
    ///
    /// # Errors
    /// [`ApplyError`]; nothing has changed then.
    pub fn replay(&mut self, change: &Change) -> Result<u64, ApplyError> {
        if let Change::Together(changes) = change {
            for change in changes {
                self.replay(change)?;
            }
            return Ok(self.version);
        }
        if change.durability() == Durability::Durable {
            return self.apply(change);
        }
        match change {
            Change::ExchangeCreated(exchange) => {
                self.exchange_next = self.exchange_next.max(after(exchange.id.0)?);
            }
            Change::QueueCreated(queue) => {
                self.queue_next = self.queue_next.max(after(queue.id.0)?);
            }
            _ => {}
        }
        self.version += 1;
        Ok(self.version)
    }

    /// Leaves free the numbers that so many lost changes may have taken.
    pub fn skip_numbers(&mut self, changes: u32) {
        let exchanges = changes.saturating_mul(PREDECLARED.len() as u32);
        self.tenant_next = self.tenant_next.saturating_add(changes);
        self.exchange_next = self.exchange_next.saturating_add(exchanges);
        // Each may have been a stream with all the lanes there can be.
        let queues = changes.saturating_mul(1 + u32::from(LANES_MAX));
        self.queue_next = self.queue_next.saturating_add(queues);
    }

    /// Whether a change can be applied.
    ///
    /// # Errors
    /// [`ApplyError`].
    pub fn check(&self, change: &Change) -> Result<(), ApplyError> {
        match change {
            Change::TenantCreated {
                id,
                name,
                predeclared,
            } => {
                let taken = id.0 < self.tenant_next || predeclared.0 < self.exchange_next;
                require(!taken, ApplyError::IdTaken)?;
                after(id.0)?;
                after(predeclared.0.saturating_add(PREDECLARED.len() as u32 - 1))?;
                let named = self.tenant_names.contains_key(name);
                require(!named, ApplyError::NameTaken)
            }
            Change::TenantDeleted { id } => {
                let tenant = self.tenant(*id).ok_or(ApplyError::Missing)?;
                let empty = tenant.is_empty() && *id != TENANT_DEFAULT;
                require(empty, ApplyError::NotEmpty)
            }
            Change::ExchangeCreated(exchange) => {
                require(exchange.id.0 >= self.exchange_next, ApplyError::IdTaken)?;
                after(exchange.id.0)?;
                let tenant = self.tenant(exchange.tenant).ok_or(ApplyError::Missing)?;
                let named = tenant.exchanges.contains_key(&exchange.name);
                require(!named, ApplyError::NameTaken)?;
                // Else it would be taken for one of those its tenant was born with.
                let own = !self.is_predeclared(exchange);
                let settings = Settings::of(exchange.kind, &exchange.arguments);
                require(own && settings.is_ok(), ApplyError::Inconsistent)
            }
            Change::ExchangeDeleted { id, durability } => {
                let exchange = self.exchange(*id).ok_or(ApplyError::Missing)?;
                let sound = exchange.durability == *durability && !self.is_predeclared(exchange);
                require(sound, ApplyError::Inconsistent)
            }
            Change::QueueCreated(queue) => {
                require(queue.id.0 >= self.queue_next, ApplyError::IdTaken)?;
                after(queue.id.0.saturating_add(u32::from(queue.lanes())))?;
                let tenant = self.tenant(queue.tenant).ok_or(ApplyError::Missing)?;
                let named = tenant.queues.contains_key(&queue.name);
                require(!named, ApplyError::NameTaken)?;
                self.check_lanes(tenant, queue)?;
                let placed = queue.partition.0 < self.partitions;
                let is_mortal = queue.owner.is_none() || queue.durability == Durability::Volatile;
                require(placed && is_mortal, ApplyError::Inconsistent)
            }
            Change::QueueDeleted { id, durability } => {
                let queue = self.queue(*id).ok_or(ApplyError::Missing)?;
                let sound = queue.durability == *durability && self.lane(*id).is_none();
                require(sound, ApplyError::Inconsistent)
            }
            Change::Bound {
                binding,
                durability,
            } => {
                let exchange = self.exchange(binding.exchange).ok_or(ApplyError::Missing)?;
                let target = self.target(binding.end).ok_or(ApplyError::Missing)?;
                let sound = exchange.tenant == target.tenant()
                    && !exchange.name.is_empty()
                    && !target.name().is_empty()
                    && !matches!(target, Target::Queue(queue) if self.lane(queue.id).is_some())
                    && exchange.durability.min(target.durability()) == *durability
                    && check_binding(exchange.kind, &binding.key, &binding.arguments).is_ok();
                require(sound, ApplyError::Inconsistent)?;
                require(!self.bindings.contains(binding), ApplyError::Bound)
            }
            Change::Unbound {
                binding,
                durability,
            } => {
                require(self.bindings.contains(binding), ApplyError::Missing)?;
                let between = self.durability_of(binding);
                require(between == Some(*durability), ApplyError::Inconsistent)
            }
            Change::PolicySet(policy) => {
                let tenant = self.tenant(policy.tenant);
                require(tenant.is_some(), ApplyError::Missing)?;
                require(!policy.name.is_empty(), ApplyError::Inconsistent)
            }
            Change::PolicyDeleted { tenant, name } => {
                let policy = self.policy(*tenant, name);
                require(policy.is_some(), ApplyError::Missing)
            }
            Change::Together(changes) => {
                let mut gone = BTreeSet::new();
                for (at, change) in changes.iter().enumerate() {
                    let is_new = match change {
                        Change::QueueDeleted { id, .. } => gone.insert(End::Queue(*id)),
                        Change::ExchangeDeleted { id, .. } => gone.insert(End::Exchange(*id)),
                        // None of the others has taken it along yet.
                        Change::Unbound { .. } => at == 0,
                        _ => false,
                    };
                    require(is_new, ApplyError::Inconsistent)?;
                    self.check(change)?;
                }
                Ok(())
            }
        }
    }

    fn create_tenant(&mut self, id: TenantId, name: &[u8], predeclared: ExchangeId) {
        let mut tenant = Tenant {
            id,
            name: name.into(),
            predeclared,
            exchanges: BTreeMap::new(),
            queues: BTreeMap::new(),
            policies: BTreeMap::new(),
        };
        for ((name, kind), number) in PREDECLARED.into_iter().zip(predeclared.0..) {
            let exchange = Exchange {
                id: ExchangeId(number),
                tenant: id,
                name: name.into(),
                kind,
                durability: Durability::Durable,
                arguments: Box::default(),
            };
            self.bytes += exchange.bytes();
            tenant.exchanges.insert(exchange.name.clone(), exchange.id);
            self.exchanges.insert(exchange.id, exchange);
        }
        self.bytes += tenant.bytes();
        self.tenant_next = id.0 + 1;
        self.exchange_next = predeclared.0 + PREDECLARED.len() as u32;
        self.tenant_names.insert(name.into(), id);
        self.tenants.insert(id, tenant);
    }

    fn delete_tenant(&mut self, id: TenantId) {
        let tenant = self.tenants.remove(&id).expect("the change was checked");
        self.tenant_names.remove(&tenant.name);
        self.bytes -= tenant.bytes();
        self.bytes -= tenant.policies.values().map(Policy::bytes).sum::<u64>();
        for id in tenant.exchanges.values() {
            // Those between its own exchanges: there is no queue, and none leads to another tenant.
            let bindings: Vec<Binding> = self.bindings_from(*id).cloned().collect();
            for binding in bindings {
                self.forget(binding);
            }
            let exchange = self.exchanges.remove(id);
            self.bytes -= exchange.expect("its tenant names it").bytes();
        }
    }

    fn create_exchange(&mut self, exchange: Exchange) {
        let tenant = self.tenant_mut(exchange.tenant);
        tenant.exchanges.insert(exchange.name.clone(), exchange.id);
        self.exchange_next = exchange.id.0 + 1;
        self.bytes += exchange.bytes();
        self.exchanges.insert(exchange.id, exchange);
    }

    fn delete_exchange(&mut self, id: ExchangeId) {
        let bindings: Vec<Binding> = self.bindings_from(id).cloned().collect();
        for binding in bindings {
            self.forget(binding);
        }
        let bindings: Vec<Binding> = self.bindings_to(End::Exchange(id)).collect();
        for binding in bindings {
            self.forget(binding);
        }
        let exchange = self.exchanges.remove(&id).expect("the change was checked");
        self.bytes -= exchange.bytes();
        let tenant = self.tenant_mut(exchange.tenant);
        tenant.exchanges.remove(&exchange.name);
    }

    fn create_queue(&mut self, queue: Queue) {
        let tenant = self.tenant_mut(queue.tenant);
        tenant.queues.insert(queue.name.clone(), queue.id);
        self.queue_next = queue.id.0 + 1;
        self.bytes += queue.bytes();
        self.owned
            .extend(queue.owner.map(|owner| (owner, queue.id)));
        self.queues.insert(queue.id, queue);
    }

    fn delete_queue(&mut self, id: QueueId) {
        let bindings: Vec<Binding> = self.bindings_to(End::Queue(id)).collect();
        for binding in bindings {
            self.forget(binding);
        }
        let queue = self.queues.remove(&id).expect("the change was checked");
        self.bytes -= queue.bytes();
        if let Some(owner) = queue.owner {
            self.owned.remove(&(owner, id));
        }
        let tenant = self.tenant_mut(queue.tenant);
        tenant.queues.remove(&queue.name);
    }

    fn tenant_mut(&mut self, id: TenantId) -> &mut Tenant {
        self.tenants.get_mut(&id).expect("the change was checked")
    }

    fn forget(&mut self, binding: Binding) {
        self.bytes -= binding.bytes();
        let from = self.bindings.remove(&binding);
        let to = self.bound.remove(&Reverse::of(binding));
        assert!(from && to, "both ends know a binding");
    }

    /// Proves that the indexes agree with each other; for tests and debug builds.
    ///
    /// # Panics
    /// If they do not.
    pub fn invariants(&self) {
        self.lanes_invariants();
        assert!(self.tenants.contains_key(&TENANT_DEFAULT));
        assert_eq!(self.tenants.len(), self.tenant_names.len());
        let (mut exchanges, mut queues) = (0, 0);
        for (id, tenant) in &self.tenants {
            assert_eq!(*id, tenant.id);
            assert!(id.0 < self.tenant_next);
            assert_eq!(self.tenant_names.get(&tenant.name), Some(id));
            for (name, id) in &tenant.exchanges {
                let exchange = &self.exchanges[id];
                assert_eq!((&exchange.name, exchange.tenant), (name, tenant.id));
            }
            for (name, id) in &tenant.queues {
                let queue = &self.queues[id];
                assert_eq!((&queue.name, queue.tenant), (name, tenant.id));
            }
            exchanges += tenant.exchanges.len();
            queues += tenant.queues.len();
        }
        assert_eq!(
            (exchanges, queues),
            (self.exchanges.len(), self.queues.len())
        );
        let exchange_last = self.exchanges.last_key_value();
        assert!(exchange_last.is_none_or(|(id, _)| id.0 < self.exchange_next));
        let queue_last = self.queues.last_key_value();
        assert!(queue_last.is_none_or(|(id, _)| id.0 < self.queue_next));
        let owned = self
            .queues
            .values()
            .filter_map(|queue| Some((queue.owner?, queue.id)));
        assert_eq!(owned.collect::<BTreeSet<_>>(), self.owned);
        assert_eq!(self.bindings.len(), self.bound.len());
        let bytes = self.tenants.values().map(Tenant::bytes).sum::<u64>()
            + self.exchanges.values().map(Exchange::bytes).sum::<u64>()
            + self.queues.values().map(Queue::bytes).sum::<u64>()
            + self.bindings.iter().map(Binding::bytes).sum::<u64>();
        let policies = self
            .tenants
            .values()
            .flat_map(|tenant| tenant.policies.values());
        let bytes = bytes + policies.map(Policy::bytes).sum::<u64>();
        assert_eq!(bytes, self.bytes);
        for binding in &self.bindings {
            let exchange = &self.exchanges[&binding.exchange];
            let target = self.target(binding.end).expect("a binding's end exists");
            assert_eq!(exchange.tenant, target.tenant());
            assert!(self.bound.contains(&Reverse::of(binding.clone())));
        }
    }
}

impl Exchange {
    /// Whether it goes when its last binding does.
    fn is_auto_delete(&self) -> bool {
        // Most have no arguments.
        !self.arguments.is_empty()
            && Settings::of(self.kind, &self.arguments)
                .is_ok_and(|settings| settings.is_auto_delete)
    }

    fn bytes(&self) -> u64 {
        entry_bytes(&self.name, &self.arguments)
    }
}

impl Queue {
    fn bytes(&self) -> u64 {
        entry_bytes(&self.name, &self.arguments)
    }
}

impl Binding {
    fn bytes(&self) -> u64 {
        let arguments = Table::parse(&self.arguments).unwrap_or_default();
        let filter = arguments.get(b"x-filter");
        let filter = filter.and_then(|text| text.as_text()).unwrap_or_default();
        ENTRY_BYTES
            + BINDING_COPIES * (self.key.len() + self.arguments.len()) as u64
            + FILTER_COPIES * filter.len() as u64
    }
}

impl Change {
    /// Memory that it takes, for [`Catalog::bytes`]; nothing if it gives some back.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::TenantCreated { name, .. } => {
                let exchanges = PREDECLARED.iter().map(|(name, _)| entry_bytes(name, b""));
                entry_bytes(name, b"") + exchanges.sum::<u64>()
            }
            Self::ExchangeCreated(exchange) => exchange.bytes(),
            Self::QueueCreated(queue) => queue.bytes() + queue.lanes_bytes(),
            Self::Bound { binding, .. } => binding.bytes(),
            Self::PolicySet(policy) => policy.bytes(),
            Self::TenantDeleted { .. }
            | Self::ExchangeDeleted { .. }
            | Self::QueueDeleted { .. }
            | Self::Unbound { .. }
            | Self::PolicyDeleted { .. }
            | Self::Together(_) => 0,
        }
    }
}

impl Tenant {
    fn bytes(&self) -> u64 {
        entry_bytes(&self.name, b"")
    }

    /// Whether it has nothing but its predeclared exchanges.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty() && self.exchanges.len() == PREDECLARED.len()
    }
}

impl Reverse {
    fn of(binding: Binding) -> Self {
        Self {
            end: binding.end,
            exchange: binding.exchange,
            key: binding.key,
            arguments: binding.arguments,
        }
    }
}

/// The number behind `id`; numbers are never used up in earnest, but bytes may claim so.
fn after(id: u32) -> Result<u32, ApplyError> {
    id.checked_add(1).ok_or(ApplyError::Inconsistent)
}

fn require(holds: bool, otherwise: ApplyError) -> Result<(), ApplyError> {
    if holds { Ok(()) } else { Err(otherwise) }
}
