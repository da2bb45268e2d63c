//! The page `/stages`: how long messages spent in each stage of every core. Does not know what a stage
//! is, nor who reads the page.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Json, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2Serializer};
use serde::{Deserialize, Serialize};

use super::Shared;
use crate::control::metrics::Answer;
use crate::snapshot::Asked;
use crate::stages::StageTimes;

/// `/stages`
pub(super) async fn page(State(shared): State<Arc<Shared>>) -> Response {
    let answers = shared.ask_all(Asked::Stages).await;
    let cores = answers.iter().enumerate().map(|(core, answer)| {
        let times = match answer {
            Answer::Snapshot(snapshot) => snapshot.stages.as_deref(),
            Answer::Silent | Answer::Gone => None,
        };
        let stages = times.into_iter().flat_map(StageTimes::iter);
        CoreStages {
            core,
            stages: stages
                .map(|(stage, histogram)| StageJson::of(stage.word(), histogram))
                .collect(),
        }
    });
    Json(Stages {
        cores: cores.collect(),
    })
    .into_response()
}

/// The JSON of `/stages`: sums since the start, so that two of them say what was between.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stages {
    /// The cores, by number.
    pub cores: Vec<CoreStages>,
}

/// What `/stages` says of a core.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CoreStages {
    /// Its number.
    pub core: usize,
    /// Its stages; none if it did not answer in time.
    pub stages: Vec<StageJson>,
}

/// What `/stages` says of a stage of a core.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StageJson {
    /// `receive`, `route`, `ring`, `journal`, `device`, `confirm`, `publish`, `ready`, `dispatch`,
    /// `held`.
    pub name: String,
    /// How long messages spent in it, in ns: a histogram in HdrHistogram's V2 encoding, in base64.
    pub v2: String,
}

impl StageJson {
    /// What is said of a stage.
    #[must_use]
    pub fn of(name: &str, histogram: &Histogram<u64>) -> Self {
        let mut bytes = Vec::new();
        V2Serializer::new()
            .serialize(histogram, &mut bytes)
            .expect("a vector takes everything, and counts are below i64::MAX");
        Self {
            name: name.to_owned(),
            v2: STANDARD.encode(bytes),
        }
    }

    /// The histogram; `None` if it is in no encoding that is known here.
    #[must_use]
    pub fn histogram(&self) -> Option<Histogram<u64>> {
        let bytes = STANDARD.decode(&self.v2).ok()?;
        Deserializer::new().deserialize(&mut bytes.as_slice()).ok()
    }
}
