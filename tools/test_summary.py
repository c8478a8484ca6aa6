#!/usr/bin/env python3
"""Adds up the results of "meson test" over several builds. The last line is "N passed, N failed".

usage: tools/test_summary.py BUILD...

A test that speaks the Test Anything Protocol counts for each of its cases, all others for one. A
build without a log counts as one failure, because its tests could not run."""

import json
import os
import re
import sys

CASE = re.compile(r"^(not )?ok\b[^#]*(# *(SKIP|TODO)?)?", re.I)
GOOD = ("OK", "EXPECTEDFAIL")


def count_test(test):
    """Returns (passed, failed, skipped)."""
    passed = failed = skipped = 0
    for line in test.get("stdout", "").splitlines():
        found = CASE.match(line)
        if not found:
            continue
        if found.group(3):
            skipped += 1
        elif found.group(1):
            failed += 1
        else:
            passed += 1
    good = test["result"] in GOOD
    if test["result"] == "SKIP":
        return 0, 0, 1
    if passed + failed + skipped == 0:
        return (1, 0, 0) if good else (0, 1, 0)
    if not good and failed == 0:
        failed = 1  # it crashed, timed out, or stopped before its last case
    return passed, failed, skipped


def count_build(build):
    path = os.path.join(build, "meson-logs", "testlog.json")
    if not os.path.exists(path):
        print(f"{build}: no tests ran")
        return 0, 1, 0
    sums = [0, 0, 0]
    with open(path, encoding="utf-8") as log:
        for line in log:
            test = json.loads(line)
            counts = count_test(test)
            sums = [a + b for a, b in zip(sums, counts)]
            if counts[1]:
                print(f"{build}: {test['name']}: {counts[1]} failed ({test['result'].lower()})")
    print(f"{build}: {sums[0]} passed, {sums[1]} failed, {sums[2]} skipped")
    if sums == [0, 0, 0]:
        return 0, 1, 0
    return tuple(sums)


def main():
    totals = [sum(part) for part in zip(*(count_build(build) for build in sys.argv[1:]))]
    print(f"{totals[0]} passed, {totals[1]} failed")
    return 1 if totals[1] else 0


if __name__ == "__main__":
    sys.exit(main())
