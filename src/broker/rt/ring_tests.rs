//! Tests of [`super::ring`] on real threads. They are apart from it because the model checker
//! includes that file; interleavings are its affair, this is about counts and drops.

use std::sync::Arc;

use super::ring;

#[test]
fn a_ring_is_full_at_its_capacity_and_gives_the_entry_back() {
    for entries in [1, 2, 8] {
        let (mut producer, mut consumer) = ring(entries);
        for round in 0..3 {
            for entry in 0..entries {
                producer.push((round, entry)).expect("there is room");
            }
            assert_eq!(producer.push((round, entries)), Err((round, entries)));
            assert_eq!(producer.occupied(), entries);
            assert!(consumer.is_empty());
            assert!(producer.publish());
            assert!(!producer.publish());
            for entry in 0..entries {
                assert!(!consumer.is_empty());
                assert_eq!(consumer.pop(), Some((round, entry)));
            }
            assert_eq!(consumer.pop(), None);
        }
    }
}

#[test]
#[should_panic(expected = "a power of two")]
fn a_ring_of_three_is_refused() {
    ring::<u8>(3);
}

#[test]
fn what_is_left_in_a_ring_is_dropped_once() {
    let token = Arc::new(());
    for published in [false, true] {
        let (mut producer, mut consumer) = ring(4);
        for _ in 0..3 {
            producer.push(token.clone()).expect("there is room");
        }
        if published {
            producer.publish();
            drop(consumer.pop());
        }
        drop(producer);
        drop(consumer);
        assert_eq!(Arc::strong_count(&token), 1);
    }
}

#[test]
fn entries_cross_threads_in_order_and_complete() {
    const ENTRIES: u64 = 200_000;
    let (mut producer, mut consumer) = ring(64);
    let writer = std::thread::spawn(move || {
        for entry in 0..ENTRIES {
            let mut rest = (entry, !entry);
            while let Err(back) = producer.push(rest) {
                producer.publish();
                std::thread::yield_now();
                rest = back;
            }
            if entry % 7 == 0 {
                producer.publish();
            }
        }
        producer.publish();
    });
    let mut expected = 0;
    while expected < ENTRIES {
        match consumer.pop() {
            Some(entry) => {
                assert_eq!(entry, (expected, !expected));
                expected += 1;
            }
            None => std::thread::yield_now(),
        }
    }
    writer.join().expect("the producer ends");
    assert!(consumer.is_empty());
}
