//! Takes a fuzzer's bytes apart into choices. An input that ends early goes on with zeros, so that
//! every input means something. Does not know what is chosen.

/// The rest of an input.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// All of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether nothing is left.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// One byte.
    pub const fn byte(&mut self) -> u8 {
        match self.rest.split_first() {
            Some((byte, rest)) => {
                self.rest = rest;
                *byte
            }
            None => 0,
        }
    }

    /// Two bytes.
    pub fn two(&mut self) -> u16 {
        u16::from(self.byte()) | u16::from(self.byte()) << 8
    }

    /// Mostly a small number, in one byte; 255 is followed by all eight.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            u8::MAX => (0..8).fold(0, |number, at| number | u64::from(self.byte()) << (8 * at)),
            small => u64::from(small),
        }
    }

    /// Up to `count` bytes.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        bytes
    }

    /// A length in one byte, and as many bytes as are there.
    pub fn sized(&mut self) -> &'a [u8] {
        let count = usize::from(self.byte());
        self.bytes(count)
    }

    /// All that is left.
    pub const fn all(&mut self) -> &'a [u8] {
        let rest = self.rest;
        self.rest = &[];
        rest
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_zero() {
        let mut input = Input::new(&[3, 1, 2]);
        assert_eq!(input.sized(), [1, 2]);
        assert!(input.is_empty());
        assert_eq!((input.byte(), input.two(), input.number()), (0, 0, 0));
        let mut input = Input::new(&[255, 1, 0, 0, 0, 0, 0, 0, 0x80, 7]);
        assert_eq!(input.number(), 1 << 63 | 1);
        assert_eq!(input.pick(&[1, 2, 3]), 2);
    }
}
