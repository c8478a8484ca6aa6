#!/usr/bin/env python3
"""Build a random-weight Z-Image model directory of random, valid shapes.

    python tools/reference/random_model.py --out DIR --seed N [--kind turbo|base]

The same seed gives the same directory. Together with compare.py this tests
shapes that are too large to be kept as fixtures.
"""

import argparse
import json
import random
import warnings

import torch

import model_files

# Head dimensions as sums of the three axes of the rotary embedding.
AXES = [
    [2, 4, 6],
    [4, 4, 4],
    [4, 6, 6],
    [4, 8, 8],
    [8, 12, 12],
    [8, 8, 16],
    [16, 24, 24],
    [32, 48, 48],
]


def random_transformer(rng, latent_channels, cap_feat_dim):
    axes = rng.choice(AXES)
    head_dim = sum(axes)
    # Up to 384, so that some models are wider than the 256 of the modulation.
    heads = rng.randint(1, max(1, 384 // head_dim))
    return {
        "all_patch_size": [2],
        "all_f_patch_size": [1],
        "in_channels": latent_channels,
        "dim": heads * head_dim,
        "n_layers": rng.randint(1, 4),
        "n_refiner_layers": rng.randint(1, 2),
        "n_heads": heads,
        "n_kv_heads": heads,
        "norm_eps": rng.choice([1e-5, 1e-5, 1e-3]),
        "qk_norm": True,
        "cap_feat_dim": cap_feat_dim,
        "rope_theta": rng.choice([256.0, 256.0, 100.0]),
        "t_scale": 1000.0,
        "axes_dims": axes,
        "axes_lens": [1536, 512, 512],
    }


def random_text_encoder(rng, vocab_size):
    kv_heads = rng.randint(1, 3)
    return {
        "vocab_size": vocab_size,
        "hidden_size": 4 * rng.randint(6, 40),
        "intermediate_size": 4 * rng.randint(8, 60),
        "num_hidden_layers": rng.randint(2, 5),
        "num_attention_heads": kv_heads * rng.randint(1, 4),
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * rng.randint(3, 32),
        "rope_theta": rng.choice([1000000, 10000]),
    }


def random_vae(rng):
    groups = rng.randint(1, 8)
    quant = rng.random() < 0.3
    return {
        "latent_channels": rng.choice([4, 8, 16, 16, 32]),
        "block_out_channels": [groups * rng.randint(1, 4) for _ in range(4)],
        "layers_per_block": rng.randint(1, 2),
        "norm_num_groups": groups,
        "sample_size": 1024,
        "scaling_factor": rng.choice([0.3611, 0.5]),
        "shift_factor": rng.choice([0.1159, -0.25]),
        "use_quant_conv": quant,
        "use_post_quant_conv": quant,
    }


def random_description(seed, kind):
    """The description of a model, as model_files.build takes it."""
    rng = random.Random(seed)
    tokenizer_vocab = rng.randint(300, 700)
    text_encoder = random_text_encoder(rng, tokenizer_vocab + 26 + rng.randint(0, 40))
    vae = random_vae(rng)
    description = {
        "weight_seed": seed,
        "tokenizer_vocab": tokenizer_vocab,
        "tokenizer_layout": rng.choice(
            [
                {"layout": "json"},
                {"layout": "json", "merges_as_strings": True},
                {"layout": "json", "template_inside": False},
                {"layout": "vocab"},
            ]
        ),
        "transformer": random_transformer(rng, vae["latent_channels"], text_encoder["hidden_size"]),
        "transformer_dtype": rng.choice(["F32", "BF16", "F16"]),
        "text_encoder": text_encoder,
        "text_encoder_dtype": rng.choice(["F32", "BF16", "F16"]),
        "text_encoder_bare": rng.random() < 0.3,
        "vae": vae,
        "vae_dtype": rng.choice(["F32", "BF16", "F16"]),
        "scheduler": {
            "num_train_timesteps": 1000,
            "shift": 3.0 if kind == "turbo" else 6.0,
            "use_dynamic_shifting": False,
        },
    }
    description["small_streams"] = [
        part for part in ("transformer", "text_encoder", "vae") if rng.random() < 0.3
    ]
    if rng.random() < 0.5:
        description["transformer_shard_size"] = rng.randint(300, 3000) * 1000
    if rng.random() < 0.5:
        description["text_encoder_shard_size"] = rng.randint(50, 500) * 1000
    return description


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="the directory to write; replaced if it exists")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--kind", choices=["turbo", "base"], default="turbo")
    arguments = parser.parse_args()

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    description = random_description(arguments.seed, arguments.kind)
    print(json.dumps(description, indent=2, sort_keys=True))
    model_files.build(description, arguments.out)


if __name__ == "__main__":
    main()
