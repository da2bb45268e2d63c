//! One producer of a load thread: its credit, and the batches it writes. Does not know sockets.

use std::collections::VecDeque;

use ringpost_wire::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};

use crate::message::Template;
use crate::source::Source;
use crate::tally::Tally;

/// A channel that publishes to its queues in turn.
pub(super) struct Producer {
    pub(super) source: Source,
    pub(super) conn: usize,
    pub(super) channel: u16,
    /// A message for each of its groups, without its stamp.
    pub(super) templates: Vec<Template>,
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
}

/// Publishes of the same intended time that wait for their confirm.
pub(super) struct Waiting {
    pub(super) last: u64,
    pub(super) count: u32,
    pub(super) intended_ns: u64,
    pub(super) sent_ns: u64,
}

impl Producer {
    /// Appends to `out` one `Publish` of up to `count` messages: all of them in a closed loop, those
    /// that are due in an open one. Returns how many.
    pub(super) fn write_batch(
        &mut self,
        out: &mut Vec<u8>,
        count: u32,
        now: u64,
        mut tally: Option<&mut Tally>,
    ) -> u32 {
        let start = out.len();
        out.resize(start + FRAME_HEADER_BYTES, 0);
        let mut header = FrameHeader::bare(FrameKind::Publish, self.channel, self.sequence);
        while header.count < count {
            let Some(next) = self.source.next(now, tally.as_deref_mut()) else {
                break;
            };
            let (template, stamp) = (&self.templates[next.lane], next.stamp);
            self.used_bytes += match next.payload_bytes {
                None => {
                    template.append(out, stamp);
                    template.padded_length() as u64
                }
                Some(bytes) => template.append_short(out, stamp, bytes) as u64,
            };
            let intended_ns = stamp.intended_ns;
            header.count += 1;
            match self.waiting.back_mut() {
                Some(last) if last.intended_ns == intended_ns && last.sent_ns == now => {
                    last.last = self.sequence;
                    last.count += 1;
                }
                _ => self.waiting.push_back(Waiting {
                    last: self.sequence,
                    count: 1,
                    intended_ns,
                    sent_ns: now,
                }),
            }
            self.sequence += 1;
        }
        self.used_messages += u64::from(header.count);
        let body_bytes = out.len() - start - FRAME_HEADER_BYTES;
        header.body_bytes = u32::try_from(body_bytes).unwrap_or(u32::MAX);
        out[start..start + FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
        header.count
    }
}
