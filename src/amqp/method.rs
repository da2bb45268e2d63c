//! Every method of AMQP 0-9-1 and of the extensions that RabbitMQ's clients use, from one table.
//! Does not know when a method may come.
//!
//! The table mirrors the published specification (`amqp0-9-1.xml`): class and method numbers, and the
//! fields in their order with their domains' types. Rows that are not in it are marked: they are
//! RabbitMQ's. Consecutive bits share octets, lowest bit first.

use crate::code::{Error, ReplyCode};

/// The type of a field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FieldType {
    /// A bit; those that follow each other share octets.
    Bit,
    /// u8.
    Octet,
    /// u16.
    Short,
    /// u32.
    Long,
    /// u64.
    LongLong,
    /// At most 255 bytes.
    ShortStr,
    /// Bytes.
    LongStr,
    /// The contents of a field table, which are not looked at here.
    Table,
}

/// What is known of a method, for tests and texts.
#[derive(Clone, Copy, Debug)]
pub struct MethodInfo {
    /// Number of its class.
    pub class: u16,
    /// Its number there.
    pub method: u16,
    /// Class and method as the specification names them, with a point between.
    pub name: &'static str,
    /// Names and types of its fields.
    pub fields: &'static [(&'static str, FieldType)],
}

macro_rules! rust_type {
    (bit) => { bool };
    (octet) => { u8 };
    (short) => { u16 };
    (long) => { u32 };
    (longlong) => { u64 };
    ($bytes:ident) => { &'a [u8] };
}

macro_rules! field_type {
    (bit) => {
        FieldType::Bit
    };
    (octet) => {
        FieldType::Octet
    };
    (short) => {
        FieldType::Short
    };
    (long) => {
        FieldType::Long
    };
    (longlong) => {
        FieldType::LongLong
    };
    (shortstr) => {
        FieldType::ShortStr
    };
    (longstr) => {
        FieldType::LongStr
    };
    (table) => {
        FieldType::Table
    };
}

macro_rules! methods {
    ($( $class:literal $method:literal $name:ident $text:literal { $($field:ident: $kind:ident),* $(,)? } )*) => {
        /// A method with its arguments, read in place. Fields are named as in the specification.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[allow(missing_docs, reason = "the specification says what each is")]
        pub enum Method<'a> { $( $name { $($field: rust_type!($kind)),* }, )* }

        impl<'a> Method<'a> {
            /// Every method, in the order of the specification.
            pub const ALL: &'static [MethodInfo] = &[ $( MethodInfo {
                class: $class,
                method: $method,
                name: $text,
                fields: &[ $( (stringify!($field), field_type!($kind)) ),* ],
            }, )* ];

            /// Reads the payload of a method frame.
            ///
            /// # Errors
            /// `COMMAND_INVALID` for a number that is no method's, `SYNTAX_ERROR` for arguments that
            /// are too short or too long.
            pub fn decode(payload: &'a [u8]) -> Result<Self, Error> {
                let mut reader = Reader { rest: payload, bits: None };
                let number = (reader.short()?, reader.short()?);
                let method = match number {
                    $( ($class, $method) => Self::$name { $($field: reader.$kind()?),* }, )*
                    _ => return Err(Error {
                        code: ReplyCode::CommandInvalid,
                        why: "there is no method of that number",
                    }),
                };
                if reader.rest.is_empty() {
                    Ok(method)
                } else {
                    Err(Error::syntax("a method is longer than its arguments"))
                }
            }

            /// Appends the payload of a method frame.
            ///
            /// # Panics
            /// If a short string is longer than 255 bytes.
            pub fn encode(&self, out: &mut Vec<u8>) {
                let (class, method) = self.number();
                let mut writer = Writer { out, bits: 8 };
                writer.short(class);
                writer.short(method);
                match *self { $( Self::$name { $($field),* } => { $( writer.$kind($field); )* } )* }
            }

            /// Numbers of its class and of itself.
            #[must_use]
            pub const fn number(&self) -> (u16, u16) {
                match self { $( Self::$name { .. } => ($class, $method), )* }
            }

            /// Class and method as the specification names them.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self { $( Self::$name { .. } => $text, )* }
            }
        }
    };
}

methods! {
    10 10 ConnectionStart "connection.start" {
        version_major: octet, version_minor: octet, server_properties: table, mechanisms: longstr,
        locales: longstr,
    }
    10 11 ConnectionStartOk "connection.start-ok" {
        client_properties: table, mechanism: shortstr, response: longstr, locale: shortstr,
    }
    10 20 ConnectionSecure "connection.secure" { challenge: longstr }
    10 21 ConnectionSecureOk "connection.secure-ok" { response: longstr }
    10 30 ConnectionTune "connection.tune" { channel_max: short, frame_max: long, heartbeat: short }
    10 31 ConnectionTuneOk "connection.tune-ok" {
        channel_max: short, frame_max: long, heartbeat: short,
    }
    10 40 ConnectionOpen "connection.open" {
        virtual_host: shortstr, reserved_1: shortstr, reserved_2: bit,
    }
    10 41 ConnectionOpenOk "connection.open-ok" { reserved_1: shortstr }
    10 50 ConnectionClose "connection.close" {
        reply_code: short, reply_text: shortstr, class_id: short, method_id: short,
    }
    10 51 ConnectionCloseOk "connection.close-ok" {}
    // RabbitMQ's.
    10 60 ConnectionBlocked "connection.blocked" { reason: shortstr }
    10 61 ConnectionUnblocked "connection.unblocked" {}
    10 70 ConnectionUpdateSecret "connection.update-secret" { new_secret: longstr, reason: shortstr }
    10 71 ConnectionUpdateSecretOk "connection.update-secret-ok" {}

    20 10 ChannelOpen "channel.open" { reserved_1: shortstr }
    20 11 ChannelOpenOk "channel.open-ok" { reserved_1: longstr }
    20 20 ChannelFlow "channel.flow" { active: bit }
    20 21 ChannelFlowOk "channel.flow-ok" { active: bit }
    20 40 ChannelClose "channel.close" {
        reply_code: short, reply_text: shortstr, class_id: short, method_id: short,
    }
    20 41 ChannelCloseOk "channel.close-ok" {}

    // Of 0-8, which old clients ask for.
    30 10 AccessRequest "access.request" {
        realm: shortstr, exclusive: bit, passive: bit, active: bit, write: bit, read: bit,
    }
    30 11 AccessRequestOk "access.request-ok" { ticket: short }

    40 10 ExchangeDeclare "exchange.declare" {
        reserved_1: short, exchange: shortstr, kind: shortstr, passive: bit, durable: bit,
        auto_delete: bit, internal: bit, no_wait: bit, arguments: table,
    }
    40 11 ExchangeDeclareOk "exchange.declare-ok" {}
    40 20 ExchangeDelete "exchange.delete" {
        reserved_1: short, exchange: shortstr, if_unused: bit, no_wait: bit,
    }
    40 21 ExchangeDeleteOk "exchange.delete-ok" {}
    // RabbitMQ's.
    40 30 ExchangeBind "exchange.bind" {
        reserved_1: short, destination: shortstr, source: shortstr, routing_key: shortstr,
        no_wait: bit, arguments: table,
    }
    40 31 ExchangeBindOk "exchange.bind-ok" {}
    40 40 ExchangeUnbind "exchange.unbind" {
        reserved_1: short, destination: shortstr, source: shortstr, routing_key: shortstr,
        no_wait: bit, arguments: table,
    }
    40 51 ExchangeUnbindOk "exchange.unbind-ok" {}

    50 10 QueueDeclare "queue.declare" {
        reserved_1: short, queue: shortstr, passive: bit, durable: bit, exclusive: bit,
        auto_delete: bit, no_wait: bit, arguments: table,
    }
    50 11 QueueDeclareOk "queue.declare-ok" {
        queue: shortstr, message_count: long, consumer_count: long,
    }
    50 20 QueueBind "queue.bind" {
        reserved_1: short, queue: shortstr, exchange: shortstr, routing_key: shortstr, no_wait: bit,
        arguments: table,
    }
    50 21 QueueBindOk "queue.bind-ok" {}
    50 30 QueuePurge "queue.purge" { reserved_1: short, queue: shortstr, no_wait: bit }
    50 31 QueuePurgeOk "queue.purge-ok" { message_count: long }
    50 40 QueueDelete "queue.delete" {
        reserved_1: short, queue: shortstr, if_unused: bit, if_empty: bit, no_wait: bit,
    }
    50 41 QueueDeleteOk "queue.delete-ok" { message_count: long }
    50 50 QueueUnbind "queue.unbind" {
        reserved_1: short, queue: shortstr, exchange: shortstr, routing_key: shortstr,
        arguments: table,
    }
    50 51 QueueUnbindOk "queue.unbind-ok" {}

    60 10 BasicQos "basic.qos" { prefetch_size: long, prefetch_count: short, global: bit }
    60 11 BasicQosOk "basic.qos-ok" {}
    60 20 BasicConsume "basic.consume" {
        reserved_1: short, queue: shortstr, consumer_tag: shortstr, no_local: bit, no_ack: bit,
        exclusive: bit, no_wait: bit, arguments: table,
    }
    60 21 BasicConsumeOk "basic.consume-ok" { consumer_tag: shortstr }
    60 30 BasicCancel "basic.cancel" { consumer_tag: shortstr, no_wait: bit }
    60 31 BasicCancelOk "basic.cancel-ok" { consumer_tag: shortstr }
    60 40 BasicPublish "basic.publish" {
        reserved_1: short, exchange: shortstr, routing_key: shortstr, mandatory: bit, immediate: bit,
    }
    60 50 BasicReturn "basic.return" {
        reply_code: short, reply_text: shortstr, exchange: shortstr, routing_key: shortstr,
    }
    60 60 BasicDeliver "basic.deliver" {
        consumer_tag: shortstr, delivery_tag: longlong, redelivered: bit, exchange: shortstr,
        routing_key: shortstr,
    }
    60 70 BasicGet "basic.get" { reserved_1: short, queue: shortstr, no_ack: bit }
    60 71 BasicGetOk "basic.get-ok" {
        delivery_tag: longlong, redelivered: bit, exchange: shortstr, routing_key: shortstr,
        message_count: long,
    }
    60 72 BasicGetEmpty "basic.get-empty" { reserved_1: shortstr }
    60 80 BasicAck "basic.ack" { delivery_tag: longlong, multiple: bit }
    60 90 BasicReject "basic.reject" { delivery_tag: longlong, requeue: bit }
    60 100 BasicRecoverAsync "basic.recover-async" { requeue: bit }
    60 110 BasicRecover "basic.recover" { requeue: bit }
    60 111 BasicRecoverOk "basic.recover-ok" {}
    // RabbitMQ's.
    60 120 BasicNack "basic.nack" { delivery_tag: longlong, multiple: bit, requeue: bit }

    // RabbitMQ's.
    85 10 ConfirmSelect "confirm.select" { no_wait: bit }
    85 11 ConfirmSelectOk "confirm.select-ok" {}

    90 10 TxSelect "tx.select" {}
    90 11 TxSelectOk "tx.select-ok" {}
    90 20 TxCommit "tx.commit" {}
    90 21 TxCommitOk "tx.commit-ok" {}
    90 30 TxRollback "tx.rollback" {}
    90 31 TxRollbackOk "tx.rollback-ok" {}
}

/// Reads fields; whatever is no bit ends the octet of the bits before it.
struct Reader<'a> {
    rest: &'a [u8],
    /// Bits of the current octet that were not read, and how many those are.
    bits: Option<(u8, u8)>,
}

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        self.bits = None;
        let (raw, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(Error::syntax("a method is shorter than its arguments"))?;
        self.rest = rest;
        Ok(*raw)
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (bytes, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(Error::syntax("a string or table is longer than its method"))?;
        self.rest = rest;
        Ok(bytes)
    }

    fn bit(&mut self) -> Result<bool, Error> {
        let (bits, left) = match self.bits {
            Some((bits, left)) if left > 0 => (bits, left),
            _ => (self.octet()?, 8),
        };
        self.bits = Some((bits >> 1, left - 1));
        Ok(bits & 1 != 0)
    }

    fn octet(&mut self) -> Result<u8, Error> {
        self.take::<1>().map(|[octet]| octet)
    }

    fn short(&mut self) -> Result<u16, Error> {
        self.take().map(u16::from_be_bytes)
    }

    fn long(&mut self) -> Result<u32, Error> {
        self.take().map(u32::from_be_bytes)
    }

    fn longlong(&mut self) -> Result<u64, Error> {
        self.take().map(u64::from_be_bytes)
    }

    fn shortstr(&mut self) -> Result<&'a [u8], Error> {
        let length = self.octet()?;
        self.bytes(usize::from(length))
    }

    fn longstr(&mut self) -> Result<&'a [u8], Error> {
        let length = self.long()?;
        self.bytes(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn table(&mut self) -> Result<&'a [u8], Error> {
        self.longstr()
    }
}

/// Writes fields.
struct Writer<'b> {
    out: &'b mut Vec<u8>,
    /// Bits used of the last octet; 8 = it is none of bits, or full.
    bits: u8,
}

impl Writer<'_> {
    fn raw(&mut self, bytes: &[u8]) {
        self.bits = 8;
        self.out.extend_from_slice(bytes);
    }

    fn bit(&mut self, bit: bool) {
        if self.bits == 8 {
            self.out.push(0);
            self.bits = 0;
        }
        let last = self.out.last_mut().expect("an octet was pushed");
        *last |= u8::from(bit) << self.bits;
        self.bits += 1;
    }

    fn octet(&mut self, value: u8) {
        self.raw(&[value]);
    }

    fn short(&mut self, value: u16) {
        self.raw(&value.to_be_bytes());
    }

    fn long(&mut self, value: u32) {
        self.raw(&value.to_be_bytes());
    }

    fn longlong(&mut self, value: u64) {
        self.raw(&value.to_be_bytes());
    }

    fn shortstr(&mut self, value: &[u8]) {
        let length = u8::try_from(value.len()).expect("a short string is short");
        self.raw(&[length]);
        self.raw(value);
    }

    fn longstr(&mut self, value: &[u8]) {
        let length = u32::try_from(value.len()).expect("a string fits a frame");
        self.raw(&length.to_be_bytes());
        self.raw(value);
    }

    fn table(&mut self, contents: &[u8]) {
        self.longstr(contents);
    }
}
