//! The order of a comparison: who runs when, what is kept, what is drawn. Does not judge.

use std::error::Error;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringpost_bench::floor;
use ringpost_load::live::Live;
use ringpost_load::machine;
use ringpost_load::report::{percentile, rate_of};
use ringpost_load::session::Session;

use super::book::{Book, Head, Run};
use super::cells::{self, Cell};
use super::peers::{self, Durability, Place, Product, SETTINGS, Setting};
use super::{page, verdict};
use crate::Args;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Bytes of one write of the device's floor: the block of a durable broker at the rates of the open loops.
const FLOOR_WRITE_BYTES: usize = 4096;
/// Bytes of an echo there and back: a message of the open loops with its frame, and a confirm.
const FLOOR_ECHO_BYTES: (usize, usize) = (cells::OPEN_BYTES as usize + 128, 64);

/// Measures what is missing and draws the page.
///
/// # Errors
/// If names are not known, the directory is not there, the book is of another comparison, or the disk
/// fails. A broker that cannot be run is no error: its rows say why.
pub fn run(args: &Args) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| default_out(args));
    if args.draw {
        return draw(&Book::read(&out)?, &out);
    }
    let bench = Bench::new(args)?;
    let mut book = Book::open(&out, bench.head()?)?;
    println!("# results go to {}", out.display());
    let saturation = bench.pilot(&mut book)?;
    for round in 1..=args.rounds {
        bench.floor(&mut book, round)?;
        for setting in bench.order(round) {
            bench.setting(&mut book, &setting, &bench.cells, round, saturation)?;
        }
        draw(&book, &out)?;
    }
    draw(&book, &out)?;
    print!("{}", verdict::Text(&book));
    println!("\nthe page: {}", out.join("versus.html").display());
    Ok(())
}

fn draw(book: &Book, out: &Path) -> Result<()> {
    let path = out.join("versus.html");
    std::fs::write(&path, page::page(book))?;
    Ok(())
}

/// `bench/results/<date>-<host>` of the repository, or of the working directory.
fn default_out(args: &Args) -> PathBuf {
    let host = args.host.clone().unwrap_or_else(|| {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        name.trim().to_owned()
    });
    let now = machine::utc(SystemTime::now());
    let date = now.split(' ').next().unwrap_or_default();
    PathBuf::from("bench/results").join(format!("{date}-{host}"))
}

struct Bench<'a> {
    args: &'a Args,
    ringpost: PathBuf,
    settings: Vec<Setting>,
    cells: Vec<Cell>,
    home: tempfile::TempDir,
}

impl<'a> Bench<'a> {
    fn new(args: &'a Args) -> Result<Self> {
        let ringpost = match &args.broker {
            Some(path) => path.clone(),
            None => std::env::current_exe()?.with_file_name("ringpost"),
        };
        if !ringpost.exists() {
            let text = "there is no broker at";
            return Err(format!(
                "{text} {}; build it (cargo build --release) or name it with --broker",
                ringpost.display()
            )
            .into());
        }
        if args.broker_cpu == args.load_cpu {
            return Err("broker and load need a CPU each: --broker-cpu and --load-cpu".into());
        }
        if args.rounds == 0 {
            return Err("0 rounds are nothing to compare".into());
        }
        let settings: Vec<_> = match args.only.is_empty() {
            true => SETTINGS.to_vec(),
            false => args
                .only
                .iter()
                .map(|name| Setting::of(name).ok_or_else(|| unknown("setting", name, &names())))
                .collect::<std::result::Result<_, _>>()?,
        };
        let all = cells::all();
        let cells = match args.cells.is_empty() {
            true => all,
            false => args
                .cells
                .iter()
                .map(|name| {
                    let there = all.iter().find(|cell| cell.name() == *name);
                    let names: Vec<_> = all.iter().map(Cell::name).collect();
                    there
                        .copied()
                        .ok_or_else(|| unknown("cell", name, &names.join(", ")))
                })
                .collect::<std::result::Result<_, _>>()?,
        };
        if args.install {
            peers::install(&settings, &ringpost)?;
        }
        let home = tempfile::Builder::new()
            .prefix("versus-")
            .tempdir_in(&args.directory)
            .map_err(|error| format!("no room in {}: {error}", args.directory.display()))?;
        Ok(Self {
            args,
            ringpost,
            settings,
            cells,
            home,
        })
    }

    fn head(&self) -> Result<Head> {
        let ringpost = Setting::of("ringpost").ok_or("it is a setting")?;
        Ok(Head {
            seconds: self.args.seconds,
            warm_up: self.args.warm_up,
            broker_cpu: self.args.broker_cpu,
            load_cpu: self.args.load_cpu,
            ringpost: format!(
                "{} ({:016x})",
                ringpost.version(&self.ringpost)?,
                digest(&self.ringpost)?
            ),
            machine: machine::look(&[self.args.load_cpu]),
        })
    }

    /// Who runs after whom in a round: each round begins with another, and every other one goes backwards,
    /// so that what drifts meets all.
    fn order(&self, round: u32) -> Vec<Setting> {
        let mut order = self.settings.clone();
        let by = (round as usize - 1) % order.len();
        order.rotate_left(by);
        if round.is_multiple_of(2) {
            order.reverse();
        }
        order
    }

    /// The rate of the best durable peer, of which the open loops are shares; none if no peer is there.
    fn pilot(&self, book: &mut Book) -> Result<Option<f64>> {
        let cell = cells::pilot();
        for setting in &self.settings {
            let is_peer = setting.product != Product::Ringpost;
            if is_peer && setting.durability == Durability::Synced {
                self.setting(book, setting, &[cell], 0, None)?;
            }
        }
        // Rates that were run once stay: a peer that is added later does not move them.
        if let Some(rate) = book.saturation() {
            return Ok(Some(rate));
        }
        let rates = book
            .runs
            .iter()
            .filter(|run| run.round == 0 && run.is_valid());
        Ok(rates.map(|run| run.achieved).reduce(f64::max))
    }

    /// What device and loopback do without a broker.
    fn floor(&self, book: &mut Book, round: u32) -> Result<()> {
        let time = Duration::from_secs_f64(self.args.seconds.min(2.0));
        let (broker, load) = (self.args.broker_cpu, self.args.load_cpu);
        if !book.has("device", "floor", round) {
            let (at, bytes) = (self.home.path(), FLOOR_WRITE_BYTES);
            let found = floor::device(at, bytes, 1, broker, time)?;
            println!(
                "{:>2} {:<17} p50 {}",
                round,
                "device",
                percentile(&found, 0.5)
            );
            book.add(Run::floor("device", round, now_ms(), found))?;
        }
        if !book.has("loopback", "floor", round) {
            let (there, back) = FLOOR_ECHO_BYTES;
            // The faster of the two counts: the floor is the best that is possible.
            let sleeping = floor::echo(there, back, (broker, load), false, time)?;
            let spinning = floor::echo(there, back, (broker, load), true, time)?;
            let is_faster = spinning.value_at_quantile(0.5) < sleeping.value_at_quantile(0.5);
            let found = if is_faster { spinning } else { sleeping };
            println!(
                "{:>2} {:<17} p50 {}",
                round,
                "loopback",
                percentile(&found, 0.5)
            );
            book.add(Run::floor("loopback", round, now_ms(), found))?;
        }
        Ok(())
    }

    /// Runs what is missing of the cells of a setting, with one start of its broker.
    fn setting(
        &self,
        book: &mut Book,
        setting: &Setting,
        cells: &[Cell],
        round: u32,
        saturation: Option<f64>,
    ) -> Result<()> {
        let is_missing = |cell: &&Cell| !book.has(setting.name, &cell.name(), round);
        let missing: Vec<_> = cells.iter().filter(is_missing).copied().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let version = match setting.version(&self.ringpost) {
            Ok(version) => version,
            Err(why) => {
                println!("{round:>2} {:<17} not measured: {why}", setting.name);
                for cell in missing {
                    book.add(Run::failed(
                        setting.name,
                        &cell.name(),
                        round,
                        "",
                        why.clone(),
                    ))?;
                }
                return Ok(());
            }
        };
        let place = Place {
            directory: self.home.path().join(setting.name),
            cpu: self.args.broker_cpu,
            ringpost: self.ringpost.clone(),
        };
        let broker = match setting.start(&place) {
            Ok(broker) => broker,
            Err(error) => {
                println!("{round:>2} {:<17} not started: {error}", setting.name);
                for cell in missing {
                    let why = format!("it could not be started: {error}");
                    book.add(Run::failed(setting.name, &cell.name(), round, "", why))?;
                }
                return Ok(remove(&place.directory)?);
            }
        };
        for cell in missing {
            let run = match cell.parameters(saturation) {
                None => {
                    let why = "no durable peer was measured whose rate it would be a share of";
                    Run::failed(setting.name, &cell.name(), round, &version, why.into())
                }
                Some(parameters) => {
                    let parameters = setting.parameters(parameters, &broker);
                    match self.one(parameters, &cell, round) {
                        Ok(results) => {
                            Run::of(setting.name, &cell.name(), round, &version, &results)
                        }
                        Err(error) => Run::failed(
                            setting.name,
                            &cell.name(),
                            round,
                            &version,
                            format!("{error}"),
                        ),
                    }
                }
            };
            tell(&run);
            book.add(run)?;
        }
        if let Err(error) = broker.end() {
            println!("   {}: {error}", setting.name);
        }
        Ok(remove(&place.directory)?)
    }

    fn one(
        &self,
        parameters: ringpost_load::params::Parameters,
        cell: &Cell,
        round: u32,
    ) -> ringpost_load::Result<ringpost_load::result::Results> {
        let parameters = ringpost_load::params::Parameters {
            prefix: format!("{}-{round}-", cell.name()),
            warm_up: self.args.warm_up,
            duration: self.args.seconds,
            cpus: vec![self.args.load_cpu],
            patience: 20.0,
            ..parameters
        };
        Session::whole(parameters, &mut Live::Quiet)
    }
}

/// A number that tells one build of a program from another.
fn digest(program: &Path) -> std::io::Result<u64> {
    let mut hasher = std::hash::DefaultHasher::new();
    std::fs::read(program)?.hash(&mut hasher);
    Ok(hasher.finish())
}

/// Removes the data of a broker, if there are any.
fn remove(directory: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

fn names() -> String {
    SETTINGS.map(|setting| setting.name).join(", ")
}

fn unknown(what: &str, name: &str, there: &str) -> String {
    format!("no {what} {name}; there are {there}")
}

/// One line of the terminal.
fn tell(run: &Run) {
    let start = format!("{:>2} {:<17} {:<18}", run.round, run.setting, run.cell);
    if let Some(why) = &run.invalid {
        println!("{start} not counted: {why}");
        return;
    }
    let times = |times: &Option<ringpost_load::result::Times>| match times {
        Some(times) => format!(
            "p50 {} p99 {}",
            percentile(&times.0, 0.5),
            percentile(&times.0, 0.99)
        ),
        None => "–".into(),
    };
    let faults = if run.faults > 0 {
        "; MESSAGES LOST, DOUBLED, REFUSED OR OUT OF ORDER"
    } else {
        ""
    };
    println!(
        "{start} {:>9}/s, end to end {}, load CPU {:.0} %{faults}",
        rate_of(run.achieved),
        times(&run.end_to_end),
        run.load_busy * 100.0
    );
}
