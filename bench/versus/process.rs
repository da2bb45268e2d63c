//! A broker's process: started on one CPU, ready when its port answers, ended by its own pid. Does not
//! know which broker it is.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How long a broker may take until it answers.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take to end in order; then it is killed.
const END_WITHIN: Duration = Duration::from_secs(30);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Most lines of a log that an error quotes.
const LOG_LINES: usize = 5;

/// A process that was started here, and is ended at the latest when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a command that runs on one CPU only, with its output in a file.
    ///
    /// # Errors
    /// If there is no such CPU or no such program.
    pub fn start(mut command: Command, cpu: usize, log: &Path) -> Result<Self> {
        let output = std::fs::File::create(log)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        // A process runs where the thread runs that starts it.
        let started = std::thread::scope(|scope| {
            let starter = scope.spawn(|| {
                if !ringpost_load::machine::pin(cpu) {
                    return Err(format!("there is no CPU {cpu} that this process may use"));
                }
                let program = command.get_program().to_string_lossy().into_owned();
                command
                    .spawn()
                    .map_err(|error| format!("cannot start {program}: {error}"))
            });
            starter.join().map_err(|_| "a thread panicked".to_owned())?
        });
        Ok(Self { child: started? })
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `is_ready` says so.
    ///
    /// # Errors
    /// If it ends instead, or is not ready in a minute; with the last lines of its log.
    pub fn wait_ready(&mut self, log: &Path, mut is_ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if is_ready() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("it ended with {status}: {}", last_lines(log)).into());
            }
            if Instant::now() >= deadline {
                let text = "it is not ready after a minute";
                return Err(format!("{text}: {}", last_lines(log)).into());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Asks it to end, waits, and kills it if it does not.
    ///
    /// # Errors
    /// If it had to be killed.
    pub fn end(mut self) -> Result<()> {
        let id = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &id]).status()?;
        let deadline = Instant::now() + END_WITHIN;
        while Instant::now() < deadline {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        Err(format!("process {id} did not end when it was told to, and was killed").into())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; what it started would go on without it.
        let below = below(self.child.id());
        let _ = self.child.kill();
        let _ = self.child.wait();
        for id in below {
            let _ = Command::new("kill")
                .args(["-KILL", &id.to_string()])
                .status();
        }
    }
}

/// Sees to it that whoever ends this process ends what it has started, too. Call it before the first
/// thread is started.
///
/// # Errors
/// If signals cannot be waited for.
pub fn end_with_this_one() -> Result<()> {
    ringpost::rt::block_termination_signals()?;
    let signals = ringpost::rt::spawn_signal_thread()?;
    std::thread::Builder::new()
        .name("end".into())
        .spawn(move || {
            let Ok(signal) = signals.recv() else { return };
            for id in below(std::process::id()) {
                // It may have ended already.
                let _ = Command::new("kill")
                    .args(["-KILL", &id.to_string()])
                    .status();
            }
            eprintln!("versus: told to end; the same command goes on where it was");
            std::process::exit(match signal {
                ringpost::rt::Signal::Terminate => 143,
                ringpost::rt::Signal::Interrupt => 130,
            });
        })?;
    Ok(())
}

/// The processes that a process has started, and theirs.
fn below(process: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            let text = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            // The name, in brackets, may hold anything; the state and the parent follow it.
            let after = text.rsplit_once(')')?.1;
            Some((id, after.split_whitespace().nth(1)?.parse().ok()?))
        })
        .collect();
    let mut found = vec![process];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(
            parents
                .iter()
                .filter(|(_, of)| *of == parent)
                .map(|(id, _)| id),
        );
        at += 1;
    }
    found.split_off(1)
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
    let from = lines.len().saturating_sub(LOG_LINES);
    match lines.is_empty() {
        true => "it said nothing".into(),
        false => lines[from..].join(" | "),
    }
}

/// A port of this machine that nobody listens on.
///
/// # Errors
/// If there is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// Whether somebody listens.
#[must_use]
pub fn answers(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ends_at_once_says_why() {
        let home = tempfile::tempdir().expect("a directory");
        let log = home.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo the disk is gone >&2; exit 3"]);
        let mut process = Process::start(command, 0, &log).expect("sh starts");
        let error = process.wait_ready(&log, || false).expect_err("it ended");
        assert!(error.to_string().contains("the disk is gone"), "{error}");
        let mut none = Process::start(Command::new("/no/such/broker"), 0, &log);
        assert!(none.as_mut().is_err());
        let error = Process::start(Command::new("true"), 1_000, &log).expect_err("no such CPU");
        assert!(error.to_string().contains("CPU 1000"), "{error}");
    }

    #[test]
    fn what_a_process_has_started_ends_with_it() {
        let home = tempfile::tempdir().expect("a directory");
        let (log, said) = (home.path().join("log"), home.path().join("child"));
        let mut command = Command::new("sh");
        let script = format!(
            "sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait",
            said.display()
        );
        command.args(["-c", &script]);
        let mut process = Process::start(command, 0, &log).expect("sh starts");
        process
            .wait_ready(&log, || said.exists())
            .expect("it is up");
        let child = std::fs::read_to_string(&said).expect("said");
        let child: u32 = child.trim().parse().expect("a number");
        assert!(below(process.id()).contains(&child));
        drop(process);
        // It is killed, and gone as soon as the kernel has come to it.
        let stat = format!("/proc/{child}/stat");
        let is_gone = || match std::fs::read_to_string(&stat) {
            Ok(text) => text.contains(") Z"),
            Err(_) => true,
        };
        let deadline = Instant::now() + END_WITHIN;
        while !is_gone() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(is_gone());
    }

    #[test]
    fn a_process_is_ended_in_order() {
        let home = tempfile::tempdir().expect("a directory");
        let log = home.path().join("log");
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done",
        ]);
        let mut process = Process::start(command, 0, &log).expect("sh starts");
        let says = |word: &str| std::fs::read_to_string(&log).is_ok_and(|text| text.contains(word));
        process.wait_ready(&log, || says("up")).expect("it is up");
        process.end().expect("in order");
        assert!(says("bye"));
    }
}
