"""A model directory of any size whose weights are zeros that take no room on the disk.

    python3 tests/cli/sparse_model.py DIR [full]

Tokenizer, scheduler and VAE are those of the small fixture. "full" has the transformer of Z-Image
and the text encoder of Qwen3-4B: 11.5 and 7.5 GiB of bfloat16. For memory and speed; the picture is
grey."""

import json
import os
import shutil
import struct
import sys

FIXTURES = os.environ.get("CT_FIXTURES",
                          os.path.join(os.path.dirname(os.path.abspath(__file__)), "../fixtures"))
FIXTURE = os.path.join(FIXTURES, "turbo", "model")

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


def build(directory, sizes):
    shutil.copytree(FIXTURE, directory)
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
    build(sys.argv[1], FULL if sys.argv[2:] == ["full"] else MEDIUM)
