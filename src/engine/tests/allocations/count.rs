//! The allocator of tests that count: how often a thread allocated, and what it holds. Does not know
//! what is measured.

#![allow(unsafe_code, dead_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Bytes an allocator typically needs beside each allocation.
const ALLOCATION_HEADER_BYTES: usize = 16;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<isize> = const { Cell::new(0) };
    static BYTES_MAX: Cell<isize> = const { Cell::new(0) };
}

/// Allocations of this thread so far.
pub fn count() -> u64 {
    COUNT.get()
}

/// Bytes this thread holds: allocated less freed, headers included.
pub fn bytes() -> isize {
    BYTES.get()
}

/// The most bytes this thread ever held at once.
pub fn bytes_max() -> isize {
    BYTES_MAX.get()
}

struct Counting;

fn note(gained: usize, lost: usize) {
    let bytes = BYTES.get() + gained as isize - lost as isize;
    BYTES.set(bytes);
    BYTES_MAX.set(BYTES_MAX.get().max(bytes));
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches only
// constant-initialised thread locals without destructors, which do not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        note(layout.size() + ALLOCATION_HEADER_BYTES, 0);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        note(0, layout.size() + ALLOCATION_HEADER_BYTES);
        // SAFETY: the pointer came from `alloc` above, that is from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // As if both blocks lived at once, which is the worst that can happen.
        note(size + ALLOCATION_HEADER_BYTES, 0);
        note(0, layout.size() + ALLOCATION_HEADER_BYTES);
        // SAFETY: the pointer came from `alloc` above, that is from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;
