//! Model-checks the ring between cores and the sleep protocol of the doorbell: `cargo test --test
//! ring_model` runs every interleaving that the memory model allows, up to the bounds of loom. It
//! compiles the very source of the broker against loom's atomics; it does not know the mesh.

/// What stands in for `src/broker/rt/sync.rs`.
mod sync {
    pub(super) use loom::cell::UnsafeCell;
    pub(super) use loom::sync::Arc;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
}

#[allow(dead_code)]
#[path = "../src/broker/rt/ring.rs"]
mod ring;

use loom::thread;

#[test]
fn entries_arrive_in_order_through_a_ring_that_runs_full() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring::ring(2);
        let writer = thread::spawn(move || {
            for entry in 0..3 {
                while producer.push(Box::new(entry)).is_err() {
                    thread::yield_now();
                }
                producer.publish();
            }
        });
        let mut expected = 0;
        while expected < 3 {
            match consumer.pop() {
                Some(entry) => {
                    assert_eq!(*entry, expected);
                    expected += 1;
                }
                None => thread::yield_now(),
            }
        }
        writer.join().expect("the producer ends");
    });
}

#[test]
fn a_batch_is_published_at_once_and_the_rest_is_dropped() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring::ring(4);
        let writer = thread::spawn(move || {
            producer.push(Box::new(1)).expect("there is room");
            producer.push(Box::new(2)).expect("there is room");
            producer.publish();
            producer.push(Box::new(3)).expect("there is room");
        });
        if let Some(first) = consumer.pop() {
            assert_eq!(*first, 1);
            assert_eq!(consumer.pop().as_deref(), Some(&2));
        }
        drop(consumer);
        writer.join().expect("the producer ends");
    });
}

/// A sleeper that is not woken blocks for ever, which loom reports as a deadlock.
#[test]
fn no_wake_up_is_lost_between_publishing_and_falling_asleep() {
    let mut model = loom::model::Builder::new();
    // Unbounded it passes too, in a minute and a half.
    model.preemption_bound = Some(3);
    model.check(|| {
        let (mut producer, mut consumer) = ring::ring(2);
        let flag = sync::Arc::new(ring::SleepFlag::new());
        let doorbell = sync::Arc::new(loom::sync::Notify::new());
        let (bell_flag, bell) = (flag.clone(), doorbell.clone());
        let writer = thread::spawn(move || {
            for entry in 0..2 {
                producer.push(entry).expect("there is room");
                producer.publish();
                if bell_flag.must_wake() {
                    bell.notify();
                }
            }
        });
        let mut expected = 0;
        while expected < 2 {
            match consumer.pop() {
                Some(entry) => {
                    assert_eq!(entry, expected);
                    expected += 1;
                }
                None => {
                    flag.announce_sleep();
                    if consumer.is_empty() {
                        doorbell.wait();
                    }
                    flag.announce_awake();
                }
            }
        }
        writer.join().expect("the producer ends");
    });
}
