//! `ringpost status`: what every core of a broker does, asked at its admin port. Does not speak the
//! messaging protocol, so it works while the cores do not.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::output::{self, FormatArgs};
use super::{Exit, Failure};
use crate::control::admin::{CoreStatus, Status};

const EXAMPLES: &str = "\
Ends with 0 if every core serves durable queues, else with 1 and the reason.

Examples:
  ringpost status
  ringpost status --json --admin 10.0.0.7:7480";

/// Show what a running broker does
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The broker's admin address
    #[arg(
        long,
        value_name = "host:port",
        env = "RINGPOST_ADMIN",
        default_value = "127.0.0.1:7480",
        value_parser = super::link::host_and_port
    )]
    admin: String,
    #[command(flatten)]
    format: FormatArgs,
}

/// How long connecting, and each read and write, may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest answer that is read: far above what 64 cores have to say.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    let text = ask(&args.admin)?;
    let status: Status = serde_json::from_str(&text).map_err(|_| {
        Failure::failed(format!(
            "{} answered, but it is no admin port of Ringpost",
            args.admin
        ))
    })?;
    if args.format.json {
        output::line(&text)?;
    } else {
        let state = if status.ready { "ready" } else { "not ready" };
        output::line(&format!("ringpost {}, {state}", status.version))?;
        let heads = [
            "core",
            "phase",
            "connections",
            "queues",
            "ready",
            "unacked",
            "consumers",
            "published",
            "delivered",
            "write p50 us",
            "p99 us",
        ];
        output::rows(args.format, &heads, &status.cores, cells)?;
    }
    if status.ready {
        Ok(())
    } else {
        Err(Failure::failed(status.reasons.join("\n")))
    }
}

fn cells(core: &CoreStatus) -> Vec<String> {
    let numbers = [
        u64::from(core.connections),
        core.queues,
        core.ready,
        core.unacked,
        core.consumers,
        core.publishes,
        core.deliveries,
        core.write_p50_us,
        core.write_p99_us,
    ];
    let mut cells = vec![core.core.to_string(), core.phase.clone()];
    cells.extend(numbers.map(|number| number.to_string()));
    cells
}

/// The body of `/status`.
fn ask(admin: &str) -> Result<String, Failure> {
    let unreachable = |why: String| {
        Failure::new(
            Exit::Unreachable,
            format!(
                "cannot reach the admin port {admin}: {why}; start a broker with `ringpost serve`, \
                 or name another with --admin"
            ),
        )
    };
    let addresses: Vec<SocketAddr> = admin
        .to_socket_addrs()
        .map_err(|error| unreachable(error.to_string()))?
        .collect();
    let mut refused = "the name has no address".to_owned();
    let connected = addresses.iter().find_map(|address| {
        TcpStream::connect_timeout(address, PATIENCE)
            .map_err(|error| refused = error.to_string())
            .ok()
    });
    let Some(mut stream) = connected else {
        return Err(unreachable(refused));
    };
    let mut talk = || {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let host = stream.peer_addr()?;
        write!(
            stream,
            "GET /status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        std::io::Read::by_ref(&mut stream)
            .take(ANSWER_BYTES_MAX)
            .read_to_string(&mut answer)?;
        Ok::<String, std::io::Error>(answer)
    };
    let answer = talk().map_err(|error| unreachable(error.to_string()))?;
    let body = answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned());
    body.ok_or_else(|| {
        Failure::failed(format!(
            "{admin} does not speak HTTP; --admin names the admin port, not the port for clients"
        ))
    })
}
