//! The settings of a field table: arguments whose names start with `x-`, as numbers and words within
//! their bounds. Does not know what a setting does.
//!
//! Names without `x-` are the client's own and are kept as they are. A name with `x-` that nobody
//! asked for is refused: a setting that is misspelt must not be taken for one that holds.
//!
//! Where policies apply a setting comes from the arguments or, if they have none, from the first
//! policy that has it; of a limit the lower one counts.

use std::ops::RangeInclusive;

use ringpost_wire::table::{Table, Value};

/// The settings of one declaration, until each was asked for.
#[derive(Debug)]
pub struct Options<'a> {
    left: Vec<(&'a [u8], Value<'a>)>,
    known: Vec<&'static str>,
    layers: Vec<Layer<'a>>,
    sources: Vec<Source<'a>>,
}

/// The options of a policy.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// What it sets.
    pub options: Table<'a>,
}

/// A setting that was asked for and is there, and where it comes from.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Source<'a> {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub value: Value<'a>,
    /// The policy that it comes from; else the declaration.
    pub policy: Option<&'a [u8]>,
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
            layers: Vec::new(),
            sources: Vec::new(),
        })
    }

    /// The settings among `arguments`, under policies of which the first counts most.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn layered(arguments: &'a [u8], layers: Vec<Layer<'a>>) -> Result<Self, String> {
        let mut options = Self::of(arguments)?;
        options.layers = layers;
        Ok(options)
    }

    /// What was asked for and is there, in the order in which it was asked for.
    #[must_use]
    pub fn sources(&self) -> &[Source<'a>] {
        &self.sources
    }

    /// The settings that were asked for.
    #[cfg(test)]
    pub(crate) fn known(&self) -> &[&'static str] {
        &self.known
    }

    fn take(&mut self, name: &'static str) -> Option<Value<'a>> {
        let own = self.take_own(name);
        let found = match own {
            Some(value) => Some((value, None)),
            None => self.of_policies(name).map(|(value, by)| (value, Some(by))),
        };
        let (value, policy) = found?;
        self.note(name, value, policy);
        Some(value)
    }

    fn take_own(&mut self, name: &'static str) -> Option<Value<'a>> {
        self.known.push(name);
        let at = self
            .left
            .iter()
            .position(|(other, _)| *other == name.as_bytes())?;
        Some(self.left.remove(at).1)
    }

    /// Takes a value of any type that the declaration has, whatever policies say.
    pub fn own(&mut self, name: &str) -> Option<Value<'a>> {
        let at = self
            .left
            .iter()
            .position(|(other, _)| *other == name.as_bytes())?;
        Some(self.left.remove(at).1)
    }

    /// Whether the declaration has it, and it was not taken yet.
    #[must_use]
    pub fn has_own(&self, name: &str) -> bool {
        self.left.iter().any(|(own, _)| *own == name.as_bytes())
    }

    /// A value of any type.
    pub fn value(&mut self, name: &'static str) -> Option<Value<'a>> {
        self.take(name)
    }

    fn of_policies(&self, name: &str) -> Option<(Value<'a>, &'a [u8])> {
        self.layers.iter().find_map(|layer| {
            let value = layer.options.get(name.as_bytes())?;
            Some((value, layer.name))
        })
    }

    fn note(&mut self, name: &'static str, value: Value<'a>, policy: Option<&'a [u8]>) {
        self.sources.push(Source {
            name,
            value,
            policy,
        });
    }

    /// A whole number that is a limit: of the declaration's and the policies' the lower one counts.
    ///
    /// # Errors
    /// One of them is no whole number, or out of bounds.
    pub fn limit(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<u64>,
    ) -> Result<Option<u64>, String> {
        let own = self.take_own(name);
        let own = own.map(|value| whole(name, value, &bounds)).transpose()?;
        self.lower(name, own, bounds)
    }

    /// As [`Self::limit`], where the declaration has it in a field of its own and 0 says that there is none.
    ///
    /// # Errors
    /// That of a policy is no whole number, or out of bounds.
    pub fn declared_limit(
        &mut self,
        name: &'static str,
        declared: u64,
        bounds: RangeInclusive<u64>,
    ) -> Result<u64, String> {
        let own = (declared > 0).then_some(declared);
        Ok(self.lower(name, own, bounds)?.unwrap_or(0))
    }

    fn lower(
        &mut self,
        name: &'static str,
        own: Option<u64>,
        bounds: RangeInclusive<u64>,
    ) -> Result<Option<u64>, String> {
        let other = match self.of_policies(name) {
            None => None,
            Some((value, policy)) => Some((whole(name, value, &bounds)?, policy)),
        };
        let other = other.filter(|(other, _)| own.is_none_or(|own| *other < own));
        let (number, policy) = match (own, other) {
            (_, Some((number, policy))) => (number, Some(policy)),
            (Some(number), None) => (number, None),
            (None, None) => return Ok(None),
        };
        let shown = i64::try_from(number).unwrap_or(i64::MAX);
        self.note(name, Value::I64(shown), policy);
        Ok(Some(number))
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
        let value = self.take(name);
        value.map(|value| whole(name, value, &bounds)).transpose()
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

fn whole(name: &str, value: Value<'_>, bounds: &RangeInclusive<u64>) -> Result<u64, String> {
    let number = value
        .as_integer()
        .ok_or_else(|| format!("{name} is not a whole number"))?;
    match u64::try_from(number) {
        Ok(number) if bounds.contains(&number) => Ok(number),
        _ => Err(format!(
            "{name} is {number}, not {} to {}",
            bounds.start(),
            bounds.end()
        )),
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
