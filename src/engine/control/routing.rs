//! Keeps a core's router in step with its catalog, change by change.
//! Does not know how either is built inside.
//!
//! The dependency points this way, control to data, so that what runs per message names nothing of
//! what runs per operation.

use ringpost_wire::ids::{CoreId, ExchangeId, QueueId};
use ringpost_wire::table::Table;

use super::catalog::change::Change;
use super::catalog::policy::{Policy, Subject};
use super::catalog::{self, ApplyError, Binding, Catalog, Queue, Target};
use crate::data::route::{self, Destination, End, Lanes, Router};

/// Applies a change to a catalog and the router that follows it; the new version.
///
/// # Errors
/// [`ApplyError`]; neither has changed then.
pub fn apply(
    catalog: &mut Catalog,
    router: &mut Router,
    change: &Change,
) -> Result<u64, ApplyError> {
    catalog.check(change)?;
    if let Change::Together(changes) = change {
        for change in changes {
            apply(catalog, router, change).expect("each holds by itself");
        }
        return Ok(catalog.version());
    }
    let before = policy_named(catalog, change).cloned();
    router.apply(catalog, change);
    let version = catalog.apply(change)?;
    assert_eq!(router.version(), version);
    for policy in before.iter().chain(policy_named(catalog, change)) {
        router.follow(catalog, policy);
    }
    Ok(version)
}

/// The policy that a change is about, as it is now.
pub(super) fn policy_named<'a>(catalog: &'a Catalog, change: &Change) -> Option<&'a Policy> {
    match change {
        Change::PolicySet(policy) => catalog.policy(policy.tenant, &policy.name),
        Change::PolicyDeleted { tenant, name } => catalog.policy(*tenant, name),
        _ => None,
    }
}

impl Router {
    /// A router for everything in `catalog`. `placement` names the core of each partition.
    ///
    /// # Panics
    /// If there is not one core per partition of the catalog.
    #[must_use]
    pub fn of(catalog: &Catalog, placement: &[CoreId]) -> Self {
        assert_eq!(placement.len(), usize::from(catalog.partitions()));
        let mut router = Self::new(catalog.version(), placement);
        for tenant in catalog.list_tenants(None) {
            router.add_tenant(tenant.id);
            for exchange in catalog.list_exchanges(tenant.id, None) {
                router.add_exchange_of(catalog, exchange);
            }
            for queue in catalog.list_queues(tenant.id, None) {
                router.add_queue(tenant.id, &queue.name, destination(queue));
                if catalog.lanes_of(queue.id) > 0 {
                    router.add_lanes(queue.id, lanes(queue));
                }
            }
            for listed in catalog.list_bindings(tenant.id, None) {
                router.bind_in(catalog, listed.binding);
            }
        }
        router
    }

    /// Follows one change. `before` is the catalog as it was *before* the change: what a deletion
    /// takes with it can still be read there. The change must be one that `before` accepts.
    ///
    /// # Panics
    /// If the router does not follow `before`.
    pub fn apply(&mut self, before: &Catalog, change: &Change) {
        assert_eq!(
            self.version(),
            before.version(),
            "one change after the other"
        );
        match change {
            Change::TenantCreated {
                id, predeclared, ..
            } => {
                self.add_tenant(*id);
                for ((name, kind), number) in catalog::PREDECLARED.into_iter().zip(predeclared.0..)
                {
                    self.add_exchange(*id, ExchangeId(number), name, kind, b"");
                }
            }
            Change::TenantDeleted { id } => self.remove_tenant(*id),
            Change::ExchangeCreated(exchange) => self.add_exchange_of(before, exchange),
            // What they change is read from the catalog when it has them.
            Change::PolicySet(_) | Change::PolicyDeleted { .. } => {}
            Change::ExchangeDeleted { id, .. } => self.remove_exchange_in(before, *id),
            Change::QueueCreated(queue) => {
                self.add_queue(queue.tenant, &queue.name, destination(queue));
                if queue.lanes() > 0 {
                    for lane in queue.own_lanes(before.partitions()) {
                        self.add_queue(lane.tenant, &lane.name, destination(&lane));
                    }
                    self.add_lanes(queue.id, lanes(queue));
                }
            }
            Change::QueueDeleted { id, .. } => self.remove_queue_in(before, *id),
            Change::Bound { binding, .. } => self.bind_in(before, binding),
            Change::Unbound { binding, .. } => self.unbind_in(before, binding),
            Change::Together(_) => unreachable!("they are followed one by one"),
        }
        self.changed();
    }

    fn add_exchange_of(&mut self, catalog: &Catalog, exchange: &catalog::Exchange) {
        self.add_exchange(
            exchange.tenant,
            exchange.id,
            &exchange.name,
            exchange.kind,
            &exchange.arguments,
        );
        if !exchange.name.is_empty() {
            self.set_alternate(exchange.id, catalog.alternate_of(exchange));
        }
    }

    /// A policy has come, has changed or is gone: `catalog` says what holds now.
    fn follow(&mut self, catalog: &Catalog, policy: &Policy) {
        for exchange in catalog.list_exchanges(policy.tenant, None) {
            if !exchange.name.is_empty() && policy.takes(Subject::Exchanges, &exchange.name) {
                self.set_alternate(exchange.id, catalog.alternate_of(exchange));
            }
        }
    }

    fn remove_exchange_in(&mut self, catalog: &Catalog, id: ExchangeId) {
        let exchange = catalog.exchange(id).expect("the change was checked");
        for binding in catalog.bindings_to(catalog::End::Exchange(id)) {
            self.unbind_in(catalog, &binding);
        }
        self.remove_exchange(exchange.tenant, &exchange.name);
    }

    fn remove_queue_in(&mut self, catalog: &Catalog, id: QueueId) {
        let queue = catalog.queue(id).expect("the change was checked");
        for binding in catalog.bindings_to(catalog::End::Queue(id)) {
            self.unbind_in(catalog, &binding);
        }
        for lane in catalog.list_lanes(id) {
            self.remove_queue(lane.tenant, &lane.name);
        }
        self.remove_lanes(id);
        self.remove_queue(queue.tenant, &queue.name);
    }

    fn bind_in(&mut self, catalog: &Catalog, binding: &Binding) {
        self.bind(binding.exchange, &route_of(catalog, binding));
    }

    fn unbind_in(&mut self, catalog: &Catalog, binding: &Binding) {
        self.unbind(binding.exchange, &route_of(catalog, binding));
    }
}

fn route_of<'a>(catalog: &'a Catalog, binding: &'a Binding) -> route::Binding<'a> {
    let target = catalog.target(binding.end);
    let target = target.expect("a binding's end exists");
    route::Binding {
        end: match target {
            Target::Queue(queue) => End::Queue(destination(queue)),
            Target::Exchange(exchange) => End::Exchange(exchange.id),
        },
        name: target.name(),
        key: &binding.key,
        arguments: &binding.arguments,
    }
}

fn destination(queue: &Queue) -> Destination {
    Destination {
        queue: queue.id,
        partition: queue.partition,
        durable: queue.durability == ringpost_wire::control::Durability::Durable,
    }
}

/// The lanes of a stream that has some.
fn lanes(stream: &Queue) -> Lanes {
    let arguments = Table::parse(&stream.arguments).unwrap_or_default();
    let header = arguments.get(b"x-stream-lane-header");
    Lanes {
        name: stream.name.clone(),
        first: QueueId(stream.id.0 + 1),
        partition: stream.partition,
        count: stream.lanes(),
        header: header.and_then(|name| name.as_text()).map(Into::into),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{apply, catalog};
    use crate::control::catalog::{Catalog, Change, End, Plan, QueueUse, Request, Target};
    use crate::data::route::settings::Settings;
    use crate::data::route::{
        Facts, Router, Target as Taker, exchange_seed, headers, naive_by_hash, naive_by_lot,
        naive_topic_match, naive_weight_of, queue_seed,
    };
    use ringpost_wire::Code;
    use ringpost_wire::control::{
        BIND_TO_EXCHANGE, Bind, Delete, Durability, ExchangeDeclare, ExchangeKind,
        PARTITION_BY_NAME, PolicySet, QueueDeclare,
    };
    use ringpost_wire::ids::{CoreId, TenantId};
    use ringpost_wire::table::{Table, Value};

    /// Random requests over few names, so that they meet.
    pub(crate) struct Random(u64);

    const EXCHANGES: [&[u8]; 13] = [
        b"",
        b"amq.direct",
        b"amq.fanout",
        b"amq.topic",
        b"amq.headers",
        b"d",
        b"f",
        b"t",
        b"h",
        b"c",
        b"m",
        b"r",
        b"s",
    ];
    const KEYS: [&[u8]; 17] = [
        b"", b"q1", b"a", b"a.b", b"a.*", b"#", b"a.#", b"#.b", b"*", b"*.b", b"a.b.c", b"#.#",
        b"*.#", b"..", b"1", b"7", b"1000",
    ];
    const QUEUES: [&[u8]; 8] = [b"q0", b"q1", b"q2", b"q3", b"q4", b"q5", b"a", b"a.b"];
    const FILTERS: [&[u8]; 4] = [
        b"\x08x-filterS\0\0\0\x05a = 1",
        b"\x08x-filterS\0\0\0\x0ba IS NULL",
        b"\x08x-filterS\0\0\0\x16b OR sys.priority = 3",
        b"\x08x-filterS\0\0\0\x04b = ",
    ];
    const LANES: [&[u8]; 2] = [
        b"\x0cx-queue-typeS\0\0\0\x06stream\x0ex-stream-lanesb\x03",
        b"\x0cx-queue-typeS\0\0\0\x06stream\x0ex-stream-lanesb\x0b\x14x-stream-lane-headerS\0\0\0\x01a",
    ];
    const TABLES: [&[u8]; 8] = [
        b"",
        b"\x01ab\x01",
        b"\x01aI\0\0\0\x01",
        b"\x01aV\x01bt\x01",
        b"\x07x-matchS\0\0\0\x03any\x01ab\x01\x01bt\x01",
        b"\x07x-matchS\0\0\0\x03any",
        b"\x07x-matchS\0\0\0\x0aall-with-x\x03x-yt\x01",
        b"\x07x-matchS\0\0\0\x0aany-with-x\x03x-yt\x01\x01ab\x02",
    ];

    impl Random {
        pub(crate) fn new(seed: u64) -> Self {
            Self(seed)
        }

        fn below(&mut self, limit: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) % limit as u64) as usize
        }

        fn of<'a>(&mut self, choices: &[&'a [u8]]) -> &'a [u8] {
            choices[self.below(choices.len())]
        }

        fn request(&mut self) -> Request<'static> {
            let queue = self.of(&QUEUES);
            let exchange = self.of(&EXCHANGES);
            let durability = self.below(2) as u8;
            let tenant = [&b"blue"[..], b"green", b""][self.below(3)];
            let (flags, target) = match self.below(3) {
                0 => (BIND_TO_EXCHANGE, self.of(&EXCHANGES)),
                _ => (0, queue),
            };
            let bind = Bind {
                flags,
                exchange,
                target,
                key: self.of(&KEYS),
                arguments: match exchange {
                    b"s" => self.of(&FILTERS),
                    _ => self.of(&TABLES),
                },
            };
            let delete = |name| Delete { flags: 0, name };
            match self.below(43) {
                40 => Request::PolicyDelete { name: b"p" },
                41 | 42 => Request::PolicySet(PolicySet {
                    priority: self.below(2) as u32,
                    applies: 3,
                    flags: 0,
                    reserved: 0,
                    name: self.of(&[b"p", b"r"]),
                    pattern: self.of(&[b"^[dft]$", b"h|c", b"^s", b"."]),
                    options: self.of(&[
                        b"\x14x-alternate-exchangeS\0\0\0\x01d",
                        b"\x14x-alternate-exchangeS\0\0\0\0",
                        b"\x0dx-message-ttlb\x05",
                    ]),
                }),
                0 => Request::TenantDeclare { name: tenant },
                1 => Request::TenantDelete { name: tenant },
                2 => Request::QueueDelete(delete(queue), QueueUse::default()),
                3 => Request::ExchangeDelete(delete(exchange)),
                4..10 => {
                    let is_stream = self.below(4) == 0;
                    Request::QueueDeclare(QueueDeclare {
                        messages_max: 0,
                        bytes_max: 0,
                        durability: if is_stream { 1 } else { durability },
                        flags: 0,
                        partition: PARTITION_BY_NAME,
                        name: queue,
                        arguments: if is_stream { self.of(&LANES) } else { b"" },
                    })
                }
                10..14 => Request::ExchangeDeclare(ExchangeDeclare {
                    kind: match exchange {
                        b"d" => 1,
                        b"f" => 2,
                        b"t" => 3,
                        b"c" | b"m" => 5,
                        b"r" => 6,
                        b"s" => 7,
                        _ => 4,
                    },
                    durability,
                    flags: 0,
                    reserved: 0,
                    name: exchange,
                    arguments: match (exchange, self.below(4)) {
                        (b"m", _) => b"\x0dx-hash-headerS\0\0\0\x01a",
                        (_, 0) => b"\x14x-alternate-exchangeS\0\0\0\x01f",
                        (_, 1) => b"\x14x-alternate-exchangeS\0\0\0\0",
                        (b"t", 2) => b"\x0ax-internalt\x01",
                        (b"d", 2) => b"\x0ax-internalt\x01\x14x-alternate-exchangeS\0\0\0\x01t",
                        _ => b"",
                    },
                }),
                14..22 => Request::Unbind(bind),
                _ => Request::Bind(bind),
            }
        }

        fn plan(&mut self, catalog: &Catalog) -> Option<Change> {
            let request = self.request();
            let tenant = TenantId([1, 1, 1, 2, 3][self.below(5)]);
            match catalog.plan(tenant, &request) {
                Ok(Plan::Apply(change)) => Some(change),
                Ok(Plan::AlreadyExists) | Err(_) => None,
            }
        }

        /// Changes the catalog, perhaps.
        pub(crate) fn step(&mut self, catalog: &mut Catalog) -> Option<Change> {
            let change = self.plan(catalog)?;
            let version = catalog.apply(&change).expect("just planned");
            assert_eq!(version, catalog.version());
            Some(change)
        }
    }

    /// What the catalog says, exchange by exchange and binding by binding.
    fn naive(
        catalog: &Catalog,
        placement: &[CoreId],
        tenant: TenantId,
        (exchange, key, facts): (&[u8], &[u8], &Facts<'_>),
    ) -> Result<Vec<Taker>, Code> {
        let exchange = catalog
            .exchange_by_name(tenant, exchange)
            .ok_or(Code::ExchangeUnknown)?;
        if settings(exchange).is_internal {
            return Err(Code::PermissionDenied);
        }
        let mut targets = Vec::new();
        let mut seen = vec![exchange.id];
        let mut at = 0;
        while let Some(exchange) = seen.get(at).and_then(|id| catalog.exchange(*id)) {
            at += 1;
            let matched = naive_matches(catalog, exchange, key, facts);
            for end in &matched {
                match end {
                    End::Queue(id) => targets.push(*id),
                    End::Exchange(id) if !seen.contains(id) => seen.push(*id),
                    End::Exchange(_) => {}
                }
            }
            if let Some(name) = catalog.alternate_of(exchange)
                && matched.is_empty()
                && let Some(other) = catalog.exchange_by_name(tenant, &name)
                && !seen.contains(&other.id)
            {
                seen.push(other.id);
            }
        }
        let mut targets: Vec<Taker> = targets
            .iter()
            .filter_map(|id| catalog.queue(*id))
            .map(|queue| naive_lane(catalog, queue, key, facts))
            .map(|queue| Taker {
                queue: queue.id,
                partition: queue.partition,
                core: placement[queue.partition.0 as usize],
                durable: queue.durability == Durability::Durable,
            })
            .collect();
        targets.sort();
        targets.dedup();
        Ok(targets)
    }

    /// The lane of a stream that takes a message, if it has some.
    fn naive_lane<'a>(
        catalog: &'a Catalog,
        queue: &'a catalog::Queue,
        key: &[u8],
        facts: &Facts<'_>,
    ) -> &'a catalog::Queue {
        let all: Vec<_> = catalog.list_lanes(queue.id).collect();
        if all.is_empty() {
            return queue;
        }
        let (number, _) = super::lanes(queue).lane_of(key, facts);
        let name = [&*queue.name, b"#", number.to_string().as_bytes()].concat();
        let named = catalog.queue_by_name(queue.tenant, &name);
        assert_eq!(named, all.get(usize::from(number)).copied());
        named.expect("it is there")
    }

    fn settings(exchange: &catalog::Exchange) -> Settings {
        Settings::of(exchange.kind, &exchange.arguments).expect("checked when it was declared")
    }

    /// Where a message goes from one exchange.
    fn naive_matches(
        catalog: &Catalog,
        exchange: &catalog::Exchange,
        key: &[u8],
        facts: &Facts<'_>,
    ) -> Vec<End> {
        if exchange.name.is_empty() {
            let queue = catalog.queue_by_name(exchange.tenant, key);
            return queue
                .map(|queue| End::Queue(queue.id))
                .into_iter()
                .collect();
        }
        let bindings = catalog.bindings_from(exchange.id);
        if let ExchangeKind::ConsistentHash | ExchangeKind::Random = exchange.kind {
            return naive_share(catalog, exchange, key, facts)
                .into_iter()
                .collect();
        }
        let matched = bindings.filter(|binding| match exchange.kind {
            ExchangeKind::Direct => *binding.key == *key,
            ExchangeKind::Fanout => true,
            ExchangeKind::Topic => naive_topic_match(&binding.key, key),
            ExchangeKind::Headers => headers::naive_match(&binding.arguments, facts.headers),
            ExchangeKind::Filter => naive_filter(&binding.arguments, facts),
            ExchangeKind::ConsistentHash | ExchangeKind::Random => false,
        });
        matched.map(|binding| binding.end).collect()
    }

    /// What the few filters that are drawn say.
    fn naive_filter(arguments: &[u8], facts: &Facts<'_>) -> bool {
        let headers = Table::parse(facts.headers).unwrap_or_default();
        let (a, b) = (headers.get(b"a"), headers.get(b"b"));
        match arguments {
            _ if arguments == FILTERS[0] => a.is_some_and(|a| a.as_integer() == Some(1)),
            _ if arguments == FILTERS[1] => a.is_none_or(|a| a == Value::Void),
            _ => b == Some(Value::Bool(true)) || facts.priority == 3,
        }
    }

    /// The one queue or exchange that takes a message of an exchange whose bindings have weights.
    fn naive_share(
        catalog: &Catalog,
        exchange: &catalog::Exchange,
        key: &[u8],
        facts: &Facts<'_>,
    ) -> Option<End> {
        let mut named: Vec<(End, u64, u64)> = Vec::new();
        for binding in catalog.bindings_from(exchange.id) {
            let weight = naive_weight_of(&binding.key).expect("checked when it was bound");
            match named.iter_mut().find(|(end, ..)| *end == binding.end) {
                Some((.., sum)) => *sum += weight,
                None => {
                    let seed = match catalog.target(binding.end)? {
                        Target::Queue(queue) => queue_seed(&queue.name),
                        Target::Exchange(exchange) => exchange_seed(&exchange.name),
                    };
                    named.push((binding.end, seed, weight));
                }
            }
        }
        match exchange.kind {
            ExchangeKind::Random => naive_by_lot(&named, facts.lot),
            _ => naive_by_hash(&named, settings(exchange).hash.hash(key, facts).0),
        }
    }

    #[test]
    fn the_router_says_what_the_catalog_says() {
        let (mut delivered, mut lanes) = (0, 0);
        for seed in 0..70 {
            let mut random = Random::new(seed);
            let mut catalog = Catalog::new(8);
            let mut placement: Vec<CoreId> = (0..8).map(|p| CoreId(p % 3)).collect();
            let mut router = Router::of(&catalog, &placement);
            let mut targets = Vec::new();
            for _ in 0..400 {
                if let Some(change) = random.plan(&catalog) {
                    let applied = apply(&mut catalog, &mut router, &change);
                    assert_eq!(applied, Ok(catalog.version()));
                    catalog.invariants();
                    let rebuilt = Router::of(&catalog, &placement);
                    assert_eq!(router.footprint(), rebuilt.footprint(), "seed {seed}");
                }
                if random.below(20) == 0 {
                    placement.rotate_left(1);
                    router.set_placement(&placement);
                }
                for _ in 0..12 {
                    let tenant = TenantId([1, 1, 2, 9][random.below(4)]);
                    let facts = Facts {
                        lot: random.below(1_000) as u64,
                        priority: random.below(5) as u8,
                        ..Facts::of_headers(random.of(&TABLES))
                    };
                    let address = (random.of(&EXCHANGES), random.of(&KEYS), &facts);
                    let expect = naive(&catalog, &placement, tenant, address);
                    let (exchange, key, facts) = address;
                    for _ in 0..2 {
                        let result = router.resolve(tenant, exchange, key, facts, &mut targets);
                        assert_eq!(result.map(|_| targets.clone()), expect, "seed {seed}");
                        delivered += targets.len();
                    }
                }
                let name = random.of(&QUEUES);
                let queue = catalog.queue_by_name(TenantId(1), name);
                let known = router.queue(TenantId(1), name);
                assert_eq!(known.map(|t| t.queue), queue.map(|queue| queue.id));
                lanes += queue.map_or(0, |queue| catalog.list_lanes(queue.id).count());
            }
        }
        assert!(delivered > 100_000, "{delivered}");
        assert!(lanes > 1_000, "{lanes}");
    }

    #[test]
    fn lists_go_on_where_they_stopped() {
        let mut random = Random::new(3);
        let mut catalog = Catalog::new(8);
        for _ in 0..300 {
            random.step(&mut catalog);
        }
        let tenant = TenantId(1);
        let whole: Vec<_> = catalog
            .list_bindings(tenant, None)
            .map(|listed| listed.cursor())
            .collect();
        assert_eq!(
            whole.len(),
            catalog
                .list_exchanges(tenant, None)
                .map(|exchange| catalog.bindings_from(exchange.id).count())
                .sum::<usize>()
        );
        for at in 0..whole.len() {
            let mut rest = catalog.list_bindings(tenant, Some(&whole[at]));
            let next = rest.next().map(|listed| listed.cursor());
            assert_eq!(next.as_ref(), whole.get(at + 1));
        }
        let names: Vec<_> = catalog.list_queues(tenant, None).map(|q| &q.name).collect();
        assert!(names.is_sorted());
        for at in 0..names.len() {
            let rest = catalog.list_queues(tenant, Some(names[at]));
            assert!(rest.map(|q| &q.name).eq(names[at + 1..].iter().copied()));
        }
        let exchanges = catalog.list_exchanges(tenant, Some(b"amq.topic"));
        assert!(exchanges.map(|x| &*x.name).is_sorted());
        assert!(catalog.list_tenants(None).count() >= 1);
        assert_eq!(catalog.list_exchanges(TenantId(99), None).count(), 0);
    }

    #[test]
    fn partitions_are_what_they_always_were() {
        let catalog = Catalog::new(64);
        let golden = ["orders", "payments", "q", "größe"]
            .map(|name| catalog.partition_by_name(b"default", name.as_bytes()).0);
        assert_eq!(golden, GOLDEN_PARTITIONS);
        let mut counts = [0_u32; 64];
        for number in 0..6_400 {
            let name = format!("queue-{number}");
            counts[catalog.partition_by_name(b"default", name.as_bytes()).0 as usize] += 1;
        }
        let (low, high) = (counts.iter().min(), counts.iter().max());
        assert!(low >= Some(&60) && high <= Some(&140), "{low:?} {high:?}");
    }

    /// On disk: never regenerated.
    const GOLDEN_PARTITIONS: [u16; 4] = [32, 51, 39, 48];
}
