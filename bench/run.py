#!/usr/bin/env python3
"""Runs the benchmark programs and writes their figures as JSON and Markdown.

    bench/run.py [--build build] [--filter REGEX] [--min-time SECONDS] [--out docs/results]

Every benchmark reports its figures as counters, each beside a yardstick of the same run (columns
"of_..."); this program only collects them. With more than one repetition the medians are kept.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Fields that Google Benchmark writes for every run; all others are counters.
STANDARD = {
    "name", "family_index", "per_family_instance_index", "run_name", "run_type", "repetitions",
    "repetition_index", "threads", "iterations", "real_time", "cpu_time", "time_unit",
    "aggregate_name", "aggregate_unit", "label", "error_occurred", "error_message",
}


def cpu_name() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown CPU"


def run(program: pathlib.Path, args: argparse.Namespace) -> list[dict]:
    """The benchmark's rows: {"name", "time_ns", counter: value, ...}."""
    command = [str(program), "--benchmark_format=json",
               f"--benchmark_repetitions={args.repetitions}"]
    if args.repetitions > 1:
        command.append("--benchmark_report_aggregates_only=true")
    if args.filter:
        command.append(f"--benchmark_filter={args.filter}")
    if args.min_time:
        command.append(f"--benchmark_min_time={args.min_time}")
    print(f"{program.name} ...", file=sys.stderr, flush=True)
    # oneDNN's own OpenMP threads (the yardstick) would otherwise spin on after each call and take the
    # cores from what is measured next.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    rows = []
    to_ns = {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9}
    # Google Benchmark prints nothing at all when the filter matches nothing.
    for bench in json.loads(done.stdout)["benchmarks"] if done.stdout.strip() else []:
        if bench.get("aggregate_name", "median") != "median" or bench.get("error_occurred"):
            continue
        row = {"name": bench["run_name"], "time_ns": bench["real_time"] * to_ns[bench["time_unit"]]}
        row.update({k: v for k, v in bench.items() if k not in STANDARD})
        rows.append(row)
    return rows


def number(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 0.1 else f"{value:.2f}"


def table(rows: list[dict]) -> list[str]:
    """One table per set of counters, so that no column is empty."""
    lines: list[str] = []
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(k for k in row if k not in ("name", "time_ns")), []).append(row)
    for counters, members in groups.items():
        lines += ["", "| " + " | ".join(["", "us", *counters]) + " |",
                  "|---|---:|" + "---:|" * len(counters)]
        for row in members:
            name = re.sub(r"/(real_time|process_time|manual_time|min_time:[^/]*)", "", row["name"])
            cells = [number(row["time_ns"] * 1e-3), *(number(row[c]) for c in counters)]
            lines.append("| " + " | ".join([name, *cells]) + " |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("--filter", help="regular expression on benchmark names")
    parser.add_argument("--only", action="append", default=[], metavar="PROGRAM",
                        help="only this program (repeatable), e.g. matmul_bench")
    parser.add_argument("--min-time", type=float, help="seconds per benchmark")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs" / "results")
    args = parser.parse_args()

    programs = sorted(p for p in (args.build / "bench").glob("*_bench") if os.access(p, os.X_OK))
    if args.only:
        programs = [p for p in programs if p.name in args.only]
    if not programs:
        parser.error(f"no benchmark programs in {args.build / 'bench'}: build them first")
    load = os.getloadavg()[0]
    if load > 0.25 * (os.cpu_count() or 1):
        print(f"warning: load average {load:.1f}; the figures will be noisy", file=sys.stderr)
    result = {"cpu": cpu_name(), "cores": os.cpu_count(), "load_before": load,
              "date": datetime.date.today().isoformat(),
              "programs": {p.name: run(p, args) for p in programs}}

    text = ["# Benchmarks", "",
            f"{result['cpu']}, {result['cores']} cores, {result['date']}, load average before the run {load:.1f}; "
            "written by `bench/run.py`. Columns `of_...` are ratios to a yardstick measured in the "
            "same run, explained at the top of each program's source: read these, not the times."]
    for name, rows in result["programs"].items():
        text += ["", f"## {name}", *table(rows)]
    args.out.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^a-z0-9]+", "-", result["cpu"].lower()).strip("-") + "-" + result["date"]
    (args.out / f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / f"{stem}.md").write_text("\n".join(text) + "\n")
    print(args.out / f"{stem}.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
