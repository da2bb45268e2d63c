//! A broker as a process of its own, whose memory can be looked at. Does not know what loads it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use crate::wire::{Wire, hello};

/// Connections that it accepts.
pub const CONNECTIONS_MAX: u32 = 400;

/// The program, serving; killed with its last user.
pub struct Process {
    child: Child,
    addr: SocketAddr,
    memory: u64,
    _directory: tempfile::TempDir,
}

impl Process {
    /// Starts with so much `memory`, as bytes with the unit `B`.
    pub fn start(cores: u16, memory: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringpost"))
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--amqp-listen",
                "off",
                "--admin-listen",
                "127.0.0.1:0",
            ])
            .arg("--data-dir")
            .arg(directory.path())
            .args([
                "--cpus",
                "off",
                "--segment-bytes",
                "4MiB",
                "--partitions",
                "16",
            ])
            .args(["--memory", memory, "--cores", &cores.to_string()])
            .args(["--connections-max", &CONNECTIONS_MAX.to_string()])
            // Variables of a test are no settings of the broker.
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let addr = lines
            .find_map(|line| {
                let line = line.unwrap();
                let rest = line.strip_prefix("ready: clients connect to ")?;
                rest.split(',').next()?.parse().ok()
            })
            .expect("it says where clients connect");
        Self {
            child,
            addr,
            memory: memory.trim_end_matches('B').parse().unwrap(),
            _directory: directory,
        }
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// An open connection.
    pub fn wire(&self) -> Wire {
        Wire::greet_at(self.addr, &hello(b""))
    }

    /// The most memory that it ever had in RAM, in bytes.
    pub fn resident_peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.unwrap().trim().trim_end_matches("kB").trim();
        kilobytes.parse::<u64>().unwrap() * 1024
    }

    /// Fails if it ever had more memory in RAM than it may.
    #[track_caller]
    pub fn stays_inside(&self, after: &str) {
        let (peak, memory) = (self.resident_peak() >> 10, self.memory >> 10);
        assert!(peak <= memory, "{peak} KiB of {memory} KiB after {after}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
