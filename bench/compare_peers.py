#!/usr/bin/env python3
"""Measures Tandem against llama.cpp (tokens per second) and PyTorch (attention), in one run.

    compare_peers.py -m MODEL.gguf [-m OTHER.gguf] --threads 1,2 --repeat 5
    compare_peers.py --only attention --threads 1,2

Models: llama.cpp and Tandem take turns, so that a drifting machine hurts both alike; each turn is one
prompt (pp) and one generation (tg) after a warm-up, as llama-bench does it. Reported: medians, and
the median of the ratios of neighbouring turns. Attention: torch scaled_dot_product_attention at the
shapes that bench/ uses, beside the machine's read bandwidth and sgemm rate in the same process.
Writes peers.json and peers.md into --out (default docs/results). Needs torch, numpy, and
llama-cpp-python built for this machine. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

ATTENTION_SHAPES = ((32, 8, 128), (32, 4, 64))  # query heads, kv heads, head_dim
DECODE_LENGTHS = (64, 1024, 16384, 65536)
PREFILL_LENGTHS = (128, 512, 2048)
DRAM_BYTES = 1 << 30  # far beyond any last-level cache
GEMM_SIZE = 1024
RATES = ("prompt_tokens_per_second", "generation_tokens_per_second",
         "prompt_tokens_per_cpu_second", "generation_tokens_per_cpu_second")


def cpu_name() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def tandem_turn(tandem: str, model: str, threads: int, args) -> dict:
    command = [tandem, "bench-model", "-m", model, "--prompt-tokens", str(args.prompt_tokens),
               "--gen-tokens", str(args.gen_tokens), "--threads", str(threads),
               "--repetitions", "1", "--json"]
    command += args.tandem_arg
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)}\nexit code {result.returncode}\n{result.stderr}")
    return {**json.loads(result.stdout), "model": pathlib.Path(model).name}


def measure_model(model: str, threads: int, args) -> dict:
    import llama_cpp_peer

    tandem = None
    if not args.skip_tandem:
        import compare_llama_cpp

        tandem = compare_llama_cpp.find_tandem(args.tandem)
    size = pathlib.Path(model).stat().st_size
    context = args.prompt_tokens + args.gen_tokens
    turns = []
    with llama_cpp_peer.Peer(model, threads=threads, context=context, flash_attention=None) as peer:
        peer.prompt_seconds(args.prompt_tokens)  # warm-up: faults the file in, starts the threads
        peer.generation_seconds(1)
        for i in range(args.repeat):
            turn = {"llama_cpp": {}}
            for what, count, run in (("prompt", args.prompt_tokens, peer.prompt_seconds),
                                     ("generation", args.gen_tokens, peer.generation_seconds)):
                cpu = time.process_time()
                turn["llama_cpp"][f"{what}_tokens_per_second"] = count / run(count, seed=i)
                cpu = time.process_time() - cpu
                turn["llama_cpp"][f"{what}_tokens_per_cpu_second"] = count / cpu
            if tandem:
                turn["tandem"] = tandem_turn(tandem, model, threads, args)
            turns.append(turn)
            note(f"{pathlib.Path(model).name} {threads} threads {i + 1}/{args.repeat}: " + ", ".join(
                f"{who} pp {v['prompt_tokens_per_second']:.1f} "
                f"tg {v['generation_tokens_per_second']:.2f}" for who, v in turn.items()))
    entry = {"model": pathlib.Path(model).name, "file_bytes": size, "threads": threads,
             "prompt_tokens": args.prompt_tokens, "gen_tokens": args.gen_tokens, "turns": turns,
             "median": {}, "ratio": {}}
    for who in turns[0]:
        entry["median"][who] = {k: statistics.median(t[who][k] for t in turns) for k in RATES}
    if tandem:
        for k in RATES:
            ratios = [t["tandem"][k] / t["llama_cpp"][k] for t in turns]
            entry["ratio"][k] = {"median": statistics.median(ratios), "min": min(ratios),
                                 "max": max(ratios)}
        median = {k: statistics.median(t["tandem"][k] for t in turns)
                  for k in ("model_bytes", "kv_bytes_per_token", "read_bandwidth_gbps")}
        entry.update(median)
        # Each step reads the weights once and, on average, half of the final cache.
        step = median["model_bytes"] + median["kv_bytes_per_token"] * args.gen_tokens / 2
        limit = median["read_bandwidth_gbps"] * 1e9 / step
        entry["generation_limit_tokens_per_second"] = limit
        entry["share_of_limit"] = {
            who: entry["median"][who]["generation_tokens_per_second"] / limit for who in turns[0]}
    return entry


def median_rate(work: float, call, seconds: float) -> float:
    """Median rate (work per second) of repeated calls over about `seconds`, after one warm-up."""
    call()
    times, start = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < seconds:
        t = time.perf_counter()
        call()
        times.append(time.perf_counter() - t)
    return work / statistics.median(times)


def measure_attention(threads: int, args) -> dict:
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    big = torch.ones(DRAM_BYTES // 4)
    a, b = torch.randn(GEMM_SIZE, GEMM_SIZE), torch.randn(GEMM_SIZE, GEMM_SIZE)
    entry = {
        "threads": threads,
        "read_gbps": median_rate(DRAM_BYTES / 1e9, big.sum, args.seconds),
        "sgemm_gflops": median_rate(2 * GEMM_SIZE**3 / 1e9, lambda: a @ b, args.seconds),
        "decode": [], "prefill": [],
    }
    del big
    for heads, kv_heads, dim in ATTENTION_SHAPES:
        for length in DECODE_LENGTHS:
            for dtype in (torch.float32, torch.bfloat16):
                q = torch.randn(1, heads, 1, dim, dtype=dtype)
                k = torch.randn(1, kv_heads, length, dim, dtype=dtype)
                v = torch.randn(1, kv_heads, length, dim, dtype=dtype)
                work = (k.nbytes + v.nbytes) / 1e9
                rate = median_rate(work, lambda: sdpa(q, k, v, enable_gqa=True), args.seconds)
                entry["decode"].append({
                    "heads": heads, "kv_heads": kv_heads, "head_dim": dim, "kv_length": length,
                    "dtype": str(dtype).removeprefix("torch."), "gbps": rate})
        for length in PREFILL_LENGTHS:
            q = torch.randn(1, heads, length, dim)
            k, v = (torch.randn(1, kv_heads, length, dim) for _ in range(2))
            work = 2 * heads * dim * length * (length + 1) / 1e9  # two products, visible pairs only
            rate = median_rate(
                work, lambda: sdpa(q, k, v, is_causal=True, enable_gqa=True), args.seconds)
            entry["prefill"].append({
                "heads": heads, "kv_heads": kv_heads, "head_dim": dim, "length": length,
                "dtype": "float32", "gflops": rate})
    note(f"attention, {threads} threads: done")
    return entry


def model_table(entries: list[dict], per: str) -> list[str]:
    """`per` is "second", or "cpu_second" (of one thread: what a quiet machine would show)."""
    lines = ["| model | threads | pp llama.cpp | pp Tandem | ratio | tg llama.cpp | tg Tandem "
             "| ratio | tg limit | llama.cpp / Tandem share of it |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    for e in entries:
        cells = [e["model"], str(e["threads"])]
        for key in (f"prompt_tokens_per_{per}", f"generation_tokens_per_{per}"):
            cells.append(f"{e['median']['llama_cpp'][key]:.2f}")
            if "tandem" in e["median"]:
                r = e["ratio"][key]
                cells += [f"{e['median']['tandem'][key]:.2f}",
                          f"{r['median']:.2f} ({r['min']:.2f}..{r['max']:.2f})"]
            else:
                cells += ["-", "-"]
        if "share_of_limit" in e and per == "second":
            share = e["share_of_limit"]
            cells += [f"{e['generation_limit_tokens_per_second']:.2f}",
                      f"{100 * share['llama_cpp']:.0f} / {100 * share['tandem']:.0f} %"]
        else:
            cells += ["-", "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def attention_tables(entries: list[dict]) -> list[str]:
    lines = ["| threads | read GB/s | sgemm GFLOP/s |", "|---|---|---|"]
    lines += [f"| {e['threads']} | {e['read_gbps']:.1f} | {e['sgemm_gflops']:.0f} |" for e in entries]
    for kind, length, unit in (("decode", "kv_length", "gbps"), ("prefill", "length", "gflops")):
        title = "GB/s over K+V" if kind == "decode" else "GFLOP/s, causal half"
        lines += ["", f"PyTorch {kind}, {title}:", "",
                  "| heads/kv x dim | type | length | " +
                  " | ".join(f"{e['threads']} threads" for e in entries) + " |",
                  "|---|---|---|" + "---|" * len(entries)]
        for i, row in enumerate(entries[0][kind]):
            lines.append(f"| {row['heads']}/{row['kv_heads']}x{row['head_dim']} | {row['dtype']} "
                         f"| {row[length]} | " +
                         " | ".join(f"{e[kind][i][unit]:.1f}" for e in entries) + " |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", action="append", default=[], metavar="FILE")
    parser.add_argument("--threads", default=str(os.cpu_count()), help="counts, comma separated")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--gen-tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5, help="per attention figure")
    parser.add_argument("--only", choices=("models", "attention"))
    parser.add_argument("--tandem", help="the tandem binary (default: the newest under build*)")
    parser.add_argument("--tandem-arg", action="append", default=[], metavar="ARG")
    parser.add_argument("--skip-tandem", action="store_true", help="measure the peers only")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs" / "results")
    args = parser.parse_args()
    if args.only != "attention" and not args.model:
        parser.error("-m FILE is required (or --only attention)")
    threads = [int(t) for t in args.threads.split(",")]

    load = os.getloadavg()[0]
    if load > 0.25 * os.cpu_count():
        # llama.cpp's threads spin at barriers: one preempted thread costs it a factor of ten.
        note(f"warning: load average {load:.1f}; figures with more than one thread mean nothing now")
    result = {"date": datetime.date.today().isoformat(), "cpu": cpu_name(),
              "load_before": load, "models": [], "attention": []}
    if args.only != "attention":
        import llama_cpp_peer

        result["llama_cpp_python"] = llama_cpp_peer.version()
        result["models"] = [measure_model(m, t, args) for m in args.model for t in threads]
    if args.only != "models":
        import torch

        result["torch"] = torch.__version__
        result["attention"] = [measure_attention(t, args) for t in threads]

    text = ["# Tandem beside its peers", "",
            f"{result['cpu']}, {os.cpu_count()} cores, {result['date']}, load average before the run "
            f"{load:.1f}; written by `bench/compare_peers.py`. Rates of one machine on one day: read "
            "the ratios (median, least..greatest)."]
    if result["models"]:
        text += ["", f"## Tokens per second, pp{args.prompt_tokens} and tg{args.gen_tokens}", "",
                 f"llama.cpp through llama-cpp-python {result['llama_cpp_python']}, native build; "
                 f"medians of {args.repeat} alternating turns; ratio = Tandem / llama.cpp. The tg limit is read "
                 "bandwidth over the bytes one step must read.", "",
                 *model_table(result["models"], "second")]
        single = [e for e in result["models"] if e["threads"] == 1]
        if single:
            text += ["", "The same turns, one thread, per second of CPU time: other processes "
                     "disturb these figures far less.", "", *model_table(single, "cpu_second")]
    if result["attention"]:
        text += ["", "## Attention in PyTorch", "",
                 f"torch {result['torch']} scaled_dot_product_attention, same tensors repeated, so "
                 "short caches stay in the processor's caches.", "",
                 *attention_tables(result["attention"])]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "peers.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "peers.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
