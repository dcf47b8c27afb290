#!/usr/bin/env python3
"""How bench/gate.py judges: on made-up measurements, without timing anything."""

import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "bench"))
import gate  # noqa: E402


def entry(fma, read, kernel="k"):
    return {"kernel": kernel, "ok": True, "ratios": {"fma": fma, "read": read}}


def run(cpu="A", isa="avx512", features="avx512+vnni", optimised=True, **classes):
    return {"cpu": cpu, "isa": isa, "features": features, "optimised": optimised, "classes": classes}


VALUES = {"machines": [
    {"cpu": "A", "isa": "avx512", "features": "avx512+vnni", "classes": {"x": entry(10, 100)}},
    {"cpu": "B", "isa": "avx512", "features": "avx512+vnni", "classes": {"x": entry(30, 50)}},
]}


class Gate(unittest.TestCase):
    def check(self, *runs, values=VALUES):
        """The verdict when the program gives these runs one after the other (the last for ever)."""
        self.calls = 0

        def measure(*_, **__):
            self.calls += 1
            return runs[min(self.calls, len(runs)) - 1]

        original, gate.measure = gate.measure, measure
        try:
            return gate.check(pathlib.Path("none"), values, "avx512")
        finally:
            gate.measure = original

    def test_as_recorded(self):
        self.assertEqual(self.check(run(x=entry(10, 100))), {})
        self.assertEqual(self.check(run(x=entry(15.9, 159))), {})
        self.assertEqual(self.calls, 1)

    def test_twice_the_time_fails_after_all_retries(self):
        failures = self.check(run(x=entry(20, 200)))
        self.assertEqual(list(failures), ["x"])
        self.assertIn("2.00 times", failures["x"])
        self.assertEqual(self.calls, 1 + gate.RETRIES)

    def test_one_good_measurement_is_enough(self):
        self.assertEqual(self.check(run(x=entry(50, 500)), run(x=entry(20, 200)), run(x=entry(10, 99))), {})
        self.assertEqual(self.calls, 3)

    def test_all_yardsticks_must_agree(self):
        self.assertEqual(self.check(run(x=entry(40, 101))), {})
        self.assertEqual(self.check(run(x=entry(11, 400))), {})

    def test_other_processor_of_the_set(self):
        # The largest recorded ratios, 30 and 100, and the wide limit.
        other = {"cpu": "C"}
        self.assertIsNone(self.check(run(**other, x=entry(60, 200))))
        self.assertIsNone(self.check(run(**other, x=entry(119, 399))))
        self.assertEqual(list(self.check(run(**other, x=entry(121, 401)))), ["x"])
        # Another set of extensions is another machine.
        self.assertIsNone(self.check(run(features="avx512", x=entry(60, 200))))

    def test_skips(self):
        self.assertIsNone(self.check(None))
        self.assertIsNone(self.check(run(isa="avx2", x=entry(1e9, 1e9))))
        self.assertIsNone(self.check(run(optimised=False, x=entry(1e9, 1e9))))
        self.assertIsNone(self.check(run(x=entry(1e9, 1e9)), values={"machines": []}))

    def test_class_without_value(self):
        failures = self.check(run(x=entry(10, 100), y=entry(1, 1)))
        self.assertEqual(list(failures), ["y"])
        self.assertIn("--record", failures["y"])
        # Known of another machine only: not compared.
        some = {"machines": VALUES["machines"] + [{"cpu": "D", "isa": "avx2", "features": "avx2",
                                                   "classes": {"y": entry(1, 1)}}]}
        self.assertEqual(self.check(run(x=entry(10, 100), y=entry(1, 1)), values=some), {})


class Recorded(unittest.TestCase):
    def test_values_are_whole(self):
        import json
        machines = json.loads(gate.VALUES.read_text())["machines"]
        self.assertTrue(machines)
        for machine in machines:
            self.assertGreaterEqual(len(machine["classes"]), 20)
            for name, recorded in machine["classes"].items():
                self.assertEqual(set(recorded["ratios"]), {"fma", "read", "fill"}, name)
                self.assertTrue(all(ratio > 0 for ratio in recorded["ratios"].values()), name)
        for planted in gate.PLANTED:
            self.assertTrue(all(planted in m["classes"] for m in machines))


if __name__ == "__main__":
    unittest.main()
