"""What the comparisons with torch share (gpu_torch_matmul.py, gpu_torch_attention.py): loading torch,
arguments, timing, the table and the JSON file. A module of theirs, not a program."""

import argparse
import json
import pathlib
import statistics
import sys
import time

REPEATS = 11


def load_torch(device):
    """Exits with status 3 where there is no torch, or it sees no GPU."""
    program = pathlib.Path(sys.argv[0]).stem
    try:
        import torch
    except ImportError as error:
        print(f"{program}: no torch: {error}", file=sys.stderr)
        sys.exit(3)
    if device == "cuda" and not torch.cuda.is_available():
        print(f"{program}: torch sees no GPU", file=sys.stderr)
        sys.exit(3)
    return torch


def argument_parser(description, report_optional=False):
    parser = argparse.ArgumentParser(description=description,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("report", type=pathlib.Path, **({"nargs": "?"} if report_optional else {}))
    parser.add_argument("--json", type=pathlib.Path, help="writes the rows there as well")
    parser.add_argument("--device", default="cuda", help="cpu rehearses it without a GPU")
    return parser


def seconds(torch, device, run):
    """The median time of one run."""
    for _ in range(3):
        run()
    times = []
    for _ in range(REPEATS):
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e-3)
        else:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def compare(torch, options, measure, heading, line):
    """Prints heading, and line(row) for every row of measure(torch, device, report) as it is measured;
    writes them to options.json. Returns the exit status: 1 where the report has nothing to compare."""
    report = json.loads(options.report.read_text())
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"torch {torch.__version__} on {where}; tandem on {report['device']}")
    print(heading)
    rows = []
    for row in measure(torch, options.device, report):
        rows.append(row)
        print(line(row))
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "device": where, "rows": rows},
                                           indent=2) + "\n")
    return 0 if rows else 1
