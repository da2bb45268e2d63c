//! What the client tells an operator's log; nothing without the `tracing` feature.
//! Does not know what is done about it.

use crate::Error;

macro_rules! event {
    ($level:ident, $($field:tt)*) => {
        #[cfg(feature = "tracing")]
        tracing::$level!(target: "ringpost_client", $($field)*);
    };
}

/// A connection is lost.
#[cfg_attr(not(feature = "tracing"), allow(unused_variables))]
pub(crate) fn lost(address: &str, error: &Error) {
    event!(warn, address, %error, "connection lost");
}

/// A connection is back.
#[cfg_attr(not(feature = "tracing"), allow(unused_variables))]
pub(crate) fn reconnected(address: &str, attempts: u32) {
    event!(info, address, attempts, "connected again");
}

/// A client was dropped with messages that nobody has confirmed.
#[cfg_attr(not(feature = "tracing"), allow(unused_variables))]
pub(crate) fn dropped(unconfirmed: u64) {
    event!(warn, unconfirmed, "client dropped without close");
}
