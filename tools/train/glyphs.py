#!/usr/bin/env python3
"""Take the pictures and the words of the emoji out of the font and of Unicode's files.

    python3 glyphs.py --font NotoColorEmoji.ttf --emoji-test emoji-test.txt \
        --annotations annotations/en.xml --out glyphs.npz

Writes one compressed file: the font's own bitmaps (RGBA, 128x128) and, for each, its Unicode name,
its code points and its CLDR keywords.

Left out: skin tones, the man/woman/family variants that are sequences (their neutral form stays),
and glyphs that look the same as an earlier one (Monaco's flag next to Indonesia's, say): nobody
could tell from a picture which of the two was meant.
"""
import argparse
import json
import re
import xml.etree.ElementTree

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

STRIKE = 109          # the font's only bitmap size
CELL = 128            # what is kept of each glyph, in the bitmap's own pixels
ORIGIN = (104, 60)    # top left of that cell when the text is drawn at (100, 60)
SAME = 1.0            # mean absolute difference (of 255, at 32x32) below which two glyphs count as one
# Flags of uninhabited places that are another country's flag: the country keeps it.
BORROWED_FLAGS = ("clipperton", "ceuta", "bouvet", "diego garcia", "u.s. outlying", "heard &", "svalbard",
                  "st. martin flag", "british indian")

SKIN = range(0x1F3FB, 0x1F400)
ZWJ = 0x200D
SELECTOR = "\ufe0f"
GENDERED = ("man", "woman", "men", "women", "family", "kiss", "couple", "people holding")


def read_names(path):
    """(text, name) of every emoji that is kept, in Unicode's order."""
    kept = []
    for line in open(path, encoding="utf-8"):
        m = re.match(r"^([0-9A-F ]+); fully-qualified\s+# (\S+) E[\d.]+ (.*)$", line)
        if not m:
            continue
        points = [int(x, 16) for x in m[1].split()]
        name = m[3].strip().lower()
        if any(p in SKIN for p in points):
            continue
        if ZWJ in points and ("hair" in name or name.startswith(GENDERED)):
            continue
        if name.startswith("flag: "):
            name = name[6:] + " flag"
            if name.startswith(BORROWED_FLAGS):
                continue
        name = re.sub(r"[:“”]| \(.*\)", "", name).replace("’", "'").replace("  ", " ")
        kept.append(("".join(map(chr, points)), name))
    return kept


def read_keywords(path):
    """{emoji without variation selectors: [keyword, ...]}"""
    words = {}
    for a in xml.etree.ElementTree.parse(path).getroot().iter("annotation"):
        if a.get("type") is None and a.text:
            words[a.get("cp")] = [w.strip().lower().replace("’", "'") for w in a.text.split("|")]
    return words


def draw(font, text):
    """One glyph in its cell, or None if it does not fit: then the font lacks it."""
    image = Image.new("RGBA", (400, 260))
    ImageDraw.Draw(image).text((100, 60), text, font=font, embedded_color=True)
    cell = (ORIGIN[0], ORIGIN[1], ORIGIN[0] + CELL, ORIGIN[1] + CELL)
    box = image.getbbox()
    if box is None or box[0] < cell[0] - 2 or box[2] > cell[2] + 2 or font.getlength(text) > 140:
        return None
    return np.asarray(image.crop(cell))


def tiny(glyph):
    """A glyph on grey at 32x32, for telling look-alikes."""
    rgba = glyph.astype(np.float32)
    alpha = rgba[..., 3:] / 255
    rgb = rgba[..., :3] * alpha + 128 * (1 - alpha)
    return rgb.reshape(32, 4, 32, 4, 3).mean((1, 3))


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--font", required=True)
    p.add_argument("--emoji-test", required=True)
    p.add_argument("--annotations", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--sheet", help="also write one picture of all glyphs here")
    args = p.parse_args()
    if not features.check("raqm"):
        raise SystemExit("Pillow lacks raqm here: sequences such as flags could not be drawn")

    font = ImageFont.truetype(args.font, STRIKE)
    keywords = read_keywords(args.annotations)
    bitmaps, small, words, dropped = [], [], [], []
    for text, name in read_names(args.emoji_test):
        glyph = draw(font, text)
        if glyph is None or glyph[..., 3].mean() < 5:
            dropped.append(f"{name}: not in the font")
            continue
        t = tiny(glyph)
        if small:
            d = np.abs(np.stack(small) - t).mean((1, 2, 3))
            if d.min() < SAME:
                dropped.append(f"{name}: looks like {words[d.argmin()]['name']} ({d.min():.1f})")
                continue
        bitmaps.append(glyph)
        small.append(t)
        words.append({"text": text, "name": name, "keywords": keywords.get(text.replace(SELECTOR, ""), [])})

    np.savez_compressed(args.out, bitmaps=np.stack(bitmaps),
                        words=np.frombuffer(json.dumps(words).encode(), np.uint8))
    print("\n".join(dropped))
    print(f"{len(bitmaps)} glyphs, {len(dropped)} left out")
    if args.sheet:
        columns = 48
        sheet = Image.new("RGB", (columns * 40, -(-len(bitmaps) // columns) * 40), (247, 242, 233))
        for i, b in enumerate(bitmaps):
            g = Image.fromarray(b).resize((36, 36), Image.LANCZOS)
            sheet.paste(g, (i % columns * 40 + 2, i // columns * 40 + 2), g)
        sheet.save(args.sheet)


if __name__ == "__main__":
    main()
