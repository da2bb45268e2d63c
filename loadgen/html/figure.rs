//! Drawings: curves on logarithmic axes, a heat strip, bars of stages. Each is drawn twice, for wide
//! and for narrow screens, and the style shows one. Does not know what is drawn.

use hdrhistogram::Histogram;

use super::text::{escape, put};
use crate::report::{rate_of, time_of};
use crate::result::{Round, Times};

/// A line: places with what is said of each.
pub struct Line {
    /// What the legend calls it.
    pub name: String,
    /// Its colour, a class of the page's style: `c1` to `c8`, `quiet`.
    pub class: &'static str,
    /// x, y, and a name of the place.
    pub points: Vec<(f64, f64, String)>,
}

/// The room of a drawing.
#[derive(Clone, Copy)]
struct Frame {
    class: &'static str,
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

const WIDE: Frame = Frame {
    class: "wide",
    width: 860.0,
    height: 380.0,
    left: 74.0,
    right: 20.0,
    top: 18.0,
    bottom: 46.0,
};
const NARROW: Frame = Frame {
    class: "narrow",
    width: 380.0,
    height: 300.0,
    left: 58.0,
    right: 12.0,
    top: 18.0,
    bottom: 44.0,
};

impl Frame {
    fn open(&self, out: &mut String, label: &str) {
        put!(
            out,
            "<svg class=\"{}\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\" \
             xmlns=\"http://www.w3.org/2000/svg\">\n",
            self.class,
            self.width,
            self.height,
            escape(label)
        );
    }

    fn x(&self, share: f64) -> f64 {
        self.left + share * (self.width - self.left - self.right)
    }

    fn y(&self, share: f64) -> f64 {
        self.height - self.bottom - share * (self.height - self.top - self.bottom)
    }
}

/// An axis: what a value's share of its length is, and where it is labelled.
pub(super) struct Axis {
    from: f64,
    to: f64,
    is_log: bool,
}

impl Axis {
    /// From a bit below the least to a bit above the most, by whole thirds of decades.
    pub(super) fn log(values: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| *value > 0.0) {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            (low, high) = (1e3, 1e6);
        }
        let (low, high) = (low.log10() * 3.0, high.log10() * 3.0);
        let (mut low, mut high) = ((low - 0.3).floor() / 3.0, (high + 0.3).ceil() / 3.0);
        if high - low < 1.0 {
            // A decade at least, so that noise does not look like a mountain.
            let middle = f64::midpoint(low, high);
            (low, high) = (middle - 0.5, middle + 0.5);
        }
        Self {
            from: low,
            to: high,
            is_log: true,
        }
    }

    pub(super) fn linear(from: f64, to: f64) -> Self {
        Self {
            from,
            to: if to > from { to } else { from + 1.0 },
            is_log: false,
        }
    }

    pub(super) fn share(&self, value: f64) -> f64 {
        let value = if self.is_log {
            value.max(1e-9).log10()
        } else {
            value
        };
        ((value - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
    }

    /// Places of lines, and whether each has a label.
    pub(super) fn ticks(&self) -> Vec<(f64, bool)> {
        let mut ticks = Vec::new();
        if self.is_log {
            let is_short = self.to - self.from < 2.2;
            let mut decade = self.from.floor() as i32;
            while f64::from(decade) <= self.to {
                for (step, is_labelled) in [(1.0, true), (2.0, is_short), (5.0, is_short)] {
                    let value = step * 10f64.powi(decade);
                    let at = value.log10();
                    if at >= self.from - 1e-9 && at <= self.to + 1e-9 {
                        ticks.push((value, is_labelled));
                    }
                }
                decade += 1;
            }
            return ticks;
        }
        let raw = (self.to - self.from) / 6.0;
        let decade = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|step| step * decade)
            .find(|step| *step >= raw)
            .unwrap_or(raw);
        let mut at = (self.from / step).ceil() * step;
        while at <= self.to + step * 1e-6 {
            ticks.push((at, true));
            at += step;
        }
        ticks
    }
}

/// A time on an axis: `1 ms`, not `1.00 ms`.
pub(super) fn tick_time(ns: f64) -> String {
    let (value, unit) = match ns {
        _ if ns < 999.0 => (ns, "ns"),
        _ if ns < 999e3 => (ns / 1e3, "µs"),
        _ if ns < 999e6 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    let text = format!("{value:.3}");
    format!(
        "{} {unit}",
        text.trim_end_matches('0').trim_end_matches('.')
    )
}

/// A rate on an axis: `25k`.
pub(super) fn tick_rate(rate: f64) -> String {
    let (value, unit) = match rate {
        _ if rate < 1e3 => (rate, ""),
        _ if rate < 1e6 => (rate / 1e3, "k"),
        _ => (rate / 1e6, "M"),
    };
    let text = format!("{value:.2}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

fn legend(out: &mut String, lines: &[Line]) {
    if lines.len() < 2 {
        return;
    }
    put!(out, "<ul class=\"legend\">");
    for line in lines {
        put!(
            out,
            "<li><i class=\"{}\"></i>{}</li>",
            line.class,
            escape(&line.name)
        );
    }
    put!(out, "</ul>\n");
}

fn y_axis(out: &mut String, frame: &Frame, axis: &Axis) {
    for (value, is_labelled) in axis.ticks() {
        let y = frame.y(axis.share(value));
        let class = if is_labelled { "grid" } else { "grid faint" };
        put!(
            out,
            "<line class=\"{class}\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
            frame.x(0.0),
            frame.x(1.0)
        );
        if is_labelled {
            put!(
                out,
                "<text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                frame.left - 8.0,
                y + 4.0,
                tick_time(value)
            );
        }
    }
    out.push('\n');
}

fn x_tick(out: &mut String, frame: &Frame, share: f64, text: &str) {
    let x = frame.x(share);
    let anchor = match share {
        _ if share < 0.02 => "start",
        _ if share > 0.98 => "end",
        _ => "middle",
    };
    put!(
        out,
        "<line class=\"grid faint\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
         <text class=\"tick\" text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{:.1}\">{text}</text>",
        frame.y(0.0),
        frame.y(1.0),
        frame.y(0.0) + 18.0
    );
}

fn x_name(out: &mut String, frame: &Frame, text: &str) {
    put!(
        out,
        "<text class=\"axis\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{text}</text>\n",
        frame.x(0.5),
        frame.height - 6.0
    );
}

/// Lines, the first on top; those below are wider, so that one that hides behind another is seen.
fn draw_all(out: &mut String, frame: &Frame, lines: &[Line], x: &Axis, y: &Axis) {
    let step = if lines.len() <= 5 { 1.3 } else { 0.0 };
    for (depth, line) in lines.iter().enumerate().rev() {
        let width = (2.2 + step * depth as f64).min(4.8);
        put!(out, "<g style=\"--width:{width:.1}\">");
        draw(out, frame, line, x, y, false);
        put!(out, "</g>");
    }
}

fn draw(out: &mut String, frame: &Frame, line: &Line, x: &Axis, y: &Axis, has_dots: bool) {
    let places: Vec<_> = line
        .points
        .iter()
        .map(|(at, value, _)| (frame.x(x.share(*at)), frame.y(y.share(*value))))
        .collect();
    put!(out, "<polyline class=\"line {}\" points=\"", line.class);
    for (x, y) in &places {
        put!(out, "{x:.1},{y:.1} ");
    }
    put!(out, "\"/>");
    for ((x, y), (_, value, name)) in places.iter().zip(&line.points) {
        put!(
            out,
            "<circle class=\"{}{}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{}\" data-t=\"{} · {}: {}\"/>",
            line.class,
            if has_dots { " dot" } else { " spot" },
            if has_dots { 3.5 } else { 3.0 },
            escape(&line.name),
            escape(name),
            time_of(*value as u64)
        );
    }
    out.push('\n');
}

fn mark(out: &mut String, frame: &Frame, share: f64, text: &str, row: usize) {
    let x = frame.x(share);
    let (anchor, shift) = if share > 0.7 {
        ("end", -6.0)
    } else {
        ("start", 6.0)
    };
    put!(
        out,
        "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
         <text class=\"note\" text-anchor=\"{anchor}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
        frame.y(0.0),
        frame.y(1.0),
        x + shift,
        frame.y(1.0) + 13.0 + 15.0 * row as f64,
        escape(text)
    );
}

fn figure(out: &mut String, label: &str, mut one: impl FnMut(&mut String, &Frame)) {
    put!(out, "<figure>\n");
    for frame in [WIDE, NARROW] {
        frame.open(out, label);
        one(out, &frame);
        put!(out, "</svg>\n");
    }
    put!(out, "</figure>\n");
}

/// Latency over the rate.
pub(super) fn curve(out: &mut String, lines: &[Line], marks: &[(f64, String)]) {
    let rates = || {
        lines
            .iter()
            .flat_map(|line| &line.points)
            .map(|point| point.0)
    };
    let (low, high) = (
        rates().fold(f64::INFINITY, f64::min),
        rates().fold(0.0, f64::max),
    );
    if high <= 0.0 {
        put!(out, "<p class=\"none\">No run can be reported.</p>\n");
        return;
    }
    let x = if high / low > 20.0 {
        Axis::log(rates())
    } else {
        Axis::linear(0.0, high * 1.03)
    };
    let y = Axis::log(
        lines
            .iter()
            .flat_map(|line| &line.points)
            .map(|point| point.1),
    );
    legend(out, lines);
    figure(out, "latency over the rate", |out, frame| {
        y_axis(out, frame, &y);
        let is_short = frame.class == "narrow";
        for (at, (value, is_labelled)) in x.ticks().into_iter().enumerate() {
            if is_labelled && !(is_short && at % 2 == 1 && !x.is_log) {
                x_tick(out, frame, x.share(value), &tick_rate(value));
            }
        }
        x_name(out, frame, "messages a second, offered");
        for (row, (at, text)) in marks.iter().enumerate() {
            mark(out, frame, x.share(*at), text, row);
        }
        for line in lines {
            draw(out, frame, line, &x, &y, true);
        }
    });
}

/// A drawing of percentiles; x counts nines.
pub fn spectrum(out: &mut String, lines: &[Line]) {
    let points = || lines.iter().flat_map(|line| &line.points);
    let most = points().map(|point| point.0).fold(1.0, f64::max);
    let x = Axis::linear(0.0, most);
    let y = Axis::log(points().map(|point| point.1));
    legend(out, lines);
    figure(out, "percentiles", |out, frame| {
        y_axis(out, frame, &y);
        let names = [
            "0",
            "90 %",
            "99 %",
            "99.9 %",
            "99.99 %",
            "99.999 %",
            "99.9999 %",
        ];
        for (nines, name) in names.iter().enumerate() {
            let share = nines as f64 / most;
            let is_crowded = frame.class == "narrow" && most > 3.6 && nines % 2 == 1;
            if share <= 1.0 && !is_crowded {
                x_tick(out, frame, share, name);
            }
        }
        x_name(
            out,
            frame,
            "share of the messages that took at most so long",
        );
        draw_all(out, frame, lines, &x, &y);
    });
}

/// Latency over time, as cells for each interval and each sixth of a decade.
pub(super) fn strip(out: &mut String, round: &Round, series: &str) {
    const ROWS_PER_DECADE: f64 = 6.0;
    let columns: Vec<_> = round
        .intervals
        .iter()
        .filter_map(|interval| Some((interval, &interval.times.get(series)?.0)))
        .filter(|(_, times)| !times.is_empty())
        .collect();
    let Some((last, _)) = columns.last() else {
        return;
    };
    let low = columns.iter().map(|(_, times)| times.min().max(1)).min();
    let high = columns.iter().map(|(_, times)| times.max()).max();
    let (Some(low), Some(high)) = (low, high) else {
        return;
    };
    let from = (low as f64).log10() * ROWS_PER_DECADE;
    let to = (high as f64).log10() * ROWS_PER_DECADE;
    let (from, to) = (from.floor(), (to + 1e-9).floor() + 1.0);
    let y = Axis {
        from: from / ROWS_PER_DECADE,
        to: to / ROWS_PER_DECADE,
        is_log: true,
    };
    let x = Axis::linear(0.0, last.start + last.seconds);
    // Counts in rows; the colour goes by the share within the column, by its logarithm.
    let rows = (to - from) as usize;
    let mut cells = Vec::new();
    for (interval, times) in &columns {
        let mut counts = vec![0u64; rows];
        for bucket in times.iter_recorded() {
            let value = (bucket.value_iterated_to().max(1)) as f64;
            let row = (value.log10() * ROWS_PER_DECADE - from).floor().max(0.0) as usize;
            counts[row.min(rows - 1)] += bucket.count_at_value();
        }
        for (row, count) in counts
            .into_iter()
            .enumerate()
            .filter(|(_, count)| *count > 0)
        {
            let share = count as f64 / times.len() as f64;
            // One in a million is just visible, all is full.
            let shade = (1.0 + share.log10() / 6.0).clamp(0.08, 1.0);
            cells.push((interval, row, count, share, shade));
        }
    }
    // The p99 where at least ten messages of an interval lie above it, else the p90.
    let has_many = |times: &Histogram<u64>| times.len() >= 1_000;
    let many = columns.iter().filter(|(_, times)| has_many(times)).count();
    let (name, at, least) = match many * 2 >= columns.len() {
        true => ("p99", 0.99, 1_000),
        false => ("p90", 0.9, 100),
    };
    let points: Vec<_> = columns
        .iter()
        .filter(|(_, times)| times.len() >= least)
        .map(|(interval, times)| {
            let middle = interval.start + interval.seconds / 2.0;
            let place = format!("{:.2} s", interval.start);
            (middle, times.value_at_quantile(at) as f64, place)
        })
        .collect();
    if !points.is_empty() {
        put!(
            out,
            "<ul class=\"legend\"><li><i class=\"over\"></i>{name} of the interval</li></ul>\n"
        );
    }
    let line = Line {
        name: name.into(),
        class: "over",
        points,
    };
    figure(out, "latency over time", |out, frame| {
        y_axis(out, frame, &y);
        for (at, (value, _)) in x.ticks().into_iter().enumerate() {
            if frame.class == "wide" || at % 2 == 0 {
                x_tick(
                    out,
                    frame,
                    x.share(value),
                    &format!("{} s", tick_rate(value)),
                );
            }
        }
        for (interval, row, count, share, shade) in &cells {
            let left = frame.x(x.share(interval.start));
            let right = frame.x(x.share(interval.start + interval.seconds));
            let edge = |row: usize| frame.y(row as f64 / rows as f64);
            let (top, bottom) = (edge(row + 1), edge(*row));
            let lower = 10f64.powf((from + *row as f64) / ROWS_PER_DECADE);
            let upper = 10f64.powf((from + *row as f64 + 1.0) / ROWS_PER_DECADE);
            put!(
                out,
                "<rect class=\"heat\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" \
                 fill-opacity=\"{shade:.2}\"><title>{:.2} s: {} messages ({:.3} %) took {} to {}</title></rect>",
                (right - left - 0.6).max(0.4),
                (bottom - top - 0.6).max(0.4),
                interval.start,
                rate_of(*count as f64),
                share * 100.0,
                tick_time(lower.round()),
                tick_time(upper.round())
            );
        }
        x_name(out, frame, "time since measuring began");
        for (row, (at, text)) in round.marks.iter().enumerate() {
            mark(out, frame, x.share(*at), text, row);
        }
        draw(out, frame, &line, &x, &y, false);
    });
}

/// Stages as bars to their p50, p99 and p99.9.
pub(super) fn stages(out: &mut String, stages: &[(String, Times)]) {
    let shown: Vec<_> = stages
        .iter()
        .filter(|(_, times)| !times.0.is_empty())
        .collect();
    if shown.is_empty() {
        put!(out, "<p class=\"none\">No message passed a stage.</p>\n");
        return;
    }
    let ends = |times: &Times| [0.5, 0.99, 0.999].map(|at| times.0.value_at_quantile(at) as f64);
    let all = shown.iter().flat_map(|(_, times)| ends(times));
    let x = Axis::log(all);
    put!(
        out,
        "<ul class=\"legend\"><li><i class=\"b1\"></i>to p50</li><li><i class=\"b2\"></i>to p99</li>\
         <li><i class=\"b3\"></i>to p99.9</li></ul>\n"
    );
    figure(out, "stages of a message", |out, frame| {
        let each = (frame.height - frame.top - frame.bottom) / shown.len() as f64;
        let left = Frame {
            left: if frame.class == "wide" { 110.0 } else { 92.0 },
            ..*frame
        };
        for (at, (value, is_labelled)) in x.ticks().into_iter().enumerate() {
            if is_labelled && (frame.class == "wide" || at % 2 == 0 || x.to - x.from < 4.0) {
                x_tick(out, &left, x.share(value), &tick_time(value));
            }
        }
        for (at, (name, times)) in shown.iter().enumerate() {
            let top = left.top + each * at as f64;
            put!(
                out,
                "<text class=\"label\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                left.left - 8.0,
                top + each / 2.0 + 4.0,
                escape(&name.replace('_', " "))
            );
            let mut from = left.x(0.0);
            let words = ["p50", "p99", "p99.9"];
            for ((end, class), word) in ends(times).into_iter().zip(["b1", "b2", "b3"]).zip(words) {
                let to = left.x(x.share(end)).max(from);
                put!(
                    out,
                    "<rect class=\"bar {class}\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\">\
                     <title>{} {word}: {}</title></rect>",
                    top + each * 0.18,
                    to - from,
                    each * 0.64,
                    escape(name),
                    time_of(end as u64)
                );
                from = to;
            }
        }
        x_name(out, &left, "time in the stage");
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logarithmic_axis_holds_all_values_and_labels_decades() {
        let axis = Axis::log([1.2e4, 3.4e7].into_iter());
        assert!(axis.share(1.2e4) > 0.0 && axis.share(3.4e7) < 1.0);
        let half = axis.share(1.2e5) - axis.share(1.2e4);
        assert!((axis.share(1.2e6) - axis.share(1.2e5) - half).abs() < 1e-9);
        let labels: Vec<_> = axis
            .ticks()
            .into_iter()
            .filter(|(_, is_labelled)| *is_labelled)
            .map(|(value, _)| tick_time(value))
            .collect();
        assert_eq!(labels, ["10 µs", "100 µs", "1 ms", "10 ms"]);
        let narrow = Axis::log([1e6, 1.01e6].into_iter());
        assert!(narrow.to - narrow.from >= 1.0 - 1e-9);
    }

    #[test]
    fn a_linear_axis_has_round_ticks() {
        let ticks: Vec<_> = Axis::linear(0.0, 110.0).ticks();
        let values: Vec<_> = ticks.iter().map(|(value, _)| *value).collect();
        assert_eq!(values, [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(Axis::linear(0.0, 0.0).share(0.5), 0.5);
    }

    #[test]
    fn ticks_are_said_shortly() {
        assert_eq!(tick_time(2e6), "2 ms");
        assert_eq!(tick_time(5e2), "500 ns");
        assert_eq!(tick_rate(25_000.0), "25k");
        assert_eq!(tick_rate(1_250_000.0), "1.25M");
    }

    #[test]
    fn what_others_named_stays_text() {
        let line = Line {
            name: "<b>".into(),
            class: "c1",
            points: vec![(0.0, 1e3, "\"p0\"".into()), (2.0, 1e5, "p99".into())],
        };
        let mut out = String::new();
        spectrum(&mut out, &[line]);
        assert!(!out.contains("<b>") && out.contains("&lt;b&gt; · &quot;p0&quot;: 1.00 µs"));
        assert_eq!(out.matches("<svg").count(), 2);
    }
}
