//! Damage of what was written long ago: bytes that cannot be read, that rotted, or that another
//! write was put over. Finds messages on the disk by their payloads; does not know the format.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringpost_check::{Event, MessageId, QueueNo};
use ringpost_prove::Outcome;
use ringpost_prove::drain::drain_what_serves;
use ringpost_prove::offline::{Messages, damaged, give_up, messages};
use ringpost_prove::producer::name_of;
use ringpost_prove::random::Random;
use ringpost_wire::envelope;

use super::{CONFIRMS_MIN, Client, Plan, Rig};
use crate::file_system::Access;
use crate::volume::Volume;

/// Bytes of a payload that are looked for on the disk.
const NEEDLE_BYTES: usize = 64;
/// What a file system writes together.
const BLOCK_BYTES: u64 = 4096;
/// Payload of a message with a whole block inside, wherever it begins.
const LARGE_BYTES: u64 = 3 * BLOCK_BYTES;
/// Larger ones come in pieces.
const VICTIM_BYTES_MAX: usize = 100_000;
/// Loads after which there must have been a message of the wanted size.
const LOADS_MAX: u32 = 10;
/// Blocks that a disk has put over others.
const MISDIRECTED: usize = 4;
/// Messages in all queues together, so that they lie in several blocks.
const MESSAGES_MIN: usize = 100;
/// Messages that are looked at for one in another block.
const LOOKS_MAX: u32 = 100;
/// Ranges that are given up at most.
const RANGES_MAX: usize = 1_000;

/// A message in one queue, and where its payload lies.
struct Victim {
    queue: String,
    place: u64,
    payload: Vec<u8>,
    positions: Vec<u64>,
}

/// A queue, a place in it, and the payload there.
type Found<'a> = (&'a str, u64, &'a [u8]);

/// How much is known of what damage must cost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cost {
    /// The victim and nothing else.
    Victim,
    /// Something.
    Some,
}

/// Ends a broker well with messages in its queues, and leaves the disk unmounted. One of the messages
/// has at least so many bytes and lies in one queue only; what recovery reads of all.
fn rest(rig: &mut Rig, bytes_min: u64) -> Outcome<(Volume, Messages, Victim)> {
    for _ in 0..LOADS_MAX {
        let (broker, load) = rig.under_load()?;
        load.stop(&rig.shared, &mut rig.crew)?;
        broker.terminate()?;
        rig.shared.history.record([Event::Crash]);
        let before = messages(&rig.program, &rig.directory)?;
        rig.unmount()?;
        let volume = rig.device.volume();
        let count: usize = before.values().map(Vec::len).sum();
        let victim = victim(&volume, &before, bytes_min, &mut rig.random)?;
        if let Some(victim) = victim.filter(|_| count >= MESSAGES_MIN) {
            return Ok((volume, before, victim));
        }
        rig.mount()?;
    }
    Err("no message that could be damaged".to_owned())
}

fn victim(
    volume: &Volume,
    before: &Messages,
    bytes_min: u64,
    random: &mut Random,
) -> Outcome<Option<Victim>> {
    let mut all: BTreeMap<MessageId, Vec<Found<'_>>> = BTreeMap::new();
    for (queue, messages) in before {
        for (place, _, message) in messages {
            let envelope = envelope::open(message);
            let envelope = envelope.map_err(|code| format!("a message that is {code}"))?;
            let payload = envelope.payload();
            let found = all.entry(name_of(payload)).or_default();
            found.push((queue, *place, payload));
        }
    }
    let fits = |found: &Vec<Found<'_>>| {
        found.len() == 1
            && found[0].2.len() as u64 >= bytes_min.max(2 * NEEDLE_BYTES as u64)
            && found[0].2.len() <= VICTIM_BYTES_MAX
    };
    let fitting: Vec<_> = all.into_values().filter(fits).collect();
    if fitting.is_empty() {
        return Ok(None);
    }
    let (queue, place, payload) = random.pick(&fitting)[0];
    let is_whole = |position: &u64| {
        let mut read = Vec::new();
        volume.read(*position, payload.len(), &mut read);
        read == payload
    };
    let mut positions = volume.find(&payload[..NEEDLE_BYTES]);
    positions.retain(is_whole);
    Ok((!positions.is_empty()).then(|| Victim {
        queue: queue.to_owned(),
        place,
        payload: payload.to_vec(),
        positions,
    }))
}

/// Starts a broker on a copy of what was promised, publishes, takes out what its queues give, and ends
/// it. The queues that refused service, of which `wanted` must be one.
fn serve(rig: &mut Rig, wanted: Option<QueueNo>) -> Outcome<Vec<QueueNo>> {
    let copy = Arc::new(rig.shared.copy());
    let promised = std::mem::replace(&mut rig.shared, copy);
    let broker = rig.program.start()?;
    let mut random = rig.random.fork();
    let mut client = Client::open(rig, &broker, &mut random)?;
    let before = rig.confirms();
    rig.until("publishes are confirmed beside damage", || {
        client.turn()?;
        Ok(rig.confirms() > before + CONFIRMS_MIN)
    })?;
    client.close();
    let refusing = drain_what_serves(&rig.shared, broker.address())?;
    if broker.page("/readyz")?.0 != 200 {
        return Err("damage of a queue is no failure of the broker, but /readyz says so".into());
    }
    broker.terminate()?;
    rig.judged()?;
    rig.shared = promised;
    if refusing.is_empty() || wanted.is_some_and(|queue| !refusing.contains(&queue)) {
        return Err(format!("only {refusing:?} refuse service, not {wanted:?}"));
    }
    if refusing.len() == rig.shared.scene.queue_numbers().len() && wanted.is_some() {
        return Err("no queue serves".to_owned());
    }
    if !rig
        .program
        .log_text()?
        .contains(" refuses service: message ")
    {
        return Err("the broker's log names no damaged message".to_owned());
    }
    Ok(refusing)
}

fn queue_of(rig: &Rig, victim: &Victim) -> Outcome<QueueNo> {
    let queue = rig.shared.scene.queue_named(&victim.queue);
    queue.ok_or_else(|| format!("a queue {:?} that nobody declared", victim.queue))
}

pub(super) fn read_error(rig: &mut Rig, _: &Plan) -> Outcome<()> {
    let (volume, _, victim) = rest(rig, 0)?;
    let bytes = victim.payload.len() as u64;
    let lost = victim.positions.iter().map(|at| *at..at + bytes).collect();
    rig.device.set(|faults| faults.unreadable = lost);
    rig.mount()?;
    serve(rig, Some(queue_of(rig, &victim)?))?;
    rig.unmount()?;
    if rig.device.errors() == 0 {
        return Err("the disk has failed nothing".to_owned());
    }
    // It can be read again: nothing of it was given up.
    rig.device.set(|faults| faults.unreadable.clear());
    rig.device.load(volume);
    rig.mount()?;
    rig.drain()?;
    rig.judged()
}

pub(super) fn bit_flip(rig: &mut Rig, _: &Plan) -> Outcome<()> {
    let (mut volume, before, victim) = rest(rig, 0)?;
    let at = rig.random.below(victim.payload.len() as u64);
    let flipped = victim.payload[at as usize] ^ 1 << rig.random.below(8);
    for position in &victim.positions {
        volume.write(position + at, &[flipped]);
    }
    is_refused(rig, volume, before, &victim, Cost::Victim)
}

pub(super) fn misdirected_block(rig: &mut Rig, _: &Plan) -> Outcome<()> {
    let (whole, before, victim) = rest(rig, LARGE_BYTES)?;
    let mut volume = whole.clone();
    for position in &victim.positions {
        let inside = position.next_multiple_of(BLOCK_BYTES);
        let other = other_block(&whole, &before, inside, &mut rig.random)?;
        put_over(&mut volume, &whole, other, inside);
    }
    is_refused(rig, volume, before, &victim, Cost::Victim)
}

pub(super) fn misdirected_blocks(rig: &mut Rig, _: &Plan) -> Outcome<()> {
    let (whole, before, victim) = rest(rig, 0)?;
    let mut volume = whole.clone();
    // The blocks in which the victim begins, so that something is lost in any case.
    let block_of = |position: &u64| position - position % BLOCK_BYTES;
    let mut targets: Vec<u64> = victim.positions.iter().map(block_of).collect();
    while targets.len() < MISDIRECTED {
        let last = targets[targets.len() - 1];
        targets.push(other_block(&whole, &before, last, &mut rig.random)?);
    }
    for target in targets {
        let other = other_block(&whole, &before, target, &mut rig.random)?;
        put_over(&mut volume, &whole, other, target);
    }
    is_refused(rig, volume, before, &victim, Cost::Some)
}

/// A block of the disk in which a message begins, other than this one.
fn other_block(volume: &Volume, before: &Messages, than: u64, random: &mut Random) -> Outcome<u64> {
    let all: Vec<&[u8]> = before
        .values()
        .flatten()
        .map(|(_, _, bytes)| &bytes[..])
        .collect();
    for _ in 0..LOOKS_MAX {
        let message = *random.pick(&all);
        let begins = volume.find(&message[..message.len().min(NEEDLE_BYTES)]);
        let mut blocks = begins
            .iter()
            .rev()
            .map(|position| position - position % BLOCK_BYTES);
        if let Some(block) = blocks.find(|block| *block != than) {
            return Ok(block);
        }
    }
    Err("the disk has one block of messages only".to_owned())
}

fn put_over(volume: &mut Volume, whole: &Volume, from: u64, to: u64) {
    let mut block = Vec::new();
    whole.read(from, BLOCK_BYTES as usize, &mut block);
    volume.write(to, &block);
}

/// What is damaged is named, refused and given up, and nothing else is missing anywhere. Keeps the
/// damaged disk if that is not so.
fn is_refused(
    rig: &mut Rig,
    volume: Volume,
    before: Messages,
    victim: &Victim,
    cost: Cost,
) -> Outcome<()> {
    let image = rig.directory.join("image");
    let refused = refuses(rig, &volume, before, victim, cost);
    refused.map_err(|error| {
        let kept = volume.save(&image);
        let kept = kept.map_or_else(|why| why, |()| image.display().to_string());
        format!("{error}\nthe damaged disk: {kept}")
    })
}

fn refuses(
    rig: &mut Rig,
    volume: &Volume,
    before: Messages,
    victim: &Victim,
    cost: Cost,
) -> Outcome<()> {
    rig.device.load(volume.clone());
    rig.mount()?;
    // Who looks at what is damaged need not be able to write to it.
    rig.permit_writes(Access::ReadOnly)?;
    let named = damaged(&rig.program)?;
    rig.permit_writes(Access::ReadWrite)?;
    let (queue, place) = (&victim.queue, victim.place);
    let is_victim = |what: &str| {
        what.starts_with(&format!("messages {place} to {place} of queue "))
            && what.contains(&format!("({queue})"))
    };
    match (&named[..], cost) {
        ([], _) => {
            let positions = &victim.positions;
            return Err(format!(
                "message {place} of {queue} is damaged at {positions:?}, but verify finds nothing"
            ));
        }
        ([one], Cost::Victim) if is_victim(&one.what) => {}
        (_, Cost::Some) => {}
        (other, Cost::Victim) => {
            return Err(format!(
                "message {place} of {queue} is damaged, not {other:?}"
            ));
        }
    }
    let wanted = (cost == Cost::Victim).then_some(queue_of(rig, victim)?);
    let refusing = serve(rig, wanted)?;
    if cost == Cost::Victim && refusing.len() > 1 {
        return Err(format!(
            "more queues than {queue} refuse service: {refusing:?}"
        ));
    }
    rig.unmount()?;
    rig.device.load(volume.clone());
    rig.mount()?;

    // The way out: every range that is named, until none is.
    for _ in 0..RANGES_MAX {
        match damaged(&rig.program)?.first() {
            Some(range) => give_up(&rig.program, range)?,
            None => break,
        }
    }
    let mut after = messages(&rig.program, &rig.directory)?;
    let mut lost = Vec::new();
    for (queue, messages) in before {
        let left = after.remove(&queue).unwrap_or_default();
        let mut left = left.into_iter().peekable();
        for (place, _, message) in messages {
            let is_left = left.next_if(|(there, _, bytes)| (*there, bytes) == (place, &message));
            if is_left.is_none() {
                lost.push((queue.clone(), place));
            }
        }
        if let Some((place, ..)) = left.next() {
            return Err(format!("message {place} of {queue} came from nowhere"));
        }
    }
    let number = |queue: &str| rig.shared.scene.queue_named(queue);
    let is_known =
        |(queue, _): &&(String, u64)| number(queue).is_none_or(|n| !refusing.contains(&n));
    if let Some((queue, place)) = lost.iter().find(is_known) {
        return Err(format!("message {place} of {queue}, which serves, is gone"));
    }
    if cost == Cost::Victim && lost != [(victim.queue.clone(), victim.place)] {
        return Err(format!(
            "more than message {place} of {queue} is gone: {lost:?}"
        ));
    }
    let dropped = refusing
        .iter()
        .map(|queue| Event::Dropped { queue: *queue });
    rig.shared.history.record(dropped);
    rig.drain()?;
    rig.judged()
}
