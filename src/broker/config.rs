//! Every setting of the broker, gathered from defaults, a TOML file, the environment and flags, in
//! rising precedence, each checked against its bounds. Does not know what a setting does.

mod error;
mod sources;
pub mod value;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ringpost_wire::limits;

pub use error::{ConfigError, ConfigErrors, Origin};
pub use sources::{ENVIRONMENT_PREFIX, Sources};
use sources::{Given, read_environment, read_file};
pub use value::{Cores, Cpus};
use value::{Field, Kind, Unfit};

/// What is known of one setting, for the parser, the flags and the documentation.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Key in the file; with capitals and a prefix the variable, with dashes the flag.
    pub name: &'static str,
    /// The text that is parsed if nobody says otherwise.
    pub default: &'static str,
    /// Form and bounds.
    pub kind: Kind,
    /// What it does, in sentences.
    pub doc: &'static str,
}

impl Setting {
    /// The environment variable.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{ENVIRONMENT_PREFIX}{}", self.name.to_ascii_uppercase())
    }

    /// The flag, without its dashes in front.
    #[must_use]
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }
}

macro_rules! settings {
    ($(#[$outer:meta])* $vis:vis struct $config:ident {
        $( $(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:literal, $kind:expr; )*
    }) => {
        $(#[$outer])*
        $vis struct $config {
            $( $(#[doc = $doc])+ pub $name: $type, )*
        }

        impl $config {
            /// Every setting, in the order of the documentation.
            pub const SETTINGS: &'static [Setting] = &[ $( Setting {
                name: stringify!($name),
                default: $default,
                kind: $kind,
                doc: concat!($($doc),+).trim_ascii(),
            }, )* ];

            /// Parses the winning text of every setting; a text that does not fit is an error and
            /// does not hide the others.
            fn from_given(given: &mut dyn FnMut(usize) -> Given) -> Result<Self, ConfigErrors> {
                let mut errors = Vec::new();
                let mut idx = 0;
                $(
                    let Given { text, origin } = given(idx);
                    let $name = <$type>::parse(&text, &Self::SETTINGS[idx].kind).map_err(|why| {
                        errors.push(ConfigError::Unfit {
                            key: stringify!($name), value: text, origin, why,
                        });
                    });
                    idx += 1;
                )*
                debug_assert_eq!(idx, Self::SETTINGS.len());
                match ($($name,)*) {
                    ($(Ok($name),)*) => Ok(Self { $($name,)* }),
                    _ => Err(ConfigErrors(errors)),
                }
            }
        }
    };
}

settings! {
    /// What the broker is told. Flat, since the file is: one key, one field.
    #[derive(Clone, PartialEq, Eq, Debug)]
    pub struct Config {
        /// Where clients connect. Port 0 takes a free one and prints it.
        /// Anything but loopback needs `insecure_listen`.
        listen: SocketAddr = "127.0.0.1:7400", Kind::Address;
        /// Where AMQP 0-9-1 is spoken, to the same queues and exchanges; `off` = nowhere.
        /// Anything but loopback needs `insecure_listen`, and still only clients on this machine can log in.
        amqp_listen: Vec<SocketAddr> = "127.0.0.1:5672,[::1]:5672", Kind::Addresses;
        /// Where metrics, health and readiness are served over HTTP.
        /// Anything but loopback needs `insecure_listen`.
        admin_listen: SocketAddr = "127.0.0.1:7480", Kind::Address;
        /// Host names, beside addresses and `localhost`, that HTTP requests may name as their host.
        /// All others are refused, so that a web page cannot reach the admin port through a name of its own.
        admin_hosts: Vec<String> = "", Kind::Hosts;
        /// Allows addresses that other machines can reach although nobody has to log in yet.
        insecure_listen: bool = "false", Kind::Switch;
        /// The data directory. Needs a file system with O_DIRECT, such as ext4 or XFS.
        data_dir: PathBuf = "./ringpost-data", Kind::Path;
        /// Cores of the broker: one thread with its own journal each. May exceed the CPUs, for tests.
        /// May change between two starts; nothing is lost.
        cores: Cores = "auto", Kind::CountOrAuto { min: 1, max: 64 };
        /// CPUs that the cores are pinned to, in order. Only such as the process may use.
        cpus: Cpus = "auto", Kind::Cpus;
        /// Partitions: the units that queues are spread over. Fixed when the data directory is made.
        partitions: u32 = "64", Kind::Count { min: 1, max: 1024 };
        /// All memory of the broker: every pool is a part of this figure; the sum is printed at start.
        memory: u64 = "1GiB", Kind::Bytes { min: 16 << 20, max: 16 << 40, multiple: 1 };
        /// Bytes of a journal file. Files are written in full before use and then used again and again.
        segment_bytes: u64 = "32MiB", Kind::Bytes { min: 4 << 20, max: 1 << 30, multiple: 256 << 10 };
        /// Largest message, envelope included. Clients learn it when they connect.
        message_bytes_max: u32 = "16MiB", Kind::Bytes {
            min: 4 << 10, max: limits::MESSAGE_BYTES_MAX_LIMIT as u64, multiple: 1,
        };
        /// Journal writes in flight on one core. Two keep a disk busy; one suits disks whose flush is dear.
        writes_in_flight: u32 = "2", Kind::Count { min: 1, max: 4 };
        /// How long acknowledgements alone may wait for company before they are written.
        trickle: Duration = "20ms", Kind::Span { min: Duration::ZERO, max: Duration::from_secs(1) };
        /// How long a core looks for work before it sleeps. More takes CPU and saves wake-ups.
        spin: Duration = "50us", Kind::Span { min: Duration::ZERO, max: Duration::from_millis(1) };
        /// How often the two sides of a connection show that they live, unless the client asks for another interval.
        /// A peer silent for two intervals is disconnected.
        heartbeat: Duration = "10s", Kind::Span {
            min: Duration::from_millis(limits::HEARTBEAT_MS_MIN as u64),
            max: Duration::from_millis(limits::HEARTBEAT_MS_MAX as u64),
        };
        /// How long a connection may take until it has introduced itself.
        handshake_timeout: Duration = "10s", Kind::Span {
            min: Duration::from_millis(100), max: Duration::from_secs(300),
        };
        /// Most client connections at a time; one more is refused with `overloaded`. Each takes memory from the start.
        connections_max: u32 = "10000", Kind::Count { min: 1, max: 1_000_000 };
        /// How long a shutdown waits for clients and writes before it closes what is left.
        /// Less or more, no confirmed message is lost.
        drain_timeout: Duration = "30s", Kind::Span { min: Duration::ZERO, max: Duration::from_secs(3600) };
        /// Turns of each core that its flight recorder keeps in memory, 512 B each, such as 1024; 0 switches it off.
        /// When a journal fails or a core panics they are written to the data directory.
        flight_recorder: u32 = "0", Kind::Count { min: 0, max: 1_000_000 };
        /// Form of the log on standard error; `auto` is `human` on a terminal and `json` elsewhere.
        log_format: LogFormat = "auto", Kind::Word(&["auto", "human", "json"]);
        /// The least important events that are logged.
        log_level: LogLevel = "info", Kind::Word(&["error", "warn", "info", "debug", "trace"]);
    }
}

/// Form of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// [`LogFormat::Human`] on a terminal, else [`LogFormat::Json`].
    Auto,
    /// One readable line an event.
    Human,
    /// One JSON object an event.
    Json,
}

impl Field for LogFormat {
    fn parse(text: &str, kind: &Kind) -> Result<Self, Unfit> {
        match text {
            "auto" => Ok(LogFormat::Auto),
            "human" => Ok(LogFormat::Human),
            "json" => Ok(LogFormat::Json),
            _ => Err(Unfit(format!("must be one of {}", kind.bounds()))),
        }
    }
}

/// How important an event must be to be logged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LogLevel {
    /// Somebody must act.
    Error,
    /// Somebody should look.
    Warn,
    /// The life of the broker.
    Info,
    /// The life of connections.
    Debug,
    /// Everything.
    Trace,
}

impl Field for LogLevel {
    fn parse(text: &str, kind: &Kind) -> Result<Self, Unfit> {
        match text {
            "error" => Ok(LogLevel::Error),
            "warn" => Ok(LogLevel::Warn),
            "info" => Ok(LogLevel::Info),
            "debug" => Ok(LogLevel::Debug),
            "trace" => Ok(LogLevel::Trace),
            _ => Err(Unfit(format!("must be one of {}", kind.bounds()))),
        }
    }
}

impl Config {
    /// Gathers the settings: flags over environment over file over defaults.
    ///
    /// # Errors
    /// Every unknown key, every value out of its bounds, every clash between two settings.
    pub fn resolve(sources: &Sources) -> Result<Config, ConfigErrors> {
        let mut errors = Vec::new();
        let file = match &sources.file {
            None => Vec::new(),
            Some((path, text)) => read_file(path, text, &mut errors),
        };
        let environment = read_environment(&sources.environment, &mut errors);
        let mut given = |idx: usize| {
            let setting = &Config::SETTINGS[idx];
            if let Some((_, text)) = sources.flags.iter().rfind(|flag| flag.0 == setting.name) {
                Given {
                    text: text.clone(),
                    origin: Origin::Flag(setting.flag()),
                }
            } else if let Some((_, text)) = environment.iter().find(|entry| entry.0 == idx) {
                Given {
                    text: text.clone(),
                    origin: Origin::Environment(setting.variable()),
                }
            } else if let Some((_, text)) = file.iter().find(|entry| entry.0 == idx) {
                let path = sources
                    .file
                    .as_ref()
                    .map(|file| file.0.clone())
                    .unwrap_or_default();
                Given {
                    text: text.clone(),
                    origin: Origin::File(path),
                }
            } else {
                Given {
                    text: setting.default.to_owned(),
                    origin: Origin::Default,
                }
            }
        };
        match Config::from_given(&mut given) {
            Ok(config) => {
                config.check_relations(&mut errors);
                if errors.is_empty() {
                    Ok(config)
                } else {
                    Err(ConfigErrors(errors))
                }
            }
            Err(ConfigErrors(unfit)) => {
                errors.extend(unfit);
                Err(ConfigErrors(errors))
            }
        }
    }

    /// The number of cores, where `cpus_usable` is how many CPUs the process may use.
    #[must_use]
    pub fn core_count(&self, cpus_usable: usize) -> u16 {
        match self.cores {
            Cores::Count(count) => count,
            Cores::Auto => {
                let most = u16::try_from(self.partitions)
                    .unwrap_or(u16::MAX)
                    .min(CORES_MAX);
                u16::try_from(cpus_usable)
                    .unwrap_or(u16::MAX)
                    .clamp(1, most)
            }
        }
    }

    /// Whether the CPUs that it names are among those that the process may use; empty if nobody
    /// knows.
    ///
    /// # Errors
    /// Some are not.
    pub fn check_cpus(&self, usable: &[usize]) -> Result<(), ConfigError> {
        let Cpus::List(list) = &self.cpus else {
            return Ok(());
        };
        let is_foreign = |cpu: &&u32| !usable.contains(&(**cpu as usize));
        let foreign: Vec<u32> = list.iter().filter(is_foreign).copied().collect();
        if foreign.is_empty() || usable.is_empty() {
            return Ok(());
        }
        Err(ConfigError::CpusForeign {
            foreign,
            usable: usable.to_owned(),
        })
    }

    /// What no single setting can know.
    fn check_relations(&self, errors: &mut Vec<ConfigError>) {
        if !self.insecure_listen {
            let amqp = self.amqp_listen.iter();
            let amqp = amqp.map(|address| ("amqp_listen", *address));
            let others = [("listen", self.listen), ("admin_listen", self.admin_listen)];
            for (key, address) in others.into_iter().chain(amqp) {
                if !address.ip().is_loopback() {
                    errors.push(ConfigError::ListenInsecure { key, address });
                }
            }
        }
        let mut taken = vec![("listen", self.listen)];
        let amqp = self.amqp_listen.iter();
        let amqp = amqp.map(|address| ("amqp_listen", *address));
        for (key, address) in [("admin_listen", self.admin_listen)]
            .into_iter()
            .chain(amqp)
        {
            let other = taken.iter().find(|(_, other)| *other == address);
            if let Some((other, _)) = other
                && address.port() != 0
            {
                let keys = (*other, key);
                errors.push(ConfigError::PortShared { keys, address });
            }
            taken.push((key, address));
        }
        if let Cores::Count(cores) = self.cores
            && u32::from(cores) > self.partitions
        {
            let partitions = self.partitions;
            errors.push(ConfigError::CoresWithoutPartition { cores, partitions });
        }
    }

    /// The settings as a Markdown table, for docs/operations.md.
    #[must_use]
    pub fn settings_table() -> String {
        let mut table = String::from(
            "| Key in the file | Form | Default | Bounds | What it does |\n|---|---|---|---|---|\n",
        );
        for setting in Config::SETTINGS {
            let default = match setting.default {
                "" => "none".to_owned(),
                text => format!("`{text}`"),
            };
            let _ = writeln!(
                table,
                "| `{}` | {} | {} | {} | {} |",
                setting.name,
                setting.kind.unit(),
                default,
                setting.kind.bounds(),
                setting.doc,
            ); // writing to a String cannot fail
        }
        table
    }
}

/// Most cores; the bound of the setting `cores`.
const CORES_MAX: u16 = 64;

/// The defaults.
impl Default for Config {
    fn default() -> Self {
        Config::resolve(&Sources::default()).expect("a test resolves the defaults")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(
        file: &str,
        environment: &[(&str, &str)],
        flags: &[(&'static str, &str)],
    ) -> Sources {
        Sources {
            file: Some(("/etc/ringpost.toml".into(), file.into())),
            environment: environment
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect(),
            flags: flags.iter().map(|(k, v)| (*k, (*v).into())).collect(),
        }
    }

    fn errors(sources: &Sources) -> String {
        Config::resolve(sources).expect_err("is wrong").to_string()
    }

    #[test]
    fn defaults_resolve() {
        let config = Config::default();
        assert_eq!(config.listen.to_string(), "127.0.0.1:7400");
        assert_eq!(config.memory, 1 << 30);
        assert_eq!(config.message_bytes_max, limits::MESSAGE_BYTES_MAX_DEFAULT);
        assert_eq!(
            config.heartbeat.as_millis(),
            u128::from(limits::HEARTBEAT_MS_DEFAULT)
        );
        assert_eq!(config.trickle, Duration::from_millis(20));
        assert_eq!(config.core_count(2), 2);
        assert_eq!(config.core_count(1000), 64);
        assert_eq!(config.core_count(0), 1);
    }

    #[test]
    fn flags_win_over_environment_over_file_over_defaults() {
        let mut given = sources(
            "memory = '2GiB'\ntrickle = '1ms'\nwrites_in_flight = 1\n",
            &[
                ("RINGPOST_TRICKLE", "2ms"),
                ("RINGPOST_WRITES_IN_FLIGHT", "3"),
                ("PATH", "x"),
            ],
            &[("writes_in_flight", "4")],
        );
        let config = Config::resolve(&given).expect("fits");
        assert_eq!(config.memory, 2 << 30);
        assert_eq!(config.trickle, Duration::from_millis(2));
        assert_eq!(config.writes_in_flight, 4);
        assert_eq!(config.segment_bytes, Config::default().segment_bytes);
        given.flags.push(("writes_in_flight", "2".into()));
        assert_eq!(
            Config::resolve(&given).expect("fits").writes_in_flight,
            2,
            "the last flag wins"
        );
    }

    #[test]
    fn files_may_use_numbers_switches_and_arrays() {
        let file = "memory = 1073741824\ninsecure_listen = true\ncpus = [0, '2-3']\n\
                    admin_hosts = ['Broker.example', 'b']\ncores = 3\n";
        let config = Config::resolve(&sources(file, &[], &[])).expect("fits");
        assert_eq!(config.memory, 1 << 30);
        assert!(config.insecure_listen);
        assert_eq!(config.cpus, Cpus::List(vec![0, 2, 3]));
        assert_eq!(config.admin_hosts, ["broker.example", "b"]);
        assert_eq!(config.cores, Cores::Count(3));
    }

    #[test]
    fn unknown_keys_name_the_key_the_place_and_the_likely_one() {
        let given = sources(
            "memry = '1GiB'\n[network]\nlisten = 'x'\n",
            &[
                ("RINGPOST_DATADIR", "/x"),
                ("RINGPOST_PORT_7400_TCP", "tcp://10.0.0.1:7400"),
            ],
            &[],
        );
        assert_eq!(
            errors(&given),
            "unknown setting `memry` in /etc/ringpost.toml; did you mean `memory`?\n\
             unknown setting `network` in /etc/ringpost.toml; `ringpost serve --help` lists every \
             setting\n\
             unknown setting `datadir` in the environment variable RINGPOST_DATADIR; did you mean \
             `data_dir`?"
        );
    }

    #[test]
    fn variables_are_written_in_capitals() {
        let text = errors(&sources("", &[("RINGPOST_PARTItIONS", "28")], &[]));
        assert!(
            text.starts_with(
                "unknown setting `partitions` in the environment variable RINGPOST_PARTItIONS"
            ),
            "{text}"
        );
    }

    #[test]
    fn values_out_of_bounds_name_key_value_bounds_and_place() {
        assert_eq!(
            errors(&sources(
                "writes_in_flight = 9\n",
                &[("RINGPOST_TRICKLE", "2s")],
                &[]
            )),
            "`writes_in_flight` is \"9\" in /etc/ringpost.toml: it must be 1 to 4\n\
             `trickle` is \"2s\" in the environment variable RINGPOST_TRICKLE: it must be 0s to 1s"
        );
        assert_eq!(
            errors(&sources("", &[], &[("trickle", "20")])),
            "`trickle` is \"20\" in the flag --trickle: it must be a whole number with us, ms, s, \
             min or h, such as 20ms, 0s to 1s"
        );
        assert_eq!(
            errors(&sources("heartbeat = 1.5\n", &[], &[])),
            "`heartbeat` is \"1.5\" in /etc/ringpost.toml: it must be a duration, in quotes or as \
             a number"
        );
        let text = errors(&sources("cores = 1\nmemory = \n", &[], &[]));
        let place = "/etc/ringpost.toml is not valid TOML in line 2, column 10: ";
        assert!(text.starts_with(place), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }

    /// Every bound at max - 1, max, max + 1 and at min - 1, min.
    #[test]
    fn every_bound_holds_exactly() {
        let fits = |name: &'static str, text: String| {
            let flags = vec![(name, text), ("partitions", "1024".into())];
            let flags = if name == "partitions" {
                vec![flags[0].clone()]
            } else {
                flags
            };
            let mut given = Sources {
                flags,
                ..Sources::default()
            };
            given.flags.push(("cores", "1".into()));
            if name == "cores" {
                given.flags.pop();
            }
            Config::resolve(&given).is_ok()
        };
        for setting in Config::SETTINGS {
            let (min, max, step, unit) = match setting.kind {
                Kind::Bytes { min, max, multiple } => (min, max, multiple, "B"),
                Kind::Count { min, max } | Kind::CountOrAuto { min, max } => (min, max, 1, ""),
                Kind::Span { min, max } => {
                    (min.as_micros() as u64, max.as_micros() as u64, 1, "us")
                }
                Kind::Address
                | Kind::Addresses
                | Kind::Path
                | Kind::Word(_)
                | Kind::Cpus
                | Kind::Hosts
                | Kind::Switch => continue,
            };
            let name = setting.name;
            for good in [min, min + step, max - step, max] {
                assert!(fits(name, format!("{good}{unit}")), "{name} = {good}{unit}");
            }
            for bad in [min.wrapping_sub(step), max + step] {
                assert!(!fits(name, format!("{bad}{unit}")), "{name} = {bad}{unit}");
            }
            if step > 1 {
                assert!(
                    !fits(name, format!("{}{unit}", min + 1)),
                    "{name}: multiple of {step}"
                );
            }
        }
    }

    #[test]
    fn addresses_that_others_can_reach_are_refused_with_a_sentence() {
        let given = sources(
            "listen = '0.0.0.0:7400'\nadmin_listen = '[::]:7480'\n",
            &[],
            &[],
        );
        let text = errors(&given);
        assert!(
            text.contains("`listen` is 0.0.0.0:7400, which other machines can reach"),
            "{text}"
        );
        assert!(text.contains("`admin_listen` is [::]:7480"), "{text}");
        assert!(text.contains("--insecure-listen"), "{text}");
        let allowed = sources(
            "listen = '0.0.0.0:7400'\n",
            &[("RINGPOST_INSECURE_LISTEN", "true")],
            &[],
        );
        assert!(Config::resolve(&allowed).is_ok());
        assert!(Config::resolve(&sources("listen = '[::1]:7400'\n", &[], &[])).is_ok());
    }

    #[test]
    fn settings_that_clash_are_refused() {
        let text = errors(&sources(
            "listen = '127.0.0.1:7480'\ncores = 9\npartitions = 8\n",
            &[],
            &[],
        ));
        assert!(text.contains("both 127.0.0.1:7480"), "{text}");
        assert!(
            text.contains("`cores` is 9 and `partitions` only 8"),
            "{text}"
        );
        assert!(
            Config::resolve(&sources(
                "listen = '127.0.0.1:0'\nadmin_listen = '127.0.0.1:0'",
                &[],
                &[]
            ))
            .is_ok()
        );
    }

    #[test]
    fn cpus_that_are_not_there_are_named_beside_those_that_are() {
        let check = |cpus: &str, usable: &[usize]| {
            let config = Config::resolve(&sources("", &[], &[("cpus", cpus)])).expect("fits");
            config.check_cpus(usable).map_err(|error| error.to_string())
        };
        assert_eq!(check("0-3", &[0, 1, 2, 3]), Ok(()));
        assert_eq!(check("auto", &[5]), Ok(()));
        assert_eq!(check("7", &[]), Ok(()), "nobody knows");
        let error = check("1,4-6,8", &[0, 1, 2, 4]).expect_err("are not there");
        assert!(
            error.starts_with(
                "`cpus` names 5-6,8, and the CPUs that this process may use are 0-2,4:"
            ),
            "{error}"
        );
    }

    #[test]
    fn every_setting_has_a_sentence() {
        for setting in Config::SETTINGS {
            assert!(setting.doc.ends_with('.'), "{}", setting.name);
        }
    }
}
