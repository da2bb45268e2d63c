//! `counts`: what parts of the broker cost, each measured alone, in instructions and in nanoseconds.
//! Does not know what a part costs beside others; `ringpost-load` measures the whole.
//!
//! Instructions are counted by valgrind and do not depend on what else the machine does, so they are
//! kept in a table, and a change that moves one has to say so: docs/testing.md tells how.

mod cases;
#[path = "../../src/engine/tests/memory/client.rs"]
mod client;
#[path = "../../src/engine/tests/memory/machine.rs"]
mod machine;
mod measure;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cases::Case;
use table::{Figure, Table};

const USAGE: &str = "\
counts list                  the cases
counts check [WORD]...       counts, and fails if a count is not the table's
counts bless [WORD]...       counts, and writes what it finds into the table
counts time [WORD]...        ns of every case beside its instructions in the table; judges nothing
counts run CASE              one round of one case, for a profiler

A WORD chooses the cases whose names contain it. The table is bench/counts.tsv.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.split_first() {
        Some((&"list", [])) => list(),
        Some((&"check", words)) => check(words),
        Some((&"bless", words)) => bless(words),
        Some((&"time", words)) => time(words),
        Some((&"run", [name])) => run(name),
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn table_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("counts.tsv")
}

fn read_table() -> Result<Table, String> {
    let path = table_path();
    let text = std::fs::read_to_string(&path)
        .map_err(|error| format!("{} can not be read: {error}", path.display()))?;
    Table::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
}

/// The cases whose names contain one of the words; all of them without words.
fn chosen(words: &[&str]) -> Result<Vec<Case>, String> {
    let is_chosen =
        |case: &Case| words.is_empty() || words.iter().any(|word| case.name.contains(word));
    let chosen: Vec<Case> = cases::all().into_iter().filter(is_chosen).collect();
    if chosen.is_empty() {
        return Err(format!("no case is named like {}", words.join(" or ")));
    }
    Ok(chosen)
}

fn list() -> Result<(), String> {
    for case in cases::all() {
        println!("{}", case.name);
    }
    Ok(())
}

fn run(name: &str) -> Result<(), String> {
    let case = cases::all()
        .into_iter()
        .find(|case| case.name == name)
        .ok_or_else(|| format!("there is no case {name}"))?;
    println!("{}", measure::one_round(&case));
    Ok(())
}

fn count_all(words: &[&str]) -> Result<Vec<Figure>, String> {
    measure::instructions(&chosen(words)?)
}

fn check(words: &[&str]) -> Result<(), String> {
    let table = read_table()?;
    let found = count_all(words)?;
    for figure in &found {
        println!("{}", table.line(figure));
    }
    let faults = if words.is_empty() {
        table.compare_all(&found)
    } else {
        table.compare(&found)
    };
    if faults.is_empty() {
        println!("{} counts are the table's", found.len());
        return Ok(());
    }
    let mut lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    lines.extend(table.note_compiler(&measure::compiler()?));
    lines.push(table::ADVICE.into());
    Err(lines.join("\n"))
}

fn bless(words: &[&str]) -> Result<(), String> {
    let mut table = if table_path().exists() {
        read_table()?
    } else {
        Table::default()
    };
    let found = count_all(words)?;
    table.compiler = measure::compiler()?;
    if words.is_empty() {
        table.replace(&found);
    } else {
        table.enter(&found);
    }
    std::fs::write(table_path(), table.to_string())
        .map_err(|error| format!("{} can not be written: {error}", table_path().display()))?;
    println!(
        "{} counts were written to {}",
        found.len(),
        table_path().display()
    );
    Ok(())
}

fn time(words: &[&str]) -> Result<(), String> {
    let table = read_table()?;
    println!(
        "{:34} {:>10} {:>10} {:>13}",
        "case", "best ns", "median ns", "instructions"
    );
    for case in chosen(words)? {
        let (best, median) = measure::nanoseconds(&case);
        let counted = table
            .instructions(case.name)
            .map_or("-".into(), |n| format!("{n:.1}"));
        println!("{:34} {best:10.1} {median:10.1} {counted:>13}", case.name);
    }
    Ok(())
}
