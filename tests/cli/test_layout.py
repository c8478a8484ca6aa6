#!/usr/bin/env python3
"""A Qwen-Image model in mflux's layout makes the picture that the same model makes in diffusers'.

CALOTYPE names the program, CT_FIXTURES the folder of the fixtures."""

import json
import os
import shutil
import unittest

import mflux_layout
import sparse_model
from test_cli import Folder, TapRunner, png_chunks, run

FIXTURES = os.environ["CT_FIXTURES"]
REFERENCES = [os.path.join(FIXTURES, "klein", f"three_references.{i}.png") for i in range(2)]


class Layout(Folder):
    def made(self, model, out, *args):
        result = run("generate", "-m", model, "-p", "A red fox.", "-o", self.path(out), "--steps",
                     "2", "-s", "1", "-q", *(args or ("--size", "48x32")))
        self.assertEqual(result.returncode, 0, result.stderr)
        return [body for kind, body in png_chunks(self.path(out)) if kind == b"IDAT"]

    def check(self, fixture, sees, bits, *args):
        usual, saved = self.path("usual"), self.path("saved")
        mflux_layout.deepen(os.path.join(FIXTURES, fixture, "model"), usual)
        if bits:
            whole, usual = usual, self.path("quantized")
            result = run("quantize", "-m", whole, "-o", usual, "--bits", bits, "-g", "32", "-q")
            self.assertEqual(result.returncode, 0, result.stderr)
        mflux_layout.convert(usual, saved, sees)
        picture = self.made(usual, "usual.png", *args)
        self.assertEqual(self.made(saved, "saved.png", *args), picture)
        if not bits:
            return
        info = json.loads(run("info", "--json", saved).stdout)
        self.assertEqual(info["components"][1]["quantization"], f"{bits}-bit, groups of 32")

    def test_text_to_image(self):
        self.check("qwen", False, None)

    def test_lora(self):
        """Whose keys are names of diffusers."""
        self.check("qwen", False, None, "--size", "48x32", "--lora",
                   os.path.join(FIXTURES, "lora", "qwen_lora.safetensors"))

    def test_quantized(self):
        for bits in ("4", "8"):
            with self.subTest(bits=bits):
                self.check("qwen", False, bits)
                shutil.rmtree(self.folder)
                os.mkdir(self.folder)

    def test_edit(self):
        self.check("qwen_plus", True, None, "-r", REFERENCES[0], "-r", REFERENCES[1],
                   "--keep-size")
        result = run("info", self.path("saved"))
        self.assertIn("Qwen-Image Edit-Plus", result.stdout)

    def test_without_the_vision_tower(self):
        """mflux leaves it out of models that make pictures from text; so it is one of them."""
        mflux_layout.deepen(os.path.join(FIXTURES, "qwen_plus", "model"), self.path("usual"))
        mflux_layout.convert(self.path("usual"), self.path("saved"), False)
        info = json.loads(run("info", "--json", self.path("saved")).stdout)
        self.assertEqual(info["variant"], "base")
        # Mean and deviation are known of the published number of latent channels only.
        os.remove(self.path("saved/vae/config.json"))
        result = run("info", self.path("saved"))
        self.assertEqual(result.returncode, 1)
        for part in ("it has no config.json", "latents_mean"):
            self.assertIn(part, result.stderr)

    def test_inferred(self):
        """Without configurations, of the published widths."""
        saved = self.path("saved")
        shutil.copytree(os.path.join(FIXTURES, "qwen_plus", "model", "tokenizer"),
                        os.path.join(saved, "tokenizer"))
        full = {**sparse_model.QWEN_FULL, "num_layers": 2, "num_hidden_layers": 3}
        encoder = {**full, "num_attention_heads": full["encoder_heads"]}
        shapes = {"text_encoder": {**sparse_model.qwen_encoder_shapes(encoder),
                                   **sparse_model.qwen_vision_shapes()},
                  "transformer": sparse_model.qwen_transformer_shapes({**full, "in_channels": 64}),
                  "vae": sparse_model.qwen_vae_shapes(8, (1, 2, 4, 4), 16)}
        for part, tensors in shapes.items():
            os.mkdir(os.path.join(saved, part))
            sparse_model.write_zeros(os.path.join(saved, part, "0.safetensors"), {
                mflux_layout.NAMES[part](name): mflux_layout.shape(name, shape)
                for name, shape in tensors.items()})
        result = run("info", "--json", saved)
        self.assertEqual(result.returncode, 0, result.stderr)
        info = json.loads(result.stdout)
        self.assertEqual((info["variant"], info["defaults"]["steps"]), ("Edit-Plus", 40))
        self.assertEqual([c["summary"] for c in info["components"]], [
            "3 layers, hidden 3584, 28 heads, 4 key heads, head dim 128, vocabulary 152064",
            "2 blocks, dim 3072, 24 heads, head dim 128, 16 latent channels",
            "4 levels, channels 8 to 32, 16 latent channels, factor 8"])
        result = run("plan", "-m", saved, "-r", REFERENCES[0], "-t", "1", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)


if __name__ == "__main__":
    unittest.main(testRunner=TapRunner())
