"""Ground truth for the noise of torch's CPU generator and for the sigma ladders."""

import json

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.z_image.pipeline_z_image import (
    calculate_shift,
    get_default_z_image_sigmas,
    retrieve_timesteps,
)

import safetensors_file

SEEDS = [0, 1, 42, 2**31, 2**32 + 5, 2**63 - 1]
SIZES = [1, 2, 3, 5, 15, 16, 17, 20, 31, 32, 33, 100]
LARGE_SIZES = [1000, 4096 + 5]
LARGE_SEEDS = [42, 2**32 + 5]

# Several draws from one generator. Draws of fewer than 16 numbers produce them
# in pairs, and an unused second number is kept for the next such draw.
SEQUENCES = [
    (1, 1),
    (3, 5),
    (5, 3),
    (3, 16),
    (3, 16, 1),
    (3, 17, 3),
    (16, 5),
    (17, 3),
    (20, 20),
    (15, 1, 16, 1),
]


def write_rng(path):
    """Write seedS.nN and seedS.nA.thenB[.thenC]; the latter are concatenated draws."""
    tensors = {}
    for seed in SEEDS:
        sizes = SIZES + (LARGE_SIZES if seed in LARGE_SEEDS else [])
        for sequence in [(size,) for size in sizes] + SEQUENCES:
            generator = torch.Generator("cpu").manual_seed(seed)
            draws = [torch.randn(size, generator=generator) for size in sequence]
            name = "seed%d.n%s" % (seed, ".then".join(str(size) for size in sequence))
            tensors[name] = torch.cat(draws)
    metadata = {
        "torch": torch.__version__.split("+")[0],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    safetensors_file.save(path, tensors, metadata)


# The pipeline computes mu from the image size and hands it to the scheduler,
# which must ignore it while use_dynamic_shifting is false.
TOKENS = 4096

STEPS = [1, 2, 3, 4, 5, 8, 9, 28, 50]


def pipeline_sigmas(config, steps):
    """The sigmas of ZImagePipeline for one scheduler configuration."""
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    settings = scheduler.config
    mu = calculate_shift(
        TOKENS,
        settings.get("base_image_seq_len", 256),
        settings.get("max_image_seq_len", 4096),
        settings.get("base_shift", 0.5),
        settings.get("max_shift", 1.15),
    )
    sigmas = get_default_z_image_sigmas(steps)
    timesteps, _ = retrieve_timesteps(scheduler, steps, "cpu", sigmas=sigmas, mu=mu)
    return scheduler.sigmas, timesteps


def write_sigmas(path):
    """One entry per configuration and step count; decimal values are exact float32."""
    cases = []
    for shift in (1.0, 3.0, 6.0):
        config = {"num_train_timesteps": 1000, "shift": shift, "use_dynamic_shifting": False}
        for steps in STEPS:
            sigmas, timesteps = pipeline_sigmas(config, steps)
            # What the pipeline gives to the transformer.
            times = (1000 - timesteps) / 1000
            cases.append(
                {
                    "scheduler": config,
                    "steps": steps,
                    "sigmas": sigmas.tolist(),
                    "timesteps": timesteps.tolist(),
                    "model_time": times.tolist(),
                }
            )
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("[\n")
        file.write(",\n".join(json.dumps(case, sort_keys=True) for case in cases))
        file.write("\n]\n")
