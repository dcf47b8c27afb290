#!/usr/bin/env python3
"""One measured step of a peer, in a process of its own; prints JSON. Called by compare_peers.py.

    peer_step.py llama -m MODEL.gguf --threads 1 --prompt-tokens 512 --gen-tokens 32
    peer_step.py torch --threads 1 --seconds 0.1      scaled_dot_product_attention, f32
    peer_step.py ggml --threads 1 --seconds 0.1       llama.cpp's flash attention, f32 and f16 caches

Tensors of attention are used again and again, so that short caches stay in the processor's caches.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tools"))

ATTENTION_SHAPES = ((32, 8, 128), (32, 4, 64))  # query heads, kv heads, head_dim
DECODE_LENGTHS = (64, 128, 256, 512)
PREFILL_LENGTHS = (512, 2048)
WARM_UP_TOKENS = 32  # faults the file's pages in and starts the threads


def decode_name(heads: int, kv_heads: int, dim: int, dtype: str, keys: int) -> str:
    """As attention_bench names it."""
    return f"Decode/{heads}/{kv_heads}x{dim}/{dtype}/hot/keys:{keys}"


def prefill_name(heads: int, kv_heads: int, dim: int, dtype: str, length: int) -> str:
    return f"Prefill/{heads}/{kv_heads}x{dim}/{dtype}/length:{length}"


def llama(args) -> dict:
    import llama_cpp_peer

    context = max(args.prompt_tokens, args.gen_tokens) + WARM_UP_TOKENS
    result = {"backends": llama_cpp_peer.backends(), "version": llama_cpp_peer.version()}
    with llama_cpp_peer.Peer(args.model, threads=args.threads, context=context,
                             flash_attention=None) as peer:
        for what, count, run in (("prompt", args.prompt_tokens, peer.prompt_seconds),
                                 ("generation", args.gen_tokens, peer.generation_seconds)):
            if count == 0:
                continue
            run(min(count, WARM_UP_TOKENS if what == "prompt" else 2))
            cpu = time.process_time()
            result[f"{what}_tokens_per_second"] = count / run(count)
            result[f"{what}_tokens_per_cpu_second"] = count / (time.process_time() - cpu)
    return result


def median_seconds(call, seconds: float) -> float:
    """Median time of repeated calls over about `seconds`, after one warm-up."""
    call()
    times, start = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < seconds:
        t = time.perf_counter()
        call()
        times.append(time.perf_counter() - t)
    return statistics.median(times)


def torch_attention(args) -> dict:
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    seconds = {}
    with torch.inference_mode():
        one = torch.randn(1, 1, 1, 8)
        call = median_seconds(lambda: sdpa(one, one, one, enable_gqa=True), args.seconds)
        for heads, kv_heads, dim in ATTENTION_SHAPES:
            for keys in DECODE_LENGTHS:
                q = torch.randn(1, heads, 1, dim)
                k, v = (torch.randn(1, kv_heads, keys, dim) for _ in range(2))
                seconds[decode_name(heads, kv_heads, dim, "f32", keys)] = median_seconds(
                    lambda: sdpa(q, k, v, enable_gqa=True), args.seconds)
            for length in PREFILL_LENGTHS:
                q = torch.randn(1, heads, length, dim)
                k, v = (torch.randn(1, kv_heads, length, dim) for _ in range(2))
                seconds[prefill_name(heads, kv_heads, dim, "f32", length)] = median_seconds(
                    lambda: sdpa(q, k, v, is_causal=True, enable_gqa=True), args.seconds)
    return {"version": torch.__version__, "seconds": seconds, "call_seconds": call}


def ggml_attention(args) -> dict:
    import ggml_attention as ggml

    return {"seconds": {
        decode_name(*shape, dtype, keys):
            ggml.decode_seconds(*shape, keys, dtype, args.threads, args.seconds)
        for shape in ATTENTION_SHAPES for dtype in ("f32", "f16") for keys in DECODE_LENGTHS}}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("llama", "torch", "ggml"))
    parser.add_argument("-m", "--model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--gen-tokens", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=0.1, help="per figure of attention")
    args = parser.parse_args()
    step = {"llama": llama, "torch": torch_attention, "ggml": ggml_attention}[args.what]
    print(json.dumps(step(args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
