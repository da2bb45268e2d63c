//! What a client does at the end: finds every queue that may exist, takes everything out of it with
//! confirmed acks, and asks the broker whether it is empty. Does not know why the world has ended.

use std::collections::BTreeMap;

use ringpost_check::{AckMode, Event};
use ringpost_wire::Code;
use ringpost_wire::control::{QUEUE_DAMAGED, QueueInfo};

use super::Client;
use crate::model::{Change, Condition, GRAVES, Standing};
use crate::plan::Mode;
use crate::scene::Scene;
use crate::streams::{self, Reader, STREAM};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// To be found, opened or deleted.
    Begin,
    /// A change of it is out.
    Asking,
    /// Its consumer is on this channel.
    Draining(u16),
    /// Its consumer is there and an inspect is out.
    Inspecting(u16),
    /// Empty, or not there.
    Done,
}

/// How far the draining of a tenant is.
#[derive(Default, Debug)]
pub struct Drain {
    queues: BTreeMap<String, Stage>,
    has_begun: bool,
}

impl Drain {
    /// Whether every queue is empty.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.has_begun && self.queues.values().all(|stage| *stage == Stage::Done)
    }

    /// The connection is gone: what was not done begins again.
    pub fn start_again(&mut self) {
        for stage in self.queues.values_mut() {
            if *stage != Stage::Done {
                *stage = Stage::Begin;
            }
        }
    }
}

/// The names by which what a queue holds is read.
fn readable(seed: u64, name: &str) -> Vec<String> {
    match name == STREAM {
        true => streams::names(seed),
        false => vec![name.to_owned()],
    }
}

impl Client {
    pub(super) fn act_drain(&mut self, scene: &mut Scene) {
        self.drain_errands(scene);
        self.drain_desks(scene);
        let queues = scene.models[self.tenant].queues.keys();
        let names: Vec<String> = queues.flat_map(|name| self.readable(name)).collect();
        let drain = self.drain.as_mut().expect("a drainer drains");
        drain.has_begun = true;
        drain
            .queues
            .retain(|name, stage| names.contains(name) || *stage != Stage::Begin);
        for name in &names {
            let stages = &mut drain.queues;
            stages.entry(name.clone()).or_insert(Stage::Begin);
        }
        for name in names {
            let drain = self.drain.as_mut().expect("a drainer drains");
            let stage = *drain.queues.entry(name.clone()).or_insert(Stage::Begin);
            let next = self.drain_queue(&name, stage, scene);
            let drain = self.drain.as_mut().expect("a drainer drains");
            drain.queues.insert(name, next);
        }
    }

    fn drain_queue(&mut self, name: &str, stage: Stage, scene: &mut Scene) -> Stage {
        match stage {
            Stage::Begin => {
                let queue = streams::base(name);
                let Some(queue) = scene.models[self.tenant].queues.get(queue) else {
                    return Stage::Done;
                };
                if queue.is_tangled {
                    if name == GRAVES {
                        // What dies from now on leaves no letter.
                        let queues = scene.models[self.tenant].queues.values();
                        let mortal = queues.filter(|queue| queue.settings.deaths.is_some());
                        let numbers: Vec<_> = mortal.map(|queue| queue.number).collect();
                        for queue in numbers {
                            scene.event(Event::Dropped { queue });
                        }
                    }
                    let stream = streams::base(name).into();
                    let delete = Change::DeleteQueue(stream, Condition::Always);
                    return if self.ask_change(delete, scene) {
                        Stage::Asking
                    } else {
                        stage
                    };
                }
                if queue.standing == Standing::Unsure {
                    let find = Change::FindQueue(streams::base(name).into());
                    return if self.ask_change(find, scene) {
                        Stage::Asking
                    } else {
                        stage
                    };
                }
                if streams::is_stream(name) && streams::retained(scene.plan.seed) > 0 {
                    let number = queue.number;
                    scene.event(Event::Dropped { queue: number });
                }
                let credit = self.random.scale(1..=200) as u32;
                let credit = credit.min(self.welcome.credit_messages_max);
                match self.open_consumer(name, credit, 0, AckMode::Acks, false, scene) {
                    Some(channel) => Stage::Draining(channel),
                    None => Stage::Begin,
                }
            }
            Stage::Draining(channel) => {
                if !self.has_consumer(channel) {
                    return Stage::Begin;
                }
                self.settle_all(channel, scene);
                if self.random.below(8) == 0 {
                    self.inspect(name);
                    return Stage::Inspecting(channel);
                }
                stage
            }
            Stage::Inspecting(channel) => {
                self.settle_all(channel, scene);
                stage
            }
            Stage::Asking | Stage::Done => stage,
        }
    }

    /// A queue said what it holds.
    pub(super) fn drained_info(&mut self, name: &str, info: &QueueInfo<'_>, scene: &mut Scene) {
        let Some(drain) = &mut self.drain else {
            return;
        };
        let mut others = drain.queues.iter().filter(|(name, _)| *name != GRAVES);
        let others_are_done = others.all(|(_, stage)| *stage == Stage::Done);
        let Some(stage) = drain.queues.get_mut(name) else {
            return;
        };
        if info.flags & QUEUE_DAMAGED != 0 {
            scene.damage_reported = true;
        }
        if let Stage::Inspecting(channel) = *stage {
            // The dead of all others go there.
            let is_early = name == GRAVES && !others_are_done;
            // Where the dead go may refuse service, and then they stay.
            let dies = scene.models[self.tenant].queues.get(name);
            let dies = dies.is_some_and(|queue| queue.settings.deaths.is_some());
            let is_stuck = dies && scene.damage_reported && scene.plan.mode == Mode::Detect;
            let is_left = info.unacked + info.dead > 0 && !is_stuck;
            let is_read = streams::is_stream(name)
                && scene.models[self.tenant]
                    .queues
                    .get(streams::base(name))
                    .is_some_and(|queue| {
                        let lane = (queue.number, Reader::lane_named(name));
                        scene.streams.undrained(lane) > info.published
                    });
            if is_read {
                scene.marks.hit("stream drained");
                *stage = Stage::Done;
                // There may be more lanes than channels.
                self.close_consumer(channel, scene);
                return;
            }
            *stage = if info.ready + info.delayed == 0 && !is_left && !is_early {
                scene.marks.hit("queue drained");
                Stage::Done
            } else {
                Stage::Draining(channel)
            };
        }
    }

    /// A change that a drain waited for ended.
    pub(super) fn drained_change(&mut self, change: &Change, scene: &mut Scene) {
        let Some(drain) = &mut self.drain else {
            return;
        };
        let (Change::DeleteQueue(name, _) | Change::FindQueue(name)) = change else {
            return;
        };
        let is_there = scene.models[self.tenant].queues.contains_key(name);
        let next = if is_there { Stage::Begin } else { Stage::Done };
        for name in readable(self.seed, name) {
            drain.queues.insert(name, next);
        }
    }

    fn readable(&self, name: &str) -> Vec<String> {
        readable(self.seed, name)
    }

    /// A consumer of a drain was refused: a damaged queue has said so.
    pub(super) fn drain_refused(&mut self, name: &str, code: Code, scene: &mut Scene) {
        let Some(drain) = &mut self.drain else {
            return;
        };
        if drain.queues.get(name) == Some(&Stage::Done) {
            return;
        }
        if code == Code::QueueDamaged && scene.plan.mode == Mode::Detect {
            scene.damage_reported = true;
            drain.queues.insert(name.into(), Stage::Done);
        } else {
            drain.queues.insert(name.into(), Stage::Begin);
        }
    }
}
