//! Takes everything out of every queue, so that what is missing is known to be missing. Does not
//! judge.

use ringpost_check::{Event, QueueNo};
use ringpost_wire::{Code, FrameKind};

use crate::Outcome;
use crate::consumer::{Consumer, Habit};
use crate::link::Link;
use crate::random::Random;
use crate::worker::Shared;

/// Looks for frames without one before the queues are looked at: each waits for a moment.
const QUIET_LOOKS: u32 = 5;
/// Times that the queues are looked at in a row without anything arriving.
const QUIET_ROUNDS_MAX: u32 = 1_000;

/// Drains the queues of a running broker, each to one consumer that acks all, and ends the history.
///
/// # Errors
/// A queue says that it holds messages and does not give them, or the broker is gone.
pub fn drain(shared: &Shared, address: &str) -> Outcome<()> {
    let refusing = drain_what_serves(shared, address)?;
    match refusing.first() {
        None => Ok(()),
        Some(queue) => Err(format!(
            "{} refuses service over damage that nobody made",
            shared.scene.queue_name(*queue)
        )),
    }
}

/// The same where something is damaged. Says which queues refuse service because of it.
///
/// # Errors
/// As [`drain`].
pub fn drain_what_serves(shared: &Shared, address: &str) -> Outcome<Vec<QueueNo>> {
    let history = &shared.history;
    let mut admin = Link::open(address)?;
    let mut link = Link::open(address)?;
    let mut random = Random::new(1);
    let queues = shared.scene.queue_numbers();
    let mut consumers: Vec<Consumer> = queues
        .iter()
        .enumerate()
        .map(|(place, queue)| {
            let queue = *queue;
            let name = shared.scene.queue_name(queue);
            let identity = (shared.consumer(), queue, name);
            let channel = place as u16 + 1;
            Consumer::open(
                &mut link,
                history,
                identity,
                channel,
                Habit::Acks,
                &mut random,
            )
        })
        .collect();
    let mut refusing: Vec<QueueNo> = Vec::new();
    let mut quiet_looks = 0;
    let mut quiet_rounds = 0;
    let left = loop {
        match link.receive().map_err(|ended| ended.to_string())? {
            Some(frame) if frame.header.kind == FrameKind::Heartbeat => {}
            Some(frame) => {
                (quiet_looks, quiet_rounds) = (0, 0);
                let place = usize::from(frame.header.channel).checked_sub(1);
                let consumer = place.and_then(|place| consumers.get_mut(place));
                let consumer = consumer.ok_or("a frame on no channel")?;
                let is_end = matches!(
                    frame.header.kind,
                    FrameKind::ConsumerClosed | FrameKind::Failed
                );
                if is_end && frame.failure().0 == Code::QueueDamaged {
                    let queue = consumer.queue();
                    refusing.push(queue);
                    // It gives nothing more, and says so.
                    history.record([Event::Dropped { queue }]);
                    continue;
                }
                consumer.take(&frame, &mut link, history)?;
                continue;
            }
            None => quiet_looks += 1,
        }
        if quiet_looks < QUIET_LOOKS {
            continue;
        }
        let mut left = Vec::new();
        for queue in queues.iter().filter(|queue| !refusing.contains(queue)) {
            let name = shared.scene.queue_name(*queue);
            let (ready, unacked) = admin.inspect(name)?;
            if (ready, unacked) != (0, 0) {
                left.push(format!("{name}: {ready} ready, {unacked} unacked"));
            }
        }
        let serves = |consumer: &&Consumer| !refusing.contains(&consumer.queue());
        let is_settled = consumers.iter().filter(serves).all(Consumer::is_settled);
        quiet_rounds += 1;
        if (left.is_empty() && is_settled) || quiet_rounds > QUIET_ROUNDS_MAX {
            if !is_settled {
                left.push("acks are not confirmed".to_owned());
            }
            break left;
        }
        quiet_looks = 0;
    };
    if !left.is_empty() {
        return Err(format!("the queues do not drain: {}", left.join("; ")));
    }
    history.record([Event::End]);
    Ok(refusing)
}
