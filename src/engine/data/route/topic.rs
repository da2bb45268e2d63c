//! Topic bindings: patterns of words, matched against routing keys.
//! Does not know exchanges, only one set of patterns.
//!
//! Words are what dots separate, and may be empty: `a..b` is three words, `a.` two, `.` two, and the
//! empty key is no word at all. In a pattern `*` is exactly one word (also an empty one), `#` any
//! number of words, none included; a `*` or `#` beside other characters in a word is that character.
//!
//! The patterns are a trie, and the trie is run as an automaton: the set of nodes that the words so
//! far can have led to, each at most once. So `#.#.#.#` costs no more than its nodes:
//!
//! ```text
//! patterns a.b  a.#  #.b     root ─ a ─┬ b •        key a.b     after 0 words: root, #
//!                              │       └ # •                    after a:       a, a.#, #
//!                              └ # ─── b •                      after b:       a.b, a.#, #, #.b
//! ```
//!
//! A literal word costs one table look-up per node of the set however many children the node has;
//! worst case is words × nodes, reached only by patterns that all begin with `#` and all still match.

use super::{Bound, Hop};
use crate::data::table::Table;

/// No node.
const NONE: u32 = u32::MAX;
/// The empty pattern's node, always there.
const ROOT: u32 = 0;

pub(super) struct Trie {
    nodes: Vec<Node>,
    free: Vec<u32>,
    /// Children by literal word; those by `*` and `#` are in the node.
    edges: Table<(u32, u32), u32>,
    words: Words,
    /// Stamp of the set that is being built; a node of the same mark is in it already.
    mark: u64,
    /// The set of nodes before and after a word; both have room for every node.
    before: Vec<u32>,
    after: Vec<u32>,
}

struct Node {
    /// What is bound with exactly this pattern.
    bound: Bound,
    /// Last set that the node was put into.
    mark: u64,
    parent: u32,
    /// How the parent leads here: a word, or [`STAR`] or [`HASH`].
    word: u32,
    /// Child by `*`.
    star: u32,
    /// Child by `#`.
    hash: u32,
    /// Children by a literal word.
    literals: u32,
}

const STAR: u32 = u32::MAX - 1;
const HASH: u32 = u32::MAX - 2;

/// Every literal word of the patterns, numbered, so that a node's edge is a pair of integers and a
/// word of a key is hashed once.
#[derive(Default)]
struct Words {
    numbers: Table<Box<[u8]>, u32>,
    /// Edges that use the word of each number, and its bytes.
    uses: Vec<(u32, Box<[u8]>)>,
    free: Vec<u32>,
}

impl Trie {
    pub fn new() -> Self {
        let mut trie = Self {
            nodes: Vec::new(),
            free: Vec::new(),
            edges: Table::new(),
            words: Words::default(),
            mark: 0,
            before: Vec::new(),
            after: Vec::new(),
        };
        let root = trie.add_node(NONE, NONE);
        assert_eq!(root, ROOT);
        trie
    }

    /// Calls `found` with the queues of every pattern that matches; each pattern once.
    pub fn matches(&mut self, key: &[u8], mut found: impl FnMut(&Bound)) {
        let mut set = std::mem::take(&mut self.before);
        let mut next = std::mem::take(&mut self.after);
        set.clear();
        self.mark += 1;
        self.put(&mut set, ROOT);
        for word in words(key) {
            next.clear();
            self.mark += 1;
            let number = self.words.number(word);
            for &index in &set {
                let node = &self.nodes[index as usize];
                let (star, loops) = (node.star, node.word == HASH);
                let literal = match number {
                    Some(number) if node.literals > 0 => self.edges.get(&(index, number)).copied(),
                    _ => None,
                };
                if loops {
                    self.put(&mut next, index);
                }
                self.put(&mut next, star);
                self.put(&mut next, literal.unwrap_or(NONE));
            }
            std::mem::swap(&mut set, &mut next);
            if set.is_empty() {
                break;
            }
        }
        for &index in &set {
            let bound = &self.nodes[index as usize].bound;
            if !bound.is_empty() {
                found(bound);
            }
        }
        self.before = set;
        self.after = next;
    }

    /// Puts a node, and what `#` for no words leads on to, into the set being built.
    fn put(&mut self, set: &mut Vec<u32>, mut index: u32) {
        while index != NONE {
            let node = &mut self.nodes[index as usize];
            if node.mark == self.mark {
                return;
            }
            node.mark = self.mark;
            set.push(index);
            index = match crate::mutant!(HashNeedsAWord) {
                true => NONE,
                false => node.hash,
            };
        }
    }

    pub fn bind(&mut self, pattern: &[u8], hop: Hop) {
        let mut index = ROOT;
        for word in words(pattern) {
            index = match word {
                b"*" => self.wild_child(index, STAR),
                b"#" => self.wild_child(index, HASH),
                _ => self.literal_child(index, word),
            };
        }
        self.nodes[index as usize].bound.add(hop);
    }

    /// Unbinds; nodes that lead to no pattern any more are given back.
    pub fn unbind(&mut self, pattern: &[u8], hop: Hop) {
        let mut index = ROOT;
        for word in words(pattern) {
            let node = &self.nodes[index as usize];
            index = match word {
                b"*" => node.star,
                b"#" => node.hash,
                _ => {
                    let number = self.words.number(word).expect("the binding exists");
                    self.edges.get(&(index, number)).copied().unwrap_or(NONE)
                }
            };
            assert_ne!(index, NONE, "the binding exists");
        }
        self.nodes[index as usize].bound.remove(hop);
        while index != ROOT && self.nodes[index as usize].is_bare() {
            index = self.remove_leaf(index);
        }
    }

    fn wild_child(&mut self, parent: u32, kind: u32) -> u32 {
        let node = &self.nodes[parent as usize];
        let child = if kind == STAR { node.star } else { node.hash };
        if child != NONE {
            return child;
        }
        let child = self.add_node(parent, kind);
        let node = &mut self.nodes[parent as usize];
        let place = match kind {
            STAR => &mut node.star,
            _ => &mut node.hash,
        };
        *place = child;
        child
    }

    fn literal_child(&mut self, parent: u32, word: &[u8]) -> u32 {
        let number = self.words.number(word);
        let child = number.and_then(|number| self.edges.get(&(parent, number)));
        if let Some(child) = child {
            return *child;
        }
        let number = self.words.take(word);
        let child = self.add_node(parent, number);
        self.edges.insert((parent, number), child);
        self.nodes[parent as usize].literals += 1;
        child
    }

    fn add_node(&mut self, parent: u32, word: u32) -> u32 {
        let node = Node {
            bound: Bound::default(),
            mark: 0,
            parent,
            word,
            star: NONE,
            hash: NONE,
            literals: 0,
        };
        if let Some(index) = self.free.pop() {
            self.nodes[index as usize] = node;
            return index;
        }
        let index = u32::try_from(self.nodes.len()).expect("bindings are limited");
        assert!(index < HASH);
        self.nodes.push(node);
        // Matching never allocates: a set holds each node at most once.
        for set in [&mut self.before, &mut self.after] {
            set.clear();
            set.reserve(self.nodes.len());
        }
        index
    }

    /// Removes a node without queues and children; its parent.
    fn remove_leaf(&mut self, index: u32) -> u32 {
        let Node { parent, word, .. } = self.nodes[index as usize];
        let node = &mut self.nodes[parent as usize];
        match word {
            STAR => node.star = NONE,
            HASH => node.hash = NONE,
            number => {
                node.literals -= 1;
                let edge = self.edges.remove(&(parent, number));
                assert_eq!(edge, Some(index));
                self.words.give_back(number);
            }
        }
        self.free.push(index);
        parent
    }

    #[cfg(test)]
    pub fn nodes(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    #[cfg(test)]
    pub fn words(&self) -> usize {
        assert_eq!(
            self.words.numbers.len(),
            self.words.uses.len() - self.words.free.len()
        );
        self.words.numbers.len()
    }
}

impl Node {
    fn is_bare(&self) -> bool {
        self.bound.is_empty() && self.literals == 0 && self.star == NONE && self.hash == NONE
    }
}

impl Words {
    fn number(&self, word: &[u8]) -> Option<u32> {
        self.numbers.get(word).copied()
    }

    /// The number of a word, used once more.
    fn take(&mut self, word: &[u8]) -> u32 {
        if let Some(number) = self.number(word) {
            self.uses[number as usize].0 += 1;
            return number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.uses.push((0, Box::default()));
            self.uses.len() as u32 - 1
        });
        assert!(number < HASH, "words are limited");
        self.uses[number as usize] = (1, word.into());
        self.numbers.insert(word.into(), number);
        number
    }

    fn give_back(&mut self, number: u32) {
        let (uses, word) = &mut self.uses[number as usize];
        *uses -= 1;
        if *uses == 0 {
            self.numbers.remove(&**word);
            *word = Box::default();
            self.free.push(number);
        }
    }
}

/// The words of a key or pattern; the empty one has none.
fn words(key: &[u8]) -> impl Iterator<Item = &[u8]> {
    key.split(|byte| *byte == b'.').filter(|_| !key.is_empty())
}

/// Whether `pattern` matches `key`, said as plainly as possible: what the trie is tested against.
#[cfg(test)]
pub(crate) fn naive_match(pattern: &[u8], key: &[u8]) -> bool {
    fn rest(pattern: &[&[u8]], key: &[&[u8]]) -> bool {
        match (pattern, key) {
            ([], []) => true,
            ([b"#", after @ ..], _) if rest(after, key) => true,
            ([b"#", ..], [_, left @ ..]) => rest(pattern, left),
            ([b"*", after @ ..], [_, left @ ..]) => rest(after, left),
            ([word, after @ ..], [first, left @ ..]) => word == first && rest(after, left),
            _ => false,
        }
    }
    rest(
        &words(pattern).collect::<Vec<_>>(),
        &words(key).collect::<Vec<_>>(),
    )
}

#[cfg(test)]
mod tests {
    use super::super::Destination;
    use super::*;
    use ringpost_wire::ids::{PartitionId, QueueId};

    fn queue(number: u32) -> Hop {
        Hop::Queue(Destination {
            queue: QueueId(number),
            partition: PartitionId(0),
            durable: true,
        })
    }

    fn found(trie: &mut Trie, key: &[u8]) -> Vec<u32> {
        let mut queues = Vec::new();
        trie.matches(key, |bound| {
            queues.extend(bound.queues.iter().map(|(queue, _)| queue.queue.0));
        });
        queues.sort_unstable();
        queues
    }

    fn check(pattern: &str, matching: &[&str], other: &[&str]) {
        let mut trie = Trie::new();
        trie.bind(pattern.as_bytes(), queue(1));
        for (keys, expect) in [(matching, true), (other, false)] {
            for key in keys {
                let naive = naive_match(pattern.as_bytes(), key.as_bytes());
                assert_eq!(naive, expect, "{pattern:?} {key:?} naive");
                let found = found(&mut trie, key.as_bytes());
                assert_eq!(found.len(), usize::from(expect), "{pattern:?} {key:?}");
            }
        }
    }

    #[test]
    fn the_rules() {
        check("a.b.c", &["a.b.c"], &["", "a.b", "a.b.c.d", "a.b.c."]);
        check("a.*.c", &["a.b.c", "a..c"], &["a.c", "a.b.b.c"]);
        check("*", &["a", "#", "*", "ab"], &["", ".", "a.b"]);
        check("*.*", &[".", "a.", ".a", "a.b"], &["", "a", "a.b.c"]);
        check("#", &["", ".", "a", "a.b.c"], &[]);
        check("a.#", &["a", "a.", "a.b", "a.b.c"], &["", "b", "ab"]);
        check("#.a", &["a", ".a", "b.a", "a.a"], &["", "a.b", "a."]);
        check("#.*", &["a", ".", "a.b.c"], &[""]);
        check("#.#", &["", "a", "a.b"], &[]);
        check("*.#.*", &["a.b", "a.b.c", "."], &["", "a"]);
        check("#.b.#", &["b", "a.b", "b.a", "a.b.a"], &["", "a", "bb"]);
        check("", &[""], &["a", "."]);
        check("..", &[".."], &["", ".", "..."]);
        check("a#.b*", &["a#.b*"], &["a.b", "ax.bx", "a.x.bx"]);
        check("#.#.#.a.#.#", &["a", "x.a.y", "a.a"], &["", "x.y"]);
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) % limit
        }

        fn text(&mut self, words: &[&str]) -> Vec<u8> {
            let count = self.below(7);
            let picked: Vec<&str> = (0..count)
                .map(|_| words[self.below(words.len() as u64) as usize])
                .collect();
            picked.join(".").into_bytes()
        }
    }

    #[test]
    fn a_million_pairs_agree_with_the_naive_matcher() {
        let mut random = Random(1);
        let mut matched = 0;
        for _ in 0..100 {
            let mut trie = Trie::new();
            let patterns: Vec<Vec<u8>> = (0..100)
                .map(|_| random.text(&["a", "b", "", "*", "#", "#", "cc"]))
                .collect();
            for (number, pattern) in patterns.iter().enumerate() {
                trie.bind(pattern, queue(number as u32));
            }
            for _ in 0..100 {
                let key = random.text(&["a", "b", "", "cc", "d"]);
                let expect: Vec<u32> = (0..patterns.len() as u32)
                    .filter(|number| naive_match(&patterns[*number as usize], &key))
                    .collect();
                matched += expect.len();
                assert_eq!(found(&mut trie, &key), expect, "{key:?}");
            }
            for (number, pattern) in patterns.iter().enumerate() {
                trie.unbind(pattern, queue(number as u32));
            }
            assert_eq!(
                (trie.nodes(), trie.words()),
                (1, 0),
                "nothing is left behind"
            );
        }
        assert!(
            matched > 100_000,
            "pairs that match are tested too: {matched}"
        );
    }

    #[test]
    fn many_hashes_cost_words_times_nodes() {
        let mut trie = Trie::new();
        let pattern = ["#.a"; 60].join(".");
        trie.bind(pattern.as_bytes(), queue(1));
        let key = ["a"; 127].join(".");
        // The naive matcher would try more ways than there are atoms; this ends.
        for _ in 0..1_000 {
            assert!(found(&mut trie, format!("{key}.b").as_bytes()).is_empty());
            assert_eq!(found(&mut trie, key.as_bytes()), [1]);
        }
    }

    #[test]
    fn a_pattern_bound_twice_is_unbound_twice() {
        let mut trie = Trie::new();
        trie.bind(b"a.#", queue(1));
        trie.bind(b"a.#", queue(1));
        trie.bind(b"a.b", queue(2));
        trie.unbind(b"a.#", queue(1));
        assert_eq!(found(&mut trie, b"a.b"), [1, 2]);
        trie.unbind(b"a.#", queue(1));
        assert_eq!(found(&mut trie, b"a.b"), [2]);
        trie.unbind(b"a.b", queue(2));
        assert_eq!((trie.nodes(), trie.words()), (1, 0));
    }
}
