//! The rings between the cores: who may post what to whom, and when a post may wait. It does not
//! know the messages, nor how a slot is written safely (`rt::ring`).
//!
//! Every ordered pair of cores has two lanes. *Requests* are posted only after a place for the
//! reply is reserved; *replies* and *control* messages (credit, returned slabs) share the other
//! lane. Therefore a reply never waits, and no cycle of full rings can stop the cores:
//!
//! ```text
//!   A --requests (capacity)-----------------> B
//!   A <-replies and control (2 x capacity)--- B
//! ```
//!
//! A places at most `capacity` requests whose replies it has not yet taken, so at most `capacity`
//! replies are in the lane; a control message is accepted only while fewer than `capacity` entries
//! of both kinds are in it. Together they never exceed twice the capacity.
//!
//! Nothing here waits. What does not fit stays with its producer.

use std::sync::Arc;

use crate::rt::{Bell, Consumer, Producer, ring};

/// One of the cores of this process, counted from zero in the order of [`build`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerIdx(pub usize);

/// What the reply lane carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming<T> {
    /// The answer to one request of ours; taking it frees the place reserved for it.
    Reply(T),
    /// Something the peer says unasked.
    Control(T),
}

/// The lanes to and from one peer.
#[derive(Debug)]
struct Lanes<T> {
    /// Rung after publishing; the peer's.
    bell: Arc<Bell>,
    /// Our requests.
    requests_out: Producer<T>,
    /// Our replies and control messages.
    replies_out: Producer<Incoming<T>>,
    /// The peer's requests.
    requests_in: Consumer<T>,
    /// The peer's replies and control messages.
    replies_in: Consumer<Incoming<T>>,
    /// Requests we may still post: `capacity` less those whose reply we have not taken.
    requests_allowed: usize,
    /// Requests taken from the peer that we have not replied to.
    replies_owed: usize,
}

/// One core's end of all its lanes.
#[derive(Debug)]
pub struct MeshEndpoint<T> {
    /// Which core this is.
    own: PeerIdx,
    /// Entries in a request lane.
    capacity: usize,
    /// By peer; none for the core itself.
    peers: Vec<Option<Lanes<T>>>,
}

/// Connects every core with every other, one bell per core, `capacity` requests in flight for each
/// ordered pair.
///
/// # Panics
///
/// If `capacity` is not a power of two.
pub fn build<T: Send>(bells: &[Arc<Bell>], capacity: usize) -> Vec<MeshEndpoint<T>> {
    assert!(
        capacity.is_power_of_two(),
        "{capacity} is not a power of two"
    );
    let mut endpoints: Vec<MeshEndpoint<T>> = (0..bells.len())
        .map(|own| MeshEndpoint {
            own: PeerIdx(own),
            capacity,
            peers: (0..bells.len()).map(|_| None).collect(),
        })
        .collect();
    for first in 0..bells.len() {
        for second in first + 1..bells.len() {
            let (first_lanes, second_lanes) = pair(&bells[first], &bells[second], capacity);
            endpoints[first].peers[second] = Some(first_lanes);
            endpoints[second].peers[first] = Some(second_lanes);
        }
    }
    endpoints
}

fn pair<T: Send>(
    first_bell: &Arc<Bell>,
    second_bell: &Arc<Bell>,
    capacity: usize,
) -> (Lanes<T>, Lanes<T>) {
    let (first_requests_out, second_requests_in) = ring(capacity);
    let (second_requests_out, first_requests_in) = ring(capacity);
    let (first_replies_out, second_replies_in) = ring(capacity * 2);
    let (second_replies_out, first_replies_in) = ring(capacity * 2);
    let first = Lanes {
        bell: second_bell.clone(),
        requests_out: first_requests_out,
        replies_out: first_replies_out,
        requests_in: first_requests_in,
        replies_in: first_replies_in,
        requests_allowed: capacity,
        replies_owed: 0,
    };
    let second = Lanes {
        bell: first_bell.clone(),
        requests_out: second_requests_out,
        replies_out: second_replies_out,
        requests_in: second_requests_in,
        replies_in: second_replies_in,
        requests_allowed: capacity,
        replies_owed: 0,
    };
    (first, second)
}

impl<T: Send> MeshEndpoint<T> {
    /// Which core this is.
    pub fn own(&self) -> PeerIdx {
        self.own
    }

    /// The other cores.
    pub fn peers(&self) -> impl Iterator<Item = PeerIdx> + use<T> {
        let own = self.own.0;
        (0..self.peers.len())
            .filter(move |&peer| peer != own)
            .map(PeerIdx)
    }

    /// Posts a request and reserves the place of its reply, or gives it back if there is none.
    ///
    /// # Errors
    ///
    /// The request; it stays with its producer until replies were taken.
    #[inline]
    pub fn request(&mut self, peer: PeerIdx, request: T) -> Result<(), T> {
        let lanes = self.lanes(peer);
        if lanes.requests_allowed == 0 {
            return Err(request);
        }
        // There is room in the ring: the reply to each entry in it is still outstanding.
        lanes.requests_out.push(request)?;
        lanes.requests_allowed -= 1;
        Ok(())
    }

    /// Answers a request taken from `peer`. Exactly one reply belongs to each; order is free.
    ///
    /// # Panics
    ///
    /// If no request of this peer is unanswered.
    #[inline]
    pub fn reply(&mut self, peer: PeerIdx, reply: T) {
        let lanes = self.lanes(peer);
        lanes.replies_owed = lanes
            .replies_owed
            .checked_sub(1)
            .expect("a reply belongs to a request");
        let posted = lanes.replies_out.push(Incoming::Reply(reply));
        assert!(
            posted.is_ok(),
            "the place of a reply is reserved by its request"
        );
    }

    /// Says something unasked, or gives it back if the peer has not taken enough yet.
    ///
    /// # Errors
    ///
    /// The message; it stays with its producer.
    #[inline]
    pub fn control(&mut self, peer: PeerIdx, message: T) -> Result<(), T> {
        let capacity = self.capacity;
        let lanes = self.lanes(peer);
        if lanes.replies_out.occupied() >= capacity {
            return Err(message);
        }
        let posted = lanes.replies_out.push(Incoming::Control(message));
        assert!(posted.is_ok(), "less than half of the lane was occupied");
        Ok(())
    }

    /// Makes everything posted visible, and wakes the peers that sleep. Once per turn.
    pub fn publish(&mut self) {
        for lanes in self.peers.iter_mut().flatten() {
            // No short circuit: both have to be published.
            if lanes.requests_out.publish() | lanes.replies_out.publish() {
                lanes.bell.ring();
            }
        }
    }

    /// Takes a request of `peer`; it is owed a [`reply`](Self::reply).
    #[inline]
    pub fn take_request(&mut self, peer: PeerIdx) -> Option<T> {
        let lanes = self.lanes(peer);
        let request = lanes.requests_in.pop()?;
        lanes.replies_owed += 1;
        Some(request)
    }

    /// Takes a reply or a control message of `peer`.
    #[inline]
    pub fn take_reply(&mut self, peer: PeerIdx) -> Option<Incoming<T>> {
        let capacity = self.capacity;
        let lanes = self.lanes(peer);
        let incoming = lanes.replies_in.pop()?;
        if matches!(incoming, Incoming::Reply(_)) {
            lanes.requests_allowed += 1;
            assert!(
                lanes.requests_allowed <= capacity,
                "a reply without a request"
            );
        }
        Some(incoming)
    }

    /// Whether any lane holds something for this core; what a core asks before it sleeps.
    #[inline]
    pub fn has_incoming(&self) -> bool {
        let holds =
            |lanes: &Lanes<T>| !lanes.requests_in.is_empty() || !lanes.replies_in.is_empty();
        self.peers.iter().flatten().any(holds)
    }

    #[inline]
    fn lanes(&mut self, peer: PeerIdx) -> &mut Lanes<T> {
        self.peers[peer.0]
            .as_mut()
            .expect("a core has no lane to itself")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh(cores: usize, capacity: usize) -> Vec<MeshEndpoint<u32>> {
        let bell = |_| Bell::new().expect("there are descriptors");
        build(&(0..cores).map(bell).collect::<Vec<_>>(), capacity)
    }

    const A: PeerIdx = PeerIdx(0);
    const B: PeerIdx = PeerIdx(1);

    fn two(capacity: usize) -> (MeshEndpoint<u32>, MeshEndpoint<u32>) {
        let mut endpoints = mesh(2, capacity);
        let second = endpoints.pop().expect("two cores");
        (endpoints.pop().expect("two cores"), second)
    }

    #[test]
    fn nothing_is_seen_before_it_is_published() {
        let (mut a, mut b) = two(4);
        a.request(B, 1).expect("there is room");
        assert!(!b.has_incoming());
        assert_eq!(b.take_request(A), None);
        a.publish();
        assert!(b.has_incoming());
        assert_eq!(b.take_request(A), Some(1));
        assert!(!b.has_incoming());
    }

    #[test]
    fn a_request_is_refused_until_a_reply_was_taken() {
        let (mut a, mut b) = two(2);
        a.request(B, 1).expect("there is room");
        a.request(B, 2).expect("there is room");
        assert_eq!(a.request(B, 3), Err(3));
        a.publish();
        assert_eq!(b.take_request(A), Some(1));
        // The ring has room, but the reply would not.
        assert_eq!(a.request(B, 3), Err(3));
        b.reply(A, 10);
        b.publish();
        assert_eq!(a.request(B, 3), Err(3));
        assert_eq!(a.take_reply(B), Some(Incoming::Reply(10)));
        a.request(B, 3).expect("the reply was taken");
    }

    #[test]
    fn replies_fit_however_much_control_there_is() {
        let (mut a, mut b) = two(2);
        a.request(B, 1).expect("there is room");
        a.request(B, 2).expect("there is room");
        a.publish();
        b.control(A, 7).expect("there is room");
        b.control(A, 8).expect("there is room");
        assert_eq!(b.control(A, 9), Err(9));
        assert_eq!(b.take_request(A), Some(1));
        assert_eq!(b.take_request(A), Some(2));
        b.reply(A, 11);
        b.reply(A, 12);
        b.publish();
        let taken: Vec<_> = std::iter::from_fn(|| a.take_reply(B)).collect();
        let expected = [
            Incoming::Control(7),
            Incoming::Control(8),
            Incoming::Reply(11),
            Incoming::Reply(12),
        ];
        assert_eq!(taken, expected);
        b.control(A, 9).expect("the lane is empty");
    }

    #[test]
    #[should_panic(expected = "a reply belongs to a request")]
    fn an_unasked_reply_panics() {
        let (_a, mut b) = two(2);
        b.reply(A, 1);
    }

    #[test]
    fn the_smallest_rings_stay_live_between_all_cores() {
        const CORES: usize = 3;
        const REQUESTS: u32 = 2_000;
        let threads: Vec<_> = mesh(CORES, 2)
            .into_iter()
            .map(|endpoint| std::thread::spawn(move || exchange(endpoint, REQUESTS)))
            .collect();
        for thread in threads {
            let served = thread.join().expect("no core panics");
            assert_eq!(served, REQUESTS * (CORES as u32 - 1));
        }
    }

    /// Sends numbered requests to every peer, answers all of theirs, and returns how many it served.
    fn exchange(mut endpoint: MeshEndpoint<u32>, requests: u32) -> u32 {
        let peers: Vec<_> = endpoint.peers().collect();
        let all = u32::try_from(peers.len()).expect("few") * requests;
        let mut sent = vec![0u32; peers.len()];
        let mut answered = vec![0u32; peers.len()];
        let mut served = 0;
        while served < all || answered.iter().sum::<u32>() < all {
            for (place, &peer) in peers.iter().enumerate() {
                while sent[place] < requests && endpoint.request(peer, sent[place]).is_ok() {
                    sent[place] += 1;
                }
                while let Some(request) = endpoint.take_request(peer) {
                    endpoint.reply(peer, request + 1);
                    served += 1;
                }
                while let Some(incoming) = endpoint.take_reply(peer) {
                    // Replies come in the order of the requests, since each is served at once.
                    answered[place] += 1;
                    assert_eq!(incoming, Incoming::Reply(answered[place]));
                }
            }
            endpoint.publish();
            std::thread::yield_now();
        }
        served
    }
}
