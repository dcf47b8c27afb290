#!/usr/bin/env python3
"""Compiler launcher of the CUDA kernels: keeps what ptxas says about registers, stack and spills.

  ptxas_log.py NVCC ARGUMENTS... -o OBJECT     runs the command; `ptxas info` lines go to OBJECT.ptxas,
                                               everything else to the terminal

tools/cuda_gate.py reads these files.
"""

import subprocess
import sys


def main():
    command = sys.argv[1:]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    log, rest = [], []
    for line in result.stderr.splitlines():
        is_info = line.startswith("ptxas info") or "bytes stack frame" in line
        (log if is_info else rest).append(line)
    if rest:
        print("\n".join(rest), file=sys.stderr)
    if result.returncode == 0 and "-o" in command:
        with open(command[command.index("-o") + 1] + ".ptxas", "w") as file:
            file.write("\n".join(log + [line for line in rest if "ptxas" in line]) + "\n")
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
