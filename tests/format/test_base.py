"""What formats are given of an artifact."""

from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch

from slimexp.format.base import Plain
from slimexp.format.tracing import quiet, sample
from slimexp.quantizer.minmax import MinMax
from slimexp.quantizer.token import Token

Make = Callable[..., Any]


@pytest.mark.parametrize("task", ["causal_lm", "classification"])
@pytest.mark.parametrize("rounds", [False, True])
def test_a_graph_can_be_made_of_a_model_with_layers_of_unlike_bits(task: str, rounds: bool, made: Make) -> None:
    bits = cycle([8] if rounds else [4, 3])
    inputs = partial(Token, bits=8, group_size=None) if rounds else None
    model = made(task, lambda: MinMax(bits=next(bits), group_size=None), inputs)
    with quiet():
        graph = torch.export.export(model.unrounded, (), sample(model), strict=False)
    ids = torch.arange(3, 10).repeat(2, 1)
    traced = graph.module()(**(sample(model) | {"input_ids": ids})).logits[0].detach().numpy()
    np.testing.assert_allclose(traced, Plain(model.unrounded).logits(ids[0].tolist(), []), atol=1e-5)
    if not rounds:
        np.testing.assert_allclose(traced, Plain(model.family.model).logits(ids[0].tolist(), []), atol=1e-5)
