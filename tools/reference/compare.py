#!/usr/bin/env python3
"""Run diffusers and calotype on the same model and arguments and compare them.

    python tools/reference/compare.py MODEL_DIR --calotype build/calotype
        [--prompt TEXT] [--negative TEXT] [--size WIDTHxHEIGHT] [--steps N]
        [--guidance G] [--seed N] [--extra ARGUMENT ...]

Prints the relative L2 distance of every tensor both sides have, and the largest
difference of the two images. Exits with 1 when a distance is over the limit,
when an image differs by more than 1 of 255, or when the trace lacks the
latents. Both sides compute in float32.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file

import recording


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a model directory")
    parser.add_argument("--calotype", required=True, help="the calotype program")
    parser.add_argument("--prompt", default="A red fox sleeping under an old oak tree.")
    parser.add_argument("--negative", default="Blurry, low quality.")
    parser.add_argument("--size", default="112x80", metavar="WIDTHxHEIGHT")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--guidance", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--limit", type=float, default=1e-4, help="largest relative L2 distance")
    parser.add_argument("--threads", type=int, default=1, help="threads of the reference")
    parser.add_argument("--keep", metavar="DIR", help="keep image.png and trace.safetensors there")
    parser.add_argument("--extra", nargs=argparse.REMAINDER, default=[],
                        help="further arguments for calotype (must come last)")
    arguments = parser.parse_args()
    try:
        arguments.width, arguments.height = [int(part) for part in arguments.size.split("x")]
    except ValueError:
        parser.error("--size must look like 112x80")
    return arguments


def run_calotype(arguments, directory):
    """Returns the trace (name -> array) and the image, an array of uint8."""
    image = os.path.join(directory, "image.png")
    trace = os.path.join(directory, "trace.safetensors")
    command = [
        arguments.calotype, "generate",
        "-m", arguments.model,
        "-p", arguments.prompt,
        "-W", str(arguments.width),
        "-H", str(arguments.height),
        "--steps", str(arguments.steps),
        "--guidance", repr(arguments.guidance),
        "-s", str(arguments.seed),
        "--precision", "fp32",
        "-o", image,
        "--trace", trace,
    ]
    if arguments.guidance > 0:
        command += ["-n", arguments.negative]
    command += arguments.extra
    status = subprocess.run(command).returncode
    if status != 0:
        sys.exit("%s ended with status %d" % (arguments.calotype, status))
    return load_file(trace), np.array(Image.open(image).convert("RGB"))


def run_reference(arguments):
    pipeline = recording.load_pipeline(arguments.model)
    run = {
        "prompt": arguments.prompt,
        "negative_prompt": arguments.negative,
        "width": arguments.width,
        "height": arguments.height,
        "steps": arguments.steps,
        "seed": arguments.seed,
        "guidance_scale": arguments.guidance,
    }
    record = recording.record_run(pipeline, run)
    return {name: tensor.numpy() for name, tensor in record.items()}


def relative_distance(value, reference):
    """||value - reference|| / ||reference||, infinite when it makes no sense."""
    if value.shape != reference.shape:
        return float("inf")
    value = value.astype(np.float64)
    reference = reference.astype(np.float64)
    if not np.isfinite(value).all():
        return float("inf")
    norm = np.linalg.norm(reference)
    distance = np.linalg.norm(value - reference)
    return distance / norm if norm > 0 else distance


def compare(reference, trace, limit):
    """Print one line per tensor of the reference; returns the number of failures."""
    failures = 0
    print("%-38s %-16s %12s" % ("tensor", "shape", "relative L2"))
    for name, expected in reference.items():
        if name == "image.u8":
            continue
        if name not in trace:
            required = name == "latents"
            failures += required
            print("%-38s %-16s %12s%s" % (name, list(expected.shape), "-", "  MISSING" if required else ""))
            continue
        value = trace[name]
        if expected.dtype == np.int32:
            distance = 0.0 if np.array_equal(value, expected) else float("inf")
        else:
            distance = relative_distance(value, expected)
        bad = not distance <= limit
        failures += bad
        note = "  FAIL" if bad else ""
        if value.shape != expected.shape:
            note = "  FAIL: shape %s" % list(value.shape)
        print("%-38s %-16s %12.3e%s" % (name, list(expected.shape), distance, note))
    for name in sorted(set(trace) - set(reference)):
        print("%-38s %-16s %12s" % (name, list(trace[name].shape), "not compared"))
    return failures


def compare_images(image, expected):
    if image.shape != expected.shape:
        print("image: shape %s instead of %s  FAIL" % (image.shape, expected.shape))
        return 1
    difference = np.abs(image.astype(int) - expected.astype(int))
    bad = difference.max() > 1
    print("image: largest difference %d of 255, %.3f %% of the values differ%s"
          % (difference.max(), 100.0 * (difference > 0).mean(), "  FAIL" if bad else ""))
    return int(bad)


def main():
    arguments = parse_arguments()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    if arguments.keep:
        os.makedirs(arguments.keep, exist_ok=True)
        trace, image = run_calotype(arguments, arguments.keep)
    else:
        with tempfile.TemporaryDirectory() as directory:
            trace, image = run_calotype(arguments, directory)
    reference = run_reference(arguments)
    failures = compare(reference, trace, arguments.limit)
    failures += compare_images(image, reference["image.u8"])
    print("FAIL (%d)" % failures if failures else "ok")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
