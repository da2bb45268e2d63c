//! How large payloads are: one size, a range, a log-normal or a list with weights, said in words or in
//! a file. Does not make payloads.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use crate::message::{Random, STAMP_BYTES};

/// Largest payload that the raw engine sends: a message that travels in one piece.
const SIZE_MAX: u32 = 128 << 20;
/// Most sizes of a file that are kept.
const LIST_MAX: usize = 1 << 20;

/// How large payloads are. Every size is at least the stamp and at most 128 MiB.
#[derive(Clone, Debug, PartialEq)]
pub enum Sizes {
    /// All the same.
    Fixed(u32),
    /// Every size from the first to the second equally often.
    Uniform(u32, u32),
    /// The logarithm is normal with `sigma` around that of `median`; cut off at `max`.
    LogNormal {
        /// Half are smaller, in bytes.
        median: u32,
        /// Standard deviation of the natural logarithm.
        sigma: f64,
        /// The largest, in bytes.
        max: u32,
    },
    /// Sizes with how often they come, as weights.
    Weighted(Vec<(u32, f64)>),
    /// The sizes of a file, in its order, again and again.
    File {
        /// Where they were read.
        path: PathBuf,
        /// The sizes.
        sizes: Arc<Vec<u32>>,
    },
}

impl Sizes {
    /// The largest.
    #[must_use]
    pub fn largest(&self) -> u32 {
        match self {
            Sizes::Fixed(bytes) | Sizes::Uniform(_, bytes) => *bytes,
            Sizes::LogNormal { max, .. } => *max,
            Sizes::Weighted(list) => list.iter().map(|(bytes, _)| *bytes).max().unwrap_or(0),
            Sizes::File { sizes, .. } => sizes.iter().copied().max().unwrap_or(0),
        }
    }

    /// The smallest.
    #[must_use]
    pub fn smallest(&self) -> u32 {
        match self {
            Sizes::Fixed(bytes) | Sizes::Uniform(bytes, _) => *bytes,
            Sizes::LogNormal { .. } => STAMP_BYTES as u32,
            Sizes::Weighted(list) => list.iter().map(|(bytes, _)| *bytes).min().unwrap_or(0),
            Sizes::File { sizes, .. } => sizes.iter().copied().min().unwrap_or(0),
        }
    }
}

/// Draws sizes. The same seed gives the same sizes.
#[derive(Clone, Debug)]
pub struct Sampler {
    sizes: Sizes,
    random: Random,
    /// Sums of the weights.
    sums: Vec<f64>,
    next: usize,
}

impl Sampler {
    /// One for a producer.
    #[must_use]
    pub fn new(sizes: Sizes, seed: u64) -> Self {
        let mut sums = Vec::new();
        if let Sizes::Weighted(list) = &sizes {
            let mut sum = 0.0;
            for (_, weight) in list {
                sum += weight;
                sums.push(sum);
            }
        }
        Self {
            sizes,
            random: Random::new(seed),
            sums,
            next: 0,
        }
    }

    /// The next size in bytes.
    pub fn next_bytes(&mut self) -> u32 {
        match &self.sizes {
            Sizes::Fixed(bytes) => *bytes,
            Sizes::Uniform(from, to) => {
                let span = u64::from(to - from) + 1;
                from + (self.random.next_unit() * span as f64) as u32
            }
            Sizes::LogNormal { median, sigma, max } => {
                let bytes = f64::from(*median) * (sigma * self.random.next_normal()).exp();
                bytes.round().clamp(STAMP_BYTES as f64, f64::from(*max)) as u32
            }
            Sizes::Weighted(list) => {
                let all = self.sums.last().copied().unwrap_or(0.0);
                let drawn = self.random.next_unit() * all;
                let place = self.sums.partition_point(|sum| *sum <= drawn);
                list[place.min(list.len() - 1)].0
            }
            Sizes::File { sizes, .. } => {
                let bytes = sizes[self.next];
                self.next = (self.next + 1) % sizes.len();
                bytes
            }
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sizes::Fixed(bytes) => write!(f, "{bytes}"),
            Sizes::Uniform(from, to) => write!(f, "uniform:{from}..{to}"),
            Sizes::LogNormal { median, sigma, max } => {
                write!(f, "lognormal:{median},{sigma},{max}")
            }
            Sizes::Weighted(list) => {
                f.write_str("weighted:")?;
                for (idx, (bytes, weight)) in list.iter().enumerate() {
                    let comma = if idx == 0 { "" } else { "," };
                    write!(f, "{comma}{bytes}*{weight}")?;
                }
                Ok(())
            }
            Sizes::File { path, .. } => write!(f, "file:{}", path.display()),
        }
    }
}

/// What a size may look like, for whoever got it wrong.
const FORMS: &str = "a size is 1024, uniform:100..2000, lognormal:MEDIAN,SIGMA,MAX, \
                     weighted:100*70,1000*25,10000*5 or file:PATH with one size a line";

fn bytes_of(text: &str) -> Result<u32, String> {
    let bytes: u32 = text
        .trim()
        .parse()
        .map_err(|_| format!("{text:?} is no number of bytes; {FORMS}"))?;
    if (bytes as usize) < STAMP_BYTES || bytes > SIZE_MAX {
        return Err(format!(
            "a payload of {bytes} bytes: it has to be from {STAMP_BYTES} (its stamp) to {SIZE_MAX}"
        ));
    }
    Ok(bytes)
}

fn number_of(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err(format!("{text:?} is no number from 0 on; {FORMS}")),
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((kind, rest)) = text.split_once(':') else {
            return Ok(Sizes::Fixed(bytes_of(text)?));
        };
        match kind {
            "uniform" => {
                let (from, to) = rest.split_once("..").ok_or(FORMS)?;
                let (from, to) = (bytes_of(from)?, bytes_of(to)?);
                if from > to {
                    return Err(format!("uniform:{from}..{to} goes down"));
                }
                Ok(Sizes::Uniform(from, to))
            }
            "lognormal" => {
                let parts: Vec<_> = rest.split(',').collect();
                let [median, sigma, max] = parts[..] else {
                    return Err(FORMS.to_owned());
                };
                let (median, max) = (bytes_of(median)?, bytes_of(max)?);
                if median > max {
                    return Err(format!("lognormal: the median {median} is above {max}"));
                }
                let sigma = number_of(sigma)?;
                Ok(Sizes::LogNormal { median, sigma, max })
            }
            "weighted" => {
                let one = |part: &str| -> Result<(u32, f64), String> {
                    let (bytes, weight) = part.split_once('*').ok_or(FORMS)?;
                    Ok((bytes_of(bytes)?, number_of(weight)?))
                };
                let list = rest.split(',').map(one).collect::<Result<Vec<_>, _>>()?;
                if list.iter().map(|(_, weight)| weight).sum::<f64>() <= 0.0 {
                    return Err("weighted: all weights are 0".to_owned());
                }
                Ok(Sizes::Weighted(list))
            }
            "file" => {
                let path = PathBuf::from(rest);
                let text = std::fs::read_to_string(&path)
                    .map_err(|error| format!("cannot read sizes from {rest}: {error}"))?;
                let sizes = text
                    .split_whitespace()
                    .map(bytes_of)
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|error| format!("{rest}: {error}"))?;
                if sizes.is_empty() || sizes.len() > LIST_MAX {
                    let count = sizes.len();
                    return Err(format!("{rest} holds {count} sizes, not 1 to {LIST_MAX}"));
                }
                Ok(Sizes::File {
                    path,
                    sizes: Arc::new(sizes),
                })
            }
            _ => Err(format!("{kind:?} is no kind of size; {FORMS}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(text: &str, count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(text.parse().expect(text), 9);
        (0..count).map(|_| sampler.next_bytes()).collect()
    }

    #[test]
    fn sizes_are_what_their_words_say() {
        assert_eq!(draw("1024", 2), [1024, 1024]);
        let uniform = draw("uniform:100..103", 40_000);
        for bytes in 100..=103 {
            let count = uniform.iter().filter(|drawn| **drawn == bytes).count();
            assert!((9_500..10_500).contains(&count), "{bytes}: {count}");
        }
        assert!(uniform.iter().all(|bytes| (100..=103).contains(bytes)));
        let weighted = draw("weighted:100*70,1000*25,10000*5", 100_000);
        for (bytes, share) in [(100, 0.7), (1000, 0.25), (10_000, 0.05)] {
            let count = weighted.iter().filter(|drawn| **drawn == bytes).count();
            assert!((count as f64 / 1e5 - share).abs() < 0.01, "{bytes}");
        }
    }

    #[test]
    fn a_lognormal_has_its_median_and_its_spread() {
        let mut sizes = draw("lognormal:1000,0.5,100000", 100_001);
        sizes.sort_unstable();
        let median = f64::from(sizes[50_000]);
        assert!((median / 1000.0 - 1.0).abs() < 0.02, "{median}");
        // One sigma above the median lie 15.9 %.
        let above = f64::from(sizes[84_130]);
        assert!((above / 1648.7 - 1.0).abs() < 0.03, "{above}");
    }

    #[test]
    fn a_file_is_walked_in_order() {
        let path = std::env::temp_dir().join(format!("ringpost-sizes-{}", std::process::id()));
        std::fs::write(&path, "100 200\n300\n").expect("a file");
        let text = format!("file:{}", path.display());
        assert_eq!(draw(&text, 5), [100, 200, 300, 100, 200]);
        let parsed: Sizes = text.parse().expect("it can be read");
        assert_eq!((parsed.smallest(), parsed.largest()), (100, 300));
        assert_eq!(parsed.to_string(), text);
        std::fs::remove_file(&path).expect("it is there");
        assert!(
            text.parse::<Sizes>()
                .expect_err("it is gone")
                .contains("cannot read")
        );
    }

    #[test]
    fn what_is_printed_is_read_again() {
        for text in [
            "1024",
            "uniform:100..2000",
            "lognormal:1000,0.5,100000",
            "weighted:100*70,1000*25.5",
        ] {
            assert_eq!(text.parse::<Sizes>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn wrong_sizes_say_what_is_right() {
        for (text, says) in [
            ("many", "uniform:100..2000"),
            ("3", "from 32"),
            ("uniform:200..100", "goes down"),
            ("uniform:200", "uniform:100..2000"),
            ("weighted:100*0", "all weights are 0"),
            ("lognormal:200,1", "MEDIAN,SIGMA,MAX"),
            ("lognormal:2000,1,1000", "is above"),
            ("gamma:1", "no kind of size"),
        ] {
            let error = text.parse::<Sizes>().expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
