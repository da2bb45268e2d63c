//! Patterns of `LIKE`: `%` is any text, `_` one character. Does not know where the text comes from.
//!
//! One place to go back to is enough: when a later `%` has matched, no other match of an earlier one
//! could do better. So the cost is at most text × pattern, and both are bounded.

/// A pattern, taken apart.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Pattern {
    pieces: Box<[Piece]>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Piece {
    Byte(u8),
    /// One character of UTF-8.
    One,
    /// Any text.
    Many,
}

impl Pattern {
    /// `escape` takes its meaning from the character behind it.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn of(text: &str, escape: Option<char>) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut chars = text.chars();
        while let Some(char) = chars.next() {
            let literal = if Some(char) == escape {
                let next = chars
                    .next()
                    .filter(|next| matches!(next, '%' | '_') || Some(*next) == escape);
                next.ok_or_else(|| {
                    format!("'{char}' escapes %, _ and itself only, and something must follow it")
                })?
            } else {
                match char {
                    '%' => {
                        if pieces.last() != Some(&Piece::Many) {
                            pieces.push(Piece::Many);
                        }
                        continue;
                    }
                    '_' => {
                        pieces.push(Piece::One);
                        continue;
                    }
                    other => other,
                }
            };
            let mut bytes = [0; 4];
            let bytes = literal.encode_utf8(&mut bytes).bytes();
            pieces.extend(bytes.map(Piece::Byte));
        }
        Ok(Self {
            pieces: pieces.into(),
        })
    }

    /// Whether the whole text is like this.
    pub fn matches(&self, text: &[u8]) -> bool {
        let (mut at, mut piece) = (0, 0);
        // Where the last `%` is, and where in the text it ends for now.
        let mut back: Option<(usize, usize)> = None;
        loop {
            match self.pieces.get(piece) {
                Some(Piece::Many) => {
                    back = Some((piece, at));
                    piece += 1;
                    continue;
                }
                Some(Piece::Byte(byte)) if text.get(at) == Some(byte) => {
                    at += 1;
                    piece += 1;
                    continue;
                }
                Some(Piece::One) if at < text.len() => {
                    at = after_char(text, at);
                    piece += 1;
                    continue;
                }
                None if at == text.len() => return true,
                _ => {}
            }
            let Some((many, end)) = back.filter(|(_, end)| *end < text.len()) else {
                return false;
            };
            let end = after_char(text, end);
            back = Some((many, end));
            (at, piece) = (end, many + 1);
        }
    }
}

/// Behind the character at `at`. Bytes that are no UTF-8 count one by one, those that would follow
/// another one with it.
fn after_char(text: &[u8], at: usize) -> usize {
    let mut next = at + 1;
    while text.get(next).is_some_and(|byte| byte & 0xc0 == 0x80) {
        next += 1;
    }
    next
}

/// The same, said as plainly as possible.
#[cfg(test)]
pub(super) fn naive_like(pattern: &[char], text: &[char]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        (['%', after @ ..], _) if naive_like(after, text) => true,
        (['%', ..], [_, left @ ..]) => naive_like(pattern, left),
        (['_', after @ ..], [_, left @ ..]) => naive_like(after, left),
        ([char, after @ ..], [first, left @ ..]) => char == first && naive_like(after, left),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_short_pattern_agrees_with_the_naive_matcher() {
        let words = |alphabet: &[&str], longest: u32| -> Vec<String> {
            let mut all = vec![String::new()];
            let mut from = 0;
            for _ in 0..longest {
                let to = all.len();
                for at in from..to {
                    for letter in alphabet {
                        all.push(format!("{}{letter}", all[at]));
                    }
                }
                from = to;
            }
            all
        };
        let texts = words(&["a", "b", "ä"], 5);
        let mut matched = 0;
        for pattern in words(&["a", "ä", "%", "_"], 4) {
            let compiled = Pattern::of(&pattern, None).expect("no escape");
            let plain: Vec<char> = pattern.chars().collect();
            for text in &texts {
                let naive = naive_like(&plain, &text.chars().collect::<Vec<_>>());
                assert_eq!(
                    compiled.matches(text.as_bytes()),
                    naive,
                    "{pattern:?} {text:?}"
                );
                matched += u32::from(naive);
            }
        }
        assert!(matched > 5_000, "{matched}");
    }

    #[test]
    fn escapes() {
        let like = |pattern, text: &str| {
            Pattern::of(pattern, Some('\\')).map(|pattern| pattern.matches(text.as_bytes()))
        };
        assert_eq!(like("5\\%", "5%"), Ok(true));
        assert_eq!(like("5\\%", "50"), Ok(false));
        assert_eq!(like("a\\_b\\\\%", "a_b\\cd"), Ok(true));
        assert_eq!(like("a\\_b", "axb"), Ok(false));
        assert!(like("a\\", "a").is_err());
        assert!(like("\\a", "a").is_err());
    }

    /// Exponential in a matcher that tries every way.
    #[test]
    fn many_wildcards_cost_text_times_pattern() {
        let pattern = Pattern::of(&"a%".repeat(100), None).expect("no escape");
        assert!(!pattern.matches(&[b"a".repeat(99), b"b".repeat(3_900)].concat()));
        let pattern = Pattern::of(&format!("{}b", "%a_".repeat(80)), None).expect("no escape");
        assert!(!pattern.matches(&b"a".repeat(4_096)));
        assert!(!pattern.matches(b"\xff\x80\x80\xc3"), "no UTF-8, no panic");
    }
}
