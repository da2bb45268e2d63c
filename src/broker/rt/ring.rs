//! A bounded ring from one producer to one consumer, and the sleep protocol of a doorbell. It does
//! not know what the entries mean, how a sleeper is woken, or which cores it joins.
//!
//! ```text
//!            head (consumer stores)          tail (producer stores, once per batch)
//!              v                               v
//!   slots  . . [a][b][c][d] . . . . .   `tail - head` entries are the consumer's, the rest the
//!                                       producer's; both indices only grow and wrap with usize
//! ```
//!
//! Each side keeps its own index and a copy of the other's, and reads the other's cache line only
//! when the copy says "full" or "empty". Neither half is `Clone`: a second producer would write a
//! slot that the first one owns.
#![expect(
    unsafe_code,
    reason = "slots pass between two threads by index, not by borrow"
)]

use std::mem::MaybeUninit;

use super::sync::{Arc, AtomicBool, AtomicUsize, Ordering, UnsafeCell, fence};

/// Keeps what it holds on cache lines of its own; 128 because adjacent lines are fetched in pairs.
#[derive(Debug)]
#[repr(align(128))]
struct Padded<T>(T);

/// What both halves share, through an `Arc` because either may be dropped first.
struct Shared<T> {
    /// Entries in `head..tail` (masked) are initialised; their number is a power of two.
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    /// The next entry to read; stored by the consumer only.
    head: Padded<AtomicUsize>,
    /// The next entry to be published; stored by the producer only.
    tail: Padded<AtomicUsize>,
}

impl<T> Shared<T> {
    #[inline]
    fn slot(&self, index: usize) -> &UnsafeCell<MaybeUninit<T>> {
        &self.slots[index & (self.slots.len() - 1)]
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let tail = self.tail.0.load(Ordering::Relaxed);
        let mut index = self.head.0.load(Ordering::Relaxed);
        while index != tail {
            self.slot(index).with_mut(|slot| {
                // SAFETY: both halves are gone, so nobody else can hold a pointer to the slot.
                let slot = unsafe { &mut *slot };
                // SAFETY: slots in head..tail are initialised and not yet read.
                unsafe { slot.assume_init_drop() };
            });
            index = index.wrapping_add(1);
        }
    }
}

/// Makes a ring that holds `entries` entries.
///
/// # Panics
///
/// If `entries` is not a power of two.
pub fn ring<T: Send>(entries: usize) -> (Producer<T>, Consumer<T>) {
    assert!(
        entries.is_power_of_two(),
        "a ring has a power of two of entries, not {entries}"
    );
    let shared = Arc::new(Shared {
        slots: (0..entries)
            .map(|_| UnsafeCell::new(MaybeUninit::uninit()))
            .collect(),
        head: Padded(AtomicUsize::new(0)),
        tail: Padded(AtomicUsize::new(0)),
    });
    let producer = Producer {
        shared: shared.clone(),
        tail: 0,
        published: 0,
        head_seen: 0,
    };
    let consumer = Consumer {
        shared,
        head: 0,
        tail_seen: 0,
    };
    (producer, consumer)
}

/// The writing half of a [`ring`].
pub struct Producer<T> {
    /// Shared with the one consumer.
    shared: Arc<Shared<T>>,
    /// The next slot to write; ahead of `published` by what is pushed and not yet published.
    tail: usize,
    /// What the consumer can see: the last value stored to the shared tail.
    published: usize,
    /// The consumer's index when last read; the true one is this or further.
    head_seen: usize,
}

impl<T: Send> Producer<T> {
    /// How many entries the ring holds.
    pub fn capacity(&self) -> usize {
        self.shared.slots.len()
    }

    /// How many entries are in the ring now, published or not; never less than the truth.
    pub fn occupied(&mut self) -> usize {
        self.head_seen = self.shared.head.0.load(Ordering::Acquire);
        self.tail.wrapping_sub(self.head_seen)
    }

    /// Puts one entry behind the others, or gives it back if the ring is full.
    ///
    /// The consumer sees it after the next [`publish`](Self::publish): push a batch, publish once.
    ///
    /// # Errors
    ///
    /// The entry itself, if the ring is full.
    #[inline]
    pub fn push(&mut self, entry: T) -> Result<(), T> {
        if self.tail.wrapping_sub(self.head_seen) == self.capacity()
            && self.occupied() == self.capacity()
        {
            return Err(entry);
        }
        self.shared.slot(self.tail).with_mut(|slot| {
            // SAFETY: tail - head < capacity, so the consumer has left this slot (its store of head
            // was read with Acquire) and enters it only after the next publish.
            unsafe { (*slot).write(entry) };
        });
        self.tail = self.tail.wrapping_add(1);
        Ok(())
    }

    /// Makes everything pushed so far visible to the consumer; says whether anything was new.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.published == self.tail {
            return false;
        }
        self.published = self.tail;
        // Release: the consumer that reads this tail also sees the slots written before it.
        self.shared.tail.0.store(self.tail, Ordering::Release);
        true
    }
}

impl<T> Drop for Producer<T> {
    fn drop(&mut self) {
        // What was pushed is handed over, so that the last owner of the ring drops it.
        self.shared.tail.0.store(self.tail, Ordering::Release);
    }
}

impl<T> std::fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer")
            .field("tail", &self.tail)
            .field("published", &self.published)
            .finish_non_exhaustive()
    }
}

/// The reading half of a [`ring`].
pub struct Consumer<T> {
    /// Shared with the one producer.
    shared: Arc<Shared<T>>,
    /// The next slot to read; equal to the shared head.
    head: usize,
    /// The producer's index when last read; the true one is this or further.
    tail_seen: usize,
}

impl<T: Send> Consumer<T> {
    /// Takes the oldest published entry.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.head == self.tail_seen {
            // Acquire: pairs with the Release of publish, so that the slots are seen written.
            self.tail_seen = self.shared.tail.0.load(Ordering::Acquire);
            if self.head == self.tail_seen {
                return None;
            }
        }
        let entry = self.shared.slot(self.head).with(|slot| {
            // SAFETY: head < tail, so the producer has written the slot and will not touch it
            // before head has passed it; it is read once, since head moves on below.
            unsafe { (*slot).assume_init_read() }
        });
        self.head = self.head.wrapping_add(1);
        // Release: the producer that reads this head may overwrite the slot only after our read.
        self.shared.head.0.store(self.head, Ordering::Release);
        Some(entry)
    }

    /// Whether nothing is published that was not yet taken.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.head == self.tail_seen && self.head == self.shared.tail.0.load(Ordering::Acquire)
    }
}

impl<T> std::fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer")
            .field("head", &self.head)
            .finish_non_exhaustive()
    }
}

/// Whether the reader of some rings sleeps and has to be woken.
///
/// ```text
///   sleeper                             waker
///   asleep = true                       publish to a ring
///   fence                               fence
///   rings empty? then sleep             asleep? then clear it and wake
/// ```
///
/// The two fences are what makes it safe: at least one side sees the other's store, so that either
/// the sleeper finds the entry or the waker finds the flag.
#[derive(Debug)]
pub struct SleepFlag(AtomicBool);

impl SleepFlag {
    /// Awake.
    pub fn new() -> Self {
        SleepFlag(AtomicBool::new(false))
    }

    /// Says that the reader is going to sleep; it must look at its rings once more before it does.
    #[inline]
    pub fn announce_sleep(&self) {
        // A swap where a store should do: with a store the model checker reports a lost wake-up,
        // and whether that is its approximation of fences or a real one is not settled. Beside a
        // sleep the swap costs nothing.
        self.0.swap(true, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    /// Says that the reader looks at its rings by itself again.
    #[inline]
    pub fn announce_awake(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// To be asked after publishing: true for exactly one waker per sleep, who then has to wake.
    #[inline]
    pub fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::AcqRel)
    }
}

impl Default for SleepFlag {
    fn default() -> Self {
        SleepFlag::new()
    }
}
