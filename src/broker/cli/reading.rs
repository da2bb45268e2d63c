//! Where and how `ringpost sub` and `get` read a stream: `--from` and its companions.
//! Does not know what a stream is made of.

use std::time::{Duration, SystemTime};

use ringpost_client::{ConsumerBuilder, Start};

use super::link;

/// How a stream is read.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Streams")]
pub struct Reading {
    /// Where to begin: first, last, next, offset:N, time:T (seconds since 1970
    /// or 2026-11-30T10:00:00Z) or ago:1h [default: next]
    #[arg(long, value_name = "place", value_parser = start)]
    from: Option<Start>,
    /// Read as a member of this group, which goes on where it was
    #[arg(long, value_name = "name")]
    group: Option<String>,
    /// Read only messages for which this condition holds
    #[arg(long, value_name = "condition")]
    filter: Option<String>,
    /// Let the condition look at fields of JSON bodies, as body.customer.vip
    #[arg(long, requires = "filter")]
    filter_body: bool,
    /// Read at most so many messages a second
    #[arg(long, value_name = "number", conflicts_with = "speed")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rate: Option<u32>,
    /// Read as fast as they came, in percent: 100 is the original pace
    #[arg(long, value_name = "percent")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    speed: Option<u32>,
}

impl Reading {
    /// Whether something of a stream was asked for.
    const fn is_asked(&self) -> bool {
        self.from.is_some()
            || self.group.is_some()
            || self.filter.is_some()
            || self.rate.is_some()
            || self.speed.is_some()
    }

    /// A consumer that reads so, if something of a stream was asked for.
    pub fn of(&self, consumer: ConsumerBuilder) -> ConsumerBuilder {
        if !self.is_asked() {
            return consumer;
        }
        let mut stream = consumer.reading(self.from.unwrap_or_default());
        if let Some(name) = &self.group {
            stream = stream.group(name);
        }
        match &self.filter {
            Some(condition) if self.filter_body => stream = stream.filter_body(condition),
            Some(condition) => stream = stream.filter(condition),
            None => {}
        }
        if let Some(rate) = self.rate {
            stream = stream.rate(rate);
        }
        if let Some(percent) = self.speed {
            stream = stream.speed(percent);
        }
        stream.into()
    }
}

/// Reads a place in a stream from the command line.
pub fn start(text: &str) -> Result<Start, String> {
    let place = match text.split_once(':') {
        None => match text {
            "first" => Some(Start::First),
            "last" => Some(Start::Last),
            "next" => Some(Start::Next),
            _ => None,
        },
        Some(("offset", number)) => number.parse().ok().filter(|n| *n > 0).map(Start::Offset),
        Some(("time", time)) => seconds(time)
            .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since)))
            .map(Start::Time),
        Some(("ago", span)) => SystemTime::now()
            .checked_sub(link::span(span)?)
            .map(Start::Time),
        Some(_) => None,
    };
    place.ok_or_else(|| {
        "first, last, next, offset:N from 1 on, time:T or ago:1h; T in seconds since 1970, or as \
         2026-11-30T10:00:00Z"
            .to_owned()
    })
}

/// Seconds since 1970 of a number, or of a date and time in UTC.
fn seconds(text: &str) -> Option<u64> {
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let numbers = |text: &str, mark| -> Option<Vec<u64>> {
        text.split(mark)
            .map(|part| {
                let is_plain = part.bytes().all(|byte| byte.is_ascii_digit());
                part.parse().ok().filter(|_| is_plain)
            })
            .collect()
    };
    let ([year, month, day], [hour, minute, second]) = (
        <[u64; 3]>::try_from(numbers(date, '-')?).ok()?,
        <[u64; 3]>::try_from(numbers(time, ':')?).ok()?,
    );
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_of = |month| match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let is_date = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_of(month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !is_date {
        return None;
    }
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    let days = (year - 1970) * 365 + leaps(year - 1) - leaps(1969);
    let days = days + (1..month).map(days_of).sum::<u64>() + day - 1;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_what_is_none_is_said() {
        let at = |since| SystemTime::UNIX_EPOCH + Duration::from_secs(since);
        for (text, place) in [
            ("first", Start::First),
            ("last", Start::Last),
            ("next", Start::Next),
            ("offset:7", Start::Offset(7)),
            ("time:1700000000", Start::Time(at(1_700_000_000))),
            ("time:1970-01-01T00:00:00Z", Start::Time(at(0))),
            ("time:2000-02-29T12:34:56Z", Start::Time(at(951_827_696))),
            ("time:2026-11-30T10:00:00Z", Start::Time(at(1_796_032_800))),
        ] {
            assert_eq!(start(text), Ok(place), "{text}");
        }
        assert!(matches!(start("ago:1h"), Ok(Start::Time(_))));
        for text in [
            "",
            "begin",
            "offset",
            "offset:0",
            "offset:-1",
            "time:",
            "time:yesterday",
            "time:2026-02-29T10:00:00Z",
            "time:2026-13-01T10:00:00Z",
            "time:2026-11-30T24:00:00Z",
            "time:2026-11-30T10:00:00",
            "ago:long",
            "at:5",
        ] {
            assert!(start(text).is_err(), "{text}");
        }
    }
}
