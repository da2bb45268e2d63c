//! What waits to be written besides messages: control frames, and settlements that are still being
//! gathered into one frame. Does not know who writes it.

use ringpost_wire::header::{SETTLE_ACK, SETTLE_CONFIRM};
use ringpost_wire::{FrameHeader, FrameKind, SETTLE_RANGES_MAX, SettleRange, frame};

/// Frames in the order in which they must be written.
#[derive(Default, Debug)]
pub(crate) struct Out {
    bytes: Vec<u8>,
    tail: Option<Tail>,
    /// Memory of a tail that was written, for the next one.
    ranges: Vec<SettleRange>,
}

/// Settlements that will be one frame, unless something else is written first.
#[derive(Debug)]
struct Tail {
    channel: u16,
    outcome: u8,
    ranges: Vec<SettleRange>,
}

impl Out {
    /// Bytes waiting.
    pub(crate) fn len(&self) -> usize {
        let ranges = self.tail.as_ref().map_or(0, |tail| tail.ranges.len());
        self.bytes.len() + ranges * SettleRange::BYTES
    }

    /// Where to append frames.
    pub(crate) fn frames(&mut self) -> &mut Vec<u8> {
        self.end_tail();
        &mut self.bytes
    }

    /// Adds a settlement to those before it.
    pub(crate) fn settle(&mut self, channel: u16, outcome: u8, range: SettleRange) {
        if let Some(tail) = &mut self.tail
            && tail.channel == channel
            && tail.outcome == outcome
        {
            if let Some(last) = tail.ranges.last_mut()
                && range.first == last.last + 1
                && range.first > 1
            {
                last.last = range.last;
                return;
            }
            if tail.ranges.len() < SETTLE_RANGES_MAX {
                tail.ranges.push(range);
                return;
            }
        }
        self.end_tail();
        let mut ranges = std::mem::take(&mut self.ranges);
        ranges.push(range);
        self.tail = Some(Tail {
            channel,
            outcome,
            ranges,
        });
    }

    /// Ends the settlements gathered so far and asks for a `Settled` with `request`, after
    /// everything that was settled on `channel` before.
    pub(crate) fn settle_confirmed(
        &mut self,
        channel: u16,
        outcome: u8,
        ranges: &[SettleRange],
        request: u64,
    ) {
        self.end_tail();
        write_settle(
            &mut self.bytes,
            channel,
            outcome | SETTLE_CONFIRM,
            ranges,
            request,
        );
    }

    fn end_tail(&mut self) {
        if let Some(mut tail) = self.tail.take() {
            write_settle(&mut self.bytes, tail.channel, tail.outcome, &tail.ranges, 0);
            tail.ranges.clear();
            self.ranges = tail.ranges;
        }
    }

    /// Moves everything to `taken`, which must be empty and whose memory is used next.
    pub(crate) fn take(&mut self, taken: &mut Vec<u8>) {
        debug_assert!(taken.is_empty());
        self.end_tail();
        std::mem::swap(&mut self.bytes, taken);
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.tail = None;
    }
}

fn write_settle(out: &mut Vec<u8>, channel: u16, flags: u8, ranges: &[SettleRange], request: u64) {
    const { assert!(SETTLE_ACK == 0) };
    let mut body = Vec::with_capacity(ranges.len() * SettleRange::BYTES);
    for range in ranges {
        body.extend_from_slice(&range.encode());
    }
    let header = FrameHeader {
        flags,
        count: u32::try_from(ranges.len()).expect("bounded by SETTLE_RANGES_MAX"),
        ..FrameHeader::bare(FrameKind::Settle, channel, request)
    };
    frame::write(out, header, &body);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringpost_wire::header::SETTLE_REQUEUE;
    use ringpost_wire::{Cut, cut};

    const fn range(first: u64, last: u64) -> SettleRange {
        SettleRange { first, last }
    }

    fn frames(out: &mut Out) -> Vec<(u16, u8, Vec<SettleRange>)> {
        let mut bytes = Vec::new();
        out.take(&mut bytes);
        let mut rest = &bytes[..];
        let mut frames = Vec::new();
        while let Cut::Complete { header, length } = cut(rest, usize::MAX) {
            let body = &rest[32..32 + header.body_bytes as usize];
            let ranges = SettleRange::parse(body, header.count)
                .expect("ranges")
                .collect();
            frames.push((header.channel, header.flags, ranges));
            rest = &rest[length..];
        }
        assert!(rest.is_empty());
        frames
    }

    #[test]
    fn settlements_are_gathered_until_something_differs() {
        let mut out = Out::default();
        out.settle(1, SETTLE_ACK, range(1, 1));
        out.settle(1, SETTLE_ACK, range(2, 5));
        out.settle(1, SETTLE_ACK, range(7, 7));
        out.settle(1, SETTLE_REQUEUE, range(6, 6));
        out.settle(2, SETTLE_REQUEUE, range(7, 7));
        out.settle_confirmed(2, SETTLE_ACK, &[range(0, 9)], 3);
        assert_eq!(
            frames(&mut out),
            [
                (1, SETTLE_ACK, vec![range(1, 5), range(7, 7)]),
                (1, SETTLE_REQUEUE, vec![range(6, 6)]),
                (2, SETTLE_REQUEUE, vec![range(7, 7)]),
                (2, SETTLE_ACK | SETTLE_CONFIRM, vec![range(0, 9)]),
            ]
        );
        assert!(frames(&mut out).is_empty());
    }

    #[test]
    fn a_frame_holds_no_more_ranges_than_allowed() {
        let mut out = Out::default();
        for n in 0..=SETTLE_RANGES_MAX as u64 {
            out.settle(1, SETTLE_ACK, range(2 * n + 1, 2 * n + 1));
        }
        let counts: Vec<_> = frames(&mut out).iter().map(|frame| frame.2.len()).collect();
        assert_eq!(counts, [SETTLE_RANGES_MAX, 1]);
    }
}
