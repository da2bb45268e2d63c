//! Histograms as text: the V2 encoding of HdrHistogram in base64, and interval logs (`.hlog`) that its
//! tools read. Does not know what was measured.

use std::io::Write;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};

use crate::{Error, Result};

/// A histogram as compressed V2 in base64, as it stands in a log.
#[must_use]
pub fn encode(histogram: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new()
        .serialize(histogram, &mut bytes)
        .expect("memory takes what is written, and the counts of a run fit");
    STANDARD.encode(bytes)
}

/// A histogram from V2 in base64, compressed or not.
///
/// # Errors
/// [`Error::Data`] if it is neither.
pub fn decode(text: &str) -> Result<Histogram<u64>> {
    let wrong = |what: String| Error::Data(format!("no histogram: {what}"));
    let bytes = STANDARD
        .decode(text.trim())
        .map_err(|error| wrong(error.to_string()))?;
    Deserializer::new()
        .deserialize(&mut bytes.as_slice())
        .map_err(|error| wrong(error.to_string()))
}

/// A histogram as uncompressed V2 in base64, as brokers say it.
#[cfg(test)]
pub(crate) fn encode_plain(histogram: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    hdrhistogram::serialization::V2Serializer::new()
        .serialize(histogram, &mut bytes)
        .expect("memory takes what is written, and the counts of a run fit");
    STANDARD.encode(bytes)
}

/// One line of a log.
#[derive(Debug)]
pub struct Entry<'a> {
    /// What was measured; letters, digits and dashes.
    pub tag: &'a str,
    /// Since the start of the log.
    pub start: Duration,
    /// How long.
    pub length: Duration,
    /// In ns.
    pub histogram: &'a Histogram<u64>,
}

/// Writes an interval log, its times from `start` on; the maxima beside the histograms are in ms.
///
/// # Errors
/// [`Error::Io`] if it cannot be written, [`Error::Data`] if a tag cannot stand in a log.
pub fn write_log<W: Write>(
    out: &mut W,
    start: SystemTime,
    comment: &str,
    entries: &[Entry<'_>],
) -> Result<()> {
    let failed = Error::io("cannot write a log");
    let mut serializer = V2DeflateSerializer::new();
    // A reader takes the version from the first line (HistogramLogReader).
    let mut builder = IntervalLogWriterBuilder::new();
    builder
        .add_comment("[Histogram log format version 1.3]")
        .add_comment(comment)
        .with_start_time(start)
        .with_base_time(start)
        .with_max_value_divisor(1e6);
    let mut bytes = Vec::new();
    {
        let mut writer = builder
            .begin_log_with(&mut bytes, &mut serializer)
            .map_err(Error::io("cannot write a log"))?;
        for entry in entries {
            let tag = Tag::new(entry.tag)
                .ok_or_else(|| Error::Data(format!("{:?} is no tag of a log", entry.tag)))?;
            writer
                .write_histogram(entry.histogram, entry.start, entry.length, Some(tag))
                .map_err(|error| Error::Data(format!("cannot write a log: {error}")))?;
        }
    }
    out.write_all(&with_legend(&bytes)).map_err(failed)
}

/// The legend of the columns stands between comments and intervals; readers skip it, people do not.
fn with_legend(log: &[u8]) -> Vec<u8> {
    const LEGEND: &[u8] =
        b"\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n";
    let mut at = 0;
    while log.get(at) == Some(&b'#') {
        let line = log[at..].iter().position(|byte| *byte == b'\n');
        at += line.map_or(log.len() - at, |length| length + 1);
    }
    [&log[..at], LEGEND, &log[at..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::latencies;

    fn some() -> Histogram<u64> {
        let mut histogram = latencies();
        for value in [0, 1, 2, 2047, 2048, 5_000, 1_000_000, 90_000_000_000] {
            histogram.saturating_record_n(value, value % 7 + 1);
        }
        histogram
    }

    #[test]
    fn both_encodings_come_back_as_they_were() {
        for text in [encode(&some()), encode_plain(&some())] {
            assert_eq!(decode(&text).expect("it was encoded"), some());
        }
        assert_eq!(
            decode(&encode(&latencies())).map(|empty| empty.len()).ok(),
            Some(0)
        );
        assert!(decode("AAAA").is_err() && decode("no base64!").is_err());
    }

    /// The format as its authors describe it: cookie, payload length, normalizing offset, significant
    /// digits, lowest and highest value, conversion ratio, all big-endian; then ZigZag LEB128 counts,
    /// where a negative one says how many zeros stand there.
    #[test]
    fn the_plain_encoding_is_the_published_one() {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 1_000, 2).expect("bounds");
        histogram.record_n(3, 5).expect("in bounds");
        histogram.record_n(6, 1).expect("in bounds");
        let bytes = STANDARD.decode(encode_plain(&histogram)).expect("base64");
        let int = |at: usize| i32::from_be_bytes(bytes[at..at + 4].try_into().expect("four"));
        let long = |at: usize| i64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight"));
        assert_eq!(int(0), 0x1c84_9303 | 0x10, "the cookie of V2");
        assert_eq!(int(4) as usize, bytes.len() - 40, "length of the counts");
        assert_eq!((int(8), int(12)), (0, 2), "offset and digits");
        assert_eq!((long(16), long(24)), (1, 1_000), "bounds");
        assert_eq!(
            f64::from_be_bytes(bytes[32..40].try_into().expect("eight")),
            1.0
        );
        // Three zeros, 5 at value 3, two zeros, 1 at value 6.
        let zig_zag = |number: i64| ((number << 1) ^ (number >> 63)) as u8;
        let counts = [-3, 5, -2, 1].map(zig_zag);
        assert_eq!(bytes[40..], counts);
    }

    #[test]
    fn the_compressed_encoding_is_the_published_one() {
        let bytes = STANDARD.decode(encode(&some())).expect("base64");
        let int = |at: usize| i32::from_be_bytes(bytes[at..at + 4].try_into().expect("four"));
        assert_eq!(int(0), 0x1c84_9304 | 0x10, "the cookie of compressed V2");
        assert_eq!(
            int(4) as usize,
            bytes.len() - 8,
            "length of what is compressed"
        );
        assert_eq!(bytes[8] & 0x0f, 8, "zlib's deflate");
        // In a log that makes the letters by which its readers know a V2 histogram.
        assert!(encode(&some()).starts_with("HISTFAA"));
    }

    #[test]
    fn a_log_is_read_line_by_line() {
        let (one, two) = (some(), latencies());
        let start = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_500);
        let entry = |tag, at, histogram| Entry {
            tag,
            start: Duration::from_secs(at),
            length: Duration::from_secs(1),
            histogram,
        };
        let mut out = Vec::new();
        let entries = [entry("confirm", 0, &one), entry("end-to-end", 1, &two)];
        write_log(&mut out, start, "ringpost-load", &entries).expect("written");
        let text = String::from_utf8(out).expect("text");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "#[Histogram log format version 1.3]");
        assert!(lines.contains(&"#[StartTime: 1700000000.500 (seconds since epoch)]"));
        assert!(lines.contains(&"#[BaseTime: 1700000000.500 (seconds since epoch)]"));
        let rest: Vec<_> = lines
            .iter()
            .skip_while(|line| line.starts_with('#'))
            .collect();
        assert!(rest[0].starts_with("\"StartTimestamp\""));
        let fields: Vec<_> = rest[1].split(',').collect();
        assert_eq!(fields[..3], ["Tag=confirm", "0.000", "1.000"]);
        let max: f64 = fields[3].parse().expect("a number");
        assert!((max / 90_000.0 - 1.0).abs() < 0.001, "{max} ms");
        assert_eq!(decode(fields[4]).expect("a histogram"), one);
        assert!(rest[2].starts_with("Tag=end-to-end,1.000,1.000,0.000,HISTFAA"));
        let bad = [entry("a,b", 0, &one)];
        assert!(write_log(&mut Vec::new(), start, "", &bad).is_err());
    }
}
