//! `ringpost-check [FILE]`: judges a history from a file or standard input.
//! Does not know how it was recorded. Exit code 0: clean, 1: broken or undecided, 2: unreadable.

use std::fs::File;
use std::io::{BufReader, Read, stdin};
use std::process::ExitCode;

use ringpost_check::{Checker, text};

fn main() -> ExitCode {
    let source: Box<dyn Read> = match std::env::args_os().nth(1) {
        None => Box::new(stdin()),
        Some(path) => match File::open(&path) {
            Ok(file) => Box::new(file),
            Err(error) => {
                eprintln!("cannot open {}: {error}", path.display());
                return ExitCode::from(2);
            }
        },
    };
    let mut checker = Checker::new();
    let read = text::read(BufReader::with_capacity(1 << 20, source), |event| {
        checker.event(event);
    });
    if let Err(error) = read {
        eprintln!("{error}");
        return ExitCode::from(2);
    }
    let verdict = checker.verdict();
    println!("{verdict}");
    if verdict.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}
