#!/usr/bin/env python3
"""Fails when a class of kernels has become much slower than recorded in gate_values.json.

    bench/gate.py BUILD            the gate; exit status 1 when a class is too slow
    bench/gate.py BUILD --prove    the same, and then plants slowdowns, each of which must be noticed
    bench/gate.py BUILD --record   measures several times and writes this machine's values

What is compared are ratios to the machine's own rates, measured in turns with the kernel
(regression_gate.cc). The values belong to a processor and instruction set:

  the very processor     a class fails at LIMIT times its recorded ratio
  another, same set      at LIMIT_ELSEWHERE times the largest ratio recorded for that set: ratios
                         differ between processors, and only code that is not the fast one any more
                         (a kernel that refuses, a path that is taken no longer) differs by so much
  nothing of that set    skipped, with a message

A class that seems too slow is measured again, alone and longer, up to RETRIES times, and one good
measurement is enough. It fails only if its ratios to all the yardsticks are too large.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

LIMIT = 1.6
LIMIT_ELSEWHERE = 4.0
RETRIES = 4
AGAIN_SECONDS = 0.3
RECORDED_RUNS = 7
VALUES = pathlib.Path(__file__).resolve().parent / "gate_values.json"
PLANTED = ["attention_decode_f16", "gemv_q4_k", "rms_norm"]


def processor(name):
    """The name with family and model, which tell generations apart where a virtual machine hides
    the name."""
    info = pathlib.Path("/proc/cpuinfo").read_text()
    numbers = [re.search(rf"^{field}\s*:\s*(\d+)$", info, re.MULTILINE) for field in ("cpu family", "model")]
    return f"{name}, family {numbers[0][1]}, model {numbers[1][1]}" if all(numbers) else name


def measure(program, isa, seconds=None, only=(), plant=()):
    """The program's JSON, or None if this processor lacks the instruction set."""
    command = [str(program), "--isa", isa]
    if seconds:
        command += ["--seconds", str(seconds)]
    for name in only:
        command += ["--only", name]
    environment = {**os.environ, "TANDEM_GATE_PLANT": ",".join(plant)}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=environment)
    if done.returncode == 2 and "has no" in done.stderr:
        return None
    if done.returncode != 0:
        sys.exit(f"{program.name} --isa {isa}: {done.stderr.strip() or done.returncode}")
    result = json.loads(done.stdout)
    result["cpu"] = processor(result["cpu"])
    return result


def expected(values, run):
    """What was recorded for this processor, or for others of its instruction set: the limit to apply,
    in words whose values they are, and per class (kernel, ratios). None: nothing."""
    same_set = [m for m in values["machines"] if m["isa"] == run["isa"]]
    for machine in same_set:
        if machine["cpu"] == run["cpu"] and machine["features"] == run["features"]:
            return LIMIT, "this processor", machine["classes"]
    if not same_set:
        return None
    merged = {}
    for machine in same_set:
        for name, entry in machine["classes"].items():
            merged.setdefault(name, {"kernel": entry["kernel"], "ratios": {}})
            for yardstick, ratio in entry["ratios"].items():
                known = merged[name]["ratios"].get(yardstick, 0.0)
                merged[name]["ratios"][yardstick] = max(known, ratio)
    return LIMIT_ELSEWHERE, "other processors (" + ", ".join(m["cpu"] for m in same_set) + ")", merged


def slowdown(entry, recorded):
    """How many times slower than recorded, by the yardstick that says least."""
    assert entry["ok"] and all(entry["ratios"].values())
    return min(entry["ratios"][y] / recorded["ratios"][y] for y in recorded["ratios"])


def check(program, values, isa, plant=(), only=()):
    """The classes that are too slow: name -> words. None if there is nothing to compare with, or only
    values of other processors (and then none is too slow)."""
    run = measure(program, isa, plant=plant, only=only)
    if run is None:
        print(f"{isa}: skipped, this processor has no such instructions")
        return None
    if not run["optimised"]:
        print(f"{isa}: skipped, this build is not optimised or has sanitizers")
        return None
    found = expected(values, run)
    if found is None:
        print(f"{isa}: skipped, no values are recorded for it ({run['cpu']}, {run['features']})")
        return None
    limit, whose, recorded = found
    failures, worst, unknown = {}, ("", 0.0), []
    for name, entry in run["classes"].items():
        if name not in recorded:
            unknown.append(name)
            continue
        factor = slowdown(entry, recorded[name])
        retries = 0
        while factor >= limit and retries < RETRIES:
            retries += 1
            again = measure(program, isa, seconds=AGAIN_SECONDS, only=[name], plant=plant)
            factor = min(factor, slowdown(again["classes"][name], recorded[name]))
        if retries:
            print(f"{isa}: {name} measured again {retries} times")
        if factor >= limit:
            failures[name] = (f"{factor:.2f} times the recorded time (limit {limit}); it runs "
                              f"{entry['kernel']}, recorded was {recorded[name]['kernel']}")
        if factor > worst[1]:
            worst = (name, factor)
    print(f"{isa}: {len(run['classes'])} classes against the values of {whose}; most "
          f"{worst[1]:.2f} times the recorded time ({worst[0]})")
    known_somewhere = {n for m in values["machines"] for n in m["classes"]}
    for name in unknown:
        if name not in known_somewhere:  # the same on every machine: no matter of timing
            failures[name] = "no recorded value: run bench/gate.py BUILD --record"
    return failures if failures or limit == LIMIT else None


def record(program, values):
    """Replaces this machine's values by the medians of several runs."""
    for isa in ("avx512", "avx2"):
        runs = [measure(program, isa) for _ in range(RECORDED_RUNS)]
        if runs[0] is None:
            continue
        classes = {}
        for name, entry in runs[0]["classes"].items():
            ratios = {y: float(f"{statistics.median(r['classes'][name]['ratios'][y] for r in runs):.4g}")
                      for y in entry["ratios"]}
            classes[name] = {"kernel": entry["kernel"], "ratios": ratios}
        machine = {k: runs[0][k] for k in ("cpu", "isa", "features")}
        values["machines"] = [m for m in values["machines"]
                              if any(m[k] != machine[k] for k in machine)]
        values["machines"].append({**machine, "classes": classes})
    VALUES.write_text(json.dumps(values, indent=1) + "\n")
    print(f"{VALUES}: {len(values['machines'])} machines")


def prove(program, values, isa):
    """A kernel that runs twice must be noticed, and no other class with it."""
    failures = check(program, values, isa, plant=PLANTED, only=PLANTED + ["add"])
    print(f"{isa}: planted {', '.join(PLANTED)}; noticed {', '.join(sorted(failures)) or 'nothing'}")
    return set(failures) == set(PLANTED)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--prove", action="store_true")
    args = parser.parse_args()
    program = args.build / "bench" / "regression_gate"
    values = json.loads(VALUES.read_text()) if VALUES.exists() else {"machines": []}
    if args.record:
        record(program, values)
        return 0
    begin = time.monotonic()
    failed = False
    for isa in ("avx512", "avx2"):
        failures = check(program, values, isa)
        for name, why in (failures or {}).items():
            failed = True
            print(f"FAILED {isa} {name}: {why}")
        # Twice the time is noticed only where there are values of this very processor.
        if args.prove and failures == {} and not prove(program, values, isa):
            failed = True
            print(f"FAILED {isa}: a planted slowdown was not judged rightly")
    print(f"gate: {time.monotonic() - begin:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
