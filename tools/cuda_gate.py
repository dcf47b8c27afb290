#!/usr/bin/env python3
"""Checks what ptxas said about every CUDA kernel, as kept by the build (tools/ptxas_log.py).

  cuda_gate.py BUILD             fails on stack frames, spills and serialisation warnings (C75xx)
  cuda_gate.py BUILD --table     prints the table of registers and shared memory, as Markdown
  cuda_gate.py --self-test       checks the checker on planted output
"""

import pathlib
import re
import subprocess
import sys

ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
WARNING = re.compile(r"\(C75\d\d\)|C75\d\d")


def parse(text):
    """Yields (kernel, architecture, registers, frame, spill bytes) and warnings as (None, line, ...)."""
    entry = frame = None
    for line in text.splitlines():
        if match := ENTRY.search(line):
            entry, frame = match.groups(), None
        elif entry and frame is None and (match := FRAME.search(line)):
            frame = [int(n) for n in match.groups()]
        elif entry and (match := USED.search(line)):
            yield (*entry, int(match[1]), (frame or [0, 0, 0])[0], sum((frame or [0, 0, 0])[1:]))
            entry = None
        if WARNING.search(line):
            yield (None, line.strip(), 0, 0, 0)


def kernel_name(mangled):
    """The function and its template arguments, without namespaces and parameters."""
    plain = subprocess.run(["c++filt", mangled], capture_output=True, text=True).stdout.strip()
    plain = re.sub(r"\((anonymous namespace|unnamed namespace)\)", "", plain)
    head = re.sub(r"\(.*", "", plain)
    head = re.sub(r"\b(?:\w+::)+", "", head.replace("::::", "::"))
    return head.split()[-1] if " " in head and "<" not in head else head.removeprefix("void ").lstrip(":")


def problems(rows):
    for kernel, arch, _, frame, spills in rows:
        if kernel is None:
            yield arch
        elif frame or spills:
            yield f"{kernel} for {arch}: {frame} bytes of stack frame, {spills} bytes of spills"


def resident_warps(registers):
    """Warps of a multiprocessor (65536 registers, given out to warps in units of 256) that registers allow."""
    return min(64, 65536 // (-(-registers * 32 // 256) * 256))


def self_test():
    good = """ptxas info    : Compiling entry function '_Z1fv' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers"""
    spilled = good.replace("0 bytes spill stores", "24 bytes spill stores")
    framed = good.replace("0 bytes stack frame", "16 bytes stack frame")
    warned = good + "\nptxas info : (C7510) Potential Performance Loss: wgmma.mma_async is serialized"
    assert list(parse(good)) == [("_Z1fv", "sm_80", 32, 0, 0)], list(parse(good))
    assert not list(problems(parse(good)))
    for bad in (spilled, framed, warned):
        assert len(list(problems(parse(bad)))) == 1, bad
    assert [resident_warps(n) for n in (32, 33, 40, 64, 128)] == [64, 51, 51, 32, 16]
    name = "_ZN6tandem4cuda3gpu41_GLOBAL__N__2e6a230f_9_lookup_cu_44f608d110RopeKernelENS0_10RopeParamsE"
    assert kernel_name(name) == "RopeKernel", kernel_name(name)


def main():
    self_test()
    if "--self-test" in sys.argv:
        print("cuda_gate: the checker judges planted output rightly")
        return 0
    cache = (pathlib.Path(sys.argv[1]) / "CMakeCache.txt").read_text()
    if "TANDEM_CUDA_ARCHITECTURES" not in cache:
        print("cuda_gate: built without the CUDA toolkit, nothing to check")
        return 0
    files = sorted(pathlib.Path(sys.argv[1]).rglob("*.cu.o.ptxas"))
    rows = []
    for file in files:
        if "--table" in sys.argv and "conformance" in str(file):
            continue  # of the tests
        for kernel, *rest in parse(file.read_text()):
            rows.append((kernel and kernel_name(kernel), *rest))
    kernels = sorted(row for row in rows if row[0])
    if "--table" in sys.argv:
        print("| kernel | architecture | registers | warps that they allow | stack frame, bytes | spills, bytes |")
        print("|---|---|---|---|---|---|")
        for name, arch, registers, *bytes_used in kernels:
            row = (name, arch, registers, resident_warps(registers), *bytes_used)
            print("| " + " | ".join(f"`{v}`" if i == 0 else str(v) for i, v in enumerate(row)) + " |")
        return 0
    found = list(problems(rows))
    print("\n".join(found))
    print(f"cuda_gate: {len(kernels)} kernels in {len(files)} files, {len(found)} problems")
    return 1 if found or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
