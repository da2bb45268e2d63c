//! How the text of one setting becomes a value within bounds: sizes, spans, counts, addresses.
//! Does not know which settings exist.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What a setting may hold, for its parser and for the documentation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `address:port`, the address numeric.
    Address,
    /// Several of those, separated by commas, or `off`.
    Addresses,
    /// A path; relative ones start where the process was started.
    Path,
    /// A size in bytes.
    Bytes {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
        /// The size must be a multiple of this.
        multiple: u64,
    },
    /// A span of time.
    Span {
        /// Shortest.
        min: Duration,
        /// Longest.
        max: Duration,
    },
    /// A number of things.
    Count {
        /// Fewest.
        min: u64,
        /// Most.
        max: u64,
    },
    /// A number of things, or `auto`: one per CPU the process may use.
    CountOrAuto {
        /// Fewest.
        min: u64,
        /// Most.
        max: u64,
    },
    /// One of these words.
    Word(&'static [&'static str]),
    /// CPU numbers as `0-3,6`, or `auto`, or `off`.
    Cpus,
    /// Host names, separated by commas.
    Hosts,
    /// `true` or `false`.
    Switch,
}

/// Why a text is no value of its kind: half a sentence that begins with "must".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unfit(pub String);

impl Kind {
    /// The unit or form, for tables.
    #[must_use]
    pub fn unit(&self) -> &'static str {
        match self {
            Kind::Address => "address:port",
            Kind::Addresses => "addresses",
            Kind::Path => "path",
            Kind::Bytes { .. } => "size",
            Kind::Span { .. } => "duration",
            Kind::Count { .. } => "count",
            Kind::CountOrAuto { .. } => "count or `auto`",
            Kind::Word(_) => "word",
            Kind::Cpus => "CPU list",
            Kind::Hosts => "host names",
            Kind::Switch => "`true` or `false`",
        }
    }

    /// The bounds, for tables; empty where the form says all.
    #[must_use]
    pub fn bounds(&self) -> String {
        match self {
            Kind::Address | Kind::Path | Kind::Hosts | Kind::Switch => String::new(),
            Kind::Addresses => "address:port, separated by commas, or `off`".into(),
            Kind::Bytes {
                min,
                max,
                multiple: 1,
            } => {
                format!("{} to {}", bytes_text(*min), bytes_text(*max))
            }
            Kind::Bytes { min, max, multiple } => format!(
                "{} to {}, a multiple of {}",
                bytes_text(*min),
                bytes_text(*max),
                bytes_text(*multiple)
            ),
            Kind::Span { min, max } => format!("{} to {}", span_text(*min), span_text(*max)),
            Kind::Count { min, max } | Kind::CountOrAuto { min, max } => format!("{min} to {max}"),
            Kind::Word(words) => words.join(", "),
            Kind::Cpus => "such as `0-3,6`, `auto` or `off`".into(),
        }
    }

    /// The [`Unfit`] of a text that has not even the form of this kind.
    fn unfit(&self) -> Unfit {
        Unfit(match self {
            Kind::Address => {
                "must be a numeric address and a port, such as 127.0.0.1:7400 or [::1]:7400".into()
            }
            Kind::Addresses => {
                "must be `off`, or numeric addresses with ports, separated by commas, such as \
                 127.0.0.1:5672,[::1]:5672, none of them twice"
                    .into()
            }
            Kind::Path => "must be a path".into(),
            Kind::Bytes { .. } => {
                format!("must be a whole size such as 64MiB, {}", self.bounds())
            }
            Kind::Span { .. } => format!(
                "must be a whole number with us, ms, s, min or h, such as 20ms, {}",
                self.bounds()
            ),
            Kind::Count { .. } => format!("must be a whole number, {}", self.bounds()),
            Kind::CountOrAuto { .. } => {
                format!("must be `auto` or a whole number, {}", self.bounds())
            }
            Kind::Word(_) => format!("must be one of {}", self.bounds()),
            Kind::Cpus => {
                "must be `auto`, `off` or CPU numbers such as 0-3,6, each below 4096 and \
                           named once"
                    .into()
            }
            Kind::Hosts => "must be host names separated by commas, without port".into(),
            Kind::Switch => "must be true or false".into(),
        })
    }

    /// The [`Unfit`] of a value outside the bounds.
    fn out_of_bounds(&self) -> Unfit {
        Unfit(format!("must be {}", self.bounds()))
    }
}

/// A type that the text of a setting becomes.
pub trait Field: Sized {
    /// Reads `text` as `kind`.
    ///
    /// # Errors
    /// Why it is no such value.
    fn parse(text: &str, kind: &Kind) -> Result<Self, Unfit>;
}

impl Field for SocketAddr {
    fn parse(text: &str, kind: &Kind) -> Result<Self, Unfit> {
        text.parse().map_err(|_| kind.unfit())
    }
}

impl Field for Vec<SocketAddr> {
    fn parse(text: &str, kind: &Kind) -> Result<Self, Unfit> {
        if text == "off" {
            return Ok(Vec::new());
        }
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for part in text.split(',') {
            let address = part.trim().parse().map_err(|_| kind.unfit())?;
            if addresses.contains(&address) {
                return Err(kind.unfit());
            }
            addresses.push(address);
        }
        Ok(addresses)
    }
}

impl Field for PathBuf {
    fn parse(text: &str, kind: &Kind) -> Result<Self, Unfit> {
        if text.is_empty() {
            Err(kind.unfit())
        } else {
            Ok(text.into())
        }
    }
}

impl Field for bool {
    fn parse(text: &str, kind: &Kind) -> Result<Self, Unfit> {
        text.parse().map_err(|_| kind.unfit())
    }
}

impl Field for u64 {
    fn parse(text: &str, kind: &Kind) -> Result<Self, Unfit> {
        let (value, min, max, multiple) = match *kind {
            Kind::Bytes { min, max, multiple } => (bytes_from(text), min, max, multiple),
            Kind::Count { min, max } => (text.parse().ok(), min, max, 1),
            _ => (None, 0, 0, 1),
        };
        let value = value.ok_or_else(|| kind.unfit())?;
        if value < min || value > max || !value.is_multiple_of(multiple) {
            return Err(kind.out_of_bounds());
        }
        Ok(value)
    }
}

impl Field for u32 {
    fn parse(text: &str, kind: &Kind) -> Result<Self, Unfit> {
        u32::try_from(u64::parse(text, kind)?).map_err(|_| kind.out_of_bounds())
    }
}

impl Field for Duration {
    fn parse(text: &str, kind: &Kind) -> Result<Self, Unfit> {
        let value = span_from(text).ok_or_else(|| kind.unfit())?;
        let Kind::Span { min, max } = kind else {
            return Err(kind.unfit());
        };
        if value < *min || value > *max {
            return Err(kind.out_of_bounds());
        }
        Ok(value)
    }
}

/// How many cores the broker has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cores {
    /// One per CPU that the process may use.
    Auto,
    /// This many.
    Count(u16),
}

impl Field for Cores {
    fn parse(text: &str, kind: &Kind) -> Result<Self, Unfit> {
        if text == "auto" {
            return Ok(Cores::Auto);
        }
        let Kind::CountOrAuto { min, max } = *kind else {
            return Err(kind.unfit());
        };
        let count: u64 = text.parse().map_err(|_| kind.unfit())?;
        if count < min || count > max {
            return Err(kind.out_of_bounds());
        }
        u16::try_from(count)
            .map(Cores::Count)
            .map_err(|_| kind.out_of_bounds())
    }
}

/// Which CPUs the cores are pinned to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cpus {
    /// The CPUs that the process may use, in order, again from the first if there are more cores.
    Auto,
    /// The scheduler's choice.
    Off,
    /// These, in order, again from the first if there are more cores.
    List(Vec<u32>),
}

impl Field for Cpus {
    fn parse(text: &str, kind: &Kind) -> Result<Self, Unfit> {
        match text {
            "auto" => return Ok(Cpus::Auto),
            "off" => return Ok(Cpus::Off),
            _ => {}
        }
        let mut list = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: u32 = first.trim().parse().map_err(|_| kind.unfit())?;
            let last: u32 = last.trim().parse().map_err(|_| kind.unfit())?;
            if first > last || last >= CPU_NUMBER_END {
                return Err(kind.unfit());
            }
            list.extend(first..=last);
        }
        let mut sorted = list.clone();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(kind.unfit());
        }
        Ok(Cpus::List(list))
    }
}

/// Writes rising CPU numbers as they can be given.
#[must_use]
pub fn cpu_list_text(cpus: &[usize]) -> String {
    let mut text = String::new();
    for run in cpus.chunk_by(|left, right| left + 1 == *right) {
        let separator = if text.is_empty() { "" } else { "," };
        let (first, last) = (run[0], run[run.len() - 1]);
        text += &match run.len() {
            1 => format!("{separator}{first}"),
            _ => format!("{separator}{first}-{last}"),
        };
    }
    text
}

/// One more than the largest CPU number that can be named.
const CPU_NUMBER_END: u32 = 4096;

impl Field for Vec<String> {
    fn parse(text: &str, kind: &Kind) -> Result<Self, Unfit> {
        let names = text
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty());
        let names: Vec<String> = names.map(str::to_ascii_lowercase).collect();
        let is_host = |name: &String| {
            name.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        };
        if names.iter().all(is_host) {
            Ok(names)
        } else {
            Err(kind.unfit())
        }
    }
}

const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Reads a size: a whole number, with a unit of `SIZE_UNITS` or in bytes.
#[must_use]
pub fn bytes_from(text: &str) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim() {
        "" => 1,
        name => {
            SIZE_UNITS
                .iter()
                .find(|unit| unit.0.eq_ignore_ascii_case(name))?
                .1
        }
    };
    number.checked_mul(unit)
}

/// Writes a size in the largest binary unit that divides it.
#[must_use]
pub fn bytes_text(bytes: u64) -> String {
    let whole = |unit: &&(&str, u64)| bytes >= unit.1 && bytes.is_multiple_of(unit.1);
    match SIZE_UNITS[..4].iter().find(whole) {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

const SPAN_UNITS: [(&str, u64); 5] = [
    ("h", 3_600_000_000),
    ("min", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

/// Reads a span of time: a whole number with a unit of `SPAN_UNITS`; a bare 0 needs none.
#[must_use]
pub fn span_from(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().ok()?;
    let name = text[digits..].trim();
    let micros = match name {
        "" if number == 0 => 1,
        "µs" => 1,
        _ => SPAN_UNITS.iter().find(|unit| unit.0 == name)?.1,
    };
    number.checked_mul(micros).map(Duration::from_micros)
}

/// Writes a span of time in the largest unit that divides it.
#[must_use]
pub fn span_text(span: Duration) -> String {
    let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
    let whole = |unit: &&(&str, u64)| micros >= unit.1 && micros.is_multiple_of(unit.1);
    match SPAN_UNITS.iter().find(whole) {
        Some((name, unit)) => format!("{}{name}", micros / unit),
        None => "0s".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_go_both_ways() {
        for (text, bytes) in [
            ("1GiB", 1 << 30),
            ("64 MiB", 64 << 20),
            ("1gib", 1 << 30),
            ("10MB", 10_000_000),
            ("4096", 4096),
            ("0", 0),
        ] {
            assert_eq!(bytes_from(text), Some(bytes), "{text}");
            assert_eq!(bytes_from(&bytes_text(bytes)), Some(bytes), "{text}");
        }
        for text in ["", "GiB", "1.5GiB", "-1", "1 GiB of", "99999999TiB", "1G"] {
            assert_eq!(bytes_from(text), None, "{text}");
        }
        assert_eq!(bytes_text(1536 << 20), "1536MiB");
        assert_eq!(bytes_text(1000), "1000B");
    }

    #[test]
    fn spans_go_both_ways() {
        for (text, micros) in [
            ("20ms", 20_000),
            ("10s", 10_000_000),
            ("5min", 300_000_000),
            ("50us", 50),
            ("0", 0),
        ] {
            let span = Duration::from_micros(micros);
            assert_eq!(span_from(text), Some(span), "{text}");
            assert_eq!(span_from(&span_text(span)), Some(span), "{text}");
        }
        for text in ["", "20", "ms", "1.5s", "-1s", "1 fortnight"] {
            assert_eq!(span_from(text), None, "{text}");
        }
    }

    #[test]
    fn addresses() {
        let parse = |text| Vec::<SocketAddr>::parse(text, &Kind::Addresses);
        assert_eq!(parse("off"), Ok(Vec::new()));
        let both = parse("127.0.0.1:5672, [::1]:5672").expect("two addresses");
        let shown: Vec<String> = both.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["127.0.0.1:5672", "[::1]:5672"]);
        for text in [
            "",
            "on",
            "localhost:5672",
            "127.0.0.1",
            "[::1]:1,[::1]:1",
            "[::1]:1,",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cpu_lists() {
        let parse = |text| Cpus::parse(text, &Kind::Cpus);
        assert_eq!(parse("auto"), Ok(Cpus::Auto));
        assert_eq!(parse("off"), Ok(Cpus::Off));
        assert_eq!(parse("0-2,6"), Ok(Cpus::List(vec![0, 1, 2, 6])));
        assert_eq!(parse("4095"), Ok(Cpus::List(vec![4095])));
        assert_eq!(cpu_list_text(&[0, 1, 2, 6]), "0-2,6");
        assert_eq!(cpu_list_text(&[]), "");
        for text in ["", "3-1", "1,1", "0-2,2", "4096", "a", "0-4294967295"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
