//! Cases of a queue, step by step: push, take, settle, forget, and back and again, in runs.
//! Does not know journals or sockets.

use std::hint::black_box;

use ringpost_engine::data::queue::{
    AckMode, ConsumerKey, Credit, Marking, Outcome, Queue, Ranges, SequenceRange, Settings, Sharing,
};
use ringpost_engine::{Place, SegmentIdx};
use ringpost_wire::SettleRange;
use ringpost_wire::control::Durability;
use ringpost_wire::ids::QueueSequence;

use super::{Case, Work};

/// Messages of a round.
const WINDOW: u64 = 16 * 1_024;
const BYTES_EACH: [u32; 1_024] = [128; 1_024];
const CONSUMER: ConsumerKey = ConsumerKey(1);

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("queue/push/runs-of-1", || Steps::new(Step::Push, 1)),
        Case::new("queue/push/runs-of-16", || Steps::new(Step::Push, 16)),
        Case::new("queue/push/runs-of-1024", || Steps::new(Step::Push, 1_024)),
        Case::new("queue/take/runs-of-1", || Steps::new(Step::Take, 1)),
        Case::new("queue/take/runs-of-16", || Steps::new(Step::Take, 16)),
        Case::new("queue/take/runs-of-1024", || Steps::new(Step::Take, 1_024)),
        Case::new("queue/settle/runs-of-1", || Steps::new(Step::Settle, 1)),
        Case::new("queue/settle/runs-of-16", || Steps::new(Step::Settle, 16)),
        Case::new("queue/settle/runs-of-1024", || {
            Steps::new(Step::Settle, 1_024)
        }),
        Case::new("queue/forget/runs-of-1", || Steps::new(Step::Forget, 1)),
        Case::new("queue/forget/runs-of-16", || Steps::new(Step::Forget, 16)),
        Case::new("queue/forget/runs-of-1024", || {
            Steps::new(Step::Forget, 1_024)
        }),
        Case::new("queue/requeue-and-take", || Steps::new(Step::Requeue, 16)),
    ]
}

#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Step {
    Push,
    Take,
    Requeue,
    Settle,
    Forget,
}

const ORDER: [Step; 4] = [Step::Push, Step::Take, Step::Settle, Step::Forget];

/// A queue whose messages go their way, one step of which is measured.
struct Steps {
    queue: Queue,
    measured: Step,
    run: u32,
    tag: u64,
    out: Ranges,
    /// The window's messages are in the queue, the measured step done.
    is_under_way: bool,
}

impl Steps {
    fn new(measured: Step, run: u32) -> Self {
        let mut queue = Queue::new(Settings::plain(Durability::Durable));
        let credit = Credit {
            messages: 1_000_000,
            bytes: 0,
        };
        queue
            .add_consumer(CONSUMER, credit, AckMode::Explicit, Sharing::Shared)
            .expect("shared");
        Self {
            queue,
            measured,
            run,
            tag: 0,
            out: Ranges::new(),
            is_under_way: false,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Push => self.push(),
            Step::Take => self.take(),
            Step::Requeue => self.requeue(),
            Step::Settle => self.settle(),
            Step::Forget => self.forget(),
        }
    }

    fn push(&mut self) {
        for record in 0..WINDOW / u64::from(self.run) {
            let first = self.queue.next_sequence();
            let place = Place {
                segment: SegmentIdx((first.0 >> 16) as u32),
                offset: (record % 4_096) as u32 * 4_096,
            };
            let (run, bytes) = (self.run, self.run * 128);
            self.queue
                .push_run(first, run, bytes, place, Marking::Marked);
        }
        let last = self.queue.next_sequence().0 - 1;
        self.queue.durable_through(QueueSequence(last));
    }

    fn take(&mut self) {
        while let Some(offer) = self.queue.next_offer() {
            let count = offer.messages_max.min(1_024);
            let (at, each) = (offer.index * 128, &BYTES_EACH[..count as usize]);
            black_box(self.queue.take(&offer, at, each, &mut self.out));
        }
        self.tag += WINDOW;
    }

    /// Everything comes back, and is delivered again.
    fn requeue(&mut self) {
        let range = SettleRange {
            first: 0,
            last: self.tag,
        };
        let done = self
            .queue
            .settle(CONSUMER, range, Outcome::Requeue, &mut self.out);
        done.expect("outstanding");
        let mut counts = Vec::new();
        let upto = self.queue.take_counts(&mut counts);
        self.queue.counts_durable(upto);
        self.take();
    }

    /// Acks the window frame by frame of `run` messages.
    fn settle(&mut self) {
        let mut tag = self.tag - WINDOW;
        while tag < self.tag {
            tag += u64::from(self.run);
            let range = SettleRange {
                first: 0,
                last: tag,
            };
            let done = self
                .queue
                .settle(CONSUMER, range, Outcome::Ack, &mut self.out);
            black_box(done).expect("outstanding");
        }
    }

    /// Forgets what was settled, as of one ack record for each run.
    fn forget(&mut self) {
        let whole = self.out.as_slice()[0];
        let mut first = whole.first;
        while first <= whole.last {
            let last = first.plus(u64::from(self.run) - 1);
            let mut lost = 0;
            self.queue
                .forget(&[SequenceRange::new(first, last)], &mut |_, n| lost += n);
            black_box(lost);
            first = last.plus(1);
        }
        self.out.clear();
    }
}

impl Work for Steps {
    fn prepare(&mut self) {
        let measured = self.measured;
        if self.is_under_way {
            for step in ORDER.into_iter().filter(|step| *step > measured) {
                self.step(step);
            }
        }
        for step in ORDER.into_iter().filter(|step| *step < measured) {
            self.step(step);
        }
        self.is_under_way = true;
    }

    fn round(&mut self) -> u64 {
        self.step(self.measured);
        WINDOW
    }
}
