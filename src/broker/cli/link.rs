//! How commands reach a broker: its address, a connection, and what an error of the client means
//! for the exit code. Does not know what is asked of the broker.

use std::error::Error as _;
use std::future::Future;
use std::time::Duration;

use ringpost_client::{Client, ClientBuilder, Ensured, Error, ErrorKind, Reconnect, Removed};

use super::{Exit, Failure, output};
use crate::config::value::span_from;

/// Flags of every command that talks to a broker.
#[derive(clap::Args, Clone, Debug)]
pub struct BrokerArgs {
    /// The broker's address
    #[arg(
        long,
        value_name = "host:port",
        env = "RINGPOST_BROKER",
        default_value = "127.0.0.1:7400",
        value_parser = host_and_port,
        global = true
    )]
    broker: String,
    /// The tenant to work in [default: the default one]
    #[arg(long, value_name = "name", env = "RINGPOST_TENANT", global = true)]
    tenant: Option<String>,
    /// How long the broker may take to answer, such as 5s
    #[arg(long, value_name = "duration", default_value = "10s", value_parser = span, global = true)]
    timeout: Duration,
}

/// Reads a span of time from the command line.
pub fn span(text: &str) -> Result<Duration, String> {
    span_from(text).ok_or_else(|| "a whole number with us, ms, s, min or h, such as 5s".into())
}

/// Reads where something listens; names are looked up later.
pub fn host_and_port(text: &str) -> Result<String, String> {
    let port = match text.rsplit_once(':') {
        // An address of IPv6 has colons of its own, and brackets around them if a port follows.
        Some((host, port)) if !host.is_empty() && (!host.contains(':') || host.ends_with(']')) => {
            port.parse::<u16>().ok()
        }
        _ => None,
    };
    match port {
        Some(_) => Ok(text.to_owned()),
        None => Err("a host and a port, such as 127.0.0.1:7400 or [::1]:7400".into()),
    }
}

impl BrokerArgs {
    /// A broker at an address, which may take so long to answer.
    #[must_use]
    pub fn at(broker: String, timeout: Duration) -> Self {
        BrokerArgs {
            broker,
            tenant: None,
            timeout,
        }
    }

    /// Connects, with what `more` asks for beside address, tenant and timeouts.
    ///
    /// # Errors
    /// Nobody answers, or refuses.
    pub async fn connect_with(
        &self,
        more: impl FnOnce(ClientBuilder) -> ClientBuilder,
    ) -> Result<Client, Failure> {
        let mut builder = Client::builder(self.broker.clone())
            .name(concat!("ringpost ", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.timeout)
            .request_timeout(self.timeout)
            .close_timeout(self.timeout);
        if let Some(tenant) = &self.tenant {
            builder = builder.tenant(tenant.clone());
        }
        more(builder).connect().await.map_err(|error| match error.kind() {
            ErrorKind::Connect | ErrorKind::Disconnected | ErrorKind::TimedOut => Failure::new(
                Exit::Unreachable,
                format!(
                    "no broker answers at {}: {}; start one with `ringpost serve`, or name another \
                     with --broker",
                    self.broker,
                    chain(&error)
                ),
            ),
            // Whoever answered did not speak our protocol.
            ErrorKind::Protocol => Failure::failed(format!(
                "{} answered, but not as a broker does ({}); --broker names the port for clients, \
                 not the admin port",
                self.broker,
                chain(&error)
            )),
            _ => error.into(),
        })
    }

    /// Connects for a few requests: a lost connection is an error.
    ///
    /// # Errors
    /// Nobody answers, or refuses.
    pub async fn connect(&self) -> Result<Client, Failure> {
        self.connect_with(|builder| builder.reconnect(Reconnect::off()))
            .await
    }
}

/// Runs `work` to its end on this thread.
///
/// # Errors
/// What it ends with.
pub fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime =
        runtime.map_err(|error| Failure::failed(format!("cannot wait for sockets: {error}")))?;
    runtime.block_on(work)
}

/// What an error and all its sources say.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match error.kind() {
            ErrorKind::Invalid => Exit::Usage,
            ErrorKind::Connect | ErrorKind::Disconnected | ErrorKind::TimedOut => Exit::Unreachable,
            _ => Exit::Failed,
        };
        Failure::new(exit, chain(&error))
    }
}

/// Says what came of asking for something to be there.
///
/// # Errors
/// Standard output cannot be written.
pub fn say_ensured(what: &str, name: &str, ensured: Ensured) -> Result<(), Failure> {
    match ensured {
        Ensured::Created => output::line(&format!("{what} {name} created")),
        Ensured::AlreadyExists => output::line(&format!("{what} {name} exists already")),
    }
}

/// Says what came of asking for something to be created that must not have been there.
///
/// # Errors
/// It was there.
pub fn say_declared(what: &str, name: &str, ensured: Ensured) -> Result<(), Failure> {
    match ensured {
        Ensured::Created => output::line(&format!("{what} {name} created")),
        Ensured::AlreadyExists => Err(Failure::failed(format!(
            "the {what} {name} exists already, with these settings; `ensure` takes that for success"
        ))),
    }
}

/// Says what came of asking for something to be gone.
///
/// # Errors
/// Standard output cannot be written.
pub fn say_removed(what: &str, name: &str, removed: Removed) -> Result<(), Failure> {
    match removed {
        Removed::Removed { messages: 0 } => output::line(&format!("{what} {name} deleted")),
        Removed::Removed { messages } => {
            output::line(&format!("{what} {name} deleted, with {messages} messages"))
        }
        Removed::Absent => output::line(&format!("there is no {what} {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for good in ["127.0.0.1:7400", "[::1]:7400", "broker.example:1"] {
            assert_eq!(host_and_port(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "127.0.0.1",
            ":7400",
            "::1",
            "::1:7400",
            "host:",
            "host:x",
            "host:65536",
        ] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
    }
}
