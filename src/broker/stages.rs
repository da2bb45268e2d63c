//! Histograms of how long messages spend in each stage of their way through a core. Does not decide
//! where a stage begins or ends: the loop and the engine do, and give samples.

use hdrhistogram::Histogram;
use ringpost_engine::data::stages::{Sample, Stage};

/// Longest time that is told apart from longer ones: an hour, in ns.
const NS_MAX: u64 = 3_600_000_000_000;

/// A histogram for each stage, weighted by messages: 2 digits, an hour at most, 34 KiB each.
#[derive(Clone, Debug)]
pub struct StageTimes {
    stages: Vec<Histogram<u64>>,
}

impl Default for StageTimes {
    fn default() -> Self {
        let empty = Histogram::new_with_max(NS_MAX, 2).expect("the bounds are in order");
        Self {
            stages: vec![empty; Stage::ALL.len()],
        }
    }
}

impl StageTimes {
    /// So many messages spent so many ns in a stage.
    pub fn add(&mut self, stage: Stage, ns: u64, count: u64) {
        if count > 0 {
            self.stages[stage as usize].saturating_record_n(ns, count);
        }
    }

    /// The same, as the engine says it.
    pub fn add_sample(&mut self, sample: Sample) {
        self.add(sample.stage, sample.ns, u64::from(sample.count));
    }

    /// Adds what another core has recorded.
    pub fn add_all(&mut self, other: &Self) {
        for (own, more) in self.stages.iter_mut().zip(&other.stages) {
            own.add(more).expect("all have the same bounds");
        }
    }

    /// Every stage and its histogram, in ns.
    pub fn iter(&self) -> impl Iterator<Item = (Stage, &Histogram<u64>)> {
        Stage::ALL.into_iter().zip(&self.stages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_has_a_histogram_and_a_word_of_its_own() {
        let mut times = StageTimes::default();
        for (idx, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, idx);
            times.add(stage, 1_000 * (idx as u64 + 1), idx as u64);
        }
        for (idx, (stage, histogram)) in times.iter().enumerate() {
            assert_eq!(histogram.len(), idx as u64, "{stage:?}");
            assert!(
                Stage::ALL
                    .iter()
                    .filter(|other| other.word() == stage.word())
                    .count()
                    == 1
            );
        }
        let (_, held) = times.iter().last().expect("there are stages");
        assert_eq!(held.max() / 100, 100);
    }
}
