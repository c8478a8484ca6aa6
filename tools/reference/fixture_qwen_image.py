"""The tiny Qwen-Image models of tests/fixtures and the runs recorded with them.

Text to image: Qwen2.5-VL without a picture, double-stream transformer, the
causal 3-D VAE on a single frame.
"""

import os
import shutil

import numpy as np
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import model_files
import recording
import tokenizer_files
from qwen_shapes import SCHEDULER

DROPPED = 34  # tokens of the frame whose features are not used
TEXT = 1024  # features of a prompt at the most

PROMPT = "A red fox."
LONG_PROMPT = "A photograph of a mountain lake at sunset, " * 80  # more than 1024 tokens

VISION = {
    "depth": 1,
    "hidden_size": 8,
    "num_heads": 2,
    "intermediate_size": 8,
    "patch_size": 2,
    "window_size": 8,
    "fullatt_block_indexes": [0],
}

# Every part in float32, the configuration of the text encoder as transformers 5 writes it.
SMALL = {
    "name": "qwen",
    "weight_seed": 6000,
    "tokenizer_vocab": 560,
    "tokenizer_layout": {"layout": "json"},
    "text_encoder_dtype": "F32",
    "text_encoder": {
        "vocab_size": 600,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "mrope_section": [1, 1, 2],
        "rope_theta": 1000000.0,
    },
    "transformer_dtype": "F32",
    "transformer": {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 12,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "axes_dims_rope": [4, 4, 4],
    },
    "vae_dtype": "F32",
    "vae": {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": [1, 2, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
    },
    "scheduler": SCHEDULER,
    "runs": [
        {
            "name": "guided",
            "prompt": PROMPT,
            "negative_prompt": "Blurry, low quality, text.",
            "width": 48,
            "height": 80,
            "steps": 3,
            "seed": 7,
            "true_cfg_scale": 4.0,
            "modules": True,
            "drop": ["text_encoder.embed_tokens", "text_encoder.layers.0", "negative.features",
                     "transformer.rope.text.", "transformer.transformer_blocks.0.text",
                     "vae.decoder.up_blocks.2", "vae.decoder.conv_out"],
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
            "name": "long_negative",
            "prompt": PROMPT,
            "negative_prompt": "A photograph of a mountain lake. " * 4,
            "width": 32,
            "height": 32,
            "steps": 8,
            "seed": 123456789012,
            "true_cfg_scale": 2.5,
            "only": ["prompt.ids", "negative.ids", "noise", "sigmas", "latents", "image.u8"],
        },
        {
            "name": "truncated_prompt",
            "prompt": LONG_PROMPT,
            "width": 32,
            "height": 48,
            "steps": 2,
            "seed": 2,
            "only": ["prompt.ids", "noise", "sigmas", "latents", "image.u8"],
        },
    ],
    "encode": {"width": 48, "height": 32},
}

# The published style: bfloat16, vocab.json, shards, a configuration with everything on top.
PUBLISHED = {
    "name": "qwen_bf16",
    "weight_seed": 7000,
    "tied": False,
    "published_config": True,
    "tokenizer_vocab": 560,
    "tokenizer_layout": {"layout": "vocab"},
    "text_encoder_dtype": "BF16",
    "text_encoder_shard_size": 60000,
    "small_streams": True,
    "text_encoder": {
        "vocab_size": 600,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "mrope_section": [1, 1, 2],
        "rope_theta": 10000.0,
    },
    "transformer_dtype": "BF16",
    "transformer_shard_size": 60000,
    "transformer": {
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 3,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 1,
        "joint_attention_dim": 24,
        "axes_dims_rope": [4, 4, 8],
        "guidance_embeds": False,
    },
    "vae_dtype": "BF16",
    "vae": {
        "base_dim": 8,
        "z_dim": 3,
        "dim_mult": [1, 2, 1],
        "num_res_blocks": 2,
        "temperal_downsample": [False, True],
        "latents_mean": [-0.7, 0.1, 1.5],
        "latents_std": [2.8, 1.4, 0.6],
    },
    # Lightning: a shift that is the same for all sizes, no stretch.
    "scheduler": {
        **SCHEDULER,
        "base_shift": 1.0986122886681098,
        "max_shift": 1.0986122886681098,
        "shift_terminal": None,
    },
    "runs": [
        {
            "name": "guided",
            "prompt": "A city street at night, neon signs.",
            "negative_prompt": " ",
            "width": 24,
            "height": 40,
            "steps": 4,
            "seed": 11,
            "true_cfg_scale": 3.0,
            "modules": True,
            "drop": ["text_encoder.", "negative.features"],
        },
        {
            "name": "unguided",
            "prompt": PROMPT,
            "width": 32,
            "height": 24,
            "steps": 8,
            "seed": 3,
            "only": ["prompt.ids", "noise", "sigmas", "latents", "image.u8"],
        },
    ],
    "encode": {
        "width": 24,
        "height": 40,
        "drop": ["vae.encoder.conv_in", "vae.encoder.down_blocks.0"],
    },
}

MODELS = [SMALL, PUBLISHED]


# ---- Models -------------------------------------------------------------------------------------


def fill_text_encoder(model, seed, small):
    model_files.fill_random(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Products of attention that differ from word to word.
            if name.endswith(("q_proj.bias", "k_proj.bias")):
                parameter.mul_(5.0)
            elif small and ("embed_tokens" in name or "o_proj" in name or "down_proj" in name):
                parameter.mul_(0.02)


def _published_config(path, dtype):
    """As transformers 4 wrote it: the members of the language model on top."""
    config = model_files._read_json(path)
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text.pop("dtype", None)
    text.pop("layer_types", None)
    text.pop("model_type", None)
    config.pop("dtype", None)
    config.update({key: value for key, value in text.items() if value is not None})
    config["rope_theta"] = rope["rope_theta"]
    config["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    config["torch_dtype"] = {"F32": "float32", "BF16": "bfloat16"}[dtype]
    model_files.write_json(path, config)


def save_text_encoder(description, directory, seed):
    settings = dict(description["text_encoder"])
    rope = {
        "rope_type": "default",
        "rope_theta": settings.pop("rope_theta"),
        "mrope_section": settings.pop("mrope_section"),
    }
    text = {
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128000,
        "use_sliding_window": False,
        "rope_parameters": rope,
        **settings,
    }
    vision = {**VISION, "out_hidden_size": settings["hidden_size"], **description.get("vision", {})}
    ids = tokenizer_files.train_small(description["tokenizer_vocab"]).token_to_id
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        # One tensor less in the small file; nothing reads it.
        tie_word_embeddings=description.get("tied", True),
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    fill_text_encoder(model, seed, description.get("small_streams", False))
    dtype = description["text_encoder_dtype"]
    model.to(model_files.DTYPES[dtype])
    sharding = {}
    if "text_encoder_shard_size" in description:
        sharding["max_shard_size"] = description["text_encoder_shard_size"]
    model.save_pretrained(directory, **sharding)
    generation = os.path.join(directory, "generation_config.json")
    if os.path.exists(generation):
        os.remove(generation)
    if description.get("published_config"):
        _published_config(os.path.join(directory, "config.json"), dtype)


def save_transformer(description, directory, seed):
    model = QwenImageTransformer2DModel(**description["transformer"])
    model_files.fill_random(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Scales stay in a range where 1 + scale rarely changes its sign.
            if "_mod.1" in name or "norm_out" in name:
                parameter.mul_(0.5 if name.endswith("weight") else 3.0)
    model.to(model_files.DTYPES[description["transformer_dtype"]])
    sharding = {}
    if "transformer_shard_size" in description:
        sharding["max_shard_size"] = description["transformer_shard_size"]
    model.save_pretrained(directory, **sharding)


def save_vae(description, directory, seed):
    settings = dict(description["vae"])
    rng = np.random.default_rng([seed, 1])
    if "latents_mean" not in settings:
        settings["latents_mean"] = rng.uniform(-1, 1, settings["z_dim"]).round(4).tolist()
        settings["latents_std"] = rng.uniform(0.5, 3, settings["z_dim"]).round(4).tolist()
    model = AutoencoderKLQwenImage(**settings)
    model_files.fill_random(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.copy_(1.0 + 0.2 * torch.from_numpy(rng.uniform(-1, 1, parameter.shape)))
            elif parameter.dim() == 5 and parameter.shape[2] == 3:
                parameter.mul_(3**0.5)  # one of the three taps sees data
            if "quant_conv.weight" in name:
                parameter.mul_(0.5)
    model.to(model_files.DTYPES[description["vae_dtype"]])
    model.save_pretrained(directory)


def build(description, directory):
    """Write a complete model directory; an existing one is replaced."""
    if os.path.isdir(directory):
        shutil.rmtree(directory)
    os.makedirs(directory)
    tokenizer = tokenizer_files.train_small(description["tokenizer_vocab"])
    seed = description["weight_seed"]

    def part(name):
        return os.path.join(directory, name)

    save_transformer(description, part("transformer"), seed)
    save_text_encoder(description, part("text_encoder"), seed + 1)
    save_vae(description, part("vae"), seed + 2)
    FlowMatchEulerDiscreteScheduler(**description["scheduler"]).save_pretrained(part("scheduler"))
    tokenizer_files.save(tokenizer, part("tokenizer"), **description["tokenizer_layout"])
    model_files.write_json(
        part("model_index.json"),
        {
            "_class_name": "QwenImagePipeline",
            "_diffusers_version": "0.35.0.dev0",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
            "tokenizer": ["transformers", "Qwen2Tokenizer"],
            "transformer": ["diffusers", "QwenImageTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderKLQwenImage"],
        },
    )


def load(directory, dtype=torch.float32):
    pipeline = QwenImagePipeline.from_pretrained(directory, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# ---- Recording ----------------------------------------------------------------------------------


def planes(tokens, height, width):
    """Packed [tokens, 4 C] to [C, height, width] of latents."""
    tokens = tokens.float()
    channels = tokens.shape[-1] // 4
    grid = tokens.reshape(height // 2, width // 2, channels, 2, 2)
    return grid.permute(2, 0, 3, 1, 4).reshape(channels, height, width).contiguous().clone()


def _encode_text(pipeline, text, prefix, record, modules):
    framed = pipeline.prompt_template_encode.format(text)
    ids = pipeline.tokenizer(
        framed, truncation=True, max_length=pipeline.tokenizer_max_length + DROPPED
    ).input_ids
    record[prefix + ".ids"] = torch.tensor(ids, dtype=torch.int32)
    encoder = pipeline.text_encoder.model.language_model
    with recording.Hooks() as hooks:
        if modules:

            def keep(name):
                def function(output):
                    record["text_encoder." + name] = output[0].clone()

                return function

            hooks.output(encoder.embed_tokens, keep("embed_tokens"))
            for index, layer in enumerate(encoder.layers):
                hooks.output(layer, keep("layers.%d" % index))
        features, mask = pipeline.encode_prompt(text, device="cpu", max_sequence_length=TEXT)
    assert mask is None and features.shape[1] == len(ids) - DROPPED
    record[prefix + ".features"] = features[0].clone()


def attach_transformer(pipeline, hooks, record):
    """The modules of the first forward pass."""
    model = pipeline.transformer
    done = []

    def place(module, name, part=None):
        def function(_module, _inputs, output):
            value = output if part is None else output[part]
            if not done:
                record["transformer." + name] = value[0].float().clone()

        hooks._handles.append(module.register_forward_hook(function))

    def rope(_module, _inputs, output):
        if not done:
            for kind, table in zip(("image", "text"), output):
                record["transformer.rope.%s.cos" % kind] = table.real.float().contiguous()
                record["transformer.rope.%s.sin" % kind] = table.imag.float().contiguous()

    hooks._handles.append(model.pos_embed.register_forward_hook(rope))
    place(model.img_in, "img_in")
    place(model.txt_in, "txt_in")
    for index, block in enumerate(model.transformer_blocks):
        place(block, "transformer_blocks.%d.text" % index, 0)
        place(block, "transformer_blocks.%d" % index, 1)
    hooks.output(model, lambda output: done.append(True))


def attach_vae(pipeline, hooks, record):
    """Convolutions of the decoder; one frame."""

    def keep(name):
        def function(output):
            record["vae." + name] = output[0, :, 0].clone()

        return function

    vae = pipeline.vae
    hooks.output(vae.post_quant_conv, keep("post_quant_conv"))
    hooks.output(vae.decoder.conv_in, keep("decoder.conv_in"))
    hooks.output(vae.decoder.mid_block, keep("decoder.mid_block"))
    for index, block in enumerate(vae.decoder.up_blocks):
        hooks.output(block, keep("decoder.up_blocks.%d" % index))
    hooks.output(vae.decoder.conv_out, keep("decoder.conv_out"))


def _generate(pipeline, run, **changes):
    arguments = {
        "prompt": run["prompt"],
        "width": run["width"],
        "height": run["height"],
        "num_inference_steps": run["steps"],
        "true_cfg_scale": run.get("true_cfg_scale", 1.0),
        "negative_prompt": run.get("negative_prompt"),
        "generator": torch.Generator("cpu").manual_seed(run["seed"]),
        "max_sequence_length": TEXT,
    }
    arguments.update(changes)
    return pipeline(**arguments)


def record_run(pipeline, run):
    """Generate one image; returns a dictionary of all recorded tensors."""
    record = {}
    modules = run.get("modules", False)
    guided = run.get("true_cfg_scale", 1.0) > 1.0
    scale = pipeline.vae_scale_factor
    grid = (run["height"] // scale, run["width"] // scale)
    with torch.no_grad():
        _encode_text(pipeline, run["prompt"], "prompt", record, modules)
        if guided:
            _encode_text(pipeline, run["negative_prompt"], "negative", record, False)

    prepare_latents = pipeline.prepare_latents

    def prepare(*arguments, **keywords):
        latents = prepare_latents(*arguments, **keywords)
        record["noise"] = planes(latents[0], *grid)
        return latents

    outputs, times, decoded = [], [], []
    pipeline.prepare_latents = prepare

    def step_end(_pipeline, step, _timestep, values):
        prefix = "step.%02d." % step
        passes = 2 if guided else 1
        record[prefix + "model_output"] = planes(outputs[passes * step], *grid)
        if guided:
            record[prefix + "negative_output"] = planes(outputs[passes * step + 1], *grid)
        record[prefix + "t_embedder"] = times[passes * step]
        record[prefix + "latents"] = planes(values["latents"][0], *grid)
        return {}

    with recording.Hooks() as hooks:
        hooks.output(pipeline.transformer, lambda output: outputs.append(output[0].clone()))
        hooks.output(
            pipeline.transformer.time_text_embed, lambda output: times.append(output[0].clone())
        )
        hooks.output(pipeline.vae.decoder, lambda output: decoded.append(output[:, :, 0].clone()))
        if modules:
            attach_transformer(pipeline, hooks, record)
            attach_vae(pipeline, hooks, record)
        result = _generate(pipeline, run, callback_on_step_end=step_end)
    del pipeline.prepare_latents

    record["sigmas"] = pipeline.scheduler.sigmas.clone()
    record["latents"] = record["step.%02d.latents" % (run["steps"] - 1)].clone()
    image = pipeline.image_processor.postprocess(decoded[0], output_type="pt")
    record["image"] = image[0].float()
    record["image.u8"] = torch.from_numpy(np.array(result.images[0]))
    return record


def record_bfloat16(directory, run, noise):
    """The same run with the whole pipeline in bfloat16; latents and image only."""
    pipeline = load(directory, torch.bfloat16)
    decoded, latents = [], []
    channels, height, width = noise.shape
    packed = pipeline._pack_latents(noise[None, None], 1, channels, height, width)

    def step_end(_pipeline, _step, _timestep, values):
        latents.append(planes(values["latents"][0], height, width))
        return {}

    with recording.Hooks() as hooks:
        hooks.output(pipeline.vae.decoder, lambda output: decoded.append(output[:, :, 0].clone()))
        _generate(pipeline, run, latents=packed, callback_on_step_end=step_end)
    image = pipeline.image_processor.postprocess(decoded[0], output_type="pt")
    return {"bf16.latents": latents[-1].float(), "bf16.image": image[0].float()}


def record_encode(pipeline, width, height):
    """The synthetic image through the VAE's encoder, as one frame."""
    record = {}
    vae = pipeline.vae
    pixels = torch.from_numpy(recording.synthetic_image(width, height)).permute(2, 0, 1).float()
    image = 2.0 * (pixels / 255.0) - 1.0
    record["vae.encode.input"] = image.contiguous()

    def keep(name):
        def function(output):
            record["vae.encoder." + name] = output[0, :, 0].clone()

        return function

    with recording.Hooks() as hooks, torch.no_grad():
        hooks.output(vae.encoder.conv_in, keep("conv_in"))
        for index, block in enumerate(vae.encoder.down_blocks):
            hooks.output(block, keep("down_blocks.%d" % index))
        hooks.output(vae.encoder.mid_block, keep("mid_block"))
        posterior = vae.encode(image[None, :, None]).latent_dist
    record["vae.encode.moments"] = posterior.parameters[0, :, 0].clone()
    return record


def arguments_of(description, run):
    """What a test needs to repeat the run."""
    return {
        "model": description["name"],
        "prompt": run["prompt"],
        "negative_prompt": run.get("negative_prompt", ""),
        "width": run["width"],
        "height": run["height"],
        "steps": run["steps"],
        "seed": run["seed"],
        "guidance_scale": run.get("true_cfg_scale", 1.0),
    }
