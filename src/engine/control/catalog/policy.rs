//! Policies: options for all queues and exchanges whose names match a pattern, whenever they were
//! declared. Does not know what an option does, nor when those that change take effect.
//!
//! ```text
//! option of a queue = its argument ─┬─ a limit: the lower of both counts
//!                     its policies ─┘  anything else: the argument counts
//!                     ▲ of those that match and have the option: the one of the highest priority, of
//!                       these the last by name
//! ```

use regex_lite::{Regex, RegexBuilder};
use ringpost_wire::control::{ExchangeKind, PolicySet};
use ringpost_wire::ids::TenantId;
use ringpost_wire::limits::{PATTERN_BYTES_MAX, POLICY_PRIORITY_MAX, POLICY_QUEUES_AND_EXCHANGES};
use ringpost_wire::table::{Table, TableWriter, Value};

use super::settings::QueueSettings;
use super::{Catalog, Exchange, Queue};
use crate::control::words::quoted;
use crate::data::route::settings::Settings;
use crate::options::{Layer, Options, Source};

/// Most policies of a tenant.
pub const POLICIES_MAX: usize = 100;
/// Most bytes of a pattern's program.
const PROGRAM_BYTES_MAX: usize = 16 << 10;
/// Deepest nesting of a pattern.
const NEST_MAX: u32 = 16;

/// What a policy is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    /// Queues.
    Queues,
    /// Exchanges.
    Exchanges,
}

impl Subject {
    const fn bit(self) -> u8 {
        match self {
            Self::Queues => 1,
            Self::Exchanges => 2,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Queues => "queues",
            Self::Exchanges => "exchanges",
        }
    }
}

/// The options that a policy may set. How each is read, its bounds among that, stands where it is
/// read for a declaration; a limit is read with [`Options::limit`], anything else is not merged.
const OPTIONS: [(&str, Subject); 15] = [
    ("x-message-ttl", Subject::Queues),
    ("x-expires", Subject::Queues),
    ("x-max-length", Subject::Queues),
    ("x-max-length-bytes", Subject::Queues),
    ("x-overflow", Subject::Queues),
    ("x-delivery-limit", Subject::Queues),
    ("x-dead-letter-exchange", Subject::Queues),
    ("x-dead-letter-routing-key", Subject::Queues),
    ("x-retry", Subject::Queues),
    ("x-retry-delay", Subject::Queues),
    ("x-retry-delay-max", Subject::Queues),
    ("x-retry-jitter", Subject::Queues),
    ("x-priority-turn", Subject::Queues),
    ("x-consumer-hold-max", Subject::Queues),
    ("x-alternate-exchange", Subject::Exchanges),
];

/// The options that none may set, and why.
const FIXED: [(&str, &str); 12] = [
    (
        "x-queue-type",
        "the messages of a live queue are taken or read",
    ),
    (
        "x-max-priority",
        "messages of a live queue were ranked by it",
    ),
    (
        "x-dispatch",
        "consumers of a live queue stand in line by it",
    ),
    (
        "x-sticky-header",
        "the places of keys of a live queue come from it",
    ),
    (
        "x-message-groups",
        "the keys of a live queue are held by its consumers",
    ),
    (
        "x-group-ahead",
        "the keys of a live queue are held by its consumers",
    ),
    (
        "x-single-active-consumer",
        "consumers of a live queue were told who is active",
    ),
    (
        "x-auto-delete",
        "whoever declares something says how long it lives",
    ),
    ("x-exclusive", "it says whose a queue is"),
    (
        "x-internal",
        "producers of a live exchange may be publishing to it",
    ),
    (
        "x-hash-header",
        "the keys of a live exchange are spread by it",
    ),
    (
        "x-hash-property",
        "the keys of a live exchange are spread by it",
    ),
];

/// A policy. Equal ones do the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Whose it is.
    pub tenant: TenantId,
    /// Its name, unique in the tenant.
    pub name: Box<[u8]>,
    /// Of several that have an option the one of the highest priority counts.
    pub priority: i16,
    /// Bits of [`Subject`].
    pub applies: u8,
    /// A regular expression.
    pub pattern: Box<[u8]>,
    /// What it sets, a field table.
    pub options: Box<[u8]>,
    matcher: Matcher,
}

/// A pattern that was read. It says nothing that its text does not say.
#[derive(Clone, Debug)]
struct Matcher {
    /// Names begin with this.
    prefix: Box<str>,
    regex: Regex,
}

impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        self.regex.as_str() == other.regex.as_str()
    }
}

impl Eq for Matcher {}

impl Matcher {
    fn of(pattern: &[u8]) -> Result<Self, String> {
        if pattern.is_empty() || pattern.len() > PATTERN_BYTES_MAX {
            return Err(format!(
                "the pattern has {} bytes, not 1 to {PATTERN_BYTES_MAX}",
                pattern.len()
            ));
        }
        let text =
            std::str::from_utf8(pattern).map_err(|_| "the pattern is not UTF-8".to_owned())?;
        let regex = RegexBuilder::new(text)
            .size_limit(PROGRAM_BYTES_MAX)
            .nest_limit(NEST_MAX)
            .build()
            .map_err(|error| format!("the pattern {} is wrong: {error}", quoted(pattern)))?;
        Ok(Self {
            prefix: prefix_of(text).into(),
            regex,
        })
    }

    fn takes(&self, name: &[u8]) -> bool {
        // Most names are not those that a pattern is about, and most patterns say how these begin.
        name.starts_with(self.prefix.as_bytes())
            && std::str::from_utf8(name).is_ok_and(|name| self.regex.is_match(name))
    }
}

/// What every name begins with that the pattern takes, as far as that is plain to see.
fn prefix_of(pattern: &str) -> &str {
    let Some(rest) = pattern.strip_prefix('^') else {
        return "";
    };
    if rest.contains('|') {
        return "";
    }
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '/' | ':');
    let end = rest.find(|c| !is_plain(c)).unwrap_or(rest.len());
    let (plain, behind) = rest.split_at(end);
    match behind.chars().next() {
        // It is about the character before it.
        Some('?' | '*' | '{' | '+') => match plain.char_indices().last() {
            Some((at, _)) => &plain[..at],
            None => "",
        },
        _ => plain,
    }
}

impl Policy {
    /// The policy that was asked for.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    //= P-79
    pub fn of(tenant: TenantId, asked: &PolicySet<'_>) -> Result<Self, String> {
        let priority = asked.priority as i32;
        let bounds = -i32::from(POLICY_PRIORITY_MAX)..=i32::from(POLICY_PRIORITY_MAX);
        if !bounds.contains(&priority) {
            return Err(format!(
                "the priority is {priority}, not {} to {}",
                bounds.start(),
                bounds.end()
            ));
        }
        if asked.applies == 0 || asked.applies > POLICY_QUEUES_AND_EXCHANGES {
            return Err(format!(
                "a policy applies to queues (1), exchanges (2) or both (3), not {}",
                asked.applies
            ));
        }
        check_options(asked.applies, asked.options)?;
        Ok(Self {
            tenant,
            name: asked.name.into(),
            priority: priority as i16,
            applies: asked.applies,
            pattern: asked.pattern.into(),
            options: asked.options.into(),
            matcher: Matcher::of(asked.pattern)?,
        })
    }

    /// Whether it is about a thing of this kind and name.
    #[must_use]
    pub fn takes(&self, subject: Subject, name: &[u8]) -> bool {
        self.applies & subject.bit() != 0 && self.matcher.takes(name)
    }

    /// The policy as it is said in a list.
    #[must_use]
    pub fn info(&self) -> PolicySet<'_> {
        PolicySet {
            priority: i32::from(self.priority) as u32,
            applies: self.applies,
            flags: 0,
            reserved: 0,
            name: &self.name,
            pattern: &self.pattern,
            options: &self.options,
        }
    }

    /// Memory that it takes: with both catalogs, and the program of its pattern.
    pub(super) fn bytes(&self) -> u64 {
        let texts = self.name.len() + self.pattern.len() + self.options.len();
        super::ENTRY_BYTES + 2 * texts as u64 + PROGRAM_BYTES_MAX as u64
    }

    fn layer(&self) -> Layer<'_> {
        Layer {
            name: &self.name,
            options: Table::parse(&self.options).unwrap_or_default(),
        }
    }
}

/// Options that a policy may set, each once and within its bounds.
fn check_options(applies: u8, options: &[u8]) -> Result<(), String> {
    let table = Table::parse(options)
        .map_err(|_| "the options are not a field table within its limits".to_owned())?;
    if table.is_empty() {
        return Err("the policy sets no option".to_owned());
    }
    for (at, (name, _)) in table.entries().enumerate() {
        if table.entries().take(at).any(|(other, _)| other == name) {
            return Err(format!("{} is there twice", quoted(name)));
        }
        let fixed = FIXED.iter().find(|(fixed, _)| fixed.as_bytes() == name);
        if let Some((fixed, why)) = fixed {
            return Err(format!("{fixed} cannot be set by a policy: {why}"));
        }
        let known = OPTIONS.iter().find(|(known, _)| known.as_bytes() == name);
        let Some((known, subject)) = known else {
            let known: Vec<&str> = OPTIONS.iter().map(|(known, _)| *known).collect();
            return Err(format!(
                "{} is no option of policies: they are {}",
                quoted(name),
                known.join(", ")
            ));
        };
        if applies & subject.bit() == 0 {
            let word = subject.word();
            return Err(format!(
                "{known} is an option of {word}, and the policy does not apply to {word}"
            ));
        }
    }
    let layer = || {
        vec![Layer {
            name: b"",
            options: table,
        }]
    };
    QueueSettings::under(&mut Options::layered(b"", layer())?, (0, 0))?;
    Settings::under(ExchangeKind::Direct, &mut Options::layered(b"", layer())?)?;
    Ok(())
}

impl Catalog {
    /// A policy by name.
    #[must_use]
    pub fn policy(&self, tenant: TenantId, name: &[u8]) -> Option<&Policy> {
        self.tenant(tenant)?.policies.get(name)
    }

    /// The policies of a thing, the one that counts most first.
    fn layers(&self, tenant: TenantId, subject: Subject, name: &[u8]) -> Vec<Layer<'_>> {
        let Some(tenant) = self.tenant(tenant) else {
            return Vec::new();
        };
        let of_it = tenant.policies.values();
        let mut of_it: Vec<&Policy> = of_it.filter(|policy| policy.takes(subject, name)).collect();
        let rank = |policy: &Policy| match crate::mutant!(PoliciesByName) {
            true => 0,
            false => policy.priority,
        };
        of_it.sort_by(|a, b| (rank(b), &b.name).cmp(&(rank(a), &a.name)));
        of_it.iter().map(|policy| policy.layer()).collect()
    }

    fn options_in<'a>(&'a self, queue: &'a Queue) -> Options<'a> {
        let layers = self.layers(queue.tenant, Subject::Queues, self.common_name(queue));
        Options::layered(&queue.arguments, layers)
            .expect("a declaration is checked before it holds")
    }

    /// What a queue is, by its arguments and its policies.
    ///
    /// # Panics
    /// If either was not checked before it came to hold.
    #[must_use]
    pub fn settings_of(&self, queue: &Queue) -> QueueSettings {
        let limits = (queue.messages_max, queue.bytes_max);
        let read = QueueSettings::under(&mut self.options_in(queue), limits);
        let mut settings = read.expect("a declaration is checked before it holds");
        settings.queue.durability = queue.durability;
        settings
    }

    /// The options of a queue that are set, as a field table: each a table of its `value` and, if it
    /// is a policy's, the name of that `policy`.
    #[must_use]
    pub fn options_of(&self, queue: &Queue) -> Vec<u8> {
        let limits = (queue.messages_max, queue.bytes_max);
        let mut options = self.options_in(queue);
        let read = QueueSettings::under(&mut options, limits);
        read.expect("a declaration is checked before it holds");
        let mut entries: Vec<(&str, Vec<u8>)> = Vec::new();
        for Source {
            name,
            value,
            policy,
        } in options.sources()
        {
            let mut entry = Vec::new();
            let mut writer = TableWriter::new(&mut entry);
            writer.put(b"value", *value);
            if let Some(policy) = policy {
                writer.put(b"policy", Value::Text(policy));
            }
            writer
                .finish()
                .expect("a value and a name are within limits");
            entries.push((name, entry));
        }
        let mut out = Vec::new();
        let mut writer = TableWriter::new(&mut out);
        for (name, entry) in &entries {
            let table = Table::parse(entry).expect("it was just written");
            writer.put(name.as_bytes(), Value::Table(table));
        }
        writer
            .finish()
            .expect("there are few options, and each is short");
        out
    }

    /// Who takes what an exchange does not route: the name of an exchange, which need not exist.
    #[must_use]
    pub fn alternate_of(&self, exchange: &Exchange) -> Option<Box<[u8]>> {
        let layers = self.layers(exchange.tenant, Subject::Exchanges, &exchange.name);
        let mut options = Options::layered(&exchange.arguments, layers)
            .expect("a declaration is checked before it holds");
        let settings = Settings::under(exchange.kind, &mut options);
        settings
            .expect("a declaration is checked before it holds")
            .alternate
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Change, Plan, Request, TENANT_DEFAULT};
    use super::*;
    use crate::data::queue::Overflow;
    use ringpost_wire::Code;
    use ringpost_wire::control::{Durability, PARTITION_BY_NAME, QueueDeclare};
    use std::collections::BTreeSet;

    fn table(entries: &[(&str, Value<'_>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = TableWriter::new(&mut bytes);
        for (name, value) in entries {
            writer.put(name.as_bytes(), *value);
        }
        writer.finish().expect("a small table");
        bytes
    }

    fn set<'a>(name: &'a str, pattern: &'a str, priority: i32, options: &'a [u8]) -> PolicySet<'a> {
        PolicySet {
            priority: priority as u32,
            applies: 1,
            flags: 0,
            reserved: 0,
            name: name.as_bytes(),
            pattern: pattern.as_bytes(),
            options,
        }
    }

    fn apply(catalog: &mut Catalog, request: &Request<'_>) {
        let Ok(Plan::Apply(change)) = catalog.plan(TENANT_DEFAULT, request) else {
            panic!("{request:?} changes something");
        };
        assert_eq!(catalog.apply(&change), Ok(catalog.version()));
        catalog.invariants();
    }

    fn refused(catalog: &Catalog, asked: PolicySet<'_>) -> (Code, String) {
        let plan = catalog.plan(TENANT_DEFAULT, &Request::PolicySet(asked));
        plan.expect_err("it is wrong")
    }

    fn queue<'a>(name: &'a str, messages_max: u64, arguments: &'a [u8]) -> Request<'a> {
        Request::QueueDeclare(QueueDeclare {
            messages_max,
            bytes_max: 0,
            durability: Durability::Durable as u8,
            flags: 0,
            partition: PARTITION_BY_NAME,
            name: name.as_bytes(),
            arguments,
        })
    }

    fn settings(catalog: &Catalog, name: &str) -> QueueSettings {
        let queue = catalog.queue_by_name(TENANT_DEFAULT, name.as_bytes());
        catalog.settings_of(queue.expect("it was declared"))
    }

    /// Whoever adds an option says whether policies may set it.
    #[test]
    fn every_option_may_be_set_or_may_not() {
        let mut options = Options::of(b"").expect("nothing is wrong with it");
        QueueSettings::under(&mut options, (0, 0)).expect("nothing is needed");
        let mut known: BTreeSet<&str> = options.known().iter().copied().collect();
        for kind in ExchangeKind::ALL {
            let mut options = Options::of(b"").expect("nothing is wrong with it");
            Settings::under(kind, &mut options).expect("nothing is needed");
            known.extend(options.known());
        }
        let settable = OPTIONS.iter().map(|(name, _)| *name);
        // A declaration has fields for them.
        let settable = settable.filter(|name| !name.starts_with("x-max-length"));
        let fixed = FIXED.iter().map(|(name, _)| *name);
        let listed: Vec<&str> = settable.chain(fixed).collect();
        assert_eq!(listed.iter().copied().collect::<BTreeSet<_>>(), known);
        assert_eq!(listed.len(), known.len(), "each once");
    }

    //= P-79
    #[test]
    fn a_policy_is_checked_when_it_is_set() {
        let catalog = Catalog::new(8);
        let ttl = table(&[("x-message-ttl", Value::I32(5))]);
        let long = "a".repeat(PATTERN_BYTES_MAX + 1);
        let deep = "(".repeat(17) + &")".repeat(17);
        for (asked, reason) in [
            (
                set("p", "", 0, &ttl),
                "the pattern has 0 bytes, not 1 to 255",
            ),
            (set("p", &long, 0, &ttl), "the pattern has 256 bytes"),
            (set("p", "a(", 0, &ttl), "the pattern 'a(' is wrong: "),
            (set("p", "(a{1000}){1000}", 0, &ttl), "is wrong: "),
            (set("p", &deep, 0, &ttl), "is wrong: "),
            (
                set("p", "a", 1_001, &ttl),
                "the priority is 1001, not -1000 to 1000",
            ),
            (
                set("p", "a", -1_001, &ttl),
                "the priority is -1001, not -1000 to 1000",
            ),
            (set("p", "a", 0, b""), "the policy sets no option"),
            (set("p", "a", 0, b"\xff"), "not a field table"),
            (
                set("p", "a", 0, &table(&[("x-message-ttl", Value::I32(0))])),
                "x-message-ttl is 0, not 1 to 4294967295",
            ),
            (
                set("p", "a", 0, &table(&[("x-max-length", Value::I8(0))])),
                "x-max-length is 0, not 1 to 9223372036854775807",
            ),
            (
                set("p", "a", 0, &table(&[("x-expires", Value::Text(b"1h"))])),
                "x-expires is not a whole number",
            ),
            (
                set(
                    "p",
                    "a",
                    0,
                    &table(&[("x-dispatch", Value::Text(b"random"))]),
                ),
                "x-dispatch cannot be set by a policy: consumers of a live queue stand in line by it",
            ),
            (
                set("p", "a", 0, &table(&[("x-ttl", Value::I8(1))])),
                "'x-ttl' is no option of policies: they are x-message-ttl, x-expires, ",
            ),
            (
                set("p", "a", 0, &table(&[("owner", Value::I8(1))])),
                "'owner' is no option of policies",
            ),
            (
                set(
                    "p",
                    "a",
                    0,
                    &table(&[("x-expires", Value::I8(1)), ("x-expires", Value::I8(2))]),
                ),
                "'x-expires' is there twice",
            ),
            (
                set(
                    "p",
                    "a",
                    0,
                    &table(&[("x-alternate-exchange", Value::Text(b"a"))]),
                ),
                "x-alternate-exchange is an option of exchanges, and the policy does not apply to \
                 exchanges",
            ),
            (
                PolicySet {
                    applies: 0,
                    ..set("p", "a", 0, &ttl)
                },
                "applies to queues (1), exchanges (2) or both (3), not 0",
            ),
            (
                PolicySet {
                    applies: 4,
                    ..set("p", "a", 0, &ttl)
                },
                "not 4",
            ),
            (
                PolicySet {
                    flags: 1,
                    ..set("p", "a", 0, &ttl)
                },
                "flags 0x1 are not all known",
            ),
        ] {
            let (code, said) = refused(&catalog, asked);
            assert_eq!(code, Code::SettingInvalid);
            assert!(said.contains(reason), "{said}");
        }
        let (code, _) = refused(&catalog, set("amq.p", "a", 0, &ttl));
        assert_eq!(code, Code::NameInvalid);
        let at_most = "a".repeat(PATTERN_BYTES_MAX);
        let fit = "a".repeat(PATTERN_BYTES_MAX - 1);
        for asked in [
            set("p", &at_most, 1_000, &ttl),
            set("p", &fit, 999, &ttl),
            set("p", "a", -1_000, &ttl),
            set("p", "a", -999, &ttl),
        ] {
            let plan = catalog.plan(TENANT_DEFAULT, &Request::PolicySet(asked));
            assert!(matches!(plan, Ok(Plan::Apply(_))), "{asked:?}");
        }
    }

    #[test]
    fn there_are_so_many_policies_and_no_more() {
        let mut catalog = Catalog::new(8);
        let ttl = table(&[("x-message-ttl", Value::I32(5))]);
        for number in 0..POLICIES_MAX {
            let name = format!("p{number}");
            apply(&mut catalog, &Request::PolicySet(set(&name, "a", 0, &ttl)));
        }
        let (code, reason) = refused(&catalog, set("more", "a", 0, &ttl));
        assert_eq!(code, Code::LimitReached);
        assert_eq!(reason, "100 of 100 policies of the tenant exist");
        // One that is there may change, and the same one changes nothing.
        apply(&mut catalog, &Request::PolicySet(set("p0", "b", 0, &ttl)));
        let same = catalog.plan(TENANT_DEFAULT, &Request::PolicySet(set("p0", "b", 0, &ttl)));
        assert_eq!(same, Ok(Plan::AlreadyExists));
        apply(&mut catalog, &Request::PolicyDelete { name: b"p0" });
        let gone = catalog.plan(TENANT_DEFAULT, &Request::PolicyDelete { name: b"p0" });
        assert_eq!(
            gone,
            Err((Code::PolicyUnknown, "no policy 'p0'".to_owned()))
        );
        // A tenant takes them along.
        apply(&mut catalog, &Request::TenantDeclare { name: b"blue" });
        let blue = catalog.tenant_by_name(b"blue").expect("just declared").id;
        let asked = Request::PolicySet(set("p", "a", 0, &ttl));
        let Ok(Plan::Apply(change)) = catalog.plan(blue, &asked) else {
            panic!("it is a sound policy");
        };
        assert!(catalog.apply(&change).is_ok());
        let before = catalog.bytes();
        apply(&mut catalog, &Request::TenantDelete { name: b"blue" });
        assert!(catalog.bytes() < before);
        assert!(
            catalog
                .check(&Change::PolicySet(policy_of(blue, &ttl)))
                .is_err()
        );
    }

    fn policy_of(tenant: TenantId, options: &[u8]) -> Policy {
        Policy::of(tenant, &set("p", "a", 0, options)).expect("it is a sound policy")
    }

    //= P-79
    #[test]
    fn the_highest_priority_counts_option_by_option() {
        let mut catalog = Catalog::new(8);
        apply(&mut catalog, &queue("orders.eu", 0, b""));
        apply(&mut catalog, &queue("mails", 0, b""));
        let low = table(&[
            ("x-message-ttl", Value::I32(100)),
            ("x-expires", Value::I32(7)),
            ("x-overflow", Value::Text(b"drop-head")),
        ]);
        let high = table(&[("x-message-ttl", Value::I32(200))]);
        apply(
            &mut catalog,
            &Request::PolicySet(set("z", "^orders", 1, &low)),
        );
        apply(&mut catalog, &Request::PolicySet(set("a", "eu$", 2, &high)));
        let found = settings(&catalog, "orders.eu");
        // A higher number counts here: one policy overrides the other.
        assert_eq!(found.queue.ttl_ms, 200);
        assert_eq!(found.lifetime.expires_ms, 7);
        assert_eq!(found.queue.overflow, Overflow::DropHead);
        assert_eq!(settings(&catalog, "mails").queue.ttl_ms, 0);
        // Of one priority the last by name counts, whichever was set last.
        apply(
            &mut catalog,
            &Request::PolicySet(set("z", "^orders", 2, &low)),
        );
        assert_eq!(settings(&catalog, "orders.eu").queue.ttl_ms, 100);
        apply(
            &mut catalog,
            &Request::PolicySet(set("a", "", 2, &high).with(".")),
        );
        assert_eq!(settings(&catalog, "orders.eu").queue.ttl_ms, 100);
        assert_eq!(settings(&catalog, "mails").queue.ttl_ms, 200);
        apply(&mut catalog, &Request::PolicyDelete { name: b"z" });
        let found = settings(&catalog, "orders.eu");
        assert_eq!((found.queue.ttl_ms, found.lifetime.expires_ms), (200, 0));
    }

    trait With<'a> {
        fn with(self, pattern: &'a str) -> Self;
    }

    impl<'a> With<'a> for PolicySet<'a> {
        fn with(self, pattern: &'a str) -> Self {
            PolicySet {
                pattern: pattern.as_bytes(),
                ..self
            }
        }
    }

    //= P-79
    #[test]
    fn of_limits_the_lower_counts_and_else_the_argument() {
        let mut catalog = Catalog::new(8);
        let own = table(&[
            ("x-message-ttl", Value::I32(50)),
            ("x-delivery-limit", Value::I8(9)),
            ("x-dead-letter-exchange", Value::Text(b"mine")),
            ("owner", Value::Text(b"me")),
        ]);
        apply(&mut catalog, &queue("q", 10, &own));
        let options = table(&[
            ("x-message-ttl", Value::I64(100)),
            ("x-delivery-limit", Value::I8(3)),
            ("x-max-length", Value::I8(7)),
            ("x-max-length-bytes", Value::I64(i64::MAX)),
            ("x-dead-letter-exchange", Value::Text(b"theirs")),
            ("x-dead-letter-routing-key", Value::Text(b"dead")),
        ]);
        apply(
            &mut catalog,
            &Request::PolicySet(set("p", "q", 0, &options)),
        );
        let found = settings(&catalog, "q");
        assert_eq!(found.queue.ttl_ms, 50);
        assert_eq!(found.queue.returns_max, Some(3));
        assert_eq!(found.queue.messages_max, 7);
        assert_eq!(found.queue.bytes_max, i64::MAX as u64);
        let to = found.dead_letter.expect("it has an exchange");
        assert_eq!(&*to.exchange, b"mine");
        assert_eq!(to.routing_key.as_deref(), Some(&b"dead"[..]));
        let queue = catalog.queue_by_name(TENANT_DEFAULT, b"q");
        let shown = catalog.options_of(queue.expect("it is there"));
        let shown = Table::parse(&shown).expect("just written");
        let all: Vec<(&[u8], Value<'_>, Option<Value<'_>>)> = shown
            .entries()
            .map(|(name, entry)| {
                let Value::Table(entry) = entry else {
                    panic!("each is a table");
                };
                let value = entry.get(b"value").expect("each has one");
                (name, value, entry.get(b"policy"))
            })
            .collect();
        let by = Some(Value::Text(b"p"));
        assert_eq!(
            all,
            [
                (&b"x-max-length"[..], Value::I64(7), by),
                (b"x-max-length-bytes", Value::I64(i64::MAX), by),
                (b"x-message-ttl", Value::I64(50), None),
                (b"x-dead-letter-exchange", Value::Text(b"mine"), None),
                (b"x-dead-letter-routing-key", Value::Text(b"dead"), by),
                (b"x-delivery-limit", Value::I64(3), by),
            ]
        );
    }

    #[test]
    fn a_prefix_never_hides_a_match() {
        for (pattern, prefix) in [
            ("^orders", "orders"),
            ("^orders\\.eu", "orders"),
            ("^orders?", "order"),
            ("^a*b", ""),
            ("^ab|c", ""),
            ("orders", ""),
            ("^(?i)orders", ""),
            ("^größe.", "größe"),
            ("^ab{0,3}", "a"),
            ("^$", ""),
        ] {
            assert_eq!(prefix_of(pattern), prefix, "{pattern}");
            let matcher = Matcher::of(pattern.as_bytes()).expect("a sound pattern");
            for name in [
                "orders",
                "orders.eu",
                "order",
                "b",
                "c",
                "größe1",
                "abbb",
                "a",
                "ORDERS",
            ] {
                let is_match = matcher.regex.is_match(name);
                assert_eq!(matcher.takes(name.as_bytes()), is_match, "{pattern} {name}");
            }
        }
    }
}
