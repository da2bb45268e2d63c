//! The admin thread: metrics, health and readiness over HTTP, off the cores. It asks the cores over
//! bounded channels and waits for none longer than it was told. Does not know queues or messages.

mod listener;
pub mod stages;
pub mod trace;

use std::cmp::Reverse;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, oneshot};

use self::listener::{Asking, BoundedListener};
use super::metrics::{self, Answer, ProcessSnapshot};
use crate::budget::Budget;
use crate::control::numbers::QueueStatus;
use crate::rt;
use crate::snapshot::{AdminRequest, Asked, BUSIEST_MAX, QueuesSnapshot};

/// How long a core may take to answer.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// How long one HTTP connection may last, whatever it does: a scraper connects again, and whoever
/// says nothing, or a byte a second, must not keep a health check waiting for its place.
pub const CONNECTION_WITHIN: Duration = Duration::from_secs(5);
/// How long a stopping admin thread waits for answers that are being written.
const LINGER: Duration = Duration::from_secs(1);

/// Where a core takes requests.
#[derive(Clone, Debug)]
pub struct CorePort {
    /// Bounded by [`crate::snapshot::ADMIN_REQUESTS_MAX`]; the core tries it between two turns.
    pub requests: flume::Sender<AdminRequest>,
    /// Wakes the core; shared with all who post to it.
    pub bell: Arc<rt::Bell>,
}

/// What the admin thread works with.
#[derive(Debug)]
pub struct AdminOptions {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Host names, beside addresses and `localhost`, that requests may name.
    pub hosts: Vec<String>,
    /// The cores, by number.
    pub cores: Vec<CorePort>,
    /// How long a core may take to answer: [`ANSWER_WITHIN`].
    pub answer_within: Duration,
    /// How long a connection may last: [`CONNECTION_WITHIN`].
    pub connection_within: Duration,
    /// How memory was divided.
    pub budget: Option<Budget>,
    /// Log lines dropped; shared with everybody who logs, see [`super::log`].
    pub log_dropped: Arc<AtomicU64>,
}

/// Why the admin thread did not start.
#[derive(Debug)]
pub enum AdminError {
    /// The address cannot be listened on.
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The thread or its runtime could not be made.
    Thread(io::Error),
}

impl std::fmt::Display for AdminError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AdminError::Listen { address, error } if error.kind() == io::ErrorKind::AddrInUse => {
                write!(
                    f,
                    "the admin address {address} is taken: another broker may be running; stop it \
                     or choose another with --admin-listen"
                )
            }
            AdminError::Listen { address, error } => {
                write!(
                    f,
                    "cannot listen on the admin address {address}: {error}; choose another with \
                     --admin-listen"
                )
            }
            AdminError::Thread(error) => write!(f, "cannot start the admin thread: {error}"),
        }
    }
}

impl std::error::Error for AdminError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            AdminError::Listen { error, .. } | AdminError::Thread(error) => Some(error),
        }
    }
}

/// A running admin thread; dropping it stops the thread as well.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Stops it and waits until it has ended.
    pub fn shutdown(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(()); // fails only if the thread has ended already
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the admin thread has panicked");
        }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.end();
    }
}

/// Listens, and starts the thread.
///
/// # Errors
/// The address is taken or not ours, or no thread can be made.
pub fn start(options: AdminOptions) -> Result<Admin, AdminError> {
    let address = options.listen;
    let listen = |error| AdminError::Listen { address, error };
    let listener = TcpListener::bind(address).map_err(listen)?;
    listener.set_nonblocking(true).map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AdminError::Thread)?;
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("admin".into())
        .spawn(move || {
            if let Err(error) = runtime.block_on(serve(listener, options, stopped)) {
                tracing::error!(%error, "the admin port has failed; metrics are not served");
            }
        })
        .map_err(AdminError::Thread)?;
    Ok(Admin {
        address,
        stop: Some(stop),
        thread: Some(thread),
    })
}

/// Serves until told to stop.
async fn serve(
    listener: TcpListener,
    options: AdminOptions,
    stopped: oneshot::Receiver<()>,
) -> io::Result<()> {
    let listener = BoundedListener::new(
        tokio::net::TcpListener::from_std(listener)?,
        options.connection_within,
    );
    let (stopping, told) = oneshot::channel();
    let told_to_stop = async move {
        let _ = stopped.await; // a sender dropped says the same
        let _ = stopping.send(()); // nobody listens if serving has failed
    };
    let service = router(options).into_make_service_with_connect_info::<Asking>();
    let served = axum::serve(listener, service).with_graceful_shutdown(told_to_stop);
    let lingered = async {
        let _ = told.await; // as above
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        result = served => result,
        () = lingered => Ok(()),
    }
}

/// What handlers share.
#[derive(Debug)]
struct Shared {
    options: AdminOptions,
    /// When the process started, in seconds since 1970.
    start_time_seconds: u64,
    /// One round of questions at a time, so that a core never has more than one of ours waiting.
    round: Semaphore,
    /// Messages that are followed for somebody.
    traces: trace::Traces,
}

/// The pages.
fn router(options: AdminOptions) -> Router {
    let shared = Arc::new(Shared {
        options,
        start_time_seconds: rt::time::wall_us() / 1_000_000,
        round: Semaphore::new(1),
        traces: trace::Traces::default(),
    });
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .route("/status", get(status))
        .route("/stages", get(stages::page))
        .route("/trace", get(trace::page))
        .fallback(|| async { (StatusCode::NOT_FOUND, "no such page; / lists them\n") })
        .layer(middleware::from_fn_with_state(shared.clone(), check_host))
        .with_state(shared)
}

/// Refuses requests that name a host which is not ours: a web page anywhere can point a name of its
/// own at 127.0.0.1 and have a visitor's browser read this port, but it cannot forge the header.
///
/// Here a request is whole: its connection keeps its place until it is answered, and no longer.
async fn check_host(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(asking): ConnectInfo<Asking>,
    request: Request,
    next: Next,
) -> Response {
    asking.note();
    if !is_host_allowed(request.headers(), &shared.options.hosts) {
        let text = "the Host header names none of this broker's hosts; ask by address, or add the \
                    name to the setting admin_hosts\n";
        let last = [(header::CONNECTION, "close")];
        return (StatusCode::MISDIRECTED_REQUEST, last, text).into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(
        header::CACHE_CONTROL,
        header::HeaderValue::from_static("no-store"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        header::HeaderValue::from_static("nosniff"),
    );
    headers.insert(
        header::CONNECTION,
        header::HeaderValue::from_static("close"),
    );
    response
}

/// Whether the one `Host` header names an address, `localhost` or one of `allowed`.
fn is_host_allowed(headers: &HeaderMap, allowed: &[String]) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let Ok(host) = host.to_str() else {
        return false;
    };
    if let Some(rest) = host.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        return address.parse::<std::net::Ipv6Addr>().is_ok() && is_port(port);
    }
    let (name, port) = host.split_at(host.find(':').unwrap_or(host.len()));
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_known = name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || allowed.iter().any(|known| name.eq_ignore_ascii_case(known));
    is_known && is_port(port)
}

/// Whether `text` is what may follow a host: nothing, or a colon and a port.
fn is_port(text: &str) -> bool {
    text.is_empty()
        || text
            .strip_prefix(':')
            .is_some_and(|port| port.parse::<u16>().is_ok())
}

/// `/`
async fn index() -> &'static str {
    concat!(
        "ringpost ",
        env!("CARGO_PKG_VERSION"),
        "\n\n\
         /metrics   counters, gauges and histograms in the Prometheus text format\n\
         /healthz   200 while every core answers\n\
         /readyz    200 while every core serves durable queues, else 503 and why, as JSON\n\
         /status    what every core does and holds, as JSON\n\
         /stages    how long messages spent in each stage of every core, as JSON\n\
         /trace     follows the next message of a queue: /trace?queue=NAME, as JSON\n"
    )
}

/// `/metrics`
async fn metrics_page(State(shared): State<Arc<Shared>>) -> Response {
    let answers = shared.ask_all(Asked::Stages).await;
    let text = metrics::render(&shared.process(), &answers);
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text,
    )
        .into_response()
}

/// `/healthz`
async fn health(State(shared): State<Arc<Shared>>) -> Response {
    let status = shared.status(Asked::Counters).await;
    let healthy = status.cores.iter().all(|core| core.answered);
    with_status(healthy, &status)
}

/// `/readyz`
async fn readiness(State(shared): State<Arc<Shared>>) -> Response {
    let status = shared.status(Asked::Counters).await;
    with_status(status.ready, &status)
}

/// `/status`
async fn status(State(shared): State<Arc<Shared>>) -> Response {
    with_status(true, &shared.status(Asked::Queues).await)
}

fn with_status(good: bool, status: &Status) -> Response {
    let code = if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, Json(status)).into_response()
}

/// The JSON of `/status`, `/readyz` and `/healthz`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of the broker.
    pub version: String,
    /// When it started, in seconds since 1970.
    pub start_time_seconds: u64,
    /// Whether every core serves durable queues.
    pub ready: bool,
    /// Why not, one sentence for each core that does not.
    pub reasons: Vec<String>,
    /// The cores, by number.
    pub cores: Vec<CoreStatus>,
    /// Of `/status` the busiest queues, the busiest first; of those to which nothing has happened lately
    /// the fullest.
    #[serde(default)]
    pub queues: Vec<QueueStatus>,
}

/// What `/status` says of a core. A figure that a broker of another version does not say is 0.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CoreStatus {
    /// Its number.
    pub core: usize,
    /// Whether it answered in time; if not, the figures are 0.
    pub answered: bool,
    /// `recovering`, `serving`, `draining`, `fail_stopped`, or `silent`, `gone` if it did not answer.
    pub phase: String,
    /// Client connections.
    pub connections: u32,
    /// Queues.
    pub queues: u64,
    /// Messages ready for delivery.
    pub ready: u64,
    /// Messages delivered and not settled.
    pub unacked: u64,
    /// Consumers.
    pub consumers: u64,
    /// Messages published since the start.
    pub publishes: u64,
    /// Bytes of these.
    pub publish_bytes: u64,
    /// Publishes confirmed since the start.
    pub confirms: u64,
    /// Messages delivered since the start.
    pub deliveries: u64,
    /// Bytes of these.
    pub delivery_bytes: u64,
    /// Deliveries acked since the start.
    pub acks: u64,
    /// Deliveries returned to their queues since the start.
    pub requeues: u64,
    /// Writes of the journal since the start.
    pub writes: u64,
    /// Bytes of these, padding included.
    pub write_bytes: u64,
    /// Buffers of the journal and block cache that nobody holds.
    pub buffers_free: u32,
    /// Buffers of the journal and block cache.
    pub buffers_total: u32,
    /// Requests on the fullest lane to another core whose reply has not come back.
    pub ring_occupied: u32,
    /// Most of them.
    pub ring_capacity: u32,
    /// Median of journal writes since the start, in µs.
    pub write_p50_us: u64,
    /// 99th percentile of journal writes since the start, in µs.
    pub write_p99_us: u64,
}

impl Shared {
    /// Asks every core at once and waits for all, no longer than `answer_within`.
    async fn ask_all(&self, asked: Asked) -> Vec<Answer> {
        let _round = self.round.acquire().await; // never closed; without it we would only ask more
        let asked: Vec<_> = self
            .options
            .cores
            .iter()
            .map(|port| ask(port, asked))
            .collect();
        let deadline = tokio::time::Instant::now() + self.options.answer_within;
        let mut answers = Vec::with_capacity(asked.len());
        for question in asked {
            answers.push(match question {
                Err(answer) => answer,
                Ok(reply) => match tokio::time::timeout_at(deadline, reply.recv_async()).await {
                    Ok(Ok(snapshot)) => Answer::Snapshot(Box::new(snapshot)),
                    Ok(Err(flume::RecvError::Disconnected)) => Answer::Gone,
                    Err(_) => Answer::Silent,
                },
            });
        }
        answers
    }

    /// What `/status` says.
    async fn status(&self, asked: Asked) -> Status {
        let answers = self.ask_all(asked).await;
        let mut reasons = Vec::new();
        for (core, answer) in answers.iter().enumerate() {
            let why = match answer {
                Answer::Snapshot(snapshot) => snapshot.phase.hindrance(),
                Answer::Silent => Some(format!(
                    "has not answered within {} ms: it starts, hangs, or has no CPU",
                    self.options.answer_within.as_millis()
                )),
                Answer::Gone => Some("its thread has ended: restart the broker".into()),
            };
            reasons.extend(why.map(|why| format!("core {core}: {why}")));
        }
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            start_time_seconds: self.start_time_seconds,
            ready: reasons.is_empty(),
            reasons,
            cores: answers
                .iter()
                .enumerate()
                .map(|(core, answer)| core_status(core, answer))
                .collect(),
            queues: busiest(&answers),
        }
    }

    /// What the process knows of itself.
    fn process(&self) -> ProcessSnapshot {
        ProcessSnapshot {
            version: env!("CARGO_PKG_VERSION"),
            start_time_seconds: self.start_time_seconds,
            resident_bytes: resident_bytes(),
            descriptors: std::fs::read_dir("/proc/self/fd")
                .ok()
                .map(|list| list.count() as u64),
            log_events_dropped: self.options.log_dropped.load(Ordering::Relaxed),
            budget: self.options.budget,
        }
    }
}

/// Sends a question to a core; the channel on which it answers, or why there will be none.
fn ask(
    port: &CorePort,
    asked: Asked,
) -> Result<flume::Receiver<crate::snapshot::CoreSnapshot>, Answer> {
    let (reply, receiver) = flume::bounded(1);
    let request = AdminRequest::Snapshot { reply, asked };
    match port.requests.try_send(request) {
        Ok(()) => {
            port.bell.ring();
            Ok(receiver)
        }
        Err(flume::TrySendError::Full(_)) => Err(Answer::Silent),
        Err(flume::TrySendError::Disconnected(_)) => Err(Answer::Gone),
    }
}

/// The busiest queues of all cores.
fn busiest(answers: &[Answer]) -> Vec<QueueStatus> {
    let mut queues = Vec::new();
    for (core, answer) in answers.iter().enumerate() {
        if let Answer::Snapshot(snapshot) = answer {
            queues.extend(snapshot.busiest.iter().map(|queue| (core, queue)));
        }
    }
    queues.sort_by_key(|(_, queue)| {
        let figures = &queue.figures;
        let moved = figures.recent.arrived.saturating_add(figures.recent.left);
        (Reverse((moved, figures.ready)), figures.queue)
    });
    queues.truncate(BUSIEST_MAX);
    let each = queues
        .iter()
        .map(|(core, queue)| QueueStatus::of(*core, queue));
    each.collect()
}

fn core_status(core: usize, answer: &Answer) -> CoreStatus {
    let (snapshot, phase) = match answer {
        Answer::Snapshot(snapshot) => (Some(&**snapshot), snapshot.phase.word()),
        Answer::Silent => (None, "silent"),
        Answer::Gone => (None, "gone"),
    };
    let queues = snapshot.map_or(QueuesSnapshot::default(), |snapshot| snapshot.queues);
    let counters = snapshot
        .map(|snapshot| snapshot.counters)
        .unwrap_or_default();
    let write_us = |quantile| {
        snapshot.map_or(0, |it| {
            it.journal.write_ns.value_at_quantile(quantile) / 1_000
        })
    };
    let journal = snapshot.map(|snapshot| &snapshot.journal);
    let rings = snapshot.map_or(&[][..], |snapshot| &snapshot.rings);
    let fullest = rings.iter().max_by_key(|ring| ring.occupied);
    CoreStatus {
        core,
        answered: snapshot.is_some(),
        phase: phase.into(),
        connections: snapshot.map_or(0, |snapshot| snapshot.connections),
        queues: queues.queues,
        ready: queues.ready,
        unacked: queues.unacked,
        consumers: queues.consumers,
        publishes: counters.publishes,
        publish_bytes: counters.publish_bytes,
        confirms: counters.confirms,
        deliveries: counters.deliveries,
        delivery_bytes: counters.delivery_bytes,
        acks: counters.acks,
        requeues: counters.requeues,
        writes: journal.map_or(0, |journal| journal.write_ns.len()),
        write_bytes: journal.map_or(0, |journal| journal.write_bytes),
        buffers_free: snapshot.map_or(0, |snapshot| snapshot.buffers_free),
        buffers_total: snapshot.map_or(0, |snapshot| snapshot.buffers_total),
        ring_occupied: fullest.map_or(0, |ring| ring.occupied),
        ring_capacity: fullest.map_or(0, |ring| ring.capacity),
        write_p50_us: write_us(0.5),
        write_p99_us: write_us(0.99),
    }
}

/// Memory of this process in RAM, as the kernel says it.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::listener::CONNECTIONS_MAX;
    use super::*;
    use crate::snapshot::{ADMIN_REQUESTS_MAX, CoreSnapshot, Phase};
    use ringpost_engine::data::trace::NotFollowed;

    /// A core that answers every question with `snapshot`, until its port is dropped.
    fn core(snapshot: CoreSnapshot) -> CorePort {
        let (port, requests) = port();
        std::thread::spawn(move || {
            for request in requests {
                match request {
                    AdminRequest::Snapshot { reply, asked } => {
                        let mut snapshot = snapshot.clone();
                        snapshot.stages = (asked == Asked::Stages).then(Box::default);
                        // Whoever asked may have given up.
                        drop(reply.send(snapshot));
                    }
                    AdminRequest::Follow(request) => {
                        let unknown = NotFollowed::QueueUnknown;
                        let _ = request.reply.send(Err(unknown)); // as above
                    }
                    AdminRequest::Shutdown => break,
                }
            }
        });
        port
    }

    fn port() -> (CorePort, flume::Receiver<AdminRequest>) {
        let (sender, receiver) = flume::bounded(ADMIN_REQUESTS_MAX);
        let bell = rt::Bell::new().expect("a descriptor is left");
        (
            CorePort {
                requests: sender,
                bell,
            },
            receiver,
        )
    }

    fn admin(cores: Vec<CorePort>, answer_within: Duration) -> Admin {
        admin_within(cores, answer_within, Duration::from_secs(1))
    }

    /// One that ends no connection because of its time.
    fn patient_admin(cores: Vec<CorePort>, answer_within: Duration) -> Admin {
        admin_within(cores, answer_within, Duration::from_secs(3_600))
    }

    fn admin_within(
        cores: Vec<CorePort>,
        answer_within: Duration,
        connection_within: Duration,
    ) -> Admin {
        start(AdminOptions {
            listen: "127.0.0.1:0".parse().expect("an address"),
            hosts: vec!["broker.example".into()],
            cores,
            answer_within,
            connection_within,
            budget: None,
            log_dropped: Arc::default(),
        })
        .expect("starts")
    }

    /// Status code and body.
    fn ask_page(admin: &Admin, path: &str, host: &str) -> (u16, String) {
        let (head, body) = ask_raw(admin, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n"));
        (head[9..12].parse().expect("a status code"), body)
    }

    /// Head and body of the answer to a request without its end.
    fn ask_raw(admin: &Admin, request: &str) -> (String, String) {
        let mut stream = std::net::TcpStream::connect(admin.addr()).expect("connects");
        stream
            .write_all(format!("{request}Connection: close\r\n\r\n").as_bytes())
            .expect("writes");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("reads");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        (head.to_owned(), body.to_owned())
    }

    fn failed(reason: &str) -> CoreSnapshot {
        let phase = Phase::FailStopped {
            reason: reason.into(),
        };
        CoreSnapshot {
            phase,
            ..CoreSnapshot::default()
        }
    }

    #[test]
    fn pages_are_served() {
        let admin = admin(vec![core(CoreSnapshot::default()); 2], ANSWER_WITHIN);
        for (path, word) in [
            ("/", "/metrics"),
            ("/metrics", "ringpost_core_up{core=\"1\"} 1"),
            ("/healthz", "\"ready\":true"),
            ("/readyz", "\"ready\":true"),
            ("/status", "\"phase\":\"serving\""),
        ] {
            let (code, body) = ask_page(&admin, path, "localhost");
            assert_eq!(code, 200, "{path}");
            assert!(body.contains(word), "{path}: {body}");
        }
        assert_eq!(ask_page(&admin, "/nowhere", "localhost").0, 404);
        let (head, _) = ask_raw(&admin, "POST /metrics HTTP/1.1\r\nHost: localhost\r\n");
        assert!(head.starts_with("HTTP/1.1 405"), "{head}");
        admin.shutdown();
    }

    #[test]
    fn a_failed_core_is_healthy_but_not_ready_and_says_why() {
        let cores = vec![core(CoreSnapshot::default()), core(failed("write error 5"))];
        let admin = admin(cores, ANSWER_WITHIN);
        assert_eq!(ask_page(&admin, "/healthz", "localhost").0, 200);
        let (code, body) = ask_page(&admin, "/readyz", "localhost");
        assert_eq!(code, 503);
        let status: Status = serde_json::from_str(&body).expect("JSON");
        assert_eq!(
            status.reasons,
            [
                "core 1: the journal has failed (write error 5): find out why, then restart the broker"
            ]
        );
        assert_eq!(status.cores[1].phase, "fail_stopped");
        assert_eq!(status.cores[0].phase, "serving");
    }

    #[test]
    fn a_recovering_core_is_not_ready() {
        let phase = Phase::Recovering { done_bytes: 3 };
        let admin = admin(
            vec![core(CoreSnapshot {
                phase,
                ..CoreSnapshot::default()
            })],
            ANSWER_WITHIN,
        );
        let (code, body) = ask_page(&admin, "/readyz", "localhost");
        assert_eq!(code, 503);
        assert!(
            body.contains("core 0: reading its journal, 3 bytes so far"),
            "{body}"
        );
    }

    #[test]
    fn a_core_that_does_not_answer_is_reported_and_holds_up_nobody() {
        let (silent, _kept) = port();
        let (gone, ended) = port();
        drop(ended);
        let cores = vec![core(CoreSnapshot::default()), silent, gone];
        let admin = admin(cores, Duration::from_millis(20));
        // More often than its queue of requests is long.
        for _ in 0..=ADMIN_REQUESTS_MAX {
            let (code, body) = ask_page(&admin, "/healthz", "localhost");
            assert_eq!(code, 503);
            let status: Status = serde_json::from_str(&body).expect("JSON");
            let phases: Vec<_> = status
                .cores
                .iter()
                .map(|core| core.phase.as_str())
                .collect();
            assert_eq!(phases, ["serving", "silent", "gone"]);
            assert!(status.reasons[0].starts_with("core 1: has not answered within 20 ms"));
        }
        let (_, text) = ask_page(&admin, "/metrics", "localhost");
        assert!(text.contains("ringpost_core_up{core=\"0\"} 1"), "{text}");
        assert!(text.contains("ringpost_core_up{core=\"1\"} 0"), "{text}");
    }

    #[test]
    fn foreign_hosts_are_refused_and_no_other_site_is_let_in() {
        let admin = admin(vec![core(CoreSnapshot::default())], ANSWER_WITHIN);
        let port = admin.addr().port();
        for host in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1",
            &format!("127.0.0.1:{port}"),
            "[::1]:7480",
            "broker.example",
            "Broker.Example.:7480",
        ] {
            assert_eq!(ask_page(&admin, "/healthz", host).0, 200, "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "localhost:80:80",
            "[::1",
            "[::1]x",
            "",
        ] {
            assert_eq!(ask_page(&admin, "/healthz", host).0, 421, "{host}");
        }
        let (head, _) = ask_raw(
            &admin,
            "GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n",
        );
        assert!(
            !head.to_ascii_lowercase().contains("access-control"),
            "{head}"
        );
        let (head, _) = ask_raw(
            &admin,
            "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n",
        );
        assert!(!head.starts_with("HTTP/1.1 200"), "{head}");
        let (head, _) = ask_raw(&admin, "GET / HTTP/1.1\r\n");
        assert!(head.starts_with("HTTP/1.1 4"), "{head}");
    }

    #[test]
    fn a_taken_port_is_a_sentence() {
        let first = admin(Vec::new(), ANSWER_WITHIN);
        let error = start(AdminOptions {
            listen: first.addr(),
            hosts: Vec::new(),
            cores: Vec::new(),
            answer_within: ANSWER_WITHIN,
            connection_within: CONNECTION_WITHIN,
            budget: None,
            log_dropped: Arc::default(),
        })
        .expect_err("the port is taken");
        assert!(error.to_string().contains("is taken"), "{error}");
    }

    #[test]
    fn connections_that_say_nothing_give_up_their_places() {
        let admin = admin(Vec::new(), ANSWER_WITHIN);
        let _mute: Vec<_> = (0..2 * CONNECTIONS_MAX)
            .map(|_| std::net::TcpStream::connect(admin.addr()).expect("connects"))
            .collect();
        assert_eq!(ask_page(&admin, "/healthz", "localhost").0, 200);
        admin.shutdown();
    }

    #[test]
    fn half_requests_give_way_to_whole_ones() {
        // Time alone ends none of them.
        let admin = patient_admin(vec![core(CoreSnapshot::default())], ANSWER_WITHIN);
        let mut halves = Vec::new();
        for number in 0..300 {
            let mut half = std::net::TcpStream::connect(admin.addr()).expect("connects");
            // Whoever gave way already is not heard any more.
            let _ = half.write_all(b"GET /healthz HTTP/1.1\r\nHost: local");
            halves.push(half);
            if number % 50 == 0 {
                assert_eq!(ask_page(&admin, "/healthz", "localhost").0, 200);
            }
        }
        assert_eq!(ask_page(&admin, "/healthz", "localhost").0, 200);
        // The oldest went first.
        let mut answer = String::new();
        let ended = halves[0].read_to_string(&mut answer);
        assert!(ended.is_err() || answer.is_empty(), "{answer}");
        let mut newest = halves.pop().expect("there are many");
        newest.write_all(b"host\r\n\r\n").expect("writes");
        newest.read_to_string(&mut answer).expect("is answered");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        admin.shutdown();
    }

    #[test]
    fn who_has_asked_keeps_its_place() {
        let (silent, kept) = port();
        let admin = patient_admin(vec![silent], Duration::from_secs(3_600));
        let mut asks = std::net::TcpStream::connect(admin.addr()).expect("connects");
        asks.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .expect("writes");
        let question = kept.recv().expect("the core is asked");
        let mute: Vec<_> = (0..2 * CONNECTIONS_MAX)
            .map(|_| std::net::TcpStream::connect(admin.addr()).expect("connects"))
            .collect();
        // The first of them has been shown out: all of the others were let in.
        let ended = (&mute[0]).read(&mut [0]);
        assert!(!matches!(ended, Ok(1)), "it said nothing");
        let AdminRequest::Snapshot { reply, .. } = question else {
            panic!("the admin thread asks for a snapshot")
        };
        reply.send(CoreSnapshot::default()).expect("it waits");
        let mut answer = String::new();
        asks.read_to_string(&mut answer).expect("is answered");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        admin.shutdown();
    }

    #[test]
    fn connections_that_say_nothing_do_not_hinder_the_end() {
        let admin = admin(Vec::new(), ANSWER_WITHIN);
        let _mute = std::net::TcpStream::connect(admin.addr()).expect("connects");
        admin.shutdown();
    }
}
