#!/usr/bin/env bash
# From a fresh machine to generated text: set-up, build, a short self-check of the kernels, then the
# small model of models/ adds, recalls and tells a story.
set -euo pipefail
cd "$(dirname "$0")/.."

tools/setup.sh
cmake --preset default >/dev/null
cmake --build build --parallel --target tandem

run() {
  printf '\n$'
  printf ' %q' "$@"
  printf '\n'
  "$@"
}
run build/tandem check --short
run build/tandem generate -m models/demo.gguf -p "23+45=" -n 4
run build/tandem generate -m models/demo.gguf -p $'BA=KE\nQC=AD\nZL=MB\nQC?' -n 2
run build/tandem generate -m models/demo.gguf -p "Once there was a girl named Mia." -n 100
