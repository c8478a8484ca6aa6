#!/usr/bin/env python3
"""Train the model in the box: the autoencoder, then the text encoder and the transformer together.

    python3 train.py --glyphs glyphs.npz --tokenizer tokenizer --out run

Every stage has a time budget and its learning rate follows the clock, so the whole run takes what the
budgets say. Checkpoints (F16, in parts) are in --out all the time; export.py makes a model of them.
"""
import argparse
import math
import os
import random
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import torch._dynamo
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, IterableDataset

import export
import model
import scenes
import tokens
from optim import Average, Muon
from paint import Painter, pack

SHORT, LONG = 32, 64         # padded caption lengths that are trained
START = time.time()


def log(*what):
    print(f"[{time.time() - START:6.0f} s]", *what, flush=True)


# ---- data

class SceneStream(IterableDataset):
    """Endless batches of random scenes as arrays; with captions, three short ones and a long one for each."""

    def __init__(self, glyphs, count, tokenizer=None, seed=0, dense=0.0):
        self.glyphs, self.count, self.tokenizer, self.seed, self.dense = glyphs, count, tokenizer, seed, dense

    def captions(self, scene, rng):
        wanted, tries = [(0, SHORT)] * 3 + [(SHORT, LONG)], []
        for low, high in wanted:
            for attempt in range(20):
                extra = None if low == 0 else 3 + attempt // 2
                if low == 0 and attempt > 3:
                    text = scenes.prompt_for(self.glyphs, scene)
                else:
                    text = scenes.caption(self.glyphs, scene, rng, extra)
                ids = self.tokenizer.encode(tokens.frame(text)).ids
                if low < len(ids) <= high:
                    break
            else:
                return None
            tries.append(ids)
        return tries

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(self.seed * 1000 + (worker.id if worker else 0))
        while True:
            batch, ids, lengths = [], np.zeros((self.count, 4, LONG), np.int16), np.zeros((self.count, 4), np.int16)
            while len(batch) < self.count:
                scene = (scenes.dense_scene if rng.random() < self.dense else scenes.random_scene)(self.glyphs, rng)
                if self.tokenizer:
                    captions = self.captions(scene, rng)
                    if captions is None:
                        continue
                    for k, c in enumerate(captions):
                        ids[len(batch), k, :len(c)] = c
                        lengths[len(batch), k] = len(c)
                batch.append(scene)
            yield *pack(batch), ids, lengths


def stream(args, glyphs, count, tokenizer=None, seed=0, dense=0.0):
    data = SceneStream(glyphs, count, tokenizer, seed, dense)
    return iter(DataLoader(data, batch_size=None, num_workers=args.workers, prefetch_factor=4 if args.workers else None))


class Clock:
    """How much of a time budget is used; starts with the first step after compilation."""

    def __init__(self, seconds):
        self.seconds, self.began, self.steps = seconds, None, 0

    def tick(self):
        self.steps += 1
        if self.began is None and self.steps > 3:
            self.began = time.time()
        return self.used() < 1

    def used(self):
        return 0.0 if self.began is None else (time.time() - self.began) / self.seconds

    def rate(self, warm=200, hold=0.4):
        """Warm up, hold, then fall linearly to zero."""
        return min(1, self.steps / warm) * max(0.0, min(1, (1 - self.used()) / (1 - hold)))


def set_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group.setdefault("peak", group["lr"])
        group["lr"] = group["peak"] * rate


# ---- autoencoder

def picture_loss(got, wanted):
    """Absolute and squared error, the same on a coarse grid, and on the differences between neighbours (edges)."""
    d = got - wanted
    edges = (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
    return d.abs().mean() + 4 * d.square().mean() + edges + F.avg_pool2d(d, 4).abs().mean()


def psnr(vae, pictures):
    """Reconstruction of pictures in [-1, 1] by way of the posterior's mean, in dB."""
    error = []
    with torch.no_grad():
        for x in pictures.split(32):
            z = vae.encode(x).latent_dist.mean
            error.append((vae.decode(z).sample.clamp(-1, 1) - x).square().mean((1, 2, 3)) / 4)
    return 10 * math.log10(1 / torch.cat(error).mean().item())


def train_vae(args, vae, painter, glyphs, held_out):
    vae = vae.to(args.device, memory_format=torch.channels_last)
    twin = model.build_vae().to(args.device, memory_format=torch.channels_last)
    average = Average(vae, twin, 0.998)
    encoder, decoder = args.compile(vae.encoder), args.compile(vae.decoder)
    # Muon for the convolutions between features, AdamW for the ends, the norms and the attention
    inner = [p for p in vae.parameters() if p.ndim == 4 and p.shape[0] > 32 and p.shape[1] > 16]
    if not args.vae_muon_lr:
        inner = []
    chosen = set(inner)
    optimizers = [torch.optim.AdamW([p for p in vae.parameters() if p not in chosen], lr=args.vae_lr,
                                    betas=(0.9, 0.98), weight_decay=1e-4, fused=args.device == "cuda")]
    if inner:
        optimizers.append(Muon(inner, lr=args.vae_muon_lr))
    clock, data = Clock(args.vae_seconds), stream(args, glyphs, args.vae_batch, seed=1, dense=0.5)
    while clock.tick():
        for optimizer in optimizers:
            set_rate(optimizer, clock.rate())
        items, background, _, _ = next(data)
        x = painter.paint(items, background).to(memory_format=torch.channels_last)
        with args.autocast():
            mean, logvar = encoder(x).float().chunk(2, 1)
            logvar = logvar.clamp(-30, 20)
            z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            y = decoder(z).float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = picture_loss(y, x) + args.kl * kl
        vae.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average.update()
        if clock.steps % args.report == 0:
            d = (y - x).square().mean().item() / 4
            log(f"vae {clock.steps} used {clock.used():.2f} loss {loss.item():.4f} kl {kl.item():.3f} "
                f"psnr {-10 * math.log10(d):.2f} held out {psnr(twin, held_out[:64]):.2f}")
    log(f"vae done: {clock.steps} steps of {args.vae_batch}, held-out psnr {psnr(twin, held_out):.2f} dB")
    return twin


def measure(vae, pictures):
    """Mean and spread of the latents, which become the model's shift_factor and scaling_factor."""
    with torch.no_grad():
        z = torch.cat([vae.encode(x).latent_dist.mean for x in pictures.split(32)])
    log("latents: per channel std", [round(v, 2) for v in z.std((0, 2, 3)).tolist()])
    return {"shift_factor": round(z.mean().item(), 4), "scaling_factor": round(1 / z.std().item(), 4)}


# ---- text encoder and transformer

class LatentPool:
    """A ring of encoded scenes with their captions: each is used about sixteen times, with new noise every time."""

    def __init__(self, args, vae, painter, state, data):
        self.args, self.painter, self.state, self.data = args, painter, state, data
        self.encoder = args.compile(vae.encoder)
        n, side = args.pool, scenes.PICTURE // 8
        kw = dict(device=args.device)
        self.latents = torch.empty(n, 16, side, side, dtype=torch.float16, **kw)
        self.ids = torch.empty(n, 4, LONG, dtype=torch.int16, **kw)
        self.lengths = torch.empty(n, 4, dtype=torch.int16, **kw)
        self.size, self.next = 0, 0

    @torch.no_grad()
    def add(self):
        items, background, ids, lengths = next(self.data)
        x = self.painter.paint(items, background).to(memory_format=torch.channels_last)
        with self.args.autocast():
            z = self.encoder(x).float().chunk(2, 1)[0]
        n = len(z)
        at = slice(self.next, self.next + n)
        self.latents[at] = ((z - self.state["shift_factor"]) * self.state["scaling_factor"]).half()
        self.ids[at] = ids.to(self.args.device)
        self.lengths[at] = lengths.to(self.args.device)
        self.next = (self.next + n) % len(self.latents)
        self.size = max(self.size, at.stop)

    def draw(self, n, long):
        """n latents with captions: the long one of each, or one of the short ones."""
        i = torch.randint(self.size, (n,), device=self.args.device)
        k = torch.full_like(i, 3) if long else torch.randint(3, (n,), device=self.args.device)
        ids = self.ids[i, k][:, :LONG if long else SHORT].long()
        return self.latents[i].float(), ids, self.lengths[i, k].long()


def noise_levels(n, device):
    """Half logit-normal, half uniform; of each, half moved toward noise as the sampler's shift does."""
    u = torch.rand(n, device=device)
    bell = torch.sigmoid(1.2 * torch.randn(n, device=device))
    sigma = torch.where(torch.rand(n, device=device) < 0.5, u, bell)
    return torch.where(torch.rand(n, device=device) < 0.5, 3 * sigma / (1 + 2 * sigma), sigma)


def compile_blocks(args, drawer):
    """Compile block by block: far quicker to compile than the whole network, and nearly as fast."""
    net = drawer.transformer
    for block in [*net.layers, *net.noise_refiner, *net.context_refiner, *drawer.text_encoder.model.layers[:-1]]:
        if args.device == "cuda":
            block.compile(dynamic=False)


def train_drawer(args, drawer, vae, painter, glyphs, tokenizer, state):
    drawer = drawer.to(args.device)
    twin = model.Drawer(model.build_text_encoder(), model.build_transformer()).to(args.device)
    average = Average(drawer, twin, 0.999)
    compile_blocks(args, drawer)
    matrices, rest = [], []
    for name, p in drawer.named_parameters():
        if f"model.layers.{model.TEXT['num_hidden_layers'] - 1}." in name or name.endswith("model.norm.weight"):
            continue                                        # the text encoder's last layer, which is never run
        if "x_pad_token" in name:
            continue                                        # 256 picture tokens need no padding
        inside = ".layers." in name or "_refiner." in name
        (matrices if inside and p.ndim == 2 and "adaLN" not in name and args.muon_lr else rest).append(p)
    optimizers = [torch.optim.AdamW([{"params": [p for p in rest if p.ndim > 1], "weight_decay": 0.01},
                                     {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0}],
                                    lr=args.lr, betas=(0.9, 0.98), fused=args.device == "cuda")]
    if matrices:
        optimizers.append(Muon(matrices, lr=args.muon_lr, weight_decay=args.muon_decay))
    used = matrices + rest

    pool = LatentPool(args, vae, painter, state, stream(args, glyphs, args.fresh, tokenizer, seed=2))
    while pool.size < args.prefill:
        pool.add()
    log(f"pool filled with {pool.size}")
    side = scenes.PICTURE // 16
    tables = {n: drawer.table(n, side, side, args.device) for n in (SHORT, LONG)}
    clock, saved, running = Clock(args.dit_seconds), time.time(), None
    while clock.tick():
        for optimizer in optimizers:
            set_rate(optimizer, clock.rate())
        if clock.steps % 4 == 0:
            pool.add()
        long = clock.steps % 12 == 2
        z, ids, lengths = pool.draw(args.batch, long)
        noise, sigma = torch.randn_like(z), noise_levels(len(z), z.device)
        s = sigma.view(-1, 1, 1, 1)
        with args.autocast():
            v = drawer((1 - s) * z + s * noise, 1 - sigma, ids, lengths, *tables[LONG if long else SHORT])
        loss = (v.float() - (z - noise)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(used, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        drawer.zero_grad(set_to_none=True)
        average.update()
        if clock.steps % args.report == 0:
            running = loss.detach() if running is None else running.lerp(loss.detach(), 0.3)
            log(f"dit {clock.steps} used {clock.used():.2f} loss {running.item():.4f}")
        if time.time() - saved > args.save_every:
            export.write_checkpoint(args.out, text_encoder=twin.text_encoder, transformer=twin.transformer)
            saved = time.time()
    log(f"dit done: {clock.steps} steps of {args.batch}")
    return twin


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--glyphs", required=True)
    p.add_argument("--tokenizer", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--start", help="a checkpoint to go on from (stages with a budget of 0 keep it as it is)")
    p.add_argument("--vae-seconds", type=float, default=280)
    p.add_argument("--dit-seconds", type=float, default=500)
    p.add_argument("--vae-batch", type=int, default=24)
    p.add_argument("--vae-lr", type=float, default=1.5e-3)
    p.add_argument("--vae-muon-lr", type=float, default=0.02, help="0: AdamW for everything")
    p.add_argument("--kl", type=float, default=1e-4)
    p.add_argument("--batch", type=int, default=256)
    p.add_argument("--lr", type=float, default=1.5e-3)
    p.add_argument("--muon-lr", type=float, default=0.015, help="0: AdamW for everything")
    p.add_argument("--muon-decay", type=float, default=0.01)
    p.add_argument("--fresh", type=int, default=64, help="new scenes every fourth step")
    p.add_argument("--pool", type=int, default=131072)
    p.add_argument("--prefill", type=int, default=24576)
    p.add_argument("--workers", type=int, default=12)
    p.add_argument("--report", type=int, default=400)
    p.add_argument("--save-every", type=float, default=60)
    p.add_argument("--smoke", action="store_true", help="seconds on a CPU: does every line run?")
    args = p.parse_args()
    torch.manual_seed(0)
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.smoke:
        model.shrink()
        vars(args).update(vae_seconds=4, dit_seconds=5, vae_batch=4, batch=4, fresh=4, pool=64,
                          prefill=8, workers=1, report=5, save_every=2, device="cpu")
        scenes.PICTURE = 64
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.recompile_limit = 64        # two caption lengths, with and without gradients
    args.autocast = lambda: torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda")
    args.compile = (lambda f: torch.compile(f, dynamic=False)) if args.device == "cuda" else (lambda f: f)

    glyphs = scenes.Glyphs(args.glyphs)
    if args.smoke:
        glyphs.bitmaps = glyphs.bitmaps[:, ::4, ::4]
    tokenizer = Tokenizer.from_file(f"{args.tokenizer}/tokenizer.json")
    painter = Painter(glyphs.bitmaps, args.device, scenes.PICTURE)
    rng = random.Random(99)
    held_out = painter([scenes.random_scene(glyphs, rng, held_out=True) for _ in range(8 if args.smoke else 512)])
    log(f"{len(glyphs)} glyphs; device {args.device}")

    vae, text_encoder, transformer, state = export.read_checkpoint(args.start or "/nonexistent")
    drawer = model.Drawer(text_encoder, transformer)
    vae.to(args.device), drawer.to(args.device)
    if args.vae_seconds:
        vae = train_vae(args, vae.requires_grad_(True).train(), painter, glyphs, held_out)
        state = measure(vae, held_out)
        log("latents", state)
        export.write_checkpoint(args.out, vae=vae, state=state)
    if args.dit_seconds:
        drawer = train_drawer(args, drawer.requires_grad_(True).train(), vae, painter, glyphs, tokenizer, state)
        export.write_checkpoint(args.out, text_encoder=drawer.text_encoder, transformer=drawer.transformer)
    export.write_checkpoint(args.out, state={**state, "seconds": round(time.time() - START)})
    log("all done")


if __name__ == "__main__":
    main()
