//! One producer of a load thread: its lanes, its credit, when its next message is due, and the
//! batches it writes. Does not know sockets.

use std::collections::VecDeque;

use ringpost_wire::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};

use crate::message::{Random, Stamp, Template};
use crate::plan::Pace;
use crate::tally::Tally;

/// A channel that publishes to its queues in turn.
pub(super) struct Producer {
    pub(super) number: u32,
    pub(super) conn: usize,
    pub(super) channel: u16,
    pub(super) lanes: Vec<Lane>,
    pub(super) turn: usize,
    pub(super) is_open: bool,
    /// Sequence of the next publish.
    pub(super) sequence: u64,
    /// Publishes that have their outcome.
    pub(super) confirmed: u64,
    pub(super) used_messages: u64,
    pub(super) used_bytes: u64,
    pub(super) credit_messages: u64,
    pub(super) credit_bytes: u64,
    pub(super) waiting: VecDeque<Waiting>,
    /// Open loop: when the next message should be sent, in ns.
    pub(super) due_ns: f64,
    /// Open loop: mean gap in ns.
    pub(super) gap_ns: f64,
    pub(super) random: Random,
}

/// What a producer sends to one queue.
pub(super) struct Lane {
    pub(super) queue: u32,
    pub(super) template: Template,
    pub(super) sequence: u64,
}

/// Publishes of the same intended time that wait for their confirm.
pub(super) struct Waiting {
    pub(super) last: u64,
    pub(super) count: u32,
    pub(super) intended_ns: u64,
}

impl Producer {
    /// Appends to `out` one `Publish` of up to `count` messages: all of them in a closed loop, those that are
    /// due in an open one. Returns how many.
    pub(super) fn write_batch(
        &mut self,
        out: &mut Vec<u8>,
        count: u32,
        now: u64,
        pace: Pace,
        mut tally: Option<&mut Tally>,
    ) -> u32 {
        let start = out.len();
        out.resize(start + FRAME_HEADER_BYTES, 0);
        let mut header = FrameHeader::bare(FrameKind::Publish, self.channel, self.sequence);
        while header.count < count {
            let intended_ns = match pace {
                Pace::Window { .. } => now,
                Pace::Constant { .. } | Pace::Poisson { .. } if self.due_ns > now as f64 => break,
                Pace::Constant { .. } => self.step_due(1.0),
                Pace::Poisson { .. } => {
                    let gap = self.random.next_exponential();
                    self.step_due(gap)
                }
            };
            let lane = &mut self.lanes[self.turn];
            let stamp = Stamp {
                sequence: lane.sequence,
                intended_ns,
                producer: self.number,
                queue: lane.queue,
            };
            lane.template.append(out, stamp);
            lane.sequence += 1;
            self.used_bytes += lane.template.padded_length() as u64;
            self.turn += 1;
            if self.turn == self.lanes.len() {
                self.turn = 0;
            }
            header.count += 1;
            match self.waiting.back_mut() {
                Some(last) if last.intended_ns == intended_ns => {
                    last.last = self.sequence;
                    last.count += 1;
                }
                _ => self.waiting.push_back(Waiting {
                    last: self.sequence,
                    count: 1,
                    intended_ns,
                }),
            }
            self.sequence += 1;
            if let (Some(tally), false) = (&mut tally, matches!(pace, Pace::Window { .. })) {
                tally
                    .late
                    .saturating_record(now.saturating_sub(intended_ns));
            }
        }
        self.used_messages += u64::from(header.count);
        let body_bytes = out.len() - start - FRAME_HEADER_BYTES;
        header.body_bytes = u32::try_from(body_bytes).unwrap_or(u32::MAX);
        out[start..start + FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
        header.count
    }

    /// The time that is due, after which the next is `gaps` mean gaps later.
    fn step_due(&mut self, gaps: f64) -> u64 {
        let due = self.due_ns;
        self.due_ns += gaps * self.gap_ns;
        due as u64
    }
}
