#!/usr/bin/env python3
"""Which layers must stay out of 8 bits: pictures of the reference with products in e4m3 or int8.

usage: fp8_layers.py MODEL [--count N] [--size N] [--steps N] [--latents] [--json FILE]

Needs no GPU that has fp8: operands of linear layers are rounded to e4m3 (or
int8) with a factor for each row of both, and multiplied in float32. Groups of
layers are named below; a setting is a set of groups that is rounded. Prints the
PSNR of the pictures against those in float32, mean and worst; with --latents, which
saves the VAE, the ratio of the latents to their error, which tells the same order.
"""

import argparse
import json
import math
import os
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import recording  # noqa: E402
from fixture_block_bf16 import e4m3, int8  # noqa: E402

PROMPTS = ["a fox on a light green background", "a red apple on a white background", "a house on a blue background",
           "a cat on a yellow background", "a bicycle on a light blue background", "a rose on a white background",
           "an owl on a pink background", "a rocket on a dark blue background", "a tree on a white background",
           "a fish on a light green background", "a car on a yellow background", "a clock on a white background",
           "a dog on a light blue background", "a pizza on a green background", "a guitar on a pink background",
           "a snail on a white background", "a tiger on a light green background", "a key on a yellow background",
           "a boat on a blue background", "a mushroom on a white background"]

# In w.sensitive of src/models/zimage.c: ends and modulation.
ENDS = ("t_embedder", "x_embedder", "cap_embedder", "final_layer")


def group_of(name):
    if any(end in name for end in ENDS):
        return "ends"
    if "adaLN" in name:
        return "modulation"
    if "refiner" in name:
        return "refiners"
    if "w2" in name:
        return "w2"
    return "attention" if "attention" in name else "w1, w3"


BLOCKS = ("attention", "w1, w3", "w2", "refiners")
SETTINGS = [
    ("fp8, all layers", e4m3, BLOCKS + ("ends", "modulation")),
    ("fp8, blocks and modulation", e4m3, BLOCKS + ("modulation",)),
    ("fp8, blocks and ends", e4m3, BLOCKS + ("ends",)),
    ("fp8, blocks (what is done)", e4m3, BLOCKS),
    ("fp8, blocks without w2", e4m3, ("attention", "w1, w3", "refiners")),
    ("fp8, blocks without attention", e4m3, ("w1, w3", "w2", "refiners")),
    ("fp8, blocks without refiners", e4m3, ("attention", "w1, w3", "w2")),
    ("int8, blocks without w2", int8, ("attention", "w1, w3", "refiners")),
]


class Rounding:
    """Large layers of some groups with operands in codes, while a with statement lasts."""

    def __init__(self, model, to_codes, groups):
        self.undo, self.handles = [], []
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and group_of(name) in groups:
                self.undo.append((module, module.weight.data))
                module.weight.data = to_codes(module.weight.data)
                self.handles.append(module.register_forward_pre_hook(lambda _m, args: (to_codes(args[0]),)))

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        for handle in self.handles:
            handle.remove()
        for module, weight in self.undo:
            module.weight.data = weight


def draw(pipeline, args):
    pictures = []
    for seed, prompt in enumerate(PROMPTS[:args.count]):
        picture = pipeline(prompt=prompt, height=args.size, width=args.size, num_inference_steps=args.steps,
                           guidance_scale=0.0, generator=torch.Generator().manual_seed(seed), output_type="latent" if args.latents else "pt")
        picture = picture.images[0].float()
        pictures.append(picture if args.latents else picture.clamp(0, 1))
    return pictures


def decibels(picture, truth, latents):
    error = float((picture - truth).square().mean()) / (float(truth.square().mean()) if latents else 1)
    return -10 * math.log10(max(1e-12, error))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--count", type=int, default=len(PROMPTS))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--latents", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    rows = []
    with torch.inference_mode():
        pipeline = recording.load_pipeline(args.model)
        truth = draw(pipeline, args)
        for label, to_codes, groups in SETTINGS:
            with Rounding(pipeline.transformer, to_codes, groups):
                pictures = draw(pipeline, args)
            values = [decibels(a, b, args.latents) for a, b in zip(pictures, truth)]
            rows.append({"setting": label, "psnr": sum(values) / len(values), "worst": min(values)})
            print(f"{label:32} {rows[-1]['psnr']:6.2f} dB, worst {rows[-1]['worst']:6.2f} dB", flush=True)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"count": args.count, "steps": args.steps, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
