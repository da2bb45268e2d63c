//! What a client does to topology: every change there is, on names drawn from a small pool, and
//! every way to look at it. Does not know messages.

use ringpost_wire::control::{
    self, Bind, Body, Delete, Durability, ExchangeDeclare, ExchangeKind, Named, QUEUE_STREAM,
    QueueDeclare, QueueInfo,
};
use ringpost_wire::table::{TableWriter, Value};
use ringpost_wire::{Code, FrameHeader, FrameKind};

use super::sharing::Sharing;
use super::{Client, Request, queue_name};
use crate::model::{
    Change, Condition, Deaths, Edge, FILTERS, GRAVES, Header, Headers, QueueSettings,
};
use crate::plan::Fault;
use crate::random::Random;
use crate::say;
use crate::scene::Scene;
use crate::streams::{self, STREAM};
use crate::times::{Retry, Timing};

/// A routing key, or a binding key with wildcards.
pub(super) fn draw_key(random: &mut Random, is_pattern: bool) -> String {
    let words = random.within(1..=3);
    let mut key = String::new();
    for idx in 0..words {
        if idx > 0 {
            key.push('.');
        }
        let word = match random.below(if is_pattern { 7 } else { 5 }) {
            0 => "a",
            1 => "b",
            2 => "c",
            3 => "ä",
            4 => "",
            5 => "*",
            _ => "#",
        };
        key.push_str(word);
    }
    key
}

/// Headers of a message, or arguments of a binding.
pub(super) fn draw_headers(random: &mut Random) -> Headers {
    let mut headers = Headers::new();
    for _ in 0..random.below(4) {
        let key = (*random.pick(&["a", "b", "c", "x-d"])).to_string();
        let value = match random.below(4) {
            0 => Header::Text((*random.pick(&["red", "blue"])).into()),
            1 => Header::Void,
            _ => Header::Number(random.below(3) as i64),
        };
        headers.push((key, value));
    }
    headers
}

/// Headers as they travel: an integer in any of the widths it may have.
pub(super) fn encode_headers(headers: &Headers, random: &mut Random) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = TableWriter::new(&mut out);
    for (key, header) in headers {
        let value = match header {
            Header::Number(number) => match random.below(4) {
                0 => Value::I8(*number as i8),
                1 => Value::I32(*number as i32),
                2 => Value::U16(*number as u16),
                _ => Value::I64(*number),
            },
            Header::Text(text) => Value::Text(text.as_bytes()),
            Header::Void => Value::Void,
        };
        writer.put(key.as_bytes(), value);
    }
    writer
        .finish()
        .expect("a few short headers are within limits");
    out
}

impl Client {
    /// Changes something.
    pub(super) fn change_topology(&mut self, scene: &mut Scene) {
        let change = self.draw_change(scene);
        self.ask_change(change, scene);
    }

    /// Asks for a change, if the model allows it now.
    pub(super) fn ask_change(&mut self, change: Change, scene: &mut Scene) -> bool {
        if !scene.begin(self.tenant, &change) {
            return false;
        }
        say!(scene, "client {}: asks {change:?}", self.id);
        self.write_change(&change);
        true
    }

    fn draw_change(&mut self, scene: &Scene) -> Change {
        let model = &scene.models[self.tenant];
        let is_wild = scene.plan.faults.has(Fault::Topology);
        let choice = match scene.plan.leaning.fans_out() && self.random.coin() {
            // A queue, an exchange, or a binding between them.
            true => self.random.within(2..=9),
            false => self.random.below(if is_wild { 20 } else { 12 }),
        };
        let existing_queue = self.queue_name(scene);
        let random = &mut self.random;
        if scene.plan.faults.has(Fault::Deaths) && !has_graves(scene, self.tenant) && random.coin()
        {
            return Change::DeclareQueue(GRAVES.into(), graves(scene));
        }
        if streams::is_in(scene.plan.seed)
            && !has_steady(scene, self.tenant, STREAM)
            && random.coin()
        {
            let settings = QueueSettings {
                messages_max: streams::retained(scene.plan.seed),
                ..graves(scene)
            };
            return Change::DeclareQueue(STREAM.into(), settings);
        }
        let new_queue = queue_name(random.index(scene.plan.queue_names));
        let exchange = format!("x{}", random.index(scene.plan.exchange_names));
        let condition = match random.below(4) {
            0 => Condition::IfUnused,
            1 => Condition::IfEmpty,
            _ => Condition::Always,
        };
        match choice {
            0..4 => {
                let same = model
                    .queues
                    .get(&new_queue)
                    .map(|queue| queue.settings.clone());
                let settings = match same {
                    Some(settings) if random.below(4) > 0 => settings,
                    same => {
                        let drawn = draw_settings(random, scene, self.tenant);
                        let (seed, tenant) = (self.seed, self.tenant);
                        let drawn = match Sharing::of(seed, tenant, &new_queue, self.is_slow) {
                            Sharing::Groups(_) => of_groups(drawn),
                            Sharing::Blocks => of_blocks(drawn),
                            _ => drawn,
                        };
                        // Who names any argument names them all.
                        let before = same.as_ref().and_then(|same| same.deaths);
                        let times = same.and_then(|same| same.times);
                        let times = drawn.times.or(times);
                        let has_limit = drawn.messages_max + drawn.bytes_max > 0;
                        let deaths = drawn.deaths.or(before).map(|deaths| Deaths {
                            drops_head: deaths.drops_head && has_limit,
                            ..deaths
                        });
                        QueueSettings {
                            deaths,
                            times,
                            ..drawn
                        }
                    }
                };
                Change::DeclareQueue(new_queue, settings)
            }
            4..6 => {
                let kinds = [
                    ExchangeKind::Direct,
                    ExchangeKind::Fanout,
                    ExchangeKind::Topic,
                    ExchangeKind::Headers,
                    ExchangeKind::ConsistentHash,
                    ExchangeKind::Random,
                    ExchangeKind::Filter,
                ];
                let same = model
                    .exchanges
                    .get(&exchange)
                    .map(|x| (x.kind, x.durability));
                let (kind, durability) = match same {
                    Some(same) if random.below(4) > 0 => same,
                    _ if scene.plan.leaning.fans_out() && random.coin() => {
                        (ExchangeKind::Fanout, draw_durability(random))
                    }
                    _ => (*random.pick(&kinds), draw_durability(random)),
                };
                Change::DeclareExchange(exchange, kind, durability)
            }
            6..11 => Change::Bind(draw_edge(
                random,
                exchange,
                existing_queue,
                scene,
                self.tenant,
            )),
            11 => Change::FindQueue(existing_queue),
            12..16 if existing_queue == STREAM => Change::FindQueue(existing_queue),
            12..14 => Change::PurgeQueue(existing_queue),
            14..16 => Change::DeleteQueue(existing_queue, condition),
            16 => Change::DeleteExchange(
                exchange,
                if condition == Condition::IfEmpty {
                    Condition::Always
                } else {
                    condition
                },
            ),
            _ => {
                let bound: Vec<&Edge> = model.bindings.iter().map(|b| &b.edge).collect();
                if bound.is_empty() || random.below(5) == 0 {
                    Change::Unbind(draw_edge(
                        random,
                        exchange,
                        existing_queue,
                        scene,
                        self.tenant,
                    ))
                } else {
                    Change::Unbind((*random.pick(&bound)).clone())
                }
            }
        }
    }

    fn write_change(&mut self, change: &Change) {
        let id = self.request(Request::Change(change.clone()));
        let head = |kind| FrameHeader::bare(kind, 0, id);
        let (seed, tenant, is_slow) = (self.seed, self.tenant, self.is_slow);
        let out = &mut self.out;
        match change {
            Change::DeclareQueue(name, settings) => QueueDeclare {
                messages_max: settings.messages_max,
                bytes_max: settings.bytes_max,
                durability: settings.durability as u8,
                flags: 0,
                partition: settings.partition,
                name: name.as_bytes(),
                arguments: &[
                    encode_arguments(settings),
                    Sharing::of(seed, tenant, name, is_slow).arguments(),
                ]
                .concat(),
            }
            .write(out, head(FrameKind::QueueDeclare)),
            Change::FindQueue(name) => QueueDeclare {
                messages_max: 0,
                bytes_max: 0,
                durability: 0,
                flags: control::DECLARE_PASSIVE,
                partition: control::PARTITION_BY_NAME,
                name: name.as_bytes(),
                arguments: b"",
            }
            .write(out, head(FrameKind::QueueDeclare)),
            Change::DeleteQueue(name, condition) | Change::DeleteExchange(name, condition) => {
                let kind = match change {
                    Change::DeleteQueue(..) => FrameKind::QueueDelete,
                    _ => FrameKind::ExchangeDelete,
                };
                let flags = match condition {
                    Condition::Always => 0,
                    Condition::IfUnused => control::DELETE_IF_UNUSED,
                    Condition::IfEmpty => control::DELETE_IF_EMPTY,
                };
                let name = name.as_bytes();
                Delete { flags, name }.write(out, head(kind));
            }
            Change::PurgeQueue(name) => {
                let name = name.as_bytes();
                Named { name }.write(out, head(FrameKind::QueuePurge));
            }
            Change::DeclareExchange(name, kind, durability) => ExchangeDeclare {
                kind: *kind as u8,
                durability: *durability as u8,
                flags: 0,
                reserved: 0,
                name: name.as_bytes(),
                arguments: b"",
            }
            .write(out, head(FrameKind::ExchangeDeclare)),
            Change::Bind(edge) | Change::Unbind(edge) => {
                let kind = match change {
                    Change::Bind(_) => FrameKind::Bind,
                    _ => FrameKind::Unbind,
                };
                // Arguments are part of the identity: always the same bytes for the same edge.
                let mut plain = Random::new(0, 0);
                let arguments = encode_headers(&edge.arguments, &mut plain);
                Bind {
                    flags: match edge.is_to_exchange() {
                        true => control::BIND_TO_EXCHANGE,
                        false => 0,
                    },
                    exchange: edge.exchange.as_bytes(),
                    target: edge.queue.as_bytes(),
                    key: edge.key.as_bytes(),
                    arguments: &arguments,
                }
                .write(out, head(kind));
            }
        }
    }

    /// Looks at something.
    pub(super) fn look(&mut self, scene: &mut Scene) {
        match self.random.below(9) {
            6.. => self.browse(scene),
            0 => {
                let name = self.queue_name(scene);
                self.inspect(&name);
            }
            5 => self.ask_in_vain(),
            choice => {
                let kinds = [
                    FrameKind::QueueList,
                    FrameKind::ExchangeList,
                    FrameKind::BindingList,
                    FrameKind::TenantList,
                ];
                let kind = kinds[choice as usize - 1];
                let id = self.request(Request::List { items: 0, kind });
                ringpost_wire::frame::write_bare(&mut self.out, kind, 0, id);
            }
        }
    }

    /// Asks for what cannot be.
    fn ask_in_vain(&mut self) {
        let codes = [
            Code::NameInvalid,
            Code::PermissionDenied,
            Code::TenantUnknown,
        ];
        let code = *self.random.pick(&codes);
        let id = self.request(Request::Vain(code));
        let head = |kind| FrameHeader::bare(kind, 0, id);
        let out = &mut self.out;
        match code {
            Code::NameInvalid => ExchangeDeclare {
                kind: ExchangeKind::Fanout as u8,
                durability: Durability::Durable as u8,
                flags: 0,
                reserved: 0,
                name: b"amq.mine",
                arguments: b"",
            }
            .write(out, head(FrameKind::ExchangeDeclare)),
            Code::PermissionDenied => {
                let (flags, name) = (0, &b""[..]);
                Delete { flags, name }.write(out, head(FrameKind::ExchangeDelete));
            }
            _ => {
                let name = b"nobody";
                Named { name }.write(out, head(FrameKind::TenantDelete));
            }
        }
    }

    pub(super) fn inspect(&mut self, name: &str) {
        let id = self.request(Request::Inspect(name.into()));
        let body = Named {
            name: name.as_bytes(),
        };
        body.write(
            &mut self.out,
            FrameHeader::bare(FrameKind::QueueInspect, 0, id),
        );
    }

    pub(super) fn inspect_failed(
        &mut self,
        name: &str,
        code: Code,
        scene: &mut Scene,
    ) -> Result<(), String> {
        let model = &scene.models[self.tenant];
        let is_there = model
            .queues
            .get(name)
            .is_some_and(super::super::model::Queue::is_steady);
        match code {
            // A queue may have come since it was asked for, so only the drain, when nothing
            // changes, takes this for a loss.
            Code::QueueUnknown if self.drain.is_none() || !is_there => Ok(()),
            Code::JournalFailed if scene.journal_failed => Ok(()),
            Code::ShuttingDown => Ok(()),
            _ => Err(format!("inspect {name} failed with {code}")),
        }
    }

    pub(super) fn on_info(
        &mut self,
        head: &FrameHeader,
        body: &[u8],
        scene: &mut Scene,
    ) -> Result<(), String> {
        let expected = match head.kind {
            FrameKind::QueueInfo => FrameKind::QueueList,
            FrameKind::ExchangeInfo => FrameKind::ExchangeList,
            FrameKind::BindingInfo => FrameKind::BindingList,
            _ => FrameKind::TenantList,
        };
        if head.kind == FrameKind::QueueInfo {
            let info = QueueInfo::decode(body).map_err(|c| format!("QueueInfo: {c}"))?;
            if info.core >= scene.plan.cores || info.partition >= scene.plan.partitions {
                return Err(format!(
                    "QueueInfo names core {} and partition {}",
                    info.core, info.partition
                ));
            }
            let name = String::from_utf8_lossy(info.name);
            let queue = scene.models[self.tenant].queues.get(&*name);
            // Of what may be gone nobody knows whether its head makes room, which it does when that is
            // durable.
            let refuses = queue.is_some_and(|queue| {
                let deaths = queue.settings.deaths;
                queue.is_steady() && !deaths.is_some_and(|deaths| deaths.drops_head)
            });
            // One that blocks takes what it has given credit for.
            let sharing = Sharing::of(self.seed, self.tenant, &name, self.is_slow);
            let refuses = refuses && sharing != Sharing::Blocks;
            if refuses {
                check_bounds(&info, scene)?;
            }
            if let Some(Request::Inspect(_)) = self.requests.get(&head.sequence) {
                self.requests.remove(&head.sequence);
                let name = String::from_utf8_lossy(info.name).into_owned();
                self.told_of_food(&name, info.ready, info.published);
                self.drained_info(&name, &info, scene);
                return Ok(());
            }
        }
        match self.requests.get_mut(&head.sequence) {
            Some(Request::List { items, kind }) if *kind == expected => {
                *items += 1;
                Ok(())
            }
            _ if self.is_guilty => Ok(()),
            other => Err(format!("info answers {other:?}")),
        }
    }
}

/// A queue holds no more than it may, what is delivered and not settled included. After a crash it may:
/// acks that nobody asked to have confirmed were lost, and what they settled came back.
fn check_bounds(info: &QueueInfo<'_>, scene: &Scene) -> Result<(), String> {
    let held = info.ready + info.unacked + info.delayed + info.dead;
    let is_over = (info.messages_max > 0 && held > info.messages_max)
        || (info.bytes_max > 0 && info.bytes > info.bytes_max);
    // A stream refuses nothing, and looks at what it retains when that is durable.
    let is_stream = info.flags & QUEUE_STREAM != 0;
    if scene.starts == 1 && is_over && !is_stream {
        return Err(format!("a queue holds more than it may: {info:?}"));
    }
    Ok(())
}

fn draw_durability(random: &mut Random) -> Durability {
    if random.below(4) == 0 {
        Durability::Volatile
    } else {
        Durability::Durable
    }
}

/// Dead letters that the queue for them takes at a time, where that is bounded.
const GRAVES_MAX: u64 = 12;

/// Whether the queue for the dead is there for good.
fn has_graves(scene: &Scene, tenant: usize) -> bool {
    has_steady(scene, tenant, GRAVES)
}

fn has_steady(scene: &Scene, tenant: usize, name: &str) -> bool {
    let queue = scene.models[tenant].queues.get(name);
    queue.is_some_and(super::super::model::Queue::is_steady)
}

/// The queue for the dead: in some worlds it takes few at a time.
fn graves(scene: &Scene) -> QueueSettings {
    let is_bounded =
        scene.plan.faults.has(Fault::BoundedQueues) && scene.plan.seed.is_multiple_of(2);
    QueueSettings {
        durability: Durability::Durable,
        messages_max: if is_bounded { GRAVES_MAX } else { 0 },
        bytes_max: 0,
        partition: control::PARTITION_BY_NAME,
        deaths: None,
        times: None,
    }
}

/// The arguments of a queue in which messages die, or whose messages have their times.
fn encode_arguments(settings: &QueueSettings) -> Vec<u8> {
    let mut out = Vec::new();
    if settings.deaths.is_none() && settings.times.is_none() {
        return out;
    }
    let mut writer = TableWriter::new(&mut out);
    if let Some(deaths) = settings.deaths {
        encode_deaths(deaths, &mut writer);
    }
    if let Some(times) = settings.times {
        encode_times(times, &mut writer);
    }
    writer.finish().expect("a few settings are within limits");
    out
}

fn encode_times(times: Timing, writer: &mut TableWriter<'_>) {
    if times.rank_max > 0 {
        writer.put(b"x-max-priority", Value::U8(times.rank_max));
    }
    if times.rank_turn > 0 {
        writer.put(b"x-priority-turn", Value::U32(times.rank_turn));
    }
    if let Some(retry) = times.retry {
        writer
            .put(b"x-retry", Value::Text(retry.word.as_bytes()))
            .put(b"x-retry-delay", Value::U32(retry.delay_ms))
            .put(b"x-retry-delay-max", Value::U32(4 * retry.delay_ms))
            .put(b"x-retry-jitter", Value::U8(retry.jitter_percent));
    }
}

fn encode_deaths(deaths: Deaths, writer: &mut TableWriter<'_>) {
    writer
        .put(b"x-dead-letter-exchange", Value::Text(b""))
        .put(b"x-dead-letter-routing-key", Value::Text(GRAVES.as_bytes()));
    if deaths.ttl_ms > 0 {
        writer.put(b"x-message-ttl", Value::U32(deaths.ttl_ms));
    }
    if let Some(returns) = deaths.returns_max {
        writer.put(b"x-delivery-limit", Value::U32(returns));
    }
    if deaths.drops_head {
        writer.put(b"x-overflow", Value::Text(b"drop-head"));
    }
}

fn draw_times(random: &mut Random) -> Timing {
    let rank_max = match random.below(3) {
        0 => 0,
        _ => *random.pick(&[1, 3, 9, 31]),
    };
    Timing {
        rank_max,
        rank_turn: match rank_max > 0 && random.below(4) == 0 {
            true => random.scale(1..=20) as u32,
            false => 0,
        },
        retry: random.coin().then(|| Retry {
            word: ["fixed", "linear", "exponential"][random.index(3)],
            delay_ms: random.scale(1..=1_000) as u32,
            jitter_percent: *random.pick(&[0, 20, 100]),
        }),
    }
}

fn draw_settings(random: &mut Random, scene: &Scene, tenant: usize) -> QueueSettings {
    let is_bounded = scene.plan.faults.has(Fault::BoundedQueues)
        && match scene.plan.leaning.fans_out() {
            true => random.below(3) > 0,
            false => random.below(3) == 0,
        };
    let messages_max = if is_bounded && random.coin() {
        random.scale(match scene.plan.leaning.fans_out() {
            true => 1..=8,
            false => 1..=50,
        })
    } else {
        0
    };
    let bytes_max = if is_bounded && random.coin() {
        random.scale(200..=100_000)
    } else {
        0
    };
    let dies = scene.plan.faults.has(Fault::Deaths) && has_graves(scene, tenant) && random.coin();
    let deaths = dies.then(|| Deaths {
        ttl_ms: match random.coin() {
            true => random.scale(1..=20_000) as u32,
            false => 0,
        },
        returns_max: random.coin().then(|| random.below(4) as u32),
        drops_head: messages_max + bytes_max > 0 && random.coin(),
    });
    let has_times = scene.plan.faults.has(Fault::Times) && random.below(3) > 0;
    let times = has_times.then(|| draw_times(random));
    let times = times.filter(|times| *times != Timing::default());
    QueueSettings {
        deaths,
        times,
        durability: draw_durability(random),
        messages_max,
        bytes_max,
        partition: if random.below(3) == 0 {
            random.below(u64::from(scene.plan.partitions)) as u16
        } else {
            control::PARTITION_BY_NAME
        },
    }
}

/// Settings of a queue that blocks: it has a limit, and drops nothing.
fn of_blocks(settings: QueueSettings) -> QueueSettings {
    let deaths = settings.deaths.map(|deaths| Deaths {
        drops_head: false,
        ..deaths
    });
    let messages_max = match settings.messages_max + settings.bytes_max {
        0 => 5,
        _ => settings.messages_max,
    };
    QueueSettings {
        deaths,
        messages_max,
        ..settings
    }
}

/// Settings without what message groups refuse.
fn of_groups(settings: QueueSettings) -> QueueSettings {
    let deaths = settings.deaths.map(|deaths| Deaths {
        drops_head: false,
        ..deaths
    });
    let times = settings.times.map(|times| Timing {
        rank_max: 0,
        rank_turn: 0,
        ..times
    });
    QueueSettings {
        deaths,
        times: times.filter(|times| *times != Timing::default()),
        ..settings
    }
}

fn draw_edge(
    random: &mut Random,
    exchange: String,
    queue: String,
    scene: &Scene,
    tenant: usize,
) -> Edge {
    let kind = scene.models[tenant]
        .exchanges
        .get(&exchange)
        .map(|x| x.kind);
    let (key, arguments) = match kind {
        Some(ExchangeKind::Headers) => {
            let mut arguments = draw_headers(random);
            if random.coin() {
                let modes = ["all", "any", "all-with-x", "any-with-x"];
                let mode = (*random.pick(&modes)).to_string();
                arguments.push(("x-match".into(), Header::Text(mode)));
            }
            (String::new(), arguments)
        }
        Some(ExchangeKind::Topic) => (draw_key(random, true), Headers::new()),
        Some(ExchangeKind::ConsistentHash | ExchangeKind::Random) => {
            let weight = *random.pick(&["", "1", "3", "1000"]);
            (weight.to_string(), Headers::new())
        }
        Some(ExchangeKind::Filter) => {
            let text = random.pick(&FILTERS).0.to_string();
            (String::new(), vec![("x-filter".into(), Header::Text(text))])
        }
        _ => (draw_key(random, false), Headers::new()),
    };
    let queue = match random.below(5) {
        0 => format!("x{}", random.index(scene.plan.exchange_names)),
        _ => queue,
    };
    Edge {
        exchange,
        queue,
        key,
        arguments,
    }
}
