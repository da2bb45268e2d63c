//! How far throughput is from what the loopback itself can carry, and what a second executor costs. Does
//! not know how load is made or processes are run.

use ringpost_bench::floor;
use ringpost_load::link::Link;
use ringpost_wire::control::Durability;

use super::broker::Broker;
use super::rows::{Bench, Measured, Result, median};
use super::table::{Aim, Table};

/// Bytes of one write of the stream that the loopback is filled with.
const STREAM_WRITE_BYTES: usize = 64 << 10;
/// Payload, messages of a write, window.
const LOAD: (u32, u32, u32) = (1024, 192, 4_608);

/// Durable 1 KiB messages through one core, in and out, against bytes that are only echoed through it.
pub fn loopback(bench: &Bench, table: &mut Table) -> Result<()> {
    let broker = bench.settings("loopback", &[]).start()?;
    let (payload, batch, window) = LOAD;
    let plan = bench.plan(&broker, payload, batch, window);
    let (mut ratios, mut notes, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.rounds() {
        let time = bench.seconds().mul_f64(0.5);
        let carried = floor::stream(STREAM_WRITE_BYTES, bench.cpus(), time)?;
        let found = bench.run(&broker, &plan)?;
        let through = 2.0 * found.rate * f64::from(payload);
        ratios.push(through / carried);
        others.push(found.others);
        notes.push(format!(
            "[{:.2} of {:.2} GB/s; {}]",
            through / 1e9,
            carried / 1e9,
            found.note()
        ));
    }
    table.add_timed(
        "durable 1 KiB, in and out, against the loopback",
        "ratio",
        median(&mut ratios),
        (Aim::AtLeast, 0.5),
        median(&mut others),
        format!("payload only; {}", notes.join(" ")),
    );
    Ok(broker.stop()?)
}

/// A queue on a core, and one on another.
const PLACES: [(&str, u16); 2] = [("cores-0", 0), ("cores-1", 1)];

/// CPU time a message with two executors, on the core of the queue and across, against one executor.
pub fn cores(bench: &Bench, table: &mut Table) -> Result<()> {
    let one = bench.settings("one-core", &[]).start()?;
    let cpus = format!("{},{}", bench.cpus().0, bench.cpus().1);
    let flags = ["--cores", "2", "--cpus", &cpus];
    let two = bench.settings("two-cores", &flags).start()?;
    for broker in [&one, &two] {
        let mut link = Link::connect(broker.address)?;
        for (queue, partition) in PLACES {
            link.declare_at(queue, Durability::Durable, partition)?;
        }
    }
    for (name, payload, batch, window) in [
        ("100 B", 100, 1_024, 16_384),
        ("1 KiB", LOAD.0, LOAD.1, LOAD.2),
    ] {
        let mut found: [Vec<Measured>; 3] = Default::default();
        for _ in 0..bench.rounds() {
            let run = |broker: &Broker, near: usize| {
                let mut plan = bench.plan(broker, payload, batch, window);
                plan.queue_prefix = "cores-".into();
                plan.producers_near = Some(PLACES[near].0.into());
                bench.run(broker, &plan)
            };
            found[0].push(run(&one, 0)?);
            found[1].push(run(&two, 0)?);
            found[2].push(run(&two, 1)?);
        }
        let cpu = |runs: &[Measured]| {
            let mut all: Vec<_> = runs.iter().map(|run| run.cpu_ns).collect();
            median(&mut all)
        };
        let [single, same, across] = [cpu(&found[0]), cpu(&found[1]), cpu(&found[2])];
        table.add(
            format!("two executors against one, CPU a message, {name}"),
            "ratio",
            same / single,
            (Aim::AtMost, 1.15),
            format!(
                "{same:.0} ns against {single:.0} ns; the second executor shares the load's CPU"
            ),
        );
        table.add(
            format!("publish across cores, CPU a message, {name}"),
            "ratio",
            across / same,
            (Aim::AtMost, 1.3),
            format!("{across:.0} ns against {same:.0} ns on the queue's core"),
        );
    }
    two.stop()?;
    Ok(one.stop()?)
}
