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
            match marks.iter_mut().find(|mark| mark.0 == taken.native) {
                Some(mark) => {
                    mark.1 = taken.tag;
                    mark.2 += 1;
                }
                None => marks.push((taken.native, taken.tag, 1)),
            }
        }
        if !marks.is_empty() {
            // What was settled before is not outstanding when this is stepped.
            self.flush_settling();
        }
        for (native, tag, count) in marks.drain(..) {
            self.settle(native, outcome, 0, tag);
            self.note_settled(native, count);
        }
        self.marks = marks;
    }

    /// Settles native tags; with `first` 0 all that are outstanding up to `last`.
    pub(super) fn settle(&mut self, native: u16, outcome: u8, first: u64, last: u64) {
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
            consumer.state = ConsumerState::Closing;
            self.close_native(native);
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
