#!/usr/bin/env bash
# The figures of the proof as one table, from what the stages of .ci/run last said: seeds, crashes,
# planted bugs, crash images, kills, faults. A figure whose stage has not run is an empty cell.
#
#   tests/long/table.sh              after .ci/run, or after some of its stages
#   tests/long/table.sh LOG...       of other outputs: of ringpost-sim, ringpost-crash, cargo test
#   LONG=1 tests/long/table.sh ...   beside what tests/long/deep.sh is to reach
#
# Needs nothing but awk. Reads text only; who wants other figures runs the command beside them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

target="${CI_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/ringpost-ci/target}"
logs=("$@")
((${#logs[@]})) || logs=("$target"/ci/*.log)

cat -- "${logs[@]}" 2>/dev/null | awk -v long="${LONG:-}" '
    function row(what, aim, reached, command) {
        printf "| %s | %s | %s | `%s` |\n", what, aim, reached, command
    }
    # A number before a word, or "" if there is none.
    function before(text, word,    parts) {
        return match(text, "[0-9]+ " word) ? substr(text, RSTART, RLENGTH - length(word) - 1) : ""
    }
    # 10000 seeds in 300.0 s (33.3/s), 9000000 published, ..., 90000 crashes, ...
    /^[0-9]+ seeds in / {
        seeds += $1; published += before($0, "published"); crashes += before($0, "crashes")
        spent += $4
    }
    /^[0-9]+ failing seeds; / { failing += $1; twice += before($0, "seeds run twice") }
    /^the median world: / {
        median = $4 " queues, " $7 " cores, " $9 " levels"
        match($0, /[0-9]+ %/); in_writes = substr($0, RSTART, RLENGTH)
    }
    /^lowest of / { sub(/^lowest of [0-9]+ marks: /, ""); sub(/,.*/, ""); lowest = $0 }
    / planted bugs died, / {
        died = $1 " of " $3; late = before($0, "of them after")
    }
    /^(ext4|xfs): recorded / {
        name = $1; sub(/:$/, "", name)
        images[name] += before($0, "images,"); starts[name] += before($0, "of them with a start")
        recoveries[name] += before($0, "cut off in its")
        programs[name] += before($0, "read by its program")
        cached[name] += before($0, "images with unflushed writes")
        match($0, /on average: [0-9]+/)
        stake[name] = substr($0, RSTART + 12, RLENGTH - 12)
        match($0, /lies: [0-9]+ of [0-9]+/)
        split(substr($0, RSTART + 6, RLENGTH - 6), lies, " of ")
        noticed[name] += lies[1]; lied[name] += lies[2]; caught[name] = noticed[name] " of " lied[name]
    }
    /^(ext4|xfs): .*: right; / { right[$1]++; faults++; name = $1; sub(/:$/, "", name); faulty[name] = right[$1] }
    / kills under load, / {
        kills += before($0, "kills under load"); kills_late += before($0, "in recovery")
    }
    # 1000048 hostile frames with 115530 faults in 53573 sessions; ...
    / hostile frames with / { hostile += $1; hostile_faults += before($0, "faults in") }
    # recovery: 1234 executions in 60 s, ...
    / executions in [0-9]+ s, / { targets[$1]; executions[$1] += $2; floor = floor == "" || $5 < floor ? $5 : floor }
    END {
        print "| What | To reach | Reached | Command |"
        print "|---|---|---|---|"
        row("seeds of whole worlds", long ? "1,000,000" : "10,000", seeds, ".ci/run sim")
        row("publishes in them", long ? "1,000,000,000" : "10,000,000", published, ".ci/run sim")
        row("crashes in them", "60,000", crashes, ".ci/run sim")
        row("seeds that failed", "0", failing, ".ci/run sim")
        row("seconds for them", "", spent, ".ci/run sim")
        row("seeds run twice, with equal traces", "200", twice, ".ci/run sim")
        row("the mark hit least", "100", lowest, ".ci/run sim")
        row("the median world", "3 queues, 2 cores, 3 levels", median, ".ci/run sim")
        row("its crashes with two writes in flight", "50 %", in_writes, ".ci/run sim")
        row("planted bugs that died", "25", died, ".ci/run mutants")
        row("of them after more than 50 seeds", "5", late, ".ci/run mutants")
        for (i = split("ext4 xfs", names, " "); i > 0; i--) {
            name = names[3 - i]; aim = name == "ext4" ? (long ? "50,000" : "2,000") : (long ? "10,000" : "300")
            row("crash images of " name ", 0 lost", aim, images[name], ".ci/run crash")
            row("of them with a start of the broker", name == "ext4" ? "200" : "", starts[name], ".ci/run crash")
            row("of them cut off in recovery", "", recoveries[name], ".ci/run crash")
            row("of them read by `ringpost verify`", "", programs[name], ".ci/run crash")
            row("confirmed publishes at stake in each, on average", "", stake[name], ".ci/run crash")
            row("images of them with unflushed writes", "half", cached[name], ".ci/run crash")
            row("lying disk of " name " noticed", "80 %", caught[name], ".ci/run crash")
            row("disk faults under " name ", right", "12", faulty[name], ".ci/run crash")
        }
        row("kills under load, 0 lost", long ? "10,000" : "500", kills, ".ci/run kill")
        row("kills in recovery", "", kills_late, ".ci/run kill")
        row("frames of hostile sessions", "1,000,000", hostile, ".ci/run hostile")
        row("faults in them", "", hostile_faults, ".ci/run hostile")
        for (target in targets) {
            count++
            least = least == "" || executions[target] < least ? executions[target] : least
        }
        row("fuzz targets, 0 crashes", "5", count, ".ci/run fuzz")
        row("seconds of each, at least", "60", floor, ".ci/run fuzz")
        row("executions of each, at least", long ? "100,000,000" : "", least, ".ci/run fuzz")
    }'
