#!/usr/bin/env python3
"""What it costs to guide only some of the steps: pictures of the model in the box beside those that are guided in all.

usage: guidance_quality.py models/emoji-256 --calotype PROGRAM --glyphs glyphs.npz [--cfg-scale S] [--count N]
       [--steps N] [--intervals A:B ...] [--follow] [--seed N] [--jobs N] [--json FILE]

For every interval (--guidance-interval), and for no guidance at all, the figures of quality.py: PSNR of the
picture against that with guidance in all steps, PSNR against the exact painting of the scene, and with --follow
the share of prompts that are followed, which takes long; with them the evaluations of the transformer for one
picture. In float32.
"""

import argparse
import json
import math
import os
import tempfile

import numpy as np

import quality


def parse_arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("model")
    p.add_argument("--calotype", required=True, help="the calotype program")
    p.add_argument("--glyphs", required=True)
    p.add_argument("--cfg-scale", type=float, default=3)
    p.add_argument("--count", type=int, default=30, help="prompts in each of the two sets")
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--intervals", nargs="*",
                   default=["0:0.75", "0:0.5", "0:0.25", "0.125:1", "0.25:1", "0.5:1", "0.25:0.75"])
    p.add_argument("--follow", action="store_true", help="find the nearest glyphs, too")
    p.add_argument("--seed", type=int, default=2026, help="of the sets of prompts, as in evaluate.py")
    p.add_argument("--jobs", type=int, default=os.cpu_count(), help="pictures at once, a thread each")
    p.add_argument("--json", metavar="FILE", help="write all figures there")
    return p.parse_args()


def evaluations(interval, steps):
    begin, end = map(float, interval.split(":"))
    return steps + sum(begin <= k / steps < end for k in range(steps))


def main():
    args = parse_arguments()
    asked, truth, nearest = quality.prepare(args, args.follow)
    guided = ["--cfg-scale", str(args.cfg_scale)]
    settings = [("0:1", guided, evaluations("0:1", args.steps))]
    settings += [(i, [*guided, "--guidance-interval", i], evaluations(i, args.steps)) for i in args.intervals]
    settings.append(("off", [], args.steps))
    base, rows = {}, []
    print("| interval | evaluations | PSNR, mean | worst | painting |" + " name | unseen |" * args.follow)
    print("|---|---:|---:|---:|---:|" + "---:|---:|" * args.follow)
    with tempfile.TemporaryDirectory() as folder:
        for label, options, count in settings:
            values, error, row = [], [], {"interval": label, "evaluations": count}
            for name in quality.SETS:
                place = os.path.join(folder, f"{label} {name}".replace(":", "-"))
                pictures = quality.draw(args, args.model, "fp32", asked[name], place, options)
                base.setdefault(name, pictures)
                values += list(quality.psnr(pictures, base[name]))
                error += list(np.square(pictures / 127.5 - 1 - truth[name]).mean((1, 2, 3)))
                if args.follow:
                    found = quality.follows(nearest, asked[name], pictures)
                    row[name] = 100 * sum(found) / len(found)
            if rows:
                row |= {"psnr": float(np.mean(values)), "worst": float(np.min(values))}
            row["painting"] = 10 * math.log10(4 / np.mean(error))
            rows.append(row)
            cells = [f"{row[k]:.1f} dB" if k in row else "" for k in ("psnr", "worst", "painting")]
            cells += [f"{row[name]:.1f} %" for name in quality.SETS if args.follow]
            print(f"| {label} | {count} | " + " | ".join(cells) + " |", flush=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"cfg_scale": args.cfg_scale, "count": args.count, "steps": args.steps, "rows": rows}, f, indent=1)


if __name__ == "__main__":
    main()
