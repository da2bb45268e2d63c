//! Every kind of violation: a history that shows it and the nearest one that does not.

use crate::{Checker, Kind, Verdict, text};

/// Runs a history; lines are separated by newlines or semicolons.
fn run(history: &str) -> Verdict {
    let mut checker = Checker::new();
    let lines: String = history
        .split(['\n', ';'])
        .map(|line| format!("{}\n", line.trim()))
        .collect();
    text::read(lines.as_bytes(), |event| checker.event(event)).expect("well formed");
    checker.verdict()
}

#[track_caller]
fn check(history: &str, expect: &[Kind]) {
    let verdict = run(history);
    let kinds: Vec<Kind> = verdict.violations.iter().map(|found| found.kind).collect();
    assert_eq!(kinds, expect, "\n{verdict}");
}

/// Two durable queues, a volatile one, a consumer on each of the durable ones.
const START: &str = "queue 0 durable;queue 1 durable;queue 2 volatile;\
                     consumer 0 0 acks;consumer 1 1 acks;";

#[track_caller]
fn clean(history: &str) {
    check(&format!("{START}{history}"), &[]);
}

#[track_caller]
fn broken(history: &str, kind: Kind) {
    check(&format!("{START}{history}"), &[kind]);
}

#[test]
fn a_plain_life_is_clean() {
    let verdict = run(&format!(
        "{START}sent 7.1 ab durable 0,1;confirmed 7.1-1 durable;\
         delivered 0 0 1 7.1 ab first 0;delivered 1 1 1 7.1 ab first 0;\
         acked 0 7.1;ackconfirmed 0 7.1;acked 1 7.1;end"
    ));
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!(
        (
            verdict.counts.sent,
            verdict.counts.confirmed_durable,
            verdict.counts.delivered
        ),
        (1, 1, 2)
    );
    assert_eq!((verdict.counts.acked, verdict.counts.ack_confirmed), (2, 1));
}

#[test]
fn an_undrained_history_is_not_clean() {
    let verdict = run(START);
    assert!(!verdict.is_clean());
    assert!(verdict.to_string().contains("undecided"));
}

#[test]
fn lost() {
    broken(
        "sent 7.1 ab durable 0;confirmed 7.1-1 durable;crash;end",
        Kind::Lost,
    );
    // One of two queues is enough.
    broken(
        "sent 7.1 ab durable 0,1;confirmed 7.1-1 durable;\
         delivered 0 0 1 7.1 ab first 0;acked 0 7.1;end",
        Kind::Lost,
    );
    // Delivered, its consumer lost, and never back.
    broken(
        "sent 7.1 ab durable 0;confirmed 7.1-1 durable;delivered 0 0 1 7.1 ab first 0;crash;end",
        Kind::Lost,
    );
    // Returned and never back.
    broken(
        "sent 7.1 ab durable 0;confirmed 7.1-1 durable;delivered 0 0 1 7.1 ab first 0;\
         returned 0 7.1;end",
        Kind::Lost,
    );
    // A volatile confirm promises nothing beyond a crash, but everything without one.
    broken(
        "sent 7.1 ab volatile 0;confirmed 7.1-1 volatile;end",
        Kind::Lost,
    );
    clean("sent 7.1 ab volatile 0;confirmed 7.1-1 volatile;crash;end");
    clean("sent 7.1 ab volatile 2;confirmed 7.1-1 volatile;crash;end");
    // Purged, unknown, possible, refused, unconfirmed: nothing was promised.
    clean("sent 7.1 ab durable 0;confirmed 7.1-1 durable;dropped 0;end");
    clean("sent 7.1 ab durable 0;unknown 7.1;end");
    clean("sent 7.1 ab durable 0?;confirmed 7.1-1 durable;end");
    clean("sent 7.1 ab durable 0;refused 7.1 other;end");
    clean("sent 7.1 ab none 0;end");
    // A purge excuses only what was sent before it.
    broken(
        "dropped 0;sent 7.1 ab durable 0;confirmed 7.1-1 durable;end",
        Kind::Lost,
    );
    // A consumer without acks takes with it what was on the way.
    clean("consumer 2 1 onsend;sent 7.1 ab durable 1;confirmed 7.1-1 durable;lost 2;end");
    // An ack that was sent may or may not count.
    clean(
        "sent 7.1 ab durable 0;confirmed 7.1-1 durable;delivered 0 0 1 7.1 ab first 0;\
         acked 0 7.1;crash;end",
    );
}

#[test]
fn vanished() {
    let seen = "sent 7.1 ab durable 0;delivered 0 0 1 7.1 ab first 0;unknown 7.1;crash";
    broken(&format!("{seen};end"), Kind::Vanished);
    clean(&format!(
        "{seen};consumer 2 0 acks;delivered 2 0 1 7.1 ab again 1;acked 0 7.1;end"
    ));
    clean(
        "consumer 2 2 acks;sent 7.1 ab volatile 2;delivered 2 2 1 7.1 ab first 0;unknown 7.1;crash;end",
    );
}

#[test]
fn delivered_after_ack() {
    let acked = "sent 7.1 ab durable 0;confirmed 7.1-1 durable;\
                 delivered 0 0 1 7.1 ab first 0;acked 0 7.1";
    let again = "consumer 2 0 acks;delivered 2 0 1 7.1 ab again 1;acked 0 7.1;end";
    clean(&format!("{acked};lost 0;{again}"));
    clean(&format!("{acked};crash;{again}"));
    clean(&format!("{acked};closed 0;crash;{again}"));
    clean(&format!("{acked};closed 0;lost 0;{again}"));
    broken(
        &format!("{acked};closed 0;{again}"),
        Kind::DeliveredAfterAck,
    );
    broken(
        &format!("{acked};ackconfirmed 0 7.1;crash;{again}"),
        Kind::DeliveredAfterAckConfirm,
    );
    let returned = "sent 7.1 ab durable 0;confirmed 7.1-1 durable;\
                    delivered 0 0 1 7.1 ab first 0;returned 0 7.1";
    clean(&format!(
        "{returned};delivered 0 0 1 7.1 ab again 1;acked 0 7.1;end"
    ));
}

#[test]
fn flags_and_counts() {
    let seen = "sent 7.1 ab durable 0;confirmed 7.1-1 durable;delivered 0 0 1 7.1 ab first 0";
    let end = "acked 0 7.1;end";
    broken(
        &format!("{seen};returned 0 7.1;delivered 0 0 1 7.1 ab first 1;{end}"),
        Kind::UnflaggedDuplicate,
    );
    broken(
        &format!("{seen};returned 0 7.1;delivered 0 0 1 7.1 ab again 0;{end}"),
        Kind::CountTooLow,
    );
    broken(
        &format!("{seen};returned 0 7.1;delivered 0 0 1 7.1 ab again 2;{end}"),
        Kind::CountTooHigh,
    );
    clean(&format!(
        "{seen};crash;consumer 2 0 acks;delivered 2 0 1 7.1 ab again 2;{end}"
    ));
    broken(
        "sent 7.1 ab durable 0;confirmed 7.1-1 durable;delivered 0 0 1 7.1 ab again 0;acked 0 7.1;end",
        Kind::FlaggedWithoutCause,
    );
    // A delivery that a lost consumer never saw.
    clean(
        "sent 7.1 ab durable 0;confirmed 7.1-1 durable;lost 0;consumer 2 0 acks;\
         delivered 2 0 1 7.1 ab again 1;acked 0 7.1;end",
    );
}

#[test]
fn two_holders() {
    let seen = "consumer 2 0 acks;sent 7.1 ab durable 0;confirmed 7.1-1 durable;\
                delivered 0 0 1 7.1 ab first 0";
    let again = "delivered 2 0 1 7.1 ab again 1;acked 0 7.1;end";
    broken(&format!("{seen};{again}"), Kind::TwoHolders);
    clean(&format!("{seen};lost 0;{again}"));
    clean(&format!("{seen};closed 0;{again}"));
}

#[test]
fn order_of_places() {
    let sent = "sent 7.1 a durable 0;sent 7.2 b durable 0;confirmed 7.1-2 durable";
    let acks = "acked 0 7.1;acked 0 7.2;end";
    clean(&format!(
        "{sent};delivered 0 0 1 7.1 a first 0;delivered 0 0 2 7.2 b first 0;{acks}"
    ));
    broken(
        &format!("{sent};delivered 0 0 1 7.2 b first 0;delivered 0 0 2 7.1 a first 0;{acks}"),
        Kind::PlacesOutOfOrder,
    );
    // What has no answer and is published again lies where it was stored in the end.
    clean(&format!(
        "sent 7.1 a durable 0;unknown 7.1;sent 7.2 b durable 0;sent 7.1 a durable 0;\
         confirmed 7.1-2 durable;\
         delivered 0 0 1 7.2 b first 0;delivered 0 0 2 7.1 a first 0;{acks}"
    ));
    // Two producers owe each other nothing, nor do two queues.
    clean(
        "sent 7.1 a durable 0;sent 8.1 b durable 0;confirmed 7.1-1 durable;confirmed 8.1-1 durable;\
         delivered 0 0 1 8.1 b first 0;delivered 0 0 2 7.1 a first 0;acked 0 7.1;acked 0 8.1;end",
    );
    // Places of a volatile queue start anew after a crash.
    clean(
        "consumer 2 2 acks;sent 7.1 a volatile 2;confirmed 7.1-1 volatile;\
         delivered 2 2 5 7.1 a first 0;crash;consumer 3 2 acks;sent 7.2 b volatile 2;\
         confirmed 7.2-2 volatile;delivered 3 2 5 7.2 b first 0;acked 2 7.2;end",
    );
}

#[test]
fn order_of_deliveries() {
    let sent = "sent 7.1 a durable 0;sent 7.2 b durable 0;confirmed 7.1-2 durable";
    let acks = "acked 0 7.1;acked 0 7.2;end";
    broken(
        &format!("{sent};delivered 0 0 2 7.2 b first 0;delivered 0 0 1 7.1 a first 0;{acks}"),
        Kind::DeliveredOutOfOrder,
    );
    let returned = "delivered 0 0 1 7.1 a first 0;returned 0 7.1;delivered 0 0 2 7.2 b first 0";
    clean(&format!(
        "{sent};{returned};delivered 0 0 1 7.1 a again 1;{acks}"
    ));
    // Once everything is calm, a returned message is in its place.
    broken(
        &format!(
            "{sent};delivered 0 0 1 7.1 a first 0;returned 0 7.1;calm;\
             delivered 0 0 2 7.2 b first 0;delivered 0 0 1 7.1 a again 1;{acks}"
        ),
        Kind::DeliveredOutOfOrder,
    );
}

#[test]
fn what_came_from_the_wrong_queue_returns_like_any_other() {
    let wrong = "sent 7.1 a durable 1?;confirmed 7.1-1 durable;delivered 0 0 1 7.1 a first 0;\
                 returned 0 7.1;delivered 0 0 1 7.1 a again 1;end";
    check(
        &format!("{START}{wrong}"),
        &[Kind::CrossQueue, Kind::CrossQueue],
    );
}

#[test]
fn places_are_kept_and_unique() {
    let sent = "sent 7.1 a durable 0;sent 7.2 b durable 0;confirmed 7.1-2 durable;\
                delivered 0 0 1 7.1 a first 0";
    check(
        &format!("{START}{sent};delivered 0 0 1 7.2 b first 0;acked 0 7.1;acked 0 7.2;end"),
        &[
            Kind::DeliveredOutOfOrder,
            Kind::PlaceReused,
            Kind::PlacesOutOfOrder,
        ],
    );
    broken(
        &format!(
            "{sent};delivered 0 0 2 7.2 b first 0;returned 0 7.1;\
             delivered 0 0 3 7.1 a again 1;acked 0 7.1;acked 0 7.2;end"
        )
        .replace("7.1 a durable 0", "7.1 a durable 0?")
        .replace("sent 7.2 b durable 0", "sent 8.2 b durable 0")
        .replace("7.2", "8.2")
        .replace(
            "confirmed 7.1-2 durable",
            "confirmed 7.1-1 durable;confirmed 8.2-2 durable",
        ),
        Kind::PlaceChanged,
    );
}

#[test]
fn phantoms() {
    broken("delivered 0 0 1 9.9 ab first 0;end", Kind::Phantom);
    broken(
        "sent 7.1 ab durable 0;refused 7.1 other;delivered 0 0 1 7.1 ab first 0;acked 0 7.1;end",
        Kind::RefusedButSeen,
    );
    broken(
        "sent 7.1 ab durable 0;delivered 0 0 1 7.1 ab first 0;refused 7.1 other;acked 0 7.1;end",
        Kind::RefusedButSeen,
    );
    clean("sent 7.1 ab durable 0;unknown 7.1;delivered 0 0 1 7.1 ab first 0;acked 0 7.1;end");
    // Its first attempt has no outcome: a refusal of the second proves nothing about the first.
    clean(
        "sent 7.1 ab durable 0;unknown 7.1;sent 7.1 ab durable 0;refused 7.1 other;\
         delivered 0 0 1 7.1 ab first 0;acked 0 7.1;end",
    );
    // Refused, then sent again and taken.
    clean(
        "sent 7.1 ab durable 0;refused 7.1 other;sent 7.1 ab durable 0;confirmed 7.1-1 durable;\
         delivered 0 0 1 7.1 ab first 0;acked 0 7.1;end",
    );
}

#[test]
fn routing() {
    check(
        &format!(
            "{START}sent 7.1 ab durable 0;confirmed 7.1-1 durable;\
             delivered 0 0 1 7.1 ab first 0;acked 0 7.1;delivered 1 1 1 7.1 ab first 0;end"
        ),
        &[Kind::CrossQueue],
    );
    clean(
        "sent 7.1 ab durable 0,1?;confirmed 7.1-1 durable;\
         delivered 0 0 1 7.1 ab first 0;acked 0 7.1;delivered 1 1 1 7.1 ab first 0;acked 1 7.1;end",
    );
    // Sent again: certain only where both times were, possible where either was.
    clean("sent 7.1 ab durable 0;unknown 7.1;sent 7.1 ab durable 1;confirmed 7.1-1 durable;end");
    clean(
        "sent 7.1 ab durable 0;unknown 7.1;sent 7.1 ab durable 1;confirmed 7.1-1 durable;\
         delivered 0 0 1 7.1 ab first 0;acked 0 7.1;end",
    );
    broken(
        "sent 7.1 ab durable 0;unknown 7.1;sent 7.1 ab durable 0,1;confirmed 7.1-1 durable;end",
        Kind::Lost,
    );
    broken(
        "sent 7.1 ab durable 0;refused 7.1 unroutable;end",
        Kind::WronglyUnroutable,
    );
    clean("sent 7.1 ab durable;refused 7.1 unroutable;end");
    clean("sent 7.1 ab durable 0?;refused 7.1 unroutable;end");
}

#[test]
fn bytes() {
    broken(
        "sent 7.1 ab durable 0;confirmed 7.1-1 durable;delivered 0 0 1 7.1 ac first 0;acked 0 7.1;end",
        Kind::HashMismatch,
    );
}

#[test]
fn answers() {
    let sent = "sent 7.1 ab durable 0?;sent 7.2 ab durable 0?;confirmed 7.1-1 durable";
    broken(&format!("{sent};end"), Kind::NeverAnswered);
    clean(&format!("{sent};unknown 7.2;end"));
    clean(&format!("{sent};confirmed 7.2-2 volatile;end"));
    broken(
        &format!("{sent};confirmed 7.1-2 durable;end"),
        Kind::AnsweredTwice,
    );
    broken(
        &format!("{sent};refused 7.1 other;refused 7.2 other;end"),
        Kind::AnsweredTwice,
    );
    // A refusal is an exception of a later cumulative confirm.
    clean(
        "sent 7.1 a durable 0?;sent 7.2 b durable 0?;refused 7.1 other;confirmed 7.1-2 durable;end",
    );
    // Also one of what an earlier attempt was confirmed.
    let again = "sent 7.1 a volatile 0?;confirmed 7.1-1 volatile;crash;sent 7.1 a volatile 0?";
    clean(&format!(
        "{again};refused 7.1 other;confirmed 7.1-1 volatile;end"
    ));
    broken(
        &format!("{again};confirmed 7.1-1 volatile;confirmed 7.1-1 volatile;end"),
        Kind::AnsweredTwice,
    );
    broken(
        "sent 7.1 ab durable 2;confirmed 7.1-1 durable;crash;end",
        Kind::LevelOverstated,
    );
}

#[test]
fn harness_bugs_are_named() {
    broken("confirmed 7.1-1 durable;end", Kind::BadHistory);
    broken("sent 7.1 ab durable 9;end", Kind::BadHistory);
    broken("queue 0 durable;end", Kind::BadHistory);
    broken("consumer 0 0 acks;end", Kind::BadHistory);
    broken("delivered 7 0 1 7.1 ab first 0;end", Kind::BadHistory);
    broken(
        "sent 7.1 a none;sent 7.9999999 a none;end",
        Kind::BadHistory,
    );
    broken("sent 7.1 a none;sent 7.1 b none;end", Kind::BadHistory);
}

#[test]
fn lines_survive() {
    let lines = "queue 0 durable\nqueue 1 volatile\ndropped 0\n\
                 sent 7a.1 ab none\nsent 7.2 ab volatile 0,1?\nconfirmed 7.1-2 durable\n\
                 refused 7.1 other\nrefused 7.1 unroutable\nunknown 7.2\n\
                 consumer 0 0 acks\nconsumer 1 1 onsend\n\
                 delivered 0 0 1 7.1 ab first 0\ndelivered 0 0 1 7.1 ab again 1\n\
                 acked 0 7.1\nackconfirmed 0 7.1\nreturned 0 7.1\nclosed 0\nlost 1\ncrash\ncalm\nend\n";
    let mut out = Vec::new();
    text::read(lines.as_bytes(), |event| {
        text::write(&mut out, &event).expect("memory does not fail");
    })
    .expect("well formed");
    assert_eq!(String::from_utf8(out).expect("text"), lines);
}

#[test]
fn damaged_lines_are_refused() {
    for line in [
        "quux\n",
        "crash now\n",
        "queue x durable\n",
        "queue 99999999999 durable\n",
        "sent 7.1 ab durable 0,\n",
        "sent 7 ab durable\n",
        "confirmed 7.1 durable\n",
        "sent 11112222333344445.1 ab durable\n",
        "en",
    ] {
        let read = text::read(line.as_bytes(), |_| {});
        assert!(
            matches!(read, Err(text::ReadError::Line { number: 1, .. })),
            "{line} passed"
        );
    }
    text::read(&b"# a remark\n\nend\n"[..], |_| {}).expect("well formed");
}

#[test]
fn violations_beyond_the_kept_are_counted() {
    let mut history = String::from(START);
    for sequence in 1..=100 {
        history += &format!("delivered 0 0 {sequence} 9.{sequence} ab first 0;");
    }
    let verdict = run(&history);
    assert_eq!(
        (verdict.violation_count, verdict.violations.len()),
        (100, 64)
    );
    assert!(verdict.to_string().contains("and 36 more"));
}
