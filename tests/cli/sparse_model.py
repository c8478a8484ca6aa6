"""A model directory of any size whose weights are zeros that take no room on the disk.

    python3 tests/cli/sparse_model.py DIR [full | qwen | qwen-full]

Tokenizer, scheduler and VAE are those of the small fixture. "full" has the transformer of Z-Image
and the text encoder of Qwen3-4B: 11.5 and 7.5 GiB of bfloat16. "qwen" is a Qwen-Image model; full,
it has 38 and 14 GiB. For memory and speed; the picture is grey."""

import json
import os
import shutil
import struct
import sys

FIXTURES = os.environ.get("CT_FIXTURES",
                          os.path.join(os.path.dirname(os.path.abspath(__file__)), "../fixtures"))

QWEN_MEDIUM = {"num_attention_heads": 8, "attention_head_dim": 64, "axes_dims_rope": [16, 24, 24],
               "num_layers": 8, "joint_attention_dim": 384, "hidden_size": 384,
               "intermediate_size": 1024, "num_hidden_layers": 4, "encoder_heads": 6,
               "num_key_value_heads": 2, "mrope_section": [8, 12, 12], "vocab_size": 600}
QWEN_FULL = {"num_attention_heads": 24, "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56],
             "num_layers": 60, "joint_attention_dim": 3584, "hidden_size": 3584,
             "intermediate_size": 18944, "num_hidden_layers": 28, "encoder_heads": 28,
             "num_key_value_heads": 4, "mrope_section": [16, 24, 24], "vocab_size": 152064}

MEDIUM = {"dim": 1024, "n_heads": 16, "axes_dims": [16, 24, 24], "n_layers": 10, "hidden_size": 512,
          "intermediate_size": 2048, "num_hidden_layers": 6, "head_dim": 64,
          "num_attention_heads": 8, "num_key_value_heads": 4}
FULL = {"dim": 3840, "n_heads": 30, "axes_dims": [32, 48, 48], "n_layers": 30, "hidden_size": 2560,
        "intermediate_size": 9728, "num_hidden_layers": 36, "head_dim": 128,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151936}


def transformer_shapes(c):
    d, ffn, patch, embed = c["dim"], int(c["dim"] / 3 * 8), 4 * c["in_channels"], min(c["dim"], 256)
    head = d // c["n_heads"]
    shapes = {
        "t_embedder.mlp.0.weight": [1024, 256], "t_embedder.mlp.0.bias": [1024],
        "t_embedder.mlp.2.weight": [embed, 1024], "t_embedder.mlp.2.bias": [embed],
        "all_x_embedder.2-1.weight": [d, patch], "all_x_embedder.2-1.bias": [d],
        "x_pad_token": [1, d], "cap_pad_token": [1, d],
        "cap_embedder.0.weight": [c["cap_feat_dim"]],
        "cap_embedder.1.weight": [d, c["cap_feat_dim"]], "cap_embedder.1.bias": [d],
        "all_final_layer.2-1.adaLN_modulation.1.weight": [d, embed],
        "all_final_layer.2-1.adaLN_modulation.1.bias": [d],
        "all_final_layer.2-1.linear.weight": [patch, d],
        "all_final_layer.2-1.linear.bias": [patch],
    }
    for stack, count in (("noise_refiner", 2), ("context_refiner", 2), ("layers", c["n_layers"])):
        for i in range(count):
            block = {
                "attention.to_q.weight": [d, d], "attention.to_k.weight": [d, d],
                "attention.to_v.weight": [d, d], "attention.to_out.0.weight": [d, d],
                "attention.norm_q.weight": [head], "attention.norm_k.weight": [head],
                "attention_norm1.weight": [d], "attention_norm2.weight": [d],
                "feed_forward.w1.weight": [ffn, d], "feed_forward.w2.weight": [d, ffn],
                "feed_forward.w3.weight": [ffn, d],
                "ffn_norm1.weight": [d], "ffn_norm2.weight": [d],
            }
            if stack != "context_refiner":
                block["adaLN_modulation.0.weight"] = [4 * d, embed]
                block["adaLN_modulation.0.bias"] = [4 * d]
            shapes.update({f"{stack}.{i}.{name}": shape for name, shape in block.items()})
    return shapes


def encoder_shapes(c):
    d, ffn, head = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    shapes = {"model.embed_tokens.weight": [c["vocab_size"], d], "model.norm.weight": [d]}
    for i in range(c["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": [d], "post_attention_layernorm.weight": [d],
            "self_attn.q_proj.weight": [q, d], "self_attn.k_proj.weight": [kv, d],
            "self_attn.v_proj.weight": [kv, d], "self_attn.o_proj.weight": [d, q],
            "self_attn.q_norm.weight": [head], "self_attn.k_norm.weight": [head],
            "mlp.gate_proj.weight": [ffn, d], "mlp.up_proj.weight": [ffn, d],
            "mlp.down_proj.weight": [d, ffn],
        }
        shapes.update({f"model.layers.{i}.{name}": shape for name, shape in layer.items()})
    return shapes


def qwen_transformer_shapes(c):
    d, packed = c["num_attention_heads"] * c["attention_head_dim"], c["in_channels"]
    embedder = "time_text_embed.timestep_embedder.linear_"
    linear = {"img_in": (d, packed), "txt_in": (d, c["joint_attention_dim"]),
              embedder + "1": (d, 256), embedder + "2": (d, d), "norm_out.linear": (2 * d, d),
              "proj_out": (packed, d)}
    shapes = {"txt_norm.weight": [c["joint_attention_dim"]]}
    for i in range(c["num_layers"]):
        block = f"transformer_blocks.{i}."
        for stream in ("img", "txt"):
            linear[f"{block}{stream}_mod.1"] = (6 * d, d)
            linear[f"{block}{stream}_mlp.net.0.proj"] = (4 * d, d)
            linear[f"{block}{stream}_mlp.net.2"] = (d, 4 * d)
        for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj",
                     "to_add_out"):
            linear[f"{block}attn.{name}"] = (d, d)
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            shapes[f"{block}attn.{name}.weight"] = [c["attention_head_dim"]]
    for name, (rows, columns) in linear.items():
        shapes[name + ".weight"], shapes[name + ".bias"] = [rows, columns], [rows]
    return shapes


def qwen_encoder_shapes(c):
    d, ffn = c["hidden_size"], c["intermediate_size"]
    kv = d // c["num_attention_heads"] * c["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": [c["vocab_size"], d], "model.norm.weight": [d]}
    for i in range(c["num_hidden_layers"]):
        layer = {"input_layernorm.weight": [d], "post_attention_layernorm.weight": [d],
                 "mlp.gate_proj.weight": [ffn, d], "mlp.up_proj.weight": [ffn, d],
                 "mlp.down_proj.weight": [d, ffn], "self_attn.o_proj.weight": [d, d]}
        for name, rows in (("q", d), ("k", kv), ("v", kv)):
            layer[f"self_attn.{name}_proj.weight"] = [rows, d]
            layer[f"self_attn.{name}_proj.bias"] = [rows]
        shapes.update({f"model.layers.{i}.{name}": shape for name, shape in layer.items()})
    return shapes


def qwen_vision_shapes():
    """Of the only published tower."""
    d, ffn, merged = 1280, 3420, 5120
    shapes = {"visual.patch_embed.proj.weight": [d, 3, 2, 14, 14],
              "visual.merger.ln_q.weight": [d]}
    linear = {"merger.mlp.0": (merged, merged), "merger.mlp.2": (3584, merged)}
    for i in range(32):
        linear.update({f"blocks.{i}.attn.qkv": (3 * d, d), f"blocks.{i}.attn.proj": (d, d),
                       f"blocks.{i}.mlp.gate_proj": (ffn, d), f"blocks.{i}.mlp.up_proj": (ffn, d),
                       f"blocks.{i}.mlp.down_proj": (d, ffn)})
        shapes.update({f"visual.blocks.{i}.norm{k}.weight": [d] for k in (1, 2)})
    for name, (rows, columns) in linear.items():
        shapes[f"visual.{name}.weight"], shapes[f"visual.{name}.bias"] = [rows, columns], [rows]
    return shapes


def qwen_vae_shapes(base, multiples, latents):
    """Two resnets at each level of the encoder, three in the decoder."""
    shapes, channels = {}, [base * m for m in multiples]

    def convolution(name, out, inside, *kernel):
        shapes[name + ".weight"], shapes[name + ".bias"] = [out, inside, *kernel], [out]

    def resnet(name, inside, out):
        shapes[name + ".norm1.gamma"] = [inside, 1, 1, 1]
        shapes[name + ".norm2.gamma"] = [out, 1, 1, 1]
        convolution(name + ".conv1", out, inside, 3, 3, 3)
        convolution(name + ".conv2", out, out, 3, 3, 3)
        if inside != out:
            convolution(name + ".conv_shortcut", out, inside, 1, 1, 1)

    for stack, inside, first, last, out in (("encoder", 3, base, channels[-1], 2 * latents),
                                            ("decoder", latents, channels[-1], base, 3)):
        deepest = channels[-1]
        convolution(stack + ".conv_in", first, inside, 3, 3, 3)
        convolution(stack + ".conv_out", out, last, 3, 3, 3)
        shapes[stack + ".norm_out.gamma"] = [last, 1, 1, 1]
        shapes[stack + ".mid_block.attentions.0.norm.gamma"] = [deepest, 1, 1]
        convolution(stack + ".mid_block.attentions.0.to_qkv", 3 * deepest, deepest, 1, 1)
        convolution(stack + ".mid_block.attentions.0.proj", deepest, deepest, 1, 1)
        for i in range(2):
            resnet(f"{stack}.mid_block.resnets.{i}", deepest, deepest)
    for i, out in enumerate(channels):
        for j in range(2):
            resnet(f"encoder.down_blocks.{3 * i + j}", out if j else channels[max(i - 1, 0)], out)
        if i + 1 < len(channels):
            convolution(f"encoder.down_blocks.{3 * i + 2}.resample.1", out, out, 3, 3)
    for i, out in enumerate(reversed(channels)):
        for j in range(3):
            before = channels[len(channels) - i] // 2 if i else out
            resnet(f"decoder.up_blocks.{i}.resnets.{j}", out if j else before, out)
        if i + 1 < len(channels):
            convolution(f"decoder.up_blocks.{i}.upsamplers.0.resample.1", out // 2, out, 3, 3)
    for name, n in (("quant_conv", 2 * latents), ("post_quant_conv", latents)):
        convolution(name, n, n, 1, 1, 1)
    return shapes


def write_zeros(path, shapes):
    header, offset = {}, 0
    for name in sorted(shapes):
        size = 2
        for n in shapes[name]:
            size *= n
        header[name] = {"dtype": "BF16", "shape": shapes[name],
                        "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


def build_qwen(directory, sizes):
    shutil.copytree(os.path.join(FIXTURES, "qwen", "model"), directory)
    for part, shapes in (("text_encoder", qwen_encoder_shapes),
                         ("transformer", qwen_transformer_shapes)):
        folder = os.path.join(directory, part)
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as config:
            values = json.load(config)
        inner = values.get("text_config", values)
        inner.update({key: value for key, value in sizes.items() if key in inner})
        if part == "text_encoder":
            inner["num_attention_heads"] = sizes["encoder_heads"]
            inner["rope_parameters"]["mrope_section"] = sizes["mrope_section"]
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as config:
            json.dump(values, config)
        for name in os.listdir(folder):
            if name.endswith(".safetensors"):
                os.remove(os.path.join(folder, name))
                write_zeros(os.path.join(folder, name), shapes(inner))


def build(directory, sizes):
    shutil.copytree(os.path.join(FIXTURES, "turbo", "model"), directory)
    for part, file, shapes in (
            ("text_encoder", "model.safetensors", encoder_shapes),
            ("transformer", "diffusion_pytorch_model.safetensors", transformer_shapes)):
        path = os.path.join(directory, part, "config.json")
        with open(path, encoding="utf-8") as config:
            values = json.load(config)
        values.update({key: value for key, value in sizes.items() if key in values})
        if part == "transformer":
            values["n_kv_heads"] = values["n_heads"]
            values["cap_feat_dim"] = sizes["hidden_size"]
        with open(path, "w", encoding="utf-8") as config:
            json.dump(values, config)
        os.remove(os.path.join(directory, part, file))
        write_zeros(os.path.join(directory, part, file), shapes(values))


if __name__ == "__main__":
    kind = sys.argv[2] if len(sys.argv) > 2 else ""
    if kind.startswith("qwen"):
        build_qwen(sys.argv[1], QWEN_FULL if kind == "qwen-full" else QWEN_MEDIUM)
    else:
        build(sys.argv[1], FULL if kind == "full" else MEDIUM)
