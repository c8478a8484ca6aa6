"""Random LoRAs for the tiny models, and runs of the reference with them.

Each in another form of keys: Qwen-Image as its Lightning LoRAs are (lora_down, lora_up, alpha),
Z-Image as PEFT writes them (lora_A, lora_B), FLUX.2 under the names of its authors, q, k and v in one.
"""

import os

import numpy as np
import torch

import fixture_flux2
import fixture_qwen_image
import recording
import safetensors_file

RANK = 3
ALPHA = 2.0

KEPT = ("noise", "sigmas", "step.", "latents", "image.u8")

RUNS = [
    {"name": "qwen", "seed": 9000, "scale": 1.0,
     "run": {"prompt": "A red fox.", "width": 48, "height": 32, "steps": 4, "seed": 5,
             "true_cfg_scale": 1.0}},
    {"name": "turbo", "seed": 9001, "scale": 0.75,
     "run": {"prompt": "A red fox.", "width": 48, "height": 16, "steps": 2, "seed": 5,
             "guidance_scale": 0.0}},
    {"name": "klein", "seed": 9002, "scale": -1.25,
     "run": {"prompt": "A red fox.", "width": 48, "height": 32, "steps": 2, "seed": 5,
             "guidance_scale": 1.0}},
]

QWEN = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj",
        "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out", "img_mlp.net.0.proj",
        "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2", "img_mod.1", "txt_mod.1"]
Z_IMAGE = ["attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0",
           "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0"]
FLUX2 = {"img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
         "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
         "img_attn.proj": ["attn.to_out.0"], "txt_attn.proj": ["attn.to_add_out"],
         "img_mlp.0": ["ff.linear_in"], "img_mlp.2": ["ff.linear_out"],
         "txt_mlp.0": ["ff_context.linear_in"], "txt_mlp.2": ["ff_context.linear_out"]}
FLUX2_SINGLE = {"linear1": ["attn.to_qkv_mlp_proj"], "linear2": ["attn.to_out"]}


def modules_of(name, transformer):
    """(name in the file, modules of the model that are its rows)."""
    if name == "qwen":
        for i in range(len(transformer.transformer_blocks)):
            for module in QWEN:
                path = "transformer_blocks.%d.%s" % (i, module)
                yield path, [path]
        yield "img_in", ["img_in"]
    elif name == "turbo":
        for stack in ("noise_refiner", "context_refiner", "layers"):
            for i in range(len(getattr(transformer, stack))):
                for module in Z_IMAGE:
                    path = "%s.%d.%s" % (stack, i, module)
                    if stack != "context_refiner" or not module.startswith("adaLN"):
                        yield path, [path]
        yield "cap_embedder.1", ["cap_embedder.1"]
    else:
        for i in range(len(transformer.transformer_blocks)):
            for theirs, ours in FLUX2.items():
                yield ("double_blocks.%d.%s" % (i, theirs),
                       ["transformer_blocks.%d.%s" % (i, module) for module in ours])
        for i in range(len(transformer.single_transformer_blocks)):
            for theirs, ours in FLUX2_SINGLE.items():
                yield ("single_blocks.%d.%s" % (i, theirs),
                       ["single_transformer_blocks.%d.%s" % (i, module) for module in ours])
        yield "img_in", ["x_embedder"]
        yield "double_stream_modulation_img.lin", ["double_stream_modulation_img.linear"]


def make_tensors(description, transformer):
    """The LoRA's tensors; changes are a third as large as the weights."""
    rng = np.random.default_rng(description["seed"])
    kohya = description["name"] == "qwen"
    prefix = {"qwen": "", "turbo": "transformer.", "klein": "diffusion_model."}[description["name"]]
    down, up = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
    tensors = {}
    for name, ours in modules_of(description["name"], transformer):
        weights = [transformer.get_submodule(module).weight for module in ours]
        rows, columns = sum(w.shape[0] for w in weights), weights[0].shape[1]
        size = 0.3 * torch.cat(list(weights)).std().item() / RANK**0.5
        a = rng.standard_normal((RANK, columns)).astype(np.float32)
        b = size * rng.standard_normal((rows, RANK)).astype(np.float32)
        tensors["%s%s.%s.weight" % (prefix, name, down)] = torch.from_numpy(a)
        tensors["%s%s.%s.weight" % (prefix, name, up)] = torch.from_numpy(b.astype(np.float32))
        if kohya:
            tensors["%s%s.alpha" % (prefix, name)] = torch.tensor(ALPHA)
    return tensors


def load(name, directory):
    return {"qwen": fixture_qwen_image, "klein": fixture_flux2}[name].load(directory) \
        if name != "turbo" else recording.load_pipeline(directory)


def record(description, pipeline):
    run, name = description["run"], description["name"]
    if name == "qwen":
        return fixture_qwen_image.record_run(pipeline, run), \
            fixture_qwen_image.arguments_of({"name": name}, run)
    if name == "klein":
        return fixture_flux2.record_run(pipeline, run), \
            fixture_flux2.arguments_of({"name": name}, run)
    return recording.record_run(pipeline, run, False), {"model": name, "negative_prompt": "",
                                                        "cfg_normalization": False,
                                                        "cfg_truncation": 1.0, **run}


def make(out, write_record):
    """NAME_lora.safetensors, and NAME: the run with it."""
    directory = os.path.join(out, "lora")
    os.makedirs(directory, exist_ok=True)
    for description in RUNS:
        name = description["name"]
        pipeline = load(name, os.path.join(out, name, "model"))
        path = os.path.join(directory, name + "_lora.safetensors")
        safetensors_file.save(path, make_tensors(description, pipeline.transformer), {})
        pipeline.load_lora_weights(path, adapter_name="one")
        pipeline.set_adapters(["one"], [description["scale"]])
        tensors, arguments = record(description, pipeline)
        arguments["lora_scale"] = description["scale"]
        kept = {key: value for key, value in tensors.items()
                if key.startswith(KEPT) and not key.endswith(("t_embedder", "negative_output"))}
        write_record(directory, name, kept, arguments)
