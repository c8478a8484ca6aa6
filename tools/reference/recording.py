"""Run a ZImagePipeline in float32 on the CPU and record its tensors.

See README.md for the names. All tensors are returned without the batch
dimension.
"""

import diffusers
import numpy as np
import torch
import transformers
from diffusers import ZImagePipeline


def load_pipeline(directory, dtype=torch.float32):
    """Load a model directory; stored weights of any type are converted to dtype."""
    pipeline = ZImagePipeline.from_pretrained(directory, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def versions():
    return {
        "torch": torch.__version__.split("+")[0],
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


class Hooks:
    """Forward hooks that are removed at the end of a with statement."""

    def __init__(self):
        self._handles = []

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        for handle in self._handles:
            handle.remove()

    def output(self, module, function):
        """Call function(output) after each forward pass of module."""

        def hook(_module, _inputs, output):
            function(output[0] if isinstance(output, tuple) else output)

        self._handles.append(module.register_forward_hook(hook))


def encode_text(pipeline, text, prefix, record, modules=False):
    """Record the token ids and the caption features of one prompt."""
    tokenizer = pipeline.tokenizer
    message = [{"role": "user", "content": text}]
    framed = tokenizer.apply_chat_template(
        message, tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    ids = tokenizer(framed, max_length=512, truncation=True).input_ids
    length = len(ids)
    record[prefix + ".ids"] = torch.tensor(ids, dtype=torch.int32)

    encoder = pipeline.text_encoder
    encoder = getattr(encoder, "model", encoder)
    with Hooks() as hooks:
        if modules:

            def keep(name):
                def function(output):
                    record["text_encoder." + name] = output[0, :length].clone()

                return function

            def keep_rope(output_cos, output_sin):
                half = output_cos.shape[-1] // 2
                record["text_encoder.rope.cos"] = output_cos[0, :length, :half].clone()
                record["text_encoder.rope.sin"] = output_sin[0, :length, :half].clone()

            hooks.output(encoder.embed_tokens, keep("embed_tokens"))
            for index, layer in enumerate(encoder.layers[:-1]):
                hooks.output(layer, keep("layers.%d" % index))
            original = encoder.rotary_emb.forward

            def rotary(*arguments, **keywords):
                cos, sin = original(*arguments, **keywords)
                keep_rope(cos, sin)
                return cos, sin

            encoder.rotary_emb.forward = rotary
        # encode_prompt replaces the entries of a list it is given.
        features, _ = pipeline.encode_prompt(
            [text], device="cpu", do_classifier_free_guidance=False, max_sequence_length=512
        )
        if modules:
            del encoder.rotary_emb.forward
    assert features[0].shape[0] == length
    record[prefix + ".features"] = features[0].clone()


class TransformerRecorder:
    """Records the modules of the transformer for one forward pass (first sample)."""

    def __init__(self, pipeline, record):
        self.model = pipeline.transformer
        self.record = record
        self.lengths = []
        self.done = False

    def attach(self, hooks):
        """Place the hooks; they record until the first pass has ended."""
        original = self.model._prepare_sequence

        def prepare(feats, pos_ids, inner_pad_mask, pad_token, *rest, **keywords):
            result = original(feats, pos_ids, inner_pad_mask, pad_token, *rest, **keywords)
            if not self.done:
                image = pad_token is self.model.x_pad_token
                self._embedded("image" if image else "caption", result)
            return result

        self.model._prepare_sequence = prepare
        hooks.output(self.model.t_embedder, self._keep("t_embedder", "whole"))
        for index, block in enumerate(self.model.noise_refiner):
            hooks.output(block, self._keep("noise_refiner.%d" % index, "image"))
        for index, block in enumerate(self.model.context_refiner):
            hooks.output(block, self._keep("context_refiner.%d" % index, "caption"))
        for index, block in enumerate(self.model.layers):
            hooks.output(block, self._keep("layers.%d" % index, "unified"))
        final = self.model.all_final_layer["2-1"]
        hooks.output(final, self._keep("final_layer", "unified"))

        def end(_output):
            self.done = True

        hooks.output(self.model, end)

    def detach(self):
        del self.model._prepare_sequence

    def _embedded(self, kind, result):
        feats, freqs, _mask, lengths, _noise = result
        name = "x_embedder" if kind == "image" else "cap_embedder"
        length = lengths[0]
        self.lengths.append(length)
        self.record["transformer." + name] = feats[0, :length].clone()
        rope = torch.view_as_real(freqs[0, :length])
        self.record["transformer.rope.%s.cos" % kind] = rope[..., 0].contiguous()
        self.record["transformer.rope.%s.sin" % kind] = rope[..., 1].contiguous()

    def _keep(self, name, kind):
        def function(output):
            if self.done:
                return
            value = output[0]
            if kind == "image":
                value = value[: self.lengths[0]]
            elif kind == "caption":
                value = value[: self.lengths[1]]
            elif kind == "unified":
                value = value[: self.lengths[0] + self.lengths[1]]
            self.record["transformer." + name] = value.clone()

        return function


def _attach_vae_decoder(pipeline, hooks, record):
    decoder = pipeline.vae.decoder

    def keep(name):
        def function(output):
            record["vae.decoder." + name] = output[0].clone()

        return function

    if pipeline.vae.post_quant_conv is not None:

        def post_quant(output):
            record["vae.post_quant_conv"] = output[0].clone()

        hooks.output(pipeline.vae.post_quant_conv, post_quant)
    hooks.output(decoder.conv_in, keep("conv_in"))
    hooks.output(decoder.mid_block, keep("mid_block"))
    for index, block in enumerate(decoder.up_blocks):
        hooks.output(block, keep("up_blocks.%d" % index))
    hooks.output(decoder.conv_norm_out, keep("conv_norm_out"))
    hooks.output(decoder.conv_out, keep("conv_out"))


def _generate(pipeline, run, **changes):
    arguments = {
        "prompt": run["prompt"],
        "negative_prompt": run.get("negative_prompt"),
        "width": run["width"],
        "height": run["height"],
        "num_inference_steps": run["steps"],
        "guidance_scale": run["guidance_scale"],
        "cfg_normalization": run.get("cfg_normalization", False),
        "cfg_truncation": run.get("cfg_truncation", 1.0),
        "generator": torch.Generator("cpu").manual_seed(run["seed"]),
        "max_sequence_length": 512,
    }
    arguments.update(changes)
    return pipeline(**arguments)


def record_run(pipeline, run, modules=True):
    """Generate one image; returns a dictionary of all recorded tensors."""
    record = {}
    guided = run["guidance_scale"] > 0
    with torch.no_grad():
        encode_text(pipeline, run["prompt"], "prompt", record, modules)
        if guided:
            encode_text(pipeline, run.get("negative_prompt") or "", "negative", record)

    prepare_latents = pipeline.prepare_latents

    def prepare(*arguments, **keywords):
        latents = prepare_latents(*arguments, **keywords)
        record["noise"] = latents[0].clone()
        return latents

    outputs = []
    time_embeddings = []

    def model_output(output):
        # A list with one (channels, 1, height, width) tensor per sample.
        outputs.append([sample[:, 0].float().clone() for sample in output])

    def step_end(_pipeline, step, _timestep, values):
        prefix = "step.%02d." % step
        record[prefix + "model_output"] = outputs[-1][0]
        if len(outputs[-1]) > 1:
            record[prefix + "negative_output"] = outputs[-1][1]
        record[prefix + "t_embedder"] = time_embeddings[-1]
        record[prefix + "latents"] = values["latents"][0].clone()
        return {}

    decoded = []
    recorder = TransformerRecorder(pipeline, record)
    pipeline.prepare_latents = prepare
    with Hooks() as hooks:
        hooks.output(pipeline.transformer, model_output)
        hooks.output(
            pipeline.transformer.t_embedder,
            lambda output: time_embeddings.append(output[0].clone()),
        )
        hooks.output(pipeline.vae.decoder, lambda output: decoded.append(output.clone()))
        if modules:
            recorder.attach(hooks)
            _attach_vae_decoder(pipeline, hooks, record)
        result = _generate(pipeline, run, callback_on_step_end=step_end)
        if modules:
            recorder.detach()
    del pipeline.prepare_latents

    record["sigmas"] = pipeline.scheduler.sigmas.clone()
    record["latents"] = record["step.%02d.latents" % (run["steps"] - 1)].clone()
    image = pipeline.image_processor.postprocess(decoded[0], output_type="pt")
    record["image"] = image[0].float()
    record["image.u8"] = torch.from_numpy(np.array(result.images[0]))
    return record


def record_bfloat16(directory, run, noise):
    """The same run with the whole pipeline in bfloat16; latents and image only."""
    pipeline = load_pipeline(directory, torch.bfloat16)
    decoded = []
    latents = []

    def step_end(_pipeline, _step, _timestep, values):
        latents.append(values["latents"][0].clone())
        return {}

    with Hooks() as hooks:
        hooks.output(pipeline.vae.decoder, lambda output: decoded.append(output.clone()))
        _generate(pipeline, run, latents=noise[None].clone(), callback_on_step_end=step_end)
    image = pipeline.image_processor.postprocess(decoded[0], output_type="pt")
    return {"bf16.latents": latents[-1].float(), "bf16.image": image[0].float()}


def synthetic_image(width, height):
    """A deterministic uint8 test picture with flat, smooth and busy regions."""
    y, x = np.mgrid[0:height, 0:width]
    red = (255 * x) // max(width - 1, 1)
    green = (255 * y) // max(height - 1, 1)
    blue = ((x * x * 7 + y * y * 13 + x * y * 5) % 256) * ((x // 8 + y // 8) % 2)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def record_encode(pipeline, width, height):
    """Encode the synthetic image with the VAE and record the encoder's modules."""
    record = {}
    vae = pipeline.vae
    pixels = torch.from_numpy(synthetic_image(width, height)).permute(2, 0, 1).float()
    image = 2.0 * (pixels / 255.0) - 1.0
    record["vae.encode.input"] = image.contiguous()

    def keep(name):
        def function(output):
            record["vae.encoder." + name] = output[0].clone()

        return function

    with Hooks() as hooks, torch.no_grad():
        hooks.output(vae.encoder.conv_in, keep("conv_in"))
        for index, block in enumerate(vae.encoder.down_blocks):
            hooks.output(block, keep("down_blocks.%d" % index))
        hooks.output(vae.encoder.mid_block, keep("mid_block"))
        posterior = vae.encode(image[None]).latent_dist
    record["vae.encode.moments"] = posterior.parameters[0].clone()
    return record
