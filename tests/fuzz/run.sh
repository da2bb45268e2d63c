#!/usr/bin/env bash
# Coverage-guided fuzzing with libFuzzer under AddressSanitizer, on the stable toolchain.
#
#   tests/fuzz/run.sh TARGET SECONDS        builds and fuzzes; fails on a crash, or if it ran little
#   tests/fuzz/run.sh build                 only builds, the broker too: one build for all sanitizers
#   tests/fuzz/run.sh fuzz TARGET SECONDS   only fuzzes
#   tests/fuzz/run.sh merge TARGET          puts few inputs that reach the same into its corpus/
#
# FUZZ_SEED, if it is set and not 0, makes the fuzzer's choices those of another run with it: it begins
# without what others have found, which also keeps its time from growing with that.
#
# The build, what was found (corpus/, crash-*) and the logs are kept in SANITIZED_DIR, outside the
# repository. A crash is run again by: cargo run -p ringpost-fuzz -- run TARGET FILE
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

cache="${XDG_CACHE_HOME:-$HOME/.cache}/ringpost-ci"
dir="${SANITIZED_DIR:-${CARGO_TARGET_DIR:-$cache/target}/sanitized}"
triple=$(rustc -vV | sed -n 's/^host: //p')
bin="$dir/$triple/sim/ringpost-fuzz"
targets=(frames envelope handshake recovery amqp config)
files_max=200

build() {
    local tool
    for tool in cargo rustc c++; do
        command -v "$tool" >/dev/null || { echo "missing: $tool"; return 1; }
    done
    # What nightly's cargo-fuzz passes; RUSTC_BOOTSTRAP lets the stable compiler take -Z. Coverage is
    # counted in this workspace only: the crates around it would only slow the fuzzer down.
    mkdir -p "$dir"
    cat >"$dir/counted" <<'SH'
#!/bin/sh
exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
SH
    chmod +x "$dir/counted"
    RUSTC_BOOTSTRAP=1 CARGO_INCREMENTAL=0 CARGO_TARGET_DIR="$dir" \
    RUSTC_WORKSPACE_WRAPPER="$dir/counted" \
    RUSTFLAGS="-Zsanitizer=address -Cforce-frame-pointers=yes" \
        cargo build --profile sim --target "$triple" --package ringpost --package ringpost-fuzz \
        --features ringpost-fuzz/libfuzzer --bin ringpost --bin ringpost-fuzz
}

# Executions a second that prove that the target ran, far below what an idle machine does.
floor_of() {
    case $1 in
        frames | envelope) echo 1000 ;;
        config) echo 50 ;;
        handshake | recovery | amqp) echo 2 ;;
        *) echo "no target $1; there are: ${targets[*]}" >&2; return 1 ;;
    esac
}

prepare() {
    export RINGPOST_FUZZ_TARGET=$1
    work="$dir/fuzz/$1"
    [[ -x $bin ]] || { echo "not built: tests/fuzz/run.sh build"; return 1; }
    mkdir -p "$work/corpus"
    RINGPOST_FUZZ_SEEDS="$work/seeds" "$bin" >/dev/null
}

fuzz() {
    local target=$1 seconds=$2 floor code=0 runs coverage corpus
    floor=$(($(floor_of "$target") * seconds))
    prepare "$target"
    corpus="$work/corpus"
    if [[ ${FUZZ_SEED:-0} != 0 ]]; then
        corpus="$work/corpus-of-seed"
        rm -rf "$corpus" && mkdir "$corpus"
    fi
    "$bin" "$corpus" "tests/fuzz/corpus/$target" "$work/seeds" \
        -max_total_time="$seconds" -seed="${FUZZ_SEED:-0}" -max_len=4096 -use_value_profile=1 -dict="$work/seeds.dict" \
        -timeout=60 -rss_limit_mb=3000 -artifact_prefix="$work/" -print_final_stats=1 \
        >"$work/log" 2>&1 || code=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/log" | tail -1)
    coverage=$(grep -o 'cov: [0-9]*' "$work/log" | tail -1)
    echo "$target: ${runs:-0} executions in $seconds s, ${coverage:-cov: none} edges," \
        "corpus $(find "$corpus" -type f | wc -l)"
    [[ $corpus == "$work/corpus" ]] || find "$corpus" -type f -exec cp -t "$work/corpus" {} +
    if ((code != 0)); then
        grep -vE '^#[0-9]+|^stat::' "$work/log" | tail -60
        return 1
    fi
    if ((${runs:-0} < floor)); then
        echo "$target: fewer than $floor executions: it did not really run"
        return 1
    fi
}

merge() {
    prepare "$1"
    local small="$work/small"
    rm -rf "$small" && mkdir -p "$small"
    "$bin" -set_cover_merge=1 -max_len=4096 "$small" \
        "$work/seeds" "tests/fuzz/corpus/$1" "$work/corpus" >"$work/log" 2>&1
    # If there are too many, an even choice over their sizes.
    mkdir -p "tests/fuzz/corpus/$1"
    find "$small" -type f -printf '%s %p\n' | sort -n | cut -d' ' -f2 |
        awk -v most="$files_max" '{ all[NR] = $0 }
            END { keep = NR < most ? NR : most
                  for (i = 0; i < keep; i++) print all[int(i * NR / keep) + 1] }' |
        xargs cp -t "tests/fuzz/corpus/$1"
    echo "$1: $(find "tests/fuzz/corpus/$1" -type f | wc -l) files"
}

case ${1:-} in
    build) build ;;
    fuzz) fuzz "${2:?a target}" "${3:?seconds}" ;;
    merge) merge "${2:?a target}" ;;
    "" | -*) sed -n '2,11p' "$0"; exit 2 ;;
    *) build && fuzz "$1" "${2:?seconds}" ;;
esac
