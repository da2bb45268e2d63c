//! The brokers and how each is set: what a confirm of each setting is worth, how it is installed, started
//! and spoken to. Does not measure.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use ringpost_load::params::Parameters;

use super::process::{Process, answers, free_port};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// This one.
    Ringpost,
    /// RabbitMQ, by AMQP 0-9-1.
    RabbitMq,
    /// Redis streams.
    Redis,
    /// NATS JetStream.
    Nats,
    /// Apache Iggy.
    Iggy,
}

/// What a confirm means in a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The message was synced to disk before it was confirmed.
    Synced,
    /// It was written; that a sync came before is not so for every confirm.
    Written,
    /// It was in memory of the broker or the kernel.
    Memory,
}

impl Durability {
    /// As the page says it.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Synced => "synced before the confirm",
            Self::Written => "written; not every confirm follows a sync",
            Self::Memory => "not synced before the confirm",
        }
    }
}

/// A broker with its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name in files and on the command line.
    pub name: &'static str,
    /// What the page calls it.
    pub title: &'static str,
    /// Which broker.
    pub product: Product,
    /// What is set, and by what right it is called safe.
    pub words: &'static str,
    /// What a confirm means.
    pub durability: Durability,
}

/// Every setting: each broker at its safest and as it comes.
pub const SETTINGS: [Setting; 10] = [
    Setting {
        name: "ringpost",
        title: "Ringpost, batches",
        product: Product::Ringpost,
        words: "durable queue; messages that are due at once share a frame; everything else as it comes",
        durability: Durability::Synced,
    },
    Setting {
        name: "ringpost-singly",
        title: "Ringpost, singly",
        product: Product::Ringpost,
        words: "durable queue; each message in a frame of its own, as the peers' clients publish",
        durability: Durability::Synced,
    },
    Setting {
        name: "rabbitmq-quorum",
        title: "RabbitMQ quorum",
        product: Product::RabbitMq,
        words: "quorum queue of one member: its log is synced before the confirm",
        durability: Durability::Synced,
    },
    Setting {
        name: "rabbitmq-classic",
        title: "RabbitMQ classic",
        product: Product::RabbitMq,
        words: "durable classic queue, persistent messages (as most use it); written before the confirm, \
                synced by a timer",
        durability: Durability::Written,
    },
    Setting {
        name: "redis-always",
        title: "Redis always",
        product: Product::Redis,
        words: "stream; appendonly yes, appendfsync always",
        durability: Durability::Synced,
    },
    Setting {
        name: "redis-default",
        title: "Redis default",
        product: Product::Redis,
        words: "stream; no append-only file (as it comes)",
        durability: Durability::Memory,
    },
    Setting {
        name: "nats-always",
        title: "NATS always",
        product: Product::Nats,
        words: "JetStream file storage, sync_interval always",
        durability: Durability::Synced,
    },
    Setting {
        name: "nats-default",
        title: "NATS default",
        product: Product::Nats,
        words: "JetStream file storage, synced every two minutes (as it comes)",
        durability: Durability::Memory,
    },
    Setting {
        name: "iggy-synced",
        title: "Iggy synced",
        product: Product::Iggy,
        words: "enforce_fsync and messages_required_to_save = 1",
        durability: Durability::Synced,
    },
    Setting {
        name: "iggy-default",
        title: "Iggy default",
        product: Product::Iggy,
        words: "as it comes",
        durability: Durability::Memory,
    },
];

/// A broker that runs.
#[derive(Debug)]
pub struct Running {
    process: Process,
    /// What it needs beside it; ended after it.
    helper: Option<Process>,
    address: SocketAddr,
    admin: Option<SocketAddr>,
    /// Where the broker writes its own number, if what was started only starts it.
    pid_file: Option<PathBuf>,
}

/// Where a setting runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// An empty directory on the disk that counts.
    pub directory: PathBuf,
    /// The CPU.
    pub cpu: usize,
    /// The program of Ringpost.
    pub ringpost: PathBuf,
}

impl Setting {
    /// The setting of that name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        SETTINGS.into_iter().find(|setting| setting.name == name)
    }

    /// The version that is there, or why it cannot be measured here.
    ///
    /// # Errors
    /// With the sentence that its rows say.
    pub fn version(&self, ringpost: &Path) -> std::result::Result<String, String> {
        let text = match self.product {
            Product::Ringpost => said(&ringpost.display().to_string(), &["--version"]),
            Product::RabbitMq => said("dpkg-query", &["-W", "-f", "${Version}", "rabbitmq-server"]),
            Product::Redis => said("redis-server", &["--version"]),
            Product::Nats => said("nats-server", &["--version"]),
            Product::Iggy => {
                return Err("no package of its server in the registries".into());
            }
        };
        let text = text.ok_or("not installed here; --install does it where there is a package")?;
        let version = version_in(&text).ok_or("its version cannot be read")?;
        if self.name == "nats-always" && is_before(&version, (2, 10)) {
            return Err(format!(
                "{version} has no sync_interval always (NATS has it from 2.10 on)"
            ));
        }
        Ok(version)
    }

    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// If it cannot be started or does not serve.
    pub fn start(&self, place: &Place) -> Result<Running> {
        let log = place.directory.with_extension("log");
        std::fs::create_dir_all(&place.directory)?;
        let mut running = match self.product {
            Product::Ringpost => ringpost(place, &log)?,
            Product::RabbitMq => rabbitmq(place, &log)?,
            Product::Redis => redis(place, &log, self.name == "redis-always")?,
            Product::Nats => nats(place, &log, self.name == "nats-always")?,
            Product::Iggy => return Err("no package of its server in the registries".into()),
        };
        let address = running.address;
        running
            .process
            .wait_ready(&log, || answers(address))
            .map_err(|error| format!("{}: {error}", self.title))?;
        Ok(running)
    }

    /// How the load speaks to it.
    #[must_use]
    pub fn parameters(&self, base: Parameters, running: &Running) -> Parameters {
        let base = Parameters {
            address: running.address,
            admin: running.admin,
            broker_pid: Some(running.id()),
            ..base
        };
        let is_synced = self.durability == Durability::Synced;
        let class = if is_synced { "synced" } else { "unsynced" };
        let peer = |via: &str| Parameters {
            via: via.into(),
            broker: Some(format!("{}: {}", self.title, self.words)),
            class: Some(class.into()),
            ..base.clone()
        };
        match self.product {
            Product::Ringpost => Parameters {
                singly: self.name == "ringpost-singly",
                ..base
            },
            Product::RabbitMq => Parameters {
                queue_type: self.name.strip_prefix("rabbitmq-").map(str::to_owned),
                ..peer("amqp")
            },
            Product::Redis => peer("redis"),
            Product::Nats | Product::Iggy => peer("nats"),
        }
    }
}

impl Running {
    /// The process that serves.
    fn id(&self) -> u32 {
        let said = self.pid_file.as_ref().and_then(|path| {
            let text = std::fs::read_to_string(path).ok()?;
            text.trim().parse().ok()
        });
        said.unwrap_or(self.process.id())
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// If it had to be killed.
    pub fn end(self) -> Result<()> {
        let ended = self.process.end();
        drop(self.helper);
        ended
    }
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn alone(process: Process, port: u16) -> Running {
    Running {
        process,
        helper: None,
        address: local(port),
        admin: None,
        pid_file: None,
    }
}

fn ringpost(place: &Place, log: &Path) -> Result<Running> {
    let (port, admin) = (free_port()?, free_port()?);
    let mut command = Command::new(&place.ringpost);
    command
        .arg("serve")
        .arg("--data-dir")
        .arg(&place.directory)
        .args(["--listen", &local(port).to_string(), "--amqp-listen", "off"])
        .args(["--admin-listen", &local(admin).to_string()])
        .args(["--cores", "1", "--cpus", &place.cpu.to_string()]);
    Ok(Running {
        admin: Some(local(admin)),
        ..alone(Process::start(command, place.cpu, log)?, port)
    })
}

fn rabbitmq(place: &Place, log: &Path) -> Result<Running> {
    let (port, names, distribution) = (free_port()?, free_port()?, free_port()?);
    let at = |name: &str| place.directory.join(name);
    for name in ["home", "mnesia", "log"] {
        std::fs::create_dir_all(at(name))?;
    }
    let text = format!("listeners.tcp.1 = 127.0.0.1:{port}\nloopback_users.guest = true\n");
    std::fs::write(at("rabbitmq.conf"), text)?;
    std::fs::write(at("enabled_plugins"), "[].\n")?;
    std::fs::write(at("env.conf"), "")?;
    // Nodes of Erlang find each other by this one; the broker would leave one behind.
    let mut epmd = Command::new("epmd");
    epmd.args(["-address", "127.0.0.1", "-port", &names.to_string()]);
    let mut helper = Process::start(epmd, place.cpu, &at("epmd.log"))?;
    helper.wait_ready(&at("epmd.log"), || answers(local(names)))?;
    let mut command = Command::new("/usr/lib/rabbitmq/bin/rabbitmq-server");
    command
        .env("HOME", at("home"))
        .env("RABBITMQ_NODENAME", "versus@localhost")
        .env("RABBITMQ_MNESIA_BASE", at("mnesia"))
        .env("RABBITMQ_LOG_BASE", at("log"))
        .env("RABBITMQ_CONFIG_FILE", at("rabbitmq"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", at("enabled_plugins"))
        .env("RABBITMQ_CONF_ENV_FILE", at("env.conf"))
        .env("RABBITMQ_PID_FILE", at("pid"))
        .env("RABBITMQ_DIST_PORT", distribution.to_string())
        .env("ERL_EPMD_PORT", names.to_string())
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env(
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            "-kernel inet_dist_use_interface {127,0,0,1}",
        );
    Ok(Running {
        helper: Some(helper),
        pid_file: Some(at("pid")),
        ..alone(Process::start(command, place.cpu, log)?, port)
    })
}

fn redis(place: &Place, log: &Path, is_synced: bool) -> Result<Running> {
    let port = free_port()?;
    let mut command = Command::new("redis-server");
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--daemonize", "no", "--dir"])
        .arg(&place.directory);
    if is_synced {
        command.args(["--appendonly", "yes", "--appendfsync", "always"]);
    }
    Ok(alone(Process::start(command, place.cpu, log)?, port))
}

fn nats(place: &Place, log: &Path, is_synced: bool) -> Result<Running> {
    let port = free_port()?;
    let file = place.directory.join("nats.conf");
    let sync = if is_synced {
        "  sync_interval: always\n"
    } else {
        ""
    };
    let store = place.directory.join("store");
    let text = format!(
        "listen: \"127.0.0.1:{port}\"\njetstream {{\n  store_dir: \"{}\"\n{sync}}}\n",
        store.display()
    );
    std::fs::write(&file, text)?;
    let mut command = Command::new("nats-server");
    command.arg("-c").arg(&file);
    Ok(alone(Process::start(command, place.cpu, log)?, port))
}

/// What a command prints, if it is there and ends well.
fn said(program: &str, words: &[&str]) -> Option<String> {
    let output = Command::new(program).args(words).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success() && !text.trim().is_empty()).then_some(text)
}

/// The first word of a text that looks like a version, without what a package adds.
fn version_in(text: &str) -> Option<String> {
    let words = text.split(|c: char| c.is_whitespace() || c == '=' || c == ':');
    words
        .map(|word| word.trim_start_matches('v'))
        .filter(|word| word.contains('.'))
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
        .map(|word| {
            let end = word.find(|c: char| !c.is_ascii_digit() && c != '.');
            word[..end.unwrap_or(word.len())].to_owned()
        })
}

/// Whether a version is older than major.minor.
fn is_before(version: &str, than: (u32, u32)) -> bool {
    let mut numbers = version.split('.').map(|word| word.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < than
}

/// Installs what is missing of some settings, from the system's packages.
///
/// # Errors
/// If apt-get fails or is not there.
pub fn install(settings: &[Setting], ringpost: &Path) -> Result<()> {
    let mut packages: Vec<&str> = Vec::new();
    for setting in settings {
        let package = match setting.product {
            Product::RabbitMq => "rabbitmq-server",
            Product::Redis => "redis-server",
            Product::Nats => "nats-server",
            Product::Ringpost | Product::Iggy => continue,
        };
        let is_missing = setting
            .version(ringpost)
            .is_err_and(|why| why.starts_with("not installed"));
        if is_missing && !packages.contains(&package) {
            packages.push(package);
        }
    }
    if packages.is_empty() {
        return Ok(());
    }
    println!("# installing {}", packages.join(", "));
    let apt = |words: &[&str]| -> Result<()> {
        let status = Command::new("apt-get")
            .args(words)
            // Services are not started: this program starts its own.
            .env("RUNLEVEL", "1")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(std::process::Stdio::null())
            .status()
            .map_err(|error| format!("cannot run apt-get: {error}"))?;
        match status.success() {
            true => Ok(()),
            false => Err(format!("apt-get {} failed: {status}", words.join(" ")).into()),
        }
    };
    apt(&["update", "-qq"])?;
    let mut words = vec!["install", "-y", "-qq", "--no-install-recommends"];
    words.extend(packages);
    apt(&words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_programs_print_them() {
        let read = |text: &str| version_in(text).expect(text);
        assert_eq!(read("ringpost 0.1.0 (abc)\n"), "0.1.0");
        assert_eq!(
            read("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64"),
            "7.0.15"
        );
        assert_eq!(read("nats-server: v2.9.10"), "2.9.10");
        assert_eq!(read("3.10.8-1.1+deb12u1"), "3.10.8");
        assert_eq!(version_in("nothing here"), None);
        assert!(is_before("2.9.10", (2, 10)));
        assert!(!is_before("2.10.1", (2, 10)));
        assert!(!is_before("3.0", (2, 10)));
    }

    #[test]
    fn names_are_one_setting_each() {
        for setting in SETTINGS {
            assert_eq!(Setting::of(setting.name), Some(setting));
        }
        assert_eq!(Setting::of("kafka"), None);
        let missing = Setting::of("iggy-synced").expect("named");
        assert!(missing.version(Path::new("ringpost")).is_err());
    }
}
