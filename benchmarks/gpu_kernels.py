"""Which kernel multiplies a quantized layer fastest on this GPU, and is any of them faster than a dense one?

    python -m benchmarks.gpu_kernels
    python -m benchmarks.gpu_kernels --rows 1 128 2048 --toy

Layers of random weights in the shapes of BERT-base, of a 2B and of an 8B Llama, as int8 and float8 with inputs rounded
per token, are timed (``slimexp.kernel.timing``) beside float32 and bfloat16, whose inputs are rounded too, and beside
a layer that was never quantized. Microseconds are those of a call in a row of calls, over weights that no cache holds
where rows are few. The fastest is what ``slimexp`` serves the layer on; models that the decode loop knows decode on it
instead (``benchmarks.decode_large``). Prints Markdown.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from slimexp.kernel.base import FLOAT8, Packed
from slimexp.kernel.dense import DenseBfloat16
from slimexp.kernel.timing import BACKENDS, time_backends

SHAPES = {  # out, in
    "BERT-base, attention": (768, 768),
    "BERT-base, up": (3072, 768),
    "BERT-base, down": (768, 3072),
    "2B, attention": (2048, 2048),
    "2B, up": (8192, 2048),
    "2B, down": (2048, 8192),
    "8B, attention": (4096, 4096),
    "8B, up": (14336, 4096),
    "8B, down": (4096, 14336),
}
TOY = {"toy": (64, 128)}
KINDS = {"int8": torch.int8, "fp8": FLOAT8}


def layer(out: int, size: int, kind: torch.dtype) -> Packed:
    torch.manual_seed(0)
    numbers = torch.randint(-127, 128, (out, size)).to(kind)
    return Packed(numbers, torch.full((out, 1), 1e-3), None, 8, torch.zeros(out), "token")


class Plain(DenseBfloat16):
    """A layer that was never quantized."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x.bfloat16(), self.dequantized, self.bias).to(x.dtype)


def show(shapes: Mapping[str, tuple[int, int]], rows: Sequence[int], device: torch.device) -> None:
    """Print a table, line by line: microseconds by shape, type, rows and backend."""
    backends = [*(backend for backend in BACKENDS if "cuda" in backend.devices), Plain]
    names = [backend.__name__ for backend in backends]
    print(f"| layer | weights | rows | {' | '.join(names)} | fastest but for Plain, x Plain |")
    print(f"| --- | --- | ---: | {'---: | ' * len(names)}---: |")
    for shape, (out, size) in shapes.items():
        for kind, dtype in KINDS.items():
            for count in rows:
                packed = layer(out, size, dtype).to(device)
                seconds = {name: min(each) for name, each in time_backends(packed, count, backends=backends).items()}
                told = " | ".join(f"{1e6 * seconds[name]:.1f}" if name in seconds else "" for name in names)
                plain = seconds.pop("Plain")
                best = min(seconds, key=seconds.__getitem__)
                gain = plain / seconds[best]
                print(f"| {shape} {out} x {size} | {kind} | {count} | {told} | {best}, {gain:.2f}x |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 128, 2048])
    parser.add_argument("--toy", action="store_true", help="one small layer: does it run?")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("these kernels are timed on a CUDA GPU, and there is none")
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}\n", flush=True)
    show(TOY if arguments.toy else SHAPES, arguments.rows, torch.device("cuda"))


if __name__ == "__main__":
    main()
