//! The messages of a producer that are not settled: filled at one end, cut into frames in the
//! middle, settled at the other end. Does not know sockets, tasks or who waits.
//!
//! ```text
//!   settled        sent, unconfirmed      sealed, not sent          open
//! ----------|--------------------------|--------------------|------------------>
//!           first                      cursor                                next
//! ```
//!
//! A message is encoded once, into the open block, and stays where it was written until it is
//! settled: frames are cut around runs of messages when there is credit to send them, and cut anew
//! after a reconnect. Blocks hold messages without any frame header, so a run can be sent again
//! under another channel or other sequences.
//!
//! Sequences in here start at 0; what travels is that plus `wire_offset`, which the first opening
//! sets. A message keeps its number for ever: after a reconnect it is sent again under the same one,
//! which is how a broker knows that it has stored it already (P-32, P-38).

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::task::Waker;

use ringpost_wire::control::ProducerCredit;
use ringpost_wire::header::PUBLISH_MANDATORY;
use ringpost_wire::{
    Code, ENVELOPE_BYTES, FRAGMENT_BYTES_MAX, FRAME_HEADER_BYTES, FragmentHead, FrameHeader,
    FrameKind, MessageParts, checksum, envelope, padded,
};

use super::group::Group;
use crate::{Error, Level};

/// Bytes of messages that make a block: large enough to amortise a frame and a system call, small
/// enough to stay in a core's cache between encoding and sending.
const BLOCK_BYTES: usize = 64 * 1024;
/// An open block with fewer bytes is copied out when it is sealed, so that a trickle of small
/// writes never pins a block each.
const BLOCK_BYTES_SWAPPED_MIN: usize = BLOCK_BYTES / 4;
/// Blocks kept for reuse.
const SPARE_COUNT_MAX: usize = 4;

/// A run of messages that is not open any more.
#[derive(Debug)]
struct Block {
    /// The messages, padded; shared with a writer that is sending them.
    bytes: Arc<Vec<u8>>,
    /// Local sequence of the first message.
    first: u64,
    /// Messages.
    count: u32,
    /// Bytes at the start that are settled already.
    settled_bytes: usize,
    is_mandatory: bool,
    /// Outcomes, if somebody asks for them.
    group: Option<Arc<Group>>,
}

impl Block {
    fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// Whether it is one message that travels in pieces.
    fn is_fragmented(&self) -> bool {
        self.count == 1
            && envelope::length_of(&self.bytes).is_some_and(|length| length > FRAGMENT_BYTES_MAX)
    }
}

/// A piece of a frame, ready to be written: a head, then bytes of a block.
#[derive(Debug)]
pub(crate) struct Segment {
    head: [u8; FRAME_HEADER_BYTES + FragmentHead::BYTES],
    head_bytes: usize,
    block: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl Segment {
    pub(crate) fn head(&self) -> &[u8] {
        &self.head[..self.head_bytes]
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.block[self.range.clone()]
    }

    fn new(
        header: &FrameHeader,
        fragment: &[u8],
        block: &Arc<Vec<u8>>,
        range: Range<usize>,
    ) -> Self {
        let mut head = [0; FRAME_HEADER_BYTES + FragmentHead::BYTES];
        let head_bytes = FRAME_HEADER_BYTES + fragment.len();
        head[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
        head[FRAME_HEADER_BYTES..head_bytes].copy_from_slice(fragment);
        Self {
            head,
            head_bytes,
            block: Arc::clone(block),
            range,
        }
    }
}

/// Where sending has got to.
#[derive(Clone, Copy, Default, Debug)]
struct Cursor {
    block_idx: usize,
    /// Bytes of that block that were cut into frames.
    offset: usize,
    /// Local sequence of the next message to be cut; that of a fragmented one until its last piece.
    sequence: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Window {
    open: Vec<u8>,
    open_first: u64,
    open_count: u32,
    open_is_mandatory: bool,
    open_group: Option<Arc<Group>>,
    blocks: VecDeque<Block>,
    cursor: Cursor,
    /// Local sequence of the first message that no writer of any session was handed: unlike the
    /// cursor it never goes back, since a broker may know what is below it.
    sent_ever: u64,
    /// Local sequence of the first message that is not settled.
    first: u64,
    /// Padded bytes of unsettled messages, open ones included.
    bytes: u64,
    granted: ProducerCredit,
    used: ProducerCredit,
    /// What the first message has on the wire; `None` until the producer was opened.
    wire_offset: Option<u64>,
    spare: Vec<Vec<u8>>,
}

const NO_CREDIT: ProducerCredit = ProducerCredit {
    messages: 0,
    bytes: 0,
};

impl Window {
    pub(crate) fn new() -> Self {
        Self {
            open: Vec::new(),
            open_first: 0,
            open_count: 0,
            open_is_mandatory: false,
            open_group: None,
            blocks: VecDeque::new(),
            cursor: Cursor::default(),
            sent_ever: 0,
            first: 0,
            bytes: 0,
            granted: NO_CREDIT,
            used: NO_CREDIT,
            wire_offset: None,
            spare: Vec::new(),
        }
    }

    /// Padded bytes of unsettled messages.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Local sequence of the next message.
    pub(crate) fn next(&self) -> u64 {
        self.open_first + u64::from(self.open_count)
    }

    /// Local sequence of the first unsettled message.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// Local sequence of the first message that was not handed to a writer of this session in full.
    pub(crate) fn sent(&self) -> u64 {
        self.cursor.sequence
    }

    /// Local sequence of the first message that was not handed to a writer of any session in full.
    pub(crate) fn sent_ever(&self) -> u64 {
        self.sent_ever
    }

    /// Messages that are not settled.
    pub(crate) fn count(&self) -> u64 {
        self.next() - self.first
    }

    /// The sequence that travels for a local one.
    fn to_wire(&self, local: u64) -> u64 {
        local.wrapping_add(self.wire_offset.unwrap_or_default())
    }

    /// The local sequence of one that travelled; far above all others if it is below the first.
    fn to_local(&self, wire: u64) -> u64 {
        wire.wrapping_sub(self.wire_offset.unwrap_or_default())
    }

    /// Encodes one message; returns its local sequence.
    pub(crate) fn push(
        &mut self,
        parts: &MessageParts<'_>,
        is_mandatory: bool,
    ) -> Result<u64, Code> {
        let padded_bytes = parts.padded_length();
        let is_fragmented = parts.length() > FRAGMENT_BYTES_MAX;
        let is_over = self.open.len() + padded_bytes > BLOCK_BYTES;
        if self.open_count > 0 && (is_over || self.open_is_mandatory != is_mandatory) {
            self.seal();
        }
        if self.open.capacity() == 0 {
            // A message larger than a block sizes its own.
            if padded_bytes <= BLOCK_BYTES {
                self.open = self.spare.pop().unwrap_or_default();
                self.open.reserve_exact(BLOCK_BYTES);
            }
        }
        parts.write(&mut self.open)?;
        let sequence = self.next();
        self.open_is_mandatory = is_mandatory;
        self.open_count += 1;
        self.bytes += padded_bytes as u64;
        if is_fragmented {
            self.seal();
        }
        Ok(sequence)
    }

    /// The group that holds the outcome of the message pushed last.
    pub(crate) fn group_of_last(&mut self) -> &Arc<Group> {
        let slot = if self.open_count > 0 {
            &mut self.open_group
        } else {
            let block = self.blocks.back_mut();
            &mut block
                .expect("a message that is not in the open block was sealed")
                .group
        };
        slot.get_or_insert_default()
    }

    /// Closes the open block, if it holds anything.
    fn seal(&mut self) {
        if self.open_count == 0 {
            return;
        }
        let bytes = if self.open.len() < BLOCK_BYTES_SWAPPED_MIN {
            let copy = self.open.as_slice().to_vec();
            self.open.clear();
            copy
        } else {
            core::mem::take(&mut self.open)
        };
        self.blocks.push_back(Block {
            bytes: Arc::new(bytes),
            first: self.open_first,
            count: self.open_count,
            settled_bytes: 0,
            is_mandatory: self.open_is_mandatory,
            group: self.open_group.take(),
        });
        self.open_first += u64::from(self.open_count);
        self.open_count = 0;
    }

    /// Raises the credit; it never goes down.
    pub(crate) fn grant(&mut self, credit: ProducerCredit) {
        self.granted.messages = self.granted.messages.max(credit.messages);
        self.granted.bytes = self.granted.bytes.max(credit.bytes);
    }

    /// Cuts frames for `channel` out of what may be sent, until `budget` bytes are reached.
    /// Returns whether more could be sent now.
    pub(crate) fn cut(&mut self, channel: u16, budget: usize, out: &mut Vec<Segment>) -> bool {
        let mut cut_bytes = 0;
        loop {
            if self.cursor.block_idx == self.blocks.len() {
                self.seal();
            }
            let Some(block) = self.blocks.get(self.cursor.block_idx) else {
                return false;
            };
            if cut_bytes >= budget {
                return true;
            }
            let segment = if block.is_fragmented() {
                self.cut_fragment(channel)
            } else {
                self.cut_batch(channel)
            };
            let Some(segment) = segment else {
                return false;
            };
            cut_bytes += segment.head_bytes + segment.range.len();
            out.push(segment);
        }
    }

    /// One frame of whole messages: the rest of the block, or as much as there is credit for.
    fn cut_batch(&mut self, channel: u16) -> Option<Segment> {
        let block = &self.blocks[self.cursor.block_idx];
        let messages_left = self.granted.messages.saturating_sub(self.used.messages);
        let bytes_left = self.granted.bytes.saturating_sub(self.used.bytes);
        let count_all = block.end() - self.cursor.sequence;
        let bytes_all = block.bytes.len() - self.cursor.offset;
        let (count, bytes) = if count_all <= messages_left && bytes_all as u64 <= bytes_left {
            (count_all, bytes_all)
        } else {
            walk(
                &block.bytes[self.cursor.offset..],
                messages_left,
                bytes_left,
            )
        };
        if count == 0 {
            return None;
        }
        let range = self.cursor.offset..self.cursor.offset + bytes;
        let header = FrameHeader {
            flags: if block.is_mandatory {
                PUBLISH_MANDATORY
            } else {
                0
            },
            count: u32::try_from(count).expect("a block holds fewer than 2^32 messages"),
            body_bytes: u32::try_from(bytes).expect("a block is smaller than a frame"),
            ..FrameHeader::bare(
                FrameKind::Publish,
                channel,
                self.to_wire(self.cursor.sequence),
            )
        };
        let segment = Segment::new(&header, &[], &block.bytes, range);
        self.used.messages += count;
        self.used.bytes += bytes as u64;
        self.advance(bytes, count);
        Some(segment)
    }

    /// One piece of a large message, which needs credit for a message before its first piece and for
    /// the bytes of each (P-33).
    fn cut_fragment(&mut self, channel: u16) -> Option<Segment> {
        let block = &self.blocks[self.cursor.block_idx];
        let message_bytes = envelope::length_of(&block.bytes).expect("a message has an envelope");
        let head = FragmentHead {
            message_bytes: u32::try_from(message_bytes).expect("a length is 32 bits on the wire"),
            offset: u32::try_from(self.cursor.offset).expect("an offset is below the length"),
        };
        let piece_bytes = head.piece_bytes();
        // The block is padded and so is the frame: the padding of both is the same zeros.
        let range = self.cursor.offset..self.cursor.offset + padded(piece_bytes);
        let used = ProducerCredit {
            messages: self.used.messages + u64::from(head.offset == 0),
            bytes: self.used.bytes + range.len() as u64,
        };
        if used.messages > self.granted.messages || used.bytes > self.granted.bytes {
            return None;
        }
        let head_bytes = head.encode();
        let piece = &block.bytes[self.cursor.offset..self.cursor.offset + piece_bytes];
        let header = FrameHeader {
            flags: if block.is_mandatory {
                PUBLISH_MANDATORY
            } else {
                0
            },
            count: 1,
            body_bytes: u32::try_from(FragmentHead::BYTES + piece_bytes)
                .expect("a piece is smaller than a frame"),
            body_crc: checksum::crc32c_append(checksum::crc32c(&head_bytes), piece),
            ..FrameHeader::bare(
                FrameKind::PublishFragment,
                channel,
                self.to_wire(self.cursor.sequence),
            )
        };
        let segment = Segment::new(&header, &head_bytes, &block.bytes, range);
        let is_last = head.is_last();
        self.used = used;
        self.advance(padded(piece_bytes), u64::from(is_last));
        Some(segment)
    }

    fn advance(&mut self, bytes: usize, count: u64) {
        self.cursor.offset += bytes;
        self.cursor.sequence += count;
        self.sent_ever = self.sent_ever.max(self.cursor.sequence);
        if self.cursor.offset == self.blocks[self.cursor.block_idx].bytes.len() {
            self.cursor.block_idx += 1;
            self.cursor.offset = 0;
        }
    }

    /// Settles what a confirm of the wire sequence `through` passes.
    ///
    /// # Errors
    /// [`Code::UnexpectedFrame`] if that was never sent.
    pub(crate) fn confirm(
        &mut self,
        through: u64,
        level: Level,
        wakers: &mut Vec<Waker>,
    ) -> Result<u64, Code> {
        let upto = self.to_local(through).wrapping_add(1);
        if upto > self.cursor.sequence {
            // Far above: a number from before the first, which an old confirm may repeat.
            return if upto > u64::MAX / 2 {
                Ok(0)
            } else {
                Err(Code::UnexpectedFrame)
            };
        }
        Ok(self.settle(upto, level, wakers))
    }

    /// Settles every message below the local sequence `upto`; returns how many that were.
    pub(crate) fn settle(&mut self, upto: u64, level: Level, wakers: &mut Vec<Waker>) -> u64 {
        let before = self.first;
        while let Some(block) = self.blocks.front_mut() {
            if block.first >= upto {
                break;
            }
            let end = block.end();
            if let Some(group) = &block.group {
                group.settle(upto.min(end), level, wakers);
            }
            if upto < end {
                let rest = &block.bytes[block.settled_bytes..];
                let (_, bytes) = walk(rest, upto - self.first.max(block.first), u64::MAX);
                block.settled_bytes += bytes;
                self.bytes -= bytes as u64;
                break;
            }
            self.bytes -= (block.bytes.len() - block.settled_bytes) as u64;
            self.first = end;
            self.cursor.block_idx = self.cursor.block_idx.saturating_sub(1);
            if let Some(block) = self.blocks.pop_front() {
                self.recycle(block.bytes);
            }
        }
        self.first = self.first.max(upto);
        self.first - before
    }

    fn recycle(&mut self, bytes: Arc<Vec<u8>>) {
        // A writer that still sends it keeps it; then it is freed there.
        if self.spare.len() < SPARE_COUNT_MAX
            && bytes.capacity() >= BLOCK_BYTES
            && bytes.capacity() <= 2 * BLOCK_BYTES
            && let Ok(mut bytes) = Arc::try_unwrap(bytes)
        {
            bytes.clear();
            self.spare.push(bytes);
        }
    }

    /// Notes that `count` messages from the wire sequence `sequence` on failed; they are settled
    /// by the confirm that passes them. Returns how many of them were not settled yet.
    ///
    /// # Errors
    /// [`Code::UnexpectedFrame`] if they were never sent.
    pub(crate) fn refuse(&mut self, sequence: u64, count: u32, error: &Error) -> Result<u64, Code> {
        let start = self.to_local(sequence);
        let end = start.wrapping_add(u64::from(count));
        // A message in pieces may be refused before its last piece was sent.
        let is_half_sent = self.cursor.offset > 0
            && self
                .blocks
                .get(self.cursor.block_idx)
                .is_some_and(Block::is_fragmented);
        if start > end || end > self.cursor.sequence + u64::from(is_half_sent) {
            return Err(Code::UnexpectedFrame);
        }
        let range = start.max(self.first)..end;
        self.fail(&range, error);
        if end > self.cursor.sequence {
            // The pieces that were not sent are not needed (P-31).
            self.cursor = Cursor {
                block_idx: self.cursor.block_idx + 1,
                offset: 0,
                sequence: end,
            };
            self.sent_ever = self.sent_ever.max(end);
        }
        Ok(range.end.saturating_sub(range.start))
    }

    fn fail(&mut self, range: &Range<u64>, error: &Error) {
        let start = self
            .blocks
            .partition_point(|block| block.end() <= range.start);
        for block in self
            .blocks
            .range(start..)
            .take_while(|block| block.first < range.end)
        {
            let overlap = range.start.max(block.first)..range.end.min(block.end());
            if let Some(group) = &block.group {
                group.fail(overlap, error);
            }
        }
    }

    /// Fails and settles every message below the local sequence `upto`; returns how many.
    pub(crate) fn fail_below(&mut self, upto: u64, error: &Error, wakers: &mut Vec<Waker>) -> u64 {
        if upto > self.open_first {
            self.seal();
        }
        self.fail(&(self.first..upto), error);
        let count = self.settle(upto, Level::None, wakers);
        if upto > self.cursor.sequence {
            self.rewind();
        }
        count
    }

    /// Starts anew on a channel that was opened with `next` and `credit`. `is_resending` says
    /// whether messages that were sent and not settled are sent again; otherwise they fail as
    /// `error` says, and their number is returned.
    ///
    /// # Errors
    /// [`Code::ProducerFenced`] if the broker knows numbers that were never sent: somebody else uses
    /// the producer's id.
    pub(crate) fn reopen(
        &mut self,
        next: u64,
        credit: ProducerCredit,
        is_resending: bool,
        error: &Error,
        wakers: &mut Vec<Waker>,
    ) -> Result<u64, Code> {
        let sent = self.sent_ever;
        if self.wire_offset.is_none() {
            self.wire_offset = Some(next);
        }
        if (1..u64::MAX / 2).contains(&self.to_local(next).wrapping_sub(sent)) {
            return Err(Code::ProducerFenced);
        }
        let failed = if is_resending {
            0
        } else {
            self.fail_below(sent, error, wakers)
        };
        self.rewind();
        self.granted = credit;
        self.used = NO_CREDIT;
        Ok(failed)
    }

    /// Everything unsettled is to be sent again.
    fn rewind(&mut self) {
        self.cursor = Cursor {
            block_idx: 0,
            offset: self.blocks.front().map_or(0, |block| block.settled_bytes),
            sequence: self.first,
        };
    }
}

/// How many of the messages in `bytes` fit into `count_max` and `bytes_max`, and their bytes.
fn walk(bytes: &[u8], count_max: u64, bytes_max: u64) -> (u64, usize) {
    let (mut count, mut taken) = (0, 0);
    while count < count_max && taken < bytes.len() {
        let length = envelope::length_of(&bytes[taken..]).unwrap_or(ENVELOPE_BYTES);
        let next = taken + padded(length);
        if next as u64 > bytes_max {
            break;
        }
        taken = next;
        count += 1;
    }
    (count, taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use ringpost_wire::{Cut, Messages};

    fn message(payload: &[u8]) -> MessageParts<'_> {
        MessageParts {
            payload,
            ..MessageParts::default()
        }
    }

    const fn credit(messages: u64, bytes: u64) -> ProducerCredit {
        ProducerCredit { messages, bytes }
    }

    fn lost() -> Error {
        Error::new(ErrorKind::Indeterminate, "lost")
    }

    fn opened(next: u64, granted: ProducerCredit) -> Window {
        let mut window = Window::new();
        let outcome = window.reopen(next, granted, true, &lost(), &mut Vec::new());
        assert_eq!(outcome, Ok(0));
        window
    }

    /// The frames that can be sent now, as (first wire sequence, messages).
    fn frames(window: &mut Window) -> Vec<(u64, u32)> {
        let mut segments = Vec::new();
        assert!(!window.cut(7, usize::MAX, &mut segments));
        segments
            .iter()
            .map(|segment| {
                let bytes = [segment.head(), segment.body()].concat();
                let Cut::Complete { header, length } =
                    ringpost_wire::cut(&bytes, ringpost_wire::FRAME_BYTES_MAX)
                else {
                    panic!("not a frame")
                };
                assert_eq!((length, header.channel), (bytes.len(), 7));
                if header.kind == FrameKind::Publish {
                    let body = &bytes[32..32 + header.body_bytes as usize];
                    let messages: Result<Vec<_>, _> = Messages::new(body).collect();
                    assert_eq!(messages.map(|m| m.len()), Ok(header.count as usize));
                }
                (header.sequence, header.count)
            })
            .collect()
    }

    #[test]
    fn frames_never_exceed_either_credit() {
        // Each message takes 80 padded bytes.
        let mut window = opened(1, credit(2, 200));
        for _ in 0..6 {
            window
                .push(&message(b"0123456789"), false)
                .expect("within limits");
        }
        assert_eq!(frames(&mut window), [(1, 2)]);
        assert_eq!(frames(&mut window), []);
        window.grant(credit(6, 319));
        assert_eq!(frames(&mut window), [(3, 1)]);
        window.grant(credit(6, 320));
        assert_eq!(frames(&mut window), [(4, 1)]);
        window.grant(credit(5, 1));
        window.grant(credit(6, 10_000));
        assert_eq!(frames(&mut window), [(5, 2)]);
    }

    #[test]
    fn confirms_settle_within_and_across_blocks() {
        let mut window = opened(1, credit(100, 1 << 30));
        let mut wakers = Vec::new();
        for _ in 0..4 {
            window
                .push(&message(b"0123456789"), false)
                .expect("within limits");
        }
        assert_eq!(frames(&mut window), [(1, 4)]);
        for _ in 0..4 {
            window
                .push(&message(b"0123456789"), true)
                .expect("within limits");
        }
        assert_eq!(frames(&mut window), [(5, 4)]);
        assert_eq!(window.bytes(), 640);
        for (through, count, left) in [
            (1, 1, 560),
            (3, 2, 400),
            (3, 0, 400),
            (5, 2, 240),
            (8, 3, 0),
        ] {
            assert_eq!(
                window.confirm(through, Level::Durable, &mut wakers),
                Ok(count)
            );
            assert_eq!(window.bytes(), left);
        }
        assert_eq!(
            window.confirm(9, Level::Durable, &mut wakers),
            Err(Code::UnexpectedFrame)
        );
        assert_eq!(window.confirm(0, Level::Durable, &mut wakers), Ok(0));
    }

    #[test]
    fn a_large_message_is_cut_into_pieces_with_one_sequence() {
        let payload = vec![7; 2 * FRAGMENT_BYTES_MAX];
        let mut window = opened(5, credit(1, 1 << 30));
        window
            .push(&message(&payload), false)
            .expect("within limits");
        window.push(&message(b"x"), false).expect("within limits");
        assert_eq!(frames(&mut window), [(5, 1), (5, 1), (5, 1)]);
        window.grant(credit(2, 1 << 30));
        assert_eq!(frames(&mut window), [(6, 1)]);
        assert_eq!(window.confirm(6, Level::Durable, &mut Vec::new()), Ok(2));
        assert_eq!(window.bytes(), 0);
    }

    /// Six messages sent as 1..=6, the first two confirmed, two more not sent.
    fn half_way() -> Window {
        let mut window = opened(1, credit(6, 1 << 30));
        for _ in 0..8 {
            window
                .push(&message(b"0123456789"), false)
                .expect("within limits");
        }
        assert_eq!(frames(&mut window), [(1, 6)]);
        assert_eq!(window.confirm(2, Level::Durable, &mut Vec::new()), Ok(2));
        window
    }

    #[test]
    fn a_reopened_producer_goes_on_with_its_own_numbers() {
        let all = credit(100, 1 << 30);
        // Whatever the broker knows of what was sent, nothing is left out or numbered anew.
        for next in [0, 1, 3, 5, 7] {
            let mut window = half_way();
            let failed = window.reopen(next, all, true, &lost(), &mut Vec::new());
            assert_eq!(failed, Ok(0));
            assert_eq!(frames(&mut window), [(3, 6)], "the broker is at {next}");
            let mut window = half_way();
            let failed = window.reopen(next, all, false, &lost(), &mut Vec::new());
            assert_eq!(failed, Ok(4));
            assert_eq!(frames(&mut window), [(7, 2)], "the broker is at {next}");
        }
        for next in [8, 9, 1_000_000] {
            let mut window = half_way();
            let failed = window.reopen(next, all, true, &lost(), &mut Vec::new());
            assert_eq!(failed, Err(Code::ProducerFenced));
        }
    }

    #[test]
    fn what_was_sent_stays_sent_however_often_the_producer_is_reopened() {
        let mut window = half_way();
        // Connections that are lost before anything, and before everything was sent again.
        for messages in [0, 2] {
            let little = credit(messages, 1 << 30);
            let failed = window.reopen(7, little, true, &lost(), &mut Vec::new());
            assert_eq!(failed, Ok(0), "all of it was sent before");
            assert_eq!(window.sent_ever(), 6);
            frames(&mut window);
        }
        let all = credit(100, 1 << 30);
        let failed = window.reopen(7, all, true, &lost(), &mut Vec::new());
        assert_eq!(failed, Ok(0));
        assert_eq!(frames(&mut window), [(3, 6)]);
        assert_eq!(window.sent_ever(), 8);
    }

    #[test]
    fn a_large_message_needs_credit_for_a_piece_at_a_time() {
        let piece = FRAGMENT_BYTES_MAX as u64;
        let payload = vec![7; 2 * FRAGMENT_BYTES_MAX];
        let mut window = opened(1, credit(0, piece));
        window
            .push(&message(&payload), false)
            .expect("within limits");
        assert_eq!(frames(&mut window), []);
        window.grant(credit(1, piece));
        assert_eq!(frames(&mut window), [(1, 1)]);
        window.grant(credit(1, 2 * piece - 1));
        assert_eq!(frames(&mut window), []);
        window.grant(credit(1, 2 * piece + 64));
        assert_eq!(frames(&mut window), [(1, 1), (1, 1)]);
        // Half sent, it is refused: what is left of it is not sent.
        window
            .push(&message(&payload), false)
            .expect("within limits");
        window.push(&message(b"x"), false).expect("within limits");
        window.grant(credit(9, 3 * piece + 64));
        assert_eq!(frames(&mut window), [(2, 1)]);
        assert_eq!(window.refuse(2, 1, &lost()), Ok(1));
        window.grant(credit(9, 3 * piece + 64 + 80));
        assert_eq!(frames(&mut window), [(3, 1)]);
        assert_eq!(window.confirm(3, Level::Durable, &mut Vec::new()), Ok(3));
        assert_eq!(window.bytes(), 0);
    }

    #[test]
    fn failing_everything_leaves_a_window_that_works() {
        let mut window = half_way();
        let group = Arc::clone(window.group_of_last());
        let next = window.next();
        assert_eq!(window.fail_below(next, &lost(), &mut Vec::new()), 6);
        assert_eq!((window.bytes(), window.count()), (0, 0));
        assert!(group.has_settled(next - 1));
        window.push(&message(b"x"), false).expect("within limits");
        window.grant(credit(100, 1 << 30));
        assert_eq!(frames(&mut window), [(9, 1)]);
    }

    #[test]
    fn what_was_never_sent_cannot_be_refused() {
        let mut window = half_way();
        assert_eq!(window.refuse(3, 2, &lost()), Ok(2));
        assert_eq!(window.refuse(1, 3, &lost()), Ok(1));
        assert!(window.refuse(7, 2, &lost()).is_err());
        assert!(window.refuse(u64::MAX, 2, &lost()).is_err());
    }

    #[test]
    fn trickled_messages_do_not_pin_blocks() {
        let mut window = opened(1, credit(1_000, 1 << 30));
        for _ in 0..100 {
            window.push(&message(b"x"), false).expect("within limits");
            frames(&mut window);
        }
        let held: usize = window
            .blocks
            .iter()
            .map(|block| block.bytes.capacity())
            .sum();
        assert_eq!(held, 100 * 80);
    }
}
