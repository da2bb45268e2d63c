//! The bodies of the records that are no messages: acks, marks, delivery counts.
//! Does not know blocks, nor when a record is written.

use ringpost_wire::ids::QueueSequence;

use crate::data::queue::{CountRange, SequenceRange};

/// Bytes of one range of an ack record: first and last queue sequence, u64 each.
pub const RANGE_BYTES: usize = 16;
/// Bytes of one range of a counts record: first, last (u64), deliveries (u32), zero (u32).
pub const COUNT_BYTES: usize = 24;
/// Most ranges in one record.
pub const RANGES_PER_RECORD_MAX: usize = 4096;

/// Appends the body of an ack record.
pub fn encode_ranges(ranges: &[SequenceRange], out: &mut Vec<u8>) {
    for range in ranges {
        out.extend_from_slice(&range.first.0.to_le_bytes());
        out.extend_from_slice(&range.last.0.to_le_bytes());
    }
}

/// Appends the body of a sequences record: how far each is behind the first, u32 each.
///
/// # Panics
/// If one is 2^32 or more behind it: what is gathered together was published together.
pub fn encode_sequences(sequences: &[u64], out: &mut Vec<u8>) {
    let Some(first) = sequences.first() else {
        return;
    };
    for sequence in sequences {
        let behind = u32::try_from(sequence - first).expect("published together");
        out.extend_from_slice(&behind.to_le_bytes());
    }
}

/// The sequences of a sequences record whose head names the first; `None` if the body is no such thing.
#[must_use]
pub fn decode_sequences(first: u64, body: &[u8]) -> Option<Vec<u64>> {
    let (behind, rest) = body.as_chunks::<4>();
    let sequences = behind.iter().map(|bytes| {
        let behind = u64::from(u32::from_le_bytes(*bytes));
        first.checked_add(behind)
    });
    let sequences = sequences.collect::<Option<Vec<u64>>>()?;
    let is_rising = sequences.windows(2).all(|pair| pair[0] < pair[1]);
    (rest.is_empty() && sequences.first() == Some(&first) && is_rising).then_some(sequences)
}

/// Appends the body of a counts record.
pub fn encode_counts(counts: &[CountRange], out: &mut Vec<u8>) {
    for count in counts {
        out.extend_from_slice(&count.range.first.0.to_le_bytes());
        out.extend_from_slice(&count.range.last.0.to_le_bytes());
        out.extend_from_slice(&u64::from(count.deliveries).to_le_bytes());
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8]
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn range_at(bytes: &[u8]) -> Option<SequenceRange> {
    let (first, last) = (u64_at(bytes, 0), u64_at(bytes, 8));
    (0 < first && first <= last)
        .then(|| SequenceRange::new(QueueSequence(first), QueueSequence(last)))
}

/// The ranges of an ack record; `None` if the body is no such thing.
#[must_use]
pub fn decode_ranges(body: &[u8]) -> Option<Vec<SequenceRange>> {
    let chunks = body.chunks_exact(RANGE_BYTES);
    if !chunks.remainder().is_empty() {
        return None;
    }
    chunks.map(range_at).collect()
}

/// The ranges of a counts record; `None` if the body is no such thing.
#[must_use]
pub fn decode_counts(body: &[u8]) -> Option<Vec<CountRange>> {
    let chunks = body.chunks_exact(COUNT_BYTES);
    if !chunks.remainder().is_empty() {
        return None;
    }
    chunks
        .map(|chunk| {
            let deliveries = u32::try_from(u64_at(chunk, 16)).ok()?;
            let range = range_at(chunk)?;
            Some(CountRange { range, deliveries })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_survive_and_cuts_are_seen() {
        let range = SequenceRange::new(QueueSequence(3), QueueSequence(9));
        let mut body = Vec::new();
        encode_ranges(&[range, range], &mut body);
        assert_eq!(decode_ranges(&body), Some(vec![range, range]));
        assert_eq!(decode_ranges(&body[1..]), None);
        assert_eq!(decode_ranges(&[0; 16]), None);
        let count = CountRange {
            range,
            deliveries: 2,
        };
        let mut body = Vec::new();
        encode_counts(&[count], &mut body);
        assert_eq!(decode_counts(&body), Some(vec![count]));
        assert_eq!(decode_counts(&body[..23]), None);
    }
}
