//! Reply codes: why a channel or a connection ends. Does not know who came to that.

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $scope:ident, $word:literal;)*) => {
        /// A reply code of the specification.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u16)]
        pub enum ReplyCode { $($(#[$doc])* $name = $number,)* }

        impl ReplyCode {
            /// Every code, in the order of its number.
            pub const ALL: &'static [ReplyCode] = &[$(ReplyCode::$name,)*];

            /// The word that begins a reply text.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(ReplyCode::$name => $word,)* }
            }

            /// What it ends.
            #[must_use]
            pub const fn scope(self) -> Scope {
                match self { $(ReplyCode::$name => Scope::$scope,)* }
            }

            /// The number that travels.
            #[must_use]
            pub const fn number(self) -> u16 {
                self as u16
            }
        }
    };
}

/// What a reply code ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Nothing.
    None,
    /// The channel on which it happened.
    Channel,
    /// The connection with all of its channels.
    Connection,
}

codes! {
    /// Done as asked.
    Success = 200, None, "REPLY_SUCCESS";
    /// The content is larger than can be taken now.
    ContentTooLarge = 311, Channel, "CONTENT_TOO_LARGE";
    /// A mandatory message that no queue takes; said in `basic.return` only.
    NoRoute = 312, Channel, "NO_ROUTE";
    /// An immediate message that no consumer takes.
    NoConsumers = 313, Channel, "NO_CONSUMERS";
    /// The operator ends the connection.
    ConnectionForced = 320, Connection, "CONNECTION_FORCED";
    /// The virtual host is malformed.
    InvalidPath = 402, Connection, "INVALID_PATH";
    /// The client may not do this.
    AccessRefused = 403, Channel, "ACCESS_REFUSED";
    /// It does not exist.
    NotFound = 404, Channel, "NOT_FOUND";
    /// It belongs to another connection.
    ResourceLocked = 405, Channel, "RESOURCE_LOCKED";
    /// What the request supposes does not hold.
    PreconditionFailed = 406, Channel, "PRECONDITION_FAILED";
    /// Bytes that are no frame.
    FrameError = 501, Connection, "FRAME_ERROR";
    /// A frame whose fields have illegal values.
    SyntaxError = 502, Connection, "SYNTAX_ERROR";
    /// Methods in an order that is none.
    CommandInvalid = 503, Connection, "COMMAND_INVALID";
    /// A channel that is not open, or is already.
    ChannelError = 504, Connection, "CHANNEL_ERROR";
    /// A content frame where none may be, or none where one must be.
    UnexpectedFrame = 505, Connection, "UNEXPECTED_FRAME";
    /// Too few resources.
    ResourceError = 506, Connection, "RESOURCE_ERROR";
    /// It may not be done in any case.
    NotAllowed = 530, Connection, "NOT_ALLOWED";
    /// The broker does not do this.
    NotImplemented = 540, Connection, "NOT_IMPLEMENTED";
    /// A bug of the broker.
    InternalError = 541, Connection, "INTERNAL_ERROR";
}

/// Bytes that are not what the specification allows, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Error {
    /// The code that the specification names for it.
    pub code: ReplyCode,
    /// For people.
    pub why: &'static str,
}

impl Error {
    pub(crate) const fn frame(why: &'static str) -> Self {
        let code = ReplyCode::FrameError;
        Self { code, why }
    }

    pub(crate) const fn syntax(why: &'static str) -> Self {
        let code = ReplyCode::SyntaxError;
        Self { code, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Section 1.2 of the specification: soft errors end a channel, hard ones the connection.
    #[test]
    fn numbers_say_what_they_end() {
        for code in ReplyCode::ALL {
            let scope = match code.number() {
                200 => Scope::None,
                311..=313 | 403..=406 => Scope::Channel,
                320 | 402 | 501..=506 | 530 | 540 | 541 => Scope::Connection,
                other => panic!("{other} is no number of the specification"),
            };
            assert_eq!(code.scope(), scope, "{code:?}");
        }
        let numbers = ReplyCode::ALL.iter().map(|code| code.number());
        assert!(numbers.is_sorted_by(|one, two| one < two));
    }
}
