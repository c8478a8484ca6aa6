#!/usr/bin/env python3
"""Last stage, minutes on a CPU: let bare words work as well as whole phrases.

    python3 words.py --checkpoint run --glyphs glyphs.npz --tokenizer tokenizer --out run-words

After training, "a tree" draws a tree and the bare "tree" often does not: at the start of a prompt the
word has no space before it, so it is other tokens, which few captions began with. Here the text encoder
learns to say for "tree" and "Tree." what it already says for "a tree", aligned from the end of the
prompt; the few words that fail with their article too learn from the glyph's name. The transformer and
the autoencoder stay as they are, and so does what the encoder says for ordinary captions.
"""
import argparse
import copy
import random
import shutil
import time

import torch
from tokenizers import Tokenizer

import export
import model
import scenes
import tokens

LENGTH, HEAD = 32, 3            # longest prompt, in tokens; tokens of the frame before it
EVERYDAY = 0.25                 # share of the everyday words; the rest are keywords and names
BY_NAME = {"flower", "fruit", "tea", "cup", "smiley", "gift", "diamond", "yes", "hide", "shampoo", "on"}


def pair(glyphs, rng, everyday):
    """(what somebody may write, what the encoder already understands), for the same scene."""
    if rng.random() < EVERYDAY:
        word, glyph = rng.choice(everyday)
    else:
        glyph = rng.randrange(len(glyphs))
        words = glyphs.unique[glyph] if rng.random() < 0.6 else []
        word = rng.choice(words) if words else glyphs.names[glyph]
    scene = scenes.single(glyph, scenes.DEFAULT_BACKGROUND)
    if rng.random() < 0.4:
        scene.background = rng.randrange(len(scenes.BACKGROUNDS))
        if glyphs.held_out(scene):
            scene.background = scenes.DEFAULT_BACKGROUND
    asked = scenes.prompt_for(glyphs, scene, glyphs.names[glyph] if word in BY_NAME else word)
    written = scenes.prompt_for(glyphs, scene, word)
    if word not in BY_NAME or rng.random() < 0.5:
        written = written[written.index(word):]                      # without its article
    if rng.random() < 0.35:
        written = written[0].upper() + written[1:]
    end = "." if rng.random() < 0.12 else ""
    return written + end, asked + end


def encode(tokenizer, prompts):
    encoded = [tokenizer.encode(tokens.frame(p)).ids[:LENGTH] for p in prompts]
    ids = torch.zeros(len(prompts), max(map(len, encoded)), dtype=torch.long)
    for row, e in enumerate(encoded):
        ids[row, :len(e)] = torch.tensor(e)
    return ids, torch.tensor([len(e) for e in encoded])


def difference(got, wanted, where):
    """Mean over the tokens in `where` of the squared difference, relative to the token's own size."""
    return (((got - wanted).square().sum(-1) / wanted.square().sum(-1)) * where).sum() / where.sum()


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--checkpoint", required=True)
    p.add_argument("--glyphs", required=True)
    p.add_argument("--tokenizer", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--seconds", type=float, default=900)
    p.add_argument("--batch", type=int, default=96)
    p.add_argument("--ordinary", type=int, default=64, help="ordinary captions per step, held in place")
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--hold", type=float, default=3.0)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--resume", help="a text encoder to go on from; --checkpoint's is still the teacher")
    args = p.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)

    glyphs = scenes.Glyphs(args.glyphs)
    everyday = [(w, g) for g, words in glyphs.everyday.items() for w in words]
    tokenizer = Tokenizer.from_file(f"{args.tokenizer}/tokenizer.json")
    _, text_encoder, transformer, _ = export.read_checkpoint(args.checkpoint)
    teacher = model.Drawer(text_encoder, transformer)
    student = model.Drawer(copy.deepcopy(text_encoder), transformer)
    if args.resume:
        student.text_encoder.load_state_dict(export.read_checkpoint(args.resume)[1].state_dict())
    used = [q for n, q in student.text_encoder.named_parameters()
            if f"layers.{model.TEXT['num_hidden_layers'] - 1}." not in n and not n.endswith("model.norm.weight")]
    for q in used:
        q.requires_grad_(True)
    optimizer = torch.optim.AdamW(used, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0)
    rng, began, step, shown = random.Random(8), time.time(), 0, None
    while (share := (time.time() - began) / args.seconds) < 1:
        step += 1
        optimizer.param_groups[0]["lr"] = args.lr * min(1, step / 20) * min(1, 1.5 * (1 - share))
        written, asked = zip(*(pair(glyphs, rng, everyday) for _ in range(args.batch)))
        ordinary = [scenes.caption(glyphs, scenes.random_scene(glyphs, rng), rng) for _ in range(args.ordinary)]
        written_ids, written_n = encode(tokenizer, written)
        asked_ids, asked_n = encode(tokenizer, asked)
        ordinary_ids, ordinary_n = encode(tokenizer, ordinary)
        place = torch.arange(written_ids.shape[1])[None]
        with torch.no_grad():
            goal, before = teacher.encode(asked_ids), teacher.encode(ordinary_ids)
            # token by token from the end; what the longer writing has in front follows the first token
            source = (place + (asked_n - written_n)[:, None]).clamp(min=HEAD)
            source = torch.where(place < HEAD, place, source).clamp(max=asked_ids.shape[1] - 1)
            goal = goal.gather(1, source[..., None].expand(-1, -1, goal.shape[-1]))
        follow = difference(student.encode(written_ids), goal, place < written_n[:, None])
        drift = difference(student.encode(ordinary_ids), before,
                           torch.arange(ordinary_ids.shape[1])[None] < ordinary_n[:, None])
        loss = follow + args.hold * drift
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(used, 1.0)
        optimizer.step()
        now = torch.stack([follow.detach(), drift.detach()])
        shown = now if shown is None else shown.lerp(now, 0.1)
        if step % 20 == 0:
            print(f"[{time.time() - began:5.0f} s] {step} follow {shown[0]:.4f} drift {shown[1]:.5f}", flush=True)
    shutil.copytree(args.checkpoint, args.out, dirs_exist_ok=True)
    export.write_checkpoint(args.out, text_encoder=student.text_encoder)


if __name__ == "__main__":
    main()
