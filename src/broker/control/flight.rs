//! Where flight records go: one file a core in the data directory, written when its journal fails by
//! a thread of its own, since the disk may not answer, or by the core's thread when that panics.
//! Does not know what the records say.
//!
//! Beside the newest record of a core lies the one before it, and no more: a broker that is restarted
//! all day does not fill the disk.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::thread::JoinHandle;

use crate::data::flight::{Crash, FlightRecorder};

thread_local! {
    /// The recorder of the core that runs on this thread, and where its record belongs.
    static OURS: RefCell<Option<(FlightRecorder, PathBuf)>> = const { RefCell::new(None) };
}

/// Writes down the records of cores whose journals fail.
#[derive(Debug)]
pub struct FlightWriter {
    /// Bounded by the number of cores.
    crashes: flume::Sender<Crash>,
    thread: Option<JoinHandle<()>>,
}

impl FlightWriter {
    /// Starts the thread, for the cores of a data directory.
    ///
    /// # Errors
    /// There can be no more threads.
    pub fn start(directory: &Path, cores: u16) -> io::Result<Self> {
        let (crashes, received) = flume::bounded::<Crash>(usize::from(cores));
        let directory = directory.to_owned();
        let write_all = move || {
            for crash in received {
                let core = crash.core;
                match write(&directory, &crash) {
                    Ok(path) => {
                        tracing::error!("what core {core} did last is in {}", path.display())
                    }
                    Err(error) => tracing::error!(
                        "what core {core} did last cannot be written to {}: {error}",
                        directory.display()
                    ),
                }
            }
        };
        let thread = std::thread::Builder::new().name("flight".into());
        Ok(Self {
            crashes,
            thread: Some(thread.spawn(write_all)?),
        })
    }

    /// Where the cores send their records.
    #[must_use]
    pub fn crashes(&self) -> flume::Sender<Crash> {
        self.crashes.clone()
    }

    /// Ends the thread when every core has ended and everything is written.
    pub fn end(mut self) {
        drop(self.crashes);
        if let Some(thread) = self.thread.take() {
            // A panic of it has said so on standard error.
            let _ = thread.join();
        }
    }
}

/// From now on a panic of this thread leaves the record of its core in the data directory.
pub fn watch_this_thread(recorder: &FlightRecorder, directory: &Path) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            before(info);
            // A panic of this very code finds it borrowed, and leaves it at that.
            let _ = OURS.try_with(|ours| {
                if let Ok(ours) = ours.try_borrow_mut()
                    && let Some((recorder, directory)) = &*ours
                {
                    write_in_panic(recorder, directory, info.to_string());
                }
            });
        }));
    });
    OURS.set(Some((recorder.clone(), directory.to_owned())));
}

/// The process may end with this panic, so nobody else can be asked to write or to log.
fn write_in_panic(recorder: &FlightRecorder, directory: &Path, reason: String) {
    let Some(crash) = recorder.crash(reason) else {
        return;
    };
    match write(directory, &crash) {
        Ok(path) => eprintln!("what the core did last is in {}", path.display()),
        Err(error) => eprintln!("what the core did last cannot be written: {error}"),
    }
}

/// Writes a record, and keeps the one before it. Says where it is.
fn write(directory: &Path, crash: &Crash) -> io::Result<PathBuf> {
    let path = directory.join(format!("flight-{:04}.txt", crash.core));
    let before = directory.join(format!("flight-{:04}.old.txt", crash.core));
    match fs::rename(&path, &before) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let text = format!(
        "What core {} of ringpost {} was given last, and hashes of what it wanted.\n\
         It ended with: {}\n\
         Each line: nanoseconds before the last one, what happened, to what, length, hash.\n\
         {}",
        crash.core,
        env!("CARGO_PKG_VERSION"),
        crash.reason.replace('\n', " "),
        crash.flight.text()
    );
    fs::write(&path, text)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringpost_engine::{ConnId, Input, Mono};

    #[test]
    fn a_panic_leaves_the_record_of_its_own_core_and_the_one_before() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().to_owned();
        for life in 1..=3 {
            let path = path.clone();
            let core = std::thread::spawn(move || {
                let (crashes, _) = flume::bounded(1);
                let recorder = FlightRecorder::new(7, 4, crashes);
                watch_this_thread(&recorder, &path);
                let conn = ConnId(life);
                recorder.given(Mono(5), &Input::Opened { conn });
                panic!("in life {life}");
            });
            core.join().expect_err("it panics");
        }
        let read = |name| fs::read_to_string(directory.path().join(name)).expect("it is there");
        let newest = read("flight-0007.txt");
        assert!(newest.contains("in life 3"), "{newest}");
        assert!(newest.ends_with("-0 opened connection 3 length 0 hash 0000000000000000\n"));
        assert!(read("flight-0007.old.txt").contains("in life 2"));
        let names = fs::read_dir(directory.path()).expect("it is there");
        assert_eq!(names.count(), 2);
    }

    #[test]
    fn a_panic_of_another_thread_leaves_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let (crashes, _) = flume::bounded(1);
        watch_this_thread(&FlightRecorder::new(0, 4, crashes), directory.path());
        let other = std::thread::spawn(|| panic!("elsewhere"));
        other.join().expect_err("it panics");
        OURS.set(None);
        assert_eq!(fs::read_dir(directory.path()).expect("is there").count(), 0);
    }
}
