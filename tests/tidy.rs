//! The absences that the architecture stands on, checked in the source: `cargo test --test tidy`.
//! Every failure names what to write instead. Does not judge lengths or style: that is for readers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// What the top level may hold, beside names that begin with a dot.
const TOP_LEVEL: [&str; 10] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "bench",
    "docs",
    "loadgen",
    "rustfmt.toml",
    "src",
    "tests",
];

/// Files that may hold `unsafe`, beside those of `rt`. A new one is an ADR.
const UNSAFE_ALLOWED: [(&str, &str); 2] = [
    (
        "src/broker/data/buffers.rs",
        "windows of the pool's memory that the device reads and writes",
    ),
    (
        "src/engine/tests/allocations/count.rs",
        "a counting allocator",
    ),
];

/// Rules of docs/protocol.md that no code cites, with the reason. To be emptied, never to grow.
const RULES_NOT_IN_SRC: [(u32, &str); 0] = [];

/// Rules of docs/protocol.md that no test cites, with the reason. To be emptied, never to grow.
const RULES_NOT_IN_TESTS: [(u32, &str); 0] = [];

/// A source file: its path from the root, its text, and its text without comments and literals.
struct Source {
    path: String,
    text: String,
    code: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` whose name ends with one of `ends`, as paths from the root.
fn files(folder: &str, ends: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(root().join(&folder)).expect("the folder can be read");
        for entry in entries {
            let entry = entry.expect("the entry can be read");
            let name = entry.file_name().into_string().expect("names are UTF-8");
            if name == "target" || name.starts_with('.') {
                continue;
            }
            let path = folder.join(&name);
            if entry.file_type().expect("it has a type").is_dir() {
                folders.push(path);
            } else if ends.iter().any(|end| name.ends_with(end)) {
                found.push(path.to_str().expect("paths are UTF-8").to_owned());
            }
        }
    }
    found.sort();
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn sources() -> Vec<Source> {
    let paths = files("", &[".rs"]);
    assert!(paths.len() > 50, "the sources are found");
    paths
        .into_iter()
        .map(|path| {
            let text = read(&path);
            let code = code_of(&text);
            Source { path, text, code }
        })
        .collect()
}

/// `text` with everything in comments, strings and characters replaced by spaces; lines stay.
fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => text[at..]
                .find('\n')
                .map_or(text.len(), |length| at + length),
            b'/' if bytes[at..].starts_with(b"/*") => end_of_block_comment(bytes, at),
            b'"' => end_of_string(bytes, at),
            b'r' | b'b' if !follows_a_word(bytes, at) => match raw_string(bytes, at) {
                Some(end) => end,
                None => at,
            },
            b'\'' => end_of_char(text, at),
            _ => at,
        };
        if end > at {
            let blank = text[at..end]
                .chars()
                .map(|c| if c == '\n' { c } else { ' ' });
            code.extend(blank);
            at = end;
        } else {
            let c = text[at..].chars().next().expect("a character starts here");
            code.push(c);
            at += c.len_utf8();
        }
    }
    code
}

fn follows_a_word(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')
}

fn end_of_block_comment(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0;
    let mut at = start;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// The end of `r"…"`, `r#"…"#`, `br"…"`; `b"…"` is left to the quote that follows.
fn raw_string(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + usize::from(bytes[start] == b'b');
    if bytes.get(at) != Some(&b'r') {
        return None;
    }
    at += 1;
    let hashes = bytes[at..].iter().take_while(|byte| **byte == b'#').count();
    at += hashes;
    if bytes.get(at) != Some(&b'"') {
        return None;
    }
    let end = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
    let length = bytes[at + 1..]
        .windows(end.len())
        .position(|window| window == end)?;
    Some(at + 1 + length + end.len())
}

/// The end of a character literal; a lifetime has none.
fn end_of_char(text: &str, start: usize) -> usize {
    let mut chars = text[start + 1..].char_indices();
    match chars.next() {
        Some((_, '\\')) => {
            let rest = &text[start + 3..];
            rest.find('\'').map_or(start, |length| start + 4 + length)
        }
        Some((_, c)) if text[start + 1 + c.len_utf8()..].starts_with('\'') => {
            start + 2 + c.len_utf8()
        }
        _ => start,
    }
}

/// Whether `word` stands in `line` with no letter, digit or underscore beside it.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let starts_with_part = word.starts_with(is_part);
    let ends_with_part = word.ends_with(is_part);
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(is_part);
        let after = line[at + word.len()..].chars().next().is_some_and(is_part);
        !(starts_with_part && before || ends_with_part && after)
    })
}

/// Fails with every line of `sources` that holds one of `words`, and what to write instead.
fn forbid<'a>(sources: impl IntoIterator<Item = &'a Source>, words: &[&str], instead: &str) {
    let mut found = String::new();
    for source in sources {
        for (number, line) in source.code.lines().enumerate() {
            for word in words.iter().filter(|word| has_word(line, word)) {
                writeln!(found, "  {}:{}: {word}", source.path, number + 1).expect("it is memory");
            }
        }
    }
    assert!(found.is_empty(), "{instead}\n{found}");
}

fn is_rt(path: &str) -> bool {
    path == "src/broker/rt.rs" || path.starts_with("src/broker/rt/")
}

/// Whether a file is all test; tests at the end of a file of code are part of that.
fn is_test(path: &str) -> bool {
    path.starts_with("tests/")
        || path.contains("/tests/")
        || path.ends_with("/tests.rs")
        || path.ends_with("_tests.rs")
}

/// The crates without IO, but for their tests and examples, and for the switch of planted bugs,
/// which no broker is built with.
fn is_pure(path: &str) -> bool {
    let is_there = path.starts_with("src/engine/") || path.starts_with("src/wire/");
    is_there && !is_test(path) && !path.contains("/examples/") && path != "src/engine/mutant.rs"
}

#[test]
fn the_lexer_of_this_test_sees_code_only() {
    let text =
        "a /* b /* c */ d */ e // f\n\"g\\\" h\" i r#\"j\" k\"# l 'm' n '\\'' o &'p q br\"r\" s";
    let words: Vec<String> = code_of(text)
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    assert_eq!(words, ["a", "e", "i", "l", "n", "o", "&'p", "q", "s"]);
    assert!(has_word("unsafe {", "unsafe"));
    assert!(!has_word("unsafe_code", "unsafe"));
    assert!(has_word("use crate::control::x", "crate::control"));
}

#[test]
fn glommio_is_named_only_in_rt() {
    let sources = sources();
    let outside = sources.iter().filter(|source| !is_rt(&source.path));
    forbid(
        outside,
        &["glommio", "glommio_ng"],
        "only src/broker/rt* names glommio: use what rt.rs exports, or add it there",
    );
}

#[test]
fn the_crash_harness_knows_the_broker_as_a_program() {
    let one = "tests/crash/recover.rs";
    let sources = sources();
    let is_there = |source: &&Source| source.path.starts_with("tests/crash/");
    let others = sources.iter().filter(is_there);
    forbid(
        others.filter(|source| source.path != one),
        &["ringpost", "ringpost_engine"],
        "the harness starts the program; only tests/crash/recover.rs reads a directory in process",
    );
    let recover = sources.iter().find(|source| source.path == one);
    let code = &recover.expect("it is there").code;
    let named: Vec<_> = code
        .lines()
        .filter(|line| has_word(line, "ringpost"))
        .collect();
    assert!(
        matches!(named[..], [line] if line.starts_with("use ringpost::offline::{")),
        "{one} may use the offline recovery and nothing else of the broker: {named:?}"
    );
}

#[test]
fn unsafe_stays_on_its_list() {
    let sources = sources();
    let allowed = |path: &str| is_rt(path) || UNSAFE_ALLOWED.iter().any(|(file, _)| *file == path);
    forbid(
        sources.iter().filter(|source| !allowed(&source.path)),
        &["unsafe"],
        "`unsafe` is for src/broker/rt* and the list in tests/tidy.rs: use the safe types of rt \
         (IoWindow, Memory, Ring) or of data/buffers.rs; a new file on the list is an ADR",
    );
    for (file, _) in UNSAFE_ALLOWED {
        let source = sources.iter().find(|source| source.path == file);
        let is_used = source.is_some_and(|source| has_word(&source.code, "unsafe"));
        assert!(
            is_used,
            "{file} holds no `unsafe`: take it off the list in tests/tidy.rs"
        );
    }
}

#[test]
fn the_data_plane_does_not_call_the_control_plane() {
    let sources = sources();
    let data = sources
        .iter()
        .filter(|source| source.path.contains("/data/") && !is_test(&source.path));
    forbid(
        data,
        &[
            "crate::control",
            "super::control",
            "super::super::control",
            "tracing",
        ],
        "nothing under data/ calls anything under control/, or logs: return the fact (an Effect, \
         Progress or snapshot) and let the control plane act on it",
    );
}

#[test]
fn engine_and_wire_know_no_clock_thread_file_or_socket() {
    let sources = sources();
    let pure: Vec<_> = sources
        .iter()
        .filter(|source| is_pure(&source.path))
        .collect();
    assert!(pure.len() > 20, "the crates are found");
    forbid(
        pure.iter().copied(),
        &["Instant", "SystemTime", "std::time"],
        "time is an argument: take `now: Mono`, and the wall clock from Input::Tick",
    );
    forbid(
        pure.iter().copied(),
        &[
            "std::fs",
            "std::net",
            "std::io",
            "std::process",
            "std::env",
            "std::os",
        ],
        "engine and wire do no IO: emit an Effect and take its completion as Input",
    );
    forbid(
        pure.iter().copied(),
        &[
            "std::thread",
            "Mutex",
            "RwLock",
            "Arc",
            "Rc",
            "RefCell",
            "std::sync",
            "thread_local",
        ],
        "a core shares nothing: own the state in Flow and pass `&mut`",
    );
    let random = pure
        .iter()
        .copied()
        .filter(|source| source.path != "src/engine/data/table.rs");
    forbid(
        random,
        &["HashMap", "HashSet", "RandomState"],
        "the order of a std map differs from run to run: use crate::data::table::Table or BTreeMap",
    );
}

#[test]
fn every_channel_is_bounded() {
    forbid(
        &sources(),
        &["unbounded", "unbounded_channel", "mpsc::channel()"],
        "full is an answer, never growth: use flume::bounded or tokio's mpsc::channel(capacity)",
    );
}

#[test]
fn nothing_is_left_half_done() {
    let sources = sources();
    forbid(
        &sources,
        &["todo!", "unimplemented!", "dbg!"],
        "finish it, or return an error that says what is not built",
    );
    forbid(
        &sources,
        &["#[ignore", "#[ignore]"],
        "a test that does not run proves nothing: make it quick enough, or move it to bench/",
    );
    // Spelled apart, so that this file does not find itself.
    let words = [concat!("FIX", "ME"), concat!("XX", "X")];
    for source in &sources {
        for (number, line) in source.text.lines().enumerate() {
            let (path, number) = (&source.path, number + 1);
            for word in words {
                assert!(
                    !has_word(line, word),
                    "{path}:{number}: {word}: mend it before the merge"
                );
            }
            let is_vague = has_word(line, concat!("TO", "DO")) && !line.contains("(#");
            assert!(
                !is_vague,
                "{path}:{number}: name its issue: {}(#12)",
                concat!("TO", "DO")
            );
        }
    }
}

#[test]
fn every_file_says_what_it_owns() {
    for source in sources() {
        assert!(
            source.text.starts_with("//!"),
            "{}: open with `//!`: one sentence on what it owns, one on what it does not know",
            source.path
        );
    }
}

#[test]
fn every_file_is_compiled() {
    let sources = sources();
    let texts: BTreeMap<&str, &str> = sources
        .iter()
        .map(|source| (source.path.as_str(), source.code.as_str()))
        .collect();
    let manifests: String = files("", &["Cargo.toml"])
        .iter()
        .map(|path| read(path))
        .collect();
    for source in &sources {
        let path = Path::new(&source.path);
        let stem = path
            .file_stem()
            .expect("a file has a name")
            .to_str()
            .expect("UTF-8");
        let folder = path.parent().expect("a file is somewhere");
        let name = path
            .file_name()
            .expect("a file has a name")
            .to_str()
            .expect("UTF-8");
        let folder_name = folder
            .file_name()
            .map_or("", |name| name.to_str().expect("UTF-8"));
        let is_target = manifests.contains(&format!("path = \"{name}\""))
            || manifests.contains(&format!("path = \"{}\"", source.path))
            || manifests.contains(&format!("path = \"examples/{name}\""))
            || ["tests", "examples"].contains(&folder_name)
            || ["lib", "main"].contains(&stem);
        let path_attribute = format!("#[path = \"{folder_name}/{name}\"]");
        let is_by_path = sources
            .iter()
            .any(|other| other.text.contains(&path_attribute));
        if is_target || is_by_path {
            continue;
        }
        let parents = [
            folder.with_extension("rs"),
            folder.join("lib.rs"),
            folder.join("main.rs"),
        ];
        let is_declared = parents.iter().any(|parent| {
            let text = texts
                .get(parent.to_str().expect("UTF-8"))
                .copied()
                .unwrap_or("");
            has_word(text, &format!("mod {stem};")) || has_word(text, &format!("mod r#{stem};"))
        });
        assert!(
            is_declared,
            "{}: no `mod {stem};` names it: delete it",
            source.path
        );
    }
}

#[test]
fn the_top_level_is_fixed() {
    for entry in fs::read_dir(root()).expect("the root can be read") {
        let name = entry.expect("the entry can be read").file_name();
        let name = name.to_str().expect("names are UTF-8");
        let is_allowed = name.starts_with('.') || name == "target" || TOP_LEVEL.contains(&name);
        assert!(
            is_allowed,
            "{name}: the top level holds only {TOP_LEVEL:?}: programs go to src, documents to docs"
        );
    }
}

/// The numbers of `P-n` in `text`.
fn rules_in(text: &str) -> BTreeSet<u32> {
    text.split("P-")
        .skip(1)
        .filter_map(|rest| {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            rest[..digits].parse().ok()
        })
        .collect()
}

#[test]
fn every_rule_of_the_protocol_is_cited_in_src_and_in_tests() {
    let page = read("docs/protocol.md");
    let rules: BTreeSet<u32> = page
        .lines()
        .filter(|line| line.starts_with("**P-"))
        .flat_map(|line| rules_in(line.split("**").nth(1).expect("it is bold")))
        .collect();
    assert!(rules.len() > 50, "the rules are found");
    let mut in_src = BTreeSet::new();
    let mut in_tests = BTreeSet::new();
    for source in sources() {
        // This file excuses rules, and the index of tests/behaviour only lists them.
        if ["tests/tidy.rs", "tests/behaviour.rs"].contains(&source.path.as_str()) {
            continue;
        }
        if is_test(&source.path) {
            in_tests.extend(rules_in(&source.text));
            continue;
        }
        let (code, tests) = match source.text.find("#[cfg(test)]\nmod tests {") {
            Some(at) => source.text.split_at(at),
            None => (source.text.as_str(), ""),
        };
        in_src.extend(rules_in(code));
        in_tests.extend(rules_in(tests));
    }
    for path in files("tests/compat", &[".py"]) {
        // The client is an implementation; what runs it are the tests.
        if !path.ends_with("/ringpost.py") {
            in_tests.extend(rules_in(&read(&path)));
        }
    }
    check_citations(
        "src",
        "the code that obeys it",
        &rules,
        &in_src,
        &RULES_NOT_IN_SRC,
    );
    check_citations(
        "tests",
        "the test that proves it",
        &rules,
        &in_tests,
        &RULES_NOT_IN_TESTS,
    );
}

fn check_citations(
    place: &str,
    what: &str,
    rules: &BTreeSet<u32>,
    cited: &BTreeSet<u32>,
    excused: &[(u32, &str)],
) {
    let unknown: Vec<_> = cited.difference(rules).collect();
    assert!(
        unknown.is_empty(),
        "{place} cites rules that docs/protocol.md has not: {unknown:?}"
    );
    let excused: BTreeSet<u32> = excused.iter().map(|(rule, _)| *rule).collect();
    let missing: Vec<_> = rules
        .difference(cited)
        .filter(|rule| !excused.contains(rule))
        .collect();
    assert!(
        missing.is_empty(),
        "no line in {place} cites these rules of docs/protocol.md: write `//= P-n` at {what}: \
         {missing:?}"
    );
    let cited_after_all: Vec<_> = excused.intersection(cited).collect();
    assert!(
        cited_after_all.is_empty(),
        "{place} cites these by now: take them off the list in tests/tidy.rs: {cited_after_all:?}"
    );
}

fn documents() -> Vec<String> {
    let mut found = vec!["README.md".to_owned()];
    for folder in ["docs", "tests", "bench", "loadgen", "src"] {
        found.extend(files(folder, &[".md"]));
    }
    found
}

/// `text` without what stands between lines of three backticks.
fn prose_of(text: &str) -> String {
    let mut is_prose = true;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_prose = !is_prose;
        } else if is_prose {
            prose.push_str(line);
        }
        prose.push('\n');
    }
    prose
}

/// What a heading is called in a link.
fn anchor_of(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        })
        .collect()
}

#[test]
fn links_between_documents_resolve() {
    let mut broken = String::new();
    for path in documents() {
        let prose = prose_of(&read(&path));
        let folder = Path::new(&path)
            .parent()
            .expect("a file is somewhere")
            .to_owned();
        for (at, _) in prose.match_indices("](") {
            let target = &prose[at + 2..];
            let target = &target[..target.find(')').expect("a link ends")];
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let linked = match file {
                "" => root().join(&path),
                file => root().join(&folder).join(file),
            };
            let is_there = linked.exists()
                && (anchor.is_empty()
                    || prose_of(&fs::read_to_string(&linked).expect("a document"))
                        .lines()
                        .any(|line| line.starts_with('#') && anchor_of(line) == anchor));
            if !is_there {
                writeln!(broken, "  {path}: {target}").expect("it is memory");
            }
        }
    }
    assert!(
        broken.is_empty(),
        "mend these links, or write what they lead to:\n{broken}"
    );
}

/// What stands between single backticks.
fn quoted(prose: &str) -> Vec<&str> {
    prose
        .lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .collect()
}

#[test]
fn files_named_in_documents_and_comments_exist() {
    let mut missing = String::new();
    let is_path = |word: &str| {
        let starts = ["src/", "docs/", "tests/", "bench/", "loadgen/", ".ci/"];
        starts.iter().any(|start| word.starts_with(start))
            && word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "/._-#".contains(c))
    };
    for path in documents() {
        for word in quoted(&prose_of(&read(&path))) {
            if is_path(word) && !root().join(word).exists() {
                writeln!(missing, "  {path}: {word}").expect("it is memory");
            }
        }
    }
    for source in sources() {
        let comments = source
            .text
            .lines()
            .filter(|line| line.trim_start().starts_with("//"));
        for word in comments.flat_map(|line| line.split([' ', '`', ',', ':', ';', '(', ')'])) {
            let word = word.trim_end_matches(['.', '\'']);
            let is_document = word.starts_with("docs/") && word.ends_with(".md");
            if is_document && is_path(word) && !root().join(word).exists() {
                writeln!(missing, "  {}: {word}", source.path).expect("it is memory");
            }
        }
    }
    assert!(
        missing.is_empty(),
        "these files are named and not there:\n{missing}"
    );
}

#[test]
fn functions_and_tests_named_in_documents_exist() {
    let pages = [
        "docs/architecture.md",
        "docs/guarantees.md",
        "docs/testing.md",
    ];
    let mut code: String = sources()
        .into_iter()
        .map(|source| source.code + "\n")
        .collect();
    for path in files("tests/compat", &[".py"]) {
        code.push_str(&read(&path).replace("def ", "fn "));
    }
    let mut missing = String::new();
    for page in pages {
        for word in quoted(&prose_of(&read(page))) {
            // `name()` is a function, and words joined by three underscores or more are a test.
            let name = word.strip_suffix("()").unwrap_or(word);
            let name = name.rsplit("::").next().expect("there is a last part");
            let is_name = name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            let is_claimed = word.ends_with("()") || name.matches('_').count() >= 3;
            if is_name && is_claimed && !has_word(&code, &format!("fn {name}")) {
                writeln!(missing, "  {page}: {word}").expect("it is memory");
            }
        }
    }
    assert!(
        missing.is_empty(),
        "these are named and not there: name what is\n{missing}"
    );
}

/// The cells of the rows of every table whose first line begins with `head`.
fn rows_below<'a>(page: &'a str, head: &str) -> Vec<Vec<&'a str>> {
    let mut rows = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if line.starts_with(head) {
            let table = lines.by_ref().skip(1);
            let table = table.take_while(|line| line.starts_with('|'));
            rows.extend(table.map(|line| {
                let cells = line.trim_matches('|').split('|');
                cells.map(str::trim).collect::<Vec<_>>()
            }));
        }
    }
    rows
}

/// What a row of docs/comparison.md says shows its feature: how many tests, and what is not there.
/// Tests stand before the file that they are in, words with a hyphen are planted bugs.
fn tests_shown(shown: &str, code: &BTreeMap<String, String>, bugs: &str) -> (usize, Vec<String>) {
    let (mut count, mut missing) = (0, Vec::new());
    let mut names: Vec<&str> = Vec::new();
    for word in quoted(shown) {
        if word.ends_with(".rs") {
            for name in names.drain(..) {
                let is_there = code
                    .get(word)
                    .is_some_and(|code| has_word(code, &format!("fn {name}")));
                if is_there {
                    count += 1;
                } else {
                    missing.push(format!("no `fn {name}` in {word}"));
                }
            }
        } else if word.contains('-') {
            if !bugs.contains(&format!("\"{word}\"")) {
                missing.push(format!("no planted bug {word} in src/engine/mutant.rs"));
            }
        } else {
            names.push(word);
        }
    }
    let without_a_file = names.iter().map(|name| format!("no file behind {name}"));
    missing.extend(without_a_file);
    (count, missing)
}

#[test]
fn every_yes_of_the_comparison_names_its_test() {
    let page = read("docs/comparison.md");
    let code: BTreeMap<String, String> = sources()
        .into_iter()
        .map(|source| (source.path, source.code))
        .collect();
    let bugs = read("src/engine/mutant.rs");
    let answers: BTreeMap<&str, &str> = rows_below(&page, "| Feature | Ringpost |")
        .iter()
        .map(|row| (row[0], row[1]))
        .collect();
    let shown: BTreeMap<&str, &str> = rows_below(&page, "| Feature | What there is | Shown by |")
        .iter()
        .map(|row| (row[0], row[2]))
        .collect();
    assert!(answers.len() > 30, "the features are found: {answers:?}");
    let mut wrong = String::new();
    for feature in shown.keys() {
        if !answers.contains_key(feature) {
            writeln!(wrong, "  {feature}: no row beside the peers").expect("it is memory");
        }
    }
    for (feature, answer) in &answers {
        let Some(shown) = shown.get(feature) else {
            writeln!(wrong, "  {feature}: no row of what shows it").expect("it is memory");
            continue;
        };
        let (count, missing) = tests_shown(shown, &code, &bugs);
        for what in missing {
            writeln!(wrong, "  {feature}: {what}").expect("it is memory");
        }
        let is_right = match *answer {
            "yes" | "partly" => count > 0,
            "no" => shown.is_empty(),
            _ => false,
        };
        if !is_right {
            writeln!(wrong, "  {feature}: {answer}, with {count} tests").expect("it is memory");
        }
    }
    assert!(
        wrong.is_empty(),
        "docs/comparison.md: yes and partly name tests before the file they are in, no names \
         none:\n{wrong}"
    );
}

#[test]
fn a_yes_without_its_test_is_seen() {
    let code = BTreeMap::from([("a.rs".to_owned(), "fn one() {} fn two() {}".to_owned())]);
    let bugs = "\"left-out\"";
    let check = |shown| {
        let (count, missing) = tests_shown(shown, &code, bugs);
        (count, missing.len())
    };
    assert_eq!(
        check("`one`, `two` in `a.rs`; planted bug `left-out`"),
        (2, 0)
    );
    assert_eq!(check("planted bug `left-out`"), (0, 0));
    assert_eq!(check("`one`"), (0, 1));
    assert_eq!(check("`one`, `three` in `a.rs`; `two` in `b.rs`"), (1, 2));
    assert_eq!(check("`one` in `a.rs`; planted bug `put-in`"), (1, 1));
    let page =
        "| A | B |\n|---|---|\n| x | no | |\n| y | yes |\n\n| A | C |\n|---|---|\n| z | no |\n";
    assert_eq!(
        rows_below(page, "| A | B |"),
        [vec!["x", "no", ""], vec!["y", "yes"]]
    );
}
