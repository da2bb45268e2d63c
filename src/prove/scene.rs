//! The queues, exchanges and bindings of a run, and where a publish must go. Does not publish.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use ringpost_check::{Durability, Event, QueueNo, Target};
use ringpost_wire::control;
use ringpost_wire::control::ExchangeKind;

use crate::Outcome;
use crate::link::Link;
use crate::random::Random;

/// Queues: name and durability. The place in this table is the number in the history, of all but the
/// volatile one, which is the last and has a new number after each start.
const QUEUES: &[(&str, Durability)] = &[
    ("paid", Durability::Durable),
    ("orders", Durability::Durable),
    ("errors", Durability::Durable),
    ("everything", Durability::Durable),
    ("audit", Durability::Durable),
    ("work", Durability::Durable),
    ("screen", Durability::Volatile),
];
/// Exchanges: name and kind.
const EXCHANGES: &[(&str, ExchangeKind)] = &[
    ("events", ExchangeKind::Topic),
    ("copies", ExchangeKind::Fanout),
    ("jobs", ExchangeKind::Direct),
];
/// Bindings: exchange, queue, key.
const BINDINGS: &[(&str, &str, &str)] = &[
    ("events", "paid", "order.*.paid"),
    ("events", "orders", "order.#"),
    ("events", "errors", "#.error"),
    ("events", "everything", "#"),
    ("events", "screen", "screen.#"),
    ("copies", "audit", ""),
    ("copies", "work", ""),
    ("jobs", "work", "job"),
];
/// What producers publish to: exchange and key. Those that reach a volatile queue come last.
const ADDRESSES: &[(&str, &str)] = &[
    ("events", "order.7.paid"),
    ("events", "order.8.sent"),
    ("events", "order.error"),
    ("events", "stock.error"),
    ("events", "stock.low.north"),
    ("copies", "any"),
    ("jobs", "job"),
    ("", "work"),
    ("", "paid"),
    ("jobs", "nobody takes this"),
    ("events", "screen.3"),
    ("", "screen"),
];
/// Addresses from here on reach a volatile queue.
const ADDRESSES_VOLATILE: usize = 10;

/// Where a publish goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Address {
    /// Exchange, empty for the default one.
    pub exchange: &'static str,
    /// Routing key.
    pub key: &'static str,
}

/// The topology of a run.
#[derive(Debug)]
pub struct Scene {
    /// Queues that are there: all, or all but the volatile one, which is the last.
    queue_count: usize,
    /// Number of the volatile queue, which is another queue after each start. Shared by all clients.
    volatile: AtomicU32,
    /// Targets of an address once they were asked for: there are few, so that events can hold them
    /// for ever. Shared by all producers.
    targets: Mutex<HashMap<(Address, u32), &'static [Target]>>,
}

impl Scene {
    /// A scene of durable queues, and with `Volatile::Allow` a volatile one.
    #[must_use]
    pub fn new(volatile: Volatile) -> Self {
        let queue_count = match volatile {
            Volatile::Allow => QUEUES.len(),
            Volatile::Avoid => QUEUES.len() - 1,
        };
        Self {
            queue_count,
            volatile: AtomicU32::new(QUEUES.len() as u32 - 1),
            targets: Mutex::default(),
        }
    }

    /// The same scene, for another history.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self {
            queue_count: self.queue_count,
            volatile: AtomicU32::new(self.volatile.load(Ordering::Relaxed)),
            targets: Mutex::default(),
        }
    }

    /// The broker was started again: a volatile queue that is declared now is another one. What a
    /// history must say of that.
    pub fn restarted(&self) -> Vec<Event<'static>> {
        if self.queue_count < QUEUES.len() {
            return Vec::new();
        }
        let queue = QueueNo(self.volatile.fetch_add(1, Ordering::Relaxed) + 1);
        let durability = Durability::Volatile;
        vec![Event::Queue { queue, durability }]
    }

    /// The numbers of all queues that are there.
    #[must_use]
    pub fn queue_numbers(&self) -> Vec<QueueNo> {
        (0..self.queue_count)
            .map(|place| self.number(place))
            .collect()
    }

    /// The number of the queue at a place of the table.
    fn number(&self, place: usize) -> QueueNo {
        match QUEUES[place].1 {
            Durability::Durable => QueueNo(place as u32),
            Durability::Volatile => QueueNo(self.volatile.load(Ordering::Relaxed)),
        }
    }

    fn queues(&self) -> &'static [(&'static str, Durability)] {
        &QUEUES[..self.queue_count]
    }

    /// The name of a queue.
    #[must_use]
    pub fn queue_name(&self, queue: QueueNo) -> &'static str {
        QUEUES[(queue.0 as usize).min(QUEUES.len() - 1)].0
    }

    /// The queue of a name.
    #[must_use]
    pub fn queue_named(&self, name: &str) -> Option<QueueNo> {
        let place = self.queues().iter().position(|(known, _)| *known == name)?;
        Some(self.number(place))
    }

    /// What a history starts with.
    #[must_use]
    pub fn stated(&self) -> Vec<Event<'static>> {
        let state = |(number, (_, durability)): (usize, &(&str, Durability))| Event::Queue {
            queue: QueueNo(number as u32),
            durability: *durability,
        };
        self.queues().iter().enumerate().map(state).collect()
    }

    /// Declares everything that is not there: all at first, and after a restart what is volatile.
    ///
    /// # Errors
    /// The broker refuses, or is gone.
    pub fn declare(&self, link: &mut Link) -> Outcome<()> {
        for (name, durability) in self.queues() {
            link.declare_queue(name, durability_on_wire(*durability))?;
        }
        for (name, kind) in EXCHANGES {
            link.declare_exchange(name, *kind)?;
        }
        for (exchange, queue, key) in BINDINGS {
            if !self.queues().iter().any(|(name, _)| name == queue) {
                continue;
            }
            link.bind(exchange, queue, key)?;
        }
        Ok(())
    }

    /// An address to publish to.
    pub fn address(&self, random: &mut Random, volatile: Volatile) -> Address {
        let count = match volatile {
            Volatile::Allow if self.queue_count == QUEUES.len() => ADDRESSES.len(),
            Volatile::Allow | Volatile::Avoid => ADDRESSES_VOLATILE,
        };
        let (exchange, key) = ADDRESSES[random.below(count as u64) as usize];
        Address { exchange, key }
    }

    /// The queues that a publish must reach.
    ///
    /// # Panics
    /// If another thread panicked in here.
    #[must_use]
    pub fn targets(&self, address: Address) -> &'static [Target] {
        let mut known = self.targets.lock().expect("nobody panics in here");
        let volatile = self.volatile.load(Ordering::Relaxed);
        known.entry((address, volatile)).or_insert_with(|| {
            let reached = (0..self.queue_count)
                .filter(|place| reaches(address, QUEUES[*place].0))
                .map(|place| Target::Must(self.number(place)));
            Box::leak(reached.collect())
        })
    }
}

/// Whether a producer may reach volatile queues.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Volatile {
    /// It may.
    Allow,
    /// It may not: it wants durable confirms.
    Avoid,
}

fn durability_on_wire(durability: Durability) -> control::Durability {
    match durability {
        Durability::Volatile => control::Durability::Volatile,
        Durability::Durable => control::Durability::Durable,
    }
}

fn reaches(address: Address, queue: &str) -> bool {
    if address.exchange.is_empty() {
        return address.key == queue;
    }
    let kind = EXCHANGES
        .iter()
        .find(|(name, _)| *name == address.exchange)
        .map(|(_, kind)| *kind);
    BINDINGS
        .iter()
        .filter(|(exchange, bound, _)| *exchange == address.exchange && *bound == queue)
        .any(|(_, _, key)| match kind {
            Some(ExchangeKind::Topic) => topic_matches(key, address.key),
            Some(ExchangeKind::Fanout) => true,
            Some(ExchangeKind::Direct) => *key == address.key,
            Some(
                ExchangeKind::Headers
                | ExchangeKind::ConsistentHash
                | ExchangeKind::Random
                | ExchangeKind::Filter,
            )
            | None => false,
        })
}

/// The plainest matcher that can be right: all ways to split, word by word.
fn topic_matches(pattern: &str, key: &str) -> bool {
    fn words(text: &str) -> Vec<&str> {
        text.split('.').collect()
    }
    fn matches(pattern: &[&str], key: &[&str]) -> bool {
        match pattern.split_first() {
            None => key.is_empty(),
            Some((&"#", rest)) => (0..=key.len()).any(|taken| matches(rest, &key[taken..])),
            Some((&word, rest)) => key
                .split_first()
                .is_some_and(|(first, key)| (word == "*" || word == *first) && matches(rest, key)),
        }
    }
    matches(&words(pattern), &words(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(exchange: &'static str, key: &'static str, expect: &[&str]) {
        let scene = Scene::new(Volatile::Allow);
        let reached: Vec<_> = scene
            .targets(Address { exchange, key })
            .iter()
            .map(|target| scene.queue_name(target.queue()))
            .collect();
        assert_eq!(reached, expect, "{exchange} {key}");
    }

    #[test]
    fn targets_follow_the_bindings() {
        check("events", "order.7.paid", &["paid", "orders", "everything"]);
        check("events", "order.error", &["orders", "errors", "everything"]);
        check("events", "screen.3", &["everything", "screen"]);
        check("copies", "any", &["audit", "work"]);
        check("jobs", "job", &["work"]);
        check("jobs", "nobody takes this", &[]);
        check("", "paid", &["paid"]);
    }

    #[test]
    fn only_the_last_addresses_reach_volatile_queues() {
        let scene = Scene::new(Volatile::Allow);
        for (number, (exchange, key)) in ADDRESSES.iter().enumerate() {
            let address = Address { exchange, key };
            let reaches_volatile = scene
                .targets(address)
                .iter()
                .any(|target| QUEUES[target.queue().0 as usize].1 == Durability::Volatile);
            assert_eq!(reaches_volatile, number >= ADDRESSES_VOLATILE, "{key}");
        }
    }
}
