//! Measures the checker: a long clean history of many producers and queues, then the same as text.
//! Does not judge anything. Run with `--release`.

use std::time::Instant;

use ringpost_check::{
    AckMode, Checker, ConsumerNo, Delivery, Durability, Event, Level, MessageId, QueueNo, Target,
    text,
};

fn history(messages: u64, mut take: impl FnMut(Event<'_>)) {
    const QUEUES: u64 = 16;
    const PRODUCERS: u64 = 64;
    const BATCH: u64 = 32;
    for queue in 0..QUEUES as u32 {
        take(Event::Queue {
            queue: QueueNo(queue),
            durability: Durability::Durable,
        });
        take(Event::Consumer {
            consumer: ConsumerNo(queue),
            queue: QueueNo(queue),
            mode: AckMode::Acks,
        });
    }
    let mut places = [0u64; QUEUES as usize];
    for batch in 0..messages / BATCH {
        let producer = (batch % PRODUCERS).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let first = batch / PRODUCERS * BATCH + 1;
        let queue = batch % QUEUES;
        let number = QueueNo(queue as u32);
        let id = |sequence| MessageId { producer, sequence };
        let hash = |sequence: u64| sequence.wrapping_mul(producer | 1);
        for sequence in first..first + BATCH {
            take(Event::Sent {
                message: id(sequence),
                hash: hash(sequence),
                level: Level::Durable,
                targets: &[Target::Must(number)],
            });
        }
        take(Event::Confirmed {
            producer,
            first,
            last: first + BATCH - 1,
            level: Level::Durable,
        });
        for sequence in first..first + BATCH {
            places[queue as usize] += 1;
            take(Event::Delivered(Delivery {
                consumer: ConsumerNo(queue as u32),
                queue: number,
                place: places[queue as usize],
                message: id(sequence),
                hash: hash(sequence),
                redelivered: false,
                count: 0,
            }));
        }
        for sequence in first..first + BATCH {
            let message = id(sequence);
            take(Event::Acked {
                queue: number,
                message,
            });
            take(Event::AckConfirmed {
                queue: number,
                message,
            });
        }
    }
    take(Event::End);
}

fn main() {
    let messages = 4_000_000;
    let mut checker = Checker::new();
    let start = Instant::now();
    history(messages, |event| checker.event(event));
    let seconds = start.elapsed().as_secs_f64();
    let events = checker.counts().events;
    println!("{:.1} M events/s in memory", events as f64 / seconds / 1e6);
    assert!(checker.verdict().is_clean());

    let mut lines = Vec::new();
    history(messages / 8, |event| {
        text::write(&mut lines, &event).expect("memory does not fail");
    });
    let mut checker = Checker::new();
    let start = Instant::now();
    text::read(&lines[..], |event| checker.event(event)).expect("well formed");
    let seconds = start.elapsed().as_secs_f64();
    let events = checker.counts().events;
    println!("{:.1} M events/s from text", events as f64 / seconds / 1e6);
    assert!(checker.verdict().is_clean());
}
