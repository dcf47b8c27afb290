#!/usr/bin/env bash
# clang-tidy (checks in .clang-tidy) over sources that have been configured in build/.
#
#   tools/tidy.sh            the folders everything rests on: core/ and dispatch/
#   tools/tidy.sh all        every source file (minutes per core)
#   tools/tidy.sh FILE...    these files
set -euo pipefail
cd "$(dirname "$0")/.."

command -v clang-tidy >/dev/null || { echo "clang-tidy is missing: tools/setup.sh --ci installs it" >&2; exit 2; }
[ -f build/compile_commands.json ] || cmake --preset default >/dev/null
case "${1:-}" in
  '') mapfile -t files < <(git ls-files 'core/*.cc' 'dispatch/*.cc') ;;
  all) mapfile -t files < <(git ls-files '*.cc' ':!tests/fuzz' ':!cuda') ;;
  *) files=("$@") ;;
esac
[ ${#files[@]} -gt 0 ] || { echo "no sources found" >&2; exit 2; }
printf '%s\0' "${files[@]}" |
  xargs -0 -n 1 -P "$(nproc)" clang-tidy --quiet -p build --extra-arg=-Wno-unknown-warning-option \
    2> >(grep -v '^[0-9]* warnings\? generated\.$' >&2)
echo "tidy: ${#files[@]} files are clean"
