#!/usr/bin/env python3
"""Time one denoising step of a Z-Image model in diffusers and in calotype, in turn, on this machine.

usage: step_speed.py MODEL --calotype PROGRAM [--size WxH] [--caption-tokens N] [--threads N] [--rounds N]
                     [--precisions P,...] [--dtype bfloat16|float32] [--decode] [--cpu-time] [--json FILE]

diffusers computes in --dtype on the CPU; calotype runs once for every precision
named (as `calotype generate --precision` takes them). Each takes a first step
that does not count, because weights are read and packed then. The best of the
rounds counts, and all rounds are printed, so that a disturbed machine shows.
--decode also times the VAE's decoder, in float32. Weights are memory-mapped by
both sides, so the model's size in free memory is enough. --cpu-time counts time
on the processor instead of the clock's: with --threads 1 it compares the two on
a machine that others use.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time

import torch
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from safetensors.torch import load_file

# The chat template around the prompt, in tokens.
FRAME_TOKENS = 8
PAD_TOKENS = 32


def load(model_class, folder, dtype):
    """A model whose weights are the file's own memory, where the types agree."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    with torch.device("meta"):
        model = model_class.from_config(config)
    weights = {}
    for file in sorted(os.listdir(folder)):
        if file.endswith(".safetensors"):
            weights.update(load_file(os.path.join(folder, file)))
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def process_seconds(pid):
    """Time a running process has spent on the processor, by its user and system time in /proc/PID/stat."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Diffusers:
    def __init__(self, args, width, height):
        self.clock = time.process_time if args.cpu_time else time.perf_counter
        self.dtype = getattr(torch, args.dtype)
        self.name = f"diffusers {args.dtype}"
        self.model = load(ZImageTransformer2DModel, os.path.join(args.model, "transformer"), self.dtype)
        generator = torch.Generator().manual_seed(1)
        latent = (self.model.config.in_channels, 1, height // 8, width // 8)
        caption = (args.caption_tokens, self.model.config.cap_feat_dim)
        self.latent = torch.randn(latent, generator=generator).to(self.dtype)
        self.caption = torch.randn(caption, generator=generator).to(self.dtype)
        self.vae = None
        if args.decode:
            from diffusers import AutoencoderKL

            self.vae = load(AutoencoderKL, os.path.join(args.model, "vae"), torch.float32)
        with torch.inference_mode():
            self.step()

    def step(self):
        output = self.model([self.latent], torch.tensor([0.5], dtype=self.dtype), [self.caption])
        # Weights of random numbers could overflow, which some kernels compute at another speed.
        assert all(torch.isfinite(image).all() for image in output.sample)

    def round(self):
        times = {}
        with torch.inference_mode():
            begin = self.clock()
            self.step()
            times["step"] = self.clock() - begin
            if self.vae is not None:
                begin = self.clock()
                self.vae.decode(self.latent.float().permute(1, 0, 2, 3))
                times["decode"] = self.clock() - begin
        return times


class Calotype:
    def __init__(self, args, width, height, precision):
        self.name = f"calotype {precision}"
        self.decode, self.cpu_time = args.decode, args.cpu_time
        # A letter and its space are one token in every byte-pair vocabulary. The count is in the middle
        # of what is padded to the same length.
        letters = args.caption_tokens - FRAME_TOKENS - PAD_TOKENS // 2
        self.command = [args.calotype, "generate", "-m", args.model, "-p", " ".join("a" * max(letters, 1)),
                        "-W", str(width), "-H", str(height), "--steps", str(1 + args.steps), "-s", "1",
                        "--guidance", "0", "-t", str(args.threads), "--precision", precision, "--device", "cpu",
                        "--json"]

    def round(self):
        """Times of one run. Without the decoder the run is stopped when its steps are done."""
        marks = {"denoise": [], "decode": []}
        with tempfile.TemporaryDirectory() as folder:
            command = self.command + ["-o", os.path.join(folder, "out.png")]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                for line in process.stdout:
                    event = json.loads(line)
                    if event["event"] == "error":
                        raise SystemExit(f"{self.name}: {event}")
                    if event["event"] != "progress" or event["stage"] not in marks:
                        continue
                    now = process_seconds(process.pid) if self.cpu_time else event["seconds"]
                    marks[event["stage"]].append(now)
                    if event["stage"] == "denoise" and event["step"] == event["steps"] and not self.decode:
                        process.kill()
                        break
        steps = [after - before for before, after in zip(marks["denoise"], marks["denoise"][1:])]
        if len(steps) < 2:
            raise SystemExit(f"{self.name}: the run ended with {process.returncode} before its second step")
        times = {"step": min(steps[1:])}
        if self.decode:
            times["decode"] = marks["decode"][-1] - marks["denoise"][-1]
        return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--calotype", required=True)
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--caption-tokens", type=int, default=128, help="a multiple of 32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="of calotype in each round, besides the first")
    parser.add_argument("--precisions", default="bf16")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if args.caption_tokens % PAD_TOKENS != 0:
        parser.error(f"--caption-tokens must be a multiple of {PAD_TOKENS}")
    width, height = (int(side) for side in args.size.split("x"))

    torch.set_num_threads(args.threads)
    begin = time.perf_counter()
    sides = [Diffusers(args, width, height)]
    print(f"diffusers loaded and warm after {time.perf_counter() - begin:.1f} s", flush=True)
    sides += [Calotype(args, width, height, precision) for precision in args.precisions.split(",")]
    rounds = {side.name: [] for side in sides}
    for number in range(args.rounds):
        for side in sides:
            times = side.round()
            rounds[side.name].append(times)
            text = ", ".join(f"{what} {seconds:.3f}" for what, seconds in times.items())
            print(f"round {number + 1}: {side.name:20} {text}", flush=True)

    reference = sides[0].name
    results = []
    tokens = (width // 16) * (height // 16) + args.caption_tokens
    print(f"\n{width}x{height}, {tokens} tokens, {args.threads} threads, torch {torch.__version__}; best, seconds")
    for side in sides:
        best = {what: min(times[what] for times in rounds[side.name]) for what in rounds[side.name][0]}
        line = f"{side.name:20}"
        for what in ("step", "decode"):
            if what in best:
                ratio = min(times[what] for times in rounds[reference]) / best[what]
                line += f"  {what} {best[what]:8.3f} ({ratio:.2f} x {reference.split()[0]})"
        print(line)
        results.append({"name": side.name, "best": best, "rounds": rounds[side.name]})
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"size": [width, height], "tokens": tokens, "threads": args.threads,
                       "torch": torch.__version__, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
