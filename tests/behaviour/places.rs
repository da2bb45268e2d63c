//! Messages where they are: seen without being taken, cancelled, moved.

use ringpost_wire::control::{
    Body, Level, MOVE_WITH_KEY, PRODUCER_DOWNGRADE, QueueBrowse, QueueBrowsed, QueueCancel,
    QueueDeclare, QueueMove, QueueOutcome,
};
use ringpost_wire::table::{TableWriter, Value};
use ringpost_wire::{
    BROWSED_CUT, BrowsedHead, BrowsedMessages, BrowsedState, Code, FrameKind, MessageParts,
};

use crate::wire::{Wire, consumer, filler, payloads, queue_on, to_queue, volatile};
use crate::{Setup, on_cores};

on_cores! {
    a_browse_shows_how_messages_stand_and_changes_nothing
    a_browse_goes_on_where_it_ended
    large_messages_are_shown_in_part
    delayed_messages_are_taken_back_and_others_are_late
    messages_move_whole_and_those_that_cannot_stay
    a_move_into_a_full_queue_loses_nothing
    what_is_asked_of_places_is_checked
    messages_of_groups_are_seen_and_moved
}

const ACK: u8 = 0;
const REQUEUE: u8 = 1;
const REJECT: u8 = 2;

fn table(entries: &[(&str, Value<'_>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = TableWriter::new(&mut bytes);
    for (name, value) in entries {
        writer.put(name.as_bytes(), *value);
    }
    writer.finish().unwrap();
    bytes
}

/// A connection with the queue `q` on every core in turn, durable and volatile, and one `other` elsewhere.
fn everywhere(setup: &Setup, entries: &[(&str, Value<'_>)], mut test: impl FnMut(&mut Wire)) {
    let arguments = &table(entries);
    for core in 0..setup.cores() {
        for make in [|declare| declare, volatile] {
            let mut wire = setup.wire();
            wire.declare(&make(QueueDeclare {
                arguments,
                ..queue_on(b"q", core)
            }));
            wire.declare(&make(queue_on(b"other", (core + 1) % setup.cores())));
            test(&mut wire);
            wire.delete(b"q");
            wire.delete(b"other");
        }
    }
}

fn publish(wire: &mut Wire, parts: &[MessageParts<'_>]) {
    let mut producer = wire.producer_with(4000, Level::Durable, PRODUCER_DOWNGRADE);
    producer.confirm(wire, parts);
    producer.close(wire);
}

fn fill(wire: &mut Wire, queue: &[u8], count: usize) {
    let names: Vec<_> = (0..count).map(|number| number.to_string()).collect();
    let parts: Vec<_> = names
        .iter()
        .map(|name| to_queue(queue, name.as_bytes()))
        .collect();
    publish(wire, &parts);
}

const ALL: QueueBrowse<'_> = QueueBrowse {
    from: 0,
    messages_max: 0,
    message_bytes_max: 0,
    states: 0,
    reserved: 0,
    queue: b"q",
    filter: b"",
};

#[derive(Debug)]
struct Page {
    next: u64,
    newest: u64,
    messages: Vec<(BrowsedHead, Vec<u8>)>,
    /// Their headers, and priority and time to live.
    terms: Vec<(Vec<u8>, (u8, u32))>,
}

impl Page {
    fn states(&self) -> Vec<(u64, BrowsedState, u32)> {
        let heads = self.messages.iter().map(|(head, _)| head);
        heads
            .map(|head| (head.place, head.state, head.deliveries))
            .collect()
    }

    fn payloads(&self) -> Vec<&[u8]> {
        self.messages
            .iter()
            .map(|(_, payload)| &payload[..])
            .collect()
    }
}

#[track_caller]
fn browse(wire: &mut Wire, browse: &QueueBrowse<'_>) -> Page {
    let id = wire.request(FrameKind::QueueBrowse, browse);
    let frame = wire.answer(id);
    assert_eq!(frame.kind(), FrameKind::QueueBrowsed, "{frame:?}");
    let browsed = QueueBrowsed::decode(&frame.body).unwrap();
    let (mut messages, mut terms) = (Vec::new(), Vec::new());
    for message in BrowsedMessages::new(browsed.messages) {
        let message = message.unwrap();
        let envelope = message.envelope;
        messages.push((message.head, envelope.payload().to_vec()));
        let asked = (envelope.priority(), envelope.ttl_ms());
        terms.push((envelope.headers().to_vec(), asked));
    }
    assert_eq!(frame.header.count as usize, messages.len());
    Page {
        next: browsed.next,
        newest: browsed.newest,
        messages,
        terms,
    }
}

fn bytes_of(places: &[u64]) -> Vec<u8> {
    places
        .iter()
        .flat_map(|place| place.to_le_bytes())
        .collect()
}

#[track_caller]
fn outcome(wire: &mut Wire, id: u64) -> [u32; 4] {
    let frame = wire.answer(id);
    assert_eq!(frame.kind(), FrameKind::QueueOutcome, "{frame:?}");
    let outcome = QueueOutcome::decode(&frame.body).unwrap();
    [outcome.done, outcome.late, outcome.busy, outcome.refused]
}

#[track_caller]
fn cancel(wire: &mut Wire, places: &[u64]) -> [u32; 4] {
    let cancel = QueueCancel {
        queue: b"q",
        places: &bytes_of(places),
    };
    let id = wire.request(FrameKind::QueueCancel, &cancel);
    outcome(wire, id)
}

#[track_caller]
fn move_to(wire: &mut Wire, to: &[u8], places: &[u64]) -> [u32; 4] {
    let asked = QueueMove {
        flags: MOVE_WITH_KEY,
        queue: b"q",
        exchange: b"",
        routing_key: to,
        places: &bytes_of(places),
    };
    let id = wire.request(FrameKind::QueueMove, &asked);
    outcome(wire, id)
}

//= P-111
/// P-111
fn a_browse_shows_how_messages_stand_and_changes_nothing(setup: &Setup) {
    everywhere(setup, &[], |wire| {
        let empty = browse(wire, &ALL);
        assert_eq!((empty.next, empty.newest, empty.messages.len()), (0, 0, 0));
        fill(wire, b"q", 5);
        let later = MessageParts {
            delay_ms: 3_600_000,
            ..to_queue(b"q", b"later")
        };
        publish(wire, &[later]);
        wire.consume(1, &consumer(b"q", 3));
        wire.deliveries(1, 3);
        wire.settle_surely(1, REQUEUE, &[(1, 1)]);
        wire.settle_surely(1, ACK, &[(2, 2)]);
        // The first comes again, and the fourth.
        wire.deliveries(1, 2);
        for _ in 0..2 {
            let page = browse(wire, &ALL);
            let expected = [
                (1, BrowsedState::Unacked, 1),
                (3, BrowsedState::Unacked, 0),
                (4, BrowsedState::Unacked, 0),
                (5, BrowsedState::Ready, 0),
                (6, BrowsedState::Delayed, 0),
            ];
            assert_eq!(page.states(), expected);
            let names: [&[u8]; 5] = [b"0", b"2", b"3", b"4", b"later"];
            assert_eq!(page.payloads(), names);
            assert_eq!((page.next, page.newest), (0, 6));
            let due_ms = page.messages[4].0.due_ms;
            assert!((3_500_000..=3_600_001).contains(&due_ms), "{due_ms}");
            let held = page.messages[0].0;
            assert_eq!(held.channel, 1);
            assert!(page.messages[3].0.connection == 0);
            let only = browse(
                wire,
                &QueueBrowse {
                    states: BrowsedState::Ready as u32 | BrowsedState::Delayed as u32,
                    ..ALL
                },
            );
            assert_eq!(only.payloads(), [&b"4"[..], b"later"]);
        }
        // What it gives back then is as it would have been.
        wire.close_consumer(1);
        let page = browse(wire, &ALL);
        let counts: Vec<_> = page.states().iter().map(|(_, _, count)| *count).collect();
        assert_eq!(counts, [2, 1, 1, 0, 0]);
    });
}

//= P-111
/// P-111
fn a_browse_goes_on_where_it_ended(setup: &Setup) {
    everywhere(setup, &[], |wire| {
        let odd = table(&[("n", Value::I32(1))]);
        let even = table(&[("n", Value::I32(0))]);
        let names: Vec<_> = (0..600).map(|number| number.to_string()).collect();
        let parts: Vec<_> = names
            .iter()
            .zip(0..)
            .map(|(name, number)| MessageParts {
                headers: if number % 2 == 1 { &odd } else { &even },
                ..to_queue(b"q", name.as_bytes())
            })
            .collect();
        for parts in parts.chunks(200) {
            publish(wire, parts);
        }
        let mut from = 0;
        let mut seen = Vec::new();
        let mut pages = 0;
        loop {
            let page = browse(
                wire,
                &QueueBrowse {
                    from,
                    messages_max: 100,
                    filter: b"n = 1",
                    ..ALL
                },
            );
            assert!(page.messages.len() <= 100 && page.newest == 600);
            seen.extend(page.payloads().iter().map(|name| name.to_vec()));
            pages += 1;
            from = page.next;
            if from == 0 {
                break;
            }
        }
        let odd: Vec<_> = names.iter().skip(1).step_by(2).collect();
        let odd: Vec<_> = odd.iter().map(|name| name.as_bytes().to_vec()).collect();
        assert_eq!(seen, odd);
        assert!(pages >= 3);
        let last = browse(wire, &QueueBrowse { from: 600, ..ALL });
        assert_eq!(last.payloads(), [b"599"]);
        let none = browse(wire, &QueueBrowse { from: 601, ..ALL });
        assert_eq!((none.next, none.messages.len()), (0, 0));
    });
}

/// P-111
fn large_messages_are_shown_in_part(setup: &Setup) {
    everywhere(setup, &[], |wire| {
        let whole = filler(7, 50_000);
        publish(wire, &[to_queue(b"q", &whole)]);
        let huge = filler(8, 300_000);
        let mut message = Vec::new();
        to_queue(b"q", &huge).write(&mut message).unwrap();
        let mut producer = wire.producer_with(4001, Level::Durable, PRODUCER_DOWNGRADE);
        let length = to_queue(b"q", &huge).length();
        producer.publish_large(wire, 0, &message[..length]);
        producer.settle(wire);
        let page = browse(wire, &ALL);
        let (head, payload) = &page.messages[0];
        assert_eq!((head.flags, &payload[..]), (0, &whole[..]));
        let (head, payload) = &page.messages[1];
        assert_eq!(head.flags, BROWSED_CUT);
        assert_eq!(head.message_bytes as usize, length);
        assert_eq!(head.shown_bytes, 64 * 1024);
        assert!(huge.starts_with(payload) && !payload.is_empty());
        let page = browse(
            wire,
            &QueueBrowse {
                message_bytes_max: 1,
                ..ALL
            },
        );
        assert_eq!(page.payloads(), [b"", b""]);
        assert!(
            page.messages
                .iter()
                .all(|(head, _)| head.flags == BROWSED_CUT)
        );
        producer.close(wire);
    });
}

//= P-113
/// P-113
fn delayed_messages_are_taken_back_and_others_are_late(setup: &Setup) {
    everywhere(setup, &[], |wire| {
        let names: Vec<_> = (0..6).map(|number| number.to_string()).collect();
        let parts: Vec<_> = names
            .iter()
            .map(|name| MessageParts {
                delay_ms: 3_600_000,
                ..to_queue(b"q", name.as_bytes())
            })
            .collect();
        publish(wire, &parts);
        publish(wire, &[to_queue(b"q", b"now")]);
        // Two from the middle, one twice, one that is ready, one that never was.
        assert_eq!(cancel(wire, &[2, 4, 7, 99]), [2, 2, 0, 0]);
        assert_eq!(cancel(wire, &[4]), [0, 1, 0, 0]);
        let page = browse(wire, &ALL);
        let names: [&[u8]; 5] = [b"0", b"2", b"4", b"5", b"now"];
        assert_eq!(page.payloads(), names);
        assert_eq!(wire.inspect(b"q").ready, 1);
        assert_eq!(cancel(wire, &[1, 3, 5, 6]), [4, 0, 0, 0]);
        wire.consume(1, &consumer(b"q", 10));
        let got = wire.deliveries(1, 1);
        assert_eq!(payloads(&got), [b"now"]);
        assert_eq!(cancel(wire, &[7]), [0, 1, 0, 0]);
        wire.close_consumer(1);
    });
}

//= P-112
/// P-112
fn messages_move_whole_and_those_that_cannot_stay(setup: &Setup) {
    let dead = [
        ("x-dead-letter-exchange", Value::Text(b"")),
        ("x-dead-letter-routing-key", Value::Text(b"other")),
    ];
    everywhere(setup, &dead, |wire| {
        let headers = table(&[("n", Value::I32(7))]);
        let names: Vec<_> = (0..6).map(|number| number.to_string()).collect();
        let parts: Vec<_> = names
            .iter()
            .map(|name| MessageParts {
                headers: &headers,
                ttl_ms: 3_600_000,
                priority: 3,
                ..to_queue(b"q", name.as_bytes())
            })
            .collect();
        publish(wire, &parts);
        wire.consume(1, &consumer(b"q", 1));
        wire.deliveries(1, 1);
        // From the middle on, one that is held, and one that never was.
        assert_eq!(move_to(wire, b"other", &[1, 3, 5, 9]), [2, 1, 1, 0]);
        assert_eq!(move_to(wire, b"other", &[3]), [0, 1, 0, 0]);
        assert_eq!(move_to(wire, b"nowhere", &[2, 4]), [0, 0, 0, 2]);
        let page = browse(wire, &ALL);
        assert_eq!(page.payloads(), [b"0", b"1", b"3", b"5"]);
        let page = browse(
            wire,
            &QueueBrowse {
                queue: b"other",
                ..ALL
            },
        );
        assert_eq!(page.payloads(), [b"2", b"4"]);
        // It is no death.
        let terms: Vec<_> = page.terms.iter().map(|(.., terms)| *terms).collect();
        assert_eq!(terms, [(3, 3_600_000); 2]);
        assert!(page.terms.iter().all(|(told, _)| *told == headers));
        // Those that stay come in their order, and a dead letter keeps what tells of its death.
        wire.settle_surely(1, REJECT, &[(1, 1)]);
        wire.credit(1, 10, 0);
        let got = wire.deliveries(1, 3);
        assert_eq!(payloads(&got), [b"1", b"3", b"5"]);
        wire.close_consumer(1);
        wire.purge(b"q");
        let first = browse(
            wire,
            &QueueBrowse {
                queue: b"other",
                from: 3,
                ..ALL
            },
        );
        assert_eq!(first.payloads(), [b"0"]);
        let asked = QueueMove {
            flags: MOVE_WITH_KEY,
            queue: b"other",
            exchange: b"",
            routing_key: b"q",
            places: &bytes_of(&[first.messages[0].0.place]),
        };
        let id = wire.request(FrameKind::QueueMove, &asked);
        assert_eq!(outcome(wire, id), [1, 0, 0, 0]);
        let told = &browse(wire, &ALL).terms[0].0;
        assert!(told.windows(7).any(|bytes| bytes == b"x-death"), "{told:?}");
        // Again it dies where it did, and comes back.
        wire.consume(1, &consumer(b"q", 1));
        wire.deliveries(1, 1);
        wire.settle_surely(1, REJECT, &[(1, 1)]);
        wire.close_consumer(1);
        wire.until(b"other", |info| info.ready == 3);
    });
}

/// P-112
fn a_move_into_a_full_queue_loses_nothing(setup: &Setup) {
    everywhere(setup, &[], |wire| {
        fill(wire, b"q", 10);
        let full = QueueDeclare {
            messages_max: 4,
            ..queue_on(b"full", 0)
        };
        wire.declare(&full);
        let [done, late, busy, refused] = move_to(wire, b"full", &[1, 2, 3, 4, 5, 6, 7]);
        assert_eq!((done, late, busy, refused), (4, 0, 0, 3));
        let left = browse(wire, &ALL);
        let there = browse(
            wire,
            &QueueBrowse {
                queue: b"full",
                ..ALL
            },
        );
        let mut all: Vec<_> = left.payloads();
        all.extend(there.payloads());
        all.sort();
        let names: Vec<_> = (0..10).map(|number| number.to_string()).collect();
        let names: Vec<_> = names.iter().map(|name| name.as_bytes()).collect();
        assert_eq!(all, names);
        wire.delete(b"full");
    });
}

/// P-111, P-112, P-113
fn what_is_asked_of_places_is_checked(setup: &Setup) {
    everywhere(setup, &[], |wire| {
        for asked in [
            QueueBrowse {
                messages_max: 257,
                ..ALL
            },
            QueueBrowse {
                message_bytes_max: 65_537,
                ..ALL
            },
            QueueBrowse { states: 32, ..ALL },
            QueueBrowse {
                filter: b"n = ",
                ..ALL
            },
        ] {
            let id = wire.request(FrameKind::QueueBrowse, &asked);
            assert_eq!(wire.failed(id), Code::SettingInvalid);
        }
        for asked in [
            QueueBrowse {
                messages_max: 256,
                ..ALL
            },
            QueueBrowse {
                message_bytes_max: 65_536,
                ..ALL
            },
            QueueBrowse { states: 31, ..ALL },
        ] {
            browse(wire, &asked);
        }
        let id = wire.request(
            FrameKind::QueueBrowse,
            &QueueBrowse {
                queue: b"nothing",
                ..ALL
            },
        );
        assert_eq!(wire.failed(id), Code::QueueUnknown);
        for places in [&[][..], &[0], &[2, 1], &[1, 1]] {
            let places = bytes_of(places);
            let cancel = QueueCancel {
                queue: b"q",
                places: &places,
            };
            let id = wire.request(FrameKind::QueueCancel, &cancel);
            assert_eq!(wire.failed(id), Code::SettingInvalid);
        }
        let places = bytes_of(&[1]);
        let itself = QueueMove {
            flags: MOVE_WITH_KEY,
            queue: b"q",
            exchange: b"",
            routing_key: b"q",
            places: &places,
        };
        for asked in [
            itself,
            QueueMove {
                flags: 2,
                routing_key: b"other",
                ..itself
            },
            QueueMove { flags: 0, ..itself },
        ] {
            let id = wire.request(FrameKind::QueueMove, &asked);
            assert_eq!(wire.failed(id), Code::SettingInvalid);
        }
        let most: Vec<u64> = (1..=1_024).collect();
        assert_eq!(cancel(wire, &most), [0, 1_024, 0, 0]);
        assert_eq!(move_to(wire, b"other", &most), [0, 1_024, 0, 0]);
    });
}

/// P-55, P-111, P-112
fn messages_of_groups_are_seen_and_moved(setup: &Setup) {
    let groups = [
        ("x-message-groups", Value::Bool(true)),
        ("x-sticky-header", Value::Text(b"key")),
    ];
    everywhere(setup, &groups, |wire| {
        let ann = table(&[("key", Value::Text(b"ann"))]);
        let names: Vec<_> = (0..5).map(|number| number.to_string()).collect();
        let parts: Vec<_> = names
            .iter()
            .map(|name| MessageParts {
                headers: &ann,
                ..to_queue(b"q", name.as_bytes())
            })
            .collect();
        wire.consume(1, &consumer(b"q", 2));
        wire.consume(2, &consumer(b"q", 2));
        publish(wire, &parts);
        wire.until(b"q", |info| info.unacked == 2);
        let holder = browse(wire, &ALL).messages[0].0.channel;
        let page = browse(wire, &ALL);
        let states: Vec<_> = page.states().iter().map(|(_, state, _)| *state).collect();
        let expected = [
            BrowsedState::Unacked,
            BrowsedState::Unacked,
            BrowsedState::Grouped,
            BrowsedState::Grouped,
            BrowsedState::Grouped,
        ];
        assert_eq!(states, expected);
        assert_eq!(move_to(wire, b"other", &[1, 4]), [1, 0, 1, 0]);
        wire.deliveries(holder, 2);
        wire.settle_surely(holder, ACK, &[(1, 2)]);
        let rest = wire.deliveries(holder, 2);
        assert_eq!(payloads(&rest), [b"2", b"4"]);
    });
}
