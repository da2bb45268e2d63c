//! What kind of world a seed is: sizes, delays, and which faults it knows. Does not run it.

use crate::random::{Random, Rate};

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $scope:ident;)*) => {
        /// A kind of fault, switched on or off per seed.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[repr(u8)]
        pub enum Fault { $($(#[$doc])* $name,)* }

        impl Fault {
            /// Every kind.
            pub const ALL: &'static [Fault] = &[$(Fault::$name,)*];

            /// The word used on the command line.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Fault::$name => $word,)* }
            }

            /// Where it may be used.
            #[must_use]
            pub const fn scope(self) -> Scope {
                match self { $(Fault::$name => Scope::$scope,)* }
            }
        }
    };
}

/// Where a fault may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Every promise must hold all the same.
    Promised,
    /// Beyond the promises: what is lost must be reported.
    Beyond,
}

faults! {
    /// The whole broker stops at any moment; writes in flight tear.
    Crash = "crash", Promised;
    /// Crashes follow each other closely, so that recovery is hit too.
    CrashTwice = "crash-twice", Promised;
    /// A write ends with an error; any sectors of it may be there.
    WriteError = "write-error", Promised;
    /// A write ends short.
    WriteShort = "write-short", Promised;
    /// A file operation ends with an error.
    FileError = "file-error", Promised;
    /// Device latency varies over three orders of magnitude.
    SlowDisk = "slow-disk", Promised;
    /// The device answers nothing for seconds.
    HungDisk = "hung-disk", Promised;
    /// The device has little room.
    NoSpace = "no-space", Promised;
    /// A core runs no turn for a while.
    CoreStall = "core-stall", Promised;
    /// The wall clock jumps.
    ClockJump = "clock-jump", Promised;
    /// Connections are reset.
    Reset = "reset", Promised;
    /// Clients stop reading for a while.
    SlowReader = "slow-reader", Promised;
    /// Frames arrive cut at any byte.
    ByteCuts = "byte-cuts", Promised;
    /// Clients break the protocol on purpose.
    Misbehave = "misbehave", Promised;
    /// Clients fall silent.
    Silence = "silence", Promised;
    /// Messages between cores take long.
    SlowMesh = "slow-mesh", Promised;
    /// As little memory as a core can run with.
    TinyMemory = "tiny-memory", Promised;
    /// Segments of a few blocks.
    TinySegments = "tiny-segments", Promised;
    /// Credit of one message, batches of one.
    TinyCredit = "tiny-credit", Promised;
    /// One input per turn.
    TinyTurns = "tiny-turns", Promised;
    /// Queues with limits.
    BoundedQueues = "bounded-queues", Promised;
    /// Messages larger than a frame.
    LargeMessages = "large-messages", Promised;
    /// Topology changes all the time.
    Topology = "topology", Promised;
    /// A bit of what was written flips while the broker is down.
    BitRot = "bit-rot", Beyond;
    /// A write goes to another place.
    Misdirected = "misdirected", Beyond;
    /// A write is reported as done and is not.
    Dropped = "dropped", Beyond;
    /// The drive forgets completed writes when the power fails.
    LyingSync = "lying-sync", Beyond;
    /// A read ends with an error.
    ReadError = "read-error", Beyond;
}

/// A set of faults.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Faults(u64);

impl Faults {
    /// Whether it holds the fault.
    #[must_use]
    pub const fn has(self, fault: Fault) -> bool {
        self.0 & (1 << fault as u8) != 0
    }

    /// The set with the fault.
    #[must_use]
    pub const fn with(self, fault: Fault) -> Self {
        Self(self.0 | 1 << fault as u8)
    }

    /// The set without the fault.
    #[must_use]
    pub const fn without(self, fault: Fault) -> Self {
        Self(self.0 & !(1 << fault as u8))
    }

    /// Its faults.
    pub fn iter(self) -> impl Iterator<Item = Fault> {
        Fault::ALL
            .iter()
            .copied()
            .filter(move |fault| self.has(*fault))
    }
}

/// What a world is judged by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Faults to the end, a last crash, then everything promised must be there.
    Safety,
    /// Faults stop, nothing is restarted that does not ask for it, everything must drain.
    Liveness,
    /// Damage beyond the promises: nothing wrong may be served, and losses must be reported.
    Detect,
}

impl Mode {
    /// The word used on the command line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Safety => "safety",
            Self::Liveness => "liveness",
            Self::Detect => "detect",
        }
    }
}

/// What the command line changes in what a seed says.
#[derive(Clone, Default, Debug)]
pub struct Overrides {
    /// The mode, instead of the one that the seed draws.
    pub mode: Option<Mode>,
    /// Faults switched off.
    pub without: Vec<Fault>,
    /// Most publishes.
    pub publishes: Option<u64>,
    /// Most clients.
    pub clients: Option<usize>,
    /// Cores.
    pub cores: Option<u16>,
}

/// One world before it begins. Durations are in nanoseconds.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// What it is judged by.
    pub mode: Mode,
    /// Faults that it knows.
    pub faults: Faults,
    /// Cores of the broker.
    pub cores: u16,
    /// Partitions of the data directory.
    pub partitions: u16,
    /// Clients beside the one that drains.
    pub clients: usize,
    /// Tenants, the default one included.
    pub tenants: usize,
    /// Publishes after which the world calms down.
    pub publishes: u64,
    /// Names that queues are drawn from.
    pub queue_names: usize,
    /// Names that exchanges are drawn from.
    pub exchange_names: usize,
    /// Largest payload in bytes; large messages are apart.
    pub payload_max: u64,
    /// Pause of a client between two acts, at most.
    pub think_max: u64,
    /// Typical device latency.
    pub device: u64,
    /// Network latency, at most.
    pub network_max: u64,
    /// Mesh latency, at most.
    pub mesh_max: u64,
    /// Inputs of one turn, at most.
    pub turn_inputs_max: u64,
    /// Bytes that the kernel takes from the broker per connection before the client reads them.
    pub socket_bytes: u64,
    /// Room of each journal's device.
    pub disk_bytes: u64,
    /// Mean time between crashes.
    pub crash_every: u64,
    /// Rate of faults per operation.
    pub fault_rate: Rate,
}

const MS: u64 = 1_000_000;

impl Plan {
    /// What a seed says, with what the command line changes.
    #[must_use]
    pub fn draw(seed: u64, overrides: &Overrides) -> Self {
        let mut random = Random::new(seed, 0);
        let drawn = match random.below(20) {
            0..12 => Mode::Safety,
            12..18 => Mode::Liveness,
            _ => Mode::Detect,
        };
        let mode = overrides.mode.unwrap_or(drawn);
        let mut faults = Faults::default();
        for fault in Fault::ALL {
            // Drawn in every mode, so that switching a mode or fault off moves no other draw.
            let is_on = match fault {
                Fault::Crash => random.below(10) < 8,
                Fault::LargeMessages => random.below(10) == 0,
                Fault::Silence | Fault::HungDisk | Fault::FileError => random.below(5) == 0,
                _ => random.coin(),
            };
            let allowed = fault.scope() == Scope::Promised || mode == Mode::Detect;
            if is_on && allowed && !overrides.without.contains(fault) {
                faults = faults.with(*fault);
            }
        }
        if mode == Mode::Detect {
            // One kind of damage at a time, or nobody can say what should have been seen.
            let kinds: Vec<Fault> = faults
                .iter()
                .filter(|f| f.scope() == Scope::Beyond)
                .collect();
            for (idx, kind) in kinds.iter().enumerate() {
                if idx != (seed as usize) % kinds.len() {
                    faults = faults.without(*kind);
                }
            }
        }
        let has = |fault| faults.has(fault);
        let cores = [1, 2, 2, 2, 3][random.index(5)];
        let partitions = random.scale(1..=16) as u16;
        let clients = random.within(2..=6) as usize;
        let publishes = random.scale(100..=4500);
        let plan = Self {
            seed,
            mode,
            faults,
            cores: overrides.cores.unwrap_or(cores),
            partitions,
            clients: overrides.clients.unwrap_or(usize::MAX).min(clients),
            tenants: if random.below(4) == 0 { 2 } else { 1 },
            publishes: overrides.publishes.unwrap_or(u64::MAX).min(publishes),
            queue_names: random.within(3..=8) as usize,
            exchange_names: random.within(1..=4) as usize,
            payload_max: random.scale(1..=6000),
            think_max: random.scale(MS / 50..=4 * MS),
            device: random.scale(MS / 50..=4 * MS),
            network_max: random.scale(MS / 50..=2 * MS),
            mesh_max: random.scale(
                1_000..=if has(Fault::SlowMesh) {
                    20 * MS
                } else {
                    MS / 10
                },
            ),
            turn_inputs_max: if has(Fault::TinyTurns) {
                1
            } else {
                random.scale(2..=64)
            },
            socket_bytes: random.scale(if has(Fault::ByteCuts) { 64 } else { 4096 }..=262_144),
            disk_bytes: 1 << 30,
            crash_every: random.scale(2 * MS..=300 * MS),
            // Of damage there is one kind a world, in few worlds.
            fault_rate: Rate(match mode {
                Mode::Safety | Mode::Liveness => random.scale(200..=20_000),
                Mode::Detect => random.scale(2_000..=50_000),
            } as u32),
        };
        assert!(plan.clients > 0, "a world has clients");
        plan
    }
}
