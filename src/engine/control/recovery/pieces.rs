//! The pieces of a large message, as a journal tells of them. Does not know where they lie.

use std::collections::BTreeMap;

use ringpost_wire::FRAGMENT_BYTES_MAX;

/// Pieces that were found of the message that has a place in a queue, by number, in the order of the
/// journal; moved ones come in any order. `T` is what is kept of each.
#[derive(Clone, Debug)]
pub(crate) struct Pieces<T> {
    message_bytes: u32,
    found: BTreeMap<u32, T>,
}

impl<T> Default for Pieces<T> {
    fn default() -> Self {
        Self {
            message_bytes: 0,
            found: BTreeMap::new(),
        }
    }
}

impl<T> Pieces<T> {
    /// A piece of a message of so many bytes. Returns whether it is the first of another message than
    /// before: that one has had this place, and never became whole.
    pub(crate) fn note(&mut self, number: u32, message_bytes: u32, what: T) -> bool {
        let is_another = self.message_bytes != message_bytes;
        if is_another {
            self.found.clear();
            self.message_bytes = message_bytes;
        }
        self.found.insert(number, what);
        is_another
    }

    /// Whether none is missing.
    pub(crate) fn is_whole(&self) -> bool {
        let count = self.message_bytes.div_ceil(FRAGMENT_BYTES_MAX as u32);
        let last = self.found.last_key_value().map(|(last, _)| *last);
        self.found.len() as u32 == count && last.is_some_and(|last| last + 1 == count)
    }

    /// Bytes of the message.
    pub(crate) const fn message_bytes(&self) -> u32 {
        self.message_bytes
    }

    /// What was kept of each, by number.
    pub(crate) fn into_found(self) -> impl Iterator<Item = T> {
        self.found.into_values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_whole_whatever_had_its_place_before() {
        let piece = FRAGMENT_BYTES_MAX as u32;
        let mut pieces = Pieces::default();
        for number in 0..4 {
            pieces.note(number, 6 * piece, ());
        }
        assert!(!pieces.is_whole());
        pieces.note(1, 2 * piece, ());
        assert!(!pieces.is_whole());
        pieces.note(0, 2 * piece, ());
        assert!(pieces.is_whole());
        // Of the other three, one was there before.
        pieces.note(0, 3 * piece, ());
        pieces.note(2, 3 * piece, ());
        assert!(!pieces.is_whole());
    }
}
