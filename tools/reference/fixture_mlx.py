#!/usr/bin/env python3
"""Record what MLX makes of matrices when it quantises them: tests/fixtures/affine.safetensors.

    pip install "mlx[cpu]==0.32.4"
    python tools/reference/fixture_mlx.py [--out FILE]

For each type T in f32, f16, bf16 there is the input T.in [ROWS, COLUMNS], and for each number of
bits B, one after the other for groups of 32, 64 and 128:
    T.bB.codes   [3, ROWS, COLUMNS * B / 32]      mlx.core.quantize
    T.bB.scales  flat
    T.bB.biases  flat
    T.bB.decoded [3, COLUMNS]                     mlx.core.dequantize of the first row
"""

import argparse
import json
import os

import mlx.core as mx
import numpy

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

ROWS = 4
COLUMNS = 128
TYPES = [("f32", mx.float32, "F32"), ("f16", mx.float16, "F16"), ("bf16", mx.bfloat16, "BF16")]
BITS = [2, 3, 4, 5, 6, 8]
GROUPS = [32, 64, 128]


def matrix():
    """Ordinary weights, then groups of 32 in which something is special."""
    random = numpy.random.default_rng(20251121)
    ramp = numpy.arange(32, dtype=numpy.float32)
    special = [
        numpy.zeros(32),
        numpy.full(32, 0.7),
        numpy.full(32, -3.0),
        random.standard_normal(32) * 1e-8,  # below the smallest scale
        ramp / 31 + 10,  # far from zero on one side
        -ramp / 31 - 10,
        ramp - 15.5,  # as far to both sides, and codes that lie half way
        numpy.where(ramp == 7, 1000.0, random.standard_normal(32) * 0.01),
        ramp * 0.5 - 8,
        numpy.where(ramp % 2 == 0, 1e-6, -1e-6),
        random.standard_normal(32) * 5000,
        numpy.where(ramp < 16, 0.0, -1.0),
    ]
    ordinary = random.standard_normal(COLUMNS) * 0.05
    rows = numpy.concatenate([ordinary] + special).reshape(ROWS, COLUMNS)
    return mx.array(rows.astype(numpy.float32))


def raw(array):
    """The bytes of an array, whatever its type."""
    views = {4: mx.uint32, 2: mx.uint16}
    return numpy.array(array.view(views[array.dtype.size])).tobytes()


def save(path, tensors, metadata):
    """tensors: name -> (dtype name, element size, shape, bytes). Wide elements first."""
    names = sorted(tensors, key=lambda name: (-tensors[name][1], name))
    header = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name in names:
        dtype, _, shape, data = tensors[name]
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(tensors[name][3])


def record():
    tensors = {}

    def add(name, dtype, shape, arrays):
        tensors[name] = (dtype, arrays[0].dtype.size, shape, b"".join(raw(a) for a in arrays))

    for name, dtype, stored in TYPES:
        weights = matrix().astype(dtype)
        add(name + ".in", stored, [ROWS, COLUMNS], [weights])
        for bits in BITS:
            made = [mx.quantize(weights, group_size=group, bits=bits) for group in GROUPS]
            decoded = [mx.dequantize(*(part[:1] for part in triple), group_size=group, bits=bits)
                       for triple, group in zip(made, GROUPS)]
            prefix = "%s.b%d." % (name, bits)
            add(prefix + "codes", "U32", [3, ROWS, COLUMNS * bits // 32], [m[0] for m in made])
            count = sum(ROWS * COLUMNS // group for group in GROUPS)
            add(prefix + "scales", stored, [count], [m[1] for m in made])
            add(prefix + "biases", stored, [count], [m[2] for m in made])
            add(prefix + "decoded", stored, [3, COLUMNS], decoded)
    return tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default=os.path.join(ROOT, "tests", "fixtures",
                                                      "affine.safetensors"))
    arguments = parser.parse_args()
    mx.set_default_device(mx.cpu)
    save(arguments.out, record(), {"mlx": mx.__version__})


if __name__ == "__main__":
    main()
