//! What the arguments of a queue mean: its settings with their bounds, in RabbitMQ's names where it
//! has one. Does not know how a queue keeps to them.
//!
//! | argument | what | bounds |
//! |---|---|---|
//! | `x-message-ttl` | how long a message may wait, in ms | 1 to 4,294,967,295 |
//! | `x-max-length`, `x-max-length-bytes` | limits, in policies only: a declaration has fields for them | 1 to 2⁶³ − 1 |
//! | `x-overflow` | `reject-publish` (default), `drop-head` or `block` | |
//! | `x-dead-letter-exchange` | where dead messages go | a name, empty for the default exchange |
//! | `x-dead-letter-routing-key` | with this key instead of their own | 255 bytes |
//! | `x-delivery-limit` | how often a message may come back | 0 to 1,000,000 |
//! | `x-retry` | a message that is given back waits: `fixed`, `linear` or `exponential` | |
//! | `x-retry-delay` | how long the first time, in ms | 1 to 86,400,000 |
//! | `x-retry-delay-max` | how long at most, in ms (default a day) | 1 to 86,400,000 |
//! | `x-retry-jitter` | by how much a wait differs by chance, in percent (default 0) | 0 to 100 |
//! | `x-max-priority` | priorities from 0 to this are told apart | 1 to 31 |
//! | `x-priority-turn` | after so many that passed it the oldest message goes; 0 = never | 0 to 1,000,000 |
//! | `x-dispatch` | which consumer with room is next | a word |
//! | `x-sticky-header` | the header that is a message's key where that says who is next | 1 to 255 bytes |
//! | `x-message-groups` | no two consumers hold messages of one key, and each key is in order | |
//! | `x-group-ahead` | how many messages may wait for their keys before the head does | 1 to 1,000,000 |
//! | `x-single-active-consumer` | whether one consumer at a time gets messages | |
//! | `x-consumer-hold-max` | how long a consumer may hold a message, in ms | 1,000 to 86,400,000 |
//! | `x-queue-type` | `classic` (default) or `stream` | |
//! | `x-max-age` | of a stream: how old a message may become, in ms | 1,000 to 315,360,000,000 |
//! | `x-stream-lanes` | of a stream: over how many lanes it goes (default 1) | 1 to 64 |
//! | `x-stream-lane-header` | of those: the header that is a message's key instead of its routing key | 1 to 255 bytes |
//! | `x-expires` | how long it may be unused before it is deleted, in ms | 1 to 4,294,967,295 |
//! | `x-auto-delete` | whether it goes with its last consumer | |
//! | `x-exclusive` | whether it belongs to the connection that declares it | only volatile |

use ringpost_wire::control::Durability;
use ringpost_wire::limits::{KEY_BYTES_MAX, NAME_BYTES_MAX};

use crate::data::dead_letter::DeadLetterTo;
use crate::data::lifetime::Lifetime;
use crate::data::queue::{
    Backoff, DispatchSettings, LANES_MAX, MAX_AGE_MS, Overflow, RANK_MAX, RETRY_DELAY_MAX_MS,
    RETRY_DELAY_MIN_MS, Retry, Settings, StreamSettings,
};
use crate::options::Options;

/// Bounds of limits that policies set; a declaration has them in fields of its own.
const LENGTHS: std::ops::RangeInclusive<u64> = 1..=i64::MAX as u64;
/// Largest `x-delivery-limit`.
pub const DELIVERY_LIMIT_MAX: u64 = 1_000_000;

/// Largest `x-priority-turn`.
pub const PRIORITY_TURN_MAX: u64 = 1_000_000;

/// What is of no use without another one.
const NEEDS: [(&str, &str); 6] = [
    ("x-dead-letter-routing-key", "x-dead-letter-exchange"),
    ("x-retry", "x-retry-delay"),
    ("x-retry-delay", "x-retry"),
    ("x-retry-delay-max", "x-retry"),
    ("x-retry-jitter", "x-retry"),
    ("x-priority-turn", "x-max-priority"),
];

/// What a queue was declared to be, as its owner keeps to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueueSettings {
    /// What it holds, how long, and how often it is delivered.
    pub queue: Settings,
    /// Where dead messages go.
    pub dead_letter: Option<DeadLetterTo>,
    /// When it goes by itself.
    pub lifetime: Lifetime,
}

impl QueueSettings {
    /// Reads the settings of a queue that is to be declared, policies apart.
    ///
    /// # Errors
    /// What is wrong with them, for people.
    pub fn read(
        durability: Durability,
        limits: (u64, u64),
        arguments: &[u8],
    ) -> Result<Self, String> {
        let mut options = Options::of(arguments)?;
        let mut own = Options::of(arguments)?;
        let mut settings = Self::under(&mut options, limits)?;
        let has = |name: &str| options.sources().iter().any(|source| source.name == name);
        for (name, other) in NEEDS {
            if has(name) && !has(other) {
                return Err(format!("{name} needs {other}"));
            }
        }
        let delay_max_ms = own.number("x-retry-delay-max", 0..=u64::MAX)?;
        let delay_ms = settings.queue.retry.map(|retry| u64::from(retry.delay_ms));
        if let (Some(most), Some(first)) = (delay_max_ms, delay_ms)
            && most < first
        {
            return Err(format!(
                "x-retry-delay-max is {most}, less than x-retry-delay with {first}"
            ));
        }
        let is_limited = limits != (0, 0);
        let is_stream = settings.queue.stream.is_some();
        let drops_head = settings.queue.overflow == Overflow::DropHead;
        if drops_head && !is_limited && !is_stream {
            return Err("x-overflow drop-head needs a limit of messages or bytes".to_owned());
        }
        if settings.queue.overflow == Overflow::Block && !is_limited {
            return Err("x-overflow block needs a limit of messages or bytes".to_owned());
        }
        options.done(if is_stream { "a stream" } else { "a queue" })?;
        if is_stream && durability == Durability::Volatile {
            return Err(
                "a stream is durable: what is only in memory cannot be read again".to_owned(),
            );
        }
        if settings.lifetime.is_exclusive && durability == Durability::Durable {
            return Err(
                "x-exclusive needs a volatile queue: it goes with its connection, so nothing of it \
                 can outlive the broker"
                    .to_owned(),
            );
        }
        settings.queue.durability = durability;
        Ok(settings)
    }

    /// Reads the settings of a queue, those of its policies among them. An option that is of no use
    /// without another one does nothing here: the other one may be a matter of policies.
    ///
    /// # Errors
    /// What is wrong with them, for people.
    pub fn under(
        options: &mut Options<'_>,
        (messages_max, bytes_max): (u64, u64),
    ) -> Result<Self, String> {
        let messages_max = options.declared_limit("x-max-length", messages_max, LENGTHS)?;
        let bytes_max = options.declared_limit("x-max-length-bytes", bytes_max, LENGTHS)?;
        let kinds = [("classic", Kind::Classic), ("stream", Kind::Stream)];
        if options.word("x-queue-type", &kinds)? == Some(Kind::Stream) {
            return Self::stream_under(options, (messages_max, bytes_max));
        }
        let ttl_ms = options.limit("x-message-ttl", 1..=u64::from(u32::MAX))?;
        let words = [
            ("reject-publish", Overflow::Refuse),
            ("drop-head", Overflow::DropHead),
            ("block", Overflow::Block),
        ];
        let overflow = options.word("x-overflow", &words)?;
        let exchange = options.text("x-dead-letter-exchange", NAME_BYTES_MAX)?;
        let routing_key = options.text("x-dead-letter-routing-key", KEY_BYTES_MAX)?;
        let returns_max = options.limit("x-delivery-limit", 0..=DELIVERY_LIMIT_MAX)?;
        let retry = retry(options)?;
        let rank_max = options.number("x-max-priority", 1..=u64::from(RANK_MAX))?;
        let rank_turn = options.number("x-priority-turn", 0..=PRIORITY_TURN_MAX)?;
        let dispatch = DispatchSettings::read(options)?;
        //= P-55
        if dispatch.is_grouped && rank_max.is_some() {
            return Err(
                "x-message-groups does not go with x-max-priority: a higher priority would pass \
                 earlier messages of its key"
                    .to_owned(),
            );
        }
        let mut overflow = overflow.unwrap_or(Overflow::Refuse);
        if dispatch.is_grouped && overflow == Overflow::DropHead {
            let is_own = options
                .sources()
                .iter()
                .any(|source| source.name == "x-overflow" && source.policy.is_none());
            if is_own {
                return Err(
                    "x-message-groups does not go with x-overflow drop-head: the oldest message may \
                     wait for its key"
                        .to_owned(),
                );
            }
            // What a policy says of it does nothing here.
            overflow = Overflow::Refuse;
        }
        //= P-76
        let expires_ms = options.limit("x-expires", 1..=u64::from(u32::MAX))?;
        let lifetime = Lifetime {
            expires_ms: expires_ms.map_or(0, |ms| ms as u32),
            is_auto_delete: options.flag("x-auto-delete")?,
            is_exclusive: options.flag("x-exclusive")?,
        };
        Ok(Self {
            queue: Settings {
                messages_max,
                bytes_max,
                overflow,
                ttl_ms: ttl_ms.map_or(0, |ms| ms as u32),
                returns_max: returns_max.map(|max| max as u32),
                has_dead_letters: exchange.is_some(),
                retry,
                rank_max: rank_max.map_or(0, |max| max as u8),
                rank_turn: rank_turn.map_or(0, |turn| turn as u32),
                dispatch,
                ..Settings::plain(Durability::Durable)
            },
            dead_letter: exchange.map(|exchange| DeadLetterTo {
                exchange: exchange.into(),
                routing_key: routing_key.map(Into::into),
            }),
            lifetime,
        })
    }
}

/// Reads the retry policy. What lacks its other half does nothing.
fn retry(options: &mut Options<'_>) -> Result<Option<Retry>, String> {
    let words = [
        ("fixed", Backoff::Fixed),
        ("linear", Backoff::Linear),
        ("exponential", Backoff::Exponential),
    ];
    let bounds = u64::from(RETRY_DELAY_MIN_MS)..=u64::from(RETRY_DELAY_MAX_MS);
    let backoff = options.word("x-retry", &words)?;
    let delay_ms = options.number("x-retry-delay", bounds.clone())?;
    let delay_max_ms = options.number("x-retry-delay-max", bounds)?;
    let jitter = options.number("x-retry-jitter", 0..=100)?;
    let (Some(backoff), Some(delay_ms)) = (backoff, delay_ms) else {
        return Ok(None);
    };
    let delay_max_ms = delay_max_ms.unwrap_or(u64::from(RETRY_DELAY_MAX_MS));
    Ok(Some(Retry {
        backoff,
        delay_ms: delay_ms as u32,
        delay_max_ms: delay_max_ms.max(delay_ms) as u32,
        jitter_percent: jitter.unwrap_or(0) as u8,
    }))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Classic,
    Stream,
}

/// Settings of queues that make no sense on a stream, and why.
//= P-81
const NOT_OF_STREAMS: [(&str, &str); 18] = [
    ("x-message-ttl", "x-max-age says how long it keeps messages"),
    ("x-overflow", "its limits always remove the oldest messages"),
    (
        "x-dead-letter-exchange",
        "what retention removes was not refused by anybody",
    ),
    ("x-dead-letter-routing-key", "it has no dead letters"),
    ("x-delivery-limit", "its messages do not come back"),
    ("x-dispatch", "every consumer gets every message"),
    ("x-sticky-header", "every consumer gets every message"),
    (
        "x-message-groups",
        "every consumer gets every message in order",
    ),
    (
        "x-group-ahead",
        "every consumer gets every message in order",
    ),
    (
        "x-single-active-consumer",
        "members of a group take turns (x-stream-group)",
    ),
    (
        "x-consumer-hold-max",
        "who holds a message keeps nobody from it",
    ),
    (
        "x-max-priority",
        "its messages are in the order in which they came",
    ),
    (
        "x-priority-turn",
        "its messages are in the order in which they came",
    ),
    ("x-retry", "its messages do not come back"),
    ("x-retry-delay", "its messages do not come back"),
    ("x-retry-delay-max", "its messages do not come back"),
    ("x-retry-jitter", "its messages do not come back"),
    ("x-exclusive", "it is read by any number of consumers"),
];

impl QueueSettings {
    /// Reads the settings of a stream. What policies say of those that make no sense there does nothing.
    fn stream_under(
        options: &mut Options<'_>,
        (messages_max, bytes_max): (u64, u64),
    ) -> Result<Self, String> {
        let max_age_ms = options.number("x-max-age", MAX_AGE_MS)?;
        for (name, why) in NOT_OF_STREAMS {
            if options.own(name).is_some() {
                return Err(format!("{name} makes no sense on a stream: {why}"));
            }
        }
        //= P-87
        let lanes = options.number("x-stream-lanes", 1..=u64::from(LANES_MAX))?;
        let lanes = lanes.filter(|lanes| *lanes > 1).unwrap_or(0) as u8;
        let header = options.text("x-stream-lane-header", NAME_BYTES_MAX)?;
        match header {
            Some(b"") => return Err("x-stream-lane-header is empty".to_owned()),
            Some(_) if lanes == 0 => {
                return Err("x-stream-lane-header needs x-stream-lanes above 1".to_owned());
            }
            _ => {}
        }
        for name in ["x-expires", "x-auto-delete"] {
            if lanes > 0 && options.has_own(name) {
                return Err(format!(
                    "{name} makes no sense on a stream of several lanes: none of them knows whether \
                     the others are used"
                ));
            }
        }
        let expires_ms = options.limit("x-expires", 1..=u64::from(u32::MAX))?;
        // A policy may say so all the same.
        let expires_ms = expires_ms.filter(|_| lanes == 0);
        let lifetime = Lifetime {
            expires_ms: expires_ms.map_or(0, |ms| ms as u32),
            is_auto_delete: options.flag("x-auto-delete")?,
            is_exclusive: false,
        };
        Ok(Self {
            queue: Settings {
                messages_max,
                bytes_max,
                overflow: Overflow::DropHead,
                stream: Some(StreamSettings {
                    max_age_ms: max_age_ms.unwrap_or(0),
                    lanes,
                }),
                ..Settings::plain(Durability::Durable)
            },
            dead_letter: None,
            lifetime,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::queue::Policy;
    use ringpost_wire::table::{TableWriter, Value};

    fn read(limit: u64, entries: &[(&str, Value<'_>)]) -> Result<QueueSettings, String> {
        let mut bytes = Vec::new();
        let mut writer = TableWriter::new(&mut bytes);
        for (name, value) in entries {
            writer.put(name.as_bytes(), *value);
        }
        writer.finish().expect("a small table");
        QueueSettings::read(Durability::Durable, (limit, 0), &bytes)
    }

    #[test]
    fn every_setting_is_read() {
        let all = read(
            7,
            &[
                ("x-message-ttl", Value::I64(i64::from(u32::MAX))),
                ("x-overflow", Value::Text(b"drop-head")),
                ("x-dead-letter-exchange", Value::Text(b"")),
                ("x-dead-letter-routing-key", Value::Text(b"dead")),
                ("x-delivery-limit", Value::I32(0)),
                ("x-retry", Value::Text(b"exponential")),
                ("x-retry-delay", Value::I32(1)),
                ("x-retry-delay-max", Value::I32(86_400_000)),
                ("x-retry-jitter", Value::I8(100)),
                ("x-max-priority", Value::I8(31)),
                ("x-priority-turn", Value::I32(1_000_000)),
                ("x-dispatch", Value::Text(b"least-outstanding")),
                ("x-single-active-consumer", Value::Bool(true)),
                ("x-consumer-hold-max", Value::I32(1_000)),
                ("x-expires", Value::I64(i64::from(u32::MAX))),
                ("x-auto-delete", Value::Bool(true)),
            ],
        );
        let expected = QueueSettings {
            queue: Settings {
                durability: Durability::Durable,
                messages_max: 7,
                bytes_max: 0,
                overflow: Overflow::DropHead,
                ttl_ms: u32::MAX,
                returns_max: Some(0),
                has_dead_letters: true,
                retry: Some(Retry {
                    backoff: Backoff::Exponential,
                    delay_ms: 1,
                    delay_max_ms: 86_400_000,
                    jitter_percent: 100,
                }),
                rank_max: 31,
                rank_turn: 1_000_000,
                dispatch: DispatchSettings {
                    policy: Policy::LeastOutstanding,
                    is_single_active: true,
                    hold_max_ms: 1_000,
                    ..DispatchSettings::DEFAULT
                },
                stream: None,
            },
            dead_letter: Some(DeadLetterTo {
                exchange: b""[..].into(),
                routing_key: Some(b"dead"[..].into()),
            }),
            lifetime: Lifetime {
                expires_ms: u32::MAX,
                is_auto_delete: true,
                is_exclusive: false,
            },
        };
        assert_eq!(all, Ok(expected));
        let none = read(0, &[]).expect("nothing is needed");
        assert_eq!(none.queue, Settings::plain(Durability::Durable));
        assert_eq!(none.dead_letter, None);
    }

    //= P-81
    #[test]
    fn a_stream_is_read_and_what_makes_no_sense_there_is_refused() {
        let stream = ("x-queue-type", Value::Text(b"stream"));
        let settings = read(5, &[stream, ("x-max-age", Value::I32(60_000))]).expect("it is right");
        let expected = Settings {
            messages_max: 5,
            overflow: Overflow::DropHead,
            stream: Some(StreamSettings {
                max_age_ms: 60_000,
                lanes: 0,
            }),
            ..Settings::plain(Durability::Durable)
        };
        assert_eq!(settings.queue, expected);
        let classic = read(0, &[("x-queue-type", Value::Text(b"classic"))]);
        assert_eq!(classic.map(|read| read.queue.stream), Ok(None));
        for (name, why) in NOT_OF_STREAMS {
            let refused = read(0, &[stream, (name, Value::I8(1))]);
            assert_eq!(
                refused,
                Err(format!("{name} makes no sense on a stream: {why}"))
            );
        }
        for (entry, reason) in [
            (
                ("x-max-age", Value::I32(999)),
                "x-max-age is 999, not 1000 to 315360000000",
            ),
            (
                ("x-max-ages", Value::I32(1_000)),
                "'x-max-ages' is no setting of a stream: they are x-queue-type, x-max-age, \
                 x-stream-lanes, x-stream-lane-header, x-expires, x-auto-delete",
            ),
        ] {
            assert_eq!(read(0, &[stream, entry]), Err(reason.to_owned()));
        }
        // However many lanes there are, one is enough by itself.
        for (lanes, expected) in [(1, 0), (2, 2), (64, 64)] {
            let settings = read(0, &[stream, ("x-stream-lanes", Value::I32(lanes))]);
            let settings = settings.expect("it is right").queue;
            assert_eq!(settings.stream.expect("it is one").lanes, expected);
        }
        let four = ("x-stream-lanes", Value::I8(4));
        let header = |name: &'static [u8]| ("x-stream-lane-header", Value::Text(name));
        assert!(read(0, &[stream, four, header(b"customer")]).is_ok());
        let lone = "makes no sense on a stream of several lanes: none of them knows whether the others \
                    are used";
        for (entries, reason) in [
            (
                &[stream, ("x-stream-lanes", Value::I8(0))][..],
                "x-stream-lanes is 0, not 1 to 64".to_owned(),
            ),
            (
                &[stream, ("x-stream-lanes", Value::I8(65))],
                "x-stream-lanes is 65, not 1 to 64".to_owned(),
            ),
            (
                &[stream, header(b"customer")],
                "x-stream-lane-header needs x-stream-lanes above 1".to_owned(),
            ),
            (
                &[stream, four, header(b"")],
                "x-stream-lane-header is empty".to_owned(),
            ),
            (
                &[stream, four, ("x-expires", Value::I32(1_000))],
                format!("x-expires {lone}"),
            ),
            (
                &[stream, four, ("x-auto-delete", Value::Bool(true))],
                format!("x-auto-delete {lone}"),
            ),
        ] {
            assert_eq!(read(0, entries), Err(reason));
        }
        assert!(read(0, &[four]).is_err_and(|text| text.contains("no setting of a queue")));
        let reason = "'x-max-age' is no setting of a queue";
        let refused = read(0, &[("x-max-age", Value::I32(1_000))]);
        assert!(refused.is_err_and(|text| text.starts_with(reason)));
        let arguments = {
            let mut bytes = Vec::new();
            let mut writer = TableWriter::new(&mut bytes);
            writer.put(b"x-queue-type", Value::Text(b"stream"));
            writer.finish().expect("a small table");
            bytes
        };
        let volatile = QueueSettings::read(Durability::Volatile, (0, 0), &arguments);
        let reason = "a stream is durable: what is only in memory cannot be read again";
        assert_eq!(volatile, Err(reason.to_owned()));
    }

    #[test]
    fn numbers_and_texts_are_taken_up_to_their_bounds() {
        let most = i64::from(u32::MAX);
        for (name, least, most) in [
            ("x-message-ttl", 1, most),
            ("x-expires", 1, most),
            ("x-delivery-limit", 0, 1_000_000),
            ("x-consumer-hold-max", 1_000, 86_400_000),
        ] {
            for number in [least, least + 1, most - 1, most] {
                let taken = read(0, &[(name, Value::I64(number))]);
                assert!(taken.is_ok(), "{name} {number}: {taken:?}");
            }
            for number in [least - 1, most + 1] {
                let refused = read(0, &[(name, Value::I64(number))]);
                let reason = format!("{name} is {number}, not {least} to {most}");
                assert_eq!(refused, Err(reason));
            }
        }
        let exchange = ("x-dead-letter-exchange", Value::Text(b"e"));
        let sticky = ("x-dispatch", Value::Text(b"sticky"));
        for (name, needs) in [
            ("x-dead-letter-exchange", exchange),
            ("x-dead-letter-routing-key", exchange),
            ("x-sticky-header", sticky),
        ] {
            for length in [254, 255, 256] {
                let text = vec![b'a'; length];
                let own = (name, Value::Text(&text[..]));
                let entries = match name == needs.0 {
                    true => vec![own],
                    false => vec![needs, own],
                };
                let taken = read(0, &entries);
                match length {
                    256 => {
                        let reason = format!("{name} has 256 bytes, at most 255 are allowed");
                        assert_eq!(taken, Err(reason));
                    }
                    _ => assert!(taken.is_ok(), "{name}: {taken:?}"),
                }
            }
        }
        let exclusive = [("x-exclusive", Value::Bool(true))];
        let reason = read(0, &exclusive).expect_err("it is durable");
        assert!(reason.starts_with("x-exclusive needs a volatile queue"));
    }

    #[test]
    fn bounds_are_kept() {
        for (limit, entries, reason) in [
            (
                0,
                &[("x-message-ttl", Value::I8(0))][..],
                "x-message-ttl is 0, not 1 to 4294967295",
            ),
            (
                0,
                &[("x-message-ttl", Value::I64(1 << 32))],
                "x-message-ttl is 4294967296, not 1 to 4294967295",
            ),
            (
                0,
                &[("x-delivery-limit", Value::I32(1_000_001))],
                "x-delivery-limit is 1000001, not 0 to 1000000",
            ),
            (
                0,
                &[("x-retry-delay", Value::I32(1))],
                "x-retry-delay needs x-retry",
            ),
            (
                0,
                &[("x-retry", Value::Text(b"fixed"))],
                "x-retry needs x-retry-delay",
            ),
            (
                0,
                &[("x-retry", Value::Text(b"often"))],
                "x-retry is 'often', not one of fixed, linear, exponential",
            ),
            (
                0,
                &[("x-retry-delay", Value::I32(0))],
                "x-retry-delay is 0, not 1 to 86400000",
            ),
            (
                0,
                &[("x-retry-delay-max", Value::I32(86_400_001))],
                "x-retry-delay-max is 86400001, not 1 to 86400000",
            ),
            (
                0,
                &[
                    ("x-retry", Value::Text(b"linear")),
                    ("x-retry-delay", Value::I32(100)),
                    ("x-retry-delay-max", Value::I32(99)),
                ],
                "x-retry-delay-max is 99, less than x-retry-delay with 100",
            ),
            (
                0,
                &[("x-retry-jitter", Value::I8(101))],
                "x-retry-jitter is 101, not 0 to 100",
            ),
            (
                0,
                &[("x-max-priority", Value::I8(0))],
                "x-max-priority is 0, not 1 to 31",
            ),
            (
                0,
                &[("x-max-priority", Value::I8(32))],
                "x-max-priority is 32, not 1 to 31",
            ),
            (
                0,
                &[("x-priority-turn", Value::I8(5))],
                "x-priority-turn needs x-max-priority",
            ),
            (
                1,
                &[("x-overflow", Value::Text(b"drop-tail"))],
                "x-overflow is 'drop-tail', not one of reject-publish, drop-head, block",
            ),
            (
                0,
                &[("x-overflow", Value::Text(b"drop-head"))],
                "x-overflow drop-head needs a limit of messages or bytes",
            ),
            (
                0,
                &[("x-dead-letter-routing-key", Value::Text(b"k"))],
                "x-dead-letter-routing-key needs x-dead-letter-exchange",
            ),
            (
                0,
                &[("x-dead-letter-exchange", Value::Text(&[b'e'; 256]))],
                "x-dead-letter-exchange has 256 bytes, at most 255 are allowed",
            ),
        ] {
            assert_eq!(read(limit, entries), Err(reason.to_owned()));
        }
    }
}
