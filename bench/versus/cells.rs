//! What is run: closed loops that find throughput and open loops at rates that the best durable peer can
//! hold. Does not know brokers.

use ringpost_load::params::Parameters;
use ringpost_load::report::rate_of;

/// Messages that may wait for delivery in a closed loop are bounded by so many bytes of payload, so that
/// no broker is asked to hold a backlog in memory.
const LAG_BYTES: u64 = 64 << 20;

/// Shares of the saturation rate of the best durable peer, in percent.
pub const SHARES: [u32; 3] = [10, 50, 80];

/// Bytes of the payload of the open loops.
pub const OPEN_BYTES: u32 = 1024;

/// One load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// So many messages unconfirmed: throughput.
    Window(u32),
    /// Percent of the saturation rate of the best durable peer: latency.
    Share(u32),
}

/// One load with one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Bytes of each payload.
    pub bytes: u32,
    /// How messages come.
    pub load: Load,
}

impl Cell {
    /// Its name in files and on the command line.
    #[must_use]
    pub fn name(&self) -> String {
        match self.load {
            Load::Window(window) => format!("closed-{}-w{window}", self.bytes),
            Load::Share(percent) => format!("open-{}-{percent}", self.bytes),
        }
    }

    /// What it is called on the page.
    #[must_use]
    pub fn words(&self) -> String {
        let size = match self.bytes {
            bytes if bytes >= 1024 => format!("{} KiB", bytes / 1024),
            bytes => format!("{bytes} B"),
        };
        match self.load {
            Load::Window(window) => {
                format!("{size}, {} unconfirmed", rate_of(f64::from(window)))
            }
            Load::Share(percent) => {
                format!("{size}, {percent} % of the best durable peer's saturation")
            }
        }
    }

    /// The parameters of a run of it. `saturation`: messages a second of the best durable peer.
    #[must_use]
    pub fn parameters(&self, saturation: Option<f64>) -> Option<Parameters> {
        let base = Parameters {
            size: self.bytes.to_string(),
            credit: 10_000,
            lag: (LAG_BYTES / u64::from(self.bytes)).clamp(4_096, 65_536),
            ..Parameters::default()
        };
        Some(match self.load {
            Load::Window(window) => Parameters {
                rate: None,
                window: Some(window),
                // A window fills in whole batches; in tenths of it there is always something under way.
                batch: window / 10,
                ..base
            },
            Load::Share(percent) => Parameters {
                rate: Some((saturation? * f64::from(percent) / 100.0).round()),
                ..base
            },
        })
    }
}

/// Every cell, in the order they are run.
#[must_use]
pub fn all() -> Vec<Cell> {
    let closed = [
        (100, 1_000),
        (100, 10_000),
        (1_024, 1_000),
        (1_024, 10_000),
        (16_384, 1_000),
    ];
    let closed = closed.map(|(bytes, window)| Cell {
        bytes,
        load: Load::Window(window),
    });
    let open = SHARES.map(|percent| Cell {
        bytes: OPEN_BYTES,
        load: Load::Share(percent),
    });
    closed.into_iter().chain(open).collect()
}

/// The cell whose rate of the best durable peer the open loops are shares of.
#[must_use]
pub const fn pilot() -> Cell {
    Cell {
        bytes: OPEN_BYTES,
        load: Load::Window(1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_can_be_run() {
        for cell in all() {
            let parameters = cell.parameters(Some(25_000.0)).expect("a rate is known");
            let plan = parameters.plan().expect("a plan");
            assert_eq!(plan.is_open_loop(), matches!(cell.load, Load::Share(_)));
            assert!(plan.lag_max * u64::from(cell.bytes) <= LAG_BYTES.max(4_096 * 16_384));
        }
        let mut names: Vec<_> = all().iter().map(Cell::name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all().len());
    }

    #[test]
    fn a_share_of_an_unknown_rate_is_not_run() {
        let open = all().pop().expect("cells");
        assert_eq!(open.parameters(None), None);
        let rate = open.parameters(Some(1_000.0)).and_then(|p| p.rate);
        assert_eq!(rate, Some(800.0));
    }
}
