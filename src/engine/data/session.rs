//! One connection's protocol state: handshake, channels, heartbeats, bytes not yet sent.
//! Does not know sockets, and not what its producers and consumers do.

use ringpost_wire::control::{Body, Hello, Welcome};
use ringpost_wire::ids::{CoreId, QueueId, TenantId};
use ringpost_wire::version::{self, MAGIC};
use ringpost_wire::{
    CHANNELS_MAX, Code, FRAME_BYTES_MAX, FrameHeader, FrameKind, HEARTBEAT_MS_MAX, HEARTBEAT_MS_MIN,
};

use crate::config::CoreConfig;
use crate::ids::{ConnId, Mono};

/// Words of the bits for all channel numbers, 0 among them.
const ASKED_WORDS: usize = CHANNELS_MAX as usize / 64 + 1;
/// Channels for which a connection keeps the memory when it has closed them.
const CHANNELS_KEPT: usize = 8;

/// A channel of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Channel {
    /// Never used.
    #[default]
    Free,
    /// Was used, or asked for, and is free again: frames that are late for it are ignored (P-15).
    Closed,
    /// A producer that the other cores are asked about: its key among the openings of this core.
    ProducerOpening(u64),
    /// A producer: its key on this core.
    Producer(u64),
    /// Transactions: the key of the one that is open, on this core.
    Transaction(u64),
    /// A consumer whose owning core has been asked to open it.
    ConsumerOpening {
        /// The queue.
        queue: QueueId,
        /// The core that owns the queue.
        owner: CoreId,
    },
    /// A consumer.
    Consumer {
        /// The queue.
        queue: QueueId,
        /// The core that owns the queue.
        owner: CoreId,
        /// Its key there.
        key: u64,
    },
    /// A consumer whose owning core was asked to close it: its last frames are on their way.
    ConsumerClosing {
        /// Its key there.
        key: u64,
    },
}

impl Channel {
    /// Whether its number may be used for something new.
    #[must_use]
    pub const fn is_free(self) -> bool {
        matches!(self, Self::Free | Self::Closed)
    }
}

/// What was agreed in the handshake.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Agreed {
    /// The tenant.
    pub tenant: TenantId,
    /// Heartbeat interval, in ms.
    pub heartbeat_ms: u32,
    /// Largest message the peer takes, in bytes.
    pub message_bytes_max: u32,
}

/// What a core knows of a connection that it hands over. It has no channels.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Handover {
    /// What was agreed.
    pub agreed: Agreed,
    /// What the client calls itself.
    pub client: String,
    /// The `Attach` request that the adopting core answers.
    pub sequence: u64,
    /// Whole frames that came behind it, to be stepped after the answer.
    pub rest: Vec<u8>,
}

/// How far the conversation has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// `Hello` is awaited.
    Handshake,
    /// Any frame may come.
    Open(Agreed),
}

/// A connection.
#[derive(Debug)]
pub struct Session {
    /// Its number.
    pub conn: ConnId,
    /// How far the conversation has come.
    pub stage: Stage,
    /// What the client calls itself.
    pub client: String,
    /// Those in use, by number: what a client asks for once and leaves must cost it a bit, not a
    /// place in a table as long as its number is high.
    channels: Vec<(u16, Channel)>,
    /// A bit for each number that was ever asked for; nothing until one was.
    asked: Option<Box<[u64; ASKED_WORDS]>>,
    /// Channels in use.
    pub channels_open: u32,
    /// Bytes given to the shell and not yet taken by the socket.
    pub unsent: u64,
    /// When the socket last took bytes, or had taken all.
    pub took: Mono,
    /// These were too many: its consumers are offered nothing until they are few.
    pub behind: bool,
    /// When the peer was last heard.
    pub heard: Mono,
    /// When something was last sent.
    pub spoke: Mono,
    /// The last time that too many requests waited and this connection sent another one; see
    /// `Flow::press`.
    pub pressed_in: u64,
    /// It has asked for queues that go with it. It stays on its core (P-13).
    pub owns_queues: bool,
    /// Its producers have no names (ADR 0024).
    pub is_nameless: bool,
}

/// What a session wants after a `Hello`.
pub enum Greeting {
    /// Reply with this and go on.
    Welcome(Agreed),
    /// Say this and hang up.
    Refuse(Code, &'static str),
}

impl Session {
    /// A connection just accepted.
    #[must_use]
    pub fn new(conn: ConnId, now: Mono) -> Self {
        Self {
            conn,
            stage: Stage::Handshake,
            client: String::new(),
            channels: Vec::new(),
            asked: None,
            channels_open: 0,
            unsent: 0,
            took: now,
            behind: false,
            heard: now,
            spoke: now,
            pressed_in: 0,
            owns_queues: false,
            is_nameless: false,
        }
    }

    /// A connection handed over by another core.
    #[must_use]
    pub fn adopt(conn: ConnId, handover: Handover, now: Mono) -> Self {
        let mut session = Self::new(conn, now);
        session.stage = Stage::Open(handover.agreed);
        session.client = handover.client;
        session
    }

    /// What was agreed, once it was.
    #[must_use]
    pub const fn agreed(&self) -> Option<Agreed> {
        match self.stage {
            Stage::Open(agreed) => Some(agreed),
            Stage::Handshake => None,
        }
    }

    /// The channel with this number; numbers never used are free.
    #[must_use]
    pub fn channel(&self, number: u16) -> Channel {
        match self.place(number) {
            Ok(place) => self.channels[place].1,
            Err(_) if self.was_asked(number) => Channel::Closed,
            Err(_) => Channel::Free,
        }
    }

    /// Where a channel in use stands, or would.
    fn place(&self, number: u16) -> Result<usize, usize> {
        self.channels
            .binary_search_by_key(&number, |(number, _)| *number)
    }

    fn was_asked(&self, number: u16) -> bool {
        let word = self.asked.as_ref();
        let word = word.and_then(|words| words.get(usize::from(number / 64)));
        word.is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    /// Takes a number that a client asks for out of those that were never used: whatever becomes of
    /// the request, frames may be on their way to it already (P-10).
    ///
    /// # Errors
    /// [`Code::ChannelInvalid`] if the number is out of range or in use.
    //= P-14
    pub fn ask(&mut self, number: u16) -> Result<(), Code> {
        if number == 0 || number > CHANNELS_MAX || !self.channel(number).is_free() {
            return Err(Code::ChannelInvalid);
        }
        let words = self.asked.get_or_insert_with(|| Box::new([0; ASKED_WORDS]));
        words[usize::from(number / 64)] |= 1 << (number % 64);
        Ok(())
    }

    /// Uses a number that was asked for.
    pub fn claim(&mut self, number: u16, channel: Channel) {
        assert!(!channel.is_free(), "claim takes a channel into use");
        assert!(self.channel(number) == Channel::Closed, "it was asked for");
        let place = self.place(number).expect_err("it is not in use");
        self.channels.insert(place, (number, channel));
        self.channels_open += 1;
    }

    /// Changes a channel in use.
    pub fn set(&mut self, number: u16, channel: Channel) {
        let place = self.place(number).expect("only a channel in use changes");
        if !channel.is_free() {
            self.channels[place].1 = channel;
            return;
        }
        self.channels.remove(place);
        self.channels_open -= 1;
        // Many were in use and are not: their memory belongs to others.
        if self.channels.capacity() > 4 * self.channels.len().max(CHANNELS_KEPT) {
            self.channels.shrink_to(2 * self.channels.len());
        }
    }

    /// The channels in use, with their numbers.
    pub fn channels(&self) -> impl Iterator<Item = (u16, Channel)> + '_ {
        self.channels.iter().copied()
    }

    /// Judges a `Hello` (P-7, P-8); `tenant` finds a tenant by name.
    pub fn greet(
        &mut self,
        config: &CoreConfig,
        body: &[u8],
        tenant: impl FnOnce(&[u8]) -> Option<TenantId>,
    ) -> Greeting {
        let Ok(hello) = Hello::decode(body) else {
            return Greeting::Refuse(Code::BodyMalformed, "the hello body is malformed");
        };
        if hello.magic != MAGIC {
            return Greeting::Refuse(Code::BodyMalformed, "this is not the Ringpost protocol");
        }
        if version::agree(hello.version_min, hello.version_max).is_none() {
            return Greeting::Refuse(
                Code::VersionUnsupported,
                "no protocol version is spoken by both sides; this broker speaks version 1",
            );
        }
        let Some(tenant) = tenant(hello.tenant) else {
            return Greeting::Refuse(Code::TenantUnknown, "there is no such tenant");
        };
        let heartbeat_ms = match hello.heartbeat_ms {
            0 => config.limits.heartbeat_ms,
            asked => asked.clamp(HEARTBEAT_MS_MIN, HEARTBEAT_MS_MAX),
        };
        let message_bytes_max = match hello.message_bytes_max {
            0 => config.limits.message_bytes_max,
            asked => asked.min(config.limits.message_bytes_max),
        };
        let agreed = Agreed {
            tenant,
            heartbeat_ms,
            message_bytes_max,
        };
        self.stage = Stage::Open(agreed);
        self.client = String::from_utf8_lossy(hello.client).into_owned();
        Greeting::Welcome(agreed)
    }

    /// Appends the `Welcome`.
    pub fn welcome(&self, config: &CoreConfig, agreed: Agreed, sequence: u64, out: &mut Vec<u8>) {
        let welcome = Welcome {
            magic: MAGIC,
            version: version::VERSION_MAX,
            core: config.core.0,
            cores: config.cores,
            channels_max: CHANNELS_MAX,
            heartbeat_ms: agreed.heartbeat_ms,
            frame_bytes_max: FRAME_BYTES_MAX as u32,
            message_bytes_max: agreed.message_bytes_max,
            credit_messages_max: ringpost_wire::CREDIT_MESSAGES_MAX,
            connection: self.conn.0,
            server: config.server.as_bytes(),
        };
        welcome.write(out, FrameHeader::bare(FrameKind::Welcome, 0, sequence));
    }

    /// When the peer must have been heard again (P-12).
    #[must_use]
    pub fn silent_deadline(&self, handshake_ms: u64) -> Mono {
        match self.stage {
            Stage::Handshake => self.heard.plus_ms(handshake_ms),
            Stage::Open(agreed) => self.heard.plus_ms(2 * u64::from(agreed.heartbeat_ms)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    //= P-14
    //= P-15
    #[test]
    fn a_number_is_free_in_use_or_closed() {
        let mut session = Session::new(ConnId(1), Mono(0));
        assert_eq!(session.ask(0), Err(Code::ChannelInvalid));
        assert_eq!(session.ask(CHANNELS_MAX + 1), Err(Code::ChannelInvalid));
        for number in [CHANNELS_MAX, 1, 64, 63] {
            assert_eq!(session.channel(number), Channel::Free);
            assert_eq!(session.ask(number), Ok(()));
            // Asked for and refused: frames may be on their way to it.
            assert_eq!(session.channel(number), Channel::Closed);
            assert_eq!(session.ask(number), Ok(()));
            session.claim(number, Channel::Producer(u64::from(number)));
            assert_eq!(session.ask(number), Err(Code::ChannelInvalid));
        }
        let numbers = |session: &Session| session.channels().map(|(number, _)| number).collect();
        let open: Vec<u16> = numbers(&session);
        assert_eq!(open, [1, 63, 64, CHANNELS_MAX]);
        assert_eq!(session.channel(63), Channel::Producer(63));
        session.set(63, Channel::Closed);
        assert_eq!(session.channel(63), Channel::Closed);
        assert_eq!(session.channel(62), Channel::Free);
        let open: Vec<u16> = numbers(&session);
        assert_eq!((open.len(), session.channels_open), (3, 3));
    }

    #[test]
    fn channels_cost_what_is_in_use() {
        let mut session = Session::new(ConnId(1), Mono(0));
        session.ask(CHANNELS_MAX).expect("it is free");
        assert_eq!(session.channels.capacity(), 0);
        for number in 1..=CHANNELS_MAX {
            session.ask(number).expect("it is free");
            session.claim(number, Channel::Producer(1));
        }
        for number in 1..=CHANNELS_MAX {
            session.set(number, Channel::Closed);
        }
        assert!(session.channels.capacity() <= 4 * CHANNELS_KEPT);
    }
}
