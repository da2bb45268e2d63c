//! Error codes: why a frame, a publish, a request, a channel or a connection was refused.
//! Numbers are never reused; does not know how a broker came to the answer.

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $scope:ident, $retry:ident, $word:literal;)*) => {
        /// Why something was refused. The number is what travels; it is never reused (P-90).
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u16)]
        pub enum Code { $($(#[$doc])* $name = $number,)* }

        impl Code {
            /// Every code, in the order of its number.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            //= P-91
            /// The code of a number that travelled; an unknown number is [`Code::Internal`].
            #[must_use]
            pub const fn from_number(number: u16) -> Code {
                match number { $($number => Code::$name,)* _ => Code::Internal }
            }

            /// The word used in texts, metrics and command-line output.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Code::$name => $word,)* }
            }

            /// What the code ends.
            #[must_use]
            pub const fn scope(self) -> Scope {
                match self { $(Code::$name => Scope::$scope,)* }
            }

            /// Whether the same request may succeed later without anybody changing it.
            #[must_use]
            pub const fn is_retryable(self) -> bool {
                match self { $(Code::$name => codes!(@retry $retry),)* }
            }
        }
    };
    (@retry retry) => { true };
    (@retry fatal) => { false };
}

/// What an error ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// The one publish or request it answers; nothing else is touched.
    Request,
    /// The producer or consumer; its connection lives on.
    Channel,
    /// The connection: the broker says `Close` with this code and hangs up.
    Connection,
}

codes! {
    /// Clean close, nothing is wrong.
    Normal = 0, Connection, fatal, "normal";
    /// The broker is shutting down; another or the restarted one will serve.
    ShuttingDown = 1, Connection, retry, "shutting_down";
    /// A bug of the broker; its log has more.
    Internal = 2, Connection, retry, "internal";
    /// Frame header damaged, or its length, padding or kind is not one of the protocol (P-4).
    FrameMalformed = 10, Connection, fatal, "frame_malformed";
    /// Frame longer than agreed (P-3).
    FrameTooLarge = 11, Connection, fatal, "frame_too_large";
    /// Body does not fit its kind: short, bad offsets, bad count, bad checksum.
    BodyMalformed = 12, Connection, fatal, "body_malformed";
    /// A frame that this state does not allow: before the handshake, unknown channel, wrong direction.
    UnexpectedFrame = 13, Connection, fatal, "unexpected_frame";
    /// No common protocol version (P-8).
    VersionUnsupported = 14, Connection, fatal, "version_unsupported";
    /// `Hello` did not come in time, or the peer was silent for two heartbeat intervals (P-12).
    TimedOut = 15, Connection, retry, "timed_out";
    /// Published beyond credit (P-34).
    CreditExceeded = 16, Connection, fatal, "credit_exceeded";
    /// Publish sequence does not follow the one before it on its channel (P-32).
    SequenceGap = 17, Connection, fatal, "sequence_gap";
    /// Connections, channels or memory are used up; try later or elsewhere.
    Overloaded = 18, Connection, retry, "overloaded";
    /// The message's checksum, envelope or parts do not hold together (P-21).
    MessageMalformed = 19, Connection, fatal, "message_malformed";
    /// Settled a delivery tag that is not outstanding (P-44).
    UnknownDelivery = 20, Channel, fatal, "unknown_delivery";
    /// Channel number out of range or already in use.
    ChannelInvalid = 21, Connection, fatal, "channel_invalid";
    /// Tenant does not exist.
    TenantUnknown = 30, Connection, fatal, "tenant_unknown";
    /// Exchange does not exist.
    ExchangeUnknown = 31, Request, fatal, "exchange_unknown";
    /// Queue does not exist.
    QueueUnknown = 32, Request, fatal, "queue_unknown";
    /// Binding does not exist.
    BindingUnknown = 33, Request, fatal, "binding_unknown";
    /// Name is empty, too long, reserved or holds a byte that names may not hold (P-60).
    NameInvalid = 34, Request, fatal, "name_invalid";
    /// It exists already, with other settings; the reason names the difference.
    PreconditionFailed = 35, Request, fatal, "precondition_failed";
    /// The principal may not do this.
    PermissionDenied = 36, Request, fatal, "permission_denied";
    /// Deleted only if unused or empty, and it is not.
    InUse = 37, Request, fatal, "in_use";
    /// A setting is out of its bounds; the reason names them.
    SettingInvalid = 38, Request, fatal, "setting_invalid";
    /// As many tenants, exchanges, queues, bindings or consumers as the limit allows.
    LimitReached = 39, Request, retry, "limit_reached";
    /// The queue is exclusive to another connection (P-76).
    ResourceLocked = 40, Request, fatal, "resource_locked";
    /// Policy does not exist.
    PolicyUnknown = 41, Request, fatal, "policy_unknown";
    /// No queue takes the message and it was published `mandatory` (P-37).
    Unroutable = 50, Request, fatal, "unroutable";
    /// Message larger than agreed.
    MessageTooLarge = 51, Request, fatal, "message_too_large";
    /// The queue is at its maximum length or bytes.
    QueueFull = 52, Request, retry, "queue_full";
    /// The disk has no room for publishes; consumers and acks go on.
    DiskFull = 53, Request, retry, "disk_full";
    /// Level `durable` was asked for and a target queue is volatile (P-36).
    LevelUnavailable = 54, Request, fatal, "level_unavailable";
    /// The journal of a target queue has failed; the outcome of what was in flight is unknown.
    JournalFailed = 55, Request, retry, "journal_failed";
    /// The queue's data has a damaged range; `ringpost verify` names it.
    QueueDamaged = 56, Request, fatal, "queue_damaged";
    /// Sequence lies below the dedup window: it may or may not have been stored before (P-38).
    SequenceTooOld = 57, Request, fatal, "sequence_too_old";
    /// A newer epoch of this producer has opened.
    ProducerFenced = 58, Channel, fatal, "producer_fenced";
    /// Participant was lost before the outcome was known.
    Indeterminate = 59, Request, retry, "indeterminate";
    /// The queue was deleted while it was in use.
    QueueDeleted = 60, Channel, fatal, "queue_deleted";
    /// Topology cannot change now: its journal has failed.
    TopologyReadOnly = 61, Request, retry, "topology_read_only";
    /// The consumer held a message longer than its queue allows.
    HoldExceeded = 62, Channel, retry, "hold_exceeded";
    /// The transaction was open for longer than it may be; nothing of it has happened.
    TransactionTimedOut = 63, Request, retry, "transaction_timed_out";
    /// More messages or bytes than one transaction may have on a core; nothing of it has happened.
    TransactionTooLarge = 64, Request, fatal, "transaction_too_large";
}

impl core::fmt::Display for Code {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    //= P-90, P-91
    #[test]
    fn numbers_go_both_ways_and_only_once() {
        for (idx, code) in Code::ALL.iter().enumerate() {
            assert_eq!(Code::from_number(*code as u16), *code);
            assert!(
                Code::ALL[idx + 1..]
                    .iter()
                    .all(|other| *other as u16 > *code as u16)
            );
            assert!(
                Code::ALL[idx + 1..]
                    .iter()
                    .all(|other| other.word() != code.word())
            );
        }
        assert_eq!(Code::from_number(9_999), Code::Internal);
    }
}
