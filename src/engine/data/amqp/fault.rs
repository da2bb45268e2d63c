//! What a client is told when something cannot be done: the reply code and text of the specification for
//! a native code. Does not know who tells it.

use ringpost_amqp::{Error, ReplyCode, Scope};
use ringpost_wire::Code;

/// Why a channel or the connection ends.
#[derive(Debug)]
pub(super) struct Fault {
    /// The reply code.
    pub(super) code: ReplyCode,
    /// Whether the connection ends, also where the code ends channels only.
    pub(super) ends_connection: bool,
    /// The reply text.
    pub(super) text: String,
    /// Numbers of the class and the method that caused it; 0 if it was none.
    pub(super) of: (u16, u16),
}

impl Fault {
    pub(super) fn new(code: ReplyCode, why: &str, of: (u16, u16)) -> Self {
        Self {
            code,
            ends_connection: code.scope() == Scope::Connection,
            text: format!("{} - {why}", code.word()),
            of,
        }
    }

    /// The same for the whole connection.
    pub(super) fn of_connection(mut self) -> Self {
        self.ends_connection = true;
        self
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::new(error.code, error.why, (0, 0))
    }
}

/// What a request was about, for texts in RabbitMQ's words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject<'a> {
    /// "queue" or "exchange".
    pub(super) what: &'a str,
    /// Its name.
    pub(super) name: &'a [u8],
    /// The virtual host.
    pub(super) host: &'a [u8],
}

impl std::fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = String::from_utf8_lossy(self.name);
        let host = String::from_utf8_lossy(self.host);
        write!(f, "{} '{name}' in vhost '{host}'", self.what)
    }
}

/// What a client is told when a request has failed with a native code.
pub(super) fn of_failure(
    code: Code,
    reason: &str,
    subject: Subject<'_>,
    is_consume: bool,
    of: (u16, u16),
) -> Fault {
    let host = String::from_utf8_lossy(subject.host);
    let (reply, why) = match code {
        Code::QueueUnknown => (ReplyCode::NotFound, format!("no {subject}")),
        Code::ExchangeUnknown => (ReplyCode::NotFound, format!("no {subject}")),
        Code::ResourceLocked => (
            ReplyCode::ResourceLocked,
            format!(
                "cannot obtain exclusive access to locked {subject}. It could be originally declared on \
                 another connection or the exclusive property value does not match that of the original \
                 declaration."
            ),
        ),
        Code::InUse if is_consume => (
            ReplyCode::AccessRefused,
            format!("{subject} in exclusive use"),
        ),
        Code::InUse => (ReplyCode::PreconditionFailed, format!("{subject} in use")),
        Code::PermissionDenied => (ReplyCode::AccessRefused, reason.to_owned()),
        Code::NameInvalid if subject.name.starts_with(b"amq.") => (
            ReplyCode::AccessRefused,
            format!(
                "{} name '{}' contains reserved prefix 'amq.*'",
                subject.what,
                String::from_utf8_lossy(subject.name)
            ),
        ),
        Code::PreconditionFailed => (
            ReplyCode::PreconditionFailed,
            format!("inequivalent arg for {subject}: {reason}"),
        ),
        Code::ShuttingDown => (
            ReplyCode::ConnectionForced,
            "broker forced connection closure with reason 'shutdown'".to_owned(),
        ),
        Code::TenantUnknown => (ReplyCode::NotAllowed, format!("vhost {host} not found")),
        _ => (ReplyCode::PreconditionFailed, reason.to_owned()),
    };
    Fault::new(reply, &why, of)
}
