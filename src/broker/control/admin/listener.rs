//! The connections of the admin port: how many there are at a time, how long each lasts, and which
//! one gives way. Does not know what they ask for.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// HTTP connections at a time. For one more the oldest gives way that has not asked anything yet; if
/// all have, it waits for the first answer.
pub(super) const CONNECTIONS_MAX: usize = 32;

/// Whether a connection has asked something. Shared by the connection's task, which says so, and the
/// listener, which asks nobody to leave who has.
#[derive(Clone, Debug)]
pub(super) struct Asking(Arc<AtomicBool>);

impl Asking {
    /// It has asked.
    pub(super) fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Connected<IncomingStream<'_, BoundedListener>> for Asking {
    fn connect_info(stream: IncomingStream<'_, BoundedListener>) -> Self {
        stream.io().asking.clone()
    }
}

/// A connection as its listener knows it.
struct Guest {
    asking: Asking,
    /// Ends it; closed when it has ended.
    leave: oneshot::Sender<()>,
}

/// A listener that serves no more than it has places for.
pub(super) struct BoundedListener {
    listener: tokio::net::TcpListener,
    places: Arc<Semaphore>,
    /// Those who were let in, the oldest first; some may have gone.
    guests: Vec<Guest>,
    connection_within: Duration,
}

impl BoundedListener {
    /// Serves what `listener` accepts, each for as long as `connection_within`.
    pub(super) fn new(listener: tokio::net::TcpListener, connection_within: Duration) -> Self {
        Self {
            listener,
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            guests: Vec::with_capacity(CONNECTIONS_MAX),
            connection_within,
        }
    }

    /// A place for one more.
    async fn place(&mut self) -> OwnedSemaphorePermit {
        // Whoever was let in has its chance to ask before others come.
        tokio::task::yield_now().await;
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return place;
        }
        self.guests.retain(|guest| !guest.leave.is_closed());
        let is_idle = |guest: &Guest| !guest.asking.0.load(Ordering::Relaxed);
        if let Some(idx) = self.guests.iter().position(is_idle) {
            let _ = self.guests.remove(idx).leave.send(()); // fails only if it has gone by itself
        }
        let place = self.places.clone().acquire_owned().await;
        place.expect("nobody closes the semaphore")
    }
}

impl axum::serve::Listener for BoundedListener {
    type Io = Placed;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Placed, SocketAddr) {
        let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
        let place = self.place().await;
        let (leave, told_to_leave) = oneshot::channel();
        let asking = Asking(Arc::new(AtomicBool::new(false)));
        self.guests.retain(|guest| !guest.leave.is_closed());
        self.guests.push(Guest {
            asking: asking.clone(),
            leave,
        });
        (
            Placed {
                stream,
                end: Box::pin(tokio::time::sleep(self.connection_within)),
                asking,
                told_to_leave,
                _place: place,
            },
            address,
        )
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection and the place it takes.
pub(super) struct Placed {
    stream: TcpStream,
    /// Passes when the connection has lasted long enough.
    end: Pin<Box<tokio::time::Sleep>>,
    asking: Asking,
    /// Comes when somebody else needs the place.
    told_to_leave: oneshot::Receiver<()>,
    _place: OwnedSemaphorePermit,
}

impl Placed {
    /// The error that ends the connection, once its time is up or its place is needed.
    fn check_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        // A listener that has ended says nothing more, and waits for answers that are being written.
        if let Poll::Ready(Ok(())) = Pin::new(&mut self.told_to_leave).poll(context) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Placed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_time(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Placed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_time(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
