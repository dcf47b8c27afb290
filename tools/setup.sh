#!/usr/bin/env bash
# Installs what Tandem needs to build and test on Debian 12 and Ubuntu 24.04, as root or with sudo.
# Idempotent, and quick when nothing is missing.
#
#   tools/setup.sh        what the build and the tests need
#   tools/setup.sh --ci   also clang, clang-tidy, clang-format and libFuzzer
#
# oneDNN. Tandem needs >= 3.2. The distribution's package is used when it is new enough (Debian 12
# has 2.6.3, Ubuntu 24.04 has 3.1.1); otherwise the vendor's C++ wheels are unpacked into
# third_party/onednn. Which wheels: `onednn-cpu-gomp` 2023.2.0 (oneDNN 3.2), because it is the newest
# that links with nothing but libgomp. The successors, `onednn` 2024.0 to 2026.1, link libsycl, TBB
# and the Intel compiler's runtime, hundreds of megabytes that a CPU build has no use for.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly onednn_minimum=3.2
readonly onednn_dir=third_party/onednn
readonly onednn_wheels='
onednn-cpu-gomp==2023.2.0 --hash=sha256:2f22a54d6a890ed14bfa185d42a4be65d8b5b1df85dc1f0f3a9abe31620416fb
onednn-devel-cpu-gomp==2023.2.0 --hash=sha256:9763c69e8c907e119056bd52ad918ca84ac9ba939d130a99dfa95ccca3e5e284
'
packages=(
  build-essential g++ cmake ninja-build ccache pkg-config git python3 ca-certificates
  libabsl-dev libgtest-dev libgmock-dev libbenchmark-dev libhwy-dev libhwloc-dev
  libcli11-dev nlohmann-json3-dev libpcre2-dev)
ci_packages=(clang clang-tidy clang-format libclang-rt-dev)

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

for argument in "$@"; do
  case "$argument" in
    --ci) packages+=("${ci_packages[@]}") ;;
    -h | --help) sed -n '2,6p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;;
    *) die "unknown argument '$argument' (known: --ci, --help)" ;;
  esac
done

[ "$(uname -m)" = x86_64 ] || die "only x86-64 is supported so far; this machine is $(uname -m)"
if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  die "this system has no apt. Install the equivalents of these Debian packages by hand:
  ${packages[*]}
and oneDNN >= $onednn_minimum, then build with: cmake --preset default && cmake --build --preset default"
fi

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "installing packages needs root: run as root, or install sudo"
  fi
}

installed() {  # NAME: the package, or another that provides it, is installed
  [ "$(dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | head -n 1)" = installed ]
}

apt_updated=
apt_install() {  # PACKAGES...: installs those that are missing
  local package missing=()
  for package in "$@"; do
    installed "$package" || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing ${missing[*]}"
  if [ -z "$apt_updated" ]; then
    as_root apt-get update -qq || die "apt-get update failed"
    apt_updated=1
  fi
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o Dpkg::Use-Pty=0 --no-install-recommends \
    "${missing[@]}" >/dev/null || die "apt-get could not install: ${missing[*]}"
}

at_least() {  # VERSION MINIMUM
  dpkg --compare-versions "$1" ge "$2"
}

onednn_header_version() {  # HEADER
  awk '/#define DNNL_VERSION_(MAJOR|MINOR|PATCH)/ {v = v s $3; s = "."} END {print v}' "$1" 2>/dev/null
}

have_onednn() {  # prints where from
  local header version
  for header in "$onednn_dir/include" /usr/local/include /usr/include; do
    header=$header/oneapi/dnnl/dnnl_version.h
    [ -f "$header" ] || continue
    version=$(onednn_header_version "$header")
    if [ -n "$version" ] && at_least "$version" "$onednn_minimum"; then
      echo "$version (${header%/include/*})"
      return 0
    fi
  done
  return 1
}

install_onednn() {
  local candidate
  candidate=$(apt-cache policy libdnnl-dev 2>/dev/null | awk '/Candidate:/ {print $2}')
  if [ -n "$candidate" ] && [ "$candidate" != "(none)" ] && at_least "$candidate" "$onednn_minimum"; then
    apt_install libdnnl-dev
    return
  fi
  say "the distribution's oneDNN is ${candidate:-absent}, below $onednn_minimum: using the vendor's wheels"
  python3 -m pip --version >/dev/null 2>&1 || apt_install python3-pip
  local work
  work=$(mktemp -d)
  trap 'rm -rf "$work"' RETURN
  printf '%s' "$onednn_wheels" >"$work/requirements.txt"
  python3 -m pip download --quiet --no-deps --only-binary :all: --require-hashes \
    --dest "$work" --requirement "$work/requirements.txt" || die "pip could not download the oneDNN wheels"
  local wheel
  for wheel in "$work"/*.whl; do
    python3 -m zipfile -e "$wheel" "$work/unpacked"
  done
  # A wheel cannot hold symbolic links: it has the library three times over. Keep one copy.
  local lib=$work/prefix/lib
  mkdir -p "$work/prefix" "$lib"
  cp -r "$work"/unpacked/onednn_devel*.data/data/include "$work/prefix/"
  cp -r "$work"/unpacked/onednn_cpu*.data/data/share "$work/prefix/"
  cp "$work"/unpacked/onednn_cpu*.data/data/lib/libdnnl.so.3.2 "$lib/"
  chmod 755 "$lib/libdnnl.so.3.2"
  ln -s libdnnl.so.3.2 "$lib/libdnnl.so.3"
  ln -s libdnnl.so.3 "$lib/libdnnl.so"
  mkdir -p "$(dirname "$onednn_dir")"
  rm -rf "$onednn_dir"
  mv "$work/prefix" "$onednn_dir"
}

apt_install "${packages[@]}"
if ! have_onednn >/dev/null; then
  install_onednn
fi
onednn=$(have_onednn) || die "oneDNN >= $onednn_minimum is still missing"
say "ready: $(g++ --version | head -n 1), $(cmake --version | head -n 1), oneDNN $onednn"
