"""The tiny Qwen-Image-Edit models of tests/fixtures and the runs recorded with them.

Edit takes one picture, Edit-Plus several. Pictures are small files that the
pipelines make as large as they do with any: about 1024 x 1024 pixels for the
VAE, and as much or 384 x 384 for the text encoder. So what is recorded are
results, and of the modules those that are small.

transformers gives tokens their positions in a picture only where it is told
which tokens those are (mm_token_type_ids). The pipelines do not tell it;
recorded is what the models were made with, three positions for each token.
"""

import os
import shutil

import numpy as np
import torch
from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import fixture_qwen_image as text_to_image
import model_files
import recording

DROPPED = 64
IMAGE = "<|image_pad|>"

TRANSFORMER = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 12,
    "num_attention_heads": 1,
    "joint_attention_dim": 32,
    "axes_dims_rope": [4, 4, 4],
}

COMMON = {
    "tokenizer_vocab": 560,
    "tokenizer_layout": {"layout": "vocab"},
    "text_encoder_dtype": "BF16",
    "text_encoder": {
        "vocab_size": 600,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "mrope_section": [2, 3, 3],
        "rope_theta": 1000.0,
    },
    "vision": {
        "depth": 3,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 12,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [1],
    },
    "transformer_dtype": "BF16",
    "vae_dtype": "BF16",
    "vae": {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": [1, 2, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
    },
    "scheduler": text_to_image.SCHEDULER,
}

EDIT = {
    **COMMON,
    "name": "qwen_edit",
    "class": "QwenImageEditPipeline",
    "weight_seed": 8000,
    "published_config": True,
    "transformer": TRANSFORMER,
    "runs": [
        {
            # 1184 x 896 pixels, 32 x 42 cells: windows that are not full at both edges.
            "name": "guided",
            "prompt": "Make it winter.",
            "negative_prompt": " ",
            "references": [[40, 30]],
            "width": 64,
            "height": 48,
            "steps": 2,
            "seed": 5,
            "true_cfg_scale": 4.0,
            "drop": ["prompt.features", "negative.features", "reference.", "negative.ids"],
        },
    ],
}

PLUS = {
    **COMMON,
    "name": "qwen_plus",
    "class": "QwenImageEditPlusPipeline",
    "weight_seed": 9000,
    "transformer": {**TRANSFORMER, "zero_cond_t": True},
    "runs": [
        {
            "name": "two_references",
            "prompt": "A red fox on a table.",
            "negative_prompt": "Blurry.",
            "references": [[33, 48], [64, 24]],
            "width": 48,
            "height": 64,
            "steps": 2,
            "seed": 6,
            "true_cfg_scale": 3.0,
            "drop": ["reference.", "negative.features"],
        },
    ],
}

# The same weights as 2509 uses them: references are modulated as the picture is.
PLUS_2509 = {
    "name": "qwen_2509",
    "class": "QwenImageEditPlusPipeline",
    "weights": "qwen_plus",
    "runs": [
        {
            "name": "two_references",
            "prompt": "The owl beside the apple, in snow.",
            "negative_prompt": " ",
            "references": [[56, 40], [36, 50]],
            "width": 64,
            "height": 32,
            "steps": 2,
            "seed": 8,
            "true_cfg_scale": 4.0,
            "modules": True,
            "drop": ["reference.", "negative.features"],
        },
    ],
}

MODELS = [EDIT, PLUS, PLUS_2509]

# What the configuration of 2509's transformer does not have.
NOT_IN_2509 = ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")


def _build_2509(description, directory):
    """Links to the other model, and a configuration of the transformer without zero_cond_t."""
    if os.path.isdir(directory):
        shutil.rmtree(directory)
    os.makedirs(os.path.join(directory, "transformer"))
    other = os.path.join(directory, "..", "..", description["weights"], "model")
    for part in ("model_index.json", "processor", "scheduler", "text_encoder", "tokenizer", "vae",
                 os.path.join("transformer", "diffusion_pytorch_model.safetensors")):
        place = os.path.join(directory, part)
        target = os.path.relpath(os.path.join(other, part), os.path.dirname(place))
        os.symlink(target, place)
    config = model_files._read_json(os.path.join(other, "transformer", "config.json"))
    for key in NOT_IN_2509:
        del config[key]
    model_files.write_json(os.path.join(directory, "transformer", "config.json"), config)


def build(description, directory):
    """As for text to image; and the processor's configuration."""
    if "weights" in description:
        _build_2509(description, directory)
        return
    text_to_image.build(description, directory)
    path = os.path.join(directory, "model_index.json")
    index = model_files._read_json(path)
    index["_class_name"] = description["class"]
    index["processor"] = ["transformers", "Qwen2VLProcessor"]
    model_files.write_json(path, index)
    os.makedirs(os.path.join(directory, "processor"))
    model_files.write_json(
        os.path.join(directory, "processor", "preprocessor_config.json"),
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "max_pixels": 12845056,
            "min_pixels": 3136,
            "merge_size": 2,
            "patch_size": 14,
            "temporal_patch_size": 2,
        },
    )


class Processor:
    """What Qwen2VLProcessor does with one text, without its part for films."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.pictures = Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=12845056)

    def __call__(self, text, images, padding, return_tensors):
        inputs = self.pictures(images, return_tensors="pt")
        parts = text[0].split(IMAGE)
        framed = parts[0]
        for grid, part in zip(inputs["image_grid_thw"], parts[1:]):
            framed += IMAGE * int(grid.prod() // 4) + part
        inputs.update(self.tokenizer([framed], return_tensors="pt"))
        return inputs


def load(description, directory, dtype=torch.float32):
    plain = text_to_image.load(directory, dtype)
    parts = dict(plain.components)
    kind = {"QwenImageEditPipeline": QwenImageEditPipeline,
            "QwenImageEditPlusPipeline": QwenImageEditPlusPipeline}[description["class"]]
    pipeline = kind(processor=Processor(parts["tokenizer"]), **parts)
    pipeline.set_progress_bar_config(disable=True)
    encoder = pipeline.text_encoder
    original = encoder.forward
    token = encoder.config.image_token_id

    def forward(input_ids=None, **keywords):
        return original(
            input_ids=input_ids, mm_token_type_ids=(input_ids == token).int(), **keywords
        )

    encoder.forward = forward
    return pipeline


def reference_image(index, size):
    """The test picture, different for each index."""
    pixels = recording.synthetic_image(*size)
    return Image.fromarray(np.ascontiguousarray(np.roll(pixels, index, axis=2)))


def attach_modules(pipeline, hooks, record):
    """Of the first forward pass what has the text's length: the pictures are too large."""
    every = {}
    text_to_image.attach_transformer(pipeline, hooks, every)

    def keep(_output):
        for name in ("rope.text.cos", "rope.text.sin", "txt_in", "transformer_blocks.0.text"):
            record["transformer." + name] = every["transformer." + name]

    hooks.output(pipeline.transformer, keep)


def record_run(pipeline, run):
    """Generate one image; returns a dictionary of all recorded tensors."""
    record = {}
    times = []
    scale = pipeline.vae_scale_factor
    grid = (run["height"] // scale, run["width"] // scale)
    outputs, decoded, count, prompts = [], [], [], []
    prepare_latents, encode = pipeline.prepare_latents, pipeline._encode_vae_image
    embed, process = pipeline._get_qwen_prompt_embeds, pipeline.processor.__class__.__call__

    def prepare(*arguments, **keywords):
        latents, references = prepare_latents(*arguments, **keywords)
        record["noise"] = text_to_image.planes(latents[0], *grid)
        return latents, references

    def encode_reference(image, generator):
        latents = encode(image=image, generator=generator)
        record["reference.%d.latents" % len(count)] = latents[0, :, 0].clone()
        count.append(1)
        return latents

    def embed_prompt(*arguments, **keywords):
        name = ("prompt", "negative")[len(prompts)]
        prompts.append(1)

        def call(processor, *rest, **more):
            inputs = process(processor, *rest, **more)
            record[name + ".ids"] = inputs["input_ids"][0].int()
            return inputs

        pipeline.processor.__class__.__call__ = call
        embeds, mask = embed(*arguments, **keywords)
        pipeline.processor.__class__.__call__ = process
        record[name + ".features"] = embeds[0].clone()
        return embeds, mask

    def step_end(_pipeline, step, _timestep, values):
        prefix = "step.%02d." % step
        tokens = grid[0] * grid[1] // 4
        record[prefix + "model_output"] = text_to_image.planes(outputs[2 * step][:tokens], *grid)
        record[prefix + "negative_output"] = text_to_image.planes(
            outputs[2 * step + 1][:tokens], *grid
        )
        if run.get("modules", False):
            record[prefix + "t_embedder"] = times[2 * step]
        record[prefix + "latents"] = text_to_image.planes(values["latents"][0], *grid)
        return {}

    pipeline.prepare_latents = prepare
    pipeline._encode_vae_image = encode_reference
    pipeline._get_qwen_prompt_embeds = embed_prompt
    pictures = [reference_image(i, size) for i, size in enumerate(run["references"])]
    with recording.Hooks() as hooks:
        hooks.output(pipeline.transformer, lambda output: outputs.append(output[0].clone()))
        hooks.output(pipeline.vae.decoder, lambda output: decoded.append(output[:, :, 0].clone()))
        if run.get("modules", False):
            hooks.output(
                pipeline.transformer.time_text_embed, lambda output: times.append(output[0].clone())
            )
            attach_modules(pipeline, hooks, record)
        result = pipeline(
            prompt=run["prompt"],
            negative_prompt=run["negative_prompt"],
            image=pictures if len(pictures) > 1 else pictures[0],
            width=run["width"],
            height=run["height"],
            num_inference_steps=run["steps"],
            true_cfg_scale=run["true_cfg_scale"],
            generator=torch.Generator("cpu").manual_seed(run["seed"]),
            callback_on_step_end=step_end,
        )
    del pipeline.prepare_latents
    del pipeline._encode_vae_image
    del pipeline._get_qwen_prompt_embeds
    record["sigmas"] = pipeline.scheduler.sigmas.clone()
    record["latents"] = record["step.%02d.latents" % (run["steps"] - 1)].clone()
    image = pipeline.image_processor.postprocess(decoded[0], output_type="pt")
    record["image"] = image[0].float()
    record["image.u8"] = torch.from_numpy(np.array(result.images[0]))
    return record


def arguments_of(description, run):
    """What a test needs to repeat the run."""
    arguments = text_to_image.arguments_of(description, run)
    arguments["references"] = len(run["references"])
    return arguments


def save_references(directory, run):
    """The pictures that a run is given, as RUN.N.png; one file for each."""
    for index, size in enumerate(run["references"]):
        name = "%s.%d.png" % (run["name"], index)
        reference_image(index, size).save(os.path.join(directory, name), optimize=True)
