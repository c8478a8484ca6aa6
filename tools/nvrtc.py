#!/usr/bin/env python3
"""NVRTC, the compiler of CUDA, for tests on machines without the CUDA toolkit.

usage: tools/nvrtc.py check      succeeds if it is there
       tools/nvrtc.py fetch      else puts it into build-deps/nvrtc, where the tests look

NVIDIA's package for Python is the smallest way to have it: a zip file with two libraries.
"""

import ctypes
import glob
import os
import shutil
import subprocess
import sys
import zipfile

PACKAGE = "nvidia-cuda-nvrtc==13.0.*"
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "build-deps", "nvrtc")
# The system's places, those of the CUDA toolkit, and our own; as in src/nn/cuda/driver.c.
PLACES = ("", "/usr/local/cuda/lib64", FOLDER)


def is_there():
    for folder in PLACES:
        for version in (13, 12):
            try:
                ctypes.CDLL(os.path.join(folder, f"libnvrtc.so.{version}"))
                return True
            except OSError:
                pass
    return False


def unpack(wheel, folder):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            base = os.path.basename(name)
            if base.startswith("libnvrtc") and ".alt." not in base:
                with archive.open(name) as source, open(os.path.join(folder, base), "wb") as out:
                    shutil.copyfileobj(source, out)


def fetch():
    part = FOLDER + ".part"
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check",
           "--no-deps", "--only-binary", ":all:", "-d", part, PACKAGE]
    try:
        subprocess.run(pip, check=True)
        for wheel in glob.glob(os.path.join(part, "*.whl")):
            unpack(wheel, part)
            os.remove(wheel)
        shutil.rmtree(FOLDER, ignore_errors=True)
        os.rename(part, FOLDER)
    except (OSError, subprocess.CalledProcessError, zipfile.BadZipFile) as fault:
        shutil.rmtree(part, ignore_errors=True)
        return f"{PACKAGE} could not be fetched: {fault}"
    return 0 if is_there() else f"{FOLDER}: the library in it cannot be loaded"


def main():
    if sys.argv[1:] == ["check"]:
        return 0 if is_there() else 1
    if sys.argv[1:] == ["fetch"]:
        return 0 if is_there() else fetch()
    return __doc__


if __name__ == "__main__":
    sys.exit(main())
