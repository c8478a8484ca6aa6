#!/usr/bin/env python3
"""Time a model in diffusers and in calotype, in turn, on the same files, on a GPU or the processor.

usage: model_speed.py MODEL --calotype PROGRAM [--sizes 512,1024,2048] [--precisions bf16,fp8] [--compile]
                    [--rounds N] [--encoder] [--device cuda|cpu] [--threads N] [--json FILE]

MODEL is what full_size_model.py writes, or a published one, of any family. Times one
forward pass of the transformer with 128 caption tokens (FLUX.2-klein: 512, which all its
prompts have), the VAE's decoder and (--encoder, Qwen3) the text encoder for as many tokens.
diffusers runs in bf16: eager, with cuDNN's attention,
and (--compile) with its repeated blocks compiled. calotype's times are those of
`calotype bench model`, which makes whole pictures: warm ones count, the first is
printed beside them. Of calls one after the other the median counts, since a GPU that is always busy
slows down to keep its power, and the best of the rounds. Prints the table of
docs/performance.md.
"""

import argparse
import json
import os
import subprocess
import time

import torch
import diffusers
from safetensors.torch import load_file

CAPTION = 128
CALLS = 16
DEVICE = "cuda"


def read_json(*path):
    with open(os.path.join(*path), encoding="utf-8") as file:
        return json.load(file)


def synchronize():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def load(folder):
    config = read_json(folder, "config.json")
    with torch.device("meta"):
        model = getattr(diffusers, config["_class_name"]).from_config(config)
    weights = {}
    for file in sorted(os.listdir(folder)):
        if file.endswith(".safetensors"):
            weights.update(load_file(os.path.join(folder, file), device=DEVICE))
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    if "axes_dims_rope" in config and hasattr(model.pos_embed, "pos_freqs"):  # a table that is no weight
        model.pos_embed = type(model.pos_embed)(10000, config["axes_dims_rope"], scale_rope=True)
    return model.eval().requires_grad_(False)


def times_of(call, calls=CALLS):
    """Seconds of the fastest and of the median of calls one after the other, by events on the GPU."""
    if DEVICE == "cpu":
        times = []
        for _ in range(2):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return min(times), times[-1]
    call()
    torch.cuda.synchronize()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize()
    times = sorted(before.elapsed_time(after) / 1e3 for before, after in zip(marks, marks[1:]))
    return times[0], times[len(times) // 2]


def z_image_forward(model, size):
    latent, caption = numbers(16, 1, size // 8, size // 8), numbers(CAPTION, model.config.cap_feat_dim)
    return lambda: model([latent], numbers(1), [caption])


def flux2_forward(model, size):
    side = size // 16
    tokens = numbers(1, side * side, model.config.in_channels)
    caption = numbers(1, 512, model.config.joint_attention_dim)
    places = torch.cartesian_prod(torch.arange(1), torch.arange(side), torch.arange(side), torch.arange(1))
    words = torch.cartesian_prod(torch.arange(1), torch.arange(1), torch.arange(1), torch.arange(512))
    ids = {"img_ids": places[None].to(DEVICE), "txt_ids": words[None].to(DEVICE)}
    return lambda: model(tokens, caption, numbers(1), **ids, return_dict=False)


def qwen_forward(model, size):
    side = size // 16
    tokens = numbers(1, side * side, model.config.in_channels)
    caption = numbers(1, CAPTION, model.config.joint_attention_dim)
    shapes = [[(1, side, side)]]
    return lambda: model(tokens, caption, timestep=numbers(1), img_shapes=shapes, return_dict=False)


FORWARD = {
    "ZImageTransformer2DModel": z_image_forward,
    "Flux2Transformer2DModel": flux2_forward,
    "QwenImageTransformer2DModel": qwen_forward,
}
LATENTS = {  # of a decoder, for a side of so many latent pixels
    "AutoencoderKL": lambda side: (1, 16, side, side),
    "AutoencoderKLFlux2": lambda side: (1, 32, side, side),
    "AutoencoderKLQwenImage": lambda side: (1, 16, 1, side, side),
}


def numbers(*shape):
    return torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)


def name_of_pipeline(args):
    return read_json(args.model, "model_index.json")["_class_name"]


def torch_times(args, sizes):
    results = {}
    with torch.inference_mode():
        model = load(os.path.join(args.model, "transformer"))

        def forward(size):
            return FORWARD[type(model).__name__](model, size)

        def measure(name, names):
            for size in names:
                begin = time.perf_counter()
                best, median = times_of(forward(size), 4 if size > 1024 else CALLS)
                results[f"{name} forward {size}"] = median
                print(f"{name} forward {size}: median {median * 1e3:.1f}, best {best * 1e3:.1f} ms "
                      f"[{time.perf_counter() - begin:.0f} s]", flush=True)

        measure("eager", sizes)
        try:
            if DEVICE == "cpu":
                raise RuntimeError("not on the processor")
            model.set_attention_backend("_native_cudnn")
            measure("cudnn", [size for size in sizes if size <= 1024])
            model.reset_attention_backend()
        except Exception as reason:  # pylint: disable=broad-except
            print("cuDNN attention:", reason)
        if args.compile:
            for module in model.children():
                for block in module if isinstance(module, torch.nn.ModuleList) else ():
                    block.compile()
            measure("compiled", [size for size in sizes if size <= 1024])
        if DEVICE == "cuda":
            print(f"transformer: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most", flush=True)
        del model
        vae = load(os.path.join(args.model, "vae"))
        for size in sizes:
            if size > 1024:
                continue
            z = numbers(*LATENTS[type(vae).__name__](size // 8))
            results[f"eager decode {size}"] = times_of(lambda: vae.decode(z), 6)[1]
            print(f"eager decode {size}: {results[f'eager decode {size}'] * 1e3:.1f} ms", flush=True)
        del vae
        if args.encoder:
            from transformers import Qwen3Config, Qwen3Model

            config = read_json(args.model, "text_encoder", "config.json")
            encoder = Qwen3Model(Qwen3Config(**config)).to(device=DEVICE, dtype=torch.bfloat16).eval()
            tokens = 512 if name_of_pipeline(args).startswith("Flux2") else CAPTION
            ids = torch.randint(0, 1000, (1, tokens), device=DEVICE)
            results["eager encode"] = times_of(lambda: encoder(ids, output_hidden_states=True))[1]
            print(f"eager encode: {results['eager encode'] * 1e3:.1f} ms", flush=True)
    return results


def warm(time_of_runs):
    """Seconds of all runs but the first, if there are others."""
    return time_of_runs["runs"][1:] or time_of_runs["runs"]


def middle(values):
    return sorted(values)[len(values) // 2]


def calotype_times(args, size, precision):
    command = [args.calotype, "bench", "model", args.model, "--size", f"{size}x{size}", "--precision", precision,
               "--device", args.device, *(["-t", str(args.threads)] if args.threads else []), "--steps",
               str(args.steps), "-b", str(args.pictures), "--json", *args.options.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(" ".join(command), done.stdout, done.stderr)
        return None
    return json.loads(done.stdout)["seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--calotype", required=True)
    parser.add_argument("--sizes", default="512,1024,2048")
    parser.add_argument("--precisions", default="bf16,fp8")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--encoder", action="store_true")
    parser.add_argument("--skip-torch", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--threads", type=int, help="of the processor, for both")
    parser.add_argument("--options", default="", help="further options of calotype bench")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    sizes = [int(size) for size in args.sizes.split(",")]
    global DEVICE  # pylint: disable=global-statement
    DEVICE = args.device
    if args.threads:
        torch.set_num_threads(args.threads)
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}")
    results = {}

    def keep(name, seconds):
        results[name] = min(seconds, results.get(name, seconds))

    for _ in range(args.rounds):
        for size in sizes:
            for precision in args.precisions.split(","):
                begin = time.perf_counter()
                m = calotype_times(args, size, precision)
                if m is None:
                    continue
                # The first two steps find a GPU cool, and may be recorded.
                late = m["steps"][min(2, len(m["steps"]) - 1):]
                median = middle([second for step in late for second in warm(step)])
                print(f"calotype {precision} {size}: step median {median * 1e3:.2f}, best "
                      f"{m['step']['min'] * 1e3:.2f} ms of "
                      f"{[round(s['median'] * 1e3, 1) for s in m['steps']]}, encode {m['encode']['min'] * 1e3:.2f}, "
                      f"decode {m['decode']['min'] * 1e3:.2f}, picture {m['picture']['min'] * 1e3:.1f} ms, first "
                      f"{m['picture']['runs'][0]:.2f} s, load {m['load']['runs'][0]:.2f} s "
                      f"[{time.perf_counter() - begin:.1f} s]", flush=True)
                keep(f"calotype {precision} forward {size}", median)
                keep(f"calotype {precision} decode {size}", m["decode"]["min"])
                keep(f"calotype {precision} encode", m["encode"]["min"])
                keep(f"calotype {precision} picture {size}", m["picture"]["min"])
        if not args.skip_torch:
            for name, seconds in torch_times(args, sizes).items():
                keep(name, seconds)
    print()
    for name in sorted(results, key=lambda name: name.split(" ", 1)[1] if name[0] != "c" else name):
        print(f"{name:36} {results[name] * 1e3:9.2f} ms")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
