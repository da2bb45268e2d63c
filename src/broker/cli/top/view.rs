//! Draws the pictures of `top`, on a terminal or as text. Does not know where figures come from.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};

use super::figures::{CoreFigures, Figures, QueueFigures, Rate, StageFigures};
use crate::cli::{numbers, output};
use crate::control::numbers::Numbers;

const CORE_HEADS: [&str; 12] = [
    "core",
    "phase",
    "publish/s",
    "deliver/s",
    "settle/s",
    "MB/s",
    "write/s",
    "KiB each",
    "confirm/s",
    "conns",
    "buffers",
    "ring",
];
const STAGE_HEADS: [&str; 6] = ["stage", "messages/s", "p50", "p99", "p99.9", "max"];
const QUEUE_HEADS: [&str; 12] = [
    "queue",
    "in/s",
    "out/s",
    "ready",
    "unacked",
    "wait p50",
    "wait p99",
    "by Little",
    "outlook",
    "bytes",
    "consumers",
    "core",
];

/// How heads of tables look.
const HEAD: Style = Style::new()
    .fg(Color::Cyan)
    .add_modifier(Modifier::UNDERLINED);

/// A picture as text: tables one below the other.
pub fn text(figures: &Figures) -> String {
    let mut text = format!("{}\n", head(figures));
    for reason in &figures.reasons {
        text.push_str(&format!("{reason}\n"));
    }
    let cores: Vec<_> = figures.cores.iter().map(core_cells).collect();
    let stages: Vec<_> = figures
        .stages
        .iter()
        .map(|stage| stage_cells(stage, figures.interval))
        .collect();
    text.push('\n');
    text.push_str(&text_table(&CORE_HEADS, &cores));
    text.push('\n');
    text.push_str(&text_table(&STAGE_HEADS, &stages));
    text.push('\n');
    match &figures.queues {
        Ok(queues) => {
            let queues: Vec<_> = queues.iter().map(queue_cells).collect();
            text.push_str(&text_table(&QUEUE_HEADS, &queues));
        }
        Err(why) => text.push_str(&format!("queues are not known: {why}\n")),
    }
    text.push('\n');
    text
}

/// A picture on a terminal. `first` is the first queue that is shown; it is brought within bounds.
pub fn draw(frame: &mut Frame, figures: &Figures, first: &mut usize, is_held: bool) {
    let reasons = figures.reasons.len() as u16;
    let parts = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(reasons),
        Constraint::Length(figures.cores.len().min(64) as u16 + 2),
        Constraint::Length(figures.stages.len() as u16 + 2),
        Constraint::Min(2),
        Constraint::Length(1),
    ]);
    let [top, why, cores, stages, queues, bottom] = parts.areas(frame.area());
    let state = if figures.reasons.is_empty() {
        Style::new().fg(Color::Green)
    } else {
        Style::new().fg(Color::Red)
    };
    let bold = state.add_modifier(Modifier::BOLD);
    frame.render_widget(Line::from(Span::styled(head(figures), bold)), top);
    let reasons = figures.reasons.iter().map(|reason| reason.as_str().into());
    frame.render_widget(Text::from(reasons.collect::<Vec<Line>>()).style(state), why);
    let rows: Vec<_> = figures.cores.iter().map(core_cells).collect();
    table(frame, cores, &CORE_HEADS, &rows);
    let rows = figures.stages.iter();
    let rows = rows.map(|stage| stage_cells(stage, figures.interval));
    table(frame, stages, &STAGE_HEADS, &rows.collect::<Vec<_>>());
    let mut keys = format!(
        " q end   p {}   s sort: {}",
        if is_held { "let go" } else { "hold" },
        figures.order.word()
    );
    match &figures.queues {
        Ok(all) => {
            let room = usize::from(queues.height.saturating_sub(1));
            *first = (*first).min(all.len().saturating_sub(room.max(1)));
            let last = all.len().min(*first + room);
            if last - *first < all.len() {
                let count = all.len();
                keys.push_str(&format!("   queues {} to {last} of {count}", *first + 1));
            }
            let lines = queue_lines(all, usize::from(queues.width / 3));
            let shown = lines[1..][*first..last].iter();
            let shown = shown.map(|line| line.as_str().into());
            let head = Line::styled(lines[0].as_str(), HEAD);
            let shown: Vec<_> = [head].into_iter().chain(shown).collect();
            frame.render_widget(Text::from(shown), queues);
        }
        Err(why) => {
            let line = format!("queues are not known: {why}");
            frame.render_widget(Line::styled(line, Style::new().fg(Color::Yellow)), queues);
        }
    }
    let dim = Style::new().add_modifier(Modifier::DIM);
    frame.render_widget(Line::styled(keys, dim), bottom);
}

/// The table of all queues, as wide as all of them need, so that nothing jumps when they move.
fn queue_lines(queues: &[QueueFigures], name_most: usize) -> Vec<String> {
    let rows = queues.iter().map(|queue| {
        let mut cells = queue_cells(queue);
        cells[0] = shortened(&cells[0], name_most);
        cells
    });
    lines(&QUEUE_HEADS, &rows.collect::<Vec<_>>())
}

/// The lines of a table: words to the left, figures to the right.
fn lines(heads: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let words = ["core", "queue", "stage", "phase", "outlook"];
    output::lines(heads, rows, |column| !words.contains(&heads[column]))
}

fn text_table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let lines = lines(heads, rows);
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// What does not fit into the area is cut off.
fn table(frame: &mut Frame, area: Rect, heads: &[&str], rows: &[Vec<String>]) {
    let styles = rows.iter().map(|row| match row[1].as_str() {
        "fail_stopped" | "gone" | "silent" => Style::new().fg(Color::Red),
        _ => Style::new(),
    });
    let lines = lines(heads, rows)
        .into_iter()
        .zip([HEAD].into_iter().chain(styles));
    let lines: Vec<_> = lines
        .map(|(line, style)| Line::styled(line, style))
        .collect();
    frame.render_widget(Text::from(lines), area);
}

fn head(figures: &Figures) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let up = now.map_or(0, |now| now.as_secs().saturating_sub(figures.started));
    let state = if figures.reasons.is_empty() {
        "ready"
    } else {
        "not ready"
    };
    format!(
        "ringpost {}, {state}, up {}, the last {}",
        figures.version,
        output::span(Duration::from_secs(up)),
        output::span(figures.interval)
    )
}

fn core_cells(core: &CoreFigures) -> Vec<String> {
    let now = &core.now;
    let each = if core.writes > 0.0 {
        format!("{:.1}", core.write_bytes / core.writes / 1024.0)
    } else {
        "-".into()
    };
    let held = now.buffers_total.saturating_sub(now.buffers_free);
    vec![
        now.core.to_string(),
        now.phase.clone(),
        grouped(core.publishes),
        grouped(core.deliveries),
        grouped(core.settles),
        format!("{:.1}", (core.publish_bytes + core.delivery_bytes) / 1e6),
        grouped(core.writes),
        each,
        grouped(core.confirms),
        now.connections.to_string(),
        format!("{held}/{}", now.buffers_total),
        format!("{}/{}", now.ring_occupied, now.ring_capacity),
    ]
}

fn stage_cells(stage: &StageFigures, interval: Duration) -> Vec<String> {
    let seconds = interval.as_secs_f64();
    let rate = if seconds > 0.0 {
        grouped(stage.count as f64 / seconds)
    } else {
        "-".into()
    };
    let mut cells = vec![stage.name.clone(), rate];
    cells.extend(stage.ns.map(|ns| match stage.count {
        0 => "-".into(),
        _ => output::latency(ns),
    }));
    cells
}

fn queue_cells(queue: &QueueFigures) -> Vec<String> {
    let now = &queue.now;
    let numbers = Numbers::of(now);
    let [_, _, p50, p99, little, outlook] = numbers::cells(&numbers, now.is_damaged);
    vec![
        now.name.clone(),
        grouped(queue.arrives),
        grouped(queue.leaves),
        grouped(now.ready as f64),
        grouped(now.unacked as f64),
        p50,
        p99,
        little,
        outlook,
        size(now.bytes),
        now.consumers.to_string(),
        now.core.to_string(),
    ]
}

/// A name that is too long loses its middle: names of queues differ at their ends.
fn shortened(name: &str, most: usize) -> String {
    let count = name.chars().count();
    if count <= most || most < 3 {
        return name.to_owned();
    }
    let front = (most - 1) / 2;
    let back = most - 1 - front;
    let mut text: String = name.chars().take(front).collect();
    text.push('…');
    text.extend(name.chars().skip(count - back));
    text
}

/// A rate, to the whole number.
fn grouped(rate: Rate) -> String {
    output::grouped(rate.round() as u64)
}

/// Bytes in the largest unit that keeps a digit before the point.
fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::figures::Order;
    use super::super::figures::tests::{sample, with_queues};
    use super::*;

    fn figures(queues: u32) -> Figures {
        let before = sample(0, 1_000);
        let now = with_queues(sample(1, 3_000), queues);
        Figures::between(&before, &now, Order::Name)
    }

    #[test]
    fn text_shows_everything() {
        let text = text(&figures(2));
        for word in [
            "not ready",
            "core 1: gone",
            "fail_stopped",
            "2,000",
            "journal",
            "queue-1",
        ] {
            assert!(text.contains(word), "{word} in\n{text}");
        }
    }

    /// Whatever the terminal is: what fits is drawn, from a queue that exists.
    #[test]
    fn every_size_is_drawn() {
        for queues in [0, 1, 40] {
            let figures = figures(queues);
            for (columns, rows) in [(1, 1), (20, 5), (80, 24), (200, 60)] {
                let backend = TestBackend::new(columns, rows);
                let mut terminal = Terminal::new(backend).expect("memory takes everything");
                let mut first = usize::MAX;
                let draw = |frame: &mut Frame| draw(frame, &figures, &mut first, false);
                terminal.draw(draw).expect("memory takes everything");
                assert!(first == 0 || first < queues as usize);
                if (columns, rows, queues) == (80, 24, 40) {
                    let screen = terminal.backend().to_string();
                    assert!(screen.contains("queue-39"), "{screen}");
                    assert!(screen.contains(" of 40"), "{screen}");
                }
            }
        }
    }

    #[test]
    fn long_names_lose_their_middle() {
        assert_eq!(shortened("orders", 6), "orders");
        assert_eq!(shortened("orders.eu.1", 7), "ord…u.1");
        assert_eq!(shortened("größe-1", 4), "g…-1");
        assert_eq!(shortened("orders", 0), "orders");
    }

    #[test]
    fn figures_have_units() {
        assert_eq!(
            [999, 1_234, 99_950, 1_500_000, 12_000_000_000].map(output::latency),
            ["999 ns", "1.23 us", "100 us", "1.50 ms", "12.0 s"]
        );
        assert_eq!(
            [0, 1_023, 1_536, 5 << 40].map(size),
            ["0 B", "1023 B", "1.5 KiB", "5.0 TiB"]
        );
        let spans = [0.5, 5.0, 65.0, 7_260.0, 90_000.0, 1e18];
        let spans = spans.map(|seconds| output::span(Duration::from_secs_f64(seconds)));
        assert_eq!(
            spans,
            [
                "500 ms",
                "5.0 s",
                "1 min 5 s",
                "2 h 1 min",
                "1 d 1 h",
                "years"
            ]
        );
    }
}
