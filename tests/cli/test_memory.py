#!/usr/bin/env python3
"""Memory as the command line promises it: what "calotype plan" says is what the process takes.

CALOTYPE names the program, CT_FIXTURES the folder of the fixtures."""

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest
import zlib

import sparse_model

PROGRAM = os.environ["CALOTYPE"]
BOX = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../models/emoji-256")
PROMPT = "a red apple on a light blue background"
MIB = 1 << 20
# The scratch of threads that find nothing to do is planned, but not taken: with many threads a
# small picture takes less than was said.
THREADS = ["--threads", "2"]
# With this the C library writes to all memory that it gives away, used or not.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "MALLOC_PERTURB_"}
# Sanitizers keep memory of their own, so that only what is said can be checked, not what is taken.
SANITIZED = b"__asan_init" in open(PROGRAM, "rb").read() or \
    b"__tsan_init" in open(PROGRAM, "rb").read()

# Starts a program and prints the most memory that it had. A process of its own, and a small one,
# because what a program takes is counted from before it is started.
MEASURE = """
import os, resource, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status = os.waitpid(child, 0)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def plan(model, *args):
    result = subprocess.run([PROGRAM, "plan", "-m", model, "--json", *THREADS, *args],
                            capture_output=True, text=True, timeout=120)
    return result, json.loads(result.stdout) if result.stdout else None


def unbatched(args):
    """Without -b N, which a plan does not know: a batch takes no more than a picture."""
    args = list(args)
    if "-b" in args:
        del args[args.index("-b"):args.index("-b") + 2]
    return args


class Folder(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="calotype-memory-")
        self.addCleanup(shutil.rmtree, self.folder, True)

    def generate(self, model, *args, out="out.png", report="-q"):
        """The result and the peak of memory."""
        path = os.path.join(self.folder, out)
        # An empty cache each time: what is found there is not computed.
        cache = tempfile.mkdtemp(prefix="cache-", dir=self.folder)
        result = subprocess.run(
            [sys.executable, "-S", "-E", "-c", MEASURE, PROGRAM, "generate", report, "-m", model,
             "-p", PROMPT, "-o", path, "--seed", "1", *THREADS, *args],
            capture_output=True, text=True, timeout=280,
            env={**ENVIRONMENT, "CALOTYPE_CACHE": cache})
        peak = int(result.stdout.split()[-1])
        return result, peak, path

    def kept(self, model, *args, out="out.png", report="-q"):
        """Runs what was planned; returns the plan and the picture. self.made is the result."""
        result, said = plan(model, "-p", PROMPT, *unbatched(args))
        self.assertEqual(result.returncode, 0, result.stderr)
        made, peak, path = self.generate(model, *args, out=out, report=report)
        self.assertEqual(made.returncode, 0, made.stderr)
        self.made = made
        promised = said["chosen"]["peak_bytes"]
        if not SANITIZED:
            # Of a model of a few megabytes the program itself is the larger part.
            self.assertLess(abs(promised - peak), max(0.05 * peak, 5 * MIB),
                            f"{args}: promised {promised / MIB:.2f}, took {peak / MIB:.2f} MiB")
            if "--max-memory" in args:
                self.assertLessEqual(peak, said["limit_bytes"])
        with open(path, "rb") as file:
            return said, file.read()


class Promise(Folder):
    def test_model_in_the_box(self):
        said, whole = self.kept(BOX, "--size", "192x128", "--steps", "2")
        self.assertEqual(said["chosen"], said["resident"])
        self.assertEqual(said["chosen"]["streamed_blocks"], 0)
        self.assertEqual(said["chosen"]["strip_height"], 0)
        self.assertFalse(said["prompt_assumed"])
        # Working memory decides here, and weights that come and go change nothing in the picture.
        result, said = plan(BOX, "--size", "64x64", "-p", PROMPT)
        between = (said["resident"]["peak_bytes"] + said["streamed"]["peak_bytes"]) // 2
        small = ("--size", "64x64", "--steps", "2")
        _, whole = self.kept(BOX, *small, out="whole.png")
        said, streamed = self.kept(BOX, *small, "--max-memory", str(between), out="streamed.png")
        self.assertGreater(said["chosen"]["streamed_blocks"], 0)
        self.assertEqual(whole, streamed)
        # Two pictures of one job, with guidance.
        guided = (*small, "--guidance", "3", "-b", "2")
        said, _ = self.kept(BOX, *guided, out="a.png")
        between = (said["resident"]["peak_bytes"] + said["streamed"]["peak_bytes"]) // 2
        _, near = plan(BOX, "-p", PROMPT, *unbatched(guided), "--max-memory", str(between))
        near = near["chosen"]["peak_bytes"] + near["stages"][1]["block_bytes"] // 2
        said, _ = self.kept(BOX, *guided, "--max-memory", str(near), out="b.png")
        self.assertGreater(said["chosen"]["streamed_blocks"], 0)
        for name in ("%s.png", "%s_2.png"):
            pictures = []
            for which in "ab":
                with open(os.path.join(self.folder, name % which), "rb") as file:
                    pictures.append(file.read())
            self.assertEqual(*pictures)

    @unittest.skipIf(SANITIZED, "the sanitizers' own memory changes what fits")
    def test_strips(self):
        """The VAE decides here: the whole picture, the lowest strips, and something between, which
        all are the same picture."""
        size = ("--size", "256x192", "--steps", "1")
        said, whole = self.kept(BOX, *size, out="whole.png")
        self.assertEqual(said["chosen"]["strip_height"], 0)
        most, least = said["resident"]["decode_bytes"], said["strips"]["decode_bytes"]
        self.assertEqual(said["chosen"]["peak_bytes"], most)
        self.assertLess(least, 0.75 * most)
        self.assertGreater(least, said["resident"]["denoise_bytes"])
        heights = []
        for limit, report in ((least + (most - least) // 2, "--json"), (least + MIB // 2, "-v")):
            said, picture = self.kept(BOX, *size, "--max-memory", str(limit), out=f"{limit}.png",
                                      report=report)
            self.assertEqual(picture, whole)
            self.assertLess(said["chosen"]["peak_bytes"], limit)
            # What the transformer takes does not depend on the VAE.
            self.assertEqual(said["chosen"]["streamed_blocks"], 0)
            heights.append(said["chosen"]["strip_height"])
            if report == "--json":
                start = json.loads(self.made.stdout.splitlines()[0])
                self.assertEqual(start["strip_height"], heights[0])
            else:
                self.assertIn(f"the VAE in strips of {heights[1]} rows", self.made.stderr)
        self.assertGreater(heights[0], heights[1])
        self.assertGreater(heights[1], 0)

    @unittest.skipIf(SANITIZED, "slow, and memory cannot be measured")
    def test_large_model(self):
        model = os.path.join(self.folder, "model")
        sparse_model.build(model, {**sparse_model.MEDIUM, "n_layers": 4})
        size = ("--size", "64x64", "--steps", "2", "--precision", "bf16")
        said, whole = self.kept(model, *size, out="whole.png")
        self.assertGreater(said["resident"]["peak_bytes"], 150 * MIB)
        self.assertLess(said["streamed"]["peak_bytes"], 60 * MIB)
        # What the program itself takes differs a little from one start to the next, so a limit just
        # above a choice may be kept with that choice or with one block less. These are half a block
        # above.
        half = said["stages"][1]["block_bytes"] // 2
        _, middle = plan(model, "-p", PROMPT, *size, "--max-memory", "100M")
        for choice in (middle["chosen"], said["streamed"]):
            chosen, picture = self.kept(model, *size, "--max-memory",
                                        str(choice["peak_bytes"] + half), out="streamed.png")
            self.assertGreater(chosen["chosen"]["streamed_blocks"], 0)
            self.assertEqual(picture, whole)
        # Guidance: two prompts, in one pass through the blocks that come and go or in two.
        pictures = []
        for batch in ("on", "off"):
            guided = (*size[:3], "1", *size[4:], "--guidance", "3", "--cfg-batch", batch)
            _, said = plan(model, "-p", PROMPT, *guided, "--max-memory", "100M")
            self.assertGreater(said["chosen"]["streamed_blocks"], 0)
            pictures.append(self.kept(model, *guided, "--max-memory",
                                      str(said["chosen"]["peak_bytes"] + half),
                                      out=f"{batch}.png")[1])
        self.assertEqual(*pictures)


    @unittest.skipIf(SANITIZED, "slow, and memory cannot be measured")
    def test_qwen_image(self):
        """The modulation, a third of the transformer, is read once and does not stay."""
        model = os.path.join(self.folder, "model")
        sparse_model.build_qwen(model, sparse_model.QWEN_MEDIUM)
        size = ("--size", "64x64", "--steps", "2", "--precision", "bf16")
        said, whole = self.kept(model, *size, out="whole.png")
        weights = said["stages"][1]["file_bytes"]
        self.assertGreater(weights, 95 * MIB)
        held = said["resident"]["denoise_bytes"] - said["process_bytes"]
        self.assertLess(held, 0.75 * weights)
        half = said["stages"][1]["block_bytes"] // 2
        chosen, picture = self.kept(model, *size, "--max-memory",
                                    str(said["streamed"]["peak_bytes"] + 5 * half), out="some.png")
        self.assertGreater(chosen["chosen"]["streamed_blocks"], 0)
        self.assertEqual(picture, whole)


class References(Folder):
    """FLUX.2-klein with a reference picture, which goes through the VAE first."""

    MODEL = os.path.join(os.environ["CT_FIXTURES"], "klein", "model")

    def picture(self, width, height):
        """A PNG whose rows are all different."""
        rows = b"".join(b"\0" + bytes((7 * x + y) % 256 for x in range(3 * width))
                        for y in range(height))
        path = os.path.join(self.folder, f"{width}x{height}.png")
        with open(path, "wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n")
            for kind, body in ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
                               (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")):
                file.write(struct.pack(">I", len(body)) + kind + body +
                           struct.pack(">I", zlib.crc32(kind + body)))
        return path

    def test_promise(self):
        small = ("--steps", "1", "--precision", "fp32")
        # Large ones, beside which it is nothing what the C library keeps of memory that was freed.
        reference = self.picture(1152, 896)
        said, _ = self.kept(self.MODEL, *small, "-r", reference, "--size", "64x64")
        stages = {s["stage"]: s["activation_bytes"] for s in said["stages"]}
        self.assertGreater(stages["encode"], stages["decode"])
        self.kept(self.MODEL, *small, "-r", reference, "-r", self.picture(64, 80))
        self.kept(self.MODEL, *small, "--size", "768x512")


class Plan(Folder):
    def test_numbers(self):
        result, said = plan(BOX)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertTrue(said["prompt_assumed"])
        self.assertEqual(said["prompt_tokens"], 512)
        self.assertEqual([s["stage"] for s in said["stages"]], ["encode", "denoise", "decode"])
        for stage in said["stages"]:
            self.assertLessEqual(stage["read_bytes"], stage["file_bytes"])
            self.assertLessEqual(stage["block_bytes"], stage["read_bytes"] + (128 << 10))
            self.assertGreater(stage["activation_bytes"], 0)
        for choice in ("resident", "streamed", "chosen"):
            stages = [said[choice][f"{name}_bytes"] for name in ("encode", "denoise", "decode")]
            self.assertEqual(said[choice]["peak_bytes"], max(stages))
            self.assertTrue(said[choice]["fits"])
        self.assertLess(said["streamed"]["denoise_bytes"], said["resident"]["denoise_bytes"])
        # A shorter prompt takes less, a larger picture more.
        _, short = plan(BOX, "-p", "x")
        self.assertLess(short["chosen"]["encode_bytes"], said["chosen"]["encode_bytes"])
        piped = subprocess.run([PROGRAM, "plan", "-m", BOX, "-p", "-", "--json"], input=PROMPT,
                               capture_output=True, text=True, timeout=60)
        self.assertEqual(json.loads(piped.stdout)["prompt_tokens"],
                         plan(BOX, "-p", PROMPT)[1]["prompt_tokens"])
        _, large = plan(BOX, "--size", "512x512")
        # The sanitizers' own memory would hide it in the peak.
        decode = [p["stages"][2]["activation_bytes"] for p in (said, large)]
        self.assertGreater(decode[1], 3 * decode[0])

    @unittest.skipIf(SANITIZED, "the sanitizers' own memory changes what fits")
    def test_text(self):
        def text(limit, status):
            result = subprocess.run([PROGRAM, "plan", "-m", BOX, *THREADS, "--max-memory", limit],
                                    capture_output=True, text=True, timeout=60)
            self.assertEqual(result.returncode, status)
            self.assertLess(max(len(line) for line in result.stdout.splitlines()), 100)
            return result.stdout

        said = text("36M", 0)
        for part in ("emoji-256", "256", "text encoder", "transformer stays", "limit: 36.0 MiB",
                     "does not fit", "fits  <- chosen", "in strips of 8 rows", "peak: ",
                     "the VAE in strips of "):
            self.assertIn(part, said)
        self.assertEqual(said.count("chosen"), 2)
        said = text("24M", 1)
        for part in ("limit: 24.0 MiB", "at the least: ", "more would be needed", " would fit"):
            self.assertIn(part, said)
        self.assertNotIn("chosen", said)
        self.assertIn("no smaller size would fit", text("3M", 1))

    @unittest.skipIf(SANITIZED, "the sanitizers' own memory changes what fits")
    def test_refused(self):
        result, said = plan(BOX, "--max-memory", "24M", "-p", PROMPT)
        self.assertEqual(result.returncode, 1)
        self.assertFalse(said["chosen"]["fits"])
        made, _, path = self.generate(BOX, "--max-memory", "24M")
        self.assertEqual(made.returncode, 1)
        self.assertFalse(os.path.exists(path))
        missing = -(-(said["chosen"]["peak_bytes"] - 24 * MIB) // MIB)
        text = made.stderr
        self.assertIn("and the VAE in strips; that is ", text)
        self.assertIn("more than the 24 MiB of the limit", text)
        number = int(text.split(" MiB more than")[0].split()[-1])
        self.assertLessEqual(abs(number - missing), 1, text)
        # The size that it proposes does fit.
        width, height = text.split("choose a smaller size (")[1].split(" fits")[0].split(" x ")
        self.assertEqual(said["smaller_size"], [int(width), int(height)])
        self.kept(BOX, "--max-memory", "24M", "--size", f"{width}x{height}", "--steps", "1")
        # Nothing is small enough for this.
        made, _, _ = self.generate(BOX, "--max-memory", "3M")
        self.assertIn("no smaller size fits", made.stderr)


if __name__ == "__main__":
    unittest.main()
