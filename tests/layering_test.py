#!/usr/bin/env python3
"""Checks every #include "..." and <...> against the project's layering rules (docs/architecture.md), and
that CUDA kernels reach the device through its wrappers only (docs/cuda.md).

  layering_test.py [ROOT]     check the tree, after checking the checker on planted violations

Exit status 0 when the tree obeys the rules; otherwise each violation is printed as file:line.
"""

import pathlib
import re
import sys
import tempfile

SOURCE_SUFFIXES = {".h", ".cc", ".cu", ".cuh", ".inc"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')

# folder -> what it may include of the project: whole folders ("core/") or single headers.
DEVICE_DOORS = ["cpu/kernels.h", "cpu/backend.h", "cuda/kernels.h", "cuda/backend.h"]
MAY_INCLUDE = {
    "core": ["core/"],
    "cpu": ["cpu/", "core/"],
    "cuda": ["cuda/", "core/"],
    "dispatch": ["dispatch/", "core/"] + DEVICE_DOORS,
    "model": ["model/", "dispatch/", "core/"],
    # The fp64 references are independent of every kernel.
    "tests/reference": ["tests/reference/", "core/"],
}
FOLDERS = {"core", "cpu", "cuda", "dispatch", "model", "tools", "tests", "bench"}

# Outside libraries that only some folders may see.
ONEDNN = re.compile(r"^(oneapi/)?dnnl")
CUDA = re.compile(r"^(cuda[A-Z_.]|cuda/|cublas|nv(ml|rtc|tx)|cooperative_groups|device_launch|curand)")
SIMD = re.compile(r"^(hwy/|[a-z]*mmintrin\.h|x86intrin\.h|hwloc)")
RESTRICTED = [
    ("oneDNN", ONEDNN, {"cpu", "bench"}),  # bench/ times it as the yardstick
    ("CUDA", CUDA, {"cuda"}),
    ("SIMD and topology", SIMD, {"cpu", "tests", "bench"}),
]


def folder_rules(path):
    """The rule set of a source file: the longest folder prefix that has one."""
    for depth in (2, 1):
        key = "/".join(path.parts[:depth])
        if len(path.parts) > depth and key in MAY_INCLUDE:
            return key, MAY_INCLUDE[key]
    return path.parts[0], None  # tools, tests, bench: anything


def third_party(include):
    """The top-level name of an include that is neither of the project nor of the standard library."""
    first = include.split("/")[0]
    return first if "/" in include and first not in FOLDERS else None


def check_line(path, kind, include):
    """Yields what is wrong with one include of one file."""
    folder, allowed = folder_rules(path)
    own = include.split("/")[0] in FOLDERS and "/" in include
    if kind == '"' and not own and not include.startswith("absl/"):
        known = any(pattern.match(include) for _, pattern, _ in RESTRICTED)
        if not known and third_party(include) is None:
            yield f'"{include}" is not written from the repository root'
    if own and kind == '"' and allowed is not None:
        if not any(include == a or (a.endswith("/") and include.startswith(a)) for a in allowed):
            yield f"{folder}/ may not include {include}"
    if not (own and kind == '"'):
        for name, pattern, folders in RESTRICTED:
            if pattern.match(include) and path.parts[0] not in folders:
                yield f"{name} header {include} outside {', '.join(sorted(folders))}"
        other = third_party(include)
        if path.parts[0] == "core" and other not in (None, "absl", "sys"):
            yield f"core/ depends on the standard library and Abseil only, not {include}"


# What stands only in the wrappers, because the emulator must see it: in kernels it would bypass it.
CUDA_WORDS = re.compile(r"<<<|\basm\b|__shared__|__sync\w+|__shfl\w*|__ballot\w*|__any_sync|__all_sync"
                        r"|\batomic[A-Z]\w*|__thread(fence)\w*|__ldg\b")
WRAPPERS = "cuda/device"


def check_cuda_line(path, line):
    """Yields what a CUDA source uses that only cuda/device/ may."""
    if path.parts[0] != "cuda" or path.parts[:2] in (("cuda", "device"), ("cuda", "emulator")):
        return
    match = CUDA_WORDS.search(line.split("//")[0])
    if match:
        yield f"'{match[0]}' outside {WRAPPERS}/"


def check_tree(root):
    violations, files = [], 0
    for folder in sorted(FOLDERS):
        for source in sorted((root / folder).rglob("*")):
            if source.suffix not in SOURCE_SUFFIXES or not source.is_file():
                continue
            files += 1
            relative = source.relative_to(root)
            for number, line in enumerate(source.read_text(errors="replace").splitlines(), 1):
                for problem in check_cuda_line(relative, line):
                    violations.append(f"{relative}:{number}: {problem}")
                match = INCLUDE.match(line)
                if match:
                    for problem in check_line(relative, *match.groups()):
                        violations.append(f"{relative}:{number}: {problem}")
    return violations, files


# file, include line, violations expected
PLANTED = [
    ("core/a.h", '#include "cpu/kernels.h"', 1),
    ("core/b.h", "#include <oneapi/dnnl/dnnl.hpp>", 2),
    ("core/c.h", '#include "absl/status/status.h"', 0),
    ("core/d.h", "#include <sys/mman.h>", 0),
    ("core/e.h", "#include <nlohmann/json.hpp>", 1),
    ("core/ops/f.h", '#include "core/shape.h"', 0),
    ("core/g.h", '#include "shape.h"', 1),
    ("cpu/a.cc", '#include "cuda/kernels.h"', 1),
    ("cpu/b.cc", '#include "oneapi/dnnl/dnnl.hpp"', 0),
    ("cpu/c.cc", '#include "dispatch/registry.h"', 1),
    ("cuda/a.cu", "#include <cuda_runtime.h>", 0),
    ("cuda/b.cu", '#include "cpu/simd.h"', 1),
    ("dispatch/a.cc", '#include "cpu/kernels.h"', 0),
    ("dispatch/b.cc", '#include "cpu/gemm.h"', 1),
    ("dispatch/c.cc", "#include <cublas_v2.h>", 1),
    ("model/a.cc", '#include "cpu/kernels.h"', 1),
    ("model/b.cc", '  #  include "cpu/backend.h"', 1),
    ("model/c.cc", "#include <immintrin.h>", 1),
    ("model/d.cc", '#include "dispatch/ops.h"', 0),
    ("tests/reference/a.cc", '#include "cpu/gemm.h"', 1),
    ("tests/a_test.cc", '#include "cpu/gemm.h"', 0),
    ("tests/b_test.cc", "#include <dnnl.hpp>", 1),
    ("bench/a_bench.cc", "#include <oneapi/dnnl/dnnl.hpp>", 0),
    ("tools/a.cc", '#include "model/decoder.h"', 0),
    ("cuda/kernels/a.cu", "  __syncthreads();", 1),
    ("cuda/kernels/b.cu", "  Kernel<<<1, 32>>>(p);", 1),
    ("cuda/kernels/c.cu", "  asm volatile(\"nop;\");", 1),
    ("cuda/kernels/d.cu", "  extern __shared__ float tile[];", 1),
    ("cuda/kernels/e.cu", "  x = __shfl_xor_sync(~0u, x, 1);", 1),
    ("cuda/kernels/f.cu", "  SyncThreads();  // not __syncthreads", 0),
    ("cuda/device/a.h", "  __syncthreads();", 0),
]


def check_the_checker():
    """Each planted include alone in a tree gives exactly the violations expected of it."""
    for name, line, expected in PLANTED:
        with tempfile.TemporaryDirectory() as directory:
            root = pathlib.Path(directory)
            (root / name).parent.mkdir(parents=True)
            (root / name).write_text(f"// planted\n{line}\n")
            violations, _ = check_tree(root)
            assert len(violations) == expected, f"{name}: {line}: {violations}"
            assert all(v.startswith(f"{name}:2: ") for v in violations), violations


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent)
    check_the_checker()
    violations, files = check_tree(root)
    print(f"layering: {files} files, {len(PLANTED)} planted lines judged rightly, "
          f"{len(violations)} violations")
    print("\n".join(violations))
    return 1 if violations or files == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
