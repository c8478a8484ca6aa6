"""Build byte-level BPE tokenizers of the kind Qwen3 uses, and write them to disk.

The pre-tokenizer, the normalizer and the names of the added tokens are those of
the published tokenizers; vocabulary and merges are trained on a text given by
the caller, so a tokenizer can be as small as a test needs.
"""

import json
import os

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

SPLIT_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)

# In the order of their ids. The flag tells whether the published files call the
# token "special"; the tokenizer matches both sorts in the same way.
ADDED_TOKENS = [
    ("<|endoftext|>", True),
    ("<|im_start|>", True),
    ("<|im_end|>", True),
    ("<|object_ref_start|>", True),
    ("<|object_ref_end|>", True),
    ("<|box_start|>", True),
    ("<|box_end|>", True),
    ("<|quad_start|>", True),
    ("<|quad_end|>", True),
    ("<|vision_start|>", True),
    ("<|vision_end|>", True),
    ("<|vision_pad|>", True),
    ("<|image_pad|>", True),
    ("<|video_pad|>", True),
    ("<tool_call>", False),
    ("</tool_call>", False),
    ("<|fim_prefix|>", False),
    ("<|fim_middle|>", False),
    ("<|fim_suffix|>", False),
    ("<|fim_pad|>", False),
    ("<|repo_name|>", False),
    ("<|file_sep|>", False),
    ("<tool_response>", False),
    ("</tool_response>", False),
    ("<think>", False),
    ("</think>", False),
]

# Does for plain conversations what the published Qwen3 template does: no default
# system message, and an empty <think> block only when enable_thinking is false.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)


def train(texts, vocab_size):
    """Train a tokenizer whose vocabulary (without added tokens) has vocab_size entries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(
        add_prefix_space=False, trim_offsets=False, use_regex=False
    )
    tokenizer.decoder = decoders.ByteLevel(
        add_prefix_space=False, trim_offsets=False, use_regex=False
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    for content, special in ADDED_TOKENS:
        token = AddedToken(content, normalized=False, special=special)
        if special:
            tokenizer.add_special_tokens([token])
        else:
            tokenizer.add_tokens([token])
    return tokenizer


def _write_json(path, value, indent=None):
    separators = (",", ": ") if indent else (",", ":")
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        json.dump(value, file, ensure_ascii=False, indent=indent, separators=separators)
        file.write("\n")


def _tokenizer_config(tokenizer, template_inside):
    added = {}
    for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items()):
        added[str(token_id)] = {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [
            content for content, special in ADDED_TOKENS[1:] if special
        ],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    if template_inside:
        config["chat_template"] = CHAT_TEMPLATE
    return config


def save(tokenizer, directory, layout="json", template_inside=True, merges_as_strings=False):
    """Write the tokenizer in one of the layouts found in published models.

    layout "json" writes tokenizer.json, layout "vocab" writes vocab.json and
    merges.txt. The chat template goes into tokenizer_config.json, or into
    chat_template.jinja when template_inside is false. merges_as_strings selects
    the older form "A B" of a merge in tokenizer.json instead of ["A", "B"].
    """
    os.makedirs(directory, exist_ok=True)
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    merges = content["model"]["merges"]
    if layout == "json":
        if merges_as_strings:
            content["model"]["merges"] = [left + " " + right for left, right in merges]
        _write_json(os.path.join(directory, "tokenizer.json"), content)
    elif layout == "vocab":
        _write_json(os.path.join(directory, "vocab.json"), vocab)
        with open(os.path.join(directory, "merges.txt"), "w", encoding="utf-8", newline="\n") as file:
            file.write("#version: 0.2\n")
            for left, right in merges:
                file.write(left + " " + right + "\n")
    else:
        raise ValueError("unknown tokenizer layout: " + layout)
    config = _tokenizer_config(tokenizer, template_inside)
    _write_json(os.path.join(directory, "tokenizer_config.json"), config, indent=2)
    if not template_inside:
        path = os.path.join(directory, "chat_template.jinja")
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write(CHAT_TEMPLATE)


SMALL_TEXT = """
A watercolour painting of a red fox sleeping under an old oak tree in autumn, soft morning
light, very detailed, high quality. A photograph of a mountain lake at sunset, with reflections
of the snowy peaks in the still water and a small wooden boat near the shore. Portrait of an
elderly fisherman with a white beard, wearing a yellow raincoat, studio lighting, sharp focus.
The user asks the assistant to draw a picture. Blurry, low quality, bad hands, worst quality,
text, watermark. An astronaut riding a horse on the moon, cinematic, wide angle, dramatic sky.
A cup of coffee on a table next to an open book, rain on the window, warm colours. A city
street at night, neon signs, people with umbrellas, reflections on the wet road.
Der kleine Fuchs schläft unter einem großen Baum. Une forêt enneigée près d'un château.
Un gato negro mira por la ventana. 一只红色的狐狸在树下睡觉。山间的湖水倒映着雪山。
城市的夜晚，霓虹灯和雨伞。古い木の下で眠る赤いキツネ。Красная лиса спит под деревом.
"""


def train_small(vocab_size):
    """The tokenizer the tiny models share: a few hundred entries."""
    return train([SMALL_TEXT] * 2, vocab_size)
