//! Requests of clients and what the core answers: exchanges, queues, bindings, consumers, gets, and the
//! closing of channels. One at a time: what follows waits. Does not know how a request is decided.

use ringpost_amqp::{Method, ReplyCode};
use ringpost_wire::control::{
    BIND_TO_EXCHANGE, Bind, Body, CONSUMER_EXCLUSIVE, CONSUMER_NO_ACK, ConsumerCredit,
    ConsumerOpen, DECLARE_PASSIVE, DELETE_IF_EMPTY, DELETE_IF_UNUSED, Delete, Durability,
    ExchangeDeclare, ExchangeKind, Failure, Get, Named, PARTITION_BY_NAME, ProducerOpened,
    QueueDeclare, QueueInfo,
};
use ringpost_wire::{CREDIT_MESSAGES_MAX, Code, FrameHeader, FrameKind, frame, limits};

use super::arguments;
use super::channel::REPLY_TO;
use super::fault::{Fault, Subject, of_failure};
use super::publish::too_many;
use super::session::{Consumer, ConsumerState, Native, Session, Talk};

/// What the session waits for.
#[derive(Debug)]
pub(super) enum Waits {
    /// The core lets the connection in.
    Welcome,
    /// The producer of a channel is opened.
    Publisher { channel: u16 },
    /// A request of a channel.
    Request(Box<Request>),
    /// A `basic.get`: the native consumer, and the messages that are left behind this one.
    Get {
        channel: u16,
        native: u16,
        no_ack: bool,
        left: u32,
    },
    /// A request of a channel that has ended since: its answer is told to nobody. The native channel that it
    /// is about, 0 = none.
    Abandoned { native: u16 },
    /// A channel is closed when these native ones are.
    CloseChannel { channel: u16, left: Vec<u16> },
    /// The connection is.
    CloseConnection { left: Vec<u16> },
}

/// A request that the core was asked.
#[derive(Debug)]
pub(super) struct Request {
    channel: u16,
    of: (u16, u16),
    no_wait: bool,
    what: &'static str,
    name: Vec<u8>,
    /// The consumer that is opened then.
    asked: Option<Box<ConsumerAsked>>,
    then: Then,
}

/// A consumer that the client asks for.
#[derive(Debug)]
struct ConsumerAsked {
    tag: Vec<u8>,
    no_ack: bool,
    exclusive: bool,
    /// As native ones.
    arguments: Vec<u8>,
}

/// What its answer leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    /// The method that says that it is done.
    Tell(Answer),
    /// A queue is declared: how much does it hold?
    Inspect,
    /// It is told.
    DeclareOk,
    /// The queue is there whose consumer is to be opened.
    ConsumeReplies,
    /// A consumer is open.
    Consume(u16),
    /// It is closed.
    Cancel(u16),
    /// How much does the queue hold that is to be got from?
    GetInspect { no_ack: bool },
    /// The consumer for gets is open.
    GetOpen {
        native: u16,
        no_ack: bool,
        left: u32,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    ExchangeDeclare,
    ExchangeDelete,
    ExchangeBind,
    ExchangeUnbind,
    QueueBind,
    QueueUnbind,
    QueuePurge,
    QueueDelete,
}

impl Answer {
    fn method(self, count: u32) -> Method<'static> {
        match self {
            Self::ExchangeDeclare => Method::ExchangeDeclareOk {},
            Self::ExchangeDelete => Method::ExchangeDeleteOk {},
            Self::ExchangeBind => Method::ExchangeBindOk {},
            Self::ExchangeUnbind => Method::ExchangeUnbindOk {},
            Self::QueueBind => Method::QueueBindOk {},
            Self::QueueUnbind => Method::QueueUnbindOk {},
            Self::QueuePurge => Method::QueuePurgeOk {
                message_count: count,
            },
            Self::QueueDelete => Method::QueueDeleteOk {
                message_count: count,
            },
        }
    }

    /// Whether a failure is as good as done: what is to go is not there.
    const fn is_done_by(self, code: Code) -> bool {
        let is_gone = matches!(
            code,
            Code::BindingUnknown | Code::ExchangeUnknown | Code::QueueUnknown
        );
        let removes = matches!(
            self,
            Self::ExchangeDelete | Self::ExchangeUnbind | Self::QueueUnbind | Self::QueueDelete
        );
        is_gone && removes
    }
}

impl Session {
    /// Sends a request about the topology and waits for its answer.
    fn ask<'a>(&mut self, kind: FrameKind, body: &impl Body<'a>, request: Request) {
        let sequence = self.next_sequence();
        self.awaited = sequence;
        body.write(self.native(), FrameHeader::bare(kind, 0, sequence));
        self.waits = Some(Waits::Request(Box::new(request)));
    }

    /// The name of a queue, or of the one that was declared last on the channel.
    fn queue_name(&self, number: u16, name: &[u8], of: (u16, u16)) -> Result<Vec<u8>, Fault> {
        if !name.is_empty() {
            return Ok(name.to_vec());
        }
        let channel = self.channels.get(&number);
        let last = channel.map(|channel| channel.queue.clone());
        let last = last.filter(|last| !last.is_empty());
        last.ok_or_else(|| {
            let why = "no previously declared queue";
            Fault::new(ReplyCode::NotFound, why, of)
        })
    }

    /// A method that asks for something.
    pub(super) fn request_method(
        &mut self,
        number: u16,
        method: &Method<'_>,
        talk: &mut Talk<'_>,
    ) -> Result<(), Fault> {
        let of = method.number();
        let unfit = |why: String| Fault::new(ReplyCode::PreconditionFailed, &why, of);
        let request = |what, name: &[u8], no_wait, then| Request {
            channel: number,
            of,
            no_wait,
            what,
            name: name.to_vec(),
            asked: None,
            then,
        };
        match *method {
            Method::ExchangeDeclare {
                exchange,
                kind,
                passive,
                durable,
                auto_delete,
                internal,
                no_wait,
                arguments,
                ..
            } => {
                let (kind, arguments) = match passive {
                    true => (ExchangeKind::Direct, Vec::new()),
                    false => arguments::exchange(kind, auto_delete, internal, arguments)
                        .map_err(unfit)?,
                };
                if passive && exchange.is_empty() {
                    if !no_wait {
                        self.tell(number, &Method::ExchangeDeclareOk {}, talk);
                    }
                    return Ok(());
                }
                let body = ExchangeDeclare {
                    kind: kind as u8,
                    durability: durability(durable) as u8,
                    flags: if passive { DECLARE_PASSIVE } else { 0 },
                    reserved: 0,
                    name: exchange,
                    arguments: &arguments,
                };
                let then = Then::Tell(Answer::ExchangeDeclare);
                let request = request("exchange", exchange, no_wait, then);
                self.ask(FrameKind::ExchangeDeclare, &body, request);
            }
            Method::ExchangeDelete {
                exchange,
                if_unused,
                no_wait,
                ..
            } => {
                let body = Delete {
                    flags: if if_unused { DELETE_IF_UNUSED } else { 0 },
                    name: exchange,
                };
                let then = Then::Tell(Answer::ExchangeDelete);
                let request = request("exchange", exchange, no_wait, then);
                self.ask(FrameKind::ExchangeDelete, &body, request);
            }
            Method::ExchangeBind {
                destination,
                source,
                routing_key,
                no_wait,
                arguments,
                ..
            }
            | Method::ExchangeUnbind {
                destination,
                source,
                routing_key,
                no_wait,
                arguments,
                ..
            } => {
                let (kind, answer) = match method {
                    Method::ExchangeBind { .. } => (FrameKind::Bind, Answer::ExchangeBind),
                    _ => (FrameKind::Unbind, Answer::ExchangeUnbind),
                };
                let body = Bind {
                    flags: BIND_TO_EXCHANGE,
                    exchange: source,
                    target: destination,
                    key: routing_key,
                    arguments,
                };
                let router = &talk.flow.router;
                let name = match router.has_exchange(self.tenant, source) {
                    true => destination,
                    false => source,
                };
                let request = request("exchange", name, no_wait, Then::Tell(answer));
                self.ask(kind, &body, request);
            }
            Method::QueueDeclare {
                queue,
                passive,
                durable,
                exclusive,
                auto_delete,
                no_wait,
                arguments,
                ..
            } => {
                if passive && queue == REPLY_TO {
                    // Clients ask so whether there are direct answers.
                    let ok = Method::QueueDeclareOk {
                        queue,
                        message_count: 0,
                        consumer_count: 1,
                    };
                    self.tell(number, &ok, talk);
                    return Ok(());
                }
                let is_new = queue.is_empty() && !passive;
                let queue = match is_new {
                    true => self.new_name("amq.gen-", talk),
                    false => self.queue_name(number, queue, of)?,
                };
                let is_reserved = queue.starts_with(b"amq.") && !passive && !is_new;
                if is_reserved && talk.flow.router.queue(self.tenant, &queue).is_none() {
                    let name = String::from_utf8_lossy(&queue);
                    let why = format!("queue name '{name}' contains reserved prefix 'amq.*'");
                    return Err(Fault::new(ReplyCode::AccessRefused, &why, of));
                }
                let asked = match passive {
                    true => arguments::queue(true, false, false, b""),
                    false => arguments::queue(durable, exclusive, auto_delete, arguments),
                };
                let asked = asked.map_err(unfit)?;
                let body = QueueDeclare {
                    messages_max: asked.messages_max,
                    bytes_max: asked.bytes_max,
                    durability: asked.durability as u8,
                    flags: if passive { DECLARE_PASSIVE } else { 0 },
                    partition: PARTITION_BY_NAME,
                    name: &queue,
                    arguments: &asked.arguments,
                };
                let request = request("queue", &queue, no_wait, Then::Inspect);
                self.ask(FrameKind::QueueDeclare, &body, request);
            }
            Method::QueueBind {
                queue,
                exchange,
                routing_key,
                no_wait,
                arguments,
                ..
            } => {
                let target = self.queue_name(number, queue, of)?;
                // The queue that was declared last, under its own name.
                let key = match queue.is_empty() && routing_key.is_empty() {
                    true => &target,
                    false => routing_key,
                };
                let answer = Answer::QueueBind;
                self.bind(
                    number,
                    exchange,
                    &target,
                    key,
                    arguments,
                    (no_wait, answer),
                    of,
                    talk,
                );
            }
            Method::QueueUnbind {
                queue,
                exchange,
                routing_key,
                arguments,
                ..
            } => {
                let target = self.queue_name(number, queue, of)?;
                let answer = Answer::QueueUnbind;
                let key = routing_key;
                self.bind(
                    number,
                    exchange,
                    &target,
                    key,
                    arguments,
                    (false, answer),
                    of,
                    talk,
                );
            }
            Method::QueuePurge { queue, no_wait, .. } => {
                let queue = self.queue_name(number, queue, of)?;
                let then = Then::Tell(Answer::QueuePurge);
                let request = request("queue", &queue, no_wait, then);
                self.ask(FrameKind::QueuePurge, &Named { name: &queue }, request);
            }
            Method::QueueDelete {
                queue,
                if_unused,
                if_empty,
                no_wait,
                ..
            } => {
                let queue = self.queue_name(number, queue, of)?;
                let unused = if if_unused { DELETE_IF_UNUSED } else { 0 };
                let empty = if if_empty { DELETE_IF_EMPTY } else { 0 };
                let body = Delete {
                    flags: unused | empty,
                    name: &queue,
                };
                let then = Then::Tell(Answer::QueueDelete);
                let request = request("queue", &queue, no_wait, then);
                self.ask(FrameKind::QueueDelete, &body, request);
            }
            Method::BasicQos {
                prefetch_size,
                prefetch_count,
                ..
            } => {
                if prefetch_size != 0 {
                    let why = format!("prefetch_size!=0 ({prefetch_size})");
                    return Err(Fault::new(ReplyCode::NotImplemented, &why, of));
                }
                let channel = self.channels.get_mut(&number).expect("it is open");
                channel.prefetch = prefetch_count;
                self.tell(number, &Method::BasicQosOk {}, talk);
            }
            Method::BasicConsume { .. } => self.consume(number, method, talk)?,
            Method::BasicCancel {
                consumer_tag,
                no_wait,
            } => self.cancel(number, consumer_tag, no_wait, talk),
            Method::BasicGet { queue, no_ack, .. } => {
                let queue = self.queue_name(number, queue, of)?;
                let request = request("queue", &queue, false, Then::GetInspect { no_ack });
                self.ask(FrameKind::QueueInspect, &Named { name: &queue }, request);
            }
            _ => {
                let why = format!("unexpected method '{}'", method.name());
                return Err(Fault::new(ReplyCode::CommandInvalid, &why, of));
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "they are those of one method")]
    fn bind(
        &mut self,
        number: u16,
        exchange: &[u8],
        target: &[u8],
        key: &[u8],
        arguments: &[u8],
        (no_wait, answer): (bool, Answer),
        of: (u16, u16),
        talk: &Talk<'_>,
    ) {
        let kind = match answer {
            Answer::QueueBind => FrameKind::Bind,
            _ => FrameKind::Unbind,
        };
        let body = Bind {
            flags: 0,
            exchange,
            target,
            key,
            arguments,
        };
        // For the text, should one of them not be there.
        let (what, name) = match talk.flow.router.queue(self.tenant, target) {
            Some(_) => ("exchange", exchange),
            None => ("queue", target),
        };
        let request = Request {
            channel: number,
            of,
            no_wait,
            what,
            name: name.to_vec(),
            asked: None,
            then: Then::Tell(answer),
        };
        self.ask(kind, &body, request);
    }

    fn consume(
        &mut self,
        number: u16,
        method: &Method<'_>,
        talk: &mut Talk<'_>,
    ) -> Result<(), Fault> {
        let of = method.number();
        let Method::BasicConsume {
            queue,
            consumer_tag,
            no_ack,
            exclusive,
            no_wait,
            arguments,
            ..
        } = *method
        else {
            unreachable!("it was asked for")
        };
        let queue = self.queue_name(number, queue, of)?;
        let tag = match consumer_tag {
            b"" => self.new_name("amq.ctag-", talk),
            tag => tag.to_vec(),
        };
        if self.find_consumer(number, &tag).is_some() {
            let tag = String::from_utf8_lossy(&tag);
            let why = format!("attempt to reuse consumer tag '{tag}'");
            return Err(Fault::new(ReplyCode::NotAllowed, &why, of));
        }
        let unfit = |why: String| Fault::new(ReplyCode::PreconditionFailed, &why, of);
        let asked = ConsumerAsked {
            tag,
            no_ack,
            exclusive,
            arguments: arguments::consumer(arguments).map_err(unfit)?,
        };
        if queue == REPLY_TO {
            return self.consume_replies(number, asked, no_wait, talk);
        }
        let request = Request {
            channel: number,
            of,
            no_wait,
            what: "queue",
            name: queue,
            asked: None,
            then: Then::Inspect,
        };
        self.open_consumer(request, asked)
    }

    /// Makes the queue that answers to requests of a channel come to; its consumer is opened next.
    fn consume_replies(
        &mut self,
        number: u16,
        asked: ConsumerAsked,
        no_wait: bool,
        talk: &Talk<'_>,
    ) -> Result<(), Fault> {
        let of = (60, 20);
        let channel = self.channels.get(&number).expect("it is open");
        let why = match channel.replies.is_empty() {
            _ if !asked.no_ack => Some("reply consumer cannot acknowledge"),
            true => None,
            false => Some("reply consumer already set"),
        };
        if let Some(why) = why {
            return Err(Fault::new(ReplyCode::PreconditionFailed, why, of));
        }
        let name = self.new_name("amq.gen-", talk);
        // It goes with its one consumer, or with the connection.
        let fit = arguments::queue(false, true, true, b"").expect("it is of our own making");
        let body = QueueDeclare {
            messages_max: 0,
            bytes_max: 0,
            durability: fit.durability as u8,
            flags: 0,
            partition: PARTITION_BY_NAME,
            name: &name,
            arguments: &fit.arguments,
        };
        let request = Request {
            channel: number,
            of,
            no_wait,
            what: "queue",
            name: name.clone(),
            asked: Some(Box::new(asked)),
            then: Then::ConsumeReplies,
        };
        self.ask(FrameKind::QueueDeclare, &body, request);
        Ok(())
    }

    /// Opens a consumer of the queue that the request names.
    fn open_consumer(&mut self, request: Request, asked: ConsumerAsked) -> Result<(), Fault> {
        let channel = self.channels.get(&request.channel);
        let prefetch = channel.map_or(0, |channel| channel.prefetch);
        let no_acks = if asked.no_ack { CONSUMER_NO_ACK } else { 0 };
        let alone = if asked.exclusive {
            CONSUMER_EXCLUSIVE
        } else {
            0
        };
        let body = ConsumerOpen {
            credit_bytes: 0,
            credit_messages: match prefetch {
                0 => CREDIT_MESSAGES_MAX,
                _ if asked.no_ack => CREDIT_MESSAGES_MAX,
                prefetch => u32::from(prefetch),
            },
            flags: no_acks | alone,
            queue: &request.name,
            arguments: &asked.arguments,
        };
        let consumer = Consumer {
            channel: request.channel,
            tag: asked.tag.into(),
            queue: request.name.clone().into(),
            is_getter: false,
            no_ack: asked.no_ack,
            is_mute: false,
            state: ConsumerState::Opening,
            outstanding: 0,
            returning: 0,
            large: 0,
            late: None,
            closes_late: false,
            apart: None,
        };
        let native = self.add_native(Native::Consumer(Box::new(consumer)));
        let native = native.ok_or_else(|| too_many(request.of))?;
        let sequence = self.next_sequence();
        self.awaited = sequence;
        let header = FrameHeader::bare(FrameKind::ConsumerOpen, native, sequence);
        body.write(self.native(), header);
        let then = Then::Consume(native);
        self.waits = Some(Waits::Request(Box::new(Request { then, ..request })));
        Ok(())
    }

    fn find_consumer(&mut self, number: u16, tag: &[u8]) -> Option<u16> {
        self.natives_of(number).into_iter().find(|native| {
            let consumer = self.consumer_of(*native);
            consumer.is_some_and(|consumer| {
                !consumer.is_getter
                    && consumer.state == ConsumerState::Open
                    && *consumer.tag == *tag
            })
        })
    }

    fn cancel(&mut self, number: u16, tag: &[u8], no_wait: bool, talk: &mut Talk<'_>) {
        let ok = Method::BasicCancelOk { consumer_tag: tag };
        let Some(native) = self.find_consumer(number, tag) else {
            if !no_wait {
                self.tell(number, &ok, talk);
            }
            return;
        };
        let consumer = self.consumer_of(native).expect("it was just found");
        if consumer.outstanding > 0 {
            // The client may settle what it has, so that must not return.
            consumer.state = ConsumerState::Cancelled;
            let none = ConsumerCredit {
                bytes: 0,
                messages: 0,
                reserved: 0,
            };
            let header = FrameHeader::bare(FrameKind::ConsumerCredit, native, 0);
            none.write(self.native(), header);
            if !no_wait {
                self.tell(number, &ok, talk);
            }
            return;
        }
        self.close_consumer(native);
        self.waits = Some(Waits::Request(Box::new(Request {
            channel: number,
            of: (60, 30),
            no_wait,
            what: "consumer",
            name: tag.to_vec(),
            asked: None,
            then: Then::Cancel(native),
        })));
    }

    /// Closes a consumer, when the large message that it is being sent is whole.
    pub(super) fn close_consumer(&mut self, native: u16) {
        let Some(consumer) = self.consumer_of(native) else {
            return;
        };
        consumer.state = ConsumerState::Closing;
        consumer.closes_late = consumer.large != 0;
        if !consumer.closes_late {
            self.close_native(native);
        }
    }

    /// Asks the core to close a consumer.
    pub(super) fn close_native(&mut self, native: u16) {
        let sequence = self.next_sequence();
        let kind = FrameKind::ConsumerClose;
        frame::write_bare(self.native(), kind, native, sequence);
    }

    /// Asks the core to close everything that a channel has; says what that is.
    fn close_natives(&mut self, number: u16) -> Vec<u16> {
        let natives = self.natives_of(number);
        for native in &natives {
            match self.native_of(*native) {
                Native::Publisher { .. } => {
                    let sequence = self.next_sequence();
                    let kind = FrameKind::ProducerClose;
                    frame::write_bare(self.native(), kind, *native, sequence);
                }
                Native::Consumer(consumer) => {
                    let is_asked =
                        consumer.state == ConsumerState::Closing && !consumer.closes_late;
                    consumer.closes_late = false;
                    consumer.is_mute = true;
                    consumer.state = ConsumerState::Closing;
                    if !is_asked {
                        self.close_native(*native);
                    }
                }
                Native::Free => {}
            }
        }
        natives
    }

    /// A channel has ended with a fault: what it had goes, unasked.
    pub(super) fn abandon(&mut self, number: u16) {
        for native in self.close_natives(number) {
            if let Native::Publisher { channel } = self.native_of(native) {
                *channel = 0;
            }
        }
        // The core still owes the answer, which is no other request's.
        let native = match &self.waits {
            Some(Waits::Publisher { channel }) if *channel == number => 0,
            Some(Waits::Get {
                channel, native, ..
            }) if *channel == number => *native,
            Some(Waits::Request(request)) if request.channel == number => match request.then {
                Then::Consume(native) | Then::Cancel(native) => native,
                Then::GetOpen { native, .. } => native,
                _ => 0,
            },
            _ => return,
        };
        self.waits = Some(Waits::Abandoned { native });
    }

    /// Whether the client has closed a channel and waits for the answer.
    pub(super) fn is_being_closed(&self, number: u16) -> bool {
        match &self.waits {
            Some(Waits::CloseChannel { channel, .. }) => *channel == number,
            Some(Waits::CloseConnection { .. }) => true,
            _ => false,
        }
    }

    /// `channel.close`: answered when everything that was published on it has its outcome.
    pub(super) fn close_channel(&mut self, number: u16, talk: &mut Talk<'_>) {
        let left = self.close_natives(number);
        if !left.is_empty() {
            self.waits = Some(Waits::CloseChannel {
                channel: number,
                left,
            });
            return;
        }
        self.channel_is_closed(number, talk);
    }

    fn channel_is_closed(&mut self, number: u16, talk: &mut Talk<'_>) {
        self.tell(number, &Method::ChannelCloseOk {}, talk);
        if let Some(channel) = self.channels.remove(&number) {
            *talk.gathering -= channel.gathered;
        }
    }

    /// `connection.close`, likewise.
    pub(super) fn close_all(&mut self, talk: &mut Talk<'_>) {
        let numbers: Vec<u16> = self.channels.keys().copied().collect();
        let mut left = Vec::new();
        for number in numbers {
            left.extend(self.close_natives(number));
        }
        if !left.is_empty() {
            self.waits = Some(Waits::CloseConnection { left });
            return;
        }
        self.tell(0, &Method::ConnectionCloseOk {}, talk);
        self.end();
    }

    /// The core has answered something.
    pub(super) fn answered(&mut self, header: &FrameHeader, body: &[u8], talk: &mut Talk<'_>) {
        let is_answer = matches!(
            header.kind,
            FrameKind::Done
                | FrameKind::Failed
                | FrameKind::QueueInfo
                | FrameKind::ProducerOpened
                | FrameKind::ConsumerOpened
                | FrameKind::GetDone
        );
        if is_answer && header.sequence != self.awaited {
            return;
        }
        if is_answer && matches!(self.waits, Some(Waits::Abandoned { .. })) {
            if header.kind == FrameKind::Failed && header.channel != 0 {
                self.free_native(header.channel);
            }
            self.waits = None;
            for (channel, tag) in std::mem::take(&mut self.cancelled) {
                self.tell_cancelled(channel, &tag, talk);
            }
            return;
        }
        match header.kind {
            FrameKind::Done => self.done(header.count, talk),
            FrameKind::Failed => {
                let failure = Failure::decode(body).expect("the core writes it");
                self.failed(header, failure, talk);
            }
            FrameKind::QueueInfo => {
                let info = QueueInfo::decode(body).expect("the core writes it");
                self.inspected(&info, talk);
            }
            FrameKind::ProducerOpened => {
                let opened = ProducerOpened::decode(body).expect("the core writes it");
                if let Some(Waits::Publisher { channel }) = self.waits {
                    self.waits = None;
                    let granted = (opened.messages, opened.bytes);
                    self.publisher_opened(channel, opened.sequence, granted, talk);
                }
            }
            FrameKind::ConsumerOpened => self.consumer_opened(header.channel, talk),
            FrameKind::GetDone => self.got(header.count, talk),
            FrameKind::Settled => {
                if let Some(consumer) = self.consumer_of(header.channel) {
                    consumer.returning -= 1;
                }
            }
            FrameKind::ProducerClosed | FrameKind::ConsumerClosed => {
                let failure = Failure::decode(body).expect("the core writes it");
                self.native_closed(header, failure, talk);
            }
            _ => {}
        }
    }

    /// Takes the request that is being waited for.
    fn take_request(&mut self) -> Option<Request> {
        match self.waits.take() {
            Some(Waits::Request(request)) => Some(*request),
            other => {
                self.waits = other;
                None
            }
        }
    }

    fn done(&mut self, count: u32, talk: &mut Talk<'_>) {
        let Some(request) = self.take_request() else {
            return;
        };
        match request.then {
            Then::Tell(answer) => {
                if !request.no_wait {
                    self.tell(request.channel, &answer.method(count), talk);
                }
                for (channel, tag) in std::mem::take(&mut self.cancelled) {
                    self.tell_cancelled(channel, &tag, talk);
                }
            }
            Then::Inspect => {
                if let Some(channel) = self.channels.get_mut(&request.channel) {
                    channel.queue.clone_from(&request.name);
                }
                if !request.no_wait {
                    let name = request.name.clone();
                    let then = Then::DeclareOk;
                    let request = Request { then, ..request };
                    self.ask(FrameKind::QueueInspect, &Named { name: &name }, request);
                }
            }
            Then::ConsumeReplies => {
                let mut request = request;
                let Some(asked) = request.asked.take() else {
                    return;
                };
                let number = request.channel;
                if let Some(channel) = self.channels.get_mut(&number) {
                    channel.replies.clone_from(&request.name);
                }
                if let Err(fault) = self.open_consumer(request, *asked) {
                    self.fail(number, fault, talk);
                }
            }
            _ => {}
        }
    }

    fn inspected(&mut self, info: &QueueInfo<'_>, talk: &mut Talk<'_>) {
        let Some(request) = self.take_request() else {
            return;
        };
        let ready = u32::try_from(info.ready).unwrap_or(u32::MAX);
        match request.then {
            Then::DeclareOk => {
                let ok = Method::QueueDeclareOk {
                    queue: &request.name,
                    message_count: ready,
                    consumer_count: info.consumers,
                };
                self.tell(request.channel, &ok, talk);
            }
            Then::GetInspect { no_ack } => self.open_getter(request, no_ack, ready, talk),
            _ => {}
        }
    }

    /// Gets from a queue, by the consumer that the channel has for that or a new one.
    fn open_getter(&mut self, request: Request, no_ack: bool, ready: u32, talk: &mut Talk<'_>) {
        let number = request.channel;
        let left = ready.saturating_sub(1);
        let known = self.natives_of(number).into_iter().find(|native| {
            let consumer = self.consumer_of(*native);
            consumer.is_some_and(|consumer| {
                consumer.is_getter
                    && consumer.state == ConsumerState::Open
                    && *consumer.queue == *request.name
            })
        });
        if let Some(native) = known {
            self.get(number, native, no_ack, left);
            return;
        }
        let consumer = Consumer {
            channel: number,
            tag: Box::default(),
            queue: request.name.clone().into(),
            is_getter: true,
            no_ack: false,
            is_mute: false,
            state: ConsumerState::Opening,
            outstanding: 0,
            returning: 0,
            large: 0,
            late: None,
            closes_late: false,
            apart: None,
        };
        let Some(native) = self.add_native(Native::Consumer(Box::new(consumer))) else {
            self.fail(number, too_many(request.of), talk);
            return;
        };
        let body = ConsumerOpen {
            credit_bytes: 0,
            credit_messages: 0,
            flags: 0,
            queue: &request.name,
            arguments: b"",
        };
        let sequence = self.next_sequence();
        self.awaited = sequence;
        let header = FrameHeader::bare(FrameKind::ConsumerOpen, native, sequence);
        body.write(self.native(), header);
        let then = Then::GetOpen {
            native,
            no_ack,
            left,
        };
        self.waits = Some(Waits::Request(Box::new(Request { then, ..request })));
    }

    fn get(&mut self, channel: u16, native: u16, no_ack: bool, left: u32) {
        let sequence = self.next_sequence();
        self.awaited = sequence;
        let header = FrameHeader {
            count: 1,
            ..FrameHeader::bare(FrameKind::Get, native, sequence)
        };
        let body = Get {
            wait_ms: 0,
            reserved: 0,
        };
        body.write(self.native(), header);
        self.waits = Some(Waits::Get {
            channel,
            native,
            no_ack,
            left,
        });
    }

    fn got(&mut self, count: u32, talk: &mut Talk<'_>) {
        let Some(Waits::Get { channel, .. }) = self.waits else {
            return;
        };
        self.waits = None;
        if count == 0 {
            let empty = Method::BasicGetEmpty { reserved_1: b"" };
            self.tell(channel, &empty, talk);
        }
    }

    fn consumer_opened(&mut self, native: u16, talk: &mut Talk<'_>) {
        if let Some(consumer) = self.consumer_of(native)
            && consumer.state == ConsumerState::Opening
        {
            consumer.state = ConsumerState::Open;
        }
        let Some(request) = self.take_request() else {
            return;
        };
        match request.then {
            Then::Consume(of) if of == native => {
                if request.no_wait {
                    return;
                }
                let Some(consumer) = self.consumer_of(native) else {
                    return;
                };
                let tag = consumer.tag.clone();
                let ok = Method::BasicConsumeOk { consumer_tag: &tag };
                self.tell(request.channel, &ok, talk);
            }
            Then::GetOpen {
                native: of,
                no_ack,
                left,
            } if of == native => self.get(request.channel, native, no_ack, left),
            _ => {}
        }
    }

    fn failed(&mut self, header: &FrameHeader, failure: Failure<'_>, talk: &mut Talk<'_>) {
        let code = Code::from_number(failure.code);
        let reason = String::from_utf8_lossy(failure.reason).into_owned();
        // What was to be opened is not.
        if header.channel != 0 && !matches!(self.native_of(header.channel), Native::Free) {
            self.free_native(header.channel);
        }
        if let Some(Waits::Publisher { channel }) = self.waits {
            self.waits = None;
            if let Some(state) = self.channels.get_mut(&channel) {
                state.publisher.native = 0;
            }
            let fault = Fault::new(ReplyCode::ResourceError, &reason, (60, 40));
            self.fail(channel, fault, talk);
            return;
        }
        let Some(request) = self.take_request() else {
            return;
        };
        if let Then::Tell(answer) = request.then
            && answer.is_done_by(code)
        {
            if !request.no_wait {
                self.tell(request.channel, &answer.method(0), talk);
            }
            return;
        }
        let is_consume = matches!(request.then, Then::Consume(_) | Then::GetOpen { .. });
        let subject = Subject {
            what: request.what,
            name: &request.name,
            host: &self.host,
        };
        let fault = of_failure(code, &reason, subject, is_consume, request.of);
        self.fail(request.channel, fault, talk);
        for (channel, tag) in std::mem::take(&mut self.cancelled) {
            self.tell_cancelled(channel, &tag, talk);
        }
    }

    /// A producer or consumer is gone.
    fn native_closed(&mut self, header: &FrameHeader, failure: Failure<'_>, talk: &mut Talk<'_>) {
        let native = header.channel;
        let is_asked = header.sequence != 0;
        let (number, gone) = match std::mem::replace(self.native_of(native), Native::Free) {
            Native::Free => return,
            Native::Publisher { channel } => (channel, None),
            Native::Consumer(consumer) => (consumer.channel, Some(consumer)),
        };
        self.free_native(native);
        let channel = self.channels.get_mut(&number);
        match gone {
            None => {
                if let Some(channel) = channel
                    && channel.publisher.native == native
                {
                    channel.publisher = Default::default();
                }
            }
            Some(consumer) => {
                if let Some(channel) = channel
                    && !consumer.is_mute
                {
                    channel.forget_consumer(native);
                    if *channel.replies == *consumer.queue {
                        channel.replies.clear();
                    }
                    if !is_asked {
                        self.consumer_lost(native, &consumer, &failure, talk);
                    }
                }
            }
        }
        self.one_is_closed(native, talk);
    }

    /// The core has ended a consumer that the client has.
    fn consumer_lost(
        &mut self,
        native: u16,
        consumer: &Consumer,
        failure: &Failure<'_>,
        talk: &mut Talk<'_>,
    ) {
        let number = consumer.channel;
        let reason = String::from_utf8_lossy(failure.reason).into_owned();
        let code = Code::from_number(failure.code);
        let is_cut = self
            .channels
            .get(&number)
            .is_some_and(|channel| channel.streams == native);
        if is_cut {
            let why = format!("a message that was being sent cannot be sent to its end: {reason}");
            let fault = Fault::new(ReplyCode::InternalError, &why, (60, 60));
            self.fail(0, fault, talk);
            return;
        }
        if matches!(&self.waits, Some(Waits::Get { native: of, .. }) if *of == native) {
            self.got(0, talk);
        }
        match code {
            Code::HoldExceeded | Code::UnknownDelivery | Code::SettingInvalid => {
                let fault = Fault::new(ReplyCode::PreconditionFailed, &reason, (60, 80));
                self.fail(number, fault, talk);
            }
            _ if consumer.is_getter || consumer.state != ConsumerState::Open => {}
            // Who deletes the queue hears of that first.
            _ if self.deletes(&consumer.queue) => {
                self.cancelled.push((number, consumer.tag.clone()));
            }
            _ => self.tell_cancelled(number, &consumer.tag, talk),
        }
    }

    /// Whether the client waits for the deletion of a queue.
    fn deletes(&self, queue: &[u8]) -> bool {
        let Some(Waits::Request(request)) = &self.waits else {
            return false;
        };
        request.then == Then::Tell(Answer::QueueDelete) && *request.name == *queue
    }

    /// Tells that a consumer was cancelled, if the client wants to hear that.
    fn tell_cancelled(&mut self, number: u16, tag: &[u8], talk: &mut Talk<'_>) {
        let is_open = self
            .channels
            .get(&number)
            .is_some_and(|channel| !channel.is_closing);
        if self.hears_cancel && is_open {
            let cancel = Method::BasicCancel {
                consumer_tag: tag,
                no_wait: true,
            };
            self.tell(number, &cancel, talk);
        }
    }

    /// Something that was to be closed is.
    fn one_is_closed(&mut self, native: u16, talk: &mut Talk<'_>) {
        match &mut self.waits {
            Some(Waits::Request(request)) if request.then == Then::Cancel(native) => {
                let request = self.take_request().expect("it was just looked at");
                if !request.no_wait {
                    let ok = Method::BasicCancelOk {
                        consumer_tag: &request.name,
                    };
                    self.tell(request.channel, &ok, talk);
                }
            }
            Some(Waits::Abandoned { native: of }) if *of == native => self.waits = None,
            Some(Waits::CloseChannel { channel, left }) => {
                left.retain(|one| *one != native);
                if left.is_empty() {
                    let channel = *channel;
                    self.waits = None;
                    self.channel_is_closed(channel, talk);
                }
            }
            Some(Waits::CloseConnection { left }) => {
                left.retain(|one| *one != native);
                if left.is_empty() {
                    self.waits = None;
                    self.tell(0, &Method::ConnectionCloseOk {}, talk);
                    self.end();
                }
            }
            _ => {}
        }
    }
}

const fn durability(durable: bool) -> Durability {
    match durable {
        true => Durability::Durable,
        false => Durability::Volatile,
    }
}

// Short strings of clients are never longer than native names and keys.
const _: () = assert!(limits::NAME_BYTES_MAX == 255 && limits::KEY_BYTES_MAX == 255);
