#!/usr/bin/env python3
"""Checks that every test named in docs/bug_classes.md exists.

  bug_class_index_test.py SOURCE_DIR
"""

import pathlib
import re
import sys


def missing(index, sources):
    """Names `Suite.Test` in the table rows of the text `index` that `sources` do not define."""
    defined = set()
    for source in sources:
        for suite, test in re.findall(r"\b(?:TYPED_)?TEST(?:_[FP])?\(\s*(\w+),\s*(\w+)\)", source):
            defined.add(f"{suite}.{test}")
    rows = [line for line in index.splitlines() if line.startswith("|")]
    named = re.findall(r"`(\w+\.\w+)`", "\n".join(rows))
    return len(named), [name for name in named if name not in defined]


def main():
    root = pathlib.Path(sys.argv[1])
    # The check itself: a name that is not there is seen.
    if missing("| a | `A.B`, `A.C` |", ["TEST_F(A,\n  B) {"]) != (2, ["A.C"]):
        print("the check is broken")
        return 1
    sources = [path.read_text() for path in sorted((root / "tests").glob("*_test.cc"))]
    count, absent = missing((root / "docs" / "bug_classes.md").read_text(), sources)
    for name in absent:
        print(f"docs/bug_classes.md: no test {name}")
    print(f"{count} tests named, {len(absent)} missing")
    return 1 if absent or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
