//! The program as a process: started on free ports, killed, ended, asked how it is. Does not know
//! what it stores.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::Outcome;

/// How long an HTTP answer may take.
const HTTP_PATIENCE: Duration = Duration::from_secs(10);
/// How long a start may take, recovery included.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long a shutdown may take: longer than its drain.
const END_PATIENCE: Duration = Duration::from_secs(60);

/// How the program is started.
#[derive(Clone, Debug)]
pub struct Program {
    /// The program.
    pub path: PathBuf,
    /// Its data directory.
    pub data: PathBuf,
    /// Where its log is kept, all starts one after another.
    pub log: PathBuf,
    /// Cores.
    pub cores: u16,
    /// Further arguments.
    pub arguments: Vec<String>,
}

impl Program {
    fn command(&self) -> Outcome<Command> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(|error| format!("cannot open {}: {error}", self.log.display()))?;
        let mut command = Command::new(&self.path);
        command
            .arg("serve")
            .arg("--data-dir")
            .arg(&self.data)
            .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .args(["--amqp-listen", "off"])
            .args(["--memory", "160MiB", "--connections-max", "100"])
            .args(["--segment-bytes", "4MiB", "--drain-timeout", "2s"])
            .args(["--cpus", "off", "--log-format", "json"])
            .args(["--cores", &self.cores.to_string()])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("RINGPOST_") {
                command.env_remove(variable);
            }
        }
        Ok(command)
    }

    /// Starts it and does not wait until it serves.
    ///
    /// # Errors
    /// The program cannot be run.
    pub fn spawn(&self) -> Outcome<Broker> {
        let child = self
            .command()?
            .spawn()
            .map_err(|error| format!("cannot run {}: {error}", self.path.display()))?;
        Ok(Broker {
            child,
            log: self.log.clone(),
            clients: String::new(),
            admin: String::new(),
        })
    }

    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// The program cannot be run, or ends instead.
    pub fn start(&self) -> Outcome<Broker> {
        match self.start_or_status()? {
            Started::Serving(broker) => Ok(broker),
            Started::Ended(status) => Err(format!(
                "the broker did not start ({status}): {}",
                last_words(&self.log)
            )),
        }
    }

    /// The same where it may rightly end instead.
    ///
    /// # Errors
    /// The program cannot be run, or does not say whether it serves.
    pub fn start_or_status(&self) -> Outcome<Started> {
        let mut broker = self.spawn()?;
        let line = broker.first_line()?;
        let addresses = line
            .strip_prefix("ready: clients connect to ")
            .and_then(|rest| {
                rest.trim_end()
                    .split_once(", metrics and health are at http://")
            });
        let Some((clients, admin)) = addresses else {
            let status = broker.child.wait();
            let status = status.map_err(|error| format!("cannot wait for the broker: {error}"))?;
            return Ok(Started::Ended(status));
        };
        (broker.clients, broker.admin) = (clients.to_owned(), admin.to_owned());
        Ok(Started::Serving(broker))
    }

    /// Runs `ringpost verify` on its data; how that ended.
    ///
    /// # Errors
    /// The program cannot be run.
    pub fn verify(&self) -> Outcome<ExitStatus> {
        Command::new(&self.path)
            .arg("verify")
            .arg("--data-dir")
            .arg(&self.data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .map_err(|error| format!("cannot run {}: {error}", self.path.display()))
    }

    /// The whole log of all starts.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn log_text(&self) -> Outcome<String> {
        read_text(&self.log)
    }
}

/// What came of a start.
#[derive(Debug)]
pub enum Started {
    /// It serves.
    Serving(Broker),
    /// It has ended instead.
    Ended(ExitStatus),
}

/// A file as text.
///
/// # Errors
/// It cannot be read.
pub fn read_text(path: &Path) -> Outcome<String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A process of the program; killed when dropped.
#[derive(Debug)]
pub struct Broker {
    child: Child,
    log: PathBuf,
    clients: String,
    admin: String,
}

impl Broker {
    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.clients
    }

    /// Where its admin port is.
    #[must_use]
    pub fn admin(&self) -> &str {
        &self.admin
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// It had ended by itself, which it must not.
    pub fn kill(mut self) -> Outcome<()> {
        self.check()?;
        self.child
            .kill()
            .and_then(|()| self.child.wait())
            .map(drop)
            .map_err(|error| format!("cannot kill the broker: {error}"))
    }

    /// What it prints first, empty if it ends instead. A thread waits for that, since a start that
    /// hangs would otherwise hang whoever waits.
    fn first_line(&mut self) -> Outcome<String> {
        let output = self.child.stdout.take().expect("it is piped");
        let (said, heard) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(output).read_line(&mut line);
            // Nobody listens any more if it came too late.
            let _ = said.send(read.map(|_| line));
        });
        match heard.recv_timeout(START_PATIENCE) {
            Ok(Ok(line)) => Ok(line),
            Ok(Err(error)) => Err(format!("cannot read what the broker prints: {error}")),
            Err(_) => Err(format!("the broker does not start: {}", self.last_words())),
        }
    }

    /// SIGKILL, whether it runs or has ended with an error.
    pub fn put_down(mut self) {
        // It is killed when dropped, too; here it only comes first.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// It does not end, or not well.
    pub fn terminate(mut self) -> Outcome<()> {
        self.ask_to_end()?;
        let status = self.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!(
                "the broker ended with {status}: {}",
                self.last_words()
            ))
        }
    }

    /// SIGTERM, without waiting.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn ask_to_end(&self) -> Outcome<()> {
        let sent = Command::new("sh")
            .arg("-c")
            .arg(format!("kill -TERM {}", self.child.id()))
            .status();
        match sent {
            Ok(status) if status.success() => Ok(()),
            other => Err(format!("cannot send SIGTERM: {other:?}")),
        }
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It does not.
    pub fn wait(&mut self) -> Outcome<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < END_PATIENCE {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => std::thread::sleep(Duration::from_millis(2)),
                Err(error) => return Err(format!("cannot wait for the broker: {error}")),
            }
        }
        Err(format!("the broker does not end: {}", self.last_words()))
    }

    /// Fails if it has ended.
    ///
    /// # Errors
    /// It has, with its last words.
    pub fn check(&mut self) -> Outcome<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(format!(
                "the broker ended by itself with {status}: {}",
                self.last_words()
            )),
            Err(error) => Err(format!("cannot look after the broker: {error}")),
        }
    }

    fn last_words(&self) -> String {
        last_words(&self.log)
    }

    /// [`page`] of its admin port.
    ///
    /// # Errors
    /// It does not answer.
    pub fn page(&self, path: &str) -> Outcome<(u16, String)> {
        page(&self.admin, path)
    }
}

/// Gets a page of the admin port `admin`, a host and a port: status code and content.
///
/// # Errors
/// It does not answer.
pub fn page(admin: &str, path: &str) -> Outcome<(u16, String)> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(admin)?;
        stream.set_read_timeout(Some(HTTP_PATIENCE))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| format!("no answer to {path}: {error}"))?;
    let (head, content) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| format!("no HTTP answer to {path}: {answer}"))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| format!("no status in {head}"))?;
    Ok((status, content.to_owned()))
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The end of a log.
fn last_words(log: &Path) -> String {
    let text = read_text(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
