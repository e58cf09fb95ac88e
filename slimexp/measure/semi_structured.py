"""Speed, memory and error of a 2:4 model on the kernels that skip its zeros."""

from collections.abc import Mapping
from copy import deepcopy
from typing import ClassVar

import torch
from torch import nn

from slimexp.data.base import Corpus, Direction
from slimexp.measure.base import Measure, Subject, untouched
from slimexp.measure.resident import MB, resident_bytes
from slimexp.measure.workload import Request, Workload
from slimexp.model.base import Family, parameter_count
from slimexp.model.semi_structured import supported, use_sparse_kernels

_RATIOS = ("latency_ratio", "prefill_ratio", "decode_ratio")


class SemiStructured(Measure):
    """The same 2:4 model on sparse and on dense kernels, in turns, both in half precision. Figures:

    - ``semi_structured_share``: share of the parameters whose layers run on sparse kernels. Where it is 0, the
      model being dense or masked otherwise, nothing else is measured.
    - ``semi_structured_latency_ratio``: sparse / dense kernels, below 1 where the sparse are faster;
      ``semi_structured_prefill_ratio``, ``semi_structured_decode_ratio``: of tokens per second, above 1 where they
      are faster; each with ``_low`` and ``_high``, see ``latency``.
    - ``semi_structured_resident_mb``, ``semi_structured_resident_dense_mb``: bytes of all tensors in memory.
    - ``semi_structured_error``: largest difference of a logit, in units of the largest logit.

    Args:
        latency: Measure that times both, with figures such as ``latency_ratio``.
        dtype: ``bfloat16`` or ``float16``, the types that the kernels take.
    """

    directions: ClassVar[Mapping[str, Direction]] = {
        "semi_structured_latency_ratio*": "min",
        "semi_structured_prefill_ratio*": "max",
        "semi_structured_decode_ratio*": "max",
        "semi_structured_resident_mb": "min",
        "semi_structured_error": "min",
    }

    def __init__(self, *, latency: Measure, dtype: str) -> None:
        if dtype not in ("bfloat16", "float16"):
            raise ValueError(f"dtype must be bfloat16 or float16, the types of 2:4 kernels, got {dtype!r}")
        self.latency = latency
        self.dtype = getattr(torch, dtype)

    def validate(self, task: str) -> None:
        if not supported():
            raise ValueError(
                "measure semi_structured needs an NVIDIA GPU of compute capability 8.0 or more, whose kernels skip "
                "zeros, and there is none: leave it out of measure"
            )

    def measure(self, subject: Subject, baseline: Subject, corpus: Corpus) -> dict[str, float]:
        dense, sparse = self._copy(subject), self._copy(subject)
        total = parameter_count(dense.family.model)
        layers = use_sparse_kernels(sparse.family.model)
        share = sum(layer.in_features * layer.out_features for layer in layers.values()) / total
        if not layers:
            return {"semi_structured_share": 0.0}
        timed = self.latency.measure(sparse, dense, corpus)
        ratios = {name: value for name, value in timed.items() if name.startswith(_RATIOS)}
        figures = {
            "share": share,
            **ratios,
            "resident_mb": resident_bytes(sparse.family.model) / MB,
            "resident_dense_mb": resident_bytes(dense.family.model) / MB,
            "error": _error(sparse.family, dense.family),
        }
        return {f"semi_structured_{name}": value for name, value in figures.items()}

    def _copy(self, subject: Subject) -> Subject:
        family = subject.family
        model = nn.Module.to(deepcopy(family.model), self.dtype)
        return Subject(type(family)(model, family.tokenizer, max_length=family.max_length), subject.folder)


def _error(sparse: Family, dense: Family) -> float:
    """Largest difference of a logit after a prompt of random tokens, in units of the largest logit."""
    shape = Workload(batch=1, tokens=128, new_tokens=0, seed=0).fitted(sparse, dense)
    with untouched(sparse.model, dense.model, seed=shape.seed):
        sparse_logits, dense_logits = (_logits(family, shape) for family in (sparse, dense))
    return float((sparse_logits - dense_logits).abs().max() / dense_logits.abs().max())


def _logits(family: Family, shape: Workload) -> torch.Tensor:
    logits: list[torch.Tensor] = []
    hook = family.model.register_forward_hook(lambda *call: logits.append(call[-1].logits))
    try:
        Request(family).prefill(shape.prompt(family))
    finally:
        hook.remove()
    return logits[-1].float()
