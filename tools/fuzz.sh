#!/usr/bin/env bash
# Builds the libFuzzer targets (clang, AddressSanitizer, UndefinedBehaviorSanitizer) and runs each for
# SECONDS (default 30) from its seed corpus in tests/fuzz/corpus/<target>/. A crash leaves its input in
# build-fuzz/findings/ and makes the exit status 1.
#
#   tools/fuzz.sh [SECONDS]
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-30}
command -v clang++ >/dev/null || { echo "clang is missing: tools/setup.sh --ci installs it" >&2; exit 2; }
cmake --preset fuzz >/dev/null
targets=()
for source in tests/fuzz/*_fuzz.cc; do
  [ -e "$source" ] || { echo "no fuzz targets found" >&2; exit 2; }
  targets+=("$(basename "$source" .cc)")
done
cmake --build build-fuzz --parallel --target "${targets[@]}"
mkdir -p build-fuzz/findings
for target in "${targets[@]}"; do
  corpus=build-fuzz/corpus/$target
  mkdir -p "$corpus"
  echo "fuzz: $target for $seconds s"
  build-fuzz/tests/"$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
    -malloc_limit_mb=1024 -print_final_stats=1 -print_funcs=0 -verbosity=0 -artifact_prefix=build-fuzz/findings/ \
    "$corpus" tests/fuzz/corpus/"$target" 2>&1 | sed '/Recommended dictionary/,/End of recommended/d'
done
