//! `ringpost-crash kill`: the long runs, for a person or a build. Does not know what
//! they do. Exit code 0: nothing was lost, 1: something was or could not be tried, 2: usage.

use std::path::PathBuf;
use std::process::ExitCode;

use ringpost_crash::{Outcome, kill};

const USAGE: &str = "\
usage: ringpost-crash kill   --broker PROGRAM [--cycles N] [--cores N] [--producers N] [--seed N]
";

/// Words after the command, as pairs of flag and value.
struct Flags(Vec<(String, String)>);

impl Flags {
    fn parse(words: impl Iterator<Item = String>) -> Option<Self> {
        let words: Vec<_> = words.collect();
        let (pairs, rest) = words.as_chunks::<2>();
        if !rest.is_empty() {
            return None;
        }
        let pairs = pairs.iter().map(|[flag, value]| {
            let name = flag.strip_prefix("--")?;
            Some((name.to_owned(), value.clone()))
        });
        pairs.collect::<Option<_>>().map(Self)
    }

    fn text(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(flag, _)| flag == name);
        found.map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str, default: u64) -> Outcome<u64> {
        match self.text(name) {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| format!("--{name} is {text:?}, not a number")),
        }
    }

    fn broker(&self) -> Outcome<PathBuf> {
        let path = self.text("broker").ok_or("--broker is missing")?;
        Ok(PathBuf::from(path))
    }
}

fn run_kill(flags: &Flags) -> Outcome<()> {
    let directory = tempfile::tempdir()
        .map_err(|error| format!("no directory: {error}"))?
        .keep();
    let plan = kill::Plan {
        program: flags.broker()?,
        directory: directory.clone(),
        cores: flags.number("cores", 2)? as u16,
        cycles: flags.number("cycles", 500)? as u32,
        producers: flags.number("producers", 5)? as usize,
        seed: flags.number("seed", 1)?,
        ending: kill::Ending::Kill,
    };
    println!("{}", kill::run(&plan)?);
    std::fs::remove_dir_all(&directory).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let Some(flags) = Flags::parse(words) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let outcome = match command.as_str() {
        "kill" => run_kill(&flags),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringpost-crash: {error}");
            ExitCode::FAILURE
        }
    }
}
