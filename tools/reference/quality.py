#!/usr/bin/env python3
"""What fewer bits cost: pictures of the model in the box under every setting, beside those in float32.

usage: quality.py models/emoji-256 --calotype PROGRAM --glyphs glyphs.npz [--count N] [--steps N]
       [--bits N ...] [--group-sizes N ...] [--control] [--seed N] [--jobs N] [--keep DIR] [--json FILE]

Settings are the precisions on the weights as they are, and copies that `calotype quantize` writes,
computed in float32 and in 8-bit integers. For each of them and for the first --count prompts of two sets of
tools/train/evaluate.py (asked by name; combinations never trained on), each with a seed of its own:

    PSNR        of the 8-bit picture against that of fp32 on the original weights: mean, and the worst one
    follows     share of prompts whose picture is nearest to the glyphs that were asked for
    painting    PSNR against the exact painting of the scene (of the mean squared error of all pictures)

The prompts are the same for every setting, and are among those of docs/model-in-the-box.md. --control adds
weights of 2 bits, which shows what the figures look like when a model is damaged.

glyphs.npz is made by tools/train/glyphs.py; needs tools/train/requirements.txt.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "train"))
import evaluate  # noqa: E402
import scenes  # noqa: E402
from paint import Painter  # noqa: E402

SETS = "name", "unseen combination"
DRAWN = 300        # prompts that evaluate.py draws; the first --count of them are taken


def parse_arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("model")
    p.add_argument("--calotype", required=True, help="the calotype program")
    p.add_argument("--glyphs", required=True)
    p.add_argument("--count", type=int, default=60, help=f"prompts in each set, at most {DRAWN}")
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--bits", type=int, nargs="*", default=[8, 4])
    p.add_argument("--group-sizes", type=int, nargs="*", default=[32, 64])
    p.add_argument("--control", action="store_true")
    p.add_argument("--seed", type=int, default=2026, help="of the sets of prompts, as in evaluate.py")
    p.add_argument("--jobs", type=int, default=os.cpu_count(), help="pictures at once, a thread each")
    p.add_argument("--keep", metavar="DIR", help="keep the quantized models and the pictures there")
    p.add_argument("--json", metavar="FILE", help="write all figures there")
    return p.parse_args()


def quantize(args, folder, bits, group):
    """Returns the directory and what was said of it: bytes, relative L2 of all and of each part."""
    out = os.path.join(folder, f"{bits}-bit-groups-of-{group}")
    command = [args.calotype, "quantize", "-m", args.model, "-b", str(bits), "-g", str(group), "-o", out, "--json"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    events = [json.loads(line) for line in lines]
    done = events[-1]
    matrices = [e for e in events if e["event"] == "tensor" and e["quantized"]]
    before = sum(e["bytes_before"] for e in matrices)
    return out, {"bits": bits, "group_size": group, "bytes": done["bytes_after"], "bytes_before": done["bytes_before"],
                 "share_quantized": before / done["bytes_before"], "quantized": done["quantized"],
                 "relative_l2": done["relative_l2"], "worst": done["worst"][0]}


def settings(args, folder):
    """(label, model, precision, what quantize said or None); the first is what the others are held to."""
    found = [("original", args.model, p, None) for p in ("fp32", "bf16", "int8")]
    for bits in args.bits:
        for group in args.group_sizes:
            model, said = quantize(args, folder, bits, group)
            found += [(f"{bits} bits, groups of {group}", model, p, said) for p in ("fp32", "int8")]
    if args.control:
        model, said = quantize(args, folder, 2, 32)
        found.append(("2 bits, groups of 32", model, "fp32", said))
    return found


def draw(args, model, precision, asked, folder, more=()):
    """Pictures of all prompts as [n, 256, 256, 3] bytes; the seed is the prompt's place in its set. more: options."""
    os.makedirs(folder)

    def one(place):
        path = os.path.join(folder, f"{place:03d}.png")
        # A process for each: opening the model in the box takes 30 ms.
        subprocess.run([args.calotype, "generate", "-m", model, "-p", asked[place][0], "-o", path, "-s", str(place),
                        "--steps", str(args.steps), "--precision", precision, "-t", "1", "-q", *more],
                       check=True, stdout=subprocess.DEVNULL)
        with Image.open(path) as picture:
            return np.asarray(picture)

    with ThreadPoolExecutor(args.jobs) as pool:
        return np.stack(list(pool.map(one, range(len(asked)))))


def psnr(a, b):
    """Of each pair of pictures in bytes; inf where they are equal."""
    error = np.square(a.astype(np.float64) - b).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255 ** 2 / error)


def follows(nearest, asked, pictures):
    """Which prompts were followed, by the measure of evaluate.py."""
    small = F.avg_pool2d(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255, 4)
    return [[nearest.glyph(picture, it, scene.background) for it in scene.items] == [it.glyph for it in scene.items]
            for (_, scene), picture in zip(asked, small)]


def measure(args, folder, asked, truth, nearest):
    rows, base = [], {}
    for label, model, precision, said in settings(args, folder):
        row, began = {"weights": label, "compute": precision, "quantize": said}, time.time()
        values, error = [], []
        for name in SETS:
            place = os.path.join(folder, f"{label}, {precision}, {name}".replace(", ", "-").replace(" ", "-"))
            pictures = draw(args, model, precision, asked[name], place)
            base.setdefault(name, pictures)
            right = follows(nearest, asked[name], pictures)
            row[name] = 100 * sum(right) / len(right)
            row[f"{name}, wrong"] = [p for (p, _), r in zip(asked[name], right) if not r]
            values += list(psnr(pictures, base[name]))
            error += list(np.square(pictures / 127.5 - 1 - truth[name]).mean((1, 2, 3)))
        prompts = [p for name in SETS for p, _ in asked[name]]
        if rows:
            row["psnr"], row["psnr, worst"] = float(np.mean(values)), float(np.min(values))
            row["worst prompt"] = prompts[int(np.argmin(values))]
        row["psnr against the painting"] = 10 * math.log10(4 / np.mean(error))
        rows.append(row)
        print(f"{label}, {precision}: {row.get('psnr', math.inf):.2f} dB, {time.time() - began:.0f} s",
              file=sys.stderr, flush=True)
        if args.json:
            with open(args.json, "w") as f:
                json.dump({"count": args.count, "steps": args.steps, "rows": rows}, f, indent=1)
    return rows


def table(rows):
    yield "| weights | of them quantized | MB | relative L2 | compute | PSNR, mean | worst | name | unseen | painting |"
    yield "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|"
    for r in rows:
        said = r["quantize"]
        cells = [r["weights"]]
        cells += [f"{100 * said['share_quantized']:.0f} %", f"{said['bytes'] / 1e6:.1f}",
                  f"{100 * said['relative_l2']:.2f} %"] if said else ["", "", ""]
        cells.append(r["compute"])
        cells += [f"{r['psnr']:.1f} dB", f"{r['psnr, worst']:.1f} dB"] if "psnr" in r else ["", ""]
        cells += [f"{r[name]:.1f} %" for name in SETS] + [f"{r['psnr against the painting']:.2f} dB"]
        yield "| " + " | ".join(cells) + " |"


def prepare(args, follow=True):
    """Prompts and scenes of each set, their exact paintings, and what finds the nearest glyphs (slow) or None."""
    if not 1 <= args.count <= DRAWN:
        sys.exit(f"--count must be 1 to {DRAWN}")
    glyphs = scenes.Glyphs(args.glyphs)
    drawn = evaluate.sets(glyphs, DRAWN, args.seed)
    asked = {name: drawn[name][:args.count] for name in SETS}
    painter = Painter(glyphs.bitmaps, "cpu")
    painter.bank = painter.bank.float()     # processors multiply half precision slowly
    truth = {name: painter([scene for _, scene in found]).permute(0, 2, 3, 1).numpy() for name, found in asked.items()}
    if not follow:
        return asked, truth, None
    nearest = evaluate.Nearest(painter, len(glyphs))
    for it in (it for found in asked.values() for _, scene in found for it in scene.items):
        nearest.paintings(it)
    del painter.bank                        # 1.8 GB; all paintings are made
    return asked, truth, nearest


def main():
    args = parse_arguments()
    asked, truth, nearest = prepare(args)
    with tempfile.TemporaryDirectory() as folder:
        if args.keep:
            os.makedirs(args.keep, exist_ok=True)
            folder = args.keep
        rows = measure(args, folder, asked, truth, nearest)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
