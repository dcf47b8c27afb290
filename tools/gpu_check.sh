#!/usr/bin/env bash
# Everything that a GPU is needed for, as one bundle that runs on a bare host with a driver.
#
#   tools/gpu_check.sh bundle [FILE]   builds (CUDA toolkit needed here, no GPU) and packs FILE
#                                      (default build/tandem-gpu-check.tar.xz)
#   tools/gpu_check.sh run [OUT]       in the unpacked bundle (or here, with a GPU): checks, then times;
#                                      reports go to OUT (default ./gpu-check)
#   tools/gpu_check.sh rehearse OUT    fills OUT/bundle and runs it there, on the emulated device
#
# run: every primitive that kernels are made of, with a recording of what the GPU answered
# (OUT/primitives.cbor: to be committed as tests/golden/primitives-<gpu>.cbor); every CUDA kernel over the shared cases against the f64 references; compute-sanitizer, if the host
# has it, on the short grid; the demo model on the GPU; ops that memory bounds against a copy within the
# device, attention, and products against cuBLASLt; both also against torch, if there is one that sees the GPU (TANDEM_PYTHON: another
# Python than python3). cuBLASLt is the host's: TANDEM_CUBLASLT_PATH, the dynamic linker's, or torch's.
# TANDEM_GPU_CHECK_DEVICE=cuda:emulated rehearses it without a GPU; TANDEM_BINARY names another
# program than build/tandem.
set -euo pipefail
cd "$(dirname "$0")/.."

fill() {  # DIR TANDEM: what the bundle holds
  local stage=$1 tandem=$2 library
  mkdir -p "$stage"/{build,lib,tools,models}
  cp "$tandem" "$stage/build/tandem"
  strip "$stage/build/tandem"
  cp tools/gpu_check.sh tools/gpu_torch.py tools/gpu_torch_matmul.py tools/gpu_torch_attention.py \
    "$stage/tools/"
  cp models/demo.gguf "$stage/models/"
  # All but what belongs to every system's C library.
  ldd "$tandem" | awk '$3 ~ /^\// {print $3}' |
    grep -vE '/(libc|libm|libdl|librt|libpthread|ld-linux-x86-64)\.so' |
    while read -r library; do cp -L "$library" "$stage/lib/"; done
}

bundle() {
  local file=${1:-build/tandem-gpu-check.tar.xz}
  cmake --preset default >/dev/null
  grep -q TANDEM_CUDA_ARCHITECTURES build/CMakeCache.txt ||
    { echo "gpu_check: this build has no CUDA toolkit" >&2; exit 2; }
  cmake --build build --parallel --target tandem
  stage=$(mktemp -d)
  trap 'rm -rf "$stage"' EXIT
  fill "$stage" build/tandem
  tar -C "$stage" -cf - . | xz -T0 -6 >"$file"
  echo "gpu_check: $file, $(du -h "$file" | cut -f 1)"
}

run() {
  local out=${1:-gpu-check} device=${TANDEM_GPU_CHECK_DEVICE:-cuda} failed=0
  mkdir -p "$out"
  if [ -d lib ]; then export LD_LIBRARY_PATH=$PWD/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}; fi
  local tandem=${TANDEM_BINARY:-$PWD/build/tandem} grid=()
  [ "$device" = cuda ] || grid=(--short)

  step() {  # NAME COMMAND...: output to OUT/NAME.txt
    local name=$1
    shift
    if "$@" >"$out/$name.txt" 2>&1; then
      echo "ok      $name"
    else
      echo "FAILED  $name (status $?): $out/$name.txt"
      failed=$((failed + 1))
    fi
  }
  local python=${TANDEM_PYTHON:-python3} torch=0 library
  if [ "$device" = cuda ] && library=$("$python" tools/gpu_torch_matmul.py --library 2>/dev/null); then
    torch=1
    # The one of the toolkit or the system, if there is one, is what other programs use.
    if [ -z "${TANDEM_CUBLASLT_PATH:-}" ] && ! ldconfig -p 2>/dev/null | grep -q libcublasLt &&
      ! ls /usr/local/cuda/lib64/libcublasLt.so.* >/dev/null 2>&1; then
      export TANDEM_CUBLASLT_PATH=$library
    fi
  fi
  if command -v nvidia-smi >/dev/null; then step nvidia_smi nvidia-smi; fi
  step devices "$tandem" devices --no-measure --json
  step primitives "$tandem" check-primitives --device "$device" --record "$out/primitives.cbor"
  step check "$tandem" check --devices "$device" "${grid[@]}" --junit "$out/check.xml"
  step devices_agree "$tandem" check --devices "cpu,$device" --short
  step model "$tandem" generate -m models/demo.gguf -p '23+45=' -n 4 --device "$device" --json
  if [ "$device" = cuda ] && command -v compute-sanitizer >/dev/null; then
    local tool
    for tool in memcheck racecheck initcheck synccheck; do
      step "sanitizer_$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 \
        "$tandem" check --devices cuda --short
      step "sanitizer_primitives_$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 \
        "$tandem" check-primitives --device cuda
    done
  else
    echo "skipped compute-sanitizer: not on this host"
  fi
  local size=()
  [ "$device" = cuda ] || size=(--bytes 65536 --repeats 3)
  step bench "$tandem" bench-device --device "$device" "${size[@]}"
  step bench_json "$tandem" bench-device --device "$device" "${size[@]}" --json
  cat "$out/bench.txt"
  if [ "$torch" = 1 ]; then
    step torch "$python" tools/gpu_torch_matmul.py "$out/bench_json.txt" --json "$out/torch.json"
    step torch_attention "$python" tools/gpu_torch_attention.py "$out/bench_json.txt" \
      --json "$out/torch_attention.json"
    cat "$out/torch.txt" "$out/torch_attention.txt"
  else
    echo "skipped torch: none on this host that sees a GPU"
  fi
  echo "gpu_check: $failed steps failed; reports in $out"
  [ "$failed" = 0 ]
}

# What a GPU host would do with the bundle, with the emulated device instead.
rehearse() {
  local out=${1:?rehearse needs a folder}
  rm -rf "$out"
  mkdir -p "$out"
  out=$(realpath "$out")
  fill "$out/bundle" "${TANDEM_BINARY:-build/tandem}"
  cd "$out/bundle"
  "${TANDEM_PYTHON:-python3}" -m compileall -q tools
  for program in tools/gpu_torch_*.py; do "${TANDEM_PYTHON:-python3}" "$program" --help >/dev/null; done
  unset TANDEM_BINARY
  TANDEM_GPU_CHECK_DEVICE=cuda:emulated tools/gpu_check.sh run "$out"
}

case "${1:-}" in
  rehearse) shift; rehearse "$@" ;;
  bundle) shift; bundle "$@" ;;
  run) shift; run "$@" ;;
  -h | --help) sed -n '2,17p' "$0" | sed 's/^# \{0,1\}//' ;;
  *) echo "usage: tools/gpu_check.sh bundle [FILE] | run [OUT] | rehearse OUT" >&2; exit 2 ;;
esac
