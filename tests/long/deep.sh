#!/usr/bin/env bash
# What is worth running for hours before a release: more seeds, crash images, kills, hostile frames
# and fuzzing than .ci/run has time for. It goes on where it stopped; each part ends after a chunk of
# a few minutes when its time is over, or at once when something is found.
#
#   tests/long/deep.sh seeds 60      simulated worlds that no run has met yet, for an hour
#   tests/long/deep.sh images 60     crash images of ext4 and XFS; needs root, as stage `crash`
#   tests/long/deep.sh kills 30      SIGKILL under load
#   tests/long/deep.sh frames 10     hostile frames
#   tests/long/deep.sh fuzz 60       every fuzz target in turn, two at a time
#   tests/long/deep.sh               what was reached at this commit, and what is wanted
#
# What the chunks said is kept in DEEP_DIR, beside the build, by commit. The sum belongs into
# docs/ledger.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

cache="${XDG_CACHE_HOME:-$HOME/.cache}/ringpost-ci"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}"
deep="${DEEP_DIR:-$CARGO_TARGET_DIR/deep}"
commit=$(git rev-parse --short=7 HEAD)
logs="$deep/$commit"
scratch="${TMPDIR:-/var/tmp}"

# How many lines of a part's logs, of all commits, match: how far it has come.
lines_of() {
    cat "$deep"/*/"$1".log 2>/dev/null | grep -cE "$2" || true
}

# 0..10000 are those of .ci/run.
chunk_seeds() {
    local first
    first=$((10000 + 5000 * $(lines_of seeds '^[0-9]+ seeds in ')))
    cargo run --quiet --profile sim --package ringpost-sim -- \
        fuzz --seeds "$first..$((first + 5000))" --threads "$(nproc)"
}

chunk_images() {
    local seed place
    seed=$((1000 + $(lines_of images '^ext4: recorded')))
    cargo build --quiet --workspace --bins
    place=$(mktemp -d -p "$scratch" ringpost-deep.XXXXXX)
    for file_system in ext4:1000 xfs:200; do
        "$CARGO_TARGET_DIR/debug/ringpost-crash" images --file-system "${file_system%:*}" \
            --count "${file_system#*:}" --starts 10 --controls 50 --seed "$seed" \
            --directory "$place/${file_system%:*}"
    done
    rm -rf "$place"
}

chunk_kills() {
    RINGPOST_KILL_SEED=$((1000 * (1 + $(lines_of kills 'kills under load')))) RINGPOST_KILL_CYCLES=250 \
        cargo test --quiet --package ringpost --test kill nothing_promised -- --nocapture
}

chunk_frames() {
    RINGPOST_HOSTILE_FRAMES=5000000 \
        cargo test --quiet --package ringpost --test behaviour an_honest_client -- --nocapture
}

chunk_fuzz() {
    local lane code=0
    fuzz_lane() {
        local target
        for target in "$@"; do tests/fuzz/run.sh fuzz "$target" 120 || return 1; done
    }
    fuzz_lane frames envelope config amqp &
    lane=$!
    fuzz_lane handshake recovery || code=1
    wait "$lane" || code=1
    return "$code"
}

run() {
    local part=$1 minutes=$2 end
    declare -F "chunk_$part" >/dev/null || { sed -n '2,15p' "$0"; exit 2; }
    git diff --quiet HEAD -- Cargo.lock src tests || { echo "sources have changed since $commit"; exit 1; }
    mkdir -p "$logs"
    [[ $part != fuzz ]] || tests/fuzz/run.sh build
    end=$((SECONDS + 60 * minutes))
    while ((SECONDS < end)); do
        ("chunk_$part") 2>&1 | tee -a "$logs/$part.log" | grep -aE "$said" || true
        ((PIPESTATUS[0] == 0)) || { echo "$part failed: $logs/$part.log"; exit 1; }
    done
}

said='seeds in |failing seeds|recorded|kills under load|hostile frames|executions in'
case ${1:-} in
    "") ;;
    *) run "$1" "${2:?minutes}" ;;
esac
LONG=1 tests/long/table.sh "$logs"/*.log
