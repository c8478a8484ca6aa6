"""A Qwen-Image model as mflux saves it, made of one in diffusers' layout.

    python3 tests/cli/mflux_layout.py MODEL DIR

Names as mflux 0.24 has them (mflux/models/qwen/weights), convolutions with the channels last, files
called 0.safetensors, no model_index.json and no scheduler. Matrices that are quantized already stay
so. mflux saves no configurations either; they are copied here, because nothing else tells the sizes
of a tiny model. The VAE must have two resnets at each level of its encoder, as the published one;
deepen makes one of that kind from the fixtures', which have one."""

import glob
import json
import math
import os
import re
import shutil
import struct
import sys

PARTS = ("text_encoder", "transformer", "vae")


def read(path):
    """name: (dtype, shape, bytes)"""
    with open(path, "rb") as file:
        size, = struct.unpack("<Q", file.read(8))
        header, data = json.loads(file.read(size)), file.read()
    return {name: (t["dtype"], t["shape"], data[slice(*t["data_offsets"])])
            for name, t in header.items() if name != "__metadata__"}


def write(path, tensors, metadata=None):
    header, at = {"__metadata__": metadata} if metadata else {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data)


def channels_last(name, _, sides, data):
    """The numbers of a convolution [out, in, ...] as [out, ..., in]; others as they are."""
    if name.endswith(".gamma") or len(sides) < 3:
        return data
    out, channels, pixels = sides[0], sides[1], math.prod(sides[2:])
    size = len(data) // (out * channels * pixels)
    numbers = [data[i:i + size] for i in range(0, len(data), size)]
    return b"".join(numbers[(o * channels + i) * pixels + p]
                    for o in range(out) for p in range(pixels) for i in range(channels))


def shape(name, sides):
    """Of the tensor that has this name and shape in diffusers' layout."""
    if name.endswith(".gamma"):
        return sides[:1]
    return [sides[0], *sides[2:], sides[1]] if len(sides) > 2 else sides


def text_encoder_name(name):
    name = re.sub(r"^model\.(language_model\.|(?=visual))", "model." if "visual" not in name else "",
                  name)
    name = re.sub(r"^(model\.)?", "encoder.", name, count=1)
    return name.replace("merger.mlp.0", "merger.mlp_0").replace("merger.mlp.2", "merger.mlp_1")


def transformer_name(name):
    name = name.replace(".attn.to_out.0", ".attn.attn_to_out.0")
    name = re.sub(r"\.(img|txt)_mod\.1\.", r".\1_mod_linear.", name)
    name = re.sub(r"\.(img|txt)_mlp\.net\.0\.proj\.", r".\1_ff.mlp_in.", name)
    return re.sub(r"\.(img|txt)_mlp\.net\.2\.", r".\1_ff.mlp_out.", name)


def vae_name(name):
    def level(match):
        i, k = divmod(int(match[1]), 3)
        return f"encoder.down_blocks.{i}." + ("downsamplers.0." if k == 2 else f"resnets.{k}.")
    name = re.sub(r"^encoder\.down_blocks\.(\d+)\.", level, name)
    name = re.sub(r"^decoder\.up_blocks\.", "decoder.up_block", name)
    name = re.sub(r"\bconv_shortcut\b", "skip_conv", name)
    name = re.sub(r"\bresample\.1\b", "resample_conv", name)
    name = re.sub(r"\b(conv_in|conv_out|conv1|conv2|skip_conv|time_conv|quant_conv|post_quant_conv)"
                  r"\.(weight|bias)$", r"\1.conv3d.\2", name)
    return re.sub(r"\.gamma$", ".weight", name)


NAMES = {"text_encoder": text_encoder_name, "transformer": transformer_name, "vae": vae_name}


def convert(model, directory, sees):
    """sees: with the vision tower, which mflux saves of models that edit."""
    shutil.copytree(model, directory, ignore=shutil.ignore_patterns(
        "*.safetensors", "*.index.json", "model_index.json", "scheduler", "processor"))
    for part in PARTS:
        file, = glob.glob(os.path.join(model, part, "*.safetensors"))
        tensors = {}
        for name, tensor in read(file).items():
            if "visual" in name and not sees or name == "lm_head.weight":
                continue
            spelled = NAMES[part](name)
            assert spelled not in tensors, name
            tensors[spelled] = tensor[0], shape(name, tensor[1]), channels_last(name, *tensor)
        folder = os.path.join(directory, part)
        write(os.path.join(folder, "0.safetensors"), tensors,
              {"quantization_level": "4", "mflux_version": "0.24.0"})
        with open(os.path.join(folder, "model.safetensors.index.json"), "w",
                  encoding="utf-8") as file:
            json.dump({"metadata": {"quantization_level": "4"},
                       "weight_map": {name: "0.safetensors" for name in tensors}}, file)


def deepen(model, directory):
    """A copy of a fixture whose VAE has a resnet more at each level."""
    shutil.copytree(model, directory)
    folder = os.path.join(directory, "vae")
    path = os.path.join(folder, "diffusion_pytorch_model.safetensors")
    config_path = os.path.join(folder, "config.json")
    with open(config_path, encoding="utf-8") as file:
        config = json.load(file)
    assert config["num_res_blocks"] == 1
    config["num_res_blocks"] = 2
    with open(config_path, "w", encoding="utf-8") as file:
        json.dump(config, file)
    old, new = read(path), {}

    def copy(to, from_):
        for name, tensor in old.items():
            if name.startswith(from_):
                new[to + name[len(from_):]] = tensor
    copy("", "")
    for name in [name for name in new if name.startswith("encoder.down_blocks.")]:
        del new[name]
    for i in range(4):
        copy(f"encoder.down_blocks.{3 * i}.", f"encoder.down_blocks.{2 * i}.")
        copy(f"encoder.down_blocks.{3 * i + 2}.", f"encoder.down_blocks.{2 * i + 1}.")
        copy(f"decoder.up_blocks.{i}.resnets.2.", f"decoder.up_blocks.{i}.resnets.1.")
        # As many channels in as out.
        same = "encoder.mid_block.resnets.0." if i else "encoder.down_blocks.0."
        copy(f"encoder.down_blocks.{3 * i + 1}.", same)
    write(path, new)


if __name__ == "__main__":
    convert(sys.argv[1], sys.argv[2], True)
