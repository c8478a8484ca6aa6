#!/usr/bin/env python3
"""Edits, from the picture that is given to the one that comes out: what lines up, and what is
refused.

CALOTYPE names the program, CT_FIXTURES the folder of the fixtures."""

import cmath
import math
import os
import random
import struct
import unittest
import zlib

import identity_model
from test_cli import Folder, TapRunner, png_chunks, png_size, run

FIXTURES = os.environ["CT_FIXTURES"]
SIDE = 128  # of the windows that are compared
TURNS = [cmath.rect(1, 2 * math.pi * k / SIDE) for k in range(SIDE)]
HIGHEST = 5  # frequency, in waves along a side: 25 pixels
FREQUENCIES = [(i, j) for i in range(HIGHEST + 1) for j in range(-HIGHEST, HIGHEST + 1)
               if i or j > 0]


def write_png(path, width, height, rgb):
    """rgb: all bytes of the picture."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    rows = b"".join(b"\0" + rgb[3 * width * y:3 * width * (y + 1)] for y in range(height))
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n"
                   + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
                   + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b""))


def read_png(path):
    """(width, height, bytes) of a picture with 8 bits of red, green and blue."""
    width, height = png_size(path)
    data = zlib.decompress(b"".join(body for kind, body in png_chunks(path) if kind == b"IDAT"))
    stride, rows, before = 3 * width, [], bytes(3 * width)
    for y in range(height):
        kind = data[y * (stride + 1)]
        row = bytearray(data[y * (stride + 1) + 1:(y + 1) * (stride + 1)])
        for x in range(stride if kind else 0):
            left, up, corner = row[x - 3] if x > 2 else 0, before[x], before[x - 3] if x > 2 else 0
            if kind == 4:  # what is nearest to left + up - corner
                row[x] = row[x] + min((abs(up - corner), 0, left), (abs(left - corner), 1, up),
                                      (abs(left + up - 2 * corner), 2, corner))[2] & 255
            else:
                row[x] = row[x] + (left, up, (left + up) // 2)[kind - 1] & 255
        before = bytes(row)
        rows.append(before)
    return width, height, b"".join(rows)


def smooth_picture(width, height, seed):
    """Waves that a VAE keeps, each a few times in a window, so that every window has the same
    frequencies and none between them."""
    chance = random.Random(seed)
    planes = []
    for _ in range(3):
        # exp(i (ax + by)) = exp(i ax) exp(i by): sides are all that must be computed.
        sums = [[0] * width for _ in range(height)]
        for i, j in chance.sample(FREQUENCIES, 8):
            across = [14 * TURNS[i * x % SIDE] for x in range(width)]
            start = cmath.rect(1, chance.uniform(0, 2 * math.pi))
            for y in range(height):
                down = start * TURNS[j * y % SIDE]
                sums[y] = [s + (down * a).real for s, a in zip(sums[y], across)]
        planes.append([min(max(round(127.5 + s), 0), 255) for row in sums for s in row])
    return bytes(v for pixel in zip(*planes) for v in pixel)


def spectrum(picture, left, top):
    """The brightness of a window, at its lowest frequencies."""
    width, _, rgb = picture
    rows = []
    for y in range(top, top + SIDE):
        at = 3 * (width * y + left)
        row = [sum(rgb[i:i + 3]) for i in range(at, at + 3 * SIDE, 3)]
        rows.append([sum(v * TURNS[-i * x % SIDE] for x, v in enumerate(row))
                     for i in range(HIGHEST + 1)])
    return [sum(row[i] * TURNS[-j * y % SIDE] for y, row in enumerate(rows))
            for i, j in FREQUENCIES]


def shift(a, b, left, top):
    """(x, y) by which what is in this window of a is moved in b: the peak of the phase correlation,
    and the parabola through it and its neighbours. Frequencies that a has not tell nothing."""
    first, second = spectrum(a, left, top), spectrum(b, left, top)
    least = 0.1 * max(map(abs, first))
    peak = []
    for y in range(SIDE):
        row = [0] * (HIGHEST + 1)
        for (i, j), v, w in zip(FREQUENCIES, first, second):
            if abs(v) > least and w:
                row[i] += w * v.conjugate() / abs(w * v) * TURNS[j * y % SIDE]
        peak.append([sum((v * TURNS[i * x % SIDE]).real for i, v in enumerate(row))
                     for x in range(SIDE)])
    y, x = max(((y, x) for y in range(SIDE) for x in range(SIDE)), key=lambda at: peak[at[0]][at[1]])

    def finer(at, before, here, behind):
        at = at - SIDE if at >= SIDE // 2 else at
        return at + (before - behind) / (2 * (before - 2 * here + behind))
    return (finer(x, peak[y][x - 1], peak[y][x], peak[y][(x + 1) % SIDE]),
            finer(y, peak[y - 1][x], peak[y][x], peak[(y + 1) % SIDE][x]))


class Identity(Folder):
    """With a model that gives the reference back, a picture of any size lines up with it."""

    def edited(self, width, height, *args):
        model, given, out = (self.path(name) for name in ("model", "given.png", "out.png"))
        identity_model.build(model)
        write_png(given, width, height, smooth_picture(width, height, 7))
        result = run("edit", "-m", model, "-p", "the same", "-r", given, "-o", out, "--steps", "1",
                     "-s", "1", "--precision", "fp32", "-q", *args)
        self.assertEqual(result.returncode, 0, result.stderr)
        return read_png(given), read_png(out)


    def check(self, width, height):
        given, out = self.edited(width, height, "--keep-size")
        self.assertEqual(out[:2], (width, height))
        for place in ((0, 0), (width - SIDE, height - SIDE)):
            moved = shift(given, out, *place)
            self.assertLess(max(map(abs, moved)), 0.25, f"{moved} at {place}")
        # And it is that picture, but for the contrast that is lost from eight pixels to one.
        difference = sum(map(abs, map(int.__sub__, given[2], out[2])))
        self.assertLess(difference, sum(abs(v - 127.5) for v in given[2]) / 2)

    def test_sides_of_no_multiple(self):
        self.check(250, 187)

    def test_sides_a_pixel_above_and_below(self):
        self.check(145, 159)

    def test_tall(self):
        self.check(333, 517)

    def test_without_keeping_the_size(self):
        """The same edit cuts the edges, and is then moved by what was cut on the left and above:
        (250 - 240) / 2 and (187 - 176) / 2, rounded down. So the measure sees what is out of its
        place."""
        given, out = self.edited(250, 187)
        self.assertEqual(out[:2], (240, 176))
        x, y = shift(given, out, 50, 40)
        self.assertAlmostEqual(x, -5, delta=0.25)
        self.assertAlmostEqual(y, -5, delta=0.25)


class BadInput(Folder):
    """What cannot be worked with is refused in words, and nothing is written."""

    REFERENCE = os.path.join(FIXTURES, "klein", "three_references.0.png")

    def refuse(self, fixture, references, status, *parts, more=()):
        given = [word for path in references for word in ("-r", path)]
        model, out = os.path.join(FIXTURES, fixture, "model"), self.path("out.png")
        result = run("edit", "-m", model, "-p", "x", "-o", out, *given, *more)
        self.assertEqual(result.returncode, status, result.stderr)
        self.assertEqual(result.stdout, "")
        for part in parts:
            self.assertIn(part, result.stderr)
        self.assertFalse(os.path.exists(out))

    def test_no_pictures(self):
        for name, data, parts in (("text.png", b"hello\n" * 50, ("is no picture", "PNG")),
                                  ("empty.jpg", b"", ("is no picture", "PNG")),
                                  ("x.bmp", b"BM" + bytes(60), ("is a BMP file", "WebP"))):
            with open(self.path(name), "wb") as file:
                file.write(data)
            self.refuse("klein", [self.path(name)], 1, name, *parts)
        self.refuse("klein", [self.folder], 1, "not a regular file")

    def test_truncated(self):
        for name in ("busy.png", "plain.jpg", "lossy.webp"):
            with open(os.path.join(FIXTURES, "pictures", name), "rb") as file:
                whole = file.read()
            for size in (30, len(whole) // 2, len(whole) - 10):
                with open(self.path(name), "wb") as file:
                    file.write(whole[:size])
                with self.subTest(name=name, size=size):
                    self.refuse("klein", [self.path(name)], 1, name)

    def test_moving(self):
        for name, part in (("animated.webp", "is animated"), ("animated.png", "is animated"),
                           ("other.gif", "is a GIF file")):
            self.refuse("qwen_edit", [os.path.join(FIXTURES, "pictures", name)], 1, name, part)

    def test_sizes(self):
        path = self.path("given.png")
        for width, height, part in ((1, 1, "both sides must have at least"),
                                    (30000, 100, "a side may have at most 16384"),
                                    (2000, 64, "times as long")):
            write_png(path, width, height, bytes(3 * width * height))
            for fixture in ("klein", "qwen_edit"):
                self.refuse(fixture, [self.REFERENCE, path][fixture == "qwen_edit":], 2,
                            path, f"{width} x {height}", part)

    def test_memory(self):
        self.refuse("klein", [self.REFERENCE], 1, "of the limit", "smaller reference pictures",
                    more=["--max-memory", "1M"])

    def test_counts(self):
        self.refuse("qwen_edit", [self.REFERENCE] * 2, 2, "2 reference pictures", "Edit", "only 1")
        self.refuse("klein", [self.REFERENCE] * 11, 2, "at most 10")
        self.refuse("qwen_edit", [], 2, "needs --reference")
        result = run("generate", "-m", os.path.join(FIXTURES, "qwen_edit", "model"), "-p", "x",
                     "-o", self.path("out.png"))
        self.assertEqual(result.returncode, 2)
        self.assertIn("give it a reference picture", result.stderr)

    def test_masks(self):
        self.refuse("klein", [self.REFERENCE], 2, "unknown option --mask", "takes a mask",
                    "--reference", more=["--mask", self.REFERENCE])

    def test_no_negative_prompt(self):
        """Models that are guided have one of their own: nothing, or a blank."""
        for fixture, negative in (("klein_base", ""), ("qwen", " ")):
            pictures = []
            for more in ([], ["-n", negative]):
                result = run("generate", "-m", os.path.join(FIXTURES, fixture, "model"), "-p", "x",
                             "-o", self.path("out.png"), "--size", "32x32", "--steps", "1", "-s",
                             "1", "-q", *more)
                self.assertEqual(result.returncode, 0, result.stderr)
                pictures.append(read_png(self.path("out.png")))
            self.assertEqual(*pictures)


if __name__ == "__main__":
    unittest.main(testRunner=TapRunner())
