#!/usr/bin/env python3
"""The command line, as a person and as a program see it.

CALOTYPE names the program, CT_FIXTURES the folder of the fixtures."""

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import unittest
import zlib

PROGRAM = os.environ["CALOTYPE"]
MODEL = os.path.join(os.environ["CT_FIXTURES"], "turbo", "model")
SIZE = ["--size", "32x16", "--steps", "2"]
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def environment(**changes):
    env = {k: v for k, v in os.environ.items()
           if k not in ("CALOTYPE_CPU", "NO_COLOR", "LC_ALL", "LC_CTYPE", "LANG")}
    env["CALOTYPE_CACHE"] = ""
    env.update(changes)
    return env


def run(*args, text_in="", env=None):
    return subprocess.run([PROGRAM, *args], input=text_in, capture_output=True, text=True,
                          encoding="utf-8", env=env or environment(), timeout=300)


def png_chunks(path):
    """Yields (type, data), with every checksum verified."""
    with open(path, "rb") as file:
        data = file.read()
    assert data[:8] == b"\x89PNG\r\n\x1a\n", "no PNG signature"
    at = 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + length]
        crc, = struct.unpack(">I", data[at + 8 + length:at + 12 + length])
        assert crc == zlib.crc32(kind + body), "wrong checksum"
        yield kind, body
        at += 12 + length


def png_size(path):
    for kind, body in png_chunks(path):
        if kind == b"IHDR":
            return struct.unpack(">II", body[:8])
    return None


def png_texts(path):
    """All text chunks as {key: text}."""
    texts = {}
    for kind, body in png_chunks(path):
        if kind == b"tEXt":
            key, text = body.split(b"\0", 1)
            texts[key.decode("latin-1")] = text.decode("latin-1")
        elif kind == b"zTXt":
            key, rest = body.split(b"\0", 1)
            texts[key.decode("latin-1")] = zlib.decompress(rest[1:]).decode("latin-1")
        elif kind == b"iTXt":
            key, rest = body.split(b"\0", 1)
            compressed = rest[0]
            _, _, text = rest[2:].split(b"\0", 2)
            texts[key.decode("latin-1")] = (
                zlib.decompress(text) if compressed else text).decode("utf-8")
    return texts


class Folder(unittest.TestCase):
    """A test in a new folder of its own."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="calotype-cli-")
        self.addCleanup(shutil.rmtree, self.folder, True)

    def path(self, name):
        return os.path.join(self.folder, name)

    def generate(self, *args, prompt="a red fox", out="out.png", **more):
        return run("generate", "-m", MODEL, "-p", prompt, "-o", self.path(out), *SIZE, *args,
                   **more)

    def made(self, *args, **more):
        result = self.generate(*args, **more)
        self.assertEqual(result.returncode, 0, result.stderr + result.stdout)
        return result

    def refused(self, result, status, *parts):
        self.assertEqual(result.returncode, status, result.stderr)
        self.assertEqual(result.stdout, "")
        self.assertTrue(result.stderr.startswith("calotype: error: "), result.stderr)
        for part in parts:
            self.assertIn(part, result.stderr)
        self.assertEqual(os.listdir(self.folder), [])


class Help(unittest.TestCase):
    COMMANDS = ("generate", "edit", "plan", "quantize", "info", "devices", "bench", "cache",
                "completions", "help")

    def test_nothing(self):
        result = run()
        self.assertEqual(result.returncode, 2)
        self.assertEqual(result.stdout, "")
        self.assertIn("Usage", result.stderr)

    def test_version(self):
        for name in ("--version", "-V"):
            result = run(name)
            self.assertEqual(result.returncode, 0)
            self.assertRegex(result.stdout, r"^calotype \d+\.\d+\.\d+\n$")

    def test_overview(self):
        texts = {run(name).stdout for name in ("help", "--help", "-h")}
        self.assertEqual(len(texts), 1)
        text = texts.pop()
        for command in self.COMMANDS:
            self.assertIn(f"\n  {command} ", text)

    def test_commands(self):
        for command in self.COMMANDS:
            first, second = run("help", command), run(command, "--help")
            self.assertEqual(first.returncode, 0)
            self.assertEqual(first.stderr, "")
            self.assertEqual(first.stdout, second.stdout)
            self.assertIn(f"calotype {command}", first.stdout)
            for line in first.stdout.splitlines():
                self.assertLessEqual(len(line), 100)

    def test_relation_of_scales(self):
        text = " ".join(run("help", "generate").stdout.split())
        self.assertIn("S = G + 1", text)
        self.assertIn("neg + S * (pos - neg)", text)

    def test_unknown_command(self):
        result = run("genrate")
        self.assertEqual(result.returncode, 2)
        self.assertIn("did you mean generate?", result.stderr)
        self.assertIn("a command comes first", run("-p", "x").stderr)
        self.assertEqual(run("help", "nothing").returncode, 2)

    def test_full_disk(self):
        if not os.path.exists("/dev/full"):
            self.skipTest("no /dev/full")
        with open("/dev/full", "w") as full:
            result = subprocess.run([PROGRAM, "help"], stdout=full, stderr=subprocess.PIPE)
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"standard output", result.stderr)


class Mistakes(Folder):
    def test_options(self):
        for args, part in (
                (["--stpes", "3"], "did you mean --steps?"),
                (["--steps", "0"], "1 to 1000"),
                (["--steps", "many"], '"many" is not a whole number'),
                (["--guidance", "1", "--cfg-scale", "2"], "cannot be given together"),
                (["--cfg-scale", "0.5"], "out of range"),
                (["--precision", "fp61"], "auto fp32 bf16"),
                (["--steps"], "needs a value"),
                (["--trace-modules"], "needs --trace"),
                (["-b", "2", "--trace", "x"], "--trace records one picture"),
                (["-b", "2", "--noise", "x"], "would be the same"),
                (["fox"], "unexpected argument")):
            with self.subTest(args=args):
                self.refused(self.generate(*args), 2, part, 'see "calotype generate --help"')

    def test_required(self):
        self.refused(run("generate", "-p", "x"), 2, "--model", "--output")

    def test_sizes_of_the_model(self):
        self.refused(self.generate("--size", "33x16"), 2, "33")

    def test_model(self):
        result = run("generate", "-m", self.path("none"), "-p", "x", "-o", self.path("o.png"))
        self.refused(result, 1, self.path("none"))

    def test_output_is_checked_first(self):
        missing = os.path.join("missing", "out.png")
        for out, status in ((missing, 1), (".", 1), ("out.jpg", 2), ("out.WEBP", 2)):
            result = run("generate", "-m", "/no/such/model", "-p", "x", "-o", self.path(out))
            self.refused(result, status, out)
        self.refused(run("generate", "-m", MODEL, "-p", "x", "-o", "-"), 2, "--output")

    def test_each_output_of_a_batch_is_checked_first(self):
        os.mkdir(self.path("out_2.png"))
        result = self.generate("-b", "2")
        self.assertEqual(result.returncode, 1)
        self.assertIn("out_2.png", result.stderr)
        self.assertEqual(os.listdir(self.folder), ["out_2.png"])

    def test_kernels(self):
        self.assertNotEqual(self.generate("--cpu", "abacus").returncode, 0)
        env = environment(CALOTYPE_CPU="abacus")
        self.refused(self.generate(env=env), 2, "abacus")

    def test_json(self):
        for args in (["--json", "--steps", "x"], ["--steps", "x", "--json"]):
            result = self.generate(*args)
            self.assertEqual(result.returncode, 2)
            self.assertEqual(result.stderr, "")
            event = json.loads(result.stdout)
            self.assertEqual(event["event"], "error")
            self.assertEqual((event["code"], event["name"]), (-1, "invalid argument"))


class Generate(Folder):
    def test_plan_and_result(self):
        result = self.made("-s", "42")
        self.assertEqual(result.stdout, f"{self.path('out.png')} seed 42\n")
        for part in ("a red fox", "32x16", "2, shift", "42", "evaluations", "thread", "kernels",
                     "encode", "denoise", "decode", "in all"):
            self.assertIn(part, result.stderr)
        self.assertNotIn("\r", result.stderr)
        self.assertNotIn("\x1b", result.stderr)
        self.assertEqual(png_size(self.path("out.png")), (32, 16))
        self.assertEqual(os.listdir(self.folder), ["out.png"])

    def test_recipe_is_in_the_picture(self):
        self.made("-s", "42", prompt="ein Fuchs, größer als 🦊")
        texts = png_texts(self.path("out.png"))
        recipe = json.loads(texts["calotype"])
        self.assertIn("ein Fuchs, größer als 🦊", json.dumps(recipe, ensure_ascii=False))
        self.assertIn("42", json.dumps(recipe))
        self.assertIn("ein Fuchs, größer als 🦊", texts["parameters"])
        self.assertIn("Seed: 42", texts["parameters"])
        self.assertNotIn(self.folder, json.dumps(texts))

    def test_seed_decides(self):
        def pixels(*args):
            self.made("-q", *args)
            return [body for kind, body in png_chunks(self.path("out.png")) if kind == b"IDAT"]
        self.assertEqual(pixels("-s", "1"), pixels("-s", "1", "-t", "1"))
        self.assertNotEqual(pixels("-s", "1"), pixels("-s", "2"))

    def test_random_seed_is_told(self):
        seeds = set()
        for args in ([], ["-s", "-1"], ["--seed=-1"]):
            result = self.made("-q", *args)
            seeds.add(re.fullmatch(r".*out\.png seed (\d+)\n", result.stdout).group(1))
        self.assertEqual(len(seeds), 3)

    def test_quiet(self):
        result = self.made("-q", "-s", "18446744073709551615")
        self.assertEqual(result.stderr, "")
        self.assertEqual(result.stdout, f"{self.path('out.png')} seed 18446744073709551615\n")

    def test_batch(self):
        result = self.made("-q", "-b", "3", "-s", "7")
        names = ["out.png", "out_2.png", "out_3.png"]
        self.assertEqual(sorted(os.listdir(self.folder)), names)
        self.assertEqual(result.stdout, "".join(f"{self.path(name)} seed {7 + i}\n"
                                                for i, name in enumerate(names)))
        self.made("-q", "-s", "9", out="single.png")
        self.assertEqual(list(png_chunks(self.path("single.png"))),
                         list(png_chunks(self.path("out_3.png"))))

    def test_batch_names(self):
        self.made("-q", "-b", "2", out="a.b.png")
        self.made("-q", "-b", "2", out="plain")
        self.assertEqual(sorted(os.listdir(self.folder)),
                         ["a.b.png", "a.b_2.png", "plain", "plain_2"])

    def test_prompt_from_standard_input(self):
        self.made("-q", prompt="-", text_in="a fox\nin snow\n")
        self.assertIn("a fox\\nin snow", png_texts(self.path("out.png"))["calotype"])
        self.assertNotIn("snow\\n", png_texts(self.path("out.png"))["calotype"])
        self.made("-q", prompt="-", text_in="")
        self.assertEqual(self.generate(prompt="-", text_in="a\0b").returncode, 2)

    def test_long_prompt_warns(self):
        result = self.made("--json", prompt="fox " * 600)
        events = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertTrue(events[0]["prompt_truncated"])
        self.assertIn("warning", [event["event"] for event in events])

    def test_verbose(self):
        quiet, verbose = self.made("-s", "1"), self.made("-s", "1", "-vv")
        self.assertGreaterEqual(len(verbose.stderr.splitlines()), len(quiet.stderr.splitlines()))

    def test_odd_names(self):
        name = "a b\tc'\"é.png"
        self.made("-q", out=name)
        self.assertEqual(os.listdir(self.folder), [name])


class Edit(Folder):
    """References, on FLUX.2-klein."""

    MODEL = os.path.join(os.environ["CT_FIXTURES"], "klein", "model")
    PICTURES = os.path.join(os.environ["CT_FIXTURES"], "pictures")
    REFERENCES = [os.path.join(os.environ["CT_FIXTURES"], "klein", f"three_references.{i}.png")
                  for i in range(3)]

    def edit(self, *references, args=(), model=None, command="edit"):
        given = [word for path in references for word in ("-r", path)]
        return run(command, "-m", model or self.MODEL, "-p", "A red fox.", "-o",
                   self.path("out.png"), "--steps", "1", "-s", "1", *given, *args)

    def test_size_of_the_first(self):
        for command in ("edit", "generate"):
            result = self.edit(*self.REFERENCES[1:], command=command)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual(png_size(self.path("out.png")), (64, 80))
        recipe = json.loads(png_texts(self.path("out.png"))["calotype"])
        self.assertEqual([r["name"] for r in recipe["references"]],
                         ["three_references.1.png", "three_references.2.png"])
        for reference in recipe["references"]:
            self.assertRegex(reference["hash"], "^[0-9a-f]{32}$")
        hashes = [r["hash"][:10] for r in recipe["references"]]
        self.assertIn(f'References: "three_references.1.png: {hashes[0]}, three_references.2.png: '
                      f'{hashes[1]}"', png_texts(self.path("out.png"))["parameters"])

    def test_keep_size(self):
        result = self.edit(self.REFERENCES[1], args=["--keep-size"])
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(png_size(self.path("out.png")), (71, 90))

    def test_size_given(self):
        result = self.edit(self.REFERENCES[0], args=["--size", "32x48"])
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(png_size(self.path("out.png")), (32, 48))

    def test_plan(self):
        result = run("plan", "-m", self.MODEL, "-r", self.REFERENCES[0], "--json")
        self.assertEqual(result.returncode, 0, result.stderr)

    def refuse(self, status, *parts, references, **more):
        self.refused(self.edit(*references, **more), status, *parts)

    def test_bad_references(self):
        for name, part in (("animated.webp", "animated"), ("animated.png", "animated"),
                           ("other.gif", "GIF")):
            self.refuse(1, part, references=[os.path.join(self.PICTURES, name)])
        self.refuse(2, "37 x 23", references=[os.path.join(self.PICTURES, "plain.jpg")])
        self.refuse(1, "no picture", references=[os.path.join(self.MODEL, "model_index.json")])
        self.refuse(1, "none.png", references=["/no/none.png"])

    def test_damaged_models(self):
        for file, before, after, part in (
                ("transformer/config.json", '"joint_attention_dim": 48', '"joint_attention_dim": 60',
                 "context_embedder"),
                ("transformer/config.json", '"guidance_embeds": false', '"guidance_embeds": true',
                 "FLUX.2-dev"),
                ("transformer/config.json", '"patch_size": 1', '"patch_size": 2', "patch_size"),
                ("transformer/config.json", "    2,\n", "    3,\n", "axes_dims_rope"),
                ("transformer/config.json", '"num_layers": 2', '"num_layers": 3', "is missing"),
                ("text_encoder/config.json", '"num_hidden_layers": 28', '"num_hidden_layers": 27',
                 "layer 27"),
                ("text_encoder/config.json", '"max_position_embeddings": 40960',
                 '"max_position_embeddings": 500', "512"),
                ("vae/config.json", "AutoencoderKLFlux2", "AutoencoderKL", "in_channels"),
                ("vae/config.json", '"batch_norm_eps": 0.0001', '"batch_norm_eps": -1',
                 "batch_norm_eps"),
                ("tokenizer/tokenizer.json", '"<think>"', '"<thunk>"', "<think>"),
                ("model_index.json", "Flux2KleinPipeline", "Flux2Pipeline", "not supported yet"),
                ("model_index.json", '"is_distilled": true', '"is_distilled": 7', "is_distilled")):
            model = self.path("model")
            shutil.copytree(self.MODEL, model)
            with open(os.path.join(model, file), encoding="utf-8") as old:
                text = old.read()
            self.assertIn(before, text, file)
            with open(os.path.join(model, file), "w", encoding="utf-8") as new:
                new.write(text.replace(before, after))
            result = self.edit(self.REFERENCES[0], model=model)
            shutil.rmtree(model)
            self.refused(result, 1, part)

    def test_mistakes(self):
        self.refuse(2, "--reference", references=[])
        self.refuse(2, "at most 10", references=self.REFERENCES[:1] * 11)
        self.refuse(2, "--keep-size", references=self.REFERENCES,
                    args=["--keep-size", "--width", "64"])
        self.refuse(2, "--keep-size", references=[], args=["--keep-size"], command="generate")
        self.refuse(1, "text alone", references=self.REFERENCES, model=MODEL)


class Events(Folder):
    def events(self, *args, **more):
        result = self.made("--json", *args, **more)
        self.assertEqual(result.stderr, "")
        return [json.loads(line) for line in result.stdout.splitlines()]

    def test_order_and_members(self):
        events = self.events("-s", "5", "-n", "ugly", "-W", "48")
        kinds = [event["event"] for event in events]
        self.assertEqual((kinds[0], kinds[-2], kinds[-1]), ("start", "image", "done"))
        start, image = events[0], events[-2]
        self.assertEqual((start["width"], start["height"], start["steps"]), (48, 16, 2))
        self.assertEqual((start["seed"], start["seed_random"]), (5, False))
        self.assertEqual((start["prompt"], start["negative_prompt"]), ("a red fox", "ugly"))
        self.assertEqual(start["paths"], [self.path("out.png")])
        self.assertRegex(start["model"]["hash"], "^[0-9a-f]{32}$")
        self.assertEqual((image["path"], image["seed"]), (self.path("out.png"), 5))
        self.assertEqual((image["width"], image["height"]), (48, 16))
        self.assertEqual(set(image["seconds"]), {"encode", "denoise", "decode", "total"})
        self.assertEqual(image["recipe"], json.loads(png_texts(self.path("out.png"))["calotype"]))
        self.assertEqual(events[-1]["images"], 1)

    def test_progress(self):
        progress = [e for e in self.events() if e["event"] == "progress"]
        self.assertEqual(list(dict.fromkeys(e["stage"] for e in progress)),
                         ["encode", "denoise", "decode"])
        for stage in ("encode", "denoise", "decode"):
            steps = [e["step"] for e in progress if e["stage"] == stage]
            self.assertEqual(steps, sorted(steps))
            last = [e for e in progress if e["stage"] == stage][-1]
            self.assertEqual(last["step"], last["steps"])
        denoise = [e for e in progress if e["stage"] == "denoise"]
        self.assertEqual(denoise[-1]["steps"], 2)
        seconds = [e["seconds"] for e in progress]
        self.assertEqual(seconds, sorted(seconds))

    def test_quiet_leaves_progress_out(self):
        self.assertEqual([e["event"] for e in self.events("-q")], ["start", "image", "done"])

    def test_batch(self):
        images = [e for e in self.events("-b", "2", "-s", "18446744073709551615")
                  if e["event"] == "image"]
        self.assertEqual([e["seed"] for e in images], [str(2 ** 64 - 1), 0])
        self.assertEqual([e["image"] for e in images], [1, 2])

    def test_scales(self):
        off = self.events("-q")[0]
        self.assertEqual((off["guidance"], off["cfg_scale"]), (0.0, 1.0))
        on = self.events("-q", "--cfg-scale", "4.1")[0]
        self.assertEqual((on["guidance"], on["cfg_scale"]), (3.1, 4.1))
        same = self.events("-q", "--guidance", "3.1")[0]
        self.assertEqual((same["guidance"], same["cfg_scale"]), (3.1, 4.1))
        self.assertEqual(on["evaluations"], 2 * off["evaluations"])
        self.assertEqual(self.events("-q", "--cfg-scale", "1")[0]["guidance"], 0.0)

    def test_guidance(self):
        both = self.events("-q", "--cfg-scale", "4", "--cfg-batch", "on", "--steps", "2")
        each = self.events("-q", "--cfg-scale", "4", "--cfg-batch", "off", "--steps", "2")
        self.assertEqual([(e[0]["cfg_batch"], e[0]["guided_steps"]) for e in (both, each)],
                         [(True, 2), (False, 2)])
        self.assertEqual(both[0]["guidance_interval"], [0.0, 1.0])
        half = self.events("-q", "--cfg-scale", "4", "--guidance-interval", "0:0.5", "--steps", "2")
        self.assertEqual((half[0]["evaluations"], half[0]["guided_steps"]), (3, 1))
        self.assertEqual(half[1]["recipe"]["guidance_interval"], [0.0, 0.5])
        self.assertNotIn("guidance_interval", both[1]["recipe"])

    def test_settings(self):
        start = self.events("-q", "--precision", "bf16", "-t", "3", "--shift", "1.5", "--cpu",
                            "baseline", "--cfg-normalization", "--rng", "torch")[0]
        self.assertEqual((start["precision"], start["threads"], start["shift"], start["cpu"]),
                         ("bf16", 3, 1.5, "baseline"))
        self.assertTrue(start["cfg_normalization"])
        env = environment(CALOTYPE_CPU="baseline")
        self.assertEqual(self.events("-q", env=env)[0]["cpu"], "baseline")
        env = environment(CALOTYPE_CPU="abacus")
        self.assertEqual(self.events("-q", "--cpu", "baseline", env=env)[0]["cpu"], "baseline")

    def test_failure(self):
        result = run("generate", "--json", "-m", self.path("none"), "-p", "x", "-o",
                     self.path("out.png"))
        self.assertEqual((result.returncode, result.stderr), (1, ""))
        event = json.loads(result.stdout)
        self.assertEqual(event["event"], "error")
        self.assertLess(event["code"], 0)


class Devices(unittest.TestCase):
    """With the driver of tests/gpu/fake_driver.c, so that every machine says the same."""

    def devices(self, *args, **changes):
        return run("devices", *args,
                   env=environment(LD_LIBRARY_PATH=os.environ["FAKE_CUDA"], **changes))

    def listed(self, **changes):
        result = self.devices("--json", **changes)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertEqual(result.stdout.count("\n"), 1)
        return json.loads(result.stdout)["devices"]

    def test_json(self):
        devices = self.listed(FAKE_CUDA_GPUS="2")
        self.assertEqual([d["id"] for d in devices], ["cpu", "cuda:0", "cuda:1"])
        self.assertEqual(devices[2]["name"], "Fake GPU 1")
        self.assertEqual(devices[2]["memory_bytes"], 141 << 30)
        self.assertIn("9.0", devices[2]["summary"])
        self.assertTrue(devices[0]["usable"])
        self.assertIsNone(devices[0]["problem"])
        self.assertIn("baseline", self.listed(CALOTYPE_CPU="baseline")[0]["summary"])

    def test_problem(self):
        device = self.listed(FAKE_CUDA_INIT="100")[1]
        self.assertEqual((device["id"], device["usable"], device["memory_bytes"]),
                         ("cuda", False, None))
        self.assertIn("finds no GPU", device["problem"])
        device = self.listed(FAKE_CUDA_ARCH="52")[1]
        self.assertEqual((device["id"], device["usable"]), ("cuda:0", False))
        self.assertIn("5.2", device["problem"])

    def test_human(self):
        result = self.devices(FAKE_CUDA_ARCH="52")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        for part in ("cpu ", "thread", "cuda:0 ", "Fake GPU 0", "141 GiB",
                     "cannot be used: its compute capability"):
            self.assertIn(part, result.stdout)
        self.assertEqual(run("devices").returncode, 0)

    def test_mistakes(self):
        for args in (["more"], ["--steps", "3"], ["--cpu", "abacus"]):
            result = self.devices(*args)
            self.assertEqual(result.returncode, 2, args)
            self.assertEqual(result.stdout, "")


class Cache(Folder):
    def setUp(self):
        super().setUp()
        self.cache = self.path("cache")

    def picture(self, *args, **more):
        """What -v says of the cache, and the picture."""
        result = self.generate("--seed", "7", "-v", *args, **more)
        self.assertEqual(result.returncode, 0, result.stderr)
        with open(self.path("out.png"), "rb") as file:
            return re.findall("cache: .*", result.stderr), file.read()

    def kinds(self, *args):
        result = run("cache", *args, "--cache", self.cache, "--json")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        said = json.loads(result.stdout)
        self.assertEqual(said["folder"], self.cache)
        return {k["kind"]: k["files"] for k in said["kinds"] if k["files"]}

    def test_second_run(self):
        self.assertEqual(self.kinds(), {})
        said, first = self.picture("--cache", self.cache)
        self.assertEqual(said, [])
        self.assertEqual(self.kinds(), {"prompt": 1, "schedule": 1})
        said, second = self.picture(env=environment(CALOTYPE_CACHE=self.cache))
        self.assertEqual(len(said), 2)
        self.assertIn("the text encoder does not run", said[0])
        self.assertIn(self.cache, said[1])
        self.assertEqual(first, second)
        # Without it nothing is read or written, also for two pictures of one job.
        for kept in ("another fox", "a red fox"):
            said, third = self.picture("--cache", self.cache, "--no-cache", "-b", "2", prompt=kept)
            self.assertEqual(said, [])
        self.assertEqual(first, third)
        self.assertEqual(self.kinds(), {"prompt": 1, "schedule": 1})

    def test_one_process(self):
        said, _ = self.picture("-b", "2")
        self.assertEqual(len(said), 2)
        self.assertIn("modulation of the schedule is in memory", said[0])
        self.assertIn("angles of the prompt are in memory", said[1])

    def test_limit(self):
        self.refused(self.generate("--cache-limit", "1M", "--no-cache"), 2, "--no-cache")
        self.refused(self.generate("--cache-limit", "none"), 2, "--cache-limit")
        self.picture("--cache", self.cache, "--cache-limit", "1M")
        self.assertEqual(self.kinds(), {"prompt": 1, "schedule": 1})

    def test_clear(self):
        self.picture("--cache", self.cache)
        with open(os.path.join(self.cache, "notes.txt"), "w", encoding="utf-8") as file:
            file.write("not ours")
        human = run("cache", "--cache", self.cache)
        self.assertIn("in 2 files", human.stdout)
        self.assertIn("features of prompts", human.stdout)
        self.assertEqual(self.kinds("clear"), {"prompt": 1, "schedule": 1})
        self.assertEqual(self.kinds(), {})
        self.assertEqual(os.listdir(self.cache), ["notes.txt"])

    def test_mistakes(self):
        self.refused(run("cache", "clean", "--cache", self.cache), 2, '"clear"')
        self.refused(run("cache"), 2, "CALOTYPE_CACHE")
        self.refused(run("cache", "clear", "--cache", PROGRAM), 1, PROGRAM)

    def test_no_folder(self):
        with open(self.cache, "w", encoding="utf-8") as file:
            file.write("a file")
        result = self.generate("--seed", "7", "--cache", self.cache)
        self.assertEqual(result.returncode, 0)
        self.assertEqual(result.stderr.count("nothing is kept on disk"), 1)


class Info(Folder):
    def test_model(self):
        result = run("info", MODEL)
        self.assertEqual(result.returncode, 0, result.stderr)
        for part in ("Z-Image Turbo", "ZImagePipeline", "text_encoder", "transformer", "vae",
                     "model.safetensors", "hash", "defaults"):
            self.assertIn(part, result.stdout)

    def test_model_json(self):
        result = run("info", "--json", MODEL)
        self.assertEqual(result.stdout.count("\n"), 1)
        info = json.loads(result.stdout)
        self.assertEqual((info["kind"], info["family"], info["variant"]),
                         ("model", "Z-Image", "Turbo"))
        self.assertEqual(info["parameters"], sum(c["parameters"] for c in info["components"]))
        for component in info["components"]:
            for file in component["files"]:
                self.assertEqual(file["bytes"], os.path.getsize(file["path"]))
        self.assertEqual(set(info["defaults"]), {"width", "height", "steps", "guidance", "shift"})

    def test_picture(self):
        self.made("-q", "-s", "42")
        result = run("info", self.path("out.png"))
        self.assertEqual(result.returncode, 0, result.stderr)
        for part in ("out.png", "32x16", "a red fox", "42"):
            self.assertIn(part, result.stdout)
        info = json.loads(run("info", "--json", self.path("out.png")).stdout)
        self.assertEqual((info["kind"], info["width"], info["height"]), ("picture", 32, 16))
        self.assertEqual(info["recipe"], json.loads(png_texts(self.path("out.png"))["calotype"]))

    def write_png(self, name, texts=()):
        """A picture of one pixel."""
        def chunk(kind, body):
            return (struct.pack(">I", len(body)) + kind + body
                    + struct.pack(">I", zlib.crc32(kind + body)))
        with open(self.path(name), "wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n"
                       + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)))
            for key, text in texts:
                file.write(chunk(b"tEXt", key + b"\0" + text))
            file.write(chunk(b"IDAT", zlib.compress(b"\0abc")) + chunk(b"IEND", b""))

    def test_foreign_picture(self):
        self.write_png("plain.png")
        self.assertIn("no recipe", run("info", self.path("plain.png")).stdout)
        self.assertIsNone(json.loads(run("info", "--json", self.path("plain.png")).stdout)["recipe"])
        self.write_png("webui.png", [(b"parameters", b"a fox\nSteps: 20, Seed: 1")])
        self.assertIn("Steps: 20", run("info", self.path("webui.png")).stdout)

    def test_hostile_picture(self):
        self.write_png("bad.png", [(b"calotype", b'{"a":1}\n{"event":"done"}'),
                                   (b"parameters", b"x\x1b[2Jy")])
        self.assertNotIn("\x1b", run("info", self.path("bad.png")).stdout)
        result = run("info", "--json", self.path("bad.png"))
        if result.returncode == 0:
            self.assertEqual(result.stdout.count("\n"), 1)
            json.loads(result.stdout)

    def test_mistakes(self):
        for args, status in (([self.path("none")], 1), ([], 2), ([MODEL, MODEL], 2),
                             ([self.folder], 1), ([__file__], 1), ([MODEL, "--steps", "3"], 2)):
            result = run("info", *args)
            self.assertEqual(result.returncode, status, args)
            self.assertEqual(result.stdout, "")
            self.assertIn("calotype: error: ", result.stderr)


class Lora(Folder):
    FILE = os.path.join(os.environ["CT_FIXTURES"], "lora", "turbo_lora.safetensors")
    OTHER = os.path.join(os.environ["CT_FIXTURES"], "lora", "klein_lora.safetensors")

    def pixels(self, *args):
        self.made("-q", "-s", "1", *args)
        return b"".join(body for kind, body in png_chunks(self.path("out.png")) if kind == b"IDAT")

    def test_generate(self):
        plain, one = self.pixels(), self.pixels("--lora", self.FILE)
        recipe = json.loads(png_texts(self.path("out.png"))["calotype"])
        self.assertEqual([(l["name"], l["scale"]) for l in recipe["loras"]],
                         [("turbo_lora.safetensors", 1)])
        self.assertNotEqual(plain, one)
        self.assertEqual(one, self.pixels("--lora=" + self.FILE + ":1.0"))
        self.assertEqual(plain, self.pixels("--lora", self.FILE + ":0"))
        self.assertNotIn("loras", json.loads(png_texts(self.path("out.png"))["calotype"]))
        twice = self.pixels("--lora", self.FILE + ":0.5", "--lora", self.FILE + ":-.25")
        text = png_texts(self.path("out.png"))["parameters"]
        self.assertRegex(text, r'Lora hashes: "turbo_lora: (\w{10}), turbo_lora: \1", '
                               r'Lora scales: "turbo_lora: 0.5, turbo_lora: -0.25"')
        self.assertEqual(len({plain, one, twice}), 3)
        info = run("info", self.path("out.png"))
        self.assertIn("Lora hashes", info.stdout)

    def test_unmatched(self):
        """A module that the model does not have is told of without being asked for."""
        with open(self.FILE, "rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            header, data = json.loads(file.read(size)), file.read()
        name = next(key for key in header if key.endswith("layers.0.attention.to_k.lora_A.weight"))
        for end in ("lora_A.weight", "lora_B.weight"):
            name = name[:-len("lora_A.weight")] + end
            header[name.replace("to_k", "to_x")] = header.pop(name)
        text, path = json.dumps(header).encode(), self.path("other.safetensors")
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text + data)
        result = self.made("--lora", path)
        self.assertRegex(result.stderr, r"lora +other\.safetensors, scale 1, 46 of 47 modules match")
        self.assertRegex(result.stderr, "warning: .*other.safetensors: 1 of its keys match nothing.*"
                                        "to_x")
        self.assertNotIn("warning", self.made("--lora", self.FILE).stderr)
        start = json.loads(self.made("--lora", path, "--json").stdout.splitlines()[0])
        self.assertEqual((start["loras"][0]["matched"], len(start["loras"][0]["unmatched"])), (46, 1))
        self.assertIn("warning", run("plan", "-m", MODEL, "--lora", path).stderr)
        self.assertIn("warning", run("quantize", "-m", MODEL, "--bits", "8", "-g", "32", "-o",
                                     self.path("model"), "--lora", path).stderr)
        info = run("info", MODEL, "--lora", path)
        self.assertEqual((info.stderr, "to_x" in info.stdout), ("", True))

    def test_refused_before_merging(self):
        """Merging takes minutes with a large model: what a job is refused for comes before."""
        for args, part in ((["--size", "100x100"], "multiple of"),
                           (["--max-memory", "1M"], "more than the 1 MiB of the limit"),
                           (["--noise", self.FILE], "no tensor named")):
            result = self.generate("--lora", self.FILE, "-v", *args)
            self.assertIn(part, result.stderr)
            self.assertNotIn("modules match", result.stderr)
            self.assertGreater(result.returncode, 0)
        self.assertEqual(self.made("--lora", self.FILE, "-v").stderr.count("modules match, scale"), 1)

    def test_name_with_colon(self):
        path = self.path("a:2")
        shutil.copy(self.FILE, path)
        self.made("-q", "--lora", path)
        name = json.loads(png_texts(self.path("out.png"))["calotype"])["loras"][0]
        self.assertEqual((name["name"], name["scale"]), ("a:2", 1))
        self.made("-q", "--lora", path + ":0.5")

    def test_info(self):
        info = json.loads(run("info", "--json", MODEL, "--lora", self.FILE + ":0.5").stdout)
        lora, = info["loras"]
        self.assertEqual((lora["scale"], lora["ranks"], lora["modules"], lora["matched"],
                          lora["ignored"], lora["unmatched"]), (0.5, [3, 3], 47, 47, 0, []))
        self.assertNotEqual(info["hash"], json.loads(run("info", "--json", MODEL).stdout)["hash"])
        text = run("info", MODEL, "--lora", self.FILE).stdout
        self.assertIn("47 of 47 modules", text)

    def test_plan(self):
        plan = json.loads(run("plan", "-m", MODEL, "--json", "--lora", self.FILE).stdout)
        self.assertGreater(plan["merged_bytes"], 100000)
        self.assertIn("weights with LoRAs", run("plan", "-m", MODEL, "--lora", self.FILE).stdout)
        self.assertEqual(json.loads(run("plan", "-m", MODEL, "--json").stdout)["merged_bytes"], 0)

    def test_bench(self):
        result = run("bench", "-m", MODEL, "-W", "32", "-H", "16", "--lora", self.FILE, "--json")
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_quantize(self):
        result = run("quantize", "-m", MODEL, "--bits", "8", "-g", "32", "-o", self.path("model"),
                     "--lora", self.FILE, "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        done = json.loads(result.stdout.splitlines()[-1])
        self.assertEqual(done["merged"], 47)
        plain = self.pixels()
        self.assertEqual(run("generate", "-m", self.path("model"), "-p", "a red fox", "-o",
                             self.path("out.png"), *SIZE, "-q", "-s", "1").returncode, 0)
        made = b"".join(body for kind, body in png_chunks(self.path("out.png")) if kind == b"IDAT")
        self.assertNotEqual(plain, made)

    def test_mistakes(self):
        self.refused(self.generate("--lora", self.OTHER), 1, "LoRA of another model", "and 19 more")
        self.refused(self.generate("--lora", self.path("none")), 1, "none")
        self.refused(self.generate("--lora", self.FILE + ":much"), 2, "is not a scale")
        self.refused(self.generate("--lora", self.FILE + ":1000"), 2, "scale is 1000")
        self.refused(self.generate("--lora", ""), 2, "--lora")
        self.refused(self.generate("--lora"), 2, "needs a value")
        self.refused(run("bench", "--lora", self.FILE), 2, "bench model")
        self.refused(run("info", self.FILE, "--lora", self.FILE), 2, "needs a model")
        many = [x for _ in range(33) for x in ("--lora", self.FILE)]
        self.refused(self.generate(*many), 2, "at most 32")
        self.refused(run("quantize", "-m", MODEL, "--bits", "8", "-o", self.path("x"), "--lora",
                         self.OTHER), 1, "LoRA of another model")


class Quantize(Folder):
    EMOJI = os.path.join(os.environ["CT_FIXTURES"], "..", "..", "models", "emoji-256")

    def quantize(self, *args, model=MODEL, **more):
        return run("quantize", "-m", model, "-o", self.path("out"), *args, **more)

    def test_human(self):
        result = run("quantize", MODEL, "--bits", "4", "--group-size", "32", "-o", self.path("out"))
        self.assertEqual(result.returncode, 0, result.stderr)
        lines = result.stdout.splitlines()
        matrices = [line for line in lines if re.fullmatch(
            r"0\.\d{6}  transformer \S+  \d+ x \d+", line)]
        self.assertEqual(len(matrices), 9)
        self.assertIn("t_embedder.linear1  1024 x 256", "\n".join(matrices))
        worst = lines[lines.index("worst") + 1:][:5]
        self.assertEqual(worst, sorted(worst, reverse=True))
        self.assertEqual(worst[0].split()[0], max(line.split()[0] for line in matrices))
        self.assertRegex(lines[-1], r"out  4-bit, groups of 32: 9 of \d+ tensors, .* to .*, "
                                    r"relative L2 error 0\.\d{6}, ")
        self.assertEqual(os.listdir(self.folder), ["out"])
        self.assertIn("quantized   4-bit, groups of 32", run("info", self.path("out")).stdout)
        made = run("generate", "-m", self.path("out"), "-p", "x", "-o", self.path("out.png"),
                   "--dequantize", *SIZE)
        self.assertEqual(made.returncode, 0, made.stderr)
        self.assertEqual(png_size(self.path("out.png")), (32, 16))

    def test_processor(self):
        """How large pictures are shown to the text encoder is part of a model that edits."""
        model, out = self.path("model"), self.path("quantized")
        shutil.copytree(os.path.join(os.environ["CT_FIXTURES"], "qwen_plus", "model"), model)
        hashes = [json.loads(run("info", "--json", model).stdout)["hash"]]
        name = os.path.join("processor", "preprocessor_config.json")
        with open(os.path.join(model, name), "w", encoding="utf-8") as file:
            json.dump({"min_pixels": 3136, "max_pixels": 50000}, file)
        hashes.append(json.loads(run("info", "--json", model).stdout)["hash"])
        self.assertNotEqual(*hashes)
        self.assertEqual(run("quantize", "-m", model, "--bits", "8", "-g", "32", "-o", out, "-q")
                         .returncode, 0)
        with open(os.path.join(out, name), encoding="utf-8") as file:
            self.assertEqual(json.load(file)["max_pixels"], 50000)

    def test_quiet(self):
        result = self.quantize("-q", "--bits", "8")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertRegex(result.stdout, r"\A[^\n]*out  8-bit, groups of 64: [^\n]*\n\Z")

    def test_json(self):
        result = self.quantize("--json", "-b", "6", "-g", "32")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        events = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual({e["event"] for e in events[:-1]}, {"tensor"})
        done = events[-1]
        self.assertEqual((done["event"], done["bits"], done["group_size"]), ("done", 6, 32))
        self.assertEqual(done["tensors"], len(events) - 1)
        matrices = [e for e in events[:-1] if e["quantized"]]
        self.assertEqual(done["quantized"], len(matrices))
        for part in ("before", "after"):
            self.assertEqual(done["bytes_" + part], sum(e["bytes_" + part] for e in events[:-1]))
        self.assertEqual(done["worst"][0]["relative_l2"],
                         max(e["relative_l2"] for e in matrices))
        info = json.loads(run("info", "--json", self.path("out")).stdout)
        self.assertEqual([c["quantization"] for c in info["components"]],
                         [None, "6-bit, groups of 32", None])
        self.assertEqual(info["bytes"], done["bytes_after"])

    def test_mistakes(self):
        self.refused(self.quantize(), 2, "--bits")
        self.refused(self.quantize("--bits", "7"), 2, "--bits", "8 6 5 4 3 2")
        self.refused(self.quantize("--bits", "4", "-g", "48"), 2, "32 64 128")
        self.refused(self.quantize("--bits", "4", model=self.path("none")), 1, "none")
        self.refused(run("quantize", "-m", MODEL, "--bits", "4"), 2, "--output")
        self.refused(run("quantize", "--bits", "4", "-o", self.path("x")), 2, "needs a model")
        self.refused(self.quantize(MODEL, "--bits", "4"), 2, "one model at a time")
        result = run("quantize", "-m", MODEL, "--bits", "4", "-o", self.folder)
        self.refused(result, 1, "exists already")

    def begin(self):
        """A run that has begun and cannot end before its events are read: the pipe is short."""
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        process = subprocess.Popen(
            [PROGRAM, "quantize", "-m", self.EMOJI, "-o", self.path("out"), "-b", "4", "--json"],
            stdout=writing, env=environment(),
            # What is ignored stays so in a program that is started: by nohup, for one.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
        os.close(writing)
        events = open(reading, encoding="utf-8")
        self.addCleanup(events.close)
        events.readline()
        return process, events

    def test_killed(self):
        """Nothing stands under the name of the output; what is left is told to the next run."""
        process, _ = self.begin()
        process.kill()
        process.wait()
        left = f"out.{process.pid}.part"
        self.assertEqual(os.listdir(self.folder), [left])
        result = self.quantize("-b", "4")
        self.assertEqual(result.returncode, 0)
        self.assertIn(left + " was left by a run that was killed", result.stderr)
        self.assertEqual(sorted(os.listdir(self.folder)), ["out", left])

    def test_interrupt(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process, events = self.begin()
            process.send_signal(number)
            last = [json.loads(line) for line in events][-1]
            self.assertEqual(process.wait(), 128 + number)
            self.assertEqual((last["event"], last["code"]), ("error", -7))
            self.assertEqual(os.listdir(self.folder), [])


class Completions(Folder):
    def complete(self, *words):
        """What bash proposes for the last word; words are those that bash makes of the line."""
        script = self.path("completion.bash")
        with open(script, "w") as file:
            file.write(run("completions", "bash").stdout)
        program = ('source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
                   '_calotype; printf "%s\\n" "${COMPREPLY[@]}"')
        result = subprocess.run(["bash", "--norc", "-c", program, "bash", script, "calotype",
                                 *words], capture_output=True, text=True, cwd=self.folder)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout.split("\n")[:-1]

    def test_bash(self):
        if not shutil.which("bash"):
            self.skipTest("no bash")
        self.assertEqual(self.complete("gen"), ["generate"])
        self.assertEqual(self.complete("generate", "--cfg"), ["--cfg-scale", "--cfg-normalization", "--cfg-truncation", "--cfg-batch"])
        self.assertEqual(self.complete("generate", "--precision", "b"), ["bf16"])
        self.assertEqual(self.complete("generate", "--precision", "=", "fp"), ["fp32", "fp8", "fp16"])
        self.assertEqual(self.complete("generate", "--precision", "="), ["auto", "fp32", "bf16", "int8", "fp8", "fp16"])
        self.assertEqual(self.complete("generate", "--prompt", "-"), [""])
        self.assertEqual(self.complete("completions", ""), ["bash", "zsh", "fish"])
        self.assertEqual(self.complete("bench", ""), ["kernels", "model", "plot"])
        self.assertEqual(self.complete("bench", "model", os.path.dirname(MODEL) + "/mod"), [MODEL])
        os.mkdir(self.path("model a"))
        with open(self.path("mod.png"), "w"):
            pass
        self.assertEqual(self.complete("generate", "-m", "mod"), ["model a"])
        self.assertEqual(sorted(self.complete("info", "mod")), ["mod.png", "model a"])

    def test_all_options_are_there(self):
        options = set(re.findall(r"--[a-z][a-z-]+", run("help", "generate").stdout))
        for shell in ("bash", "zsh", "fish"):
            result = run("completions", shell)
            self.assertEqual(result.returncode, 0)
            for option in options:
                self.assertIn(option[2:], result.stdout, shell)

    def test_syntax(self):
        for shell in ("bash", "zsh", "fish"):
            if not shutil.which(shell):
                continue
            script = self.path(shell)
            with open(script, "w") as file:
                file.write(run("completions", shell).stdout)
            result = subprocess.run([shell, "-n", script], capture_output=True, text=True)
            self.assertEqual((result.returncode, result.stderr), (0, ""))

    def test_mistakes(self):
        self.refused(run("completions", "csh"), 2, "bash, zsh and fish")
        self.refused(run("completions"), 2, "bash|zsh|fish")


class Screen(Folder):
    """The progress bar, on a terminal."""

    def watch(self, *args, env=None, columns=80, when_running=None):
        """Runs with all streams on a terminal; returns (exit status, text)."""
        try:
            pid, terminal = pty.fork()
        except OSError as error:  # a container without /dev/pts
            self.skipTest(f"no terminal to be had: {error}")
        if pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
            os.execve(PROGRAM, [PROGRAM, "generate", "-m", MODEL, "-p", "a red fox", "-o",
                                self.path("out.png"), *args], env)
        text = b""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 1)[0]:
                continue
            try:
                block = os.read(terminal, 65536)
            except OSError:
                break
            if not block:
                break
            text += block
            if when_running and b"denoise" in text:
                when_running(pid, terminal)
                when_running = None
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status), text.decode("utf-8")

    @staticmethod
    def shown(text):
        """The lines that remain on the screen: a line that is redrawn keeps its last form."""
        lines = []
        for line in text.replace("\r\n", "\n").split("\n"):
            lines.append(ESCAPES.sub("", line.split("\r\x1b[K")[-1]))
        return lines

    def test_bar(self):
        env = environment(TERM="xterm", LC_ALL="C.UTF-8")
        status, text = self.watch(*SIZE, "-s", "42", env=env)
        self.assertEqual(status, 0, text)
        self.assertIn("\r\x1b[K", text)
        self.assertIn("█", text)
        self.assertIn("\x1b[1m", text)
        lines = self.shown(text)
        self.assertEqual([line for line in lines if "█" in line or "/step" in line], [])
        self.assertEqual(lines[-2:], [f"{self.path('out.png')} seed 42", ""])
        for frame in re.split(r"\r\x1b\[K|\n", text):
            if "│" in frame:
                self.assertLess(len(ESCAPES.sub("", frame)), 80)

    def test_plain_terminals(self):
        status, text = self.watch(*SIZE, env=environment(TERM="xterm", LC_ALL="C", NO_COLOR="1"))
        self.assertEqual(status, 0, text)
        self.assertIn("[###", text)
        self.assertEqual(set(ESCAPES.findall(text)), {"\x1b[K"})
        text.encode("ascii")
        status, text = self.watch(*SIZE, env=environment(TERM="dumb", LC_ALL="C.UTF-8"))
        self.assertEqual(status, 0, text)
        self.assertNotIn("\x1b", text)

    def test_narrow_terminal(self):
        env = environment(TERM="xterm", LC_ALL="C.UTF-8")
        status, text = self.watch(*SIZE, env=env, columns=30)
        self.assertEqual(status, 0, text)
        for frame in text.split("\r\x1b[K")[1:-1]:
            self.assertLess(len(ESCAPES.sub("", frame)), 30)

    def test_interrupt(self):
        env = environment(TERM="xterm", LC_ALL="C.UTF-8")
        status, text = self.watch("--steps", "1000", "--size", "64x64", env=env,
                                  when_running=lambda pid, terminal: os.write(terminal, b"\x03"))
        self.assertEqual(status, 130, text)
        self.assertEqual(self.shown(text)[-2:], ["calotype: cancelled", ""])
        self.assertEqual(os.listdir(self.folder), [])

    def test_interrupt_with_json(self):
        process = subprocess.Popen([PROGRAM, "generate", "-m", MODEL, "-p", "x", "-o",
                                    self.path("out.png"), "--json", "--steps", "1000"],
                                   stdout=subprocess.PIPE, text=True, env=environment())
        for line in process.stdout:
            if json.loads(line).get("stage") == "denoise":
                break
        process.send_signal(signal.SIGINT)
        last = [json.loads(line) for line in process.stdout][-1]
        process.stdout.close()
        self.assertEqual(process.wait(), 130)
        self.assertEqual((last["event"], last["code"]), ("error", -7))
        self.assertEqual(os.listdir(self.folder), [])


class Tap(unittest.TestResult):
    """Prints the Test Anything Protocol, which meson reads."""

    def say(self, word, test, note="", details=""):
        print(f"{word} {self.testsRun} - {test.id().removeprefix('__main__.')}{note}")
        for line in details.rstrip().splitlines():
            print(f"# {line}")
        sys.stdout.flush()

    def startTest(self, test):
        super().startTest(test)
        self.failed = ""

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err:
            self.failed += f"{subtest}\n{self._exc_info_to_string(err, test)}"

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.failed += self.failures[-1][1]

    def addError(self, test, err):
        super().addError(test, err)
        self.failed += self.errors[-1][1]

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.say("ok", test, f" # SKIP {reason}")

    def stopTest(self, test):
        super().stopTest(test)
        if self.failed:
            self.say("not ok", test, details=self.failed)
        elif test not in [skipped for skipped, _ in self.skipped]:
            self.say("ok", test)


class TapRunner:
    def run(self, tests):
        print(f"1..{tests.countTestCases()}")
        result = Tap()
        tests.run(result)
        return result


if __name__ == "__main__":
    unittest.main(testRunner=TapRunner())
