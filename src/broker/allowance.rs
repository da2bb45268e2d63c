//! What the kernel allows this process: memory that it may lock, files that it may open. Does not
//! raise either, and does not know what they are used for.

/// Below so much lockable memory a core's executor does not start.
pub const LOCKED_BYTES_MIN: u64 = 512 << 10;
/// Descriptors beside those of connections: files, rings, bells, admin.
pub const DESCRIPTORS_MIN: u64 = 256;

/// Soft limits of this process; `None` is without limit, or not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowance {
    /// Bytes that may be locked.
    pub locked_bytes_max: Option<u64>,
    /// Descriptors that may be open.
    pub descriptors_max: Option<u64>,
}

impl Allowance {
    /// The limits of this process.
    #[must_use]
    pub fn of_process() -> Self {
        // Without the file nothing is known, and starting will tell.
        Self::parse(&std::fs::read_to_string("/proc/self/limits").unwrap_or_default())
    }

    /// The limits in the words of `/proc/PID/limits`.
    fn parse(limits: &str) -> Self {
        Self {
            locked_bytes_max: soft_limit(limits, "Max locked memory"),
            descriptors_max: soft_limit(limits, "Max open files"),
        }
    }

    /// Why no broker can start with them, and what to do; `None` if one can.
    #[must_use]
    pub fn hindrance(&self) -> Option<String> {
        if let Some(max) = self.locked_bytes_max.filter(|max| *max < LOCKED_BYTES_MIN) {
            return Some(format!(
                "only {} KiB of memory may be locked, and a core needs {} KiB: `ulimit -l \
                 unlimited`, or LimitMEMLOCK=infinity in the systemd unit",
                max >> 10,
                LOCKED_BYTES_MIN >> 10
            ));
        }
        let max = self.descriptors_max.filter(|max| *max < DESCRIPTORS_MIN)?;
        Some(format!(
            "only {max} files may be open, too few even without clients: `ulimit -n`, or \
             LimitNOFILE= in the systemd unit, of {DESCRIPTORS_MIN} and connections_max"
        ))
    }
}

fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        let limits = "Max open files            1024                 524288               files     \n\
                      Max locked memory         unlimited            unlimited            bytes     \n";
        let allowance = Allowance {
            locked_bytes_max: None,
            descriptors_max: Some(1024),
        };
        assert_eq!(Allowance::parse(limits), allowance);
        assert_eq!(allowance.hindrance(), None);
        assert_eq!(Allowance::parse("").descriptors_max, None);
    }

    #[test]
    fn what_is_too_little_is_told_with_its_cure() {
        let told = |locked_bytes_max, descriptors_max| {
            let allowance = Allowance {
                locked_bytes_max,
                descriptors_max,
            };
            allowance.hindrance().unwrap_or_default()
        };
        assert_eq!(told(Some(LOCKED_BYTES_MIN), Some(DESCRIPTORS_MIN)), "");
        assert!(told(Some(LOCKED_BYTES_MIN - 1), None).contains("ulimit -l"));
        assert!(told(None, Some(DESCRIPTORS_MIN - 1)).contains("ulimit -n"));
    }
}
