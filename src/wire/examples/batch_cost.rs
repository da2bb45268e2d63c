//! What it costs to take a batch of messages apart and check it, in ns per message.
//!
//! `cargo run --release -p ringpost-wire --example batch_cost`
//!
//! The target is below 40 ns to iterate and check a payload of 100 bytes. Nothing here fails if it
//! is missed: a figure depends on the machine and on what else it does.

use std::hint::black_box;
use std::time::Instant;

use ringpost_wire::{MessageParts, Messages};

const MESSAGES: usize = 500;
const ROUNDS: usize = 400;
const TRIES: usize = 21;

/// The best and the median of the tries: the best is what the code costs, the other what it got.
fn measure(name: &str, body: &[u8], mut visit: impl FnMut(&[u8]) -> usize) {
    let mut nanos: Vec<f64> = (0..TRIES)
        .map(|_| {
            let start = Instant::now();
            let mut seen = 0;
            for _ in 0..ROUNDS {
                seen += visit(black_box(body));
            }
            let elapsed = start.elapsed().as_nanos() as f64;
            assert_eq!(black_box(seen), MESSAGES * ROUNDS);
            elapsed / (MESSAGES * ROUNDS) as f64
        })
        .collect();
    nanos.sort_by(f64::total_cmp);
    println!(
        "{name:<34} best {:6.1}  median {:6.1}",
        nanos[0],
        nanos[TRIES / 2]
    );
}

fn main() {
    for payload in [0, 16, 100, 256] {
        let payload = vec![b'x'; payload];
        let parts = MessageParts {
            exchange: b"shop",
            routing_key: b"order.7.paid",
            payload: &payload,
            ..MessageParts::default()
        };
        let mut body = Vec::new();
        for _ in 0..MESSAGES {
            parts.write(&mut body).expect("within limits");
        }
        println!("payload {} B, message {} B", payload.len(), parts.length());
        measure("  iterate", &body, |body| {
            Messages::new(body)
                .filter(|message| message.is_ok())
                .count()
        });
        measure("  iterate and check the crc", &body, |body| {
            Messages::new(body)
                .filter(|message| {
                    message
                        .as_ref()
                        .is_ok_and(|message| message.envelope.check_crc().is_ok())
                })
                .count()
        });
        let mut out = Vec::with_capacity(body.len());
        measure("  write", &body, |_| {
            out.clear();
            (0..MESSAGES)
                .filter(|_| black_box(&parts).write(&mut out).is_ok())
                .count()
        });
    }
}
