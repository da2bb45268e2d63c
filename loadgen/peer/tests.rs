//! The codecs against bytes as the protocols' documents have them: whole, cut at every byte, damaged.

use super::*;
use crate::message::Stamp;

/// An event that owns its bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Ready,
    Confirmed(Which),
    Refused(Which, String),
    Delivered(usize, Vec<u8>, bool),
    Closed,
}

/// One outcome of one publish.
pub(super) const fn one(role: usize, sequence: u64) -> Which {
    Which {
        role,
        sequence,
        is_multiple: false,
    }
}

/// A plan of one producer, one consumer, one queue `load-0`.
pub(super) fn plan(via: Via) -> Plan {
    Plan {
        via,
        credit: 500,
        ..Plan::new(([127, 0, 0, 1], 1).into())
    }
}

pub(super) fn job(plan: &Plan, work: Work) -> Job<'_> {
    Job {
        plan,
        work,
        number: 0,
        queues: (0..plan.queues).collect(),
    }
}

pub(super) fn stamp() -> [u8; STAMP_BYTES] {
    Stamp {
        sequence: 1,
        intended_ns: 2,
        sent_ns: 3,
        producer: 4,
        group: 5,
    }
    .encode()
}

/// Feeds bytes that come in two parts, cut at `at`; what was seen and said.
fn feed_cut(
    codec: &mut dyn Codec,
    input: &[u8],
    at: usize,
    out: &mut Vec<u8>,
) -> Result<(Vec<Seen>, usize)> {
    let (mut seen, mut taken) = (Vec::new(), 0);
    for have in [at, input.len()] {
        while let Some((length, event)) = codec.next(&input[taken..have], out)? {
            assert!(length > 0 && length <= have - taken, "{length}");
            taken += length;
            seen.extend(match event {
                Event::Nothing => None,
                Event::Ready => Some(Seen::Ready),
                Event::Confirmed(which) => Some(Seen::Confirmed(which)),
                Event::Refused(which, reason) => Some(Seen::Refused(which, reason)),
                Event::Delivered {
                    role,
                    payload,
                    is_redelivered,
                } => Some(Seen::Delivered(role, payload.to_vec(), is_redelivered)),
                Event::Closed => Some(Seen::Closed),
            });
        }
    }
    Ok((seen, taken))
}

/// Feeds bytes to a new codec cut at every byte: the same has to come of it each time. `before` is done
/// to the codec first. Returns what was seen, and what was said since.
pub(super) fn feed<C: Codec>(
    make: impl Fn() -> C,
    before: impl Fn(&mut C, &mut Vec<u8>),
    input: &[u8],
) -> (Vec<Seen>, Vec<u8>) {
    let mut first: Option<(Vec<Seen>, Vec<u8>)> = None;
    for at in 0..=input.len() {
        let (mut codec, mut out) = (make(), Vec::new());
        before(&mut codec, &mut out);
        out.clear();
        let (seen, taken) = feed_cut(&mut codec, input, at, &mut out)
            .unwrap_or_else(|error| panic!("cut at {at}: {error}"));
        assert_eq!(taken, input.len(), "cut at {at}");
        codec.settle(&mut out);
        match &first {
            Some(first) => assert_eq!((&first.0, &first.1), (&seen, &out), "cut at {at}"),
            None => first = Some((seen, out)),
        }
    }
    first.expect("it was cut once at least")
}

/// Changes every byte of what is good in every bit, and cuts its end off: none of it may panic or be
/// taken for more than there is.
pub(super) fn damage<C: Codec>(
    make: impl Fn() -> C,
    before: impl Fn(&mut C, &mut Vec<u8>),
    input: &[u8],
) {
    let mut errors = 0;
    for at in 0..input.len() {
        for bit in 0..8 {
            let mut bad = input.to_vec();
            bad[at] ^= 1 << bit;
            let (mut codec, mut out) = (make(), Vec::new());
            before(&mut codec, &mut out);
            errors += u32::from(feed_cut(&mut codec, &bad, 0, &mut out).is_err());
        }
    }
    assert!(errors > 0, "no damage was seen");
}

/// The error of input that is damaged.
pub(super) fn error_of<C: Codec>(
    make: impl Fn() -> C,
    before: impl Fn(&mut C, &mut Vec<u8>),
    input: &[u8],
) -> String {
    let (mut codec, mut out) = (make(), Vec::new());
    before(&mut codec, &mut out);
    let error = feed_cut(&mut codec, input, 0, &mut out);
    error.expect_err("it is damaged").to_string()
}

#[test]
fn what_a_peer_is_not_driven_to_do_says_so() {
    let wrong = |via: Via, change: fn(&mut Plan), says: &str| {
        let mut plan = plan(via);
        plan.check().expect("as it is it can be run");
        change(&mut plan);
        let error = plan.check().expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    };
    for via in [Via::Amqp, Via::Redis, Via::Nats] {
        wrong(via, |p| p.exchange = Exchange::Topic, "leave exchanges");
        wrong(
            via,
            |p| p.service = Service::Fixed(Duration::from_millis(1)),
            "no service time",
        );
        wrong(via, |p| p.payload_bytes = PAYLOAD_BYTES_MAX + 1, "the most");
        wrong(via, |p| p.queue_prefix = "a.b".into(), "letters, digits");
        wrong(via, |p| p.is_restart_expected = true, "restart");
    }
    wrong(
        Via::Redis,
        |p| (p.consumers, p.consumer_connections) = (2, 1),
        "a connection each",
    );
    wrong(
        Via::Amqp,
        |p| {
            p.peer.queue_type = QueueType::Quorum;
            p.durability = Durability::Volatile;
        },
        "quorum queues are durable",
    );
}

#[test]
fn an_outcome_for_a_consumer_and_a_message_for_a_producer_fit_nowhere() {
    let which = Which {
        role: 7,
        sequence: 1,
        is_multiple: false,
    };
    let delivered = Event::Delivered {
        role: 7,
        payload: b"",
        is_redelivered: false,
    };
    assert!(delivered.fits(Work::Consume));
    assert!(!delivered.fits(Work::Produce));
    for outcome in [Event::Confirmed(which), Event::Refused(which, "no".into())] {
        assert!(outcome.fits(Work::Produce));
        assert!(!outcome.fits(Work::Consume));
        assert!(!outcome.fits(Work::Declare));
    }
    assert!(Event::Ready.fits(Work::Delete));
}
