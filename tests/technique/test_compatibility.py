"""Rows that stages leave divide into what later stages need; whole runs, see tests/pipeline/test_preflight.py."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from slimexp.technique.compatibility import align_rows

Make = Callable[..., Any]
REMOVAL = {"axes": "[ffn]", "multiple": 4}


def stages(technique: Make, **settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: technique(name, **values) for name, values in settings.items()}


def groups(size: int | str | None) -> dict[str, Any]:
    return {"bits": 4, "activation_bits": None, "group_size": size}


def test_a_removal_keeps_to_the_multiple_of_the_stages_after_it(tiny: Make, technique: Make) -> None:
    family = tiny("causal_lm")
    chain = stages(technique, prune_structured=REMOVAL, quantize=groups(16))
    assert align_rows(chain, family.model.config, family) == {"prune_structured": 16}
    assert chain["prune_structured"].multiple == 16


def test_stages_before_it_require_nothing_and_neither_do_whole_rows(tiny: Make, technique: Make) -> None:
    family = tiny("causal_lm")
    for chain in (
        stages(technique, quantize=groups(16), prune_structured=REMOVAL),
        stages(technique, prune_structured=REMOVAL, quantize=groups(None)),
    ):
        assert align_rows(chain, family.model.config, family) == {}
        assert chain["prune_structured"].multiple == 4


def test_rows_that_the_removal_does_not_change_must_divide_as_they_are(tiny: Make, technique: Make) -> None:
    family = tiny("causal_lm")
    chain = stages(technique, prune_structured=REMOVAL, quantize=groups(24))
    with pytest.raises(ValueError, match=r"layer 'model\.layers\.0\..*': group_size must divide .* got 24 for"):
        align_rows(chain, family.model.config, family)


def test_rows_must_divide_after_a_cut_of_blocks_alone_too(tiny: Make, technique: Make) -> None:
    family = tiny("causal_lm")
    cut = technique("distill", "+cut@pipeline.distill.cut=keep", **{"cut.decoder_layers": "[0]"})
    later = stages(technique, prune_structured=REMOVAL, quantize=groups(24))
    with pytest.raises(ValueError, match=r"layer 'model\.layers\.0\.self_attn\.q_proj': group_size must divide"):
        align_rows({"cut": cut, "quantize": later["quantize"]}, family.model.config, family)
    wide = tiny("causal_lm", intermediate_size=40)  # neurons that the second removal brings to a multiple
    chain = {"cut": cut, **stages(technique, prune_structured=REMOVAL, quantize=groups(16))}
    assert align_rows(chain, wide.model.config, wide) == {"prune_structured": 16}


def test_group_sizes_by_names_divide_the_rows_of_some_block(tiny: Make, technique: Make) -> None:
    """Blocks have other numbers after a cut, so that a size may be of another block than the name says now."""
    family = tiny("causal_lm")
    cut = technique("distill", "+cut@pipeline.distill.cut=keep", **{"cut.decoder_layers": "[1]"})
    one_block = stages(technique, quantize=groups("{model.layers.0.*:16}"))
    assert align_rows({"cut": cut, **one_block}, family.model.config, family) == {}
    odd = stages(technique, quantize=groups("{*.mlp.gate_proj:24,*:16}"))
    with pytest.raises(ValueError, match=r"layer 'model\.layers\.0\.mlp\.gate_proj': group_size must .* got 24"):
        align_rows({"cut": cut, **odd}, family.model.config, family)
