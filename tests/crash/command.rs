//! `ringpost-crash`: the long runs, for a person or a build. Does not know what they do. Exit code
//! 0: nothing was lost, 1: something was or could not be tried, 2: usage.

use std::path::PathBuf;
use std::process::ExitCode;

use ringpost_crash::file_system::Kind;
use ringpost_crash::{faults, images};
use ringpost_prove::{Outcome, kill};

const USAGE: &str = "\
usage: ringpost-crash kill    [--cycles N] [--cores N] [--producers N]
       ringpost-crash images  [--file-system ext4|xfs] [--count N] [--starts PERCENT] [--controls N]
       ringpost-crash faults  [--file-system ext4|xfs] [--shutdowns N] [--only WORDS]
all:   [--broker PROGRAM] [--seed N] [--directory DIRECTORY]

Without --broker the one that was built beside this program is run. What fails is kept in the
directory, which is a new one unless named. All but kill need root, FUSE, loop devices and the tools
of the file system.
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
        if let Some(path) = self.text("broker") {
            return Ok(PathBuf::from(path));
        }
        let beside = std::env::current_exe().map(|path| path.with_file_name("ringpost"));
        let found = beside.ok().filter(|path| path.exists());
        found.ok_or_else(|| "no broker beside this program: cargo build, or --broker".to_owned())
    }

    /// An empty directory.
    fn directory(&self) -> Outcome<PathBuf> {
        let directory = match self.text("directory") {
            Some(path) => std::fs::create_dir(path).map(|()| PathBuf::from(path)),
            None => tempfile::tempdir().map(tempfile::TempDir::keep),
        };
        directory.map_err(|error| format!("no directory: {error}"))
    }
}

fn run_kill(flags: &Flags, directory: PathBuf) -> Outcome<()> {
    let plan = kill::Plan {
        program: flags.broker()?,
        directory,
        cores: flags.number("cores", 2)? as u16,
        cycles: flags.number("cycles", 500)? as u32,
        producers: flags.number("producers", 5)? as usize,
        seed: flags.number("seed", 1)?,
        ending: kill::Ending::Kill,
        until: None,
        stop: Default::default(),
        tails: None,
        flips: 0,
    };
    println!("{}", kill::run(&plan)?);
    Ok(())
}

fn run_images(flags: &Flags, directory: PathBuf) -> Outcome<()> {
    let count = flags.number("count", 50)?;
    let plan = images::Plan {
        program: flags.broker()?,
        directory,
        file_system: Kind::named(flags.text("file-system").unwrap_or("ext4"))?,
        count: count as usize,
        starts_percent: flags.number("starts", 20)?,
        controls: flags.number("controls", (count / 5).max(20))? as usize,
        seed: flags.number("seed", 1)?,
    };
    println!("{}: {}", plan.file_system.name(), images::run(&plan)?);
    Ok(())
}

fn run_faults(flags: &Flags, directory: PathBuf) -> Outcome<()> {
    let plan = faults::Plan {
        program: flags.broker()?,
        directory,
        file_system: Kind::named(flags.text("file-system").unwrap_or("ext4"))?,
        shutdowns: flags.number("shutdowns", 20)? as u32,
        only: flags.text("only").map(str::to_owned),
        seed: flags.number("seed", 1)?,
    };
    faults::run(&plan)
}

/// Runs a command in its directory, which is kept if it fails.
fn run(command: fn(&Flags, PathBuf) -> Outcome<()>, flags: &Flags) -> Outcome<()> {
    let directory = flags.directory()?;
    command(flags, directory.clone())?;
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
        "kill" => run(run_kill, &flags),
        "images" => run(run_images, &flags),
        "faults" => run(run_faults, &flags),
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
