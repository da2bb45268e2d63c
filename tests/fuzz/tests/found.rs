//! What fuzzing found, each as a story that can be read. Does not fuzz; inputs are in the corpora.

use ringpost_engine::SlotId;
use ringpost_engine::data::journal::block::BlockHeader;
use ringpost_fuzz::client::Client;
use ringpost_fuzz::shell::{Disk, Shell, Size};

/// A shell that runs, with a client that has a queue and a producer.
fn serving(disk: Disk) -> (Shell, Client) {
    let mut shell = Shell::boot(Size::Small, disk);
    shell.start();
    assert!(shell.core().is_running(), "{:?}", shell.fail_stop);
    let mut client = Client::greet(&mut shell);
    client.declare_queue(&mut shell, b"orders");
    client.open_producer(&mut shell);
    (shell, client)
}

fn payloads(count: usize) -> Vec<Vec<u8>> {
    vec![vec![7; 1_000]; count]
}

/// A journal that had something to do later had that for ever when it failed meanwhile, and its
/// core never slept again.
#[test]
fn a_core_whose_journal_failed_waits_for_work() {
    for later in [1, 4, 30] {
        let (mut shell, mut client) = serving(Disk::default());
        client.publish(&mut shell, b"orders", &payloads(1));
        shell.rest();
        // Something to do when time has passed: the watermark, the trickle.
        shell.pass(later);
        client.publish(&mut shell, b"orders", &payloads(1));
        shell.turn();
        assert!(shell.in_flight() > 0);
        shell.fail(0, 0);
        assert!(shell.core().has_failed());
        shell.pass(60_000);
        shell.rest();
    }
}

/// The slot that is written now, and the whole disk, of a workload that ended in the middle.
fn in_the_middle() -> (SlotId, Disk) {
    let (mut shell, mut client) = serving(Disk::default());
    for _ in 0..12 {
        client.publish(&mut shell, b"orders", &payloads(6));
        shell.rest();
        shell.pass(40);
        shell.rest();
    }
    let disk = shell.crash(0);
    let newest = disk
        .slots
        .iter()
        .filter_map(|(slot, bytes)| Some((BlockHeader::decode(bytes)?.segment_number, *slot)))
        .max()
        .expect("something was written");
    (newest.1, disk)
}

/// The file of the open segment was gone or cut, and its checkpoint said where it went on: so the
/// engine wrote there, and the first write failed, or lay beyond the end of a file.
#[test]
fn a_slot_that_is_gone_or_cut_is_made_before_it_is_written() {
    let (slot, disk) = in_the_middle();
    for left in [None, Some(0), Some(512), Some(5_000), Some(20_480)] {
        let mut disk = disk.clone();
        match left {
            None => drop(disk.slots.remove(&slot)),
            Some(bytes) => disk
                .slots
                .get_mut(&slot)
                .expect("it is there")
                .truncate(bytes),
        }
        let mut shell = Shell::boot(Size::Small, disk);
        shell.start();
        if !shell.core().is_running() {
            assert!(shell.fail_stop.is_some(), "it says why");
            continue;
        }
        // The shell's disk refuses what is not there.
        let mut client = Client::greet(&mut shell);
        client.declare_queue(&mut shell, b"new");
        client.open_producer(&mut shell);
        for _ in 0..40 {
            client.publish(&mut shell, b"new", &payloads(6));
            shell.rest();
            client.hear(&mut shell);
        }
        assert!(shell.fail_stop.is_none(), "{left:?}: {:?}", shell.fail_stop);
        assert!(client.is_confirmed(), "{left:?}");
    }
}
