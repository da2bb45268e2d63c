//! Every seed and every file of the corpora through its target, in an ordinary build: what fuzzing
//! once found stays found. Does not fuzz.

use std::fs;
use std::path::Path;

use ringpost_fuzz::{INPUT_BYTES_MAX, Target, seeds};

/// Files of one corpus, so that the repository stays small.
const FILES_MAX: usize = 200;

fn check(target: Target) {
    for (name, bytes) in seeds::of(target) {
        assert!(bytes.len() <= INPUT_BYTES_MAX, "seed {name} is cut");
        println!("seed {name}");
        target.run(&bytes);
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name());
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("every target has a corpus") {
        let path = entry.expect("it can be read").path();
        let bytes = fs::read(&path).expect("it can be read");
        assert!(bytes.len() <= INPUT_BYTES_MAX, "{} is cut", path.display());
        println!("{}", path.display());
        target.run(&bytes);
        count += 1;
    }
    assert!((1..=FILES_MAX).contains(&count), "{count} files");
}

#[test]
fn frames() {
    check(Target::Frames);
}

#[test]
fn envelope() {
    check(Target::Envelope);
}

#[test]
fn handshake() {
    check(Target::Handshake);
}

#[test]
fn recovery() {
    check(Target::Recovery);
}

#[test]
fn amqp() {
    check(Target::Amqp);
}

#[test]
fn config() {
    check(Target::Config);
}
