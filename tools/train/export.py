#!/usr/bin/env python3
"""Write a trained checkpoint as a folder that diffusers' ZImagePipeline loads.

    python3 export.py --checkpoint run --tokenizer tokenizer --out models/emoji-256

The checkpoint is what train.py leaves: vae.safetensors, text_encoder.safetensors and
transformer-*.safetensors, all in F16, and state.json with the latents' measured shift and scale.
"""
import argparse
import glob
import json
import os
import shutil

import torch
from diffusers import ZImagePipeline
from safetensors.torch import load_file, save_file

import model

PART = 12_000_000       # bytes of one part of a checkpoint


def write_checkpoint(folder, vae=None, text_encoder=None, transformer=None, state=None):
    """F16 tensors in parts that are easy to move around."""
    os.makedirs(folder, exist_ok=True)

    def half(module):
        # a tied output layer is the embedding again: leave it out
        return {k: v.detach().half().cpu().contiguous() for k, v in module.state_dict().items() if k != "lm_head.weight"}
    if vae is not None:
        save_file(half(vae), f"{folder}/vae.safetensors")
    if text_encoder is not None:
        save_file(half(text_encoder), f"{folder}/text_encoder.safetensors")
    if transformer is not None:
        part, size, n = {}, 0, 0
        for name, value in half(transformer).items():
            part[name] = value
            size += value.numel() * 2
            if size > PART:
                save_file(part, f"{folder}/transformer-{n}.safetensors")
                part, size, n = {}, 0, n + 1
        save_file(part, f"{folder}/transformer-{n}.safetensors")
    if state is not None:
        with open(f"{folder}/state.json", "w") as f:
            json.dump(state, f, indent=1)


def read_checkpoint(folder):
    """(vae, text encoder, transformer, state) in float32; a part that is missing keeps its random weights."""
    state = {}
    if os.path.exists(f"{folder}/state.json"):
        state = json.load(open(f"{folder}/state.json"))
    vae = model.build_vae(scaling_factor=state.get("scaling_factor", 1.0), shift_factor=state.get("shift_factor", 0.0))
    text_encoder, transformer = model.build_text_encoder(), model.build_transformer()
    for module, pattern in ((vae, "vae"), (text_encoder, "text_encoder"), (transformer, "transformer-*")):
        tensors = {}
        for path in glob.glob(f"{folder}/{pattern}.safetensors"):
            tensors.update(load_file(path))
        if tensors:
            missing, unexpected = module.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
            assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
        module.requires_grad_(False).eval()
    return vae, text_encoder, transformer, state


def write_pipeline(folder, vae, text_encoder, transformer, tokenizer_folder):
    for module, name in ((vae, "vae"), (text_encoder, "text_encoder"), (transformer, "transformer")):
        module.half().save_pretrained(f"{folder}/{name}")
    # Qwen3's published configuration, and transformers before 5, have this at the top
    path = f"{folder}/text_encoder/config.json"
    config = json.load(open(path))
    config["rope_theta"] = model.TEXT["rope_theta"]
    with open(path, "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")
    model.scheduler().save_pretrained(f"{folder}/scheduler")
    os.makedirs(f"{folder}/tokenizer", exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        shutil.copyfile(f"{tokenizer_folder}/{name}", f"{folder}/tokenizer/{name}")
    index = {"_class_name": "ZImagePipeline", "_diffusers_version": "0.36.0",
             "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
             "text_encoder": ["transformers", "Qwen3Model"],
             "tokenizer": ["transformers", "Qwen2Tokenizer"],
             "transformer": ["diffusers", "ZImageTransformer2DModel"],
             "vae": ["diffusers", "AutoencoderKL"]}
    with open(f"{folder}/model_index.json", "w") as f:
        json.dump(index, f, indent=2)
        f.write("\n")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--checkpoint", required=True)
    p.add_argument("--tokenizer", required=True)
    p.add_argument("--out", required=True)
    args = p.parse_args()
    vae, text_encoder, transformer, _ = read_checkpoint(args.checkpoint)
    write_pipeline(args.out, vae, text_encoder, transformer, args.tokenizer)
    ZImagePipeline.from_pretrained(args.out, torch_dtype=torch.float16)
    for path in glob.glob(f"{args.out}/*/*.safetensors"):
        os.chmod(path, 0o644)
    total = sum(os.path.getsize(f) for f in glob.glob(f"{args.out}/**/*", recursive=True) if os.path.isfile(f))
    print(f"{args.out}: {total:,} bytes")


if __name__ == "__main__":
    main()
