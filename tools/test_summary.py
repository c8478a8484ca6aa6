#!/usr/bin/env python3
"""Adds up the results of "meson test" over several builds. The last line is "N passed, N failed".

usage: tools/test_summary.py BUILD...

A test that prints the Test Anything Protocol or the summary of cmocka counts for each of its cases,
all others for one. A build without a log counts as one failure, because its tests could not run."""

import json
import os
import re
import sys

TAP_CASE = re.compile(r"^(not )?ok \d+[^#]*(?:# *(SKIP|TODO))?", re.I | re.M)
CMOCKA_SUM = re.compile(r"^\[ +(PASSED|FAILED|SKIPPED) +\] (\d+) test\(s\)", re.M)
GOOD = ("OK", "EXPECTEDFAIL")


def count_cases(test):
    """Returns (passed, failed, skipped) as the test itself prints it; zeros if it does not."""
    sums = {"PASSED": 0, "FAILED": 0, "SKIPPED": 0}
    for bad, skip in TAP_CASE.findall(test.get("stdout") or ""):
        sums["SKIPPED" if skip else "FAILED" if bad else "PASSED"] += 1
    for stream in ("stdout", "stderr"):
        for word, number in CMOCKA_SUM.findall(test.get(stream) or ""):
            sums[word] += int(number)
    return sums["PASSED"], sums["FAILED"], sums["SKIPPED"]


def count_test(test):
    """Returns (passed, failed, skipped)."""
    passed, failed, skipped = count_cases(test)
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
