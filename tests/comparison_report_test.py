#!/usr/bin/env python3
"""The HTML report of `tandem bench`, made from synthetic figures and taken apart again.

  comparison_report_test.py TANDEM
"""

import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree

NASTY = """<script>alert(1)</script>"' onload='x' & ]]> <!-- GPU\u00e9 \u0001"""


def time(device, seconds):
    return {"device": device, "kernel": "kernel_" + device, "runs": 9, "median_s": seconds,
            "low_s": seconds * 0.97, "high_s": seconds * 1.1}


def synthetic(kind="simulated", emulated=False, name=NASTY, devices=("cpu", "cuda")):
    """cpu: x microseconds; cuda: 50 us. They cross at 50; the scheduler changes at 128 only."""
    points = []
    for power in range(4, 17):
        x = 1 << power
        times = [time("cpu", x * 1e-6), time("cuda", 50e-6)]
        points.append({"x": x, "bytes": 4096.0 * x, "flops": 16384.0 * x,
                       "times": [t for t in times if t["device"] in devices],
                       "choice": "cpu" if x < 128 else "cuda", "reason": name, "constants": "cuda"})
    limits = [{"kind": "bandwidth", "what": "reads DRAM at", "value": 80.0},
              {"kind": "transfer", "what": "receives at", "value": 20.0},
              {"kind": "compute", "what": name, "value": 500.0}]
    series = [{"id": f"s{i}/cpu", "op": name, "title": name, "shape": name, "x_name": name,
               "operands": "cpu", "points": points} for i in range(2)]
    return {"schema": "tandem-comparison", "version": 1, "kind": kind, "tandem": "1", "date": name,
            "policy": name, "quick": True, "machine": [{"what": "processor", "value": name}],
            "absent": [{"device": "other", "why": name}],
            "devices": [{"id": d, "name": name, "emulated": emulated and d == "cuda",
                         "limits": limits} for d in devices],
            "series": series}


class Report(unittest.TestCase):
    def render(self, comparison):
        """The page, its tree, and the JSON that comes out again."""
        with tempfile.TemporaryDirectory() as folder:
            source, page, again = (pathlib.Path(folder) / n for n in ("in.json", "out.html", "out.json"))
            source.write_text(json.dumps(comparison))
            subprocess.run([TANDEM, "bench", "--from", str(source), "--html", str(page), "--json",
                            str(again)], check=True, stdout=subprocess.DEVNULL)
            text = page.read_text(encoding="utf-8")
            return text, ElementTree.fromstring(text), json.loads(again.read_text())

    def marks(self, tree):
        return [e for e in tree.iter("g") if e.get("data-x")]

    def test_every_point_is_in_every_plot(self):
        comparison = synthetic()
        _, tree, _ = self.render(comparison)
        found = [(m.get("data-series"), m.get("data-device"), int(m.get("data-x"))) for m in self.marks(tree)]
        for series in comparison["series"]:
            for point in series["points"]:
                for device in ("cpu", "cuda"):  # latency, GB/s, GFLOP/s
                    self.assertEqual(found.count((series["id"], device, point["x"])), 3)
        self.assertEqual(len(found), 2 * 13 * 2 * 3)
        values = {(m.get("data-device"), int(m.get("data-x"))): float(m.get("data-value"))
                  for m in reversed(self.marks(tree))}
        self.assertAlmostEqual(values["cpu", 1024], 1024e-6)
        self.assertAlmostEqual(values["cuda", 1024], 50e-6)

    def test_marks_stand_where_the_axes_say(self):
        _, tree, _ = self.render(synthetic())
        plot = next(e for e in tree.iter("svg") if e.get("class") == "plot")
        ticks = {}
        for text in plot.iter("text"):
            match = re.fullmatch(r"([\d.]+) (ns|µs|ms|s)", text.text or "")
            if text.get("class") == "tick" and match:
                seconds = float(match[1]) * {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}[match[2]]
                ticks[math.log(seconds)] = float(text.get("y")) - 4
        self.assertGreaterEqual(len(ticks), 2)
        (low, y_low), (high, y_high) = sorted(ticks.items())[0], sorted(ticks.items())[-1]
        for mark in self.marks(plot):
            if mark.get("data-device") != "cpu":
                continue
            part = (math.log(float(mark.get("data-value"))) - low) / (high - low)
            self.assertAlmostEqual(float(mark.find("circle").get("cy")), y_low + part * (y_high - y_low),
                                   delta=0.3)

    def test_crossover_and_regret(self):
        text, tree, again = self.render(synthetic())
        crossover = again["summary"]["crossovers"][0]
        self.assertAlmostEqual(crossover["x"], 50.0, places=6)
        self.assertEqual((crossover["below"], crossover["above"]), ("cpu", "cuda"))
        labels = [e.text for e in tree.iter("text") if e.get("class") == "crossing-label"]
        self.assertEqual(labels, ["cuda from 50.0"] * 2)
        regrets = {r["strategy"]: r for r in again["summary"]["regrets"]}
        lengths = [1 << p for p in range(4, 17)]
        chosen = [max(0.0, x / 50 - 1) if x < 128 else 0.0 for x in lengths]  # 64: 28 %
        self.assertAlmostEqual(regrets["scheduler"]["mean"], sum(chosen) / 13)
        self.assertAlmostEqual(regrets["scheduler"]["worst"], 0.28)
        self.assertEqual(regrets["scheduler"]["worst_x"], 64)
        always = [max(0.0, 50 / x - 1) for x in lengths]
        self.assertAlmostEqual(regrets["always cuda"]["worst"], max(always))
        self.assertAlmostEqual(regrets["fixed constants"]["mean"], sum(always) / 13)
        self.assertIn("+28%", [e.text for e in tree.iter("text") if e.get("class") == "regret"])

    def test_nothing_from_elsewhere_and_nothing_injected(self):
        text, tree, _ = self.render(synthetic())
        self.assertNotRegex(text, r"(?i)https?:|//\w|url\(|@import|<script|<iframe|<link|javascript:")
        allowed = set("html head meta title style body main h1 h2 h3 p section div span dl dt dd table "
                      "thead tbody tr th td details summary svg g line polyline circle rect path text".split())
        self.assertEqual({e.tag for e in tree.iter()} - allowed, set())
        for element in tree.iter():
            self.assertFalse([a for a in element.attrib if a.lower().startswith("on") or a == "href" or a == "src"])
        # Shown as it is, but for the control character.
        self.assertIn(NASTY.replace("\u0001", "?"), [e.text for e in tree.iter("h2")])

    def test_simulated_and_emulated_are_labelled(self):
        simulated, _, _ = self.render(synthetic())
        self.assertIn("no hardware was measured", simulated)
        self.assertIn("cuda (simulated)", simulated)
        emulated, _, _ = self.render(synthetic("measured", True))
        self.assertIn("not those of any GPU", emulated)
        self.assertIn("cuda (emulated on the CPU)", emulated)
        measured, _, _ = self.render(synthetic("measured"))
        for word in ("imulated", "emulated"):
            self.assertNotIn(word, measured.split("</style>")[1])

    def test_one_device(self):
        _, tree, again = self.render(synthetic("measured", devices=("cpu",)))
        self.assertEqual(again["summary"], {"crossovers": [], "regrets": []})
        self.assertEqual(len(self.marks(tree)), 2 * 13 * 3)
        self.assertFalse([e for e in tree.iter("text") if e.text == "choice"])

    def test_points_that_were_not_measured(self):
        comparison = synthetic()
        comparison["series"][0]["points"][3]["times"][1] = {"device": "cuda", "runs": 0, "why": NASTY}
        comparison["series"][1]["points"] = []
        text, tree, _ = self.render(comparison)
        self.assertEqual(len(self.marks(tree)), 3 * (2 * 13 - 1))
        self.assertIn("not measured: ", text)


if __name__ == "__main__":
    TANDEM = sys.argv.pop(1)
    unittest.main()
