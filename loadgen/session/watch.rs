//! Watches one run: looks at the broker when measuring begins and ends, keeps the intervals, has the
//! hiccup meter run meanwhile, says how it goes. Does not judge.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::Result;
use crate::broker::{Look, Window};
use crate::hiccup::Meter;
use crate::live::Live;
use crate::plan::Plan;
use crate::report::{rate_of, time_of};
use crate::result::{Interval, series};
use crate::run::Watcher;
use crate::tally::{Sums, Tally, latencies};

/// Watches one run.
pub(super) struct Observer<'a> {
    name: &'a str,
    plan: &'a Plan,
    window: &'a Window,
    live: &'a mut Live,
    before: Option<Look>,
    after: Option<Look>,
    meter: Option<Result<Meter>>,
    hiccups: Option<Result<Histogram<u64>>>,
    begins: Option<SyncSender<Instant>>,
    begun: Option<Instant>,
    tallies: Vec<(Box<Tally>, Sums)>,
    /// When a confirm came last, and the longest time without one.
    confirmed: (u64, Instant),
    silence: Duration,
    said: Instant,
}

/// What was seen.
pub(super) struct Seen {
    pub(super) before: Option<Look>,
    pub(super) after: Option<Look>,
    pub(super) hiccups: Histogram<u64>,
    pub(super) intervals: Vec<Interval>,
    pub(super) silence: Duration,
}

impl<'a> Observer<'a> {
    pub(super) fn new(
        name: &'a str,
        plan: &'a Plan,
        window: &'a Window,
        live: &'a mut Live,
    ) -> Self {
        Self {
            name,
            plan,
            window,
            live,
            before: None,
            after: None,
            meter: None,
            hiccups: None,
            begins: None,
            begun: None,
            tallies: Vec::new(),
            confirmed: (0, Instant::now()),
            silence: Duration::ZERO,
            said: Instant::now(),
        }
    }

    /// Says once when measuring has begun.
    pub(super) fn measuring(&mut self) -> Receiver<Instant> {
        let (sender, receiver) = sync_channel(1);
        self.begins = Some(sender);
        receiver
    }

    /// What was seen; the meter is ended if the run did not come to its end.
    pub(super) fn end(mut self) -> Result<Seen> {
        if self.hiccups.is_none()
            && let Some(meter) = self.meter.take()
        {
            self.hiccups = Some(meter.and_then(Meter::end));
        }
        Ok(Seen {
            before: self.before,
            after: self.after,
            hiccups: self.hiccups.unwrap_or_else(|| Ok(latencies()))?,
            intervals: merge(&self.tallies, self.plan.interval),
            silence: self.silence,
        })
    }
}

impl Watcher for Observer<'_> {
    fn edge(&mut self) {
        if self.before.is_none() {
            self.before = Some(self.window.look());
            self.meter = Some(Meter::start(self.plan.cpus.first().copied()));
            let now = Instant::now();
            self.begun = Some(now);
            self.confirmed.1 = now;
            if let Some(begins) = self.begins.take() {
                let _ = begins.try_send(now); // nothing happens beside this run
            }
        } else {
            self.after = Some(self.window.look());
            self.hiccups = self.meter.take().map(|meter| meter.and_then(Meter::end));
        }
    }

    fn look(&mut self, sums: &Sums) {
        let now = Instant::now();
        if self.begun.is_some() && self.after.is_none() {
            if sums.confirmed != self.confirmed.0 {
                self.confirmed = (sums.confirmed, now);
            } else {
                self.silence = self.silence.max(now - self.confirmed.1);
            }
        }
        if now - self.said < Duration::from_millis(200) {
            return;
        }
        self.said = now;
        let (name, plan, begun) = (self.name, self.plan, self.begun);
        let is_over = self.after.is_some();
        let has_any = |tally: &Tally| !tally.confirm.is_empty() || !tally.end_to_end.is_empty();
        let last = self.tallies.iter().rfind(|(tally, _)| has_any(tally));
        self.live.now(|| {
            let Some(begun) = begun else {
                return format!("{name}: warming up, {} published", sums.published);
            };
            let at = begun.elapsed().as_secs_f64();
            let state = if is_over { ", draining" } else { "" };
            let stored = sums.published.saturating_sub(sums.refused) * u64::from(plan.fan_out);
            let left = stored.saturating_sub(sums.delivered);
            match last {
                None => format!("{name}: {at:.1} s{state}, {} published", sums.published),
                Some((tally, _)) => {
                    let seconds = (tally.to_ns - tally.from_ns) as f64 / 1e9;
                    let times = match tally.end_to_end.is_empty() {
                        true => &tally.confirm,
                        false => &tally.end_to_end,
                    };
                    let rate = rate_of(times.len() as f64 / seconds.max(1e-3));
                    let p50 = time_of(times.value_at_quantile(0.5));
                    let p99 = time_of(times.value_at_quantile(0.99));
                    format!("{name}: {at:.1} s{state}  {rate}/s  p50 {p50}  p99 {p99}  {left} on the way")
                }
            }
        });
    }

    fn interval(&mut self, tally: Box<Tally>, sums: &Sums) {
        self.tallies.push((tally, *sums));
    }
}

/// The intervals of all threads, those of the same time together.
fn merge(tallies: &[(Box<Tally>, Sums)], interval: Duration) -> Vec<Interval> {
    let length = interval.as_nanos() as f64;
    let starts = tallies.iter().map(|(tally, _)| tally.from_ns);
    let Some(base) = starts.filter(|start| *start > 0).min() else {
        return Vec::new();
    };
    let mut slots: std::collections::BTreeMap<u64, (Tally, Sums)> =
        std::collections::BTreeMap::new();
    for (tally, sums) in tallies.iter().filter(|(tally, _)| tally.from_ns > 0) {
        let slot = ((tally.from_ns - base) as f64 / length).round() as u64;
        match slots.get_mut(&slot) {
            None => {
                slots.insert(slot, ((**tally).clone(), *sums));
            }
            Some((all, most)) => {
                all.add(tally);
                all.from_ns = all.from_ns.min(tally.from_ns);
                all.to_ns = all.to_ns.max(tally.to_ns);
                most.confirmed = most.confirmed.max(sums.confirmed);
                most.delivered = most.delivered.max(sums.delivered);
            }
        }
    }
    slots
        .values()
        .map(|(tally, _)| Interval {
            start: (tally.from_ns - base) as f64 / 1e9,
            seconds: (tally.to_ns.saturating_sub(tally.from_ns)) as f64 / 1e9,
            confirmed: tally.confirm.len(),
            delivered: tally.end_to_end.len() + tally.slow.len(),
            times: series(tally),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_of_many_threads_are_one() {
        let second = 1_000_000_000;
        let tally = |from: u64, to: u64, value: u64| {
            let mut tally: Box<Tally> = Box::default();
            (tally.from_ns, tally.to_ns) = (from, to);
            tally.confirm.saturating_record(value);
            (tally, Sums::default())
        };
        let tallies = [
            tally(5 * second, 6 * second, 10),
            tally(5 * second + 1_000, 6 * second + 2_000_000, 20),
            tally(6 * second, 7 * second, 30),
            tally(0, 5 * second, 40), // it never measured
        ];
        let found = merge(&tallies, Duration::from_secs(1));
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].confirmed, found[1].confirmed), (2, 1));
        assert!((found[0].seconds - 1.002).abs() < 1e-9 && found[1].start == 1.0);
        assert!(merge(&[], Duration::from_secs(1)).is_empty());
    }
}
