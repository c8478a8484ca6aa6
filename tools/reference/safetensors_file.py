"""Write safetensors files whose bytes depend on their contents only.

The safetensors package stores metadata in random order, which would make every
regenerated fixture look changed.
"""

import json

import torch

_NAMES = {torch.float32: "F32", torch.int32: "I32", torch.uint8: "U8"}


def save(path, tensors, metadata):
    """tensors: name -> tensor (float32, int32 or uint8); metadata: name -> string."""
    header = {"__metadata__": dict(sorted(metadata.items()))}
    # Types with wide elements first, so that all data stays aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    offset = 0
    for name in names:
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            file.write(tensors[name].contiguous().numpy().tobytes())
