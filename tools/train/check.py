#!/usr/bin/env python3
"""Does the batched code that was trained compute what diffusers' ZImagePipeline computes?

    python3 check.py --model models/emoji-256

Draws a few prompts both ways in float32 from the same noise and prints the relative L2 differences.
"""
import argparse

import torch
from diffusers import ZImagePipeline
from tokenizers import Tokenizer

import model

PROMPTS = ["octopus", "a red apple on a light blue background", "A cat and a dog on a green background.",
           "i would like a picture of a small person with skullcap in the bottom right corner on a light green "
           "background, simple and clean, flat design, best quality, in the style of an emoji"]


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--model", required=True)
    p.add_argument("--steps", type=int, default=8)
    args = p.parse_args()
    torch.set_num_threads(2)
    pipe = ZImagePipeline.from_pretrained(args.model, torch_dtype=torch.float32)
    size = pipe.vae.config.sample_size
    noise = torch.randn(len(PROMPTS), 16, size // 8, size // 8, generator=torch.Generator().manual_seed(7))
    theirs = torch.cat([pipe(prompt, height=size, width=size, num_inference_steps=args.steps, guidance_scale=0.0,
                             latents=noise[i:i + 1], output_type="pt").images for i, prompt in enumerate(PROMPTS)])
    tokenizer = Tokenizer.from_file(f"{args.model}/tokenizer/tokenizer.json")
    ours = model.sample(model.Drawer(pipe.text_encoder, pipe.transformer), pipe.vae, tokenizer, PROMPTS,
                        steps=args.steps, size=size, noise=noise)
    ours = ours * 0.5 + 0.5
    worst = 0.0
    for prompt, a, b in zip(PROMPTS, ours, theirs):
        difference = ((a - b).norm() / b.norm()).item()
        worst = max(worst, difference)
        print(f"{difference:.2e}  {prompt}")
    if not worst <= 1e-4:
        raise SystemExit("they differ")


if __name__ == "__main__":
    main()
