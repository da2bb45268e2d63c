#!/usr/bin/env bash
# The figures of the proof as one table, from what the stages of .ci/run last said: seeds, crashes,
# planted bugs, crash images, kills, faults. A figure whose stage has not run is an empty cell.
#
#   tests/long/table.sh              after .ci/run, or after some of its stages
#   tests/long/table.sh LOG...       of other outputs: of ringpost-sim, ringpost-crash, cargo test
#
# Needs nothing but awk. Reads text only; who wants other figures runs the command beside them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

target="${CI_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/ringpost-ci/target}"
logs=("$@")
((${#logs[@]})) || logs=("$target"/ci/*.log)

cat -- "${logs[@]}" 2>/dev/null | awk '
    function row(what, aim, reached, command) {
        printf "| %s | %s | %s | `%s` |\n", what, aim, reached, command
    }
    # A number before a word, or "" if there is none.
    function before(text, word,    parts) {
        return match(text, "[0-9]+ " word) ? substr(text, RSTART, RLENGTH - length(word) - 1) : ""
    }
    # 10000 seeds in 300.0 s (33.3/s), 9000000 published, ..., 90000 crashes, ...
    /^[0-9]+ seeds in / {
        seeds = $1; published = before($0, "published"); crashes = before($0, "crashes")
        spent = $4 " s"
    }
    /^[0-9]+ failing seeds; / { failing = $1; twice = before($0, "seeds run twice") }
    /^lowest of / { sub(/^lowest of [0-9]+ marks: /, ""); sub(/,.*/, ""); lowest = $0 }
    / planted bugs died, / {
        died = $1 " of " $3; late = before($0, "of them after")
    }
    /^(ext4|xfs): recorded / {
        name = $1; sub(/:$/, "", name)
        images[name] = before($0, "images,"); starts[name] = before($0, "of them with a start")
        recoveries[name] = before($0, "cut off in its")
        match($0, /lies: [0-9]+ of [0-9]+/)
        caught[name] = substr($0, RSTART + 6, RLENGTH - 6)
    }
    /^(ext4|xfs): .*: right; / { right[$1]++; faults++; name = $1; sub(/:$/, "", name); faulty[name] = right[$1] }
    / kills under load, / {
        kills += before($0, "kills under load"); kills_late += before($0, "in recovery")
    }
    END {
        print "| What | To reach | Reached | Command |"
        print "|---|---|---|---|"
        row("seeds of whole worlds", "10,000", seeds, ".ci/run sim")
        row("publishes in them", "10,000,000", published, ".ci/run sim")
        row("crashes in them", "60,000", crashes, ".ci/run sim")
        row("seeds that failed", "0", failing, ".ci/run sim")
        row("time for them", "", spent, ".ci/run sim")
        row("seeds run twice, with equal traces", "200", twice, ".ci/run sim")
        row("the mark hit least", "100", lowest, ".ci/run sim")
        row("planted bugs that died", "25", died, ".ci/run mutants")
        row("of them after more than 50 seeds", "5", late, ".ci/run mutants")
        for (i = split("ext4 xfs", names, " "); i > 0; i--) {
            name = names[3 - i]; aim = name == "ext4" ? "2,000" : "300"
            row("crash images of " name ", 0 lost", aim, images[name], ".ci/run crash")
            row("of them with a start of the broker", name == "ext4" ? "200" : "", starts[name], ".ci/run crash")
            row("of them cut off in recovery", "", recoveries[name], ".ci/run crash")
            row("lying disk of " name " noticed", "80 %", caught[name], ".ci/run crash")
            row("disk faults under " name ", right", "24", faulty[name], ".ci/run crash")
        }
        row("kills under load, 0 lost", "500", kills, "cargo test --test kill -- --nocapture")
        row("kills in recovery", "", kills_late, "the same")
    }'
