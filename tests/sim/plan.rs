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
    /// Queues in which messages die, and whose dead go to another.
    Deaths = "deaths", Promised;
    /// Queues with ranks and retry policies, and messages that are delayed.
    Times = "times", Promised;
    /// Messages larger than a frame.
    LargeMessages = "large-messages", Promised;
    /// Topology changes all the time.
    Topology = "topology", Promised;
    /// Queues and exchanges that go by themselves.
    Mortals = "mortals", Promised;
    /// Policies that say how long queues live.
    Policies = "policies", Promised;
    /// Transactions over queues of several cores.
    Transactions = "transactions", Promised;
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

/// What a world has more of than chance would give it, so that rare meetings are common somewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leaning {
    /// Nothing.
    Plain,
    /// Publishes to queues of several cores, of which some are full and some have journals that fail.
    FanOut,
    /// Large messages to several cores.
    Large,
    /// Messages that come back while the disk is full, also when everybody has left.
    Returns,
    /// Producers that go from client to client faster than what they sent goes from core to core.
    Epochs,
    /// Blocks that wait for a slow disk, of which one rots after a crash.
    Backlog,
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
    /// What it has more of.
    pub leaning: Leaning,
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
    /// Chance of a new publish to be larger than a frame, where there are such.
    pub large_rate: Rate,
    /// Of a hundred settles, so many return what was delivered.
    pub requeue_percent: u64,
    /// How often the power fails just when two writes of a core are in flight, if it may.
    pub crash_in_writes: Rate,
    /// Producers that a client opens by itself.
    pub producers_max: usize,
}

const MS: u64 = 1_000_000;

impl Plan {
    /// What a seed says, with what the command line changes.
    #[must_use]
    pub fn draw(seed: u64, overrides: &Overrides) -> Self {
        let mut random = Random::new(seed, 0);
        let drawn = match random.below(20) {
            0..9 => Mode::Safety,
            9..15 => Mode::Liveness,
            _ => Mode::Detect,
        };
        let mut mode = overrides.mode.unwrap_or(drawn);
        let mut faults = Faults::default();
        let mut errands = Random::new(seed, 9);
        let mut transactions = Random::new(seed, 11);
        for fault in Fault::ALL {
            // Drawn in every mode, so that switching a mode or fault off moves no other draw.
            let is_on = match fault {
                Fault::Crash => random.below(10) < 8,
                Fault::LargeMessages => random.below(10) == 0,
                Fault::Silence => random.below(4) == 0,
                // Crashes while a broker starts are some of many, not most.
                Fault::CrashTwice => random.below(5) < 2,
                Fault::HungDisk | Fault::FileError => random.below(5) == 0,
                // Of a stream of their own: they came later and move no other draw.
                Fault::Mortals | Fault::Policies => errands.below(3) == 0,
                Fault::Transactions => transactions.below(3) == 0,
                _ => random.coin(),
            };
            let allowed = fault.scope() == Scope::Promised || mode == Mode::Detect;
            if is_on && allowed && !overrides.without.contains(fault) {
                faults = faults.with(*fault);
            }
        }
        let mut apart = Random::new(seed, 7);
        let mut leaning = match apart.below(100) {
            _ if mode == Mode::Detect => Leaning::Plain,
            0..14 => Leaning::FanOut,
            14..26 => Leaning::Large,
            26..38 => Leaning::Returns,
            38..46 => Leaning::Epochs,
            _ => Leaning::Plain,
        };
        for fault in leaning.faults() {
            let is_on = apart.below(4) > 0;
            if is_on && !overrides.without.contains(fault) {
                faults = faults.with(*fault);
            }
        }
        if leaning == Leaning::Large && apart.coin() {
            // Credit that is not told is missed by who is calm, unless a crash or a reset mends it.
            mode = overrides.mode.unwrap_or(Mode::Liveness);
            for fault in [Fault::Crash, Fault::Reset] {
                if apart.coin() {
                    faults = faults.without(fault);
                }
            }
        }
        if leaning == Leaning::Returns {
            match apart.below(5) {
                // What goes wrong with returns while the disk is full, a crash mends.
                0..3 => {
                    mode = overrides.mode.unwrap_or(Mode::Liveness);
                    faults = faults.without(Fault::Crash);
                }
                // Slots are what there is too little of.
                3 => faults = faults.without(Fault::NoSpace),
                _ => {}
            }
        }
        if mode == Mode::Detect {
            // One kind of damage at a time, or nobody can say what should have been seen.
            // The kind that starts may have to refuse over comes seldom enough by itself.
            let rots = match apart.below(10) {
                _ if overrides.without.contains(&Fault::BitRot) => false,
                0..2 => {
                    leaning = Leaning::Backlog;
                    for fault in leaning.faults() {
                        if !overrides.without.contains(fault) {
                            faults = faults.with(*fault);
                        }
                    }
                    // Room for what waits.
                    for fault in [Fault::TinyCredit, Fault::TinyMemory, Fault::TinySegments] {
                        faults = faults.without(fault);
                    }
                    true
                }
                2..5 => {
                    faults = faults.with(Fault::BitRot);
                    true
                }
                _ => false,
            };
            let kinds: Vec<Fault> = faults
                .iter()
                .filter(|f| f.scope() == Scope::Beyond)
                .collect();
            for (idx, kind) in kinds.iter().enumerate() {
                let is_kept = match rots {
                    true => *kind == Fault::BitRot,
                    false => idx == (seed as usize) % kinds.len(),
                };
                if !is_kept {
                    faults = faults.without(*kind);
                }
            }
        }
        let has = |fault| faults.has(fault);
        let cores = [1, 2, 2, 2, 3][random.index(5)];
        let partitions = random.scale(1..=16) as u16;
        let clients = random.within(2..=6) as usize;
        let publishes = random.scale(100..=4500);
        let mut plan = Self {
            seed,
            mode,
            leaning,
            faults,
            cores: overrides.cores.unwrap_or(cores),
            partitions,
            clients: overrides.clients.unwrap_or(usize::MAX).min(clients),
            tenants: if random.below(4) == 0 { 2 } else { 1 },
            publishes,
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
            large_rate: Rate::percent(5),
            requeue_percent: 20,
            crash_in_writes: Rate::percent(apart.within(75..=100) as u32),
            producers_max: 3,
        };
        plan.lean(&mut apart, overrides);
        plan.publishes = plan.publishes.min(overrides.publishes.unwrap_or(u64::MAX));
        assert!(plan.clients > 0, "a world has clients");
        plan
    }

    /// Makes room for what the world leans to.
    fn lean(&mut self, apart: &mut Random, overrides: &Overrides) {
        match self.leaning {
            Leaning::Plain => return,
            Leaning::FanOut => {
                self.fault_rate = Rate(apart.scale(5_000..=40_000) as u32);
                self.payload_max = self.payload_max.min(1_000);
                self.exchange_names = self.exchange_names.min(2);
            }
            Leaning::Large => {
                self.large_rate = Rate::percent(apart.within(20..=60) as u32);
                self.publishes = self.publishes.min(300);
                self.exchange_names = self.exchange_names.min(2);
                // What each may have on its way shrinks when others come.
                self.producers_max = apart.within(3..=6) as usize;
            }
            Leaning::Returns => {
                self.fault_rate = Rate(self.fault_rate.0.min(1_000));
                self.payload_max = self.payload_max.max(1_000);
                self.publishes = self.publishes.max(3_000);
                let only_returns = !self.faults.has(Fault::Crash);
                self.requeue_percent = if only_returns { 96 } else { 50 };
            }
            Leaning::Epochs => {
                let most = overrides.clients.unwrap_or(usize::MAX);
                self.clients = self.clients.max(3).min(most);
                self.tenants = 1;
                self.publishes = self.publishes.clamp(500, 1_500);
                // A crash ends every meeting.
                self.crash_every = self.crash_every.max(100 * MS);
                self.mesh_max = apart.scale(4 * MS..=20 * MS);
                self.network_max = self.network_max.min(MS / 10);
                self.think_max = self.think_max.clamp(MS / 5, MS);
            }
            Leaning::Backlog => {
                // The first report of damage excuses whatever is lost behind it: one core, and a few crashes.
                self.cores = overrides.cores.unwrap_or(1);
                self.payload_max = apart.within(6_000..=24_000);
                self.publishes = self.publishes.clamp(1_500, 3_000);
                self.think_max = self.think_max.clamp(MS / 5, MS);
                self.device = self.device.max(MS / 2);
                self.crash_every = self.crash_every.max(20 * MS);
                return;
            }
        }
        // Queues of several cores, or there is nothing between them; a large message goes from one core to
        // the next, so two others are the least that it can be between.
        let cores = match self.leaning {
            Leaning::FanOut | Leaning::Large => apart.within(3..=4),
            Leaning::Epochs => apart.within(2..=3),
            _ => apart.within(2..=4),
        } as u16;
        self.cores = overrides.cores.unwrap_or(cores);
        self.partitions = self.partitions.max(2 * cores);
        self.queue_names = self.queue_names.max(4);
    }
}

impl Leaning {
    /// Faults that most worlds of it know.
    const fn faults(self) -> &'static [Fault] {
        match self {
            Self::Plain => &[],
            Self::FanOut => &[
                Fault::Crash,
                Fault::WriteError,
                Fault::FileError,
                Fault::SlowDisk,
                Fault::BoundedQueues,
            ],
            Self::Large => &[Fault::LargeMessages],
            Self::Returns => &[
                Fault::NoSpace,
                Fault::TinySegments,
                Fault::SlowMesh,
                Fault::Deaths,
            ],
            Self::Epochs => &[Fault::SlowMesh],
            Self::Backlog => &[Fault::BitRot, Fault::SlowDisk, Fault::Crash],
        }
    }

    /// Whether clients like to publish to several queues at once.
    #[must_use]
    pub const fn fans_out(self) -> bool {
        matches!(self, Self::FanOut | Self::Large)
    }
}
