#!/usr/bin/env python3
"""Writes the kernels' sources as a C file, so that the program carries them.

usage: tools/embed.py FOLDER OUTPUT DEPFILE

All .cu and .cuh files of FOLDER become arrays of bytes (src/nn/cuda/embedded.h says how they are
found), in the order of their names: the same files give the same output. DEPFILE tells ninja to do
it again when one of them changes, or when FOLDER gets another.
"""

import os
import sys

PER_LINE = 20


def array(number, data):
    """The bytes with a zero behind, which ends the text for the compiler."""
    lines = [f"static const unsigned char file_{number}[] = {{"]
    data += b"\0"
    for at in range(0, len(data), PER_LINE):
        lines.append("    " + ", ".join(str(byte) for byte in data[at:at + PER_LINE]) + ",")
    lines.append("};")
    return lines


def main():
    folder, output, depfile = sys.argv[1:]
    names = sorted(n for n in os.listdir(folder) if n.endswith((".cu", ".cuh")))
    lines = ["/* Made by tools/embed.py. */", '#include "nn/cuda/embedded.h"', ""]
    table = []
    for number, name in enumerate(names):
        with open(os.path.join(folder, name), "rb") as file:
            data = file.read()
        if b"\0" in data:
            return f"{name}: a zero byte would end the text"
        lines += array(number, data) + [""]
        table.append(f'    {{"{name}", (const char *)file_{number}}},')
    lines += ["const cuda_embedded cuda_embedded_files[] = {", *table, "    {NULL, NULL},", "};"]
    with open(output, "w", encoding="ascii", newline="\n") as file:
        file.write("\n".join(lines) + "\n")
    needs = [folder] + [os.path.join(folder, name) for name in names]
    with open(depfile, "w", encoding="utf-8", newline="\n") as file:
        file.write(output + ": " + " ".join(path.replace(" ", "\\ ") for path in needs) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
