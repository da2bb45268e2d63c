//! The sections about the broker and its device: where the time goes, what it cost, and what the device
//! does alone.

use super::figure;
use super::latency::line;
use super::text::{capital, escape, put};
use super::{chief, open};
use crate::report::{device_change, device_ratio, percentile, rate_of, time_of};
use crate::result::{Results, Round};
use crate::stages::ORDER;

pub(super) fn stages(out: &mut String, results: &Results) {
    let Some(round) = chief(results) else {
        return;
    };
    open(
        out,
        "stages",
        "Where the time goes",
        "Stages of a message inside the broker, by its own clocks: what it counted during the run. Bars reach \
         to the p50, the p99 and the p99.9. Percentiles of stages do not add up to that of the whole.",
    );
    if !round.stages.is_empty() {
        figure::stages(out, &round.stages);
        put!(
            out,
            "<div class=\"scroll\"><table><thead><tr><th class=\"word\">stage</th><th>p50</th><th>p99</th>\
             <th>p99.9</th><th>max</th><th>samples</th></tr></thead><tbody>\n"
        );
        for (name, times) in &round.stages {
            let times = &times.0;
            put!(out, "<tr><td class=\"word\">{}</td>", escape(name));
            for at in [0.5, 0.99, 0.999] {
                let cell = percentile(times, at);
                put!(out, "<td>{cell}</td>");
            }
            let max = match times.is_empty() {
                true => "–".to_owned(),
                false => time_of(times.max()),
            };
            put!(
                out,
                "<td>{max}</td><td>{}</td></tr>\n",
                rate_of(times.len() as f64)
            );
        }
        put!(out, "</tbody></table></div>\n");
    }
    if let Some(why) = &round.stages_missing {
        put!(
            out,
            "<div class=\"banner\"><b>{}</b> {}. The stages are {}.</div>\n",
            match round.stages.is_empty() {
                true => "No stages.",
                false => "Not all stages.",
            },
            escape(&capital(why)),
            ORDER.join(", ")
        );
    }
    put!(out, "</section>\n");
}

pub(super) fn cost(out: &mut String, results: &Results) {
    let rounds: Vec<_> = results
        .rounds
        .iter()
        .filter(|round| round.invalid.is_none())
        .collect();
    open(
        out,
        "cost",
        "Cost",
        "What the broker used for a message, and how many messages shared one durable write (group commit).",
    );
    let is_known = |round: &&Round| {
        let usage = &round.usage;
        usage.cpus.is_some() || usage.writes.is_some() || usage.written_per_payload.is_some()
    };
    if !rounds.iter().any(is_known) {
        put!(
            out,
            "<div class=\"banner\"><b>Not known.</b> Of a run that is reported --broker-pid names the broker's process, for its \
             CPU time and what it writes; --admin its port, for group commits.</div></section>\n"
        );
        return;
    }
    put!(
        out,
        "<div class=\"scroll\"><table><thead><tr><th class=\"word\">run</th><th>CPU a message</th>\
         <th>CPUs used</th><th>group commits</th><th>messages in one</th><th>bytes of one</th>\
         <th>device busy</th><th>written ÷ payload</th></tr></thead><tbody>\n"
    );
    let cell =
        |value: Option<f64>, say: &dyn Fn(f64) -> String| value.map_or_else(|| "–".to_owned(), say);
    for round in rounds {
        let usage = &round.usage;
        put!(
            out,
            "<tr><td class=\"word\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td></tr>\n",
            escape(&round.name),
            cell(usage.cpu_ns_per_message, &|ns| time_of(ns as u64)),
            cell(usage.cpus, &|cpus| format!("{cpus:.2}")),
            cell(usage.writes.map(|writes| writes / round.seconds), &|rate| {
                format!("{} /s", rate_of(rate))
            }),
            cell(usage.messages_per_write, &|count| format!("{count:.1}")),
            cell(usage.bytes_per_write, &rate_of),
            cell(usage.device_busy, &|busy| format!("{:.0} %", busy * 100.0)),
            cell(usage.written_per_payload, &|ratio| format!("{ratio:.2}")),
        );
    }
    put!(out, "</tbody></table></div></section>\n");
}

pub(super) fn device(out: &mut String, results: &Results) {
    open(
        out,
        "device",
        "The device without a broker",
        "One thread writes one block after the other with O_DSYNC to a file that was written before, before and \
         after the runs. A durable confirm waits for one such write at least.",
    );
    let Some(device) = &results.device else {
        put!(
            out,
            "<div class=\"banner\"><b>Not measured.</b> --device-dir names a directory on the broker's \
             device.</div></section>\n"
        );
        return;
    };
    let mut lines = vec![
        line("device, before", "c3", &device.before.0),
        line("device, after", "c4", &device.after.0),
    ];
    if let Some(confirm) = chief(results).and_then(|round| round.times("confirm")) {
        lines.insert(0, line("confirm", "c1", confirm));
    }
    figure::spectrum(out, &lines);
    put!(
        out,
        "<p class=\"fine\">{} B in {} ({}).",
        device.bytes,
        escape(&device.directory),
        escape(&device.file_system)
    );
    match device_ratio(results) {
        Some(ratio) => put!(
            out,
            " The p99 of confirms is <b>{ratio:.2} ×</b> that of the device."
        ),
        None if !results.class.is_durable => {
            put!(
                out,
                " Confirms of this run are not durable: no ratio means anything."
            );
        }
        None => {}
    }
    if let Some(text) = device_change(results) {
        put!(out, " <b>Caution:</b> {}.", escape(&text));
    }
    put!(out, "</p></section>\n");
}
