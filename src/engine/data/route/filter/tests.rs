//! Filters against an evaluator that follows the tree of an expression, and against nonsense.

use ringpost_wire::ids::{PartitionId, QueueId, TenantId};
use ringpost_wire::limits::{FILTER_DEPTH_MAX, FILTER_NODES_MAX, FILTER_PATTERN_BYTES_MAX};
use ringpost_wire::table::{TableWriter, Value};

use super::super::{Destination, End};
use super::*;

fn table(entries: &[(&str, Value<'_>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = TableWriter::new(&mut bytes);
    for (name, value) in entries {
        writer.put(name.as_bytes(), *value);
    }
    writer.finish().expect("a small table");
    bytes
}

fn arguments(text: &str) -> Vec<u8> {
    table(&[
        ("x-filter", Value::Text(text.as_bytes())),
        ("x-filter-body", Value::Bool(true)),
    ])
}

/// Whether a filter takes a message; what was bound leaves nothing behind.
fn takes(text: &str, facts: &Facts<'_>) -> bool {
    let hop = Hop::Queue(Destination {
        queue: QueueId(1),
        partition: PartitionId(0),
        durable: true,
    });
    let Hop::Queue(queue) = hop else {
        unreachable!("it is one");
    };
    let arguments = arguments(text);
    let binding = Binding {
        end: End::Queue(queue),
        name: b"q",
        key: b"",
        arguments: &arguments,
    };
    let mut work = Workspace::default();
    let mut bindings = FilterBindings::new();
    bindings.bind(hop, &binding, &mut work);
    let address = memo::Address {
        tenant: TenantId(1),
        exchange: b"shop",
        key: b"order.paid",
    };
    let mut found = 0;
    bindings.matches(&address, facts, &mut work, |_| found += 1);
    bindings.unbind(hop, &binding);
    assert_eq!((bindings.len(), bindings.slots()), (0, 0));
    found == 1
}

fn check(text: &str) -> Result<(), String> {
    check_binding_arguments(&arguments(text))
}

//= P-75
#[test]
fn conditions() {
    let headers = table(&[
        ("colour", Value::Text(b"red")),
        ("size", Value::I32(7)),
        ("price", Value::F64(2.5)),
        ("gift", Value::Bool(true)),
        ("void", Value::Void),
        ("void", Value::I8(1)),
        ("x-kind", Value::U16(3)),
        ("a.b", Value::I8(1)),
        ("bytes", Value::Bytes(b"red")),
        ("when", Value::Timestamp(5)),
        ("half", Value::Decimal { scale: 1, value: 5 }),
    ]);
    let facts = Facts {
        headers: &headers,
        // Content type, message id.
        properties: b"\x80\x80\x0aapplicatio\x02id",
        payload: br#"{"customer": {"vip": true, "name": "A\u0042"}, "lines": [{"sku": 7}]}"#,
        body_bytes: 70,
        priority: 4,
        timestamp_us: 1_000,
        ..Facts::default()
    };
    for text in [
        "colour = 'red'",
        "COLOUR IS NULL",
        "colour <> 'blue' AND size > 5 AND price <= 2.5",
        "size BETWEEN 7 AND 7",
        "size NOT BETWEEN 8 AND 9",
        "colour IN ('blue', 'red')",
        "colour not in ('blue')",
        "size IN (-7, 7)",
        "colour LIKE 'r%' AND colour LIKE '_e_' AND colour NOT LIKE 'r'",
        "NOT colour LIKE 'r#%ed' ESCAPE '#' AND '5%' LIKE '_#%' ESCAPE '#'",
        "gift",
        "gift = TRUE AND NOT gift = FALSE",
        "void IS NULL AND missing IS NULL AND size IS NOT NULL",
        "size + 1 = 2 * 4 AND size / 2 = 3 AND size % 4 = 3 AND -size < -6.5",
        "7.0 = size AND price * 2 = 5 AND 2.5e0 = price",
        "\"x-kind\" = 3",
        "a.b = 1 AND \"a.b\" = 1",
        "bytes IS NOT NULL AND NOT bytes = 'red'",
        "when = 5 AND half = 0.5",
        "colour < 'rfd'",
        "NOT (colour = 5) AND NOT colour > 5",
        "(size = 1 OR size = 7) AND (colour = 'red')",
        "missing = 1 OR size = 7",
        "'it''s' = 'it''s'",
        "sys.exchange = 'shop' AND sys.routing_key LIKE 'order.%'",
        "sys.priority = 4 AND sys.timestamp_us = 1000 AND sys.ttl_ms IS NULL",
        "sys.body_bytes = 70 AND sys.message_id = 'id' AND sys.content_type LIKE 'app%'",
        "sys.app_id IS NULL",
        "body.customer.vip AND body.customer.name = 'AB' AND body.lines.0.sku = 7",
        "body.\"customer\".\"vip\" = TRUE AND body.lines.1 IS NULL",
        "body.customer IS NOT NULL AND body.nobody IS NULL",
    ] {
        assert!(takes(text, &facts), "{text}");
    }
    for text in [
        "colour = 'Red'",
        "missing = 1",
        "missing <> 1",
        "NOT missing = 1",
        "NOT (missing = 1 AND size = 7)",
        "missing IN (1)",
        "missing NOT IN (1)",
        "missing LIKE '%'",
        "missing NOT LIKE '%'",
        "missing BETWEEN 1 AND 2",
        "missing NOT BETWEEN 1 AND 2",
        "colour",
        "NOT colour",
        "colour = 5",
        "colour <> 5",
        "size / 0 = 1 OR size % 0 = 1 OR size / 0 <> 1",
        "9223372036854775807 + size > 0",
        "body.lines.sku = 7",
        "size = 7 AND missing = 2",
    ] {
        assert!(!takes(text, &facts), "{text}");
    }
    let large = Facts {
        payload: &[b"{\"a\":1", &[b' '; 65_536][..], b"}"].concat(),
        ..Facts::default()
    };
    assert!(takes("body.a IS NULL", &large));
    let long = table(&[("long", Value::Text(&[b'a'; 4_097]))]);
    let facts = Facts::of_headers(&long);
    assert!(!takes("long LIKE 'a%'", &facts) && !takes("long NOT LIKE 'a%'", &facts));
    assert!(takes("long > 'aa'", &facts));
}

//= P-75
#[test]
fn what_is_wrong_is_said_with_its_place() {
    for (text, expect) in [
        (
            "",
            "character 1: expected a field, number, text, NOT or (, found the end",
        ),
        (
            "a =",
            "character 4: expected a field, number, text, NOT or (, found the end",
        ),
        (
            "a = = 1",
            "character 5: expected a field, number, text, NOT or (, found '='",
        ),
        (
            "a = 1 b",
            "character 7: expected an operator, AND, OR or the end, found 'b'",
        ),
        ("a = 1)", "character 6: there is no parenthesis to close"),
        ("(a = 1", "character 1: this parenthesis is never closed"),
        ("a = 'x", "character 5: this quote is never closed"),
        ("ä = 'x' AND ?", "character 13: '?' means nothing here"),
        ("a BETWEEN 1 OR 2", "character 3: BETWEEN has no AND"),
        ("a BETWEEN 1", "character 3: BETWEEN has no AND"),
        ("a IS 1", "character 6: expected NULL, found 1"),
        (
            "a NOT = 1",
            "character 7: expected BETWEEN, IN or LIKE, found '='",
        ),
        (
            "a LIKE b",
            "character 8: expected a pattern in quotes, found 'b'",
        ),
        (
            "a LIKE 'x' ESCAPE 'yz'",
            "character 19: ESCAPE takes exactly one character",
        ),
        (
            "a LIKE 'x!' ESCAPE '!'",
            "character 8: '!' escapes %, _ and itself only",
        ),
        (
            "a IN ()",
            "character 7: expected a number or a text, found ')'",
        ),
        (
            "a IN (b)",
            "character 7: expected a number or a text, found 'b'",
        ),
        ("a IN (1 2)", "character 9: expected , or ), found 2"),
        (
            "a < b < c",
            "character 7: comparisons in a row: put one in parentheses",
        ),
        ("1 + 1", "a filter needs a condition, this is a number"),
        (
            "'a' = 1",
            "character 5: a text does not compare with a number",
        ),
        (
            "TRUE < FALSE",
            "character 6: a condition does not compare with a condition in order",
        ),
        (
            "1 AND a",
            "character 3: AND needs a condition, this is a number",
        ),
        (
            "NOT 'a'",
            "character 1: NOT needs a condition, this is a text",
        ),
        (
            "a + 'b' = 1",
            "character 3: arithmetic needs a number, this is a text",
        ),
        (
            "5 LIKE 'a'",
            "character 3: LIKE needs a text, this is a number",
        ),
        ("a = NOT b", "character 5: NOT stands before a condition"),
        (
            "99999999999999999999 = a",
            "character 1: this number is too large",
        ),
        ("12ab = a", "character 3: a number ends in a word"),
        (
            "sys.colour = 1",
            "character 1: sys.colour is none of exchange, routing_key",
        ),
        (
            "a. = 1",
            "character 4: expected a word behind the point, found '='",
        ),
        (
            "a AND",
            "character 6: expected a field, number, text, NOT or (, found the end",
        ),
        (
            "AND",
            "character 1: expected a field, number, text, NOT or (, found 'AND'",
        ),
        ("\"\" = 1", "character 1: a name is empty"),
    ] {
        let reason = check(text).expect_err(text);
        assert!(reason.contains(expect), "{text}: {reason}");
        assert!(reason.starts_with("x-filter, character "), "{reason}");
    }
    for (entries, expect) in [
        (&[][..], "has its condition in x-filter"),
        (&[("x-filter", Value::I8(1))], "x-filter is not text"),
        (
            &[("x-filter", Value::Text(b"\xff = 1"))],
            "x-filter is not UTF-8",
        ),
        (
            &[("x-filter", Value::Text(b"body.a = 1"))],
            "body.a is looked at only with",
        ),
        (&[("x-filters", Value::Text(b"a"))], "no setting"),
    ] {
        let reason = check_binding_arguments(&table(entries)).expect_err(expect);
        assert!(reason.contains(expect), "{reason}");
    }
}

#[test]
fn bounds() {
    let long = |bytes: usize| format!("a = '{}'", "x".repeat(bytes - 6));
    assert!(check(&long(FILTER_BYTES_MAX)).is_ok());
    assert!(check(&long(FILTER_BYTES_MAX + 1)).is_err());
    let deep = |depth: usize| format!("{}a{}", "(".repeat(depth), ")".repeat(depth));
    assert!(check(&deep(FILTER_DEPTH_MAX)).is_ok());
    assert!(check(&deep(FILTER_DEPTH_MAX + 1)).is_err());
    assert!(check(&format!("{}a", "NOT ".repeat(FILTER_DEPTH_MAX))).is_ok());
    assert!(check(&format!("{}a", "NOT ".repeat(FILTER_DEPTH_MAX + 1))).is_err());
    // A field, and an AND with its field for each other one.
    let many = |nodes: usize| format!("a{}", " AND a".repeat((nodes - 1) / 2));
    assert!(check(&many(FILTER_NODES_MAX - 1)).is_ok());
    assert!(check(&many(FILTER_NODES_MAX + 1)).is_err());
    let list = |constants: usize| format!("a IN (1{})", ",1".repeat(constants - 1));
    assert!(check(&list(FILTER_NODES_MAX - 2)).is_ok());
    assert!(check(&list(FILTER_NODES_MAX - 1)).is_err());
    let pattern = |bytes: usize| format!("a LIKE '{}'", "x".repeat(bytes));
    assert!(check(&pattern(FILTER_PATTERN_BYTES_MAX)).is_ok());
    assert!(check(&pattern(FILTER_PATTERN_BYTES_MAX + 1)).is_err());
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// An expression as a tree.
#[derive(Clone, Debug)]
enum Tree {
    Field(&'static str),
    Text(&'static str),
    Number(i64),
    Float(f64),
    Truth(bool),
    Minus(Box<Tree>),
    Binary(&'static str, Box<Tree>, Box<Tree>),
    Not(Box<Tree>),
    IsNull(Box<Tree>, bool),
    Between(Box<Tree>, Box<Tree>, Box<Tree>, bool),
    In(Box<Tree>, Vec<Tree>, bool),
    Like(Box<Tree>, &'static str, bool),
}

#[derive(Clone, PartialEq, Debug)]
enum Plain {
    Null,
    Truth(bool),
    Number(i64),
    Float(f64),
    Text(String),
}

impl Tree {
    fn condition(random: &mut Random, depth: usize) -> Self {
        let is_not = random.below(2) == 0;
        let below = depth.saturating_sub(1);
        match random.below(if depth == 0 { 3 } else { 10 }) {
            0 => Self::Truth(is_not),
            1 => Self::Field(random.of(&["a", "b", "c", "d"])),
            2 => Self::IsNull(Box::new(Self::value(random, below, 2)), is_not),
            3 | 4 => Self::Binary(
                random.of(&["AND", "OR"]),
                Box::new(Self::condition(random, below)),
                Box::new(Self::condition(random, below)),
            ),
            5 => Self::Not(Box::new(Self::condition(random, below))),
            6 => {
                let kind = random.below(2);
                let mut value = || Box::new(Self::value(random, below, kind));
                Self::Between(value(), value(), value(), is_not)
            }
            7 => {
                let value = Box::new(Self::value(random, below, 2));
                let list = (0..=random.below(3)).map(|_| match random.below(3) {
                    0 => Self::Text(random.of(&["x", "red"])),
                    1 => Self::Float(1.5),
                    _ => Self::Number(random.below(4) as i64 - 1),
                });
                Self::In(value, list.collect(), is_not)
            }
            8 => {
                let value = Box::new(Self::value(random, below, 1));
                Self::Like(value, random.of(&["%", "r_d", "_", "%x%", "re%"]), is_not)
            }
            _ => {
                let kind = random.below(2);
                Self::Binary(
                    random.of(&["=", "<>", "<", "<=", ">", ">="]),
                    Box::new(Self::value(random, below, kind)),
                    Box::new(Self::value(random, below, kind)),
                )
            }
        }
    }

    /// A number (0), a text (1) or a field (2).
    fn value(random: &mut Random, depth: usize, kind: usize) -> Self {
        if kind == 2 || random.below(2) == 0 {
            return Self::Field(random.of(&["a", "b", "c", "d"]));
        }
        if kind == 1 {
            return Self::Text(random.of(&["", "x", "red", "it's"]));
        }
        let below = depth.saturating_sub(1);
        match random.below(if depth == 0 { 2 } else { 5 }) {
            0 => Self::Number(random.below(5) as i64),
            1 => Self::Float(random.of(&[0.5, 1.0, 2.5])),
            2 => Self::Minus(Box::new(Self::value(random, below, 0))),
            _ => Self::Binary(
                random.of(&["+", "-", "*", "/", "%"]),
                Box::new(Self::value(random, below, 0)),
                Box::new(Self::value(random, below, 0)),
            ),
        }
    }

    fn strength(&self) -> u8 {
        match self {
            Self::Binary("OR", ..) => 1,
            Self::Binary("AND", ..) => 2,
            Self::Not(_) => 3,
            Self::Binary("+" | "-", ..) => 5,
            Self::Binary("*" | "/" | "%", ..) => 6,
            Self::Minus(_) => 7,
            Self::Binary(..)
            | Self::IsNull(..)
            | Self::Between(..)
            | Self::In(..)
            | Self::Like(..) => 4,
            _ => 8,
        }
    }

    /// As text, in parentheses where it must be, and sometimes where it need not.
    fn write(&self, least: u8, random: &mut Random, out: &mut String) {
        let in_parens = self.strength() < least || random.below(8) == 0;
        if in_parens {
            out.push('(');
        }
        let not = |is_not: &bool| if *is_not { "NOT " } else { "" };
        match self {
            Self::Field(name) => out.push_str(name),
            Self::Text(text) => *out += &format!("'{}'", text.replace('\'', "''")),
            Self::Number(number) => *out += &number.to_string(),
            Self::Float(number) => *out += &format!("{number:?}"),
            Self::Truth(truth) => out.push_str(if *truth { "TRUE" } else { "false" }),
            Self::Minus(value) => {
                out.push('-');
                value.write(7, random, out);
            }
            Self::Binary(operator, left, right) => {
                let own = self.strength();
                // Comparisons do not follow each other; the others go from the left.
                left.write(if own == 4 { 5 } else { own }, random, out);
                *out += &format!(" {operator} ");
                right.write(own + 1, random, out);
            }
            Self::Not(value) => {
                out.push_str("NOT ");
                value.write(3, random, out);
            }
            Self::IsNull(value, is_not) => {
                value.write(5, random, out);
                *out += &format!(" IS {}NULL", not(is_not));
            }
            Self::Between(value, low, high, is_not) => {
                value.write(5, random, out);
                *out += &format!(" {}BETWEEN ", not(is_not));
                low.write(5, random, out);
                out.push_str(" AND ");
                high.write(5, random, out);
            }
            Self::In(value, list, is_not) => {
                value.write(5, random, out);
                *out += &format!(" {}IN (", not(is_not));
                for (at, one) in list.iter().enumerate() {
                    out.push_str(if at > 0 { "," } else { "" });
                    match one {
                        Self::Number(number) => *out += &number.to_string(),
                        Self::Float(number) => *out += &format!("{number:?}"),
                        Self::Text(text) => *out += &format!("'{text}'"),
                        _ => unreachable!("lists are of constants"),
                    }
                }
                out.push(')');
            }
            Self::Like(value, pattern, is_not) => {
                value.write(5, random, out);
                *out += &format!(" {}LIKE '{pattern}'", not(is_not));
            }
        }
        if in_parens {
            out.push(')');
        }
    }

    fn evaluate(&self, message: &[(&str, Plain)]) -> Plain {
        let negated = |truth: Option<bool>, is_not: bool| {
            truth.map_or(Plain::Null, |truth| Plain::Truth(truth != is_not))
        };
        let truth = |plain: Plain| match plain {
            Plain::Truth(truth) => Some(truth),
            _ => None,
        };
        match self {
            Self::Field(name) => {
                let found = message.iter().find(|(own, _)| own == name);
                found.map_or(Plain::Null, |(_, value)| value.clone())
            }
            Self::Text(text) => Plain::Text((*text).to_owned()),
            Self::Number(number) => Plain::Number(*number),
            Self::Float(number) => Plain::Float(*number),
            Self::Truth(truth) => Plain::Truth(*truth),
            Self::Minus(value) => match value.evaluate(message) {
                Plain::Number(number) => Plain::Number(-number),
                Plain::Float(number) => Plain::Float(-number),
                _ => Plain::Null,
            },
            Self::Not(value) => negated(truth(value.evaluate(message)), true),
            Self::IsNull(value, is_not) => {
                negated(Some(value.evaluate(message) == Plain::Null), *is_not)
            }
            Self::Between(value, low, high, is_not) => {
                let value = value.evaluate(message);
                let low = naive_compare(">=", &value, &low.evaluate(message));
                let high = naive_compare("<=", &value, &high.evaluate(message));
                negated(naive_and(low, high), *is_not)
            }
            Self::In(value, list, is_not) => {
                let value = value.evaluate(message);
                let is_in = list
                    .iter()
                    .any(|one| naive_compare("=", &value, &one.evaluate(message)) == Some(true));
                negated((value != Plain::Null).then_some(is_in), *is_not)
            }
            Self::Like(value, pattern, is_not) => match value.evaluate(message) {
                Plain::Null => Plain::Null,
                Plain::Text(text) => {
                    let chars = |text: &str| text.chars().collect::<Vec<_>>();
                    let is_like = like::naive_like(&chars(pattern), &chars(&text));
                    negated(Some(is_like), *is_not)
                }
                _ => negated(Some(false), *is_not),
            },
            Self::Binary(operator, left, right) => {
                let (left, right) = (left.evaluate(message), right.evaluate(message));
                match *operator {
                    "AND" => negated(naive_and(truth(left), truth(right)), false),
                    "OR" => {
                        let neither = naive_and(
                            truth(left).map(|truth| !truth),
                            truth(right).map(|truth| !truth),
                        );
                        negated(neither, true)
                    }
                    "+" | "-" | "*" | "/" | "%" => naive_compute(operator, &left, &right),
                    _ => negated(naive_compare(operator, &left, &right), false),
                }
            }
        }
    }
}

fn naive_and(left: Option<bool>, right: Option<bool>) -> Option<bool> {
    if left == Some(false) || right == Some(false) {
        return Some(false);
    }
    Some(left? && right?)
}

fn naive_compare(operator: &str, left: &Plain, right: &Plain) -> Option<bool> {
    let number = |plain: &Plain| match plain {
        Plain::Number(number) => Some(*number as f64),
        Plain::Float(number) => Some(*number),
        _ => None,
    };
    let ordering = match (left, right) {
        (Plain::Null, _) | (_, Plain::Null) => return None,
        (Plain::Text(left), Plain::Text(right)) => left.cmp(right),
        (Plain::Truth(left), Plain::Truth(right)) if operator == "=" => return Some(left == right),
        (Plain::Truth(left), Plain::Truth(right)) if operator == "<>" => {
            return Some(left != right);
        }
        _ => match (number(left), number(right)) {
            (Some(left), Some(right)) => left.partial_cmp(&right).expect("finite"),
            _ => return Some(false),
        },
    };
    Some(match operator {
        "=" => ordering.is_eq(),
        "<>" => ordering.is_ne(),
        "<" => ordering.is_lt(),
        "<=" => ordering.is_le(),
        ">" => ordering.is_gt(),
        _ => ordering.is_ge(),
    })
}

fn naive_compute(operator: &str, left: &Plain, right: &Plain) -> Plain {
    let (left, right) = match (left, right) {
        (Plain::Number(_), Plain::Number(0)) if matches!(operator, "/" | "%") => {
            return Plain::Null;
        }
        (Plain::Number(left), Plain::Number(right)) => {
            return Plain::Number(match operator {
                "+" => left + right,
                "-" => left - right,
                "*" => left * right,
                "/" => left / right,
                _ => left % right,
            });
        }
        (Plain::Number(left), Plain::Float(right)) => (*left as f64, *right),
        (Plain::Float(left), Plain::Number(right)) => (*left, *right as f64),
        (Plain::Float(left), Plain::Float(right)) => (*left, *right),
        _ => return Plain::Null,
    };
    let result = match operator {
        "+" => left + right,
        "-" => left - right,
        "*" => left * right,
        "/" => left / right,
        _ => left % right,
    };
    if result.is_finite() {
        Plain::Float(result + 0.0)
    } else {
        Plain::Null
    }
}

#[test]
fn random_filters_agree_with_the_naive_evaluator() {
    let mut random = Random(1);
    let (mut taken, mut left) = (0, 0);
    for _ in 0..30_000 {
        let tree = Tree::condition(&mut random, 4);
        let mut text = String::new();
        tree.write(0, &mut random, &mut text);
        if let Err(reason) = check(&text) {
            assert!(
                reason.contains("nested deeper") || reason.contains("more than"),
                "{text}: {reason}"
            );
            continue;
        }
        for _ in 0..3 {
            let mut message: Vec<(&str, Plain)> = Vec::new();
            for name in ["a", "b", "c", "d"] {
                match random.below(6) {
                    0 => {}
                    1 => message.push((name, Plain::Truth(random.below(2) == 0))),
                    2 => message.push((name, Plain::Float(random.of(&[0.5, 1.0, -2.5])))),
                    3 => message.push((name, Plain::Text(random.of(&["x", "red", ""]).into()))),
                    _ => message.push((name, Plain::Number(random.below(6) as i64 - 2))),
                }
            }
            let entries: Vec<(&str, Value<'_>)> = message
                .iter()
                .map(|(name, plain)| {
                    let value = match plain {
                        Plain::Null => Value::Void,
                        Plain::Truth(truth) => Value::Bool(*truth),
                        Plain::Number(number) => Value::I64(*number),
                        Plain::Float(number) => Value::F64(*number),
                        Plain::Text(text) => Value::Text(text.as_bytes()),
                    };
                    (*name, value)
                })
                .collect();
            let headers = table(&entries);
            let naive = tree.evaluate(&message) == Plain::Truth(true);
            let own = takes(&text, &Facts::of_headers(&headers));
            assert_eq!(own, naive, "{text} of {message:?}");
            taken += u32::from(own);
            left += u32::from(!own);
        }
    }
    assert!(taken > 10_000 && left > 10_000, "{taken} {left}");
}

/// Many filters on one exchange say what each says alone, and what is unbound is gone.
#[test]
fn filters_together_agree_with_filters_alone() {
    let mut random = Random(2);
    let mut work = Workspace::default();
    let mut bindings = FilterBindings::new();
    let queue = |number: u32| Destination {
        queue: QueueId(number),
        partition: PartitionId(0),
        durable: true,
    };
    let mut bound: Vec<(u32, String)> = Vec::new();
    let address = memo::Address {
        tenant: TenantId(1),
        exchange: b"shop",
        key: b"order.paid",
    };
    let more = [
        "sys.routing_key = 'order.paid'",
        "body.a = 1",
        "body.a.b = 2 AND a = 1",
    ];
    for round in 0..2_000_u32 {
        let number = random.below(6) as u32;
        let text = match random.below(4) {
            0 => random.of(&more).to_owned(),
            _ => {
                let mut text = String::new();
                Tree::condition(&mut random, 2).write(0, &mut random, &mut text);
                text
            }
        };
        let is_new = !bound.contains(&(number, text.clone()));
        let (at, is_new) = match is_new && (bound.len() < 20 || random.below(2) == 0) {
            true => {
                bound.push((number, text));
                (bound.len() - 1, true)
            }
            false => (random.below(bound.len()), false),
        };
        let (number, text) = bound[at].clone();
        let bytes = arguments(&text);
        let binding = Binding {
            end: End::Queue(queue(number)),
            name: b"q",
            key: b"",
            arguments: &bytes,
        };
        if is_new {
            bindings.bind(Hop::Queue(queue(number)), &binding, &mut work);
        } else {
            bindings.unbind(Hop::Queue(queue(number)), &binding);
            bound.remove(at);
        }
        let headers = table(&[
            ("a", Value::I8(random.below(3) as i8)),
            ("b", Value::Text(random.of(&[&b"red"[..], b"x"]))),
            ("c", Value::Bool(random.below(2) == 0)),
        ]);
        let payload = random.of(&[&b"{\"a\":1}"[..], b"{\"a\":{\"b\":2}}", b"{\"a\":"]);
        let facts = Facts {
            payload,
            ..Facts::of_headers(&headers)
        };
        let mut found = Vec::new();
        bindings.matches(&address, &facts, &mut work, |hop| found.push(hop.order().1));
        let mut expect: Vec<u32> = bound
            .iter()
            .filter(|(_, text)| takes(text, &facts))
            .map(|(number, _)| *number)
            .collect();
        expect.sort_unstable();
        expect.dedup();
        assert_eq!(found, expect, "round {round}");
        assert_eq!(bindings.len(), bound.len());
    }
}

#[test]
fn nonsense_never_panics() {
    let mut random = Random(3);
    let words = [
        "a", "b", "'x'", "1", "2.5", "(", ")", "AND", "OR", "NOT", "=", "<", "+", "-", "*", "/",
        "BETWEEN", "IN", "LIKE", "ESCAPE", "IS", "NULL", "TRUE", ",", ".", "sys", "body", "\"q\"",
        "'", "\"", "ä", "%", "1e", "\u{0}",
    ];
    let facts = Facts::of_headers(b"\x01ab\x01\x01bS\0\0\0\x01x");
    let mut sound = 0;
    for round in 0..300_000 {
        let mut text = String::new();
        for _ in 0..random.below(12) {
            text.push_str(random.of(&words));
            if random.below(4) > 0 {
                text.push(' ');
            }
        }
        if check(&text).is_ok() {
            sound += 1;
            takes(&text, &facts);
        }
        if round % 4 == 0 {
            let bytes: Vec<u8> = (0..random.below(20))
                .map(|_| random.below(256) as u8)
                .collect();
            let _ = parse::parse(&bytes);
            let _ = check_binding_arguments(&bytes);
        }
    }
    assert!(sound > 1_000, "{sound}");
}
