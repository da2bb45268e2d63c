//! A client that does whatever the protocol lets it do, at random, and checks every answer.
//! Speaks frames only; does not know engines, disks or other clients.
//!
//! A client lives through many connections. The world tells it what became of one: `opened`, bytes
//! that arrive, `cut_off` (nothing more will arrive: its consumers are gone) and `over` (the broker
//! has forgotten the connection: whatever was not answered never will be).

mod consume;
mod drain;
mod errand;
mod places;
mod produce;
mod sharing;
mod topology;
mod transact;

use std::collections::BTreeMap;

use ringpost_check::{MessageId, QueueNo};
use ringpost_wire::control::{self, Attach, Body, Failure, Hello, Welcome};
use ringpost_wire::{Code, Cut, FRAME_BYTES_MAX, FrameHeader, FrameKind, cut, frame, version};

use crate::model::{Change, GRAVES, Outcome};
use crate::plan::{Fault, Leaning};
use crate::random::{Random, Rate};
use crate::say;
use crate::scene::Scene;
use crate::streams::Seat;

pub use consume::Consumer;
pub use drain::Drain;
pub use produce::Producer;

/// Where a connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Link {
    /// There is none.
    None,
    /// Asked for, not accepted yet.
    Dialling,
    /// `Hello` is out.
    Greeting,
    /// Frames flow.
    Open,
    /// `Attach` is out: nothing may be sent.
    Attaching,
    /// `Close` is out.
    Closing,
    /// Nothing arrives any more; the broker may not know yet.
    CutOff,
}

/// A request whose answer is out.
#[derive(Debug)]
enum Request {
    Change(Change),
    Tenant,
    Inspect(String),
    /// It cannot succeed, and fails with this.
    Vain(Code),
    List {
        items: u32,
        kind: FrameKind,
    },
    Attach,
    Errand(errand::Step),
    Desk(transact::Step),
    Places(places::Asked),
    ProducerOpen(usize),
    ProducerClose(usize),
    ConsumerOpen(u16),
    ConsumerClose,
    Settle {
        channel: u16,
        messages: Vec<(QueueNo, MessageId)>,
        /// Of a stream: where they lie.
        offsets: Vec<u64>,
        /// One of these that another member of the group was given before they were settled.
        taken: Option<u64>,
        /// If these are rejects: the name of their queue.
        rejects: Option<String>,
        /// If they went back to their queue.
        returned: Option<Return>,
    },
    Get {
        channel: u16,
        most: u32,
        given: u32,
    },
}

/// Messages that went back to their queue.
#[derive(Debug)]
struct Return {
    queue: String,
    /// When that was said.
    at: u64,
    messages: Vec<(QueueNo, MessageId)>,
}

/// Most bytes of a message where a client asks for small ones only.
const SMALL_BYTES_MAX: u32 = 4_000;

/// What a channel is used for.
#[derive(Debug)]
enum Channel {
    Producer(usize),
    /// Of a producer that was opened again on another one: what still comes says nothing.
    Fenced,
    Consumer(Box<Consumer>),
    /// A consumer of an errand.
    Guest,
    /// Transactions, or a consumer of their queues.
    Desk,
}

/// How often a client does what, as weights.
#[derive(Clone, Debug)]
struct Habits {
    publish: u32,
    producers: u32,
    consumers: u32,
    settle: u32,
    credit: u32,
    get: u32,
    topology: u32,
    look: u32,
    attach: u32,
    leave: u32,
    misbehave: u32,
}

impl Habits {
    fn draw(scene: &Scene, random: &mut Random) -> Self {
        let mut weight = |most: u64| random.below(most + 1) as u32;
        let topology = if scene.plan.faults.has(Fault::Topology) {
            12
        } else {
            2
        };
        let leaning = scene.plan.leaning;
        // Where messages are to come back again and again, or producers go from client to client, not
        // everything is about new messages.
        let is_slow = matches!(leaning, Leaning::Returns | Leaning::Epochs);
        let comes_and_goes = matches!(leaning, Leaning::Large | Leaning::Epochs);
        Self {
            publish: 5 + weight(if is_slow { 10 } else { 60 }),
            producers: 2 + weight(if comes_and_goes { 30 } else { 6 }),
            consumers: 2 + weight(8),
            settle: 5 + weight(40),
            credit: weight(5),
            get: weight(10),
            topology: 1 + weight(topology),
            look: weight(3),
            attach: weight(3),
            leave: weight(2),
            misbehave: if scene.plan.faults.has(Fault::Misbehave) {
                weight(2)
            } else {
                0
            },
        }
    }
}

/// One client.
pub struct Client {
    /// Its number.
    pub id: usize,
    /// Bytes to be sent; the world takes them.
    pub out: Vec<u8>,
    /// What it does instead of whatever it likes, at the end.
    pub drain: Option<Drain>,
    /// That of the world.
    seed: u64,
    /// Sockets take so little at a time that a large message is longer on its way than consumers may
    /// hold one.
    is_slow: bool,
    /// As whom it joins a group while it does.
    seat: Option<Seat>,
    tenant: usize,
    random: Random,
    habits: Habits,
    link: Link,
    partial: Vec<u8>,
    channels: BTreeMap<u16, Channel>,
    producers: Vec<Producer>,
    requests: BTreeMap<u64, Request>,
    request_last: u64,
    welcome: Limits,
    /// It has broken the protocol on this connection: a bad end is its own fault.
    is_guilty: bool,
    /// When it last sent something.
    sent_at: u64,
    /// Has fallen silent until then.
    silent_until: u64,
    /// Connected to the default tenant only to declare its own.
    is_founding: bool,
    /// How often it dialled.
    dials: u32,
    errands: errand::Errands,
    desk: transact::Desk,
}

/// What `Welcome` said.
#[derive(Clone, Copy, Default, Debug)]
struct Limits {
    core: u32,
    channels_max: u16,
    heartbeat_ms: u32,
    message_bytes_max: u32,
    credit_messages_max: u32,
}

/// Name of a tenant.
fn tenant_name(tenant: usize) -> &'static str {
    ["", "other"][tenant]
}

impl Client {
    /// A client that has not dialled yet.
    #[must_use]
    pub fn new(id: usize, scene: &Scene) -> Self {
        let mut random = Random::new(scene.plan.seed, 100 + id as u64);
        Self {
            id,
            seed: scene.plan.seed,
            is_slow: scene.plan.socket_bytes < 4096,
            seat: None,
            out: Vec::new(),
            drain: None,
            tenant: if scene.plan.tenants > 1 { id % 2 } else { 0 },
            habits: Habits::draw(scene, &mut random),
            random,
            link: Link::None,
            partial: Vec::new(),
            channels: BTreeMap::new(),
            producers: Vec::new(),
            requests: BTreeMap::new(),
            request_last: 0,
            welcome: Limits::default(),
            is_guilty: false,
            sent_at: 0,
            silent_until: 0,
            is_founding: false,
            dials: 0,
            errands: errand::Errands::new(id, scene.plan.seed),
            desk: transact::Desk::new(id, scene.plan.seed),
        }
    }

    /// A client that drains every queue of a tenant.
    #[must_use]
    pub fn drainer(id: usize, tenant: usize, scene: &Scene) -> Self {
        Self {
            drain: Some(Drain::default()),
            tenant,
            ..Self::new(id, scene)
        }
    }

    /// Whether it has no connection and wants one.
    #[must_use]
    pub fn wants_connection(&self) -> bool {
        self.link == Link::None
    }

    /// Whether bytes may still arrive.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        !matches!(self.link, Link::None | Link::Dialling | Link::CutOff)
    }

    /// It dials; returns the number of the attempt.
    pub fn dial(&mut self) -> u32 {
        assert_eq!(self.link, Link::None, "dials while connected");
        self.link = Link::Dialling;
        self.dials += 1;
        self.dials
    }

    /// Whether it still waits for this attempt.
    #[must_use]
    pub fn is_dialling(&self, dial: u32) -> bool {
        self.link == Link::Dialling && self.dials == dial
    }

    /// The broker accepted.
    pub fn opened(&mut self, scene: &mut Scene) {
        assert_eq!(self.link, Link::Dialling, "opened without dialling");
        self.link = Link::Greeting;
        self.is_guilty = false;
        self.sent_at = scene.now;
        self.silent_until = 0;
        let wrong = match self.misbehaves(scene) {
            true => self.random.below(4),
            false => u64::MAX,
        };
        self.is_guilty = wrong != u64::MAX;
        if wrong < 2 {
            // Not this protocol at all.
            self.out
                .extend_from_slice(b"GET / HTTP/1.1\r\nHost: somewhere\r\nAccept: */*\r\n\r\n");
            return;
        }
        // A tenant that may not be there yet is reached from the default one.
        let tenant = if self.tenant == 0 || scene.has_tenant {
            self.tenant
        } else {
            0
        };
        let hello = Hello {
            magic: version::MAGIC,
            version_min: if wrong == 2 { 2 } else { 1 },
            version_max: self.random.within(2..=3) as u16,
            heartbeat_ms: *self.random.pick(&[0, 1, 1_000, 5_000, 700_000]),
            message_bytes_max: match self.drain.is_none() && self.random.below(16) == 0 {
                true => self.random.within(500..=u64::from(SMALL_BYTES_MAX)) as u32,
                false => 0,
            },
            tenant: match wrong {
                3 => b"nobody",
                _ => tenant_name(tenant).as_bytes(),
            },
            client: b"sim",
        };
        hello.write(&mut self.out, FrameHeader::bare(FrameKind::Hello, 0, 0));
        self.is_founding = tenant != self.tenant;
    }

    /// Nothing more will arrive: what its consumers hold is lost to it.
    pub fn cut_off(&mut self, scene: &mut Scene) {
        if matches!(self.link, Link::None | Link::CutOff) {
            return;
        }
        self.errands_cut_off(scene);
        self.link = Link::CutOff;
        self.out.clear();
        self.partial.clear();
        for channel in self.channels.values_mut() {
            if let Channel::Consumer(consumer) = channel {
                consumer.lost(scene);
            }
        }
    }

    /// The broker has forgotten the connection.
    pub fn over(&mut self, scene: &mut Scene) {
        self.cut_off(scene);
        for (_, channel) in core::mem::take(&mut self.channels) {
            match channel {
                Channel::Producer(at) => self.producers[at].gone(scene),
                Channel::Fenced | Channel::Guest | Channel::Desk => {}
                Channel::Consumer(consumer) => consumer.over(self.tenant, scene),
            }
        }
        for (_, request) in core::mem::take(&mut self.requests) {
            if let Request::Change(change) = request {
                scene.leave_open(self.tenant, change);
            }
        }
        self.link = Link::None;
        self.errands_over(scene);
        self.desk_over(scene);
        if let Some(drain) = &mut self.drain {
            drain.start_again();
        }
    }

    /// Time to do something.
    pub fn act(&mut self, scene: &mut Scene) {
        if self.link == Link::Open && scene.now >= self.silent_until {
            if self.is_founding {
                self.found_tenant();
            } else if self.drain.is_some() {
                self.act_drain(scene);
            } else {
                self.act_at_random(scene);
            }
            self.heartbeat(scene);
        }
        if !self.out.is_empty() {
            self.sent_at = scene.now;
        }
    }

    /// Sends heartbeats and nothing else, but asks what the broker may owe its consumers.
    pub fn stay_alive(&mut self, scene: &mut Scene) {
        self.ask_for_food();
        self.heartbeat(scene);
        if !self.out.is_empty() {
            self.sent_at = scene.now;
        }
    }

    /// Begins to drain, or to drain again.
    pub fn begin_drain(&mut self) {
        if let Some(drain) = &mut self.drain {
            *drain = Drain::default();
            self.forget_errands();
            self.forget_desks();
        }
    }

    fn heartbeat(&mut self, scene: &mut Scene) {
        let quiet_ms = scene.now.saturating_sub(self.sent_at) / 1_000_000;
        if self.link == Link::Open
            && self.out.is_empty()
            && quiet_ms >= u64::from(self.welcome.heartbeat_ms / 3)
        {
            frame::write_bare(&mut self.out, FrameKind::Heartbeat, 0, 0);
        }
    }

    fn act_at_random(&mut self, scene: &mut Scene) {
        let is_over = scene.published >= scene.plan.publishes;
        for _ in 0..self.random.within(1..=4) {
            if self.link != Link::Open {
                return;
            }
            if self.run_errand(scene)
                || self.transact(scene)
                || (self.random.coin() && self.take_on(scene))
            {
                continue;
            }
            let model = &scene.models[self.tenant];
            let is_bare = model.queues.len() < 2
                || (scene.plan.leaning.fans_out() && model.bindings.len() < 4);
            let steady = model.queues.values().filter(|queue| queue.is_steady());
            // Publishes that no queue takes are over before a queue is there, where others are slow.
            let is_early = matches!(scene.plan.leaning, Leaning::Epochs | Leaning::Backlog)
                && steady.count() < 2;
            if is_early || (is_bare && self.random.coin()) {
                self.change_topology(scene);
                continue;
            }
            let habits = &self.habits;
            let weights = [
                if is_over { 0 } else { habits.publish },
                habits.producers,
                habits.consumers,
                habits.settle,
                habits.credit,
                habits.get,
                habits.topology,
                habits.look,
                habits.attach,
                habits.leave,
                habits.misbehave,
            ];
            let sum: u32 = weights.iter().sum();
            let mut draw = self.random.below(u64::from(sum.max(1))) as u32;
            let mut choice = 0;
            while choice < weights.len() - 1 && draw >= weights[choice] {
                draw -= weights[choice];
                choice += 1;
            }
            match choice {
                0 => self.publish(scene),
                1 => self.manage_producers(scene),
                2 => self.manage_consumers(scene),
                3 => self.settle(scene),
                4 => self.change_credit(scene),
                5 => self.get(scene),
                6 => self.change_topology(scene),
                7 => self.look(scene),
                8 => self.attach(scene),
                9 => self.leave(scene),
                _ => self.misbehave(scene),
            }
        }
        if scene.has(Fault::Silence) && self.random.chance(Rate(1_000)) {
            scene.marks.hit("client falls silent");
            self.is_guilty = true;
            self.silent_until = scene.now + self.random.within(1..=40) * 1_000_000_000;
        }
    }

    fn misbehaves(&mut self, scene: &Scene) -> bool {
        scene.has(Fault::Misbehave) && self.drain.is_none() && self.random.chance(Rate(20_000))
    }

    /// Moves the connection to the core of a queue.
    fn attach(&mut self, scene: &mut Scene) {
        if !self.channels.is_empty() || !self.requests.is_empty() {
            return;
        }
        let queue = self.queue_name(scene);
        let id = self.request(Request::Attach);
        let body = Attach {
            queue: queue.as_bytes(),
        };
        body.write(&mut self.out, FrameHeader::bare(FrameKind::Attach, 0, id));
        self.link = Link::Attaching;
        say!(scene, "client {}: attach to {queue}", self.id);
    }

    /// Says good-bye.
    pub fn leave(&mut self, scene: &mut Scene) {
        if self.link != Link::Open {
            return;
        }
        say!(scene, "client {}: close", self.id);
        self.errands_cut_off(scene);
        control::write_failure(
            &mut self.out,
            FrameHeader::bare(FrameKind::Close, 0, 0),
            Code::Normal,
            "",
        );
        self.link = Link::Closing;
        // Deliveries that cross the close are not seen any more.
        for channel in self.channels.values_mut() {
            if let Channel::Consumer(consumer) = channel {
                consumer.lost(scene);
            }
        }
    }

    /// Breaks a rule.
    fn misbehave(&mut self, scene: &mut Scene) {
        scene.marks.hit("client misbehaves");
        self.errands_cut_off(scene);
        self.is_guilty = true;
        let kind = self.random.below(9);
        say!(scene, "client {}: misbehaves, kind {kind}", self.id);
        match kind {
            0 => {
                let length = self.random.scale(1..=300) as usize;
                for _ in 0..length {
                    self.out.push(self.random.bits() as u8);
                }
            }
            1 => {
                // A good frame with one flipped bit.
                let start = self.out.len();
                frame::write_bare(&mut self.out, FrameKind::Heartbeat, 0, 0);
                let bit = self.random.index((self.out.len() - start) * 8);
                self.out[start + bit / 8] ^= 1 << (bit % 8);
            }
            2 => {
                // A frame that only the broker may send.
                let kinds = [
                    FrameKind::Welcome,
                    FrameKind::Done,
                    FrameKind::Confirm,
                    FrameKind::Deliver,
                ];
                let kind = *self.random.pick(&kinds);
                frame::write_bare(&mut self.out, kind, 0, 7);
            }
            3 => {
                // Any kind, channel and body.
                let kind = *self.random.pick(FrameKind::ALL);
                let channel = if self.random.coin() { 0 } else { 900 };
                let mut body = vec![0; self.random.below(80) as usize];
                for byte in &mut body {
                    *byte = self.random.below(4) as u8;
                }
                let header = FrameHeader {
                    flags: self.random.below(4) as u8,
                    count: self.random.below(3) as u32,
                    ..FrameHeader::bare(kind, channel, (1 << 50) + self.random.below(5))
                };
                if matches!(
                    kind,
                    FrameKind::QueueDeclare
                        | FrameKind::QueueDelete
                        | FrameKind::QueuePurge
                        | FrameKind::ExchangeDeclare
                        | FrameKind::ExchangeDelete
                        | FrameKind::Bind
                        | FrameKind::Unbind
                        | FrameKind::TenantDeclare
                        | FrameKind::TenantDelete
                        | FrameKind::PolicySet
                        | FrameKind::PolicyDelete
                        | FrameKind::Settle
                        | FrameKind::Publish
                ) {
                    // What could succeed would surprise the model.
                    return;
                }
                frame::write(&mut self.out, header, &body);
            }
            4 => self.publish_wrongly(scene),
            5 => self.settle_wrongly(scene),
            6 => {
                frame::write_bare(&mut self.out, FrameKind::Hello, 0, 0);
            }
            7 => {
                let head = FrameHeader {
                    body_bytes: FRAME_BYTES_MAX as u32,
                    ..FrameHeader::bare(FrameKind::Publish, 1, 1)
                };
                self.out.extend_from_slice(&head.encode());
            }
            _ => {
                let used = self.channels.keys().next().copied().unwrap_or(0);
                frame::write_bare(&mut self.out, FrameKind::ConsumerOpen, used, 1 << 40);
            }
        }
    }

    fn found_tenant(&mut self) {
        if self.requests.is_empty() {
            let id = self.request(Request::Tenant);
            let name = tenant_name(self.tenant);
            let body = control::Named {
                name: name.as_bytes(),
            };
            let header = FrameHeader::bare(FrameKind::TenantDeclare, 0, id);
            body.write(&mut self.out, header);
        }
    }

    fn request(&mut self, request: Request) -> u64 {
        self.request_last += 1;
        self.requests.insert(self.request_last, request);
        self.request_last
    }

    /// A channel number that is free, now and then at the end of the range.
    fn free_channel(&mut self) -> Option<u16> {
        let most = self.welcome.channels_max.max(1);
        let from = if self.random.below(20) == 0 { most } else { 1 };
        let number = if from == 1 {
            (1..=most).find(|n| !self.channels.contains_key(n))?
        } else {
            (1..=most).rev().find(|n| !self.channels.contains_key(n))?
        };
        // A drain reads each lane of each queue, and what transactions have moved, at once.
        let open_max = if self.drain.is_some() { 64 } else { 12 };
        (self.channels.len() < open_max).then_some(number)
    }

    /// Bytes arrived.
    pub fn receive(&mut self, bytes: &[u8], scene: &mut Scene) {
        if !self.is_connected() {
            return;
        }
        self.partial.extend_from_slice(bytes);
        let mut partial = core::mem::take(&mut self.partial);
        let mut at = 0;
        while scene.failure.is_none() && self.is_connected() {
            match cut(&partial[at..], FRAME_BYTES_MAX) {
                Cut::Complete { header, length } => {
                    let body = &partial[at + 32..at + 32 + header.body_bytes as usize];
                    let covered = match header.kind {
                        FrameKind::Deliver => &body[..body.len().min(16)],
                        _ => body,
                    };
                    if frame::check_body(&header, covered).is_err() {
                        scene.fail(format!(
                            "client {}: {:?} with a bad checksum",
                            self.id, header.kind
                        ));
                    }
                    self.frame(&header, body, scene);
                    at += length;
                }
                Cut::Incomplete { .. } => break,
                Cut::Malformed(code) => {
                    scene.fail(format!("client {}: broker sent no frame: {code}", self.id));
                }
            }
        }
        partial.drain(..at);
        self.partial = partial;
    }

    fn frame(&mut self, header: &FrameHeader, body: &[u8], scene: &mut Scene) {
        scene.marks.hit(frame_mark(header.kind));
        let checked = match header.kind {
            _ if self.is_of_desk(header) => self.on_desk_frame(header, body, scene),
            _ if self.is_of_errand(header) => self.on_errand_frame(header, body, scene),
            FrameKind::Welcome => self.on_welcome(body, scene),
            FrameKind::Close => self.on_close(body, scene),
            FrameKind::Heartbeat => Ok(()),
            FrameKind::Attached => self.on_attached(header, scene),
            FrameKind::Failed => self.on_failed(header, body, scene),
            FrameKind::Done => self.on_done(header, scene),
            FrameKind::ProducerOpened
            | FrameKind::Confirm
            | FrameKind::Refused
            | FrameKind::ProducerCredit
            | FrameKind::ProducerClosed => self.on_producer_frame(header, body, scene),
            FrameKind::ConsumerOpened
            | FrameKind::Deliver
            | FrameKind::DeliverFragment
            | FrameKind::Settled
            | FrameKind::ConsumerClosed
            | FrameKind::ConsumerActive
            | FrameKind::ConsumerPosition
            | FrameKind::GetDone => self.on_consumer_frame(header, body, scene),
            FrameKind::QueueInfo
            | FrameKind::ExchangeInfo
            | FrameKind::BindingInfo
            | FrameKind::PolicyInfo
            | FrameKind::TenantInfo => self.on_info(header, body, scene),
            FrameKind::QueueBrowsed | FrameKind::QueueOutcome => {
                self.on_places(header, body, scene)
            }
            kind => Err(format!("broker sent {kind:?}, which is the client's")),
        };
        if let Err(text) = checked {
            scene.fail(format!(
                "client {}: {text}, in answer to {header:?}",
                self.id
            ));
        }
    }

    fn on_welcome(&mut self, body: &[u8], scene: &mut Scene) -> Result<(), String> {
        let welcome = Welcome::decode(body).map_err(|code| format!("Welcome: {code}"))?;
        if self.link != Link::Greeting {
            return Err("Welcome without Hello".into());
        }
        if welcome.magic != version::MAGIC
            || welcome.version != 1
            || welcome.cores != scene.plan.cores
        {
            return Err(format!("Welcome says {welcome:?}"));
        }
        self.welcome = Limits {
            core: u32::from(welcome.core),
            channels_max: welcome.channels_max,
            heartbeat_ms: welcome.heartbeat_ms,
            message_bytes_max: welcome.message_bytes_max,
            credit_messages_max: welcome.credit_messages_max,
        };
        self.link = Link::Open;
        Ok(())
    }

    fn on_close(&mut self, body: &[u8], scene: &mut Scene) -> Result<(), String> {
        let failure = Failure::decode(body).map_err(|code| format!("Close: {code}"))?;
        let code = Code::from_number(failure.code);
        scene.marks.hit(code.word());
        let reason = String::from_utf8_lossy(failure.reason);
        say!(
            scene,
            "client {}: broker says close, {code}: {reason}",
            self.id
        );
        let is_expected = self.is_guilty
            || (self.link == Link::Closing && code == Code::Normal)
            || matches!(code, Code::ShuttingDown | Code::Overloaded)
            // A stalled core or a slow network makes both sides look silent.
            || code == Code::TimedOut;
        if is_expected {
            Ok(())
        } else {
            Err(format!(
                "closed with {code} ({reason}) though it did nothing wrong"
            ))
        }
    }

    fn on_attached(&mut self, header: &FrameHeader, scene: &mut Scene) -> Result<(), String> {
        match self.requests.remove(&header.sequence) {
            Some(Request::Attach) if header.count < u32::from(scene.plan.cores) => {
                self.link = Link::Open;
                self.welcome.core = header.count;
                Ok(())
            }
            other => Err(format!("Attached to {} answers {other:?}", header.count)),
        }
    }

    fn on_failed(
        &mut self,
        header: &FrameHeader,
        body: &[u8],
        scene: &mut Scene,
    ) -> Result<(), String> {
        let failure = Failure::decode(body).map_err(|code| format!("Failed: {code}"))?;
        let code = Code::from_number(failure.code);
        let reason = String::from_utf8_lossy(failure.reason).into_owned();
        scene.marks.hit(code.word());
        let Some(request) = self.requests.remove(&header.sequence) else {
            return if self.is_guilty {
                Ok(())
            } else {
                Err(format!("Failed ({code}) answers no request"))
            };
        };
        say!(
            scene,
            "client {}: {request:?} failed: {code} {reason}",
            self.id
        );
        if code == Code::Internal {
            return Err(format!("{request:?} failed with internal: {reason}"));
        }
        match request {
            Request::Change(change) => {
                scene.end(self.tenant, &change, Outcome::Failed(code));
                self.drained_change(&change, scene);
                Ok(())
            }
            Request::Attach => {
                self.link = Link::Open;
                Ok(())
            }
            Request::Errand(_) | Request::Desk(_) => {
                unreachable!("those were looked at before")
            }
            Request::Inspect(name) => {
                self.told_of_food(&name, 0, 0);
                self.inspect_failed(&name, code, scene)
            }
            Request::Places(asked) => self.places_failed(&asked, code, scene),
            Request::Vain(expected) => match code {
                Code::TopologyReadOnly | Code::LimitReached | Code::JournalFailed => Ok(()),
                Code::ShuttingDown | Code::Overloaded => Ok(()),
                code if code == expected => Ok(()),
                code => Err(format!("failed with {code}, not with {expected}")),
            },
            Request::ProducerOpen(at) => self.producer_refused(at, header.channel, code),
            Request::ConsumerOpen(channel) => self.consumer_refused(channel, code, &reason, scene),
            Request::Get { .. } => match code {
                Code::LimitReached | Code::JournalFailed | Code::QueueDamaged => Ok(()),
                Code::ShuttingDown => Ok(()),
                _ => Err(format!("Get failed with {code}: {reason}")),
            },
            Request::Settle { .. } if code == Code::JournalFailed => Ok(()),
            request @ (Request::Tenant
            | Request::List { .. }
            | Request::ProducerClose(_)
            | Request::ConsumerClose
            | Request::Settle { .. }) => {
                if matches!(
                    code,
                    Code::TopologyReadOnly
                        | Code::LimitReached
                        | Code::JournalFailed
                        | Code::ShuttingDown
                ) {
                    Ok(())
                } else {
                    Err(format!("{request:?} failed with {code}: {reason}"))
                }
            }
        }
    }

    fn on_done(&mut self, header: &FrameHeader, scene: &mut Scene) -> Result<(), String> {
        let changed = header.flags & ringpost_wire::header::DONE_CHANGED != 0;
        match self.requests.remove(&header.sequence) {
            Some(Request::Change(change)) => {
                say!(
                    scene,
                    "client {}: done, changed {changed}: {change:?}",
                    self.id
                );
                let outcome = Outcome::Done { changed };
                scene.end(self.tenant, &change, outcome);
                self.drained_change(&change, scene);
                Ok(())
            }
            Some(Request::Tenant) => {
                scene.marks.hit("tenant declared");
                scene.has_tenant = true;
                self.leave(scene);
                Ok(())
            }
            Some(Request::List { items, kind }) if items == header.count => {
                scene.marks.hit("list done");
                let _ = kind;
                Ok(())
            }
            _ if self.is_guilty => Ok(()),
            other => Err(format!(
                "Done with count {} answers {other:?}",
                header.count
            )),
        }
    }

    /// A name of a queue, existing or not.
    fn queue_name(&mut self, scene: &Scene) -> String {
        let names = scene.models[self.tenant].queues.keys();
        let names: Vec<&String> = names.filter(|name| *name != GRAVES).collect();
        if !names.is_empty() && self.random.below(10) < 9 {
            (*self.random.pick(&names)).clone()
        } else {
            queue_name(self.random.index(scene.plan.queue_names))
        }
    }

    /// For traces: what it is doing.
    #[must_use]
    pub fn describe(&self) -> String {
        format!(
            "client {} {:?}{}, {} channels, requests {:?}, drain {:?}",
            self.id,
            self.link,
            match (self.waits_for_broker(false), self.waits_for_messages()) {
                (true, _) => " WAITS",
                (false, true) => " WAITS for messages",
                (false, false) => "",
            },
            self.channels.len(),
            self.requests,
            self.drain
        )
    }

    /// Whether it waits for nothing: for the judgement that nothing is stuck.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.drain.as_ref().is_some_and(Drain::is_done)
            && self.errands_are_drained()
            && self.desks_are_drained()
    }
}

/// Name number `at` of a queue; some are not ASCII.
fn queue_name(at: usize) -> String {
    match at % 4 {
        3 => format!("größe-{at}"),
        2 => format!("orders.eu-{at}"),
        _ => format!("q{at}"),
    }
}

fn frame_mark(kind: FrameKind) -> &'static str {
    match kind {
        FrameKind::Confirm => "frame confirm",
        FrameKind::Refused => "frame refused",
        FrameKind::Deliver => "frame deliver",
        FrameKind::DeliverFragment => "frame deliver fragment",
        FrameKind::Settled => "frame settled",
        FrameKind::GetDone => "frame get done",
        FrameKind::ConsumerActive => "frame consumer active",
        FrameKind::ProducerClosed => "frame producer closed",
        FrameKind::ConsumerClosed => "frame consumer closed",
        FrameKind::ProducerCredit => "frame producer credit",
        FrameKind::Attached => "frame attached",
        FrameKind::Failed => "frame failed",
        FrameKind::Close => "frame close",
        FrameKind::Heartbeat => "frame heartbeat",
        FrameKind::Done => "frame done",
        FrameKind::Welcome => "frame welcome",
        FrameKind::ProducerOpened => "frame producer opened",
        FrameKind::ConsumerOpened => "frame consumer opened",
        FrameKind::QueueInfo => "frame queue info",
        FrameKind::ExchangeInfo => "frame exchange info",
        FrameKind::BindingInfo => "frame binding info",
        FrameKind::TenantInfo => "frame tenant info",
        FrameKind::ConsumerPosition => "frame consumer position",
        _ => "frame other",
    }
}
