//! TCP sockets: listeners that share a port between cores, connections read and written without
//! blocking. It does not know frames, and holds no buffers.
#![expect(unsafe_code, reason = "accept4, recv and sendmsg are called directly")]

use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use socket2::{Domain, Protocol, SockRef, Type};

/// Connections that may wait to be accepted; the kernel caps it by `net.core.somaxconn`.
pub const LISTEN_BACKLOG: i32 = 4096;
/// Bytes that the kernel may queue for a slow peer. It would choose ten times as much by itself, which
/// no budget of ours counts: a thousand peers that do not read would hold gigabytes. A peer ten
/// milliseconds away is still sent 20 MB/s on one connection. The kernel doubles the figure for its
/// own bookkeeping, and caps it by `net.core.wmem_max`.
const SEND_QUEUE_BYTES: usize = 256 << 10;
/// Slices given to one send at most: what the kernel takes (`UIO_MAXIOV`).
pub const SEND_SLICES_MAX: usize = 1024;

/// A listening socket of one core.
#[derive(Debug)]
pub struct Listener {
    descriptor: OwnedFd,
}

impl Listener {
    /// Listens on `address`, sharing the port with other listeners of this user: one per core, and
    /// the kernel spreads connections by their hash. It therefore does not notice a second broker
    /// on the same port: [`Listener::claim`] does, once, before the first of them.
    ///
    /// # Errors
    ///
    /// What the kernel answers: the address is taken by another user, or is not ours.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = socket2::Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        // What is accepted inherits it.
        socket.set_send_buffer_size(SEND_QUEUE_BYTES)?;
        socket.bind(&address.into())?;
        socket.listen(LISTEN_BACKLOG)?;
        Ok(Listener {
            descriptor: socket.into(),
        })
    }

    /// Finds out whether anybody listens on `address`, which [`Listener::bind`] cannot: a second
    /// broker would share the port with the first, and every other client would find the wrong one.
    /// Between this and the first `bind` there is a moment that nobody guards.
    ///
    /// # Errors
    ///
    /// What the kernel answers: the address is taken, or is not ours.
    pub fn claim(address: SocketAddr) -> io::Result<()> {
        let socket = socket2::Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        // Connections of a broker that has ended do not count, one that listens does.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())
    }

    /// The address it listens on, with the port the kernel chose if 0 was asked for.
    ///
    /// # Errors
    ///
    /// If the address is not one of IP.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        ip_address(SockRef::from(&self.descriptor).local_addr()?)
    }

    /// Takes a connection that waits, with Nagle's algorithm off, or none. Repeat until none.
    ///
    /// # Errors
    ///
    /// What the kernel answers. After running out of descriptors or memory the waiting connections
    /// stay, without a new event: try again when some were closed.
    pub fn accept(&self) -> io::Result<Option<Connection>> {
        loop {
            let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            let null = std::ptr::null_mut();
            // SAFETY: null for address and length means that the peer's address is not wanted.
            let descriptor = unsafe {
                libc::accept4(
                    self.descriptor.as_raw_fd(),
                    null,
                    std::ptr::null_mut(),
                    flags,
                )
            };
            if descriptor >= 0 {
                // SAFETY: the kernel just gave us this descriptor and nobody else knows it.
                let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
                let connection = Connection { descriptor };
                // A peer that is gone already may refuse the option; reading will tell.
                let _ = connection.set_nodelay();
                return Ok(Some(connection));
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(None),
                // Interrupted, or the connection died in the queue: there may be another.
                Some(libc::EINTR | libc::ECONNABORTED | libc::EPROTO) => {}
                _ => return Err(error),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// This many bytes, at least one. If they are fewer than there was room for, the socket is
    /// drained and the next bytes come with an event.
    Bytes(usize),
    /// Nothing now; the next bytes come with an event.
    WouldBlock,
    /// The peer has sent its last byte.
    Closed,
}

/// What a write achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// This many bytes, perhaps fewer than were offered.
    Bytes(usize),
    /// The peer is slow; room comes with an event.
    WouldBlock,
}

/// A connected socket. Belongs to one core at a time: to hand it over, deregister it, move it, and
/// register it there.
#[derive(Debug)]
pub struct Connection {
    descriptor: OwnedFd,
}

impl Connection {
    /// Adopts a connected socket and makes it non-blocking.
    ///
    /// # Errors
    ///
    /// If the descriptor is not a TCP socket.
    pub fn adopt(socket: impl Into<OwnedFd>) -> io::Result<Self> {
        let descriptor = socket.into();
        SockRef::from(&descriptor).set_nonblocking(true)?;
        let connection = Connection { descriptor };
        connection.set_nodelay()?;
        Ok(connection)
    }

    /// Whether the peer is on this machine; not if nobody can say.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let peer = SockRef::from(&self.descriptor).peer_addr();
        let peer = peer.ok().and_then(|peer| peer.as_socket());
        peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback())
    }

    /// Reads what has arrived into `target`.
    ///
    /// # Errors
    ///
    /// What the kernel answers; the connection is dead then.
    ///
    /// # Panics
    ///
    /// If `target` is empty: that could not be told from the end of the stream.
    #[inline]
    pub fn receive(&self, target: &mut [u8]) -> io::Result<Received> {
        assert!(!target.is_empty(), "a read needs room");
        loop {
            // SAFETY: the kernel writes at most `len` bytes to the slice, which lives for the call.
            let count = unsafe {
                libc::recv(
                    self.descriptor.as_raw_fd(),
                    target.as_mut_ptr().cast(),
                    target.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            match usize::try_from(count) {
                Ok(0) => return Ok(Received::Closed),
                Ok(count) => return Ok(Received::Bytes(count)),
                Err(_) => match would_block()? {
                    true => return Ok(Received::WouldBlock),
                    false => continue,
                },
            }
        }
    }

    /// Sends one slice; see [`send_vectored`](Self::send_vectored).
    ///
    /// # Errors
    ///
    /// What the kernel answers; the connection is dead then.
    #[inline]
    pub fn send(&self, source: &[u8]) -> io::Result<Sent> {
        self.send_vectored(&[IoSlice::new(source)])
    }

    /// Sends slices one behind the other with one syscall, at most [`SEND_SLICES_MAX`] of them.
    ///
    /// # Errors
    ///
    /// What the kernel answers; the connection is dead then.
    #[inline]
    pub fn send_vectored(&self, sources: &[IoSlice<'_>]) -> io::Result<Sent> {
        let sources = &sources[..sources.len().min(SEND_SLICES_MAX)];
        // SAFETY: msghdr is a plain C struct for which all zeroes means "nothing set".
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        // IoSlice is guaranteed to have the layout of iovec; the kernel does not write through it.
        message.msg_iov = sources.as_ptr().cast_mut().cast();
        message.msg_iovlen = sources.len();
        loop {
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // SAFETY: the header and the slices it names live for the call.
            let count =
                unsafe { libc::sendmsg(self.descriptor.as_raw_fd(), &raw const message, flags) };
            match usize::try_from(count) {
                Ok(count) => return Ok(Sent::Bytes(count)),
                Err(_) => match would_block()? {
                    true => return Ok(Sent::WouldBlock),
                    false => continue,
                },
            }
        }
    }

    /// Limits what the kernel queues for a slow peer. The kernel doubles the figure for its own
    /// bookkeeping.
    ///
    /// # Errors
    ///
    /// What the kernel answers.
    pub fn set_send_buffer_bytes(&self, bytes: usize) -> io::Result<()> {
        SockRef::from(&self.descriptor).set_send_buffer_size(bytes)
    }

    /// Sends small segments at once; set on everything that was accepted.
    ///
    /// # Errors
    ///
    /// If the peer is gone.
    pub fn set_nodelay(&self) -> io::Result<()> {
        SockRef::from(&self.descriptor).set_tcp_nodelay(true)
    }

    /// Says that we have sent our last byte, or that we will neither send nor read; the peer hears
    /// of it at once. Dropping the connection closes it.
    ///
    /// # Errors
    ///
    /// If the connection is gone already.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        SockRef::from(&self.descriptor).shutdown(how)
    }

    /// Who is at the other end.
    ///
    /// # Errors
    ///
    /// If the connection is gone already.
    pub fn peer_address(&self) -> io::Result<SocketAddr> {
        ip_address(SockRef::from(&self.descriptor).peer_addr()?)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl From<Connection> for OwnedFd {
    fn from(connection: Connection) -> OwnedFd {
        connection.descriptor
    }
}

fn ip_address(address: socket2::SockAddr) -> io::Result<SocketAddr> {
    address
        .as_socket()
        .ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))
}

/// Reads the last error: true if the call would block, false if a signal came first.
fn would_block() -> io::Result<bool> {
    let error = io::Error::last_os_error();
    match error.kind() {
        io::ErrorKind::WouldBlock => Ok(true),
        io::ErrorKind::Interrupted => Ok(false),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let client = TcpStream::connect(address).expect("it listens");
        let (server, _) = listener.accept().expect("the client connected");
        (
            Connection::adopt(server).expect("it is a TCP socket"),
            client,
        )
    }

    #[test]
    fn reads_report_bytes_then_nothing_then_the_end() {
        let (server, mut client) = pair();
        let mut room = [0u8; 16];
        assert_eq!(
            server.receive(&mut room).expect("alive"),
            Received::WouldBlock
        );
        client.write_all(b"hello").expect("alive");
        // Loopback delivers before the write returns.
        assert_eq!(
            server.receive(&mut room).expect("alive"),
            Received::Bytes(5)
        );
        assert_eq!(&room[..5], b"hello");
        drop(client);
        assert_eq!(server.receive(&mut room).expect("alive"), Received::Closed);
    }

    #[test]
    fn slices_arrive_in_order_and_a_slow_peer_blocks() {
        let (server, mut client) = pair();
        let parts = [
            IoSlice::new(b"one "),
            IoSlice::new(b""),
            IoSlice::new(b"two"),
        ];
        assert_eq!(server.send_vectored(&parts).expect("alive"), Sent::Bytes(7));
        let mut room = [0u8; 7];
        client.read_exact(&mut room).expect("alive");
        assert_eq!(&room, b"one two");

        server.set_send_buffer_bytes(16 << 10).expect("alive");
        let block = [7u8; 64 << 10];
        let mut sent = 0;
        while let Sent::Bytes(count) = server.send(&block).expect("alive") {
            assert!(count > 0);
            sent += count;
        }
        let mut rest = vec![0u8; sent];
        client
            .read_exact(&mut rest)
            .expect("all of it was accepted");
        assert!(rest.iter().all(|&byte| byte == 7));
    }

    #[test]
    fn two_listeners_share_a_port_and_an_empty_queue_is_none() {
        let first = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
        let address = first.local_address().expect("it is bound");
        let second = Listener::bind(address).expect("the port is shared");
        assert!(first.accept().expect("it listens").is_none());
        assert!(second.accept().expect("it listens").is_none());
        let client = TcpStream::connect(address).expect("they listen");
        let accepted = [first.accept(), second.accept()].map(|result| result.expect("they listen"));
        let connection = accepted
            .into_iter()
            .flatten()
            .next()
            .expect("one of them has it");
        assert_eq!(
            connection.peer_address().expect("connected"),
            client.local_addr().expect("connected")
        );
    }

    #[test]
    fn a_dead_peer_is_an_error_not_a_signal() {
        let (server, client) = pair();
        server.shutdown(Shutdown::Write).expect("alive");
        drop(client);
        server
            .send(b"into the void")
            .expect_err("our side was shut down");
    }
}
