//! What a transaction of 100 messages over four queues costs: four on one core, and two on each of two.
//! Does not know how one is written.
//!
//! `transactions [PAYLOAD]`: in memory, on a device that costs nothing: CPU, journal bytes and synced
//! writes of a transaction, beside the same messages published alone.
//! `transactions PAYLOAD ADDRESS`: against a broker that runs there with two cores: how many a second,
//! beside each other, with one and with eight at a time.

#[path = "../src/engine/tests/memory/client.rs"]
mod client;
#[path = "../src/engine/tests/memory/machine.rs"]
mod machine;

use std::error::Error;
use std::time::{Duration, Instant};

use machine::{Machine, Size};
use ringpost_client::{Client, DeleteIf, Message, QueueConfig};
use ringpost_engine::ConnId;
use ringpost_wire::control::{Body, TransactionOpen};
use ringpost_wire::{FrameHeader, FrameKind, MessageParts, frame};

/// Messages of a transaction, and its queues.
const MESSAGES: usize = 100;
const QUEUES: usize = 4;
const ROUNDS: u32 = 2_000;

/// Where four queues are.
#[derive(Clone, Copy)]
struct Layout {
    name: &'static str,
    /// Partition of each queue, which is its core here.
    partitions: [u16; QUEUES],
}

const LAYOUTS: [Layout; 2] = [
    Layout {
        name: "4 queues on one core",
        partitions: [0, 0, 0, 0],
    },
    Layout {
        name: "4 queues on two cores",
        partitions: [0, 1, 0, 1],
    },
];

fn queue_name(number: usize) -> String {
    format!("transactions-{number}")
}

/// The messages of one transaction, as they travel.
fn messages(payload: usize) -> Vec<u8> {
    let payload = vec![7; payload];
    let mut body = Vec::new();
    for number in 0..MESSAGES {
        let name = queue_name(number % QUEUES);
        let parts = MessageParts {
            routing_key: name.as_bytes(),
            payload: &payload,
            ..MessageParts::default()
        };
        parts.write(&mut body).expect("within limits");
    }
    body
}

/// What transactions come to in memory.
struct Cost {
    ns: f64,
    bytes: f64,
    writes: f64,
}

fn wait(machine: &mut Machine, conn: ConnId) {
    while machine.received(0, conn).is_empty() {
        machine.turn();
    }
    machine.received(0, conn).clear();
}

fn in_memory(layout: Layout, payload: usize) -> Cost {
    let mut machine = Machine::start(Size {
        cores: 2,
        buffers: 512,
        segment_bytes: 64 << 20,
        slots_max: 64,
    });
    let admin = client::greet(&mut machine, 0);
    for (number, partition) in layout.partitions.into_iter().enumerate() {
        client::declare_at(&mut machine, admin, &queue_name(number), partition);
    }
    let conn = client::greet(&mut machine, 0);
    let open = TransactionOpen {
        timeout_ms: 0,
        reserved: 0,
    };
    let mut bytes = Vec::new();
    open.write(
        &mut bytes,
        FrameHeader::bare(FrameKind::TransactionOpen, 1, 1),
    );
    machine.send(0, conn, &bytes);
    wait(&mut machine, conn);
    let body = messages(payload);
    let before = [0, 1].map(|core| (machine.written_bytes(core), machine.writes(core)));
    let start = Instant::now();
    for number in 1..=u64::from(ROUNDS) {
        let header = FrameHeader {
            count: MESSAGES as u32,
            ..FrameHeader::bare(FrameKind::TransactionPublish, 1, number)
        };
        let mut frames = Vec::with_capacity(body.len() + 128);
        frame::write(&mut frames, header, &body);
        frame::write_bare(&mut frames, FrameKind::TransactionCommit, 1, number);
        machine.send(0, conn, &frames);
        wait(&mut machine, conn);
    }
    let ns = start.elapsed().as_nanos() as f64;
    let after = [0, 1].map(|core| (machine.written_bytes(core), machine.writes(core)));
    let sum = |of: fn(&(u64, u64)) -> u64| {
        let (before, after): (u64, u64) = (before.iter().map(of).sum(), after.iter().map(of).sum());
        (after - before) as f64 / f64::from(ROUNDS)
    };
    Cost {
        ns: ns / f64::from(ROUNDS),
        bytes: sum(|(bytes, _)| *bytes),
        writes: sum(|(_, writes)| *writes),
    }
}

/// Transactions a second of a broker, so many at a time.
async fn of_broker(
    address: &str,
    layout: Layout,
    payload: usize,
    at_once: usize,
) -> Result<f64, Box<dyn Error>> {
    let client = Client::builder(address).connect().await?;
    for (number, partition) in layout.partitions.into_iter().enumerate() {
        let name = queue_name(number);
        client.delete_queue(&name, DeleteIf::Always).await?;
        let config = QueueConfig::durable().partition(partition);
        client.ensure_queue(&name, config).await?;
    }
    let until = Instant::now() + Duration::from_secs(5);
    let mut tasks = Vec::new();
    for _ in 0..at_once {
        let client = client.clone();
        tasks.push(async move {
            let mut transactor = client.transactor().build().await?;
            let payload = vec![7; payload];
            let mut count = 0_u32;
            while Instant::now() < until {
                let mut transaction = transactor.begin().await?;
                for number in 0..MESSAGES {
                    let name = queue_name(number % QUEUES);
                    let message = Message::new(name, payload.clone());
                    transaction.publish("", &message).await?;
                }
                transaction.commit().await?;
                count += 1;
            }
            Ok::<u32, ringpost_client::Error>(count)
        });
    }
    let start = Instant::now();
    let mut running = Vec::new();
    for task in tasks {
        running.push(tokio::spawn(task));
    }
    let mut count = 0;
    for task in running {
        count += task.await??;
    }
    let rate = f64::from(count) / start.elapsed().as_secs_f64();
    for number in 0..QUEUES {
        client
            .delete_queue(&queue_name(number), DeleteIf::Always)
            .await?;
    }
    client.close().await?;
    Ok(rate)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let payload = words.next().map_or(Ok(100), |word| word.parse::<usize>())?;
    let Some(address) = words.next() else {
        let mut first = None;
        for layout in LAYOUTS {
            let cost = in_memory(layout, payload);
            let part = 100.0 * *first.get_or_insert(cost.ns) / cost.ns;
            println!(
                "{:<22} {:8.0} ns, {:8.0} journal bytes, {:.2} synced writes a transaction, {part:.0} %",
                layout.name, cost.ns, cost.bytes, cost.writes
            );
        }
        return Ok(());
    };
    let runtime = tokio::runtime::Runtime::new()?;
    for at_once in [1, 8] {
        let mut first = None;
        for layout in LAYOUTS {
            let rate = runtime.block_on(of_broker(&address, layout, payload, at_once))?;
            let part = 100.0 * rate / *first.get_or_insert(rate);
            println!(
                "{:<22} {at_once} at a time: {rate:8.0} transactions a second, {:9.0} messages, {part:.0} %",
                layout.name,
                rate * MESSAGES as f64
            );
        }
    }
    Ok(())
}
