//! Routing allocates nothing once it has seen its topology: counted by the allocator itself.
//! Does not know how an address is resolved.

#[path = "allocations/count.rs"]
mod allocations;

use ringpost_engine::control::catalog::{Catalog, Plan, Request, TENANT_DEFAULT};
use ringpost_engine::control::routing;
use ringpost_engine::data::route::{Facts, Router, Target};
use ringpost_wire::control::{
    BIND_TO_EXCHANGE, Bind, ExchangeDeclare, ExchangeKind, PARTITION_BY_NAME, QueueDeclare,
};
use ringpost_wire::ids::CoreId;

fn apply(catalog: &mut Catalog, router: &mut Router, request: &Request<'_>) {
    let Ok(Plan::Apply(change)) = catalog.plan(TENANT_DEFAULT, request) else {
        panic!("{request:?} changes something");
    };
    assert!(routing::apply(catalog, router, &change).is_ok());
}

fn shop() -> (Catalog, Router) {
    let mut catalog = Catalog::new(64);
    let placement: Vec<CoreId> = (0..64).map(|partition| CoreId(partition % 4)).collect();
    let mut router = Router::of(&catalog, &placement);
    let filtered =
        b"\x08x-filterS\0\0\0\x1ba = 1 AND body.b = 'two\x09\xc3\xa4'\x0dx-filter-bodyt\x01";
    for (name, kind) in [
        (&b"filter"[..], ExchangeKind::Filter),
        (b"hash", ExchangeKind::ConsistentHash),
        (b"random", ExchangeKind::Random),
        (b"chain", ExchangeKind::Fanout),
    ] {
        let declare = ExchangeDeclare {
            kind: kind as u8,
            durability: 1,
            flags: 0,
            reserved: 0,
            name,
            arguments: b"",
        };
        apply(
            &mut catalog,
            &mut router,
            &Request::ExchangeDeclare(declare),
        );
    }
    for target in [
        &b"amq.topic"[..],
        b"amq.headers",
        b"filter",
        b"hash",
        b"chain",
    ] {
        let bind = Bind {
            flags: BIND_TO_EXCHANGE,
            exchange: b"chain",
            target,
            key: b"",
            arguments: b"",
        };
        apply(&mut catalog, &mut router, &Request::Bind(bind));
    }
    for number in 0..600 {
        let name = format!("queue-{number}");
        let queue = QueueDeclare {
            messages_max: 0,
            bytes_max: 0,
            durability: 1,
            flags: 0,
            partition: PARTITION_BY_NAME,
            name: name.as_bytes(),
            arguments: b"",
        };
        apply(&mut catalog, &mut router, &Request::QueueDeclare(queue));
        let pattern = format!("order.{}.#", number % 300);
        let anywhere = format!("#.{}.*", number % 300);
        for (exchange, key, arguments) in [
            ("amq.direct", name.as_str(), &b""[..]),
            ("amq.fanout", "", b""),
            ("amq.topic", &pattern, b""),
            ("amq.topic", &anywhere, b""),
            ("amq.headers", "", b"\x01ab\x01\x01bS\0\0\0\x03two"),
            ("filter", "", filtered),
            ("hash", "3", b""),
            ("random", "3", b""),
        ] {
            let bind = Bind {
                flags: 0,
                exchange: exchange.as_bytes(),
                target: name.as_bytes(),
                key: key.as_bytes(),
                arguments,
            };
            apply(&mut catalog, &mut router, &Request::Bind(bind));
        }
    }
    (catalog, router)
}

/// Every exchange × `keys` addresses, each once; messages delivered.
fn publish_everywhere(router: &mut Router, keys: &[String], targets: &mut Vec<Target>) -> usize {
    let facts = Facts {
        payload: b"{\"c\": [1, \"\\u0020\"], \"b\": \"two\\t\\u00e4\"}",
        ..Facts::of_headers(b"\x01aI\0\0\0\x01\x01cV\x01bS\0\0\0\x03two")
    };
    let mut delivered = 0;
    for key in keys {
        for exchange in [
            &b""[..],
            b"amq.direct",
            b"amq.fanout",
            b"amq.topic",
            b"amq.headers",
            b"filter",
            b"hash",
            b"random",
            b"chain",
        ] {
            let done = router.resolve(TENANT_DEFAULT, exchange, key.as_bytes(), &facts, targets);
            assert!(done.is_ok());
            delivered += targets.len();
        }
    }
    delivered
}

#[test]
fn resolving_allocates_nothing() {
    let (_catalog, mut router) = shop();
    // More addresses than the memo holds, so that it evicts all the time.
    let keys: Vec<String> = (0..3_000)
        .map(|number| match number % 3 {
            0 => format!("queue-{}", number % 700),
            1 => format!("order.{}.paid", number % 310),
            _ => format!("a.b.c.{number}.e"),
        })
        .collect();
    // The caller's vector has to grow once, to the largest answer.
    let mut targets = Vec::with_capacity(4_000);
    let before = allocations::count();
    let delivered = publish_everywhere(&mut router, &keys, &mut targets);
    let again = publish_everywhere(&mut router, &keys, &mut targets);
    let allocations = allocations::count() - before;
    assert!(before > 0, "the counter counts");
    assert_eq!(allocations, 0, "not even the first time");
    assert_eq!(delivered, again);
    assert!(delivered > 3_000_000, "fan-out is part of it: {delivered}");
}

#[test]
fn unknown_addresses_allocate_nothing() {
    let (_catalog, mut router) = shop();
    let mut targets = Vec::new();
    let long = [b'k'; 255];
    let before = allocations::count();
    for _ in 0..10 {
        let bare = Facts::default();
        let none = router.resolve(TENANT_DEFAULT, b"none", &long, &bare, &mut targets);
        assert!(none.is_err());
        let unbound = router.resolve(TENANT_DEFAULT, b"amq.topic", &long, &bare, &mut targets);
        assert!(unbound.is_ok());
        let facts = Facts::of_headers(&long);
        let damaged = router.resolve(TENANT_DEFAULT, b"amq.headers", b"", &facts, &mut targets);
        assert!(damaged.is_ok());
        assert!(targets.is_empty());
    }
    assert_eq!(allocations::count() - before, 0);
}
