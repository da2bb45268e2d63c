//! What the broker should believe: which queues, exchanges and bindings exist, and where a message
//! therefore goes. To be read in ten minutes. Knows no frames, no messages, no time.
//!
//! A change of topology is asked for and answered later, so everything has a *standing*: `Sure`
//! while no change of it is out, `Unsure` from the asking to the answer, and for ever after an
//! answer that never came, until another one tells. A publish must reach what is sure and may reach
//! what is not. Two changes of one thing are never out at once: the clients of the simulator ask
//! the model before they ask the broker.

use std::collections::BTreeMap;

use ringpost_check::{QueueNo, Target};
use ringpost_wire::Code;
use ringpost_wire::control::{Durability, ExchangeKind};

use crate::times::Timing;

/// Whether something is known to exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It exists.
    Sure,
    /// It may exist.
    Unsure,
}

/// A header of a message, or an argument of a binding: the model needs only these types.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Header {
    /// An integer, of whatever width it travels.
    Number(i64),
    /// A text.
    Text(String),
    /// There, without a value.
    Void,
}

/// Headers or arguments, in order; the first of two with one key counts.
pub type Headers = Vec<(String, Header)>;

/// What was declared of a queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueueSettings {
    /// Whether it survives a crash.
    pub durability: Durability,
    /// Most messages, 0 = no limit.
    pub messages_max: u64,
    /// Most bytes, 0 = no limit.
    pub bytes_max: u64,
    /// Partition, or the one by name.
    pub partition: u16,
    /// How its messages die, if they do; the dead go to the queue [`GRAVES`].
    pub deaths: Option<Deaths>,
    /// Ranks and waits, if it has any.
    pub times: Option<Timing>,
}

/// The queue for the dead of a tenant: it is never deleted or purged, and has no limit.
pub const GRAVES: &str = "graves";

/// How messages of a queue die, apart from being rejected.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Deaths {
    /// How long they may wait, in ms; 0 = any time.
    pub ttl_ms: u32,
    /// How often they may come back.
    pub returns_max: Option<u32>,
    /// The oldest make room.
    pub drops_head: bool,
}

/// A queue.
#[derive(Clone, Debug)]
pub struct Queue {
    /// What it was declared with.
    pub settings: QueueSettings,
    /// Its number in the history.
    pub number: QueueNo,
    /// The number it has if the declare that is out creates it anew.
    pub next: Option<QueueNo>,
    /// Whether it is known to exist.
    pub standing: Standing,
    /// Whether a change of it, or of a binding to it, is out.
    pub is_changing: bool,
    /// Consumers being opened: it must not be deleted under them.
    pub openings: u32,
    /// A declare of what may be gone was lost: it is one of two queues, and nobody knows which.
    /// Only a delete helps.
    pub is_tangled: bool,
}

impl QueueSettings {
    /// Whether any argument is named: then all others have their defaults.
    const fn names_any(&self) -> bool {
        self.deaths.is_some() || self.times.is_some()
    }

    /// Whether declaring `asked` over these settings differs in nothing, as far as can be said:
    /// a partition that goes by the name may be any.
    fn compare(&self, asked: &QueueSettings) -> Comparison {
        let by_name = ringpost_wire::control::PARTITION_BY_NAME;
        if self.durability != asked.durability
            || self.messages_max != asked.messages_max
            || self.bytes_max != asked.bytes_max
            || (asked.names_any() && (self.deaths, self.times) != (asked.deaths, asked.times))
        {
            Comparison::Differs
        } else if asked.partition == by_name || asked.partition == self.partition {
            Comparison::Same
        } else if self.partition == by_name {
            Comparison::Unknown
        } else {
            Comparison::Differs
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Comparison {
    Same,
    Differs,
    Unknown,
}

impl Queue {
    /// Whether a consumer may be opened on it: it is there and stays.
    #[must_use]
    pub fn is_steady(&self) -> bool {
        self.standing == Standing::Sure && !self.is_changing
    }
}

/// An exchange.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// How it routes.
    pub kind: ExchangeKind,
    /// Whether it survives a crash.
    pub durability: Durability,
    /// Whether it is known to exist.
    pub standing: Standing,
    /// Changes of it or of its bindings that are out.
    pub changes: u32,
}

/// A binding's identity.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Edge {
    /// The exchange.
    pub exchange: String,
    /// The queue, or the exchange: those are told apart by their names.
    pub queue: String,
    /// The binding key.
    pub key: String,
    /// Arguments of a binding to a headers exchange.
    pub arguments: Headers,
}

impl Edge {
    /// Whether it leads to an exchange.
    #[must_use]
    pub fn is_to_exchange(&self) -> bool {
        self.queue.starts_with('x')
    }

    /// Whether it begins or ends at this exchange.
    fn touches(&self, exchange: &str) -> bool {
        self.exchange == exchange || self.queue == exchange
    }
}

/// A binding.
#[derive(Clone, Debug)]
pub struct Binding {
    /// Its identity.
    pub edge: Edge,
    /// Whether it is known to exist.
    pub standing: Standing,
}

/// A change of topology.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Declare a queue.
    DeclareQueue(String, QueueSettings),
    /// Ask whether a queue exists.
    FindQueue(String),
    /// Delete a queue; with a condition it may be refused as in use.
    DeleteQueue(String, Condition),
    /// Drop the ready messages of a queue.
    PurgeQueue(String),
    /// Declare an exchange.
    DeclareExchange(String, ExchangeKind, Durability),
    /// Delete an exchange.
    DeleteExchange(String, Condition),
    /// Bind a queue to an exchange.
    Bind(Edge),
    /// Remove a binding.
    Unbind(Edge),
}

/// When something is deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// Always.
    Always,
    /// Only if nothing uses it.
    IfUnused,
    /// Only if it holds no message.
    IfEmpty,
}

/// How a change ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// `Done`.
    Done {
        /// Its flag.
        changed: bool,
    },
    /// `Failed`.
    Failed(Code),
    /// There will be no answer.
    Lost,
}

/// What a change did to the history's queues.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Consequence {
    /// Messages of this queue may be gone.
    pub dropped: Option<QueueNo>,
}

/// The topology of one tenant.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Queues by name.
    pub queues: BTreeMap<String, Queue>,
    /// Exchanges by name; the default exchange is not among them.
    pub exchanges: BTreeMap<String, Exchange>,
    /// Bindings.
    pub bindings: Vec<Binding>,
}

impl Model {
    /// Where a message goes: every queue at most once, certain if one way to it is.
    #[must_use]
    pub fn route(&self, exchange: &str, key: &str, headers: &Headers) -> Vec<Target> {
        let mut ways: BTreeMap<&str, Standing> = BTreeMap::new();
        if exchange.is_empty() {
            ways.insert(key, Standing::Sure);
        }
        // Exchanges that the message comes to, again when one is found to be certain.
        let mut walk = vec![(exchange, Standing::Sure)];
        while let Some((exchange, way)) = walk.pop() {
            let Some(from) = self.exchanges.get(exchange) else {
                continue;
            };
            let here = weaker(way, from.standing);
            for (binding, way) in self.matching(exchange, from, key, headers) {
                let way = weaker(here, weaker(binding.standing, way));
                let target = binding.edge.queue.as_str();
                let is_better = match ways.get(target) {
                    None => true,
                    Some(known) => *known == Standing::Unsure && way == Standing::Sure,
                };
                if is_better {
                    ways.insert(target, way);
                    walk.push((target, way));
                }
            }
        }
        let mut targets = Vec::new();
        for (name, way) in ways {
            if let Some(queue) = self.queues.get(name) {
                targets.push(match weaker(way, queue.standing) {
                    Standing::Sure => Target::Must(queue.number),
                    Standing::Unsure => Target::May(queue.number),
                });
                targets.extend(queue.next.map(Target::May));
            }
        }
        targets
    }

    /// The bindings of one exchange that a message goes by, and whether that is certain.
    fn matching(
        &self,
        exchange: &str,
        from: &Exchange,
        key: &str,
        headers: &Headers,
    ) -> Vec<(&Binding, Standing)> {
        // An end that may be gone has taken its binding with it, and another is chosen.
        let is_sure = |binding: &Binding| {
            let name = &binding.edge.queue;
            let standing = match binding.edge.is_to_exchange() {
                true => self.exchanges.get(name).map(|exchange| exchange.standing),
                false => self.queues.get(name).map(|queue| queue.standing),
            };
            standing == Some(Standing::Sure)
        };
        let chosen = match self.bindings_of(exchange).all(is_sure) {
            true => chosen(from, self.bindings_of(exchange), key),
            false => None,
        };
        let sure = |is_match: bool| is_match.then_some(Standing::Sure);
        let matches = self.bindings_of(exchange).filter_map(|binding| {
            let edge = &binding.edge;
            let way = match from.kind {
                ExchangeKind::Direct => sure(edge.key == key),
                ExchangeKind::Fanout => sure(true),
                ExchangeKind::Topic => sure(topic_matches(&edge.key, key)),
                ExchangeKind::Headers => sure(headers_match(&edge.arguments, headers)),
                ExchangeKind::Filter => sure(filter_matches(&edge.arguments, headers)),
                ExchangeKind::ConsistentHash | ExchangeKind::Random => match &chosen {
                    Some(one) => sure(*one == edge.queue),
                    None => Some(Standing::Unsure),
                },
            };
            way.map(|way| (binding, way))
        });
        matches.collect()
    }

    fn bindings_of(&self, exchange: &str) -> impl Iterator<Item = &Binding> + Clone {
        let exchange = exchange.to_string();
        self.bindings
            .iter()
            .filter(move |binding| binding.edge.exchange == exchange)
    }

    /// Whether a publish to this exchange can be refused because it is not there.
    #[must_use]
    pub fn may_lack(&self, exchange: &str) -> bool {
        !exchange.is_empty()
            && self
                .exchanges
                .get(exchange)
                .is_none_or(|found| found.standing == Standing::Unsure)
    }

    /// The change is about to be asked for; false if it must not be, because another is out.
    /// `fresh` is the number of a queue that it creates.
    pub fn begin(&mut self, change: &Change, fresh: QueueNo) -> bool {
        match change {
            Change::DeclareQueue(name, settings) => match self.queues.get_mut(name) {
                Some(queue) if queue.is_changing || queue.openings > 0 || queue.is_tangled => {
                    return false;
                }
                // What may be there stays what it may be: two unanswered declares of different
                // settings would leave a name with two possible queues.
                Some(queue)
                    if queue.standing == Standing::Unsure
                        && queue.settings.compare(settings) != Comparison::Same =>
                {
                    return false;
                }
                Some(queue) => {
                    queue.is_changing = true;
                    // If it is gone it comes back as another one.
                    queue.next = (queue.standing == Standing::Unsure).then_some(fresh);
                }
                None => {
                    let queue = Queue {
                        settings: settings.clone(),
                        number: fresh,
                        next: None,
                        standing: Standing::Unsure,
                        is_changing: true,
                        openings: 0,
                        is_tangled: false,
                    };
                    self.queues.insert(name.clone(), queue);
                }
            },
            Change::FindQueue(name) | Change::PurgeQueue(name) => match self.queues.get_mut(name) {
                Some(queue) if !queue.is_changing && !queue.is_tangled => {
                    queue.is_changing = true;
                }
                _ => return false,
            },
            Change::DeleteQueue(name, _) => match self.queues.get_mut(name) {
                Some(queue) if !queue.is_changing && queue.openings == 0 => {
                    queue.is_changing = true;
                    queue.standing = Standing::Unsure;
                }
                _ => return false,
            },
            Change::DeclareExchange(name, kind, durability) => match self.exchanges.get_mut(name) {
                Some(exchange) if exchange.changes > 0 => return false,
                Some(exchange)
                    if exchange.standing == Standing::Unsure
                        && (exchange.kind != *kind || exchange.durability != *durability) =>
                {
                    return false;
                }
                Some(exchange) => exchange.changes = 1,
                None => {
                    let exchange = Exchange {
                        kind: *kind,
                        durability: *durability,
                        standing: Standing::Unsure,
                        changes: 1,
                    };
                    self.exchanges.insert(name.clone(), exchange);
                }
            },
            Change::DeleteExchange(name, _) => match self.exchanges.get_mut(name) {
                Some(exchange) if exchange.changes == 0 => {
                    exchange.changes = 1;
                    exchange.standing = Standing::Unsure;
                }
                _ => return false,
            },
            Change::Bind(edge) | Change::Unbind(edge) => return self.begin_edge(change, edge),
        }
        true
    }

    fn begin_edge(&mut self, change: &Change, edge: &Edge) -> bool {
        if edge.is_to_exchange() {
            return self.begin_edge_between(change, edge);
        }
        // Both ends must be sure: their own changes would make the binding's fate a riddle.
        let (Some(exchange), Some(queue)) = (
            self.exchanges.get_mut(&edge.exchange),
            self.queues.get_mut(&edge.queue),
        ) else {
            return false;
        };
        if exchange.standing == Standing::Unsure
            || queue.standing == Standing::Unsure
            || queue.is_changing
            || queue.openings > 0
        {
            return false;
        }
        exchange.changes += 1;
        queue.is_changing = true;
        self.note_edge(change, edge);
        true
    }

    /// As [`Self::begin_edge`]; that nothing else of the target changes keeps the same binding from
    /// changing twice at a time.
    fn begin_edge_between(&mut self, change: &Change, edge: &Edge) -> bool {
        let is_ready = |name: &str, changes_max: u32| {
            self.exchanges.get(name).is_some_and(|exchange| {
                exchange.standing == Standing::Sure && exchange.changes <= changes_max
            })
        };
        if edge.exchange == edge.queue
            || !is_ready(&edge.exchange, u32::MAX)
            || !is_ready(&edge.queue, 0)
        {
            return false;
        }
        for name in [&edge.exchange, &edge.queue] {
            if let Some(exchange) = self.exchanges.get_mut(name) {
                exchange.changes += 1;
            }
        }
        self.note_edge(change, edge);
        true
    }

    fn note_edge(&mut self, change: &Change, edge: &Edge) {
        let found = self.bindings.iter_mut().find(|b| b.edge == *edge);
        match (change, found) {
            (Change::Unbind(_), Some(binding)) => binding.standing = Standing::Unsure,
            (Change::Bind(_), None) => self.bindings.push(Binding {
                edge: edge.clone(),
                standing: Standing::Unsure,
            }),
            _ => {}
        }
    }

    /// The change ended.
    ///
    /// # Errors
    /// If it cannot have ended so: what was sure decides the answer.
    pub fn end(&mut self, change: &Change, outcome: Outcome) -> Result<Consequence, String> {
        if let Outcome::Failed(
            Code::TopologyReadOnly | Code::JournalFailed | Code::ShuttingDown | Code::Indeterminate,
        ) = outcome
        {
            return self.end(change, Outcome::Lost);
        }
        let wrong = |why: &str| Err(format!("{change:?} ended with {outcome:?}, but {why}"));
        match change {
            Change::DeclareQueue(name, settings) => {
                self.end_declare(name, settings, outcome, wrong)
            }
            Change::FindQueue(name) => {
                let queue = self
                    .queues
                    .get_mut(name)
                    .ok_or("a queue vanished from the model")?;
                queue.is_changing = false;
                match outcome {
                    Outcome::Done { changed: false } => queue.standing = Standing::Sure,
                    Outcome::Failed(Code::QueueUnknown) if queue.standing == Standing::Unsure => {
                        return Ok(self.forget_queue(name));
                    }
                    Outcome::Lost => {}
                    Outcome::Done { .. } | Outcome::Failed(_) => return wrong("it exists"),
                }
                Ok(Consequence::default())
            }
            Change::PurgeQueue(name) => {
                let queue = self
                    .queues
                    .get_mut(name)
                    .ok_or("a queue vanished from the model")?;
                queue.is_changing = false;
                let dropped = Some(queue.number);
                match outcome {
                    Outcome::Done { .. } => {
                        queue.standing = Standing::Sure;
                        Ok(Consequence { dropped })
                    }
                    Outcome::Lost => Ok(Consequence { dropped }),
                    Outcome::Failed(Code::QueueUnknown) if queue.standing == Standing::Unsure => {
                        Ok(self.forget_queue(name))
                    }
                    Outcome::Failed(_) => wrong("it exists"),
                }
            }
            Change::DeleteQueue(name, condition) => {
                let queue = self
                    .queues
                    .get_mut(name)
                    .ok_or("a queue vanished from the model")?;
                queue.is_changing = false;
                match outcome {
                    // Whether it was sure before is not kept: a delete of nothing is no promise.
                    Outcome::Done { .. } | Outcome::Failed(Code::QueueUnknown) => {
                        Ok(self.forget_queue(name))
                    }
                    Outcome::Failed(Code::InUse) if *condition != Condition::Always => {
                        // In use: so there is one, but a tangled one stays a riddle.
                        if !queue.is_tangled {
                            queue.standing = Standing::Sure;
                        }
                        Ok(Consequence::default())
                    }
                    Outcome::Lost => Ok(Consequence::default()),
                    Outcome::Failed(_) => wrong("nothing forbids it"),
                }
            }
            Change::DeclareExchange(name, kind, durability) => {
                let exchange = self
                    .exchanges
                    .get_mut(name)
                    .ok_or("an exchange vanished from the model")?;
                exchange.changes -= 1;
                let is_same = exchange.kind == *kind && exchange.durability == *durability;
                match (outcome, exchange.standing) {
                    (Outcome::Lost, Standing::Unsure) => {
                        // If it was gone and is back, its bindings are not.
                        for binding in &mut self.bindings {
                            if binding.edge.touches(name) {
                                binding.standing = Standing::Unsure;
                            }
                        }
                    }
                    (Outcome::Lost, Standing::Sure) => {}
                    (Outcome::Done { changed: false }, Standing::Sure) if is_same => {}
                    (Outcome::Failed(Code::PreconditionFailed), Standing::Sure) if !is_same => {}
                    (Outcome::Done { changed }, Standing::Unsure) => {
                        exchange.kind = *kind;
                        exchange.durability = *durability;
                        exchange.standing = Standing::Sure;
                        if changed {
                            // Created: if there was one, it and its bindings were gone.
                            self.bindings.retain(|b| !b.edge.touches(name));
                        }
                    }
                    (Outcome::Failed(Code::PreconditionFailed), Standing::Unsure) if !is_same => {
                        exchange.standing = Standing::Sure;
                    }
                    (Outcome::Failed(Code::LimitReached), Standing::Unsure) => {}
                    _ => return wrong("it was there or not, with other settings or the same"),
                }
                Ok(Consequence::default())
            }
            Change::DeleteExchange(name, condition) => {
                let exchange = self
                    .exchanges
                    .get_mut(name)
                    .ok_or("an exchange vanished from the model")?;
                exchange.changes -= 1;
                match outcome {
                    Outcome::Done { .. } | Outcome::Failed(Code::ExchangeUnknown) => {
                        self.exchanges.remove(name);
                        self.bindings.retain(|b| !b.edge.touches(name));
                    }
                    Outcome::Failed(Code::InUse) if *condition != Condition::Always => {
                        exchange.standing = Standing::Sure;
                    }
                    Outcome::Lost => {}
                    Outcome::Failed(_) => return wrong("nothing forbids it"),
                }
                Ok(Consequence::default())
            }
            Change::Bind(edge) | Change::Unbind(edge) => {
                self.end_edge(change, edge, outcome)?;
                Ok(Consequence::default())
            }
        }
    }

    fn end_declare(
        &mut self,
        name: &str,
        settings: &QueueSettings,
        outcome: Outcome,
        wrong: impl Fn(&str) -> Result<Consequence, String>,
    ) -> Result<Consequence, String> {
        let queue = self
            .queues
            .get_mut(name)
            .ok_or("a queue vanished from the model")?;
        queue.is_changing = false;
        let fresh = queue.next.take();
        let compared = queue.settings.compare(settings);
        let may_be_same = compared != Comparison::Differs;
        let may_differ = compared != Comparison::Same;
        match (outcome, queue.standing) {
            (Outcome::Done { changed: false }, Standing::Sure) if may_be_same => {}
            (Outcome::Failed(Code::PreconditionFailed), Standing::Sure) if may_differ => {}
            (Outcome::Done { changed: true }, Standing::Unsure) => {
                queue.settings = settings.clone();
                queue.standing = Standing::Sure;
                let dropped = fresh.map(|number| core::mem::replace(&mut queue.number, number));
                if dropped.is_some() {
                    // The old one was gone, and its bindings with it.
                    self.bindings.retain(|b| b.edge.queue != name);
                }
                return Ok(Consequence { dropped });
            }
            (Outcome::Done { changed: false }, Standing::Unsure) if may_be_same => {
                queue.standing = Standing::Sure;
            }
            (Outcome::Failed(Code::PreconditionFailed), Standing::Unsure) if may_differ => {
                queue.standing = Standing::Sure;
            }
            (Outcome::Failed(Code::LimitReached), Standing::Unsure) => {
                return Ok(self.forget_queue(name));
            }
            (Outcome::Lost, Standing::Unsure) => queue.is_tangled = fresh.is_some(),
            (Outcome::Lost, Standing::Sure) => {}
            _ => return wrong("it was there or not, with other settings or the same"),
        }
        Ok(Consequence::default())
    }

    fn end_edge(&mut self, change: &Change, edge: &Edge, outcome: Outcome) -> Result<(), String> {
        if let Some(exchange) = self.exchanges.get_mut(&edge.exchange) {
            exchange.changes -= 1;
        }
        if let Some(queue) = self.queues.get_mut(&edge.queue) {
            queue.is_changing = false;
        }
        if let Some(target) = self.exchanges.get_mut(&edge.queue) {
            target.changes -= 1;
        }
        let found = self.bindings.iter().position(|b| b.edge == *edge);
        let standing = found.map(|at| self.bindings[at].standing);
        let is_bind = matches!(change, Change::Bind(_));
        match (outcome, standing, found) {
            (Outcome::Lost, ..) => {}
            // Bound: it was there for sure and nothing changed, or it was not sure.
            (Outcome::Done { changed: false }, Some(Standing::Sure), _) if is_bind => {}
            (Outcome::Done { .. }, Some(Standing::Unsure), Some(at)) if is_bind => {
                self.bindings[at].standing = Standing::Sure;
            }
            // Unbound: `begin` made it unsure, if it was there at all.
            (Outcome::Done { changed: true }, Some(_), Some(at)) if !is_bind => {
                self.bindings.remove(at);
            }
            (Outcome::Failed(Code::BindingUnknown), found, at) if !is_bind => {
                if let (Some(_), Some(at)) = (found, at) {
                    self.bindings.remove(at);
                }
            }
            (Outcome::Failed(Code::LimitReached), Some(Standing::Unsure), Some(at)) => {
                self.bindings.remove(at);
            }
            // A volatile end that a crash took away is removed by `crash`, so both ends exist.
            _ => {
                return Err(format!(
                    "{change:?} ended with {outcome:?}, but both ends exist"
                ));
            }
        }
        Ok(())
    }

    fn forget_queue(&mut self, name: &str) -> Consequence {
        self.bindings.retain(|b| b.edge.queue != name);
        Consequence {
            dropped: self.queues.remove(name).map(|queue| queue.number),
        }
    }

    /// Every core stopped: what is volatile is gone. Changes that were out end as lost, one by one,
    /// before this.
    pub fn crash(&mut self) {
        self.queues
            .retain(|_, queue| queue.settings.durability == Durability::Durable);
        self.exchanges
            .retain(|_, exchange| exchange.durability == Durability::Durable);
        let (queues, exchanges) = (&self.queues, &self.exchanges);
        self.bindings.retain(|b| {
            let target = &b.edge.queue;
            (queues.contains_key(target) || exchanges.contains_key(target))
                && exchanges.contains_key(&b.edge.exchange)
        });
    }
}

impl Model {
    /// Nothing is sure any more: the disk may have taken back anything.
    pub fn doubt(&mut self) {
        for queue in self.queues.values_mut() {
            queue.standing = Standing::Unsure;
        }
        for exchange in self.exchanges.values_mut() {
            exchange.standing = Standing::Unsure;
        }
        for binding in &mut self.bindings {
            binding.standing = Standing::Unsure;
        }
    }
}

fn weaker(left: Standing, right: Standing) -> Standing {
    if left == Standing::Sure && right == Standing::Sure {
        Standing::Sure
    } else {
        Standing::Unsure
    }
}

/// Whether a topic pattern takes a key: `*` is one word, `#` any number of words.
#[must_use]
pub fn topic_matches(pattern: &str, key: &str) -> bool {
    fn words_match(pattern: &[&str], key: &[&str]) -> bool {
        match pattern.split_first() {
            None => key.is_empty(),
            Some((&"#", rest)) => (0..=key.len()).any(|skip| words_match(rest, &key[skip..])),
            Some((&"*", rest)) => !key.is_empty() && words_match(rest, &key[1..]),
            Some((word, rest)) => key.first() == Some(word) && words_match(rest, &key[1..]),
        }
    }
    /// An empty key has no words; `a..b` has an empty one in the middle.
    fn words(text: &str) -> Vec<&str> {
        if text.is_empty() {
            Vec::new()
        } else {
            text.split('.').collect()
        }
    }
    words_match(&words(pattern), &words(key))
}

/// A filter as text, and what it says.
type Filter = (&'static str, fn(&dyn Fn(&str) -> Header) -> bool);

/// Filters that bindings may have. A header that is not there is void.
pub const FILTERS: [Filter; 5] = [
    ("a = 1", |of| of("a") == Header::Number(1)),
    ("b IS NULL", |of| of("b") == Header::Void),
    ("NOT c = 'red' AND a >= 0", |of| {
        !matches!(of("c"), Header::Void)
            && of("c") != Header::Text("red".into())
            && is_number(of("a"))
    }),
    ("a + b = 2 OR c LIKE 'b%'", |of| {
        let sum = match (of("a"), of("b")) {
            (Header::Number(a), Header::Number(b)) => Some(a + b),
            _ => None,
        };
        sum == Some(2) || of("c") == Header::Text("blue".into())
    }),
    ("sys.ttl_ms IS NULL AND \"x-d\" IN (0, 'blue')", |of| {
        [Header::Number(0), Header::Text("blue".into())].contains(&of("x-d"))
    }),
];

fn is_number(header: Header) -> bool {
    matches!(header, Header::Number(_))
}

fn filter_matches(arguments: &Headers, headers: &Headers) -> bool {
    let first = |name: &str| {
        let found = headers.iter().find(|(own, _)| own == name);
        found.map_or(Header::Void, |(_, value)| value.clone())
    };
    arguments.iter().any(|(name, text)| {
        let filter = FILTERS
            .iter()
            .find(|(own, _)| *text == Header::Text((*own).into()));
        name == "x-filter" && filter.is_some_and(|(_, says)| says(&first))
    })
}

/// The one queue that takes a message by the hash of its key, if that is known: rendezvous hashing in
/// floating point. Which one takes it by lot only the broker knows.
fn chosen<'a>(
    from: &Exchange,
    bindings: impl Iterator<Item = &'a Binding> + Clone,
    key: &str,
) -> Option<String> {
    let mut all = bindings.clone();
    if from.kind != ExchangeKind::ConsistentHash || !all.all(|b| b.standing == Standing::Sure) {
        return None;
    }
    let mut weights: BTreeMap<&str, f64> = BTreeMap::new();
    for binding in bindings {
        let weight = binding.edge.key.parse().unwrap_or(1.0);
        *weights.entry(&binding.edge.queue).or_default() += weight;
    }
    let cost = |queue: &str, weight: f64| {
        let seed = match queue.starts_with('x') {
            true => mix(hash_text(queue)),
            false => hash_text(queue),
        };
        let draw = mix(hash_text(key) ^ seed) | 1;
        -(draw as f64 / 2_f64.powi(64)).ln() / weight
    };
    let mut costs: Vec<(f64, &str)> = weights
        .iter()
        .map(|(queue, weight)| (cost(queue, *weight), *queue))
        .collect();
    costs.sort_by(|one, other| one.0.total_cmp(&other.0));
    match costs.as_slice() {
        // The broker reckons in integers: what is that close may be either.
        [one, other, ..] if other.0 - one.0 < one.0 * 1e-3 => None,
        [one, ..] => Some(one.1.to_string()),
        [] => None,
    }
}

fn hash_text(text: &str) -> u64 {
    let mut state = mix(text.len() as u64);
    for chunk in text.as_bytes().chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = mix(state ^ u64::from_le_bytes(word));
    }
    state
}

fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Whether a binding's arguments take a message's headers (P-66).
#[must_use]
pub fn headers_match(arguments: &Headers, headers: &Headers) -> bool {
    let first = |list: &Headers, key: &str| {
        let found = list.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.clone())
    };
    let mode = match first(arguments, "x-match") {
        Some(Header::Text(mode)) => mode,
        _ => "all".into(),
    };
    let with_x = mode.ends_with("-with-x");
    // Of two arguments with one key the first counts.
    let is_first = |at: usize| {
        arguments[..at]
            .iter()
            .all(|(key, _)| *key != arguments[at].0)
    };
    let mut counted = arguments
        .iter()
        .enumerate()
        .filter(|(at, (key, _))| {
            key != "x-match" && (with_x || !key.starts_with("x-")) && is_first(*at)
        })
        .map(|(_, argument)| argument);
    let takes = |(key, argument): &(String, Header)| match (argument, first(headers, key)) {
        (_, None) => false,
        (Header::Void, Some(_)) => true,
        (argument, Some(header)) => *argument == header,
    };
    if mode.starts_with("any") {
        counted.any(takes)
    } else {
        counted.all(takes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> QueueSettings {
        QueueSettings {
            durability: Durability::Durable,
            messages_max: 0,
            bytes_max: 0,
            partition: u16::MAX,
            deaths: None,
            times: None,
        }
    }

    #[test]
    fn topics() {
        for (pattern, key, expect) in [
            ("a.b", "a.b", true),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("a.#", "a", true),
            ("a.#.c", "a.b.b.c", true),
            ("#", "", true),
            ("*", "", false),
            ("", "", true),
            ("*", "a.", false),
            ("*.*", "a.", true),
            ("#.#", "a", true),
            ("*.#", "a", true),
            ("#.b", "a", false),
        ] {
            assert_eq!(topic_matches(pattern, key), expect, "{pattern} {key}");
        }
    }

    #[test]
    fn headers() {
        let list = |pairs: &[(&str, i64)]| -> Headers {
            pairs
                .iter()
                .map(|(key, value)| ((*key).into(), Header::Number(*value)))
                .collect()
        };
        let any = |mut list: Headers, mode: &str| {
            list.push(("x-match".into(), Header::Text(mode.into())));
            list
        };
        assert!(headers_match(
            &list(&[("a", 1)]),
            &list(&[("a", 1), ("b", 2)])
        ));
        assert!(!headers_match(
            &list(&[("a", 1), ("b", 3)]),
            &list(&[("a", 1), ("b", 2)])
        ));
        assert!(headers_match(
            &any(list(&[("a", 1), ("b", 3)]), "any"),
            &list(&[("a", 1)])
        ));
        assert!(headers_match(&list(&[("x-a", 1)]), &list(&[])));
        assert!(!headers_match(
            &any(list(&[("x-a", 1)]), "all-with-x"),
            &list(&[])
        ));
        assert!(headers_match(&list(&[]), &list(&[])));
        assert!(!headers_match(&any(list(&[]), "any"), &list(&[("a", 1)])));
    }

    #[test]
    fn a_queue_is_sure_between_changes() {
        let mut model = Model::default();
        let declare = Change::DeclareQueue("q".into(), settings());
        assert!(model.begin(&declare, QueueNo(0)));
        assert!(!model.begin(&declare, QueueNo(1)), "one change at a time");
        let none = Headers::new();
        assert_eq!(model.route("", "q", &none), [Target::May(QueueNo(0))]);
        assert!(model.end(&declare, Outcome::Done { changed: true }).is_ok());
        assert_eq!(model.route("", "q", &none), [Target::Must(QueueNo(0))]);
        let delete = Change::DeleteQueue("q".into(), Condition::Always);
        assert!(model.begin(&delete, QueueNo(1)));
        assert!(model.end(&delete, Outcome::Lost).is_ok());
        assert_eq!(model.route("", "q", &none), [Target::May(QueueNo(0))]);
        // Declared again it is the same one or another.
        assert!(model.begin(&declare, QueueNo(2)));
        assert_eq!(
            model.route("", "q", &none),
            [Target::May(QueueNo(0)), Target::May(QueueNo(2))]
        );
        let end = model.end(&declare, Outcome::Done { changed: true });
        assert_eq!(
            end,
            Ok(Consequence {
                dropped: Some(QueueNo(0))
            })
        );
        assert_eq!(model.route("", "q", &none), [Target::Must(QueueNo(2))]);
        assert!(model.begin(&declare, QueueNo(3)));
        assert!(
            model
                .end(&declare, Outcome::Done { changed: true })
                .is_err(),
            "it was there"
        );
    }

    #[test]
    fn a_name_with_two_possible_queues_is_only_deleted() {
        let mut model = Model::default();
        let declare = Change::DeclareQueue("q".into(), settings());
        let delete = Change::DeleteQueue("q".into(), Condition::Always);
        assert!(model.begin(&declare, QueueNo(0)));
        assert!(model.end(&declare, Outcome::Done { changed: true }).is_ok());
        assert!(model.begin(&delete, QueueNo(1)));
        assert!(model.end(&delete, Outcome::Lost).is_ok());
        assert!(model.begin(&declare, QueueNo(2)));
        assert!(model.end(&declare, Outcome::Lost).is_ok());
        for change in [
            declare,
            Change::FindQueue("q".into()),
            Change::PurgeQueue("q".into()),
        ] {
            assert!(!model.begin(&change, QueueNo(3)), "{change:?}");
        }
        assert!(model.begin(&delete, QueueNo(3)));
        let dropped = Some(QueueNo(0));
        let end = model.end(&delete, Outcome::Done { changed: true });
        assert_eq!(end, Ok(Consequence { dropped }));
        assert!(model.queues.is_empty());
    }

    #[test]
    fn a_message_goes_once_to_a_queue() {
        let mut model = Model::default();
        let mut done = |change: Change, number: u32| {
            assert!(model.begin(&change, QueueNo(number)), "{change:?}");
            assert!(model.end(&change, Outcome::Done { changed: true }).is_ok());
        };
        let bind = |key: &str| {
            Change::Bind(Edge {
                exchange: "x".into(),
                queue: "q".into(),
                key: key.into(),
                arguments: Headers::new(),
            })
        };
        done(Change::DeclareQueue("q".into(), settings()), 0);
        done(
            Change::DeclareExchange("x".into(), ExchangeKind::Topic, Durability::Volatile),
            0,
        );
        done(bind("a.*"), 0);
        done(bind("#"), 0);
        assert_eq!(
            model.route("x", "a.b", &Headers::new()),
            [Target::Must(QueueNo(0))]
        );
        model.crash();
        assert!(model.bindings.is_empty() && model.may_lack("x"));
        assert!(model.queues.contains_key("q"));
    }
}
