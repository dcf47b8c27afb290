#!/usr/bin/env python3
"""Counts the individual test cases of one CTest run.

  test_summary.py BUILD_DIR

Reads BUILD_DIR/ctest.xml (written by ctest --output-junit) and, for each GoogleTest executable,
BUILD_DIR/test_results/<name>.xml. A CTest entry without such a file counts as one case. An entry
that failed although none of its cases did (a crash, a leak, a time-out) counts as one failure.
Ends with the line "N passed, N failed"; exit status 1 when anything failed or nothing ran.
"""

import pathlib
import sys
import xml.etree.ElementTree as ElementTree


def count_googletest(path):
    """(passed, skipped, the failed with what they said) of one GoogleTest result file."""
    passed, skipped, failed = 0, 0, []
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        failure = case.find("failure")
        if failure is not None:
            lines = (failure.text or failure.get("message") or "").strip().splitlines()
            failed.append("\n".join([name] + [f"FAILED     {line[:200]}" for line in lines[:8]]))
        elif case.get("status") == "run" and case.get("result") == "completed":
            passed += 1
        else:
            skipped += 1
    return passed, skipped, failed


def main():
    build = pathlib.Path(sys.argv[1])
    passed, skipped, failed = 0, 0, []
    for entry in ElementTree.parse(build / "ctest.xml").getroot().iter("testcase"):
        name, ok = entry.get("name"), entry.get("status") == "run"
        results = build / "test_results" / f"{name}.xml"
        if results.exists():
            try:
                case_passed, case_skipped, case_failed = count_googletest(results)
            except ElementTree.ParseError:
                case_passed, case_skipped, case_failed = 0, 0, [f"{name}: unreadable {results}"]
            passed += case_passed
            skipped += case_skipped
            failed += [f"{name}: {case}" for case in case_failed]
            if not ok and not case_failed:
                failed.append(f"{name}: the executable failed although its cases passed")
        elif ok:
            passed += 1
        else:
            failed.append(f"{name}: failed, or crashed before it wrote its results")
    if skipped:
        print(f"{skipped} skipped")
    for name in failed:
        print(f"FAILED {name}")
    print(f"{passed} passed, {len(failed)} failed")
    return 1 if failed or passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
