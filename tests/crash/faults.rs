//! A disk that fails while a broker works on it: each scenario says what the broker must do then,
//! and ends with a power cut, a start and the judgement of everything that was promised. Does not
//! know how a broker notices.
//!
//! | scenario | the disk | the broker |
//! |---|---|---|
//! | write error | fails a write, and all that follow | stops its journal and says so; a restart recovers |
//! | one write error | fails one write of the journal | the same: it writes nothing after that |
//! | torn write | is slow, fails a write half-way, and all that follow | the same |
//! | flush error | fails every flush | the same |
//! | file system gives up | is well, but its file system turns read-only or stops | the same |
//! | hang | answers nothing for half a minute | promises nothing meanwhile, and goes on |
//! | slow disk | takes 20 ms for each request | goes on |
//! | throttled disk | answers five requests a second | goes on |
//! | full disk | no room but in slots that are there | refuses publishes, takes acks, resumes by itself |
//! | full from the start | no room at all | says so and ends; starts when there is room |
//! | lying disk | forgets what it said was flushed | starts; what is lost is found to be lost |
//! | read error | cannot read a message | its queue refuses service, the others serve; all is there when it can |
//! | bit flip | flips a bit of a message at rest | its queue refuses service, and nothing else is lost |
//! | misdirected block | writes a block over one inside a message | the same |
//! | misdirected blocks | writes blocks over any of the journal | what is damaged is refused and named, all else serves |
//! | shutdown | the file system stops at once, again and again | a restart recovers |

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringpost_check::{Event, Level};
use ringpost_wire::{Code, FrameKind};

mod at_rest;

use crate::device::{Device, Faults};
use crate::file_system::{Access, Kind, Mounted};
use crate::volume::Volume;
use ringpost_prove::Outcome;
use ringpost_prove::broker::{Broker, Program};
use ringpost_prove::consumer::{Consumer, Habit};
use ringpost_prove::drain::drain;
use ringpost_prove::history::{History, judge, write};
use ringpost_prove::kill::{self, wait_for_events};
use ringpost_prove::link::Link;
use ringpost_prove::producer::Producer;
use ringpost_prove::random::Random;
use ringpost_prove::scene::{Scene, Volatile};
use ringpost_prove::tool;
use ringpost_prove::worker::{Crew, Load, Shared};

/// Producers of a load.
const PRODUCERS: usize = 4;
/// Durable confirms that say something: with fewer a scenario shows nothing.
const CONFIRMS_MIN: usize = 20;
/// How long after an error of the disk nothing more is to be expected of it.
const SETTLED: Duration = Duration::from_secs(1);
/// How long a disk hangs.
const HANG: Duration = Duration::from_secs(30);
/// How long a broker may take to notice something or to go on.
const PATIENCE: Duration = Duration::from_secs(60);
/// Publishes of each producer in a load; more than any scenario waits for.
const PUBLISHES_MAX: u64 = 20_000;

/// What a run of faults is asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The broker's program.
    pub program: PathBuf,
    /// Where disks are mounted and what fails is kept; emptied by the caller.
    pub directory: PathBuf,
    /// What lies between broker and disk.
    pub file_system: Kind,
    /// Times that the file system is shut down.
    pub shutdowns: u32,
    /// Words of the names of the scenarios that are wanted, if not all are.
    pub only: Option<String>,
    /// Plans the run.
    pub seed: u64,
}

/// A scenario: its name, and what it does.
type Scenario = (&'static str, fn(&mut Rig, &Plan) -> Outcome<()>);

/// All scenarios.
const SCENARIOS: &[Scenario] = &[
    ("write error", write_error),
    ("one write error", one_write_error),
    ("torn write", torn_write),
    ("flush error", flush_error),
    ("file system gives up", file_system_gives_up),
    ("hang", hang),
    ("slow disk", slow_disk),
    ("throttled disk", throttled_disk),
    ("full disk", full_disk),
    ("full from the start", full_from_the_start),
    ("lying disk", lying_disk),
    ("read error", at_rest::read_error),
    ("bit flip", at_rest::bit_flip),
    ("misdirected block", at_rest::misdirected_block),
    ("misdirected blocks", at_rest::misdirected_blocks),
    ("shutdown", shutdown),
];

/// Runs all scenarios and prints what came of each.
///
/// # Errors
/// The first that did not go as it must, and where its history is.
pub fn run(plan: &Plan) -> Outcome<()> {
    let is_wanted = |name: &str| {
        plan.only
            .as_ref()
            .is_none_or(|words| name.contains(words.as_str()))
    };
    for (number, (name, scenario)) in SCENARIOS.iter().enumerate() {
        if !is_wanted(name) {
            continue;
        }
        let start = Instant::now();
        let directory = plan.directory.join(format!("fault-{number}"));
        let seed = plan.seed + number as u64;
        let mut rig = Rig::set_up(plan, directory, seed)?;
        scenario(&mut rig, plan).map_err(|error| {
            let history = rig.directory.join("history.txt");
            let kept = write(&history, &rig.shared.history.all());
            let kept = kept.map_or_else(|why| why, |()| history.display().to_string());
            format!("{name}, seed {}: {error}\nhistory: {kept}", plan.seed)
        })?;
        let verdict = judge(&rig.shared.history.all());
        println!(
            "{}: {name}: right; {}; {} errors of the disk, {} promises broken; {:.1} s",
            plan.file_system.name(),
            verdict.to_string().lines().next().unwrap_or_default(),
            rig.device.errors(),
            verdict.violation_count,
            start.elapsed().as_secs_f64()
        );
    }
    Ok(())
}

/// A disk, a file system on it, a broker's directory in that, and what clients saw.
struct Rig {
    /// Before the disk, so that it is unmounted before the disk goes.
    mounted: Option<Mounted>,
    device: Device,
    file_system: Kind,
    directory: PathBuf,
    program: Program,
    shared: Arc<Shared>,
    crew: Crew,
    random: Random,
}

impl Rig {
    fn set_up(plan: &Plan, directory: PathBuf, seed: u64) -> Outcome<Self> {
        std::fs::create_dir_all(&directory).map_err(|error| format!("no directory: {error}"))?;
        let device = Device::serve(&directory, Volume::new(plan.file_system.bytes()))?;
        plan.file_system.make(device.path())?;
        let mut random = Random::new(seed);
        let mut program = kill::program(&plan.program, &directory, 1);
        program.data = directory.join("mounted/data");
        let crew = Crew::new(random.number(), PRODUCERS);
        let history = History::new(device.clock());
        let mut rig = Self {
            device,
            file_system: plan.file_system,
            mounted: None,
            program,
            shared: Shared::new(history, Scene::new(Volatile::Avoid)),
            crew,
            random,
            directory,
        };
        rig.mount()?;
        Ok(rig)
    }

    fn point(&self) -> PathBuf {
        self.directory.join("mounted")
    }

    fn mount(&mut self) -> Outcome<()> {
        let mounted = Mounted::mount(self.file_system, self.device.path(), &self.point())?;
        self.device.begin();
        self.mounted = Some(mounted);
        Ok(())
    }

    fn unmount(&mut self) -> Outcome<()> {
        self.mounted.take().map_or(Ok(()), Mounted::unmount)
    }

    fn permit_writes(&self, access: Access) -> Outcome<()> {
        let mounted = self.mounted.as_ref().ok_or("nothing is mounted")?;
        mounted.permit_writes(access)
    }

    fn start(&mut self) -> Outcome<Broker> {
        let broker = self.program.start()?;
        self.shared
            .scene
            .declare(&mut Link::open(broker.address())?)?;
        Ok(broker)
    }

    /// Starts a broker and a load, and waits until it is well under way.
    fn under_load(&mut self) -> Outcome<(Broker, Load)> {
        let mut broker = self.start()?;
        let load = self
            .crew
            .start(&self.shared, broker.address(), PUBLISHES_MAX);
        let events = self.random.between(200, 2_000) as usize;
        wait_for_events(&self.shared, &mut broker, &load, events)?;
        self.until("durable confirms come", || {
            Ok(self.confirms() > CONFIRMS_MIN)
        })?;
        Ok((broker, load))
    }

    /// The power goes, under a broker that may have stopped its journal, and comes back.
    fn power_cut(&mut self, broker: Broker, load: Option<Load>) -> Outcome<()> {
        let log = self.device.log();
        broker.put_down();
        if let Some(load) = load {
            load.join(&mut self.crew)?;
        }
        self.shared.history.record([Event::Crash]);
        self.device.set(|faults| *faults = Faults::default());
        self.unmount()?;
        let (_, end) = log.positions();
        let volume = log.replay().cut(end, 0, &mut self.random);
        self.device.load(volume);
        self.mount()
    }

    /// Starts a broker, takes everything out and ends it in good order.
    fn drain(&mut self) -> Outcome<()> {
        let broker = self.start()?;
        drain(&self.shared, broker.address())?;
        broker.terminate()
    }

    fn judged(&self) -> Outcome<()> {
        let verdict = judge(&self.shared.history.all());
        match verdict.is_clean() {
            true => Ok(()),
            false => Err(verdict.to_string()),
        }
    }

    /// Durable confirms so far.
    fn confirms(&self) -> usize {
        let is_confirm = |event: &Event<'_>| match event {
            Event::Confirmed { level, .. } => *level == Level::Durable,
            _ => false,
        };
        let events = self.shared.history.all();
        events.iter().filter(|event| is_confirm(event)).count()
    }

    /// Waits until something holds.
    fn until(&self, what: &str, mut holds: impl FnMut() -> Outcome<bool>) -> Outcome<()> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if holds()? {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(format!("{what}: not within {PATIENCE:?}"))
    }

    /// The broker has stopped its journal, lives on, and says so wherever it is asked.
    fn says_that_its_journal_failed(&self, broker: &mut Broker) -> Outcome<()> {
        self.until("the broker says that its journal failed", || {
            let (status, text) = broker.page("/readyz")?;
            Ok(status == 503 && text.contains("the journal has failed"))
        })?;
        broker.check()?;
        match broker.page("/healthz")? {
            (200, _) => {}
            other => return Err(format!("the cores answer, but /healthz says {other:?}")),
        }
        let program = self.program.path.to_string_lossy();
        match tool::command(&program, ["status", "--admin", broker.admin()]).done() {
            Err(text) if text.contains("the journal has failed") => Ok(()),
            other => Err(format!("the journal has failed, but status says {other:?}")),
        }
    }

    /// Journal failed: then the power goes, and nothing that was promised is lost.
    fn fails_and_recovers(&mut self, mut broker: Broker, load: Load) -> Outcome<()> {
        self.says_that_its_journal_failed(&mut broker)?;
        if self.device.errors() == 0 {
            return Err("the disk has failed nothing".to_owned());
        }
        self.power_cut(broker, Some(load))?;
        self.drain()?;
        self.judged()
    }
}

fn write_error(rig: &mut Rig, _: &Plan) -> Outcome<()> {
    let (broker, load) = rig.under_load()?;
    let left = rig.random.below(20);
    rig.device
        .set(|faults| faults.writes_until_error = Some(left));
    rig.fails_and_recovers(broker, load)
}

fn one_write_error(rig: &mut Rig, _: &Plan) -> Outcome<()> {
    let (broker, load) = rig.under_load()?;
    let left = rig.random.below(20);
    let (mut seen, mut since) = (0, Instant::now());
    let fail = |faults: &mut Faults| {
        faults.fails_once = true;
        faults.writes_until_error = Some(left);
    };
    rig.device.set(fail);
    rig.until("the broker says that a write failed", || {
        let (status, _) = broker.page("/readyz")?;
        let errors = rig.device.errors();
        if errors > seen {
            (seen, since) = (errors, Instant::now());
        } else if errors > 0 && since.elapsed() > SETTLED {
            // It was a write of the file system, which the broker need not hear of: another.
            since = Instant::now();
            rig.device.set(fail);
        }
        Ok(status == 503)
    })?;
    rig.fails_and_recovers(broker, load)
}

fn torn_write(rig: &mut Rig, _: &Plan) -> Outcome<()> {
    let (broker, load) = rig.under_load()?;
    let left = rig.random.below(20);
    rig.device.set(|faults| {
        faults.delay = Duration::from_millis(50);
        faults.tears = true;
        faults.writes_until_error = Some(left);
    });
    rig.fails_and_recovers(broker, load)
}

fn file_system_gives_up(rig: &mut Rig, _: &Plan) -> Outcome<()> {
    let (mut broker, load) = rig.under_load()?;
    rig.mounted
        .as_ref()
        .ok_or("nothing is mounted")?
        .give_up()?;
    rig.says_that_its_journal_failed(&mut broker)?;
    rig.power_cut(broker, Some(load))?;
    rig.drain()?;
    rig.judged()
}

fn flush_error(rig: &mut Rig, _: &Plan) -> Outcome<()> {
    let (broker, load) = rig.under_load()?;
    rig.device.set(|faults| faults.fails_flushes = true);
    rig.fails_and_recovers(broker, load)
}

fn hang(rig: &mut Rig, _: &Plan) -> Outcome<()> {
    let (mut broker, load) = rig.under_load()?;
    rig.device.set(|faults| faults.hangs = true);
    std::thread::sleep(HANG);
    broker.check()?;
    // What is on the disk while it hangs must hold what was promised by then.
    let events = rig.shared.history.all();
    let log = rig.device.log();
    let before = rig.confirms();
    rig.device.set(|faults| faults.hangs = false);
    rig.until("confirms go on after a hang", || {
        Ok(rig.confirms() > before + 5)
    })?;
    load.stop(&rig.shared, &mut rig.crew)?;
    broker.terminate()?;
    rig.shared.history.record([Event::Crash]);
    rig.drain()?;
    rig.judged()?;

    let (_, end) = log.positions();
    let volume = log.replay().cut(end, 0, &mut rig.random);
    rig.unmount()?;
    rig.device.load(volume);
    rig.mount()?;
    rig.shared = Arc::new(Shared::after_crash(events, Scene::new(Volatile::Avoid)));
    rig.drain()?;
    rig.judged()
}

fn slow_disk(rig: &mut Rig, _: &Plan) -> Outcome<()> {
    slowed(rig, Duration::from_millis(20), 20)
}

fn throttled_disk(rig: &mut Rig, _: &Plan) -> Outcome<()> {
    slowed(rig, Duration::from_millis(200), 5)
}

/// So many more confirms come although each request takes so long; then the power goes.
fn slowed(rig: &mut Rig, delay: Duration, confirms: usize) -> Outcome<()> {
    let (broker, load) = rig.under_load()?;
    rig.device.set(|faults| faults.delay = delay);
    let before = rig.confirms();
    rig.until("confirms go on with a slow disk", || {
        Ok(rig.confirms() > before + confirms)
    })?;
    rig.power_cut(broker, Some(load))?;
    rig.drain()?;
    rig.judged()
}

fn lying_disk(rig: &mut Rig, _: &Plan) -> Outcome<()> {
    let mut broker = rig.start()?;
    tool::command("sync", ["-f"]).arg(rig.point()).done()?;
    rig.device.begin();
    rig.device.set(|faults| faults.lies = true);
    let load = rig.crew.start(&rig.shared, broker.address(), PUBLISHES_MAX);
    wait_for_events(&rig.shared, &mut broker, &load, 2_000)?;
    broker.kill()?;
    load.join(&mut rig.crew)?;
    rig.shared.history.record([Event::Crash]);
    // Of all that was flushed nothing is there: as it was when the lies began.
    let (first, _) = rig.device.log().positions();
    let log = rig.device.log();
    let volume = log.replay().cut(first, 0, &mut rig.random);
    rig.unmount()?;
    rig.device.set(|faults| faults.lies = false);
    rig.device.load(volume);
    rig.mount()?;
    rig.drain()?;
    match rig.judged() {
        Err(_) => Ok(()),
        Ok(()) => Err("the disk lost what was promised, and nobody noticed".to_owned()),
    }
}

fn shutdown(rig: &mut Rig, plan: &Plan) -> Outcome<()> {
    for _ in 0..plan.shutdowns {
        let (broker, load) = rig.under_load()?;
        let mounted = rig.mounted.take().ok_or("nothing is mounted")?;
        mounted.shut_down()?;
        broker.put_down();
        load.join(&mut rig.crew)?;
        rig.shared.history.record([Event::Crash]);
        mounted.unmount()?;
        rig.mount()?;
    }
    rig.drain()?;
    rig.judged()
}

/// Takes all space that a file system has left.
fn fill(point: &Path) -> Outcome<PathBuf> {
    let path = point.join("filler");
    let wrong = |error: std::io::Error| format!("cannot fill {}: {error}", path.display());
    let file = File::options().create(true).append(true).open(&path);
    let mut file = file.map_err(wrong)?;
    for bytes in [1 << 20, 4096] {
        let block = vec![1; bytes];
        while file
            .write_all(&block)
            .and_then(|()| file.sync_data())
            .is_ok()
        {}
    }
    Ok(path)
}

fn full_disk(rig: &mut Rig, _: &Plan) -> Outcome<()> {
    let broker = rig.start()?;
    fill(&rig.point())?;
    let mut random = rig.random.fork();
    let mut client = Client::open(rig, &broker, &mut random)?;
    rig.until("publishes are refused on a full disk", || {
        client.turn()?;
        Ok(client.is_refused)
    })?;
    if broker.page("/readyz")?.0 != 200 {
        return Err("a full disk is no failure, but /readyz says so".to_owned());
    }
    let producer = client.close();
    // A full disk is no reason to stay down, even where a crash has left nothing in the lock, which
    // nobody syncs, and the last room to others.
    rig.power_cut(broker, None)?;
    let lock = File::options()
        .write(true)
        .open(rig.program.data.join("lock"));
    let cut = lock.and_then(|lock| lock.set_len(0).and_then(|()| lock.sync_all()));
    cut.map_err(|error| format!("cannot cut the lock off: {error}"))?;
    fill(&rig.point())?;
    let broker = rig.start()?;
    let mut client = Client::open_again(rig, &broker, producer)?;
    client.consume(&mut random);
    let before = rig.confirms();
    rig.until("publishes are taken again when queues are emptied", || {
        client.turn()?;
        Ok(rig.confirms() > before + CONFIRMS_MIN)
    })?;
    client.close();
    rig.power_cut(broker, None)?;
    rig.drain()?;
    rig.judged()
}

/// A connection with one producer of durable messages and, if wanted, a consumer of every queue.
struct Client {
    link: Link,
    shared: Arc<Shared>,
    producer: Producer,
    consumers: Vec<Consumer>,
    /// A publish was refused because the disk is full.
    is_refused: bool,
}

impl Client {
    fn open(rig: &Rig, broker: &Broker, random: &mut Random) -> Outcome<Self> {
        let producer = Producer::new(random, Level::Durable, Volatile::Avoid, u64::MAX);
        Self::open_again(rig, broker, producer)
    }

    fn open_again(rig: &Rig, broker: &Broker, mut producer: Producer) -> Outcome<Self> {
        let mut link = Link::open(broker.address())?;
        producer.open(&mut link, 1);
        Ok(Self {
            link,
            shared: Arc::clone(&rig.shared),
            producer,
            consumers: Vec::new(),
            is_refused: false,
        })
    }

    fn consume(&mut self, random: &mut Random) {
        let Shared { history, scene, .. } = &*self.shared;
        for queue in scene.queue_numbers() {
            let identity = (self.shared.consumer(), queue, scene.queue_name(queue));
            let channel = 2 + self.consumers.len() as u16;
            let link = &mut self.link;
            let consumer = Consumer::open(link, history, identity, channel, Habit::Acks, random);
            self.consumers.push(consumer);
        }
    }

    /// Publishes what it may, and takes what has come.
    fn turn(&mut self) -> Outcome<()> {
        let Shared { history, scene, .. } = &*self.shared;
        self.producer.publish(&mut self.link, scene, history);
        while let Some(frame) = self.link.receive().map_err(|ended| ended.to_string())? {
            match frame.header.channel {
                0 => {}
                1 => {
                    let is_refusal = frame.header.kind == FrameKind::Refused;
                    self.is_refused |= is_refusal && frame.failure().0 == Code::DiskFull;
                    self.producer.take(&frame, history)?;
                }
                channel => {
                    let consumer = self.consumers.get_mut(usize::from(channel) - 2);
                    let consumer = consumer.ok_or("a frame on no channel")?;
                    consumer.take(&frame, &mut self.link, history)?;
                }
            }
        }
        Ok(())
    }

    /// Hangs up; its producer may go on later.
    fn close(mut self) -> Producer {
        let lost = |consumer: &Consumer| Event::ConsumerLost {
            consumer: consumer.number(),
        };
        let history = &self.shared.history;
        history.record(self.consumers.iter().map(lost));
        drop(self.link);
        self.producer.gone(history);
        self.producer
    }
}

fn full_from_the_start(rig: &mut Rig, _: &Plan) -> Outcome<()> {
    let filler = fill(&rig.point())?;
    match rig.program.start() {
        Err(why) if why.contains("No space left on device") => {}
        Err(why) => return Err(format!("it does not say that the disk is full: {why}")),
        Ok(_) => return Err("a broker starts without room for its data".to_owned()),
    }
    std::fs::remove_file(&filler).map_err(|error| error.to_string())?;
    let (broker, load) = rig.under_load()?;
    rig.power_cut(broker, Some(load))?;
    rig.drain()?;
    rig.judged()
}
