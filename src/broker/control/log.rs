//! The log: events of cores and of everything else, written by one thread so that nobody who logs
//! ever waits for a terminal, a pipe or a disk. Does not know what is worth an event.
//!
//! A full channel drops the line and counts it; the log says so when it can write again.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringpost_engine::effect::Severity;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LogFormat, LogLevel};

/// Entries that may wait for the log thread.
const ENTRIES_MAX: usize = 4096;
/// Warnings of the cores that are written within a second; more are dropped and counted, so that
/// who opens and breaks connections all day does not fill the disk with our log.
const WARNINGS_PER_SECOND_MAX: u32 = 100;
/// What that is counted over.
const SECOND: Duration = Duration::from_secs(1);
/// Longest text of a core's event; the rest is cut.
const TEXT_BYTES_MAX: usize = 4096;

/// What the log thread is given.
#[derive(Debug)]
enum Entry {
    /// A line that is formatted already.
    Line(Vec<u8>),
    /// An event of a core, formatted by the log thread.
    Event {
        /// The core.
        core: u16,
        /// How bad.
        severity: Severity,
        /// What.
        text: String,
    },
    /// Write what there is and end.
    End,
}

thread_local! {
    /// Whether this is the log thread, which writes instead of sending to itself.
    static IS_LOG_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// How one core logs. Sending never blocks and never waits.
#[derive(Clone, Debug)]
pub struct CoreLog {
    core: u16,
    sink: Sink,
}

impl CoreLog {
    /// Logs what an operator should know; drops and counts it if the log cannot keep up.
    pub fn report(&self, severity: Severity, mut text: String) {
        let mut end = text.len().min(TEXT_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        self.sink.send(Entry::Event {
            core: self.core,
            severity,
            text,
        });
    }
}

/// The way to the log thread.
#[derive(Clone, Debug)]
struct Sink {
    /// Bounded by [`ENTRIES_MAX`].
    entries: flume::Sender<Entry>,
    /// Shared by all who send, the log thread and the metrics; only ever grows.
    dropped: Arc<AtomicU64>,
}

impl Sink {
    fn send(&self, entry: Entry) {
        if self.entries.try_send(entry).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The running log; dropping it writes what was sent before and ends the thread.
#[derive(Debug)]
pub struct Log {
    sink: Sink,
    /// Whether it is written for people.
    is_human: bool,
    thread: Option<JoinHandle<()>>,
}

impl Log {
    /// How core number `core` logs.
    #[must_use]
    pub fn of_core(&self, core: u16) -> CoreLog {
        CoreLog {
            core,
            sink: self.sink.clone(),
        }
    }

    /// Whether it is written for people, and not for programs.
    #[must_use]
    pub fn is_human(&self) -> bool {
        self.is_human
    }

    /// The counter of dropped entries.
    #[must_use]
    pub fn dropped(&self) -> Arc<AtomicU64> {
        self.sink.dropped.clone()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // Blocks while the channel is full: the end of the process may wait for its log.
        if self.sink.entries.send(Entry::End).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join(); // a panic of the log thread has said so on standard error
        }
    }
}

/// Starts the log on standard error and makes it the one of the process.
///
/// # Errors
/// The thread cannot be started, or the process has a log already.
pub fn start(format: LogFormat, level: LogLevel) -> io::Result<Log> {
    let is_human = match format {
        LogFormat::Human => true,
        LogFormat::Json => false,
        LogFormat::Auto => io::stderr().is_terminal(),
    };
    let log = start_thread(io::stderr(), is_human)?;
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(filter(level))
        .with_writer(log.sink.clone())
        .with_ansi(is_human && io::stderr().is_terminal());
    let set = if is_human {
        subscriber.try_init()
    } else {
        subscriber.json().try_init()
    };
    set.map_err(io::Error::other)?;
    Ok(log)
}

/// Starts the thread that writes to `output`.
fn start_thread(output: impl Write + Send + 'static, is_human: bool) -> io::Result<Log> {
    let (entries, received) = flume::bounded(ENTRIES_MAX);
    let dropped = Arc::new(AtomicU64::new(0));
    let counted = dropped.clone();
    let thread = std::thread::Builder::new()
        .name("log".into())
        .spawn(move || write_all(&received, output, &counted))?;
    Ok(Log {
        sink: Sink { entries, dropped },
        is_human,
        thread: Some(thread),
    })
}

/// Writes entries until the end.
fn write_all(entries: &flume::Receiver<Entry>, mut output: impl Write, dropped: &AtomicU64) {
    IS_LOG_THREAD.set(true);
    let mut dropped_said = 0;
    let mut dropped_said_at = None;
    let mut pace = Pace::default();
    for entry in entries {
        match entry {
            // A log that cannot be written has nowhere to say so.
            Entry::Line(line) => drop(output.write_all(&line)),
            Entry::Event {
                core,
                severity,
                text,
            } => match severity {
                Severity::Info => tracing::info!(target: "ringpost::core", core, "{text}"),
                Severity::Error => tracing::error!(target: "ringpost::core", core, "{text}"),
                // Whatever peers can bring about is a warning, and they can as often as they like.
                Severity::Warning if !pace.admits(Instant::now()) => {
                    dropped.fetch_add(1, Ordering::Relaxed);
                }
                Severity::Warning => tracing::warn!(target: "ringpost::core", core, "{text}"),
            },
            Entry::End => break,
        }
        let dropped_now = dropped.load(Ordering::Relaxed);
        let is_quiet = dropped_said_at.is_some_and(|at: Instant| at.elapsed() < SECOND);
        if dropped_now > dropped_said && !is_quiet {
            dropped_said_at = Some(Instant::now());
            let dropped = dropped_now - dropped_said;
            dropped_said = dropped_now;
            tracing::warn!(dropped, "log entries were dropped since they came too fast");
        }
    }
    drop(output.flush()); // as above
}

/// How many warnings of the cores were written lately.
#[derive(Debug, Default)]
struct Pace {
    /// When the second that is counted began.
    since: Option<Instant>,
    /// Warnings in it.
    count: u32,
}

impl Pace {
    /// Whether another warning may be written.
    fn admits(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now - since >= SECOND) {
            *self = Pace {
                since: Some(now),
                count: 0,
            };
        }
        self.count += 1;
        self.count <= WARNINGS_PER_SECOND_MAX
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// One event being formatted; sent when it is complete.
#[derive(Debug)]
pub struct LineWriter {
    sink: Sink,
    line: Vec<u8>,
}

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        if self.line.is_empty() {
            return;
        }
        if IS_LOG_THREAD.get() {
            drop(io::stderr().write_all(&self.line)); // as in `write_all`
        } else {
            self.sink.send(Entry::Line(std::mem::take(&mut self.line)));
        }
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> LineWriter {
        LineWriter {
            sink: self.clone(),
            line: Vec::with_capacity(256),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Output that others can read, and that can be held up.
    #[derive(Clone)]
    struct Shown {
        lines: flume::Sender<Vec<u8>>,
    }

    impl Write for Shown {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.lines.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_arrive_in_order_and_the_end_waits_for_them() {
        let (lines, shown) = flume::bounded(ENTRIES_MAX);
        let log = start_thread(Shown { lines }, false).expect("starts");
        for number in 0..100 {
            let mut writer = log.sink.make_writer();
            write!(writer, "{number}").expect("a vector takes all");
        }
        drop(log);
        let all: Vec<Vec<u8>> = shown.iter().collect();
        let expected: Vec<Vec<u8>> = (0..100)
            .map(|number| number.to_string().into_bytes())
            .collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn a_log_that_cannot_keep_up_drops_and_counts_and_never_blocks() {
        // The output takes one line and then waits for us.
        let (lines, shown) = flume::bounded(0);
        let log = start_thread(Shown { lines }, false).expect("starts");
        let core = log.of_core(3);
        let count = ENTRIES_MAX as u64 + 10;
        for _ in 0..count {
            log.sink.send(Entry::Line(b"x".to_vec()));
        }
        let dropped = log.dropped().load(Ordering::Relaxed);
        // The thread may have taken one entry from the channel before it was held up.
        assert!((9..=10).contains(&dropped), "{dropped}");
        core.report(Severity::Error, "y".into());
        assert!(log.dropped().load(Ordering::Relaxed) >= dropped);
        let reader = std::thread::spawn(move || shown.iter().count() as u64);
        drop(log);
        let arrived = reader.join().expect("no panic");
        assert!(
            arrived + dropped >= count,
            "{arrived} arrived and {dropped} dropped of {count}"
        );
    }

    #[test]
    fn warnings_have_a_pace() {
        let mut pace = Pace::default();
        let start = Instant::now();
        let mut admitted = |at: Instant| (0..1_000).filter(|_| pace.admits(at)).count();
        assert_eq!(admitted(start), WARNINGS_PER_SECOND_MAX as usize);
        assert_eq!(admitted(start + SECOND / 2), 0);
        assert_eq!(admitted(start + SECOND), WARNINGS_PER_SECOND_MAX as usize);
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let (lines, _shown) = flume::bounded(1);
        let log = start_thread(Shown { lines }, false).expect("starts");
        log.of_core(0)
            .report(Severity::Info, "ü".repeat(TEXT_BYTES_MAX));
    }
}
