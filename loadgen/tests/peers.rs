//! The generator against peers that are not there: every message is counted, and what a peer does wrong
//! is found. Asserts counts, never how long anything took.

#[path = "peers/amqp.rs"]
mod amqp;
#[path = "peers/fake.rs"]
mod fake;
#[path = "peers/nats.rs"]
mod nats;
#[path = "peers/redis.rs"]
mod redis;

use fake::{Fake, Fault};
use ringpost_load::html;
use ringpost_load::live::Live;
use ringpost_load::params::Parameters;
use ringpost_load::report::Table;
use ringpost_load::result::{Results, Round};
use ringpost_load::session::Session;

const MESSAGES: u64 = 2_000;
const PEERS: [&str; 3] = ["amqp", "redis", "nats"];

/// A scenario that ends by count. How well the load keeps its times is not asked.
fn parameters(via: &str, fake: &Fake) -> Parameters {
    Parameters {
        via: via.into(),
        address: fake.address,
        warm_up: 0.0,
        messages: Some(MESSAGES),
        rate: None,
        window: Some(512),
        missed_max: 1.0,
        busy_max: 1.0,
        verify: true,
        broker: Some("a fake <peer>".into()),
        ..Parameters::default()
    }
}

fn run(parameters: Parameters) -> Results {
    Session::whole(parameters, &mut Live::Quiet).unwrap_or_else(|error| panic!("{error}"))
}

fn only(results: &Results) -> &Round {
    let [round] = &results.rounds[..] else {
        panic!("{} rounds", results.rounds.len());
    };
    round
}

fn all_came(via: &str, results: &Results, fake: &Fake) {
    let round = only(results);
    assert_eq!(round.invalid, None, "{via}");
    assert!(round.counts.is_clean(), "{via}: {:?}", round.counts);
    assert_eq!(
        (round.published, round.delivered),
        (MESSAGES, MESSAGES),
        "{via}"
    );
    let store = fake.store();
    assert_eq!(store.settled, MESSAGES, "{via}");
    assert!(store.queues.is_empty(), "{via}: {:?}", store.queues);
}

#[test]
fn what_is_published_is_confirmed_and_delivered_and_settled() {
    for via in PEERS {
        let fake = Fake::start(via, Fault::None);
        let results = run(Parameters {
            rate: Some(10_000.0),
            window: None,
            ..parameters(via, &fake)
        });
        all_came(via, &results, &fake);
        for name in [
            "confirm",
            "confirm-service",
            "end-to-end",
            "end-to-end-service",
            "late",
        ] {
            let times = only(&results).times(name);
            assert_eq!(
                times.map(|times| times.len()),
                Some(MESSAGES),
                "{via} {name}"
            );
        }
    }
}

#[test]
fn a_window_over_several_queues_producers_and_connections_brings_all() {
    for via in PEERS {
        let fake = Fake::start(via, Fault::None);
        let results = run(Parameters {
            window: Some(64),
            batch: 16,
            queues: 5,
            producers: 4,
            producer_connections: 2,
            consumer_connections: 2,
            size: "uniform:32..300".into(),
            ..parameters(via, &fake)
        });
        all_came(via, &results, &fake);
        let confirmed = only(&results).times("confirm").map(|times| times.len());
        assert_eq!(confirmed, Some(MESSAGES), "{via}");
    }
}

#[test]
fn consumers_that_share_queues_bring_all_between_them() {
    for via in PEERS {
        let fake = Fake::start(via, Fault::None);
        let results = run(Parameters {
            queues: 2,
            producers: 2,
            consumers: 3,
            consumer_connections: 6,
            ..parameters(via, &fake)
        });
        all_came(via, &results, &fake);
    }
}

#[test]
fn without_confirms_none_is_awaited() {
    for via in PEERS {
        let fake = Fake::start(via, Fault::None);
        let results = run(Parameters {
            rate: Some(10_000.0),
            window: None,
            level: "none".into(),
            ..parameters(via, &fake)
        });
        all_came(via, &results, &fake);
        assert!(only(&results).times("confirm").is_none(), "{via}");
        assert_eq!(results.class.letter, "A", "{via}");
    }
}

#[test]
fn a_lost_message_is_found() {
    for via in PEERS {
        let fake = Fake::start(via, Fault::Lose(700));
        let results = run(Parameters {
            patience: 1.0,
            ..parameters(via, &fake)
        });
        let round = only(&results);
        let why = round.invalid.as_deref().expect("it could not be drained");
        assert!(
            why.contains("1 missing, 0 again or out of order"),
            "{via}: {why}"
        );
    }
}

#[test]
fn a_message_that_comes_again_is_found() {
    for via in PEERS {
        let fake = Fake::start(via, Fault::Twice(700));
        let results = run(parameters(via, &fake));
        let counts = &only(&results).counts;
        assert_eq!(
            (counts.disordered, counts.missing),
            (1, 0),
            "{via}: {counts:?}"
        );
        assert!(!results.is_clean(), "{via}");
    }
}

#[test]
fn a_refused_message_is_counted_with_the_peers_words() {
    for via in PEERS {
        let fake = Fake::start(via, Fault::Refuse(700));
        let results = run(parameters(via, &fake));
        let round = only(&results);
        assert_eq!(round.invalid, None, "{via}");
        assert_eq!(round.counts.refused, 1, "{via}");
        assert_eq!(
            (round.published, round.delivered),
            (MESSAGES, MESSAGES - 1),
            "{via}"
        );
        let words = round.counts.first_refusal.as_deref().unwrap_or_default();
        assert!(
            ["basic.nack", "OOM command not allowed", "no space"].contains(&words),
            "{words}"
        );
        assert!(!results.is_clean(), "{via}");
    }
}

#[test]
fn a_result_says_which_broker_it_was_and_claims_no_durability() {
    let fake = Fake::start("redis", Fault::None);
    let results = run(Parameters {
        class: Some("synced".into()),
        ..parameters("redis", &fake)
    });
    assert_eq!(
        (results.class.letter.as_str(), results.class.is_durable),
        ("C", false)
    );
    let table = Table(&results).to_string();
    assert!(table.contains("broker: a fake <peer>"), "{table}");
    assert!(table.contains("durability is the peer's own"), "{table}");
    let page = html::page(&results);
    assert!(page.contains("broker: a fake &lt;peer&gt;"));
    let again = Results::parse(&results.json()).expect("a result");
    assert_eq!(again.parameters.broker.as_deref(), Some("a fake <peer>"));
    assert_eq!(again.parameters.class.as_deref(), Some("synced"));
}
