//! Enters what was run at the end of docs/ledger.md, whose last table adds up seeds, publishes and
//! crashes by commit. Does not run anything.

use std::ops::Range;
use std::process::Command;

use crate::run::Total;

/// What of a working copy makes a commit another one, if it was changed.
const SOURCES: [&str; 3] = ["Cargo.lock", "src", "tests"];

/// Appends a row to the table at the end of the file.
///
/// # Errors
/// The file has no such table, or what was run is no commit.
pub fn enter(path: &str, seeds: &Range<u64>, total: &Total) -> Result<(), String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output();
        let output = output.map_err(|error| format!("git: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match output.status.success() {
            true => Ok(text),
            false => Err(format!("git {arguments:?} failed")),
        }
    };
    let mut changes = vec!["status", "--porcelain", "--"];
    changes.extend(SOURCES);
    if !git(&changes)?.is_empty() {
        return Err("sources have changed since the last commit".into());
    }
    let commit = git(&["rev-parse", "--short=7", "HEAD"])?;
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let row = row(&text, &commit, seeds, total)?;
    std::fs::write(path, text + &row).map_err(|error| format!("{path}: {error}"))
}

/// The next row of the table that a text ends with. Its numbers but the failing seeds are cumulative.
fn row(text: &str, commit: &str, seeds: &Range<u64>, total: &Total) -> Result<String, String> {
    let last = text.lines().last().unwrap_or_default();
    let cells: Vec<&str> = last.split('|').map(str::trim).collect();
    let ["", _, _, rows @ .., _, ""] = &cells[..] else {
        return Err(format!("the last line is no row of the table: {last}"));
    };
    let mut before = rows.iter().map(|cell| cell.replace(',', "").parse::<u64>());
    let mut sum = |more: u64| match before.next() {
        Some(Ok(before)) => Ok(thousands(before + more)),
        Some(Err(_)) | None => Err(format!("the last line has too few numbers: {last}")),
    };
    Ok(format!(
        "| {commit} | `sim fuzz --seeds {}..{}` | {} | {} | {} | {} |\n",
        seeds.start,
        seeds.end,
        sum(total.seeds)?,
        sum(total.sent)?,
        sum(total.crashes)?,
        total.failure_count
    ))
}

/// A number with commas.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total() -> Total {
        Total {
            seeds: 200,
            sent: 1_999,
            crashes: 7,
            failure_count: 1,
            ..Total::default()
        }
    }

    #[test]
    fn rows_add_up() {
        let before = "| Commit |\n| 66aae60 | `sim fuzz` | 11,000 | 5,296,017 | 84,787 | 0 |\n";
        let row = row(before, "abcdef0", &(5..205), &total()).expect("it is a table");
        assert_eq!(
            row,
            "| abcdef0 | `sim fuzz --seeds 5..205` | 11,200 | 5,298,016 | 84,794 | 1 |\n"
        );
    }

    #[test]
    fn what_is_no_table_gets_no_row() {
        for text in ["", "text", "| a | b | c |", "| a | b | x | y | z | 0 |"] {
            assert!(row(text, "abcdef0", &(0..1), &total()).is_err(), "{text}");
        }
    }

    #[test]
    fn commas_stand_where_they_belong() {
        let texts = [0, 7, 999, 1_000, 12_345, 1_000_000].map(thousands);
        assert_eq!(texts, ["0", "7", "999", "1,000", "12,345", "1,000,000"]);
    }
}
