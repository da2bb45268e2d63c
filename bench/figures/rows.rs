//! One function for each figure. Does not know how load is made or processes are run.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ringpost_bench::floor;
use ringpost_load::broker::cpu_of;
use ringpost_load::link::Link;
use ringpost_load::report::Quantiles;
use ringpost_load::run::{declare, delete};
use ringpost_load::{Outcome, Pace, Plan, Stop, message::Template};
use tempfile::TempDir;

use super::broker::{Broker, Settings, busy_of_cpu, disk_bytes};
use super::limits;
use super::table::{Aim, Rate, Table};
use crate::Args;

/// What a row comes to.
pub type Result<T> = std::result::Result<T, Box<dyn Error>>;
type Measure = fn(&Bench, &mut Table) -> Result<()>;

/// The rows by name, in the order they are measured.
const ROWS: [(&str, Measure); 12] = [
    ("idle", idle),
    ("throughput", throughput),
    ("connections", connections),
    ("open-loop", open_loop),
    ("one", one_at_a_time),
    ("queues", queues),
    ("backlog", backlog),
    ("restart", restart),
    ("sparse", sparse),
    ("memory", memory),
    ("loopback", limits::loopback),
    ("cores", limits::cores),
];

const MIB: f64 = (1u64 << 20) as f64;

/// What every row needs.
pub struct Bench {
    args: Args,
    program: PathBuf,
    home: TempDir,
}

/// What a run came to.
pub struct Measured {
    outcome: Outcome,
    /// Published, delivered and settled a second.
    pub rate: f64,
    /// CPU time of the broker for each message.
    pub cpu_ns: f64,
    /// CPUs that the broker used.
    cpus: f64,
    /// The larger share of the broker's or the load's CPU that neighbours used.
    pub others: f64,
}

impl Measured {
    /// How the two CPUs were used.
    #[must_use]
    pub fn note(&self) -> String {
        let faults = match self.outcome.tally.counts.is_clean() {
            true => "",
            false => "; MESSAGES LOST, REFUSED OR OUT OF ORDER",
        };
        format!(
            "broker used {:.0} % of a CPU, load {:.0} %, neighbours {:.0} %{faults}",
            self.cpus * 100.0,
            self.outcome.busy() * 100.0,
            self.others * 100.0
        )
    }

    fn rate(&self, note: &str) -> Rate {
        Rate {
            per_second: self.rate,
            cpu_ns: self.cpu_ns,
            load_busy: self.outcome.busy(),
            others: self.others,
            note: format!("{note}{}", self.note()),
        }
    }
}

/// Measures all rows that were asked for; one that fails does not keep the others from being
/// measured.
///
/// # Errors
/// If the names of rows are not known.
pub fn all(bench: &Bench, table: &mut Table) -> Result<()> {
    for name in &bench.args.only {
        if !ROWS.iter().any(|(row, _)| row == name) {
            let names: Vec<_> = ROWS.iter().map(|(row, _)| *row).collect();
            return Err(format!("no row {name}; there are {}", names.join(", ")).into());
        }
    }
    table.machine = bench.machine();
    for line in &table.machine {
        println!("# {line}");
    }
    for (name, measure) in ROWS {
        let is_wanted = bench.args.only.is_empty() || bench.args.only.iter().any(|row| row == name);
        if is_wanted && let Err(error) = measure(bench, table) {
            table.add_undriven(name, error);
        }
    }
    Ok(())
}

impl Bench {
    /// Finds the broker and makes a directory.
    ///
    /// # Errors
    /// If there is no broker or no room.
    pub fn new(args: Args) -> Result<Self> {
        let program = match &args.broker {
            Some(path) => path.clone(),
            None => std::env::current_exe()?.with_file_name("ringpost"),
        };
        if !program.exists() {
            let text = "there is no broker at";
            return Err(format!("{text} {}; build it or name it", program.display()).into());
        }
        let home = tempfile::Builder::new()
            .prefix("figures-")
            .tempdir_in(&args.directory)?;
        Ok(Self {
            args,
            program,
            home,
        })
    }

    fn machine(&self) -> Vec<String> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1))
            .unwrap_or("unknown");
        let load = read("/proc/loadavg");
        let disk_interrupt = read("/proc/interrupts")
            .lines()
            .filter(|line| line.contains("req") || line.contains("nvme"))
            .max_by_key(|line| counts(line).iter().sum::<u64>())
            .and_then(|line| {
                let counts = counts(line);
                (0..counts.len()).max_by_key(|cpu| counts[*cpu])
            });
        let mut lines = vec![
            format!(
                "{} x {}, {}, load {}",
                cpuinfo.matches("processor\t").count(),
                model,
                read("/proc/sys/kernel/osrelease").trim(),
                load.split(' ').next().unwrap_or("?")
            ),
            format!(
                "broker on CPU {}, load on CPU {}, disk interrupt on CPU {}",
                self.args.broker_cpu,
                self.args.load_cpu,
                disk_interrupt.map_or("?".to_owned(), |cpu| cpu.to_string())
            ),
        ];
        let home = self.home.path();
        let brief = Duration::from_millis(100);
        if floor::device(home, 4096, 1, self.args.broker_cpu, brief).is_err() {
            lines
                .push("NOT DURABLE: the directory has no O_DIRECT; no ratio means anything".into());
        }
        if self.args.quick {
            lines.push("quick run: shows that the rows work, not what they reach".into());
        }
        lines
    }

    /// CPU of the broker, and of the load.
    #[must_use]
    pub const fn cpus(&self) -> (usize, usize) {
        (self.args.broker_cpu, self.args.load_cpu)
    }

    /// Seconds of a measurement.
    #[must_use]
    pub fn seconds(&self) -> Duration {
        Duration::from_secs_f64(if self.args.quick {
            1.0
        } else {
            self.args.seconds
        })
    }

    /// How to start a broker in a directory of its own.
    #[must_use]
    pub fn settings(&self, name: &str, flags: &[&str]) -> Settings {
        Settings {
            program: self.program.clone(),
            directory: self.home.path().join(name),
            cpu: self.args.broker_cpu,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        }
    }

    /// A closed loop.
    #[must_use]
    pub fn plan(&self, broker: &Broker, payload_bytes: u32, batch: u32, window: u32) -> Plan {
        Plan {
            payload_bytes,
            batch,
            pace: Pace::Window { messages: window },
            cpus: vec![self.args.load_cpu],
            warm_up: self.seconds().mul_f64(0.3),
            stop: Stop::After(self.seconds()),
            ..Plan::new(broker.address)
        }
    }

    /// Runs a plan.
    ///
    /// # Errors
    /// If the broker refuses or the load cannot be driven.
    pub fn run(&self, broker: &Broker, plan: &Plan) -> Result<Measured> {
        declare(plan)?;
        let mut looks = Vec::new();
        let cpus = (self.args.broker_cpu, self.args.load_cpu);
        let outcome = ringpost_load::run(plan, || {
            let busy = (busy_of_cpu(cpus.0), busy_of_cpu(cpus.1));
            looks.push((
                broker.cpu(),
                cpu_of(std::process::id()).unwrap_or_default(),
                busy,
            ));
        })?;
        let [before, after] = looks[..] else {
            return Err("a run has two edges".into());
        };
        let used = after.0.saturating_sub(before.0);
        let own = after.1.saturating_sub(before.1);
        let others = [
            (after.2.0.saturating_sub(before.2.0), used),
            (after.2.1.saturating_sub(before.2.1), own),
        ]
        .map(|(busy, ours)| busy.saturating_sub(ours).as_secs_f64() / outcome.time.as_secs_f64());
        let rate = outcome.rate(plan);
        let messages = rate * outcome.time.as_secs_f64();
        Ok(Measured {
            rate,
            cpu_ns: used.as_nanos() as f64 / messages.max(1.0),
            cpus: used.as_secs_f64() / outcome.time.as_secs_f64(),
            others: others[0].max(others[1]),
            outcome,
        })
    }

    /// The run with the median rate of some, since the machine may be shared.
    fn median_run(&self, broker: &Broker, plan: &Plan) -> Result<Measured> {
        let mut runs = Vec::new();
        for _ in 0..self.rounds() {
            runs.push(self.run(broker, plan)?);
        }
        delete(plan)?;
        runs.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        let middle = runs.len() / 2;
        Ok(runs.swap_remove(middle))
    }

    /// Rounds of what is compared; the median counts.
    #[must_use]
    pub fn rounds(&self) -> u32 {
        if self.args.quick {
            1
        } else {
            self.args.rounds.max(1)
        }
    }
}

fn counts(line: &str) -> Vec<u64> {
    line.split_whitespace()
        .skip(1)
        .map_while(|word| word.parse().ok())
        .collect()
}

/// The middle value.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn idle(bench: &Bench, table: &mut Table) -> Result<()> {
    let broker = bench.settings("idle", &[]).start()?;
    std::thread::sleep(Duration::from_secs(2));
    let time = bench.seconds() * 2;
    let before = broker.cpu();
    std::thread::sleep(time);
    let share = (broker.cpu() - before).as_secs_f64() / time.as_secs_f64() * 100.0;
    let note = format!("all threads of the process, no connection, {time:?}");
    table.add(
        "idle CPU of one executor",
        "% of a core",
        share,
        (Aim::AtMost, 1.0),
        note,
    );
    Ok(broker.stop()?)
}

fn throughput(bench: &Bench, table: &mut Table) -> Result<()> {
    let broker = bench.settings("throughput", &[]).start()?;
    for (name, size, batch, window, limit) in [
        ("durable, batched, 100 B", 100, 1024, 16_384, 2e6),
        ("durable, batched, 1 KiB", 1024, 192, 4_608, 5e5),
        (
            "durable, batched, 16 KiB (600 MB/s)",
            16 << 10,
            12,
            768,
            6e8 / 16_384.0,
        ),
    ] {
        let plan = bench.plan(&broker, size, batch, window);
        let found = bench.median_run(&broker, &plan)?;
        let cpu_limit = if size == 100 { 450.0 } else { 1e9 / limit };
        let megabytes = found.rate * f64::from(size) / 1e6;
        let note = format!("{megabytes:.0} MB/s; ");
        table.add_rate(name, limit, cpu_limit, &found.rate(&note));
    }
    Ok(broker.stop()?)
}

fn connections(bench: &Bench, table: &mut Table) -> Result<()> {
    let broker = bench.settings("connections", &[]).start()?;
    for (window, limit) in [(16, 120_000.0), (1, 60_000.0)] {
        let mut plan = bench.plan(&broker, 100, 1, window);
        plan.producers = 64;
        let found = bench.median_run(&broker, &plan)?;
        let name = format!("64 connections, one write each, window {window}");
        let waits = found.outcome.tally.counts.credit_waits;
        let note = format!("{waits} looks without credit; ");
        table.add_rate(&name, limit, 1e9 / limit, &found.rate(&note));
    }
    Ok(broker.stop()?)
}

/// The floors beside one round: device at depth 1 and 2, and loopback, the faster of blocking and
/// spinning; p50 and p99 each, in µs.
struct Floors {
    device: Quantiles,
    device_2: Quantiles,
    loopback: Quantiles,
}

impl Floors {
    fn measure(bench: &Bench, block: usize, request: usize, answer: usize) -> Result<Self> {
        let cpus = (bench.args.broker_cpu, bench.args.load_cpu);
        let time = bench.seconds().mul_f64(0.2);
        let home = bench.home.path();
        let device = |depth| floor::device(home, block, depth, cpus.0, time);
        let echo = |spin| floor::echo(request, answer, cpus, spin, time);
        let (blocking, spinning) = (Quantiles::of(&echo(false)?), Quantiles::of(&echo(true)?));
        let loopback = if spinning.p50_us < blocking.p50_us {
            spinning
        } else {
            blocking
        };
        Ok(Self {
            device: Quantiles::of(&device(1)?),
            device_2: Quantiles::of(&device(2)?),
            loopback,
        })
    }
}

/// Mean bytes of a journal write during a short run.
fn block_bytes(bench: &Bench, broker: &Broker, plan: &Plan) -> Result<usize> {
    let look = || -> Result<(f64, f64)> {
        Ok((
            broker.metric("ringpost_journal_write_bytes_total")?,
            broker.metric("ringpost_journal_write_seconds_count")?,
        ))
    };
    let before = look()?;
    bench.run(broker, plan)?;
    let after = look()?;
    let mean = (after.0 - before.0) / (after.1 - before.1).max(1.0);
    // What fits most writes: whole pages above the mean.
    Ok((mean as usize).next_multiple_of(4096).max(4096))
}

/// Runs a plan in turns with the floors and adds a row for p50 and, beside it, p99.
fn against_floors(
    bench: &Bench,
    table: &mut Table,
    broker: &Broker,
    plan: &Plan,
    (name, limits): (&str, (f64, Option<f64>)),
    answer: usize,
    latency: fn(&Outcome) -> Quantiles,
) -> Result<()> {
    let block = block_bytes(bench, broker, plan)?;
    let message = Template::padded_bytes(&plan.queue_name(0), plan.payload_bytes);
    let answer = if answer == 0 { message + 48 } else { answer };
    let (mut p50, mut p99, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    let mut others = Vec::new();
    for _ in 0..bench.rounds() {
        let floors = Floors::measure(bench, block, message + 32, answer)?;
        let found = bench.run(broker, plan)?;
        let own = latency(&found.outcome);
        let floor = (
            floors.device.p50_us + floors.loopback.p50_us,
            floors.device.p99_us + floors.loopback.p99_us,
        );
        p50.push(own.p50_us / floor.0);
        p99.push(own.p99_us / floor.1);
        others.push(found.others);
        let late = Quantiles::of(&found.outcome.tally.late);
        notes.push(format!(
            "[{:.0}/{:.0} us; device {:.0}/{:.0}, depth 2 {:.0}/{:.0}; loopback {:.0}/{:.0}; sent late {:.0}/{:.0}; {}]",
            own.p50_us,
            own.p99_us,
            floors.device.p50_us,
            floors.device.p99_us,
            floors.device_2.p50_us,
            floors.device_2.p99_us,
            floors.loopback.p50_us,
            floors.loopback.p99_us,
            late.p50_us,
            late.p99_us,
            found.note()
        ));
    }
    delete(plan)?;
    let spread = format!("{block} B blocks; each round p50/p99: {}", notes.join(" "));
    let unit = "x floor";
    let ratio = median(&mut p50);
    table.add(
        format!("{name}, p50"),
        unit,
        ratio,
        (Aim::AtMost, limits.0),
        spread,
    );
    if let Some(limit) = limits.1 {
        let ratio = median(&mut p99);
        let note = "p99 against the sum of both p99";
        table.add(
            format!("{name}, p99"),
            unit,
            ratio,
            (Aim::AtMost, limit),
            note,
        );
    }
    Ok(())
}

fn open_loop(bench: &Bench, table: &mut Table) -> Result<()> {
    let broker = bench.settings("open-loop", &[]).start()?;
    let mut plan = bench.plan(&broker, 1024, 64, 1);
    plan.pace = Pace::Constant { per_second: 1e4 };
    let name = "open loop 10,000/s of 1 KiB, end to end";
    let limits = (2.0, Some(2.0));
    let end_to_end = |outcome: &Outcome| Quantiles::of(&outcome.tally.end_to_end);
    against_floors(bench, table, &broker, &plan, (name, limits), 0, end_to_end)?;
    Ok(broker.stop()?)
}

fn one_at_a_time(bench: &Bench, table: &mut Table) -> Result<()> {
    const CONFIRM_BYTES: usize = 48;
    let broker = bench.settings("one", &[]).start()?;
    let plan = bench.plan(&broker, 100, 1, 1);
    let name = "one durable message at a time, confirm";
    let confirm = |outcome: &Outcome| Quantiles::of(&outcome.tally.confirm);
    let limits = (1.5, None);
    against_floors(
        bench,
        table,
        &broker,
        &plan,
        (name, limits),
        CONFIRM_BYTES,
        confirm,
    )?;
    Ok(broker.stop()?)
}

fn queues(bench: &Bench, table: &mut Table) -> Result<()> {
    let broker = bench.settings("queues", &[]).start()?;
    let one = bench.plan(&broker, 100, 1024, 16_384);
    let many = Plan {
        queues: 1_000,
        queue_prefix: "many-".into(),
        credit: 4_096,
        ..one.clone()
    };
    let (mut rates, mut cpu, mut note) = (Vec::new(), Vec::new(), String::new());
    let mut others = Vec::new();
    for _ in 0..bench.rounds() {
        let (single, spread) = (bench.run(&broker, &one)?, bench.run(&broker, &many)?);
        rates.push(spread.rate / single.rate);
        cpu.push(single.cpu_ns / spread.cpu_ns);
        others.push(single.others.max(spread.others));
        note = format!(
            "last round {:.0}/s at {:.0} ns against {:.0}/s at {:.0} ns; {}",
            spread.rate,
            spread.cpu_ns,
            single.rate,
            single.cpu_ns,
            spread.note()
        );
    }
    let ratio = median(&mut rates);
    table.add(
        "1,000 queues against one, rate",
        "ratio",
        ratio,
        (Aim::AtLeast, 0.7),
        note,
    );
    let note = "the same by the broker's CPU time a message";
    let ratio = median(&mut cpu);
    table.add(
        "1,000 queues against one, by CPU",
        "ratio",
        ratio,
        (Aim::AtLeast, 0.7),
        note,
    );
    Ok(broker.stop()?)
}

fn backlog(bench: &Bench, table: &mut Table) -> Result<()> {
    let count = if bench.args.quick {
        1_000_000
    } else {
        bench.args.backlog
    };
    let broker = bench.settings("backlog", &["--memory", "2GiB"]).start()?;
    let base = Plan {
        queue_prefix: "backlog-".into(),
        warm_up: Duration::ZERO,
        drain: Duration::from_secs(60),
        ..bench.plan(&broker, 100, 1024, 16_384)
    };
    let fill = |messages| Plan {
        consumers: 0,
        stop: Stop::Published(messages),
        ..base.clone()
    };
    let drain = |messages| Plan {
        producers: 0,
        stop: Stop::Delivered(messages),
        ..base.clone()
    };
    // What fits the cache: the in-memory rate.
    const SMALL: u64 = 200_000;
    let mut memory_rates = Vec::new();
    let mut memory_cpu = Vec::new();
    for _ in 0..3 {
        bench.run(&broker, &fill(SMALL))?;
        let found = bench.run(&broker, &drain(SMALL))?;
        memory_rates.push(found.rate);
        memory_cpu.push(found.cpu_ns);
    }
    let cache = broker.metric("ringpost_buffers")? * 262_144.0;
    // The cache fills first; growth is counted from there.
    let each = Template::padded_bytes(&base.queue_name(0), base.payload_bytes) as f64;
    let first = (cache / each) as u64 + 1;
    if first * 2 > count {
        return Err(format!("{count} messages are no backlog for a cache of {first}").into());
    }
    bench.run(&broker, &fill(first))?;
    let before = broker.resident_bytes();
    let fill_rate = bench.run(&broker, &fill(count - first))?.rate;
    let grown = broker.resident_bytes().saturating_sub(before) as f64;
    let note = format!(
        "{count} messages, counted from {first} on; grew {:.0} MiB to {:.0} MiB; filled at {fill_rate:.0}/s",
        grown / MIB,
        broker.resident_bytes() as f64 / MIB
    );
    let each = grown / (count - first) as f64;
    table.add(
        "memory of a ready message",
        "B",
        each,
        (Aim::AtMost, 32.0),
        note,
    );
    let found = bench.run(&broker, &drain(count))?;
    let (rate, cpu) = (median(&mut memory_rates), median(&mut memory_cpu));
    let note = format!(
        "{:.0}/s at {:.0} ns against {rate:.0}/s at {cpu:.0} ns in memory; {}",
        found.rate,
        found.cpu_ns,
        found.note()
    );
    let ratio = found.rate / rate;
    table.add(
        "drain of it against in memory",
        "ratio",
        ratio,
        (Aim::AtLeast, 0.5),
        note,
    );
    Ok(broker.stop()?)
}

fn restart(bench: &Bench, table: &mut Table) -> Result<()> {
    const LIVE: u64 = 1_000;
    const STEPS: u64 = 100;
    let gigabytes = if bench.args.quick {
        1.0
    } else {
        bench.args.restart_gb
    };
    let settings = bench.settings("restart", &[]);
    let broker = settings.start()?;
    spread_live(
        bench,
        &broker,
        LIVE / STEPS,
        STEPS,
        gigabytes * 1e9 / STEPS as f64,
    )?;
    let disk = disk_bytes(&settings.directory) as f64 / MIB;
    broker.kill();
    for name in ["after SIGKILL", "after SIGTERM"] {
        let again = settings.start()?;
        let read = again.read_bytes();
        let ready = ringpost_load::link::Link::connect(again.address)?
            .inspect("live-0")?
            .ready;
        let note = format!(
            "{gigabytes} GB in all, {disk:.0} MiB on disk; {:.1} MiB by read calls; ready after {:?}; {ready} of {LIVE} messages there",
            read.calls as f64 / MIB,
            again.ready_after
        );
        let measured = read.device as f64 / MIB;
        let name = format!("restart {name} reads");
        table.add(name, "MiB", measured, (Aim::AtMost, 64.0), note);
        again.stop()?;
    }
    Ok(())
}

/// Publishes `live` messages that stay and `bytes` that are consumed, `steps` times in turns.
fn spread_live(bench: &Bench, broker: &Broker, live: u64, steps: u64, bytes: f64) -> Result<()> {
    let traffic = Plan {
        warm_up: Duration::ZERO,
        ..bench.plan(broker, 1024, 192, 4_608)
    };
    let stays = Plan {
        queue_prefix: "live-".into(),
        consumers: 0,
        stop: Stop::Published(live),
        batch: 1,
        ..traffic.clone()
    };
    let each = Template::padded_bytes(&traffic.queue_name(0), 1024) as f64;
    let traffic = Plan {
        stop: Stop::Published((bytes / each).ceil() as u64),
        ..traffic
    };
    for _ in 0..steps {
        bench.run(broker, &stays)?;
        bench.run(broker, &traffic)?;
    }
    Ok(())
}

fn sparse(bench: &Bench, table: &mut Table) -> Result<()> {
    const SEGMENT_BYTES: f64 = 4.0 * MIB;
    // The open segment, a reserve of three, and two for the largest message (docs/storage.md).
    const SPARES: f64 = 6.0;
    let segments = if bench.args.quick { 40 } else { 200 };
    let settings = bench.settings(
        "sparse",
        &["--segment-bytes", "4MiB", "--message-bytes-max", "1MiB"],
    );
    let broker = settings.start()?;
    // Without consumers first, so that segments pile up: acks come all at once at the end.
    let fill = Plan {
        warm_up: Duration::ZERO,
        consumers: 0,
        ..bench.plan(&broker, 1024, 192, 4_608)
    };
    let each = Template::padded_bytes(&fill.queue_name(0), 1024) as f64;
    let count = (SEGMENT_BYTES / each).ceil() as u64;
    let fill = Plan {
        stop: Stop::Published(count),
        ..fill
    };
    let stays = Plan {
        queue_prefix: "live-".into(),
        stop: Stop::Published(1),
        batch: 1,
        ..fill.clone()
    };
    let mut published = 0;
    for _ in 0..segments {
        bench.run(&broker, &stays)?;
        published += bench.run(&broker, &fill)?.outcome.total.published;
    }
    let full = disk_bytes(&settings.directory) as f64;
    let drain = Plan {
        producers: 0,
        consumers: 1,
        stop: Stop::Delivered(published),
        ..fill
    };
    bench.run(&broker, &drain)?;
    let (start, mut last) = (Instant::now(), f64::INFINITY);
    let limit = 2.0 * each * f64::from(segments) + SPARES * SEGMENT_BYTES;
    while start.elapsed() < Duration::from_secs(60) && last > limit {
        std::thread::sleep(Duration::from_millis(500));
        last = disk_bytes(&settings.directory) as f64;
    }
    let note = format!(
        "{segments} segments of 4 MiB with one live message each held {:.0} MiB; looked {:?}; limit is 2 x live + {SPARES} spares",
        full / MIB,
        start.elapsed()
    );
    let limit = (Aim::AtMost, limit / MIB);
    table.add(
        "disk with one live message a segment",
        "MiB",
        last / MIB,
        limit,
        note,
    );
    Ok(broker.stop()?)
}

/// Rulings 23: what connections cost that do nothing, and consumers that read nothing.
fn memory(bench: &Bench, table: &mut Table) -> Result<()> {
    const MEMORY: f64 = 1024.0 * MIB;
    const STALLED: u32 = 1_000;
    let idle = if bench.args.quick { 500 } else { 9_500 };
    let flags = ["--memory", "1GiB", "--connections-max", "11000"];
    let broker = bench.settings("memory", &flags).start()?;
    let fill = Plan {
        consumers: 0,
        warm_up: Duration::ZERO,
        stop: Stop::Published(if bench.args.quick { 20_000 } else { 400_000 }),
        ..bench.plan(&broker, 1024, 192, 4_608)
    };
    bench.run(&broker, &fill)?;
    let before = broker.resident_bytes() as f64;
    let mut links = Vec::new();
    for _ in 0..idle {
        links.push(Link::connect(broker.address)?);
    }
    let with_idle = broker.resident_bytes() as f64;
    for _ in 0..STALLED {
        let mut link = Link::connect(broker.address)?;
        link.stall(&fill.queue_name(0))?;
        links.push(link);
    }
    // They are sent what fits; what does not is copied out of the buffers soon after.
    let mut most = 0.0_f64;
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(100));
        most = most.max(broker.resident_bytes() as f64);
    }
    let each = (with_idle - before) / f64::from(idle);
    table.add(
        "memory of an idle connection",
        "bytes",
        each,
        (Aim::AtMost, 6.0 * 1024.0),
        format!("{idle} connections; the budget counts 6 KiB each"),
    );
    let note = format!(
        "{:.0} MiB before, {:.0} with {idle} idle connections, {:.0} with {STALLED} consumers that \
         do not read; limit is `memory`",
        before / MIB,
        with_idle / MIB,
        most / MIB
    );
    let limit = (Aim::AtMost, MEMORY / MIB);
    table.add(
        "memory with stalled consumers",
        "MiB",
        most / MIB,
        limit,
        note,
    );
    drop(links);
    Ok(broker.stop()?)
}
