//! Streams of several lanes: an entry of the catalog that holds no messages, and the streams that it
//! owns, which follow from it (ADR 25). Does not know messages, readers or who is a member of what.
//!
//! ```text
//! id     name       partition        holds
//! e      NAME       p                nothing: it is declared, bound, listed and deleted
//! e + 1  NAME#0     p                messages
//! e + 2  NAME#1     p + 1            messages
//! ```

use ringpost_wire::Code;
use ringpost_wire::ids::{PartitionId, QueueId, TenantId};
use ringpost_wire::limits::NAME_BYTES_MAX;
use ringpost_wire::table::Table;

use super::plan::Refusal;
use super::{ApplyError, Catalog, NAME_COPIES, Queue, Tenant, require};
use crate::control::words::quoted;
use crate::data::queue::LANES_MAX;

/// A lane of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lane {
    /// The stream.
    pub stream: QueueId,
    /// Its number, from 0.
    pub number: u8,
}

impl Queue {
    /// How many lanes it owns: none if it is one by itself.
    #[must_use]
    pub fn lanes(&self) -> u8 {
        // Most queues have no arguments.
        if self.arguments.is_empty() {
            return 0;
        }
        let arguments = Table::parse(&self.arguments).unwrap_or_default();
        let is_stream = arguments
            .get(b"x-queue-type")
            .and_then(|kind| kind.as_text())
            == Some(b"stream");
        let lanes = arguments
            .get(b"x-stream-lanes")
            .and_then(|lanes| lanes.as_integer());
        match lanes {
            Some(lanes @ 2..) if is_stream => lanes.min(i64::from(LANES_MAX)) as u8,
            _ => 0,
        }
    }

    /// Memory that its lanes take, at most.
    pub(super) fn lanes_bytes(&self) -> u64 {
        let digits = u64::from(LANES_MAX).to_string().len() as u64;
        let each = self.bytes() + NAME_COPIES * (1 + digits);
        u64::from(self.lanes()) * each
    }

    /// The lanes that it owns, in order. `partitions` is how many there are.
    pub fn own_lanes(&self, partitions: u16) -> impl Iterator<Item = Self> {
        (0..self.lanes()).map(move |number| self.lane(number, partitions))
    }

    /// The lane of this number. `partitions` is how many there are.
    fn lane(&self, number: u8, partitions: u16) -> Self {
        Self {
            id: QueueId(self.id.0 + 1 + u32::from(number)),
            name: lane_name(&self.name, number),
            partition: PartitionId((self.partition.0 + u16::from(number)) % partitions),
            ..self.clone()
        }
    }
}

fn lane_name(stream: &[u8], number: u8) -> Box<[u8]> {
    let mut name = stream.to_vec();
    name.extend_from_slice(format!("#{number}").as_bytes());
    name.into()
}

impl Catalog {
    /// How many lanes a stream has; 0 if that is none of several.
    #[must_use]
    pub fn lanes_of(&self, stream: QueueId) -> u8 {
        self.lanes.get(&stream).copied().unwrap_or(0)
    }

    /// The lanes of a stream of several, in order.
    pub fn list_lanes(&self, stream: QueueId) -> impl Iterator<Item = &Queue> {
        let numbers = 0..u32::from(self.lanes_of(stream));
        numbers.filter_map(move |number| self.queue(QueueId(stream.0 + 1 + number)))
    }

    /// As [`Self::list_queues`], without lanes, which are parts of their streams.
    pub fn list_whole_queues(
        &self,
        tenant: TenantId,
        after: Option<&[u8]>,
    ) -> impl Iterator<Item = &Queue> {
        let all = self.list_queues(tenant, after);
        all.filter(|queue| self.lane(queue.id).is_none())
    }

    /// Which lane of which stream a queue is, if it is one.
    #[must_use]
    pub fn lane(&self, queue: QueueId) -> Option<Lane> {
        let (stream, lanes) = self.lanes.range(..queue).next_back()?;
        let number = queue.0 - stream.0 - 1;
        (number < u32::from(*lanes)).then_some(Lane {
            stream: *stream,
            number: number as u8,
        })
    }

    /// What policies and people call it: a lane by the name of its stream.
    #[must_use]
    pub fn common_name<'a>(&'a self, queue: &'a Queue) -> &'a [u8] {
        let lane = self.lane(queue.id);
        let stream = lane.and_then(|lane| self.queue(lane.stream));
        stream.map_or(&queue.name, |stream| &stream.name)
    }

    /// Whether the lanes of a stream that is to be created find room.
    pub(super) fn check_lanes(&self, tenant: &Tenant, stream: &Queue) -> Result<(), ApplyError> {
        for number in 0..stream.lanes() {
            let name = lane_name(&stream.name, number);
            let named = tenant.queues.contains_key(&name);
            require(!named, ApplyError::NameTaken)?;
            require(name.len() <= NAME_BYTES_MAX, ApplyError::Inconsistent)?;
        }
        Ok(())
    }

    /// As [`Self::check_lanes`], for people.
    pub(super) fn plan_lanes(
        &self,
        tenant: &Tenant,
        stream: &[u8],
        lanes: u8,
    ) -> Result<(), Refusal> {
        let longest = lane_name(stream, lanes.saturating_sub(1));
        if lanes > 0 && longest.len() > NAME_BYTES_MAX {
            let reason = format!(
                "the name of lane {} has {} bytes, at most {NAME_BYTES_MAX} are allowed",
                quoted(&longest),
                longest.len()
            );
            return Err((Code::NameInvalid, reason));
        }
        let taken = (0..lanes)
            .map(|number| lane_name(stream, number))
            .find(|name| tenant.queues.contains_key(name));
        match taken {
            None => Ok(()),
            Some(name) => {
                let reason = format!(
                    "there is a queue {}, and a lane of the stream would have its name",
                    quoted(&name)
                );
                Err((Code::PreconditionFailed, reason))
            }
        }
    }

    /// A lane goes with its stream: it is not declared, deleted or bound by itself.
    pub(super) fn check_no_lane(&self, queue: &Queue) -> Result<(), Refusal> {
        if self.lane(queue.id).is_none() {
            return Ok(());
        }
        let reason = format!(
            "{} is a lane of the stream {}, which is declared, bound and deleted as a whole",
            quoted(&queue.name),
            quoted(self.common_name(queue))
        );
        Err((Code::PermissionDenied, reason))
    }

    /// The lanes of a stream that was just created.
    pub(super) fn create_lanes(&mut self, stream: &Queue) {
        for lane in stream.own_lanes(self.partitions) {
            self.create_queue(lane);
        }
        let lanes = stream.lanes();
        if lanes > 0 {
            self.lanes.insert(stream.id, lanes);
        }
    }

    /// The lanes of a stream that is being deleted.
    pub(super) fn delete_lanes(&mut self, stream: QueueId) {
        let lanes = self.lanes.remove(&stream).unwrap_or(0);
        for number in 0..u32::from(lanes) {
            self.delete_queue(QueueId(stream.0 + 1 + number));
        }
    }

    pub(super) fn lanes_invariants(&self) {
        for (stream, lanes) in &self.lanes {
            let entry = &self.queues[stream];
            assert_eq!(entry.lanes(), *lanes);
            assert_eq!(self.list_lanes(*stream).count(), usize::from(*lanes));
            for (number, lane) in self.list_lanes(*stream).enumerate() {
                assert_eq!(*lane, entry.lane(number as u8, self.partitions));
                let found = self.lane(lane.id).expect("it is one");
                assert_eq!((found.stream, found.number), (*stream, number as u8));
            }
        }
        let entries = self
            .queues
            .values()
            .filter(|queue| queue.lanes() > 0 && self.lane(queue.id).is_none());
        assert_eq!(entries.count(), self.lanes.len());
    }
}

#[cfg(test)]
mod tests;
