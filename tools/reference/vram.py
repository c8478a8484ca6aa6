#!/usr/bin/env python3
"""Hold --max-vram to its word: what a GPU's memory is planned to take, what is taken, and what it costs.

usage: vram.py MODEL --calotype PROGRAM [--limits 0,24G,13.5G,8G,4G] [--size 1024] [--steps 8] [--precision bf16]
               [--images 2] [--json FILE]

Makes pictures under each limit (0: none), in a process of its own, and watches the GPU's memory by
NVML meanwhile; nobody else may use the GPU. What the process takes besides, the driver's context
and the code of kernels, is not in the plan: it is the least of all differences between taken and
planned, shown once, and `over` is what each row takes more than planned and that. The first
picture reads the weights; step times are those of the last. Pictures must be the same for all
limits under which the VAE works at once. MODEL: for example what
`python3 tests/cli/sparse_model.py DIR full` writes (zeros: no pictures to compare), or
full_size_model.py.
"""

import argparse
import ctypes
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time

MIB = 1 << 20


class Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong),
                ("used", ctypes.c_ulonglong)]


class Gpu:
    def __init__(self, index):
        self.nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if self.nvml.nvmlInit_v2() != 0:
            sys.exit("NVML does not start")
        self.device = ctypes.c_void_p()
        if self.nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(self.device)) != 0:
            sys.exit("there is no such GPU")

    def used(self):
        memory = Memory()
        if self.nvml.nvmlDeviceGetMemoryInfo(self.device, ctypes.byref(memory)) != 0:
            sys.exit("NVML does not tell the memory in use")
        return memory.used


class Watch(threading.Thread):
    """The most memory in use, looked at every millisecond or so."""

    def __init__(self, gpu):
        super().__init__(daemon=True)
        self.gpu, self.peak, self.over = gpu, 0, False

    def run(self):
        while not self.over:
            self.peak = max(self.peak, self.gpu.used())
            time.sleep(0.001)


def picture_hash(path):
    """Of the pixels: the file's text says how they were made."""
    with open(path, "rb") as file:
        data = file.read()
    at, pixels = 8, hashlib.sha256()
    while at < len(data):
        length = int.from_bytes(data[at:at + 4], "big")
        if data[at + 4:at + 8] == b"IDAT":
            pixels.update(data[at + 8:at + 8 + length])
        at += 12 + length
    return pixels.hexdigest()[:12]


def plan_of(args, limit):
    command = [args.calotype, "plan", "-m", args.model, "--size", f"{args.size}x{args.size}", "--steps",
               str(args.steps), "--precision", args.precision, "-p", args.prompt, "--json"]
    result = subprocess.run(command + (["--max-vram", limit] if limit != "0" else []),
                            capture_output=True, text=True)
    return json.loads(result.stdout)["gpu"] if result.stdout else None


def generate(args, limit, gpu, folder):
    command = [args.calotype, "generate", "-m", args.model, "--size", f"{args.size}x{args.size}",
               "--steps", str(args.steps), "--precision", args.precision, "-p", args.prompt, "--seed",
               "1", "-b", str(args.images), "-o", os.path.join(folder, f"{limit}.png"), "--json"]
    before = gpu.used()
    watch = Watch(gpu)
    watch.start()
    began = time.time()
    result = subprocess.run(command + (["--max-vram", limit] if limit != "0" else []),
                            capture_output=True, text=True)
    seconds = time.time() - began
    watch.over = True
    watch.join()
    events = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    if result.returncode != 0:
        return {"error": events[-1].get("message") if events else result.stderr}
    images = [e for e in events if e["event"] == "image"]
    last = [e["stage_seconds"] for e in events if e["event"] == "progress" and
            e["stage"] == "denoise" and e["image"] == images[-1]["image"]]
    steps = [b - a for a, b in zip(last, last[1:])]
    return {"taken": watch.peak - before, "seconds": seconds,
            "first": images[0]["seconds"]["total"], "last": images[-1]["seconds"]["total"],
            "step": statistics.median(steps[2:] or steps),
            "pixels": picture_hash(images[-1]["path"])}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calotype", required=True)
    parser.add_argument("--limits", default="0,24G,13.5G,8G,4G")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--prompt", default="a red apple on a light blue background")
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--json")
    args = parser.parse_args()
    gpu, rows = Gpu(args.gpu), []
    with tempfile.TemporaryDirectory() as folder:
        generate(args, "0", gpu, folder)  # compiles kernels and measures products, once
        for limit in args.limits.split(","):
            row = {"limit": limit, "plan": plan_of(args, limit)}
            row.update(generate(args, limit, gpu, folder))
            rows.append(row)
    made = [r for r in rows if "taken" in r]
    besides = min((r["taken"] - r["plan"]["chosen"]["peak_bytes"] for r in made), default=0)
    print(f"{args.size}x{args.size}, {args.precision}, {args.steps} steps; besides the plan: "
          f"{besides / MIB:.0f} MiB\n")
    print("| limit | way | encoder, transformer blocks streamed | strips | planned MiB | taken MiB | "
          "over MiB | step ms | first picture s | last s | process s | pixels |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|")
    for r in rows:
        if "error" in r:
            print(f"| {r['limit']} | {r['error']} |")
            continue
        c = r["plan"]["chosen"]
        print(f"| {r['limit']} | {c['way']} | {c['encoder_blocks']}, {c['streamed_blocks']} | "
              f"{c['strip_height']} | {c['peak_bytes'] / MIB:.0f} | {r['taken'] / MIB:.0f} | "
              f"{(r['taken'] - c['peak_bytes'] - besides) / MIB:.0f} | {1e3 * r['step']:.1f} | "
              f"{r['first']:.2f} | {r['last']:.2f} | {r['seconds']:.1f} | {r['pixels']} |")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)
    return 0 if made and len(made) == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
