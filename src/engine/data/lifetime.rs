//! Queues that go by themselves: when nobody has used them for a while, with their last consumer, or
//! with the connection that they belong to. Says when one is to go; does not delete it, that is a
//! change of the topology.

use ringpost_wire::ids::QueueId;

use crate::data::flow::{Flow, QueueState};
use crate::ids::{Mono, Owner};

/// When a queue goes by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lifetime {
    /// When nobody has used it for so many ms; 0 = never.
    pub expires_ms: u32,
    /// With its last consumer.
    pub is_auto_delete: bool,
    /// With the connection that declared it.
    pub is_exclusive: bool,
}

/// Why a queue is to go.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Retirement {
    /// Nobody consumed from it for as long as it may be unused. Who declares it again keeps it.
    Unused,
    /// Its last consumer is gone.
    LastConsumer,
}

/// A queue that is to go.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Leave {
    /// Which.
    pub queue: QueueId,
    /// Why.
    pub why: Retirement,
    /// The how manieth time it is to go, from 1.
    pub attempt: u32,
}

/// What is kept of a queue that goes by itself.
#[derive(Debug)]
pub struct Mortal {
    lifetime: Lifetime,
    /// The connection that it belongs to.
    owner: Option<Owner>,
    /// When it has been unused for too long, if it is unused.
    unused_until: Option<Mono>,
    /// The meta core is asked to delete it, and why: for consumers it is gone already. They do not wait
    /// for the answer, which may wait for the place that such a wait would take (rulings 2).
    leaving: Option<Retirement>,
    /// How often it was: answers to those before the last one are late.
    attempts: u32,
}

impl Mortal {
    /// What is kept of a queue just declared; nothing if it never goes by itself.
    #[must_use]
    pub fn of(lifetime: Lifetime, owner: Option<Owner>) -> Option<Box<Self>> {
        let is_mortal = lifetime != Lifetime::default();
        is_mortal.then(|| {
            Box::new(Self {
                lifetime,
                owner,
                unused_until: None,
                leaving: None,
                attempts: 0,
            })
        })
    }

    /// Whether it is about to go.
    pub(crate) const fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// Whether a consumer of this connection may not be one of this queue.
    pub(crate) fn is_locked_for(&self, asks: Owner) -> bool {
        let is_own = self.owner.is_none_or(|owner| owner == asks);
        !is_own && !crate::mutant!(ExclusiveShared)
    }
}

impl QueueState {
    fn is_unused(&self) -> bool {
        self.queue.consumers().next().is_none()
    }
}

impl Flow {
    /// Whether a queue may be deleted without being asked for it: not one that somebody has to look
    /// after first, because it lost something or because its journal has failed.
    fn may_go(&self, state: &QueueState) -> bool {
        let is_stuck = state.damaged || (self.failed && state.durable);
        !is_stuck && !self.is_shutting_down()
    }

    /// A queue of this core is there, or nobody consumes from it any more: its span begins.
    pub(crate) fn begin_unused(&mut self, queue: QueueId) {
        let Some(state) = self.queues.get(queue) else {
            return;
        };
        let may_go = self.may_go(state) && state.is_unused();
        let Some(mortal) = &state.mortal else {
            return;
        };
        let expires_ms = mortal.lifetime.expires_ms;
        let is_due = may_go && expires_ms > 0 && mortal.leaving.is_none();
        self.end_unused(queue);
        if is_due {
            let until = self.now.plus_ms(u64::from(expires_ms));
            self.unused_until.insert((until, queue));
            let state = self.queues.get_mut(queue);
            let mortal = state.and_then(|state| state.mortal.as_mut());
            mortal.expect("it was just looked at").unused_until = Some(until);
        }
    }

    /// A queue of this core is used, or gone.
    pub(crate) fn end_unused(&mut self, queue: QueueId) {
        let state = self.queues.get_mut(queue);
        if let Some(mortal) = state.and_then(|state| state.mortal.as_mut())
            && let Some(until) = mortal.unused_until.take()
        {
            self.unused_until.remove(&(until, queue));
        }
    }

    /// The last consumer of a queue of this core is gone.
    //= P-76
    pub(crate) fn last_consumer_gone(&mut self, queue: QueueId) {
        let Some(state) = self.queues.get(queue) else {
            return;
        };
        let Some(mortal) = &state.mortal else {
            return;
        };
        if mortal.lifetime.is_auto_delete && self.may_go(state) && mortal.leaving.is_none() {
            self.retire(queue, Retirement::LastConsumer);
        } else {
            self.begin_unused(queue);
        }
    }

    /// Lets queues go that were unused for too long.
    pub(crate) fn retire_unused(&mut self) {
        while let Some((until, queue)) = self.unused_until.first().copied()
            && until <= self.now
        {
            self.unused_until.pop_first();
            let Some(state) = self.queues.get_mut(queue) else {
                continue;
            };
            if let Some(mortal) = &mut state.mortal {
                mortal.unused_until = None;
            }
            let state = self.queues.get(queue).expect("it was just looked at");
            if self.may_go(state) {
                self.retire(queue, Retirement::Unused);
            }
        }
    }

    fn retire(&mut self, queue: QueueId, why: Retirement) {
        self.end_unused(queue);
        let state = self.queues.get_mut(queue);
        if let Some(mortal) = state.and_then(|state| state.mortal.as_mut()) {
            mortal.leaving = Some(why);
            mortal.attempts += 1;
            let attempt = mortal.attempts;
            self.retiring.push(Leave {
                queue,
                why,
                attempt,
            });
        }
    }

    /// A queue of this core is declared again: it is not unused, unless it goes for another reason.
    /// Returns how often it was to go so far: none of that holds.
    pub(crate) fn keep(&mut self, queue: QueueId) -> u32 {
        let state = self.queues.get_mut(queue);
        let Some(mortal) = state.and_then(|state| state.mortal.as_mut()) else {
            return 0;
        };
        if mortal.leaving == Some(Retirement::Unused) {
            mortal.leaving = None;
        }
        let attempts = mortal.attempts;
        self.begin_unused(queue);
        attempts
    }

    /// A queue that was to go stays: it was declared again, or the topology cannot change now.
    pub(crate) fn revive(&mut self, leave: Leave) {
        let state = self.queues.get_mut(leave.queue);
        if let Some(mortal) = state.and_then(|state| state.mortal.as_mut())
            && mortal.attempts == leave.attempt
            && mortal.leaving.take().is_some()
        {
            self.begin_unused(leave.queue);
        }
    }

    /// A queue of this core goes at another time than it was declared to.
    pub(crate) fn set_lifetime(&mut self, queue: QueueId, lifetime: Lifetime) {
        let Some(state) = self.queues.get_mut(queue) else {
            return;
        };
        match &mut state.mortal {
            Some(mortal) if mortal.lifetime == lifetime => return,
            Some(mortal) => mortal.lifetime = lifetime,
            none => *none = Mortal::of(lifetime, None),
        }
        self.begin_unused(queue);
    }
}
