//! What was measured, run by run, in a file that grows by a line for each: a comparison that was ended
//! goes on where it was. Does not measure.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;
use ringpost_load::machine::Facts;
use ringpost_load::report::quantile;
use ringpost_load::result::{Class, Results, Times};
use serde::{Deserialize, Serialize};

use super::cells::{self, Load};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What is the same for all runs of a book. A book with another head is another comparison.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Head {
    /// Seconds measured.
    pub seconds: f64,
    /// Seconds before that.
    pub warm_up: f64,
    /// CPU of the broker.
    pub broker_cpu: usize,
    /// CPU of the load.
    pub load_cpu: usize,
    /// Version of Ringpost, and a digest of its program.
    pub ringpost: String,
    /// The machine.
    pub machine: Facts,
}

impl Head {
    /// Whether another is of the same comparison: the same settings on the same machine.
    fn is_same(&self, other: &Self) -> bool {
        let lasting = |head: &Self| -> Vec<_> {
            let facts = head.machine.0.iter();
            let lasting = facts.filter(|(name, _)| !name.starts_with("run queue"));
            lasting.cloned().collect()
        };
        (self.seconds, self.warm_up) == (other.seconds, other.warm_up)
            && (self.broker_cpu, self.load_cpu) == (other.broker_cpu, other.load_cpu)
            && self.ringpost == other.ringpost
            && lasting(self) == lasting(other)
    }
}

/// One run of one cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Name of the setting.
    pub setting: String,
    /// Name of the cell.
    pub cell: String,
    /// Which round, from 1 on; 0 is the pilot that finds the rates.
    pub round: u32,
    /// When it began, in ms since 1970.
    pub started_ms: u64,
    /// Version of the broker, as it says.
    pub version: String,
    /// What a confirm was worth, as the instrument says.
    pub class: Class,
    /// Open loop: messages a second that were due.
    pub offered: Option<f64>,
    /// Published, confirmed and delivered a second: the least of these.
    pub achieved: f64,
    /// Published a second.
    pub published: f64,
    /// Delivered a second.
    pub delivered: f64,
    /// Share of its CPU that the load used.
    pub load_busy: f64,
    /// CPU time of the broker for each message, in ns.
    pub cpu_ns: Option<f64>,
    /// Messages lost, doubled, refused or out of order; 0 is right.
    pub faults: u64,
    /// Why its figures do not count.
    pub invalid: Option<String>,
    /// What else to know.
    pub notes: Vec<String>,
    /// From the intended time to the confirm.
    pub confirm: Option<Times>,
    /// From the intended time to the delivery.
    pub end_to_end: Option<Times>,
    /// How late a thread on the load's CPU is woken.
    pub hiccup_max_ns: u64,
}

impl Run {
    /// The one round of a result.
    #[must_use]
    pub fn of(setting: &str, cell: &str, round: u32, version: &str, results: &Results) -> Self {
        let found = &results.rounds[0];
        let times = |name: &str| found.times.get(name).cloned();
        Self {
            setting: setting.into(),
            cell: cell.into(),
            round,
            started_ms: results.started_ms,
            version: version.into(),
            class: results.class.clone(),
            offered: found.offered,
            achieved: found.achieved_per_second,
            published: found.published_per_second,
            delivered: found.delivered_per_second,
            load_busy: found.load_busy,
            cpu_ns: found.usage.cpu_ns_per_message,
            faults: u64::from(!found.counts.is_clean()),
            invalid: found.invalid.clone(),
            notes: found.notes.clone(),
            confirm: times("confirm"),
            end_to_end: times("end-to-end"),
            hiccup_max_ns: found.hiccups.0.max(),
        }
    }

    /// A run that came to no result.
    #[must_use]
    pub fn failed(setting: &str, cell: &str, round: u32, version: &str, why: String) -> Self {
        Self {
            setting: setting.into(),
            cell: cell.into(),
            round,
            started_ms: 0,
            version: version.into(),
            class: Class {
                letter: "?".into(),
                is_durable: false,
                words: "not measured".into(),
            },
            offered: None,
            achieved: 0.0,
            published: 0.0,
            delivered: 0.0,
            load_busy: 0.0,
            cpu_ns: None,
            faults: 0,
            invalid: Some(why),
            notes: Vec::new(),
            confirm: None,
            end_to_end: None,
            hiccup_max_ns: 0,
        }
    }

    /// What the machine does without a broker.
    #[must_use]
    pub fn floor(what: &str, round: u32, started_ms: u64, times: Histogram<u64>) -> Self {
        Self {
            started_ms,
            invalid: None,
            end_to_end: Some(Times(times)),
            ..Self::failed(what, "floor", round, "", String::new())
        }
    }

    /// Whether its figures count.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.invalid.is_none() && self.faults == 0
    }

    /// A quantile of the end-to-end times in ns, if enough messages lie above it.
    #[must_use]
    pub fn end_to_end_at(&self, at: f64) -> Option<f64> {
        quantile(&self.end_to_end.as_ref()?.0, at).map(|ns| ns as f64)
    }

    /// The same of the confirms.
    #[must_use]
    pub fn confirm_at(&self, at: f64) -> Option<f64> {
        quantile(&self.confirm.as_ref()?.0, at).map(|ns| ns as f64)
    }
}

/// The file and what is in it.
#[derive(Debug)]
pub struct Book {
    path: PathBuf,
    /// Its head.
    pub head: Head,
    /// The runs, in the order in which they were made.
    pub runs: Vec<Run>,
}

impl Book {
    /// Opens the book of a directory, or begins one. A last line that was not written whole is taken
    /// away: its run is made again.
    ///
    /// # Errors
    /// If it belongs to another comparison, a line in it is damaged, or the disk fails.
    pub fn open(directory: &Path, head: Head) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let path = directory.join("rounds.jsonl");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(format!("cannot read {}: {error}", path.display()).into()),
        };
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        if whole < text.len() {
            OpenOptions::new()
                .write(true)
                .open(&path)?
                .set_len(whole as u64)?;
        }
        let mut lines = text[..whole].lines().enumerate();
        let mut book = Self {
            path,
            head,
            runs: Vec::new(),
        };
        let Some((_, first)) = lines.next() else {
            book.append(&serde_json::to_string(&book.head)?)?;
            return Ok(book);
        };
        let there: Head = serde_json::from_str(first)
            .map_err(|error| format!("{}: line 1 is no head: {error}", book.path.display()))?;
        if !there.is_same(&book.head) {
            return Err(format!(
                "{} is of another comparison (seconds, CPUs, version or machine differ): choose another \
                 --out",
                book.path.display()
            )
            .into());
        }
        book.head = there;
        for (at, line) in lines {
            let run = serde_json::from_str(line)
                .map_err(|error| format!("{}: line {}: {error}", book.path.display(), at + 1))?;
            book.keep(run);
        }
        Ok(book)
    }

    /// Reads a book, whatever comparison it is of.
    ///
    /// # Errors
    /// If there is none or it is damaged.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join("rounds.jsonl");
        let text = std::fs::read_to_string(&path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let first = text.lines().next().unwrap_or_default();
        let head = serde_json::from_str(first)
            .map_err(|error| format!("{}: line 1 is no head: {error}", path.display()))?;
        Self::open(directory, head)
    }

    /// Whether a run was made already. What could not even be started is tried again.
    #[must_use]
    pub fn has(&self, setting: &str, cell: &str, round: u32) -> bool {
        self.runs.iter().any(|run| {
            let is_it = run.setting == setting && run.cell == cell && run.round == round;
            is_it && run.started_ms > 0
        })
    }

    /// The rate that the open loops of this book are shares of, if any was run.
    #[must_use]
    pub fn saturation(&self) -> Option<f64> {
        self.runs.iter().find_map(|run| {
            let cell = cells::all()
                .into_iter()
                .find(|cell| cell.name() == run.cell)?;
            match cell.load {
                Load::Share(percent) => Some(run.offered? * 100.0 / f64::from(percent)),
                Load::Window(_) => None,
            }
        })
    }

    /// Keeps a run.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn add(&mut self, run: Run) -> Result<()> {
        self.append(&serde_json::to_string(&run)?)?;
        self.keep(run);
        Ok(())
    }

    /// A later try of the same takes the place of one that could not be started.
    fn keep(&mut self, run: Run) {
        let is_it = |old: &Run| {
            (&old.setting, &old.cell, old.round) == (&run.setting, &run.cell, run.round)
        };
        self.runs.retain(|old| !is_it(old));
        self.runs.push(run);
    }

    fn append(&self, line: &str) -> Result<()> {
        let mut file: File = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.path)?;
        file.write_all(format!("{line}\n").as_bytes())?;
        file.sync_data()?;
        Ok(())
    }

    /// The runs of a cell; without the pilot.
    pub fn of(&self, setting: &str, cell: &str) -> impl Iterator<Item = &Run> {
        self.runs
            .iter()
            .filter(move |run| run.setting == setting && run.cell == cell && run.round > 0)
    }

    /// The runs of a cell that count; without the pilot.
    pub fn counting(&self, setting: &str, cell: &str) -> impl Iterator<Item = &Run> {
        self.of(setting, cell).filter(|run| run.is_valid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            seconds: 1.0,
            warm_up: 0.5,
            broker_cpu: 0,
            load_cpu: 1,
            ringpost: "0.1.0".into(),
            machine: Facts::default(),
        }
    }

    fn run(round: u32) -> Run {
        Run {
            started_ms: 1,
            ..Run::failed("redis-always", "closed-100-w1000", round, "7", "no".into())
        }
    }

    #[test]
    fn a_book_goes_on_where_it_was_ended() {
        let home = tempfile::tempdir().expect("a directory");
        let mut book = Book::open(home.path(), head()).expect("a new book");
        book.add(run(1)).expect("kept");
        book.add(run(2)).expect("kept");
        let path = home.path().join("rounds.jsonl");
        let text = std::fs::read_to_string(&path).expect("there");
        std::fs::write(&path, &text[..text.len() - 7]).expect("cut");
        let mut again = Book::open(home.path(), head()).expect("the same book");
        assert!(again.has("redis-always", "closed-100-w1000", 1));
        assert!(!again.has("redis-always", "closed-100-w1000", 2));
        again.add(run(2)).expect("kept");
        let missing = Run {
            started_ms: 0,
            ..run(3)
        };
        again.add(missing).expect("kept");
        assert!(
            !again.has("redis-always", "closed-100-w1000", 3),
            "it is tried again"
        );
        let read = Book::read(home.path()).expect("read");
        assert_eq!(read.runs.len(), 3);
        assert_eq!(read.counting("redis-always", "closed-100-w1000").count(), 0);
    }

    #[test]
    fn another_comparison_and_a_damaged_line_are_told() {
        let home = tempfile::tempdir().expect("a directory");
        let mut book = Book::open(home.path(), head()).expect("a new book");
        book.add(run(1)).expect("kept");
        let other = Head {
            seconds: 9.0,
            ..head()
        };
        let error = Book::open(home.path(), other).expect_err("another");
        assert!(error.to_string().contains("another comparison"), "{error}");
        let path = home.path().join("rounds.jsonl");
        let text = std::fs::read_to_string(&path).expect("there");
        std::fs::write(&path, text.replace("\"round\":1", "\"round\":x")).expect("damaged");
        let error = Book::open(home.path(), head()).expect_err("damaged");
        assert!(error.to_string().contains("line 2"), "{error}");
    }
}
