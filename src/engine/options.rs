//! The settings of a field table: arguments whose names start with `x-`, as numbers and words within
//! their bounds. Does not know what a setting does.
//!
//! Names without `x-` are the client's own and are kept as they are. A name with `x-` that nobody
//! asked for is refused: a setting that is misspelt must not be taken for one that holds.

use std::ops::RangeInclusive;

use ringpost_wire::table::{Table, Value};

/// The settings of one declaration, until each was asked for.
#[derive(Debug)]
pub struct Options<'a> {
    left: Vec<(&'a [u8], Value<'a>)>,
    known: Vec<&'static str>,
}

impl<'a> Options<'a> {
    /// The settings among `arguments`.
    ///
    /// # Errors
    /// They are not a field table, or name a setting twice.
    pub fn of(arguments: &'a [u8]) -> Result<Self, String> {
        let table = Table::parse(arguments)
            .map_err(|_| "arguments are not a field table within its limits".to_owned())?;
        let mut left: Vec<(&[u8], Value<'_>)> = Vec::new();
        for (name, value) in table.entries() {
            if !name.starts_with(b"x-") {
                continue;
            }
            if left.iter().any(|(other, _)| *other == name) {
                return Err(format!("{} is there twice", shown(name)));
            }
            left.push((name, value));
        }
        Ok(Self {
            left,
            known: Vec::new(),
        })
    }

    fn take(&mut self, name: &'static str) -> Option<Value<'a>> {
        self.known.push(name);
        let at = self
            .left
            .iter()
            .position(|(other, _)| *other == name.as_bytes())?;
        Some(self.left.remove(at).1)
    }

    /// Does not name these among the settings that there are: they were asked for to be refused.
    pub fn forget_known(&mut self, names: &[&str]) {
        self.known.retain(|known| !names.contains(known));
    }

    /// A value of any type.
    pub fn value(&mut self, name: &'static str) -> Option<Value<'a>> {
        self.take(name)
    }

    /// A whole number of any width.
    ///
    /// # Errors
    /// It is none, or out of bounds.
    pub fn number(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<u64>,
    ) -> Result<Option<u64>, String> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let number = value
            .as_integer()
            .ok_or_else(|| format!("{name} is not a whole number"))?;
        match u64::try_from(number) {
            Ok(number) if bounds.contains(&number) => Ok(Some(number)),
            _ => Err(format!(
                "{name} is {number}, not {} to {}",
                bounds.start(),
                bounds.end()
            )),
        }
    }

    /// A whole number of any width, which may be below zero.
    ///
    /// # Errors
    /// It is none, or out of bounds.
    pub fn signed(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<i64>,
    ) -> Result<Option<i64>, String> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let number = value
            .as_integer()
            .ok_or_else(|| format!("{name} is not a whole number"))?;
        if bounds.contains(&number) {
            return Ok(Some(number));
        }
        let (least, most) = bounds.into_inner();
        Err(format!("{name} is {number}, not {least} to {most}"))
    }

    /// A text of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// It is none, or longer.
    pub fn text(
        &mut self,
        name: &'static str,
        bytes_max: usize,
    ) -> Result<Option<&'a [u8]>, String> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let text = value
            .as_text()
            .ok_or_else(|| format!("{name} is not text"))?;
        if text.len() > bytes_max {
            return Err(format!(
                "{name} has {} bytes, at most {bytes_max} are allowed",
                text.len()
            ));
        }
        Ok(Some(text))
    }

    /// One of several words.
    ///
    /// # Errors
    /// It is none of them.
    pub fn word<T: Copy>(
        &mut self,
        name: &'static str,
        words: &[(&str, T)],
    ) -> Result<Option<T>, String> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let text = value
            .as_text()
            .ok_or_else(|| format!("{name} is not text"))?;
        let found = words.iter().find(|(word, _)| word.as_bytes() == text);
        found.map(|(_, meaning)| Some(*meaning)).ok_or_else(|| {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            format!("{name} is {}, not one of {}", shown(text), words.join(", "))
        })
    }

    /// A truth value; one that is not there is false.
    ///
    /// # Errors
    /// It is none.
    pub fn flag(&mut self, name: &'static str) -> Result<bool, String> {
        let Some(value) = self.take(name) else {
            return Ok(false);
        };
        value
            .as_bool()
            .ok_or_else(|| format!("{name} is neither true nor false"))
    }

    /// Every setting was asked for.
    ///
    /// # Errors
    /// One was not: it is none of `what`.
    pub fn done(self, what: &str) -> Result<(), String> {
        let Some((name, _)) = self.left.first() else {
            return Ok(());
        };
        let known = match self.known.as_slice() {
            [] => "it has none".to_owned(),
            known => format!("they are {}", known.join(", ")),
        };
        Err(format!("{} is no setting of {what}: {known}", shown(name)))
    }
}

fn shown(name: &[u8]) -> String {
    format!("'{}'", String::from_utf8_lossy(name).escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringpost_wire::table::TableWriter;

    fn table(entries: &[(&str, Value<'_>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = TableWriter::new(&mut bytes);
        for (name, value) in entries {
            writer.put(name.as_bytes(), *value);
        }
        writer.finish().expect("a small table");
        bytes
    }

    #[test]
    fn settings_are_read_within_their_bounds() {
        let bytes = table(&[
            ("owner", Value::Text(b"shop")),
            ("x-max", Value::I32(10)),
            ("x-word", Value::Text(b"two")),
            ("x-flag", Value::Bool(true)),
            ("x-name", Value::Text(b"abc")),
            ("x-signed", Value::I8(-3)),
        ]);
        let mut options = Options::of(&bytes).expect("a table");
        assert_eq!(options.number("x-max", 1..=10), Ok(Some(10)));
        assert_eq!(options.number("x-min", 1..=10), Ok(None));
        let words = [("one", 1), ("two", 2)];
        assert_eq!(options.word("x-word", &words), Ok(Some(2)));
        assert_eq!(options.flag("x-flag"), Ok(true));
        assert_eq!(options.flag("x-other"), Ok(false));
        assert_eq!(options.text("x-name", 3), Ok(Some(&b"abc"[..])));
        assert_eq!(options.signed("x-signed", -3..=3), Ok(Some(-3)));
        assert_eq!(options.signed("x-unsigned", -3..=3), Ok(None));
        assert_eq!(options.done("a queue"), Ok(()));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let reasons = |entries: &[(&str, Value<'_>)]| {
            let bytes = table(entries);
            let mut options = Options::of(&bytes)?;
            options.number("x-max", 1..=10)?;
            options.word("x-word", &[("one", 1), ("two", 2)])?;
            options.flag("x-flag")?;
            options.text("x-name", 3)?;
            options.signed("x-signed", -3..=3)?;
            options.done("a queue")
        };
        for (entries, reason) in [
            (&[("x-max", Value::I32(0))][..], "x-max is 0, not 1 to 10"),
            (&[("x-max", Value::I64(11))], "x-max is 11, not 1 to 10"),
            (&[("x-max", Value::I8(-1))], "x-max is -1, not 1 to 10"),
            (
                &[("x-signed", Value::I8(-4))],
                "x-signed is -4, not -3 to 3",
            ),
            (&[("x-signed", Value::U8(4))], "x-signed is 4, not -3 to 3"),
            (
                &[("x-max", Value::Text(b"1"))],
                "x-max is not a whole number",
            ),
            (
                &[("x-word", Value::Text(b"three"))],
                "x-word is 'three', not one of one, two",
            ),
            (&[("x-word", Value::I8(1))], "x-word is not text"),
            (
                &[("x-flag", Value::I8(1))],
                "x-flag is neither true nor false",
            ),
            (
                &[("x-name", Value::Text(b"abcd"))],
                "x-name has 4 bytes, at most 3 are allowed",
            ),
            (
                &[("x-maxx", Value::I8(1))],
                "'x-maxx' is no setting of a queue: they are x-max, x-word, x-flag, x-name, x-signed",
            ),
            (
                &[("x-max", Value::I8(1)), ("x-max", Value::I8(1))],
                "'x-max' is there twice",
            ),
        ] {
            assert_eq!(reasons(entries), Err(reason.to_owned()));
        }
    }
}
