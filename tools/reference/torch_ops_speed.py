#!/usr/bin/env python3
"""Time PyTorch's CPU operations at the shapes of Z-Image.

usage: torch_ops_speed.py [--threads N] [--seconds S] [--cpu-time] [--json FILE] [--only OP,...]
                          [--compute TYPE,...]

What is timed: linear layers of 1088 rows (512x512 pixels and a short prompt) in
float32, bf16 and int8, attention of 30 heads of 128, and the 3x3 convolutions of
the VAE's decoder at 512x512. Rates count 2 operations for each multiplication
and addition; a convolution counts what the direct algorithm needs. The best of
the runs of each operation counts; the median shows how quiet the machine was.
Compare the rates with those of `calotype bench kernels --sizes 512,1024` on the same machine.
"""

import argparse
import json
import platform
import statistics
import time

import torch
import torch.nn.functional as F

ROWS = 1088
LINEAR = [(3840, 3840), (10240, 3840), (3840, 10240)]
ATTENTION = [1088, 4160]
CONV = [(512, 64), (512, 128), (256, 256), (128, 512)]


class Timer:
    def __init__(self, args):
        self.clock = time.process_time if args.cpu_time else time.perf_counter
        self.seconds = args.seconds
        self.threads = args.threads
        self.types = args.compute.split(",")
        self.results = []
        self.slow = set()  # operations of which other shapes are left out

    def run(self, work):
        """Seconds of each run. What takes long before anything is warm is emulated and run just once."""
        begin = self.clock()
        work()
        elapsed = self.clock() - begin
        if elapsed > 10 * self.seconds:
            return [elapsed]
        times, total = [], 0.0
        while total < self.seconds or len(times) < 3 and total < 4 * self.seconds:
            begin = self.clock()
            work()
            times.append(self.clock() - begin)
            total += times[-1]
        return times

    def __call__(self, op, compute, shape, operations, work):
        """Times work(); shape is a dictionary of sizes."""
        if compute.split()[0] not in self.types or (op, compute) in self.slow:
            return
        label = " ".join(f"{key}={value}" for key, value in shape.items())
        try:
            times = self.run(work)
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            reason = str(error).split("\n")[0][:80]
            print(f"{op:10} {compute:14} {label:30} not available: {reason}", flush=True)
            return
        if times[0] > 10 * self.seconds:
            self.slow.add((op, compute))
        best, median = min(times), statistics.median(times)
        rate = operations / best * 1e-9
        print(
            f"{op:10} {compute:14} {label:30} {rate:9.1f} GFLOP/s best"
            f" {operations / median * 1e-9:9.1f} median {best * 1e3:9.2f} ms ({len(times)} runs)",
            flush=True,
        )
        result = {"op": op, "compute": compute, **shape, "threads": self.threads}
        result.update(seconds=best, median=median, gflops=rate, runs=len(times))
        self.results.append(result)


def int8_packed(rows, outputs, inputs):
    """oneDNN's int8 linear layer with weights packed beforehand, as inductor calls it.

    Activations are u8 with one scale, weights are s8 with a scale per channel, the result is bf16
    or, on a processor for which oneDNN has no bf16, float32.
    """
    output = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    x = torch.randint(0, 127, (rows, inputs), dtype=torch.uint8)
    w = torch.randint(-127, 127, (outputs, inputs), dtype=torch.int8)
    scales = torch.full((outputs,), 0.01)
    zeros = torch.zeros(outputs, dtype=torch.int64)
    packed = torch.ops.onednn.qlinear_prepack(w, [rows, inputs])
    return lambda: torch.ops.onednn.qlinear_pointwise(
        x, 0.02, 64, packed, scales, zeros, None, 1.0, 0, output, "none", [], ""
    )


def bf16_packed(rows, outputs, inputs):
    """oneDNN's bf16 linear layer with weights packed beforehand, as inductor calls it."""
    x = torch.randn(rows, inputs).bfloat16()
    w = torch.randn(outputs, inputs).bfloat16()
    packed = torch.ops.mkldnn._reorder_linear_weight(w, rows)
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def time_linear(timer):
    for outputs, inputs in LINEAR:
        shape = {"m": ROWS, "n": outputs, "k": inputs}
        operations = 2 * ROWS * outputs * inputs
        x, w = torch.randn(ROWS, inputs), torch.randn(outputs, inputs)
        timer("linear", "fp32", shape, operations, lambda: F.linear(x, w))
        xb, wb = x.bfloat16(), w.bfloat16()
        timer("linear", "bf16", shape, operations, lambda: F.linear(xb, wb))
        xi = torch.randint(-127, 127, (ROWS, inputs), dtype=torch.int8)
        wi = torch.randint(-127, 127, (inputs, outputs), dtype=torch.int8)
        timer("linear", "int8 _int_mm", shape, operations, lambda: torch._int_mm(xi, wi))
        for name, make in (("bf16 packed", bf16_packed), ("int8 packed", int8_packed)):
            try:
                work = make(ROWS, outputs, inputs)
            except (RuntimeError, NotImplementedError, AttributeError) as error:
                print(f"linear {name}: not available: {str(error).splitlines()[0][:80]}")
                continue
            timer("linear", name, shape, operations, work)


def time_attention(timer):
    for length in ATTENTION:
        shape = {"heads": 30, "s": length, "d": 128}
        operations = 4 * 30 * length * length * 128
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            q, k, v = (torch.randn(1, 30, length, 128).to(dtype) for _ in range(3))
            timer("attention", name, shape, operations, lambda: F.scaled_dot_product_attention(q, k, v))


def time_conv(timer):
    for channels, side in CONV:
        shape = {"channels": channels, "side": side}
        operations = 2 * 9 * channels * channels * side * side
        x, w = torch.randn(1, channels, side, side), torch.randn(channels, channels, 3, 3)
        timer("conv3x3", "fp32 nchw", shape, operations, lambda: F.conv2d(x, w, padding=1))
        xc, wc = (t.to(memory_format=torch.channels_last) for t in (x, w))
        timer("conv3x3", "fp32 nhwc", shape, operations, lambda: F.conv2d(xc, wc, padding=1))
        xb, wb = xc.bfloat16(), wc.bfloat16()
        timer("conv3x3", "bf16 nhwc", shape, operations, lambda: F.conv2d(xb, wb, padding=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=1.0, help="for each operation")
    parser.add_argument("--cpu-time", action="store_true",
                        help="count time on the processor; with one thread, on a machine that others use")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--only", metavar="OP,...", default="linear,attention,conv")
    parser.add_argument("--compute", metavar="TYPE,...", default="fp32,bf16,int8",
                        help="leaves out the others; a type that is emulated is slow")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {args.threads} threads, {capability}, {platform.machine()}")
    timer = Timer(args)
    parts = {"linear": time_linear, "attention": time_attention, "conv": time_conv}
    with torch.inference_mode():
        for part in args.only.split(","):
            parts[part](timer)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"torch": torch.__version__, "cpu": capability, "results": timer.results}, file, indent=1)


if __name__ == "__main__":
    main()
