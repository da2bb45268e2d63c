//! Values of filters, and how they compare. Does not know where they come from.

use std::cmp::Ordering;

use ringpost_wire::properties::PropertyValue;
use ringpost_wire::table::Value;

/// A value of a message, or one that was computed; a condition that is neither true nor false is
/// null.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Fact<'a> {
    /// Not looked at yet: never in a program.
    Missing,
    /// Not there, there without a value, or unknown.
    Null,
    Bool(bool),
    Int(i64),
    /// Always finite.
    Float(f64),
    Text(&'a [u8]),
    /// A text of the scratch: from and to.
    Unescaped(u32, u32),
    /// There, but nothing that compares: bytes, an array, a table.
    Other,
}

impl<'a> Fact<'a> {
    pub fn of_float(value: f64) -> Self {
        if value.is_finite() {
            Self::Float(value)
        } else {
            Self::Null
        }
    }

    pub fn of_header(value: Value<'a>) -> Self {
        if let Some(number) = value.as_integer() {
            return Self::Int(number);
        }
        if let Some(number) = value.as_float() {
            return Self::of_float(number);
        }
        match value {
            Value::Text(text) => Self::Text(text),
            Value::Bool(value) => Self::Bool(value),
            Value::Timestamp(seconds) => Self::of_number(seconds),
            Value::Decimal { scale, value } => {
                Self::of_float(f64::from(value) / 10_f64.powi(i32::from(scale)))
            }
            Value::Void => Self::Null,
            _ => Self::Other,
        }
    }

    pub fn of_property(value: PropertyValue<'a>) -> Self {
        match value {
            PropertyValue::Text(text) => Self::Text(text),
            PropertyValue::Number(number) => Self::of_number(number),
        }
    }

    pub fn of_number(number: u64) -> Self {
        i64::try_from(number).map_or(Self::Float(number as f64), Self::Int)
    }

    /// As a condition.
    pub const fn truth(self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    pub fn of_truth(truth: Option<bool>) -> Self {
        truth.map_or(Self::Null, Self::Bool)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Comparison {
    Equal,
    Unequal,
    Less,
    AtMost,
    More,
    AtLeast,
}

/// Values of one type compare, and whole numbers with others; null is unknown, everything else false,
/// as JMS has it.
pub(super) fn compare(comparison: Comparison, left: Fact<'_>, right: Fact<'_>) -> Option<bool> {
    let ordering = match (left, right) {
        (Fact::Null, _) | (_, Fact::Null) => return None,
        (Fact::Int(left), Fact::Int(right)) => left.cmp(&right),
        (Fact::Int(left), Fact::Float(right)) => mixed(left, right),
        (Fact::Float(left), Fact::Int(right)) => mixed(right, left).reverse(),
        (Fact::Float(left), Fact::Float(right)) => {
            left.partial_cmp(&right).unwrap_or(Ordering::Equal)
        }
        (Fact::Text(left), Fact::Text(right)) => left.cmp(right),
        (Fact::Bool(left), Fact::Bool(right)) => match comparison {
            Comparison::Equal => return Some(left == right),
            Comparison::Unequal => return Some(left != right),
            _ => return Some(false),
        },
        _ => return Some(false),
    };
    Some(match comparison {
        Comparison::Equal => ordering.is_eq(),
        Comparison::Unequal => ordering.is_ne(),
        Comparison::Less => ordering.is_lt(),
        Comparison::AtMost => ordering.is_le(),
        Comparison::More => ordering.is_gt(),
        Comparison::AtLeast => ordering.is_ge(),
    })
}

/// A whole number and another one, exactly: not every one of 64 bits is a floating-point number.
fn mixed(whole: i64, other: f64) -> Ordering {
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    if other >= BEYOND {
        return Ordering::Less;
    }
    if other < -BEYOND {
        return Ordering::Greater;
    }
    let below = other.floor();
    whole.cmp(&(below as i64)).then(if other > below {
        Ordering::Less
    } else {
        Ordering::Equal
    })
}

/// Both must be true, or one false.
pub(super) const fn and(left: Option<bool>, right: Option<bool>) -> Option<bool> {
    match (left, right) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}

/// One must be true, or both false.
pub(super) const fn or(left: Option<bool>, right: Option<bool>) -> Option<bool> {
    match (left, right) {
        (Some(true), _) | (_, Some(true)) => Some(true),
        (Some(false), Some(false)) => Some(false),
        _ => None,
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// Of whole numbers a whole number; what is no number, too large or divided by zero is null.
pub(super) fn compute<'a>(by: Arithmetic, left: Fact<'a>, right: Fact<'a>) -> Fact<'a> {
    let (left, right) = match (left, right) {
        (Fact::Int(left), Fact::Int(right)) => {
            let result = match by {
                Arithmetic::Add => left.checked_add(right),
                Arithmetic::Subtract => left.checked_sub(right),
                Arithmetic::Multiply => left.checked_mul(right),
                Arithmetic::Divide => left.checked_div(right),
                Arithmetic::Remainder => left.checked_rem(right),
            };
            return result.map_or(Fact::Null, Fact::Int);
        }
        (Fact::Int(left), Fact::Float(right)) => (left as f64, right),
        (Fact::Float(left), Fact::Int(right)) => (left, right as f64),
        (Fact::Float(left), Fact::Float(right)) => (left, right),
        _ => return Fact::Null,
    };
    Fact::of_float(match by {
        Arithmetic::Add => left + right,
        Arithmetic::Subtract => left - right,
        Arithmetic::Multiply => left * right,
        Arithmetic::Divide => left / right,
        Arithmetic::Remainder => left % right,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_compare_exactly_with_others() {
        let large = (1_i64 << 53) + 1;
        for (whole, other, expect) in [
            (1, 1.0, Ordering::Equal),
            (1, 1.5, Ordering::Less),
            (-1, -1.5, Ordering::Greater),
            (-2, -1.5, Ordering::Less),
            (large, (1_i64 << 53) as f64, Ordering::Greater),
            (i64::MAX, 9_223_372_036_854_775_808.0, Ordering::Less),
            (i64::MIN, -9_223_372_036_854_775_808.0, Ordering::Equal),
            (i64::MIN, -1e30, Ordering::Greater),
        ] {
            assert_eq!(mixed(whole, other), expect, "{whole} {other}");
        }
    }
}
