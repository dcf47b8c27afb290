#!/usr/bin/env python3
"""Times torch.matmul on the products of a `tandem bench-device --json` report, on the same GPU.

  gpu_torch_matmul.py REPORT [--json OUT]   a line per product: both times, and their ratio
  gpu_torch_matmul.py --library             where the cuBLASLt is that torch has loaded

Sums in f32 on both sides: no TF32, no reductions in 16 bits. tools/gpu_check.sh runs it where torch can
be imported. Exit status 3: there is no torch, or it sees no GPU.
"""

import pathlib
import sys

from gpu_torch import argument_parser, compare, load_torch, seconds


def library_path(torch):
    torch.ones(16, 16, device="cuda") @ torch.ones(16, 16, device="cuda")
    for line in pathlib.Path("/proc/self/maps").read_text().splitlines():
        if "libcublasLt.so" in line:
            return line.split(maxsplit=5)[5]
    return None


def measure(torch, device, report):
    """Yields a dict per product that the report has by cuBLASLt."""
    dtypes = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.manual_seed(1)
    for row in report["rows"]:
        product = row.get("matmul")
        if product is None or product["by"] != "cublaslt":
            continue
        m, n, k = (product[name] for name in "mnk")
        dtype = dtypes[product["dtype"]]
        a = torch.randn(m, k, device=device).to(dtype)
        b = torch.randn(n, k, device=device).to(dtype)
        out = torch.empty(m, n, device=device, dtype=dtype)
        taken = seconds(torch, device, lambda: torch.matmul(a, b.t(), out=out))
        yield {"dtype": product["dtype"], "m": m, "n": n, "k": k, "torch_seconds": taken,
               "cublaslt_seconds": row["seconds"], "speed_of_torch": taken / row["seconds"]}


def line(row):
    name = f"{row['dtype']} {row['m']} x {row['n']} x {row['k']}"
    flops = 2.0 * row["m"] * row["n"] * row["k"]
    return (f"{name:28} {row['torch_seconds'] * 1e6:10.1f} {row['cublaslt_seconds'] * 1e6:12.1f} "
            f"{flops / row['cublaslt_seconds'] * 1e-12:8.1f} {row['speed_of_torch']:9.2f}")


def main():
    parser = argument_parser(__doc__, report_optional=True)
    parser.add_argument("--library", action="store_true")
    options = parser.parse_args()
    if not options.library and options.report is None:
        parser.error("REPORT is missing")
    torch = load_torch(options.device)
    if options.library:
        path = library_path(torch)
        print(path or "")
        return 0 if path else 3
    heading = f"{'product':28} {'torch us':>10} {'cublaslt us':>12} {'TFLOP/s':>8} {'of torch':>9}"
    return compare(torch, options, measure, heading, line)


if __name__ == "__main__":
    sys.exit(main())
