//! Acks, nacks and rejects, gathered into ranges of native tags. Does not know queues.

use ringpost_amqp::{Method, ReplyCode};
use ringpost_wire::header::{SETTLE_ACK, SETTLE_CONFIRM, SETTLE_REJECT, SETTLE_REQUEUE};
use ringpost_wire::{FrameHeader, FrameKind, SETTLE_RANGES_MAX, SettleRange, frame};

use super::channel::GONE;
use super::fault::Fault;
use super::session::{ConsumerState, Session, Talk};

/// Tags of a native consumer with the same outcome.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settling {
    native: u16,
    outcome: u8,
    first: u64,
    last: u64,
}

/// What is settled of a native consumer by one method.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    native: u16,
    /// The last tag, and the one before it.
    last: u64,
    before: u64,
    count: u64,
}

impl Session {
    /// A method that settles deliveries.
    pub(super) fn settle_method(
        &mut self,
        number: u16,
        method: &Method<'_>,
        talk: &mut Talk<'_>,
    ) -> Result<(), Fault> {
        let of = method.number();
        let back = |requeue| match requeue {
            true => SETTLE_REQUEUE,
            false => SETTLE_REJECT,
        };
        match *method {
            Method::BasicAck {
                delivery_tag,
                multiple,
            } => self.settle_up(number, delivery_tag, multiple, SETTLE_ACK, of),
            Method::BasicNack {
                delivery_tag,
                multiple,
                requeue,
            } => self.settle_up(number, delivery_tag, multiple, back(requeue), of),
            Method::BasicReject {
                delivery_tag,
                requeue,
            } => self.settle_up(number, delivery_tag, false, back(requeue), of),
            Method::BasicRecover { requeue } | Method::BasicRecoverAsync { requeue } => {
                if !requeue {
                    return Err(Fault::new(ReplyCode::NotImplemented, "requeue=false", of));
                }
                self.settle_upto(number, u64::MAX, SETTLE_REQUEUE);
                if matches!(method, Method::BasicRecover { .. }) {
                    self.tell(number, &Method::BasicRecoverOk {}, talk);
                }
                Ok(())
            }
            _ => unreachable!("it was asked for"),
        }
    }

    fn settle_up(
        &mut self,
        number: u16,
        delivery: u64,
        multiple: bool,
        outcome: u8,
        of: (u16, u16),
    ) -> Result<(), Fault> {
        let channel = self.channels.get_mut(&number).expect("it is open");
        if multiple && delivery == 0 {
            self.settle_upto(number, u64::MAX, outcome);
            return Ok(());
        }
        let Some(idx) = channel.find(delivery) else {
            let why = format!("unknown delivery tag {delivery}");
            return Err(Fault::new(ReplyCode::PreconditionFailed, &why, of));
        };
        if multiple {
            self.settle_upto(number, delivery, outcome);
            return Ok(());
        }
        let taken = channel.take(idx);
        if taken.native != GONE {
            self.settle(taken.native, outcome, taken.tag, taken.tag);
            self.note_settled(taken.native, 1);
        }
        Ok(())
    }

    /// Settles everything on a channel up to a delivery: of each consumer all that is outstanding up to
    /// its last one among them.
    fn settle_upto(&mut self, number: u16, upto: u64, outcome: u8) {
        let mut marks = std::mem::take(&mut self.marks);
        marks.clear();
        let channel = self.channels.get_mut(&number).expect("it is open");
        while let Some(taken) = channel.take_first(upto) {
            if taken.native == GONE {
                continue;
            }
            match marks.iter_mut().find(|mark| mark.native == taken.native) {
                Some(mark) => {
                    mark.before = mark.last;
                    mark.last = taken.tag;
                    mark.count += 1;
                }
                None => marks.push(Mark {
                    native: taken.native,
                    last: taken.tag,
                    before: 0,
                    count: 1,
                }),
            }
        }
        if !marks.is_empty() {
            // What was settled before is not outstanding when this is stepped.
            self.flush_settling();
        }
        for mark in marks.drain(..) {
            let Mark { native, count, .. } = mark;
            let mut upto = mark.last;
            if self.waits_for_end(native, upto) {
                self.settle(native, outcome, upto, upto);
                upto = mark.before;
            }
            if upto != 0 {
                self.settle(native, outcome, 0, upto);
            }
            self.note_settled(native, count);
        }
        self.marks = marks;
    }

    /// Whether a delivery is a large message that is not here to its end.
    fn waits_for_end(&mut self, native: u16, tag: u64) -> bool {
        let consumer = self.consumer_of(native);
        consumer.is_some_and(|consumer| consumer.large == tag)
    }

    /// A large message is here to its end: what waited for that is done.
    pub(super) fn large_is_whole(&mut self, native: u16) {
        let Some(consumer) = self.consumer_of(native) else {
            return;
        };
        let tag = std::mem::take(&mut consumer.large);
        let closes = std::mem::take(&mut consumer.closes_late);
        if let Some(outcome) = consumer.late.take() {
            self.settle(native, outcome, tag, tag);
        }
        if closes {
            self.close_native(native);
        }
    }

    /// Settles native tags; with `first` 0 all that are outstanding up to `last`. A large message that
    /// is not here to its end is settled by itself, and when it is.
    pub(super) fn settle(&mut self, native: u16, outcome: u8, first: u64, last: u64) {
        if self.waits_for_end(native, last)
            && let Some(consumer) = self.consumer_of(native)
        {
            debug_assert_eq!(first, last);
            consumer.late = Some(outcome);
            return;
        }
        if let Some(before) = self.settling.last_mut()
            && before.native == native
            && before.outcome == outcome
            && first != 0
            && before.last + 1 == first
        {
            before.last = last;
            return;
        }
        self.settling.push(Settling {
            native,
            outcome,
            first,
            last,
        });
    }

    /// So many deliveries of a consumer were settled: one that was cancelled may be done with.
    fn note_settled(&mut self, native: u16, count: u64) {
        let Some(consumer) = self.consumer_of(native) else {
            return;
        };
        consumer.outstanding -= count;
        if consumer.state == ConsumerState::Cancelled && consumer.outstanding == 0 {
            self.close_consumer(native);
        }
    }

    /// Writes what was gathered as native frames.
    pub(super) fn flush_settling(&mut self) {
        if self.settling.is_empty() {
            return;
        }
        // Publishes that came before go before.
        self.flush_batch();
        let settling = std::mem::take(&mut self.settling);
        let mut rest = settling.as_slice();
        while let Some(first) = rest.first() {
            let is_like =
                |one: &Settling| one.native == first.native && one.outcome == first.outcome;
            let count = rest
                .iter()
                .take(SETTLE_RANGES_MAX)
                .take_while(|one| is_like(one))
                .count();
            let (these, others) = rest.split_at(count);
            self.scratch.clear();
            for one in these {
                let range = SettleRange {
                    first: one.first,
                    last: one.last,
                };
                self.scratch.extend_from_slice(&range.encode());
            }
            // Who looks for what was given back waits for the answer.
            let (asks, sequence) = match first.outcome {
                SETTLE_REQUEUE => (SETTLE_CONFIRM, self.next_sequence()),
                _ => (0, 0),
            };
            if asks != 0
                && let Some(consumer) = self.consumer_of(first.native)
            {
                consumer.returning += 1;
            }
            let header = FrameHeader {
                flags: first.outcome | asks,
                count: count as u32,
                ..FrameHeader::bare(FrameKind::Settle, first.native, sequence)
            };
            frame::write(&mut self.native, header, &self.scratch);
            rest = others;
        }
        self.settling = settling;
        self.settling.clear();
    }
}
