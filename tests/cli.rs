//! The program from outside: what it prints and what it exits with. Does not look inside.

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A run of the program in an empty directory, without the variables of whoever runs the tests.
fn ringpost(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost"));
    command
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null());
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("RINGPOST_") {
            command.env_remove(variable);
        }
    }
    command
}

fn run(arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().expect("a directory");
    ringpost(directory.path(), arguments)
        .output()
        .expect("runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Runs it and expects failure: this exit code, and these words on standard error.
fn fails(arguments: &[&str], code: i32, words: &[&str]) {
    let output = run(arguments);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
    for word in words {
        assert!(
            errors.contains(word),
            "{arguments:?}: {word:?} is not in {errors:?}"
        );
    }
    assert!(
        output.stdout.is_empty(),
        "{arguments:?}: errors do not belong on standard output"
    );
}

/// A port of loopback that nobody listens on, as long as the listener that had it stays bound.
fn silent_port() -> (std::net::TcpListener, String) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    (listener, address)
}

#[test]
fn without_arguments_it_explains_itself() {
    fails(&[], 2, &["Usage: ringpost", "ringpost try", "Exit codes:"]);
}

#[test]
fn every_command_has_help_with_examples() {
    let output = run(&["--help"]);
    assert!(output.status.success());
    let help = text(&output.stdout);
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty() && *name != "help")
        .collect();
    assert!(commands.len() >= 5, "{help}");
    for command in commands {
        let output = run(&[command, "--help"]);
        let help = text(&output.stdout);
        assert!(output.status.success(), "{command}");
        assert!(
            help.contains("Examples:"),
            "{command} has no examples:\n{help}"
        );
    }
}

#[test]
fn version_is_printed() {
    let output = run(&["--version"]);
    assert_eq!(
        text(&output.stdout),
        format!("ringpost {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn usage_errors_end_with_2() {
    fails(&["serv"], 2, &["unrecognized subcommand", "serve"]);
    fails(&["serve", "--memroy", "1GiB"], 2, &["--memroy", "--memory"]);
    fails(
        &["serve", "--memory", "1"],
        2,
        &["`memory` is \"1\" in the flag --memory: it must be 16MiB to 16TiB"],
    );
    fails(
        &["serve", "--listen", "0.0.0.0:0"],
        2,
        &[
            "error: `listen` is 0.0.0.0:0, which other machines can reach",
            "--insecure-listen",
        ],
    );
    fails(
        &["serve", "--config", "missing.toml"],
        2,
        &["cannot read", "missing.toml"],
    );
}

#[test]
fn every_error_of_a_file_is_told_at_once_with_its_place() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut file = std::fs::File::create(directory.path().join("r.toml")).expect("a file");
    file.write_all(b"memroy = '1GiB'\ntrickle = '20'\ncores = 1000\n")
        .expect("writes");
    let output = ringpost(directory.path(), &["serve", "--config", "r.toml"])
        .env("RINGPOST_SPIN", "1h")
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(2));
    let errors = text(&output.stderr);
    let lines: Vec<&str> = errors.lines().collect();
    assert_eq!(lines.len(), 4, "{errors}");
    assert!(
        errors.contains("unknown setting `memroy` in r.toml; did you mean `memory`?"),
        "{errors}"
    );
    assert!(errors.contains("`trickle` is \"20\" in r.toml"), "{errors}");
    assert!(
        errors.contains("`cores` is \"1000\" in r.toml: it must be 1 to 64"),
        "{errors}"
    );
    assert!(
        errors.contains("in the environment variable RINGPOST_SPIN"),
        "{errors}"
    );
}

#[test]
fn a_broker_that_is_not_there_ends_with_3() {
    let (listener, address) = silent_port();
    drop(listener);
    fails(
        &["status", "--admin", &address],
        3,
        &[&address, "ringpost serve", "--admin"],
    );
    fails(
        &["status", "--admin", "nowhere.invalid:1"],
        3,
        &["nowhere.invalid:1"],
    );
}

#[test]
fn a_port_of_somebody_else_is_not_taken_for_ours() {
    let (listener, address) = silent_port();
    let other = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let request = std::io::BufReader::new(stream.try_clone().expect("a socket")).lines();
        let _head: Vec<_> = request
            .map_while(Result::ok)
            .take_while(|it| !it.is_empty())
            .collect();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\n\r\nhello")
            .expect("writes");
    });
    fails(
        &["status", "--admin", &address],
        1,
        &["no admin port of Ringpost"],
    );
    other.join().expect("no panic");
}

#[test]
fn a_data_directory_that_is_not_there_is_a_sentence() {
    fails(
        &["verify", "--data-dir", "nowhere"],
        5,
        &["cannot read the data directory nowhere"],
    );
    fails(
        &["repair", "--data-dir", "nowhere", "--accept-loss", "1"],
        5,
        &["cannot read the data directory nowhere"],
    );
}

#[test]
fn an_empty_text_is_nothing_to_try() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("empty"), "").expect("writes");
    let output = ringpost(directory.path(), &["try", "empty"])
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("nothing to publish"));
    fails(&["try", "missing"], 1, &["cannot read missing"]);
}

#[test]
fn the_tour_shows_every_feature_and_checks_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let here = directory.path().to_str().expect("a path");
    let tour = [
        "try", "--tour", "--dir", here, "--cores", "2", "--memory", "256MiB",
    ];
    let output = ringpost(directory.path(), &tour).output().expect("runs");
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{shown}{}", text(&output.stderr));
    for word in [
        "Topic exchange",
        "attempt 3",
        "a reader: third",
        "the next one: third",
        "to bills and parcels: done",
    ] {
        assert!(shown.contains(word), "{word} in {shown}");
    }
    let left = std::fs::read_dir(directory.path()).expect("lists").count();
    assert_eq!(left, 0, "nothing is left behind");
    fails(
        &["try", "--tour", "--count", "5"],
        2,
        &["--tour", "--count"],
    );
}

#[test]
fn doctor_judges_what_it_is_told() {
    let output = run(&["doctor", "--no-measure", "--memory", "16MiB", "--json"]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    let lines = text(&output.stdout);
    let memory = lines
        .lines()
        .find(|line| line.contains("\"check\":\"memory\""))
        .expect("a line");
    assert!(memory.contains("\"verdict\":\"MISSING\""), "{memory}");
    assert!(memory.contains("it must be at least"), "{memory}");
    assert!(text(&output.stderr).contains("MISSING"));
}

#[test]
fn doctor_leaves_nothing_behind() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = ringpost(directory.path(), &["doctor"])
        .output()
        .expect("runs");
    let report = text(&output.stdout);
    for check in [
        "kernel",
        "io_uring",
        "locked memory",
        "open files",
        "memory",
        "CPUs",
        "data directory",
    ] {
        assert!(
            report.lines().any(|line| line.starts_with(check)),
            "{check}: {report}"
        );
    }
    assert_eq!(
        std::fs::read_dir(directory.path())
            .expect("is there")
            .count(),
        0
    );
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success(), "{shell}");
        assert!(text(&output.stdout).contains("doctor"), "{shell}");
    }
    let directory = tempfile::tempdir().expect("a directory");
    // A fresh machine has no such directory (docs/operations.md).
    let status = ringpost(directory.path(), &["man", "--dir", "share/man1"])
        .status()
        .expect("runs");
    assert!(status.success());
    for page in ["ringpost.1", "ringpost-serve.1", "ringpost-doctor.1"] {
        let page = directory.path().join("share/man1").join(page);
        let page = std::fs::read_to_string(page).expect("a page");
        assert!(page.contains(".TH"), "{page}");
    }
    assert!(text(&run(&["man"]).stdout).contains(".TH ringpost 1"));
}

#[test]
fn a_reader_that_goes_is_no_failure() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut child = ringpost(directory.path(), &["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    assert_eq!(text(&output.stderr), "");
    assert!(output.status.success());
}

/// A running `serve` on free ports, in a directory of its own.
struct Served {
    child: std::process::Child,
    address: String,
    admin: String,
    directory: tempfile::TempDir,
}

const QUIET_PORTS: [&str; 10] = [
    "--listen",
    "127.0.0.1:0",
    "--amqp-listen",
    "off",
    "--admin-listen",
    "127.0.0.1:0",
    "--memory",
    "160MiB",
    "--cpus",
    "off",
];

impl Served {
    fn start(settings: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut child = ringpost(directory.path(), &["serve", "--data-dir", "data"])
            .args(QUIET_PORTS)
            .args(["--connections-max", "8", "--segment-bytes", "4MiB"])
            .args(settings)
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(directory.path().join("log")).expect("a file"))
            .spawn()
            .expect("runs");
        let mut line = String::new();
        let output = child.stdout.take().expect("is piped");
        std::io::BufReader::new(output)
            .read_line(&mut line)
            .expect("reads");
        let (_, rest) = line.split_once("connect to ").unwrap_or_else(|| {
            let log = std::fs::read_to_string(directory.path().join("log"));
            panic!("it did not start: {log:?}")
        });
        let (address, rest) = rest.split_once(',').expect("the address is a word");
        let (_, admin) = rest.split_once("http://").expect("the admin address");
        Self {
            child,
            address: address.to_owned(),
            admin: admin.trim().to_owned(),
            directory,
        }
    }

    /// Runs a command against it.
    fn run(&self, arguments: &[&str]) -> Output {
        ringpost(self.directory.path(), arguments)
            .args(["--broker", &self.address])
            .output()
            .expect("runs")
    }

    /// Runs a command that must succeed; what it prints.
    fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = text(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        text(&output.stdout)
    }

    /// The value of a metric without labels, or with the labels in the name.
    fn metric(&self, name: &str) -> f64 {
        let page = self.page("/metrics");
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = line.unwrap_or_else(|| panic!("no {name} in {page}"));
        value.parse().expect("a number")
    }

    fn page(&self, path: &str) -> String {
        let mut stream = std::net::TcpStream::connect(&self.admin).expect("connects");
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        .expect("writes");
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).expect("reads");
        answer
    }

    /// Ends it as SIGTERM does; its log.
    fn end(mut self) -> String {
        signal(&self.child, "TERM");
        let status = self.child.wait().expect("ends");
        let log = std::fs::read_to_string(self.directory.path().join("log")).expect("a log");
        assert!(status.success(), "{log}");
        log
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It has ended already, or nobody needs what it would still say.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(child: &std::process::Child, name: &str) {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &child.id().to_string()])
        .status();
    assert!(sent.expect("kill runs").success());
}

#[test]
fn a_port_that_is_taken_is_not_shared_with_another_broker() {
    let first = Served::start(&["--cores", "1"]);
    let directory = tempfile::tempdir().expect("a directory");
    let second = ringpost(
        directory.path(),
        &["serve", "--cores", "1", "--listen", &first.address],
    )
    .args(["--admin-listen", "127.0.0.1:0", "--memory", "160MiB"])
    .args(["--amqp-listen", "off", "--connections-max", "100"])
    .output()
    .expect("runs");
    assert_eq!(second.status.code(), Some(5), "{}", text(&second.stderr));
    let sentence = format!("the address {} is taken", first.address);
    assert!(text(&second.stderr).contains(&sentence));
    // The first one does not mind.
    first.succeeds(&["queue", "ensure", "orders"]);
}

/// Names of what is in a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = names
        .map(|name| name.into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

#[test]
fn every_command_says_the_same_of_a_directory_it_cannot_use() {
    let broken = "format = 1\ncluster = 7\n";
    let newer = "format = 2\n";
    for (files, code, words) in [
        (vec![("thesis.tex", "x")], 5, "it holds `thesis.tex`"),
        (
            vec![("ringpost.toml", "memory = '1GiB'\n")],
            4,
            "is not what a broker wrote",
        ),
        (
            vec![("ringpost.toml", broken)],
            4,
            "is not what a broker wrote",
        ),
        (vec![("ringpost.toml", newer)], 5, "newer than this version"),
        (
            vec![("layout-0001", "")],
            4,
            "has lost its file `ringpost.toml`",
        ),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        let data = directory.path().join("data");
        std::fs::create_dir(&data).expect("a directory");
        for (name, content) in &files {
            std::fs::write(data.join(name), content).expect("writes");
        }
        let before = names(&data);
        for arguments in [
            &["serve"][..],
            &["verify"],
            &["repair", "--accept-loss", "0:0:1-2"],
            &["doctor"],
        ] {
            let mut command = ringpost(directory.path(), arguments);
            command.args(["--data-dir", "data"]);
            if arguments == ["serve"] {
                command.args(QUIET_PORTS).args(["--connections-max", "8"]);
            }
            let output = command.output().expect("runs");
            let told = text(&output.stderr) + &text(&output.stdout);
            // What is damaged is one of the things that doctor finds missing.
            let code = if arguments == ["doctor"] { 5 } else { code };
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
            assert!(told.contains(words), "{arguments:?}: {told}");
            assert_eq!(names(&data), before, "{arguments:?} writes nothing there");
        }
    }
}

#[test]
fn doctor_sees_a_broker_in_its_way() {
    let broker = Served::start(&["--cores", "1"]);
    let settings = ["--data-dir", "data", "--listen", &broker.address];
    let output = ringpost(broker.directory.path(), &["doctor", "--no-measure"])
        .args(settings)
        .args(["--amqp-listen", "off"])
        .args(["--admin-listen", &broker.admin])
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(5));
    let report = text(&output.stdout);
    let process = format!("in use by a running broker, process {}", broker.child.id());
    for words in [
        process,
        format!("{} is taken", broker.address),
        format!("{} is taken", broker.admin),
    ] {
        assert!(report.contains(&words), "{words:?} is not in {report}");
    }
    let errors = text(&output.stderr);
    assert!(errors.contains("3 lines are MISSING"), "{errors}");
}

#[test]
fn a_cpu_that_is_not_there_is_an_error_of_the_settings() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = ringpost(
        directory.path(),
        &["serve", "--cpus", "4095", "--cores", "1"],
    )
    .args(["--memory", "160MiB", "--connections-max", "8"])
    .output()
    .expect("runs");
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(
        errors.contains("`cpus` names 4095, and the CPUs that this process may use are"),
        "{errors}"
    );
    assert_eq!(names(directory.path()), [""; 0], "nothing was begun");
}

#[test]
fn a_start_that_takes_long_can_be_ended() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    std::fs::create_dir(&data).expect("a directory");
    // Whoever reads this file waits for somebody to write it.
    let identity = data.join("ringpost.toml");
    let made = Command::new("mkfifo").arg(&identity).status();
    assert!(made.expect("mkfifo runs").success());
    let child = ringpost(directory.path(), &["serve", "--data-dir", "data"])
        .args(QUIET_PORTS)
        .args(["--connections-max", "100"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    // Opens as soon as the broker, which heeds signals by then, has opened the other end.
    let writer = std::fs::OpenOptions::new().write(true).open(&identity);
    let _writer = writer.expect("a pipe");
    signal(&child, "TERM");
    let output = child.wait_with_output().expect("ends");
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(143), "{errors}");
    assert!(
        errors.contains("told to end before it was ready"),
        "{errors}"
    );
}

#[test]
fn too_little_that_may_be_locked_or_open_is_a_sentence() {
    for (limit, words) in [("-l 100", "may be locked"), ("-n 100", "files may be open")] {
        let directory = tempfile::tempdir().expect("a directory");
        let program = env!("CARGO_BIN_EXE_ringpost");
        let script = format!("ulimit {limit} && exec {program} serve --connections-max 10");
        let output = Command::new("sh")
            .args(["-c", &script])
            .current_dir(directory.path())
            .output()
            .expect("runs");
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{errors}");
        assert!(errors.contains(words), "{errors}");
        assert!(errors.contains("ulimit"), "{errors}");
    }
}

#[test]
fn a_key_that_names_no_queue_is_told() {
    let broker = Served::start(&["--cores", "1"]);
    std::fs::write(broker.directory.path().join("lines"), "a\nb\n").expect("writes");
    let missed = broker.run(&["pub", "--key", "ordrs", "lines"]);
    let errors = text(&missed.stderr);
    assert_eq!(missed.status.code(), Some(1), "{errors}");
    assert!(errors.contains("unroutable"), "{errors}");
    assert!(errors.contains("ringpost queue ensure 'ordrs'"), "{errors}");
    let missed = broker.run(&["pub", "--exchange", "shp", "--key", "x", "lines"]);
    let errors = text(&missed.stderr);
    assert_eq!(missed.status.code(), Some(1), "{errors}");
    assert!(errors.contains("the exchange is 'shp'"), "{errors}");
    broker.succeeds(&["queue", "ensure", "orders"]);
    broker.succeeds(&["pub", "--key", "orders", "lines"]);
    assert_eq!(
        broker.succeeds(&["get", "orders", "--count", "9"]),
        "a\nb\n"
    );
}

#[test]
fn an_address_without_a_port_and_a_port_of_another_protocol_are_told() {
    fails(
        &["queue", "list", "--broker", "127.0.0.1"],
        2,
        &["a host and a port"],
    );
    fails(&["status", "--admin", "7480"], 2, &["a host and a port"]);
    let broker = Served::start(&["--cores", "1"]);
    fails(
        &["queue", "list", "--broker", &broker.admin],
        1,
        &[&broker.admin, "not as a broker does", "not the admin port"],
    );
    fails(
        &["status", "--admin", &broker.address],
        1,
        &["does not speak HTTP", "not the port for clients"],
    );
}

#[test]
fn bindings_are_shown_as_they_are_made() {
    let broker = Served::start(&["--cores", "1"]);
    broker.succeeds(&["queue", "ensure", "red"]);
    let place = [
        "red",
        "--exchange",
        "amq.headers",
        "--argument",
        "colour=red",
    ];
    broker.succeeds(&[&["binding", "ensure"], &place[..]].concat());
    let shown = broker.succeeds(&["binding", "list"]);
    assert!(shown.contains("colour=red"), "{shown}");
    let shown = broker.succeeds(&["binding", "list", "--json"]);
    assert!(
        shown.contains("\"arguments\":{\"colour\":\"red\"}"),
        "{shown}"
    );
}

#[test]
fn top_says_what_happens_in_an_interval() {
    let broker = Served::start(&["--cores", "2"]);
    broker.succeeds(&["queue", "ensure", "red"]);
    let top = ["top", "--admin", &broker.admin, "--interval", "100ms"];
    let shown = broker.succeeds(&[&top[..], &["--count", "2"]].concat());
    assert_eq!(shown.matches(", ready, up").count(), 2, "{shown}");
    for word in ["serving", "journal", "p99.9", "red"] {
        assert!(shown.contains(word), "{word} in {shown}");
    }
    for wrong in [
        ["--interval", "10ms"],
        ["--interval", "2h"],
        ["--count", "0"],
    ] {
        fails(&[&["top"], &wrong[..]].concat(), 2, &[wrong[0]]);
    }
}

#[test]
fn trace_follows_a_message_and_says_what_it_can_not() {
    let broker = Served::start(&["--cores", "2"]);
    broker.succeeds(&["queue", "ensure", "red"]);
    for wrong in [["--timeout", "10ms"], ["--timeout", "2h"]] {
        fails(&[&["trace", "red"], &wrong[..]].concat(), 2, &[wrong[0]]);
    }
    fails(&["trace"], 2, &["<QUEUE>"]);
    let trace = ["trace", "--admin", &broker.admin, "--timeout", "1s"];
    let nowhere = [&trace[..], &["nowhere"]].concat();
    fails(&nowhere, 1, &["404", "there is no such queue"]);
    let nobody = [&trace[..], &["red", "--tenant", "nobody"]].concat();
    fails(&nobody, 1, &["404", "there is no such tenant"]);
    fails(
        &[&trace[..], &["red"]].concat(),
        1,
        &["no message came to 'red'"],
    );
}

#[test]
fn figures_and_log_tell_what_happened() {
    let broker = Served::start(&["--cores", "2", "--handshake-timeout", "1s"]);
    broker.succeeds(&["queue", "declare", "small", "--messages-max", "10"]);
    std::fs::write(broker.directory.path().join("lines"), "x\n".repeat(10)).expect("writes");
    broker.succeeds(&["pub", "--key", "small", "lines"]);
    let full = broker.run(&["pub", "--key", "small", "--message", "one more"]);
    assert!(text(&full.stderr).contains("queue_full"));
    for (name, value) in [
        ("ringpost_publishes_total", 11.0),
        ("ringpost_confirms_total", 10.0),
        ("ringpost_refusals_total{code=\"queue_full\"}", 1.0),
        ("ringpost_returns_total", 0.0),
        ("ringpost_messages_ready", 10.0),
        ("ringpost_core_ring_capacity{core=\"0\",peer=\"1\"}", 256.0),
    ] {
        assert_eq!(broker.metric(name), value, "{name}");
    }
    assert!(broker.metric("ringpost_journal_write_bytes_total") >= 4096.0);
    assert!(broker.metric("ringpost_connections_opened_total") >= 3.0);
    // The cores have four places each, and turn away whoever comes then.
    let held: Vec<_> = (0..64)
        .map(|_| std::net::TcpStream::connect(&broker.address).expect("connects"))
        .collect();
    let told = held.iter().any(|mut stream| {
        let mut bytes = Vec::new();
        // Those that have a place are told nothing, and time is up for them in the end.
        let _ = std::io::Read::read_to_end(&mut stream, &mut bytes);
        bytes
            .windows(b"connections_max".len())
            .any(|window| window == b"connections_max")
    });
    assert!(told, "nobody was told why it was turned away");
    drop(held);
    assert!(broker.metric("ringpost_refusals_total{code=\"overloaded\"}") >= 1.0);
    let log = broker.end();
    for words in [
        "limit reached: 1 more refused with queue_full",
        "more refused with overloaded",
        "the data directory is clean",
    ] {
        assert!(log.contains(words), "{words:?} is not in {log}");
    }
}

#[test]
fn a_machine_is_proved() {
    let directory = tempfile::tempdir().expect("a directory");
    let arguments = ["prove", ".", "--cycles", "3", "--flips", "2", "--json"];
    let output = ringpost(directory.path(), &arguments)
        .output()
        .expect("runs");
    let errors = text(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(found["lost"], 0);
    for count in ["confirmed_durable", "acks_confirmed", "torn_writes"] {
        assert!(found[count].as_u64() > Some(0), "{count}: {found}");
    }
    assert_eq!(
        found["kills"]
            .as_u64()
            .zip(found["good_ends"].as_u64())
            .map(|(kills, ends)| kills + ends),
        Some(3)
    );
    let flips = found["flipped_bits"].as_object().expect("an object");
    let flips: u64 = flips.values().filter_map(serde_json::Value::as_u64).sum();
    assert_eq!(flips, 6);
    let left = std::fs::read_dir(directory.path()).expect("a directory");
    assert_eq!(left.count(), 0, "it takes its data with it");
}

#[test]
fn prove_needs_a_directory() {
    fails(&["prove", "/nowhere"], 5, &["/nowhere", "choose another"]);
    fails(&["prove", ".", "--cores", "0"], 2, &["--cores"]);
    fails(&["prove", ".", "--cycles", "0"], 2, &["--cycles"]);
}

#[test]
fn what_no_broker_can_run_on_breaks_no_promise() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = env!("CARGO_BIN_EXE_ringpost");
    let script = format!("ulimit -l 100 && exec {program} prove . --cycles 1");
    let output = Command::new("sh")
        .args(["-c", &script])
        .current_dir(directory.path())
        .output()
        .expect("runs");
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{errors}");
    assert!(errors.contains("may be locked"), "{errors}");
    assert!(!errors.contains("promise"), "{errors}");
    assert_eq!(names(directory.path()), [""; 0], "nothing is left");
}

#[test]
fn a_machine_is_proved_until_somebody_interrupts_that() {
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let directory = tempfile::tempdir().expect("a directory");
        let mut prove = ringpost(directory.path(), &["prove", ".", "--minutes", "60"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("runs");
        // As soon as a broker has made its data directory there is something to clean up.
        let has_data = |path: std::path::PathBuf| path.join("data/ringpost.toml").exists();
        while !names(directory.path())
            .into_iter()
            .any(|name| has_data(directory.path().join(name)))
        {
            assert!(prove.try_wait().expect("is a child").is_none(), "it ended");
            std::thread::yield_now();
        }
        let scratch = directory.path().join(&names(directory.path())[0]);
        signal(&prove, name);
        let output = prove.wait_with_output().expect("ends");
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{errors}");
        for words in ["told to end", "nothing is left"] {
            assert!(errors.contains(words), "{words:?} is not in {errors}");
        }
        assert_eq!(
            names(directory.path()),
            [""; 0],
            "it takes its data with it"
        );
        let scratch = scratch.to_str().expect("UTF-8");
        for process in std::fs::read_dir("/proc").expect("is there").flatten() {
            let arguments = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments);
            assert!(!arguments.contains(scratch), "{arguments:?} still runs");
        }
    }
}

#[test]
fn a_broker_needs_nobody_who_reads_that_it_is_ready() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut child = ringpost(directory.path(), &["serve", "--data-dir", "data"])
        .args(QUIET_PORTS)
        .args(["--cores", "1", "--segment-bytes", "4MiB"])
        .args(["--connections-max", "8"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    drop(child.stdout.take());
    let log = std::io::BufReader::new(child.stderr.take().expect("is piped"));
    let mut lines = log.lines().map(|line| line.expect("is text"));
    assert!(lines.any(|line| line.contains("ready: clients connect to")));
    signal(&child, "TERM");
    assert!(lines.any(|line| line.contains("the data directory is clean")));
    assert!(child.wait().expect("ends").success());
}

#[test]
fn a_signal_said_several_times_at_once_is_one() {
    let broker = Served::start(&["--cores", "1"]);
    broker.succeeds(&["queue", "ensure", "orders"]);
    let process = broker.child.id();
    // The last of them may find that it has ended.
    let sent = Command::new("kill")
        .arg("-TERM")
        .args([process.to_string().as_str(); 8])
        .output();
    sent.expect("kill runs");
    let log = broker.end();
    assert!(log.contains("the data directory is clean"), "{log}");
}

/// Stands between clients and a broker at an address of its own, and can be closed.
struct Door {
    address: String,
    broker: String,
    is_open: std::sync::Arc<std::sync::atomic::AtomicBool>,
    through: std::sync::Arc<std::sync::Mutex<Vec<std::net::TcpStream>>>,
}

impl Door {
    fn to(broker: &str) -> Door {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let door = Door {
            address: listener.local_addr().expect("an address").to_string(),
            broker: broker.to_owned(),
            is_open: std::sync::Arc::new(true.into()),
            through: Default::default(),
        };
        let (is_open, through) = (door.is_open.clone(), door.through.clone());
        let broker = door.broker.clone();
        // Ends with the process.
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // Whoever comes to a closed door is hung up on.
                if !is_open.load(std::sync::atomic::Ordering::SeqCst) {
                    continue;
                }
                let broker = std::net::TcpStream::connect(&broker).expect("connects");
                for (from, to) in [(&client, &broker), (&broker, &client)] {
                    let mut from = from.try_clone().expect("a socket");
                    let mut to = to.try_clone().expect("a socket");
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to); // ends when either side does
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
                through.lock().expect("no panic").push(client);
            }
        });
        door
    }

    fn close(&self) {
        self.is_open
            .store(false, std::sync::atomic::Ordering::SeqCst);
        for client in self.through.lock().expect("no panic").drain(..) {
            let _ = client.shutdown(std::net::Shutdown::Both); // it may have gone by itself
        }
    }

    fn open(&self) {
        self.is_open
            .store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

#[test]
fn a_broker_that_goes_and_comes_back_is_told_of() {
    let broker = Served::start(&["--cores", "1"]);
    broker.succeeds(&["queue", "ensure", "orders"]);
    let door = Door::to(&broker.address);
    let sub = ["sub", "orders", "--count", "2", "--broker", &door.address];
    let mut sub = ringpost(broker.directory.path(), &sub)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    let mut told = std::io::BufReader::new(sub.stderr.take().expect("is piped")).lines();
    let mut printed = std::io::BufReader::new(sub.stdout.take().expect("is piped")).lines();
    let mut told = || told.next().expect("a line").expect("reads");
    let mut printed = || printed.next().expect("a line").expect("reads");
    broker.succeeds(&["pub", "--key", "orders", "--message", "one"]);
    assert_eq!(printed(), "one");
    door.close();
    let line = told();
    let lost = format!("ringpost: the connection to {} is lost (", door.address);
    assert!(line.starts_with(&lost), "{line}");
    assert!(line.ends_with("trying again for 5min"), "{line}");
    door.open();
    // A slow machine may have been told meanwhile that it is still away.
    let line = std::iter::repeat_with(told).find(|line| !line.ends_with("still trying"));
    let line = line.expect("a line");
    let back = format!("ringpost: connected to {} again, after ", door.address);
    assert!(line.starts_with(&back), "{line}");
    // The first one may come again, since its ack may have been on its way.
    broker.succeeds(&["pub", "--key", "orders", "--message", "two"]);
    assert!(["one", "two"].contains(&printed().as_str()));
    assert!(sub.wait().expect("ends").success());
}

#[test]
fn a_broker_that_stays_away_is_given_up() {
    let broker = Served::start(&["--cores", "1"]);
    broker.succeeds(&["queue", "ensure", "orders"]);
    let door = Door::to(&broker.address);
    let publish = [
        "pub",
        "--key",
        "orders",
        "--timeout",
        "4s",
        "--broker",
        &door.address,
    ];
    let mut publish = ringpost(broker.directory.path(), &publish)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    let mut input = publish.stdin.take().expect("is piped");
    input.write_all(b"one\n").expect("writes");
    while broker.metric("ringpost_messages_ready") < 1.0 {
        assert!(publish.try_wait().expect("a child").is_none(), "it ended");
    }
    door.close();
    // Its input stays open: it ends since the broker is gone.
    let output = publish.wait_with_output().expect("ends");
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{errors}");
    for words in ["is lost (", "no broker at ", " for 4s: given up; --timeout"] {
        assert!(errors.contains(words), "{words:?} is not in {errors}");
    }
    drop(input);
}

#[test]
fn what_was_published_before_a_failure_is_told() {
    let broker = Served::start(&["--cores", "1"]);
    broker.succeeds(&["queue", "ensure", "orders"]);
    let write = |name: &str, content: &str| {
        std::fs::write(broker.directory.path().join(name), content).expect("writes");
    };
    write("bad", "{\"payload\":\"a\"}\n{\"payload\":\"b\"}\n{]\n");
    write("one", "c\n");
    for (arguments, code, words) in [
        (
            &["--json", "bad"][..],
            2,
            "error: after 2 messages published and confirmed: line 3 of bad is no message",
        ),
        (
            &["one", "missing"],
            1,
            "error: after 1 message published and confirmed: cannot read missing",
        ),
        (
            &["--level", "volatile", "one", "."],
            1,
            "after 1 message published and confirmed: cannot read .",
        ),
        (
            &["--level", "none", "one", "missing"],
            1,
            "after 1 message sent: cannot read missing",
        ),
    ] {
        let output = broker.run(&[&["pub", "--key", "orders"], arguments].concat());
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        assert!(errors.contains(words), "{arguments:?}: {errors}");
    }
    // What it says is there is there.
    let all = broker.succeeds(&["get", "orders", "--count", "9"]);
    assert_eq!(all, "a\nb\nc\nc\nc\n");
}

#[test]
fn no_more_is_taken_than_was_asked_for() {
    let broker = Served::start(&["--cores", "1"]);
    broker.succeeds(&["queue", "ensure", "orders"]);
    let numbers: String = (0..50).map(|number| format!("{number}\n")).collect();
    std::fs::write(broker.directory.path().join("numbers"), numbers).expect("writes");
    for (ack, rest) in [("printed", 7..50), ("sent", 7..50), ("none", 0..50)] {
        broker.succeeds(&["queue", "purge", "orders"]);
        broker.succeeds(&["pub", "--key", "orders", "numbers"]);
        let printed = broker.succeeds(&["sub", "orders", "--count", "7", "--ack", ack]);
        assert_eq!(printed, "0\n1\n2\n3\n4\n5\n6\n", "{ack}");
        let left = broker.succeeds(&["get", "orders", "--count", "99", "--json"]);
        let left: Vec<(String, bool)> = left
            .lines()
            .map(|line| serde_json::from_str(line).expect("is JSON"))
            .map(|line: serde_json::Value| {
                let payload = line["payload"].as_str().expect("a text").to_owned();
                (payload, line["redelivered"] == true)
            })
            .collect();
        let expected: Vec<_> = rest
            .map(|number| (number.to_string(), number < 7))
            .collect();
        assert_eq!(left, expected, "{ack}");
    }
}

/// Runs the commands of the last block of a page that start with `$ ringpost`, one after the other; each
/// must print what stands below it, or, where that is an error, say so and fail.
fn runs_the_example_of(page: &str) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    let page = std::fs::read_to_string(page).expect("the page");
    let block = page.split("```console\n").last().expect("an example");
    let block = block.split("```").next().expect("its end");
    let broker = Served::start(&["--cores", "1"]);
    let mut commands = block.split("$ ringpost ").skip(1);
    assert!(block.starts_with("$ ringpost "));
    commands.by_ref().for_each(|command| {
        let (line, printed) = command.split_once('\n').expect("a line");
        let arguments: Vec<&str> = line.split(' ').collect();
        match printed.strip_prefix("error: ") {
            Some(error) => {
                let output = broker.run(&arguments);
                assert!(!output.status.success(), "{line}");
                let errors = text(&output.stderr);
                assert!(errors.contains(error.trim_end()), "{line}: {errors}");
            }
            None => assert_eq!(broker.succeeds(&arguments), printed, "{line}"),
        }
    });
}

#[test]
fn the_example_of_the_dispatch_page() {
    runs_the_example_of("docs/concepts/dispatch.md");
}

#[test]
fn the_example_of_the_messages_in_place_page() {
    runs_the_example_of("docs/concepts/messages-in-place.md");
}

#[test]
fn the_example_of_the_message_groups_page() {
    runs_the_example_of("docs/concepts/message-groups.md");
}

#[test]
fn the_example_of_the_priorities_page() {
    runs_the_example_of("docs/concepts/priorities.md");
}

#[test]
fn the_example_of_the_delay_page() {
    runs_the_example_of("docs/concepts/delay-and-retry.md");
}

#[test]
fn the_example_of_the_queue_life_page() {
    runs_the_example_of("docs/concepts/queue-life.md");
}

#[test]
fn the_example_of_the_transactions_page() {
    runs_the_example_of("docs/concepts/transactions.md");
}

#[test]
fn the_example_of_the_streams_page() {
    runs_the_example_of("docs/concepts/streams.md");
}

#[test]
fn a_stream_is_read_from_anywhere_and_a_reader_hears_what_it_missed() {
    let broker = Served::start(&["--cores", "1"]);
    let stream = [
        "queue",
        "ensure",
        "events",
        "--type",
        "stream",
        "--messages-max",
        "10",
    ];
    broker.succeeds(&stream);
    let pub_ = ["pub", "--key", "events", "--message", "m", "--count", "50"];
    broker.succeeds(&pub_);
    let listed = broker.succeeds(&["queue", "inspect", "events", "--json"]);
    assert!(listed.contains("\"stream\":true"), "{listed}");
    let late = ["sub", "events", "--from", "offset:5", "--count", "10"];
    let output = broker.run(&late);
    assert_eq!(text(&output.stdout), "m\n".repeat(10));
    let told = text(&output.stderr);
    assert_eq!(
        told,
        "ringpost: 36 messages before offset 41 are there no more\n"
    );
    let member = [
        "sub", "events", "--group", "g", "--from", "last", "--count", "1",
    ];
    let output = broker.run(&member);
    assert_eq!(text(&output.stdout), "m\n");
    let told = text(&output.stderr);
    assert_eq!(told, "ringpost: now the active consumer of events\n");
    for (arguments, word) in [
        (
            &["sub", "events", "--from", "offset:0"][..],
            "offset:N from 1 on",
        ),
        (&["sub", "events", "--rate", "0"], "1..=10000000"),
        (
            &["sub", "events", "--filter", "colour ="],
            "setting_invalid",
        ),
        (
            &["group", "reset", "events", "", "--to", "first"],
            "setting_invalid",
        ),
        (&["group", "list", "nothing"], "queue_unknown"),
        (
            &["queue", "ensure", "s", "--type", "stream", "--volatile"],
            "a stream is durable",
        ),
        (
            &["queue", "ensure", "s", "--max-age", "1h"],
            "'x-max-age' is no setting of a queue",
        ),
    ] {
        let output = broker.run(arguments);
        let errors = text(&output.stderr);
        assert!(
            !output.status.success() && errors.contains(word),
            "{errors}"
        );
    }
}

#[test]
fn the_example_of_the_queues_that_go_page() {
    runs_the_example_of("docs/concepts/queues-that-go.md");
}

#[test]
fn the_example_of_the_policies_page() {
    runs_the_example_of("docs/concepts/policies.md");
}

#[test]
fn the_example_of_the_definitions_page() {
    runs_the_example_of("docs/concepts/definitions.md");
}

#[test]
fn the_example_of_the_queue_numbers_page() {
    runs_the_example_of("docs/concepts/queue-numbers.md");
}

#[test]
fn a_queue_says_its_numbers_wherever_it_is_looked_at() {
    let broker = Served::start(&["--cores", "2"]);
    broker.succeeds(&["queue", "ensure", "red", "--messages-max", "1000"]);
    broker.succeeds(&["pub", "--key", "red", "--message", "hello", "--count", "10"]);
    broker.succeeds(&["get", "red", "--count", "4"]);
    // The queue is done with a message when its ack is on disk.
    let mut inspected = (0..1_000).map(|_| {
        let inspected = broker.succeeds(&["queue", "inspect", "red", "--json"]);
        serde_json::from_str(&inspected).expect("JSON")
    });
    let is_done = |queue: &serde_json::Value| queue["numbers"]["service_rate"] != 0.0;
    let inspected = inspected.find(is_done);
    let inspected = inspected.expect("acks are written");
    let status = |flags: &[&str]| {
        let mut command = ringpost(
            broker.directory.path(),
            &["status", "--admin", &broker.admin],
        );
        text(&command.args(flags).output().expect("runs").stdout)
    };
    let told: serde_json::Value = serde_json::from_str(&status(&["--json"])).expect("JSON");
    for queue in [&inspected, &told["queues"][0]] {
        assert_eq!(
            (&queue["name"], &queue["ready"]),
            (&"red".into(), &6.into())
        );
        let numbers = &queue["numbers"];
        let number = |name: &str| numbers[name].as_f64().unwrap_or(-1.0);
        assert_eq!(numbers["waits"], 4);
        assert!(number("wait_p50_ms") <= number("wait_max_ms"), "{numbers}");
        assert!(number("arrival_rate") > number("service_rate"), "{numbers}");
        assert!(number("full_in_s") > 0.0 && numbers["empty_in_s"].is_null());
        assert!(number("littles_wait_ms") > 0.0);
    }
    let shown = broker.succeeds(&["queue", "inspect", "red"]);
    assert!(shown.contains("outlook     full in "), "{shown}");
    let shown = status(&[]);
    assert!(
        shown.contains("full in ") && shown.contains("wait p99"),
        "{shown}"
    );
}

/// Runs `apply` with a file of this text.
fn applies(broker: &Served, definitions: &str, flags: &[&str]) -> Output {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("d.toml");
    std::fs::write(&file, definitions).expect("writes");
    let file = file.to_str().expect("a path");
    let output = broker.run(&[&["apply", file], flags].concat());
    Output {
        stderr: text(&output.stderr).replace(file, "d.toml").into_bytes(),
        ..output
    }
}

#[test]
fn what_was_exported_is_the_same_on_another_broker() {
    let broker = Served::start(&["--cores", "2"]);
    for command in [
        &[
            "exchange",
            "ensure",
            "shop",
            "--kind",
            "topic",
            "--alternate",
            "rest",
        ][..],
        &[
            "exchange",
            "ensure",
            "rest",
            "--kind",
            "fanout",
            "--internal",
            "--volatile",
        ],
        &[
            "exchange",
            "ensure",
            "by colour",
            "--kind",
            "headers",
            "--auto-delete",
        ],
        &["exchange", "ensure", "big", "--kind", "filter"],
        &[
            "exchange",
            "ensure",
            "keys",
            "--kind",
            "consistent-hash",
            "--hash-header",
            "k",
        ],
        &[
            "queue",
            "ensure",
            "orders",
            "--messages-max",
            "7",
            "--message-ttl",
            "1h",
        ],
        &[
            "queue",
            "ensure",
            "größe \"x\"",
            "--volatile",
            "--bytes-max",
            "1MiB",
        ],
        &[
            "queue",
            "ensure",
            "jobs",
            "--dispatch",
            "sticky",
            "--sticky-header",
            "h",
        ],
        &[
            "binding",
            "ensure",
            "orders",
            "--exchange",
            "shop",
            "--key",
            "a.*.#",
        ],
        &[
            "binding",
            "ensure",
            "rest",
            "--to-exchange",
            "--exchange",
            "shop",
        ],
        &[
            "binding",
            "ensure",
            "jobs",
            "--exchange",
            "by colour",
            "--argument",
            "a b=c",
        ],
        &[
            "binding",
            "ensure",
            "jobs",
            "--exchange",
            "big",
            "--filter",
            "a = 'b\\'",
        ],
        &[
            "binding",
            "ensure",
            "jobs",
            "--exchange",
            "amq.topic",
            "--key",
            "x",
        ],
        &[
            "policy",
            "set",
            "p",
            "--pattern",
            "^o\\.",
            "--messages-max",
            "3",
        ],
        &[
            "policy",
            "set",
            "q",
            "--pattern",
            ".",
            "--apply-to",
            "all",
            "--alternate",
            "rest",
            "--expires",
            "1h",
            "--priority",
            "-1000",
        ],
    ] {
        broker.succeeds(command);
    }
    let exported = broker.succeeds(&["export"]);
    let other = Served::start(&["--cores", "1"]);
    let output = applies(&other, &exported, &["--yes"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).ends_with("15 changes made\n"));
    assert_eq!(other.succeeds(&["export"]), exported);
    let again = applies(&other, &exported, &["--yes", "--prune"]);
    assert_eq!(text(&again.stdout), "nothing to do\n");
    // What has nothing is an empty file, which with --prune takes everything along.
    let empty = Served::start(&["--cores", "1"]);
    let nothing = empty.succeeds(&["export"]);
    let output = applies(&other, &nothing, &["--yes", "--prune"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(other.succeeds(&["export"]), nothing);
}

#[test]
fn what_a_file_says_is_applied_once() {
    let broker = Served::start(&["--cores", "1"]);
    let file = "[queues.orders]\nmessages_max = 5\n\n[policies.spare]\npattern = \"^x\"\n\
                options = { x-expires = 1000000 }\n";
    let shown = "+ queue orders\n+ policy spare\n";
    let output = applies(&broker, file, &["--dry-run"]);
    assert_eq!(text(&output.stdout), shown);
    assert_eq!(broker.succeeds(&["queue", "list", "--json"]), "");
    // Nobody can be asked.
    let output = applies(&broker, file, &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--yes changes it, --dry-run does not"));
    assert_eq!(broker.succeeds(&["queue", "list", "--json"]), "");
    let output = applies(&broker, file, &["--yes"]);
    assert_eq!(text(&output.stdout), format!("{shown}2 changes made\n"));
    // A policy is replaced; what the file does not name stays; a conflict changes nothing at all.
    broker.succeeds(&["queue", "ensure", "other"]);
    broker.succeeds(&["pub", "--key", "other", "--message", "m"]);
    let changed = file.replace("1000000", "2000000");
    let output = applies(&broker, &changed, &["--yes"]);
    assert_eq!(text(&output.stdout), "~ policy spare\n1 change made\n");
    let conflict = file.replace("messages_max = 5", "\nvolatile = true") + "[queues.new]\n";
    let output = applies(&broker, &conflict, &["--yes", "--prune"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        "error: d.toml:1: queues.orders: it exists with durability durable, the file says volatile\n"
    );
    let output = applies(&broker, &changed, &["--dry-run", "--prune"]);
    assert_eq!(text(&output.stdout), "- queue other, with 1 message\n");
    let output = applies(&broker, &changed, &["--yes", "--prune"]);
    assert!(output.status.success());
    let names = broker.succeeds(&["queue", "list"]);
    assert!(names.contains("orders") && !names.contains("other"));
    // What the broker refuses is said with the place, too.
    for (file, expected) in [
        (
            "\n[queues.a.arguments]\nx-expires = 0\n",
            "error: d.toml:2: queues.a: setting_invalid: x-expires is 0, not 1 to 4294967295\n",
        ),
        (
            "[policies.p]\npattern = \"(\"\noptions = { x-expires = 1 }\n",
            "error: d.toml:1: policies.p: setting_invalid: the pattern '(' is wrong: ",
        ),
        (
            "[[bindings]]\nexchange = \"none\"\nqueue = \"orders\"\n",
            "error: d.toml:1: bindings[0]: exchange_unknown: no exchange 'none'\n",
        ),
    ] {
        let output = applies(&broker, file, &["--yes"]);
        let errors = text(&output.stderr);
        assert!(
            !output.status.success() && errors.starts_with(expected),
            "{errors}"
        );
    }
}

#[test]
fn options_are_shown_with_their_policies() {
    let broker = Served::start(&["--cores", "1"]);
    broker.succeeds(&["queue", "ensure", "orders", "--message-ttl", "1h"]);
    broker.succeeds(&[
        "policy",
        "set",
        "p",
        "--pattern",
        "^o",
        "--messages-max",
        "9",
    ]);
    let shown = broker.succeeds(&["queue", "inspect", "orders"]);
    assert!(
        shown.contains("x-max-length=9 (policy p), x-message-ttl=3600000"),
        "{shown}"
    );
    let json = broker.succeeds(&["queue", "list", "--json"]);
    let options = "\"options\":{\"x-max-length\":{\"value\":9,\"policy\":\"p\"},\
                   \"x-message-ttl\":{\"value\":3600000,\"policy\":null}}";
    assert!(json.contains(options), "{json}");
}

#[test]
fn an_active_consumer_is_told_on_standard_error() {
    let broker = Served::start(&["--cores", "1"]);
    broker.succeeds(&["queue", "ensure", "orders", "--single-active"]);
    broker.succeeds(&["pub", "--key", "orders", "--message", "m"]);
    let take = ["sub", "orders", "--count", "1", "--priority", "-3"];
    let output = broker.run(&take);
    assert_eq!(text(&output.stdout), "m\n");
    let told = text(&output.stderr);
    assert_eq!(told, "ringpost: now the active consumer of orders\n");
    for (arguments, word) in [
        (&["sub", "orders", "--priority", "11"][..], "-10..=10"),
        (&["sub", "orders", "--weight", "0"], "1..=100"),
        (
            &["queue", "ensure", "q", "--dispatch", "fair"],
            "least-outstanding",
        ),
        (
            &["queue", "ensure", "q", "--consumer-hold-max", "1ms"],
            "x-consumer-hold-max is 1, not 1000 to 86400000",
        ),
    ] {
        let output = broker.run(arguments);
        let errors = text(&output.stderr);
        assert!(
            !output.status.success() && errors.contains(word),
            "{errors}"
        );
    }
}

#[test]
fn a_queue_can_be_looked_at_to_its_end() {
    let broker = Served::start(&["--cores", "1"]);
    broker.succeeds(&["queue", "ensure", "orders"]);
    let pub_ = ["pub", "--key", "orders", "--message", "m", "--count", "500"];
    broker.succeeds(&pub_);
    let look = ["sub", "orders", "--ack", "none", "--credit", "9", "--count"];
    // The wait only ends what would not end.
    let looked = broker.succeeds(&[&look[..], &["500", "--wait", "10s"]].concat());
    assert_eq!(looked, "m\n".repeat(500));
}

#[test]
fn a_refusal_is_told_at_every_level() {
    let broker = Served::start(&["--cores", "1"]);
    for level in ["none", "volatile", "durable"] {
        let arguments = ["pub", "--exchange", "shp", "--key", "x", "--message", "m"];
        let output = broker.run(&[&arguments[..], &["--level", level]].concat());
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{level}: {errors}");
        for words in ["exchange_unknown", "the exchange is 'shp'"] {
            assert!(
                errors.contains(words),
                "{level}: {words:?} is not in {errors}"
            );
        }
    }
}

#[test]
fn names_and_numbers_that_cannot_be_meant_are_told() {
    fails(
        &["pub", "--message", "x"],
        2,
        &["--key is missing", "ringpost pub --key orders"],
    );
    fails(&["tenant", "ensure", ""], 2, &["a tenant needs a name"]);
    fails(&["tenant", "delete", ""], 2, &["a tenant needs a name"]);
    let kept = "the default tenant cannot be deleted";
    fails(&["tenant", "delete", "default"], 2, &[kept]);
    for arguments in [
        &["pub", "--key", "x", "--message", "x", "--count", "0"][..],
        &["sub", "x", "--count", "0"],
        &["try", "--count", "0"],
        &["try", "--count", "-1"],
    ] {
        let bad = arguments[arguments.len() - 1];
        let sentence = format!("invalid value '{bad}' for '--count <number>'");
        fails(arguments, 2, &[&sentence]);
    }
    let broker = Served::start(&["--cores", "1"]);
    broker.succeeds(&["queue", "ensure", "orders"]);
    broker.succeeds(&["pub", "--key", "orders", "--message", "m"]);
    let told = broker.succeeds(&["queue", "purge", "orders"]);
    assert_eq!(told, "queue orders purged of 1 message\n");
}

#[test]
fn an_empty_variable_is_none() {
    let broker = Served::start(&["--cores", "1"]);
    for (arguments, variables) in [
        (&["queue", "list"][..], &["RINGPOST_TENANT"][..]),
        (
            &["doctor", "--no-measure"],
            &["RINGPOST_CONFIG", "RINGPOST_MEMORY"],
        ),
        (&["verify", "--data-dir", "nowhere"], &["RINGPOST_DATA_DIR"]),
    ] {
        let mut command = ringpost(broker.directory.path(), arguments);
        for variable in variables {
            command.env(variable, "");
        }
        if arguments[0] == "queue" {
            command.args(["--broker", &broker.address]);
        }
        let output = command.output().expect("runs");
        let errors = text(&output.stderr);
        assert_ne!(output.status.code(), Some(2), "{arguments:?}: {errors}");
    }
}

#[test]
fn the_log_of_a_program_has_fields_for_the_memory() {
    let broker = Served::start(&["--cores", "1"]);
    let log = broker.end();
    let lines = log.lines().map(|line| {
        let event = serde_json::from_str::<serde_json::Value>(line);
        event.unwrap_or_else(|error| panic!("{line}: {error}"))
    });
    let events: Vec<serde_json::Value> = lines.collect();
    let is_memory = |event: &&serde_json::Value| event["fields"]["message"] == "memory is divided";
    let memory = events.iter().find(is_memory).expect("an event");
    assert_eq!(memory["fields"]["memory_bytes"], 160 << 20);
    assert!(memory["fields"]["core_buffers_bytes"].as_u64() > Some(0));
}

#[test]
fn the_command_that_verify_names_gives_up_what_is_damaged() {
    let mut broker = Served::start(&["--cores", "1"]);
    broker.succeeds(&["queue", "ensure", "orders"]);
    let payload = "x".repeat(1_000);
    for _ in 0..3 {
        broker.succeeds(&[
            "pub",
            "--key",
            "orders",
            "--message",
            &payload,
            "--count",
            "9",
        ]);
    }
    // What is written by a shutdown would say that nothing of this is needed any more.
    broker.child.kill().expect("it runs");
    broker.child.wait().expect("ends");
    let journal = broker.directory.path().join("data/layout-0001/core-0000");
    let is_payload = |window: &[u8]| window == &payload.as_bytes()[..window.len()];
    let damaged = names(&journal).into_iter().any(|name| {
        let path = journal.join(name);
        let mut bytes = std::fs::read(&path).expect("reads");
        let found = bytes.windows(900).position(is_payload);
        if let Some(at) = found {
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).expect("writes");
        }
        found.is_some()
    });
    assert!(damaged, "the messages are somewhere");
    let verify = |more: &[&str]| {
        let arguments = [&["verify", "--data-dir", "data"], more].concat();
        let output = ringpost(broker.directory.path(), &arguments).output();
        let output = output.expect("runs");
        (output.status.code(), text(&output.stderr))
    };
    let (code, errors) = verify(&["--messages", "messages"]);
    assert_eq!(code, Some(4), "{errors}");
    assert!(
        errors.contains("error: 1 damaged range: restore"),
        "{errors}"
    );
    assert!(
        errors.contains("no messages are written to messages"),
        "{errors}"
    );
    let command = errors.split('`').nth(1).expect("a command");
    let command = command.replacen("ringpost", env!("CARGO_BIN_EXE_ringpost"), 1);
    let repaired = Command::new("sh")
        .args(["-c", &command])
        .current_dir(broker.directory.path())
        .output()
        .expect("runs");
    assert!(
        repaired.status.success(),
        "{command}: {}",
        text(&repaired.stderr)
    );
    let (code, errors) = verify(&["--messages", "messages"]);
    assert_eq!(code, Some(0), "{errors}");
    // Those of the block that is damaged are gone, those of other commands are in other blocks.
    let kept = std::fs::read_to_string(broker.directory.path().join("messages"));
    let kept = kept.expect("was written").lines().count();
    assert!((18..27).contains(&kept), "{kept}");
}

#[test]
fn a_message_printed_as_json_is_published_as_the_same_message() {
    let broker = Served::start(&["--cores", "1"]);
    broker.succeeds(&["queue", "ensure", "orders"]);
    broker.succeeds(&["exchange", "ensure", "x", "--kind", "fanout"]);
    broker.succeeds(&["binding", "ensure", "--exchange", "x", "orders"]);
    // Two entries of one name, and a point in time (AMQP's `T`), have no form in JSON.
    let exact = "0161540000000000000001".to_owned() + "01617401";
    let messages = [
        r#"{"key":"a.b","payload":"text \"quoted\"","headers":{"f":1.5,"i":-7,"t":"x","y":true},"priority":3,"timestamp_us":1700000000000001,"ttl_ms":60000}"#.to_owned(),
        r#"{"key_hex":"ff00","payload_hex":"00ff","properties_hex":"8001"}"#.to_owned(),
        format!(r#"{{"key":"k","payload":"p","headers_hex":"{exact}"}}"#),
    ];
    let file = broker.directory.path().join("messages");
    std::fs::write(&file, messages.join("\n")).expect("writes");
    let mut before: Option<Vec<serde_json::Value>> = None;
    // What was given, what was printed of it, what was printed of that.
    for _ in 0..3 {
        broker.succeeds(&["pub", "--exchange", "x", "--json", "messages"]);
        let printed = broker.succeeds(&["get", "orders", "--json", "--count", "3"]);
        std::fs::write(&file, &printed).expect("writes");
        let found: Vec<serde_json::Value> = printed
            .lines()
            .map(|line| {
                let mut line: serde_json::Value = serde_json::from_str(line).expect("is JSON");
                let members = line.as_object_mut().expect("an object");
                assert!(members.remove("queue_sequence").is_some());
                line
            })
            .collect();
        assert_eq!(found.len(), messages.len());
        for (line, given) in found.iter().zip(&messages) {
            let given: serde_json::Value = serde_json::from_str(given).expect("is JSON");
            for (name, value) in given.as_object().expect("an object") {
                assert_eq!(line.get(name), Some(value), "{name}");
            }
        }
        assert!(before.is_none_or(|before| before == found));
        before = Some(found);
    }
}
