#!/usr/bin/env bash
# The layout of the C++ and CUDA sources, by clang-format and .clang-format.
#
#   tools/format.sh check   lists what differs; exit status 1 when anything does
#   tools/format.sh fix     rewrites the files
set -euo pipefail
cd "$(dirname "$0")/.."

command -v clang-format >/dev/null || { echo "clang-format is missing: tools/setup.sh --ci installs it" >&2; exit 2; }
mapfile -t files < <(git ls-files --cached --others --exclude-standard -- '*.h' '*.cc' '*.cu' '*.cuh')
[ ${#files[@]} -gt 0 ] || { echo "no sources found" >&2; exit 2; }
case "${1:-}" in
  check) clang-format --dry-run -Werror "${files[@]}" && echo "format: ${#files[@]} files are right" ;;
  fix) clang-format -i "${files[@]}" ;;
  *) echo "usage: tools/format.sh check|fix" >&2; exit 2 ;;
esac
