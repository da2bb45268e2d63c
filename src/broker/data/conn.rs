//! The sockets of one core: bytes in until they are whole frames, bytes out until they are taken.
//! Does not know what a frame means.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::Duration;

use ringpost_amqp::{FRAME_BYTES_MAX as AMQP_FRAME_BYTES_MAX, PROTOCOL_HEADER};
use ringpost_engine::{BufferId, ConnId};
use ringpost_wire::frame::whole;
use ringpost_wire::{ALIGN, Code, Cut, FRAME_BYTES_MAX, FRAME_BYTES_MAX_HANDSHAKE, cut};

use crate::data::buffers::BufferPool;
use crate::rt::net::{Connection, Received, Sent};
use crate::rt::time::Monotonic;
use crate::rt::{Poller, SocketEvent, Token};

/// Bytes one receive may bring: two of the largest frames, so that a partial frame at its start
/// never keeps a whole one out.
pub const RECEIVE_BYTES: usize = 2 * FRAME_BYTES_MAX;
/// After a receive that brought so much another one is tried.
pub const MUCH_BYTES: usize = 32 << 10;
/// A partial frame up to this long stays with an idle connection; a longer one takes one of the
/// places of [`ConnLimits::parts_max`].
const PARTIAL_BYTES_KEPT: usize = 4 * 1024;
/// How long a peer that has sent the start of a long frame may be silent while others wait for the
/// place of its rest.
const PART_PATIENCE: Duration = Duration::from_secs(10);
/// Vectors kept for the starts of long frames, per core.
const SPARES_MAX: usize = 4;
/// How long a connection may hold buffers that its socket does not take before it gets a copy.
const COPY_AFTER: Duration = Duration::from_millis(10);
/// A copy is no longer, so that little is kept of what was sent already.
const COPY_BYTES_MAX: usize = 4 << 10;
/// Slices of one vectored send.
const SLICES_MAX: usize = 64;
/// How long a peer that was told `Close` may take to hang up (P-11).
const LINGER: Duration = Duration::from_secs(5);

/// What the connections of one core may keep, beside what each keeps when it is idle.
#[derive(Clone, Copy, Debug)]
pub struct ConnLimits {
    /// Connections that may have the start of a long frame at a time, at least one; others wait in
    /// their sockets.
    pub parts_max: u32,
    /// Bytes that may be copied out of buffers for sockets which take too little. Who finds no room
    /// goes on holding the buffers.
    pub copied_bytes_max: usize,
}

/// Whether the start of a frame is more than every connection may keep.
const fn is_long(partial: &[u8]) -> bool {
    partial.len() > PARTIAL_BYTES_KEPT
}

/// Bytes that wait to be sent.
#[derive(Debug)]
enum Piece {
    /// In the arena of this turn's effects.
    Arena(Range<u32>),
    /// Copied, since the socket did not take them in their turn; sent up to the mark.
    Copied(Vec<u8>, usize),
    /// In a buffer, which is held until they are sent.
    Buffer(BufferId, Range<u32>),
}

/// What a connection speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// The protocol of Ringpost.
    Native,
    /// AMQP 0-9-1.
    Amqp,
}

/// One connection.
#[derive(Debug)]
struct Conn {
    id: ConnId,
    protocol: Protocol,
    socket: Connection,
    /// The start of a frame that is not whole yet.
    partial: Vec<u8>,
    /// When the last of it came, if it is long.
    part_heard: Monotonic,
    /// In order; arena pieces only during a turn.
    out: VecDeque<Piece>,
    /// The first frame is here, which is a small one (P-7).
    greeted: bool,
    /// The socket may have more to read.
    readable: bool,
    /// The peer has sent its last byte: no event comes any more, so it is read to the end.
    ended: bool,
    /// The socket said that it takes no more until an event says otherwise.
    blocked: bool,
    /// Is on the list of those with news.
    listed: bool,
    /// Is on the list of those with something to send.
    sending: bool,
    /// When the buffers that it holds are to be copied out of; none if it holds none.
    copy_at: Option<Monotonic>,
    /// Is on the list of those for whose copy there was no room.
    lacks_room: bool,
    /// Everything is to be sent, then the peer hangs up; the engine has forgotten it. What still
    /// comes is read and dropped: bytes that nobody reads would take the `Close` with them.
    closing: bool,
    /// Everything was sent, and the peer was told that nothing more comes.
    finished: bool,
}

/// Where the last whole frame of `bytes` ends, and what is wrong behind it, if anything is. The engine cuts
/// them again, and proves them: once is enough.
fn cut_native(bytes: &[u8], greeted: &mut bool) -> (usize, Option<Code>) {
    let mut end = 0;
    loop {
        let frame_bytes_max = match *greeted {
            true => FRAME_BYTES_MAX,
            false => FRAME_BYTES_MAX_HANDSHAKE,
        };
        let Some(length) = whole(&bytes[end..], frame_bytes_max) else {
            return match cut(&bytes[end..], frame_bytes_max) {
                Cut::Malformed(code) => (end, Some(code)),
                Cut::Complete { .. } | Cut::Incomplete { .. } => (end, None),
            };
        };
        *greeted = true;
        end += length;
    }
}

/// The same of AMQP: the protocol header, then frames. What is wrong with a frame that is whole the engine
/// tells.
fn cut_amqp(bytes: &[u8], greeted: &mut bool) -> (usize, Option<Code>) {
    let mut end = 0;
    if !*greeted {
        if bytes.len() < PROTOCOL_HEADER.len() {
            return (0, None);
        }
        *greeted = true;
        end = PROTOCOL_HEADER.len();
    }
    while let Some(length) = ringpost_amqp::frame::whole(&bytes[end..], AMQP_FRAME_BYTES_MAX) {
        end += length;
    }
    let rest = ringpost_amqp::cut(&bytes[end..], AMQP_FRAME_BYTES_MAX);
    let is_wrong = matches!(rest, ringpost_amqp::Cut::Malformed(_));
    (end, is_wrong.then_some(Code::FrameMalformed))
}

/// What a receive brought.
#[derive(Debug)]
pub enum Arrival<'a> {
    /// Whole frames.
    Frames(&'a [u8]),
    /// Bytes that are no frame.
    Malformed(Code),
    /// The peer is gone.
    Gone,
    /// Nothing whole yet.
    Nothing,
}

/// The connections of one core.
#[derive(Debug)]
pub struct Conns {
    conns: Vec<Option<Box<Conn>>>,
    free: Vec<u32>,
    generation: u32,
    /// Connections that may have bytes to read.
    readable: VecDeque<ConnId>,
    /// Connections that are not read for now, though they may have bytes.
    unread: Vec<ConnId>,
    /// Connections with the start of a long frame.
    parts: u32,
    /// Connections that are not read until there is a place for the start of a long frame.
    crowded: Vec<ConnId>,
    /// When to look for those that have such a place and are silent; none if nobody waits for one.
    look_at: Option<Monotonic>,
    /// Connections with something to send.
    sending: Vec<ConnId>,
    /// Connections that began to hold buffers, with the time when that has lasted too long; in order.
    /// An entry counts if it is the connection's own time still.
    pinning: VecDeque<(Monotonic, ConnId)>,
    /// Connections for whose copy there was no room; who waits longest first.
    lacking_room: VecDeque<ConnId>,
    /// Memory of what was copied for sockets that did not take it.
    copied_bytes: usize,
    /// A buffer became free here and not by the engine's word.
    freed: bool,
    /// Connections that are closing, with the time when they are cut off; in order.
    closing: VecDeque<(Monotonic, ConnId)>,
    /// Where bytes are received; one partial frame, then what arrives.
    slab: Vec<u8>,
    spares: Vec<Vec<u8>>,
    /// Empty; what a connection has to send is put together anew in it.
    pieces: VecDeque<Piece>,
    count: u32,
    limits: ConnLimits,
}

impl Conns {
    /// No connection yet.
    ///
    /// # Panics
    ///
    /// If no long frame could ever come.
    #[must_use]
    pub fn new(limits: ConnLimits) -> Self {
        assert!(limits.parts_max > 0, "long frames need a place");
        Self {
            conns: Vec::new(),
            free: Vec::new(),
            generation: 0,
            readable: VecDeque::new(),
            unread: Vec::new(),
            parts: 0,
            crowded: Vec::new(),
            look_at: None,
            sending: Vec::new(),
            pinning: VecDeque::new(),
            lacking_room: VecDeque::new(),
            copied_bytes: 0,
            freed: false,
            closing: VecDeque::new(),
            slab: vec![0; RECEIVE_BYTES + ALIGN],
            spares: Vec::new(),
            pieces: VecDeque::new(),
            count: 0,
            limits,
        }
    }

    /// Connections open.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.count
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn idx(id: ConnId) -> usize {
        (id.0 & u64::from(u32::MAX)) as usize
    }

    fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns
            .get_mut(Self::idx(id))?
            .as_deref_mut()
            .filter(|conn| conn.id == id)
    }

    /// Takes a socket that was just accepted.
    ///
    /// # Errors
    ///
    /// If the poller does not take it.
    pub fn add(
        &mut self,
        socket: Connection,
        protocol: Protocol,
        poller: &mut Poller,
    ) -> io::Result<ConnId> {
        self.register(socket, protocol, Vec::new(), false, poller)
    }

    /// Takes a socket of another core, with bytes that it received and did not step.
    ///
    /// # Errors
    ///
    /// If the poller does not take it.
    pub fn adopt(
        &mut self,
        socket: Connection,
        partial: Vec<u8>,
        poller: &mut Poller,
    ) -> io::Result<ConnId> {
        self.register(socket, Protocol::Native, partial, true, poller)
    }

    fn register(
        &mut self,
        socket: Connection,
        protocol: Protocol,
        partial: Vec<u8>,
        greeted: bool,
        poller: &mut Poller,
    ) -> io::Result<ConnId> {
        let idx = self.free.pop().unwrap_or_else(|| {
            self.conns.push(None);
            (self.conns.len() - 1) as u32
        });
        self.generation += 1;
        let id = ConnId(u64::from(self.generation) << 32 | u64::from(idx));
        if let Err(error) = poller.register(socket.as_fd(), Token::new(id.0)) {
            self.free.push(idx);
            return Err(error);
        }
        self.parts += u32::from(is_long(&partial));
        // Registration reports what the socket is ready for, but bytes that came along with it are
        // known only here.
        let listed = !partial.is_empty();
        if listed {
            self.readable.push_back(id);
        }
        self.conns[idx as usize] = Some(Box::new(Conn {
            id,
            protocol,
            socket,
            partial,
            part_heard: Monotonic::now(),
            out: VecDeque::new(),
            greeted,
            readable: listed,
            ended: false,
            blocked: false,
            listed,
            sending: false,
            copy_at: None,
            lacks_room: false,
            closing: false,
            finished: false,
        }));
        self.count += 1;
        Ok(id)
    }

    /// Notes what the poller says of a socket.
    pub fn note(&mut self, event: &SocketEvent) {
        let id = ConnId(event.token.value());
        let Some(conn) = self.get_mut(id) else { return };
        let writable = event.writable;
        conn.ended |= event.hangup;
        let mut list = false;
        if event.readable || event.hangup {
            conn.readable = true;
            list = !conn.listed;
            conn.listed |= list;
        }
        let mut send = false;
        if writable && conn.blocked {
            conn.blocked = false;
            send = !conn.sending && (!conn.out.is_empty() || conn.closing);
            conn.sending |= send;
        }
        if list {
            self.readable.push_back(id);
        }
        if send {
            self.sending.push(id);
        }
    }

    /// Whether a connection may have bytes to read.
    #[must_use]
    pub fn has_readable(&self) -> bool {
        !self.readable.is_empty()
    }

    /// Whether a connection can take what it could not before.
    #[must_use]
    pub fn has_sending(&self) -> bool {
        !self.sending.is_empty()
    }

    /// Connections that may have bytes to read now.
    #[must_use]
    pub fn readable_count(&self) -> usize {
        self.readable.len()
    }

    /// The next connection that may have bytes: to be read, or to be left for now.
    pub fn next_readable(&mut self) -> Option<ConnId> {
        self.readable.pop_front()
    }

    /// Does not read a connection until [`Conns::read_again`] says so.
    pub fn leave_unread(&mut self, id: ConnId) {
        self.unread.push(id);
    }

    /// Looks again at connections that were left unread.
    pub fn read_again(&mut self, is_read: impl Fn(ConnId) -> bool) {
        let readable = &mut self.readable;
        self.unread.retain(|id| {
            let now = is_read(*id);
            if now {
                readable.push_back(*id);
            }
            !now
        });
    }

    /// Receives once from a connection that may have bytes, and gives what is whole to `take`.
    pub fn receive(&mut self, id: ConnId, mut take: impl FnMut(ConnId, Arrival<'_>)) {
        let base = self.slab.as_ptr().align_offset(ALIGN);
        let idx = Self::idx(id);
        let Some(conn) = self.conns[idx].as_deref_mut().filter(|conn| conn.id == id) else {
            return;
        };
        let had = conn.partial.len();
        let was_long = is_long(&conn.partial);
        // What is read and is not whole must be kept.
        let room = if was_long || self.parts < self.limits.parts_max {
            RECEIVE_BYTES
        } else {
            PARTIAL_BYTES_KEPT
        };
        if had >= room {
            self.crowded.push(id);
            self.look_at.get_or_insert_with(Monotonic::now);
            return;
        }
        conn.listed = false;
        let slab = &mut self.slab[base..base + room];
        slab[..had].copy_from_slice(&conn.partial);
        let mut gone = false;
        let mut filled = had;
        //= P-18
        match conn.socket.receive(&mut slab[had..]) {
            Ok(Received::Bytes(count)) => {
                filled += count;
                // A short read drains the socket: the next bytes come with an event. The end of the
                // stream may have come with this one. Whoever sends much has sent more meanwhile.
                conn.readable = filled == slab.len() || conn.ended || count >= MUCH_BYTES;
            }
            Ok(Received::WouldBlock) => conn.readable = false,
            Ok(Received::Closed) | Err(_) => {
                conn.readable = false;
                gone = true;
            }
        }
        if conn.closing {
            filled = 0;
        }
        let received = &slab[..filled];
        let (end, malformed) = match conn.protocol {
            Protocol::Native => cut_native(received, &mut conn.greeted),
            Protocol::Amqp => cut_amqp(received, &mut conn.greeted),
        };
        let rest = if malformed.is_some() {
            end..end
        } else {
            end..filled
        };
        Self::keep_partial(&mut self.spares, &mut conn.partial, &slab[rest]);
        if is_long(&conn.partial) {
            conn.part_heard = Monotonic::now();
            self.parts += u32::from(!was_long);
        } else if was_long {
            Self::part_ended(&mut self.parts, &mut self.crowded, &mut self.readable);
        }
        let again = conn.readable && malformed.is_none();
        if again {
            conn.listed = true;
            self.readable.push_back(id);
        }
        if end > 0 {
            take(id, Arrival::Frames(&slab[..end]));
        } else if malformed.is_none() && !gone {
            take(id, Arrival::Nothing);
        }
        if let Some(code) = malformed {
            take(id, Arrival::Malformed(code));
        } else if gone {
            take(id, Arrival::Gone);
        }
    }

    /// Keeps the start of a frame: little of it with the connection, much of it in a vector with room
    /// for any frame.
    fn keep_partial(spares: &mut Vec<Vec<u8>>, partial: &mut Vec<u8>, rest: &[u8]) {
        partial.clear();
        let is_borrowed = partial.capacity() > PARTIAL_BYTES_KEPT;
        if rest.len() > PARTIAL_BYTES_KEPT && !is_borrowed {
            *partial = spares.pop().unwrap_or_default();
            partial.clear();
            partial.reserve_exact(FRAME_BYTES_MAX);
        } else if rest.len() <= PARTIAL_BYTES_KEPT && is_borrowed {
            let spare = std::mem::take(partial);
            if spares.len() < SPARES_MAX {
                spares.push(spare);
            }
        }
        if rest.len() <= PARTIAL_BYTES_KEPT {
            partial.reserve_exact(rest.len());
        }
        partial.extend_from_slice(rest);
    }

    /// There is a place for the start of one more long frame.
    fn part_ended(parts: &mut u32, crowded: &mut Vec<ConnId>, readable: &mut VecDeque<ConnId>) {
        *parts -= 1;
        readable.extend(crowded.drain(..));
    }

    /// Drops the start of a frame.
    fn drop_part(&mut self, partial: Vec<u8>) {
        if is_long(&partial) {
            Self::part_ended(&mut self.parts, &mut self.crowded, &mut self.readable);
        }
    }

    /// Connections that have begun a long frame and do not go on with it, while others wait for its
    /// place.
    #[must_use]
    pub fn silent(&mut self, now: Monotonic) -> Vec<ConnId> {
        let mut silent = Vec::new();
        if self.look_at.is_none_or(|at| now < at) {
            return silent;
        }
        self.look_at = None;
        if self.crowded.is_empty() {
            return silent;
        }
        for conn in self.conns.iter().flatten() {
            if !is_long(&conn.partial) {
                continue;
            }
            let late = conn.part_heard.plus(PART_PATIENCE);
            if late <= now {
                silent.push(conn.id);
            } else {
                self.look_at = Some(self.look_at.map_or(late, |first| first.min(late)));
            }
        }
        silent
    }

    /// Queues bytes of this turn's arena.
    pub fn send_arena(&mut self, id: ConnId, range: Range<u32>) {
        self.queue(id, Piece::Arena(range));
    }

    /// Queues bytes of a buffer, which is retained until they are sent.
    pub fn send_buffer(
        &mut self,
        id: ConnId,
        buffer: BufferId,
        range: Range<u32>,
        pool: &mut BufferPool,
    ) {
        if self.get_mut(id).is_some() {
            pool.retain(buffer);
            self.queue(id, Piece::Buffer(buffer, range));
        }
    }

    fn queue(&mut self, id: ConnId, piece: Piece) {
        let Some(conn) = self.get_mut(id) else { return };
        conn.out.push_back(piece);
        if !conn.sending {
            conn.sending = true;
            self.sending.push(id);
        }
    }

    /// Sends what there is, says that nothing more comes, and waits until the peer hangs up, though
    /// not for ever.
    pub fn close(&mut self, id: ConnId, now: Monotonic) {
        let Some(conn) = self.get_mut(id) else { return };
        conn.closing = true;
        let partial = std::mem::take(&mut conn.partial);
        self.drop_part(partial);
        self.closing.push_back((now.plus(LINGER), id));
        let conn = self.get_mut(id).expect("it was just looked at");
        if !conn.sending {
            conn.sending = true;
            self.sending.push(id);
        }
    }

    /// When the next connection is to be cut off, looked for or copied for.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Monotonic> {
        let closing = self.closing.front().map(|(deadline, _)| *deadline);
        let copy = self.pinning.front().map(|(due, _)| *due);
        [closing, copy, self.look_at].into_iter().flatten().min()
    }

    /// Cuts off the connections that had their time to hang up.
    pub fn expire(&mut self, now: Monotonic, pool: &mut BufferPool) {
        while let Some((deadline, id)) = self.closing.front().copied() {
            let over = self.get_mut(id).is_none();
            if !over && now < deadline {
                return;
            }
            self.closing.pop_front();
            self.drop_gone(id, pool);
        }
    }

    /// Cuts off all connections.
    pub fn drop_all(&mut self, pool: &mut BufferPool) {
        let ids: Vec<ConnId> = self.conns.iter().flatten().map(|conn| conn.id).collect();
        for id in ids {
            self.drop_gone(id, pool);
        }
    }

    /// Copies what sockets have not taken for too long out of the pool's buffers, as far as there is
    /// room for copies, so that those who do not read keep no memory from those who do.
    pub fn copy_out(&mut self, now: Monotonic, pool: &mut BufferPool) {
        while let Some((due, id)) = self.pinning.front().copied() {
            let holds = self
                .get_mut(id)
                .filter(|conn| conn.copy_at == Some(due) && !conn.lacks_room);
            if let Some(conn) = holds {
                if now < due {
                    break;
                }
                conn.lacks_room = true;
                self.lacking_room.push_back(id);
            }
            self.pinning.pop_front();
        }
        while let Some(id) = self.lacking_room.front().copied() {
            let left = self.limits.copied_bytes_max;
            let left = left.saturating_sub(self.copied_bytes);
            if let Some(conn) = self.get_mut(id) {
                if conn.pinned_bytes() > left {
                    return;
                }
                conn.lacks_room = false;
                conn.copy_at = None;
                self.copy_pieces(id, Pins::CopiedOut, &[], pool);
            }
            self.lacking_room.pop_front();
        }
    }

    /// Replaces pieces by copies that survive the turn.
    fn copy_pieces(&mut self, id: ConnId, pins: Pins, arena: &[u8], pool: &mut BufferPool) {
        let mut pieces = std::mem::take(&mut self.pieces);
        let conn = self.conns[Self::idx(id)].as_deref_mut();
        let out = &mut conn.expect("it was just looked at").out;
        std::mem::swap(out, &mut pieces);
        for piece in pieces.drain(..) {
            match (piece, pins) {
                (Piece::Buffer(buffer, range), Pins::Kept) => {
                    out.push_back(Piece::Buffer(buffer, range));
                }
                (Piece::Buffer(buffer, range), Pins::CopiedOut) => {
                    self.copied_bytes += copy(out, pool.bytes(buffer, range));
                    self.freed |= pool.release(buffer);
                }
                (Piece::Arena(range), _) => {
                    let bytes = &arena[range.start as usize..range.end as usize];
                    self.copied_bytes += copy(out, bytes);
                }
                (Piece::Copied(bytes, from), _) => match out.back() {
                    // Small ones that a buffer lay between come together.
                    Some(Piece::Copied(last, _))
                        if last.len() + bytes.len() - from <= COPY_BYTES_MAX =>
                    {
                        self.copied_bytes += copy(out, &bytes[from..]);
                        self.copied_bytes -= bytes.capacity();
                    }
                    _ => out.push_back(Piece::Copied(bytes, from)),
                },
            }
        }
        self.pieces = pieces;
    }

    /// Cuts off the connection that has held buffers for longest without room for a copy; says
    /// whether there was one. The engine hears of it as of any peer that is gone.
    pub fn cut_longest_pinning(&mut self, pool: &mut BufferPool) -> bool {
        while let Some(id) = self.lacking_room.pop_front() {
            let Some(conn) = self.get_mut(id) else {
                continue;
            };
            conn.lacks_room = false;
            if conn.pinned_bytes() > 0 {
                let _ = conn.socket.shutdown(Shutdown::Both);
                // What the engine may offer it still is dropped as well.
                conn.blocked = false;
                self.give_up(id, pool);
                return true;
            }
        }
        false
    }

    /// Offers a socket nothing more; the next read finds that its peer is gone.
    fn give_up(&mut self, id: ConnId, pool: &mut BufferPool) {
        let Some(conn) = self.get_mut(id) else { return };
        conn.copy_at = None;
        conn.readable = true;
        let list = !conn.listed;
        conn.listed = true;
        let mut out = std::mem::take(&mut conn.out);
        self.forget_pieces(&mut out, pool);
        if list {
            self.readable.push_back(id);
        }
    }

    fn forget_pieces(&mut self, out: &mut VecDeque<Piece>, pool: &mut BufferPool) {
        for piece in out.drain(..) {
            match piece {
                Piece::Buffer(buffer, _) => self.freed |= pool.release(buffer),
                Piece::Copied(bytes, _) => self.copied_bytes -= bytes.capacity(),
                Piece::Arena(_) => {}
            }
        }
    }

    /// Whether a buffer became free since the last call, of which the engine does not know: it may
    /// wait for one.
    pub fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }

    /// Forgets a connection whose peer is gone.
    pub fn drop_gone(&mut self, id: ConnId, pool: &mut BufferPool) {
        let idx = Self::idx(id);
        if self.get_mut(id).is_none() {
            return;
        }
        let mut conn = self.conns[idx].take().expect("it was just looked at");
        // The executor learns of a close only at its next turn; the peer shall learn at once.
        let _ = conn.socket.shutdown(Shutdown::Both);
        self.forget_pieces(&mut conn.out, pool);
        self.drop_part(conn.partial);
        self.free.push(idx as u32);
        self.count -= 1;
    }

    /// Takes a connection out to hand it to another core: the socket, and what was received but is
    /// not whole. What was still to be sent goes along as bytes to send first.
    pub fn take(
        &mut self,
        id: ConnId,
        arena: &[u8],
        pool: &mut BufferPool,
        poller: &mut Poller,
    ) -> Option<(Connection, Vec<u8>)> {
        self.get_mut(id)?;
        self.flush_one(id, Monotonic::now(), arena, pool, &mut |_, _| {});
        self.get_mut(id)?;
        let idx = Self::idx(id);
        let mut conn = self.conns[idx].take().expect("it was just looked at");
        if is_long(&conn.partial) {
            Self::part_ended(&mut self.parts, &mut self.crowded, &mut self.readable);
        }
        self.free.push(idx as u32);
        self.count -= 1;
        let is_left = !conn.out.is_empty();
        self.forget_pieces(&mut conn.out, pool);
        if poller.deregister(conn.socket.as_fd()).is_err() || is_left {
            // A client attaches before it has asked for anything, so nothing is left to send
            // unless it does not read; such a one is dropped.
            let _ = conn.socket.shutdown(Shutdown::Both);
            return None;
        }
        Some((conn.socket, conn.partial))
    }

    /// Sends what was queued, as far as the sockets take it. `sent` hears how many bytes each took;
    /// arena pieces that are left are copied, so the arena may be cleared afterwards.
    pub fn flush(
        &mut self,
        now: Monotonic,
        arena: &[u8],
        pool: &mut BufferPool,
        mut sent: impl FnMut(ConnId, u32),
    ) {
        let mut sending = std::mem::take(&mut self.sending);
        for id in sending.drain(..) {
            self.flush_one(id, now, arena, pool, &mut sent);
        }
        // Nothing is queued while sending, so this keeps the memory.
        self.sending = sending;
    }

    fn flush_one(
        &mut self,
        id: ConnId,
        now: Monotonic,
        arena: &[u8],
        pool: &mut BufferPool,
        sent: &mut impl FnMut(ConnId, u32),
    ) {
        let copied_bytes = &mut self.copied_bytes;
        let Some(conn) = self
            .conns
            .get_mut(Self::idx(id))
            .and_then(|c| c.as_deref_mut())
            .filter(|c| c.id == id)
        else {
            return;
        };
        conn.sending = false;
        let mut total = 0;
        let mut gone = false;
        while !conn.out.is_empty() && !conn.blocked && !gone {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut offered = 0;
            let count = conn.out.len().min(SLICES_MAX);
            for (slice, piece) in slices.iter_mut().zip(&conn.out) {
                let bytes = piece.bytes(arena, pool);
                offered += bytes.len();
                *slice = IoSlice::new(bytes);
            }
            match conn.socket.send_vectored(&slices[..count]) {
                Ok(Sent::Bytes(taken)) => {
                    conn.blocked = taken < offered;
                    total += taken;
                    self.freed |= advance(&mut conn.out, taken, copied_bytes, pool);
                }
                Ok(Sent::WouldBlock) => conn.blocked = true,
                Err(_) => gone = true,
            }
        }
        if gone {
            // The receive side will report the end.
            self.give_up(id, pool);
        } else {
            self.keep_rest(id, now, arena, pool);
        }
        let conn = self.get_mut(id).expect("it was just looked at");
        let over = conn.closing && gone;
        if conn.closing && conn.out.is_empty() && !conn.finished {
            conn.finished = true;
            // A peer that is gone already is found out by the next read.
            let _ = conn.socket.shutdown(Shutdown::Write);
        }
        if total > 0 {
            sent(id, total as u32);
        }
        if over {
            self.drop_gone(id, pool);
        }
    }

    /// Makes what a socket did not take last: the arena's bytes are copied at once, a buffer is held
    /// for a while.
    fn keep_rest(&mut self, id: ConnId, now: Monotonic, arena: &[u8], pool: &mut BufferPool) {
        let conn = self.get_mut(id).expect("it was just looked at");
        let is_arena = |piece: &Piece| matches!(piece, Piece::Arena(_));
        if conn.out.iter().any(is_arena) {
            self.copy_pieces(id, Pins::Kept, arena, pool);
        }
        let conn = self.get_mut(id).expect("it was just looked at");
        if conn.pinned_bytes() == 0 {
            conn.copy_at = None;
        } else if conn.copy_at.is_none() {
            let due = now.plus(COPY_AFTER);
            conn.copy_at = Some(due);
            self.pinning.push_back((due, id));
        }
    }
}

/// What becomes of buffers when pieces are copied.
#[derive(Clone, Copy, Debug)]
enum Pins {
    /// They stay where they are.
    Kept,
    /// Their bytes are copied, too.
    CopiedOut,
}

impl Conn {
    /// Bytes of buffers that it has to send.
    fn pinned_bytes(&self) -> usize {
        let bytes = |piece: &Piece| match piece {
            Piece::Buffer(_, range) => (range.end - range.start) as usize,
            Piece::Copied(..) | Piece::Arena(_) => 0,
        };
        self.out.iter().map(bytes).sum()
    }
}

impl Piece {
    fn bytes<'a>(&'a self, arena: &'a [u8], pool: &'a BufferPool) -> &'a [u8] {
        match self {
            Self::Arena(range) => &arena[range.start as usize..range.end as usize],
            Self::Copied(bytes, from) => &bytes[*from..],
            Self::Buffer(buffer, range) => pool.bytes(*buffer, range.clone()),
        }
    }

    fn length(&self) -> usize {
        match self {
            Self::Arena(range) | Self::Buffer(_, range) => (range.end - range.start) as usize,
            Self::Copied(bytes, from) => bytes.len() - from,
        }
    }
}

/// Appends a copy of bytes, to the last one if that has room; says how much more memory it takes.
fn copy(out: &mut VecDeque<Piece>, mut bytes: &[u8]) -> usize {
    let mut more = 0;
    while !bytes.is_empty() {
        if let Some(Piece::Copied(last, _)) = out.back_mut()
            && last.len() < COPY_BYTES_MAX
        {
            let room = COPY_BYTES_MAX - last.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            let before = last.capacity();
            if last.len() + now.len() > before {
                let capacity = (2 * before).clamp(last.len() + now.len(), COPY_BYTES_MAX);
                last.reserve_exact(capacity - last.len());
            }
            last.extend_from_slice(now);
            more += last.capacity() - before;
            bytes = later;
        } else {
            let last = Vec::with_capacity(bytes.len().min(COPY_BYTES_MAX));
            more += last.capacity();
            out.push_back(Piece::Copied(last, 0));
        }
    }
    more
}

/// Drops `taken` bytes from the front of what is to be sent; says whether a buffer is free now.
fn advance(
    out: &mut VecDeque<Piece>,
    mut taken: usize,
    copied_bytes: &mut usize,
    pool: &mut BufferPool,
) -> bool {
    let mut freed = false;
    while let Some(piece) = out.front_mut() {
        let length = piece.length();
        if taken < length {
            match piece {
                Piece::Arena(range) | Piece::Buffer(_, range) => range.start += taken as u32,
                Piece::Copied(_, from) => *from += taken,
            }
            break;
        }
        taken -= length;
        match out.pop_front().expect("it was just looked at") {
            Piece::Buffer(buffer, _) => freed |= pool.release(buffer),
            Piece::Copied(bytes, _) => *copied_bytes -= bytes.capacity(),
            Piece::Arena(_) => {}
        }
    }
    freed
}

#[cfg(test)]
mod tests;
