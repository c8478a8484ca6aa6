#!/usr/bin/env python3
"""What shorter numbers cost a Z-Image layer of the real size: the reference's own error in bf16.

usage: fixture_block_bf16.py [--tokens N] [--out tests/fixtures/block.json]

The transformer is diffusers' with one layer (dim 3840, 30 heads) and no refiners.
Its weights are random, bf16, and can be made again from seeds alone: tensor i of
TENSORS below is torch.randn with seed SEED + i, times a deviation, plus a mean.
tests/gpu/test_block.c makes the same. Run on the CPU in float32, in bf16, and in
float32 with the products of the layer's seven large matrices in e4m3 and int8
(a factor for each row of both operands; w2 stays out of int8). Recorded are the
relative L2 errors against float32 of the layer's results and of the output, and
some numbers of the former, which show that both sides have the same network.
"""

import argparse
import json
import os

import torch
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel

SEED = 1000
DIM, HEAD, HIDDEN, CAPTION, EMBED, PATCH, TIME = 3840, 128, 10240, 2560, 256, 64, 1024
LAYER = "layers.0."
# Name, shape, and for vectors the mean; deviations: 1 / sqrt(columns) of matrices, 0.1 of vectors.
TENSORS = [
    ("t_embedder.mlp.0.weight", (TIME, 256), 0),
    ("t_embedder.mlp.0.bias", (TIME,), 0),
    ("t_embedder.mlp.2.weight", (EMBED, TIME), 0),
    ("t_embedder.mlp.2.bias", (EMBED,), 0),
    ("all_x_embedder.2-1.weight", (DIM, PATCH), 0),
    ("all_x_embedder.2-1.bias", (DIM,), 0),
    ("x_pad_token", (1, DIM), 0),
    ("cap_embedder.0.weight", (CAPTION,), 1),
    ("cap_embedder.1.weight", (DIM, CAPTION), 0),
    ("cap_embedder.1.bias", (DIM,), 0),
    ("cap_pad_token", (1, DIM), 0),
    (LAYER + "attention.to_q.weight", (DIM, DIM), 0),
    (LAYER + "attention.to_k.weight", (DIM, DIM), 0),
    (LAYER + "attention.to_v.weight", (DIM, DIM), 0),
    (LAYER + "attention.to_out.0.weight", (DIM, DIM), 0),
    (LAYER + "attention.norm_q.weight", (HEAD,), 1),
    (LAYER + "attention.norm_k.weight", (HEAD,), 1),
    (LAYER + "attention_norm1.weight", (DIM,), 1),
    (LAYER + "attention_norm2.weight", (DIM,), 1),
    (LAYER + "feed_forward.w1.weight", (HIDDEN, DIM), 0),
    (LAYER + "feed_forward.w2.weight", (DIM, HIDDEN), 0),
    (LAYER + "feed_forward.w3.weight", (HIDDEN, DIM), 0),
    (LAYER + "ffn_norm1.weight", (DIM,), 1),
    (LAYER + "ffn_norm2.weight", (DIM,), 1),
    (LAYER + "adaLN_modulation.0.weight", (4 * DIM, EMBED), 0),
    (LAYER + "adaLN_modulation.0.bias", (4 * DIM,), 0),
    ("all_final_layer.2-1.adaLN_modulation.1.weight", (DIM, EMBED), 0),
    ("all_final_layer.2-1.adaLN_modulation.1.bias", (DIM,), 0),
    ("all_final_layer.2-1.linear.weight", (PATCH, DIM), 0),
    ("all_final_layer.2-1.linear.bias", (PATCH,), 0),
]
LATENTS_SEED, FEATURES_SEED = 1, 2
CAPTION_TOKENS = 32


def randn(seed, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_weights():
    weights = {}
    for index, (name, shape, mean) in enumerate(TENSORS):
        deviation = shape[1] ** -0.5 if len(shape) > 1 else 0.1
        weights[name] = (randn(SEED + index, shape) * deviation + mean).to(torch.bfloat16)
    return weights


def make_model(weights, dtype):
    with torch.device("meta"):
        model = ZImageTransformer2DModel(n_layers=1, n_refiner_layers=0, axes_lens=[1536, 512, 512])
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def run(model, dtype, side):
    """The layer's results and the output, in float32."""
    kept = {}
    hook = model.layers[0].register_forward_hook(lambda _m, _i, result: kept.update(layer=result.float()))
    latents = randn(LATENTS_SEED, (16, 1, side, side)).to(torch.bfloat16).to(dtype)
    features = randn(FEATURES_SEED, (CAPTION_TOKENS, CAPTION)).to(torch.bfloat16).to(dtype)
    with torch.inference_mode():
        output = model([latents], torch.tensor([0.5], dtype=dtype), [features], return_dict=False)[0][0]
    hook.remove()
    return {"layer": kept["layer"][0], "output": output.float()}


def e4m3(x):
    factor = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 448
    return (x / factor).to(torch.float8_e4m3fn).float() * factor


def int8(x):
    factor = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return (x / factor).round() * factor


def in_codes(model, to_codes, but=()):
    """The large matrices of the layer and their inputs in 8 bits."""
    hooks = []
    for name, module in model.layers[0].named_modules():
        if isinstance(module, torch.nn.Linear) and "adaLN" not in name and not name.endswith(tuple(but)):
            module.weight.data = to_codes(module.weight.data)
            hooks.append(module.register_forward_pre_hook(lambda _m, args: (to_codes(args[0]),)))
    assert len(hooks) == 7 - len(but)


def error(results, truth):
    return {name: float(((results[name] - t).double().norm() / t.double().norm())) for name, t in truth.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=256, help="of the image: a square number")
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    parser.add_argument("--out", default=os.path.join(root, "tests", "fixtures", "block.json"))
    args = parser.parse_args()
    side = 2 * round(args.tokens ** 0.5)
    weights = make_weights()
    model = make_model(weights, torch.float32)
    truth = run(model, torch.float32, side)
    print("float32", {name: tuple(t.shape) for name, t in truth.items()}, flush=True)
    found = {"tokens": args.tokens, "torch": torch.__version__}
    found["values"] = [round(float(v), 5) for v in truth["layer"][:4, :4].flatten()]
    for name, to_codes, but in (("fp8", e4m3, ()), ("int8", int8, ("w2",))):
        model = make_model(weights, torch.float32)
        in_codes(model, to_codes, but)
        found[name] = error(run(model, torch.float32, side), truth)
        print(name, found[name], flush=True)
    del model
    found["bf16"] = error(run(make_model(weights, torch.bfloat16), torch.bfloat16, side), truth)
    print("bf16", found["bf16"], flush=True)
    with open(args.out, "w", encoding="utf-8", newline="\n") as file:
        json.dump(found, file, indent=1, sort_keys=True)
        file.write("\n")


if __name__ == "__main__":
    main()
