#!/usr/bin/env python3
"""Files of `tandem quantize` in llama.cpp: it loads them and computes what Tandem computes.

    compare_quantized.py [--tandem build/tandem] [COMPARE_ARGUMENTS...]

Makes a random model, quantises it to every block format, and hands the files to
compare_llama_cpp.py, whose exit status, tolerances and further arguments (--markdown FILE, ...)
apply. Exit status 77 (skipped) when llama-cpp-python, torch or gguf is missing.
"""

from __future__ import annotations

import importlib.util
import pathlib
import subprocess
import sys
import tempfile

TYPES = ("q8_0", "q4_0", "q4_k", "q5_k", "q6_k", "tq2_0")
TOOLS = pathlib.Path(__file__).resolve().parent


def main() -> int:
    arguments = sys.argv[1:]
    if "-h" in arguments or "--help" in arguments:
        print(__doc__)
        return 0
    missing = [name for name in ("llama_cpp", "torch", "gguf", "numpy")
               if importlib.util.find_spec(name) is None]
    if missing:
        print(f"skipped: no {', '.join(missing)}")
        return 77
    tandem = str(TOOLS.parent / "build" / "tandem")
    if "--tandem" in arguments:
        at = arguments.index("--tandem")
        tandem = arguments[at + 1]
        del arguments[at:at + 2]
    with tempfile.TemporaryDirectory() as folder:
        source = f"{folder}/f16.gguf"
        subprocess.run([sys.executable, TOOLS / "make_random_gguf.py", "--preset", "tiny-llama-256",
                        "--dtype", "F16", "-o", source], check=True, stdout=subprocess.DEVNULL)
        files = []
        for name in TYPES:
            files.append(f"{folder}/quantized_{name}.gguf")
            subprocess.run([tandem, "quantize", source, files[-1], "--type", name], check=True,
                           stdout=subprocess.DEVNULL)
        return subprocess.run([sys.executable, TOOLS / "compare_llama_cpp.py", *files, "--tandem",
                               tandem, "--random", "16", *arguments]).returncode


if __name__ == "__main__":
    sys.exit(main())
