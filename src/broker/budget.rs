//! Where the memory goes: every pool of the broker as one term of a sum that equals `memory`.
//! Does not allocate any of it.
//!
//! Each pool has a least size, below which the broker could come to a stand, and a weight. What is
//! left of `memory` when every pool has its least is divided by weight, each share rounded down to
//! whole units, so that the sum never exceeds the figure. Pools marked *per core* exist once on
//! every core.

use std::fmt::Write as _;

use ringpost_wire::limits;

use crate::config::Config;
use crate::config::value::bytes_text;
use crate::data::buffers::BUFFER_BYTES_DEFAULT;
use crate::data::flight::{ENTRIES_PER_TURN, ENTRY_BYTES};
use crate::rt::probe;

/// Bytes of a buffer of the journal and block cache: one block at its largest.
pub const BUFFER_BYTES: u32 = BUFFER_BYTES_DEFAULT;
/// Bytes of a slab that a socket is read into: two frames at their largest, so that one whole
/// frame always fits behind the rest of another.
pub const RECEIVE_SLAB_BYTES: u32 = 512 << 10;
/// Bytes of a parcel: what one post to another core carries, one frame at its largest.
pub const PARCEL_BYTES: u32 = 256 << 10;
/// The hold for publishes that wait is counted in pieces of this many bytes: a frame at its largest.
pub const HOLD_BYTES: u32 = 256 << 10;
/// Bytes that connections do not take are counted in pieces of this many.
pub const SEND_BUFFER_BYTES: u32 = 64 << 10;
/// Bytes of a connection that is idle: partial frame (at most 4 KiB), session, socket bookkeeping.
pub const CONNECTION_BYTES: u32 = 6 << 10;
/// Bytes of the index for a message that is ready and whose body is on disk.
pub const READY_BYTES: u32 = 32;

/// Bytes of clients' requests that may wait for the disk or another core before nobody is read.
pub const REQUEST_BYTES: u64 = 512 << 10;

const _: () = assert!(RECEIVE_SLAB_BYTES as usize >= 2 * limits::FRAME_BYTES_MAX);
const _: () = assert!(PARCEL_BYTES as usize >= limits::FRAME_BYTES_MAX);
const _: () = assert!(BUFFER_BYTES as usize >= limits::FRAME_BYTES_MAX);

/// Index entries are handed out in pages of this many bytes.
const INDEX_PAGE_BYTES: u32 = 64 << 10;
/// Checkpoint and routing memory are counted in units of this many bytes.
const ARENA_BYTES: u32 = 64 << 10;

/// What the sum depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Demand {
    /// The figure to be divided, in bytes.
    pub memory: u64,
    /// Cores of the broker.
    pub cores: u16,
    /// Most client connections of the process.
    pub connections_max: u32,
    /// Journal writes in flight on one core.
    pub writes_in_flight: u32,
    /// Largest message, in bytes: room for one on its way in, and for one on its way out.
    pub message_bytes_max: u32,
    /// Turns that the flight recorder of a core keeps.
    pub flight_turns: u32,
    /// Memory that the machine, or the process's control group, has; `None` if nobody knows.
    pub machine: Option<u64>,
}

impl Demand {
    /// What a configuration asks for on this machine, where the process may use `cpus_usable` CPUs.
    #[must_use]
    pub fn of(config: &Config, cpus_usable: usize) -> Demand {
        Demand {
            memory: config.memory,
            cores: config.core_count(cpus_usable),
            connections_max: config.connections_max,
            writes_in_flight: config.writes_in_flight,
            message_bytes_max: config.message_bytes_max,
            flight_turns: config.flight_recorder,
            machine: probe::memory_bytes(),
        }
    }
}

/// A number of equal pieces of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pool {
    /// Pieces.
    pub count: u32,
    /// Bytes of each.
    pub unit_bytes: u32,
}

impl Pool {
    /// Bytes of the whole pool.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.count) * u64::from(self.unit_bytes)
    }
}

/// The pools of one core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CoreBudget {
    /// Journal buffers and block cache, of [`BUFFER_BYTES`].
    pub buffers: Pool,
    /// Slabs that sockets are read into, of [`RECEIVE_SLAB_BYTES`].
    pub receive_slabs: Pool,
    /// Publishes within credit that wait for room, in pieces of [`HOLD_BYTES`].
    pub hold: Pool,
    /// Large messages on their way in, of the largest that there may be.
    pub large: Pool,
    /// Beginnings of large messages that wait for a place among those, in pieces of [`HOLD_BYTES`].
    pub beginnings: Pool,
    /// What transactions gather, and what is prepared of them, in pieces of [`HOLD_BYTES`].
    pub transactions: Pool,
    /// Parcels to other cores, of [`PARCEL_BYTES`]; none on a single core.
    pub parcels: Pool,
    /// What connections do not take, and the copies of it, of [`SEND_BUFFER_BYTES`].
    pub send_buffers: Pool,
    /// Index of ready and unsettled messages.
    pub index: Pool,
    /// Exchanges, bindings and queue descriptors: every core holds all of them.
    pub catalog: Pool,
    /// The checkpoint being put together, and segment tables.
    pub checkpoint: Pool,
}

impl CoreBudget {
    /// Bytes that all connections of the core may be behind before nobody is offered anything: what
    /// is copied of it takes somewhat more, since a copy goes when its last byte is sent.
    #[must_use]
    pub fn unsent_bytes(&self) -> u64 {
        self.send_buffers.bytes() / 5 * 4
    }

    /// Most messages whose place the index can hold.
    #[must_use]
    pub fn index_messages_max(&self) -> u64 {
        self.index.bytes() / u64::from(READY_BYTES)
    }
}

/// The whole sum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// What it is a division of.
    pub demand: Demand,
    /// The pools of every core.
    pub core: CoreBudget,
}

/// Why the memory cannot be divided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BudgetError {
    /// Less than the pools need at their least.
    TooSmall {
        /// What was asked for.
        demand: Demand,
        /// The least that would do, in bytes.
        memory_min: u64,
    },
    /// More than the machine has.
    BeyondMachine {
        /// What was asked for, in bytes.
        memory: u64,
        /// What there is, in bytes.
        machine: u64,
    },
}

impl std::fmt::Display for BudgetError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BudgetError::TooSmall { demand, memory_min } => write!(
                f,
                "`memory` is {}, too small for {} core{} and {} connection{}: it must be at \
                 least {}; raise it, or lower `cores`, `connections_max` or `message_bytes_max`",
                bytes_text(demand.memory),
                demand.cores,
                if demand.cores == 1 { "" } else { "s" },
                demand.connections_max,
                if demand.connections_max == 1 { "" } else { "s" },
                bytes_text(*memory_min),
            ),
            BudgetError::BeyondMachine { memory, machine } => write!(
                f,
                "`memory` is {} and the machine has only {}: lower it to leave room for the rest \
                 of the system",
                bytes_text(*memory),
                bytes_text(*machine),
            ),
        }
    }
}

impl std::error::Error for BudgetError {}

/// A pool of a core before it has its size.
struct Want {
    /// Name in the printed sum.
    name: &'static str,
    /// Bytes of a piece.
    unit_bytes: u32,
    /// Pieces without which the broker could come to a stand.
    count_min: u32,
    /// Share of what is left, of [`WEIGHT_SUM`].
    weight: u64,
}

/// The weights of [`core_wants`] add up to this.
const WEIGHT_SUM: u64 = 100;
/// Pools of a core.
const WANTS: usize = 11;

/// The pools of a core, in the order of [`CoreBudget`]'s fields.
fn core_wants(demand: &Demand) -> [Want; WANTS] {
    let want = |name, unit_bytes, count_min, weight| Want {
        name,
        unit_bytes,
        count_min,
        weight,
    };
    // Parcels on their way to each other core and back, so that every pair can always move.
    let parcels = u32::from(demand.cores - 1) * 2;
    // With one core their share goes to the block cache.
    let (cache_weight, parcel_weight) = if demand.cores > 1 { (19, 6) } else { (25, 0) };
    [
        // Open, in flight, two being read back for each of eight queues, one relocated from.
        want(
            "journal and block cache",
            BUFFER_BYTES,
            1 + demand.writes_in_flight + 16 + 1,
            cache_weight,
        ),
        // Lent only while a socket is readable, and while another core reads from one.
        want("receive slabs", RECEIVE_SLAB_BYTES, 4, 6),
        // Half of it is credit beyond everybody's least, half for what is read all the same (ADR 0013).
        want("publishes that wait", HOLD_BYTES, 16, 6),
        // One of them always finds its memory; the others wait for it in turn.
        want("large messages", demand.message_bytes_max, 1, 4),
        // Two pieces of each; beyond it large messages are refused.
        want("beginnings of large messages", HOLD_BYTES, 16, 6),
        // One of the largest, while its shares are made; beyond it transactions fail.
        want("transactions", HOLD_BYTES, 8, 1),
        want(
            "parcels between cores",
            PARCEL_BYTES,
            parcels,
            parcel_weight,
        ),
        // For connections that do not keep up, and for those that do within a turn: 4 MiB of them,
        // and a quarter more for copies of which a part is sent.
        want("send buffers", SEND_BUFFER_BYTES, 80, 6),
        // 131,072 messages; beyond it publishes find no credit.
        want("message index", INDEX_PAGE_BYTES, 64, 38),
        // 1 MiB: some two thousand queues or bindings.
        want("routing tables", ARENA_BYTES, 16, 4),
        want("checkpoint and segment tables", ARENA_BYTES, 16, 4),
    ]
}

/// A term of the sum that does not grow with `memory`.
struct Fixed {
    /// Name in the printed sum.
    name: &'static str,
    /// Bytes.
    bytes: u64,
}

/// What every core takes beside its pools.
fn core_fixed(demand: &Demand) -> [Fixed; 3] {
    let flight_entries = u64::from(demand.flight_turns) * u64::from(ENTRIES_PER_TURN);
    [
        // Stack, executor, submission and completion rings, histograms of the core's stages.
        Fixed {
            name: "stack, rings, histograms",
            bytes: 3 << 20,
        },
        // As many as may wait before nobody is read, and what one socket brings beyond: a slab of the
        // smallest, which take some seven times their bytes.
        Fixed {
            name: "requests that wait",
            bytes: REQUEST_BYTES + 7 * u64::from(RECEIVE_SLAB_BYTES),
        },
        // Its entries, laid out once. A copy of them, when a journal fails, is in the allocator's slack.
        Fixed {
            name: "flight recorder",
            bytes: flight_entries * u64::from(ENTRY_BYTES),
        },
    ]
}

/// What the process takes once.
fn process_fixed(demand: &Demand) -> [Fixed; 4] {
    let connections = u64::from(demand.connections_max) * u64::from(CONNECTION_BYTES);
    [
        // Program, its data, the allocator's own slack and fragmentation.
        Fixed {
            name: "program and allocator",
            bytes: 20 << 20,
        },
        // All may gather on one core, so they are counted for the process.
        Fixed {
            name: "connections",
            bytes: connections,
        },
        // HTTP, a snapshot of every core, the text of /metrics.
        Fixed {
            name: "admin thread",
            bytes: 6 << 20,
        },
        // Bounded channel of log events and the writer's buffer.
        Fixed {
            name: "log",
            bytes: 2 << 20,
        },
    ]
}

impl Budget {
    /// Divides the memory.
    ///
    /// # Errors
    /// It is too little, or more than the machine has.
    ///
    /// # Panics
    /// If there is no core.
    pub fn derive(demand: Demand) -> Result<Budget, BudgetError> {
        let memory_min = Budget::memory_min(&demand);
        let memory = demand.memory;
        if memory < memory_min {
            return Err(BudgetError::TooSmall { demand, memory_min });
        }
        if let Some(machine) = demand.machine
            && memory > machine
        {
            return Err(BudgetError::BeyondMachine { memory, machine });
        }
        let spare_core = (memory - memory_min) / u64::from(demand.cores);
        let mut pools = core_wants(&demand).map(|want| {
            let share = u128::from(spare_core) * u128::from(want.weight) / u128::from(WEIGHT_SUM);
            let more = share / u128::from(want.unit_bytes);
            let count = want
                .count_min
                .saturating_add(u32::try_from(more).unwrap_or(u32::MAX));
            Pool {
                count,
                unit_bytes: want.unit_bytes,
            }
        });
        // Receive slabs and the pools after the index stop being useful early; see `settle`.
        settle(&demand, spare_core, &mut pools);
        let [
            buffers,
            receive_slabs,
            hold,
            large,
            beginnings,
            transactions,
            parcels,
            send_buffers,
            index,
            catalog,
            checkpoint,
        ] = pools;
        let core = CoreBudget {
            buffers,
            receive_slabs,
            hold,
            large,
            beginnings,
            transactions,
            parcels,
            send_buffers,
            index,
            catalog,
            checkpoint,
        };
        let budget = Budget { demand, core };
        assert!(
            budget.sum() <= memory,
            "the sum exceeds the figure it divides"
        );
        Ok(budget)
    }

    /// The least memory with which these cores and connections work.
    ///
    /// # Panics
    /// If there is no core.
    #[must_use]
    pub fn memory_min(demand: &Demand) -> u64 {
        assert!(demand.cores > 0, "a broker has at least one core");
        let process: u64 = process_fixed(demand).iter().map(|fixed| fixed.bytes).sum();
        let fixed: u64 = core_fixed(demand).iter().map(|fixed| fixed.bytes).sum();
        let pools: u64 = core_wants(demand)
            .iter()
            .map(|want| u64::from(want.count_min) * u64::from(want.unit_bytes))
            .sum();
        process + u64::from(demand.cores) * (fixed + pools)
    }

    /// The sum of all terms, in bytes; at most `memory`.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.terms().iter().map(Term::total_bytes).sum()
    }

    /// Every term of the sum.
    #[must_use]
    pub fn terms(&self) -> Vec<Term> {
        let cores = u64::from(self.demand.cores);
        let mut terms = Vec::with_capacity(WANTS + 6);
        for Fixed { name, bytes } in process_fixed(&self.demand) {
            terms.push(Term {
                name,
                copies: 1,
                pieces: None,
                bytes,
            });
        }
        for Fixed { name, bytes } in core_fixed(&self.demand) {
            terms.push(Term {
                name,
                copies: cores,
                pieces: None,
                bytes,
            });
        }
        for (want, pool) in core_wants(&self.demand).iter().zip(self.pools()) {
            let bytes = pool.bytes();
            terms.push(Term {
                name: want.name,
                copies: cores,
                pieces: Some(pool),
                bytes,
            });
        }
        terms
    }

    /// The sum as a table, one term a line, for the start of the broker.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = format!(
            "{:<30}{:>8}{:>8}{:>14}{:>6}{:>14}\n",
            "memory", "pieces", "of", "bytes", "times", "total"
        );
        for term in self.terms() {
            let (count, unit) = match term.pieces {
                Some(pool) => (
                    pool.count.to_string(),
                    bytes_text(u64::from(pool.unit_bytes)),
                ),
                None => (String::new(), String::new()),
            };
            let total = term.total_bytes();
            let _ = writeln!(
                table,
                "{:<30}{count:>8}{unit:>8}{:>14}{:>6}{total:>14}",
                term.name, term.bytes, term.copies
            ); // writing to a String cannot fail
        }
        let sum = self.sum();
        let spare = self.demand.memory - sum;
        let _ = writeln!(table, "{:<66}{spare:>14}", "not divisible");
        let memory = self.demand.memory;
        let _ = writeln!(table, "{:<66}{memory:>14}", "memory");
        table
    }

    /// The pools of a core in the order of [`core_wants`].
    fn pools(&self) -> [Pool; WANTS] {
        let core = &self.core;
        [
            core.buffers,
            core.receive_slabs,
            core.hold,
            core.large,
            core.beginnings,
            core.transactions,
            core.parcels,
            core.send_buffers,
            core.index,
            core.catalog,
            core.checkpoint,
        ]
    }
}

/// One line of the sum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Term {
    /// What it is for.
    pub name: &'static str,
    /// How often it exists: 1 for the process, or once a core.
    pub copies: u64,
    /// The pieces it consists of, if it is a pool.
    pub pieces: Option<Pool>,
    /// Bytes of one copy.
    pub bytes: u64,
}

impl Term {
    /// Bytes of all copies.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.copies * self.bytes
    }
}

/// Gives the block cache what no pool can use, since it always has use for a buffer: pieces beyond
/// these counts, which do nothing for anybody, and what the rounding to whole pieces left of
/// `spare_bytes`, the bytes beyond everybody's least.
fn settle(demand: &Demand, spare_bytes: u64, pools: &mut [Pool; WANTS]) {
    const RECEIVE_SLABS_USEFUL: u32 = 256;
    const HOLDS_USEFUL: u32 = 512; // 128 MiB: more than a device writes in 50 ms
    const LARGE_USEFUL: u32 = 64;
    const ARENAS_USEFUL: u32 = 16_384; // 1 GiB
    let wants = core_wants(demand);
    let useful = [
        u32::MAX,
        RECEIVE_SLABS_USEFUL,
        HOLDS_USEFUL,
        LARGE_USEFUL,
        HOLDS_USEFUL,
        HOLDS_USEFUL,
        // Four parcels a lane keep a ring busy; a pair of cores has two lanes.
        u32::from(demand.cores - 1) * 64,
        demand.connections_max,
        u32::MAX,
        ARENAS_USEFUL,
        ARENAS_USEFUL,
    ];
    let mut left_bytes = spare_bytes;
    for idx in 0..WANTS {
        let count_min = wants[idx].count_min;
        pools[idx].count = pools[idx].count.min(useful[idx].max(count_min));
        let more = u64::from(pools[idx].count - count_min);
        left_bytes -= more * u64::from(pools[idx].unit_bytes);
    }
    let more = u32::try_from(left_bytes / u64::from(BUFFER_BYTES)).unwrap_or(u32::MAX);
    pools[0].count = pools[0].count.saturating_add(more);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(memory: u64, cores: u16) -> Demand {
        Demand {
            memory,
            cores,
            connections_max: 10_000,
            writes_in_flight: 2,
            message_bytes_max: limits::MESSAGE_BYTES_MAX_DEFAULT,
            flight_turns: 1024,
            machine: None,
        }
    }

    #[test]
    fn weights_add_up() {
        for cores in [1, 2, 64] {
            let weights = core_wants(&demand(0, cores))
                .iter()
                .map(|want| want.weight)
                .sum::<u64>();
            assert_eq!(weights, WEIGHT_SUM, "{cores} cores");
        }
    }

    #[test]
    fn the_least_is_enough_and_one_byte_less_is_not() {
        for cores in [1, 2, 3, 8, 64] {
            for connections_max in [1, 10_000, 1_000_000] {
                let mut demand = Demand {
                    connections_max,
                    ..demand(0, cores)
                };
                let memory_min = Budget::memory_min(&demand);
                demand.memory = memory_min - 1;
                assert_eq!(
                    Budget::derive(demand),
                    Err(BudgetError::TooSmall { demand, memory_min })
                );
                demand.memory = memory_min;
                let budget = Budget::derive(demand).expect("the least is enough");
                assert_eq!(budget.sum(), memory_min);
                demand.memory = memory_min + 1;
                assert_eq!(
                    Budget::derive(demand).expect("more is enough").core,
                    budget.core
                );
            }
        }
    }

    #[test]
    fn the_sum_stays_inside_and_little_is_left_over() {
        for memory in [1 << 30, (1 << 30) + 12_345, 5 << 30, 16 << 40] {
            for cores in [1, 2, 7, 64] {
                let Ok(budget) = Budget::derive(demand(memory, cores)) else {
                    assert!(cores == 64, "{memory} is enough for {cores} cores");
                    continue;
                };
                let spare = memory - budget.sum();
                let spare_max = u64::from(cores) * 2 * u64::from(BUFFER_BYTES);
                assert!(
                    spare <= spare_max,
                    "{spare} of {memory} left over with {cores} cores"
                );
                for (pool, want) in budget.pools().iter().zip(core_wants(&budget.demand)) {
                    assert!(pool.count >= want.count_min, "{}", want.name);
                }
            }
        }
    }

    #[test]
    fn the_default_holds_ten_million_ready_messages_on_one_core() {
        let budget = Budget::derive(demand(1 << 30, 1)).expect("1 GiB is enough");
        assert!(
            budget.core.index_messages_max() >= 10_000_000,
            "{:?}",
            budget.core
        );
        assert_eq!(budget.core.parcels.count, 0);
    }

    #[test]
    fn more_than_the_machine_has_is_refused() {
        let refused = Demand {
            machine: Some((1 << 30) - 1),
            ..demand(1 << 30, 1)
        };
        let error = Budget::derive(refused).expect_err("is more");
        assert_eq!(
            error,
            BudgetError::BeyondMachine {
                memory: 1 << 30,
                machine: (1 << 30) - 1
            }
        );
        let allowed = Demand {
            machine: Some(1 << 30),
            ..demand(1 << 30, 1)
        };
        assert!(Budget::derive(allowed).is_ok());
    }

    #[test]
    fn errors_say_what_to_do() {
        let error = Budget::derive(demand(32 << 20, 2)).expect_err("is too small");
        let text = error.to_string();
        assert!(text.starts_with("`memory` is 32MiB, too small for 2 cores and 10000 connections"));
        assert!(text.contains("it must be at least"), "{text}");
        assert!(
            text.contains("lower `cores`, `connections_max` or `message_bytes_max`"),
            "{text}"
        );
    }

    #[test]
    fn the_table_adds_up() {
        let budget = Budget::derive(demand(1 << 30, 2)).expect("1 GiB is enough");
        let table = budget.table();
        let totals: Vec<u64> = table
            .lines()
            .skip(1)
            .map(|line| {
                line.split_whitespace()
                    .last()
                    .expect("a total")
                    .parse()
                    .expect("digits")
            })
            .collect();
        let (memory, terms) = totals.split_last().expect("lines");
        assert_eq!(terms.iter().sum::<u64>(), *memory);
        assert_eq!(*memory, 1 << 30);
    }
}
