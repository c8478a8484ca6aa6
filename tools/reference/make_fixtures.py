#!/usr/bin/env python3
"""Regenerate tests/fixtures: tiny models, recorded runs, tokenizer, noise, sigmas.

    python tools/reference/make_fixtures.py [--only NAME ...] [--out DIR]

NAME is one of: turbo, base, head128, klein, klein_base, klein_kv, qwen, qwen_bf16, qwen_edit,
qwen_plus, qwen_2509, lora, tokenizer, rng, sigmas, pictures.
"""

import argparse
import json
import os
import warnings

import torch

import fixture_flux2
import fixture_lora
import fixture_models
import fixture_numbers
import fixture_pictures
import fixture_qwen_edit
import fixture_qwen_image
import fixture_tokenizer
import model_files
import recording
import safetensors_file

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

RUN_DEFAULTS = {
    "negative_prompt": "",
    "cfg_normalization": False,
    "cfg_truncation": 1.0,
}


def as_text(value):
    """Metadata of a safetensors file are strings: JSON for everything but strings."""
    return value if isinstance(value, str) else json.dumps(value)


def write_record(directory, name, tensors, description, drop=()):
    """Write NAME.safetensors, with the description as metadata, and NAME.json."""
    kept = {}
    for key, tensor in tensors.items():
        if not any(key == entry or (entry.endswith(".") and key.startswith(entry)) for entry in drop):
            kept[key] = tensor
    description = dict(description)
    description.update(recording.versions())
    metadata = {key: as_text(value) for key, value in description.items()}
    safetensors_file.save(os.path.join(directory, name + ".safetensors"), kept, metadata)
    with open(os.path.join(directory, name + ".json"), "w", encoding="utf-8", newline="\n") as file:
        json.dump(description, file, ensure_ascii=False, indent=2, sort_keys=True)
        file.write("\n")


def report(name, tensors):
    """Print what shows at a glance that a recorded run is worth testing against."""
    image = tensors["image"]
    clipped = ((image <= 0.0) | (image >= 1.0)).float().mean().item()
    largest = max(tensor.float().abs().max().item() for tensor in tensors.values()
                  if tensor.dtype == torch.float32)
    print("%-28s clipped pixels %4.1f %%, latents std %.3f, largest value %.1f"
          % (name, 100.0 * clipped, tensors["latents"].std().item(), largest))


def make_model(description, out):
    """Build one model directory and record all of its runs."""
    name = description["name"]
    directory = os.path.join(out, name)
    model = os.path.join(directory, "model")
    os.makedirs(directory, exist_ok=True)
    model_files.build(description, model)
    pipeline = recording.load_pipeline(model)
    for run in description["runs"]:
        arguments = {"model": name}
        for key in ("prompt", "negative_prompt", "width", "height", "steps", "seed",
                    "guidance_scale", "cfg_normalization", "cfg_truncation"):
            value = run.get(key)
            arguments[key] = RUN_DEFAULTS[key] if value is None else value
        tensors = recording.record_run(pipeline, run, run.get("modules", False))
        report(name + "/" + run["name"], tensors)
        write_record(directory, run["name"], tensors, arguments, run.get("drop", ()))
        if run.get("bfloat16", False):
            low = recording.record_bfloat16(model, run, tensors["noise"])
            arguments["computed_in"] = "bfloat16"
            write_record(directory, run["name"] + "_bf16", low, arguments)
    if "encode" in description:
        size = description["encode"]
        tensors = recording.record_encode(pipeline, size["width"], size["height"])
        write_record(directory, "encode", tensors, {"model": name, **size})


def make_flux2(description, out):
    """The same for a FLUX.2-klein model."""
    name = description["name"]
    directory = os.path.join(out, name)
    model = os.path.join(directory, "model")
    os.makedirs(directory, exist_ok=True)
    fixture_flux2.build(description, model)
    pipeline = fixture_flux2.load(model)
    for run in description["runs"]:
        arguments = fixture_flux2.arguments_of(description, run)
        fixture_flux2.save_references(directory, run)
        tensors = fixture_flux2.record_run(pipeline, run)
        if "image" in tensors:
            report(name + "/" + run["name"], tensors)
        write_record(directory, run["name"], tensors, arguments, run.get("drop", ()))
        if run.get("bfloat16", False):
            low = fixture_flux2.record_bfloat16(model, run, tensors["noise"])
            arguments["computed_in"] = "bfloat16"
            write_record(directory, run["name"] + "_bf16", low, arguments)


def make_qwen_image(description, out):
    """The same for a Qwen-Image model."""
    name = description["name"]
    directory = os.path.join(out, name)
    model = os.path.join(directory, "model")
    os.makedirs(directory, exist_ok=True)
    fixture_qwen_image.build(description, model)
    pipeline = fixture_qwen_image.load(model)
    for run in description["runs"]:
        arguments = fixture_qwen_image.arguments_of(description, run)
        tensors = fixture_qwen_image.record_run(pipeline, run)
        report(name + "/" + run["name"], tensors)
        kept = {key: tensors[key] for key in run["only"]} if "only" in run else tensors
        write_record(directory, run["name"], kept, arguments, run.get("drop", ()))
        if run.get("bfloat16", False):
            low = fixture_qwen_image.record_bfloat16(model, run, tensors["noise"])
            arguments["computed_in"] = "bfloat16"
            write_record(directory, run["name"] + "_bf16", low, arguments)
    size = dict(description["encode"])
    drop = size.pop("drop", ())
    tensors = fixture_qwen_image.record_encode(pipeline, size["width"], size["height"])
    write_record(directory, "encode", tensors, {"model": name, **size}, drop)


def make_qwen_edit(description, out):
    """The same for a Qwen-Image-Edit model."""
    name = description["name"]
    directory = os.path.join(out, name)
    model = os.path.join(directory, "model")
    os.makedirs(directory, exist_ok=True)
    fixture_qwen_edit.build(description, model)
    pipeline = fixture_qwen_edit.load(description, model)
    for run in description["runs"]:
        arguments = fixture_qwen_edit.arguments_of(description, run)
        fixture_qwen_edit.save_references(directory, run)
        tensors = fixture_qwen_edit.record_run(pipeline, run)
        report(name + "/" + run["name"], tensors)
        write_record(directory, run["name"], tensors, arguments, run.get("drop", ()))


def main():
    models = {description["name"]: description for description in fixture_models.MODELS}
    flux2 = {description["name"]: description for description in fixture_flux2.MODELS}
    qwen = {description["name"]: description for description in fixture_qwen_image.MODELS}
    edit = {description["name"]: description for description in fixture_qwen_edit.MODELS}
    names = list(models) + list(flux2) + list(qwen) + list(edit) + ["lora", "tokenizer", "rng", "sigmas", "pictures"]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default=os.path.join(ROOT, "tests", "fixtures"))
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    arguments = parser.parse_args()

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    os.makedirs(arguments.out, exist_ok=True)
    for name in arguments.only:
        if name in models:
            make_model(models[name], arguments.out)
        elif name in flux2:
            make_flux2(flux2[name], arguments.out)
        elif name in qwen:
            make_qwen_image(qwen[name], arguments.out)
        elif name in edit:
            make_qwen_edit(edit[name], arguments.out)
        elif name == "lora":
            fixture_lora.make(arguments.out, write_record)
        elif name == "tokenizer":
            fixture_tokenizer.write(os.path.join(arguments.out, "tokenizer"))
        elif name == "rng":
            fixture_numbers.write_rng(os.path.join(arguments.out, "rng.safetensors"))
        elif name == "sigmas":
            fixture_numbers.write_sigmas(os.path.join(arguments.out, "sigmas.json"))
        elif name == "pictures":
            fixture_pictures.write(os.path.join(arguments.out, "pictures"))


if __name__ == "__main__":
    main()
