//! What a broker says of itself over HTTP, what the kernel says of its process, and a broker that is
//! started here and may be ended here. Does not make load.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::link::Link;
use crate::stages::Stages;
use crate::{Error, Result};

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long a start may take.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Most bytes of an answer.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Asks the admin port for a page.
///
/// # Errors
/// [`Error::Io`] if nobody answers, [`Error::Data`] if the page is not there.
pub fn get(admin: SocketAddr, page: &str) -> Result<String> {
    let failed = Error::io("the broker's admin port does not answer");
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut socket = TcpStream::connect_timeout(&admin, ANSWER_WITHIN)?;
        socket.set_read_timeout(Some(ANSWER_WITHIN))?;
        write!(
            socket,
            "GET {page} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n"
        )?;
        let mut bytes = Vec::new();
        socket.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = ask().map_err(failed)?;
    body_of(&String::from_utf8_lossy(&bytes), page)
}

/// The body of an HTTP answer.
fn body_of(answer: &str, page: &str) -> Result<String> {
    let wrong = |what: &str| Error::Data(format!("{page} of the broker's admin port: {what}"));
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| wrong("no HTTP"))?;
    let status = head.split_whitespace().nth(1).unwrap_or("");
    if status != "200" {
        return Err(wrong(&format!("status {status}")));
    }
    let is_chunked = head.lines().any(|line| {
        let line = line.to_ascii_lowercase();
        line.starts_with("transfer-encoding:") && line.contains("chunked")
    });
    if is_chunked {
        unchunk(body).ok_or_else(|| wrong("a body in wrong chunks"))
    } else {
        Ok(body.to_owned())
    }
}

fn unchunk(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (length, after) = rest.split_once("\r\n")?;
        let length = usize::from_str_radix(length.split(';').next()?.trim(), 16).ok()?;
        if length == 0 {
            return Some(body);
        }
        body.push_str(after.get(..length)?);
        rest = after.get(length..)?.strip_prefix("\r\n")?;
    }
}

/// A sample of a page of metrics, by its name and labels as they are printed.
#[must_use]
pub fn metric(page: &str, name: &str) -> Option<f64> {
    page.lines().find_map(|line| {
        let value = line.strip_prefix(name)?.strip_prefix(' ')?;
        value.trim().parse().ok()
    })
}

/// What was counted up to a moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Look {
    /// The page of metrics, if there is an admin port.
    pub metrics: Option<String>,
    /// The stages, or why there are none.
    pub stages: std::result::Result<Stages, String>,
    /// CPU time of the broker's threads.
    pub cpu: Option<Duration>,
    /// Bytes it has written to devices.
    pub written_bytes: Option<u64>,
}

/// Where to look at a broker.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// The admin port.
    pub admin: Option<SocketAddr>,
    /// The process.
    pub process: Option<u32>,
}

impl Window {
    /// Looks now. What cannot be seen is left out, and why is said of the stages.
    #[must_use]
    pub fn look(&self) -> Look {
        let stages = match self.admin {
            None => Err("--admin names no admin port of the broker".to_owned()),
            Some(admin) => get(admin, "/stages")
                .and_then(|text| Stages::parse(&text))
                .map_err(|error| format!("this broker does not tell its stages: {error}")),
        };
        Look {
            metrics: self.admin.and_then(|admin| get(admin, "/metrics").ok()),
            stages,
            cpu: self.process.and_then(cpu_of),
            written_bytes: self.process.and_then(written_of),
        }
    }
}

/// CPU time of all threads of a process that have not ended.
#[must_use]
pub fn cpu_of(process: u32) -> Option<Duration> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let mut sum = 0;
    for task in tasks.flatten() {
        // A thread may end while it is looked at.
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let first = text.split(' ').next().and_then(|word| word.parse().ok());
        sum += first.unwrap_or(0u64);
    }
    Some(Duration::from_nanos(sum))
}

fn written_of(process: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/io")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes:"))?;
    line.trim().parse().ok()
}

/// The files that a process has open with O_DIRECT and O_DSYNC, as the kernel tells: a journal that is
/// synced by every write.
#[must_use]
pub fn synced_files(process: u32) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{process}/fd"));
    let mut found: Vec<_> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().into_string().ok()?;
            let info = std::fs::read_to_string(format!("/proc/{process}/fdinfo/{number}")).ok()?;
            let flags = flags_of(&info)?;
            let wanted = libc::O_DIRECT | libc::O_DSYNC;
            (flags & wanted == wanted).then(|| std::fs::read_link(entry.path()).ok())?
        })
        .collect();
    found.sort();
    found
}

/// The flags of an open file, from its `fdinfo`.
fn flags_of(info: &str) -> Option<i32> {
    let text = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    i32::from_str_radix(text.trim(), 8).ok()
}

/// How a broker is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// SIGKILL: a crash.
    Kill,
    /// SIGTERM: it writes what it has and tells its clients.
    Term,
}

/// A broker that was started here, and is ended at the latest when this is dropped.
#[derive(Debug)]
pub struct Own {
    command: Vec<String>,
    address: SocketAddr,
    child: Child,
}

impl Own {
    /// Starts a command and waits until something shakes hands at `address`.
    ///
    /// # Errors
    /// If somebody is there already, or nobody in a minute.
    pub fn start(command: &str, address: SocketAddr) -> Result<Self> {
        let words = words_of(command)?;
        if TcpStream::connect_timeout(&address, ANSWER_WITHIN).is_ok() {
            return Err(Error::Plan(format!(
                "something listens on {address} already, and only a broker that was started here is \
                 ended here; choose another --address for this scenario"
            )));
        }
        let child = spawn(&words)?;
        let mut own = Self {
            command: words,
            address,
            child,
        };
        own.wait_ready()?;
        Ok(own)
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Ends it and starts it again; how long it took until it shook hands.
    ///
    /// # Errors
    /// If it does not end or does not come back.
    pub fn restart(&mut self, ending: Ending) -> Result<Duration> {
        let start = Instant::now();
        self.end(ending)?;
        self.child = spawn(&self.command)?;
        self.wait_ready()?;
        Ok(start.elapsed())
    }

    /// Ends it and waits.
    ///
    /// # Errors
    /// If it is there a minute later.
    pub fn end(&mut self, ending: Ending) -> Result<()> {
        match ending {
            Ending::Kill => self
                .child
                .kill()
                .map_err(Error::io("cannot end the broker"))?,
            Ending::Term => {
                let id = self.child.id().to_string();
                let told = Command::new("kill").args(["-TERM", &id]).status();
                told.map_err(Error::io("cannot tell the broker to end"))?;
            }
        }
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let ended = self.child.try_wait();
            if ended
                .map_err(Error::io("cannot wait for the broker"))?
                .is_some()
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                let text = "the broker does not end when it is told to";
                return Err(Error::Stalled(text.into()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if Link::connect(self.address).is_ok() {
                return Ok(());
            }
            let ended = self.child.try_wait();
            if let Some(status) = ended.map_err(Error::io("cannot wait for the broker"))? {
                let command = self.command.join(" ");
                let text = format!("{command}: it ended with {status} before it was ready");
                return Err(Error::Stalled(text));
            }
            if Instant::now() > deadline {
                let address = self.address;
                let text = format!("nobody shakes hands at {address} within {READY_WITHIN:?}");
                return Err(Error::Stalled(text));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(words: &[String]) -> Result<Child> {
    Command::new(&words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(Error::io("cannot start the broker"))
}

/// Words of a command; those in single or double quotes may hold spaces.
fn words_of(command: &str) -> Result<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in command.chars() {
        match (quote, c) {
            (Some(end), c) if c == end => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if quote.is_some() || words.is_empty() {
        let text = "the broker's command is empty or has a quote that does not end";
        return Err(Error::Plan(text.into()));
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn answers_are_read_whole_and_in_chunks() {
        let plain = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
        assert_eq!(body_of(plain, "/").expect("a body"), "hi");
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n3;x\r\n you\r\n0\r\n\r\n";
        assert!(body_of(chunked, "/").is_err(), "a chunk that is too short");
        let chunked = chunked.replace(" you", "you");
        assert_eq!(body_of(&chunked, "/").expect("a body"), "hiyou");
        let error = body_of("HTTP/1.1 404 Not Found\r\n\r\nno", "/stages").expect_err("no page");
        assert!(error.to_string().contains("/stages") && error.to_string().contains("404"));
        assert!(body_of("nonsense", "/").is_err());
    }

    #[test]
    fn a_look_takes_stages_and_metrics_from_the_admin_port() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let window = Window {
            admin: Some(listener.local_addr().expect("an address")),
            process: None,
        };
        let mut times = crate::tally::latencies();
        times.saturating_record_n(1_000, 3);
        let stages = format!(
            "{{\"cores\":[{{\"core\":0,\"stages\":[{{\"name\":\"device\",\"v2\":\"{}\"}}]}}]}}",
            crate::codec::encode_plain(&times)
        );
        let served = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for _ in 0..2 {
                let (mut guest, _) = listener.accept().expect("a guest");
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    guest.read_exact(&mut byte).expect("a request");
                    request.push(byte[0]);
                }
                let request = String::from_utf8(request).expect("text");
                let page = request.split(' ').nth(1).expect("a page").to_owned();
                let body = match page.as_str() {
                    "/stages" => stages.as_str(),
                    _ => "writes 7\n",
                };
                write!(guest, "HTTP/1.1 200 OK\r\n\r\n{body}").expect("sent");
                asked.push(page);
            }
            asked
        });
        let look = window.look();
        let found = look.stages.expect("stages").stages;
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0.as_str(), found[0].1.len()), ("device", 3));
        assert_eq!(metric(&look.metrics.expect("metrics"), "writes"), Some(7.0));
        let asked = served.join().expect("it has served");
        assert_eq!(asked, ["/stages", "/metrics"]);
    }

    #[test]
    fn metrics_are_found_by_their_whole_name() {
        let page = "# HELP a b\nwrites_total 5\nwrites 7.5\nup{core=\"0\"} 1\n";
        assert_eq!(metric(page, "writes"), Some(7.5));
        assert_eq!(metric(page, "up{core=\"0\"}"), Some(1.0));
        assert_eq!(metric(page, "write"), None);
    }

    #[test]
    fn commands_are_cut_into_words() {
        let words = words_of("a  'b c' --d=\"e f\" ''").expect("words");
        assert_eq!(words, ["a", "b c", "--d=e f", ""]);
        assert!(words_of("  ").is_err() && words_of("a 'b").is_err());
    }

    #[test]
    fn flags_of_open_files_are_read() {
        let info = "pos:\t0\nflags:\t02150002\nmnt_id:\t25\n";
        let flags = flags_of(info).expect("flags");
        assert_eq!(flags & libc::O_DIRECT, libc::O_DIRECT);
        assert_eq!(flags & libc::O_DSYNC, libc::O_DSYNC);
        assert_eq!(flags_of("pos: 0"), None);
    }

    #[test]
    fn what_was_not_started_here_is_left_alone() {
        let other = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = other.local_addr().expect("an address");
        let error = Own::start("false", address).expect_err("somebody is there");
        assert!(error.to_string().contains("listens on"), "{error}");
        drop(other);
        let error = Own::start("false", address).expect_err("it ends at once");
        assert!(error.to_string().contains("before it was ready"), "{error}");
        assert!(Own::start("/there/is/no/such/program", address).is_err());
    }

    #[test]
    fn a_process_has_cpu_time_and_a_window_says_what_it_cannot_see() {
        let window = Window {
            admin: None,
            process: Some(std::process::id()),
        };
        let look = window.look();
        assert!(look.cpu.is_some_and(|cpu| !cpu.is_zero()));
        assert!(look.metrics.is_none());
        assert!(look.stages.expect_err("no port").contains("--admin"));
    }
}
