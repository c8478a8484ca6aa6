"""The tiny FLUX.2-klein models of tests/fixtures and the runs recorded with them.

The text encoder has 28 layers, because the pipeline takes its features behind
layers 9, 18 and 27; everything else is as small as it can be.
"""

import json
import os
import shutil

import numpy as np
import torch
from diffusers import (
    AutoencoderKLFlux2,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from PIL import Image

import model_files
import recording
import tokenizer_files

TEXT = 512  # tokens of every prompt, padding included
PROMPT = "A red fox."
LONG_PROMPT = "A photograph of a mountain lake at sunset, " * 40  # more than 512 tokens

SCHEDULER = {
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}

# Of what the modules compute, that which tells little more than the rest and is large.
LARGE = [
    "transformer.rope.text.cos",
    "transformer.rope.text.sin",
    "transformer.context_embedder",
    "transformer.transformer_blocks.0.text",
    "transformer.single_transformer_blocks.0",
]

DISTILLED = {
    "name": "klein",
    "weight_seed": 4000,
    "distilled": True,
    "tokenizer_vocab": 560,
    "tokenizer_layout": {"layout": "json"},
    "transformer_dtype": "F32",
    "transformer": {
        "patch_size": 1,
        "in_channels": 32,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 12,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "timestep_guidance_channels": 256,
        "mlp_ratio": 3.0,
        "axes_dims_rope": [2, 4, 4, 2],
        "rope_theta": 2000,
        "eps": 1e-6,
        "guidance_embeds": False,
    },
    "text_encoder_dtype": "BF16",
    "text_encoder": {
        "vocab_size": 600,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 28,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_theta": 1000000,
    },
    "vae_dtype": "F32",
    "vae": {
        "latent_channels": 8,
        "block_out_channels": [8, 8, 8, 12],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 1024,
    },
    "scheduler": SCHEDULER,
    "runs": [
        {
            "name": "small",
            "prompt": PROMPT,
            "width": 48,
            "height": 32,
            "steps": 2,
            "seed": 7,
            "modules": True,
            "drop": [
                "text_encoder.embed_tokens",
                "transformer.transformer_blocks.0.text",
                "transformer.single_transformer_blocks.0",
                "vae.decoder.up_blocks.2",
            ],
        },
        {
            "name": "wide",
            "prompt": "A watercolour painting of a red fox; 山间的湖水。",
            "width": 112,
            "height": 48,
            "steps": 4,
            "seed": 42,
            "bfloat16": True,
            "drop": ["prompt.features"],
        },
        {
            "name": "truncated_prompt",
            "prompt": LONG_PROMPT,
            "width": 32,
            "height": 32,
            "steps": 1,
            "seed": 2,
            "drop": ["prompt.features", "image"],
        },
        {
            "name": "one_reference",
            "prompt": PROMPT,
            "width": 48,
            "height": 32,
            "steps": 2,
            "seed": 11,
            "references": [[80, 64]],
            "modules": True,
            "drop": LARGE + ["prompt.features", "text_encoder.", "vae.", "image"],
        },
        {
            # The second and third are cropped to 64 x 80 and 96 x 64; the size is that of the first.
            "name": "three_references",
            "prompt": PROMPT,
            "steps": 2,
            "seed": 12,
            "references": [[64, 64], [71, 90], [99, 66]],
            "drop": ["prompt.features"],
        },
    ],
}

BASE = {
    "name": "klein_base",
    "weight_seed": 5000,
    "distilled": False,
    "tokenizer_vocab": 560,
    "tokenizer_layout": {"layout": "vocab"},
    "transformer_dtype": "BF16",
    "transformer_shard_size": 60000,
    "transformer": {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 3,
        "attention_head_dim": 32,
        "num_attention_heads": 1,
        "joint_attention_dim": 48,
        "timestep_guidance_channels": 64,
        "mlp_ratio": 2.0,
        "axes_dims_rope": [8, 8, 8, 8],
        "rope_theta": 100,
        # Large enough to be seen in the norms of queries and keys, too.
        "eps": 0.01,
        "guidance_embeds": False,
    },
    "text_encoder_dtype": "BF16",
    "text_encoder_shard_size": 80000,
    "small_streams": ["text_encoder", "vae"],
    "text_encoder": {
        "vocab_size": 600,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 29,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "rope_theta": 10000,
    },
    "vae_dtype": "BF16",
    "vae": {
        "latent_channels": 4,
        "block_out_channels": [4, 8, 12],
        # The "small decoder".
        "decoder_block_out_channels": [4, 6, 8],
        "layers_per_block": 2,
        "norm_num_groups": 2,
        "sample_size": 512,
        "use_quant_conv": False,
        "batch_norm_eps": 0.001,
    },
    "scheduler": {**SCHEDULER, "shift": 1.0},
    "runs": [
        {
            "name": "guided",
            "prompt": PROMPT,
            "negative_prompt": "Blurry, low quality.",
            "width": 40,
            "height": 24,
            "steps": 3,
            "seed": 123456789012,
            "guidance_scale": 4.0,
            "modules": True,
            "drop": LARGE + ["text_encoder.", "negative.features"],
        },
        {
            "name": "guided_reference",
            "prompt": PROMPT,
            "steps": 2,
            "seed": 5,
            "guidance_scale": 2.5,
            "references": [[65, 72]],
            "drop": ["prompt.features", "negative.features"],
        },
        {
            "name": "unguided",
            "prompt": PROMPT,
            "width": 32,
            "height": 40,
            "steps": 50,
            "seed": 3,
            "guidance_scale": 1.0,
            "only": ["prompt.ids", "noise", "sigmas", "latents", "image.u8"],
        },
    ],
}

# The distilled model as if it were trained for references that see only one another.
KV = {
    "name": "klein_kv",
    "weights": "klein",
    "runs": [
        {
            "name": "two_references",
            "prompt": PROMPT,
            "width": 48,
            "height": 32,
            "steps": 3,
            "seed": 21,
            "references": [[64, 64], [70, 80]],
            "drop": ["prompt.features", "image"],
        },
        {
            "name": "no_reference",
            "prompt": PROMPT,
            "width": 32,
            "height": 32,
            "steps": 2,
            "seed": 22,
            "only": ["noise", "latents", "image.u8"],
        },
    ],
}

MODELS = [DISTILLED, BASE, KV]


# ---- Models -------------------------------------------------------------------------------------


def _save_transformer(description, directory, seed):
    model = Flux2Transformer2DModel(**description["transformer"])
    model_files.fill_random(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Scales stay in a range where 1 + scale rarely changes its sign.
            if "modulation" in name or "norm_out" in name:
                parameter.mul_(0.5)
    model.to(model_files.DTYPES[description["transformer_dtype"]])
    sharding = {}
    if "transformer_shard_size" in description:
        sharding["max_shard_size"] = description["transformer_shard_size"]
    model.save_pretrained(directory, **sharding)


def _save_vae(description, directory, seed):
    settings = dict(description["vae"])
    count = len(settings["block_out_channels"])
    model = AutoencoderKLFlux2(
        down_block_types=["DownEncoderBlock2D"] * count,
        up_block_types=["UpDecoderBlock2D"] * count,
        **settings,
    )
    model_files.fill_random(model, seed, model_files.small_stream(description, "vae"))
    rng = np.random.default_rng([seed, 1])
    channels = model.bn.running_mean.shape[0]
    model.bn.running_mean.copy_(torch.from_numpy(0.3 * rng.standard_normal(channels)))
    # Some are so small that the epsilon matters.
    model.bn.running_var.copy_(torch.from_numpy(rng.uniform(0.002, 1.5, channels)))
    model.to(model_files.DTYPES[description["vae_dtype"]])
    model.save_pretrained(directory)


def _index(description):
    kv = "weights" in description
    index = {
        "_class_name": "Flux2KleinKVPipeline" if kv else "Flux2KleinPipeline",
        "_diffusers_version": "0.37.0.dev0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        "tokenizer": ["transformers", "Qwen2TokenizerFast"],
        "transformer": ["diffusers", "Flux2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLFlux2"],
    }
    if not kv:
        index["is_distilled"] = description["distilled"]
    return index


def build(description, directory):
    """Write a complete model directory; an existing one is replaced."""
    if os.path.isdir(directory):
        shutil.rmtree(directory)
    os.makedirs(directory)
    model_files.write_json(os.path.join(directory, "model_index.json"), _index(description))
    if "weights" in description:
        for part in ("scheduler", "text_encoder", "tokenizer", "transformer", "vae"):
            target = os.path.join("..", "..", description["weights"], "model", part)
            os.symlink(target, os.path.join(directory, part))
        return
    tokenizer = tokenizer_files.train_small(description["tokenizer_vocab"])
    seed = description["weight_seed"]

    def part(name):
        return os.path.join(directory, name)

    _save_transformer(description, part("transformer"), seed)
    model_files.save_text_encoder(description, part("text_encoder"), seed + 1)
    _save_vae(description, part("vae"), seed + 2)
    FlowMatchEulerDiscreteScheduler(**description["scheduler"]).save_pretrained(part("scheduler"))
    tokenizer_files.save(tokenizer, part("tokenizer"), **description["tokenizer_layout"])


def load(directory, dtype=torch.float32):
    with open(os.path.join(directory, "model_index.json"), encoding="utf-8") as file:
        kv = "KV" in json.load(file)["_class_name"]
    kind = Flux2KleinKVPipeline if kv else Flux2KleinPipeline
    pipeline = kind.from_pretrained(directory, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# ---- Recording ----------------------------------------------------------------------------------


def reference_image(index, size):
    """The test picture, different for each index."""
    pixels = recording.synthetic_image(*size)
    return Image.fromarray(np.ascontiguousarray(np.roll(pixels, index, axis=2)))


def _planes(tokens, height, width):
    """[tokens, channels] to [channels, height, width]."""
    return tokens.float().T.reshape(-1, height, width).contiguous().clone()


def _encode_text(pipeline, text, prefix, record, modules):
    message = [{"role": "user", "content": text}]
    framed = pipeline.tokenizer.apply_chat_template(
        message, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    ids = pipeline.tokenizer(
        framed, padding="max_length", truncation=True, max_length=TEXT
    ).input_ids
    record[prefix + ".ids"] = torch.tensor(ids, dtype=torch.int32)
    encoder = pipeline.text_encoder.model
    with recording.Hooks() as hooks:
        if modules:

            def keep(name):
                def function(output):
                    record["text_encoder." + name] = output[0].clone()

                return function

            hooks.output(encoder.embed_tokens, keep("embed_tokens"))
            hooks.output(encoder.layers[0], keep("layers.0"))
        features, _ = pipeline.encode_prompt(text, device="cpu")
    record[prefix + ".features"] = features[0].clone()
    return features


def _attach_transformer(pipeline, hooks, record):
    """The modules of the first forward pass."""
    model = pipeline.transformer
    done = []

    def keep(name, part=None):
        def function(_module, _inputs, output):
            value = output if part is None else output[part]
            if not done:
                record["transformer." + name] = value[0].float().clone()

        return function

    def place(module, name, part=None):
        hooks._handles.append(module.register_forward_hook(keep(name, part)))

    kinds = iter(["image", "text"])

    def rope(_module, _inputs, output):
        kind = next(kinds, None)
        if kind:
            for name, table in zip(("cos", "sin"), output):
                record["transformer.rope.%s.%s" % (kind, name)] = table[:, ::2].float().contiguous()

    hooks._handles.append(model.pos_embed.register_forward_hook(rope))
    place(model.x_embedder, "x_embedder")
    place(model.context_embedder, "context_embedder")
    for index, block in enumerate(model.transformer_blocks):
        place(block, "transformer_blocks.%d.text" % index, 0)
        place(block, "transformer_blocks.%d" % index, 1)
    for index, block in enumerate(model.single_transformer_blocks):
        place(block, "single_transformer_blocks.%d" % index)
    hooks.output(model, lambda output: done.append(True))


def _attach_vae(pipeline, hooks, record):
    def keep(name):
        def function(output):
            record["vae." + name] = output[0].clone()

        return function

    vae = pipeline.vae
    hooks.output(vae.post_quant_conv, keep("post_quant_conv"))
    hooks.output(vae.decoder.conv_in, keep("decoder.conv_in"))
    hooks.output(vae.decoder.mid_block, keep("decoder.mid_block"))
    for index, block in enumerate(vae.decoder.up_blocks):
        hooks.output(block, keep("decoder.up_blocks.%d" % index))
    hooks.output(vae.decoder.conv_out, keep("decoder.conv_out"))


def _references(run):
    sizes = run.get("references", [])
    return [reference_image(index, size) for index, size in enumerate(sizes)]


def _generate(pipeline, run, embeds, **changes):
    arguments = {
        "prompt": run["prompt"],
        "width": run.get("width"),
        "height": run.get("height"),
        "num_inference_steps": run["steps"],
        "generator": torch.Generator("cpu").manual_seed(run["seed"]),
    }
    if isinstance(pipeline, Flux2KleinPipeline):
        arguments["guidance_scale"] = run.get("guidance_scale", 1.0)
        arguments["negative_prompt_embeds"] = embeds
    if run.get("references"):
        arguments["image"] = _references(run)
    arguments.update(changes)
    return pipeline(**arguments)


def record_run(pipeline, run):
    """Generate one image; returns a dictionary of all recorded tensors."""
    record = {}
    modules = run.get("modules", False)
    guided = run.get("guidance_scale", 1.0) > 1.0
    embeds = None
    with torch.no_grad():
        _encode_text(pipeline, run["prompt"], "prompt", record, modules)
        if guided:
            embeds = _encode_text(
                pipeline, run.get("negative_prompt", ""), "negative", record, False
            )
            if "negative_prompt" not in run:
                embeds = None  # the pipeline's own, from ""

    grid = []
    prepare_latents = pipeline.prepare_latents

    def prepare(*arguments, **keywords):
        latents, ids = prepare_latents(*arguments, **keywords)
        grid.extend([int(ids[0, -1, 1]) + 1, int(ids[0, -1, 2]) + 1])
        record["noise"] = _planes(latents[0], *grid)
        return latents, ids

    encode = pipeline._encode_vae_image
    count = []

    def encode_reference(image, generator):
        latents = encode(image=image, generator=generator)
        record["reference.%d.latents" % len(count)] = latents[0].clone()
        count.append(1)
        return latents

    outputs, moments, decoded = [], [], []
    pipeline.prepare_latents = prepare
    pipeline._encode_vae_image = encode_reference

    def time_embedded(_module, inputs, output):
        if inputs[0].max() > 0:  # 0 is that of references that stand apart
            moments.append(output[0].clone())

    def step_end(_pipeline, step, _timestep, values):
        prefix = "step.%02d." % step
        passes = 2 if guided else 1
        tokens = grid[0] * grid[1]
        record[prefix + "model_output"] = _planes(outputs[passes * step][:tokens], *grid)
        if guided:
            record[prefix + "negative_output"] = _planes(outputs[passes * step + 1][:tokens], *grid)
        record[prefix + "t_embedder"] = moments[passes * step]
        record[prefix + "latents"] = _planes(values["latents"][0], *grid)
        return {}

    with recording.Hooks() as hooks:
        hooks.output(pipeline.transformer, lambda output: outputs.append(output[0].clone()))
        hooks._handles.append(
            pipeline.transformer.time_guidance_embed.register_forward_hook(time_embedded)
        )
        hooks.output(pipeline.vae.decoder, lambda output: decoded.append(output.clone()))

        def unpacked(_module, inputs):
            record["vae.latents"] = inputs[0][0].clone()

        first = pipeline.vae.post_quant_conv
        if modules:
            hooks._handles.append(first.register_forward_pre_hook(unpacked))
            _attach_transformer(pipeline, hooks, record)
            _attach_vae(pipeline, hooks, record)
        result = _generate(pipeline, run, embeds, callback_on_step_end=step_end)
    del pipeline.prepare_latents
    del pipeline._encode_vae_image

    record["sigmas"] = pipeline.scheduler.sigmas.clone()
    record["latents"] = record["step.%02d.latents" % (run["steps"] - 1)].clone()
    image = pipeline.image_processor.postprocess(decoded[0], output_type="pt")
    record["image"] = image[0].float()
    record["image.u8"] = torch.from_numpy(np.array(result.images[0]))
    if "only" in run:
        record = {name: record[name] for name in run["only"]}
    return record


def record_bfloat16(directory, run, noise):
    """The same run with the whole pipeline in bfloat16; latents and image only."""
    pipeline = load(directory, torch.bfloat16)
    decoded, latents = [], []
    grid = noise.shape[1:]

    def step_end(_pipeline, _step, _timestep, values):
        latents.append(_planes(values["latents"][0], *grid))
        return {}

    with recording.Hooks() as hooks:
        hooks.output(pipeline.vae.decoder, lambda output: decoded.append(output.clone()))
        _generate(pipeline, run, None, latents=noise[None].clone(), callback_on_step_end=step_end)
    image = pipeline.image_processor.postprocess(decoded[0], output_type="pt")
    return {"bf16.latents": latents[-1].float(), "bf16.image": image[0].float()}


def arguments_of(description, run):
    """What a test needs to repeat the run."""
    return {
        "model": description["name"],
        "prompt": run["prompt"],
        "negative_prompt": run.get("negative_prompt", ""),
        "width": run.get("width", 0),
        "height": run.get("height", 0),
        "steps": run["steps"],
        "seed": run["seed"],
        "guidance_scale": run.get("guidance_scale", 1.0),
        "references": len(run.get("references", [])),
    }


def save_references(directory, run):
    """The pictures that a run is given, as RUN.N.png; one file for each."""
    for index, image in enumerate(_references(run)):
        name = "%s.%d.png" % (run["name"], index)
        image.save(os.path.join(directory, name), optimize=True)
