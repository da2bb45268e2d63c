//! What a result says of the machine and of this program: kernel, CPUs, memory, versions, command.
//! Does not measure.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Facts with their names, in the order they are shown.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Facts(pub Vec<(String, String)>);

impl Facts {
    /// Adds one.
    pub fn add(&mut self, name: &str, value: impl Into<String>) {
        self.0.push((name.to_owned(), value.into()));
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Looks at the machine.
#[must_use]
pub fn look(load_cpus: &[usize]) -> Facts {
    let mut facts = Facts::default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1))
        .unwrap_or("unknown");
    let count = cpuinfo.matches("processor\t").count();
    facts.add("CPU", format!("{count} × {model}"));
    let is_virtual = cpuinfo
        .lines()
        .any(|line| line.starts_with("flags") && line.contains(" hypervisor"));
    if is_virtual {
        facts.add(
            "virtual machine",
            "yes: neighbours share CPU, disk and caches",
        );
    }
    facts.add("kernel", read("/proc/sys/kernel/osrelease"));
    let governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    if !governor.is_empty() {
        facts.add("CPU governor", governor);
    }
    let smt = read("/sys/devices/system/cpu/smt/control");
    if !smt.is_empty() && !smt.starts_with("not") {
        facts.add("hyper-threading", smt);
    }
    let pages = read("/sys/kernel/mm/transparent_hugepage/enabled");
    if !pages.is_empty() {
        facts.add("huge pages", pages);
    }
    let memory = read("/proc/meminfo");
    if let Some(kib) = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next())
        .and_then(|word| word.parse::<f64>().ok())
    {
        facts.add("memory", format!("{:.1} GiB", kib / 1024.0 / 1024.0));
    }
    facts.add("run queue before", read("/proc/loadavg"));
    let pinned = match load_cpus {
        [] => "one thread, not pinned (--cpus pins it)".to_owned(),
        cpus => format!("pinned to CPU {}", list(cpus)),
    };
    facts.add("load threads", pinned);
    facts
}

fn list(cpus: &[usize]) -> String {
    let words: Vec<_> = cpus.iter().map(usize::to_string).collect();
    words.join(", ")
}

/// CPUs that an affinity mask of the kernel's default size can name.
const CPUS_MAX: usize = 1024;

/// Pins this thread; false if there is no such CPU that this process may use.
#[must_use]
pub fn pin(cpu: usize) -> bool {
    cpu < CPUS_MAX && core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
}

/// The command line, as it can be typed again.
#[must_use]
pub fn command() -> String {
    let words: Vec<_> = std::env::args().map(|word| quote(&word)).collect();
    words.join(" ")
}

fn quote(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+*".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// A time as `2026-01-31 12:00:59 UTC`.
#[must_use]
pub fn utc(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days to a date (Howard Hinnant, chrono-compatible low-level date algorithms).
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_said_as_dates() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_827_696, "2000-02-29 12:34:56 UTC"),
            (1_798_761_599, "2026-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_command_can_be_typed_again() {
        assert_eq!(quote("--rate=100"), "--rate=100");
        assert_eq!(quote("serve --data-dir x"), "'serve --data-dir x'");
        assert_eq!(quote("it's"), "'it'\\''s'");
        assert_eq!(quote(""), "''");
    }

    #[test]
    fn cpus_that_are_not_there_are_refused() {
        for cpu in [CPUS_MAX - 1, CPUS_MAX, CPUS_MAX + 1, 1 << 20] {
            assert!(!pin(cpu), "{cpu}");
        }
    }

    #[test]
    fn the_machine_is_described() {
        let facts = look(&[1, 3]);
        let find = |name: &str| {
            let found = facts.0.iter().find(|(other, _)| other == name);
            found.map(|(_, value)| value.as_str())
        };
        assert!(find("kernel").is_some_and(|kernel| !kernel.is_empty()));
        assert_eq!(find("load threads"), Some("pinned to CPU 1, 3"));
    }
}
