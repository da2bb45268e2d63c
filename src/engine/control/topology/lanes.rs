//! Requests about a stream of several lanes: every lane's core is asked, and one answer said.
//! Does not know what lanes hold.

use std::collections::BTreeMap;

use ringpost_wire::ids::{CoreId, QueueId};
use ringpost_wire::{Code, FrameHeader};

use super::{Pending, Topology, purged, usage};
use crate::Effects;
use crate::control::catalog::{Catalog, Change};
use crate::data::flow::{Flow, Waiter};
use crate::ids::ConnId;
use crate::mesh::{ChangeRequest, QueueFigures, Reply, Request};

/// What is asked of all lanes of a stream.
#[derive(Debug)]
pub(super) enum Wish {
    /// What they hold.
    Inspect,
    /// Whether they may be deleted, for this request.
    Delete(ChangeRequest),
    /// That they are emptied.
    Purge,
}

/// A request about all lanes of a stream, and what was said so far.
#[derive(Debug)]
pub(super) struct Asked {
    pub conn: ConnId,
    header: FrameHeader,
    wish: Wish,
    /// Answers that are awaited.
    left: u32,
    figures: Vec<QueueFigures>,
    purged: Result<u64, Code>,
}

impl Topology {
    /// Asks the cores of all lanes of a stream.
    pub(super) fn ask_lanes(
        &mut self,
        flow: &mut Flow,
        (conn, header): (ConnId, FrameHeader),
        stream: QueueId,
        wish: Wish,
        effects: &mut Effects,
    ) {
        let mut asked = Asked {
            conn,
            header,
            wish,
            left: 0,
            figures: Vec::new(),
            purged: Ok(0),
        };
        let mut others: BTreeMap<CoreId, Vec<QueueId>> = BTreeMap::new();
        for lane in self.catalog.list_lanes(stream) {
            let owner = flow.router.core_of(lane.partition);
            match asked.wish {
                _ if owner != flow.config.core => others.entry(owner).or_default().push(lane.id),
                Wish::Purge => asked.add_purged(flow.purge(lane.id)),
                Wish::Inspect | Wish::Delete(_) => asked.figures.extend(flow.figures_of(lane.id)),
            }
        }
        let mut requests = Vec::new();
        for (core, queues) in others {
            match asked.wish {
                Wish::Purge => {
                    let each = queues.into_iter();
                    requests.extend(each.map(|queue| (core, Request::Purge { queue })));
                }
                Wish::Inspect | Wish::Delete(_) => {
                    requests.push((core, Request::Inspect { queues }));
                }
            }
        }
        if requests.is_empty() {
            self.lanes_answered(flow, asked, effects);
            return;
        }
        asked.left = u32::try_from(requests.len()).expect("there are few lanes");
        self.wait(Pending::Lanes(Box::new(asked)));
        for (core, request) in requests {
            flow.ask(core, request, Waiter::Control(self.number), effects);
        }
    }

    /// The core of some lanes has answered.
    pub(super) fn lane_answered(
        &mut self,
        flow: &mut Flow,
        number: u64,
        mut asked: Box<Asked>,
        reply: Reply,
        effects: &mut Effects,
    ) {
        match reply {
            Reply::Figures(figures) => asked.figures.extend(figures),
            Reply::Purged(outcome) => asked.add_purged(outcome),
            other => panic!("{other:?} does not answer {asked:?}"),
        }
        asked.left -= 1;
        if asked.left > 0 {
            self.pending.insert(number, Pending::Lanes(asked));
        } else {
            self.lanes_answered(flow, *asked, effects);
        }
    }

    /// The lanes of the streams that a change deletes, which nobody knows any more when it is applied.
    pub(super) fn lanes_that_go(&self, change: &Change) -> BTreeMap<QueueId, Vec<QueueId>> {
        let changes = match change {
            Change::Together(changes) => changes.as_slice(),
            one => std::slice::from_ref(one),
        };
        let streams = changes.iter().filter_map(|change| match change {
            Change::QueueDeleted { id, .. } if self.catalog.lanes_of(*id) > 0 => Some(*id),
            _ => None,
        });
        let lanes = |stream| {
            let lanes = self.catalog.list_lanes(stream);
            lanes.map(|lane| lane.id).collect()
        };
        streams.map(|stream| (stream, lanes(stream))).collect()
    }

    fn lanes_answered(&mut self, flow: &mut Flow, mut asked: Asked, effects: &mut Effects) {
        fold_lanes(&self.catalog, &mut asked.figures);
        let figures = asked.figures.first().copied();
        let Asked { conn, header, .. } = asked;
        match asked.wish {
            Wish::Inspect => self.inspected(flow, conn, header, figures.as_ref(), effects),
            Wish::Delete(request) => {
                let usage = usage(figures);
                let request = ChangeRequest { usage, ..request };
                self.change(flow, conn, header, request, effects);
            }
            Wish::Purge => purged(flow, conn, header, asked.purged, effects),
        }
    }
}

impl Asked {
    /// Those that refuse say so, whatever others did.
    fn add_purged(&mut self, outcome: Result<u64, Code>) {
        self.purged = match (self.purged, outcome) {
            (Ok(before), Ok(more)) => Ok(before + more),
            (Err(code), _) | (Ok(_), Err(code)) => Err(code),
        };
    }
}

/// What a stream holds, instead of what its lanes do.
pub(super) fn fold_lanes(catalog: &Catalog, figures: &mut Vec<QueueFigures>) {
    let mut sums: BTreeMap<QueueId, QueueFigures> = BTreeMap::new();
    figures.retain(|lane| {
        let Some(stream) = catalog.lane(lane.queue).map(|lane| lane.stream) else {
            return true;
        };
        let sum = sums.entry(stream).or_insert(QueueFigures {
            queue: stream,
            is_stream: true,
            ..QueueFigures::default()
        });
        sum.ready += lane.ready;
        sum.bytes += lane.bytes;
        sum.published += lane.published;
        sum.settled += lane.settled;
        sum.consumers += lane.consumers;
        sum.damaged |= lane.damaged;
        sum.recent.span_ms = sum.recent.span_ms.max(lane.recent.span_ms);
        sum.recent.arrived += lane.recent.arrived;
        sum.recent.left += lane.recent.left;
        false
    });
    figures.extend(sums.into_values());
}
