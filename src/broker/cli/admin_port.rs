//! How commands ask a broker's admin port. Does not speak the messaging protocol, nor know what the
//! pages say.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{Exit, Failure};

/// Flag of commands that ask the admin port.
#[derive(clap::Args, Clone, Debug)]
pub struct AdminArgs {
    /// The broker's admin address
    #[arg(
        long = "admin",
        value_name = "host:port",
        env = "RINGPOST_ADMIN",
        default_value = "127.0.0.1:7480",
        value_parser = super::link::host_and_port
    )]
    pub address: String,
}

/// How long connecting, and each read and write, may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest answer that is read: far above what 64 cores have to say.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

impl AdminArgs {
    /// The body of a page.
    ///
    /// # Errors
    /// Nobody answers, or not with a page.
    pub fn get(&self, path: &str) -> Result<String, Failure> {
        let unreachable = |why: String| {
            Failure::new(
                Exit::Unreachable,
                format!(
                    "cannot reach the admin port {}: {why}; start a broker with `ringpost serve`, \
                     or name another with --admin",
                    self.address
                ),
            )
        };
        let addresses: Vec<SocketAddr> = self
            .address
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
                "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            )?;
            let mut answer = String::new();
            std::io::Read::by_ref(&mut stream)
                .take(ANSWER_BYTES_MAX)
                .read_to_string(&mut answer)?;
            Ok::<String, std::io::Error>(answer)
        };
        let answer = talk().map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                unreachable(format!("no answer within {} s", PATIENCE.as_secs()))
            }
            _ => unreachable(error.to_string()),
        })?;
        let Some((head, body)) = answer.split_once("\r\n\r\n") else {
            return Err(Failure::failed(format!(
                "{} does not speak HTTP; --admin names the admin port, not the port for clients",
                self.address
            )));
        };
        let status = head.split_whitespace().nth(1).unwrap_or_default();
        if status != "200" {
            return Err(Failure::failed(format!(
                "{} answered {path} with {status}: {}",
                self.address,
                body.trim_end()
            )));
        }
        Ok(body.to_owned())
    }

    /// What a page of JSON says.
    ///
    /// # Errors
    /// It says something else.
    pub fn parse<T: DeserializeOwned>(&self, text: &str) -> Result<T, Failure> {
        serde_json::from_str(text).map_err(|_| {
            Failure::failed(format!(
                "{} answered, but it is no admin port of Ringpost",
                self.address
            ))
        })
    }
}
