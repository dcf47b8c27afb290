"""The demo's commands beside a simulated GPU: to the end, with the text that they give without one,
and with calls on both devices in the traces.

    python3 demo_test.py SOURCE_DIR TANDEM_BINARY
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

EMULATED = "cuda:emulated"


def run_demo(source, binary, folder, emulated):
    """The demo's texts, and for each generation the devices in its trace with their calls."""
    folder.mkdir()
    # No measured times: the thresholds decide.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TANDEM_")}
    environment |= {"XDG_CACHE_HOME": str(folder), "TANDEM_CUDA_EMULATED": "1" if emulated else "0"}
    demo = subprocess.run(
        [source / "tools" / "demo.sh", "--built", binary, "--trace", folder],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    assert demo.returncode == 0, f"exit status {demo.returncode}:\n{demo.stdout}"
    assert re.search(r"runs passed, 0 failed", demo.stdout), demo.stdout
    assert (EMULATED in demo.stdout) == emulated, demo.stdout
    texts = re.findall(r"^\$ \S+ generate .*?\n(.*?)^prompt \d+ tokens", demo.stdout, re.S | re.M)
    calls = {}
    for trace in folder.glob("*.json"):
        events = json.loads(trace.read_text())["traceEvents"]
        names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
        own = calls[trace.stem] = {}
        for event in events:
            if event["ph"] == "X":
                own.setdefault(names[event["tid"]], []).append(event["name"])
    return texts, calls


def main(source, binary):
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        alone, calls = run_demo(source, binary, work / "alone", emulated=False)
        assert len(alone) == 3, alone
        assert "68" in alone[0] and "AD" in alone[1] and "Mia" in alone[2], alone
        assert all(EMULATED not in own for own in calls.values()), calls.keys()
        beside, calls = run_demo(source, binary, work / "beside", emulated=True)
        assert beside == alone, f"other text beside a GPU: {beside}, without one {alone}"
        assert set(calls) == {"sum", "recall", "story"}
        for name, own in calls.items():
            print(name, {device: len(list_) for device, list_ in own.items()})
            assert len(own.get("cpu", [])) >= 10, name
        # Prompts of several tokens are above the thresholds of products, the story's cache is above
        # that of attention, too.
        assert "matmul" in calls["sum"].get(EMULATED, []), calls["sum"].keys()
        assert "attention" in calls["story"].get(EMULATED, []), calls["story"].keys()
    print("the demo runs beside a simulated GPU as without one")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]).resolve())
