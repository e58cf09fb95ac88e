"""Figures of a 2:4 model on sparse kernels, and of any other model."""

import pytest
import torch
from torch import nn

from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.data.base import Corpus
from slimexp.measure import semi_structured
from slimexp.measure.base import Measure, Subject
from slimexp.measure.semi_structured import SemiStructured


def measure(**changes: object) -> Measure:
    node = compose(["measure=[semi_structured]"]).measure.semi_structured
    node.latency.update({"repeats": 6, "warmup": 1, "tokens": 16, "new_tokens": 2})
    return build(node, **changes)


def test_a_machine_without_such_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semi_structured, "supported", lambda: False)
    with pytest.raises(ValueError, match=r"needs an NVIDIA GPU .* leave it out of measure"):
        measure().validate("causal_lm")


def test_a_type_that_kernels_do_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype must be bfloat16 or float16, the types of 2:4 kernels, got 'float32'"):
        measure(dtype="float32")


def test_a_model_that_is_not_2_4_runs_on_none(subjects: dict[str, Subject], corpora: dict[str, Corpus]) -> None:
    subject = subjects["causal_lm"]
    assert measure().measure(subject, subject, corpora["causal_lm"]) == {"semi_structured_share": 0.0}


def test_both_kernels_are_timed_on_copies(
    subjects: dict[str, Subject], corpora: dict[str, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_of(model: nn.Module) -> dict[str, nn.Linear]:
        return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}

    monkeypatch.setattr(semi_structured, "use_sparse_kernels", all_of)
    subject = subjects["causal_lm"]
    figures = measure().measure(subject, subject, corpora["causal_lm"])
    assert 0 < figures["semi_structured_share"] <= 1
    ends = [figures[f"semi_structured_latency_ratio{end}"] for end in ("_low", "", "_high")]
    assert ends == sorted(ends) and ends[0] > 0
    assert figures["semi_structured_error"] == 0  # both are the same model here
    assert next(subject.family.model.parameters()).dtype == torch.float32


def test_its_better_ways_are_known() -> None:
    assert SemiStructured.directions["semi_structured_decode_ratio*"] == "max"
