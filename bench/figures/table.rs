//! Rows of figures: what was measured, its limit, and whether it is reached. Does not measure.

use std::fmt;

use serde::Serialize;

/// A load CPU busier than this is the limit itself (rulings 27).
const LOAD_BUSY_MAX: f64 = 0.9;
/// Neighbours that take more of a CPU than this decide the figure.
const OTHERS_MAX: f64 = 0.25;

/// A rate and what it cost.
#[derive(Clone, Debug)]
pub struct Rate {
    /// Messages a second.
    pub per_second: f64,
    /// CPU time of the broker for each message.
    pub cpu_ns: f64,
    /// Share of its CPU that the load used.
    pub load_busy: f64,
    /// Share of a CPU that neighbours took.
    pub others: f64,
    /// What else there is to say.
    pub note: String,
}

/// Which side of the limit is good.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    /// The measured value should be at least the limit.
    AtLeast,
    /// The measured value should be at most the limit.
    AtMost,
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What it is.
    pub name: String,
    /// Unit of value and limit.
    pub unit: &'static str,
    /// What was measured; none if it could not be.
    pub measured: Option<f64>,
    /// What it is held against.
    pub limit: f64,
    /// Which side is good.
    pub aim: Aim,
    /// What else there is to say.
    pub note: String,
    /// `reached`, `missed`, `load-bound`, `contended` or `not driven`.
    pub verdict: &'static str,
}

/// All rows so far.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Table {
    /// In the order they were measured.
    pub rows: Vec<Row>,
    /// What is to be known of the machine.
    pub machine: Vec<String>,
}

impl Table {
    /// Adds a figure that does not depend on having the CPUs alone, and prints it.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        measured: f64,
        limit: (Aim, f64),
        note: impl Into<String>,
    ) {
        self.add_timed(name, unit, measured, limit, 0.0, note);
    }

    /// Adds a figure that depends on time. `others`: the share of a CPU that neighbours took from
    /// broker or load; with much of it neither success nor failure means anything, since floors
    /// suffer from neighbours too.
    pub fn add_timed(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        measured: f64,
        (aim, limit): (Aim, f64),
        others: f64,
        note: impl Into<String>,
    ) {
        let is_reached = match aim {
            Aim::AtLeast => measured >= limit,
            Aim::AtMost => measured <= limit,
        };
        self.push(Row {
            name: name.into(),
            unit,
            measured: Some(measured),
            limit,
            aim,
            note: note.into(),
            verdict: if others > OTHERS_MAX {
                "contended"
            } else if is_reached {
                "reached"
            } else {
                "missed"
            },
        });
    }

    /// Adds a rate. Where the load's CPU was the limit, the broker's CPU time a message decides
    /// (rulings 27); where neighbours took the CPU, nothing is decided unless the rate was reached.
    pub fn add_rate(&mut self, name: &str, limit: f64, cpu_limit_ns: f64, found: &Rate) {
        let verdict = if found.per_second >= limit {
            "reached"
        } else if found.load_busy >= LOAD_BUSY_MAX && found.cpu_ns <= cpu_limit_ns {
            "load-bound"
        } else if found.others > OTHERS_MAX {
            "contended"
        } else {
            "missed"
        };
        self.push(Row {
            name: name.to_owned(),
            unit: "messages/s",
            measured: Some(found.per_second),
            limit,
            aim: Aim::AtLeast,
            note: format!(
                "broker CPU {:.0} ns a message (limit {cpu_limit_ns:.0}); {}",
                found.cpu_ns, found.note
            ),
            verdict,
        });
    }

    /// Adds a figure that could not be measured.
    pub fn add_undriven(&mut self, name: &str, why: impl fmt::Display) {
        self.push(Row {
            name: name.to_owned(),
            unit: "",
            measured: None,
            limit: 0.0,
            aim: Aim::AtLeast,
            note: why.to_string(),
            verdict: "not driven",
        });
    }

    fn push(&mut self, row: Row) {
        println!("{row}");
        self.rows.push(row);
    }

    /// The rows as JSON.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_else(|error| error.to_string())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(measured) = self.measured else {
            return write!(f, "{:<44} NOT DRIVEN: {}", self.name, self.note);
        };
        let sign = match self.aim {
            Aim::AtLeast => ">=",
            Aim::AtMost => "<=",
        };
        let ratio = measured / self.limit;
        write!(
            f,
            "{:<44} {:>13} {sign} {:>11} {:<11} x{ratio:<6.2} {:<10} {}",
            self.name,
            number(measured),
            number(self.limit),
            self.unit,
            self.verdict,
            self.note
        )
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.machine {
            writeln!(f, "# {line}")?;
        }
        writeln!(
            f,
            "{:<44} {:>13}    {:>11} {:<11} {:<7} {:<10} note",
            "figure", "measured", "limit", "unit", "ratio", "verdict"
        )?;
        for row in &self.rows {
            writeln!(f, "{row}")?;
        }
        Ok(())
    }
}

fn number(value: f64) -> String {
    if value.abs() >= 1_000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}
