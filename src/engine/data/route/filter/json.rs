//! Fields of a JSON body by their paths, all in one pass over its bytes.
//! Does not know what is done with them, and allocates nothing to read.
//!
//! The paths are a tree; the pass keeps the node that the current value has, or none, and passes over
//! what no path leads to. A body is read strictly, to its last byte: what is not JSON, is longer than
//! [`FILTER_BODY_BYTES_MAX`] or nests deeper than [`DEPTH_MAX`], has no fields. Of two fields with one
//! name the first counts, as with headers.

use ringpost_wire::limits::FILTER_BODY_BYTES_MAX;

use super::value::Fact;

/// Deepest nesting of objects and arrays.
pub(super) const DEPTH_MAX: usize = 32;
const NONE: u32 = u32::MAX;
const ROOT: u32 = 0;

/// The paths that bindings ask for.
pub(super) struct Paths {
    nodes: Vec<Node>,
    free: Vec<u32>,
    /// Counts bodies.
    mark: u64,
}

struct Node {
    /// In order of names.
    children: Vec<(Box<[u8]>, u32)>,
    parent: u32,
    /// Where the field's value is noted, while bindings use it.
    slot: u32,
    uses: u32,
    /// The last body that had this field.
    mark: u64,
}

impl Node {
    const fn new(parent: u32) -> Self {
        Self {
            children: Vec::new(),
            parent,
            slot: NONE,
            uses: 0,
            mark: 0,
        }
    }
}

#[derive(Clone, Copy)]
struct Frame {
    node: u32,
    is_array: bool,
    index: u32,
}

impl Paths {
    pub fn new() -> Self {
        Self {
            nodes: vec![Node::new(NONE)],
            free: Vec::new(),
            mark: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.nodes[ROOT as usize].children.is_empty()
    }

    /// The slot of a path, used once more; `fresh` gives one if it has none.
    pub fn take(&mut self, path: &[Box<[u8]>], fresh: impl FnOnce() -> u32) -> u32 {
        let mut at = ROOT;
        for name in path {
            let children = &self.nodes[at as usize].children;
            at = match children.binary_search_by(|(own, _)| own.cmp(name)) {
                Ok(found) => children[found].1,
                Err(place) => {
                    let child = self.free.pop().unwrap_or_else(|| {
                        self.nodes.push(Node::new(NONE));
                        self.nodes.len() as u32 - 1
                    });
                    self.nodes[child as usize] = Node::new(at);
                    let children = &mut self.nodes[at as usize].children;
                    children.insert(place, (name.clone(), child));
                    child
                }
            };
        }
        let node = &mut self.nodes[at as usize];
        node.uses += 1;
        if node.slot == NONE {
            node.slot = fresh();
        }
        node.slot
    }

    /// Uses a path once less; its slot.
    pub fn give_back(&mut self, path: &[Box<[u8]>]) -> u32 {
        let mut at = ROOT;
        for name in path {
            at = self.child(at, name);
            assert_ne!(at, NONE, "the path is used");
        }
        let node = &mut self.nodes[at as usize];
        let slot = node.slot;
        node.uses -= 1;
        if node.uses > 0 {
            return slot;
        }
        node.slot = NONE;
        while at != ROOT {
            let node = &self.nodes[at as usize];
            if node.uses > 0 || !node.children.is_empty() {
                break;
            }
            let parent = node.parent;
            self.nodes[parent as usize]
                .children
                .retain(|(_, child)| *child != at);
            self.free.push(at);
            at = parent;
        }
        slot
    }

    /// Notes the values of all paths that the body has, or none if it has no fields. Texts with
    /// escapes go to `scratch`, which must have room for a body.
    pub fn read<'m>(&mut self, body: &'m [u8], scratch: &mut Vec<u8>, values: &mut [Fact<'m>]) {
        self.mark += 1;
        scratch.clear();
        let is_read = body.len() <= FILTER_BODY_BYTES_MAX
            && std::str::from_utf8(body).is_ok()
            && self.scan(body, scratch, values).is_some();
        if !is_read {
            for node in self.nodes.iter().filter(|node| node.slot != NONE) {
                values[node.slot as usize] = Fact::Null;
            }
        }
    }

    fn child(&self, node: u32, name: &[u8]) -> u32 {
        if node == NONE {
            return NONE;
        }
        let children = &self.nodes[node as usize].children;
        children
            .binary_search_by(|(own, _)| (**own).cmp(name))
            .map_or(NONE, |at| children[at].1)
    }

    fn element(&self, node: u32, index: u32) -> u32 {
        if node == NONE || self.nodes[node as usize].children.is_empty() {
            return NONE;
        }
        let mut digits = [0; 10];
        let mut at = digits.len();
        let mut rest = index;
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.child(node, &digits[at..])
    }

    /// The node, if this is its first value in the body.
    fn first(&mut self, node: u32) -> u32 {
        match self.nodes.get_mut(node as usize) {
            Some(found) if found.mark != self.mark => {
                found.mark = self.mark;
                node
            }
            _ => NONE,
        }
    }

    fn note<'m>(&self, node: u32, fact: Fact<'m>, values: &mut [Fact<'m>]) {
        if let Some(node) = self.nodes.get(node as usize)
            && node.slot != NONE
        {
            values[node.slot as usize] = fact;
        }
    }

    fn scan<'m>(
        &mut self,
        body: &'m [u8],
        scratch: &mut Vec<u8>,
        values: &mut [Fact<'m>],
    ) -> Option<()> {
        const BARE: Frame = Frame {
            node: NONE,
            is_array: false,
            index: 0,
        };
        let mut frames = [BARE; DEPTH_MAX];
        let mut depth = 0;
        let mut node = ROOT;
        let mut at = blank(body, 0);
        loop {
            // A value.
            let first = *body.get(at)?;
            if matches!(first, b'{' | b'[') {
                let is_array = first == b'[';
                self.note(node, Fact::Other, values);
                *frames.get_mut(depth)? = Frame {
                    node,
                    is_array,
                    index: 0,
                };
                depth += 1;
                at = blank(body, at + 1);
                let end = if is_array { b']' } else { b'}' };
                if *body.get(at)? != end {
                    (node, at) = self.next(body, at, frames[depth - 1], scratch)?;
                    continue;
                }
            } else {
                let (fact, after) = self.scalar(body, at, node != NONE, scratch)?;
                self.note(node, fact, values);
                at = after;
            }
            // What ends with it, and what follows.
            loop {
                if depth > 0 && is_end(body, at, frames[depth - 1]) {
                    depth -= 1;
                    at += 1;
                    continue;
                }
                at = blank(body, at);
                if depth == 0 {
                    return (at == body.len()).then_some(());
                }
                let frame = &mut frames[depth - 1];
                if is_end(body, at, *frame) {
                    continue;
                }
                if *body.get(at)? != b',' {
                    return None;
                }
                frame.index += 1;
                let frame = *frame;
                at = blank(body, at + 1);
                (node, at) = self.next(body, at, frame, scratch)?;
                break;
            }
        }
    }

    /// The node of the next value of an array or object, and where that begins.
    fn next(
        &mut self,
        body: &[u8],
        at: usize,
        frame: Frame,
        scratch: &mut Vec<u8>,
    ) -> Option<(u32, usize)> {
        if frame.is_array {
            let node = self.element(frame.node, frame.index);
            return Some((self.first(node), at));
        }
        let (end, is_escaped) = string(body, at)?;
        let raw = &body[at + 1..end - 1];
        let node = if is_escaped && frame.node != NONE {
            let start = scratch.len();
            unescape(raw, scratch);
            let node = self.child(frame.node, &scratch[start..]);
            scratch.truncate(start);
            node
        } else {
            self.child(frame.node, raw)
        };
        let node = self.first(node);
        let at = blank(body, end);
        (*body.get(at)? == b':').then(|| (node, blank(body, at + 1)))
    }

    /// A value that is no array or object, and where it ends; its text only if somebody wants it.
    fn scalar<'m>(
        &self,
        body: &'m [u8],
        at: usize,
        is_wanted: bool,
        scratch: &mut Vec<u8>,
    ) -> Option<(Fact<'m>, usize)> {
        let word = |word: &[u8], fact| {
            body[at..]
                .starts_with(word)
                .then(|| (fact, at + word.len()))
        };
        match *body.get(at)? {
            b'"' => {
                let (end, is_escaped) = string(body, at)?;
                let raw = &body[at + 1..end - 1];
                if !is_escaped || !is_wanted {
                    return Some((Fact::Text(raw), end));
                }
                let start = scratch.len() as u32;
                unescape(raw, scratch);
                let fact = Fact::Unescaped(start, scratch.len() as u32);
                Some((fact, end))
            }
            b't' => word(b"true", Fact::Bool(true)),
            b'f' => word(b"false", Fact::Bool(false)),
            b'n' => word(b"null", Fact::Null),
            _ => number(body, at),
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }
}

fn is_end(body: &[u8], at: usize, frame: Frame) -> bool {
    body.get(at) == Some(if frame.is_array { &b']' } else { &b'}' })
}

fn blank(body: &[u8], mut at: usize) -> usize {
    while matches!(body.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

/// Behind the string that starts at `at`, and whether there are escapes in it.
fn string(body: &[u8], at: usize) -> Option<(usize, bool)> {
    if *body.get(at)? != b'"' {
        return None;
    }
    let mut at = at + 1;
    let mut is_escaped = false;
    loop {
        match *body.get(at)? {
            b'"' => return Some((at + 1, is_escaped)),
            b'\\' => {
                is_escaped = true;
                at = escape(body, at)?.1;
            }
            0..=0x1f => return None,
            _ => at += 1,
        }
    }
}

/// The character of the escape that starts at `at`, and where that ends.
fn escape(body: &[u8], at: usize) -> Option<(char, usize)> {
    let char = match *body.get(at + 1)? {
        char @ (b'"' | b'\\' | b'/') => char::from(char),
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => {
            let high = hex(body, at + 2)?;
            if !(0xd800..0xdc00).contains(&high) {
                return Some((char::from_u32(high)?, at + 6));
            }
            let is_pair = body.get(at + 6..at + 8)? == b"\\u";
            let low = hex(body, at + 8).filter(|low| is_pair && (0xdc00..0xe000).contains(low))?;
            let both = 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00);
            return Some((char::from_u32(both)?, at + 12));
        }
        _ => return None,
    };
    Some((char, at + 2))
}

fn hex(body: &[u8], at: usize) -> Option<u32> {
    body.get(at..at + 4)?.iter().try_fold(0, |number, digit| {
        Some(number << 4 | char::from(*digit).to_digit(16)?)
    })
}

/// Appends a string whose escapes were checked; never longer than the string.
fn unescape(raw: &[u8], scratch: &mut Vec<u8>) {
    let mut at = 0;
    while let Some(byte) = raw.get(at) {
        if *byte == b'\\' {
            let (char, after) = escape(raw, at).expect("it was checked");
            let mut bytes = [0; 4];
            scratch.extend_from_slice(char.encode_utf8(&mut bytes).as_bytes());
            at = after;
        } else {
            scratch.push(*byte);
            at += 1;
        }
    }
}

fn number(body: &[u8], start: usize) -> Option<(Fact<'static>, usize)> {
    let digits = |at: usize| {
        body[at..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count()
    };
    let mut at = start + usize::from(body.get(start) == Some(&b'-'));
    let whole = digits(at.min(body.len()));
    if whole == 0 || (whole > 1 && body[at] == b'0') {
        return None;
    }
    at += whole;
    let mut is_whole = true;
    if body.get(at) == Some(&b'.') {
        is_whole = false;
        let behind = digits(at + 1);
        if behind == 0 {
            return None;
        }
        at += 1 + behind;
    }
    if matches!(body.get(at), Some(b'e' | b'E')) {
        is_whole = false;
        at += 1 + usize::from(matches!(body.get(at + 1), Some(b'+' | b'-')));
        let power = digits(at.min(body.len()));
        if power == 0 {
            return None;
        }
        at += power;
    }
    let text = std::str::from_utf8(&body[start..at]).ok()?;
    let whole = if is_whole { text.parse().ok() } else { None };
    let fact = match whole {
        Some(number) => Fact::Int(number),
        None => Fact::of_float(text.parse().ok()?),
    };
    Some((fact, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Vec<Box<[u8]>> {
        text.split('.').map(|name| name.as_bytes().into()).collect()
    }

    /// What the paths say, as text.
    fn read(body: &str, paths: &[&str]) -> Vec<String> {
        let mut tree = Paths::new();
        let mut slots = 0;
        for asked in paths {
            tree.take(&path(asked), || {
                slots += 1;
                slots - 1
            });
        }
        let mut values = vec![Fact::Null; slots as usize];
        let mut scratch = Vec::with_capacity(FILTER_BODY_BYTES_MAX);
        tree.read(body.as_bytes(), &mut scratch, &mut values);
        assert_eq!(scratch.capacity(), FILTER_BODY_BYTES_MAX);
        let said = values.iter().map(|fact| match fact {
            Fact::Null | Fact::Missing => "null".to_owned(),
            Fact::Bool(value) => value.to_string(),
            Fact::Int(value) => value.to_string(),
            Fact::Float(value) => format!("{value:?}"),
            Fact::Text(text) => format!("'{}'", String::from_utf8_lossy(text)),
            Fact::Unescaped(start, end) => {
                let text = &scratch[*start as usize..*end as usize];
                format!("'{}'", String::from_utf8_lossy(text))
            }
            Fact::Other => "other".to_owned(),
        });
        let said = said.collect();
        for asked in paths {
            tree.give_back(&path(asked));
        }
        assert_eq!(tree.len(), 1, "nothing is left behind");
        said
    }

    #[test]
    fn fields_are_found_by_their_paths() {
        let body = r#" {"a": {"b": 1, "c": [10, {"d": "x"}, -2.5e1]}, "b": null, "t": true,
            "é\u0065": "\ud83d\ude00\n\"", "n": 12345678901234567890, "skip": [[{}], {"a": 9}]} "#;
        for (path, expect) in [
            ("a", "other"),
            ("a.b", "1"),
            ("a.c", "other"),
            ("a.c.0", "10"),
            ("a.c.1.d", "'x'"),
            ("a.c.2", "-25.0"),
            ("a.c.3", "null"),
            ("a.c.00", "null"),
            ("b", "null"),
            ("b.c", "null"),
            ("t", "true"),
            ("ée", "'😀\n\"'"),
            ("n", "1.2345678901234567e19"),
            ("skip.1.a", "9"),
            ("x", "null"),
        ] {
            assert_eq!(read(body, &[path]), [expect], "{path}");
        }
        let all = read(body, &["a.b", "a.c.0", "t", "ée", "a"]);
        assert_eq!(all, ["1", "10", "true", "'😀\n\"'", "other"]);
        assert_eq!(read("[1,[2,3]]", &["1.1", "0"]), ["3", "1"]);
        assert_eq!(read("7", &["a"]), ["null"]);
        assert_eq!(read("", &["a"]), ["null"]);
    }

    #[test]
    fn of_two_fields_with_one_name_the_first_counts() {
        let body = r#"{"a": {"b": 1}, "a": 2, "a": {"b": 3, "c": 4}}"#;
        assert_eq!(read(body, &["a", "a.b", "a.c"]), ["other", "1", "null"]);
    }

    #[test]
    fn what_is_not_json_has_no_fields() {
        let sound = r#"{"a":1,"b":[true,"\u00e4"]}"#;
        assert_eq!(read(sound, &["a"]), ["1"]);
        for at in 0..sound.len() {
            if sound.is_char_boundary(at) {
                assert_eq!(read(&sound[..at], &["a"]), ["null"], "cut at {at}");
            }
        }
        for wrong in [
            r#"{"a":1}x"#,
            r#"{"a":1,}"#,
            r#"{"a":1 "b":2}"#,
            r#"{"a":1,"b":01}"#,
            r#"{"a":1,"b":.5}"#,
            r#"{"a":1,"b":1.}"#,
            r#"{"a":1,"b":1e}"#,
            r#"{"a":1,"b":-}"#,
            r#"{"a":1,"b":+1}"#,
            r#"{"a":1,"b":tru}"#,
            r#"{"a":1,"b":nul}"#,
            r#"{"a":1,"b":"\x"}"#,
            r#"{"a":1,"b":"\ud800"}"#,
            r#"{"a":1,"b":"\udc00"}"#,
            r#"{"a":1,"b":"\ud800A"}"#,
            "{\"a\":1,\"b\":\"\n\"}",
            r#"{"a":1,"b":]}"#,
            r#"{"a":1]"#,
            r#"{"a":1,b:2}"#,
            r#"{"a" 1}"#,
            "{1:2}",
        ] {
            assert_eq!(read(wrong, &["a"]), ["null"], "{wrong}");
        }
    }

    #[test]
    fn bounds() {
        let nested = |depth: usize| {
            let inner = depth - 1;
            format!(
                "{{\"a\":1,\"b\":{}{}}}",
                "[".repeat(inner),
                "]".repeat(inner)
            )
        };
        assert_eq!(read(&nested(DEPTH_MAX), &["a"]), ["1"]);
        assert_eq!(read(&nested(DEPTH_MAX + 1), &["a"]), ["null"]);
        let long = |bytes: usize| format!("{{\"a\":1{}}}", " ".repeat(bytes - 7));
        assert_eq!(read(&long(FILTER_BODY_BYTES_MAX), &["a"]), ["1"]);
        assert_eq!(read(&long(FILTER_BODY_BYTES_MAX + 1), &["a"]), ["null"]);
    }

    #[test]
    fn random_bytes_never_panic() {
        let mut state = 1_u64;
        let alphabet = b"{}[]\",:\\u0e1-+.tfn ad\xc3\xa4\x01";
        for round in 0..200_000_u32 {
            let mut body = Vec::new();
            for _ in 0..round % 24 {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                body.push(alphabet[(state >> 33) as usize % alphabet.len()]);
            }
            let mut paths = Paths::new();
            paths.take(&path("a.0.d"), || 0);
            let mut values = [Fact::Null];
            paths.read(&body, &mut Vec::new(), &mut values);
        }
    }
}
