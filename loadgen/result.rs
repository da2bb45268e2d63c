//! A result as it is kept: everything that was found, with all histograms, in JSON with a version, and
//! as an interval log. Does not measure or draw.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec::{self, Entry};
use crate::machine::Facts;
use crate::params::Parameters;
use crate::sweep::Found;
use crate::tally::{Counts, MISSED_NS, Tally, latencies};
use crate::{Error, Outcome, Plan, Result};

/// Name and version of the JSON. A change that a reader of the last version would misread is a new one.
pub const SCHEMA: &str = "ringpost-load/1";

/// A histogram of ns that travels as compressed V2 in base64.
#[derive(Clone, Debug, PartialEq)]
pub struct Times(pub Histogram<u64>);

impl Serialize for Times {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&codec::encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Times {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        codec::decode(&text)
            .map(Times)
            .map_err(serde::de::Error::custom)
    }
}

/// Histograms by what they time; the names are those of [`series`].
pub type Series = BTreeMap<String, Times>;

/// What is timed, by its name in results and logs, and what that is.
pub const SERIES: [(&str, &str); 7] = [
    ("confirm", "confirm, from the intended time"),
    ("confirm-service", "confirm, from the actual send"),
    ("end-to-end", "end to end, from the intended time"),
    ("end-to-end-service", "end to end, from the actual send"),
    ("late", "sent late: from the intended time to the send"),
    (
        "served",
        "end of the consumer's work, from the intended time",
    ),
    (
        "slow",
        "end to end of the slow queues, from the intended time",
    ),
];

/// The histograms of a tally that hold anything.
#[must_use]
pub fn series(tally: &Tally) -> Series {
    let all = [
        &tally.confirm,
        &tally.confirm_service,
        &tally.end_to_end,
        &tally.end_to_end_service,
        &tally.late,
        &tally.served,
        &tally.slow,
    ];
    let named = SERIES.iter().zip(all);
    named
        .filter(|(_, times)| !times.is_empty())
        .map(|((name, _), times)| ((*name).to_owned(), Times(times.clone())))
        .collect()
}

/// One interval of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Interval {
    /// Seconds after measuring began.
    pub start: f64,
    /// How many seconds it is.
    pub seconds: f64,
    /// Messages confirmed in it.
    pub confirmed: u64,
    /// Messages delivered in it.
    pub delivered: u64,
    /// Its histograms.
    pub times: Series,
}

/// How durable a confirm is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Class {
    /// `A`: nothing is promised; `B`: in memory; `C`: synced before it is confirmed, on one machine.
    pub letter: String,
    /// Whether a confirm of this run survives a power cut as far as could be seen from here.
    pub is_durable: bool,
    /// Why.
    pub words: String,
}

/// What the run cost, as far as it could be seen.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time of the broker for each message, in ns.
    pub cpu_ns_per_message: Option<f64>,
    /// CPUs that the broker used.
    pub cpus: Option<f64>,
    /// Bytes that the broker wrote to the device for each byte of payload published.
    pub written_per_payload: Option<f64>,
    /// Journal writes: one is one group commit.
    pub writes: Option<f64>,
    /// Mean bytes of one.
    pub bytes_per_write: Option<f64>,
    /// Mean messages published in one.
    pub messages_per_write: Option<f64>,
    /// Share of the time that a write was under way, the depths added: 1 is one write at all times.
    pub device_busy: Option<f64>,
}

/// The device without a broker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Device {
    /// The directory.
    pub directory: String,
    /// What it lies on.
    pub file_system: String,
    /// Bytes of one write.
    pub bytes: usize,
    /// One thread's durable writes before the runs.
    pub before: Times,
    /// The same after them.
    pub after: Times,
}

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Round {
    /// What it is called.
    pub name: String,
    /// Open loop: messages a second that were due.
    pub offered: Option<f64>,
    /// Seconds measured.
    pub seconds: f64,
    /// Messages a second published.
    pub published_per_second: f64,
    /// Confirmed.
    pub confirmed_per_second: f64,
    /// Delivered.
    pub delivered_per_second: f64,
    /// Settled.
    pub settled_per_second: f64,
    /// Published, confirmed and delivered: the least of these, a message that goes to many queues once.
    pub achieved_per_second: f64,
    /// Share of its CPUs that the load used.
    pub load_busy: f64,
    /// Messages written more than 1 ms after their time, whoever is to blame.
    pub late: u64,
    /// Of these, those that the broker did not hold up, as a share of all that were sent.
    pub missed_share: f64,
    /// All messages, warm-up and end included.
    pub published: u64,
    /// Delivered.
    pub delivered: u64,
    /// What went otherwise than it should.
    #[serde(flatten)]
    pub counts: Counts,
    /// Why the run is not reported; there are no latencies then, except how late it sent.
    pub invalid: Option<String>,
    /// What else to know when reading it.
    pub notes: Vec<String>,
    /// Histograms of the whole run.
    pub times: Series,
    /// How late a thread on the load's CPU is woken.
    pub hiccups: Times,
    /// Histograms over time.
    pub intervals: Vec<Interval>,
    /// What happened when, in seconds after measuring began.
    pub marks: Vec<(f64, String)>,
    /// Storm: how long it took to connect, from the intended time.
    pub connects: Option<Times>,
    /// Stages of the broker in this run.
    pub stages: Vec<(String, Times)>,
    /// Why there are no stages, or what is missing.
    pub stages_missing: Option<String>,
    /// What it cost.
    pub usage: Usage,
}

/// Everything that was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of this program.
    pub version: String,
    /// The command.
    pub command: String,
    /// When it started, in ms since 1970.
    pub started_ms: u64,
    /// What was run.
    pub parameters: Parameters,
    /// The same as the block that can be run again.
    pub block: String,
    /// The machine.
    pub machine: Facts,
    /// The broker.
    pub broker: Facts,
    /// How durable a confirm is.
    pub class: Class,
    /// The device, if a directory was named.
    pub device: Option<Device>,
    /// The runs.
    pub rounds: Vec<Round>,
    /// Sweep: what was found.
    pub sweep: Option<Found>,
}

impl Results {
    /// Reads a result.
    ///
    /// # Errors
    /// [`Error::Data`] if it is none, or of another version.
    pub fn parse(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            schema: String,
        }
        let wrong = |error: serde_json::Error| Error::Data(format!("no result: {error}"));
        let head: Head = serde_json::from_str(text).map_err(wrong)?;
        if head.schema != SCHEMA {
            return Err(Error::Data(format!(
                "a result of schema {:?}; this program reads {SCHEMA:?}",
                head.schema
            )));
        }
        serde_json::from_str(text).map_err(wrong)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// As [`Results::parse`], and if it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::Data(format!("cannot read {}: {error}", path.display())))?;
        Self::parse(&text).map_err(|error| Error::Data(format!("{}: {error}", path.display())))
    }

    /// As JSON.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers, words and lists are JSON")
    }

    /// As an interval log. Runs follow each other in time.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn log(&self) -> Result<Vec<u8>> {
        let mut entries = Vec::new();
        let (mut base, mut names) = (0.0, Vec::new());
        for round in &self.rounds {
            names.push(format!("{} from {base:.3} s", round.name));
            let mut end = round.seconds;
            for interval in &round.intervals {
                end = f64::max(end, interval.start + interval.seconds);
                for (name, times) in &interval.times {
                    entries.push(Entry {
                        tag: name,
                        start: Duration::from_secs_f64(base + interval.start.max(0.0)),
                        length: Duration::from_secs_f64(interval.seconds.max(0.0)),
                        histogram: &times.0,
                    });
                }
            }
            entries.push(Entry {
                tag: "hiccups",
                start: Duration::from_secs_f64(base),
                length: Duration::from_secs_f64(round.seconds),
                histogram: &round.hiccups.0,
            });
            base += end.ceil();
        }
        entries.sort_by_key(|entry| entry.start);
        let start = SystemTime::UNIX_EPOCH + Duration::from_millis(self.started_ms);
        let comment = format!(
            "[ringpost-load {}: times in ns, tags {}; runs: {}]",
            self.version,
            SERIES.map(|(name, _)| name).join(" "),
            names.join(", ")
        );
        let mut out = Vec::new();
        codec::write_log(&mut out, start, &comment, &entries)?;
        Ok(out)
    }

    /// Whether all runs can be reported and no message was lost, refused, damaged or out of order.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.rounds.iter().all(|round| round.counts.is_clean())
    }
}

impl Round {
    /// What a run found, before the machine and the broker are looked at.
    #[must_use]
    pub fn new(name: &str, plan: &Plan, outcome: &Outcome) -> Self {
        let (measured, tally) = (&outcome.measured, &outcome.tally);
        let sent = tally.late.len() - tally.counts.unsent.min(tally.late.len());
        let late = tally.late.len() - tally.late.count_between(0, MISSED_NS).min(tally.late.len());
        let fan_out = f64::from(plan.fan_out);
        let published = outcome.per_second(measured.published);
        let confirmed = outcome.per_second(measured.confirmed);
        let settled = outcome.per_second(measured.settled) / fan_out;
        let achieved = match (plan.producers, plan.consumers) {
            (0, _) => settled,
            (_, 0) => published.min(confirmed),
            _ => {
                let delivered = outcome.per_second(measured.delivered) / fan_out;
                published.min(confirmed).min(delivered)
            }
        };
        Self {
            name: name.to_owned(),
            offered: plan
                .per_second()
                .filter(|_| plan.producers > 0)
                .map(|rate| rate * plan.profile.mean_factor(outcome.time)),
            seconds: outcome.time.as_secs_f64(),
            published_per_second: published,
            confirmed_per_second: confirmed,
            delivered_per_second: outcome.per_second(measured.delivered),
            settled_per_second: outcome.per_second(measured.settled),
            achieved_per_second: achieved,
            load_busy: outcome.busy(),
            late,
            missed_share: tally.counts.missed as f64 / sent.max(1) as f64,
            published: outcome.total.published,
            delivered: outcome.total.delivered,
            counts: Counts {
                refused: outcome.total.refused,
                ..tally.counts.clone()
            },
            invalid: None,
            notes: Vec::new(),
            times: series(tally),
            hiccups: Times(latencies()),
            intervals: Vec::new(),
            marks: Vec::new(),
            connects: None,
            stages: Vec::new(),
            stages_missing: None,
            usage: Usage::default(),
        }
    }

    /// Takes the latencies away, which would be taken for the broker's.
    pub fn refuse(&mut self, why: String) {
        let explains = |name: &str| name == "late";
        self.times.retain(|name, _| explains(name));
        for interval in &mut self.intervals {
            interval.times.retain(|name, _| explains(name));
        }
        self.stages.clear();
        self.stages_missing = Some("the run is not reported".to_owned());
        self.invalid = Some(why);
    }

    /// A histogram by its name.
    #[must_use]
    pub fn times(&self, name: &str) -> Option<&Histogram<u64>> {
        self.times.get(name).map(|times| &times.0)
    }

    /// What a run is judged by: end to end, or confirms if nobody consumes.
    #[must_use]
    pub fn main_series(&self) -> Option<(&'static str, &Histogram<u64>)> {
        ["end-to-end", "confirm"]
            .into_iter()
            .find_map(|name| Some((name, self.times(name)?)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::tally::Sums;

    /// A result that was not measured: 1,000 messages at about `us` each, in as many rounds.
    pub fn made_up(us: &[u64]) -> Results {
        let plan = Plan {
            pace: crate::Pace::Constant { per_second: 100.0 },
            ..Plan::new(([127, 0, 0, 1], 1).into())
        };
        let rounds = us.iter().enumerate().map(|(at, us)| {
            let mut tally = Tally::default();
            for step in 0..1_000 {
                let ns = us * 1_000 + step * us;
                tally.confirm.saturating_record(ns);
                tally.confirm_service.saturating_record(ns - 5);
                tally.end_to_end.saturating_record(2 * ns);
                tally.late.saturating_record(5);
            }
            let sums = Sums {
                published: 1_000,
                confirmed: 1_000,
                delivered: 1_000,
                settled: 1_000,
                ..Sums::default()
            };
            let outcome = Outcome {
                total: sums,
                measured: sums,
                time: Duration::from_secs(10),
                threads: 1,
                tally,
            };
            let mut round = Round::new(&format!("round {}", at + 1), &plan, &outcome);
            round.intervals.push(Interval {
                start: 0.0,
                seconds: 10.0,
                confirmed: 1_000,
                delivered: 1_000,
                times: round.times.clone(),
            });
            round
        });
        let parameters = Parameters::default();
        Results {
            schema: SCHEMA.into(),
            version: "0.0.0".into(),
            command: "ringpost-load".into(),
            started_ms: 1_700_000_000_000,
            block: parameters.block(),
            parameters,
            machine: Facts(vec![("kernel".into(), "6.18 <b>".into())]),
            broker: Facts::default(),
            class: Class {
                letter: "C".into(),
                is_durable: true,
                words: "synced".into(),
            },
            device: None,
            rounds: rounds.collect(),
            sweep: None,
        }
    }

    #[test]
    fn a_result_is_read_as_it_was_written() {
        let results = made_up(&[100, 200]);
        let again = Results::parse(&results.json()).expect("a result");
        assert_eq!(again.json(), results.json());
        assert_eq!(again.rounds[1].times, results.rounds[1].times);
        assert!(again.is_clean());
    }

    #[test]
    fn results_of_another_version_are_refused() {
        let text = made_up(&[100]).json().replace(SCHEMA, "ringpost-load/0");
        let error = Results::parse(&text).expect_err("it is old").to_string();
        assert!(
            error.contains("ringpost-load/0") && error.contains(SCHEMA),
            "{error}"
        );
        assert!(Results::parse("{}").is_err());
    }

    #[test]
    fn a_log_holds_every_interval_and_the_rounds_follow_each_other() {
        let log = made_up(&[100, 200]).log().expect("a log");
        let text = String::from_utf8(log).expect("text");
        let lines: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("Tag="))
            .collect();
        assert_eq!(lines.len(), 2 * (4 + 1));
        let at = |line: &&str| {
            line.split(',')
                .nth(1)
                .and_then(|word| word.parse::<f64>().ok())
        };
        let times: Vec<_> = lines.iter().filter_map(at).collect();
        assert!(times.is_sorted() && times.contains(&10.0), "{times:?}");
        assert!(text.contains("round 2 from 10.000 s"));
    }

    #[test]
    fn a_refused_run_keeps_only_what_explains_it() {
        let mut round = made_up(&[100]).rounds.remove(0);
        round.refuse("too late".into());
        let names: Vec<_> = round.times.keys().collect();
        assert_eq!(names, ["late"]);
        assert_eq!(round.intervals[0].times.len(), 1);
        assert!(round.main_series().is_none());
    }

    #[test]
    fn a_message_to_many_queues_is_achieved_once() {
        let plan = Plan {
            fan_out: 4,
            queues: 4,
            pace: crate::Pace::Constant { per_second: 100.0 },
            ..Plan::new(([127, 0, 0, 1], 1).into())
        };
        let measured = Sums {
            published: 1_000,
            confirmed: 1_000,
            delivered: 3_600,
            settled: 3_600,
            ..Sums::default()
        };
        let outcome = Outcome {
            tally: Tally::default(),
            total: measured,
            measured,
            time: Duration::from_secs(10),
            threads: 1,
        };
        let round = Round::new("x", &plan, &outcome);
        assert_eq!(
            (round.achieved_per_second, round.offered),
            (90.0, Some(100.0))
        );
    }
}
