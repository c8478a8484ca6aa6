#!/usr/bin/env python3
"""Write a model directory of the real size with random weights.

usage: full_size_model.py --out DIR --tokenizer DIR [--base] [--text-encoder-layers N] [--layers N] [--seed N]
                          [--model z-image|klein-4b|klein-9b|qwen-image|qwen-edit|qwen-edit-2509|qwen-edit-2511]
                          [--zeros]

Speed and memory depend on shapes, not on what the weights are, so a model of
random numbers measures both without a download. Weights are bf16 as in the
published files: 12.3 GB of transformer (klein 4B: 7.8, 9B: 18.2), 0.17 GB of VAE and
0.78 GB + 0.2 GB for each layer of the text encoder (the published one has 36). Qwen-Image
has 40.9 GB of transformer, 0.25 GB of VAE and 15.5 GB of text encoder (28 layers). Fewer
layers than the published model has make a smaller one whose layers are as wide; klein
keeps its double blocks and has so many single ones. --base: klein that is not
distilled. --zeros: weights are zeros that take no room on the disk. Needs numpy only.

Values are normal with a variance of 1 / fan-in, norm weights near 1, so that
activations keep their size through the network and no product overflows. They
are taken from one pool of random numbers, each tensor from a place of its own,
so that the writing takes as long as the disk does.
"""

import argparse
import json
import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import qwen_shapes

POOL = 1 << 24
LATENT_CHANNELS = 16

TRANSFORMER = {
    "_class_name": "ZImageTransformer2DModel",
    "all_patch_size": [2],
    "all_f_patch_size": [1],
    "in_channels": LATENT_CHANNELS,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "norm_eps": 1e-5,
    "qk_norm": True,
    "cap_feat_dim": 2560,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
}

TEXT_ENCODER = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 9728,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "use_sliding_window": False,
    "torch_dtype": "bfloat16",
}

VAE = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": LATENT_CHANNELS,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": True,
    "force_upcast": True,
}

SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": False,
}

INDEX = {
    "_class_name": "ZImagePipeline",
    "_diffusers_version": "0.36.0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3Model"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "ZImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


# ---- FLUX.2-klein --------------------------------------------------------------------------------

FLUX2_LATENTS = 32
FLUX2_PACKED = 4 * FLUX2_LATENTS

KLEIN = {
    "klein-4b": {"heads": 24, "doubles": 5, "singles": 20, "hidden": 2560, "intermediate": 9728},
    "klein-9b": {"heads": 32, "doubles": 8, "singles": 24, "hidden": 4096, "intermediate": 12288},
}

QWEN = ("qwen-image", "qwen-edit", "qwen-edit-2509", "qwen-edit-2511")

FLUX2_SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "time_shift_type": "exponential",
}


def flux2_config(size, singles):
    return {
        "_class_name": "Flux2Transformer2DModel",
        "patch_size": 1,
        "in_channels": FLUX2_PACKED,
        "out_channels": None,
        "num_layers": size["doubles"],
        "num_single_layers": singles,
        "attention_head_dim": 128,
        "num_attention_heads": size["heads"],
        "joint_attention_dim": 3 * size["hidden"],
        "timestep_guidance_channels": 256,
        "mlp_ratio": 3.0,
        "axes_dims_rope": [32, 32, 32, 32],
        "rope_theta": 2000,
        "eps": 1e-6,
        "guidance_embeds": False,
    }


def flux2_tensors(config):
    head = config["attention_head_dim"]
    dim = config["num_attention_heads"] * head
    inner = int(dim * config["mlp_ratio"])
    tensors = {
        "x_embedder.weight": (dim, FLUX2_PACKED),
        "context_embedder.weight": (dim, config["joint_attention_dim"]),
        "time_guidance_embed.timestep_embedder.linear_1.weight": (dim, 256),
        "time_guidance_embed.timestep_embedder.linear_2.weight": (dim, dim),
        "double_stream_modulation_img.linear.weight": (6 * dim, dim),
        "double_stream_modulation_txt.linear.weight": (6 * dim, dim),
        "single_stream_modulation.linear.weight": (3 * dim, dim),
        "norm_out.linear.weight": (2 * dim, dim),
        "proj_out.weight": (FLUX2_PACKED, dim),
    }
    for index in range(config["num_layers"]):
        block = f"transformer_blocks.{index}."
        for part in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0",
                     "to_add_out"):
            tensors[f"{block}attn.{part}.weight"] = (dim, dim)
        for part in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            tensors[f"{block}attn.{part}.weight"] = (head,)
        for part in ("ff", "ff_context"):
            tensors[f"{block}{part}.linear_in.weight"] = (2 * inner, dim)
            tensors[f"{block}{part}.linear_out.weight"] = (dim, inner)
    for index in range(config["num_single_layers"]):
        block = f"single_transformer_blocks.{index}.attn."
        tensors[block + "to_qkv_mlp_proj.weight"] = (3 * dim + 2 * inner, dim)
        tensors[block + "to_out.weight"] = (dim, dim + inner)
        tensors[block + "norm_q.weight"] = (head,)
        tensors[block + "norm_k.weight"] = (head,)
    return tensors


def flux2_vae():
    config = dict(VAE, _class_name="AutoencoderKLFlux2", latent_channels=FLUX2_LATENTS,
                  use_quant_conv=True, use_post_quant_conv=True, batch_norm_eps=1e-4, patch_size=[2, 2])
    for key in ("scaling_factor", "shift_factor"):
        del config[key]
    tensors = vae_tensors(FLUX2_LATENTS)
    for name, width in (("quant_conv", 2 * FLUX2_LATENTS), ("post_quant_conv", FLUX2_LATENTS)):
        tensors[name + ".weight"] = (width, width, 1, 1)
        tensors[name + ".bias"] = (width,)
    tensors["bn.running_mean"] = tensors["bn.running_var"] = (FLUX2_PACKED,)
    return config, tensors


# ---- Z-Image -------------------------------------------------------------------------------------


def transformer_tensors(layers):
    """Names and shapes. The feed-forward width is int(dim / 3 * 8), as in the reference."""
    dim, head = TRANSFORMER["dim"], TRANSFORMER["dim"] // TRANSFORMER["n_heads"]
    inner, modulation = int(dim / 3 * 8), min(dim, 256)
    patch = LATENT_CHANNELS * TRANSFORMER["all_patch_size"][0] ** 2
    tensors = {}

    def linear(name, out, inputs, bias=True):
        tensors[name + ".weight"] = (out, inputs)
        if bias:
            tensors[name + ".bias"] = (out,)

    linear("t_embedder.mlp.0", 1024, 256)
    linear("t_embedder.mlp.2", modulation, 1024)
    linear("all_x_embedder.2-1", dim, patch)
    tensors["cap_embedder.0.weight"] = (TRANSFORMER["cap_feat_dim"],)
    linear("cap_embedder.1", dim, TRANSFORMER["cap_feat_dim"])
    tensors["x_pad_token"] = (1, dim)
    tensors["cap_pad_token"] = (1, dim)
    linear("all_final_layer.2-1.adaLN_modulation.1", dim, modulation)
    linear("all_final_layer.2-1.linear", patch, dim)
    stages = [
        ("noise_refiner", TRANSFORMER["n_refiner_layers"], True),
        ("context_refiner", TRANSFORMER["n_refiner_layers"], False),
        ("layers", layers, True),
    ]
    for stage, count, modulated in stages:
        for index in range(count):
            block = f"{stage}.{index}."
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                linear(f"{block}attention.{part}", dim, dim, bias=False)
            for part in ("norm_q", "norm_k"):
                tensors[f"{block}attention.{part}.weight"] = (head,)
            linear(f"{block}feed_forward.w1", inner, dim, bias=False)
            linear(f"{block}feed_forward.w2", dim, inner, bias=False)
            linear(f"{block}feed_forward.w3", inner, dim, bias=False)
            for part in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
                tensors[f"{block}{part}.weight"] = (dim,)
            if modulated:
                linear(block + "adaLN_modulation.0", 4 * dim, modulation)
    return tensors


def text_encoder_tensors(c):
    layers = c["num_hidden_layers"]
    hidden, head = c["hidden_size"], c["head_dim"]
    queries, keys = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    tensors = {"model.embed_tokens.weight": (c["vocab_size"], hidden)}
    for index in range(layers):
        block = f"model.layers.{index}."
        tensors[block + "input_layernorm.weight"] = (hidden,)
        tensors[block + "post_attention_layernorm.weight"] = (hidden,)
        tensors[block + "self_attn.q_proj.weight"] = (queries, hidden)
        tensors[block + "self_attn.k_proj.weight"] = (keys, hidden)
        tensors[block + "self_attn.v_proj.weight"] = (keys, hidden)
        tensors[block + "self_attn.o_proj.weight"] = (hidden, queries)
        tensors[block + "self_attn.q_norm.weight"] = (head,)
        tensors[block + "self_attn.k_norm.weight"] = (head,)
        tensors[block + "mlp.gate_proj.weight"] = (c["intermediate_size"], hidden)
        tensors[block + "mlp.up_proj.weight"] = (c["intermediate_size"], hidden)
        tensors[block + "mlp.down_proj.weight"] = (hidden, c["intermediate_size"])
    tensors["model.norm.weight"] = (hidden,)
    return tensors


def vae_tensors(latents=LATENT_CHANNELS):
    widths, blocks = VAE["block_out_channels"], VAE["layers_per_block"]
    widest = widths[-1]
    tensors = {}

    def affine(name, shape):
        tensors[name + ".weight"] = shape
        tensors[name + ".bias"] = shape[:1]

    def conv(name, out, inputs, kernel=3):
        affine(name, (out, inputs, kernel, kernel))

    def residual(name, inputs, out):
        affine(name + ".norm1", (inputs,))
        conv(name + ".conv1", out, inputs)
        affine(name + ".norm2", (out,))
        conv(name + ".conv2", out, out)
        if inputs != out:
            conv(name + ".conv_shortcut", out, inputs, 1)

    def middle(side):
        for index in range(2):
            residual(f"{side}.mid_block.resnets.{index}", widest, widest)
        attention = f"{side}.mid_block.attentions.0."
        affine(attention + "group_norm", (widest,))
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            affine(attention + part, (widest, widest))

    def levels(name, order, count, sampler):
        width = order[0]
        for level, out in enumerate(order):
            for index in range(count):
                residual(f"{name}.{level}.resnets.{index}", width, out)
                width = out
            if level + 1 < len(order):
                conv(f"{name}.{level}.{sampler}.0.conv", out, out)

    conv("encoder.conv_in", widths[0], VAE["in_channels"])
    levels("encoder.down_blocks", widths, blocks, "downsamplers")
    middle("encoder")
    affine("encoder.conv_norm_out", (widest,))
    conv("encoder.conv_out", 2 * latents, widest)
    conv("decoder.conv_in", widest, latents)
    middle("decoder")
    levels("decoder.up_blocks", widths[::-1], blocks + 1, "upsamplers")
    affine("decoder.conv_norm_out", (widths[0],))
    conv("decoder.conv_out", VAE["out_channels"], widths[0])
    return tensors


class Weights:
    """Random bf16 numbers of any mean and deviation, without drawing them twice."""

    def __init__(self, seed):
        self.normal = np.random.default_rng(seed).standard_normal(POOL, dtype=np.float32)
        self.seed = seed
        self.pools = {}

    def pool(self, mean, deviation):
        if (mean, deviation) not in self.pools:
            bits = (mean + deviation * self.normal).astype(np.float32).view(np.uint32)
            self.pools[mean, deviation] = ((bits + np.uint32(0x8000)) >> 16).astype(np.uint16)
        return self.pools[mean, deviation]

    def prepare(self, name, shape):
        """The pool of a tensor and where the tensor begins in it."""
        if name.endswith("bias") or name.endswith("mean"):
            mean, deviation = 0.0, 0.1
        elif len(shape) == 1 or name.endswith("gamma"):
            mean, deviation = 1.0, 0.1
        elif name.endswith("pad_token") or "embed_tokens" in name:
            mean, deviation = 0.0, 1.0
        else:
            mean, deviation = 0.0, float(np.prod(shape[1:])) ** -0.5
        start = zlib.crc32(f"{self.seed} {name}".encode()) % POOL
        return self.pool(mean, deviation), start


def write_at(file, offset, pool, start, count):
    """count numbers from a pool that is read round and round, at a byte offset of a file."""
    while count > 0:
        part = min(count, POOL - start)
        data = memoryview(pool[start : start + part]).cast("B")
        while len(data) > 0:
            written = os.pwrite(file, data, offset)
            offset += written
            data = data[written:]
        count -= part
        start = 0


def write_safetensors(path, tensors, weights, threads):
    """tensors: name -> shape. weights None: zeros, which take no room; norms and statistics too."""
    header, offset = {}, 0
    for name, shape in tensors.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    with open(path, "wb", buffering=0) as file, ThreadPoolExecutor(threads) as workers:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(begin + offset)
        jobs = []
        for name, shape in tensors.items() if weights else ():
            pool, start = weights.prepare(name, shape)
            at = begin + header[name]["data_offsets"][0]
            jobs.append(workers.submit(write_at, file.fileno(), at, pool, start, int(np.prod(shape))))
        for job in jobs:
            job.result()


def write_json(path, value):
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def text_encoder_config(args, **sizes):
    layers = args.text_encoder_layers
    return dict(TEXT_ENCODER, **sizes, **({} if layers is None else {"num_hidden_layers": layers}))


def z_image_parts(args):
    layers = args.layers or TRANSFORMER["n_layers"]
    encoder = text_encoder_config(args)
    parts = {
        "transformer": (dict(TRANSFORMER, n_layers=layers), transformer_tensors(layers)),
        "text_encoder": (encoder, text_encoder_tensors(encoder)),
        "vae": (VAE, vae_tensors()),
    }
    return parts, SCHEDULER, INDEX


def klein_parts(args):
    size = KLEIN[args.model]
    transformer = flux2_config(size, args.layers or size["singles"])
    encoder = text_encoder_config(args, hidden_size=size["hidden"], intermediate_size=size["intermediate"])
    parts = {
        "transformer": (transformer, flux2_tensors(transformer)),
        "text_encoder": (encoder, text_encoder_tensors(encoder)),
        "vae": flux2_vae(),
    }
    index = dict(INDEX, _class_name="Flux2KleinPipeline", is_distilled=not args.base,
                 text_encoder=["transformers", "Qwen3ForCausalLM"],
                 transformer=["diffusers", "Flux2Transformer2DModel"],
                 vae=["diffusers", "AutoencoderKLFlux2"])
    return parts, FLUX2_SCHEDULER, index


def qwen_parts(args):
    return qwen_shapes.parts(args.model, args.layers, args.text_encoder_layers)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="the directory to write")
    parser.add_argument("--tokenizer", required=True, help="the tokenizer/ of any model directory")
    parser.add_argument("--model", choices=["z-image", *KLEIN, *QWEN], default="z-image")
    parser.add_argument("--base", action="store_true")
    parser.add_argument("--text-encoder-layers", type=int)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--zeros", action="store_true")
    args = parser.parse_args()

    weights = None if args.zeros else Weights(args.seed)
    make = z_image_parts if args.model == "z-image" else klein_parts if args.model in KLEIN else qwen_parts
    parts, scheduler, index = make(args)
    for folder, (config, tensors) in parts.items():
        path = os.path.join(args.out, folder)
        os.makedirs(path, exist_ok=True)
        write_json(os.path.join(path, "config.json"), config)
        stem = "model" if folder == "text_encoder" else "diffusion_pytorch_model"
        write_safetensors(os.path.join(path, stem + ".safetensors"), tensors, weights, args.threads)
        total = sum(int(np.prod(shape)) for shape in tensors.values())
        print(f"{folder}: {len(tensors)} tensors, {total} parameters", flush=True)
    os.makedirs(os.path.join(args.out, "scheduler"), exist_ok=True)
    write_json(os.path.join(args.out, "scheduler", "scheduler_config.json"), scheduler)
    write_json(os.path.join(args.out, "model_index.json"), index)
    if "processor" in index:
        os.makedirs(os.path.join(args.out, "processor"), exist_ok=True)
        write_json(os.path.join(args.out, "processor", "preprocessor_config.json"), qwen_shapes.PROCESSOR)
    tokenizer = os.path.join(args.out, "tokenizer")
    os.makedirs(tokenizer, exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        if os.path.exists(os.path.join(args.tokenizer, file)):
            shutil.copy(os.path.join(args.tokenizer, file), tokenizer)


if __name__ == "__main__":
    main()
