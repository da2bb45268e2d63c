//! What the facts of `ringpost doctor` mean for a broker with a given configuration, and the cure of
//! what is wrong. Looks at nothing itself.

use std::time::Duration;

use super::Finding;
use super::facts::{DataFacts, Facts, Port, Refused, Use, WRITE_BYTES, kernel_version};
use crate::allowance::{DESCRIPTORS_MIN, LOCKED_BYTES_MIN};
use crate::budget::{self, Budget};
use crate::cli::output::counted;
use crate::config::Config;
use crate::config::value::bytes_text;
use crate::rt::disk::{DirectIo, DiskSpace};

/// A kernel before this has no `epoll_pwait2`.
const KERNEL_MIN: (u32, u32) = (5, 11);
/// A kernel before this interrupts the cores for completions and states no alignment.
const KERNEL_GOOD: (u32, u32) = (6, 1);
/// Memory that a core's executor registers with the kernel, on three rings of 64 KiB, and room for
/// the rings themselves on kernels that count them: below it the executor takes slower ways.
const LOCKED_BYTES_PER_CORE: u64 = 1 << 20;
/// A synced write slower than this makes a poor broker.
const WRITE_P99_POOR: Duration = Duration::from_millis(20);

/// Says what the facts mean for a broker with this configuration.
pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
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
    findings.extend(facts.ports.iter().map(judge_port));
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
                "up to {}, and {} register {}: without it every operation costs more",
                bytes_text(max),
                counted(cores, "core"),
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
                    "{} of the machine's {} MiB, for {}",
                    bytes_text(config.memory),
                    machine >> 20,
                    counted(u64::from(demand.cores), "core")
                ),
                None => format!(
                    "{} for {}",
                    bytes_text(config.memory),
                    counted(u64::from(demand.cores), "core")
                ),
            },
        ),
    }
}

fn judge_cpus(facts: &Facts, config: &Config) -> Finding {
    const CHECK: &str = "CPUs";
    let usable = facts.cpus.len();
    let cores = usize::from(config.core_count(usable));
    if let Err(error) = config.check_cpus(&facts.cpus) {
        return Finding::missing(
            CHECK,
            error.to_string(),
            "give --cpus others, or `auto`, or widen the CPU set",
        );
    }
    if cores > usable {
        return Finding::degraded(
            CHECK,
            format!(
                "{} of the broker share {}: good for tests only",
                counted(cores as u64, "core"),
                counted(usable as u64, "CPU")
            ),
            format!("lower the setting `cores` to {usable}"),
        );
    }
    Finding::ok(
        CHECK,
        format!(
            "{usable} usable, {} of the broker",
            counted(cores as u64, "core")
        ),
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

fn judge_port(port: &Port) -> Finding {
    const CHECK: &str = "port";
    let Port { flag, address, .. } = port;
    match &port.refused {
        None => Finding::ok(CHECK, format!("{address} is free, for --{flag}")),
        Some(Refused::Taken) => Finding::missing(
            CHECK,
            format!("{address} is taken: a broker or another program listens there"),
            format!(
                "see who with `ss -ltnp 'sport = :{}'` and end it, or choose another with --{flag}",
                address.port()
            ),
        ),
        Some(Refused::Other(why)) => Finding::missing(
            CHECK,
            format!("cannot listen on {address}: {why}"),
            format!("choose another with --{flag}"),
        ),
    }
}

/// Why the data directory cannot be used, by whom it is used, or what its file system is.
fn judge_directory(data: &DataFacts, config: &Config, user: &str) -> Finding {
    const CHECK: &str = "data directory";
    let path = data.path.display();
    let kind = &data.file_system;
    match (&data.state, &data.direct) {
        (Use::Refused { is_damaged, why }, _) => Finding::missing(
            CHECK,
            why.clone(),
            if *is_damaged {
                "restore it from a copy, or choose another with --data-dir"
            } else {
                "choose another with --data-dir"
            },
        ),
        (Use::Held(process), _) if process.is_empty() => Finding::missing(
            CHECK,
            format!("{path} is in use by a running broker, which found the disk full"),
            "stop it before another starts, or name another directory",
        ),
        (Use::Held(process), _) => Finding::missing(
            CHECK,
            format!("{path} is in use by a running broker, process {process}"),
            format!("stop it (kill {process}) before another starts, or name another directory"),
        ),
        (Use::New | Use::Ours, Ok(DirectIo::Durable)) => Finding::ok(
            CHECK,
            format!("{path}, {kind}, direct I/O aligned to 4 KiB"),
        ),
        (_, Ok(DirectIo::Memory)) => Finding::degraded(
            CHECK,
            format!("{path} is {kind}: in memory, nothing survives a power cut"),
            "choose a directory on a disk with --data-dir",
        ),
        (_, Ok(DirectIo::Refused)) => Finding::missing(
            CHECK,
            format!("{path} is {kind}, which refuses direct I/O aligned to 4 KiB"),
            "choose a directory on ext4 or XFS with --data-dir",
        ),
        (_, Err(why)) => Finding::missing(
            CHECK,
            format!("cannot write in {path}: {why}"),
            if data.is_there {
                format!("sudo chown {user} {path}, or choose another with --data-dir")
            } else {
                let wanted = config.data_dir.display();
                format!("sudo install -d -o {user} {wanted}, or choose another with --data-dir")
            },
        ),
    }
}

/// The lines of the data directory.
fn judge_data(data: &DataFacts, config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![judge_directory(data, config, &facts.user)];
    if let Some(space) = data.space {
        findings.push(judge_space(space, &data.state, config, facts));
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

fn judge_space(space: DiskSpace, state: &Use, config: &Config, facts: &Facts) -> Finding {
    /// Segments that a core makes when it starts: open, spare, and the reserve.
    const SEGMENTS_AT_START: u64 = 6;
    let cores = u64::from(config.core_count(facts.cpus.len()));
    let wanted = cores * SEGMENTS_AT_START * config.segment_bytes;
    let free = format!(
        "{} MiB free of {} MiB",
        space.available_bytes >> 20,
        space.total_bytes >> 20
    );
    if space.available_bytes < wanted && *state != Use::New {
        // It has its files, and consumers need a broker to make room.
        return Finding::degraded(
            "free space",
            format!("{free}: publishes may be refused with `disk_full`"),
            "free some, or let consumers take what the queues hold",
        );
    }
    if space.available_bytes < wanted {
        return Finding::missing(
            "free space",
            format!(
                "{free}, and {} need {} to start",
                counted(cores, "core"),
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
    use crate::allowance::Allowance;
    use crate::cli::doctor::Verdict;
    use crate::config::value::Cpus;

    fn good() -> Facts {
        Facts {
            kernel: "6.18.44".into(),
            io_uring: Ok(Vec::new()),
            io_uring_disabled: 0,
            filtered: false,
            user: "ringpost".into(),
            allowance: Allowance {
                locked_bytes_max: None,
                descriptors_max: Some(1 << 20),
            },
            cpus: vec![0, 1],
            clock_source: "tsc".into(),
            memory: Some(8 << 30),
            ports: vec![Port {
                flag: "listen",
                address: "127.0.0.1:7400".parse().expect("an address"),
                refused: None,
            }],
            data: Ok(DataFacts {
                is_there: true,
                state: Use::New,
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
            |facts, _| facts.ports[0].refused = Some(Refused::Taken),
            "port",
            Missing,
            "127.0.0.1:7400 is taken",
        );
        check_one(
            |facts, _| facts.ports[0].refused = Some(Refused::Other("not ours".into())),
            "port",
            Missing,
            "not ours choose another with --listen",
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
            "sudo chown ringpost /var/lib/ringpost",
        );
        check_one(
            |facts, config| {
                config.data_dir = "/var/lib/ringpost".into();
                data(facts).path = "/var/lib".into();
                data(facts).is_there = false;
                data(facts).direct = Err("denied".into());
            },
            name,
            Missing,
            "cannot write in /var/lib: denied sudo install -d -o ringpost /var/lib/ringpost,",
        );
        check_one(
            |facts, _| data(facts).state = Use::Held("7".into()),
            name,
            Missing,
            "process 7",
        );
        check_one(
            |facts, _| data(facts).state = Use::Held(String::new()),
            name,
            Missing,
            "found the disk full",
        );
        for is_damaged in [false, true] {
            let why = "holds `x`".to_owned();
            check_one(
                |facts, _| data(facts).state = Use::Refused { is_damaged, why },
                name,
                Missing,
                "holds `x`",
            );
        }
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
        check_one(
            |facts, _| (data(facts).space, data(facts).state) = (Some(full), Use::Ours),
            "free space",
            Degraded,
            "disk_full",
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
}
