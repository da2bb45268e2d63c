//! Metrics in the Prometheus text format: their names, their table, their text. Does not gather
//! what they show.
//!
//! A sum over all cores and the figures of single cores are different metrics
//! (`ringpost_publishes_total`, `ringpost_core_publishes_total{core="0"}`), so that neither has to
//! be filtered out of the other.

use std::fmt::{self, Write as _};

use hdrhistogram::Histogram;
use ringpost_engine::data::queue::Death;
use ringpost_wire::Code;

use crate::budget::Budget;
use crate::snapshot::{CoreSnapshot, Phase};
use crate::stages::StageTimes;

/// How a metric behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// Only grows, from 0 at the start of the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by upper bound, with sum and count.
    Histogram,
    /// Quantiles since the start of the process, with sum and count.
    Summary,
}

impl Shape {
    /// The word of the format.
    fn word(self) -> &'static str {
        match self {
            Shape::Counter => "counter",
            Shape::Gauge => "gauge",
            Shape::Histogram => "histogram",
            Shape::Summary => "summary",
        }
    }
}

/// Whom a metric describes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// The process.
    Process,
    /// Every core by itself.
    Core,
    /// Both: the sum as `ringpost_NAME`, every core as `ringpost_core_NAME`.
    Both,
}

/// One metric, for the text and for the documentation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metric {
    /// Name without prefix.
    pub name: &'static str,
    /// Whom it describes.
    pub scope: Scope,
    /// How it behaves.
    pub shape: Shape,
    /// Labels beside `core`, `le` and `quantile`.
    pub labels: &'static [&'static str],
    /// What it says, one sentence.
    pub help: &'static str,
}

const fn metric(name: &'static str, scope: Scope, shape: Shape, help: &'static str) -> Metric {
    Metric {
        name,
        scope,
        shape,
        labels: &[],
        help,
    }
}

const fn labelled(
    name: &'static str,
    scope: Scope,
    shape: Shape,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric {
        name,
        scope,
        shape,
        labels,
        help,
    }
}

/// Every metric, in the order of the text and of the documentation.
pub const METRICS: &[Metric] = {
    use Scope::{Both, Core, Process};
    use Shape::{Counter, Gauge, Histogram, Summary};
    &[
        labelled(
            "build_info",
            Process,
            Gauge,
            &["version"],
            "Always 1; the label names the version.",
        ),
        metric(
            "start_time_seconds",
            Process,
            Gauge,
            "When the broker started, in seconds since 1970.",
        ),
        metric(
            "resident_memory_bytes",
            Process,
            Gauge,
            "Memory of the process that is in RAM.",
        ),
        metric(
            "open_descriptors",
            Process,
            Gauge,
            "File descriptors that the process has open.",
        ),
        labelled(
            "memory_budget_bytes",
            Process,
            Gauge,
            &["pool"],
            "Memory set aside at the start, over all cores.",
        ),
        metric(
            "log_events_dropped_total",
            Process,
            Counter,
            "Log lines dropped since the log could not be written fast enough.",
        ),
        metric(
            "up",
            Core,
            Gauge,
            "1 if the core answered within a second, else 0.",
        ),
        metric(
            "ready",
            Core,
            Gauge,
            "1 if the core serves durable queues, else 0; /readyz says why.",
        ),
        metric(
            "fail_stopped",
            Core,
            Gauge,
            "1 if the journal of the core has failed.",
        ),
        metric("turns_total", Core, Counter, "Turns of the core's loop."),
        metric("connections", Both, Gauge, "Client connections now."),
        metric(
            "connections_opened_total",
            Both,
            Counter,
            "Client connections accepted.",
        ),
        metric(
            "handovers_total",
            Both,
            Counter,
            "Connections handed to the core that owns their queue.",
        ),
        metric("publishes_total", Both, Counter, "Messages published."),
        metric(
            "publish_bytes_total",
            Both,
            Counter,
            "Bytes of messages published.",
        ),
        metric(
            "confirms_total",
            Both,
            Counter,
            "Publishes taken by every queue they were routed to, and synced if that is durable.",
        ),
        metric(
            "returns_total",
            Both,
            Counter,
            "Mandatory publishes returned since no queue took them.",
        ),
        metric("deliveries_total", Both, Counter, "Messages delivered."),
        metric(
            "delivery_bytes_total",
            Both,
            Counter,
            "Bytes of messages delivered.",
        ),
        metric(
            "redeliveries_total",
            Both,
            Counter,
            "Deliveries that may have been seen before.",
        ),
        metric("acks_total", Both, Counter, "Deliveries acked."),
        metric(
            "requeues_total",
            Both,
            Counter,
            "Deliveries returned to their queue.",
        ),
        labelled(
            "deaths_total",
            Both,
            Counter,
            &["reason"],
            "Messages that ended otherwise than by an ack or a purge, by reason.",
        ),
        metric(
            "dead_letters_total",
            Both,
            Counter,
            "Messages that died and that their dead-letter exchange has dealt with.",
        ),
        metric(
            "dead_letters_unroutable_total",
            Both,
            Counter,
            "Of those, the ones that it routed to no queue: they are dropped.",
        ),
        metric(
            "transactions_committed_total",
            Both,
            Counter,
            "Transactions that connections of the core have committed.",
        ),
        metric(
            "transactions_rolled_back_total",
            Both,
            Counter,
            "Transactions of which nothing has happened: rolled back, failed, or of unknown outcome.",
        ),
        metric(
            "transactions_prepared",
            Both,
            Gauge,
            "Shares of transactions over several cores that wait for the decision of another core.",
        ),
        metric(
            "messages_shared_total",
            Both,
            Counter,
            "Messages that a queue shares with others of its core instead of having a copy, once for each of them.",
        ),
        labelled(
            "refusals_total",
            Both,
            Counter,
            &["code"],
            "Publishes, requests and connections refused, by error code.",
        ),
        metric("queues", Both, Gauge, "Queues."),
        metric(
            "queues_damaged",
            Both,
            Gauge,
            "Queues that refuse service because of a damaged range.",
        ),
        metric(
            "messages_ready",
            Both,
            Gauge,
            "Messages ready for delivery.",
        ),
        metric(
            "messages_unacked",
            Both,
            Gauge,
            "Messages delivered and not settled.",
        ),
        metric(
            "messages_delayed",
            Both,
            Gauge,
            "Messages that wait for their time.",
        ),
        metric(
            "messages_dead",
            Both,
            Gauge,
            "Messages on their way to dead-letter exchanges.",
        ),
        metric("queue_bytes", Both, Gauge, "Bytes of messages in queues."),
        metric("consumers", Both, Gauge, "Consumers."),
        metric(
            "journal_write_bytes_total",
            Both,
            Counter,
            "Bytes written to journals, padding included.",
        ),
        metric(
            "journal_write_seconds",
            Both,
            Histogram,
            "How long a journal write took until it was durable.",
        ),
        metric(
            "journal_write_lifetime_seconds",
            Process,
            Summary,
            "Quantiles of journal_write_seconds since the start, over all cores.",
        ),
        labelled(
            "stage_seconds",
            Both,
            Histogram,
            &["stage"],
            "How long messages spent in a stage of their way.",
        ),
        metric(
            "journal_segments_live",
            Both,
            Gauge,
            "Segments that hold messages.",
        ),
        metric(
            "journal_segments_free",
            Both,
            Gauge,
            "Segments ready for use.",
        ),
        metric(
            "buffers_free",
            Both,
            Gauge,
            "Journal and cache buffers that nobody holds.",
        ),
        metric("buffers", Both, Gauge, "Journal and cache buffers."),
        labelled(
            "ring_occupied",
            Core,
            Gauge,
            &["peer"],
            "Requests to another core whose reply has not come back.",
        ),
        labelled(
            "ring_capacity",
            Core,
            Gauge,
            &["peer"],
            "Most requests to another core at a time.",
        ),
    ]
};

/// What a core said when it was asked.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Its snapshot.
    Snapshot(Box<CoreSnapshot>),
    /// Nothing within the time given to it, or its queue of requests is full.
    Silent,
    /// Its thread has ended.
    Gone,
}

/// What the process knows of itself.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ProcessSnapshot {
    /// Version of the program.
    pub version: &'static str,
    /// When it started, in seconds since 1970.
    pub start_time_seconds: u64,
    /// Memory in RAM, if the kernel says.
    pub resident_bytes: Option<u64>,
    /// Open descriptors, if the kernel says.
    pub descriptors: Option<u64>,
    /// Log lines dropped.
    pub log_events_dropped: u64,
    /// How memory was divided.
    pub budget: Option<Budget>,
}

/// Upper bounds of latency buckets, as the text says them and in ns.
const LATENCY_BOUNDS: [(&str, u64); 16] = [
    ("0.00005", 50_000),
    ("0.0001", 100_000),
    ("0.00015", 150_000),
    ("0.0002", 200_000),
    ("0.0003", 300_000),
    ("0.0005", 500_000),
    ("0.001", 1_000_000),
    ("0.002", 2_000_000),
    ("0.005", 5_000_000),
    ("0.01", 10_000_000),
    ("0.02", 20_000_000),
    ("0.05", 50_000_000),
    ("0.1", 100_000_000),
    ("0.5", 500_000_000),
    ("1", 1_000_000_000),
    ("10", 10_000_000_000),
];
/// Quantiles of summaries.
const QUANTILES: [(&str, f64); 5] = [
    ("0.5", 0.5),
    ("0.9", 0.9),
    ("0.99", 0.99),
    ("0.999", 0.999),
    ("1", 1.0),
];

/// A figure of one core.
enum Figure<'a> {
    /// The core does not say.
    None,
    /// One number.
    Number(u64),
    /// A number for each value of the metric's label.
    Labelled(Vec<(String, u64)>),
    /// Latencies in ns.
    Latency(&'a Histogram<u64>),
    /// Latencies by stage.
    Stages(&'a StageTimes),
}

/// The figure that `name` has on a core.
fn figure<'a>(name: &str, core: &'a CoreSnapshot) -> Figure<'a> {
    let counters = &core.counters;
    let number = match name {
        "ready" => u64::from(core.phase == Phase::Serving),
        "fail_stopped" => u64::from(matches!(core.phase, Phase::FailStopped { .. })),
        "turns_total" => counters.turns,
        "connections" => u64::from(core.connections),
        "connections_opened_total" => counters.connections_opened,
        "handovers_total" => counters.handovers,
        "publishes_total" => counters.publishes,
        "publish_bytes_total" => counters.publish_bytes,
        "confirms_total" => counters.confirms,
        "returns_total" => counters.returns,
        "deliveries_total" => counters.deliveries,
        "delivery_bytes_total" => counters.delivery_bytes,
        "redeliveries_total" => counters.redeliveries,
        "acks_total" => counters.acks,
        "requeues_total" => counters.requeues,
        "deaths_total" => {
            let all = Death::ALL.iter().zip(counters.deaths);
            return Figure::Labelled(
                all.map(|(death, count)| (death.word().to_owned(), count))
                    .collect(),
            );
        }
        "dead_letters_total" => counters.dead_letters,
        "dead_letters_unroutable_total" => counters.dead_letters_unroutable,
        "transactions_committed_total" => counters.transactions_committed,
        "transactions_rolled_back_total" => counters.transactions_rolled_back,
        "transactions_prepared" => core.transactions_prepared,
        "messages_shared_total" => counters.shared,
        "refusals_total" => {
            let refused = |code: &Code| {
                core.refusals
                    .iter()
                    .filter(|entry| entry.0 == *code)
                    .map(|entry| entry.1)
                    .sum()
            };
            let all = Code::ALL.iter().filter(|code| **code != Code::Normal);
            return Figure::Labelled(
                all.map(|code| (code.word().to_owned(), refused(code)))
                    .collect(),
            );
        }
        "queues" => core.queues.queues,
        "queues_damaged" => core.queues.damaged,
        "messages_ready" => core.queues.ready,
        "messages_unacked" => core.queues.unacked,
        "messages_delayed" => core.queues.delayed,
        "messages_dead" => core.queues.dead,
        "queue_bytes" => core.queues.bytes,
        "consumers" => core.queues.consumers,
        "journal_write_bytes_total" => core.journal.write_bytes,
        "journal_write_seconds" => return Figure::Latency(&core.journal.write_ns),
        "stage_seconds" => {
            return core.stages.as_deref().map_or(Figure::None, Figure::Stages);
        }
        "journal_segments_live" => u64::from(core.journal.segments_live),
        "journal_segments_free" => u64::from(core.journal.segments_free),
        "buffers_free" => u64::from(core.buffers_free),
        "buffers" => u64::from(core.buffers_total),
        "ring_occupied" | "ring_capacity" => {
            let lanes = core.rings.iter().map(|ring| {
                let count = if name == "ring_occupied" {
                    ring.occupied
                } else {
                    ring.capacity
                };
                (ring.peer.to_string(), u64::from(count))
            });
            return Figure::Labelled(lanes.collect());
        }
        _ => return Figure::None,
    };
    Figure::Number(number)
}

/// Writes everything as the text of `/metrics`.
#[must_use]
pub fn render(process: &ProcessSnapshot, cores: &[Answer]) -> String {
    let mut text = Text {
        out: String::with_capacity(16 << 10),
    };
    for metric in METRICS {
        if metric.scope == Scope::Process {
            render_process(&mut text, metric, process, cores);
        }
        if metric.scope == Scope::Both {
            render_total(&mut text, metric, cores);
        }
        if metric.scope != Scope::Process {
            render_cores(&mut text, metric, cores);
        }
    }
    text.out
}

/// A metric of the process.
fn render_process(text: &mut Text, metric: &Metric, process: &ProcessSnapshot, cores: &[Answer]) {
    let name = format!("ringpost_{}", metric.name);
    text.head(&name, metric);
    match metric.name {
        "build_info" => text.sample(&name, &[("version", process.version)], 1),
        "start_time_seconds" => text.sample(&name, &[], process.start_time_seconds),
        "resident_memory_bytes" => text.sample_if(&name, process.resident_bytes),
        "open_descriptors" => text.sample_if(&name, process.descriptors),
        "log_events_dropped_total" => text.sample(&name, &[], process.log_events_dropped),
        "memory_budget_bytes" => {
            for term in process.budget.iter().flat_map(Budget::terms) {
                text.sample(&name, &[("pool", term.name)], term.total_bytes());
            }
        }
        "journal_write_lifetime_seconds" => {
            let mut all = crate::snapshot::latency_histogram();
            for (_, core) in answered(cores) {
                add(&mut all, &core.journal.write_ns);
            }
            for (label, quantile) in QUANTILES {
                let seconds = all.value_at_quantile(quantile) as f64 / 1e9;
                text.sample(&name, &[("quantile", label)], seconds);
            }
            text.sample(&format!("{name}_sum"), &[], sum(&all) / 1e9);
            text.sample(&format!("{name}_count"), &[], all.len());
        }
        other => debug_assert!(false, "the metric {other} has no figure"),
    }
}

/// The sum of a metric over all cores.
fn render_total(text: &mut Text, metric: &Metric, cores: &[Answer]) {
    let name = format!("ringpost_{}", metric.name);
    text.head(&name, metric);
    let mut number = 0_u64;
    let mut labelled: Vec<(String, u64)> = Vec::new();
    let mut merged: Option<Histogram<u64>> = None;
    let mut stages: Option<StageTimes> = None;
    for (_, core) in answered(cores) {
        match figure(metric.name, core) {
            Figure::None => {}
            Figure::Number(more) => number += more,
            Figure::Labelled(entries) => {
                for (label, more) in entries {
                    match labelled.iter_mut().find(|entry| entry.0 == label) {
                        Some(entry) => entry.1 += more,
                        None => labelled.push((label, more)),
                    }
                }
            }
            Figure::Latency(histogram) => merge(&mut merged, histogram),
            Figure::Stages(times) => match &mut stages {
                None => stages = Some(times.clone()),
                Some(all) => all.add_all(times),
            },
        }
    }
    if let Some(stages) = stages {
        text.stages(&name, &[], &stages);
    }
    match (metric.shape, merged) {
        (Shape::Histogram, Some(histogram)) => text.histogram(&name, &[], &histogram),
        (Shape::Histogram, None) => {}
        (Shape::Counter | Shape::Gauge | Shape::Summary, _) => match metric.labels {
            [label] => {
                for (entry, count) in labelled {
                    text.sample(&name, &[(label, &entry)], count);
                }
            }
            _ => text.sample(&name, &[], number),
        },
    }
}

/// A metric of every core.
fn render_cores(text: &mut Text, metric: &Metric, cores: &[Answer]) {
    let name = format!("ringpost_core_{}", metric.name);
    text.head(&name, metric);
    if metric.name == "up" {
        for (core, answer) in cores.iter().enumerate() {
            let up = u64::from(matches!(answer, Answer::Snapshot(_)));
            text.sample(&name, &[("core", &core.to_string())], up);
        }
        return;
    }
    for (core, snapshot) in answered(cores) {
        let core = core.to_string();
        match figure(metric.name, snapshot) {
            Figure::None => debug_assert!(false, "the metric {} has no figure", metric.name),
            Figure::Number(number) => text.sample(&name, &[("core", &core)], number),
            Figure::Labelled(entries) => {
                // A core without other cores has no lanes, one that refused nothing no refusals.
                let is_worth_a_line = |count: u64| count > 0 || metric.shape == Shape::Gauge;
                for (entry, count) in entries.into_iter().filter(|entry| is_worth_a_line(entry.1)) {
                    text.sample(&name, &[("core", &core), (metric.labels[0], &entry)], count);
                }
            }
            Figure::Latency(histogram) => {
                text.histogram(&name, &[("core", &core)], histogram);
            }
            Figure::Stages(times) => text.stages(&name, &[("core", &core)], times),
        }
    }
}

/// The cores that answered, with their numbers.
fn answered(cores: &[Answer]) -> impl Iterator<Item = (usize, &CoreSnapshot)> {
    cores
        .iter()
        .enumerate()
        .filter_map(|(core, answer)| match answer {
            Answer::Snapshot(snapshot) => Some((core, &**snapshot)),
            Answer::Silent | Answer::Gone => None,
        })
}

/// Adds to the histogram of all cores.
fn merge(merged: &mut Option<Histogram<u64>>, more: &Histogram<u64>) {
    match merged {
        None => *merged = Some(more.clone()),
        Some(all) => add(all, more),
    }
}

/// Adds histograms of one range; a value beyond it would be counted at its end.
fn add(all: &mut Histogram<u64>, more: &Histogram<u64>) {
    if all.add(more).is_err() {
        for bucket in more.iter_recorded() {
            let value = bucket.value_iterated_to();
            all.saturating_record_n(value, bucket.count_at_value());
        }
    }
}

/// The sum of everything recorded, to the precision of the histogram.
fn sum(histogram: &Histogram<u64>) -> f64 {
    histogram.mean() * histogram.len() as f64
}

/// The text being written.
struct Text {
    out: String,
}

impl Text {
    /// The two comment lines that open a metric.
    fn head(&mut self, name: &str, metric: &Metric) {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(self.out, "# HELP {name} {}", metric.help);
        let _ = writeln!(self.out, "# TYPE {name} {}", metric.shape.word());
    }

    /// One sample.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], figure: impl fmt::Display) {
        self.out.push_str(name);
        for (idx, (label, text)) in labels.iter().enumerate() {
            self.out.push(if idx == 0 { '{' } else { ',' });
            let escaped = text
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(self.out, "{label}=\"{escaped}\"");
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {figure}");
    }

    /// One sample, if there is a figure.
    fn sample_if(&mut self, name: &str, figure: Option<u64>) {
        if let Some(figure) = figure {
            self.sample(name, &[], figure);
        }
    }

    /// A histogram for each stage.
    fn stages(&mut self, name: &str, labels: &[(&str, &str)], times: &StageTimes) {
        for (stage, histogram) in times.iter() {
            let mut all = labels.to_vec();
            all.push(("stage", stage.word()));
            self.histogram(name, &all, histogram);
        }
    }

    /// The buckets, sum and count of a histogram.
    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram<u64>) {
        let bucket = format!("{name}_bucket");
        let with = |bound| {
            let mut all = labels.to_vec();
            all.push(("le", bound));
            all
        };
        for (label, bound) in &LATENCY_BOUNDS {
            self.sample(&bucket, &with(label), histogram.count_between(0, *bound));
        }
        self.sample(&bucket, &with("+Inf"), histogram.len());
        self.sample(&format!("{name}_sum"), labels, sum(histogram) / 1e9);
        self.sample(&format!("{name}_count"), labels, histogram.len());
    }
}

/// The metrics as a Markdown table, for docs/operations.md.
#[must_use]
pub fn metrics_table() -> String {
    let mut table = String::from("| Metric | Kind | Labels | What it says |\n|---|---|---|---|\n");
    for Metric {
        name,
        scope,
        shape,
        labels,
        help,
    } in METRICS
    {
        let names = match scope {
            Scope::Process => format!("`ringpost_{name}`"),
            Scope::Core => format!("`ringpost_core_{name}`"),
            Scope::Both => format!("`ringpost_{name}`, `ringpost_core_{name}`"),
        };
        let mut all: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        match scope {
            Scope::Process => {}
            Scope::Core => all.insert(0, "`core`".into()),
            Scope::Both => all.insert(0, "`core` (second)".into()),
        }
        let _ = writeln!(
            table,
            "| {names} | {} | {} | {help} |",
            shape.word(),
            all.join(", ")
        ); // as above
    }
    table
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::budget::Demand;
    use crate::snapshot::{Counters, JournalSnapshot, QueuesSnapshot, RingSnapshot};

    fn core(publishes: u64, write_ns: &[u64]) -> Answer {
        let mut journal = JournalSnapshot {
            write_bytes: 4096,
            ..JournalSnapshot::default()
        };
        for ns in write_ns {
            journal.write_ns.saturating_record(*ns);
        }
        Answer::Snapshot(Box::new(CoreSnapshot {
            connections: 3,
            counters: Counters {
                publishes,
                deaths: [1, 3, 0, 2],
                ..Counters::default()
            },
            refusals: vec![(Code::QueueFull, 2)],
            journal,
            rings: vec![RingSnapshot {
                peer: 1,
                occupied: 1,
                capacity: 64,
            }],
            queues: QueuesSnapshot {
                ready: 5,
                ..QueuesSnapshot::default()
            },
            stages: Some(Box::default()),
            ..CoreSnapshot::default()
        }))
    }

    fn process() -> ProcessSnapshot {
        let demand = Demand {
            memory: 1 << 30,
            cores: 2,
            connections_max: 100,
            writes_in_flight: 2,
            message_bytes_max: 16 << 20,
            flight_turns: 1024,
            machine: None,
        };
        ProcessSnapshot {
            version: "0.1.0",
            start_time_seconds: 7,
            resident_bytes: Some(1),
            budget: Some(Budget::derive(demand).expect("is enough")),
            ..ProcessSnapshot::default()
        }
    }

    fn is_name(name: &str) -> bool {
        name.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    }

    #[test]
    fn sums_and_cores_are_apart() {
        let cores = [
            core(10, &[120_000, 90_000]),
            core(5, &[2_500_000]),
            Answer::Silent,
        ];
        let text = render(&process(), &cores);
        for line in [
            "ringpost_publishes_total 15",
            "ringpost_core_publishes_total{core=\"0\"} 10",
            "ringpost_core_publishes_total{core=\"1\"} 5",
            "ringpost_core_up{core=\"2\"} 0",
            "ringpost_connections 6",
            "ringpost_refusals_total{code=\"queue_full\"} 4",
            "ringpost_refusals_total{code=\"disk_full\"} 0",
            "ringpost_core_refusals_total{core=\"1\",code=\"queue_full\"} 2",
            "ringpost_deaths_total{reason=\"expired\"} 6",
            "ringpost_core_deaths_total{core=\"0\",reason=\"delivery_limit\"} 2",
            "ringpost_journal_write_seconds_bucket{le=\"0.0001\"} 1",
            "ringpost_journal_write_seconds_bucket{le=\"+Inf\"} 3",
            "ringpost_journal_write_seconds_count 3",
            "ringpost_core_ring_capacity{core=\"0\",peer=\"1\"} 64",
            "ringpost_build_info{version=\"0.1.0\"} 1",
        ] {
            assert!(
                text.lines().any(|given| given == line),
                "{line} is not in\n{text}"
            );
        }
        assert!(
            !text.contains("core_publishes_total{core=\"2\"}"),
            "a silent core says nothing"
        );
    }

    /// What a strict parser of the text format asks for, and the naming conventions.
    #[test]
    fn the_text_is_well_formed() {
        let text = render(
            &process(),
            &[core(10, &[120_000]), core(1, &[]), Answer::Gone],
        );
        assert!(text.ends_with('\n'));
        let mut series = BTreeSet::new();
        let mut opened = BTreeSet::new();
        let mut current: Option<(String, String)> = None;
        let mut helped = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a help text");
                assert!(help.ends_with('.'), "{line}");
                assert!(opened.insert(name.to_owned()), "{name} is opened twice");
                helped = name.to_owned();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, shape) = rest.split_once(' ').expect("a type");
                assert_eq!(name, helped, "the help comes first");
                assert!(is_name(name) && name.starts_with("ringpost_"), "{name}");
                assert_eq!(
                    shape == "counter",
                    name.ends_with("_total"),
                    "{name} is a {shape}"
                );
                current = Some((name.to_owned(), shape.to_owned()));
            } else {
                let (left, number) = line.rsplit_once(' ').expect("a number");
                assert!(number.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
                assert!(series.insert(left.to_owned()), "{left} is given twice");
                let name = left.split('{').next().expect("a name");
                let (open, shape) = current.as_ref().expect("a metric is open");
                let suffixes: &[&str] = match shape.as_str() {
                    "histogram" => &["_bucket", "_sum", "_count"],
                    "summary" => &["", "_sum", "_count"],
                    _ => &[""],
                };
                assert!(
                    suffixes
                        .iter()
                        .any(|suffix| *name == format!("{open}{suffix}")),
                    "{line}"
                );
            }
        }
        assert!(series.len() > METRICS.len());
    }

    #[test]
    fn buckets_never_fall() {
        let mut histogram = crate::snapshot::latency_histogram();
        let mut ns = 1;
        while ns < 60_000_000_000 {
            histogram.saturating_record(ns);
            ns = ns * 3 / 2 + 1;
        }
        let mut text = Text { out: String::new() };
        text.histogram("x", &[], &histogram);
        let counts: Vec<u64> = text
            .out
            .lines()
            .filter(|line| line.starts_with("x_bucket"))
            .map(|line| {
                line.rsplit(' ')
                    .next()
                    .expect("a count")
                    .parse()
                    .expect("digits")
            })
            .collect();
        assert!(counts.is_sorted(), "{counts:?}");
        assert_eq!(counts.last(), Some(&histogram.len()));
    }

    #[test]
    fn labels_are_escaped() {
        let mut text = Text { out: String::new() };
        text.sample("x", &[("a", "q\"\\\n")], 1);
        assert_eq!(text.out, "x{a=\"q\\\"\\\\\\n\"} 1\n");
    }

    #[test]
    fn every_metric_of_a_core_has_a_figure() {
        let core = CoreSnapshot {
            stages: Some(Box::default()), // said when asked for, as the page does
            ..CoreSnapshot::default()
        };
        for metric in METRICS
            .iter()
            .filter(|metric| metric.scope != Scope::Process)
        {
            let is_there = !matches!(figure(metric.name, &core), Figure::None);
            assert!(is_there || metric.name == "up", "{}", metric.name);
        }
    }
}
