#!/usr/bin/env bash
# From a fresh machine to generated text: set-up, build, a short self-check of the kernels, then the
# small model of models/ adds, recalls and tells a story.
#
#   tools/demo.sh                              all of it
#   tools/demo.sh --built BINARY               by a tandem that has been built already
#   tools/demo.sh --built BINARY --trace DIR   and leaves a trace of each generation in DIR
set -euo pipefail
cd "$(dirname "$0")/.."

binary=build/tandem traces=
while [ $# -gt 0 ]; do
  case "$1" in
    --built) binary=${2:?--built: expected a path} && shift 2 && built=1 ;;
    --trace) traces=${2:?--trace: expected a folder} && shift 2 ;;
    *) echo "usage: tools/demo.sh [--built BINARY] [--trace DIR]" >&2; exit 2 ;;
  esac
done
if [ -z "${built:-}" ]; then
  tools/setup.sh
  cmake --preset default >/dev/null
  cmake --build build --parallel --target tandem
fi

run() {
  printf '\n$'
  printf ' %q' "$@"
  printf '\n'
  "$@"
}
generate() {  # NAME OPTIONS...
  local trace=()
  [ -z "$traces" ] || trace=(--trace "$traces/$1.json")
  run "$binary" generate -m models/demo.gguf "${@:2}" "${trace[@]}"
}
run "$binary" check --short
generate sum -p "23+45=" -n 4
generate recall -p $'BA=KE\nQC=AD\nZL=MB\nQC?' -n 2
generate story -p "Once there was a girl named Mia." -n 100
