//! Crash images: a broker works on a disk that remembers what it was given, and then the power goes,
//! afterwards and as often as wanted. Every state that the disk may have been left in is mounted,
//! recovered by the real code and compared with what had been promised at that instant. Does not
//! know what a broker stores: it reads the messages back.
//!
//! ```text
//!  broker ─► file system ─► loop device ─► FUSE ─► log of writes and flushes ─┐ cut at any entry
//!  clients ─► history of promises, each with the length of the log then ──────┤
//!                                                                             ▼
//!  volume = all up to the last flush + any sectors of later writes ─► mount ─► recover ─► judge
//! ```
//!
//! Most images are read in this process by the code of `ringpost verify`, and some by that program;
//! some have a broker started on them, which is drained; and what that start wrote is cut off once
//! more, as a crash during recovery. Then the control: the same log from a disk that lied about its
//! last flushes, which must be noticed.

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ringpost_check::{Event, Level};

use crate::device::{Device, Log};
use crate::file_system::{Kind, Mounted};
use crate::recover;
use crate::volume::Volume;
use ringpost_prove::Outcome;
use ringpost_prove::broker::Program;
use ringpost_prove::drain::drain;
use ringpost_prove::history::{History, judge, write};
use ringpost_prove::kill::{self, wait_for_events};
use ringpost_prove::link::Link;
use ringpost_prove::offline::{Messages, deliver, messages};
use ringpost_prove::random::Random;
use ringpost_prove::scene::{Scene, Volatile};
use ringpost_prove::tool;
use ringpost_prove::worker::{Crew, Shared};

/// Most images of one recording.
const IMAGES_PER_RECORDING: usize = 100;
/// Times that the broker is started in a recording.
const LIVES: u32 = 3;
/// Producers of a load.
const PRODUCERS: usize = 5;
/// Brokers and file systems that are looked at at once.
const BENCHES: usize = 3;
/// How many of 100 images are read by the program unless a broker is started on them.
const READ_BY_PROGRAM_PERCENT: usize = 20;
/// Flushes that a lying disk has only said it did.
const LIES: usize = 20;
/// Entries of the log after which a promise is surely not about what was flushed before them: a
/// client may be slow to hear.
const PROMISE_DELAY: u64 = 10;
/// Positions looked at for each cut that is wanted.
const TRIES_MAX: usize = 20;
/// Share of the control that must be noticed.
const CAUGHT_PERCENT_MIN: usize = 80;

/// What a run of images is asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The broker's program.
    pub program: PathBuf,
    /// Where disks are mounted and what fails is kept; emptied by the caller.
    pub directory: PathBuf,
    /// What lies between broker and disk.
    pub file_system: Kind,
    /// Images.
    pub count: usize,
    /// How many of 100 images have a broker started on them.
    pub starts_percent: u64,
    /// Images of a disk that lied.
    pub controls: usize,
    /// Plans the run.
    pub seed: u64,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Images that were recovered in this process.
    pub images: usize,
    /// Images that were recovered by `ringpost verify --messages`.
    pub programs: usize,
    /// Images on which a broker was started.
    pub starts: usize,
    /// Images of those starts, cut off during recovery.
    pub recoveries: usize,
    /// Images of a disk that lied.
    pub controls: usize,
    /// Those that were noticed.
    pub caught: usize,
    /// Writes, bytes and flushes that were recorded.
    pub recorded: (u64, u64, u64),
    /// Publishes that were confirmed, and acks, in all recordings.
    pub promised: (u64, u64),
    /// What was at stake in all images together, those of recoveries and of the control left out.
    pub stakes: Stakes,
    /// Time spent.
    pub spent: Duration,
}

/// What a power cut may break.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stakes {
    /// Publishes that were confirmed as durable by then.
    pub publishes: u64,
    /// Acks that were confirmed by then.
    pub acks: u64,
    /// Writes that the disk was given and had not flushed.
    pub unflushed: u64,
    /// Cuts with such writes.
    pub cuts_with_unflushed: u64,
    /// Messages in queues, as recovery finds them.
    pub messages: u64,
}

impl Stakes {
    fn add(&mut self, other: Self) {
        self.publishes += other.publishes;
        self.acks += other.acks;
        self.unflushed += other.unflushed;
        self.cuts_with_unflushed += other.cuts_with_unflushed;
        self.messages += other.messages;
    }
}

impl Report {
    /// Power cuts of a disk that does not lie, those of recoveries left out.
    #[must_use]
    pub fn cuts(&self) -> usize {
        self.images + self.programs + self.starts
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = self.cuts() + self.recoveries + self.controls;
        let (writes, bytes, flushes) = self.recorded;
        let mean = |sum: u64| sum / self.cuts().max(1) as u64;
        write!(
            f,
            "recorded {writes} writes ({} MiB) and {flushes} flushes under {} confirmed publishes and {} \
             confirmed acks; {} images, {} of them with a start of the broker, {} cut off in its recovery \
             and {} read by its program: 0 lost; at stake in each on average: {} confirmed publishes, {} \
             confirmed acks, {} messages in queues; {} images with unflushed writes, {:.1} in each on \
             average; a disk that lies: {} of {} noticed; {:.1} images/s, {:.0} s",
            bytes >> 20,
            self.promised.0,
            self.promised.1,
            self.cuts() + self.recoveries,
            self.starts,
            self.recoveries,
            self.programs,
            mean(self.stakes.publishes),
            mean(self.stakes.acks),
            mean(self.stakes.messages),
            self.stakes.cuts_with_unflushed,
            self.stakes.unflushed as f64 / self.cuts().max(1) as f64,
            self.caught,
            self.controls,
            all as f64 / self.spent.as_secs_f64(),
            self.spent.as_secs_f64(),
        )
    }
}

/// What an image shows.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Finding {
    /// Every promise is kept.
    Sound,
    /// The checker says which one is not.
    Broken(String),
    /// It cannot be mounted, read, started or drained.
    Unusable(String),
}

/// What a broker did on a disk, and what it promised meanwhile.
struct Recording {
    log: Log,
    history: Vec<(u64, Event<'static>)>,
    cores: u16,
}

/// One power cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    /// Its number in the run: what the cache held is decided by that.
    number: u64,
    position: u64,
    /// Flushes that the disk has only said it did.
    lies: usize,
    look: Look,
}

/// How an image is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Look {
    /// Read in this process.
    Read,
    /// Read by `ringpost verify --messages`.
    Program,
    /// A broker is started on it.
    Start,
}

/// An image that was looked at.
struct Seen {
    cut: Cut,
    finding: Finding,
    stakes: Stakes,
}

/// Runs a plan.
///
/// # Errors
/// An image on which a promise is broken, and where it is kept; a control that saw too little; or
/// what cannot be run here.
pub fn run(plan: &Plan) -> Outcome<Report> {
    let start = Instant::now();
    let mut random = Random::new(plan.seed);
    let mut report = Report::default();
    let mut benches = (0..BENCHES.min(plan.count))
        .map(|number| Bench::set_up(plan, number))
        .collect::<Outcome<Vec<_>>>()?;
    // Brokers of one and of two cores in turn.
    let recordings = plan.count.div_ceil(IMAGES_PER_RECORDING).max(2);
    let mut recording = record(plan, 0, random.fork())?;
    for number in 0..recordings {
        let share = |of: usize| of * number / recordings..of * (number + 1) / recordings;
        report.add(&recording);
        let honest = cuts(plan, &recording, share(plan.count), 0, &mut random);
        let lying = cuts(plan, &recording, share(plan.controls), LIES, &mut random);
        let following = random.fork();
        // The next recording is made meanwhile: it waits for its disk most of the time.
        let (seen, next) = std::thread::scope(|scope| {
            let next = (number + 1 < recordings)
                .then(|| scope.spawn(|| record(plan, number + 1, following)));
            let mut look_at = |cuts: &[Cut]| look_at_all(&mut benches, &recording, cuts);
            let seen = look_at(&honest).and_then(|honest| Ok((honest, look_at(&lying)?)));
            (seen, next.map(std::thread::ScopedJoinHandle::join))
        });
        let (honest, lying) = seen?;
        for seen in honest.into_iter().chain(lying) {
            report.count(&seen);
            if let (Cut { lies: 0, .. }, Finding::Broken(what) | Finding::Unusable(what)) =
                (seen.cut, &seen.finding)
            {
                return Err(format!("seed {}, {:?}: {what}", plan.seed, seen.cut));
            }
        }
        if let Some(next) = next {
            recording = next.map_err(|_| "a recording panicked".to_owned())??;
        }
    }
    report.spent = start.elapsed();
    if report.cuts() < plan.count
        || report.controls < plan.controls
        || report.caught * 100 < report.controls * CAUGHT_PERCENT_MIN
        || report.stakes.cuts_with_unflushed * 2 < report.cuts() as u64
    {
        return Err(format!("this harness is blind: {report}"));
    }
    Ok(report)
}

impl Report {
    fn add(&mut self, recording: &Recording) {
        let (writes, bytes, flushes) = recording.log.counts();
        self.recorded.0 += writes;
        self.recorded.1 += bytes;
        self.recorded.2 += flushes;
        let (publishes, acks) = promised(recording.history.iter().map(|(_, event)| event));
        self.promised.0 += publishes;
        self.promised.1 += acks;
    }

    fn count(&mut self, seen: &Seen) {
        if seen.cut.lies > 0 {
            self.controls += 1;
            self.caught += usize::from(matches!(seen.finding, Finding::Broken(_)));
            return;
        }
        self.stakes.add(seen.stakes);
        match seen.cut.look {
            Look::Read => self.images += 1,
            Look::Program => self.programs += 1,
            Look::Start => {
                self.starts += 1;
                self.recoveries += 1;
            }
        }
    }
}

/// Publishes that were confirmed as durable, and acks.
fn promised<'a>(events: impl Iterator<Item = &'a Event<'static>>) -> (u64, u64) {
    let (mut publishes, mut acks) = (0, 0);
    for event in events {
        match event {
            Event::Confirmed {
                first,
                last,
                level: Level::Durable,
                ..
            } => publishes += last - first + 1,
            Event::AckConfirmed { .. } => acks += 1,
            _ => {}
        }
    }
    (publishes, acks)
}

/// Lets a broker live some lives on a fresh file system, under load.
fn record(plan: &Plan, number: usize, mut random: Random) -> Outcome<Recording> {
    let directory = plan.directory.join(format!("recording-{number}"));
    std::fs::create_dir_all(&directory).map_err(|error| format!("no directory: {error}"))?;
    let device = Device::serve(&directory, Volume::new(plan.file_system.bytes()))?;
    plan.file_system.make(device.path())?;
    let point = directory.join("mounted");
    let mounted = Mounted::mount(plan.file_system, device.path(), &point)?;
    let cores = 1 + (number % 2) as u16;
    let mut program = kill::program(&plan.program, &directory, cores);
    program.data = point.join("data");
    let scene = Scene::new(Volatile::Avoid);
    let shared = Shared::new(History::new(device.clock()), scene);
    let mut crew = Crew::new(random.number(), PRODUCERS);
    for life in 0..LIVES {
        let mut broker = program.start()?;
        if life == 0 {
            shared.scene.declare(&mut Link::open(broker.address())?)?;
            // Nothing that is there by now is torn: not what making the file system wrote, nor what
            // mounting it did.
            tool::command("sync", ["-f"]).arg(&point).done()?;
            device.begin();
        }
        let publishes_max = random.between(100, 600);
        let load = crew.start(&shared, broker.address(), publishes_max);
        wait_for_events(
            &shared,
            &mut broker,
            &load,
            random.between(1_000, 5_000) as usize,
        )?;
        if random.percent(30) {
            load.stop(&shared, &mut crew)?;
            broker.terminate()?;
        } else {
            broker.kill()?;
            load.join(&mut crew)?;
        }
        shared.history.record([Event::Crash]);
    }
    let log = device.log();
    mounted.unmount()?;
    drop(device);
    let text = program.log_text()?;
    if let Some(line) = text.lines().find(|line| kill::is_alarming(line)) {
        return Err(format!("the broker's log says: {line}"));
    }
    let (writes, _, flushes) = log.counts();
    if flushes < 10 || writes < 10 {
        return Err("the disk was hardly written: does the loop device flush?".to_owned());
    }
    Ok(Recording {
        log,
        history: shared.history.with_positions(),
        cores,
    })
}

/// Power cuts, in the order of the log: half of them anywhere, half where much lies in the cache. If
/// the disk lies, then where somebody was promised something that is lost with it.
fn cuts(
    plan: &Plan,
    recording: &Recording,
    numbers: Range<usize>,
    lies: usize,
    random: &mut Random,
) -> Vec<Cut> {
    let (first, last) = recording.log.positions();
    let may_show = |position: &u64| {
        let flushed = recording.log.flushed(*position, lies);
        lies == 0 || recording.promises_between(flushed + PROMISE_DELAY, *position)
    };
    let mut positions: Vec<u64> = (0..numbers.len() * TRIES_MAX)
        .map(|_| {
            let position = random.between(first + 1, last);
            match random.percent(50) {
                true => recording.log.before_flush(position),
                false => position,
            }
        })
        .filter(may_show)
        .take(numbers.len())
        .collect();
    positions.sort_unstable();
    let cut = |(number, position)| Cut {
        number: number as u64,
        position,
        lies,
        look: match lies {
            0 if is_chosen(number, plan.starts_percent as usize) => Look::Start,
            0 if is_chosen(number, READ_BY_PROGRAM_PERCENT) => Look::Program,
            _ => Look::Read,
        },
    };
    numbers.zip(positions).map(cut).collect()
}

/// Whether a number is one of those `percent` of 100 that are spread evenly.
fn is_chosen(number: usize, percent: usize) -> bool {
    (number + 1) * percent / 100 > number * percent / 100
}

/// Looks at images of a recording, on all benches at once.
fn look_at_all(benches: &mut [Bench], recording: &Recording, cuts: &[Cut]) -> Outcome<Vec<Seen>> {
    let stride = benches.len();
    std::thread::scope(|scope| {
        let threads: Vec<_> = benches
            .iter_mut()
            .enumerate()
            .map(|(first, bench)| {
                let mine = cuts.iter().skip(first).step_by(stride).copied();
                scope.spawn(move || bench.look_at(recording, mine))
            })
            .collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| "a bench panicked".to_owned())??);
        }
        Ok(all)
    })
}

/// Where images are looked at, one after another: a disk that becomes any of them.
struct Bench {
    device: Device,
    file_system: Kind,
    directory: PathBuf,
    program: Program,
    seed: u64,
}

impl Bench {
    fn set_up(plan: &Plan, number: usize) -> Outcome<Self> {
        let directory = plan.directory.join(format!("bench-{number}"));
        std::fs::create_dir_all(&directory).map_err(|error| format!("no directory: {error}"))?;
        let device = Device::serve(&directory, Volume::new(plan.file_system.bytes()))?;
        let mut program = kill::program(&plan.program, &directory, 1);
        program.data = directory.join("mounted/data");
        Ok(Self {
            device,
            file_system: plan.file_system,
            directory,
            program,
            seed: plan.seed,
        })
    }

    fn look_at(
        &mut self,
        recording: &Recording,
        cuts: impl Iterator<Item = Cut>,
    ) -> Outcome<Vec<Seen>> {
        self.program.cores = recording.cores;
        let mut replay = recording.log.replay();
        let mut all = Vec::new();
        for cut in cuts {
            let mut random = Random::new(self.seed ^ cut.number.rotate_left(32));
            let volume = replay.cut(cut.position, cut.lies, &mut random);
            let events = recording.up_to(cut.position);
            let (publishes, acks) = promised(events.iter());
            let unflushed = recording.log.unflushed(cut.position);
            let (finding, messages) = match cut.look {
                Look::Start => self.start(&volume, &events, &mut random)?,
                look => self.read(&volume, &events, look)?,
            };
            let is_over = cut.lies == 0 && finding != Finding::Sound;
            let finding = match is_over {
                true => self.keep(&volume, cut, &events, finding)?,
                false => finding,
            };
            all.push(Seen {
                cut,
                finding,
                stakes: Stakes {
                    publishes,
                    acks,
                    unflushed,
                    cuts_with_unflushed: u64::from(unflushed > 0),
                    messages,
                },
            });
            if is_over {
                break;
            }
        }
        Ok(all)
    }

    /// Keeps an image and the history up to it for whoever looks into it.
    fn keep(
        &self,
        volume: &Volume,
        cut: Cut,
        events: &[Event<'static>],
        finding: Finding,
    ) -> Outcome<Finding> {
        let image = self.directory.join(format!("{}.image", cut.number));
        let history = self.directory.join(format!("{}.history", cut.number));
        volume.save(&image)?;
        write(&history, events)?;
        let kept = format!(
            "\nimage: {}, history: {}",
            image.display(),
            history.display()
        );
        Ok(match finding {
            Finding::Sound => Finding::Sound,
            Finding::Broken(what) => Finding::Broken(what + &kept),
            Finding::Unusable(what) => Finding::Unusable(what + &kept),
        })
    }

    fn mount(&self, volume: &Volume) -> Outcome<Mounted> {
        self.device.load(volume.clone());
        let point = self.directory.join("mounted");
        let mounted = Mounted::mount(self.file_system, self.device.path(), &point)?;
        // What mounting wrote is not torn: file systems have their own tests.
        self.device.begin();
        Ok(mounted)
    }

    /// What recovery finds in the data directory that is mounted.
    fn found(&self, look: Look) -> Outcome<Messages> {
        match look {
            Look::Read => recover::messages(&self.program.data),
            Look::Program | Look::Start => messages(&self.program, &self.directory),
        }
    }

    /// Reads the messages of an image without starting a broker; what came of that, and how many
    /// there were.
    fn read(
        &self,
        volume: &Volume,
        events: &[Event<'static>],
        look: Look,
    ) -> Outcome<(Finding, u64)> {
        let mounted = match self.mount(volume) {
            Ok(mounted) => mounted,
            Err(why) => return Ok((Finding::Unusable(why), 0)),
        };
        let found = self.found(look);
        mounted.unmount()?;
        let found = match found {
            Ok(found) => found,
            Err(why) => return Ok((Finding::Unusable(why), 0)),
        };
        let shared = Shared::after_crash(events.to_vec(), Scene::new(Volatile::Avoid));
        deliver(&shared, &found)?;
        let count = found.values().map(|messages| messages.len() as u64).sum();
        Ok((verdict(&shared), count))
    }

    /// Starts a broker on an image and takes everything out; then cuts off that start. What came of
    /// that, and how many messages there were.
    fn start(
        &self,
        volume: &Volume,
        events: &[Event<'static>],
        random: &mut Random,
    ) -> Outcome<(Finding, u64)> {
        let mounted = match self.mount(volume) {
            Ok(mounted) => mounted,
            Err(why) => return Ok((Finding::Unusable(why), 0)),
        };
        let shared = Shared::after_crash(events.to_vec(), Scene::new(Volatile::Avoid));
        let clock = self.device.clock();
        let drained = self.program.start().and_then(|broker| {
            let ready = clock();
            drain(&shared, broker.address())?;
            broker.kill()?;
            Ok(ready)
        });
        let left = self.found(Look::Start);
        let log = self.device.log();
        mounted.unmount()?;
        let ready = match drained {
            Ok(ready) => ready,
            Err(why) => return Ok((Finding::Unusable(why), 0)),
        };
        match left {
            Ok(left) if left.is_empty() => {}
            Ok(left) => {
                let what = format!("{} messages came back after they were acked", left.len());
                return Ok((Finding::Broken(what), 0));
            }
            Err(why) => return Ok((Finding::Unusable(why), 0)),
        }
        let finding = verdict(&shared);
        if finding != Finding::Sound {
            return Ok((finding, 0));
        }
        let (first, _) = log.positions();
        let position = random.between(first, ready);
        let volume = log.replay().cut(position, 0, random);
        // That start has crashed, too: what it recorded of earlier lives may count for one more.
        let mut events = events.to_vec();
        events.push(Event::Crash);
        self.read(&volume, &events, Look::Read)
    }
}

impl Recording {
    /// What had happened when the log was this long.
    fn up_to(&self, position: u64) -> Vec<Event<'static>> {
        let end = self.history.partition_point(|(at, _)| *at <= position);
        self.history[..end]
            .iter()
            .map(|(_, event)| *event)
            .collect()
    }

    /// Whether a client was promised something between two lengths of the log.
    fn promises_between(&self, first: u64, last: u64) -> bool {
        let is_promise = |event: &Event<'_>| match event {
            Event::Confirmed { level, .. } => *level == Level::Durable,
            Event::AckConfirmed { .. } => true,
            _ => false,
        };
        let start = self.history.partition_point(|(at, _)| *at <= first);
        let end = self.history.partition_point(|(at, _)| *at <= last);
        self.history[start..end.max(start)]
            .iter()
            .any(|(_, event)| is_promise(event))
    }
}

fn verdict(shared: &Shared) -> Finding {
    let verdict = judge(&shared.history.all());
    match verdict.is_clean() {
        true => Finding::Sound,
        false => Finding::Broken(verdict.to_string()),
    }
}
