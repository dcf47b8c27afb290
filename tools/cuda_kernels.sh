#!/usr/bin/env bash
# Writes docs/results/cuda_kernels.md: what the CUDA kernels need of a multiprocessor.
#
#   tools/cuda_kernels.sh [BUILD]     default build folder: build; a release build with the CUDA toolkit, needs
#                                     cuda_tests
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build}
launches=$(mktemp)
trap 'rm -f "$launches"' EXIT
TANDEM_CUDA_LAUNCHES=$launches "$build/tests/cuda_tests" --gtest_brief=1 --gtest_filter='CudaLaunches.*'
{
  cat <<'TEXT'
# CUDA kernels: registers, stack, spills, shared memory

Made by `tools/cuda_kernels.sh`.

## Registers

As ptxas reports them for a release build. "Warps that they allow": of the 64 that a multiprocessor can hold, by its 65536 registers.

TEXT
  python3 tools/cuda_gate.py "$build" --table
  cat <<'TEXT'

## Blocks and shared memory

Shared memory is dynamic throughout and depends on the arguments: what was asked for over the short grid of cases (`tandem check --short`),
on the emulated device (compute capability 9.0, 227 KiB per block). Kernels that say what they need by `supports` take no more than the device has.

TEXT
  cat "$launches"
} > docs/results/cuda_kernels.md
echo "wrote docs/results/cuda_kernels.md"
