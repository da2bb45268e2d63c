//! Cases of the router: from an address to queues, with and without its memo.
//! Does not know messages.

use std::hint::black_box;

use ringpost_engine::control::catalog::{Catalog, Plan, Request, TENANT_DEFAULT};
use ringpost_engine::control::routing;
use ringpost_engine::data::route::{Facts, Router, Target};
use ringpost_wire::control::{Bind, PARTITION_BY_NAME, QueueDeclare};
use ringpost_wire::ids::CoreId;

use super::Case;

/// Addresses that come in turns; the memo holds them all.
const ADDRESSES: usize = 1_000;
/// Resolves of a round.
const RESOLVES: usize = 10_000;
const TOPIC_BINDINGS: usize = 10_000;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("route/default/one-key", || {
            Resolving::new(direct(""), 1, Memo::Used)
        }),
        Case::new("route/default/1000-keys", || {
            Resolving::new(direct(""), ADDRESSES, Memo::Used)
        }),
        Case::new("route/direct/1000-keys", || {
            Resolving::new(direct("amq.direct"), ADDRESSES, Memo::Used)
        }),
        Case::new("route/direct/no-memo", || {
            Resolving::new(direct("amq.direct"), ADDRESSES, Memo::Unused)
        }),
        Case::new("route/topic/1000-keys", || {
            Resolving::new(topic(), ADDRESSES, Memo::Used)
        }),
        Case::new("route/topic/no-memo", || {
            Resolving::new(topic(), ADDRESSES, Memo::Unused)
        }),
        Case::new("route/headers", || {
            Resolving::new(headers(), 100, Memo::Used)
        }),
    ]
}

#[derive(Clone, Copy)]
enum Memo {
    Used,
    Unused,
}

/// Exchange, routing key and headers.
type Address = (&'static str, String, Vec<u8>);

/// Everything that one case needs.
struct Resolving {
    router: Router,
    addresses: Vec<Address>,
    memo: Memo,
    targets: Vec<Target>,
}

impl Resolving {
    fn new((router, mut addresses): (Router, Vec<Address>), count: usize, memo: Memo) -> Self {
        addresses.truncate(count);
        // A fixed shuffle, so that neighbours in memory do not follow each other.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for at in (1..addresses.len()).rev() {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            addresses.swap(at, (state >> 33) as usize % (at + 1));
        }
        Self {
            router,
            addresses,
            memo,
            targets: Vec::with_capacity(64),
        }
    }
}

impl super::Work for Resolving {
    fn round(&mut self) -> u64 {
        for (exchange, key, headers) in self.addresses.iter().cycle().take(RESOLVES) {
            let (exchange, key) = (exchange.as_bytes(), key.as_bytes());
            let facts = Facts::of_headers(headers);
            let targets = &mut self.targets;
            let done = match self.memo {
                Memo::Used => self
                    .router
                    .resolve(TENANT_DEFAULT, exchange, key, &facts, targets)
                    .is_ok(),
                Memo::Unused => self
                    .router
                    .resolve_afresh(TENANT_DEFAULT, exchange, key, &facts, targets)
                    .is_ok(),
            };
            assert!(done && targets.len() == 1);
            black_box(&targets);
        }
        RESOLVES as u64
    }
}

struct Topology {
    catalog: Catalog,
    router: Router,
}

impl Topology {
    /// So many queues and their names.
    fn new(queues: usize) -> (Self, Vec<String>) {
        let catalog = Catalog::new(64);
        let placement: Vec<CoreId> = (0..64).map(|partition| CoreId(partition % 4)).collect();
        let router = Router::of(&catalog, &placement);
        let mut topology = Self { catalog, router };
        let names: Vec<String> = (0..queues)
            .map(|number| format!("queue-{number}"))
            .collect();
        for name in &names {
            topology.apply(&Request::QueueDeclare(QueueDeclare {
                messages_max: 0,
                bytes_max: 0,
                durability: 1,
                flags: 0,
                partition: PARTITION_BY_NAME,
                name: name.as_bytes(),
                arguments: b"",
            }));
        }
        (topology, names)
    }

    fn apply(&mut self, request: &Request<'_>) {
        let Ok(Plan::Apply(change)) = self.catalog.plan(TENANT_DEFAULT, request) else {
            panic!("{request:?} changes something");
        };
        let applied = routing::apply(&mut self.catalog, &mut self.router, &change);
        assert!(applied.is_ok());
    }

    fn bind(&mut self, exchange: &str, queue: &str, key: &str, arguments: &[u8]) {
        self.apply(&Request::Bind(Bind {
            flags: 0,
            exchange: exchange.as_bytes(),
            target: queue.as_bytes(),
            key: key.as_bytes(),
            arguments,
        }));
    }
}

/// Queues by their names, and by bindings that say the same.
fn direct(exchange: &'static str) -> (Router, Vec<Address>) {
    let (mut topology, names) = Topology::new(ADDRESSES);
    for name in &names {
        topology.bind("amq.direct", name, name, b"");
    }
    let addresses = names.into_iter().map(|name| (exchange, name, Vec::new()));
    let addresses = addresses.collect();
    (topology.router, addresses)
}

fn topic() -> (Router, Vec<Address>) {
    let (mut topology, names) = Topology::new(ADDRESSES);
    for number in 0..TOPIC_BINDINGS {
        let pattern = match number % 4 {
            0 => format!("order.{number}.*"),
            1 => format!("order.*.{number}"),
            2 => format!("#.{number}.paid"),
            _ => format!("order.{number}.#"),
        };
        topology.bind("amq.topic", &names[number % names.len()], &pattern, b"");
    }
    let to = |number| {
        (
            "amq.topic",
            format!("order.{}.paid", number * 4),
            Vec::new(),
        )
    };
    (topology.router, (0..ADDRESSES).map(to).collect())
}

fn headers() -> (Router, Vec<Address>) {
    let table = |size: i32| {
        let mut table = b"\x04sizeI".to_vec();
        table.extend_from_slice(&size.to_be_bytes());
        table.extend_from_slice(b"\x06colourS\0\0\0\x03red");
        table
    };
    let (mut topology, names) = Topology::new(100);
    for (number, name) in names.iter().enumerate() {
        topology.bind("amq.headers", name, "", &table(number as i32));
    }
    let to = |number| ("amq.headers", String::new(), table(number));
    (topology.router, (0..100).map(to).collect())
}
