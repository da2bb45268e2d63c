//! `ringpost doctor`: what this machine lacks for a broker, and the command that cures it. Gathers
//! facts first and judges them afterwards; changes nothing but a scratch file that it removes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::output::{self, FormatArgs};
use super::settings::SettingsArgs;
use super::{Exit, Failure};
use crate::allowance::{Allowance, DESCRIPTORS_MIN, LOCKED_BYTES_MIN};
use crate::budget::{self, Budget};
use crate::config::Config;
use crate::config::value::{Cpus, bytes_text};
use crate::rt::disk::{self, DirectIo, DiskSpace};
use crate::rt::probe::{self, Scratch};

const EXAMPLES: &str = "\
Every line says OK, DEGRADED (it works, and something is slower or unsafe) or MISSING (the broker
cannot start). Ends with 0, or with 5 if anything is missing. Takes the settings of `serve`, to
judge the data directory and the memory that the broker will have. Run it as the broker's user.

Examples:
  ringpost doctor
  ringpost doctor --config /etc/ringpost.toml
  sudo -u ringpost ringpost doctor --data-dir /var/lib/ringpost --json";

/// Check this machine, and say how to cure what it lacks
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Skip the measurement of synced writes
    #[arg(long)]
    no_measure: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Synced writes measured of each size.
const WRITES: u32 = 200;
/// Sizes of the measured writes, in bytes.
const WRITE_BYTES: [usize; 2] = [4 << 10, 64 << 10];
/// A kernel before this has no `epoll_pwait2`.
const KERNEL_MIN: (u32, u32) = (5, 11);
/// A kernel before this interrupts the cores for completions and states no alignment.
const KERNEL_GOOD: (u32, u32) = (6, 1);
/// Memory that a core's executor registers with the kernel, on three rings of 64 KiB, and room for
/// the rings themselves on kernels that count them: below it the executor takes slower ways.
const LOCKED_BYTES_PER_CORE: u64 = 1 << 20;
/// A synced write slower than this makes a poor broker.
const WRITE_P99_POOR: Duration = Duration::from_millis(20);

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    let config = args.settings.resolve()?;
    let facts = Facts::gather(&config, !args.no_measure);
    let findings = judge(&facts, &config);
    if args.format.json {
        output::rows(args.format, &[], &findings, |_| Vec::new())?;
    } else {
        output::write_all(text_of(&findings).as_bytes())?;
    }
    let missing = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Missing)
        .count();
    if missing == 0 {
        return Ok(());
    }
    let what = if missing == 1 {
        "1 line is"
    } else {
        &format!("{missing} lines are")
    };
    Err(Failure::new(
        Exit::Unfit,
        format!("{what} MISSING: the broker cannot start here until that is cured"),
    ))
}

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "UPPERCASE")]
enum Verdict {
    /// As it should be.
    Ok,
    /// The broker works, slower or less safely.
    Degraded,
    /// The broker cannot start.
    Missing,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "OK",
            Verdict::Degraded => "DEGRADED",
            Verdict::Missing => "MISSING",
        }
    }
}

/// One line of the report.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Finding {
    /// What was looked at.
    check: &'static str,
    /// How bad.
    verdict: Verdict,
    /// What was found.
    found: String,
    /// The command or the change that cures it; empty if there is nothing to cure.
    cure: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Finding {
            check,
            verdict: Verdict::Ok,
            found: found.into(),
            cure: String::new(),
        }
    }

    fn degraded(check: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        let (found, cure) = (found.into(), cure.into());
        Finding {
            check,
            verdict: Verdict::Degraded,
            found,
            cure,
        }
    }

    fn missing(check: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        let (found, cure) = (found.into(), cure.into());
        Finding {
            check,
            verdict: Verdict::Missing,
            found,
            cure,
        }
    }
}

fn text_of(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding {
        check,
        verdict,
        found,
        cure,
    } in findings
    {
        text.push_str(&format!("{check:<16}{:<10}{found}\n", verdict.word()));
        if !cure.is_empty() {
            text.push_str(&format!("{:<16}{:<10}cure: {cure}\n", "", ""));
        }
    }
    text
}

/// What was found out, without judgement.
#[derive(Clone, Debug)]
struct Facts {
    /// The kernel's release, such as `6.18.44`.
    kernel: String,
    /// Operations that io_uring lacks, or the error number of having none.
    io_uring: Result<Vec<&'static str>, i32>,
    /// The sysctl: 0 for everybody, 1 for the privileged, 2 for nobody.
    io_uring_disabled: u32,
    /// Whether a seccomp filter sees this process's syscalls.
    filtered: bool,
    /// Memory that may be locked, and files that may be open.
    allowance: Allowance,
    /// CPUs that this process may use.
    cpus: Vec<usize>,
    /// What the kernel reads the time from.
    clock_source: String,
    /// Memory of the machine or control group.
    memory: Option<u64>,
    /// The data directory, or why nothing can be said of it.
    data: Result<DataFacts, String>,
}

/// What was found out of the data directory.
#[derive(Clone, Debug)]
struct DataFacts {
    /// The directory that was looked at: the data directory, or the nearest above it that exists.
    path: PathBuf,
    /// Type of its file system.
    file_system: String,
    /// Whether the journal can work there.
    direct: Result<DirectIo, String>,
    /// Room.
    space: Option<DiskSpace>,
    /// Bytes of a write, and p50 and p99 of how long it took.
    writes: Vec<(usize, Duration, Duration)>,
}

impl Facts {
    /// Asks the machine.
    fn gather(config: &Config, measure: bool) -> Facts {
        let line = |path: &str| {
            fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let status = line("/proc/self/status");
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|text| text.trim().to_owned())
        };
        Facts {
            kernel: line("/proc/sys/kernel/osrelease"),
            io_uring: probe::io_uring_missing()
                .map_err(|error| error.raw_os_error().unwrap_or_default()),
            io_uring_disabled: line("/proc/sys/kernel/io_uring_disabled")
                .parse()
                .unwrap_or(0),
            filtered: field("Seccomp:").is_some_and(|mode| mode != "0"),
            allowance: Allowance::of_process(),
            cpus: probe::cpus_usable(),
            clock_source: line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            memory: probe::memory_bytes(),
            data: DataFacts::gather(&config.data_dir, measure),
        }
    }
}

impl DataFacts {
    /// Asks the file system of `directory`, or of what it will be made in.
    fn gather(directory: &Path, measure: bool) -> Result<DataFacts, String> {
        let absolute = std::path::absolute(directory).map_err(|error| error.to_string())?;
        let path = absolute
            .ancestors()
            .find(|path| path.is_dir())
            .ok_or("no directory exists")?;
        let direct = disk::probe_direct_io(path).map_err(|error| error.to_string());
        let mut writes = Vec::new();
        if measure && direct.is_ok() {
            let scratch = Scratch::create(path).map_err(|error| error.to_string())?;
            for bytes in WRITE_BYTES {
                let mut spans = scratch
                    .measure(bytes, WRITES)
                    .map_err(|error| error.to_string())?;
                spans.sort_unstable();
                let at = |percent: usize| spans[(spans.len() - 1) * percent / 100];
                writes.push((bytes, at(50), at(99)));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Ok(DataFacts {
            file_system: file_system_of(&mounts, path).unwrap_or_else(|| "unknown".into()),
            direct,
            space: disk::disk_space(path).ok(),
            writes,
            path: path.to_owned(),
        })
    }
}

/// The file system type of the longest mount point above `path`.
fn file_system_of(mounts: &str, path: &Path) -> Option<String> {
    let lines = mounts.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?.replace("\\040", " ");
        let kind = right.split(' ').next()?;
        path.starts_with(&point)
            .then(|| (point.len(), kind.to_owned()))
    });
    // Of two mounts on one point the later one is seen.
    lines
        .enumerate()
        .max_by_key(|(order, (length, _))| (*length, *order))
        .map(|it| it.1.1)
}

/// The first two numbers of a kernel release.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Says what the facts mean for a broker with this configuration.
fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut findings = vec![judge_kernel(facts), judge_io_uring(facts)];
    if facts.filtered {
        findings.push(match facts.io_uring {
            Ok(_) => Finding::ok("seccomp", "a filter is active and lets io_uring through"),
            Err(_) => Finding::missing(
                "seccomp",
                "a filter is active, and io_uring is refused: most likely by the filter",
                "in a container: docker run --security-opt seccomp=unconfined, or a profile that \
                 allows io_uring_setup, io_uring_enter and io_uring_register",
            ),
        });
    }
    findings.push(judge_locked(facts, config));
    findings.push(judge_descriptors(facts, config));
    findings.push(judge_memory(facts, config));
    findings.push(judge_cpus(facts, config));
    findings.push(judge_clock(facts));
    match &facts.data {
        Ok(data) => findings.extend(judge_data(data, config, facts)),
        Err(why) => findings.push(Finding::missing(
            "data directory",
            format!("{}: {why}", config.data_dir.display()),
            "choose another with --data-dir",
        )),
    }
    findings
}

fn judge_kernel(facts: &Facts) -> Finding {
    let release = &facts.kernel;
    let cure = "boot a newer kernel; every long-term one since 6.1 will do";
    match kernel_version(release) {
        None => Finding::degraded(
            "kernel",
            format!("its release \"{release}\" says nothing"),
            cure,
        ),
        Some(version) if version < KERNEL_MIN => Finding::missing(
            "kernel",
            format!(
                "{release}, and {}.{} is the least that works",
                KERNEL_MIN.0, KERNEL_MIN.1
            ),
            cure,
        ),
        Some(version) if version < KERNEL_GOOD => Finding::degraded(
            "kernel",
            format!(
                "{release} works; since {}.{} writes take less CPU",
                KERNEL_GOOD.0, KERNEL_GOOD.1
            ),
            cure,
        ),
        Some(_) => Finding::ok("kernel", release.clone()),
    }
}

fn judge_io_uring(facts: &Facts) -> Finding {
    const CHECK: &str = "io_uring";
    match &facts.io_uring {
        Ok(missing) if missing.is_empty() => {
            Finding::ok(CHECK, "works, and has every operation that is needed")
        }
        Ok(missing) => Finding::missing(
            CHECK,
            format!("lacks the operations {}", missing.join(", ")),
            "boot a newer kernel; every long-term one since 6.1 will do",
        ),
        Err(libc::ENOSYS) => Finding::missing(
            CHECK,
            "the kernel is built without it",
            "boot a kernel with CONFIG_IO_URING=y",
        ),
        Err(libc::EPERM) if facts.io_uring_disabled > 0 => Finding::missing(
            CHECK,
            format!(
                "forbidden by the sysctl kernel.io_uring_disabled={}",
                facts.io_uring_disabled
            ),
            "sudo sysctl -w kernel.io_uring_disabled=0",
        ),
        Err(libc::EPERM) => Finding::missing(
            CHECK,
            "forbidden, though not by a sysctl",
            "look for a seccomp filter (containers have one) or a security module such as SELinux",
        ),
        Err(libc::ENOMEM) => Finding::missing(
            CHECK,
            "not enough memory may be locked for a ring",
            "ulimit -l unlimited, or LimitMEMLOCK=infinity in the systemd unit",
        ),
        Err(number) => Finding::missing(
            CHECK,
            format!("refused: {}", std::io::Error::from_raw_os_error(*number)),
            "see the kernel's log: sudo dmesg | tail",
        ),
    }
}

fn judge_locked(facts: &Facts, config: &Config) -> Finding {
    const CHECK: &str = "locked memory";
    const CURE: &str = "ulimit -l unlimited, or LimitMEMLOCK=infinity in the systemd unit";
    let cores = u64::from(config.core_count(facts.cpus.len()));
    let wanted = cores * LOCKED_BYTES_PER_CORE;
    match facts.allowance.locked_bytes_max {
        None => Finding::ok(CHECK, "no limit"),
        Some(max) if max >= wanted => Finding::ok(CHECK, format!("up to {}", bytes_text(max))),
        Some(max) if max < LOCKED_BYTES_MIN => Finding::missing(
            CHECK,
            format!(
                "up to {}, and a core needs {}",
                bytes_text(max),
                bytes_text(LOCKED_BYTES_MIN)
            ),
            CURE,
        ),
        Some(max) => Finding::degraded(
            CHECK,
            format!(
                "up to {}, and {cores} cores register {}: without it every operation costs more",
                bytes_text(max),
                bytes_text(wanted)
            ),
            CURE,
        ),
    }
}

fn judge_descriptors(facts: &Facts, config: &Config) -> Finding {
    const CHECK: &str = "open files";
    let wanted = u64::from(config.connections_max) + DESCRIPTORS_MIN;
    let cure = format!("ulimit -n {wanted}, or LimitNOFILE={wanted} in the systemd unit");
    match facts.allowance.descriptors_max {
        None => Finding::ok(CHECK, "no limit"),
        Some(max) if max >= wanted => Finding::ok(CHECK, format!("up to {max}")),
        Some(max) if max < DESCRIPTORS_MIN => Finding::missing(
            CHECK,
            format!("up to {max}, too few even without clients"),
            cure,
        ),
        Some(max) => Finding::degraded(
            CHECK,
            format!(
                "up to {max}, and connections_max = {} takes {wanted}: clients beyond {} are refused",
                config.connections_max,
                max - DESCRIPTORS_MIN
            ),
            cure,
        ),
    }
}

fn judge_memory(facts: &Facts, config: &Config) -> Finding {
    const CHECK: &str = "memory";
    let demand = budget::Demand {
        machine: facts.memory,
        ..budget::Demand::of(config, facts.cpus.len())
    };
    match Budget::derive(demand) {
        Err(error) => Finding::missing(CHECK, error.to_string(), "change the setting `memory`"),
        Ok(_) => Finding::ok(
            CHECK,
            match facts.memory {
                Some(machine) => format!(
                    "{} of the machine's {} MiB, for {} cores",
                    bytes_text(config.memory),
                    machine >> 20,
                    demand.cores
                ),
                None => format!("{} for {} cores", bytes_text(config.memory), demand.cores),
            },
        ),
    }
}

fn judge_cpus(facts: &Facts, config: &Config) -> Finding {
    const CHECK: &str = "CPUs";
    let usable = facts.cpus.len();
    let cores = usize::from(config.core_count(usable));
    if let Cpus::List(list) = &config.cpus {
        let foreign: Vec<String> = list
            .iter()
            .filter(|cpu| !facts.cpus.contains(&(**cpu as usize)))
            .map(u32::to_string)
            .collect();
        if !foreign.is_empty() {
            return Finding::missing(
                CHECK,
                format!(
                    "the setting `cpus` names {}, which this process may not use",
                    foreign.join(", ")
                ),
                "name others, or widen the CPU set (taskset -pc, AllowedCPUs= in the systemd unit)",
            );
        }
    }
    if cores > usable {
        return Finding::degraded(
            CHECK,
            format!("{cores} cores of the broker share {usable} CPUs: good for tests only"),
            format!("lower the setting `cores` to {usable}"),
        );
    }
    Finding::ok(
        CHECK,
        format!("{usable} usable, {cores} cores of the broker"),
    )
}

fn judge_clock(facts: &Facts) -> Finding {
    const CHECK: &str = "clock";
    match facts.clock_source.as_str() {
        "tsc" | "kvm-clock" | "arch_sys_counter" | "hyperv_clocksource_tsc_page" => {
            Finding::ok(CHECK, facts.clock_source.clone())
        }
        "" => Finding::ok(CHECK, "the kernel does not name its source"),
        slow => Finding::degraded(
            CHECK,
            format!("{slow}: every look at the time is a syscall"),
            "echo tsc | sudo tee /sys/devices/system/clocksource/clocksource0/current_clocksource",
        ),
    }
}

/// The lines of the data directory.
fn judge_data(data: &DataFacts, config: &Config, facts: &Facts) -> Vec<Finding> {
    let path = data.path.display();
    let kind = &data.file_system;
    let mut findings = vec![match &data.direct {
        Ok(DirectIo::Durable) => Finding::ok(
            "data directory",
            format!("{path}, {kind}, direct I/O aligned to 4 KiB"),
        ),
        Ok(DirectIo::Memory) => Finding::degraded(
            "data directory",
            format!("{path} is {kind}: in memory, nothing survives a power cut"),
            "choose a directory on a disk with --data-dir",
        ),
        Ok(DirectIo::Refused) => Finding::missing(
            "data directory",
            format!("{path} is {kind}, which refuses direct I/O aligned to 4 KiB"),
            "choose a directory on ext4 or XFS with --data-dir",
        ),
        Err(why) => Finding::missing(
            "data directory",
            format!("cannot write in {path}: {why}"),
            format!("sudo chown $USER {path}, or choose another with --data-dir"),
        ),
    }];
    if let Some(space) = data.space {
        findings.push(judge_space(space, config, facts));
    }
    for (bytes, p50, p99) in &data.writes {
        let check = if *bytes == WRITE_BYTES[0] {
            "synced 4 KiB"
        } else {
            "synced 64 KiB"
        };
        let found = format!("p50 {} us, p99 {} us", p50.as_micros(), p99.as_micros());
        findings.push(if *p99 > WRITE_P99_POOR {
            Finding::degraded(
                check,
                format!("{found}: every durable confirm waits at least that long"),
                "use a local SSD, and see that nothing else keeps the disk busy (iostat -x 1)",
            )
        } else {
            Finding::ok(check, found)
        });
    }
    findings
}

fn judge_space(space: DiskSpace, config: &Config, facts: &Facts) -> Finding {
    /// Segments that a core makes when it starts: open, spare, and the reserve.
    const SEGMENTS_AT_START: u64 = 6;
    let cores = u64::from(config.core_count(facts.cpus.len()));
    let wanted = cores * SEGMENTS_AT_START * config.segment_bytes;
    let free = format!(
        "{} MiB free of {} MiB",
        space.available_bytes >> 20,
        space.total_bytes >> 20
    );
    if space.available_bytes < wanted {
        return Finding::missing(
            "free space",
            format!(
                "{free}, and {cores} cores need {} to start",
                bytes_text(wanted)
            ),
            "free some, choose another directory with --data-dir, or lower `segment_bytes`",
        );
    }
    Finding::ok("free space", free)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            kernel: "6.18.44".into(),
            io_uring: Ok(Vec::new()),
            io_uring_disabled: 0,
            filtered: false,
            allowance: Allowance {
                locked_bytes_max: None,
                descriptors_max: Some(1 << 20),
            },
            cpus: vec![0, 1],
            clock_source: "tsc".into(),
            memory: Some(8 << 30),
            data: Ok(DataFacts {
                path: "/var/lib/ringpost".into(),
                file_system: "ext4".into(),
                direct: Ok(DirectIo::Durable),
                space: Some(DiskSpace {
                    total_bytes: 100 << 30,
                    available_bytes: 50 << 30,
                }),
                writes: vec![(4096, Duration::from_micros(110), Duration::from_micros(200))],
            }),
        }
    }

    /// Changes one fact; the line that is not OK then.
    fn check(change: impl FnOnce(&mut Facts, &mut Config)) -> Vec<(&'static str, Verdict, String)> {
        let (mut facts, mut config) = (good(), Config::default());
        change(&mut facts, &mut config);
        judge(&facts, &config)
            .into_iter()
            .filter(|finding| finding.verdict != Verdict::Ok)
            .map(|finding| {
                assert!(!finding.cure.is_empty(), "{} has no cure", finding.check);
                (
                    finding.check,
                    finding.verdict,
                    format!("{} {}", finding.found, finding.cure),
                )
            })
            .collect()
    }

    fn check_one(
        change: impl FnOnce(&mut Facts, &mut Config),
        name: &str,
        bad: Verdict,
        word: &str,
    ) {
        let bad_ones = check(change);
        assert_eq!(bad_ones.len(), 1, "{bad_ones:?}");
        let (check, verdict, text) = &bad_ones[0];
        assert_eq!((*check, *verdict), (name, bad));
        assert!(text.contains(word), "{text}");
    }

    #[test]
    fn a_good_machine_is_good() {
        assert_eq!(check(|_, _| {}), []);
    }

    #[test]
    fn each_lack_is_named_with_its_cure() {
        use Verdict::{Degraded, Missing};
        check_one(
            |facts, _| facts.kernel = "5.10.1".into(),
            "kernel",
            Missing,
            "5.11",
        );
        check_one(
            |facts, _| facts.kernel = "5.15.0-91".into(),
            "kernel",
            Degraded,
            "less CPU",
        );
        check_one(
            |facts, _| facts.io_uring = Ok(vec!["STATX"]),
            "io_uring",
            Missing,
            "STATX",
        );
        check_one(
            |facts, _| facts.io_uring = Err(libc::ENOSYS),
            "io_uring",
            Missing,
            "CONFIG_IO_URING",
        );
        check_one(
            |facts, _| facts.io_uring = Err(libc::EPERM),
            "io_uring",
            Missing,
            "seccomp",
        );
        check_one(
            |facts, _| facts.io_uring = Err(libc::ENOMEM),
            "io_uring",
            Missing,
            "ulimit -l",
        );
        check_one(
            |facts, _| (facts.io_uring, facts.io_uring_disabled) = (Err(libc::EPERM), 2),
            "io_uring",
            Missing,
            "sudo sysctl -w kernel.io_uring_disabled=0",
        );
        check_one(
            |facts, _| facts.allowance.locked_bytes_max = Some(LOCKED_BYTES_MIN),
            "locked memory",
            Degraded,
            "LimitMEMLOCK",
        );
        check_one(
            |facts, _| facts.allowance.locked_bytes_max = Some(LOCKED_BYTES_MIN - 1),
            "locked memory",
            Missing,
            "LimitMEMLOCK",
        );
        check_one(
            |facts, _| facts.allowance.descriptors_max = Some(1024),
            "open files",
            Degraded,
            "beyond 768",
        );
        check_one(
            |facts, _| facts.allowance.descriptors_max = Some(100),
            "open files",
            Missing,
            "LimitNOFILE",
        );
        check_one(
            |facts, _| facts.memory = Some(512 << 20),
            "memory",
            Missing,
            "512MiB",
        );
        check_one(
            |facts, _| facts.clock_source = "hpet".into(),
            "clock",
            Degraded,
            "hpet",
        );
        check_one(
            |_, config| config.cpus = Cpus::List(vec![1, 7]),
            "CPUs",
            Missing,
            "names 7",
        );
        check_one(
            |_, config| config.cores = crate::config::value::Cores::Count(3),
            "CPUs",
            Degraded,
            "lower the setting `cores` to 2",
        );
    }

    #[test]
    fn each_lack_of_the_data_directory_is_named_with_its_cure() {
        use Verdict::{Degraded, Missing};
        fn data(facts: &mut Facts) -> &mut DataFacts {
            facts.data.as_mut().expect("is there")
        }
        let name = "data directory";
        check_one(
            |facts, _| facts.data = Err("gone".into()),
            name,
            Missing,
            "gone",
        );
        check_one(
            |facts, _| data(facts).direct = Ok(DirectIo::Memory),
            name,
            Degraded,
            "power cut",
        );
        check_one(
            |facts, _| data(facts).direct = Ok(DirectIo::Refused),
            name,
            Missing,
            "ext4 or XFS",
        );
        check_one(
            |facts, _| data(facts).direct = Err("denied".into()),
            name,
            Missing,
            "chown",
        );
        let full = DiskSpace {
            total_bytes: 1 << 30,
            available_bytes: 2 * 6 * Config::default().segment_bytes - 1,
        };
        check_one(
            |facts, _| data(facts).space = Some(full),
            "free space",
            Missing,
            "2 cores need",
        );
        let slow = vec![(
            64 << 10,
            Duration::from_millis(5),
            Duration::from_millis(21),
        )];
        check_one(
            |facts, _| data(facts).writes = slow,
            "synced 64 KiB",
            Degraded,
            "21000 us",
        );
    }

    #[test]
    fn a_filter_is_blamed_only_when_io_uring_fails() {
        assert_eq!(check(|facts, _| facts.filtered = true), []);
        let bad = check(|facts, _| (facts.filtered, facts.io_uring) = (true, Err(libc::EPERM)));
        assert_eq!(bad.len(), 2);
        assert!(bad[1].2.contains("docker"));
    }

    #[test]
    fn mounts_are_read_as_the_kernel_writes_them() {
        let mounts = "22 1 254:0 / / rw,relatime - ext4 /dev/root rw\n\
                      30 22 0:25 / /var/lib rw - xfs /dev/vdb rw\n\
                      31 22 0:26 / /with\\040space rw shared:1 - tmpfs tmpfs rw\n\
                      32 22 0:27 / /var/lib rw - btrfs /dev/vdc rw\n";
        let of = |path: &str| file_system_of(mounts, Path::new(path));
        assert_eq!(of("/home").as_deref(), Some("ext4"));
        assert_eq!(of("/var/lib/ringpost").as_deref(), Some("btrfs"));
        assert_eq!(of("/with space/x").as_deref(), Some("tmpfs"));
        assert_eq!(of("/variable").as_deref(), Some("ext4"));
        assert_eq!(kernel_version("6.1.0-rc1"), Some((6, 1)));
        assert_eq!(kernel_version("nonsense"), None);
    }
}
