//! Drives the broker's own rings and sleep flag through many random schedules: cores that ask each
//! other, sleep, are woken and are told to end. Beside `tests/ring_model.rs`, which is exhaustive
//! and knows memory orders but is too small for a whole conversation. It does not know the mesh.

/// The cell of the real ring; its atomics are replaced.
#[allow(dead_code, unused_imports)]
#[path = "../src/broker/rt/sync.rs"]
mod standard;

/// What stands in for `src/broker/rt/sync.rs`.
mod sync {
    pub(super) use super::standard::UnsafeCell;
    pub(super) use shuttle::sync::Arc;
    pub(super) use shuttle::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
}

#[allow(dead_code)]
#[path = "../src/broker/rt/ring.rs"]
mod ring;

use shuttle::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use shuttle::sync::{Arc, Condvar, Mutex};
use shuttle::thread;

/// Requests that each core sends to the other.
const REQUESTS: u32 = 3;
/// Schedules of a test.
const SCHEDULES: usize = 10_000;

/// A bell as `rt::bell` has it: the flag decides whether the descriptor is written.
struct Bell {
    sleep: ring::SleepFlag,
    /// Writes that were not seen.
    descriptor: Mutex<u32>,
    readable: Condvar,
    /// Writes ever.
    writes: AtomicUsize,
}

impl Bell {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            sleep: ring::SleepFlag::new(),
            descriptor: Mutex::new(0),
            readable: Condvar::new(),
            writes: AtomicUsize::new(0),
        })
    }

    fn ring(&self) {
        if self.sleep.must_wake() {
            self.writes.fetch_add(1, Ordering::Relaxed);
            *self.descriptor.lock().expect("nobody panics") += 1;
            self.readable.notify_one();
        }
    }

    fn wait(&self) {
        let mut count = self.descriptor.lock().expect("nobody panics");
        while *count == 0 {
            count = self.readable.wait(count).expect("nobody panics");
        }
        *count = 0;
    }
}

/// What a core says to the other.
#[derive(PartialEq, Eq, Debug)]
enum Say {
    Ask(u32),
    Answer(u32),
}

/// Whether a core looks at its rings once more after it has said that it sleeps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Again,
    No,
}

/// One core: answers what it is asked, asks what it has to, and ends when it was told to and
/// nothing of its own is open.
struct Core {
    asks: ring::Producer<Say>,
    answers: ring::Producer<Say>,
    asked: ring::Consumer<Say>,
    answered: ring::Consumer<Say>,
    own: Arc<Bell>,
    other: Arc<Bell>,
    stop: Arc<AtomicBool>,
    /// How often it said that it sleeps.
    sleeps: u32,
}

impl Core {
    fn run(mut self, look: Look) -> u32 {
        let (mut sent, mut done, mut served) = (0, 0, 0);
        loop {
            let mut is_busy = false;
            while let Some(say) = self.asked.pop() {
                let Say::Ask(number) = say else {
                    panic!("the lane of requests holds requests")
                };
                assert_eq!(number, served, "requests arrive in order, each once");
                served += 1;
                // A request is sent only when there is room for its answer.
                let answer = self.answers.push(Say::Answer(number));
                answer.expect("there is room for every answer");
                is_busy = true;
            }
            while let Some(say) = self.answered.pop() {
                assert_eq!(say, Say::Answer(done), "answers arrive in order, each once");
                done += 1;
                is_busy = true;
            }
            while sent < REQUESTS && sent - done < 2 {
                match self.asks.push(Say::Ask(sent)) {
                    Ok(()) => sent += 1,
                    Err(_) => break,
                }
                is_busy = true;
            }
            let is_new = self.asks.publish() | self.answers.publish();
            if is_new {
                self.other.ring();
            }
            let is_told = self.stop.load(Ordering::Acquire);
            if is_told && done == REQUESTS && served == REQUESTS {
                return self.sleeps;
            }
            if !is_busy {
                self.sleep(look, is_told);
            }
        }
    }

    /// `was_told` is what it knew when it last looked: an old stop is no reason to stay awake.
    fn sleep(&mut self, look: Look, was_told: bool) {
        self.sleeps += 1;
        self.own.sleep.announce_sleep();
        let is_idle = self.asked.is_empty()
            && self.answered.is_empty()
            && self.stop.load(Ordering::Acquire) == was_told;
        if is_idle || look == Look::No {
            self.own.wait();
        }
        self.own.sleep.announce_awake();
    }
}

fn conversation(look: Look) {
    let bells = [Bell::new(), Bell::new()];
    let stop = Arc::new(AtomicBool::new(false));
    // Rings of two entries run full.
    let (asks_a, asked_b) = ring::ring(2);
    let (asks_b, asked_a) = ring::ring(2);
    let (answers_a, answered_b) = ring::ring(2);
    let (answers_b, answered_a) = ring::ring(2);
    let a = Core {
        asks: asks_a,
        answers: answers_a,
        asked: asked_a,
        answered: answered_a,
        own: bells[0].clone(),
        other: bells[1].clone(),
        stop: stop.clone(),
        sleeps: 0,
    };
    let b = Core {
        asks: asks_b,
        answers: answers_b,
        asked: asked_b,
        answered: answered_b,
        own: bells[1].clone(),
        other: bells[0].clone(),
        stop: stop.clone(),
        sleeps: 0,
    };
    let threads = [a, b].map(|core| thread::spawn(move || core.run(look)));
    // As the signal thread and the admin thread do: leave word, then ring.
    stop.store(true, Ordering::Release);
    for bell in &bells {
        bell.ring();
    }
    for (thread, bell) in threads.into_iter().zip(&bells) {
        let sleeps = thread.join().expect("a core ends");
        let writes = bell.writes.load(Ordering::Relaxed);
        assert!(writes <= sleeps as usize, "one waker per sleep");
    }
}

/// A core that sleeps on work, or through the end, blocks for ever: a deadlock.
#[test]
fn cores_answer_each_other_and_end_when_told() {
    shuttle::check_random(|| conversation(Look::Again), SCHEDULES);
}

/// The same with few preemptions at the worst places.
#[test]
fn cores_answer_each_other_under_few_unlucky_preemptions() {
    shuttle::check_pct(|| conversation(Look::Again), SCHEDULES, 3);
}

/// The control: this model sees a lost wake-up if there is one.
#[test]
#[should_panic(expected = "deadlock")]
fn a_sleeper_that_does_not_look_again_is_found() {
    shuttle::check_random(|| conversation(Look::No), SCHEDULES);
}
