//! Which lane of a stream takes a message. Does not know topology, nor what lanes hold.
//!
//! A message with a key goes where the key's hash says, for ever: so each key is in order. One without
//! goes by its lot: [`RUN`] in a row of one producer to one lane, so that they are one record there,
//! then elsewhere. Both are the same however often a message is routed, so that a producer's repetition
//! is known where the first went.

use ringpost_wire::ids::{PartitionId, QueueId};
use ringpost_wire::table;

use super::shares::{hash_bytes, hash_value, mix};
use super::{Decides, Facts};

/// Messages without a key that a producer puts in a row into one lane, as a power of two.
const RUN: u32 = 6;

/// The lanes of a stream of several.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lanes {
    /// Its name, which is no key.
    pub name: Box<[u8]>,
    /// The first lane; the others follow by number.
    pub first: QueueId,
    /// The partition of the first lane; the others follow.
    pub partition: PartitionId,
    /// How many.
    pub count: u8,
    /// The header that has the key, instead of the routing key.
    pub header: Option<Box<[u8]>>,
}

impl Lanes {
    /// The number of the lane that takes a message, and what that holds for.
    //= P-88
    #[must_use]
    pub fn lane_of(&self, routing_key: &[u8], facts: &Facts<'_>) -> (u8, Decides) {
        let (hash, decides) = match &self.header {
            None if routing_key.is_empty() || *routing_key == *self.name => {
                (None, Decides::Message)
            }
            None => (Some(hash_bytes(routing_key)), Decides::Address),
            Some(name) => {
                let headers = table::Table::parse(facts.headers).unwrap_or_default();
                let key = headers.get(name);
                (key.map(|key| hash_value(Some(key))), Decides::Message)
            }
        };
        let hash = match hash {
            Some(_) if crate::mutant!(KeyInManyLanes) => mix(facts.lot),
            Some(hash) => hash,
            None => mix(facts.lot >> RUN),
        };
        let number = (u128::from(hash) * u128::from(self.count)) >> 64;
        (number as u8, decides)
    }

    /// The lane of this number, and its partition among so many.
    #[must_use]
    pub fn lane(&self, number: u8, partitions: usize) -> (QueueId, PartitionId) {
        let queue = QueueId(self.first.0 + u32::from(number));
        let partition = (usize::from(self.partition.0) + usize::from(number)) % partitions;
        (queue, PartitionId(partition as u16))
    }
}

#[cfg(test)]
mod tests {
    use super::super::lot_of;
    use super::*;
    use crate::data::route::settings::tests::arguments;
    use ringpost_wire::table::Value;

    fn lanes(count: u8, header: Option<&str>) -> Lanes {
        Lanes {
            name: b"events"[..].into(),
            first: QueueId(8),
            partition: PartitionId(62),
            count,
            header: header.map(|name| name.as_bytes().into()),
        }
    }

    fn with(headers: &[u8], lot: u64) -> Facts<'_> {
        Facts {
            lot,
            ..Facts::of_headers(headers)
        }
    }

    //= P-88
    #[test]
    fn a_key_stays_in_its_lane_and_keys_are_spread() {
        let lanes = lanes(4, None);
        let mut counts = [0_u32; 4];
        for key in 0..4_000 {
            let key = format!("customer-{key}");
            let (lane, decides) = lanes.lane_of(key.as_bytes(), &with(b"", 1));
            assert_eq!(decides, Decides::Address);
            assert_eq!(lanes.lane_of(key.as_bytes(), &with(b"", 99)).0, lane);
            counts[usize::from(lane)] += 1;
        }
        assert!(
            counts.iter().all(|count| (900..1_100).contains(count)),
            "{counts:?}"
        );
        // For ever: never regenerated.
        let lanes = self::lanes(64, None);
        let golden = ["a", "b", "c", "orders.eu", "größe"]
            .map(|key| lanes.lane_of(key.as_bytes(), &with(b"", 0)).0);
        assert_eq!(golden, GOLDEN);
    }

    const GOLDEN: [u8; 5] = [23, 13, 17, 24, 29];

    //= P-88
    #[test]
    fn a_header_is_the_key_where_the_stream_says_so() {
        let lanes = lanes(64, Some("customer"));
        let of = |value: Value<'_>, lot| {
            let headers = arguments(&[("other", Value::I8(1)), ("customer", value)]);
            lanes.lane_of(b"events", &with(&headers, lot))
        };
        let (lane, decides) = of(Value::Text(b"ann"), 0);
        assert_eq!(decides, Decides::Message);
        for lot in 0..1_000 {
            assert_eq!(of(Value::Text(b"ann"), lot).0, lane);
        }
        assert_eq!(of(Value::I8(7), 0), of(Value::I64(7), 77));
        let different: std::collections::BTreeSet<u8> = (0..64_u8)
            .map(|key| of(Value::Text(&[b'a', key]), 0).0)
            .collect();
        assert!(different.len() > 20);
    }

    //= P-88
    #[test]
    fn what_has_no_key_goes_in_runs_and_evenly() {
        for (lanes, key) in [
            (lanes(3, None), &b""[..]),
            (lanes(3, None), b"events"),
            (lanes(3, Some("customer")), b"any"),
        ] {
            let mut counts = [0_u32; 3];
            let of = |producer, sequence| {
                let (lane, decides) = lanes.lane_of(key, &with(b"", lot_of(producer, sequence)));
                assert_eq!(decides, Decides::Message);
                lane
            };
            for producer in 0..50 {
                for sequence in 0..1_280 {
                    let lane = of(producer, sequence);
                    counts[usize::from(lane)] += 1;
                    assert_eq!(lane, of(producer, sequence & !63));
                }
            }
            let even = 17_000..26_000;
            assert!(
                counts.iter().all(|count| even.contains(count)),
                "{counts:?}"
            );
        }
    }

    #[test]
    fn lanes_follow_each_other() {
        let lanes = lanes(4, None);
        let all: Vec<_> = (0..4).map(|number| lanes.lane(number, 64)).collect();
        let expected = [(8, 62), (9, 63), (10, 0), (11, 1)];
        assert_eq!(
            all,
            expected.map(|(queue, partition)| (QueueId(queue), PartitionId(partition)))
        );
    }
}
