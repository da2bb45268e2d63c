//! What a run found, as a table and as JSON. Does not measure.

use std::fmt;

use hdrhistogram::Histogram;
use ringpost_wire::control::{Durability, Level};
use serde::Serialize;

use crate::plan::{Pace, Plan, Via};
use crate::run::Outcome;

/// A send later than this after its time counts as missed, in ns.
const MISSED_NS: u64 = 1_000_000;

/// Quantiles of one latency, in µs.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Quantiles {
    /// Samples.
    pub count: u64,
    /// Half are at most this.
    pub p50_us: f64,
    /// 90 % are.
    pub p90_us: f64,
    /// 99 % are.
    pub p99_us: f64,
    /// 99.9 % are.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl Quantiles {
    /// The quantiles of a histogram of ns.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let us = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        if histogram.is_empty() {
            return Self::default();
        }
        Self {
            count: histogram.len(),
            p50_us: us(0.5),
            p90_us: us(0.9),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: us(1.0),
        }
    }
}

/// What a run found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `open loop` or `closed loop`, and how.
    pub pace: String,
    /// What made the load.
    pub via: &'static str,
    /// What the queues are.
    pub durability: &'static str,
    /// What the confirms say.
    pub level: &'static str,
    /// Queues.
    pub queues: u32,
    /// Producers.
    pub producers: u32,
    /// Consumers of each queue.
    pub consumers: u32,
    /// Bytes of the payload.
    pub payload_bytes: u32,
    /// Most messages of one write.
    pub batch: u32,
    /// Measured time.
    pub seconds: f64,
    /// Published in the measured time, per second.
    pub published_per_second: f64,
    /// Confirmed.
    pub confirmed_per_second: f64,
    /// Delivered.
    pub delivered_per_second: f64,
    /// Settled.
    pub settled_per_second: f64,
    /// Payload bytes delivered.
    pub delivered_bytes_per_second: f64,
    /// From the intended time to the confirm.
    pub confirm: Quantiles,
    /// From the intended time to the delivery.
    pub end_to_end: Quantiles,
    /// Open loop: from the intended time to the write.
    pub late: Quantiles,
    /// Open loop: share of messages written more than 1 ms after their time.
    pub missed_share: f64,
    /// Share of its CPUs that the load used.
    pub load_busy: f64,
    /// All messages, warm-up and end included.
    pub published: u64,
    /// All refused.
    pub refused: u64,
    /// All delivered.
    pub delivered: u64,
    /// Deliveries flagged as redelivered.
    pub redelivered: u64,
    /// Gaps of sequences, in messages.
    pub missing: u64,
    /// Messages out of order or twice.
    pub disordered: u64,
    /// Messages of other runs.
    pub foreign: u64,
    /// Messages with a wrong checksum, if that was looked at.
    pub corrupt: u64,
    /// Times a producer had no credit.
    pub credit_waits: u64,
    /// Open loop: messages that were due and not sent when the time was over; they count in the
    /// latencies with what they had waited by then.
    pub unsent: u64,
    /// Why the figures say more of the load than of the broker; none if they are the broker's.
    pub invalid: Option<String>,
    /// The first refusal in the broker's words.
    pub first_refusal: Option<String>,
}

/// Share of the asked rate that an open loop must send to be one.
const RATE_SHARE_MIN: f64 = 0.99;
/// Share of its CPUs beyond which the load measures itself.
const BUSY_MAX: f64 = 0.9;

/// Why a run measured its load instead of the broker, if it did. A producer that had no credit was
/// held up by the broker: that is a result.
fn fault(plan: &Plan, outcome: &Outcome) -> Option<String> {
    let (Pace::Constant { per_second } | Pace::Poisson { per_second }) = plan.pace else {
        return None; // a closed loop is labelled as what it is
    };
    if plan.producers == 0 {
        return None;
    }
    let busy = outcome.busy();
    if busy >= BUSY_MAX {
        let percent = busy * 100.0;
        return Some(format!(
            "the load used {percent:.0} % of its CPUs: lower the rate, or give it more with --cpus"
        ));
    }
    let sent = outcome.per_second(outcome.measured.published);
    if sent < per_second * RATE_SHARE_MIN && outcome.tally.credit_waits == 0 {
        return Some(format!(
            "the load sent {sent:.0} messages/s of the {per_second:.0} asked for, and no producer \
             lacked credit: lower the rate, or give it CPUs of its own with --cpus"
        ));
    }
    None
}

impl Report {
    /// The report of a run.
    #[must_use]
    pub fn new(plan: &Plan, outcome: &Outcome) -> Self {
        let (measured, tally) = (&outcome.measured, &outcome.tally);
        let delivered_per_second = outcome.per_second(measured.delivered);
        let late = &tally.late;
        let missed = late.len() - late.count_between(0, MISSED_NS).min(late.len());
        Self {
            pace: match plan.pace {
                Pace::Constant { per_second } => format!("open loop, constant {per_second}/s"),
                Pace::Poisson { per_second } => format!("open loop, Poisson {per_second}/s"),
                Pace::Window { messages } => {
                    format!("closed loop (saturation), window {messages} each")
                }
            },
            via: match plan.via {
                Via::Raw => "raw engine",
                Via::Client => "client crate",
            },
            durability: match plan.durability {
                Durability::Volatile => "volatile",
                Durability::Durable => "durable",
            },
            level: match plan.level {
                Level::None => "none",
                Level::Volatile => "volatile",
                Level::Durable => "durable",
            },
            queues: plan.queues,
            producers: plan.producers,
            consumers: plan.consumers,
            payload_bytes: plan.payload_bytes,
            batch: plan.batch_fitting(),
            seconds: outcome.time.as_secs_f64(),
            published_per_second: outcome.per_second(measured.published),
            confirmed_per_second: outcome.per_second(measured.confirmed),
            delivered_per_second,
            settled_per_second: outcome.per_second(measured.settled),
            delivered_bytes_per_second: delivered_per_second * f64::from(plan.payload_bytes),
            confirm: Quantiles::of(&tally.confirm),
            end_to_end: Quantiles::of(&tally.end_to_end),
            late: Quantiles::of(late),
            missed_share: missed as f64 / late.len().max(1) as f64,
            load_busy: outcome.busy(),
            published: outcome.total.published,
            refused: outcome.total.refused,
            delivered: outcome.total.delivered,
            redelivered: tally.redelivered,
            missing: tally.missing,
            disordered: tally.disordered,
            foreign: tally.foreign,
            corrupt: tally.corrupt,
            credit_waits: tally.credit_waits,
            unsent: tally.unsent,
            invalid: fault(plan, outcome),
            first_refusal: tally.first_refusal.clone(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}, {}; {} queues {}, level {}, {} producers, {} consumers each, {} B, batch {}",
            self.pace,
            self.via,
            self.queues,
            self.durability,
            self.level,
            self.producers,
            self.consumers,
            self.payload_bytes,
            self.batch
        )?;
        writeln!(
            f,
            "{:.2} s measured; load CPU {:.0} % busy{}",
            self.seconds,
            self.load_busy * 100.0,
            if self.load_busy >= 0.9 {
                ": THE LOAD IS THE LIMIT"
            } else {
                ""
            }
        )?;
        for (name, rate) in [
            ("published", self.published_per_second),
            ("confirmed", self.confirmed_per_second),
            ("delivered", self.delivered_per_second),
            ("settled", self.settled_per_second),
        ] {
            writeln!(f, "  {name:<12} {rate:>12.0} /s")?;
        }
        let mb = self.delivered_bytes_per_second / 1e6;
        writeln!(f, "  {:<12} {mb:>12.1} MB/s of payload", "delivered")?;
        writeln!(
            f,
            "  {:<12} {:>9} {:>9} {:>9} {:>9} {:>10}  us",
            "", "p50", "p90", "p99", "p99.9", "max"
        )?;
        for (name, quantiles) in [
            ("confirm", &self.confirm),
            ("end to end", &self.end_to_end),
            ("sent late", &self.late),
        ] {
            if quantiles.count > 0 {
                writeln!(
                    f,
                    "  {name:<12} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>10.1}",
                    quantiles.p50_us,
                    quantiles.p90_us,
                    quantiles.p99_us,
                    quantiles.p999_us,
                    quantiles.max_us
                )?;
            }
        }
        if self.late.count > 0 {
            let share = self.missed_share * 100.0;
            writeln!(
                f,
                "  schedule missed by more than 1 ms: {share:.3} % of the messages; due and not \
                 sent at the end: {}",
                self.unsent
            )?;
        }
        writeln!(
            f,
            "  in all: published {}, refused {}, delivered {}, redelivered {}, credit waits {}",
            self.published, self.refused, self.delivered, self.redelivered, self.credit_waits
        )?;
        write!(
            f,
            "  missing {}, out of order {}, of other runs {}, corrupt {}",
            self.missing, self.disordered, self.foreign, self.corrupt
        )?;
        if let Some(words) = &self.first_refusal {
            write!(f, "\n  first refusal: {words}")?;
        }
        if let Some(why) = &self.invalid {
            write!(f, "\nNOT VALID: {why}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tally::{Sums, Tally};

    fn outcome(published: u64, busy: f64, credit_waits: u64) -> Outcome {
        let time = Duration::from_secs(10);
        Outcome {
            tally: Tally {
                credit_waits,
                ..Tally::default()
            },
            total: Sums::default(),
            measured: Sums {
                published,
                work_ns: (busy * time.as_nanos() as f64) as u64,
                ..Sums::default()
            },
            time,
            threads: 1,
        }
    }

    #[test]
    fn a_load_that_could_not_keep_its_rate_says_so() {
        let mut plan = Plan::new(([127, 0, 0, 1], 1).into());
        plan.pace = Pace::Constant { per_second: 1000.0 };
        assert_eq!(fault(&plan, &outcome(9_900, 0.5, 0)), None);
        let slow = fault(&plan, &outcome(9_899, 0.5, 0)).expect("too few");
        assert!(slow.contains("990 messages/s of the 1000"), "{slow}");
        assert_eq!(fault(&plan, &outcome(5_000, 0.5, 7)), None);
        let busy = fault(&plan, &outcome(10_000, 0.9, 0)).expect("too busy");
        assert!(busy.contains("90 % of its CPUs"), "{busy}");
        plan.pace = Pace::Window { messages: 1 };
        assert_eq!(fault(&plan, &outcome(10, 1.0, 0)), None);
    }
}
