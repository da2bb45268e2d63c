#!/usr/bin/env bash
# The shell under what sees memory errors, leaks and races: stage `sanitizers` of .ci/run. Needs what
# tests/fuzz/run.sh needs, Python 3, and valgrind.
#
#   tests/long/sanitizers.sh                every part
#   tests/long/sanitizers.sh races memory   only these
#
#   races    the ring under ThreadSanitizer, and a broken ring that it must see
#   address  the whole broker under AddressSanitizer and LeakSanitizer: the second client on one
#            and two cores, kills and restarts, a load from publish to ack, an orderly end
#   memory   the same under valgrind: a recovery and 10,000 messages
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

cache="${XDG_CACHE_HOME:-$HOME/.cache}/ringpost-ci"
target="${CARGO_TARGET_DIR:-$cache/target}"
export SANITIZED_DIR="${SANITIZED_DIR:-$target/sanitized}"
triple=$(rustc -vV | sed -n 's/^host: //p')
scratch=$(mktemp -d -p "${TMPDIR:-/var/tmp}" ringpost-sanitizers.XXXXXX)
pid=
finish() {
    [[ -z $pid ]] || kill -KILL "$pid" 2>/dev/null || true
    rm -rf "$scratch"
}
trap finish EXIT

need() {
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null || { echo "missing: $tool"; return 1; }
    done
}

# ---- races ------------------------------------------------------------------------------------

# Builds the ring and its own tests, from the folder $1, without anything else, and runs them.
run_ring() {
    local from=$1 out=$2
    cat >"$scratch/ring.rs" <<RUST
#[path = "$from/sync.rs"] mod sync;
#[allow(dead_code)] #[path = "$from/ring.rs"] mod ring;
#[path = "$from/ring_tests.rs"] mod ring_tests;
use ring::ring;
RUST
    # The standard library is not instrumented: what the harness of tests does is not ours.
    RUSTC_BOOTSTRAP=1 rustc --edition 2024 --test -O -Copt-level=1 -Zsanitizer=thread \
        -Cunsafe-allow-abi-mismatch=sanitizer -Awarnings "$scratch/ring.rs" -o "$scratch/ring" || exit
    printf 'race:test::run_test\nrace:test::event\n' >"$scratch/suppressions"
    TSAN_OPTIONS="suppressions=$scratch/suppressions halt_on_error=0 exitcode=66" \
        "$scratch/ring" --test-threads=1 >"$out" 2>&1
}

part_races() {
    need rustc
    local here broken="$scratch/broken"
    here=$(pwd)/src/broker/rt
    run_ring "$here" "$scratch/out" || { cat "$scratch/out"; return 1; }
    grep '^test result' "$scratch/out"
    mkdir "$broken"
    cp "$here/sync.rs" "$here/ring_tests.rs" "$broken"
    sed 's/store(self.tail, Ordering::Release)/store(self.tail, Ordering::Relaxed)/' \
        "$here/ring.rs" >"$broken/ring.rs"
    if cmp -s "$here/ring.rs" "$broken/ring.rs"; then
        echo "the control breaks nothing: mend the sed above"
        return 1
    fi
    if run_ring "$broken" "$scratch/out" || ! grep -q 'data race' "$scratch/out"; then
        echo "a ring that publishes without Release goes unseen"
        return 1
    fi
    echo "a ring that publishes without Release is seen"
}

# ---- a broker ---------------------------------------------------------------------------------

# start NAME PATIENCE COMMAND...: a broker on $scratch/NAME; sets pid and port.
start() {
    local name=$1 patience=$2
    shift 2
    "$@" serve --listen 127.0.0.1:0 --amqp-listen off --admin-listen 127.0.0.1:0 --data-dir "$scratch/$name" \
        --memory 256MiB --segment-bytes 8MiB --cores "${cores:-1}" \
        >"$scratch/$name.out" 2>"$scratch/$name.log" &
    pid=$!
    port=
    for _ in $(seq "$patience"); do
        port=$(sed -n 's/^ready: clients connect to [^ ]*:\([0-9]*\),.*/\1/p' "$scratch/$name.out")
        [[ -n $port ]] && return
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.2
    done
    tail -40 "$scratch/$name.log"
    echo "the broker did not start"
    return 1
}

# stop NAME: an orderly end must be exit code 0: a report of a sanitizer is another.
stop() {
    local code=0
    kill -TERM "$pid"
    wait "$pid" || code=$?
    pid=
    ((code == 0)) || { tail -60 "$scratch/$1.log"; echo "the broker ended with $code"; return 1; }
}

part_address() {
    need python3
    tests/fuzz/run.sh build
    local bin="$SANITIZED_DIR/$triple/sim/ringpost"
    export ASAN_OPTIONS="detect_leaks=1:exitcode=23"
    for cores in 1 2; do
        start "a$cores" 300 "$bin"
        timeout 300 python3 tests/compat/roundtrip.py 127.0.0.1 "$port" 2000
        kill -KILL "$pid"
        wait "$pid" || true
        start "a$cores" 300 "$bin"
        timeout 300 python3 tests/compat/roundtrip.py 127.0.0.1 "$port" 2000
        stop "a$cores"
        # An orderly end, then another number of cores: everything is moved.
        cores=$((3 - cores)) start "a$cores" 300 "$bin"
        timeout 300 python3 tests/compat/roundtrip.py 127.0.0.1 "$port" 500
        stop "a$cores"
        echo "address: $cores core(s): 0 reports"
    done
    "$bin" try --count 20000 --rate 0 --cores 2
}

part_memory() {
    need python3 valgrind
    cargo build --package ringpost --bin ringpost
    local check=(valgrind --quiet --error-exitcode=99 --leak-check=full
        --show-leak-kinds=definite --errors-for-leak-kinds=definite "$target/debug/ringpost")
    cores=1
    start m 900 "$target/debug/ringpost"
    timeout 300 python3 tests/compat/roundtrip.py 127.0.0.1 "$port" 5000
    kill -KILL "$pid"
    wait "$pid" || true
    start m 900 "${check[@]}"
    timeout 900 python3 tests/compat/roundtrip.py 127.0.0.1 "$port" 10000
    stop m
    grep -E '^==[0-9]+==' "$scratch/m.log" | tail -20 || true
    echo "memory: a recovery and 10,000 messages: 0 errors"
}

(($#)) || set -- races address memory
for name in "$@"; do
    declare -F "part_$name" >/dev/null || { echo "no part $name"; exit 2; }
    echo "=== $name"
    begun=$(date +%s)
    "part_$name"
    echo "--- $name passed in $(($(date +%s) - begun)) s"
done
