#!/usr/bin/env python3
"""calotype bench: what it prints for people and for programs, and the pictures it draws of that.
Nothing here says how fast anything is.

CALOTYPE names the program, CT_FIXTURES the folder of the fixtures. Those of bench/ are what these
printed: bench kernels --precision int8 --seconds 0.1 (and --cpu avx512vnni), and
bench model models/emoji-256 --precision fp32 (and int8), all with --json."""

import copy
import json
import os
import re
import unittest
import xml.etree.ElementTree as ElementTree

from test_cli import MODEL, Folder, TapRunner, run

RECORDED = os.path.join(os.environ["CT_FIXTURES"], "bench")
KERNELS, KERNELS_VNNI, FP32, INT8 = (
    os.path.join(RECORDED, name + ".json")
    for name in ("kernels", "kernels_vnni", "model_fp32", "model_int8"))
SVG = "{http://www.w3.org/2000/svg}"
QUICK = ("--seconds", "0.01", "--rows", "3", "-t", "1")


def read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


class Bench(Folder):
    def head(self, result, name):
        """One JSON object, with what is needed to compare it with another one."""
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stderr, "")
        self.assertEqual(result.stdout.count("\n"), 1)
        bench = json.loads(result.stdout)
        self.assertEqual(bench["bench"], name)
        self.assertRegex(run("--version").stdout, "^calotype " + re.escape(bench["version"]) + "$")
        self.assertRegex(bench["date"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
        self.assertEqual(set(bench["machine"]), {"processor", "threads", "isa", "gpu"})
        self.assertTrue(bench["machine"]["processor"])
        self.assertIsNone(bench["machine"]["gpu"])
        return bench


class Kernels(Bench):
    def test_text(self):
        result = run("bench", "kernels", "--what", "gemm", *QUICK)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        for part in ("1 thread, ", "\npeak\n", "\ngemm  z-image, 512 x 512\n",
                     "3 x 20480 x 3840", "fp32", "bf16", "int8", "4 bits", "8 bits", "GFLOP/s",
                     "GOP/s"):
            self.assertIn(part, result.stdout)
        # The word may be left out.
        other = run("bench", "--what", "rows", "--cpu", "baseline", *QUICK).stdout
        self.assertIn("\nrows  z-image", other)
        self.assertIn("1 thread, baseline", other)

    def check_line(self, line, peak):
        self.assertGreater(line["gflops"], 0)
        self.assertGreater(line["seconds"], 0)
        self.assertGreaterEqual(line["runs"], 3)
        self.assertTrue(line["layer"])
        work = 2 * line["m"] * line["n"] * line["k"]
        if line["op"] == "attention":  # two products, for each head
            work *= 2 * (line["model"] == "z-image" and 30 or 24)
        self.assertAlmostEqual(line["gflops"] * line["seconds"] * 1e9 / work, 1, places=6)
        if line["isa"] in peak.get(line["compute"], {}):
            self.assertAlmostEqual(line["gflops"] / peak[line["compute"]][line["isa"]],
                                   line["share"], places=9)

    def test_json(self):
        bench = self.head(run("bench", "kernels", "--json", "--sizes", "64", *QUICK), "kernels")
        self.assertEqual(list(bench), ["bench", "version", "date", "machine", "peak", "kernels"])
        self.assertEqual(bench["machine"]["threads"], 1)
        self.assertIn("fp32", bench["peak"])
        for rates in bench["peak"].values():
            self.assertTrue(rates)
            self.assertTrue(all(rate > 0 for rate in rates.values()))
        self.assertEqual({line["op"] for line in bench["kernels"]},
                         {"gemm", "attention", "conv", "rows"})
        for line in bench["kernels"]:
            self.assertEqual((line["model"], line["size"]), ("z-image", 64))
            self.assertEqual(list(line)[:5], ["op", "compute", "isa", "m", "n"])
            if line["op"] == "rows":
                self.assertEqual((line["m"], line["n"]), (3, 3840))
                self.assertGreater(line["gbytes"], 0)
            else:
                self.check_line(line, bench["peak"])

    def test_shapes(self):
        def shapes(*args):
            result = run("bench", "kernels", "--json", "--precision", "fp32", "--seconds", "0.01",
                         *args)
            return [(line["model"], line["size"], line["m"], line["n"], line["k"])
                    for line in self.head(result, "kernels")["kernels"]
                    if line["op"] == "gemm"]

        # Patches of 16 x 16 pixels, and the text's tokens.
        self.assertEqual(shapes("--what", "gemm", "--sizes", "64,80"), [
            ("z-image", side, (side // 16) ** 2 + 64, n, k) for side in (64, 80)
            for n, k in ((3840, 3840), (20480, 3840), (3840, 10240))])
        qwen = shapes("--what", "gemm", "--sizes", "64", "--shapes", "qwen-image")
        self.assertEqual(qwen[:3], [("qwen-image", 64, 16, 3072, 3072),
                                    ("qwen-image", 64, 16, 12288, 3072),
                                    ("qwen-image", 64, 16, 3072, 12288)])
        self.assertEqual([shape[2] for shape in qwen[3:]], [64, 64, 64])
        klein = shapes("--what", "gemm", "--rows", "1", "--shapes", "klein-4b")
        self.assertIn(("klein-4b", 512, 1, 3072, 3072 + 9216), klein)
        self.assertIn(("klein-4b", 512, 1, 2 * 9216, 3072), klein)
        result = run("bench", "--what", "rows", "--json", "--shapes", "flux2-klein,klein-9b", *QUICK)
        self.assertEqual({(line["model"], line["n"]) for line in json.loads(result.stdout)["kernels"]},
                         {("klein-4b", 3072), ("klein-9b", 4096)})

    def test_peak_alone(self):
        peak = self.head(run("bench", "--what", "peak", "--json", *QUICK), "kernels")
        self.assertEqual(peak["kernels"], [])
        self.assertIn("fp32", peak["peak"])

    def test_mistakes(self):
        self.refused(run("bench", "--what", "nothing"), 2, "--what", "attention")
        self.refused(run("bench", "kernels", "--shapes", "z-imagine"), 2, "did you mean z-image?")
        self.refused(run("bench", "kernels", "--shapes", ""), 2, "--shapes")
        self.refused(run("bench", "kernels", "--sizes", "512,x"), 2, "--sizes", '"x"')
        self.refused(run("bench", "kernels", "--sizes", "512,500"), 2, "multiples of 16")
        self.refused(run("bench", "kernels", "--sizes", ",".join(17 * ["64"])), 2, "16 sizes")
        self.refused(run("bench", "kernels", "--precision", "fp8"), 2, "fp32, bf16")
        self.refused(run("bench", "--seconds", "-1"), 2, "--seconds")
        self.refused(run("bench", "kernels", "more"), 2, '"more"')
        self.refused(run("bench", "kernels", "--device", "cuda"), 2, "bench model")
        self.refused(run("bench", "-W", "512"), 2, "--width", "bench model DIR")
        self.refused(run("bench", "kernels", "-o", "x.svg"), 2, "--output", "bench plot")
        self.refused(run("bench", "kernal"), 2, '"kernal"', "kernels")
        self.refused(run("bench", MODEL), 2, "did you mean calotype bench model")


class Model(Bench):
    SIZE = ("-W", "32", "-H", "16", "--steps", "3")

    def check_time(self, time, runs):
        self.assertEqual(len(time["runs"]), runs)
        ordered = sorted(time["runs"])
        self.assertEqual((time["min"], time["max"]), (ordered[0], ordered[-1]))
        middle = (ordered[runs // 2] + ordered[(runs - 1) // 2]) / 2
        self.assertAlmostEqual(time["median"], middle, places=12)

    def check(self, bench, runs, precision):
        settings = bench["settings"]
        self.assertEqual((settings["width"], settings["height"], settings["steps"]), (32, 16, 3))
        self.assertEqual(settings["precision"], precision)
        self.assertGreater(settings["tokens"], 1)
        self.assertEqual(bench["model"]["family"], "Z-Image")
        self.assertEqual(len(bench["seconds"]["steps"]), 3)
        steps = [s for step in bench["seconds"]["steps"] for s in step["runs"]]
        self.assertEqual(bench["seconds"]["step"]["min"], min(steps))
        self.assertEqual(bench["seconds"]["step"]["max"], max(steps))
        for name in ("load", "encode", "decode", "picture"):
            self.check_time(bench["seconds"][name], runs)
        for step in bench["seconds"]["steps"]:
            self.check_time(step, runs)
        # The parts of each run are no more than the run.
        for i in range(runs):
            parts = sum(bench["seconds"][name]["runs"][i] for name in ("encode", "decode"))
            parts += sum(step["runs"][i] for step in bench["seconds"]["steps"])
            self.assertLessEqual(parts, bench["seconds"]["picture"]["runs"][i])
        self.assertGreater(bench["memory"]["peak_bytes"], 1 << 20)
        self.assertGreater(bench["memory"]["planned_bytes"], 1 << 20)

    def test_json(self):
        result = run("bench", "model", MODEL, *self.SIZE, "--precision", "bf16", "-b", "2",
                     "--json")
        self.check(self.head(result, "model"), 2, "bf16")
        # The other way to write it, and three runs where nothing is said.
        result = run("bench", "-m", MODEL, *self.SIZE, "--precision", "fp32", "--json")
        self.check(self.head(result, "model"), 3, "fp32")

    def test_text(self):
        result = run("bench", "model", MODEL, *self.SIZE)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        for part in ("32 x 16", "3 runs", "median", "fastest", "slowest", "load", "encode",
                     "step 3", "all steps", "decode", "picture", "memory", "planned"):
            self.assertIn(part, result.stdout)

    def test_mistakes(self):
        self.refused(run("bench", "model"), 2, "needs a model")
        self.refused(run("bench", "model", MODEL, MODEL), 2, "one model")
        self.refused(run("bench", "model", MODEL, "-m", MODEL), 2, "one model")
        self.refused(run("bench", "-m", MODEL, "--rows", "3"), 2, "--rows", "bench kernels")
        self.refused(run("bench", "kernels", "-m", MODEL), 2, "--model", "bench model DIR")
        self.refused(run("bench", "-m", self.path("none")), 1, "none")
        self.refused(run("bench", "model", self.path("none")), 1, "none")


class Plot(Folder):
    def draw(self, *files):
        out = self.path("x.svg")
        result = run("bench", "plot", *files, "-o", out)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertEqual(result.stdout, out + "\n")
        with open(out, encoding="utf-8") as file:
            text = file.read()
        os.remove(out)
        root = ElementTree.fromstring(text)
        self.assertEqual(root.tag, SVG + "svg")
        self.assertIn("prefers-color-scheme:dark", text)
        # Everything is on the page.
        width, height = float(root.get("width")), float(root.get("height"))
        for rect in root.iter(SVG + "rect"):
            x, y = float(rect.get("x", 0)), float(rect.get("y", 0))
            self.assertGreaterEqual(min(x, y, float(rect.get("width")), float(rect.get("height"))), 0)
            self.assertLessEqual(x + float(rect.get("width")), width)
            self.assertLessEqual(y + float(rect.get("height")), height)
        for label in root.iter(SVG + "text"):
            self.assertTrue(0 < float(label.get("x")) < width)
            self.assertTrue(0 < float(label.get("y")) < height)
        return root

    @staticmethod
    def texts(root):
        return [element.text for element in root.iter(SVG + "text")]

    @staticmethod
    def bars(root, name, height=11):
        return [float(rect.get("width")) for rect in root.iter(SVG + "rect")
                if rect.get("class") == name and float(rect.get("height")) == height]

    def test_kernels(self):
        one, other = read(KERNELS), read(KERNELS_VNNI)
        root = self.draw(KERNELS)
        self.assertEqual(len(self.bars(root, "s0")), len(one["kernels"]))
        self.assertEqual(self.bars(root, "s1"), [])
        gemms = [line for line in one["kernels"] if line["op"] == "gemm"]
        # The chart is 360 pixels of 100 %.
        for line, bar in zip(gemms, self.bars(root, "s0")):
            self.assertAlmostEqual(bar, 360 * line["share"], delta=0.11)
        for part in ("kernels.json", "z-image, 512 × 512 pixels", "int8, 4 bits",
                     "attention: q, k, v, out", "100 %"):
            self.assertIn(part, self.texts(root))
        self.assertIn(f"{100 * gemms[0]['share']:.0f} %, {gemms[0]['gflops']:.0f} GOP/s",
                      self.texts(root))

        both = self.draw(KERNELS, KERNELS_VNNI)
        self.assertEqual(len(self.bars(both, "s1")), len(other["kernels"]))
        ratio = other["kernels"][0]["gflops"] / one["kernels"][0]["gflops"]
        self.assertIn(f"{ratio:.2f}×", self.texts(both))
        self.assertEqual(self.texts(both).count("attention: q, k, v, out"), 3)  # matched, not twice

    def test_kernels_that_one_file_lacks(self):
        fewer = read(KERNELS)
        del fewer["kernels"][1]
        fewer["kernels"][0]["layer"] = "another"
        path = self.path("fewer.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(fewer, file)
        root = self.draw(path, KERNELS)
        self.assertEqual(len(self.bars(root, "s0")), len(fewer["kernels"]))
        self.assertEqual(len(self.bars(root, "s1")), len(fewer["kernels"]) + 1)
        self.assertIn("another", self.texts(root))

    def test_model(self):
        one, other = read(FP32)["seconds"], read(INT8)["seconds"]
        root = self.draw(FP32, INT8)
        texts = self.texts(root)
        for part in ("calotype: emoji-256, 256 × 256 pixels", "model_fp32.json", "load", "a step",
                     "of the process",
                     f"{one['picture']['median'] / other['picture']['median']:.2f}×",
                     f"{one['step']['median'] * 1e3:.1f} ms"):
            self.assertIn(part, texts)
        # Encoding, four steps and decoding of each.
        for series in ("s0", "s1"):
            parts = [self.bars(root, series + shade, 22) for shade in (" faint", "", " half")]
            self.assertEqual([len(part) for part in parts], [1, 4, 1])
        self.assertEqual(len(self.bars(self.draw(FP32, INT8, INT8, FP32), "s3")), 5)

    def refused_text(self, text, *parts):
        path = self.path("bad.json")
        with open(path, "wb") as file:
            file.write(text if isinstance(text, bytes) else text.encode())
        result = run("bench", "plot", path, "-o", self.path("x.svg"))
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertEqual(result.stdout, "")
        self.assertTrue(result.stderr.startswith("calotype: error: "), result.stderr)
        self.assertIn("bad.json", result.stderr)
        for part in parts:
            self.assertIn(part, result.stderr)
        os.remove(path)
        self.assertEqual(os.listdir(self.folder), [])

    def test_hostile_text(self):
        self.refused_text("", "empty")
        self.refused_text("[1, 2", "line 1")
        self.refused_text("[1, 2]", "bench kernels --json")
        self.refused_text("{}", "bench kernels --json")
        self.refused_text(b'{"peak": "\xff"}', "line 1")
        self.refused_text('{"peak": {}, "peak": {}}', "peak")
        self.refused_text('{"event":"error","code":-1}', "bench kernels --json")
        self.refused_text("[" * 100000)
        self.refused_text(json.dumps({"peak": {}, "kernels": []}), "version is missing")

    def refused_change(self, source, change, *parts):
        value = copy.deepcopy(source)
        change(value)
        self.refused_text(json.dumps(value), *parts)

    def test_hostile_kernels(self):
        good = read(KERNELS)

        def line(**members):
            return lambda value: value["kernels"][1].update(members)

        self.refused_change(good, line(op=7), "kernels[1].op is an integer", "a text")
        self.refused_change(good, line(layer=None), "kernels[1].layer")
        self.refused_change(good, line(gflops="fast"), "kernels[1].gflops", "a number")
        self.refused_change(good, line(gflops=-1), "kernels[1].gflops is -1")
        self.refused_change(good, line(share=1e300), "kernels[1].share")
        self.refused_change(good, line(m=1.5), "kernels[1].m", "a whole number")
        self.refused_change(good, line(n=True), "kernels[1].n", "a number")
        self.refused_change(good, lambda v: v["kernels"].__setitem__(0, []), "kernels[0]")
        self.refused_change(good, lambda v: v.update(kernels=[]), "0 kernels")
        self.refused_change(good, lambda v: v.update(kernels=1025 * v["kernels"][:1]),
                            "1025 kernels")
        self.refused_change(good, lambda v: v.update(kernels={}), "kernels is an object")
        self.refused_change(good, lambda v: v.pop("machine"), "machine is missing")
        self.refused_change(good, lambda v: v["machine"].update(threads="2"), "machine.threads")

    def test_hostile_model(self):
        good = read(FP32)
        self.refused_change(good, lambda v: v["model"].pop("name"), "model.name is missing")
        self.refused_change(good, lambda v: v["seconds"]["load"].pop("max"), "seconds.load.max")
        self.refused_change(good, lambda v: v["seconds"]["load"].update(min=9),
                            "seconds.load: the median")
        self.refused_change(good, lambda v: v["seconds"].update(steps=[]), "0 steps")
        self.refused_change(good, lambda v: v["seconds"]["steps"][2].update(median=None),
                            "seconds.steps[2].median")
        self.refused_change(good, lambda v: v["memory"].update(peak_bytes=[]), "memory.peak_bytes")

    def test_strange_but_good(self):
        """Any text is drawn as text, and any numbers stay on the page."""
        strange = '</text><script>"&\'\u0001\ufffe\u202e\U0001f600' + "x" * 500
        value = read(KERNELS)
        value["version"] = value["date"] = value["machine"]["processor"] = strange
        for line in value["kernels"]:
            line.update(op=strange, layer=strange, compute=strange, weights=strange, model=strange)
        value["kernels"][0].update(share=1e18, gflops=1e18, m=0)
        value["kernels"][1].update(share=0, gflops=0)
        path = self.path("s.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(value, file)
        root = self.draw(path)
        self.assertEqual(list(root.iter(SVG + "script")), [])
        self.assertTrue(any(text and text.startswith("</text><script>") and text.endswith("…")
                            for text in self.texts(root)))
        value = read(FP32)
        value["model"]["name"] = strange
        for key in ("load", "encode", "step", "decode", "picture"):
            value["seconds"][key] = {"median": 0, "min": 0, "max": 0}
        value["seconds"]["steps"] = 1000 * [{"median": 1e18, "min": 0, "max": 1e18}]
        value["memory"] = {"peak_bytes": 0, "gpu_peak_bytes": 1e18}
        with open(path, "w", encoding="utf-8") as file:
            json.dump(value, file)
        self.draw(path, FP32)

    def test_mistakes(self):
        out = self.path("x.svg")
        self.refused(run("bench", "plot", KERNELS), 2, "--output")
        self.refused(run("bench", "plot", "-o", out), 2, "1 to 4 files")
        self.refused(run("bench", "plot", KERNELS, FP32, "-o", out), 2, "one plot", "model_fp32")
        self.refused(run("bench", "plot", *(5 * [KERNELS]), "-o", out), 2)
        self.refused(run("bench", "plot", self.path("none.json"), "-o", out), 1, "none.json")
        self.refused(run("bench", "plot", KERNELS, "-o", self.path("no/x.svg")), 1, "no/x.svg")
        self.refused(run("bench", "plot", KERNELS, "-o", out, "-t", "1"), 2, "--threads")


if __name__ == "__main__":
    unittest.main(testRunner=TapRunner())
