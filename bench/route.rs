//! Nanoseconds per resolve of the router, path by path.
//! Does not know what a message costs besides.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Instant;

use ringpost_engine::control::catalog::{Catalog, Plan, Request, TENANT_DEFAULT};
use ringpost_engine::control::routing;
use ringpost_engine::data::route::{Facts, Router, Target};
use ringpost_wire::control::{
    Bind, ExchangeDeclare, ExchangeKind, PARTITION_BY_NAME, QueueDeclare,
};
use ringpost_wire::ids::CoreId;

/// Measurements of each path; the least and the middle one are printed.
const ROUNDS: usize = 9;

fn main() {
    println!(
        "{:<52} {:>9} {:>9}",
        "path, ns per resolve", "least", "median"
    );
    direct();
    for bindings in [10_000, 100_000] {
        topic(bindings);
    }
    unmatched();
    headers();
    filters();
    shares();
    topology();
}

struct Broker {
    catalog: Catalog,
    router: Router,
}

impl Broker {
    fn new() -> Self {
        let catalog = Catalog::new(64);
        let placement: Vec<CoreId> = (0..64).map(|partition| CoreId(partition % 4)).collect();
        let router = Router::of(&catalog, &placement);
        Self { catalog, router }
    }

    fn apply(&mut self, request: &Request<'_>) {
        let Ok(Plan::Apply(change)) = self.catalog.plan(TENANT_DEFAULT, request) else {
            panic!("{request:?} changes something");
        };
        let applied = routing::apply(&mut self.catalog, &mut self.router, &change);
        assert!(applied.is_ok());
    }

    fn queue(&mut self, name: &str) {
        self.apply(&Request::QueueDeclare(QueueDeclare {
            messages_max: 0,
            bytes_max: 0,
            durability: 1,
            flags: 0,
            partition: PARTITION_BY_NAME,
            name: name.as_bytes(),
            arguments: b"",
        }));
    }

    fn exchange(&mut self, name: &str, kind: ExchangeKind) {
        self.apply(&Request::ExchangeDeclare(ExchangeDeclare {
            kind: kind as u8,
            durability: 1,
            flags: 0,
            reserved: 0,
            name: name.as_bytes(),
            arguments: b"",
        }));
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

/// Address and headers of one message.
type Message = (&'static str, String, Vec<u8>);

fn measure(label: &str, router: &mut Router, messages: &[Message], memo: bool, expect: usize) {
    let mut targets: Vec<Target> = Vec::with_capacity(4_096);
    let turns = (400_000 / messages.len()).max(1);
    let mut nanoseconds = Vec::new();
    for _ in 0..=ROUNDS {
        let start = Instant::now();
        for _ in 0..turns {
            for (exchange, key, headers) in messages {
                let address = (exchange.as_bytes(), key.as_bytes());
                let facts = Facts::of_headers(headers);
                let done = if memo {
                    router
                        .resolve(TENANT_DEFAULT, address.0, address.1, &facts, &mut targets)
                        .is_ok()
                } else {
                    router
                        .resolve_afresh(TENANT_DEFAULT, address.0, address.1, &facts, &mut targets)
                        .is_ok()
                };
                assert!(done && targets.len() == expect, "{key}");
                black_box(&targets);
            }
        }
        let total = start.elapsed().as_nanos() as f64;
        nanoseconds.push(total / (turns * messages.len()) as f64);
    }
    // The first round warms up.
    nanoseconds.remove(0);
    nanoseconds.sort_by(f64::total_cmp);
    println!(
        "{label:<52} {:>9.1} {:>9.1}",
        nanoseconds[0],
        nanoseconds[ROUNDS / 2]
    );
}

/// A fixed shuffle, so that neighbours in memory are not visited in order.
fn shuffled(mut messages: Vec<Message>) -> Vec<Message> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for at in (1..messages.len()).rev() {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        messages.swap(at, (state >> 33) as usize % (at + 1));
    }
    messages
}

fn direct() {
    let mut broker = Broker::new();
    for number in 0..10_000 {
        let name = format!("queue-{number}");
        broker.queue(&name);
        broker.bind("amq.direct", &name, &name, b"");
        if number < 100 {
            broker.bind("amq.fanout", &name, "", b"");
        }
    }
    let router = &mut broker.router;
    let to = |exchange, count: usize| -> Vec<Message> {
        shuffled(
            (0..count)
                .map(|number| (exchange, format!("queue-{number}"), Vec::new()))
                .collect(),
        )
    };
    measure("default exchange, one queue", router, &to("", 1), true, 1);
    measure("direct, one queue", router, &to("amq.direct", 1), true, 1);
    measure(
        "default exchange, 1,000 alternating",
        router,
        &to("", 1_000),
        true,
        1,
    );
    measure(
        "direct, 1,000 alternating",
        router,
        &to("amq.direct", 1_000),
        true,
        1,
    );
    measure(
        "direct, 1,000 alternating, no memo",
        router,
        &to("amq.direct", 1_000),
        false,
        1,
    );
    measure(
        "direct, 10,000 alternating (beyond the memo)",
        router,
        &to("amq.direct", 10_000),
        true,
        1,
    );
    measure(
        "direct, 10,000 alternating, no memo",
        router,
        &to("amq.direct", 10_000),
        false,
        1,
    );
    measure(
        "fanout to 100 queues",
        router,
        &to("amq.fanout", 1),
        true,
        100,
    );
    measure(
        "fanout to 100 queues, no memo",
        router,
        &to("amq.fanout", 1),
        false,
        100,
    );
}

fn topic(bindings: usize) {
    let mut broker = Broker::new();
    for number in 0..1_000 {
        broker.queue(&format!("queue-{number}"));
    }
    for number in 0..bindings {
        let queue = format!("queue-{}", number % 1_000);
        let pattern = match number % 4 {
            0 => format!("order.{number}.*"),
            1 => format!("order.*.{number}"),
            2 => format!("#.{number}.paid"),
            _ => format!("order.{number}.#"),
        };
        broker.bind("amq.topic", &queue, &pattern, b"");
    }
    let to = |count: usize| -> Vec<Message> {
        shuffled(
            (0..count)
                .map(|number| {
                    (
                        "amq.topic",
                        format!("order.{}.paid", number * 4),
                        Vec::new(),
                    )
                })
                .collect(),
        )
    };
    let router = &mut broker.router;
    let label = |rest: &str| {
        let mut label = String::new();
        write!(label, "topic, {bindings} bindings, {rest}").expect("a string takes all");
        label
    };
    measure(&label("one key"), router, &to(1), true, 1);
    measure(&label("1,000 keys"), router, &to(1_000), true, 1);
    measure(&label("one key, no memo"), router, &to(1), false, 1);
    measure(&label("1,000 keys, no memo"), router, &to(1_000), false, 1);
    let misses: Vec<Message> = (0..1_000)
        .map(|number| ("amq.topic", format!("stock.{number}.sold.out"), Vec::new()))
        .collect();
    measure(&label("no match, no memo"), router, &misses, false, 0);
}

/// What bindings cost that cannot match: the same 100 patterns match, beside more and more others.
fn unmatched() {
    let mut broker = Broker::new();
    for number in 0..1_000 {
        broker.queue(&format!("queue-{number}"));
    }
    for number in 0..100 {
        let queue = format!("queue-{number}");
        broker.bind("amq.topic", &queue, &format!("order.{number}.*"), b"");
        broker.bind("amq.topic", &queue, &format!("#.{number}.paid"), b"");
    }
    let messages: Vec<Message> = (0..100)
        .map(|number| ("amq.topic", format!("order.{number}.paid"), Vec::new()))
        .collect();
    let mut others = 0;
    for count in [0, 1_000, 10_000, 100_000] {
        while others < count {
            let queue = format!("queue-{}", others % 1_000);
            // They begin like what matches, and part from it at the second or third word.
            let pattern = match others % 3 {
                0 => format!("order.other-{others}.*"),
                1 => format!("order.{}.other-{others}", others % 100),
                _ => format!("stock.*.other-{others}"),
            };
            broker.bind("amq.topic", &queue, &pattern, b"");
            others += 1;
        }
        let label = format!("topic, 200 that match, {count} that cannot");
        measure(&label, &mut broker.router, &messages, false, 1);
    }
}

/// A message with three headers, and a filter on all of them for each queue.
fn filters() {
    let table = |region: &str, size: i32| {
        let mut table = b"\x04sizeI".to_vec();
        table.extend_from_slice(&size.to_be_bytes());
        table.extend_from_slice(b"\x06colourS\0\0\0\x03red\x06regionS");
        table.extend_from_slice(&(region.len() as u32).to_be_bytes());
        table.extend_from_slice(region.as_bytes());
        table
    };
    for count in [1, 10, 100] {
        let mut broker = Broker::new();
        broker.exchange("filtered", ExchangeKind::Filter);
        for number in 0..count {
            let name = format!("queue-{number}");
            broker.queue(&name);
            let text = format!("colour = 'red' AND size >= 10 AND region = 'r{number}'");
            let mut arguments = b"\x08x-filterS".to_vec();
            arguments.extend_from_slice(&(text.len() as u32).to_be_bytes());
            arguments.extend_from_slice(text.as_bytes());
            broker.bind("filtered", &name, "", &arguments);
        }
        let messages: Vec<Message> = (0..count)
            .map(|number| ("filtered", "k".to_owned(), table(&format!("r{number}"), 20)))
            .collect();
        let label = format!("filter on three headers, {count} bindings");
        measure(&label, &mut broker.router, &messages, true, 1);
    }
}

/// One of many, by key and by lot.
fn shares() {
    for count in [10, 100, 1_000] {
        let mut broker = Broker::new();
        broker.exchange("hashed", ExchangeKind::ConsistentHash);
        broker.exchange("drawn", ExchangeKind::Random);
        for number in 0..count {
            let name = format!("queue-{number}");
            broker.queue(&name);
            broker.bind("hashed", &name, "10", b"");
            broker.bind("drawn", &name, "10", b"");
        }
        for (exchange, word) in [("hashed", "consistent-hash"), ("drawn", "random")] {
            let messages: Vec<Message> = (0..100)
                .map(|number| (exchange, format!("customer.{number}"), Vec::new()))
                .collect();
            let label = format!("{word}, {count} bindings, no memo");
            measure(&label, &mut broker.router, &messages, false, 1);
        }
    }
}

fn headers() {
    let mut broker = Broker::new();
    let table = |size: i32, colour: &str| {
        let mut table = b"\x04sizeI".to_vec();
        table.extend_from_slice(&size.to_be_bytes());
        table.extend_from_slice(b"\x06colourS");
        table.extend_from_slice(&(colour.len() as u32).to_be_bytes());
        table.extend_from_slice(colour.as_bytes());
        table
    };
    for number in 0..100 {
        let name = format!("queue-{number}");
        broker.queue(&name);
        broker.bind("amq.headers", &name, "", &table(number, "red"));
        if [1, 10, 100].contains(&(number + 1)) {
            let messages: Vec<Message> = (0..=number)
                .map(|number| ("amq.headers", String::new(), table(number, "red")))
                .collect();
            let label = format!("headers, {} bindings of 2 arguments", number + 1);
            measure(&label, &mut broker.router, &messages, true, 1);
        }
    }
}

/// What a change costs, once per operation.
fn topology() {
    let mut broker = Broker::new();
    let start = Instant::now();
    for number in 0..100_000 {
        broker.queue(&format!("queue-{number}"));
    }
    let declared = start.elapsed();
    for number in 0..100_000 {
        let key = format!("order.{number}.#");
        broker.bind("amq.topic", &format!("queue-{number}"), &key, b"");
    }
    let bound = start.elapsed() - declared;
    let encoded = Instant::now();
    let bytes = broker.catalog.encode();
    let encoded = encoded.elapsed();
    let decoded = Instant::now();
    let catalog = Catalog::decode(&bytes).expect("just encoded");
    let decoded = decoded.elapsed();
    assert_eq!(catalog, broker.catalog);
    println!("declare a queue {:>8.2} µs", declared.as_secs_f64() * 10.0);
    println!("bind a topic    {:>8.2} µs", bound.as_secs_f64() * 10.0);
    println!(
        "snapshot of both: {} bytes, encode {:.0} ms, decode {:.0} ms",
        bytes.len(),
        encoded.as_secs_f64() * 1e3,
        decoded.as_secs_f64() * 1e3
    );
}
