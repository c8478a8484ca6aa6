"""Build random-weight Z-Image model directories in the diffusers layout.

A model is described by a plain dictionary (see the descriptions in
make_fixtures.py). The weights are random, but chosen so that every formula of
the network has a visible effect on the result: norm weights are near 1 but not
1, biases, pad tokens and modulations are not zero, and activations stay near
unit size from end to end.
"""

import json
import os
import shutil
import zlib

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

import tokenizer_files

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


# Residual streams are scaled down in the parts a description lists under
# "small_streams", so that the epsilons of the norms that read them matter. The
# parameters that write to the stream are those with one of these in their name.
SMALL_STREAMS = {
    "transformer": (
        0.02,
        ["x_embedder", "cap_embedder.1", "pad_token", "attention_norm2", "ffn_norm2"],
    ),
    "text_encoder": (0.02, ["embed_tokens", "o_proj", "down_proj"]),
    "vae": (
        0.03,
        ["encoder.conv_in", "decoder.conv_in", "conv2", "to_out", "conv_shortcut.bias",
         "samplers.0.conv.bias"],
    ),
}


def _fan_in(shape):
    result = 1
    for size in shape[1:]:
        result *= size
    return result


def random_tensor(name, shape, seed):
    """Values for one parameter; they depend on its name and the seed only."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    normal = rng.standard_normal(shape)
    last = name.split(".")[-1]
    if name.endswith("pad_token"):
        values = normal
    elif "embed_tokens" in name:
        values = normal
    elif len(shape) == 1 and last == "weight":
        values = 1.0 + 0.2 * rng.uniform(-1.0, 1.0, shape)
    elif "adaLN_modulation" in name:
        # Scales stay in a range where 1 + scale rarely changes its sign, and
        # the gates (tanh) are neither closed nor saturated.
        if last == "bias":
            values = 0.4 * normal
        else:
            values = 0.5 * normal / np.sqrt(_fan_in(shape))
    elif last == "bias":
        values = 0.1 * normal
    elif "t_embedder.mlp.2" in name:
        values = 2.0 * normal / np.sqrt(_fan_in(shape))
    elif "decoder.conv_out" in name:
        # Keeps nearly all pixels inside the representable range.
        values = 0.7 * normal / np.sqrt(_fan_in(shape))
    else:
        values = normal / np.sqrt(_fan_in(shape))
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def fill_random(model, seed, small_stream=None):
    """Overwrite all parameters of a module with reproducible random values.

    small_stream names an entry of SMALL_STREAMS.
    """
    scale, parts = SMALL_STREAMS[small_stream] if small_stream else (1.0, [])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = random_tensor(name, tuple(parameter.shape), seed)
            if any(part in name for part in parts):
                values = scale * values
            parameter.copy_(values)
    return model.eval()


def small_stream(description, part):
    return part if part in description.get("small_streams", []) else None


def _read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def write_json(path, value):
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")


def _save_transformer(description, directory, seed):
    model = ZImageTransformer2DModel(**description["transformer"])
    fill_random(model, seed, small_stream(description, "transformer"))
    model.to(DTYPES[description["transformer_dtype"]])
    for prefix, dtype in description.get("transformer_mixed", {}).items():
        model.get_submodule(prefix).to(DTYPES[dtype])
    sharding = {}
    if "transformer_shard_size" in description:
        sharding["max_shard_size"] = description["transformer_shard_size"]
    model.save_pretrained(directory, **sharding)


def _published_style_config(path, dtype):
    """Rewrite a text encoder's config.json with the keys of the published files.

    Published models were saved by transformers 4, which wrote rope_theta and
    torch_dtype; transformers 5 writes rope_parameters and dtype.
    """
    config = _read_json(path)
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope["rope_theta"]
    config["rope_scaling"] = None
    config.pop("dtype", None)
    config["torch_dtype"] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[dtype]
    config.pop("layer_types", None)
    write_json(path, config)


def save_text_encoder(description, directory, seed):
    settings = dict(description["text_encoder"])
    rope_theta = settings.pop("rope_theta")
    config = Qwen3Config(
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        hidden_act="silu",
        rms_norm_eps=1e-6,
        attention_bias=False,
        tie_word_embeddings=True,
        max_position_embeddings=40960,
        use_sliding_window=False,
        **settings,
    )
    bare = description.get("text_encoder_bare", False)
    model = Qwen3Model(config) if bare else Qwen3ForCausalLM(config)
    # The seed depends on the name without the prefix of the language model, so
    # both kinds of file hold the same numbers.
    small = small_stream(description, "text_encoder")
    fill_random(model if bare else model.model, seed, small)
    dtype = description["text_encoder_dtype"]
    model.to(DTYPES[dtype])
    sharding = {}
    if "text_encoder_shard_size" in description:
        sharding["max_shard_size"] = description["text_encoder_shard_size"]
    model.save_pretrained(directory, **sharding)
    generation = os.path.join(directory, "generation_config.json")
    if os.path.exists(generation):
        os.remove(generation)
    if not bare:
        _published_style_config(os.path.join(directory, "config.json"), dtype)


def _save_vae(description, directory, seed):
    settings = dict(description["vae"])
    count = len(settings["block_out_channels"])
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * count,
        up_block_types=["UpDecoderBlock2D"] * count,
        act_fn="silu",
        force_upcast=True,
        **settings,
    )
    fill_random(model, seed, small_stream(description, "vae"))
    model.to(DTYPES[description["vae_dtype"]])
    model.save_pretrained(directory)


def build(description, directory, tokenizer=None):
    """Write a complete model directory; an existing one is replaced."""
    if os.path.isdir(directory):
        shutil.rmtree(directory)
    os.makedirs(directory)
    if tokenizer is None:
        tokenizer = tokenizer_files.train_small(description["tokenizer_vocab"])
    if tokenizer.get_vocab_size() > description["text_encoder"]["vocab_size"]:
        raise ValueError("the text encoder has too few embeddings for the tokenizer")
    seed = description["weight_seed"]

    def part(name):
        return os.path.join(directory, name)

    _save_transformer(description, part("transformer"), seed)
    save_text_encoder(description, part("text_encoder"), seed + 1)
    _save_vae(description, part("vae"), seed + 2)
    FlowMatchEulerDiscreteScheduler(**description["scheduler"]).save_pretrained(part("scheduler"))
    tokenizer_files.save(tokenizer, part("tokenizer"), **description.get("tokenizer_layout", {}))
    write_json(
        part("model_index.json"),
        {
            "_class_name": "ZImagePipeline",
            "_diffusers_version": "0.36.0",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "Qwen3Model"],
            "tokenizer": ["transformers", "Qwen2Tokenizer"],
            "transformer": ["diffusers", "ZImageTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
