#!/usr/bin/env python3
"""Compares Tandem's logits with llama.cpp's, and both with a PyTorch float64 forward.

    compare_llama_cpp.py MODEL.gguf [MODEL.gguf ...] [--tandem build/tools/tandem]
    compare_llama_cpp.py MODEL.gguf --text "Once upon a time" --json result.json

The prompt is --tokens, or --text (tokenized by llama.cpp), or --random N ids. Exit code 1 when
Tandem's distance from float64 (relative L2) exceeds both --tolerance and --factor times that of
llama.cpp, or, without the oracle, when the two differ by more than --no-oracle-tolerance. Needs
llama-cpp-python, torch, numpy and gguf; not part of the tests.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np

import llama_cpp_peer
import torch_decoder


def find_tandem(given: str | None) -> str:
    if given:
        return given
    root = pathlib.Path(__file__).resolve().parents[1]
    built = sorted(root.glob("build*/**/tandem"), key=lambda p: p.stat().st_mtime, reverse=True)
    candidates = [str(p) for p in built if p.is_file()] + [shutil.which("tandem")]
    if candidates[0] is None:
        sys.exit("no tandem binary found: build it, or name it with --tandem")
    return candidates[0]


def tandem_logits(tandem: str, model: str, tokens: list[int], extra: list[str]) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "logits.bin"
        ids = ",".join(map(str, tokens))
        command = [tandem, "logits", "-m", model, "--tokens", ids, "--out", str(out), *extra]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            sys.exit(f"{' '.join(command)}\nexit code {result.returncode}\n{result.stderr}")
        logits = np.fromfile(out, dtype="<f4")
    if logits.size % len(tokens):
        sys.exit(f"tandem wrote {logits.size} logits, no multiple of {len(tokens)} tokens")
    return logits.reshape(len(tokens), -1)


def compare(model: str, args) -> dict:
    with llama_cpp_peer.Peer(model, threads=args.threads, kv_dtype=args.kv_dtype) as peer:
        if args.tokens:
            tokens = [int(t) for t in args.tokens.split(",")]
        elif args.text is not None:
            tokens = peer.tokenize(args.text.encode(), True, True)
        else:
            rng = np.random.default_rng(args.seed)
            tokens = rng.integers(0, peer.n_vocab, args.random).tolist()
        logits = {"llama.cpp": peer.logits(tokens)}
    if not args.skip_tandem:
        logits["tandem"] = tandem_logits(find_tandem(args.tandem), model, tokens, args.tandem_arg)
    if not args.no_oracle:
        logits["float64"] = torch_decoder.TorchDecoder(model).forward(tokens).numpy()
    names = list(logits)
    pairs = {}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if logits[a].shape != logits[b].shape:
                sys.exit(f"{model}: {a} gives {logits[a].shape} logits, {b} {logits[b].shape}")
            entry = torch_decoder.difference(logits[a], logits[b])
            same = logits[a].argmax(-1) == logits[b].argmax(-1)
            pairs[f"{a} vs {b}"] = {**entry, "same_argmax": float(same.mean())}
    return {"model": pathlib.Path(model).name, "tokens": len(tokens),
            "llama_cpp_kv_dtype": args.kv_dtype, "pairs": pairs}


def acceptable(result: dict, args) -> bool:
    pairs = result["pairs"]
    if "tandem vs float64" in pairs:
        tandem = pairs["tandem vs float64"]["rel_l2"]
        return tandem <= max(args.tolerance, args.factor * pairs["llama.cpp vs float64"]["rel_l2"])
    if "llama.cpp vs tandem" in pairs:
        return pairs["llama.cpp vs tandem"]["rel_l2"] <= args.no_oracle_tolerance
    return True


def markdown(results: list[dict]) -> str:
    lines = ["# Logits of Tandem, llama.cpp and a float64 forward", "",
             "Written by `tools/compare_llama_cpp.py` with llama-cpp-python "
             f"{llama_cpp_peer.version()}; caches in {results[0]['llama_cpp_kv_dtype']} in llama.cpp "
             "and in Tandem's default. Relative L2 and largest absolute difference over all logits "
             "of the prompt.", "",
             "| model | tokens | pair | max abs | relative L2 | same argmax |",
             "|---|---|---|---|---|---|"]
    for result in results:
        for pair, e in result["pairs"].items():
            lines.append(f"| {result['model']} | {result['tokens']} | {pair} | {e['max_abs']:.2e} | "
                         f"{e['rel_l2']:.2e} | {100 * e['same_argmax']:.1f} % |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--tandem", help="the tandem binary (default: the newest under build*)")
    parser.add_argument("--tandem-arg", action="append", default=[], metavar="ARG",
                        help="passed on to `tandem logits`; may be repeated")
    parser.add_argument("--tokens", help="token ids, comma separated")
    parser.add_argument("--text", help="prompt text")
    parser.add_argument("--random", type=int, default=24, metavar="N", help="N random ids (24)")
    parser.add_argument("--seed", type=int, default=1, help="of --random")
    parser.add_argument("--threads", type=int, default=2, help="of llama.cpp")
    parser.add_argument("--kv-dtype", choices=sorted(llama_cpp_peer.GGML_TYPES), default="f16",
                        help="of llama.cpp's cache (its default, f16)")
    parser.add_argument("--no-oracle", action="store_true", help="skip the float64 forward")
    parser.add_argument("--skip-tandem", action="store_true", help="llama.cpp and float64 only")
    parser.add_argument("--factor", type=float, default=2.0)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--no-oracle-tolerance", type=float, default=0.03)
    parser.add_argument("--json", metavar="FILE", help="write the results; - for standard output")
    parser.add_argument("--markdown", metavar="FILE", help="write the results as a table")
    args = parser.parse_args()
    results, ok = [], True
    table = sys.stderr if args.json == "-" else sys.stdout
    print(f"{'model':32} {'pair':24} {'max abs':>10} {'rel L2':>10} {'same argmax':>12}", file=table)
    for model in args.models:
        result = compare(model, args)
        result["ok"] = acceptable(result, args)
        ok &= result["ok"]
        results.append(result)
        for pair, e in result["pairs"].items():
            print(f"{result['model'][:32]:32} {pair:24} {e['max_abs']:10.2e} {e['rel_l2']:10.2e} "
                  f"{100 * e['same_argmax']:10.1f} %{'' if result['ok'] else '  FAIL'}",
                  file=table, flush=True)
    if args.json:
        text = json.dumps({"llama_cpp_python": llama_cpp_peer.version(), "results": results},
                          indent=1) + "\n"
        if args.json == "-":
            print(text, end="")
        else:
            pathlib.Path(args.json).write_text(text)
    if args.markdown:
        pathlib.Path(args.markdown).write_text(markdown(results))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
