//! What a client does to messages by their places: it browses, cancels and moves, and checks the answers.
//! Does not know consumers.

use ringpost_check::{Event, MessageId, QueueNo};
use ringpost_wire::control::{
    Body, MOVE_WITH_KEY, QueueBrowse, QueueBrowsed, QueueCancel, QueueMove, QueueOutcome,
};
use ringpost_wire::{
    BROWSE_MESSAGES_MAX, BrowsedMessages, BrowsedState, Code, FrameHeader, FrameKind,
};

use super::produce::tag_of;
use super::{Client, Request};
use crate::model::{GRAVES, Queue};
use crate::scene::Scene;
use crate::streams::STREAM;

/// What was asked, and of which queue.
#[derive(Clone, Debug)]
pub struct Asked {
    name: String,
    queue: QueueNo,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Browse {
        from: u64,
        most: u32,
        /// What was known to be gone when it was asked.
        sent: u64,
    },
    Cancel(MessageId),
    Move(Vec<MessageId>),
}

impl Client {
    /// Browses a queue.
    pub(super) fn browse(&mut self, scene: &mut Scene) {
        let steady: Vec<(String, QueueNo)> = scene.models[self.tenant]
            .queues
            .iter()
            .filter(|(_, queue)| queue.is_steady())
            .map(|(name, queue)| (name.clone(), queue.number))
            .collect();
        if steady.is_empty() {
            return;
        }
        let (name, queue) = self.random.pick(&steady).clone();
        let from = match self.random.coin() {
            true => 0,
            false => self.random.scale(1..=500),
        };
        let most = self.random.scale(1..=u64::from(BROWSE_MESSAGES_MAX)) as u32;
        let id = self.request(Request::Places(Asked {
            name: name.clone(),
            queue,
            what: What::Browse {
                from,
                most,
                sent: scene.now,
            },
        }));
        let body = QueueBrowse {
            from,
            messages_max: most,
            message_bytes_max: 0,
            states: 0,
            reserved: 0,
            queue: name.as_bytes(),
            filter: b"",
        };
        let head = FrameHeader::bare(FrameKind::QueueBrowse, 0, id);
        body.write(&mut self.out, head);
    }

    pub(super) fn on_places(
        &mut self,
        head: &FrameHeader,
        body: &[u8],
        scene: &mut Scene,
    ) -> Result<(), String> {
        let asked = match self.requests.remove(&head.sequence) {
            Some(Request::Places(asked)) => asked,
            None if self.is_guilty => return Ok(()),
            other => return Err(format!("{:?} answers {other:?}", head.kind)),
        };
        match (&asked.what, head.kind) {
            (What::Browse { from, most, sent }, FrameKind::QueueBrowsed) => {
                self.browsed(head, body, &asked, (*from, *most, *sent), scene)
            }
            (What::Cancel(message), FrameKind::QueueOutcome) => {
                let outcome = outcome_of(body, 1)?;
                if outcome.done == 1 {
                    scene.marks.hit("cancelled");
                    scene.places.cancelled(asked.queue, *message, scene.now);
                } else {
                    scene.marks.hit("too late to cancel");
                }
                Ok(())
            }
            (What::Move(messages), FrameKind::QueueOutcome) => {
                let outcome = outcome_of(body, messages.len() as u32)?;
                for message in messages {
                    if outcome.done == messages.len() as u32 {
                        scene.places.moved(asked.queue, *message);
                    } else if outcome.late > 0 {
                        // One of them was done with.
                        scene.places.stays(asked.queue, *message);
                    }
                }
                if outcome.done > 0 {
                    scene.marks.hit("moved");
                }
                Ok(())
            }
            (_, kind) => Err(format!("{kind:?} answers {:?}", asked.what)),
        }
    }

    fn browsed(
        &mut self,
        head: &FrameHeader,
        body: &[u8],
        asked: &Asked,
        (from, most, sent): (u64, u32, u64),
        scene: &mut Scene,
    ) -> Result<(), String> {
        let browsed = QueueBrowsed::decode(body).map_err(|c| format!("QueueBrowsed: {c}"))?;
        let mut below = from.saturating_sub(1);
        let mut seen = Vec::new();
        for message in BrowsedMessages::new(browsed.messages) {
            let message = message.map_err(|c| format!("a browsed message: {c}"))?;
            let place = message.head.place;
            if place <= below || place > browsed.newest {
                return Err(format!("place {place} is shown behind {below}"));
            }
            below = place;
            let tag = message.envelope.timestamp_us();
            let known = scene
                .message_of_tag(tag)
                .filter(|message| tag_of(*message) == tag)
                .ok_or_else(|| format!("shows a message that nobody made, tag {tag:x}"))?;
            seen.push((place, known, message.head.state));
        }
        if seen.len() != head.count as usize || head.count > most {
            return Err(format!("{} of {most} messages are shown", seen.len()));
        }
        if browsed.next != 0 && browsed.next <= below {
            return Err(format!("goes on at {} behind {below}", browsed.next));
        }
        scene.marks.hit("browsed");
        for (_, message, state) in &seen {
            scene.marks.hit(match state {
                BrowsedState::Ready => "browsed ready",
                BrowsedState::Delayed => "browsed delayed",
                BrowsedState::Unacked => "browsed unacked",
                BrowsedState::Dead => "browsed dead",
                BrowsedState::Grouped => "browsed grouped",
            });
            let since = scene.places.gone_since(asked.queue, *message);
            let is_wrong = since.is_some_and(|since| since < sent);
            if is_wrong && !scene.tolerates_losses() && asked.name != STREAM {
                return Err(format!("{message} is done with and shown"));
            }
        }
        self.act_on(asked, &seen, scene);
        Ok(())
    }

    /// Cancels or moves some of what was shown.
    fn act_on(
        &mut self,
        asked: &Asked,
        seen: &[(u64, MessageId, BrowsedState)],
        scene: &mut Scene,
    ) {
        let Asked { name, queue, .. } = asked;
        let model = &scene.models[self.tenant];
        let is_it = |found: &&Queue| found.is_steady() && found.number == *queue;
        let is_plain = *name != GRAVES && *name != STREAM;
        if self.drain.is_some() || !is_plain || model.queues.get(name).filter(is_it).is_none() {
            return;
        }
        let has_graves = model.queues.get(GRAVES).is_some_and(Queue::is_steady);
        let delayed = seen
            .iter()
            .find(|(.., state)| *state == BrowsedState::Delayed);
        if let Some((place, message, _)) = delayed
            && self.random.coin()
        {
            scene.event(Event::Died {
                queue: *queue,
                message: *message,
            });
            scene.groups.may_go(*queue, *place);
            let id = self.request(Request::Places(Asked {
                what: What::Cancel(*message),
                ..asked.clone()
            }));
            let body = QueueCancel {
                queue: name.as_bytes(),
                places: &place.to_le_bytes(),
            };
            body.write(
                &mut self.out,
                FrameHeader::bare(FrameKind::QueueCancel, 0, id),
            );
            return;
        }
        let is_ready =
            |state: BrowsedState| matches!(state, BrowsedState::Ready | BrowsedState::Grouped);
        let ready = seen.iter().filter(|(.., state)| is_ready(*state));
        let ready: Vec<(u64, MessageId)> = ready.map(|(place, one, _)| (*place, *one)).collect();
        if !has_graves || ready.is_empty() || self.random.below(3) > 0 {
            return;
        }
        let at = self.random.index(ready.len());
        let some = &ready[at..ready.len().min(at + 1 + self.random.below(3) as usize)];
        let mut places = Vec::new();
        for (place, message) in some {
            places.extend_from_slice(&place.to_le_bytes());
            scene.event(Event::Died {
                queue: *queue,
                message: *message,
            });
            scene.groups.may_go(*queue, *place);
            scene.places.moves(self.tenant, name, *queue, *message);
        }
        let id = self.request(Request::Places(Asked {
            what: What::Move(some.iter().map(|(_, message)| *message).collect()),
            ..asked.clone()
        }));
        let body = QueueMove {
            flags: MOVE_WITH_KEY,
            queue: name.as_bytes(),
            exchange: b"",
            routing_key: GRAVES.as_bytes(),
            places: &places,
        };
        body.write(
            &mut self.out,
            FrameHeader::bare(FrameKind::QueueMove, 0, id),
        );
    }

    pub(super) fn places_failed(
        &mut self,
        asked: &Asked,
        code: Code,
        scene: &Scene,
    ) -> Result<(), String> {
        match code {
            Code::QueueUnknown | Code::Overloaded | Code::ShuttingDown => Ok(()),
            Code::JournalFailed if scene.journal_failed => Ok(()),
            Code::QueueDamaged if scene.tolerates_losses() => Ok(()),
            _ => Err(format!("{asked:?} failed with {code}")),
        }
    }
}

fn outcome_of(body: &[u8], asked: u32) -> Result<QueueOutcome, String> {
    let outcome = QueueOutcome::decode(body).map_err(|c| format!("QueueOutcome: {c}"))?;
    let sum = outcome.done + outcome.late + outcome.busy + outcome.refused;
    match sum == asked {
        true => Ok(outcome),
        false => Err(format!("{outcome:?} is said of {asked}")),
    }
}
