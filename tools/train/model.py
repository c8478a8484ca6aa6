"""The three networks, built from diffusers' and transformers' own classes, and how to run them in batches.

Nothing here defines a layer: the parameters, their names and their mathematics are those of
ZImageTransformer2DModel, Qwen3ForCausalLM and AutoencoderKL. What is added is a forward pass over a
whole batch (the original takes lists of pictures) with a rotary embedding in real numbers, which
torch.compile can fuse. check.py compares the result with diffusers' pipeline.
"""
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3ForCausalLM

import tokens

TEXT = dict(
    vocab_size=tokens.VOCABULARY, hidden_size=192, intermediate_size=384, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, head_dim=48, max_position_embeddings=4096,
    rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=True, attention_bias=False,
    bos_token_id=None, eos_token_id=tokens.VOCABULARY - 3, pad_token_id=tokens.VOCABULARY - 5)
TRANSFORMER = dict(
    all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=288, n_layers=6, n_refiner_layers=1,
    n_heads=6, n_kv_heads=6, cap_feat_dim=TEXT["hidden_size"], axes_dims=[16, 16, 16],
    axes_lens=[1536, 512, 512], rope_theta=256.0, t_scale=1000.0, qk_norm=True, norm_eps=1e-5)
VAE = dict(
    in_channels=3, out_channels=3, latent_channels=16, block_out_channels=(48, 80, 96, 112), layers_per_block=1,
    norm_num_groups=16, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    sample_size=256, use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=True,
    force_upcast=True)
SCHEDULER = dict(num_train_timesteps=1000, shift=3.0, use_dynamic_shifting=False)
PAD = 32        # captions are padded to a multiple of this

SMOKE = dict(TEXT=dict(hidden_size=32, intermediate_size=32, head_dim=8),
             TRANSFORMER=dict(dim=96, n_heads=2, cap_feat_dim=32, n_layers=2),
             VAE=dict(block_out_channels=(16, 16, 16, 16)))


def shrink():
    """Sizes for a smoke test."""
    TEXT.update(SMOKE["TEXT"])
    TRANSFORMER.update(SMOKE["TRANSFORMER"])
    VAE.update(SMOKE["VAE"])


def build_vae(**more):
    return AutoencoderKL(**VAE, **more)


def build_text_encoder():
    model = Qwen3ForCausalLM(Qwen3Config(**TEXT))
    # The pipeline reads the hidden state before the last layer: that layer must exist and is never run.
    with torch.no_grad():
        for name, p in model.model.layers[-1].named_parameters():
            if p.ndim == 2:
                p.zero_()
    return model


def build_transformer():
    model = ZImageTransformer2DModel(**TRANSFORMER)
    dim = TRANSFORMER["dim"]
    with torch.no_grad():
        model.cap_pad_token.normal_(std=0.02)
        for block in list(model.layers) + list(model.noise_refiner):
            modulation = block.adaLN_modulation[0]
            modulation.weight.zero_()
            modulation.bias.zero_()
            modulation.bias[dim:2 * dim] = 0.1       # the gates start a little open
            modulation.bias[3 * dim:] = 0.1
        final = model.all_final_layer["2-1"]
        for p in (*final.linear.parameters(), *final.adaLN_modulation.parameters()):
            p.zero_()
    return model


def scheduler():
    return FlowMatchEulerDiscreteScheduler(**SCHEDULER)


class RealRotary:
    """diffusers' attention of Z-Image with the rotation written in real numbers."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, freqs_cis=None):
        q, k, v = (f(hidden_states).unflatten(-1, (attn.heads, -1)) for f in (attn.to_q, attn.to_k, attn.to_v))
        q, k = (self.rotate(x, *freqs_cis).to(v.dtype).transpose(1, 2) for x in (attn.norm_q(q), attn.norm_k(k)))
        x = F.scaled_dot_product_attention(q, k, v.transpose(1, 2))
        return attn.to_out[0](x.transpose(1, 2).flatten(2))

    @staticmethod
    def rotate(x, cos, sin):
        a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def angles(transformer, t, h, w):
    """cos and sin for one picture of h x w tokens behind t padded caption tokens: (image, caption)."""
    def rotary(positions):
        parts = [p.double()[:, None] * transformer.config.rope_theta ** -(torch.arange(0, d, 2).double() / d)
                 for p, d in zip(positions, transformer.axes_dims)]
        a = torch.cat(parts, 1).float()[None, :, None]
        return a.cos(), a.sin()
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    image = rotary([torch.full((h * w,), t + 1), y.flatten(), x.flatten()])
    zero = torch.zeros(t, dtype=torch.long)
    return image, rotary([1 + torch.arange(t), zero, zero])


class Drawer(torch.nn.Module):
    """Text encoder and transformer as one module: (noisy latents, time, token ids) -> velocity."""

    def __init__(self, text_encoder, transformer):
        super().__init__()
        self.text_encoder, self.transformer = text_encoder, transformer
        rotary = RealRotary()
        for block in [*transformer.layers, *transformer.noise_refiner, *transformer.context_refiner]:
            block.attention.set_processor(rotary)
        self.tables = {}

    def table(self, t, h, w, device):
        if (t, h, w) not in self.tables:
            self.tables[t, h, w] = [tuple(x.to(device) for x in pair) for pair in angles(self.transformer, t, h, w)]
        return self.tables[t, h, w]

    def encode(self, ids):
        """Hidden states before the last layer. Captions are padded on the right, so causality is mask enough."""
        model = getattr(self.text_encoder, "model", self.text_encoder)
        x = model.embed_tokens(ids)
        position = torch.arange(ids.shape[1], device=ids.device)[None]
        rotary = model.rotary_emb(x, position)
        for layer in model.layers[:-1]:
            x = layer(x, attention_mask=None, position_ids=position, position_embeddings=rotary)
        return x

    def forward(self, latents, time, ids, lengths, image_table, caption_table):
        """`time` is 1 - sigma, as diffusers passes it; the result estimates (picture - noise)."""
        net = self.transformer
        b, c, h, w = latents.shape
        tokens_ = latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w // 4, 4 * c)
        modulation = net.t_embedder(time * net.t_scale)
        image = net.all_x_embedder["2-1"](tokens_)
        for block in net.noise_refiner:
            image = block(image, None, image_table, modulation)
        caption = net.cap_embedder(self.encode(ids))
        real = torch.arange(ids.shape[1], device=ids.device)[None] < lengths[:, None]
        caption = torch.where(real[..., None], caption, net.cap_pad_token.to(caption.dtype))
        for block in net.context_refiner:
            caption = block(caption, None, caption_table)
        n = image.shape[1]
        joint = torch.cat([image, caption.to(image.dtype)], 1)
        both = tuple(torch.cat(pair, 1) for pair in zip(image_table, caption_table))
        for block in net.layers:
            joint = block(joint, None, both, modulation)
        out = net.all_final_layer["2-1"](joint[:, :n], c=modulation)
        return out.view(b, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)


@torch.no_grad()
def sample(drawer, vae, tokenizer, prompts, steps=8, seed=0, size=256, device="cpu", batch=64, noise=None):
    """Pictures [n, 3, size, size] in [-1, 1] for the prompts, as ZImagePipeline would draw them."""
    encoded = [tokenizer.encode(tokens.frame(p)).ids for p in prompts]
    lines = scheduler()
    lines.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
    sigmas = lines.sigmas.tolist()
    if noise is None:
        noise = torch.randn(len(prompts), 16, size // 8, size // 8, generator=torch.Generator().manual_seed(seed))
    order = sorted(range(len(prompts)), key=lambda i: -(-len(encoded[i]) // PAD))
    pictures = torch.empty(len(prompts), 3, size, size)
    while order:
        padded = -(-len(encoded[order[0]]) // PAD) * PAD
        part = [i for i in order[:batch] if -(-len(encoded[i]) // PAD) * PAD == padded]
        order = order[len(part):]
        ids = torch.zeros(len(part), padded, dtype=torch.long)
        for row, i in enumerate(part):
            ids[row, :len(encoded[i])] = torch.tensor(encoded[i])
        ids = ids.to(device)
        lengths = torch.tensor([len(encoded[i]) for i in part], device=device)
        x = noise[part].to(device)
        tables = drawer.table(padded, size // 16, size // 16, device)
        for now, then in zip(sigmas, sigmas[1:]):
            v = drawer(x, torch.full((len(part),), 1 - now, device=device), ids, lengths, *tables)
            x = x - (then - now) * v.float()
        y = vae.decode(x / vae.config.scaling_factor + vae.config.shift_factor).sample
        pictures[part] = y.float().clamp(-1, 1).cpu()
    return pictures
