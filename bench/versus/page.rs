//! A comparison as one page that needs nothing else. Cases that are lost stand with those that are won.
//! Does not judge.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use ringpost_load::html::{self, escape, percentile_line};
use ringpost_load::machine::utc;
use ringpost_load::report::{rate_of, time_of};

use super::book::Book;
use super::cells::{self, Cell, Load};
use super::peers::{Durability, Product, SETTINGS, Setting};
use super::verdict::{self, LOAD_BUSY_MAX, Outcome, Row, Spread};

/// Colours of the settings in drawings, in the order of the settings that can be measured.
const COLOURS: [&str; 8] = ["c1", "c7", "c4", "c3", "c2", "c8", "c5", "c6"];

/// What only this page's style needs.
const STYLE: &str = "<style>
.bars { display: grid; grid-template-columns: minmax(116px, max-content) 1fr max-content; gap: 5px 14px; align-items: center; font-size: 14px; margin: 0 0 8px; }
.bars > div { display: contents; }
.bars .track { position: relative; height: 18px; background: var(--faint); border-radius: 4px; }
.bars .fill { position: absolute; inset: 0 auto 0 0; border-radius: 4px; background: var(--quiet); }
.bars .fill.synced { background: var(--c3); } .bars .fill.own { background: var(--c1); }
.bars .fill.earlier { background: repeating-linear-gradient(90deg, var(--quiet) 0 4px, transparent 4px 7px); }
.bars .span { position: absolute; top: 7px; height: 4px; background: var(--ink); opacity: .55; border-radius: 2px; min-width: 2px; }
.bars .value { text-align: right; white-space: nowrap; }
.bars .value small { color: var(--soft); }
.key i { width: 14px; height: 10px; }
td.wrap { white-space: normal; min-width: 190px; }
.state { font-weight: 650; }
@media (max-width: 620px) {
  .bars { display: block; }
  .bars > div { display: grid; grid-template-columns: 1fr max-content; gap: 2px 10px; margin: 0 0 9px; }
  .bars .track { grid-column: 1 / -1; order: 3; height: 12px; }
  .bars .span { top: 4px; }
}
</style>
";

macro_rules! put {
    ($out:expr, $($words:tt)*) => {
        write!($out, $($words)*).expect("it is memory")
    };
}

/// The page of a book.
#[must_use]
pub fn page(book: &Book) -> String {
    let mut body = String::from(STYLE);
    head(&mut body, book);
    throughput(&mut body, book);
    latency(&mut body, book);
    goals(&mut body, book);
    settings(&mut body, book);
    method(&mut body, book);
    let title = "Ringpost and its peers";
    html::document(title, "Ringpost", &body, &data(book))
}

/// What the page shows, for other programs: the medians. All runs are in the file beside it.
fn data(book: &Book) -> String {
    let mut cells = serde_json::Map::new();
    for cell in cells::all() {
        let mut rows = serde_json::Map::new();
        for row in verdict::rows(book, &cell) {
            let value = serde_json::json!({
                "rate": row.rate.as_ref().map(|rate| rate.median),
                "rounds": row.rounds.0,
                "cpu_ns": row.cpu_ns.as_ref().map(|cpu| cpu.median),
            });
            rows.insert(row.setting.name.into(), value);
        }
        cells.insert(cell.name(), rows.into());
    }
    serde_json::Value::Object(cells).to_string()
}

fn head(out: &mut String, book: &Book) {
    let runs = book.runs.iter().filter(|run| run.started_ms > 0);
    let first = runs.clone().map(|run| run.started_ms).min().unwrap_or(0);
    let rounds = runs.map(|run| run.round).max().unwrap_or(0);
    put!(
        out,
        "<header><p class=\"eyebrow\">Side by side in one run</p><h1>Ringpost and its peers</h1>\n\
         <p class=\"when\">{} · Ringpost {} · {rounds} rounds</p>\n",
        utc(UNIX_EPOCH + Duration::from_millis(first)),
        escape(&book.head.ringpost)
    );
    let goals = verdict::goals(book);
    let count = |outcome| goals.iter().filter(|goal| goal.outcome == outcome).count();
    let missed = count(Outcome::Missed);
    put!(
        out,
        "<p class=\"badge {}\"><b>{} of {} goals reached</b> {missed} missed, {} not measured here</p></header>\n",
        if missed == 0 { "good" } else { "warn" },
        count(Outcome::Reached),
        goals.len(),
        count(Outcome::Unknown)
    );
    put!(out, "<div class=\"tiles\">\n");
    for (name, cell) in [
        ("100 B", closed(100, 10_000)),
        ("1 KiB", closed(1_024, 10_000)),
    ] {
        for (what, ours) in [("batches", "ringpost"), ("singly", "ringpost-singly")] {
            tile(out, book, &format!("{name}, {what}"), ours, &cell);
        }
    }
    put!(out, "</div>\n");
}

const fn closed(bytes: u32, window: u32) -> Cell {
    Cell {
        bytes,
        load: Load::Window(window),
    }
}

fn tile(out: &mut String, book: &Book, name: &str, ours: &str, cell: &Cell) {
    let rows = verdict::rows(book, cell);
    let own = rows.iter().find(|row| row.setting.name == ours);
    let best = rows
        .iter()
        .filter(|row| row.setting.product != Product::Ringpost)
        .filter(|row| row.setting.durability == Durability::Synced)
        .filter_map(|row| Some((row, row.rate.as_ref()?)))
        .max_by(|one, two| one.1.median.total_cmp(&two.1.median));
    let (Some(own), Some((peer, theirs))) = (own.and_then(|row| row.rate.as_ref()), best) else {
        return;
    };
    put!(
        out,
        "<div class=\"tile\"><span class=\"name\">{name}</span><span class=\"value\">{:.1}<small> ×</small>\
         </span><span class=\"note\">{}/s; {} {}/s</span></div>\n",
        own.median / theirs.median,
        rate_of(own.median),
        escape(peer.setting.title),
        rate_of(theirs.median)
    );
}

fn open(out: &mut String, id: &str, title: &str, lead: &str) {
    put!(
        out,
        "<section id=\"{id}\"><h2>{title}</h2>\n<p class=\"lead\">{lead}</p>\n"
    );
}

fn class_of(row: &Row<'_>) -> &'static str {
    match (row.setting.product, row.setting.durability, &row.rate) {
        (_, _, None) => "earlier",
        (Product::Ringpost, ..) => "own",
        (_, Durability::Synced, _) => "synced",
        _ => "",
    }
}

fn throughput(out: &mut String, book: &Book) {
    open(
        out,
        "throughput",
        "Throughput",
        "Messages a second that were published, confirmed, delivered and acknowledged, one producer and one \
         consumer of one queue, with so many messages unconfirmed. The bar is the median of the rounds, the dark \
         line their spread.",
    );
    put!(
        out,
        "<ul class=\"legend key\"><li><i style=\"background:var(--c1)\"></i>Ringpost, synced before the confirm</li>\
         <li><i style=\"background:var(--c3)\"></i>peer, synced before the confirm</li>\
         <li><i style=\"background:var(--quiet)\"></i>peer, not synced before the confirm</li>\
         <li><i style=\"background:repeating-linear-gradient(90deg,var(--quiet) 0 4px,transparent 4px 7px)\"></i>\
         earlier figure, of another machine</li></ul>\n"
    );
    for cell in cells::all() {
        if matches!(cell.load, Load::Window(_)) {
            bars(out, book, &cell);
        }
    }
    for setting in SETTINGS {
        if let Some(why) = why_never(book, &setting) {
            put!(
                out,
                "<p class=\"fine\"><b>{}</b>: not measured here: {}</p>\n",
                escape(setting.title),
                escape(why)
            );
        }
    }
    put!(out, "</section>\n");
}

/// Why a setting has no run that counts in any closed loop.
fn why_never<'a>(book: &'a Book, setting: &Setting) -> Option<&'a str> {
    let mut own = book.runs.iter().filter(|run| run.setting == setting.name);
    let is_measured = own.clone().any(super::book::Run::is_valid);
    let why = own.find_map(|run| run.invalid.as_deref());
    why.filter(|_| !is_measured)
}

fn bars(out: &mut String, book: &Book, cell: &Cell) {
    let mut rows = verdict::rows(book, cell);
    let rate = |row: &Row<'_>| row.rate.as_ref().map(|rate| rate.median).or(row.earlier);
    rows.sort_by(|one, two| {
        rate(two)
            .unwrap_or(0.0)
            .total_cmp(&rate(one).unwrap_or(0.0))
    });
    let highest = |row: &Row<'_>| row.rate.as_ref().map(|rate| rate.most).or(row.earlier);
    let most = rows.iter().filter_map(highest).fold(1.0, f64::max);
    put!(out, "<h3>{}</h3>\n<div class=\"bars\">\n", cell.words());
    let own = rows.iter().find(|row| row.setting.name == "ringpost");
    let own = own.and_then(|row| row.rate.clone());
    for row in &rows {
        let percent = |value: f64| value / most * 100.0;
        put!(
            out,
            "<div><span>{}</span><span class=\"track\">",
            escape(row.setting.title)
        );
        if let Some(value) = rate(row) {
            put!(
                out,
                "<span class=\"fill {}\" style=\"width:{:.2}%\"></span>",
                class_of(row),
                percent(value)
            );
        }
        if let Some(spread) = &row.rate {
            put!(
                out,
                "<span class=\"span\" style=\"left:{:.2}%;width:{:.2}%\"></span>",
                percent(spread.least),
                percent(spread.most - spread.least)
            );
        }
        put!(
            out,
            "</span><span class=\"value\">{}</span></div>\n",
            value_of(row, own.as_ref())
        );
    }
    put!(out, "</div>\n");
}

/// The figure beside a bar.
fn value_of(row: &Row<'_>, own: Option<&Spread>) -> String {
    let mut text = match (&row.rate, row.earlier) {
        (Some(rate), _) => rate_of(rate.median),
        (None, Some(rate)) => format!("({})", rate_of(rate)),
        (None, None) => "–".into(),
    };
    if row.is_faulty {
        text.push_str(" <b class=\"bad\">messages lost or doubled</b>");
    }
    if row.load_busy >= LOAD_BUSY_MAX {
        text.push_str(" <small>load-bound</small>");
    }
    if let (Some(own), Some(rate)) = (own, &row.rate)
        && row.setting.product != Product::Ringpost
        && let Some((times, [low, high])) = verdict::ratio(own, rate)
    {
        let words = match times < 1.0 {
            true => format!("{:.1} × ({:.1}–{:.1})", 1.0 / times, 1.0 / high, 1.0 / low),
            false => format!("1/{times:.1} ({low:.1}–{high:.1})"),
        };
        text.push_str(&format!(" <small>{words}</small>"));
    }
    text
}

fn latency(out: &mut String, book: &Book) {
    open(
        out,
        "latency",
        "Latency at the same rate",
        "Messages are due at times that do not depend on the broker, and each counts from when it was due until \
         the consumer had it. The rates are shares of what the best durable peer can do.",
    );
    for cell in cells::all() {
        if matches!(cell.load, Load::Share(_)) {
            at_one_rate(out, book, &cell);
        }
    }
    put!(
        out,
        "<p class=\"fine\">Medians of rounds, with the least and the most. The drawings hold all rounds together; \
         both axes are logarithmic, and each step to the right leaves a tenth of the messages above.</p></section>\n"
    );
}

fn at_one_rate(out: &mut String, book: &Book, cell: &Cell) {
    let name = cell.name();
    let rows = verdict::rows(book, cell);
    let offered = book
        .runs
        .iter()
        .find(|run| run.cell == name)
        .and_then(|run| run.offered);
    let Some(offered) = offered else {
        return;
    };
    put!(out, "<h3>{}/s: {}</h3>\n", rate_of(offered), cell.words());
    let mut lines = Vec::new();
    let measured = SETTINGS
        .into_iter()
        .filter(|setting| setting.product != Product::Iggy);
    for (setting, class) in measured.zip(COLOURS) {
        if let Some(times) = verdict::merged(book, setting.name, &name, false) {
            lines.push(percentile_line(setting.title, class, &times));
        }
    }
    if !lines.is_empty() {
        html::spectrum(out, &lines);
    }
    put!(
        out,
        "<div class=\"scroll\"><table><thead><tr><th class=\"word\"></th><th>p50</th><th>p99</th><th>p99.9</th>\
         <th>confirm p99</th><th>CPU a message</th><th class=\"word\">a confirm is</th></tr></thead><tbody>\n"
    );
    for row in &rows {
        if why_never(book, &row.setting).is_none() {
            latency_row(out, book, cell, row);
        }
    }
    if let Some(floor) = floor_cells(book) {
        put!(
            out,
            "<tr><td class=\"word\">device + loopback</td>{floor}<td>–</td><td>–</td><td class=\"word\">no broker\
             </td></tr>\n"
        );
    }
    put!(out, "</tbody></table></div>\n");
}

fn floor_cells(book: &Book) -> Option<String> {
    let mut text = String::new();
    for at in [0.5, 0.99, 0.999] {
        put!(
            text,
            "<td>{}</td>",
            time_of(verdict::floor(book, at)? as u64)
        );
    }
    Some(text)
}

fn latency_row(out: &mut String, book: &Book, cell: &Cell, row: &Row<'_>) {
    let name = cell.name();
    put!(
        out,
        "<tr><td class=\"word\">{}</td>",
        escape(row.setting.title)
    );
    if row.rate.is_none() {
        let why = row.why_not.unwrap_or("no round counts");
        put!(
            out,
            "<td colspan=\"6\" class=\"word wrap none\">not measured here: {}</td></tr>\n",
            escape(why)
        );
        return;
    }
    let spread = |found: Option<Spread>| match found {
        None => "–".to_owned(),
        Some(found) => format!(
            "{}<br><small class=\"none\">{}–{}</small>",
            time_of(found.median as u64),
            time_of(found.least as u64),
            time_of(found.most as u64)
        ),
    };
    for at in [0.5, 0.99, 0.999] {
        put!(
            out,
            "<td>{}</td>",
            spread(verdict::times(book, row.setting.name, &name, at))
        );
    }
    let confirms = book.counting(row.setting.name, &name);
    let confirms = Spread::of(confirms.filter_map(|run| run.confirm_at(0.99)).collect());
    let cpu = row
        .cpu_ns
        .as_ref()
        .map_or_else(|| "–".into(), |cpu| time_of(cpu.median as u64));
    let mut word = match verdict::follows(book, &row.setting, cell) {
        Some(false) => "<b class=\"bad\">did not follow</b>".to_owned(),
        _ => row.setting.durability.words().to_owned(),
    };
    if row.rounds.0 < row.rounds.1 {
        put!(word, "; {} of {} rounds count", row.rounds.0, row.rounds.1);
    }
    put!(
        out,
        "<td>{}</td><td>{cpu}</td><td class=\"word wrap\">{word}</td></tr>\n",
        spread(confirms)
    );
}

fn goals(out: &mut String, book: &Book) {
    open(
        out,
        "goals",
        "Goals",
        "What this project wants to reach, and what this run found. An earlier figure of a peer that cannot be \
         installed here is of another machine and decides nothing.",
    );
    put!(
        out,
        "<div class=\"scroll\"><table><thead><tr><th class=\"word\">goal</th><th class=\"word\">limit</th>\
         <th class=\"word\">found</th><th class=\"word\"></th></tr></thead><tbody>\n"
    );
    for goal in verdict::goals(book) {
        let (class, word) = match goal.outcome {
            Outcome::Reached => ("good", "reached"),
            Outcome::Missed => ("bad", "missed"),
            Outcome::Unknown => ("none", "not measured"),
        };
        put!(
            out,
            "<tr><td class=\"word wrap\">{}</td><td class=\"word\">{}</td><td class=\"word wrap\">{}</td>\
             <td class=\"word state {class}\">{word}</td></tr>\n",
            escape(&goal.words),
            escape(&goal.limit),
            escape(&goal.found)
        );
    }
    put!(out, "</tbody></table></div></section>\n");
}

fn settings(out: &mut String, book: &Book) {
    open(
        out,
        "settings",
        "What was run",
        "Each broker at its safest and as it comes, alone on its CPU, in a new directory on the same disk.",
    );
    put!(
        out,
        "<div class=\"scroll\"><table><thead><tr><th class=\"word\"></th><th class=\"word\">version</th>\
         <th class=\"word\">a confirm is</th><th class=\"word\">set</th></tr></thead><tbody>\n"
    );
    for setting in SETTINGS {
        put!(
            out,
            "<tr><td class=\"word\">{}</td><td class=\"word\">{}</td><td class=\"word wrap\">{}</td>\
             <td class=\"word wrap\">{}</td></tr>\n",
            escape(setting.title),
            escape(&version_of(book, &setting)),
            setting.durability.words(),
            escape(setting.words)
        );
    }
    put!(out, "</tbody></table></div></section>\n");
}

fn version_of(book: &Book, setting: &Setting) -> String {
    let own = |run: &&super::book::Run| run.setting == setting.name && !run.version.is_empty();
    let found = book.runs.iter().find(own);
    found.map_or_else(|| "not measured here".into(), |run| run.version.clone())
}

fn method(out: &mut String, book: &Book) {
    open(
        out,
        "method",
        "How it was measured",
        "One instrument for all: the load generator speaks each broker's protocol itself, with the same pacing, \
         clock and histograms. It publishes as the peers' clients do, one message after the other without waiting, \
         and settles what it reads at once.",
    );
    put!(out, "<div class=\"facts\"><dl>\n");
    let head = &book.head;
    let facts = [
        (
            "measured".to_owned(),
            format!("{} s, after {} s of warm-up", head.seconds, head.warm_up),
        ),
        (
            "broker".to_owned(),
            format!("alone on CPU {}", head.broker_cpu),
        ),
        (
            "load".to_owned(),
            format!("one thread on CPU {}", head.load_cpu),
        ),
    ];
    for (name, value) in facts.iter().chain(&head.machine.0) {
        put!(out, "<dt>{}</dt><dd>{}</dd>\n", escape(name), escape(value));
    }
    put!(
        out,
        "</dl></div>\n<p class=\"fine\">Rounds begin with another broker each, and every other one goes backwards. \
         1/n is how many times less a peer does than Ringpost in batches, n × how many times more, with the range that holds it with 95 % \
         confidence. <b>load-bound</b>: the load used {:.0} % of its CPU or more, so the broker may do better. A run in \
         which a message was lost, doubled, refused or out of order does not count and is said. All runs with their \
         histograms are in <code>rounds.jsonl</code> beside this page; <code>cargo run --release -p ringpost-bench \
         --bin versus -- --install</code> makes it anew.</p></section>\n",
        LOAD_BUSY_MAX * 100.0
    );
}
