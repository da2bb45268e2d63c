//! Readers and groups of streams, as connections and other cores see them: where readers go on, how far
//! groups have come, and requests about these. Does not know who is given which messages.

use ringpost_wire::control::{Body, ConsumerPosition, GroupDelete, GroupInfo, GroupReset, Named};
use ringpost_wire::control::{is_name, write_done};
use ringpost_wire::ids::{CoreId, QueueId};
use ringpost_wire::{Code, FrameHeader, FrameKind};

use crate::Effects;
use crate::data::flow::Flow;
use crate::data::queue::{ConsumerKey, Offer, Start};
use crate::ids::{Clock, ConnId};
use crate::mesh::{GroupAnswer, GroupAsk, Reply};
use crate::options::Options;

/// Who asked about the groups of a stream.
#[derive(Clone, Copy, Debug)]
pub enum GroupAsker {
    /// A connection of this core.
    Here {
        /// The connection.
        conn: ConnId,
        /// Its request.
        header: FrameHeader,
    },
    /// Another core.
    There {
        /// The core.
        core: CoreId,
        /// Number of its request.
        id: u32,
    },
}

/// What a frame asks about the groups of which stream; or what is wrong with it, for people.
///
/// # Errors
/// [`Code::BodyMalformed`].
pub fn group_ask(kind: FrameKind, body: &[u8]) -> Result<(&[u8], Result<GroupAsk, String>), Code> {
    match kind {
        FrameKind::GroupList => Ok((Named::decode(body)?.name, Ok(GroupAsk::List))),
        FrameKind::GroupReset => {
            let reset = GroupReset::decode(body)?;
            let start = start_of(reset.arguments);
            let ask = start.and_then(|start| {
                let name = group_name(reset.group)?;
                Ok(GroupAsk::Reset { name, start })
            });
            Ok((reset.queue, ask))
        }
        FrameKind::GroupDelete => {
            let delete = GroupDelete::decode(body)?;
            let name = group_name(delete.group);
            Ok((delete.queue, name.map(|name| GroupAsk::Delete { name })))
        }
        _ => Err(Code::UnexpectedFrame),
    }
}

fn start_of(arguments: &[u8]) -> Result<Start, String> {
    let mut options = Options::of(arguments)?;
    let start = Start::take(&mut options)?;
    options.done("a reset of a group")?;
    start.ok_or_else(|| "a group is reset to what x-stream-offset says".to_owned())
}

fn group_name(name: &[u8]) -> Result<Box<[u8]>, String> {
    if is_name(name) {
        Ok(name.into())
    } else {
        Err(
            "the group has no name: 1 to 255 bytes of UTF-8 without control characters, not \
             starting with amq."
                .to_owned(),
        )
    }
}

impl Flow {
    /// Tells readers of a stream where they go on.
    //= P-83
    pub(crate) fn say_positions(&mut self, queue: QueueId, effects: &mut Effects) {
        while let Some(state) = self.queues.get_mut(queue)
            && let Some((key, position)) = state.queue.take_position()
        {
            let Some(channel) = self.sinks.get(key.0).map(|sink| sink.channel) else {
                continue;
            };
            let body = ConsumerPosition {
                offset: position.offset.0,
                missed: position.missed,
            };
            let header = FrameHeader::bare(FrameKind::ConsumerPosition, channel, 0);
            self.tell(key.0, effects, |out| body.write(out, header));
        }
    }

    /// Exchanges what the reader `key` has asked for ahead with what stands in its stream's place for that,
    /// which is where reading looks; once more, and each has its own again.
    pub(crate) fn swap_ahead(&mut self, queue: QueueId, key: ConsumerKey) {
        let Some(state) = self.queues.get_mut(queue) else {
            return;
        };
        match self.sinks.get_mut(key.0) {
            Some(sink) => std::mem::swap(&mut state.ahead, &mut sink.ahead),
            None => {
                // It has ended meanwhile, and passes nothing any more.
                for (_, place) in state.ahead.windows.drain(..) {
                    self.journal.pass(place);
                }
            }
        }
    }

    /// A reader that ends has no need of what it asked for ahead.
    pub(crate) fn drop_ahead(&mut self, key: u64) {
        if let Some(sink) = self.sinks.get_mut(key) {
            for (_, place) in sink.ahead.windows.drain(..) {
                self.journal.pass(place);
            }
        }
    }

    /// What a reader needs next comes from disk: the others go on.
    pub(crate) fn reader_waits(&mut self, queue: QueueId, offer: &Offer) {
        let is_there = self.sinks.get(offer.key.0).is_some();
        if let Some(state) = self.queues.get_mut(queue)
            && is_there
            && !state.damaged
        {
            state.queue.wait_for_disk(offer);
        }
    }

    /// Puts a stream on the list of those with something to journal, if a group has moved.
    pub(crate) fn note_groups(&mut self, queue: QueueId) {
        if let Some(state) = self.queues.get_mut(queue)
            && !state.settling
            && state.queue.has_groups_to_record()
        {
            state.settling = true;
            self.settling.push(queue);
        }
    }

    /// Does something about the groups of a stream of this core.
    pub(crate) fn ask_groups(
        &mut self,
        queue: QueueId,
        ask: GroupAsk,
        asker: GroupAsker,
        effects: &mut Effects,
    ) {
        let clock = Clock {
            now: self.now,
            wall_us: self.wall_us,
        };
        let state = self.queues.get_mut(queue);
        let outcome = match state {
            None => Err((Code::QueueUnknown, "the queue was deleted meanwhile")),
            Some(state) if !state.queue.is_stream() => {
                Err((Code::SettingInvalid, "only a stream has groups"))
            }
            Some(state) if state.damaged => Err((
                Code::QueueDamaged,
                "the stream refuses service because of a damaged range; run `ringpost verify`",
            )),
            Some(_) if self.failed => Err((
                Code::JournalFailed,
                "the journal of this stream has failed; restart the broker",
            )),
            Some(state) => match ask {
                GroupAsk::List => Ok(GroupAnswer::List(state.queue.groups())),
                GroupAsk::Reset { name, start } => state
                    .queue
                    .reset_group(&name, start, clock)
                    .map(|_| GroupAnswer::Done(true))
                    .map_err(refusal),
                GroupAsk::Delete { name } => state
                    .queue
                    .remove_group(&name)
                    .map(GroupAnswer::Done)
                    .map_err(refusal),
            },
        };
        match outcome {
            Ok(GroupAnswer::Done(true)) => {
                // Whoever is told that it is done may rely on it.
                self.is_settling_urgent = true;
                self.group_asks.push((queue, asker, true));
                self.note_groups(queue);
            }
            outcome => self.answer_groups(asker, outcome, effects),
        }
    }

    /// What was asked for stands in the open block, if it found room: it waits for that.
    pub(crate) fn groups_are_appended(&mut self, effects: &mut Effects) {
        let mut asks = std::mem::take(&mut self.group_asks);
        for (queue, asker, is_changed) in asks.drain(..) {
            let state = self.queues.get(queue);
            if state.is_some_and(|state| state.queue.has_groups_to_record()) {
                self.group_asks.push((queue, asker, is_changed));
            } else if self.failed {
                self.answer_groups(asker, Err(FAILED), effects);
            } else {
                let block = self.journal.open_block().0;
                self.group_waits.push_back((block, asker, is_changed));
            }
        }
    }

    pub(crate) fn groups_are_durable(&mut self, durable: u64, effects: &mut Effects) {
        while let Some((block, queue, record)) = self.new_groups.front().copied()
            && block <= durable
        {
            self.new_groups.pop_front();
            if let Some(state) = self.queues.get_mut(queue) {
                state.queue.groups_kept(record);
                self.wake(queue);
            }
        }
        while let Some((block, asker, is_changed)) = self.group_waits.front().copied()
            && block <= durable
        {
            self.group_waits.pop_front();
            self.answer_groups(asker, Ok(GroupAnswer::Done(is_changed)), effects);
        }
    }

    /// The journal has failed: nobody knows what of that is on disk.
    pub(crate) fn fail_groups(&mut self, effects: &mut Effects) {
        let waits = std::mem::take(&mut self.group_waits);
        let asks = std::mem::take(&mut self.group_asks);
        let waits = waits.into_iter().map(|(_, asker, _)| asker);
        for asker in waits.chain(asks.into_iter().map(|(_, asker, _)| asker)) {
            self.answer_groups(asker, Err(FAILED), effects);
        }
    }

    /// Whether a connection waits for an answer about groups.
    pub(crate) fn is_asking_groups(&self, conn: ConnId) -> bool {
        let waits = self.group_waits.iter().map(|(_, asker, _)| asker);
        let mut askers = waits.chain(self.group_asks.iter().map(|(_, asker, _)| asker));
        askers.any(|asker| matches!(asker, GroupAsker::Here { conn: c, .. } if *c == conn))
    }

    fn answer_groups(
        &mut self,
        asker: GroupAsker,
        outcome: Result<GroupAnswer, (Code, &'static str)>,
        effects: &mut Effects,
    ) {
        match asker {
            GroupAsker::Here { conn, header } => self.say_groups(conn, header, outcome, effects),
            GroupAsker::There { core, id } => {
                self.reply(core, id, Reply::Groups(outcome), effects);
            }
        }
    }

    /// Answers a request about groups.
    pub(crate) fn say_groups(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        outcome: Result<GroupAnswer, (Code, &'static str)>,
        effects: &mut Effects,
    ) {
        match outcome {
            Err((code, reason)) => self.fail(conn, header, code, reason, effects),
            Ok(GroupAnswer::Done(is_changed)) => self.say(conn, effects, |out| {
                write_done(out, header.sequence, is_changed, 0);
            }),
            Ok(GroupAnswer::List(groups)) => self.say(conn, effects, |out| {
                for group in &groups {
                    let info = GroupInfo {
                        offset: group.offset,
                        lag: group.lag,
                        members: group.members,
                        reserved: 0,
                        name: &group.name,
                    };
                    let header = FrameHeader::bare(FrameKind::GroupInfo, 0, header.sequence);
                    info.write(out, header);
                }
                write_done(out, header.sequence, false, groups.len() as u32);
            }),
        }
    }
}

const FAILED: (Code, &str) = (
    Code::JournalFailed,
    "the journal of this stream has failed; restart the broker",
);

const fn refusal(code: Code) -> (Code, &'static str) {
    let reason = match code {
        Code::InUse => "the group has members: close them first",
        Code::LimitReached => "the stream has as many groups as it may have",
        _ => "the group cannot be changed",
    };
    (code, reason)
}
