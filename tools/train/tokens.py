#!/usr/bin/env python3
"""A small tokenizer of Qwen's kind, trained on captions, and the chat frame around every prompt.

    python3 tokens.py --glyphs glyphs.npz --out tokenizer

Same rules as Qwen2/Qwen3 (NFC, Qwen's split pattern, byte-level BPE, the same added tokens with the
same chat frame), only the vocabulary is 2048 entries instead of 151,936.
"""
import argparse
import json
import os
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import scenes

VOCABULARY = 2048
ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


def frame(prompt):
    """What the text encoder is given for a prompt: Qwen3's chat template with thinking enabled."""
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def train(glyphs, captions=60000, seed=3):
    rng = random.Random(seed)
    corpus = [f"user\n{scenes.caption(glyphs, scenes.random_scene(glyphs, rng), rng)}\nassistant\n"
              for _ in range(captions)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(ADDED), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ADDED])
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


def save(tokenizer, folder):
    """The files of a Qwen2Tokenizer: tokenizer.json, vocab.json, merges.txt, tokenizer_config.json."""
    os.makedirs(folder, exist_ok=True)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    tokenizer.model.save(folder)
    first = VOCABULARY - len(ADDED)
    config = {
        "add_bos_token": False, "add_prefix_space": False, "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {str(first + i): {"content": t, "lstrip": False, "normalized": False,
                                                  "rstrip": False, "single_word": False, "special": True}
                                 for i, t in enumerate(ADDED)},
        "bos_token": None, "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace",
        "model_max_length": 4096, "pad_token": "<|endoftext|>", "split_special_tokens": False, "unk_token": None,
        "chat_template": TEMPLATE,
    }
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--glyphs", required=True)
    p.add_argument("--out", required=True)
    args = p.parse_args()
    glyphs = scenes.Glyphs(args.glyphs)
    tokenizer = train(glyphs)
    save(tokenizer, args.out)
    rng = random.Random(11)
    lengths = sorted(len(tokenizer.encode(frame(scenes.caption(glyphs, scenes.random_scene(glyphs, rng), rng))))
                     for _ in range(20000))
    print(f"tokens of a caption with its frame: median {lengths[10000]}, 99 % up to {lengths[19800]}, "
          f"over 32: {sum(n > 32 for n in lengths) / 200:.2f} %")


if __name__ == "__main__":
    main()
