//! One message of a real broker, followed through its admin port, on two cores: what is said of it, in
//! which order, and what is refused. What the times are worth is not asked.

use ringpost::control::admin::trace::{Event, Trace, What};
use ringpost_prove::broker::page;
use ringpost_wire::control::Level;
use ringpost_wire::header::{SETTLE_ACK, SETTLE_REQUEUE};

use crate::broker::Broker;
use crate::wire::{Wire, consumer, queue_on, to_queue, volatile};

fn ask(broker: &Broker, question: &str) -> Trace {
    let (status, text) = page(&broker.admin_addr().to_string(), question).unwrap();
    assert_eq!(status, 200, "{question}: {text}");
    serde_json::from_str(&text).expect("JSON")
}

fn refused(broker: &Broker, question: &str) -> u16 {
    let (status, text) = page(&broker.admin_addr().to_string(), question).unwrap();
    assert!(!text.trim().is_empty(), "{question}: it says why");
    status
}

/// What happens from the answer `begun` on until nothing more will.
fn to_the_end(broker: &Broker, begun: &Trace) -> Vec<Event> {
    let mut events = begun.events.clone();
    let question = format!("/trace?id={}", begun.id);
    loop {
        let more = ask(broker, &question);
        events.extend(more.events);
        if more.ended {
            return events;
        }
    }
}

fn word(event: &Event) -> &str {
    match &event.what {
        What::Received { .. } => "received",
        What::Appended { .. } => "appended",
        What::Submitted => "submitted",
        What::Durable => "durable",
        What::Confirmed => "confirmed",
        What::Ready => "ready",
        What::Sent { .. } => "sent",
        What::Settled { outcome } => outcome,
        What::Returned { .. } => "returned",
        What::Ended { why } => why,
    }
}

/// A producer that lands anywhere, a queue on each core, a consumer that sends the message back once.
#[test]
fn a_message_is_followed_on_every_core() {
    let broker = Broker::start(2, &[]);
    for core in 0..2 {
        let name = format!("q{core}");
        let mut wire = Wire::open(&broker);
        wire.declare(&queue_on(name.as_bytes(), core));
        let begun = ask(&broker, &format!("/trace?queue={name}&seconds=60"));
        assert_eq!((begun.core, begun.ended), (usize::from(core), false));
        let mut producer = wire.producer(1, Level::Durable);
        wire.consume(2, &consumer(name.as_bytes(), 10));
        producer.confirm(&mut wire, &[to_queue(name.as_bytes(), b"first")]);
        wire.deliveries(2, 1);
        wire.settle_surely(2, SETTLE_REQUEUE, &[(1, 1)]);
        wire.deliveries(2, 1);
        wire.settle_surely(2, SETTLE_ACK, &[(2, 2)]);
        let events = to_the_end(&broker, &begun);
        let mut words: Vec<&str> = events.iter().map(word).collect();
        // Its producer is told by its own core, which may be another.
        words.retain(|word| *word != "confirmed");
        assert_eq!(
            words,
            [
                "received",
                "appended",
                "submitted",
                "durable",
                "ready",
                "sent",
                "requeued",
                "sent",
                "acked",
                "forgotten",
            ]
        );
        let times: Vec<u64> = events.iter().map(|event| event.at_ns).collect();
        assert!(times.is_sorted(), "{events:?}");
        assert_eq!(refused(&broker, &format!("/trace?id={}", begun.id)), 404);
    }
}

#[test]
fn a_volatile_message_is_followed_and_a_queue_that_goes_ends_it() {
    let broker = Broker::start(2, &[]);
    let mut wire = Wire::open(&broker);
    for core in 0..2 {
        let name = format!("v{core}");
        wire.declare(&volatile(queue_on(name.as_bytes(), core)));
        let begun = ask(&broker, &format!("/trace?queue={name}&key={name}"));
        let mut producer = wire.producer(1 + core, Level::Volatile);
        producer.confirm(&mut wire, &[to_queue(name.as_bytes(), b"first")]);
        wire.delete(name.as_bytes());
        let events = to_the_end(&broker, &begun);
        let mut words: Vec<&str> = events.iter().map(word).collect();
        words.retain(|word| *word != "confirmed");
        assert_eq!(words, ["received", "appended", "ready", "queue_deleted"]);
    }
}

#[test]
fn what_can_not_be_followed_is_refused() {
    let broker = Broker::start(2, &[]);
    let mut wire = Wire::open(&broker);
    wire.declare(&queue_on(b"q", 1));
    for (question, status) in [
        ("/trace", 400),
        ("/trace?queue=q&seconds=0", 400),
        ("/trace?queue=nowhere", 404),
        ("/trace?queue=q&tenant=nobody", 404),
        ("/trace?id=77", 404),
    ] {
        assert_eq!(refused(&broker, question), status, "{question}");
    }
    // As many as may be, and no more.
    for _ in 0..4 {
        ask(&broker, "/trace?queue=q");
    }
    assert_eq!(refused(&broker, "/trace?queue=q"), 503);
}
