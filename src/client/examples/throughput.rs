//! What the client costs per message: publishing to and consuming from a peer that does next to
//! nothing, on a thread of its own. `cargo run --release -p ringpost-client --example client-throughput`.
//!
//! Two figures each: wall clock, which the peer and the socket share in, and CPU time of all threads
//! but the peer's, which is the client's own cost, its system calls included.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringpost_client::{Client, Level, Message, Result};
use ringpost_wire::control::{
    Body, ConsumerOpen, Level as WireLevel, ProducerCredit, ProducerOpened, Welcome,
};
use ringpost_wire::{
    Cut, DeliverHead, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FrameHeader, FrameKind, MessageParts,
    SettleRange, checksum, frame, version,
};

const PAYLOAD_BYTES: usize = 100;
const BATCH_COUNT: usize = 512;
const MESSAGES: u64 = 4_000_000;
/// Messages of one `Deliver` frame.
const DELIVER_COUNT: u32 = 256;

fn main() -> Result<()> {
    let address = start_peer();
    for (name, runtime) in [
        (
            "one thread",
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build(),
        ),
        (
            "two threads",
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build(),
        ),
    ] {
        let runtime = runtime.expect("a runtime");
        runtime.block_on(async {
            // On a worker, so that no message is handed from thread to thread for the bench's sake.
            let address = address.clone();
            tokio::spawn(run(name, address)).await.expect("no panic")
        })?;
    }
    Ok(())
}

async fn run(name: &'static str, address: String) -> Result<()> {
    let client = Client::builder(address).connect().await?;
    let producer = client.producer("").level(Level::Durable).build().await?;
    let message = Message::new("orders", Bytes::from(vec![7; PAYLOAD_BYTES]));
    let batch = vec![message.clone(); BATCH_COUNT];

    let meter = Meter::start();
    let mut last = producer.enqueue_batch(&batch).await?;
    for _ in 1..MESSAGES / BATCH_COUNT as u64 {
        let next = producer.enqueue_batch(&batch).await?;
        // Each batch's receipt is looked at, one batch later.
        std::mem::replace(&mut last, next).await?;
    }
    last.await?;
    meter.report(name, "enqueue_batch, one batch ahead", MESSAGES);

    let meter = Meter::start();
    for _ in 0..MESSAGES / BATCH_COUNT as u64 {
        drop(producer.enqueue_batch(&batch).await?);
    }
    producer.flush().await?;
    meter.report(name, "enqueue_batch, flush at the end", MESSAGES);

    let meter = Meter::start();
    let mut pendings = Vec::with_capacity(BATCH_COUNT);
    for _ in 0..MESSAGES / BATCH_COUNT as u64 {
        for _ in 0..BATCH_COUNT {
            pendings.push(producer.enqueue(message.clone()).await?);
        }
        for pending in pendings.drain(..) {
            pending.await?;
        }
    }
    meter.report(name, "enqueue, every receipt awaited", MESSAGES);

    let meter = Meter::start();
    for _ in 0..20_000 {
        producer.send(message.clone()).await?;
    }
    meter.report(name, "send, one at a time", 20_000);

    let mut consumer = client
        .consumer("orders")
        .credit(16 * DELIVER_COUNT)
        .subscribe()
        .await?;
    let meter = Meter::start();
    let (mut received, mut bytes) = (0, 0);
    while received < MESSAGES {
        let Some(batch) = consumer.next_batch().await? else {
            break;
        };
        for delivery in &batch {
            bytes += delivery.payload().len();
        }
        consumer.ack(&batch).await?;
        received += batch.len() as u64;
    }
    meter.report(name, "next_batch, every batch acked", received);

    let meter = Meter::start();
    let start = received;
    while received < 2 * MESSAGES {
        let Some(batch) = consumer.next_batch().await? else {
            break;
        };
        for delivery in &batch {
            bytes += delivery.payload().len();
            consumer.ack(delivery).await?;
        }
        received += batch.len() as u64;
    }
    meter.report(name, "next_batch, every message acked", received - start);
    assert_eq!(bytes as u64, received * PAYLOAD_BYTES as u64);
    drop(consumer);
    client.close().await
}

/// Measures from its start on.
struct Meter {
    wall: Instant,
    cpu: Duration,
}

impl Meter {
    fn start() -> Self {
        Self {
            wall: Instant::now(),
            cpu: cpu_without_peer(),
        }
    }

    fn report(self, name: &str, what: &str, count: u64) {
        let wall = self.wall.elapsed().as_nanos() as f64 / count as f64;
        let cpu = (cpu_without_peer() - self.cpu).as_nanos() as f64 / count as f64;
        println!(
            "{name:12} {what:34} {wall:8.1} ns wall, {cpu:8.1} ns CPU, {:6.2} M messages/s",
            1_000.0 / wall
        );
    }
}

/// Time on a CPU of all threads of this process but those of the peer.
fn cpu_without_peer() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("procfs");
    let nanos = tasks.filter_map(|task| {
        let path = task.ok()?.path();
        let name = std::fs::read_to_string(path.join("comm")).ok()?;
        let is_peer = name.trim_end().starts_with(PEER_NAME);
        let stat = std::fs::read_to_string(path.join("schedstat")).ok()?;
        (!is_peer).then(|| stat.split(' ').next()?.parse::<u64>().ok())?
    });
    Duration::from_nanos(nanos.sum())
}

const PEER_NAME: &str = "peer";

/// Starts the peer; returns its address.
fn start_peer() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let spawn = |name: String, run: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new()
            .name(name)
            .spawn(run)
            .expect("a thread");
    };
    spawn(
        PEER_NAME.to_owned(),
        Box::new(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("a connection");
                stream.set_nodelay(true).expect("a socket");
                spawn(PEER_NAME.to_owned(), Box::new(move || serve(stream)));
            }
        }),
    );
    address
}

/// Confirms everything and delivers as fast as credit allows.
fn serve(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 20];
    let mut filled = 0;
    let mut out = Vec::new();
    let mut published = 0_u64;
    let mut confirmed = 0_u64;
    let mut bytes = 0_u64;
    let mut consumer: Option<(u16, u64)> = None;
    let mut settled = 0_u64;
    let mut tag = 1_u64;
    let deliver = deliver_body();
    loop {
        let Ok(count @ 1..) = stream.read(&mut buffer[filled..]) else {
            return;
        };
        filled += count;
        let mut at = 0;
        let mut channel = 0;
        while let Cut::Complete { header, length } =
            ringpost_wire::cut(&buffer[at..filled], FRAME_BYTES_MAX)
        {
            let body = &buffer[at + FRAME_HEADER_BYTES..][..header.body_bytes as usize];
            at += length;
            match header.kind {
                FrameKind::Hello => welcome(&mut out),
                FrameKind::Attach => {
                    frame::write_bare(&mut out, FrameKind::Attached, 0, header.sequence);
                }
                FrameKind::ProducerOpen => {
                    let opened = ProducerOpened {
                        sequence: 1,
                        messages: 1 << 20,
                        bytes: 1 << 30,
                    };
                    let kind = FrameKind::ProducerOpened;
                    opened.write(&mut out, FrameHeader::bare(kind, header.channel, 0));
                }
                FrameKind::Publish => {
                    channel = header.channel;
                    published += u64::from(header.count);
                    bytes += u64::from(header.body_bytes);
                }
                FrameKind::ConsumerOpen => {
                    let open = ConsumerOpen::decode(body).expect("a body");
                    consumer = Some((header.channel, u64::from(open.credit_messages)));
                    frame::write_bare(&mut out, FrameKind::ConsumerOpened, header.channel, 0);
                }
                FrameKind::Settle => {
                    let ranges = SettleRange::parse(body, header.count).expect("ranges");
                    settled += ranges
                        .map(|range| range.last - range.first + 1)
                        .sum::<u64>();
                }
                FrameKind::Close => return,
                _ => {}
            }
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
        if published > confirmed {
            confirmed = published;
            let credit = ProducerCredit {
                messages: published + (1 << 20),
                bytes: bytes + (1 << 30),
            };
            let header = FrameHeader {
                flags: WireLevel::Durable as u8,
                ..FrameHeader::bare(FrameKind::Confirm, channel, published)
            };
            credit.write(&mut out, header);
        }
        if let Some((channel, credit)) = consumer {
            while tag - 1 - settled + u64::from(DELIVER_COUNT) <= credit {
                write_delivery(&mut out, channel, tag, &deliver);
                tag += u64::from(DELIVER_COUNT);
            }
        }
        if stream.write_all(&out).is_err() {
            return;
        }
        out.clear();
    }
}

fn welcome(out: &mut Vec<u8>) {
    let welcome = Welcome {
        magic: version::MAGIC,
        version: version::VERSION_MAX,
        core: 0,
        cores: 1,
        channels_max: 16,
        heartbeat_ms: 10_000,
        frame_bytes_max: FRAME_BYTES_MAX as u32,
        message_bytes_max: 16 << 20,
        credit_messages_max: 1_000_000,
        connection: 1,
        server: b"peer",
    };
    welcome.write(out, FrameHeader::bare(FrameKind::Welcome, 0, 0));
}

/// The body of every `Deliver` frame.
fn deliver_body() -> Vec<u8> {
    let parts = MessageParts {
        routing_key: b"orders",
        payload: &[7; PAYLOAD_BYTES],
        ..MessageParts::default()
    };
    let mut body = DeliverHead::default().encode().to_vec();
    for _ in 0..DELIVER_COUNT {
        parts.write(&mut body).expect("within limits");
    }
    body
}

fn write_delivery(out: &mut Vec<u8>, channel: u16, tag: u64, body: &[u8]) {
    let header = FrameHeader {
        count: DELIVER_COUNT,
        body_bytes: body.len() as u32,
        body_crc: checksum::crc32c(&body[..DeliverHead::BYTES]),
        ..FrameHeader::bare(FrameKind::Deliver, channel, tag)
    };
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(body);
    frame::pad(out);
}
