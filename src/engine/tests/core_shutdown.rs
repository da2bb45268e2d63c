//! What a core that has ended asks of its shell. Does not know what an end leaves on the disk.

#[path = "memory/machine.rs"]
mod machine;

use machine::{Machine, Size, TURN_NS};

/// Longer than anything that a running core puts off.
const TURNS: u64 = 2_000_000_000 / TURN_NS;

/// Other cores may take long, and the process ends when all have: who is done sleeps until then.
#[test]
fn a_core_that_has_ended_wants_no_turn() {
    let mut machine = Machine::start(Size {
        cores: 1,
        buffers: 64,
        segment_bytes: 32 << 20,
        slots_max: 16,
    });
    machine.turn();
    machine.shut_down(0);
    for _ in 0..TURNS {
        machine.turn();
        let now = machine.now();
        let core = machine.core(0);
        let wants_turn = core.next_deadline(now).is_some_and(|at| at <= now);
        assert!(!core.is_drained() || !wants_turn, "at {now:?}");
    }
    assert!(machine.core(0).is_drained(), "it ends");
}
