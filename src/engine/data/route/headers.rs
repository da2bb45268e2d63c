//! Headers bindings: field tables compared with the headers of messages.
//! Does not know exchanges, only one set of bindings, nor how a field table is written.
//!
//! `x-match` of a binding says which of its other arguments must be headers of the message with an
//! equal value: `all` (also when it is missing), `any`, `all-with-x`, `any-with-x`. The plain two
//! leave out arguments whose name starts with `x-`. No argument to compare: `all` matches every
//! message, `any` none. A void value matches any value of a header that is there; what else is equal
//! `ringpost_wire::table` says: integers of any width by their numbers. Of several headers with one
//! name the first counts, and headers that are no field table count as none.

use std::collections::BTreeMap;

use ringpost_wire::limits::HEADERS_COUNT_MAX;
use ringpost_wire::table::{self as fields, TableWriter, Value};

use super::{Binding, Hop};
use crate::data::table::Table;

/// The bindings of one headers exchange.
///
/// Each name that a binding compares has a number. A message's headers are looked up once each and
/// noted under their number; then every binding compares by index, so that the cost is headers +
/// arguments, not their product. It still grows with the number of bindings: that is the kind's
/// nature, and the reason to prefer topics.
pub(super) struct HeaderBindings {
    /// In order of where they lead, queues first, so that answers come out sorted and other bindings
    /// of a queue or exchange that matched are passed over.
    bindings: BTreeMap<Key, Pattern>,
    names: Table<Box<[u8]>, u32>,
    /// By name number.
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Counts messages; a slot with this mark was seen in the current one.
    mark: u64,
    /// Values of the current message's headers that bindings ask for; empty between messages.
    values: Vec<Value<'static>>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    order: (bool, u32),
    key: Box<[u8]>,
    arguments: Box<[u8]>,
}

struct Pattern {
    hop: Hop,
    any: bool,
    /// What is compared: name number and value.
    terms: Box<[(u32, Owned)]>,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    /// Terms that use the name.
    uses: u32,
    /// Where the value of the message's header lies in `values`.
    at: u32,
    /// Last message that had a header of this name.
    mark: u64,
}

impl HeaderBindings {
    pub fn new() -> Self {
        Self {
            bindings: BTreeMap::new(),
            names: Table::new(),
            slots: Vec::new(),
            free: Vec::new(),
            mark: 0,
            values: Vec::with_capacity(HEADERS_COUNT_MAX),
        }
    }

    /// Calls `found` with every queue and exchange that a binding leads to, each once, in order.
    pub fn matches(&mut self, headers: &[u8], mut found: impl FnMut(Hop)) {
        self.mark += 1;
        let mut values: Vec<Value<'_>> = std::mem::take(&mut self.values);
        for (name, value) in fields::Table::parse(headers).unwrap_or_default().entries() {
            if let Some(number) = self.names.get(name) {
                let slot = &mut self.slots[*number as usize];
                if slot.mark != self.mark {
                    slot.mark = self.mark;
                    slot.at = values.len() as u32;
                    values.push(value);
                }
            }
        }
        let mut last = None;
        for (key, pattern) in &self.bindings {
            if last != Some(key.order) && self.holds(pattern, &values) {
                found(pattern.hop);
                last = Some(key.order);
            }
        }
        values.clear();
        // An empty vector collected in place: the memory stays, the borrow of `headers` ends.
        self.values = values.into_iter().map(|_| Value::Void).collect();
    }

    fn holds(&self, pattern: &Pattern, values: &[Value<'_>]) -> bool {
        let term_holds = |(number, expected): &(u32, Owned)| {
            let slot = &self.slots[*number as usize];
            slot.mark == self.mark && expected.accepts(&values[slot.at as usize])
        };
        if pattern.any {
            pattern.terms.iter().any(term_holds)
        } else {
            pattern.terms.iter().all(term_holds)
        }
    }

    pub fn bind(&mut self, hop: Hop, binding: &Binding<'_>) {
        let rule = Rule::of(binding.arguments);
        let mut terms = Vec::new();
        for (name, value) in rule.terms(binding.arguments) {
            terms.push((self.take_name(name), Owned::of(value)));
        }
        let pattern = Pattern {
            hop,
            any: rule.any,
            terms: terms.into(),
        };
        let before = self.bindings.insert(Key::of(hop, binding), pattern);
        assert!(before.is_none(), "the binding is new");
    }

    pub fn unbind(&mut self, hop: Hop, binding: &Binding<'_>) {
        let pattern = self.bindings.remove(&Key::of(hop, binding));
        let pattern = pattern.expect("the binding exists");
        let names = Rule::of(binding.arguments).terms(binding.arguments);
        for ((name, _), (number, _)) in names.zip(&pattern.terms) {
            let slot = &mut self.slots[*number as usize];
            slot.uses -= 1;
            if slot.uses == 0 {
                self.names.remove(name);
                self.free.push(*number);
            }
        }
    }

    /// The number of a name, used once more.
    fn take_name(&mut self, name: &[u8]) -> u32 {
        if let Some(number) = self.names.get(name) {
            self.slots[*number as usize].uses += 1;
            return *number;
        }
        let slot = Slot {
            uses: 1,
            ..Slot::default()
        };
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[number as usize] = slot;
                number
            }
            None => {
                self.slots.push(slot);
                u32::try_from(self.slots.len() - 1).expect("bindings are limited")
            }
        };
        self.names.insert(name.into(), number);
        number
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.bindings.len()
    }

    #[cfg(test)]
    pub fn names(&self) -> usize {
        self.names.len()
    }
}

impl Key {
    fn of(hop: Hop, binding: &Binding<'_>) -> Self {
        Self {
            order: hop.order(),
            key: binding.key.into(),
            arguments: binding.arguments.into(),
        }
    }
}

/// How a binding compares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rule {
    any: bool,
    with_x: bool,
}

impl Rule {
    const ALL: Self = Self {
        any: false,
        with_x: false,
    };

    fn of_word(word: &[u8]) -> Option<Self> {
        let (any, with_x) = match word {
            b"all" => (false, false),
            b"any" => (true, false),
            b"all-with-x" => (false, true),
            b"any-with-x" => (true, true),
            _ => return None,
        };
        Some(Self { any, with_x })
    }

    fn of(arguments: &[u8]) -> Self {
        let word = fields::Table::parse(arguments)
            .unwrap_or_default()
            .get(b"x-match");
        word.and_then(|word| Self::of_word(word.as_text()?))
            .unwrap_or(Self::ALL)
    }

    /// What is compared of a binding's arguments: of several with one name the first.
    //= P-65
    fn terms<'a>(self, arguments: &'a [u8]) -> impl Iterator<Item = (&'a [u8], Value<'a>)> {
        let table = fields::Table::parse(arguments).unwrap_or_default();
        let terms = table.entries().enumerate().filter(move |(at, (name, _))| {
            *name != b"x-match"
                && (self.with_x || !name.starts_with(b"x-"))
                && (table.entries().take(*at).all(|(before, _)| before != *name)
                    || crate::mutant!(RepeatedArguments))
        });
        terms.map(|(_, term)| term)
    }
}

/// A value that a binding asks for.
enum Owned {
    Void,
    Bool(bool),
    /// Every integer.
    Int(i64),
    /// Either width.
    Float(f64),
    Decimal {
        scale: u8,
        value: u32,
    },
    Timestamp(u64),
    Text(Box<[u8]>),
    Bytes(Box<[u8]>),
    Array(Box<[u8]>),
    Table(Box<[u8]>),
}

impl Owned {
    fn of(value: Value<'_>) -> Self {
        if let Some(value) = value.as_integer() {
            return Self::Int(value);
        }
        if let Some(value) = value.as_float() {
            return Self::Float(value);
        }
        match value {
            Value::Bool(value) => Self::Bool(value),
            Value::Decimal { scale, value } => Self::Decimal { scale, value },
            Value::Timestamp(value) => Self::Timestamp(value),
            Value::Text(bytes) => Self::Text(bytes.into()),
            Value::Bytes(bytes) => Self::Bytes(bytes.into()),
            Value::Array(array) => Self::Array(array.as_bytes().into()),
            Value::Table(table) => Self::Table(table.as_bytes().into()),
            _ => Self::Void,
        }
    }

    //= P-66
    fn accepts(&self, value: &Value<'_>) -> bool {
        match self {
            Self::Void => true,
            Self::Int(own) => value.as_integer() == Some(*own),
            Self::Text(own) => value.as_text() == Some(own),
            Self::Bool(own) => value.as_bool() == Some(*own),
            Self::Float(own) => value.is_same(&Value::F64(*own)),
            Self::Decimal {
                scale,
                value: number,
            } => value.is_same(&Value::Decimal {
                scale: *scale,
                value: *number,
            }),
            Self::Timestamp(own) => value.is_same(&Value::Timestamp(*own)),
            Self::Bytes(own) => value.is_same(&Value::Bytes(own)),
            // Checked again for every comparison: composite arguments are rare.
            Self::Array(own) => {
                fields::Array::parse(own).is_ok_and(|own| value.is_same(&Value::Array(own)))
            }
            Self::Table(own) => {
                fields::Table::parse(own).is_ok_and(|own| value.is_same(&Value::Table(own)))
            }
        }
    }
}

/// Whether `arguments` may be those of a binding to a headers exchange.
///
/// # Errors
/// What is wrong with them, for people.
pub fn check_binding_arguments(arguments: &[u8]) -> Result<(), String> {
    check_table(arguments)?;
    let table = fields::Table::parse(arguments).unwrap_or_default();
    let Some(value) = table.get(b"x-match") else {
        return Ok(());
    };
    match value.as_text() {
        Some(word) if Rule::of_word(word).is_some() => Ok(()),
        Some(word) => Err(format!(
            "x-match is {:?}, not all, any, all-with-x or any-with-x",
            String::from_utf8_lossy(word)
        )),
        None => Err("x-match is not text".to_owned()),
    }
}

/// Whether `arguments` are a field table, to the last byte.
///
/// # Errors
/// What is wrong, for people.
pub fn check_table(arguments: &[u8]) -> Result<(), String> {
    fields::Table::parse(arguments)
        .map(|_| ())
        .map_err(|_| "arguments are not a field table within its limits".to_owned())
}

/// The fields of a sound table in order of their names; fields of one name keep their order.
#[must_use]
pub fn sorted_table(table: &[u8]) -> Vec<u8> {
    let parsed = fields::Table::parse(table).unwrap_or_default();
    let mut entries: Vec<_> = parsed.entries().collect();
    entries.sort_by_key(|(name, _)| *name);
    let mut sorted = Vec::with_capacity(table.len());
    let mut writer = TableWriter::new(&mut sorted);
    for (name, value) in entries {
        writer.put(name, value);
    }
    writer.finish().expect("as large as the table it came from");
    sorted
}

/// The name of a field that two sound tables do not share with the same value; `None` if they mean
/// the same. The order of fields and the widths of numbers do not matter.
#[must_use]
pub fn table_difference<'a>(left: &'a [u8], right: &'a [u8]) -> Option<&'a [u8]> {
    if left == right {
        return None;
    }
    let left = fields::Table::parse(left).unwrap_or_default();
    let right = fields::Table::parse(right).unwrap_or_default();
    for (one, other) in [(left, right), (right, left)] {
        for (name, value) in one.entries() {
            if !other.get(name).is_some_and(|same| same.is_same(&value)) {
                return Some(name);
            }
        }
    }
    None
}

/// The value of a field as it is shown to people.
#[must_use]
pub fn shown(table: &[u8], name: &[u8]) -> String {
    match fields::Table::parse(table).unwrap_or_default().get(name) {
        None => "nothing".to_owned(),
        Some(Value::Text(text)) => format!("'{}'", String::from_utf8_lossy(text).escape_debug()),
        Some(value) => match (value.as_integer(), value.as_bool()) {
            (Some(number), _) => number.to_string(),
            (None, Some(flag)) => flag.to_string(),
            (None, None) => format!("{value:?}"),
        },
    }
}

/// Whether a binding's arguments match a message's headers, said as plainly as possible: what the
/// bindings are tested against.
#[cfg(test)]
pub(crate) fn naive_match(arguments: &[u8], headers: &[u8]) -> bool {
    let rule = Rule::of(arguments);
    let headers = fields::Table::parse(headers).unwrap_or_default();
    let mut matches = rule.terms(arguments).map(|(name, expected)| {
        headers
            .get(name)
            .is_some_and(|value| expected == Value::Void || value.is_same(&expected))
    });
    if rule.any {
        matches.any(|one| one)
    } else {
        matches.all(|one| one)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Destination, End};
    use super::*;
    use ringpost_wire::ids::{PartitionId, QueueId};
    use ringpost_wire::limits::HEADERS_DEPTH_MAX;

    /// Appends one field.
    fn field(mut table: Vec<u8>, name: &str, tag: u8, value: &[u8]) -> Vec<u8> {
        table.push(name.len() as u8);
        table.extend_from_slice(name.as_bytes());
        table.push(tag);
        if matches!(tag, b'S' | b'x' | b'A' | b'F') {
            table.extend_from_slice(&(value.len() as u32).to_be_bytes());
        }
        table.extend_from_slice(value);
        table
    }

    fn text(table: Vec<u8>, name: &str, value: &str) -> Vec<u8> {
        field(table, name, b'S', value.as_bytes())
    }

    fn rule(word: &str) -> Vec<u8> {
        text(Vec::new(), "x-match", word)
    }

    fn matches(arguments: &[u8], headers: &[u8]) -> bool {
        let queue = Destination {
            queue: QueueId(9),
            partition: PartitionId(0),
            durable: false,
        };
        let binding = Binding {
            end: End::Queue(queue),
            name: b"q",
            key: b"",
            arguments,
        };
        let mut bindings = HeaderBindings::new();
        bindings.bind(Hop::Queue(queue), &binding);
        let mut found = Vec::new();
        bindings.matches(headers, |queue| found.push(queue));
        assert_eq!(!found.is_empty(), naive_match(arguments, headers));
        bindings.unbind(Hop::Queue(queue), &binding);
        assert_eq!((bindings.len(), bindings.names()), (0, 0));
        !found.is_empty()
    }

    //= P-66
    #[test]
    fn all_and_any() {
        let one = text(Vec::new(), "a", "1");
        let both = text(one.clone(), "b", "2");
        let other = text(Vec::new(), "a", "2");
        for word in ["all", "all-with-x"] {
            let arguments = [rule(word), both.clone()].concat();
            assert!(matches(&arguments, &both));
            assert!(matches(&arguments, &text(both.clone(), "c", "3")));
            assert!(!matches(&arguments, &one));
            assert!(!matches(&arguments, b""));
        }
        for word in ["any", "any-with-x"] {
            let arguments = [rule(word), both.clone()].concat();
            assert!(matches(&arguments, &one));
            assert!(!matches(&arguments, &other));
            assert!(!matches(&arguments, b""));
        }
        // No rule is `all`.
        assert!(matches(&both, &both));
        assert!(!matches(&both, &one));
    }

    #[test]
    fn nothing_to_compare() {
        let headers = text(Vec::new(), "a", "1");
        for arguments in [Vec::new(), rule("all"), rule("all-with-x")] {
            assert!(matches(&arguments, b""));
            assert!(matches(&arguments, &headers));
        }
        for arguments in [rule("any"), rule("any-with-x")] {
            assert!(!matches(&arguments, b""));
            assert!(!matches(&arguments, &headers));
        }
    }

    #[test]
    fn names_with_x_count_only_where_asked_for() {
        let x = text(Vec::new(), "x-a", "1");
        assert!(matches(&[rule("all"), x.clone()].concat(), b""));
        assert!(!matches(&[rule("all-with-x"), x.clone()].concat(), b""));
        assert!(matches(&[rule("all-with-x"), x.clone()].concat(), &x));
        assert!(!matches(&[rule("any"), x.clone()].concat(), &x));
        assert!(matches(&[rule("any-with-x"), x.clone()].concat(), &x));
    }

    #[test]
    fn numbers_are_equal_whatever_their_width() {
        let seven: [&[(u8, &[u8])]; 2] = [
            &[
                (b'b', &[7]),
                (b'B', &[7]),
                (b's', &[0, 7]),
                (b'u', &[0, 7]),
                (b'I', &[0, 0, 0, 7]),
                (b'i', &[0, 0, 0, 7]),
                (b'l', &[0, 0, 0, 0, 0, 0, 0, 7]),
            ],
            &[(b'f', &7_f32.to_be_bytes()), (b'd', &7_f64.to_be_bytes())],
        ];
        for (idx, kind) in seven.iter().enumerate() {
            for (tag, value) in *kind {
                let one = field(Vec::new(), "n", *tag, value);
                for (tag, value) in *kind {
                    assert!(matches(&one, &field(Vec::new(), "n", *tag, value)));
                }
                for (tag, value) in seven[1 - idx] {
                    assert!(!matches(&one, &field(Vec::new(), "n", *tag, value)));
                }
                assert!(!matches(&one, &text(Vec::new(), "n", "7")));
                assert!(!matches(&one, &field(Vec::new(), "n", b't', &[1])));
                assert!(!matches(&one, &field(Vec::new(), "n", b'b', &[0xf9])));
            }
        }
    }

    #[test]
    fn void_asks_for_presence_and_composites_for_their_elements() {
        let present = field(Vec::new(), "a", b'V', b"");
        assert!(matches(&present, &text(Vec::new(), "a", "anything")));
        assert!(!matches(&present, &text(Vec::new(), "b", "anything")));
        let array = |tag: u8, value: &[u8]| {
            let element = [&[tag], value].concat();
            field(Vec::new(), "a", b'A', &element)
        };
        assert!(matches(&array(b'b', &[1]), &array(b's', &[0, 1])));
        assert!(!matches(&array(b'b', &[1]), &array(b'b', &[2])));
        let table = |inner: &[u8]| field(Vec::new(), "a", b'F', inner);
        assert!(matches(
            &table(&field(Vec::new(), "k", b'b', &[1])),
            &table(&field(Vec::new(), "k", b'I', &[0, 0, 0, 1]))
        ));
        assert!(!matches(&table(&text(Vec::new(), "k", "v")), &table(b"")));
    }

    #[test]
    fn the_first_of_several_headers_counts() {
        let headers = text(text(Vec::new(), "a", "1"), "a", "2");
        assert!(matches(&text(Vec::new(), "a", "1"), &headers));
        assert!(!matches(&text(Vec::new(), "a", "2"), &headers));
    }

    //= P-65
    #[test]
    fn the_first_of_several_arguments_counts() {
        let arguments = text(text(Vec::new(), "a", "1"), "a", "2");
        let (one, two) = (text(Vec::new(), "a", "1"), text(Vec::new(), "a", "2"));
        assert!(matches(&arguments, &one));
        assert!(!matches(&arguments, &two));
        let any = [rule("any"), arguments].concat();
        assert!(matches(&any, &one));
        assert!(!matches(&any, &two));
    }

    #[test]
    fn any_bytes_are_read_without_panic() {
        let table = field(
            field(text(Vec::new(), "a", "1"), "d", b'D', &[2, 0, 0, 0, 1]),
            "t",
            b'F',
            &field(Vec::new(), "l", b'A', b"b\x01t\x01"),
        );
        assert_eq!(check_table(&table), Ok(()));
        for len in 0..table.len() {
            let sound = check_table(&table[..len]).is_ok();
            assert_eq!(sound, [0, 8, 16].contains(&len), "cut at {len}");
            matches(&table[..len], &table);
            matches(&table, &table[..len]);
            for bit in 0..8 {
                let mut bent = table.clone();
                bent[len] ^= 1 << bit;
                let _ = check_table(&bent);
                matches(&bent, &table);
                matches(&table, &bent);
                let _ = table_difference(&table, &bent);
                let _ = sorted_table(&bent);
            }
        }
        let mut deep = Vec::new();
        for _ in 0..=HEADERS_DEPTH_MAX {
            matches(&deep, &deep);
            deep = field(Vec::new(), "d", b'F', &deep);
        }
        assert!(check_table(&deep).is_err());
    }

    #[test]
    fn binding_arguments_are_checked() {
        for word in ["all", "any", "all-with-x", "any-with-x"] {
            assert_eq!(check_binding_arguments(&rule(word)), Ok(()));
        }
        assert_eq!(check_binding_arguments(b""), Ok(()));
        assert!(check_binding_arguments(&rule("some")).is_err());
        assert!(check_binding_arguments(&field(Vec::new(), "x-match", b'b', &[1])).is_err());
        assert!(check_binding_arguments(b"x").is_err());
    }

    #[test]
    fn tables_are_sorted_and_compared_by_meaning() {
        let ab = text(text(Vec::new(), "a", "1"), "b", "2");
        let ba = text(text(Vec::new(), "b", "2"), "a", "1");
        assert_eq!(sorted_table(&ba), ab);
        assert_eq!(table_difference(&ab, &ba), None);
        let wide = field(Vec::new(), "n", b'l', &7_i64.to_be_bytes());
        let narrow = field(Vec::new(), "n", b'b', &[7]);
        assert_eq!(table_difference(&wide, &narrow), None);
        assert_eq!(table_difference(&ab, b""), Some(&b"a"[..]));
        let more = text(ab.clone(), "c", "3");
        assert_eq!(table_difference(&ab, &more), Some(&b"c"[..]));
    }
}
