#!/usr/bin/env python3
"""Every launch of a kernel gives as many arguments as the kernel has parameters.

usage: check_launches.py

The driver cannot know: it reads as many pointers as the kernel wants. Exit status 1 where one
differs."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent / "src" / "nn" / "cuda"
KERNEL = re.compile(
    r'extern "C" __global__ void(?:\s*__launch_bounds__\([^)]*\))?\s*(\w+)\(([^{]*?)\)\s*\{', re.S)
LEADING = 4  # of CUDA_LAUNCH: c, the kernel, the type, the grid


def without_comments(path):
    return re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.S)


def arguments(text, at):
    """Those of a call whose opening bracket is in front of `at`."""
    depth, begin, found = 1, at, []
    while depth:
        if text[at] in "({":
            depth += 1
        elif text[at] in ")}":
            depth -= 1
        if depth == 0 or (depth == 1 and text[at] == ","):
            found.append(text[begin:at].strip())
            begin = at + 1
        at += 1
    return found


def main():
    parameters = {}
    for path in sorted((ROOT / "kernels").glob("*.cu")):
        for name, given in KERNEL.findall(without_comments(path)):
            parameters[name] = given.count(",") + 1
    launches, wrong = 0, 0
    for path in sorted(ROOT.glob("*.c")):
        text = without_comments(path)
        for call in re.finditer(r"CUDA_LAUNCH\(", text):
            kernel, count = (a := arguments(text, call.end()))[1], len(a) - LEADING
            launches += 1
            if parameters.get(kernel) != count:
                print(f"{path.name}: {kernel} has {parameters.get(kernel)} parameters, not {count}")
                wrong += 1
    if not parameters or not launches:
        print("no kernels or no launches were found")
        wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
