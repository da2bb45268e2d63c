//! What the client tells of its connections: to who asked to hear of it, and to an operator's log
//! with the `tracing` feature. Does not know what is done about it.

use std::fmt;
use std::sync::Arc;

use crate::Error;

/// What became of a connection; see [`crate::ClientBuilder::on_link`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LinkEvent {
    /// It is lost, for this reason, and is dialled again.
    Lost(Error),
    /// It is back: producers and consumers go on.
    Restored,
}

/// Who wants to hear of connections.
#[derive(Clone, Default)]
pub(crate) struct Observer(Option<Arc<dyn Fn(LinkEvent) + Send + Sync>>);

impl Observer {
    pub(crate) fn new(tell: impl Fn(LinkEvent) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(tell)))
    }

    pub(crate) fn tell(&self, event: LinkEvent) {
        if let Some(tell) = &self.0 {
            tell(event);
        }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.0.is_some() { "Observer" } else { "None" };
        f.write_str(word)
    }
}

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
