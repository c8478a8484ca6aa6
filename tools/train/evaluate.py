#!/usr/bin/env python3
"""How good is it? Four figures, and pictures to look at.

    python3 evaluate.py --checkpoint run --glyphs glyphs.npz --tokenizer tokenizer --out results

Reconstruction: PSNR of the autoencoder on held-out scenes. Identity: for each prompt the model draws a
picture, and every glyph is painted in the same place, size and background; the prompt counts as right
if the nearest of these paintings (mean squared error at a quarter of the resolution, inside the
glyph's box) is the glyph that was asked for. With two glyphs both must be right.
"""
import argparse
import json
import os
import random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer

import export
import model
import scenes
from paint import Painter
from train import psnr

SHOW = [
    "a fox on a light green background", "a huge octopus on a navy background", "an owl at night",
    "a red apple on a light blue background", "a cat and a dog on a green background", "a rocket on a night sky background",
    "a unicorn on a pink background", "a pizza above a hamburger", "coffee", "tree", "a whale in the sea",
    "a sunflower on a dark green background", "a penguin on a light blue background", "a small fox in the bottom left",
    "a birthday cake on a beige background", "a cactus at sunset", "a strawberry on a lavender background",
    "a hot air balloon in the sky", "a dragon on a black background", "a teddy bear on a yellow background",
    "a castle at sunset", "a robot on a teal background", "a huge parrot on a meadow background", "a snowman on a navy background",
    "a guitar and a drum on an orange background", "Japan", "a smiling face with sunglasses on a purple background",
    "a butterfly in a meadow", "a lion at sunset", "an avocado on a pink background", "a sailboat above a whale on a blue background",
    "house", "dinosaur", "a crown on a purple background", "A happy face.", "please draw a tiger on a dark green background, high quality",
    "a bee and a tulip in a meadow", "a mushroom on a dark green background", "peacock", "a huge hamburger on a yellow background",
]


class Nearest:
    """Which glyph does a place of a picture look most like?"""

    def __init__(self, painter, count):
        self.painter, self.count, self.cache = painter, count, {}

    def paintings(self, item):
        """All glyphs in one place, at a quarter of the resolution: [count, 4, h, w] and their box."""
        x0, y0 = ((c - item.size // 2) // 4 for c in (item.x, item.y))
        n = item.size // 4
        box = slice(y0, y0 + n), slice(x0, x0 + n)
        # All places are whole pixels of that resolution apart and inside the picture: one does for all.
        if item.size not in self.cache:
            items = torch.tensor([[g, item.size, item.x, item.y] for g in range(self.count)], dtype=torch.float32)
            small = [F.avg_pool2d(self.painter.glyph(part), 4)[:, :, box[0], box[1]].half() for part in items.split(64)]
            self.cache[item.size] = torch.cat(small)
        return self.cache[item.size], box

    def glyph(self, picture, item, background):
        """`picture` in [0, 1] at a quarter of the resolution."""
        paintings, (rows, columns) = self.paintings(item)
        p = paintings.float()
        ground = F.avg_pool2d(self.painter.backgrounds[background].expand(-1, -1, self.painter.size)[None], 4)[0]
        candidates = ground[:, rows, columns] * (1 - p[:, 3:]) + p[:, :3]
        return (candidates - picture[:, rows, columns]).square().mean((1, 2, 3)).argmin().item()


def sets(glyphs, count, seed):
    """name of the set -> [(prompt, scene)]"""
    rng = random.Random(seed)
    by_name = [scenes.single(g, scenes.DEFAULT_BACKGROUND) for g in rng.sample(range(len(glyphs)), count)]
    owners = rng.sample([g for g in range(len(glyphs)) if glyphs.unique[g]], count)
    unseen = [scenes.random_scene(glyphs, rng, held_out=True) for _ in range(count)]
    everyday = [(w, single) for g, words in glyphs.everyday.items()
                for w in words for single in [scenes.single(g, scenes.DEFAULT_BACKGROUND)]]
    return {
        "name": [(scenes.prompt_for(glyphs, s), s) for s in by_name],
        "keyword": [(scenes.prompt_for(glyphs, s, rng.choice(glyphs.unique[g])), s)
                    for g in owners for s in [scenes.single(g, scenes.DEFAULT_BACKGROUND)]],
        "unseen combination": [(scenes.prompt_for(glyphs, s), s) for s in unseen],
        "everyday word": [(scenes.prompt_for(glyphs, s, w), s) for w, s in everyday],
    }


def grid(pictures, path, columns):
    pictures = ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    rows, side = len(pictures) // columns, pictures.shape[1]
    sheet = pictures[:rows * columns].reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4)
    Image.fromarray(np.ascontiguousarray(sheet.reshape(rows * side, columns * side, 3))).save(path)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--checkpoint", required=True)
    p.add_argument("--glyphs", required=True)
    p.add_argument("--tokenizer", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--count", type=int, default=300, help="prompts per set")
    p.add_argument("--seed", type=int, default=2026)
    args = p.parse_args()
    os.makedirs(args.out, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    glyphs = scenes.Glyphs(args.glyphs)
    tokenizer = Tokenizer.from_file(f"{args.tokenizer}/tokenizer.json")
    painter = Painter(glyphs.bitmaps, device)
    vae, text_encoder, transformer, _ = export.read_checkpoint(args.checkpoint)
    vae.to(device)
    drawer = model.Drawer(text_encoder, transformer).to(device)

    def draw(prompts, steps, seed=0):
        return model.sample(drawer, vae, tokenizer, prompts, steps=steps, seed=seed, device=device)

    grid(draw(SHOW, 8), f"{args.out}/show.png", 8)
    results, wrong, nearest = {}, {}, Nearest(painter, len(glyphs))
    rng = random.Random(args.seed)
    held_out = [scenes.random_scene(glyphs, rng, held_out=True) for _ in range(512)]
    pictures = torch.cat([painter(held_out[i:i + 64]) for i in range(0, 512, 64)])
    results["psnr"] = round(psnr(vae, pictures), 2)
    with torch.no_grad():
        pair = torch.stack([pictures[:16], vae.decode(vae.encode(pictures[:16]).latent_dist.mean).sample.clamp(-1, 1)], 1)
    grid(pair.flatten(0, 1).cpu(), f"{args.out}/reconstruction.png", 8)
    for name, asked in sets(glyphs, args.count, args.seed).items():
        for steps in (8, 4):
            drawn = draw([prompt for prompt, _ in asked], steps, seed=1)
            small = F.avg_pool2d(drawn.to(device) * 0.5 + 0.5, 4)
            misses = []
            for (prompt, scene), picture in zip(asked, small):
                got = [nearest.glyph(picture, it, scene.background) for it in scene.items]
                if got != [it.glyph for it in scene.items]:
                    misses.append((prompt, [glyphs.names[g] for g in got]))
            truth = torch.cat([painter([s for _, s in asked[i:i + 64]]) for i in range(0, len(asked), 64)]).cpu()
            error = 10 * np.log10(4 / (truth - drawn).square().mean().item())
            results[f"{name}, {steps} steps"] = round(100 * (1 - len(misses) / len(asked)), 2)
            results[f"{name}, {steps} steps, psnr against the painting"] = round(error, 2)
            wrong[f"{name}, {steps} steps"] = misses
        if name == "unseen combination":
            grid(drawn[:40], f"{args.out}/unseen-4-steps.png", 8)
    print(json.dumps(results, indent=1))
    with open(f"{args.out}/evaluation.json", "w") as f:
        json.dump({**results, "wrong": wrong}, f, indent=1)


if __name__ == "__main__":
    main()
