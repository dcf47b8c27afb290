#!/usr/bin/env python3
"""Measures Tandem beside llama.cpp (tokens per second, flash attention) and PyTorch (attention), in
one run.

    compare_peers.py --models FOLDER                    everything; half an hour on 2 cores
    compare_peers.py --models FOLDER --quick            one turn each, fewer tokens
    compare_peers.py --models FOLDER --formats f16,q4_k --threads 1
    compare_peers.py --only attention
    compare_peers.py --models FOLDER --llama-blas BUILD/bin --hold "nice -n -5"

Models: one random model of TinyLlama's shape (1.1B parameters) in every format, in FOLDER. Missing
files are made there: f32 by tools/make_random_gguf.py, the others from it by `tandem quantize`.
Every measured step (one program, one model: load, warm up, one prompt, one generation) is a process
of its own of well under a minute, run behind the command --hold, with which a shared machine can be
kept quiet for just that long. Tandem, llama.cpp and llama.cpp with its BLAS back end take turns, so
that a drifting machine hurts all alike. Reported: medians over the turns, and the median of the ratios
within a turn. --llama-blas names the libraries of a second build of llama.cpp, of the version of
llama-cpp-python, with -DGGML_BLAS=ON (see tools/llama_cpp_peer.py); it only takes part in prompts:
single tokens never reach BLAS. Attention: Tandem's attention_bench, scaled_dot_product_attention of
PyTorch (f32), and llama.cpp's flash attention (f32 and f16 caches) take turns in the same way.

Tandem chooses kernels in the fixed order unless TANDEM_KERNEL_PROFILE says otherwise. Writes
peers.json and peers.md into --out. Needs torch, numpy, gguf, and llama-cpp-python built for this
machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys

import peer_report
from peer_step import ATTENTION_SHAPES, DECODE_LENGTHS, PREFILL_LENGTHS, WARM_UP_TOKENS

ROOT = pathlib.Path(__file__).resolve().parents[1]
FORMATS = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_k")
# One short, one full set of turns.
QUICK = {"turns": 1, "gen_tokens": 16, "seconds": 0.03}
FULL = {"turns": 3, "gen_tokens": 32, "seconds": 0.1}


def cpu_name() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def note(text: str) -> None:
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def run(command: list, environment: dict[str, str] | None = None) -> str:
    command = [str(c) for c in command]
    result = subprocess.run(command, capture_output=True, text=True,
                            env={**os.environ, **(environment or {})})
    if result.returncode != 0:
        sys.exit(f"{shlex.join(command)}\nexit code {result.returncode}\n{result.stderr}")
    return result.stdout


class Steps:
    """Runs measured steps behind the command of --hold."""

    def __init__(self, args):
        self.args, self.hold = args, shlex.split(args.hold)
        self.tandem = args.build / "tandem"
        self.environment = {"TANDEM_KERNEL_PROFILE": os.environ.get("TANDEM_KERNEL_PROFILE", "off")}

    def _python(self, *command, environment=None) -> dict:
        script = ROOT / "bench" / "peer_step.py"
        return json.loads(run([*self.hold, sys.executable, script, *command], environment))

    def tandem_model(self, model: pathlib.Path, threads: int) -> dict:
        figures = json.loads(run(
            [*self.hold, self.tandem, "bench-model", "-m", model, "--threads", threads,
             "--prompt-tokens", self.args.prompt_tokens, "--gen-tokens", self.args.gen_tokens,
             "--repetitions", 1, "--warm-up-tokens", WARM_UP_TOKENS, "--json",
             *self.args.tandem_arg], self.environment))
        return {**figures, "model": model.name}

    def llama_model(self, model: pathlib.Path, threads: int, blas: bool) -> dict:
        environment = {"LLAMA_CPP_LIB_PATH": str(self.args.llama_blas)} if blas else None
        step = self._python(
            "llama", "-m", model, "--threads", threads, "--prompt-tokens", self.args.prompt_tokens,
            "--gen-tokens", 0 if blas else self.args.gen_tokens, environment=environment)
        if blas != ("BLAS" in step["backends"]):
            sys.exit(f"llama.cpp has the back ends {step['backends']}, expected BLAS: {blas}")
        return step

    def tandem_attention(self, threads: int) -> dict:
        program = self.args.build / "bench" / "attention_bench"
        decode, prefill = ("|".join(map(str, x)) for x in (DECODE_LENGTHS, PREFILL_LENGTHS))
        chosen = (f"^(Decode/.*/(f32|f16)/hot/keys:({decode})|Prefill/.*/f32/length:({prefill}))"
                  f"/threads:{threads}(/real_time)?$")
        rows = json.loads(run(
            [*self.hold, program, "--benchmark_format=json", f"--benchmark_filter={chosen}",
             f"--benchmark_min_time={self.args.seconds}"], self.environment))["benchmarks"]
        to_seconds = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
        seconds = {}
        for row in rows:
            name = row["name"].split("/threads:")[0]
            seconds[name] = row["real_time"] * to_seconds[row["time_unit"]]
        return {"seconds": seconds}

    def peer_attention(self, what: str, threads: int) -> dict:
        return self._python(what, "--threads", threads, "--seconds", self.args.seconds)


def find_models(args) -> dict[str, pathlib.Path]:
    """The files of --formats; makes those that are missing."""
    args.models.mkdir(parents=True, exist_ok=True)
    paths = {f: args.models / f"random-1.1b-{f}.gguf" for f in args.formats}
    source = args.models / "random-1.1b-f32.gguf"

    def make(path: pathlib.Path, command: list) -> None:
        note(f"making {path.name}")
        partial = path.with_suffix(".part")
        run([*command(partial)])
        partial.rename(path)

    missing = [f for f in args.formats if not paths[f].exists()]
    if missing and not source.exists():
        script = ROOT / "tools" / "make_random_gguf.py"
        make(source, lambda out: [sys.executable, script, "--preset", "tinyllama-1.1b", "--dtype",
                                  "F32", "-o", out])
    for dtype in missing:
        if dtype != "f32":
            make(paths[dtype], lambda out: [args.build / "tandem", "quantize", source, out,
                                            "--type", dtype])
    return paths


def model_turn(steps: Steps, entry: dict, model: pathlib.Path, args) -> None:
    threads = entry["threads"]
    turn = {"tandem": steps.tandem_model(model, threads),
            "llama_cpp": steps.llama_model(model, threads, blas=False)}
    if args.llama_blas:
        turn["llama_cpp_blas"] = steps.llama_model(model, threads, blas=True)
    entry["turns"].append(turn)
    note(f"{entry['format']} {threads} threads: " + ", ".join(
        f"{who} pp {v['prompt_tokens_per_second']:.1f} "
        f"tg {v.get('generation_tokens_per_second', 0):.2f}" for who, v in turn.items()))


def attention_turn(steps: Steps, entry: dict) -> None:
    threads = entry["threads"]
    entry["turns"].append({"tandem": steps.tandem_attention(threads),
                           "torch": steps.peer_attention("torch", threads),
                           "ggml": steps.peer_attention("ggml", threads)})
    note(f"attention {threads} threads")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=pathlib.Path, metavar="FOLDER",
                        help="folder of the model files (12 GB for all formats)")
    parser.add_argument("--formats", default=",".join(FORMATS), help="comma separated")
    parser.add_argument("--threads", default="1" if os.cpu_count() == 1 else f"1,{os.cpu_count()}",
                        help="counts, comma separated")
    parser.add_argument("--quick", action="store_true", help="one turn, fewer tokens")
    parser.add_argument("--turns", type=int, help="of every program")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--gen-tokens", type=int)
    parser.add_argument("--seconds", type=float, help="per attention figure and turn")
    parser.add_argument("--only", choices=("models", "attention"))
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build",
                        help="where tandem and bench/attention_bench are")
    parser.add_argument("--tandem-arg", action="append", default=[], metavar="ARG")
    parser.add_argument("--llama-blas", type=pathlib.Path, metavar="FOLDER",
                        help="libraries of llama.cpp with its BLAS back end")
    parser.add_argument("--blas-name", default="OpenBLAS", help="what --llama-blas uses, for the report")
    parser.add_argument("--hold", default="", metavar="COMMAND", help="put before each measured step")
    parser.add_argument("--remark", action="append", default=[], help="a sentence for the report")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs" / "results")
    args = parser.parse_args()
    for key, value in (QUICK if args.quick else FULL).items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    args.formats = args.formats.split(",")
    if args.only != "attention" and args.models is None:
        parser.error("--models FOLDER is required (or --only attention)")
    unknown = set(args.formats) - set(FORMATS)
    if unknown:
        parser.error(f"--formats: unknown {sorted(unknown)}, expected some of {FORMATS}")
    threads = [int(t) for t in args.threads.split(",")]

    steps = Steps(args)
    models = find_models(args) if args.only != "attention" else {}
    result = {"date": datetime.date.today().isoformat(), "cpu": cpu_name(),
              "cores": os.cpu_count(), "load_before": os.getloadavg()[0],
              "kernel_profile": steps.environment["TANDEM_KERNEL_PROFILE"],
              "prompt_tokens": args.prompt_tokens, "gen_tokens": args.gen_tokens,
              "blas": args.blas_name if args.llama_blas else "", "remarks": args.remark,
              "attention_shapes": ATTENTION_SHAPES,
              "models": [{"format": f, "file_bytes": path.stat().st_size, "threads": t, "turns": []}
                         for t in threads for f, path in models.items()],
              "attention": [{"threads": t, "turns": []} for t in threads]
              if args.only != "models" else []}
    args.out.mkdir(parents=True, exist_ok=True)

    def write() -> str:
        text = peer_report.markdown(result)
        (args.out / "peers.json").write_text(json.dumps(result, indent=1) + "\n")
        (args.out / "peers.md").write_text(text)
        return text

    # All models take their first turn before any takes its second: a drift within minutes shows as
    # spread. What has been measured is written after each turn.
    for _ in range(args.turns):
        for entry in result["models"]:
            model_turn(steps, entry, models[entry["format"]], args)
            write()
        for entry in result["attention"]:
            attention_turn(steps, entry)
            write()
    text = write()
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
