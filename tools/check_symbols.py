#!/usr/bin/env python3
"""The shared library exports the functions of the public header, all of them and nothing else.

usage: tools/check_symbols.py HEADER LIBRARY
"""

import re
import subprocess
import sys


def main():
    header, library = sys.argv[1:]
    with open(header, encoding="utf-8") as file:
        text = re.sub(r"/\*.*?\*/", "", file.read(), flags=re.S)
    declared = set(re.findall(r"CT_API[^;]*?\b(ct_\w+)\(", text))
    listing = subprocess.run(["nm", "-D", "--defined-only", library], check=True,
                             capture_output=True, text=True).stdout
    exported = {line.split()[-1] for line in listing.splitlines()}
    for name in sorted(declared - exported):
        print(f"{name} is declared but not exported")
    for name in sorted(exported - declared):
        print(f"{name} is exported but not declared")
    return 0 if declared and declared == exported else 1


if __name__ == "__main__":
    sys.exit(main())
