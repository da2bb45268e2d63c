//! What a producer sends next, whatever it speaks: for which group, with which stamp, when and how large.
//! Does not know bytes or sockets.

use std::sync::atomic::Ordering;

use crate::arrivals::Schedule;
use crate::message::Stamp;
use crate::plan::Plan;
use crate::sizes::Sampler;
use crate::tally::{MISSED_NS, Shared, Tally};

/// The messages of one producer, in order.
pub(crate) struct Source {
    /// Which producer of the run it is.
    pub(crate) number: u32,
    lanes: Vec<Lane>,
    turn: usize,
    /// Open loop: when messages should be sent.
    pub(crate) schedule: Option<Schedule>,
    /// The broker did not take all that was due: what is late now is late because of it.
    pub(crate) is_held: bool,
    /// Payloads of many sizes.
    sizes: Option<Sampler>,
}

/// What a producer sends to one group of queues.
struct Lane {
    group: u32,
    sequence: u64,
}

/// A message that is due.
pub(crate) struct Next {
    /// Its place among the producer's groups.
    pub(crate) lane: usize,
    /// What it says of itself.
    pub(crate) stamp: Stamp,
    /// How large the payload is, if sizes differ.
    pub(crate) payload_bytes: Option<u32>,
}

impl Source {
    /// The messages of producer `number`.
    pub(crate) fn new(plan: &Plan, number: u32) -> Self {
        let lane = |group| Lane { group, sequence: 0 };
        let seed = plan.seed ^ (u64::from(number) << 32);
        Self {
            number,
            lanes: plan.groups_of_producer(number).map(lane).collect(),
            turn: 0,
            schedule: plan.schedule(number),
            is_held: false,
            sizes: plan.sizes.clone().map(|sizes| Sampler::new(sizes, seed)),
        }
    }

    /// Starts the schedule with the run, if it has not begun.
    pub(crate) fn begin(&mut self, plan: &Plan, shared: &Shared) {
        if let Some(schedule) = &mut self.schedule
            && !schedule.has_begun()
        {
            let started_ns = shared.started_ns.load(Ordering::Relaxed);
            schedule.begin(started_ns, plan.share_of(self.number));
        }
    }

    /// The next message: in a closed loop always one, in an open one if it is due. `tally`: where it is
    /// counted how late it is, if that is measured.
    pub(crate) fn next(&mut self, now: u64, tally: Option<&mut Tally>) -> Option<Next> {
        let intended_ns = match &mut self.schedule {
            None => now,
            Some(schedule) if !schedule.is_due(now) => return None,
            Some(schedule) => schedule.take(),
        };
        let lane = self.turn;
        let own = &mut self.lanes[lane];
        let stamp = Stamp {
            sequence: own.sequence,
            intended_ns,
            sent_ns: now,
            producer: self.number,
            group: own.group,
        };
        own.sequence += 1;
        self.turn += 1;
        if self.turn == self.lanes.len() {
            self.turn = 0;
        }
        if let (Some(tally), true) = (tally, self.schedule.is_some()) {
            let late = now.saturating_sub(intended_ns);
            tally.late.saturating_record(late);
            tally.counts.missed += u64::from(late > MISSED_NS && !self.is_held);
        }
        Some(Next {
            lane,
            stamp,
            payload_bytes: self.sizes.as_mut().map(Sampler::next_bytes),
        })
    }

    /// Whether a message is due; in a closed loop always.
    pub(crate) fn is_due(&self, now: u64) -> bool {
        let schedule = self.schedule.as_ref();
        schedule.is_none_or(|schedule| schedule.is_due(now))
    }
}
