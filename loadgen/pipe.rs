//! The socket of a connection that never waits: what is to be sent by it, and the start of what is not
//! whole yet. Does not know any protocol.

use std::io::{ErrorKind, Read, Write};

use crate::{Error, Result};
use mio::event::Event;
use mio::net::TcpStream;

/// Bytes to be sent that there is room for from the start.
const OUT_BYTES: usize = 256 << 10;

/// A socket with its two ends.
pub(crate) struct Pipe {
    socket: TcpStream,
    /// Bytes to be sent; those before `sent` are.
    pub(crate) out: Vec<u8>,
    sent: usize,
    /// The broker takes nothing more for now.
    pub(crate) is_blocked: bool,
    pub(crate) is_readable: bool,
    /// The broker sends no more: what is left has to be read to its end, no event tells of that.
    is_ending: bool,
    pub(crate) is_closed: bool,
    /// The start of what is not whole yet.
    partial: Vec<u8>,
}

impl Pipe {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            out: Vec::with_capacity(OUT_BYTES),
            sent: 0,
            is_blocked: false,
            is_readable: false,
            is_ending: false,
            is_closed: false,
            partial: Vec::new(),
        }
    }

    /// The poller says something of the socket.
    pub(crate) fn note(&mut self, event: &Event) {
        self.is_ending |= event.is_read_closed();
        self.is_readable |= event.is_readable() || event.is_read_closed();
        self.is_blocked &= !event.is_writable();
    }

    /// Receives once into `room`, behind the start that was kept; how many bytes there are then.
    /// Once the run `is_over`, the broker may hang up.
    pub(crate) fn receive(&mut self, room: &mut [u8], is_over: bool) -> Result<usize> {
        let had = self.partial.len();
        room[..had].copy_from_slice(&self.partial);
        match self.socket.read(&mut room[had..]) {
            Ok(0) => {
                self.is_closed = true;
                self.is_readable = false;
                if !is_over {
                    return Err(Error::Protocol("the broker hung up".into()));
                }
            }
            Ok(count) => {
                // A short read drained the socket: the next bytes come with an event.
                self.is_readable = had + count == room.len() || self.is_ending;
                return Ok(had + count);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.is_readable = false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) if is_over => {
                self.is_closed = true;
                self.is_readable = false;
            }
            Err(error) => return Err(Error::io("cannot receive")(error)),
        }
        Ok(had)
    }

    /// Keeps what was received and is not whole.
    pub(crate) fn keep(&mut self, partial: &[u8]) {
        self.partial.clear();
        self.partial.extend_from_slice(partial);
    }

    /// Sends what the socket takes.
    pub(crate) fn flush(&mut self) -> Result<()> {
        while self.sent < self.out.len() && !self.is_blocked {
            match self.socket.write(&self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.is_blocked = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) if self.is_closed => break,
                Err(error) => return Err(Error::io("cannot send")(error)),
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
        Ok(())
    }
}
