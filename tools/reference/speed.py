#!/usr/bin/env python3
"""Times diffusers and calotype on the same model, in turn, on this machine.

usage: speed.py MODEL --calotype PROGRAM [--prompt TEXT] [--size WxH] [--steps N] [--rounds N] [--threads N]

Both compute in float32. Times are of the work alone, without loading; the best of the rounds counts, and
all rounds are printed, so that a disturbed machine shows.
"""

import argparse
import json
import subprocess
import tempfile
import time

import torch
from diffusers import ZImagePipeline


def time_calotype(args, width, height):
    with tempfile.TemporaryDirectory() as folder:
        command = [args.calotype, "generate", "-m", args.model, "-p", args.prompt, "-o",
                   f"{folder}/out.png", "-W", str(width), "-H", str(height), "--steps", str(args.steps),
                   "-s", "42", "--guidance", "0", "-t", str(args.threads), "--json"]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    events = [json.loads(line) for line in lines]
    stages = {}
    for event in events:
        if event["event"] == "progress" and event["step"] == event["steps"]:
            stages[event["stage"]] = event["stage_seconds"]
    return stages


def time_diffusers(pipeline, args, width, height):
    marks = []
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(42)
    latents = pipeline(args.prompt, width=width, height=height, num_inference_steps=args.steps,
                       guidance_scale=0.0, generator=generator, output_type="latent",
                       callback_on_step_end=lambda *a: marks.append(time.perf_counter()) or {}).images
    middle = time.perf_counter()
    with torch.no_grad():
        config = pipeline.vae.config
        pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor)
    end = time.perf_counter()
    step = (marks[-1] - marks[0]) / (args.steps - 1)
    denoise = step * args.steps
    return {"encode": middle - start - denoise, "denoise": denoise, "decode": end - middle}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--calotype", required=True)
    parser.add_argument("--prompt", default="a red apple on a light blue background")
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    torch.set_num_threads(args.threads)
    pipeline = ZImagePipeline.from_pretrained(args.model, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    time_diffusers(pipeline, args, width, height)      # warm
    rounds = []
    for _ in range(args.rounds):
        rounds.append((time_diffusers(pipeline, args, width, height), time_calotype(args, width, height)))
        print("diffusers", {k: round(v, 3) for k, v in rounds[-1][0].items()}, " calotype",
              {k: round(v, 3) for k, v in rounds[-1][1].items()}, flush=True)
    print(f"\n{'stage':10} {'diffusers':>10} {'calotype':>10} {'ratio':>7}")
    for stage in ("encode", "denoise", "decode"):
        theirs, ours = (min(r[i][stage] for r in rounds) for i in (0, 1))
        print(f"{stage:10} {theirs:9.3f}s {ours:9.3f}s {theirs / ours:6.2f}x")


if __name__ == "__main__":
    main()
