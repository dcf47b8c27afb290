#!/usr/bin/env python3
"""Times torch's scaled_dot_product_attention on the attention rows of a `tandem bench-device --json`
report, on the same GPU, with its flash and cuDNN back ends.

  gpu_torch_attention.py REPORT [--json OUT]   a line per shape: the times, and ours over the better

As the report's: random numbers, several copies of the operands in turn (a cold cache), calls recorded as
one CUDA graph, medians. Caches of int8 are left out: torch has none. tools/gpu_check.sh runs it where
torch can be imported. Exit status 3: there is no torch, or it sees no GPU.
"""

import sys

from gpu_torch import argument_parser, compare, load_torch, seconds

COLD_BYTES = 128 << 20
MOST_COPIES = 32
MIN_CALLS = 4


def backends(torch):
    from torch.nn.attention import SDPBackend
    return {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def operands(torch, shape, device, dtype):
    def make(heads, length):
        return torch.randn(shape["batch"], heads, length, shape["head_dim"], device=device).to(dtype)

    def one():
        return (make(shape["heads"], shape["q_len"]), make(shape["kv_heads"], shape["kv_len"]),
                make(shape["kv_heads"], shape["kv_len"]))

    first = one()
    copies = min(MOST_COPIES, 1 + COLD_BYTES // sum(x.nbytes for x in first))
    return [first] + [one() for _ in range(copies - 1)]


def time_backend(torch, device, backend, shape, copies):
    """Seconds of one call; None: the back end does not take it."""
    import torch.nn.functional as functional
    from torch.nn.attention import sdpa_kernel
    calls = max(len(copies), MIN_CALLS)
    causal = shape["causal"] and shape["q_len"] > 1

    def run():
        for i in range(calls):
            q, k, v = copies[i % len(copies)]
            functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    with torch.no_grad(), sdpa_kernel(backend):
        try:
            run()
        except RuntimeError as error:
            print(f"  {backend}: {str(error).splitlines()[0]}", file=sys.stderr)
            return None
        if device != "cuda":
            return seconds(torch, device, run) / calls
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return seconds(torch, device, graph.replay) / calls


def measure(torch, device, report):
    """Yields a dict per row of the report."""
    dtypes = {"f16": torch.float16, "bf16": torch.bfloat16}
    torch.manual_seed(1)
    for row in report["rows"]:
        shape = row.get("attention")
        if shape is None or shape["dtype"] not in dtypes:
            continue
        copies = operands(torch, shape, device, dtypes[shape["dtype"]])
        times = {name: time_backend(torch, device, backend, shape, copies)
                 for name, backend in backends(torch).items()}
        known = [t for t in times.values() if t is not None]
        yield {**shape, "what": row["what"], "kernel": row["kernel"], "tandem_seconds": row["seconds"],
               **{f"torch_{name}_seconds": t for name, t in times.items()},
               "of_better_torch": row["seconds"] / min(known) if known else None,
               "bytes": row["bytes"], "flops": row["flops"]}
        del copies


def line(row):
    def number(value, factor, digits):
        return "-" if value is None else f"{value * factor:.{digits}f}"

    ours = row["tandem_seconds"]
    return (f"{row['what']:66} {row['kernel']:>8} {ours * 1e6:9.1f} {row['flops'] / ours * 1e-12:8.1f} "
            f"{row['bytes'] / ours * 1e-9:7.0f} {number(row['torch_flash_seconds'], 1e6, 1):>9} "
            f"{number(row['torch_cudnn_seconds'], 1e6, 1):>9} {number(row['of_better_torch'], 1, 2):>13}")


def main():
    options = argument_parser(__doc__).parse_args()
    heading = (f"{'shape':66} {'kernel':>8} {'us':>9} {'TFLOP/s':>8} {'GB/s':>7} {'flash us':>9} "
               f"{'cudnn us':>9} {'time / better':>13}")
    return compare(load_torch(options.device), options, measure, heading, line)


if __name__ == "__main__":
    sys.exit(main())
