//! The one error type of the client: what a caller can do about a failure, and what was said of it.
//! Does not know how a failure is noticed.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use ringpost_wire::Code;
use ringpost_wire::control::{Body, Failure};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can act on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An option, name, setting or message part is not one that is allowed. Change the call.
    Invalid,
    /// The message is larger than the broker takes, or a transaction has more than one may; the text says
    /// which.
    TooLarge,
    /// Nobody answered at the address, or the handshake did not come about.
    Connect,
    /// The peer does not speak this protocol, or sent bytes that are none of its frames.
    Protocol,
    /// The connection is lost; what was asked over it may or may not have been done.
    Disconnected,
    /// The client, producer or consumer was closed by its owner.
    Closed,
    /// No answer within the time that was set, or a consumer held a message longer than its queue
    /// allows, or a transaction was open for longer than it may be.
    TimedOut,
    /// The tenant, exchange, queue or binding does not exist.
    NotFound,
    /// It exists with other settings, or is in use.
    Conflict,
    /// The broker does not allow this to this client.
    Denied,
    /// No queue takes the message, or none at the level asked for. It was not stored.
    Unroutable,
    /// The broker has no room now: a full queue or disk, a limit, overload. It was not done; retry later.
    Full,
    /// A newer instance of this producer has taken over.
    Fenced,
    /// It is unknown whether the message was stored. Publishing it again may store it twice.
    Indeterminate,
    /// A delivered message does not match its producer's checksum; see [`Error::delivery`].
    Damaged,
    /// The broker failed in a way that only its operator can look into.
    Broker,
}

/// Why something did not happen.
///
/// ```
/// use ringpost_client::{Error, ErrorKind};
///
/// fn advice(error: &Error) -> &'static str {
///     match error.kind() {
///         ErrorKind::Full => "slow down and try again",
///         ErrorKind::Indeterminate => "publish again if the consumer tolerates duplicates",
///         _ if error.is_retryable() => "try again",
///         _ => "change something first",
///     }
/// }
/// ```
#[derive(Clone)]
pub struct Error {
    inner: Box<Inner>,
}

/// Places in a batch, and why they failed.
type Failed = (Range<usize>, Error);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    /// What the broker answered, if it did.
    code: Option<Code>,
    /// The delivery that is damaged.
    delivery: Option<crate::DeliveryTag>,
    /// What of a batch failed, as places in the batch.
    failed: Option<Arc<[Failed]>>,
    text: Arc<str>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, text: impl Into<Arc<str>>) -> Self {
        Self {
            inner: Box::new(Inner {
                kind,
                code: None,
                delivery: None,
                failed: None,
                text: text.into(),
                source: None,
            }),
        }
    }

    pub(crate) fn with_source(
        mut self,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        self.inner.source = Some(Arc::new(source));
        self
    }

    pub(crate) fn with_delivery(mut self, tag: crate::DeliveryTag) -> Self {
        self.inner.delivery = Some(tag);
        self
    }

    /// The error of a code that the broker sent, or of one found while reading its bytes.
    pub(crate) fn from_code(code: Code, reason: &str) -> Self {
        let text = if reason.is_empty() {
            code.word().to_owned()
        } else {
            format!("{code}: {reason}")
        };
        let mut error = Self::new(kind_of(code), text);
        error.inner.code = Some(code);
        error
    }

    /// The error that a `Failure` body tells of.
    pub(crate) fn from_failure(body: &[u8]) -> Self {
        match Failure::decode(body) {
            Ok(failure) => Self::from_code(
                Code::from_number(failure.code),
                &String::from_utf8_lossy(failure.reason),
            ),
            Err(code) => Self::protocol(code, "the broker sent a failure that cannot be read"),
        }
    }

    /// The error that a `Refused` frame tells of: it is about a publish, not about the connection.
    pub(crate) fn from_refusal(body: &[u8]) -> Self {
        let mut error = Self::from_failure(body);
        // A large message whose rest did not come in time for those who waited; it was not stored.
        if error.inner.code == Some(Code::TimedOut) {
            error.inner.kind = ErrorKind::Full;
        }
        error
    }

    /// Bytes from the broker that the protocol does not allow.
    pub(crate) fn protocol(code: Code, text: &str) -> Self {
        let mut error = Self::new(ErrorKind::Protocol, format!("{code}: {text}"));
        error.inner.code = Some(code);
        error
    }

    /// Some messages of a batch of `count` failed.
    pub(crate) fn batch(count: u64, failed: Vec<Failed>) -> Self {
        let (first, cause) = &failed[0];
        let failed_count: usize = failed.iter().map(|(range, _)| range.len()).sum();
        let mut error = Self::new(
            cause.kind(),
            format!(
                "{failed_count} of {} failed, the first at {}: {cause}",
                counted(count, "message"),
                first.start
            ),
        );
        error.inner.code = cause.inner.code;
        error.inner.failed = Some(failed.into());
        error
    }

    pub(crate) fn closed() -> Self {
        Self::new(ErrorKind::Closed, "closed by its owner")
    }

    pub(crate) fn disconnected(text: &str) -> Self {
        Self::new(ErrorKind::Disconnected, text)
    }

    pub(crate) fn code_number(&self) -> Option<Code> {
        self.inner.code
    }

    /// The same cause, for those who wait for something else.
    pub(crate) fn as_kind(&self, kind: ErrorKind, text: &str) -> Self {
        let mut error = Self::new(kind, text);
        error.inner.code = self.inner.code;
        error.inner.source = Some(Arc::new(self.clone()));
        error
    }

    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// The broker's word for it, such as `queue_full`, where the broker gave one.
    #[must_use]
    pub fn code(&self) -> Option<&'static str> {
        self.inner.code.map(Code::word)
    }

    /// Whether the same call may succeed later without anybody changing anything.
    ///
    /// A retried publish may be stored twice if the kind is [`ErrorKind::Indeterminate`] or
    /// [`ErrorKind::Disconnected`].
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self.inner.kind {
            ErrorKind::Connect
            | ErrorKind::Disconnected
            | ErrorKind::TimedOut
            | ErrorKind::Full
            | ErrorKind::Indeterminate => true,
            ErrorKind::Broker => self.inner.code.is_none_or(Code::is_retryable),
            ErrorKind::Invalid
            | ErrorKind::TooLarge
            | ErrorKind::Protocol
            | ErrorKind::Closed
            | ErrorKind::NotFound
            | ErrorKind::Conflict
            | ErrorKind::Denied
            | ErrorKind::Unroutable
            | ErrorKind::Fenced
            | ErrorKind::Damaged => false,
        }
    }

    /// Which messages of a batch failed, as places in the batch from 0, and why; all others were
    /// confirmed. Empty for an error that is not about a batch.
    #[must_use]
    pub fn failed(&self) -> &[(Range<usize>, Error)] {
        self.inner.failed.as_deref().unwrap_or_default()
    }

    /// The delivery that an [`ErrorKind::Damaged`] speaks of, to be acked or rejected.
    #[must_use]
    pub fn delivery(&self) -> Option<crate::DeliveryTag> {
        self.inner.delivery
    }
}

/// A number of things, in the singular if it is one.
pub(crate) fn counted(number: u64, thing: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{ending}")
}

fn kind_of(code: Code) -> ErrorKind {
    match code {
        Code::Normal | Code::ShuttingDown | Code::TimedOut => ErrorKind::Disconnected,
        Code::HoldExceeded | Code::TransactionTimedOut => ErrorKind::TimedOut,
        Code::FrameMalformed
        | Code::FrameTooLarge
        | Code::BodyMalformed
        | Code::UnexpectedFrame
        | Code::VersionUnsupported
        | Code::CreditExceeded
        | Code::SequenceGap
        | Code::MessageMalformed
        | Code::UnknownDelivery
        | Code::ChannelInvalid => ErrorKind::Protocol,
        Code::TenantUnknown
        | Code::ExchangeUnknown
        | Code::QueueUnknown
        | Code::BindingUnknown
        | Code::PolicyUnknown
        | Code::QueueDeleted => ErrorKind::NotFound,
        Code::NameInvalid | Code::SettingInvalid => ErrorKind::Invalid,
        Code::PreconditionFailed | Code::InUse | Code::ResourceLocked => ErrorKind::Conflict,
        Code::PermissionDenied => ErrorKind::Denied,
        Code::Overloaded | Code::LimitReached | Code::QueueFull | Code::DiskFull => ErrorKind::Full,
        Code::Unroutable | Code::LevelUnavailable => ErrorKind::Unroutable,
        Code::MessageTooLarge | Code::TransactionTooLarge => ErrorKind::TooLarge,
        Code::JournalFailed | Code::SequenceTooOld | Code::Indeterminate => {
            ErrorKind::Indeterminate
        }
        Code::ProducerFenced => ErrorKind::Fenced,
        Code::Internal | Code::QueueDamaged | Code::TopologyReadOnly => ErrorKind::Broker,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.text)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.inner.kind)
            .field("code", &self.code())
            .field("text", &self.inner.text)
            .field("source", &self.inner.source)
            .finish_non_exhaustive()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner
            .source
            .as_deref()
            .map(|source| source as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn text_and_source_are_not_said_twice() {
        let cause = std::io::Error::other("device on fire");
        let error = Error::new(ErrorKind::Connect, "cannot connect to a:1").with_source(cause);
        assert_eq!(error.to_string(), "cannot connect to a:1");
        assert_eq!(
            error.source().map(ToString::to_string),
            Some("device on fire".to_owned())
        );
    }

    #[test]
    fn a_refused_publish_was_not_stored_or_nobody_knows() {
        let kind = |code: Code| {
            let mut body = Vec::new();
            let failure = Failure {
                code: code as u16,
                reserved: 0,
                reason: b"why",
            };
            failure.encode(&mut body);
            Error::from_refusal(&body).kind()
        };
        assert_eq!(kind(Code::TimedOut), ErrorKind::Full);
        assert_eq!(kind(Code::Overloaded), ErrorKind::Full);
        assert_eq!(kind(Code::SequenceTooOld), ErrorKind::Indeterminate);
    }

    #[test]
    fn every_code_has_a_kind_and_a_word() {
        for code in Code::ALL {
            let error = Error::from_code(*code, "");
            assert_eq!(error.code(), Some(code.word()));
            assert_eq!(error.to_string(), code.word());
        }
    }
}
