//! The table of instruction counts, and the ratchet: what it takes for a count to be the table's.
//! Does not know how instructions are counted.

use std::fmt;

/// What to do about a difference.
pub const ADVICE: &str = "\
A count that grew has to be wanted, and one that fell has to stay: if it is meant, write it down with
    cargo run --release -p ringpost-counts -- bless
and say in the commit why. docs/testing.md tells what can move a count besides.";

/// A count may differ from the table's by this share of it, if the table says nothing else.
const TOLERANCE_PERCENT: f64 = 1.0;

const HEAD: &str = "\
# Instructions of each case for one unit of its work, and how many percent a count may differ.
# Written by `counts bless`; docs/testing.md says for which compiler and how to read it.
";

/// Begins the line that names the compiler.
const COMPILER: &str = "compiler\t";

/// What was counted of a case.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The case.
    pub name: String,
    /// Instructions for one unit of its work.
    pub instructions: f64,
}

#[derive(Clone, Debug, PartialEq)]
struct Row {
    figure: Figure,
    tolerance_percent: f64,
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// The compiler whose code was counted, as it calls itself.
    pub compiler: String,
    rows: Vec<Row>,
}

/// What is wrong with one case.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// It takes more instructions.
    Worse(Change),
    /// It takes fewer, which the table does not know.
    Better(Change),
    /// It was counted and is not in the table.
    NotInTable(Figure),
    /// It is in the table and was not counted.
    NotCounted(String),
}

/// From the table's count to the one that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The case.
    pub name: String,
    /// The table's count.
    pub old: f64,
    /// What was found.
    pub new: f64,
}

impl Change {
    fn percent(&self) -> f64 {
        (self.new / self.old - 1.0) * 100.0
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let change = |f: &mut fmt::Formatter<'_>, word, change: &Change| {
            let Change { name, old, new } = change;
            let percent = change.percent();
            write!(
                f,
                "{word}: {name} took {old:.1} instructions, takes {new:.1} ({percent:+.1} %)"
            )
        };
        match self {
            Self::Worse(found) => change(f, "worse", found),
            Self::Better(found) => change(f, "better", found),
            Self::NotInTable(Figure { name, instructions }) => {
                write!(
                    f,
                    "unknown: {name} is not in the table; it takes {instructions:.1}"
                )
            }
            Self::NotCounted(name) => write!(f, "missing: {name} is in the table, and no case"),
        }
    }
}

impl Table {
    /// Reads what [`Display`](fmt::Display) writes.
    ///
    /// # Errors
    /// The line that is no row, or names a case again.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut table = Self::default();
        for (number, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(compiler) = line.strip_prefix(COMPILER) {
                table.compiler = compiler.into();
                continue;
            }
            let row = parse_row(line)
                .filter(|row| table.row(&row.figure.name).is_none())
                .ok_or_else(|| format!("line {} is no row: {line:?}", number + 1))?;
            table.rows.push(row);
        }
        Ok(table)
    }

    fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.figure.name == name)
    }

    /// The table's count of a case.
    pub fn instructions(&self, name: &str) -> Option<f64> {
        self.row(name).map(|row| row.figure.instructions)
    }

    /// One line for people: what was found beside what the table says.
    pub fn line(&self, found: &Figure) -> String {
        let Figure { name, instructions } = found;
        match self.instructions(name) {
            Some(old) => {
                let percent = (instructions / old - 1.0) * 100.0;
                format!("{name:34} {old:12.1} {instructions:12.1} {percent:+7.2} %")
            }
            None => format!("{name:34} {:>12} {instructions:12.1}", "-"),
        }
    }

    /// A sentence for who compares what another compiler made; none if it is the same.
    pub fn note_compiler(&self, compiler: &str) -> Option<String> {
        let table = &self.compiler;
        (table != compiler).then(|| {
            format!("the table is that of {table}, and this is {compiler}: counts may differ")
        })
    }

    /// What of the counted cases is not as the table says.
    pub fn compare(&self, found: &[Figure]) -> Vec<Fault> {
        found
            .iter()
            .filter_map(|figure| self.judge(figure))
            .collect()
    }

    /// The same, when every case was counted: then the table may hold no other.
    pub fn compare_all(&self, found: &[Figure]) -> Vec<Fault> {
        let mut faults = self.compare(found);
        let is_counted = |row: &&Row| found.iter().any(|figure| figure.name == row.figure.name);
        let rest = self.rows.iter().filter(|row| !is_counted(row));
        faults.extend(rest.map(|row| Fault::NotCounted(row.figure.name.clone())));
        faults
    }

    fn judge(&self, found: &Figure) -> Option<Fault> {
        let Some(row) = self.row(&found.name) else {
            return Some(Fault::NotInTable(found.clone()));
        };
        let change = Change {
            name: found.name.clone(),
            old: row.figure.instructions,
            new: found.instructions,
        };
        let tolerance = row.tolerance_percent / 100.0;
        if change.new > change.old * (1.0 + tolerance) {
            Some(Fault::Worse(change))
        } else if change.new < change.old * (1.0 - tolerance) {
            Some(Fault::Better(change))
        } else {
            None
        }
    }

    /// Puts counts in the places of those of their cases, or at the end. Tolerances stay.
    pub fn enter(&mut self, found: &[Figure]) {
        for figure in found {
            let known = self
                .rows
                .iter_mut()
                .find(|row| row.figure.name == figure.name);
            match known {
                Some(row) => row.figure.instructions = figure.instructions,
                None => self.rows.push(Row {
                    figure: figure.clone(),
                    tolerance_percent: TOLERANCE_PERCENT,
                }),
            }
        }
    }

    /// Holds exactly these cases from now on, in their order. Tolerances stay.
    pub fn replace(&mut self, found: &[Figure]) {
        let before = std::mem::replace(
            self,
            Self {
                compiler: self.compiler.clone(),
                rows: Vec::new(),
            },
        );
        self.enter(found);
        for row in &mut self.rows {
            if let Some(old) = before.row(&row.figure.name) {
                row.tolerance_percent = old.tolerance_percent;
            }
        }
    }
}

fn parse_row(line: &str) -> Option<Row> {
    let mut words = line.split('\t');
    let name = words.next().filter(|name| !name.is_empty())?;
    let instructions: f64 = words.next()?.parse().ok()?;
    let tolerance_percent: f64 = words.next()?.parse().ok()?;
    let is_sane = instructions.is_finite()
        && instructions > 0.0
        && (0.0..=100.0).contains(&tolerance_percent)
        && words.next().is_none();
    is_sane.then(|| Row {
        figure: Figure {
            name: name.into(),
            instructions,
        },
        tolerance_percent,
    })
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HEAD)?;
        writeln!(f, "{COMPILER}{}", self.compiler)?;
        for row in &self.rows {
            let Figure { name, instructions } = &row.figure;
            writeln!(f, "{name}\t{instructions:.3}\t{}", row.tolerance_percent)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, instructions: f64) -> Figure {
        Figure {
            name: name.into(),
            instructions,
        }
    }

    fn table() -> Table {
        Table::parse("# a table\ncompiler\trustc 1.0\na\t1000.0\t1\nb\t200.0\t10\n")
            .expect("two rows")
    }

    fn change(new: f64) -> Change {
        Change {
            name: "a".into(),
            old: 1_000.0,
            new,
        }
    }

    #[test]
    fn a_count_holds_up_to_its_tolerance_and_fails_beyond_in_both_directions() {
        for (found, fault) in [
            (1_000.0, None),
            (1_010.0, None),
            (990.0, None),
            (1_010.1, Some(Fault::Worse(change(1_010.1)))),
            (989.9, Some(Fault::Better(change(989.9)))),
        ] {
            let faults = table().compare(&[figure("a", found)]);
            assert_eq!(faults, Vec::from_iter(fault), "{found}");
        }
        assert_eq!(
            table().compare(&[figure("b", 219.0)]),
            [],
            "it may differ more"
        );
    }

    #[test]
    fn every_case_is_in_the_table_and_nothing_else_is() {
        let all = [figure("a", 1_000.0), figure("c", 5.0)];
        let unknown = Fault::NotInTable(figure("c", 5.0));
        assert_eq!(table().compare(&all), std::slice::from_ref(&unknown));
        let missing = Fault::NotCounted("b".into());
        assert_eq!(table().compare_all(&all), [unknown, missing]);
    }

    #[test]
    fn a_fault_says_which_case_from_what_to_what() {
        assert_eq!(
            Fault::Worse(change(1_100.0)).to_string(),
            "worse: a took 1000.0 instructions, takes 1100.0 (+10.0 %)"
        );
        assert_eq!(
            Fault::Better(change(500.0)).to_string(),
            "better: a took 1000.0 instructions, takes 500.0 (-50.0 %)"
        );
    }

    #[test]
    fn what_was_blessed_holds_and_tolerances_stay() {
        let mut table = table();
        table.enter(&[figure("b", 300.0)]);
        assert_eq!(
            table.compare(&[figure("a", 1_000.0), figure("b", 329.0)]),
            []
        );
        let all = [figure("c", 7.0), figure("b", 400.0)];
        table.replace(&all);
        assert_eq!(table.compare_all(&all), []);
        assert_eq!(table.instructions("a"), None, "it is no case any more");
        assert_eq!(table.compare(&[figure("b", 439.0)]), []);
        assert_eq!(Table::parse(&table.to_string()), Ok(table.clone()));
        assert_eq!(table.note_compiler("rustc 1.0"), None);
        let note = table.note_compiler("rustc 2.0").expect("another one");
        assert!(
            note.contains("of rustc 1.0, and this is rustc 2.0"),
            "{note}"
        );
    }

    #[test]
    fn a_table_that_can_not_judge_is_refused() {
        for line in [
            "a",
            "a\t1.0",
            "a\t0.0\t1",
            "a\tNaN\t1",
            "a\t1.0\t-1",
            "a\t1.0\t1\t1",
            "\t1.0\t1",
            "a\t1.0\t1\na\t2.0\t1",
        ] {
            assert!(Table::parse(line).is_err(), "{line:?}");
        }
    }
}
