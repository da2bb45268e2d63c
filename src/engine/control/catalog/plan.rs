//! Whether a request may change the topology, and how. Changes nothing itself.
//! Does not know who asks: permissions are decided before.

use ringpost_wire::Code;
use ringpost_wire::control::{
    self, BIND_TO_EXCHANGE, Bind, DECLARE_PASSIVE, DELETE_IF_EMPTY, DELETE_IF_UNUSED, Delete,
    Durability, ExchangeDeclare, ExchangeKind, PARTITION_BY_NAME, PolicySet, QueueDeclare,
};
use ringpost_wire::ids::{ExchangeId, PartitionId, QueueId, TenantId};
use ringpost_wire::limits::{KEY_BYTES_MAX, NAME_BYTES_MAX};

use super::policy::{POLICIES_MAX, Policy};
use super::settings::QueueSettings;
use super::{
    BINDINGS_MAX, Binding, Catalog, Change, EXCHANGES_MAX, End, Exchange, PREDECLARED, QUEUES_MAX,
    Queue, TENANT_DEFAULT, TENANTS_MAX, Target, Tenant,
};
use crate::control::words::{counted, quoted};
use crate::data::route::settings::{Settings, check_binding};
use crate::data::route::{SHARES_MAX, headers};
use crate::ids::Owner;

/// What is asked for, of the tenant that [`Catalog::plan`] is told; tenants themselves belong to
/// none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request<'a> {
    /// A tenant of this name.
    TenantDeclare {
        /// Its name.
        name: &'a [u8],
    },
    /// No tenant of this name; it must be empty.
    TenantDelete {
        /// Its name.
        name: &'a [u8],
    },
    /// A queue.
    QueueDeclare(QueueDeclare<'a>),
    /// No queue of this name.
    QueueDelete(Delete<'a>, QueueUse),
    /// An exchange.
    ExchangeDeclare(ExchangeDeclare<'a>),
    /// No exchange of this name.
    ExchangeDelete(Delete<'a>),
    /// A policy.
    PolicySet(PolicySet<'a>),
    /// No policy of this name.
    PolicyDelete {
        /// Its name.
        name: &'a [u8],
    },
    /// A binding.
    Bind(Bind<'a>),
    /// No such binding.
    Unbind(Bind<'a>),
}

/// What a queue's owner says of it; looked at only where the request makes it a condition.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct QueueUse {
    /// Its consumers.
    pub consumers: u32,
    /// Its messages, ready and unsettled.
    pub messages: u64,
}

/// What is to be done about a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Plan {
    /// Nothing: it is as was asked for.
    AlreadyExists,
    /// Make this change durable if it is, then apply it everywhere. A plan holds for the version it
    /// was made on.
    Apply(Change),
}

/// Why a request is refused: a code, and a reason for people.
pub type Refusal = (Code, String);

impl Catalog {
    /// Decides what to do about a request.
    ///
    /// # Errors
    /// The code and reason to answer with.
    pub fn plan(&self, tenant: TenantId, request: &Request<'_>) -> Result<Plan, Refusal> {
        self.plan_for(None, tenant, request)
    }

    /// As [`Self::plan`], for the connection that asks: what is exclusive to others it may not touch.
    ///
    /// # Errors
    /// The code and reason to answer with.
    pub fn plan_for(
        &self,
        owner: Option<Owner>,
        tenant: TenantId,
        request: &Request<'_>,
    ) -> Result<Plan, Refusal> {
        match request {
            Request::TenantDeclare { name } => return self.plan_tenant(name),
            Request::TenantDelete { name } => return self.plan_tenant_delete(name),
            _ => {}
        }
        let tenant = self
            .tenant(tenant)
            .ok_or_else(|| (Code::TenantUnknown, format!("no tenant number {tenant}")))?;
        match request {
            Request::TenantDeclare { .. } | Request::TenantDelete { .. } => unreachable!(),
            Request::QueueDeclare(asked) => self.plan_queue(owner, tenant, asked),
            Request::QueueDelete(asked, usage) => {
                self.check_owner(owner, tenant, asked.name)?;
                self.plan_queue_delete(tenant, asked, *usage)
            }
            Request::ExchangeDeclare(asked) => self.plan_exchange(tenant, asked),
            Request::ExchangeDelete(asked) => self.plan_exchange_delete(tenant, asked),
            Request::PolicySet(asked) => self.plan_policy(tenant, asked),
            Request::PolicyDelete { name } => {
                if !tenant.policies.contains_key(*name) {
                    let reason = format!("no policy {}", quoted(name));
                    return Err((Code::PolicyUnknown, reason));
                }
                Ok(Plan::Apply(Change::PolicyDeleted {
                    tenant: tenant.id,
                    name: (*name).into(),
                }))
            }
            Request::Bind(asked) | Request::Unbind(asked) => {
                if asked.flags & BIND_TO_EXCHANGE == 0 {
                    self.check_owner(owner, tenant, asked.target)?;
                }
                match request {
                    Request::Bind(_) => self.plan_bind(tenant, asked),
                    _ => self.plan_unbind(tenant, asked),
                }
            }
        }
    }

    /// A queue of this name, if there is one, is not exclusive to somebody else.
    fn check_owner(
        &self,
        owner: Option<Owner>,
        tenant: &Tenant,
        name: &[u8],
    ) -> Result<(), Refusal> {
        let queue = self.queue_by_name(tenant.id, name);
        queue.map_or(Ok(()), |queue| queue.check_owner(owner))
    }

    //= P-68
    fn plan_tenant(&self, name: &[u8]) -> Result<Plan, Refusal> {
        if self.tenant_by_name(name).is_some() {
            return Ok(Plan::AlreadyExists);
        }
        check_name("tenant", name)?;
        check_room("tenants", self.tenants.len(), 1, TENANTS_MAX)?;
        check_room(
            "exchanges",
            self.exchanges.len(),
            PREDECLARED.len(),
            EXCHANGES_MAX,
        )?;
        check_number(self.tenant_next)?;
        check_number(self.exchange_next.saturating_add(PREDECLARED.len() as u32))?;
        Ok(Plan::Apply(Change::TenantCreated {
            id: TenantId(self.tenant_next),
            name: name.into(),
            predeclared: ExchangeId(self.exchange_next),
        }))
    }

    fn plan_tenant_delete(&self, name: &[u8]) -> Result<Plan, Refusal> {
        let tenant = self
            .tenant_by_name(name)
            .ok_or_else(|| (Code::TenantUnknown, format!("no tenant {}", quoted(name))))?;
        if tenant.id == TENANT_DEFAULT {
            let reason = "the default tenant cannot be deleted".to_owned();
            return Err((Code::PermissionDenied, reason));
        }
        if !tenant.is_empty() {
            let reason = format!(
                "tenant {} has {} and {} of its own; delete them first",
                quoted(name),
                counted(tenant.queues.len() as u64, "queue"),
                counted(
                    (tenant.exchanges.len() - PREDECLARED.len()) as u64,
                    "exchange"
                ),
            );
            return Err((Code::InUse, reason));
        }
        Ok(Plan::Apply(Change::TenantDeleted { id: tenant.id }))
    }

    //= P-61
    fn plan_queue(
        &self,
        owner: Option<Owner>,
        tenant: &Tenant,
        asked: &QueueDeclare<'_>,
    ) -> Result<Plan, Refusal> {
        check_flags(asked.flags.into(), DECLARE_PASSIVE.into())?;
        self.check_owner(owner, tenant, asked.name)?;
        let existing = self.queue_by_name(tenant.id, asked.name);
        if asked.flags & DECLARE_PASSIVE != 0 {
            return existing
                .map(|_| Plan::AlreadyExists)
                .ok_or_else(|| no_queue(asked.name));
        }
        existing.map_or(Ok(()), |queue| self.check_no_lane(queue))?;
        let durability = check_durability(asked.durability)?;
        let limits = (asked.messages_max, asked.bytes_max);
        let settings = QueueSettings::read(durability, limits, asked.arguments);
        let settings = settings.map_err(|reason| (Code::SettingInvalid, reason))?;
        let by_name = asked.partition == PARTITION_BY_NAME;
        if !by_name && asked.partition >= self.partitions {
            let reason = format!(
                "partition {} does not exist, the last one is {}",
                asked.partition,
                self.partitions - 1
            );
            return Err((Code::SettingInvalid, reason));
        }
        if let Some(queue) = existing {
            return queue.compare(asked, durability);
        }
        // Who asked for no name in particular was given one; nobody else comes this far (P-60).
        let is_given = asked.name.starts_with(b"amq.gen-");
        check_name(
            "queue",
            if is_given {
                &asked.name[4..]
            } else {
                asked.name
            },
        )?;
        let lanes = settings.queue.stream.map_or(0, |stream| stream.lanes);
        let more = 1 + usize::from(lanes);
        check_room("queues", self.queues.len(), more, QUEUES_MAX)?;
        check_number(self.queue_next.saturating_add(u32::from(lanes)))?;
        self.plan_lanes(tenant, asked.name, lanes)?;
        let partition = if by_name {
            self.partition_by_name(&tenant.name, asked.name)
        } else {
            PartitionId(asked.partition)
        };
        Ok(Plan::Apply(Change::QueueCreated(Queue {
            id: QueueId(self.queue_next),
            epoch: 1,
            tenant: tenant.id,
            name: asked.name.into(),
            durability,
            partition,
            messages_max: asked.messages_max,
            bytes_max: asked.bytes_max,
            arguments: asked.arguments.into(),
            owner: owner.filter(|_| settings.lifetime.is_exclusive),
        })))
    }

    //= P-62
    fn plan_queue_delete(
        &self,
        tenant: &Tenant,
        asked: &Delete<'_>,
        usage: QueueUse,
    ) -> Result<Plan, Refusal> {
        check_flags(asked.flags, DELETE_IF_UNUSED | DELETE_IF_EMPTY)?;
        let queue = self
            .queue_by_name(tenant.id, asked.name)
            .ok_or_else(|| no_queue(asked.name))?;
        self.check_no_lane(queue)?;
        let name = quoted(asked.name);
        if asked.flags & DELETE_IF_UNUSED != 0 && usage.consumers > 0 {
            let reason = format!(
                "queue {name} has {}",
                counted(u64::from(usage.consumers), "consumer")
            );
            return Err((Code::InUse, reason));
        }
        if asked.flags & DELETE_IF_EMPTY != 0 && usage.messages > 0 {
            let reason = format!("queue {name} holds {}", counted(usage.messages, "message"));
            return Err((Code::InUse, reason));
        }
        Ok(Plan::Apply(Change::QueueDeleted {
            id: queue.id,
            durability: queue.durability,
        }))
    }

    //= P-63
    fn plan_exchange(&self, tenant: &Tenant, asked: &ExchangeDeclare<'_>) -> Result<Plan, Refusal> {
        check_flags(asked.flags.into(), DECLARE_PASSIVE.into())?;
        let existing = self.exchange_by_name(tenant.id, asked.name);
        if asked.flags & DECLARE_PASSIVE != 0 {
            return existing
                .map(|_| Plan::AlreadyExists)
                .ok_or_else(|| no_exchange(asked.name));
        }
        check_not_default(asked.name)?;
        let durability = check_durability(asked.durability)?;
        let kind = ExchangeKind::from_number(asked.kind).ok_or_else(|| {
            let reason = format!(
                "exchange kind {} is not one of 1 to {}",
                asked.kind,
                ExchangeKind::ALL.len()
            );
            (Code::SettingInvalid, reason)
        })?;
        check_arguments(Settings::of(kind, asked.arguments).map(|_| ()))?;
        if let Some(exchange) = existing {
            return exchange.compare(asked.arguments, kind, durability);
        }
        check_name("exchange", asked.name)?;
        check_room("exchanges", self.exchanges.len(), 1, EXCHANGES_MAX)?;
        check_number(self.exchange_next)?;
        Ok(Plan::Apply(Change::ExchangeCreated(Exchange {
            id: ExchangeId(self.exchange_next),
            tenant: tenant.id,
            name: asked.name.into(),
            kind,
            durability,
            arguments: asked.arguments.into(),
        })))
    }

    fn plan_exchange_delete(&self, tenant: &Tenant, asked: &Delete<'_>) -> Result<Plan, Refusal> {
        check_flags(asked.flags, DELETE_IF_UNUSED)?;
        check_not_default(asked.name)?;
        let exchange = self
            .exchange_by_name(tenant.id, asked.name)
            .ok_or_else(|| no_exchange(asked.name))?;
        let name = quoted(asked.name);
        if self.is_predeclared(exchange) {
            let reason = format!("exchange {name} is predeclared and cannot be deleted");
            return Err((Code::PermissionDenied, reason));
        }
        let mut from = self.bindings_from(exchange.id);
        let mut to = self.bindings_to(End::Exchange(exchange.id));
        let is_used = from.next().is_some() || to.next().is_some();
        if asked.flags & DELETE_IF_UNUSED != 0 && is_used {
            return Err((Code::InUse, format!("exchange {name} has bindings")));
        }
        Ok(Plan::Apply(Change::ExchangeDeleted {
            id: exchange.id,
            durability: exchange.durability,
        }))
    }

    //= P-79
    fn plan_policy(&self, tenant: &Tenant, asked: &PolicySet<'_>) -> Result<Plan, Refusal> {
        check_flags(asked.flags.into(), 0)?;
        check_name("policy", asked.name)?;
        let policy = Policy::of(tenant.id, asked);
        let policy = policy.map_err(|reason| (Code::SettingInvalid, reason))?;
        match tenant.policies.get(asked.name) {
            Some(existing) if *existing == policy => return Ok(Plan::AlreadyExists),
            Some(_) => {}
            None => check_room(
                "policies of the tenant",
                tenant.policies.len(),
                1,
                POLICIES_MAX,
            )?,
        }
        Ok(Plan::Apply(Change::PolicySet(policy)))
    }

    //= P-64
    fn plan_bind(&self, tenant: &Tenant, asked: &Bind<'_>) -> Result<Plan, Refusal> {
        let (exchange, target) = self.ends(tenant, asked)?;
        check_arguments(check_binding(exchange.kind, asked.key, asked.arguments))?;
        if asked.key.len() > KEY_BYTES_MAX {
            let reason = format!(
                "binding key has {} bytes, at most {KEY_BYTES_MAX} are allowed",
                asked.key.len()
            );
            return Err((Code::SettingInvalid, reason));
        }
        let binding = Binding {
            exchange: exchange.id,
            end: target.end(),
            key: asked.key.into(),
            arguments: headers::sorted_table(asked.arguments).into(),
        };
        if self.bindings.contains(&binding) {
            return Ok(Plan::AlreadyExists);
        }
        check_room("bindings", self.bindings.len(), 1, BINDINGS_MAX)?;
        if matches!(
            exchange.kind,
            ExchangeKind::ConsistentHash | ExchangeKind::Random
        ) {
            let used = self.bindings_from(exchange.id).take(SHARES_MAX).count();
            check_room("bindings of the exchange", used, 1, SHARES_MAX)?;
        }
        Ok(Plan::Apply(Change::Bound {
            binding,
            durability: exchange.durability.min(target.durability()),
        }))
    }

    fn plan_unbind(&self, tenant: &Tenant, asked: &Bind<'_>) -> Result<Plan, Refusal> {
        let (exchange, target) = self.ends(tenant, asked)?;
        check_arguments(headers::check_table(asked.arguments))?;
        let binding = Binding {
            exchange: exchange.id,
            end: target.end(),
            key: asked.key.into(),
            arguments: headers::sorted_table(asked.arguments).into(),
        };
        if !self.bindings.contains(&binding) {
            let reason = format!(
                "{} {} is not bound to exchange {} with key {} and these arguments",
                match target {
                    Target::Queue(_) => "queue",
                    Target::Exchange(_) => "exchange",
                },
                quoted(asked.target),
                quoted(asked.exchange),
                quoted(asked.key)
            );
            return Err((Code::BindingUnknown, reason));
        }
        Ok(Plan::Apply(Change::Unbound {
            binding,
            durability: exchange.durability.min(target.durability()),
        }))
    }

    fn ends(&self, tenant: &Tenant, asked: &Bind<'_>) -> Result<(&Exchange, Target<'_>), Refusal> {
        check_flags(asked.flags, BIND_TO_EXCHANGE)?;
        check_not_default(asked.exchange)?;
        let exchange = self.exchange_by_name(tenant.id, asked.exchange);
        let exchange = exchange.ok_or_else(|| no_exchange(asked.exchange))?;
        if asked.flags & BIND_TO_EXCHANGE == 0 {
            let queue = self.queue_by_name(tenant.id, asked.target);
            let queue = queue.ok_or_else(|| no_queue(asked.target))?;
            self.check_no_lane(queue)?;
            return Ok((exchange, Target::Queue(queue)));
        }
        check_not_default(asked.target)?;
        let target = self.exchange_by_name(tenant.id, asked.target);
        let target = target.ok_or_else(|| no_exchange(asked.target))?;
        Ok((exchange, Target::Exchange(target)))
    }
}

impl Queue {
    /// Whether a connection may declare, consume from, bind, empty or delete it.
    ///
    /// # Errors
    /// It is exclusive to another one.
    //= P-77
    pub fn check_owner(&self, asks: Option<Owner>) -> Result<(), Refusal> {
        if self.owner.is_none() || self.owner == asks || crate::mutant!(ExclusiveShared) {
            return Ok(());
        }
        let name = quoted(&self.name);
        let reason = format!("queue {name} is exclusive to another connection");
        Err((Code::ResourceLocked, reason))
    }

    /// A second declaration must say the same. Naming no partition says nothing about it: the queue
    /// may have been put anywhere.
    fn compare(&self, asked: &QueueDeclare<'_>, durability: Durability) -> Result<Plan, Refusal> {
        let subject = || format!("queue {}", quoted(&self.name));
        compare(
            subject,
            "durability",
            word(self.durability),
            word(durability),
        )?;
        compare(
            subject,
            "messages_max",
            self.messages_max,
            asked.messages_max,
        )?;
        compare(subject, "bytes_max", self.bytes_max, asked.bytes_max)?;
        if asked.partition != PARTITION_BY_NAME {
            compare(subject, "partition", self.partition.0, asked.partition)?;
        }
        compare_arguments(subject, &self.arguments, asked.arguments)
    }
}

impl Exchange {
    fn compare(
        &self,
        arguments: &[u8],
        kind: ExchangeKind,
        durability: Durability,
    ) -> Result<Plan, Refusal> {
        let subject = || format!("exchange {}", quoted(&self.name));
        compare(subject, "kind", self.kind.word(), kind.word())?;
        compare(
            subject,
            "durability",
            word(self.durability),
            word(durability),
        )?;
        compare_arguments(subject, &self.arguments, arguments)
    }
}

fn compare<T: PartialEq + std::fmt::Display>(
    subject: impl Fn() -> String,
    setting: &str,
    existing: T,
    asked: T,
) -> Result<(), Refusal> {
    if existing == asked {
        return Ok(());
    }
    let reason = format!(
        "{} exists with {setting} {existing}, asked for {asked}",
        subject()
    );
    Err((Code::PreconditionFailed, reason))
}

fn compare_arguments(
    subject: impl Fn() -> String,
    existing: &[u8],
    asked: &[u8],
) -> Result<Plan, Refusal> {
    // Who names no argument says nothing about them.
    if asked.is_empty() {
        return Ok(Plan::AlreadyExists);
    }
    let Some(name) = headers::table_difference(existing, asked) else {
        return Ok(Plan::AlreadyExists);
    };
    let reason = format!(
        "{} exists with argument {} {}, asked for {}",
        subject(),
        quoted(name),
        headers::shown(existing, name),
        headers::shown(asked, name)
    );
    Err((Code::PreconditionFailed, reason))
}

//= P-60
fn check_name(what: &str, name: &[u8]) -> Result<(), Refusal> {
    if control::is_name(name) {
        return Ok(());
    }
    let reason = if name.starts_with(b"amq.") {
        format!(
            "{what} name {} is reserved: it starts with amq.",
            quoted(name)
        )
    } else {
        format!(
            "{what} name {} is not 1 to {NAME_BYTES_MAX} bytes of UTF-8 without control characters",
            quoted(name)
        )
    };
    Err((Code::NameInvalid, reason))
}

fn check_not_default(exchange: &[u8]) -> Result<(), Refusal> {
    if !exchange.is_empty() {
        return Ok(());
    }
    let reason = "the default exchange cannot be declared, deleted, bound or unbound".to_owned();
    Err((Code::PermissionDenied, reason))
}

fn check_flags(flags: u32, known: u32) -> Result<(), Refusal> {
    //= P-92
    if flags & !known == 0 {
        return Ok(());
    }
    Err((
        Code::SettingInvalid,
        format!("flags {flags:#x} are not all known"),
    ))
}

fn check_durability(number: u8) -> Result<Durability, Refusal> {
    Durability::from_number(number).ok_or_else(|| {
        let reason = format!("durability {number} is not 0 (volatile) or 1 (durable)");
        (Code::SettingInvalid, reason)
    })
}

fn check_arguments(result: Result<(), String>) -> Result<(), Refusal> {
    result.map_err(|reason| (Code::SettingInvalid, reason))
}

fn check_room(what: &str, used: usize, more: usize, max: usize) -> Result<(), Refusal> {
    if used + more <= max {
        return Ok(());
    }
    Err((Code::LimitReached, format!("{used} of {max} {what} exist")))
}

/// The last number is never handed out: behind it there would be no next one.
fn check_number(next: u32) -> Result<(), Refusal> {
    if next < u32::MAX {
        return Ok(());
    }
    Err((Code::LimitReached, "every number was used once".to_owned()))
}

fn word(durability: Durability) -> &'static str {
    match durability {
        Durability::Volatile => "volatile",
        Durability::Durable => "durable",
    }
}

fn no_queue(name: &[u8]) -> Refusal {
    (Code::QueueUnknown, format!("no queue {}", quoted(name)))
}

fn no_exchange(name: &[u8]) -> Refusal {
    (
        Code::ExchangeUnknown,
        format!("no exchange {}", quoted(name)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: TenantId = TENANT_DEFAULT;

    fn queue(name: &[u8]) -> QueueDeclare<'_> {
        QueueDeclare {
            messages_max: 10,
            bytes_max: 0,
            durability: 1,
            flags: 0,
            partition: PARTITION_BY_NAME,
            name,
            arguments: b"",
        }
    }

    fn exchange(name: &[u8], kind: ExchangeKind) -> ExchangeDeclare<'_> {
        ExchangeDeclare {
            kind: kind as u8,
            durability: 1,
            flags: 0,
            reserved: 0,
            name,
            arguments: b"",
        }
    }

    fn bind<'a>(exchange: &'a [u8], queue: &'a [u8]) -> Bind<'a> {
        Bind {
            flags: 0,
            exchange,
            target: queue,
            key: b"k",
            arguments: b"",
        }
    }

    fn delete(name: &[u8], flags: u32) -> Delete<'_> {
        Delete { flags, name }
    }

    /// A catalog with queue `orders` bound to exchange `shop`.
    fn shop() -> Catalog {
        let mut catalog = Catalog::new(64);
        for request in [
            Request::QueueDeclare(queue(b"orders")),
            Request::ExchangeDeclare(exchange(b"shop", ExchangeKind::Topic)),
            Request::Bind(bind(b"shop", b"orders")),
        ] {
            apply(&mut catalog, &request);
        }
        catalog
    }

    fn apply(catalog: &mut Catalog, request: &Request<'_>) {
        let Ok(Plan::Apply(change)) = catalog.plan(TENANT, request) else {
            panic!("{request:?} changes something");
        };
        assert_eq!(catalog.apply(&change), Ok(catalog.version()));
        catalog.invariants();
    }

    fn check(catalog: &Catalog, request: Request<'_>, expect: Result<Plan, (Code, &str)>) {
        let plan = catalog.plan(TENANT, &request);
        let plan = plan.as_ref().map_err(|(code, reason)| (*code, &**reason));
        assert_eq!(
            plan,
            expect.as_ref().map_err(|refusal| *refusal),
            "{request:?}"
        );
    }

    //= P-61
    #[test]
    fn declaring_again_is_compared_setting_by_setting() {
        let catalog = shop();
        let exists = || Ok(Plan::AlreadyExists);
        let failed = |reason| Err((Code::PreconditionFailed, reason));
        let asked = queue(b"orders");
        check(&catalog, Request::QueueDeclare(asked), exists());
        let other = |change: fn(&mut QueueDeclare<'static>)| {
            let mut asked = queue(b"orders");
            change(&mut asked);
            Request::QueueDeclare(asked)
        };
        let text = "queue 'orders' exists with messages_max 10, asked for 11";
        check(&catalog, other(|q| q.messages_max = 11), failed(text));
        let text = "queue 'orders' exists with bytes_max 0, asked for 5";
        check(&catalog, other(|q| q.bytes_max = 5), failed(text));
        let text = "queue 'orders' exists with durability durable, asked for volatile";
        check(&catalog, other(|q| q.durability = 0), failed(text));
        let text = "queue 'orders' exists with argument 'a' nothing, asked for true";
        check(
            &catalog,
            other(|q| q.arguments = b"\x01at\x01"),
            failed(text),
        );
        let mut catalog = catalog;
        let mut with_arguments = queue(b"limited");
        with_arguments.arguments = b"\x01ab\x07";
        apply(&mut catalog, &Request::QueueDeclare(with_arguments));
        with_arguments.arguments = b"\x01aI\0\0\0\x07";
        check(&catalog, Request::QueueDeclare(with_arguments), exists());
        check(&catalog, Request::QueueDeclare(queue(b"limited")), exists());
        let partition = catalog.partition_by_name(b"default", b"orders").0;
        let mut asked = asked;
        asked.partition = partition;
        check(&catalog, Request::QueueDeclare(asked), exists());
        asked.partition = (partition + 1) % 64;
        assert!(matches!(
            catalog.plan(TENANT, &Request::QueueDeclare(asked)),
            Err((Code::PreconditionFailed, _))
        ));
        let same = exchange(b"shop", ExchangeKind::Topic);
        check(&catalog, Request::ExchangeDeclare(same), exists());
        let other = exchange(b"shop", ExchangeKind::Fanout);
        let text = "exchange 'shop' exists with kind topic, asked for fanout";
        check(&catalog, Request::ExchangeDeclare(other), failed(text));
        check(&catalog, Request::Bind(bind(b"shop", b"orders")), exists());
    }

    #[test]
    fn passive_asks_only_whether_it_exists() {
        let catalog = shop();
        let mut asked = queue(b"orders");
        asked.flags = DECLARE_PASSIVE;
        asked.messages_max = 999;
        check(
            &catalog,
            Request::QueueDeclare(asked),
            Ok(Plan::AlreadyExists),
        );
        asked.name = b"none";
        let refusal = Err((Code::QueueUnknown, "no queue 'none'"));
        check(&catalog, Request::QueueDeclare(asked), refusal);
        let mut asked = exchange(b"", ExchangeKind::Fanout);
        asked.flags = DECLARE_PASSIVE;
        check(
            &catalog,
            Request::ExchangeDeclare(asked),
            Ok(Plan::AlreadyExists),
        );
        asked.name = b"amq.none";
        let refusal = Err((Code::ExchangeUnknown, "no exchange 'amq.none'"));
        check(&catalog, Request::ExchangeDeclare(asked), refusal);
    }

    fn code(catalog: &Catalog, request: Request<'_>) -> Option<Code> {
        catalog.plan(TENANT, &request).err().map(|(code, _)| code)
    }

    //= P-60
    #[test]
    fn names_are_checked_and_amq_is_reserved() {
        let catalog = shop();
        let long = [b'a'; 256];
        for name in [&b""[..], b"amq.mine", b"a\nb", b"\xff", &long] {
            let request = Request::QueueDeclare(queue(name));
            assert_eq!(code(&catalog, request), Some(Code::NameInvalid));
        }
        let declare = |name, kind| code(&catalog, Request::ExchangeDeclare(exchange(name, kind)));
        assert_eq!(
            declare(b"amq.mine", ExchangeKind::Topic),
            Some(Code::NameInvalid)
        );
        assert_eq!(declare(b"amq.topic", ExchangeKind::Topic), None);
        let other = declare(b"amq.topic", ExchangeKind::Direct);
        assert_eq!(other, Some(Code::PreconditionFailed));
        assert_eq!(
            declare(b"", ExchangeKind::Direct),
            Some(Code::PermissionDenied)
        );
    }

    #[test]
    fn the_default_exchange_and_predeclared_ones_stay_as_they_are() {
        let catalog = shop();
        let denied = Some(Code::PermissionDenied);
        assert_eq!(code(&catalog, Request::Bind(bind(b"", b"orders"))), denied);
        assert_eq!(
            code(&catalog, Request::Unbind(bind(b"", b"orders"))),
            denied
        );
        assert_eq!(
            code(&catalog, Request::ExchangeDelete(delete(b"", 0))),
            denied
        );
        let request = Request::ExchangeDelete(delete(b"amq.topic", 0));
        assert_eq!(code(&catalog, request), denied);
        assert_eq!(code(&catalog, Request::TenantDelete { name: b"" }), denied);
        for (name, kind) in PREDECLARED {
            let exchange = catalog.exchange_by_name(TENANT, name);
            assert_eq!(exchange.map(|exchange| exchange.kind), Some(kind));
        }
    }

    //= P-62
    #[test]
    fn conditions_of_a_delete() {
        let catalog = shop();
        let request = |flags, consumers, messages| {
            let usage = QueueUse {
                consumers,
                messages,
            };
            code(
                &catalog,
                Request::QueueDelete(delete(b"orders", flags), usage),
            )
        };
        for flags in 0..4 {
            for (consumers, messages) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                let refused = (flags & DELETE_IF_UNUSED != 0 && consumers > 0)
                    || (flags & DELETE_IF_EMPTY != 0 && messages > 0);
                let expect = refused.then_some(Code::InUse);
                assert_eq!(request(flags, consumers, messages), expect);
            }
        }
        assert_eq!(request(4, 0, 0), Some(Code::SettingInvalid));
        let usage = QueueUse {
            consumers: 1,
            messages: 2,
        };
        for (flags, expect) in [
            (DELETE_IF_UNUSED, "queue 'orders' has 1 consumer"),
            (DELETE_IF_EMPTY, "queue 'orders' holds 2 messages"),
        ] {
            let request = Request::QueueDelete(delete(b"orders", flags), usage);
            let reason = catalog.plan(TENANT, &request).map_err(|(_, reason)| reason);
            assert_eq!(reason, Err(expect.to_owned()));
        }
        let unused = Request::ExchangeDelete(delete(b"shop", DELETE_IF_UNUSED));
        assert_eq!(code(&catalog, unused), Some(Code::InUse));
        assert_eq!(
            code(&catalog, Request::ExchangeDelete(delete(b"shop", 0))),
            None
        );
    }

    #[test]
    fn deleting_an_end_takes_its_bindings_and_numbers_are_not_used_again() {
        let usage = QueueUse::default();
        let mut catalog = shop();
        let first = catalog
            .queue_by_name(TENANT, b"orders")
            .map(|queue| queue.id);
        apply(
            &mut catalog,
            &Request::QueueDelete(delete(b"orders", 0), usage),
        );
        assert_eq!(catalog.list_bindings(TENANT, None).count(), 0);
        apply(&mut catalog, &Request::QueueDeclare(queue(b"orders")));
        let second = catalog
            .queue_by_name(TENANT, b"orders")
            .map(|queue| queue.id);
        assert!(second > first);
        apply(&mut catalog, &Request::Bind(bind(b"shop", b"orders")));
        apply(&mut catalog, &Request::ExchangeDelete(delete(b"shop", 0)));
        assert_eq!(catalog.list_bindings(TENANT, None).count(), 0);
    }

    //= P-68
    #[test]
    fn a_tenant_is_deleted_only_empty() {
        let mut catalog = shop();
        apply(&mut catalog, &Request::TenantDeclare { name: b"blue" });
        let exists = Request::TenantDeclare { name: b"blue" };
        check(&catalog, exists, Ok(Plan::AlreadyExists));
        let blue = catalog.tenant_by_name(b"blue").expect("declared").id;
        let Ok(Plan::Apply(change)) = catalog.plan(blue, &Request::QueueDeclare(queue(b"q")))
        else {
            panic!("a queue of another tenant is another queue");
        };
        assert!(catalog.apply(&change).is_ok());
        let request = Request::TenantDelete { name: b"blue" };
        assert_eq!(code(&catalog, request), Some(Code::InUse));
        let request_queue = Request::QueueDelete(delete(b"q", 0), QueueUse::default());
        let Ok(Plan::Apply(change)) = catalog.plan(blue, &request_queue) else {
            panic!("the queue exists");
        };
        assert!(catalog.apply(&change).is_ok());
        apply(&mut catalog, &request);
        assert_eq!(code(&catalog, request), Some(Code::TenantUnknown));
        assert!(catalog.exchange_by_name(blue, b"amq.topic").is_none());
        let late = catalog.plan(blue, &Request::QueueDeclare(queue(b"q")));
        assert!(matches!(late, Err((Code::TenantUnknown, _))));
    }

    //= P-64
    #[test]
    fn bindings_are_known_by_all_they_say() {
        let mut catalog = shop();
        let mut asked = bind(b"shop", b"orders");
        asked.arguments = b"\x01bV\x01aV";
        apply(&mut catalog, &Request::Bind(asked));
        asked.arguments = b"\x01aV\x01bV";
        check(&catalog, Request::Bind(asked), Ok(Plan::AlreadyExists));
        apply(&mut catalog, &Request::Unbind(asked));
        assert_eq!(
            code(&catalog, Request::Unbind(asked)),
            Some(Code::BindingUnknown)
        );
        asked.arguments = b"\xff";
        assert_eq!(
            code(&catalog, Request::Bind(asked)),
            Some(Code::SettingInvalid)
        );
        let rule = b"\x07x-matchS\0\0\0\x04some";
        let mut asked = bind(b"amq.headers", b"orders");
        asked.arguments = rule;
        assert_eq!(
            code(&catalog, Request::Bind(asked)),
            Some(Code::SettingInvalid)
        );
        asked.exchange = b"amq.topic";
        assert_eq!(code(&catalog, Request::Bind(asked)), None);
        let none = Request::Bind(bind(b"none", b"orders"));
        assert_eq!(code(&catalog, none), Some(Code::ExchangeUnknown));
        let none = Request::Bind(bind(b"shop", b"none"));
        assert_eq!(code(&catalog, none), Some(Code::QueueUnknown));
    }

    //= P-72
    #[test]
    fn an_exchange_may_be_bound_like_a_queue() {
        let mut catalog = shop();
        let to = |exchange, target| Bind {
            flags: BIND_TO_EXCHANGE,
            ..bind(exchange, target)
        };
        let asked = to(b"amq.fanout", b"shop");
        apply(&mut catalog, &Request::Bind(asked));
        check(&catalog, Request::Bind(asked), Ok(Plan::AlreadyExists));
        let queue = Bind { flags: 0, ..asked };
        assert_eq!(
            code(&catalog, Request::Bind(queue)),
            Some(Code::QueueUnknown)
        );
        let to_itself = to(b"shop", b"shop");
        apply(&mut catalog, &Request::Bind(to_itself));
        for (request, expect) in [
            (to(b"shop", b"none"), Code::ExchangeUnknown),
            (to(b"none", b"shop"), Code::ExchangeUnknown),
            (to(b"shop", b""), Code::PermissionDenied),
            (to(b"", b"shop"), Code::PermissionDenied),
            (
                Bind {
                    flags: 2,
                    ..to_itself
                },
                Code::SettingInvalid,
            ),
        ] {
            assert_eq!(code(&catalog, Request::Bind(request)), Some(expect));
            assert_eq!(code(&catalog, Request::Unbind(request)), Some(expect));
        }
        apply(&mut catalog, &Request::Unbind(asked));
        let reason = catalog.plan(TENANT, &Request::Unbind(asked));
        let expect = "exchange 'shop' is not bound to exchange 'amq.fanout' with key 'k' and these \
                      arguments";
        assert_eq!(reason, Err((Code::BindingUnknown, expect.to_owned())));
        // Bound to something is used, too; what is deleted takes bindings from both sides with it.
        apply(&mut catalog, &Request::Bind(asked));
        let usage = QueueUse::default();
        apply(
            &mut catalog,
            &Request::QueueDelete(delete(b"orders", 0), usage),
        );
        apply(&mut catalog, &Request::Unbind(to_itself));
        let unused = Request::ExchangeDelete(delete(b"shop", DELETE_IF_UNUSED));
        assert_eq!(code(&catalog, unused), Some(Code::InUse));
        apply(&mut catalog, &Request::Bind(to_itself));
        apply(&mut catalog, &Request::ExchangeDelete(delete(b"shop", 0)));
        assert_eq!(catalog.list_bindings(TENANT, None).count(), 0);
    }

    #[test]
    fn a_change_is_refused_whole_on_another_version() {
        let catalog = shop();
        for request in [
            Request::QueueDeclare(queue(b"late")),
            Request::QueueDelete(delete(b"orders", 0), QueueUse::default()),
            Request::Unbind(bind(b"shop", b"orders")),
            Request::ExchangeDelete(delete(b"shop", 0)),
            Request::TenantDeclare { name: b"blue" },
        ] {
            let Ok(Plan::Apply(change)) = catalog.plan(TENANT, &request) else {
                panic!("{request:?} changes something");
            };
            let mut other = catalog.clone();
            assert!(other.apply(&change).is_ok());
            let before = other.clone();
            assert!(other.apply(&change).is_err(), "{change:?} twice");
            assert_eq!(other, before);
        }
    }
}
