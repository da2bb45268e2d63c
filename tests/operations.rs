//! docs/operations.md says what the program says: its generated tables are compared, and rewritten
//! if `UPDATE_DOCS` is set. Does not check its prose.

use std::path::Path;

use ringpost::config::Config;
use ringpost::control::metrics;

/// Compares what stands between the two marks of `name` with `table`.
fn check_table(name: &str, table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let document = std::fs::read_to_string(&path).expect("docs/operations.md is there");
    let (before, rest) = document
        .split_once(&format!("<!-- {name}: "))
        .expect("the first mark");
    let (mark, rest) = rest.split_once("-->\n").expect("the end of the first mark");
    let (given, after) = rest
        .split_once(&format!("<!-- {name} end -->"))
        .expect("the last mark");
    let expected = format!("\n{table}\n");
    if given == expected {
        return;
    }
    let updating = std::env::var_os("UPDATE_DOCS").is_some();
    assert!(
        updating,
        "the table of {name} in docs/operations.md is not the program's: run \
         `UPDATE_DOCS=1 cargo test --test operations` and look at the difference"
    );
    let document = format!("{before}<!-- {name}: {mark}-->\n{expected}<!-- {name} end -->{after}");
    std::fs::write(&path, document).expect("writes");
}

/// One test for all tables, since each would rewrite the file.
#[test]
fn tables_are_those_of_the_program() {
    check_table("settings", &Config::settings_table());
    check_table("metrics", &metrics::metrics_table());
}

#[test]
fn metrics_and_settings_named_in_the_text_exist() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let document = std::fs::read_to_string(path).expect("docs/operations.md is there");
    let table = metrics::metrics_table();
    let names = document.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    for name in names.filter(|name| name.starts_with("ringpost_") && *name != "ringpost_") {
        let name = name.trim_end_matches("_bucket");
        let is_pattern = ["ringpost_NAME", "ringpost_core_NAME"].contains(&name);
        assert!(
            is_pattern || table.contains(&format!("`{name}`")),
            "there is no metric {name}"
        );
    }
}
