#!/usr/bin/env bash
# Writes docs/results/fault_matrix.md: which failures of the GPU were survived (docs/gpu_failures.md).
#
#   tools/fault_matrix.sh [BUILD]     default build folder: build; needs dispatch_tests and model_tests
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export TANDEM_FAULT_MATRIX=$folder
"$build/tests/dispatch_tests" --gtest_brief=1 --gtest_filter='FaultMatrix.*'
"$build/tests/model_tests" --gtest_brief=1 --gtest_filter='Recovery.EveryCallOfAGenerationMayFail'
{
  cat <<'TEXT'
# Fault matrix

Made by `tools/fault_matrix.sh` on the emulated CUDA device; what happens is described in [../gpu_failures.md](../gpu_failures.md).

A number is how many failures were injected at calls of the runtime of that name, and survived; "**n of m**" would mean that some were not.
Each as an error, as out of memory and as a lost device, at the first four such calls and the last (ops), or at two or three spread over the run
(generations). Survived: the right result, or, with operands in the memory of a device that is lost, `Unavailable` that says so; nothing left behind
(allocations, page-locked memory, events, graphs, library objects); and the context goes on, on the GPU too when it answers again. An empty cell: the
op makes no such call.

TEXT
  cat "$folder/ops.md" "$folder/generations.md"
} > docs/results/fault_matrix.md
sed -i '${/^$/d}' docs/results/fault_matrix.md
echo "wrote docs/results/fault_matrix.md"
