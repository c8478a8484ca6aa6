"""A FLUX.2-klein model whose edits give the first reference back: all of its structure, weights that
are put together by hand.

    python3 tests/cli/identity_model.py DIR

The VAE halves three times by means of four pixels and doubles three times by linear interpolation,
so it keeps what is smooth where it is. The transformer looks for the token of the first reference
that has its own row and column, by nothing but the rotation of queries and keys, and answers with
noise - reference, so that one step ends at the reference's latents. What it takes for that is in
every real model too; here it is all that there is."""

import json
import math
import os
import shutil
import struct
import sys
from array import array

FIXTURES = os.environ.get("CT_FIXTURES",
                          os.path.join(os.path.dirname(os.path.abspath(__file__)), "../fixtures"))
BIG = 64.0  # beside which the numbers of a picture hardly change the length of a token or a group


class Tensors(dict):
    """name: (shape, numbers), zeros at first."""

    def add(self, name, *shape):
        self[name] = (list(shape), array("f", bytes(4 * math.prod(shape))))

    def set(self, name, at, value):
        shape, numbers = self[name]
        index = 0
        for n, i in zip(shape, at):
            assert 0 <= i < n, name
            index = index * n + i
        numbers[index] = value

    def fill(self, name, value):
        shape, numbers = self[name]
        numbers[:] = array("f", [value]) * len(numbers)

    def write(self, path):
        header, at = {}, 0
        for name, (shape, numbers) in self.items():
            size = 4 * len(numbers)
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for _, numbers in self.values():
                file.write(numbers.tobytes())


# ---- VAE: the shapes of the fixture --------------------------------------------------------------
# Channels 0 to 2 are the colours, 3 to 5 their negatives: silu(x) - silu(-x) = x, and the mean of a
# group is 0. 6 and 7 are a large number and its negative, beside which the deviation of the only
# group is the same for all pictures.

COLOURS = 3


def spread(t, name, sides=(0.0, 1.0, 0.0), rows=2 * COLOURS):
    """Each channel to itself; sides are the factors of a kernel in both directions."""
    for c in range(rows):
        for y, fy in enumerate(sides):
            for x, fx in enumerate(sides):
                t.set(name, (c, c, y, x), fx * fy)


def begin(t, name):
    for c in range(COLOURS):
        t.set(name, (c, c, 1, 1), 1)
        t.set(name, (COLOURS + c, c, 1, 1), -1)


def end(t, last_bias, name):
    channels = t[name][0][1]
    t.set(last_bias, (2 * COLOURS,), BIG)
    t.set(last_bias, (2 * COLOURS + 1,), -BIG)
    for c in range(COLOURS):
        t.set(name, (c, c, 1, 1), BIG * math.sqrt(2 / channels))
        t.set(name, (c, COLOURS + c, 1, 1), -BIG * math.sqrt(2 / channels))


def vae(shapes, config):
    t = Tensors()
    for name, shape in shapes.items():
        t.add(name, *shape)
        if name.endswith("weight") and "norm" in name:
            t.fill(name, 1)
    t.fill("bn.running_var", 1 - config["batch_norm_eps"])
    begin(t, "encoder.conv_in.weight")
    begin(t, "decoder.conv_in.weight")
    for i in range(3):
        spread(t, f"encoder.down_blocks.{i}.downsamplers.0.conv.weight", (0.5, 0.5, 0))
        spread(t, f"decoder.up_blocks.{i}.upsamplers.0.conv.weight", (0.25, 0.5, 0.25))
    for name in t:
        if "conv_shortcut.weight" in name:
            spread(t, name, (1,))
    spread(t, "quant_conv.weight", (1,), COLOURS)
    spread(t, "post_quant_conv.weight", (1,), COLOURS)
    end(t, "encoder.mid_block.resnets.1.conv2.bias", "encoder.conv_out.weight")
    end(t, "decoder.up_blocks.3.resnets.1.conv2.bias", "decoder.conv_out.weight")
    return t


# ---- Transformer: one double and one single block ------------------------------------------------
# A token: the latents and their negatives, what was found and its negatives, a large number and its
# negative, for the same reasons as above; and at ONE the modulation makes 1 of whatever is there.

HEADS, HEAD, AXES, THETA = 2, 48, (8, 16, 16, 8), 2000
DIM, FFN = HEADS * HEAD, HEADS * HEAD // 10
PACKED = 4 * COLOURS  # channels of latents that the VAE uses; they come first
OWN, FOUND, LARGE, ONE = 0, 2 * PACKED, 4 * PACKED, 4 * PACKED + 2
LENGTH = BIG * math.sqrt(2 / DIM)  # of a token, as the norm sees it
FIRST_REFERENCE = 10  # its position along the first axis
SHARPNESS = 13.0


def silu(x):
    return x / (1 + math.exp(-x))


def pairs():
    """(index of a pair in a head, axis, angle for each position)"""
    at = 0
    for axis, size in enumerate(AXES):
        for k in range(size // 2):
            yield at, axis, THETA ** (-2 * k / size)
            at += 1


def look(t, name, norm, first, query):
    """Queries or keys are the same for all tokens, so that positions alone decide. Those of the
    picture, at 0, are turned to where the first reference is along the first axis."""
    for head in range(HEADS):
        for pair, axis, speed in pairs():
            angle = FIRST_REFERENCE * speed if query and axis == 0 else 0
            if axis == 3:  # of words
                continue
            row = first + head * HEAD + 2 * pair
            t.set(name, (row, ONE), math.cos(angle))
            t.set(name, (row + 1, ONE), math.sin(angle))
    t.fill(norm, SHARPNESS)


def modulation(t, name, parts, sensed):
    """Shift, scale and gate of so many parts: all 0, 1 and 1, but 1, 0 at ONE."""
    for part in range(parts):
        t.set(name, (3 * part * DIM + ONE, 0), 1 / sensed)
        t.set(name, ((3 * part + 1) * DIM + ONE, 0), -1 / sensed)
        for c in range(DIM):
            t.set(name, ((3 * part + 2) * DIM + c, 0), 1 / sensed)


def transformer(config):
    t = Tensors()
    time, block, single = "time_guidance_embed.timestep_embedder.linear_", "transformer_blocks.0.", \
        "single_transformer_blocks.0.attn."
    for name, shape in (
            (time + "1", (DIM, 2)), (time + "2", (DIM, DIM)),
            ("x_embedder", (DIM, config["in_channels"])),
            ("context_embedder", (DIM, config["joint_attention_dim"])),
            ("double_stream_modulation_img.linear", (6 * DIM, DIM)),
            ("double_stream_modulation_txt.linear", (6 * DIM, DIM)),
            ("single_stream_modulation.linear", (3 * DIM, DIM)),
            ("norm_out.linear", (2 * DIM, DIM)), ("proj_out", (config["in_channels"], DIM)),
            (single + "to_qkv_mlp_proj", (3 * DIM + 2 * FFN, DIM)),
            (single + "to_out", (DIM, DIM + FFN)), (single + "norm_q", (HEAD,)),
            (single + "norm_k", (HEAD,))):
        t.add(name + ".weight", *shape)
    for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj",
                 "to_add_out"):
        t.add(f"{block}attn.{name}.weight", DIM, DIM)
    for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        t.add(f"{block}attn.{name}.weight", HEAD)
        t.fill(f"{block}attn.{name}.weight", 1)
    for name in ("ff", "ff_context"):
        t.add(f"{block}{name}.linear_in.weight", 2 * FFN, DIM)
        t.add(f"{block}{name}.linear_out.weight", DIM, FFN)

    # The embedding of the time is 1 in its first place, at noise level 1.
    t.set(time + "1.weight", (0, 0), 1 / math.cos(1000))
    t.set(time + "2.weight", (0, 0), 1 / silu(1))
    modulation(t, "double_stream_modulation_img.linear.weight", 2, silu(1))
    modulation(t, "double_stream_modulation_txt.linear.weight", 2, silu(1))
    modulation(t, "single_stream_modulation.linear.weight", 1, silu(1))

    for i in range(PACKED):
        t.set("x_embedder.weight", (OWN + i, i), 1)
        t.set("x_embedder.weight", (OWN + PACKED + i, i), -1)
    # Double block: all values are 1, whoever looks; that makes the large numbers of the picture.
    for name in ("to_v", "add_v_proj"):
        t.set(f"{block}attn.{name}.weight", (0, ONE), 1)
    t.set(block + "attn.to_out.0.weight", (LARGE, 0), BIG)
    t.set(block + "attn.to_out.0.weight", (LARGE + 1, 0), -BIG)
    # Single block: the latents of the token that is found, with each head once.
    look(t, single + "to_qkv_mlp_proj.weight", single + "norm_q.weight", 0, True)
    look(t, single + "to_qkv_mlp_proj.weight", single + "norm_k.weight", DIM, False)
    for head, sign in enumerate((1, -1)):
        for i in range(PACKED):
            t.set(single + "to_qkv_mlp_proj.weight", (2 * DIM + head * HEAD + i, OWN + i), LENGTH)
            t.set(single + "to_out.weight", (FOUND + head * PACKED + i, head * HEAD + i), sign)
    for i in range(PACKED):
        t.set("proj_out.weight", (i, OWN + i), LENGTH)
        t.set("proj_out.weight", (i, FOUND + i), -LENGTH)
    return t


# ---- Model ---------------------------------------------------------------------------------------

def shapes_of(path):
    with open(path, "rb") as file:
        size, = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    return {name: entry["shape"] for name, entry in header.items()
            if name != "__metadata__" and entry["dtype"] == "F32"}


def build(directory):
    """Text encoder and tokenizer are the fixture's."""
    shutil.copytree(os.path.join(FIXTURES, "klein", "model"), directory)
    weights = "diffusion_pytorch_model.safetensors"
    for part, changes in (
            ("vae", {"norm_num_groups": 1}),
            ("transformer", {"num_attention_heads": HEADS, "attention_head_dim": HEAD,
                             "axes_dims_rope": AXES, "rope_theta": THETA, "mlp_ratio": 0.1,
                             "num_layers": 1, "num_single_layers": 1,
                             "timestep_guidance_channels": 2})):
        path = os.path.join(directory, part, "config.json")
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        config.update(changes)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)
        path = os.path.join(directory, part, weights)
        tensors = vae(shapes_of(path), config) if part == "vae" else transformer(config)
        tensors.write(path)


if __name__ == "__main__":
    build(sys.argv[1])
