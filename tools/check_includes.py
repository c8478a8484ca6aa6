#!/usr/bin/env python3
"""Holds the layers of the code apart: which folder may include what, and what the library never does.

usage: tools/check_includes.py [ROOT]        prints FILE:LINE: MESSAGE and fails if there is any
"""

import os
import re
import sys

# For each folder the project headers it may include: folders (all headers right in them) or single
# headers. A folder may always include its own headers, except for models.
PUBLIC = "calotype/calotype.h"
LAYERS = {
    "include/calotype": [],
    "src/core": [PUBLIC],
    "src/io": [PUBLIC, "core"],
    "src/text": [PUBLIC, "core", "io/json.h", "io/json_scan.h"],
    "src/nn": [PUBLIC, "core"],
    "src/nn/cpu": [PUBLIC, "core", "nn"],
    "src/nn/cpu/arm": ["nn/cpu"],
    "src/nn/cpu/x86": ["nn/cpu"],
    "src/nn/cuda": [PUBLIC, "core", "nn", "nn/cuda/kernels"],
    "src/models": [PUBLIC, "core", "io", "nn/nn.h", "models/batch.h",
                   "models/bind.h", "models/rope.h", "models/vae.h"],
    "src/families": [PUBLIC, "core", "io", "nn/nn.h", "models"],
    "src/sampling": [PUBLIC, "core", "io/json.h"],
    "src/pipeline": [PUBLIC, "core", "io", "text", "nn", "nn/cpu", "nn/cuda", "families",
                     "sampling"],
    "app": [PUBLIC, "core", "io/json.h"],
    "cli": [PUBLIC, "core", "io/jsonwrite.h", "app"],
    "examples": [],
}

# Libraries of others: each is known to one file, which hides it from the rest.
FOREIGN = {
    "jansson.h": "src/io/json.c",
    "png.h": "src/io/png.c",
    "zlib.h": "src/io/png_stream.c",
    "jpeglib.h": "src/io/jpeg.c",
    "jerror.h": "src/io/jpeg.c",
    "webp/decode.h": "src/io/webp.c",
    "webp/demux.h": "src/io/webp.c",
    "xxhash.h": "src/io/fingerprint.c",
    "pcre2.h": "src/text/pretokenize.c",
    "utf8proc.h": "src/text/nfc.c",
}

# What the library never does: print, end the program, read the environment, have global state.
BANNED = re.compile(
    r"(?<![\w.>])(?:(printf|vprintf|puts|putchar|perror|exit|_Exit|_exit|quick_exit|abort|assert"
    r"|getenv|secure_getenv|setenv|setlocale|system|popen|strtok|sprintf|vsprintf|strcpy|strcat"
    r"|gets|rand|srand)\s*\(|(stderr|stdout|stdin)\b)")
# Memory comes from the caller's allocator; core/mem.c holds the default one.
ALLOCATION = re.compile(r"(?<![\w.>])(malloc|calloc|realloc|free|strdup|strndup|aligned_alloc)\s*\(")
ALLOCATOR = "src/core/mem.c"

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
TEXT_FOLDERS = ("include", "src", "app", "cli", "examples", "tests", "tools")
TEXT_TYPES = (".c", ".h", ".py", ".sh")
LINE_LENGTH = 100  # of C; "make format" keeps to it


def without_comments(text):
    """C with comments, strings and characters blanked; line numbers stay."""
    pattern = r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\''
    return re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m.group()), text, flags=re.S)


def may_include(folder, path, header):
    parent = os.path.dirname(header)
    if folder == "src/models":
        own = os.path.splitext(os.path.basename(path))[0]
        stem = os.path.splitext(os.path.basename(header))[0]
        if parent == "models" and (own == stem or own.startswith(stem + "_")):
            return True
    elif parent and parent == re.sub("^(src|include)/", "", folder):
        return True
    return header in LAYERS[folder] or parent in LAYERS[folder]


def check_includes(folder, path, text):
    for number, line in enumerate(text.split("\n"), 1):
        found = INCLUDE.match(line)
        if not found:
            continue
        quoted, header = found.group(1) == '"', found.group(2)
        if not quoted and header == PUBLIC:
            continue
        if quoted and not may_include(folder, path, header):
            yield number, f"{folder} may not include {header}"
        elif not quoted and header in FOREIGN and path != FOREIGN[header]:
            yield number, f"only {FOREIGN[header]} may include <{header}>"


def check_calls(path, text):
    for number, line in enumerate(without_comments(text).split("\n"), 1):
        if line.lstrip().startswith("#"):
            continue
        for found in BANNED.finditer(line):
            yield number, f"the library never uses {found.group(1) or found.group(2)}"
        if path != ALLOCATOR:
            for found in ALLOCATION.finditer(line):
                yield number, f"{found.group(1)}: memory comes from core/mem.h"


def check_text(path, text):
    for number, line in enumerate(text.split("\n"), 1):
        if "\t" in line:
            yield number, "a tab"
        if line != line.rstrip():
            yield number, "blanks at the end of the line"
        if len(line) > LINE_LENGTH and path.endswith((".c", ".h")):
            yield number, f"{len(line)} columns, more than {LINE_LENGTH}"
    if text and not text.endswith("\n"):
        yield text.count("\n") + 1, "no line end at the end of the file"


def check_file(path, text):
    yield from check_text(path, text)
    folder = os.path.dirname(path)
    if not path.endswith((".c", ".h")):
        return
    if folder in LAYERS:
        yield from check_includes(folder, path, text)
    elif folder.startswith("src"):
        yield 1, f"{folder} is not in the table of tools/check_includes.py"
    if folder.startswith("src"):
        yield from check_calls(path, text)


def source_files(root):
    for top in TEXT_FOLDERS:
        for folder, _, names in os.walk(os.path.join(root, top)):
            for name in sorted(names):
                if name.endswith(TEXT_TYPES):
                    yield os.path.relpath(os.path.join(folder, name), root)


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "..")
    count = faults = 0
    for path in source_files(root):
        with open(os.path.join(root, path), encoding="utf-8") as file:
            text = file.read()
        count += 1
        for number, message in check_file(path, text):
            print(f"{path}:{number}: {message}")
            faults += 1
    if faults:
        return f"{faults} faults in {count} files"
    print(f"{count} files keep to the layers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
