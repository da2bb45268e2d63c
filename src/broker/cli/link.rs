//! How commands reach a broker: its address, a connection, and what an error of the client means
//! for the exit code. Does not know what is asked of the broker.

use std::error::Error as _;
use std::future::{Future, poll_fn};
use std::io::Write;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use ringpost_client::{
    Client, ClientBuilder, Ensured, Error, ErrorKind, LinkEvent, Reconnect, Removed,
};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Exit, Failure, output};
use crate::config::value::{span_from, span_text};

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
    /// How long the broker may take to answer, such as 5s [default: 10s]; for `pub` and `sub` also
    /// how long one that was lost may stay away [default: 5min]
    #[arg(long, value_name = "duration", value_parser = span, global = true)]
    timeout: Option<Duration>,
}

/// How long a broker may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a broker that was lost may stay away: longer than it takes to drain and to start.
const AWAY: Duration = Duration::from_secs(300);
/// When it is first said that a broker is still away; each time after that comes twice as late.
const STILL_AWAY: Duration = Duration::from_secs(5);

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
            timeout: Some(timeout),
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
        let answer = self.timeout.unwrap_or(ANSWER);
        let mut builder = Client::builder(self.broker.clone())
            .name(concat!("ringpost ", env!("CARGO_PKG_VERSION")))
            .connect_timeout(answer)
            .request_timeout(answer)
            .close_timeout(answer);
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

    /// Connects for as long as it takes: a broker that is lost is waited for, and what becomes of it
    /// is told on standard error while [`Vigil::over`] works.
    ///
    /// # Errors
    /// Nobody answers, or refuses.
    pub async fn connect_to_stay(&self) -> Result<(Client, Vigil), Failure> {
        let (sender, links) = watch::channel(Links::default());
        let heed = move |event| {
            sender.send_modify(|links| match event {
                LinkEvent::Lost(error) => {
                    links.down += 1;
                    links.losses += 1;
                    links.why = chain(&error);
                }
                LinkEvent::Restored => links.down -= 1,
                // The client may learn to tell of more.
                _ => {}
            });
        };
        let policy = Reconnect::default().attempts_max(u32::MAX);
        let client = self
            .connect_with(|builder| builder.reconnect(policy).on_link(heed))
            .await?;
        let vigil = Vigil {
            broker: self.broker.clone(),
            away_max: self.timeout.unwrap_or(AWAY),
            links,
            away_since: None,
        };
        Ok((client, vigil))
    }
}

/// What is known of a client's connections, which are lost and come back one by one.
#[derive(Clone, Debug, Default)]
struct Links {
    /// How many are lost now.
    down: u32,
    /// How often one was lost.
    losses: u64,
    /// Why the last one was.
    why: String,
}

/// Who watches a client's connections, and tells people.
#[derive(Debug)]
pub struct Vigil {
    broker: String,
    away_max: Duration,
    links: watch::Receiver<Links>,
    /// When it was told that a connection is lost; nobody was told that it is back.
    away_since: Option<Instant>,
}

impl Vigil {
    /// Does `work`, and tells meanwhile when the broker is lost, still away and back.
    ///
    /// # Errors
    /// What the work ends with; or the broker stays away for too long, and it is given up.
    pub async fn over<T>(
        &mut self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let done = {
            let (mut work, mut watch) = (pin!(work), pin!(self.watch()));
            poll_fn(|context| {
                // First, so that news come before what happened after them.
                let given_up = watch.as_mut().poll(context);
                // What is done is done, also if the broker is given up in that moment.
                match work.as_mut().poll(context) {
                    Poll::Ready(done) => Poll::Ready(done),
                    Poll::Pending => given_up.map(Err),
                }
            })
            .await
        };
        // One connection is enough for work to end well, whatever became of the others.
        if done.is_ok() {
            self.say_back();
        }
        done
    }

    /// Whether the broker is lost at the moment.
    pub fn is_away(&self) -> impl Fn() -> bool + use<> {
        let links = self.links.clone();
        move || links.borrow().down > 0
    }

    async fn watch(&mut self) -> Failure {
        let mut losses = 0;
        loop {
            let is_news = |links: &Links| links.losses > losses;
            let lost = self
                .links
                .wait_for(is_news)
                .await
                .map(|links| links.clone());
            let Ok(lost) = lost else {
                // The client is gone, and what waits for it hears of that.
                return std::future::pending().await;
            };
            losses = lost.losses;
            if let Err(failure) = self.away(&lost.why).await {
                return failure;
            }
        }
    }

    /// Says that the broker is back, if it was said that it is lost.
    fn say_back(&mut self) {
        if let Some(since) = self.away_since.take() {
            let away = since.elapsed().as_secs_f64();
            say(&format!(
                "connected to {} again, after {away:.1} s",
                self.broker
            ));
        }
    }

    /// From the loss of the broker until it is back.
    async fn away(&mut self, why: &str) -> Result<(), Failure> {
        let broker = self.broker.clone();
        let since = Instant::now();
        self.away_since = Some(since);
        say(&format!(
            "the connection to {broker} is lost ({why}); trying again for {}",
            span_text(self.away_max)
        ));
        let mut told_after = STILL_AWAY;
        loop {
            let is_back = tokio::select! {
                back = self.links.wait_for(|links| links.down == 0) => {
                    if back.is_err() {
                        return std::future::pending().await; // as above
                    }
                    true
                }
                () = tokio::time::sleep_until(since + told_after.min(self.away_max)) => false,
            };
            if is_back {
                self.say_back();
                return Ok(());
            }
            if told_after >= self.away_max {
                return Err(Failure::new(
                    Exit::Unreachable,
                    format!(
                        "no broker at {broker} for {}: given up; --timeout sets for how long it is \
                         waited for",
                        span_text(self.away_max)
                    ),
                ));
            }
            let seconds = told_after.as_secs();
            say(&format!(
                "no broker at {broker} for {seconds} s; still trying"
            ));
            told_after *= 2;
        }
    }
}

/// Tells people on standard error what goes on.
pub fn say(notice: &str) {
    // Nothing more can be said if it is closed.
    let _ = writeln!(std::io::stderr(), "ringpost: {notice}");
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
            let messages = output::counted(u64::from(messages), "message");
            output::line(&format!("{what} {name} deleted, with {messages}"))
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
