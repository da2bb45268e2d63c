//! What `ringpost try` publishes: lines of a text, or a stream of orders that can be made again from
//! their numbers, so that whoever receives them knows every byte without having been told. Does not
//! talk to a broker.

use std::ops::Range;

use bytes::Bytes;

/// The regions that messages are spread over; each has a queue.
pub const REGIONS: [&str; 3] = ["eu", "us", "asia"];

/// Messages by number.
#[derive(Clone, Debug)]
pub enum Workload {
    /// Orders made from their numbers.
    Orders {
        /// How many.
        count: u64,
    },
    /// Lines of a text.
    Lines {
        /// The text.
        text: Bytes,
        /// Where each line lies in it, without its end.
        lines: Vec<Range<usize>>,
    },
}

impl Workload {
    /// The lines of a text.
    #[must_use]
    pub fn lines(text: Bytes) -> Self {
        let mut lines = Vec::new();
        let mut start = 0;
        while start < text.len() {
            let rest = &text[start..];
            let end = rest
                .iter()
                .position(|byte| *byte == b'\n')
                .unwrap_or(rest.len());
            lines.push(start..start + end);
            start += end + 1;
        }
        Workload::Lines { text, lines }
    }

    /// How many messages there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        match self {
            Workload::Orders { count } => *count,
            Workload::Lines { lines, .. } => lines.len() as u64,
        }
    }

    /// The first message whose payload is longer than that.
    #[must_use]
    pub fn first_longer_than(&self, bytes_max: usize) -> Option<u64> {
        match self {
            Workload::Orders { .. } => None,
            Workload::Lines { lines, .. } => {
                let idx = lines.iter().position(|line| line.len() > bytes_max);
                idx.map(|idx| idx as u64)
            }
        }
    }

    /// The region of a message, as a place in [`REGIONS`].
    #[must_use]
    pub fn region(&self, number: u64) -> usize {
        // Not in turns: a consumer that lost one message would not notice the next two.
        (mix(number) % REGIONS.len() as u64) as usize
    }

    /// The routing key of a message.
    #[must_use]
    pub fn key(&self, number: u64) -> String {
        let region = REGIONS[self.region(number)];
        match self {
            Workload::Orders { .. } => format!("order.{region}.{}", status(number)),
            Workload::Lines { .. } => format!("line.{region}.{number}"),
        }
    }

    /// The payload of a message.
    #[must_use]
    pub fn payload(&self, number: u64) -> Bytes {
        match self {
            Workload::Lines { text, lines } => match usize::try_from(number) {
                Ok(idx) => text.slice(lines[idx].clone()),
                Err(_) => Bytes::new(),
            },
            Workload::Orders { .. } => {
                let random = mix(number ^ 0x005e_ed0f_0dde);
                let cents = random % 1_000_000;
                Bytes::from(format!(
                    "{{\"order\":{number},\"status\":\"{}\",\"customer\":\"c-{:05}\",\"items\":{},\
                     \"total\":{}.{:02},\"note\":\"{:016x}\"}}",
                    status(number),
                    (random >> 20) % 100_000,
                    1 + (random >> 40) % 9,
                    cents / 100,
                    cents % 100,
                    mix(random),
                ))
            }
        }
    }
}

/// The status of an order.
fn status(number: u64) -> &'static str {
    const STATUSES: [&str; 4] = ["created", "paid", "packed", "shipped"];
    STATUSES[(mix(number ^ 0xa5a5) % STATUSES.len() as u64) as usize]
}

/// One step of splitmix64: numbers in, bits that look random out.
fn mix(number: u64) -> u64 {
    let mut bits = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// What one queue must deliver, in order: all messages, or those of a region.
#[derive(Clone, Debug)]
pub struct Expected {
    workload: std::sync::Arc<Workload>,
    /// `None` for all regions.
    region: Option<usize>,
    /// The first message that may be the next.
    next: u64,
}

impl Expected {
    /// Everything of `region`, or of all regions.
    #[must_use]
    pub fn new(workload: std::sync::Arc<Workload>, region: Option<usize>) -> Self {
        Expected {
            workload,
            region,
            next: 0,
        }
    }

    /// How many messages are still to come.
    #[must_use]
    pub fn count(&self) -> u64 {
        (self.next..self.workload.count())
            .filter(|number| self.is_ours(*number))
            .count() as u64
    }

    fn is_ours(&self, number: u64) -> bool {
        self.region
            .is_none_or(|region| region == self.workload.region(number))
    }

    /// Takes a received message for the next one; its number, or what is wrong with it.
    ///
    /// # Errors
    /// It is not exactly the one that was sent next, or none was.
    pub fn take(&mut self, key: &[u8], payload: &[u8]) -> Result<u64, String> {
        let end = self.workload.count();
        let Some(number) = (self.next..end).find(|number| self.is_ours(*number)) else {
            return Err(format!("{} came after the last message", shown(payload)));
        };
        self.next = number + 1;
        let (sent_key, sent) = (self.workload.key(number), self.workload.payload(number));
        if key != sent_key.as_bytes() {
            return Err(format!(
                "message {number} was sent with the key {sent_key} and came with {}",
                shown(key)
            ));
        }
        if payload != &sent[..] {
            return Err(format!(
                "message {number} was sent as {} and came as {}",
                shown(&sent),
                shown(payload)
            ));
        }
        Ok(number)
    }
}

/// The beginning of some bytes, for people.
fn shown(bytes: &[u8]) -> String {
    const SHOWN_MAX: usize = 60;
    let cut = &bytes[..bytes.len().min(SHOWN_MAX)];
    let more = if bytes.len() > SHOWN_MAX { "…" } else { "" };
    format!("\"{}{more}\" ({} bytes)", cut.escape_ascii(), bytes.len())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn lines_keep_everything_but_their_ends() {
        for (text, lines) in [
            ("", &[][..]),
            ("\n", &[""]),
            ("a", &["a"]),
            ("a\n", &["a"]),
            ("a\n\nb\r\nc", &["a", "", "b\r", "c"]),
        ] {
            let workload = Workload::lines(Bytes::from_static(text.as_bytes()));
            let all: Vec<Bytes> = (0..workload.count())
                .map(|idx| workload.payload(idx))
                .collect();
            assert_eq!(all, lines, "{text:?}");
        }
        let workload = Workload::lines(Bytes::from_static(b"ab\nabc\nabcd"));
        assert_eq!(workload.first_longer_than(2), Some(1));
        assert_eq!(workload.first_longer_than(4), None);
    }

    #[test]
    fn every_message_belongs_to_one_region_and_all_are_used() {
        let workload = Arc::new(Workload::Orders { count: 3_000 });
        let counts: Vec<u64> = (0..3)
            .map(|region| Expected::new(workload.clone(), Some(region)).count())
            .collect();
        assert_eq!(counts.iter().sum::<u64>(), 3_000);
        assert!(counts.iter().all(|count| *count > 800), "{counts:?}");
        assert_eq!(Expected::new(workload, None).count(), 3_000);
    }

    fn all(workload: &Arc<Workload>) -> Vec<(String, Bytes)> {
        (0..workload.count())
            .map(|number| (workload.key(number), workload.payload(number)))
            .collect()
    }

    /// Delivers messages; the first complaint.
    fn deliver(workload: &Arc<Workload>, messages: &[(String, Bytes)]) -> Option<String> {
        let mut expected = Expected::new(workload.clone(), None);
        messages
            .iter()
            .find_map(|(key, payload)| expected.take(key.as_bytes(), payload).err())
    }

    #[test]
    fn loss_duplicates_disorder_damage_and_phantoms_are_seen() {
        let workload = Arc::new(Workload::Orders { count: 10 });
        let good = all(&workload);
        assert_eq!(deliver(&workload, &good), None);
        let mut lost = good.clone();
        lost.remove(4);
        assert!(
            deliver(&workload, &lost)
                .expect("is seen")
                .contains("message 4 was sent")
        );
        let mut twice = good.clone();
        twice.insert(4, good[3].clone());
        assert!(
            deliver(&workload, &twice)
                .expect("is seen")
                .contains("message 4 was sent")
        );
        let mut swapped = good.clone();
        swapped.swap(2, 3);
        assert!(
            deliver(&workload, &swapped)
                .expect("is seen")
                .contains("message 2 was sent")
        );
        let mut damaged = good.clone();
        damaged[9].1 = Bytes::from_static(b"x");
        assert!(
            deliver(&workload, &damaged)
                .expect("is seen")
                .contains("came as \"x\" (1 bytes)")
        );
        let mut more = good;
        more.push(("x".into(), Bytes::from_static(b"phantom")));
        assert!(
            deliver(&workload, &more)
                .expect("is seen")
                .contains("after the last message")
        );
    }
}
