//! From a configuration to a broker that runs, and back to a clean directory.
//! Does not know messages; every failure is a sentence that says what to do.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ringpost_engine::config::{CoreConfig, Limits};
use ringpost_engine::effect::Effects;
use ringpost_engine::input::Found;
use ringpost_engine::{FailCause, Mono};
use ringpost_wire::ids::CoreId;

use crate::allowance::Allowance;
use crate::boot_error::{BootError, BootErrorKind};
use crate::budget::{Budget, CoreBudget, Demand, REQUEST_BYTES};
use crate::config::{Config, Cpus};
use crate::control::admin::{self, Admin, AdminOptions, CorePort};
use crate::control::flight::{self, FlightWriter};
use crate::control::identity::Identity;
use crate::control::log::Log;
use crate::data::buffers::{BUFFER_BYTES_DEFAULT, BufferPool};
use crate::data::conn::ConnLimits;
use crate::data::drive::{CoreMail, Drive, Failure};
use crate::data::engine::{Engine, Recording};
use crate::data::flight::{Crash, FlightRecorder};
use crate::data::mesh::{self, MeshEndpoint};
use crate::data::notices::Reporter;
use crate::data::store::Store;
use crate::offline;
use crate::rt::disk::{self, DirectIo, DirectoryLock};
use crate::rt::net::Listener;
use crate::rt::probe;
use crate::rt::time::Monotonic;
use crate::rt::{self, Bell, CoreHandle};
use crate::snapshot::{ADMIN_REQUESTS_MAX, AdminRequest};

/// Requests unanswered between two cores; the engine keeps to it.
const MESH_CAPACITY: usize = 256;
/// Journal operations in flight on one core: writes, and reads ahead.
const OPERATIONS_MAX: u32 = 64;

fn environment(sentence: String) -> BootError {
    BootError::new(BootErrorKind::Environment, sentence)
}

/// A broker that runs.
#[derive(Debug)]
pub struct Running {
    addr: SocketAddr,
    amqp_addrs: Vec<SocketAddr>,
    admin: Option<Admin>,
    cores: Vec<CoreHandle<()>>,
    ports: Vec<CorePort>,
    budget: Budget,
    flights: Option<FlightWriter>,
    /// Held until the last core has ended.
    _lock: DirectoryLock,
}

impl Running {
    /// Where clients connect.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where clients that speak AMQP connect.
    #[must_use]
    pub fn amqp_addrs(&self) -> &[SocketAddr] {
        &self.amqp_addrs
    }

    /// Where metrics and health are served.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin
            .as_ref()
            .expect("it runs until the shutdown")
            .addr()
    }

    /// How memory was divided.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Drains, writes what there is, and ends. Says which core died instead, if one did.
    ///
    /// # Errors
    /// A core ended by a panic or a failure of its executor.
    pub fn shutdown(mut self) -> Result<(), BootError> {
        for port in &self.ports {
            // A core that is gone is found out by the join.
            let _ = port.requests.send(AdminRequest::Shutdown);
            port.bell.ring();
        }
        let mut died = None;
        for (number, core) in self.cores.drain(..).enumerate() {
            if let Err(failure) = core.join() {
                died.get_or_insert(format!("core {number}: {failure}"));
            }
        }
        if let Some(admin) = self.admin.take() {
            admin.shutdown();
        }
        if let Some(flights) = self.flights.take() {
            flights.end();
        }
        match died {
            None => Ok(()),
            Some(sentence) => Err(BootError::new(BootErrorKind::Other, sentence)),
        }
    }
}

/// Starts the broker. Returns when every core has recovered and serves.
///
/// # Errors
/// What the machine, the settings or the data directory lack.
pub fn start(config: Config, log: Option<&Log>) -> Result<Running, BootError> {
    start_recorded(config, log, None)
}

/// The same; everything that the engines are given and want goes to `record`, which slows them down.
///
/// # Errors
/// As [`start`].
pub fn start_recorded(
    config: Config,
    log: Option<&Log>,
    record: Option<flume::Sender<Recording>>,
) -> Result<Running, BootError> {
    let cpus = probe::cpus_usable();
    config
        .check_cpus(&cpus)
        .map_err(|error| BootError::new(BootErrorKind::Configuration, error.to_string()))?;
    let budget = Budget::derive(Demand::of(&config, cpus.len()))
        .map_err(|error| BootError::new(BootErrorKind::Configuration, error.to_string()))?;
    if let Some(sentence) = Allowance::of_process().hindrance() {
        return Err(environment(sentence));
    }
    let cores = config.core_count(cpus.len());
    let lock = claim(&config.data_dir)?;
    let mut identity = with_cores(Identity::open(&config, cores)?, cores)?;
    tell_memory(&budget, log.is_some_and(Log::is_human));

    let mut listeners = Vec::new();
    let mut addr = config.listen;
    let cannot_listen = |addr: SocketAddr, error: std::io::Error| {
        let sentence = match error.kind() {
            std::io::ErrorKind::AddrInUse => format!(
                "the address {addr} is taken: another broker may be running; stop it or choose \
                 another with --listen"
            ),
            _ => format!("cannot listen on {addr}: {error}; choose another with --listen"),
        };
        environment(sentence)
    };
    Listener::claim(addr).map_err(|error| cannot_listen(addr, error))?;
    for _ in 0..cores {
        let listener = Listener::bind(addr).map_err(|error| cannot_listen(addr, error))?;
        // Port 0 takes a free one; the other cores share it.
        addr = listener
            .local_address()
            .map_err(|error| environment(error.to_string()))?;
        listeners.push(listener);
    }

    let (amqp_addrs, mut amqp_listeners) = listen_for_amqp(&config, cores)?;

    let mut bells = Vec::new();
    for _ in 0..cores {
        let bell = Bell::new().map_err(|error| {
            environment(format!("no descriptor is left: {error}; raise `ulimit -n`"))
        })?;
        bells.push(bell);
    }
    let flights = match config.flight_recorder {
        0 => None,
        _ => {
            let writer = FlightWriter::start(&config.data_dir, cores);
            Some(writer.map_err(|error| environment(format!("no thread is left: {error}")))?)
        }
    };
    let mut endpoints = mesh::build::<CoreMail>(&bells, MESH_CAPACITY);
    let (started, starts) = flume::bounded(usize::from(cores));
    let mut handles = Vec::new();
    let mut ports = Vec::new();
    for (number, listener) in listeners.into_iter().enumerate().rev() {
        let number = number as u16;
        let (requests, inbox) = flume::bounded(ADMIN_REQUESTS_MAX);
        let bell = bells[usize::from(number)].clone();
        ports.push(CorePort {
            requests,
            bell: bell.clone(),
        });
        let log = log.map(|log| log.of_core(number));
        let parts = Parts {
            number,
            bell: bell.clone(),
            directory: identity.journal_directory(number),
            engine: engine_config(&config, &identity, &budget, number, cores),
            buffers: budget.core.buffers.count,
            connections_max: config.connections_max.div_ceil(u32::from(cores)),
            conn_limits: conn_limits(&budget.core),
            drain_timeout: config.drain_timeout,
            listener,
            amqp_listeners: amqp_listeners.pop().expect("some a core"),
            mesh: endpoints.pop().expect("one endpoint a core"),
            requests: inbox,
            flight: flights.as_ref().map(|writer| FlightParts {
                directory: config.data_dir.clone(),
                turns: config.flight_recorder,
                crashes: writer.crashes(),
            }),
            record: record.clone(),
            report: Box::new(move |severity, text| {
                if let Some(log) = &log {
                    log.report(severity, text);
                }
            }),
            started: started.clone(),
        };
        let runtime = rt::CoreConfig {
            name: format!("core-{number}"),
            cpu: pin(&config.cpus, &cpus, number, cores),
            bell,
            spin: config.spin,
            operations_in_flight_max: OPERATIONS_MAX,
        };
        let handle = rt::spawn_core(runtime, move |runtime| parts.run(runtime)).map_err(|error| {
            environment(format!(
                "cannot start core {number}: {error}; `ringpost doctor` says what the machine lacks"
            ))
        })?;
        handles.push(handle);
    }
    handles.reverse();
    ports.reverse();
    drop(started);
    // Before the journals are read, so that whoever asks hears that, and not a refused connection.
    let admin = admin::start(AdminOptions {
        listen: config.admin_listen,
        hosts: config.admin_hosts.clone(),
        cores: ports.clone(),
        answer_within: admin::ANSWER_WITHIN,
        connection_within: admin::CONNECTION_WITHIN,
        budget: Some(budget),
        log_dropped: log.map(Log::dropped).unwrap_or_default(),
    });
    let (admin, mut sentence) = match admin {
        Ok(admin) => (Some(admin), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let mut kind = BootErrorKind::Environment;
    for _ in 0..cores {
        match starts.recv() {
            Ok((_, Ok(()))) => {}
            Ok((number, Err(Failure { cause, reason }))) => {
                if cause == FailCause::Content && sentence.is_none() {
                    kind = BootErrorKind::Damage;
                }
                sentence.get_or_insert(format!("core {number} cannot start: {reason}"));
            }
            // A core ended without a word: its own result says why.
            Err(_) => {
                sentence.get_or_insert_with(String::new);
                break;
            }
        }
    }
    let running = Running {
        addr,
        amqp_addrs,
        admin,
        cores: handles,
        ports,
        budget,
        flights,
        _lock: lock,
    };
    if let Some(sentence) = &mut sentence {
        let died = running.shutdown().err().map(|error| error.to_string());
        if sentence.is_empty() {
            *sentence = died.unwrap_or_else(|| "a core ended at once".to_owned());
            sentence.push_str("; `ringpost doctor` says what the machine lacks");
        }
        return Err(BootError::new(kind, std::mem::take(sentence)));
    }
    if let Err(error) = identity.begin() {
        // Why it could not begin is what counts.
        let _ = running.shutdown();
        return Err(error);
    }
    Ok(running)
}

/// Listeners for AMQP on every address, some for each core; and where they listen.
fn listen_for_amqp(
    config: &Config,
    cores: u16,
) -> Result<(Vec<SocketAddr>, Vec<Vec<Listener>>), BootError> {
    let cannot_listen = |addr: SocketAddr, error: std::io::Error| {
        let sentence = match error.kind() {
            std::io::ErrorKind::AddrInUse => format!(
                "the address {addr}, where AMQP clients would connect, is taken: RabbitMQ or another \
                 broker may be running; stop it, or choose another with --amqp-listen, or none with \
                 --amqp-listen off"
            ),
            _ => format!(
                "cannot listen for AMQP on {addr}: {error}; choose another with --amqp-listen, or none \
                 with --amqp-listen off"
            ),
        };
        environment(sentence)
    };
    let mut addrs = Vec::new();
    let mut listeners: Vec<Vec<Listener>> = (0..cores).map(|_| Vec::new()).collect();
    for addr in &config.amqp_listen {
        let mut addr = *addr;
        match Listener::claim(addr) {
            // The default names both, and not every machine has the newer one.
            Err(error)
                if error.kind() == std::io::ErrorKind::AddrNotAvailable
                    && addr.is_ipv6()
                    && config.amqp_listen.len() > 1 =>
            {
                tracing::warn!(
                    "this machine has no {}: AMQP is not spoken there",
                    addr.ip()
                );
                continue;
            }
            claimed => claimed.map_err(|error| cannot_listen(addr, error))?,
        }
        for of_core in &mut listeners {
            let listener = Listener::bind(addr).map_err(|error| cannot_listen(addr, error))?;
            addr = listener
                .local_address()
                .map_err(|error| environment(error.to_string()))?;
            of_core.push(listener);
        }
        addrs.push(addr);
    }
    Ok((addrs, listeners))
}

/// What a core's thread is given.
struct Parts {
    number: u16,
    bell: Arc<Bell>,
    directory: PathBuf,
    engine: CoreConfig,
    buffers: u32,
    connections_max: u32,
    conn_limits: ConnLimits,
    drain_timeout: std::time::Duration,
    listener: Listener,
    amqp_listeners: Vec<Listener>,
    mesh: MeshEndpoint<CoreMail>,
    requests: flume::Receiver<AdminRequest>,
    flight: Option<FlightParts>,
    record: Option<flume::Sender<Recording>>,
    report: Reporter,
    started: flume::Sender<(u16, Result<(), Failure>)>,
}

/// What the flight recorder of a core is made of.
struct FlightParts {
    directory: PathBuf,
    turns: u32,
    crashes: flume::Sender<Crash>,
}

impl FlightParts {
    /// The recorder, which also a panic of this thread will find.
    fn start(self, core: u16) -> FlightRecorder {
        let recorder = FlightRecorder::new(core, self.turns, self.crashes);
        flight::watch_this_thread(&recorder, &self.directory);
        recorder
    }
}

impl Parts {
    async fn run(self, runtime: rt::CoreRuntime) {
        let name = format!("core-{}", self.number);
        let store = Store::open(&self.directory, &name, self.bell);
        let pool = BufferPool::new(self.buffers, BUFFER_BYTES_DEFAULT);
        let (store, listing, pool) = match (store, pool) {
            (Ok((store, listing)), Ok(pool)) => (store, listing, pool),
            (Err(error), _) => {
                let reason = format!("cannot read {}: {error}", self.directory.display());
                // Whoever started the core hears it, or has given up.
                let _ = self
                    .started
                    .send((self.number, Err(Failure::of_machine(reason))));
                return;
            }
            (_, Err(error)) => {
                let reason = format!("no memory for buffers: {error}; lower `memory`");
                let _ = self
                    .started
                    .send((self.number, Err(Failure::of_machine(reason))));
                return;
            }
        };
        let effects = Effects::default();
        let now = Mono(Monotonic::now().as_nanos());
        let found = Found {
            slots: listing.slots,
            checkpoints: listing.checkpoints,
        };
        let buffers_free_min = self.engine.limits.buffers_free_min;
        let flight = self.flight.map(|parts| parts.start(self.number));
        let engine = Engine::boot(self.engine, found, now, flight, self.record);
        let drive = Drive {
            core: self.number,
            poller: runtime.poller,
            listener: Some(self.listener),
            amqp_listeners: self.amqp_listeners,
            mesh: self.mesh,
            mesh_capacity: MESH_CAPACITY as u32,
            store,
            pool,
            buffers: self.buffers,
            buffers_free_min,
            requests: self.requests,
            report: self.report,
            started: self.started,
            connections_max: self.connections_max,
            conn_limits: self.conn_limits,
            drain_timeout: self.drain_timeout,
        };
        drive.run(engine, effects).await;
    }
}

/// Logs how memory is divided: as a table for people, else as one event with a field for each pool.
fn tell_memory(budget: &Budget, is_for_people: bool) {
    if is_for_people {
        tracing::info!("memory is divided like this\n{}", budget.table());
        return;
    }
    let core = &budget.core;
    tracing::info!(
        memory_bytes = budget.demand.memory,
        used_bytes = budget.sum(),
        cores = budget.demand.cores,
        core_buffers_bytes = core.buffers.bytes(),
        core_receive_slabs_bytes = core.receive_slabs.bytes(),
        core_hold_bytes = core.hold.bytes(),
        core_large_bytes = core.large.bytes(),
        core_parcels_bytes = core.parcels.bytes(),
        core_send_buffers_bytes = core.send_buffers.bytes(),
        core_index_bytes = core.index.bytes(),
        core_catalog_bytes = core.catalog.bytes(),
        core_checkpoint_bytes = core.checkpoint.bytes(),
        "memory is divided"
    );
}

/// The data directory with a journal for each core.
fn with_cores(identity: Identity, cores: u16) -> Result<Identity, BootError> {
    let before = identity.cores;
    identity.check_journals()?;
    if before == cores {
        identity.make_journals()?;
        return Ok(identity);
    }
    tracing::info!(
        "the number of cores changes from {before} to {cores}: writing the journals anew"
    );
    offline::rehome(&identity, cores).map_err(|error| {
        // Whatever failed on the way, the directory is what it was.
        let kind = match error.kind() {
            BootErrorKind::Other => BootErrorKind::Environment,
            kind => kind,
        };
        let sentence = format!(
            "cannot change the number of cores from {before} to {cores}: {error}; start with \
             --cores {before}"
        );
        BootError::new(kind, sentence)
    })
}

/// Makes the directory, takes its lock and checks that it can do direct I/O.
fn claim(directory: &Path) -> Result<DirectoryLock, BootError> {
    let shown = directory.display();
    if !directory.exists() {
        std::fs::create_dir_all(directory).map_err(|error| {
            environment(format!(
                "cannot create the data directory {shown}: {error}; choose another with --data-dir"
            ))
        })?;
    }
    // Before anything is written there.
    Identity::check(directory)?;
    let lock = DirectoryLock::acquire(directory).map_err(|error| {
        environment(format!(
            "cannot write to the data directory {shown}: {error}; choose another with --data-dir"
        ))
    })?;
    let Some(lock) = lock else {
        return Err(environment(format!(
            "another broker, or `ringpost verify` or `repair`, uses the data directory {shown}; stop \
             it, or choose another with --data-dir"
        )));
    };
    match disk::probe_direct_io(directory) {
        Ok(DirectIo::Durable) => {}
        Ok(DirectIo::Memory) => {
            tracing::warn!("the data directory {shown} is in memory: nothing is durable there")
        }
        Ok(DirectIo::Refused) => {
            return Err(environment(format!(
                "the file system of {shown} has no direct I/O; use ext4 or xfs, see `ringpost doctor`"
            )));
        }
        // What the file system can do was tried when the directory was made, and consumers need a
        // broker to make room.
        Err(error) if disk::is_full(&error) && Identity::is_in(directory) => {
            tracing::warn!("the disk of the data directory {shown} is full: {error}");
        }
        Err(error) => {
            return Err(environment(format!(
                "cannot try the data directory {shown}: {error}"
            )));
        }
    }
    Ok(lock)
}

/// The CPU of a core; with more cores than CPUs the scheduler shares them out.
fn pin(asked: &Cpus, usable: &[usize], number: u16, cores: u16) -> Option<usize> {
    let number = usize::from(number);
    match asked {
        Cpus::Off => None,
        Cpus::List(list) => list
            .get(number % list.len().max(1))
            .map(|cpu| *cpu as usize),
        Cpus::Auto if usize::from(cores) > usable.len() => None,
        Cpus::Auto => usable.get(number).copied(),
    }
}

fn conn_limits(budget: &CoreBudget) -> ConnLimits {
    ConnLimits {
        // One slab is read into; each other has room for two frames.
        parts_max: 2 * (budget.receive_slabs.count - 1),
        copied_bytes_max: usize::try_from(budget.send_buffers.bytes()).unwrap_or(usize::MAX),
    }
}

fn engine_config(
    config: &Config,
    identity: &Identity,
    budget: &Budget,
    number: u16,
    cores: u16,
) -> CoreConfig {
    let core_budget = &budget.core;
    let buffers = core_budget.buffers.count;
    let defaults = Limits::default();
    CoreConfig {
        core: CoreId(number),
        cores,
        partitions: identity.partitions,
        cluster: identity.cluster,
        segment_bytes: identity.segment_bytes,
        server: concat!("ringpost/", env!("CARGO_PKG_VERSION")).to_owned(),
        limits: Limits {
            heartbeat_ms: millis(config.heartbeat),
            handshake_ms: u64::from(millis(config.handshake_timeout)),
            message_bytes_max: config.message_bytes_max,
            hold_bytes_max: core_budget.hold.bytes(),
            // A few that stand still shall not take it all.
            unsent_bytes_max: defaults
                .unsent_bytes_max
                .min(u32::try_from(core_budget.unsent_bytes() / 64).unwrap_or(u32::MAX)),
            unsent_bytes_total: core_budget.unsent_bytes(),
            // Half of a core's parcels are for publishes, half for deliveries.
            parcel_bytes_max: parcel_bytes_max(core_budget, cores),
            // A quarter of the buffers may be taken by volatile queues; of the rest, which is block
            // cache, enough is kept free for what one turn appends and reads back.
            volatile_buffers: buffers / 4,
            buffers_free_min: (buffers / 4 + 5).min(buffers / 2),
            writes_in_flight: config.writes_in_flight,
            trickle_ms: u64::from(millis(config.trickle)),
            assembly_bytes_max: core_budget.large.bytes(),
            catalog_bytes_max: core_budget.catalog.bytes(),
            request_bytes_max: REQUEST_BYTES,
            beginning_bytes_max: core_budget.beginnings.bytes(),
            transaction_bytes_max: core_budget.transactions.bytes(),
            ..defaults
        },
    }
}

fn parcel_bytes_max(budget: &CoreBudget, cores: u16) -> u32 {
    let others = u64::from(cores - 1).max(1);
    u32::try_from(budget.parcels.bytes() / 2 / others).unwrap_or(u32::MAX)
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
