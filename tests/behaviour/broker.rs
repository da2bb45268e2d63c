//! A broker inside the test's process, alone or shared by the tests of one number of cores.
//! Does not know the protocol.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

use ringpost::boot::{self, Running};
use ringpost::boot_error::{BootError, BootErrorKind};
use ringpost::budget::{Budget, Demand};
use ringpost::config::{Config, Sources};
use ringpost::data::engine::Recording;
use ringpost_prove::rot::copy_all;

/// A broker that ends with its last user; its directory goes with it.
pub struct Broker {
    running: Option<Running>,
    directory: tempfile::TempDir,
    settings: Vec<(&'static str, String)>,
    cores: u16,
    record: Option<Record>,
}

/// Takes what the engines of a broker do.
pub type Record = flume::Sender<Recording>;

impl Broker {
    /// A broker of its own, in an empty directory.
    pub fn start(cores: u16, settings: &[(&'static str, &str)]) -> Self {
        Self::launch(cores, settings, None)
    }

    /// The same; what its engines do in all its lives is recorded.
    pub fn recorded(cores: u16, settings: &[(&'static str, &str)], record: Record) -> Self {
        Self::launch(cores, settings, Some(record))
    }

    fn launch(cores: u16, settings: &[(&'static str, &str)], record: Option<Record>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let settings: Vec<_> = settings
            .iter()
            .map(|(name, text)| (*name, (*text).to_owned()))
            .collect();
        let running = start(directory.path(), cores, &settings, record.clone());
        Self {
            running: Some(running),
            directory,
            settings,
            cores,
            record,
        }
    }

    /// A broker with the least memory that so many cores start with.
    pub fn least(cores: u16) -> Self {
        let memory = memory_least(cores, 256);
        Self::start(cores, &[("memory", &memory)])
    }

    /// The broker that all tests with so many cores share; each test works in a tenant of its own.
    pub fn shared(cores: u16) -> Arc<Self> {
        static SHARED: Mutex<[Weak<Broker>; 8]> = Mutex::new([const { Weak::new() }; 8]);
        let mut shared = SHARED.lock().unwrap_or_else(|poison| poison.into_inner());
        let slot = &mut shared[usize::from(cores)];
        slot.upgrade().unwrap_or_else(|| {
            let broker = Arc::new(Self::start(cores, &[]));
            *slot = Arc::downgrade(&broker);
            broker
        })
    }

    /// As [`Broker::shared`], of [`Broker::least`].
    pub fn shared_least(cores: u16) -> Arc<Self> {
        static SHARED: Mutex<[Weak<Broker>; 8]> = Mutex::new([const { Weak::new() }; 8]);
        let mut shared = SHARED.lock().unwrap_or_else(|poison| poison.into_inner());
        let slot = &mut shared[usize::from(cores)];
        slot.upgrade().unwrap_or_else(|| {
            let broker = Arc::new(Self::least(cores));
            *slot = Arc::downgrade(&broker);
            broker
        })
    }

    /// Shuts down as SIGTERM does, and starts again in the same directory.
    pub fn restart(&mut self) {
        self.restart_on(self.cores);
    }

    /// The same with another number of cores.
    pub fn restart_on(&mut self, cores: u16) {
        self.stop();
        self.cores = cores;
        self.running = Some(start(
            self.directory.path(),
            cores,
            &self.settings,
            self.record.clone(),
        ));
    }

    /// Starts again after it was stopped.
    pub fn started(mut self) -> Self {
        assert!(self.running.is_none(), "it was stopped");
        self.running = Some(start(
            self.directory.path(),
            self.cores,
            &self.settings,
            self.record.clone(),
        ));
        self
    }

    /// Why it does not start: something is damaged.
    pub fn refusal(&self) -> String {
        assert!(self.running.is_none(), "it was stopped");
        let started = try_start(
            self.directory.path(),
            self.cores,
            &self.settings,
            self.record.clone(),
        );
        match started {
            Ok(_) => panic!("it has started"),
            Err(error) => {
                assert_eq!(error.kind(), BootErrorKind::Damage, "{error}");
                error.to_string()
            }
        }
    }

    /// A broker that is not started, in a copy of the directory as it is now: of one that runs, what
    /// a crash leaves.
    pub fn copied(&self) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        copy_all(self.directory.path(), directory.path()).unwrap();
        Self {
            running: None,
            directory,
            settings: self.settings.clone(),
            cores: self.cores,
            record: None,
        }
    }

    /// The same broker; what its engines do in its next lives is recorded, and their last turns are kept.
    pub fn recording(mut self, record: Record) -> Self {
        assert!(self.running.is_none(), "it has not started yet");
        self.settings.push(("flight_recorder", "4".to_owned()));
        self.record = Some(record);
        self
    }

    /// Its data directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Shuts down as SIGTERM does.
    pub fn stop(&mut self) {
        let running = self.running.take().expect("it runs");
        running.shutdown().expect("every core ends well");
    }

    /// Where it tells of itself.
    pub fn admin_addr(&self) -> SocketAddr {
        self.running.as_ref().expect("it runs").admin_addr()
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.running.as_ref().expect("it runs").addr()
    }

    /// Its cores.
    pub fn cores(&self) -> u16 {
        self.cores
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            let ended = running.shutdown();
            if !std::thread::panicking() {
                ended.expect("every core ends well");
            }
        }
    }
}

/// The least memory that so many cores and connections start with, as a setting.
pub fn memory_least(cores: u16, connections_max: u32) -> String {
    let defaults = Config::resolve(&Sources::default()).unwrap_or_else(|errors| panic!("{errors}"));
    let demand = Demand {
        cores,
        connections_max,
        ..Demand::of(&defaults, 1)
    };
    format!("{}B", Budget::memory_min(&demand))
}

fn start(
    directory: &Path,
    cores: u16,
    settings: &[(&'static str, String)],
    record: Option<Record>,
) -> Running {
    try_start(directory, cores, settings, record).unwrap_or_else(|error| panic!("{error}"))
}

fn try_start(
    directory: &Path,
    cores: u16,
    settings: &[(&'static str, String)],
    record: Option<Record>,
) -> Result<Running, BootError> {
    let mut flags = vec![
        ("listen", "127.0.0.1:0".to_owned()),
        ("amqp_listen", "127.0.0.1:0".to_owned()),
        ("admin_listen", "127.0.0.1:0".to_owned()),
        ("data_dir", directory.display().to_string()),
        ("cores", cores.to_string()),
        ("cpus", "off".to_owned()),
        ("memory", "512MiB".to_owned()),
        ("segment_bytes", "4MiB".to_owned()),
        ("partitions", "16".to_owned()),
        ("connections_max", "256".to_owned()),
        ("drain_timeout", "300ms".to_owned()),
    ];
    for (name, text) in settings {
        flags.retain(|(other, _)| other != name);
        flags.push((*name, text.clone()));
    }
    let sources = Sources {
        flags,
        ..Sources::default()
    };
    let config = Config::resolve(&sources).unwrap_or_else(|errors| panic!("{errors}"));
    boot::start_recorded(config, None, record)
}
