//! Where the time goes inside the broker, by its own account: histograms of stages that it counts from
//! its start on, read before and after a run and subtracted. Does not fetch them.

use hdrhistogram::Histogram;
use serde::Deserialize;

use crate::{Error, Result, codec};

/// The stages in the order a message passes them; others come after.
pub const ORDER: [&str; 9] = [
    "receive", "route", "ring", "journal", "device", "confirm", "ready", "dispatch", "held",
];

/// Histograms of stages in ns, all cores together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stages {
    /// Name and times of each, in the order of [`ORDER`].
    pub stages: Vec<(String, Histogram<u64>)>,
}

#[derive(Deserialize)]
struct Page {
    cores: Vec<Core>,
}

#[derive(Deserialize)]
struct Core {
    stages: Vec<Stage>,
}

#[derive(Deserialize)]
struct Stage {
    name: String,
    v2: String,
}

/// Where a stage stands.
fn place_of(name: &str) -> usize {
    let place = ORDER.iter().position(|known| *known == name);
    place.unwrap_or(ORDER.len())
}

impl Stages {
    /// Reads what the broker says at `/stages`; a stage of many cores is added up.
    ///
    /// # Errors
    /// [`Error::Data`] if that is not what it should be.
    pub fn parse(json: &str) -> Result<Self> {
        let page: Page = serde_json::from_str(json)
            .map_err(|error| Error::Data(format!("the stages of the broker: {error}")))?;
        let mut all = Self::default();
        for stage in page.cores.into_iter().flat_map(|core| core.stages) {
            let histogram = codec::decode(&stage.v2)?;
            match all.stages.iter_mut().find(|(name, _)| *name == stage.name) {
                Some((_, sum)) => sum
                    .add(&histogram)
                    .map_err(|error| Error::Data(format!("stage {}: {error}", stage.name)))?,
                None => all.stages.push((stage.name, histogram)),
            }
        }
        all.stages.sort_by_key(|(name, _)| place_of(name));
        Ok(all)
    }

    /// What came between `before` and this.
    ///
    /// # Errors
    /// [`Error::Data`] if a count went down: the broker has started anew meanwhile.
    pub fn since(&self, before: &Stages) -> Result<Self> {
        let mut stages = Vec::new();
        for (name, after) in &self.stages {
            let mut own = after.clone();
            if let Some((_, before)) = before.stages.iter().find(|(other, _)| other == name) {
                own.subtract(before).map_err(|_| {
                    Error::Data(format!(
                        "stage {name} counted less after the run than before: the broker has \
                         started anew"
                    ))
                })?;
            }
            stages.push((name.clone(), own));
        }
        Ok(Self { stages })
    }

    /// The stages of [`ORDER`] that the broker does not tell of.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let is_there = |place: usize| self.stages.iter().any(|(name, _)| place_of(name) == place);
        (0..ORDER.len())
            .filter(|place| !is_there(*place))
            .map(|place| ORDER[place])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(values: &[u64]) -> Histogram<u64> {
        let mut histogram = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds");
        for value in values {
            histogram.saturating_record(*value);
        }
        histogram
    }

    fn page(cores: &[&[(&str, &[u64])]]) -> String {
        let stage = |(name, values): &(&str, &[u64])| {
            let v2 = codec::encode_plain(&histogram(values));
            serde_json::json!({"name": name, "v2": v2})
        };
        let core = |(number, stages): (usize, &&[(&str, &[u64])])| {
            let stages: Vec<_> = stages.iter().map(stage).collect();
            serde_json::json!({"core": number, "stages": stages})
        };
        let cores: Vec<_> = cores.iter().enumerate().map(core).collect();
        serde_json::json!({ "cores": cores }).to_string()
    }

    #[test]
    fn cores_are_added_and_stages_stand_in_their_order() {
        let first: &[(&str, &[u64])] = &[("device", &[100, 200]), ("own", &[1]), ("receive", &[7])];
        let second: &[(&str, &[u64])] = &[("device", &[300]), ("journal", &[5])];
        let stages = Stages::parse(&page(&[first, second])).expect("a page");
        let found: Vec<_> = stages
            .stages
            .iter()
            .map(|(name, times)| (name.as_str(), times.len()))
            .collect();
        let expected = [("receive", 1), ("journal", 1), ("device", 3), ("own", 1)];
        assert_eq!(found, expected);
        assert_eq!(
            stages.missing(),
            ["route", "ring", "confirm", "ready", "dispatch", "held"]
        );
    }

    #[test]
    fn what_was_before_is_taken_away() {
        let before = Stages::parse(&page(&[&[("device", &[100, 100_000])]])).expect("a page");
        let text = page(&[&[("device", &[100, 100_000, 100, 5_000]), ("route", &[9])]]);
        let after = Stages::parse(&text).expect("a page");
        let between = after.since(&before).expect("it counts up");
        let device = &between.stages[1].1;
        assert_eq!((between.stages[1].0.as_str(), device.len()), ("device", 2));
        assert_eq!((device.min(), device.max() / 10), (100, 500));
        assert_eq!(between.stages[0].1.len(), 1);
        let error = before.since(&after).expect_err("it counts down");
        assert!(error.to_string().contains("started anew"), "{error}");
    }

    #[test]
    fn pages_that_are_none_are_errors() {
        for text in [
            "",
            "{}",
            "{\"cores\":[{\"stages\":[{\"name\":\"x\",\"v2\":\"AAAA\"}]}]}",
        ] {
            assert!(Stages::parse(text).is_err(), "{text}");
        }
    }
}
