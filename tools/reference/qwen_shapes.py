"""Configurations and tensors, name -> shape, of Qwen-Image and its Edit variants in their published size."""

LATENTS = 16
IMAGE_TOKENS = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652,
                "vision_end_token_id": 151653}

SCHEDULER = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
}

VISION = {
    "depth": 32,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "hidden_act": "silu",
    "hidden_size": 1280,
    "in_channels": 3,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "window_size": 112,
    "model_type": "qwen2_5_vl",
}

VAE = {
    "_class_name": "AutoencoderKLQwenImage",
    "base_dim": 96,
    "z_dim": LATENTS,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "dropout": 0.0,
    "latents_mean": [-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715,
                     0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921],
    "latents_std": [2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652,
                    1.5579, 1.6382, 1.1253, 2.8251, 1.9160],
}

PROCESSOR = {"image_processor_type": "Qwen2VLImageProcessor", "max_pixels": 12845056, "merge_size": 2,
             "min_pixels": 3136, "patch_size": 14, "temporal_patch_size": 2}


class Tensors(dict):
    """With the shapes of the usual layers."""

    def linear(self, name, out, inputs, bias=True):
        self[name + ".weight"] = (out, inputs)
        if bias:
            self[name + ".bias"] = (out,)

    def conv(self, name, out, inputs, *kernel):
        self[name + ".weight"] = (out, inputs, *kernel)
        self[name + ".bias"] = (out,)


def transformer_config(layers, zero_cond):
    return {
        "_class_name": "QwenImageTransformer2DModel",
        "patch_size": 2,
        "in_channels": 4 * LATENTS,
        "out_channels": LATENTS,
        "num_layers": layers,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 3584,
        "axes_dims_rope": [16, 56, 56],
        "guidance_embeds": False,
        "zero_cond_t": zero_cond,
    }


def transformer_tensors(config):
    head = config["attention_head_dim"]
    dim = config["num_attention_heads"] * head
    tensors = Tensors()
    tensors.linear("img_in", dim, config["in_channels"])
    tensors["txt_norm.weight"] = (config["joint_attention_dim"],)
    tensors.linear("txt_in", dim, config["joint_attention_dim"])
    tensors.linear("time_text_embed.timestep_embedder.linear_1", dim, 256)
    tensors.linear("time_text_embed.timestep_embedder.linear_2", dim, dim)
    tensors.linear("norm_out.linear", 2 * dim, dim)
    tensors.linear("proj_out", config["in_channels"], dim)
    for index in range(config["num_layers"]):
        block = f"transformer_blocks.{index}."
        for part in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"):
            tensors.linear(f"{block}attn.{part}", dim, dim)
        for part in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            tensors[f"{block}attn.{part}.weight"] = (head,)
        for part in ("img", "txt"):
            tensors.linear(f"{block}{part}_mod.1", 6 * dim, dim)
            tensors.linear(f"{block}{part}_mlp.net.0.proj", 4 * dim, dim)
            tensors.linear(f"{block}{part}_mlp.net.2", dim, 4 * dim)
    return tensors


def text_encoder_config(layers, vision_layers):
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_size": 3584,
        "num_hidden_layers": layers,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": 152064,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "max_position_embeddings": 128000,
        "torch_dtype": "bfloat16",
        "vision_config": dict(VISION, depth=vision_layers),
        **IMAGE_TOKENS,
    }


def text_encoder_tensors(c):
    """Without the head that makes words, which is not used."""
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    keys = hidden // c["num_attention_heads"] * c["num_key_value_heads"]
    tensors = Tensors({"model.embed_tokens.weight": (c["vocab_size"], hidden)})
    for index in range(c["num_hidden_layers"]):
        block = f"model.layers.{index}."
        tensors[block + "input_layernorm.weight"] = (hidden,)
        tensors[block + "post_attention_layernorm.weight"] = (hidden,)
        tensors.linear(block + "self_attn.q_proj", hidden, hidden)
        tensors.linear(block + "self_attn.k_proj", keys, hidden)
        tensors.linear(block + "self_attn.v_proj", keys, hidden)
        tensors.linear(block + "self_attn.o_proj", hidden, hidden, bias=False)
        tensors.linear(block + "mlp.gate_proj", inner, hidden, bias=False)
        tensors.linear(block + "mlp.up_proj", inner, hidden, bias=False)
        tensors.linear(block + "mlp.down_proj", hidden, inner, bias=False)
    tensors["model.norm.weight"] = (hidden,)
    tensors.update(vision_tensors(c["vision_config"]))
    return tensors


def vision_tensors(c):
    hidden, inner, merged = c["hidden_size"], c["intermediate_size"], c["hidden_size"] * c["spatial_merge_size"] ** 2
    tensors = Tensors()
    tensors["visual.patch_embed.proj.weight"] = (hidden, 3, c["temporal_patch_size"], c["patch_size"], c["patch_size"])
    for index in range(c["depth"]):
        block = f"visual.blocks.{index}."
        tensors[block + "norm1.weight"] = tensors[block + "norm2.weight"] = (hidden,)
        tensors.linear(block + "attn.qkv", 3 * hidden, hidden)
        tensors.linear(block + "attn.proj", hidden, hidden)
        tensors.linear(block + "mlp.gate_proj", inner, hidden)
        tensors.linear(block + "mlp.up_proj", inner, hidden)
        tensors.linear(block + "mlp.down_proj", hidden, inner)
    tensors["visual.merger.ln_q.weight"] = (hidden,)
    tensors.linear("visual.merger.mlp.0", merged, merged)
    tensors.linear("visual.merger.mlp.2", c["out_hidden_size"], merged)
    return tensors


def vae_tensors(c):
    widths = [c["base_dim"] * factor for factor in c["dim_mult"]]
    widest, latents, blocks = widths[-1], c["z_dim"], c["num_res_blocks"]
    tensors = Tensors()

    def residual(name, inputs, out):
        tensors[name + ".norm1.gamma"] = (inputs, 1, 1, 1)
        tensors.conv(name + ".conv1", out, inputs, 3, 3, 3)
        tensors[name + ".norm2.gamma"] = (out, 1, 1, 1)
        tensors.conv(name + ".conv2", out, out, 3, 3, 3)
        if inputs != out:
            tensors.conv(name + ".conv_shortcut", out, inputs, 1, 1, 1)

    def middle(side):
        residual(f"{side}.mid_block.resnets.0", widest, widest)
        residual(f"{side}.mid_block.resnets.1", widest, widest)
        attention = f"{side}.mid_block.attentions.0."
        tensors[attention + "norm.gamma"] = (widest, 1, 1)
        tensors.conv(attention + "to_qkv", 3 * widest, widest, 1, 1)
        tensors.conv(attention + "proj", widest, widest, 1, 1)

    def ends(side, inputs, width, out):
        tensors.conv(side + ".conv_in", width, inputs, 3, 3, 3)
        last = widths[0] if side == "decoder" else widest
        tensors[side + ".norm_out.gamma"] = (last, 1, 1, 1)
        tensors.conv(side + ".conv_out", out, last, 3, 3, 3)

    ends("encoder", 3, widths[0], 2 * latents)
    at, width = 0, widths[0]
    for level, out in enumerate(widths):
        for _ in range(blocks):
            residual(f"encoder.down_blocks.{at}", width, out)
            width, at = out, at + 1
        if level + 1 < len(widths):
            tensors.conv(f"encoder.down_blocks.{at}.resample.1", out, out, 3, 3)
            if c["temperal_downsample"][level]:
                tensors.conv(f"encoder.down_blocks.{at}.time_conv", out, out, 3, 1, 1)
            at += 1
    middle("encoder")
    ends("decoder", latents, widest, 3)
    middle("decoder")
    width = widest
    for level, out in enumerate(reversed(widths)):
        for index in range(blocks + 1):
            residual(f"decoder.up_blocks.{level}.resnets.{index}", width, out)
            width = out
        if level + 1 < len(widths):
            name = f"decoder.up_blocks.{level}.upsamplers.0."
            tensors.conv(name + "resample.1", out // 2, out, 3, 3)
            if c["temperal_downsample"][::-1][level]:
                tensors.conv(name + "time_conv", 2 * out, out, 3, 1, 1)
            width = out // 2
    tensors.conv("quant_conv", 2 * latents, 2 * latents, 1, 1, 1)
    tensors.conv("post_quant_conv", latents, latents, 1, 1, 1)
    return tensors


def parts(model, layers, encoder_layers):
    """model: "qwen-image", "qwen-edit", "qwen-edit-2509" or "qwen-edit-2511". None: as many layers as published."""
    transformer = transformer_config(layers or 60, model == "qwen-edit-2511")
    encoder = text_encoder_config(28 if encoder_layers is None else encoder_layers, VISION["depth"])
    kind = {"qwen-image": "QwenImagePipeline", "qwen-edit": "QwenImageEditPipeline"}
    index = {
        "_class_name": kind.get(model, "QwenImageEditPlusPipeline"),
        "_diffusers_version": "0.36.0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "QwenImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
    }
    if model != "qwen-image":
        index["processor"] = ["transformers", "Qwen2VLProcessor"]
    return {
        "transformer": (transformer, transformer_tensors(transformer)),
        "text_encoder": (encoder, text_encoder_tensors(encoder)),
        "vae": (VAE, vae_tensors(VAE)),
    }, dict(SCHEDULER, _class_name="FlowMatchEulerDiscreteScheduler"), index
