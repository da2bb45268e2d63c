//! The generator against a broker in this process: what it routes, times, keeps and refuses. Asserts
//! counts and which times there are, never how long anything took.

use std::net::SocketAddr;
use std::process::{Command, Output};

use ringpost::boot::{self, Running};
use ringpost::config::{Config, Sources};
use ringpost_load::html;
use ringpost_load::live::Live;
use ringpost_load::params::Parameters;
use ringpost_load::result::{Results, Round};
use ringpost_load::run::{Watcher, declare, run_watched};
use ringpost_load::session::Session;
use ringpost_load::tally::{Sums, Tally};

/// A broker of one core in a directory that goes with it.
struct Broker {
    running: Option<Running>,
    directory: tempfile::TempDir,
}

impl Broker {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let flag = |name, text: &str| (name, text.to_owned());
        let sources = Sources {
            flags: vec![
                flag("listen", "127.0.0.1:0"),
                flag("amqp_listen", "off"),
                flag("admin_listen", "127.0.0.1:0"),
                ("data_dir", directory.path().display().to_string()),
                flag("cores", "1"),
                flag("cpus", "off"),
                flag("memory", "512MiB"),
                flag("segment_bytes", "4MiB"),
                flag("connections_max", "256"),
                flag("drain_timeout", "300ms"),
            ],
            ..Sources::default()
        };
        let config = Config::resolve(&sources).unwrap_or_else(|errors| panic!("{errors}"));
        let running = boot::start(config, None).unwrap_or_else(|error| panic!("{error}"));
        Self {
            running: Some(running),
            directory,
        }
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("it runs until it is dropped")
    }

    /// A scenario with the time that tests have: it ends by count, and nothing is left unmeasured. How
    /// well the load keeps its times on a machine that is busy with other tests is not asked.
    fn parameters(&self, scenario: &str) -> Parameters {
        Parameters {
            address: self.running().addr(),
            admin: Some(self.running().admin_addr()),
            warm_up: 0.0,
            messages: Some(2_000),
            rate: Some(20_000.0),
            missed_max: 1.0,
            busy_max: 1.0,
            interval: 0.05,
            verify: true,
            ..Parameters::of(scenario).expect(scenario)
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(running) = self.running.take()
            && let Err(error) = running.shutdown()
            && !std::thread::panicking()
        {
            panic!("{error}");
        }
    }
}

fn run(parameters: Parameters) -> Results {
    Session::whole(parameters, &mut Live::Quiet).unwrap_or_else(|error| panic!("{error}"))
}

fn only(results: &Results) -> &Round {
    let [round] = &results.rounds[..] else {
        panic!("{} rounds", results.rounds.len());
    };
    assert_eq!(round.invalid, None);
    assert!(round.counts.is_clean(), "{round:?}");
    round
}

#[test]
fn every_kind_of_exchange_brings_every_message_to_all_queues_of_its_group() {
    let broker = Broker::start();
    for (exchange, via, fan_out, exchanges) in [
        ("default", "raw", 1, 1),
        ("direct", "raw", 2, 2),
        ("fanout", "raw", 3, 1),
        ("topic", "raw", 2, 1),
        ("headers", "raw", 2, 3),
        ("headers", "client", 2, 1),
        ("fanout", "client", 6, 1),
    ] {
        let results = run(Parameters {
            via: via.into(),
            exchange: exchange.into(),
            exchanges,
            fan_out,
            queues: 6,
            producers: 2,
            prefix: format!("{exchange}-{via}-"),
            ..broker.parameters("steady")
        });
        let round = only(&results);
        assert_eq!(round.published, 2_000, "{exchange}");
        assert_eq!(round.delivered, 2_000 * u64::from(fan_out), "{exchange}");
        assert_eq!(
            (round.counts.foreign, round.counts.corrupt),
            (0, 0),
            "{exchange}"
        );
    }
}

#[test]
fn both_clocks_run_and_the_intended_one_never_shows_less() {
    let broker = Broker::start();
    for via in ["raw", "client"] {
        let results = run(Parameters {
            via: via.into(),
            arrivals: "poisson".into(),
            burst: Some("10ms/10ms".into()),
            size: "weighted:100*9,5000*1".into(),
            producers: 3,
            queues: 3,
            ..broker.parameters("steady")
        });
        let round = only(&results);
        for (response, service) in [
            ("confirm", "confirm-service"),
            ("end-to-end", "end-to-end-service"),
        ] {
            let response = round.times(response).expect("response times");
            let service = round.times(service).expect("service times");
            // A third of 2,000, rounded up, for each of three.
            assert_eq!((response.len(), service.len()), (2_001, 2_001), "{via}");
            for quantile in [0.0, 0.25, 0.5, 0.75, 0.99, 1.0] {
                let at = |times: &hdrhistogram::Histogram<u64>| times.value_at_quantile(quantile);
                assert!(at(response) >= at(service), "{via} at {quantile}");
            }
        }
        let late = round.times("late").expect("what was late");
        assert_eq!(late.len(), 2_001);
        let measured: u64 = round
            .intervals
            .iter()
            .map(|interval| interval.confirmed)
            .sum();
        assert_eq!(measured, 2_001, "every confirm lies in an interval");
    }
}

/// Counts intervals.
#[derive(Default)]
struct Intervals(u32);

impl Watcher for Intervals {
    fn interval(&mut self, _: Box<Tally>, _: &Sums) {
        self.0 += 1;
    }
}

#[test]
fn a_load_thread_leaves_its_tally_once_an_interval() {
    let broker = Broker::start();
    for via in ["raw", "client"] {
        let plan = Parameters {
            via: via.into(),
            interval: 3600.0,
            prefix: format!("{via}-"),
            ..broker.parameters("steady")
        };
        let plan = plan.plan().expect("a plan");
        declare(&plan).expect("declared");
        let mut intervals = Intervals::default();
        let outcome = run_watched(&plan, &mut intervals).expect("it runs");
        assert_eq!(outcome.tally.confirm.len(), 2_000, "{via}");
        assert_eq!(intervals.0, 1, "{via}: only what is left at the end");
    }
}

#[test]
fn slow_consumers_settle_all_and_are_told_apart() {
    let broker = Broker::start();
    let results = run(Parameters {
        queues: 4,
        producers: 4,
        service: "exponential:100us".into(),
        ..broker.parameters("slow-consumer")
    });
    let round = only(&results);
    let count = |name: &str| round.times(name).map(|times| times.len());
    assert_eq!(count("end-to-end"), Some(1_500));
    assert_eq!(count("end-to-end-service"), Some(1_500));
    assert_eq!(count("slow"), Some(500));
    assert_eq!(count("served"), Some(500));
    let (slow, served) = (round.times("slow"), round.times("served"));
    let max = |times: Option<&hdrhistogram::Histogram<u64>>| times.map(|times| times.max());
    assert!(max(served) >= max(slow), "work comes after delivery");
}

#[test]
fn a_backlog_is_drained_by_others_than_filled_it_and_checked_all_the_same() {
    let broker = Broker::start();
    let results = run(Parameters {
        messages: None,
        backlog: 3_000,
        producers: 2,
        size: "100".into(),
        ..broker.parameters("backlog-then-drain")
    });
    let names: Vec<_> = results
        .rounds
        .iter()
        .map(|round| round.name.as_str())
        .collect();
    assert_eq!(names, ["fill", "drain"]);
    assert!(results.is_clean());
    let drain = &results.rounds[1];
    assert_eq!(
        (drain.delivered, drain.counts.foreign, drain.counts.missing),
        (3_000, 0, 0)
    );
    assert_eq!(
        drain.times("end-to-end").map(|times| times.len()),
        Some(3_000)
    );
}

#[test]
fn a_storm_of_clients_connects_beside_the_load() {
    let broker = Broker::start();
    let results = run(Parameters {
        messages: None,
        duration: 0.5,
        after: 0.01,
        storm: 20,
        storm_rate: 2_000.0,
        rate: Some(1_000.0),
        ..broker.parameters("connection-storm")
    });
    let round = only(&results);
    assert_eq!(round.connects.as_ref().map(|times| times.0.len()), Some(20));
    assert_eq!(round.marks.len(), 2);
    assert!(
        round.notes.iter().any(|note| note.starts_with("20 of 20")),
        "{:?}",
        round.notes
    );
}

#[test]
fn a_sweep_has_a_run_for_each_rate_and_a_page_that_shows_them() {
    let broker = Broker::start();
    let results = run(Parameters {
        messages: None,
        duration: 0.2,
        rates: vec![500.0, 1_000.0, 2_000.0],
        ..broker.parameters("sweep")
    });
    assert_eq!(results.rounds.len(), 3);
    let found = results.sweep.expect("points");
    assert!(found.saturation > 0.0);
    let page = html::page(&results);
    assert!(page.contains("Throughput and latency") && page.contains("2\u{202f}000"));
}

#[test]
fn a_result_holds_what_broker_and_device_say_and_is_read_again() {
    let broker = Broker::start();
    let results = run(Parameters {
        device_dir: Some(broker.directory.path().to_owned()),
        device_seconds: 0.05,
        broker_pid: Some(std::process::id()),
        ..broker.parameters("steady")
    });
    let round = only(&results);
    let usage = &round.usage;
    assert!(
        usage.writes.is_some_and(|writes| writes >= 1.0),
        "{usage:?}"
    );
    assert!(
        usage.messages_per_write.is_some_and(|count| count >= 1.0),
        "{usage:?}"
    );
    let device = results.device.as_ref().expect("it was measured");
    assert!(!device.before.0.is_empty() && !device.after.0.is_empty());
    let is_told = !round.stages.is_empty() || round.stages_missing.is_some();
    assert!(is_told, "stages, or why there are none");
    let again = Results::parse(&results.json()).expect("it was written");
    assert_eq!(again.block, results.block);
    assert_eq!(again.rounds[0].times, round.times);
    assert_eq!(again.rounds[0].hiccups, round.hiccups);
    let log = String::from_utf8(results.log().expect("a log")).expect("text");
    for tag in ["Tag=confirm,", "Tag=end-to-end,", "Tag=hiccups,"] {
        assert!(log.contains(tag), "{tag}");
    }
}

#[test]
fn a_run_that_missed_its_schedule_is_not_reported() {
    let broker = Broker::start();
    // One message each 10 µs, 8 a write, by a client that is asked for far more than it can do in
    // one thread beside this broker.
    let results = run(Parameters {
        messages: None,
        duration: 0.3,
        via: "client".into(),
        rate: Some(5_000_000.0),
        batch: 8,
        level: "volatile".into(),
        queue: "volatile".into(),
        missed_max: 0.01,
        busy_max: 0.9,
        ..broker.parameters("steady")
    });
    let [round] = &results.rounds[..] else {
        panic!("one round");
    };
    let why = round.invalid.as_deref().expect("it cannot be driven");
    assert!(
        why.contains("CPUs") || why.contains("after their time"),
        "{why}"
    );
    assert!(round.main_series().is_none());
}

fn program(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringpost-load"))
        .args(words)
        .output()
        .expect("it can be run")
}

#[test]
fn wrong_arguments_are_answered_with_what_is_right() {
    for (words, says) in [
        (&["run", "chaos"][..], "broker-restart"),
        (&["--rate", "0"], "above 0"),
        (&["--size", "3"], "from 32"),
        (
            &["--exchange", "queue"],
            "default, direct, fanout, topic, headers",
        ),
        (&["--fan-out", "2", "--queues", "2"], "--exchange"),
        (&["--rate", "1", "--window", "1"], "cannot be used with"),
        (&["--burst", "1s"], "100ms/900ms"),
        (&["--steps", "5"], "5000:4"),
        (&["--service", "2ms"], "fixed:2ms"),
        (&["run", "broker-restart"], "ends only what it has started"),
        (&["rounds", "a.toml", "b.toml", "--rounds", "0"], "1..=1000"),
    ] {
        let output = program(words);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {text}");
        assert!(text.contains(says), "{words:?}: {text}");
    }
    let output = program(&["compare", "no-such-a.json", "no-such-b.json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-a.json"));
}

#[test]
fn printed_parameters_are_run_as_they_are() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("fan-out.toml");
    let file_name = file.to_str().expect("text");
    let first = program(&["run", "fan-out", "--rate", "123", "--print"]);
    assert!(first.status.success());
    std::fs::write(&file, &first.stdout).expect("written");
    let again = program(&["run", "--file", file_name, "--print"]);
    assert_eq!(first.stdout, again.stdout);
    let changed = program(&["run", "--file", file_name, "--rate", "124", "--print"]);
    let changed = String::from_utf8(changed.stdout).expect("text");
    assert!(
        changed.contains("rate = 124.0") && changed.contains("fan_out = 8"),
        "{changed}"
    );
}

#[test]
fn the_program_keeps_what_it_found_and_compares_it() {
    let broker = Broker::start();
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let address: SocketAddr = broker.running().addr();
    let parameters = Parameters {
        address,
        ..broker.parameters("steady")
    };
    std::fs::write(path("a.toml"), parameters.block()).expect("written");
    let output = program(&[
        "rounds",
        &path("a.toml"),
        &path("a.toml"),
        "--rounds",
        "4",
        "--out",
        &path("twice"),
    ]);
    let (said, errors) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(output.status.success(), "{said}{errors}");
    assert!(
        said.contains("rounds: 4 and 4") && said.contains("end to end p99"),
        "{said}"
    );
    for end in [
        "-a.json", "-a.hlog", "-a.html", "-b.json", "-b.hlog", "-b.html",
    ] {
        assert!(
            directory.path().join(format!("twice{end}")).exists(),
            "{end}"
        );
    }
    let results = Results::read(&directory.path().join("twice-a.json")).expect("a result");
    assert_eq!(results.rounds.len(), 4);
    let compared = program(&["compare", &path("twice-a.json"), &path("twice-b.json")]);
    assert!(compared.status.success());
    let drawn = program(&[
        "report",
        &path("twice-a.json"),
        "--out",
        &path("again.html"),
    ]);
    assert!(drawn.status.success());
    let seen = |name: &str| {
        let page = std::fs::read_to_string(path(name)).expect("a page");
        let (seen, _) = page.split_once("<script type=").expect("then the result");
        seen.to_owned()
    };
    assert_eq!(seen("twice-a.html"), seen("again.html"));
}

#[test]
fn messages_in_frames_of_their_own_are_the_same_messages() {
    let broker = Broker::start();
    for (rate, window) in [(Some(20_000.0), None), (None, Some(300))] {
        let results = run(Parameters {
            rate,
            window,
            singly: true,
            prefix: format!("singly-{}-", window.is_some()),
            ..broker.parameters("steady")
        });
        let round = only(&results);
        assert!(round.published >= 2_000);
        assert_eq!(round.delivered, round.published);
    }
    let parameters = Parameters {
        singly: true,
        via: "client".into(),
        ..broker.parameters("steady")
    };
    let error = parameters.plan().expect_err("the client frames by itself");
    assert!(error.to_string().contains("--singly"), "{error}");
}
