//! How commands show things: tables for people, JSON lines for programs. Does not know what is in
//! them.

use std::io::{self, BufWriter, Write};
use std::time::Duration;

use serde::Serialize;

use super::Failure;
use crate::rt::terminal::output_columns;

/// Flag of commands that can speak to programs.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct FormatArgs {
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

/// Writes bytes to standard output.
pub fn write_all(bytes: &[u8]) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    output.write_all(bytes)?;
    output.flush()?;
    Ok(())
}

/// Prints one line.
pub fn line(text: &str) -> Result<(), Failure> {
    write_all(format!("{text}\n").as_bytes())
}

/// Prints rows: as JSON, one object a line, or as a table under `heads`.
pub fn rows<R: Serialize>(
    format: FormatArgs,
    heads: &[&str],
    rows: &[R],
    cells: impl Fn(&R) -> Vec<String>,
) -> Result<(), Failure> {
    let mut output = BufWriter::new(io::stdout().lock());
    if format.json {
        for row in rows {
            let text = serde_json::to_string(row).map_err(io::Error::other)?;
            writeln!(output, "{text}")?;
        }
    } else {
        let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
        let text = fitted(heads, &cells, columns());
        output.write_all(text.as_bytes())?;
    }
    output.flush()?;
    Ok(())
}

/// A table, or one line a cell where that is wider than `columns`.
#[must_use]
pub fn fitted(heads: &[&str], rows: &[Vec<String>], columns: usize) -> String {
    let text = table(heads, rows);
    if text.lines().all(|line| line.chars().count() <= columns) || rows.is_empty() {
        return text;
    }
    let width = heads.iter().map(|head| head.chars().count()).max();
    let width = width.unwrap_or_default();
    let blocks = rows.iter().map(|row| {
        let lines = heads.iter().zip(row);
        let lines = lines.map(|(head, cell)| format!("{head:<width$}  {cell}\n"));
        lines.collect::<String>()
    });
    blocks.collect::<Vec<_>>().join("\n")
}

/// Columns for what is printed: those of the terminal, or as many as it takes.
#[must_use]
pub fn columns() -> usize {
    output_columns().unwrap_or(usize::MAX)
}

/// A line that begins with `head` and goes on below its end where it is wider than `columns`.
#[must_use]
pub fn hanging(head: &str, text: &str, columns: usize) -> String {
    let indent = head.chars().count();
    let mut lines = String::new();
    let mut line = head.to_owned();
    let mut width = indent;
    for word in text.split(' ') {
        let length = word.chars().count();
        // A word that fits nowhere is broken by the terminal.
        if width > indent && width + 1 + length > columns {
            lines.push_str(&line);
            lines.push('\n');
            line = " ".repeat(indent);
            width = indent;
        }
        if width > indent {
            line.push(' ');
            width += 1;
        }
        line.push_str(word);
        width += length;
    }
    lines + &line + "\n"
}

/// A table: columns as wide as their widest cell, numbers to the right.
#[must_use]
pub fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let is_number = |column: usize| {
        !rows.is_empty()
            && rows.iter().all(|row| {
                row[column]
                    .chars()
                    .all(|c| c.is_ascii_digit() || ".,".contains(c))
            })
    };
    let lines = lines(heads, rows, is_number);
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// The lines of a table, its heads first: columns as wide as their widest cell, with those that
/// `is_right` to the right.
#[must_use]
pub fn lines(
    heads: &[&str],
    rows: &[Vec<String>],
    is_right: impl Fn(usize) -> bool,
) -> Vec<String> {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells
            .chain([heads[column].chars().count()])
            .max()
            .unwrap_or_default()
    };
    let columns: Vec<(usize, bool)> = (0..heads.len())
        .map(|column| (width(column), is_right(column)))
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, (width, to_the_right)) in cells.zip(&columns) {
            let padding = " ".repeat(width - cell.chars().count());
            if *to_the_right {
                line.push_str(&padding);
                line.push_str(cell);
            } else {
                line.push_str(cell);
                line.push_str(&padding);
            }
            line.push_str("  ");
        }
        line.truncate(line.trim_end().len());
        line
    };
    let head = line(&mut heads.iter().copied());
    let rows = rows
        .iter()
        .map(|row| line(&mut row.iter().map(String::as_str)));
    [head].into_iter().chain(rows).collect()
}

/// A number of things, in the singular if it is one.
#[must_use]
pub fn counted(number: u64, thing: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{ending}")
}

/// A number with its thousands apart.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A latency in ns, with three digits.
#[must_use]
pub fn latency(ns: u64) -> String {
    let ns = ns as f64;
    let (value, unit) = match ns {
        ns if ns < 1e3 => return format!("{ns:.0} ns"),
        ns if ns < 1e6 => (ns / 1e3, "us"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    let digits = match value {
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// A span, with its two largest units.
#[must_use]
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600, seconds / 60);
    match () {
        () if days > 9_999 => "years".into(),
        () if days > 0 => format!("{days} d {} h", hours % 24),
        () if hours > 0 => format!("{hours} h {} min", minutes % 60),
        () if minutes > 0 => format!("{minutes} min {} s", seconds % 60),
        () if seconds > 0 => format!("{:.1} s", span.as_secs_f64()),
        () => latency(span.as_nanos() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![
            vec!["a".into(), "1".into()],
            vec!["größe".into(), "1000".into()],
        ];
        assert_eq!(
            table(&["name", "n"], &rows),
            "name      n\na         1\ngröße  1000\n"
        );
        assert_eq!(table(&["name", "n"], &[]), "name  n\n");
        let rows = vec![vec![grouped(1)], vec![grouped(1_000)]];
        assert_eq!(table(&["n"], &rows), "    n\n    1\n1,000\n");
    }

    #[test]
    fn what_does_not_fit_is_one_line_a_cell() {
        let rows = vec![
            vec!["orders".into(), "1".into()],
            vec!["x".into(), "2".into()],
        ];
        let heads = ["queue", "n"];
        assert_eq!(fitted(&heads, &rows, 9), table(&heads, &rows));
        assert_eq!(
            fitted(&heads, &rows, 8),
            "queue  orders\nn      1\n\nqueue  x\nn      2\n"
        );
        assert_eq!(fitted(&heads, &[], 3), "queue  n\n");
    }

    #[test]
    fn long_lines_hang() {
        assert_eq!(hanging("a  ", "b c d", 80), "a  b c d\n");
        assert_eq!(hanging("a  ", "b c d", 6), "a  b c\n   d\n");
        assert_eq!(hanging("a  ", "long b", 3), "a  long\n   b\n");
        assert_eq!(hanging("a  ", "", 80), "a  \n");
    }

    #[test]
    fn one_is_singular() {
        for (number, text) in [(0, "0 cores"), (1, "1 core"), (2, "2 cores")] {
            assert_eq!(counted(number, "core"), text);
        }
    }

    #[test]
    fn thousands() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
