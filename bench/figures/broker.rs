//! A broker process under measurement: start, stop, kill, and what the kernel and its own metrics
//! say of it. Does not make load.

use std::io::{BufRead, BufReader, Error, Result};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ringpost_load::broker::{cpu_of, get, metric};

/// A running broker. Killed when it is dropped.
#[derive(Debug)]
pub struct Broker {
    child: Child,
    /// Where clients connect.
    pub address: SocketAddr,
    admin: SocketAddr,
    /// How long it took to be ready.
    pub ready_after: Duration,
}

/// How to start a broker.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program.
    pub program: PathBuf,
    /// The data directory.
    pub directory: PathBuf,
    /// The CPU it is pinned to.
    pub cpu: usize,
    /// More flags.
    pub flags: Vec<String>,
}

impl Settings {
    /// One core on its CPU, unless the flags say otherwise.
    fn cores(&self) -> Vec<String> {
        match self.flags.iter().any(|flag| flag == "--cores") {
            true => Vec::new(),
            false => ["--cores", "1", "--cpus", &self.cpu.to_string()]
                .map(str::to_owned)
                .to_vec(),
        }
    }

    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// If it ends instead.
    pub fn start(&self) -> Result<Broker> {
        let started = Instant::now();
        let log = std::fs::File::create(self.directory.with_extension("log"))?;
        let mut child = Command::new(&self.program)
            .arg("serve")
            .arg("--data-dir")
            .arg(&self.directory)
            .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .args(["--amqp-listen", "off"])
            .args(self.cores())
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let output = child
            .stdout
            .take()
            .ok_or_else(|| Error::other("no output"))?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let mut addresses = line
            .split([' ', ',', '/', '\n'])
            .filter_map(|word| word.parse::<SocketAddr>().ok());
        match (addresses.next(), addresses.next()) {
            (Some(address), Some(admin)) => Ok(Broker {
                child,
                address,
                admin,
                ready_after: started.elapsed(),
            }),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                let log = std::fs::read_to_string(self.directory.with_extension("log"));
                let last = log.unwrap_or_default();
                let last = last.lines().last().unwrap_or("it said nothing").to_owned();
                Err(Error::other(format!("the broker did not start: {last}")))
            }
        }
    }
}

/// Bytes that a process has read.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadBytes {
    /// From the device.
    pub device: u64,
    /// By read calls, the page cache included; ring operations may be missing.
    pub calls: u64,
}

impl Broker {
    /// CPU time of all its threads.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        cpu_of(self.child.id()).unwrap_or_default()
    }

    /// Resident memory in bytes.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.proc_value("status", "VmRSS:") * 1024
    }

    /// What it has read since it started.
    #[must_use]
    pub fn read_bytes(&self) -> ReadBytes {
        ReadBytes {
            device: self.proc_value("io", "read_bytes:"),
            calls: self.proc_value("io", "rchar:"),
        }
    }

    fn proc_value(&self, file: &str, name: &str) -> u64 {
        let path = format!("/proc/{}/{file}", self.child.id());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or(0)
    }

    /// A value of its metrics, by name and labels as they are printed.
    ///
    /// # Errors
    /// If it does not answer or has no such metric.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let page = get(self.admin, "/metrics").map_err(Error::other)?;
        metric(&page, name).ok_or_else(|| Error::other(format!("no metric {name}")))
    }

    /// Ends it without warning.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end and waits.
    ///
    /// # Errors
    /// If it does not end well within a minute.
    pub fn stop(mut self) -> Result<()> {
        let id = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &id]).status()?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return match status.success() {
                    true => Ok(()),
                    false => Err(Error::other(format!("the broker ended with {status}"))),
                };
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(Error::other("the broker does not end when it is told to"))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Time that a CPU was not idle, whoever used it, in the kernel's ticks of 10 ms.
#[must_use]
pub fn busy_of_cpu(cpu: usize) -> Duration {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let name = format!("cpu{cpu} ");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name.as_str()));
    let fields: Vec<u64> = line
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user already.
    let busy = fields.iter().take(8).enumerate();
    let ticks: u64 = busy
        .filter(|(at, _)| *at != 3 && *at != 4)
        .map(|(_, count)| count)
        .sum();
    Duration::from_millis(ticks * 10)
}

/// Bytes on disk below a directory.
#[must_use]
pub fn disk_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        sum += match entry.metadata() {
            Ok(found) if found.is_dir() => disk_bytes(&entry.path()),
            Ok(found) => found.blocks() * 512,
            Err(_) => 0,
        };
    }
    sum
}
