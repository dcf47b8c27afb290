"""The report of compare_peers.py: peers.md from the figures in peers.json.

    peer_report.py docs/results/peers.json > docs/results/peers.md
"""

from __future__ import annotations

import json
import pathlib
import statistics
import sys

from peer_step import DECODE_LENGTHS, PREFILL_LENGTHS, decode_name, prefill_name


def spread(values: list[float]) -> str:
    """Median, and least..greatest of several."""
    text = f"{statistics.median(values):.2f}"
    return text if len(values) == 1 else f"{text} ({min(values):.2f}..{max(values):.2f})"


def median(turns: list[dict], who: str, key: str) -> float:
    return statistics.median(t[who][key] for t in turns)


def generation_limits(turns: list[dict]) -> list[float]:
    """Tokens per second if each step read the weights once and, on average, half of the final cache."""
    limits = []
    for turn in turns:
        t = turn["tandem"]
        step = t["model_bytes"] + t["kv_bytes_per_token"] * t["generated_tokens"] / 2
        limits.append(t["read_bandwidth_gbps"] * 1e9 / step)
    return limits


def peers_of(result: dict) -> list[tuple[str, str]]:
    blas = [("llama_cpp_blas", f"with {result['blas']}")] if result["blas"] else []
    return [("llama_cpp", "llama.cpp"), *blas]


def model_table(result: dict, peers: list[tuple[str, str]]) -> list[str]:
    lines = ["| format | threads | pp Tandem | " + " | ".join(f"pp {name}" for _, name in peers) +
             " | Tandem / best | tg Tandem | tg llama.cpp | ratio | read GB/s | "
             "share of it, Tandem / llama.cpp |",
             "|---|---:|" + "---:|" * (len(peers) + 7)]
    pp, tg = "prompt_tokens_per_second", "generation_tokens_per_second"
    for e in result["models"]:
        turns = e["turns"]
        to_best = [t["tandem"][pp] / max(t[who][pp] for who, _ in peers) for t in turns]
        ratio = [t["tandem"][tg] / t["llama_cpp"][tg] for t in turns]
        limits = generation_limits(turns)
        shares = [statistics.median(t[who][tg] / limit for t, limit in zip(turns, limits))
                  for who in ("tandem", "llama_cpp")]
        cells = [e["format"], str(e["threads"]), f"{median(turns, 'tandem', pp):.1f}",
                 *(f"{median(turns, who, pp):.1f}" for who, _ in peers), spread(to_best),
                 f"{median(turns, 'tandem', tg):.2f}", f"{median(turns, 'llama_cpp', tg):.2f}",
                 spread(ratio), f"{median(turns, 'tandem', 'read_bandwidth_gbps'):.1f}",
                 f"{shares[0]:.2f} / {shares[1]:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def cpu_second_table(result: dict, peers: list[tuple[str, str]]) -> list[str]:
    """One thread only, where processor time is what a quiet machine would show as time."""
    lines = ["| format | pp Tandem | " + " | ".join(f"pp {name}" for _, name in peers) +
             " | Tandem / best | tg Tandem | tg llama.cpp | ratio |",
             "|---|---:|" + "---:|" * (len(peers) + 4)]
    pp, tg = "prompt_tokens_per_cpu_second", "generation_tokens_per_cpu_second"
    for e in result["models"]:
        turns = e["turns"]
        if e["threads"] != 1:
            continue
        to_best = [t["tandem"][pp] / max(t[who][pp] for who, _ in peers) for t in turns]
        ratio = [t["tandem"][tg] / t["llama_cpp"][tg] for t in turns]
        cells = [e["format"], *(f"{median(turns, who, pp):.1f}"
                                for who in ("tandem", *(who for who, _ in peers))),
                 spread(to_best), f"{median(turns, 'tandem', tg):.2f}",
                 f"{median(turns, 'llama_cpp', tg):.2f}", spread(ratio)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def memory_table(result: dict) -> list[str]:
    lines = ["| format | threads | weights and KV cache MiB | peak beyond them MiB |",
             "|---|---:|---:|---:|"]
    for e in result["models"]:
        t = e["turns"][0]["tandem"]
        must, peak = t["weight_bytes"] + t["kv_cache_bytes"], t["peak_resident_bytes"]
        beyond = "-" if peak is None else f"{(peak - must) / 2**20:.0f}"  # None: not known here
        lines.append(f"| {e['format']} | {e['threads']} | {must / 2**20:.0f} | {beyond} |")
    return lines


def decode_table(result: dict) -> list[str]:
    lines = ["| heads/kv x dim | keys | threads | Tandem f32 us | PyTorch f32 us | llama.cpp f32 us "
             "| Tandem / better | Tandem f16 us | llama.cpp f16 us | ratio |",
             "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for shape in result["attention_shapes"]:
        for keys in DECODE_LENGTHS:
            f32, f16 = (decode_name(*shape, t, keys) for t in ("f32", "f16"))
            for e in result["attention"]:
                turns = [{who: x["seconds"] for who, x in t.items()} for t in e["turns"]]

                def us(who: str, name: str) -> str:
                    return f"{1e6 * statistics.median(t[who][name] for t in turns):.1f}"

                better = [t["tandem"][f32] / min(t["torch"][f32], t["ggml"][f32]) for t in turns]
                half = [t["tandem"][f16] / t["ggml"][f16] for t in turns]
                cells = ["{}/{}x{}".format(*shape), str(keys), str(e["threads"]),
                         us("tandem", f32), us("torch", f32), us("ggml", f32), spread(better),
                         us("tandem", f16), us("ggml", f16), spread(half)]
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def prefill_table(result: dict) -> list[str]:
    lines = ["| heads/kv x dim | length | threads | Tandem GFLOP/s | PyTorch GFLOP/s | ratio |",
             "|---|---:|---:|---:|---:|---:|"]
    for shape in result["attention_shapes"]:
        for length in PREFILL_LENGTHS:
            name = prefill_name(*shape, "f32", length)
            work = 2e-9 * shape[0] * shape[2] * length * (length + 1)  # two products, visible pairs
            for e in result["attention"]:
                rates = {who: [work / t[who]["seconds"][name] for t in e["turns"]]
                         for who in ("tandem", "torch")}
                ratio = [a / b for a, b in zip(rates["tandem"], rates["torch"])]
                lines.append("| {}/{}x{} | {} | {} | {:.0f} | {:.0f} | {} |".format(
                    *shape, length, e["threads"], statistics.median(rates["tandem"]),
                    statistics.median(rates["torch"]), spread(ratio)))
    return lines


def measured(entries: list[dict]) -> list[dict]:
    return [e for e in entries if e["turns"]]


def markdown(result: dict) -> str:
    result = {**result, "models": measured(result["models"]),
              "attention": measured(result["attention"])}
    counts = [len(e["turns"]) for e in result["models"] + result["attention"]]
    turns = f"{min(counts)} turns" if min(counts) > 1 else "one turn"
    text = ["# Tandem beside its peers", "",
            f"{result['cpu']}, {result['cores']} cores, {result['date']}, load average before the "
            f"run {result['load_before']:.1f}; written by `bench/compare_peers.py`. Every program in "
            f"turn, {turns} each, medians; ratios within a turn (least..greatest). Rates of one "
            "machine on one day: read the ratios. Kernels of Tandem: "
            + ("the fixed order." if result["kernel_profile"] == "off" else "as calibrated."),
            *result["remarks"]]
    if result["models"]:
        version = result["models"][0]["turns"][0]["llama_cpp"]["version"]
        text += ["", f"## Tokens per second, pp{result['prompt_tokens']} and "
                 f"tg{result['gen_tokens']}", "",
                 "One random model of 1.1B parameters (TinyLlama's shape), the same file for all; "
                 f"llama.cpp through llama-cpp-python {version}, native build, its default choice of "
                 "flash attention and cache type (f16, as Tandem's). Generation's limit is read "
                 "bandwidth, measured by Tandem in the same step, over the weights and the cache.",
                 "", *model_table(result, peers_of(result))]
        if any(e["threads"] == 1 for e in result["models"]):
            text += ["", "One thread, per second of processor time, which other processes disturb "
                     "less:", "",
                     *cpu_second_table(result, peers_of(result))]
        text += ["", "Peak memory of Tandem:", "", *memory_table(result)]
    if result["attention"]:
        first = result["attention"][0]["turns"][0]["torch"]
        text += ["", "## Decode attention, one query, short caches", "",
                 f"torch {first['version']} scaled_dot_product_attention in f32; llama.cpp's "
                 "flash attention as one op of ggml, without a mask; Tandem's kernel without the public "
                 "call around it (0.13 us). PyTorch's time includes its call from Python, "
                 f"{1e6 * first['call_seconds']:.1f} us with one key. The same tensors again and "
                 "again. Smaller ratios are better.", "", *decode_table(result),
                 "", "## Causal prefill attention, f32", "", "GFLOP/s over the visible half.", "",
                 *prefill_table(result)]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    print(markdown(json.loads(pathlib.Path(sys.argv[1]).read_text())), end="")
