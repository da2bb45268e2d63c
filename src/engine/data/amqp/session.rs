//! One AMQP connection: its handshake, its channels, and what waits for an answer of the core. Does not
//! know sockets, and not what its requests mean.

use std::collections::BTreeMap;

use ringpost_amqp::{
    Cut, FRAME_BYTES_MAX, FRAME_BYTES_MIN, FRAME_OVERHEAD, Frame, FrameType, Method,
    PROTOCOL_HEADER, ReplyCode, cut, frame, login,
};
use ringpost_wire::control::{Body, Failure, Hello};
use ringpost_wire::header::SETTLE_REQUEUE;
use ringpost_wire::ids::TenantId;
use ringpost_wire::table::{Table, TableWriter, Value};
use ringpost_wire::version::{MAGIC, VERSION_MAX};
use ringpost_wire::{Code, FRAME_HEADER_BYTES, FrameHeader, FrameKind, HEARTBEAT_MS_MAX, padded};

use super::channel::Channel;
use super::fault::Fault;
use super::publish::Batch;
use super::requests::Waits;
use super::settle::{Mark, Settling};
use crate::Effects;
use crate::data::flow::Flow;
use crate::ids::{ConnId, Mono};

/// Channels that a client may have open.
pub(super) const CHANNELS_MAX: u16 = 2047;
/// Seconds between heartbeats that clients are asked for.
const HEARTBEAT_S: u16 = 60;
/// How long a connection that holds deliveries may wait for credit, in ms: what it waits for may be the acks
/// that it has sent behind.
const WAITS_FOR_ITSELF_MS: u64 = 10_000;
/// Bytes of a name that a client gives itself which are kept.
const CLIENT_BYTES_MAX: usize = 255;

/// What an interpreter works with.
pub(crate) struct Talk<'a> {
    /// The core's state.
    pub(crate) flow: &'a mut Flow,
    /// What is to be done.
    pub(crate) effects: &'a mut Effects,
    /// Bytes of contents of all connections that are not whole yet.
    pub(crate) gathering: &'a mut u64,
}

impl Talk<'_> {
    /// Says something to a connection; also to one that the core has just ended, behind whose last words
    /// its close comes.
    pub(super) fn say(&mut self, conn: ConnId, write: impl FnOnce(&mut Vec<u8>)) {
        let bytes = self.effects.send(conn, write);
        if self.flow.sessions.get(conn).is_some() {
            self.flow.note_unsent(conn, bytes);
        }
    }
}

/// How far the conversation has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// The protocol header is awaited.
    Header,
    /// `start-ok` is.
    Start,
    /// `tune-ok` is.
    Tune,
    /// `open` is.
    Open,
    /// The core is asked for the tenant.
    Opening,
    Running,
    /// The connection has ended: whatever comes is ignored.
    Over,
}

/// What a native channel of the session is.
#[derive(Debug)]
pub(super) enum Native {
    Free,
    /// The producer of a channel.
    Publisher {
        channel: u16,
    },
    Consumer(Box<Consumer>),
}

/// How a consumer stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ConsumerState {
    Opening,
    Open,
    /// The client has cancelled it and holds deliveries of it still.
    Cancelled,
    /// The core is asked to close it.
    Closing,
}

/// A native consumer.
#[derive(Debug)]
pub(super) struct Consumer {
    /// The client's channel.
    pub(super) channel: u16,
    /// Its tag there.
    pub(super) tag: Box<[u8]>,
    pub(super) queue: Box<[u8]>,
    /// It is there for `basic.get` and has no tag.
    pub(super) is_getter: bool,
    pub(super) no_ack: bool,
    /// Its channel is closed: nothing of it is told.
    pub(super) is_mute: bool,
    pub(super) state: ConsumerState,
    /// Deliveries that the client has not settled.
    pub(super) outstanding: u64,
    /// Frames of deliveries that it gave back and that are not ready again yet.
    pub(super) returning: u32,
    /// The native tag of a large message that is not here to its end, 0 = none. It is settled, and the
    /// consumer closed, when it is: the core sends no rest of what it has no more.
    pub(super) large: u64,
    /// The outcome of that message, if the client has settled it.
    pub(super) late: Option<u8>,
    /// The core is to be asked to close it then.
    pub(super) closes_late: bool,
    /// A large message that comes while another one is being sent on the channel: as much as is here.
    pub(super) apart: Option<Vec<u8>>,
}

/// One step of the interpreter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// The frame is done with.
    Done,
    /// The same frame is to be looked at again, when what it waits for has come.
    Again,
}

/// A connection.
pub(crate) struct Session {
    pub(crate) conn: ConnId,
    /// The peer is on this machine.
    is_local: bool,
    pub(super) stage: Stage,
    /// The connection is to be closed when everything was said and stepped.
    must_end: bool,
    pub(super) tenant: TenantId,
    pub(super) host: Box<[u8]>,
    pub(super) frame_bytes_max: usize,
    channels_max: u16,
    /// Seconds; 0 = none.
    heartbeat_s: u16,
    client: Vec<u8>,
    /// Wants to be told why a login fails.
    hears_login_failure: bool,
    /// Wants to be told when a consumer is cancelled.
    pub(super) hears_cancel: bool,

    pub(super) channels: BTreeMap<u16, Box<Channel>>,
    /// By number, from 1.
    natives: Vec<Native>,
    natives_free: Vec<u16>,
    /// The request that is not answered: nothing more is looked at before.
    pub(super) waits: Option<Waits>,
    /// The number of that request among those to the core; other answers are not its own.
    pub(super) awaited: u64,
    /// The channel that waits for credit, 0 = none.
    pub(super) waits_credit: u16,
    /// Since when it got none.
    pub(super) waits_since: Option<Mono>,
    /// The channel that is to be closed when it was sent the rest of a large message, 0 = none.
    waits_large: u16,
    /// The next method looks at queues, and waits until what was done to them is to be seen.
    waits_rest: bool,
    /// Consumers that are told to be cancelled when the deletion of their queue is answered.
    pub(super) cancelled: Vec<(u16, Box<[u8]>)>,
    /// What it was told waits for its socket.
    is_deaf: bool,
    sequence: u64,
    /// Names given by this session.
    names: u64,
    /// Whole frames that were received and not looked at.
    stash: Vec<u8>,
    /// As many of those as were counted.
    pub(crate) counted: u64,

    /// Native frames to be stepped.
    pub(super) native: Vec<u8>,
    pub(super) batch: Option<Batch>,
    pub(super) settling: Vec<Settling>,

    /// A native delivery whose messages lie in a buffer.
    pub(super) tail: Option<FrameHeader>,
    /// Bytes of padding behind it.
    skip: usize,

    pub(super) scratch: Vec<u8>,
    pub(super) marks: Vec<Mark>,
}

impl Session {
    /// A connection just accepted.
    pub(crate) fn new(conn: ConnId, is_local: bool) -> Self {
        Self {
            conn,
            is_local,
            stage: Stage::Header,
            must_end: false,
            tenant: TenantId(0),
            host: Box::default(),
            frame_bytes_max: FRAME_BYTES_MAX,
            channels_max: CHANNELS_MAX,
            heartbeat_s: HEARTBEAT_S,
            client: Vec::new(),
            hears_login_failure: false,
            hears_cancel: false,
            channels: BTreeMap::new(),
            natives: Vec::new(),
            natives_free: Vec::new(),
            waits: None,
            awaited: 0,
            waits_credit: 0,
            waits_since: None,
            waits_large: 0,
            waits_rest: false,
            cancelled: Vec::new(),
            is_deaf: false,
            sequence: 0,
            names: 0,
            stash: Vec::new(),
            counted: 0,
            native: Vec::new(),
            batch: None,
            settling: Vec::new(),
            tail: None,
            skip: 0,
            scratch: Vec::new(),
            marks: Vec::new(),
        }
    }

    /// Whether it is to be read.
    pub(crate) fn is_read(&self) -> bool {
        self.stage == Stage::Over || (!self.is_stalled() && self.stash.is_empty())
    }

    /// Whether the peer need not be heard: it agreed on no heartbeats, or it is not listened to.
    pub(crate) fn is_excused(&self) -> bool {
        let is_open = matches!(self.stage, Stage::Opening | Stage::Running);
        let is_watched = (1..=HEARTBEAT_MS_MAX / 1_000).contains(&u32::from(self.heartbeat_s));
        (is_open && !is_watched) || !self.is_read()
    }

    /// Whether it has waited for credit for so long, and holds deliveries, that it seems to wait for its own
    /// acks.
    pub(crate) fn waits_for_itself(&self, now: Mono) -> bool {
        let holds = || {
            let mut channels = self.channels.values();
            channels.any(|channel| !channel.unacked.is_empty())
        };
        let is_late = |since: Mono| now.ms_since(since) >= WAITS_FOR_ITSELF_MS;
        self.waits_credit != 0 && self.waits_since.is_some_and(is_late) && holds()
    }

    /// Ends the connection for that.
    pub(crate) fn give_up(&mut self, talk: &mut Talk<'_>) {
        let why = "no queue that it publishes to has room, and what it would acknowledge to make some is \
                   behind: consume and publish on connections of their own";
        let fault = Fault::new(ReplyCode::ConnectionForced, why, (60, 40));
        self.fail(0, fault, talk);
    }

    /// Whether it waits for its socket.
    pub(crate) const fn is_deaf(&self) -> bool {
        self.is_deaf
    }

    /// Lends it memory for native frames, if it has none.
    pub(crate) fn lend(&mut self, native: &mut Vec<u8>) {
        if self.native.capacity() == 0 {
            std::mem::swap(&mut self.native, native);
        }
    }

    /// The native frames that are to be stepped.
    pub(crate) fn take_native(&mut self) -> Vec<u8> {
        debug_assert!(self.batch.is_none() && self.settling.is_empty());
        std::mem::take(&mut self.native)
    }

    /// Whether the connection is to be closed, now that its frames were stepped.
    pub(crate) const fn must_end(&self) -> bool {
        self.must_end
    }

    /// Bytes counted for its contents that are not whole.
    pub(crate) fn gathered(&self) -> u64 {
        self.channels.values().map(|channel| channel.gathered).sum()
    }

    /// Bytes that were received and wait for the core. Those that wait for their client to read what it was
    /// told are bounded by what may be unsent.
    pub(crate) fn stashed(&self) -> u64 {
        match self.is_deaf || self.waits_large != 0 {
            true => 0,
            false => self.stash.len() as u64,
        }
    }

    fn is_stalled(&self) -> bool {
        let is_sent = self.waits_large == 0 || !self.is_sending_large(self.waits_large);
        let is_at_rest = !self.waits_rest || self.is_at_rest();
        self.waits.is_some() || self.waits_credit != 0 || self.is_deaf || !is_sent || !is_at_rest
    }

    /// Whether a channel is being sent a large message.
    fn is_sending_large(&self, number: u16) -> bool {
        self.natives.iter().any(|native| match native {
            Native::Consumer(consumer) => consumer.channel == number && consumer.large != 0,
            Native::Free | Native::Publisher { .. } => false,
        })
    }

    /// Whether everything is at rest, when what was gathered is counted in.
    fn settles_first(&mut self) -> bool {
        self.flush();
        self.is_at_rest()
    }

    /// Whether everything that was published and given back is where others see it.
    fn is_at_rest(&self) -> bool {
        let is_told = |channel: &Channel| channel.told + 1 >= channel.publisher.next;
        let is_back = |native: &Native| match native {
            Native::Consumer(consumer) => {
                consumer.returning == 0 && consumer.late != Some(SETTLE_REQUEUE)
            }
            Native::Free | Native::Publisher { .. } => true,
        };
        self.channels.values().all(|channel| is_told(channel)) && self.natives.iter().all(is_back)
    }

    /// Takes whole frames of the client, or its protocol header.
    pub(crate) fn take(&mut self, bytes: &[u8], talk: &mut Talk<'_>) {
        if self.stage == Stage::Over {
            return;
        }
        if !self.stash.is_empty() {
            self.stash.extend_from_slice(bytes);
        } else {
            let used = self.run(bytes, talk);
            if self.stage != Stage::Over {
                self.stash.extend_from_slice(&bytes[used..]);
            }
        }
        self.flush();
    }

    /// Goes on with what was received, if nothing more is waited for.
    pub(crate) fn resume(&mut self, talk: &mut Talk<'_>) {
        self.is_deaf &= talk.flow.is_deaf(self.conn);
        self.waits_rest &= !self.is_at_rest();
        if !self.is_sending_large(self.waits_large) {
            self.waits_large = 0;
        }
        if self.waits_credit != 0 {
            self.go_on_publishing(talk);
        }
        if !self.is_stalled() && !self.stash.is_empty() {
            let mut stash = std::mem::take(&mut self.stash);
            let used = self.run(&stash, talk);
            if used < stash.len() && self.stage != Stage::Over {
                stash.drain(..used);
                self.stash = stash;
            }
        }
        self.flush();
    }

    /// Looks at frames until one must wait; says how many bytes are done with.
    fn run(&mut self, bytes: &[u8], talk: &mut Talk<'_>) -> usize {
        let mut at = 0;
        if self.stage == Stage::Header {
            let Some(header) = bytes.get(..PROTOCOL_HEADER.len()) else {
                return 0;
            };
            at = header.len();
            self.greet(header, talk);
        }
        while at < bytes.len() && self.stage != Stage::Over && !self.is_stalled() {
            if talk.flow.is_deaf(self.conn) {
                self.is_deaf = true;
                break;
            }
            let verdict = match cut(&bytes[at..], self.frame_bytes_max) {
                Cut::Complete { frame, length } => {
                    self.frame(frame, talk).map(|step| (step, length))
                }
                // Whoever received them cut them, by a larger bound.
                Cut::Incomplete { .. } => break,
                Cut::Malformed(error) => Err((0, error.into())),
            };
            match verdict {
                Ok((Step::Done, length)) => at += length,
                Ok((Step::Again, _)) => break,
                Err((channel, fault)) => {
                    if let Cut::Complete { length, .. } = cut(&bytes[at..], self.frame_bytes_max) {
                        at += length;
                    }
                    self.fail(channel, fault, talk);
                }
            }
        }
        at
    }

    /// Everything that was gathered is to be stepped.
    fn flush(&mut self) {
        self.flush_batch();
        self.flush_settling();
    }

    /// The client's first bytes.
    fn greet(&mut self, header: &[u8], talk: &mut Talk<'_>) {
        if header != PROTOCOL_HEADER {
            talk.say(self.conn, |out| out.extend_from_slice(&PROTOCOL_HEADER));
            self.end();
            return;
        }
        self.stage = Stage::Start;
        let server = talk.flow.config.server.clone();
        let (product, version) = server.split_once(' ').unwrap_or((&server, "0.0.0"));
        let mut abilities = Vec::new();
        let mut writer = TableWriter::new(&mut abilities);
        for name in [
            "publisher_confirms",
            "exchange_exchange_bindings",
            "basic.nack",
            "consumer_cancel_notify",
            "consumer_priorities",
            "authentication_failure_close",
            "per_consumer_qos",
            "direct_reply_to",
        ] {
            writer.put(name.as_bytes(), Value::Bool(true));
        }
        writer.put(b"connection.blocked", Value::Bool(false));
        writer.finish().expect("a small table");
        let abilities = Table::parse(&abilities).expect("it was just written");
        let mut properties = Vec::new();
        let mut writer = TableWriter::new(&mut properties);
        writer
            .put(b"capabilities", Value::Table(abilities))
            .put(b"cluster_name", Value::Text(product.as_bytes()))
            .put(b"platform", Value::Text(b"Rust"))
            .put(b"product", Value::Text(product.as_bytes()))
            .put(b"version", Value::Text(version.as_bytes()));
        writer.finish().expect("a small table");
        let start = Method::ConnectionStart {
            version_major: 0,
            version_minor: 9,
            server_properties: &properties,
            mechanisms: login::MECHANISMS,
            locales: b"en_US",
        };
        self.tell(0, &start, talk);
    }

    /// One frame. An error names the channel that it ends, 0 = the connection.
    fn frame(&mut self, frame: Frame<'_>, talk: &mut Talk<'_>) -> Result<Step, (u16, Fault)> {
        let number = frame.channel;
        match frame.kind {
            FrameType::Heartbeat if number == 0 => Ok(Step::Done),
            FrameType::Heartbeat => {
                let why = "a heartbeat is of no channel";
                Err((0, Fault::new(ReplyCode::FrameError, why, (0, 0))))
            }
            FrameType::Method => {
                let method = Method::decode(frame.payload).map_err(|error| {
                    let of = frame.payload.first_chunk::<4>();
                    let of = of.map_or((0, 0), |raw| {
                        let [a, b, c, d] = *raw;
                        (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
                    });
                    (0, Fault::new(error.code, error.why, of))
                })?;
                if number == 0 {
                    self.connection_method(&method, talk)
                        .map_err(|fault| (0, fault))?;
                    return Ok(Step::Done);
                }
                let step = self.channel_method(number, &method, talk);
                step.map_err(|fault| (number, fault))
            }
            FrameType::Header | FrameType::Body => {
                let step = self.content_frame(number, frame.kind, frame.payload, talk);
                step.map_err(|fault| (number, fault))
            }
        }
    }

    fn connection_method(&mut self, method: &Method<'_>, talk: &mut Talk<'_>) -> Result<(), Fault> {
        let of = method.number();
        match (self.stage, method) {
            (_, Method::ConnectionClose { .. }) => {
                self.close_all(talk);
                Ok(())
            }
            (_, Method::ConnectionCloseOk {}) => {
                self.end();
                Ok(())
            }
            (
                Stage::Start,
                Method::ConnectionStartOk {
                    client_properties,
                    mechanism,
                    response,
                    ..
                },
            ) => self.log_in(client_properties, mechanism, response, talk),
            (
                Stage::Tune,
                Method::ConnectionTuneOk {
                    channel_max,
                    frame_max,
                    heartbeat,
                },
            ) => self.tune(*channel_max, *frame_max, *heartbeat, of),
            (Stage::Open, Method::ConnectionOpen { virtual_host, .. }) => {
                self.open(virtual_host);
                Ok(())
            }
            (Stage::Running, Method::ConnectionUpdateSecret { .. }) => {
                self.tell(0, &Method::ConnectionUpdateSecretOk {}, talk);
                Ok(())
            }
            // Who was told that it is blocked may say so.
            (Stage::Running, Method::ConnectionBlocked { .. } | Method::ConnectionUnblocked {}) => {
                Ok(())
            }
            (Stage::Running, method) if method.number().0 != 10 => {
                let why = format!("'{}' is of a channel", method.name());
                Err(Fault::new(ReplyCode::ChannelError, &why, of))
            }
            (_, method) => {
                let why = format!("unexpected method '{}'", method.name());
                Err(Fault::new(ReplyCode::CommandInvalid, &why, of))
            }
        }
    }

    fn log_in(
        &mut self,
        properties: &[u8],
        mechanism: &[u8],
        response: &[u8],
        talk: &mut Talk<'_>,
    ) -> Result<(), Fault> {
        let of = (10, 11);
        let malformed = |_| {
            let why = "client-properties are no field table within its limits";
            Fault::new(ReplyCode::SyntaxError, why, of)
        };
        let properties = Table::parse(properties).map_err(malformed)?;
        if let Some(Value::Table(abilities)) = properties.get(b"capabilities") {
            let has = |name: &[u8]| {
                let value = abilities.get(name);
                value.and_then(|value| value.as_bool()).unwrap_or(false)
            };
            self.hears_login_failure = has(b"authentication_failure_close");
            self.hears_cancel = has(b"consumer_cancel_notify");
        }
        let text = |name: &[u8]| properties.get(name).and_then(|value| value.as_text());
        self.client = match text(b"connection_name") {
            Some(name) => name.to_vec(),
            None => [
                text(b"product").unwrap_or(b"AMQP client"),
                text(b"version").unwrap_or(b""),
            ]
            .join(&b' '),
        };
        self.client.truncate(CLIENT_BYTES_MAX);
        let mut mechanisms = login::MECHANISMS.split(|byte| *byte == b' ');
        if !mechanisms.any(|known| known == mechanism) {
            let mechanism = String::from_utf8_lossy(mechanism);
            let why = format!("unknown authentication mechanism '{mechanism}'");
            return Err(Fault::new(ReplyCode::CommandInvalid, &why, of));
        }
        let is_guest = login::read(mechanism, response)
            .is_some_and(|login| login.user == b"guest" && login.password == b"guest");
        if is_guest && self.is_local {
            self.stage = Stage::Tune;
            let tune = Method::ConnectionTune {
                channel_max: CHANNELS_MAX,
                frame_max: FRAME_BYTES_MAX as u32,
                heartbeat: HEARTBEAT_S,
            };
            self.tell(0, &tune, talk);
            return Ok(());
        }
        if !self.hears_login_failure {
            self.end();
            return Ok(());
        }
        let mechanism = String::from_utf8_lossy(mechanism);
        let why = format!(
            "Login was refused using authentication mechanism {mechanism}: the one user is guest, whose \
             password is guest, on the machine of the broker"
        );
        Err(Fault::new(ReplyCode::AccessRefused, &why, of).of_connection())
    }

    fn tune(
        &mut self,
        channels: u16,
        frame_bytes: u32,
        heartbeat_s: u16,
        of: (u16, u16),
    ) -> Result<(), Fault> {
        let above = |what: &str, asked: u64, most: u64| {
            let why = format!(
                "negotiated {what} = {asked} is higher than the maximum allowed value ({most})"
            );
            Fault::new(ReplyCode::NotAllowed, &why, of)
        };
        if channels > CHANNELS_MAX {
            return Err(above("channel_max", channels.into(), CHANNELS_MAX.into()));
        }
        if frame_bytes as usize > FRAME_BYTES_MAX {
            return Err(above(
                "frame_max",
                frame_bytes.into(),
                FRAME_BYTES_MAX as u64,
            ));
        }
        if frame_bytes != 0 && (frame_bytes as usize) < FRAME_BYTES_MIN {
            let why = format!(
                "negotiated frame_max = {frame_bytes} is lower than the minimum allowed value \
                 ({FRAME_BYTES_MIN})"
            );
            return Err(Fault::new(ReplyCode::NotAllowed, &why, of));
        }
        // 0 is no limit of the client's.
        self.channels_max = if channels == 0 {
            CHANNELS_MAX
        } else {
            channels
        };
        self.frame_bytes_max = match frame_bytes as usize {
            0 => FRAME_BYTES_MAX,
            bytes => bytes,
        };
        self.heartbeat_s = heartbeat_s;
        self.stage = Stage::Open;
        Ok(())
    }

    /// `connection.open`: the tenant of the virtual host's name, `/` for the default one.
    fn open(&mut self, host: &[u8]) {
        self.host = host.into();
        self.stage = Stage::Opening;
        self.waits = Some(Waits::Welcome);
        let client = std::mem::take(&mut self.client);
        let heartbeat_ms = match self.heartbeat_s {
            0 => HEARTBEAT_MS_MAX,
            seconds => u32::from(seconds) * 1_000,
        };
        let hello = Hello {
            magic: MAGIC,
            version_min: VERSION_MAX,
            version_max: VERSION_MAX,
            heartbeat_ms,
            message_bytes_max: 0,
            tenant: if host == b"/" { b"" } else { host },
            client: &client,
        };
        hello.write(&mut self.native, FrameHeader::bare(FrameKind::Hello, 0, 0));
    }

    /// The core has let the connection in.
    fn welcomed(&mut self, talk: &mut Talk<'_>) {
        self.waits = None;
        self.stage = Stage::Running;
        if let Some(session) = talk.flow.sessions.get_mut(self.conn) {
            session.is_nameless = true;
            if let Some(agreed) = session.agreed() {
                self.tenant = agreed.tenant;
            }
        }
        self.tell(0, &Method::ConnectionOpenOk { reserved_1: b"" }, talk);
    }

    fn channel_method(
        &mut self,
        number: u16,
        method: &Method<'_>,
        talk: &mut Talk<'_>,
    ) -> Result<Step, Fault> {
        let of = method.number();
        if self.stage != Stage::Running {
            let why = format!("'{}' before the connection is open", method.name());
            return Err(Fault::new(ReplyCode::ChannelError, &why, of).of_connection());
        }
        if let Method::ChannelOpen { .. } = method {
            if number > self.channels_max {
                let why = format!(
                    "channel number {number} is above the negotiated channel_max ({})",
                    self.channels_max
                );
                return Err(Fault::new(ReplyCode::NotAllowed, &why, of));
            }
            if self.channels.contains_key(&number) {
                let why = "second 'channel.open' seen";
                return Err(Fault::new(ReplyCode::ChannelError, why, of));
            }
            self.channels.insert(number, Box::new(Channel::new()));
            self.tell(number, &Method::ChannelOpenOk { reserved_1: b"" }, talk);
            return Ok(Step::Done);
        }
        let is_close = matches!(method, Method::ChannelClose { .. });
        let is_sending = is_close && self.is_sending_large(number);
        let Some(channel) = self.channels.get_mut(&number) else {
            // An answer to a close that crossed the client's own.
            if matches!(method, Method::ChannelCloseOk {}) {
                return Ok(Step::Done);
            }
            let why = "expected 'channel.open'";
            return Err(Fault::new(ReplyCode::ChannelError, why, of));
        };
        match method {
            Method::ChannelCloseOk {} => {
                if channel.is_closing {
                    self.channels.remove(&number);
                }
                return Ok(Step::Done);
            }
            Method::ChannelClose { .. } if channel.is_closing => {
                // Both sides have closed it: each answers the other.
                self.tell(number, &Method::ChannelCloseOk {}, talk);
                return Ok(Step::Done);
            }
            _ if channel.is_closing => return Ok(Step::Done),
            Method::ChannelClose { .. } if is_sending => {
                self.waits_large = number;
                return Ok(Step::Again);
            }
            Method::ChannelClose { .. } => {
                self.close_channel(number, talk);
                return Ok(Step::Done);
            }
            _ => {}
        }
        if channel.expect != super::channel::Expect::Method {
            let why = "expected a frame of the content that was begun, got a method";
            return Err(Fault::new(ReplyCode::UnexpectedFrame, why, of));
        }
        match *method {
            Method::ChannelFlow { active: true } => {
                self.tell(number, &Method::ChannelFlowOk { active: true }, talk);
                Ok(Step::Done)
            }
            Method::ChannelFlow { active: false } => {
                Err(Fault::new(ReplyCode::NotImplemented, "active=false", of))
            }
            Method::AccessRequest { .. } => {
                self.tell(number, &Method::AccessRequestOk { ticket: 1 }, talk);
                Ok(Step::Done)
            }
            Method::TxSelect {} | Method::TxCommit {} | Method::TxRollback {} => {
                let why = "this version has no transactions";
                Err(Fault::new(ReplyCode::NotImplemented, why, of))
            }
            Method::ConfirmSelect { no_wait } => {
                let channel = self.channels.get_mut(&number).expect("it was looked at");
                if channel.confirms_from.is_none() {
                    let before = channel.publisher.next.saturating_sub(1);
                    channel.confirms_from = Some(before);
                    channel.told = before;
                }
                if !no_wait {
                    self.tell(number, &Method::ConfirmSelectOk {}, talk);
                }
                Ok(Step::Done)
            }
            Method::BasicPublish { .. } => self.publish(number, method),
            Method::BasicAck { .. }
            | Method::BasicNack { .. }
            | Method::BasicReject { .. }
            | Method::BasicRecover { .. }
            | Method::BasicRecoverAsync { .. } => {
                self.settle_method(number, method, talk)?;
                Ok(Step::Done)
            }
            Method::BasicGet { .. }
            | Method::QueueDeclare { .. }
            | Method::QueuePurge { .. }
            | Method::QueueDelete { .. }
                if !self.settles_first() =>
            {
                self.waits_rest = true;
                Ok(Step::Again)
            }
            _ => {
                self.request_method(number, method, talk)?;
                Ok(Step::Done)
            }
        }
    }

    /// Ends a channel or the connection with a fault, and tells why.
    pub(super) fn fail(&mut self, channel: u16, fault: Fault, talk: &mut Talk<'_>) {
        let mut text = fault.text;
        let mut end = text.len().min(255);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        let (reply_code, reply_text) = (fault.code.number(), text.as_bytes());
        let (class_id, method_id) = fault.of;
        let state = self.channels.get(&channel);
        // The rest of a content that is being sent would not come.
        let is_cut = state.is_none_or(|state| state.streams != 0);
        if fault.ends_connection || channel == 0 || is_cut {
            if !matches!(self.stage, Stage::Header | Stage::Over) {
                let close = Method::ConnectionClose {
                    reply_code,
                    reply_text,
                    class_id,
                    method_id,
                };
                self.tell(0, &close, talk);
            }
            self.end();
            return;
        }
        let close = Method::ChannelClose {
            reply_code,
            reply_text,
            class_id,
            method_id,
        };
        self.tell(channel, &close, talk);
        self.abandon(channel);
        if let Some(state) = self.channels.get_mut(&channel) {
            *talk.gathering -= state.gathered;
            let mut closed = Channel::new();
            closed.is_closing = true;
            **state = closed;
        }
        if self.waits_credit == channel {
            self.waits_credit = 0;
        }
    }

    /// The connection is over as soon as what it said was stepped.
    pub(super) fn end(&mut self) {
        self.flush();
        self.stage = Stage::Over;
        self.must_end = true;
        self.waits = None;
        self.waits_credit = 0;
        self.stash = Vec::new();
    }

    /// Says a method, behind the content that is being sent on the same channel, if there is one.
    pub(super) fn tell(&mut self, number: u16, method: &Method<'_>, talk: &mut Talk<'_>) {
        let write = |out: &mut Vec<u8>| {
            frame::write(out, FrameType::Method, number, |out| method.encode(out));
        };
        match self.channels.get_mut(&number) {
            Some(channel) if channel.streams != 0 => write(&mut channel.held),
            _ => talk.say(self.conn, write),
        }
    }

    /// Native frames behind those before; publishes and settlements that were gathered come first.
    pub(super) fn native(&mut self) -> &mut Vec<u8> {
        self.flush();
        &mut self.native
    }

    /// The number of the next request.
    pub(super) fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Takes a native channel; `None` if there are as many as there may be.
    pub(super) fn add_native(&mut self, native: Native) -> Option<u16> {
        if let Some(number) = self.natives_free.pop() {
            self.natives[usize::from(number) - 1] = native;
            return Some(number);
        }
        if self.natives.len() >= usize::from(ringpost_wire::CHANNELS_MAX) {
            return None;
        }
        self.natives.push(native);
        Some(self.natives.len() as u16)
    }

    /// What a native channel is.
    pub(super) fn native_of(&mut self, number: u16) -> &mut Native {
        let idx = usize::from(number).checked_sub(1).expect("a channel");
        self.natives.get_mut(idx).expect("it was opened")
    }

    /// The native consumer of that number.
    pub(super) fn consumer_of(&mut self, number: u16) -> Option<&mut Consumer> {
        let idx = usize::from(number).checked_sub(1)?;
        match self.natives.get_mut(idx)? {
            Native::Consumer(consumer) => Some(consumer),
            Native::Free | Native::Publisher { .. } => None,
        }
    }

    /// A native channel is closed, and its number free.
    pub(super) fn free_native(&mut self, number: u16) {
        *self.native_of(number) = Native::Free;
        self.natives_free.push(number);
    }

    /// Numbers of the native channels of a channel of the client.
    pub(super) fn natives_of(&self, channel: u16) -> Vec<u16> {
        let is_of = |native: &Native| match native {
            Native::Publisher { channel: of } => *of == channel,
            Native::Consumer(consumer) => consumer.channel == channel && !consumer.is_mute,
            Native::Free => false,
        };
        let numbers = self.natives.iter().zip(1..);
        numbers
            .filter(|(native, _)| is_of(native))
            .map(|(_, number)| number)
            .collect()
    }

    /// A name that nobody else has: the clock tells it from those before a restart.
    pub(super) fn new_name(&mut self, prefix: &str, talk: &Talk<'_>) -> Vec<u8> {
        const LETTERS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        self.names += 1;
        let core = u64::from(talk.flow.config.core.0);
        let mut mixed = mix(self.conn.0 ^ core << 48);
        mixed = mix(mixed ^ talk.flow.wall_us);
        let second = mix(mixed ^ self.names);
        let mut name = prefix.as_bytes().to_vec();
        for word in [mixed, second] {
            for place in 0..11 {
                name.push(LETTERS[(word >> (6 * place)) as usize & 63]);
            }
        }
        name
    }

    /// Takes what the core says to the connection: native frames, of which the last may be the head of a
    /// delivery whose messages come with [`Session::hear_buffer`].
    pub(crate) fn hear(&mut self, bytes: &[u8], talk: &mut Talk<'_>) {
        let skip = self.skip.min(bytes.len());
        self.skip -= skip;
        let mut rest = &bytes[skip..];
        while !rest.is_empty() {
            match ringpost_wire::cut(rest, ringpost_wire::FRAME_BYTES_MAX) {
                ringpost_wire::Cut::Complete { header, length } => {
                    let end = FRAME_HEADER_BYTES + header.body_bytes as usize;
                    self.native_frame(header, &rest[FRAME_HEADER_BYTES..end], talk);
                    rest = &rest[length..];
                }
                ringpost_wire::Cut::Incomplete { .. } => {
                    let head = rest.first_chunk().expect("heads are whole");
                    let header = FrameHeader::decode(head).expect("the core writes them");
                    self.tail = Some(header);
                    return;
                }
                ringpost_wire::Cut::Malformed(code) => {
                    unreachable!("the core writes frames: {code}")
                }
            }
        }
    }

    /// Takes the messages of a delivery from a buffer.
    pub(crate) fn hear_buffer(
        &mut self,
        buffer: crate::BufferId,
        from: u32,
        bytes: &[u8],
        talk: &mut Talk<'_>,
    ) {
        let header = self.tail.take().expect("its head came before");
        let body_bytes = header.body_bytes as usize;
        self.skip = padded(body_bytes) - body_bytes;
        if self.stage != Stage::Running {
            return;
        }
        match header.kind {
            FrameKind::Deliver => self.deliver(&header, bytes, Some((buffer, from)), talk),
            _ => self.deliver_piece(&header, bytes, Some((buffer, from)), talk),
        }
    }

    fn native_frame(&mut self, header: FrameHeader, body: &[u8], talk: &mut Talk<'_>) {
        if header.kind == FrameKind::Close {
            self.closed_by_core(body, talk);
            return;
        }
        match (self.stage, header.kind) {
            (Stage::Over, _) => {}
            (Stage::Opening, FrameKind::Welcome) => self.welcomed(talk),
            (_, FrameKind::Heartbeat) => {
                if self.heartbeat_s > 0 {
                    talk.say(self.conn, |out| {
                        frame::write(out, FrameType::Heartbeat, 0, |_| {});
                    });
                }
            }
            (Stage::Running, FrameKind::Deliver) => {
                let messages = &body[ringpost_wire::DeliverHead::BYTES..];
                self.deliver(&header, messages, None, talk);
            }
            (Stage::Running, FrameKind::DeliverFragment) => {
                let piece = &body[ringpost_wire::DeliverHead::BYTES..];
                self.deliver_piece(&header, piece, None, talk);
            }
            (Stage::Running, FrameKind::Confirm | FrameKind::ProducerCredit) => {
                self.confirmed(&header, body, talk);
            }
            (Stage::Running, FrameKind::Refused) => self.refused(&header, body, talk),
            (Stage::Running, _) => self.answered(&header, body, talk),
            (_, _) => {}
        }
    }

    /// The core ends the connection, and says why.
    fn closed_by_core(&mut self, body: &[u8], talk: &mut Talk<'_>) {
        let failure = Failure::decode(body).ok();
        let code = failure.map_or(Code::Internal, |failure| Code::from_number(failure.code));
        let reason = failure.map(|failure| String::from_utf8_lossy(failure.reason).into_owned());
        let reason = reason.unwrap_or_default();
        let is_agreed = !matches!(self.stage, Stage::Header | Stage::Start | Stage::Over);
        // A peer that was not heard would not hear this.
        if is_agreed && code != Code::TimedOut && code != Code::Normal {
            let subject = super::fault::Subject {
                what: "vhost",
                name: &self.host,
                host: &self.host,
            };
            let mut fault = match code {
                Code::TenantUnknown | Code::ShuttingDown => {
                    super::fault::of_failure(code, &reason, subject, false, (10, 40))
                }
                Code::FrameMalformed | Code::FrameTooLarge => {
                    Fault::new(ReplyCode::FrameError, &reason, (0, 0))
                }
                Code::Overloaded => Fault::new(ReplyCode::ConnectionForced, &reason, (0, 0)),
                _ => Fault::new(ReplyCode::InternalError, &reason, (0, 0)),
            };
            if code == Code::ShuttingDown {
                fault.of = (0, 0);
            }
            self.fail(0, fault, talk);
        }
        self.stage = Stage::Over;
        self.must_end = false;
        self.native.clear();
        self.batch = None;
        self.settling.clear();
    }
}

/// Bytes of a body that fit one frame.
pub(super) const fn body_bytes_max(frame_bytes_max: usize) -> usize {
    frame_bytes_max - FRAME_OVERHEAD
}

/// Spreads the bits of a number (splitmix64).
pub(super) const fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
