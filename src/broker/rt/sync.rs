//! The atomics and the cell that [`super::ring`] is written against: the standard ones. It does not
//! know the ring; `tests/ring_model.rs` puts loom's in this place and model-checks the same source.
#![expect(
    unsafe_code,
    reason = "an UnsafeCell is shared between exactly two threads"
)]

pub(super) use std::sync::Arc;
pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

/// `std::cell::UnsafeCell` with the closure interface of loom's cell.
#[derive(Debug)]
pub(super) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

// SAFETY: the cell hands out raw pointers only; the one who dereferences them (the ring) upholds
// that a slot belongs to one side at a time, and T crosses threads, hence T: Send.
unsafe impl<T: Send> Sync for UnsafeCell<T> {}

impl<T> UnsafeCell<T> {
    /// Wraps a value.
    pub(super) const fn new(value: T) -> Self {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    /// Gives a pointer for reading.
    #[inline]
    pub(super) fn with<R>(&self, access: impl FnOnce(*const T) -> R) -> R {
        access(self.0.get())
    }

    /// Gives a pointer for writing.
    #[inline]
    pub(super) fn with_mut<R>(&self, access: impl FnOnce(*mut T) -> R) -> R {
        access(self.0.get())
    }
}
