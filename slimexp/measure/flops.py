"""Floating-point operations of a forward pass."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from slimexp.data.base import Corpus, Direction
from slimexp.measure.base import Measure, Subject, untouched
from slimexp.measure.workload import Request, Workload


class Flops(Measure):
    """Floating-point operations of matrix products (a multiply-add is 2), in units of 10^9.

    ``flops_prefill_g`` is one pass over the whole prompt, ``flops_decode_g`` one further token per sequence
    behind that prompt (absent for classifiers); ``flops_tokens`` is the prompt's length. Zeros of a mask
    are multiplied like any number, so unstructured pruning changes nothing here.

    Args:
        batch: Number of sequences at once.
        tokens: Tokens of each prompt; shortened to what the model takes.
    """

    directions: ClassVar[Mapping[str, Direction]] = {"flops_prefill_g": "min", "flops_decode_g": "min"}

    def __init__(self, *, batch: int, tokens: int) -> None:
        self.workload = Workload(batch=batch, tokens=tokens, new_tokens=1, seed=0)

    def measure(self, subject: Subject, baseline: Subject, corpus: Corpus) -> dict[str, float]:
        family = subject.family
        shape = self.workload.fitted(family)
        prompt = shape.prompt(family)
        request = Request(family)
        # The counter has no formula for the CPU's fused attention and counts it as 0 (torch 2.13); the plain
        # one is made of matrix products. Integer products (_int_mm) are counted like others.
        formulas = {torch.ops.aten._int_mm: flop_registry[torch.ops.aten.mm]}
        if hasattr(torch.ops.slimexp, "linear"):
            formulas[torch.ops.slimexp.linear] = _linear_flops
        with untouched(family.model, seed=0), sdpa_kernel(SDPBackend.MATH):
            Request(family).prefill(prompt[:, :1])  # a packed model unpacks here, not under the counter
            with FlopCounterMode(display=False, custom_mapping=formulas) as prefill:
                request.prefill(prompt)
            with FlopCounterMode(display=False, custom_mapping=formulas) as decode:
                request.decode(shape.new_tokens)
        if not prefill.get_total_flops():
            raise ValueError(f"no matrix product of {type(family.model).__name__} was counted: its kernels are opaque")
        figures = {"flops_prefill_g": prefill.get_total_flops() / 1e9, "flops_tokens": float(shape.tokens)}
        if shape.new_tokens:
            figures["flops_decode_g"] = decode.get_total_flops() / 1e9
        return figures


def _linear_flops(x: torch.Size, *others: Any, out_shape: torch.Size, **options: Any) -> int:
    """FLOPs of ``kernel/vnni.cpp``: one multiplication and one addition per input and output."""
    return 2 * math.prod(x) * out_shape[-1]
