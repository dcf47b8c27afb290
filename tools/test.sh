#!/usr/bin/env bash
# Sets the machine up, builds everything and runs all tests. The last line is "N passed, N failed",
# counted over the individual test cases; the exit status is 0 only when none failed.
#
#   tools/test.sh [--preset NAME] [--target TARGET] [CTEST ARGUMENTS...]
#
# NAME is a preset of CMakePresets.json: default (the default), ci, cpu-only, asan, tsan. With TARGET only
# that is built: --target cuda_tests -L cuda runs one group of tests.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=default
case "${1:-}" in
  --preset) preset=${2:?--preset needs a name}; shift 2 ;;
  -h | --help) sed -n '2,8p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;;
esac
targets=()
if [ "${1:-}" = --target ]; then
  targets=(--target "${2:?--target needs a name}")
  shift 2
fi
build=build-$preset
[ "$preset" != default ] || build=build

tools/setup.sh
log=$(cmake --preset "$preset" 2>&1) || { printf '%s\n' "$log"; exit 1; }
grep '^-- Tandem' <<<"$log"
cmake --build "$build" --parallel "${targets[@]}"

rm -rf "$build/test_results" "$build/ctest.xml"
mkdir -p "$build/test_results"
status=0
ctest --preset "$preset" --parallel "$(nproc)" --output-junit "$PWD/$build/ctest.xml" "$@" || status=$?
python3 tools/test_summary.py "$build" || status=1
exit $status
