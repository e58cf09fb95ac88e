import pytest
import torch

from slimexp.importance.random import Random


@pytest.mark.fast
def test_layers_of_one_shape_and_other_seeds_differ() -> None:
    first, second = torch.randn(2, 16, 16).unbind()
    assert not torch.equal(Random(seed=0).score(first), Random(seed=0).score(second))
    assert not torch.equal(Random(seed=0).score(first), Random(seed=1).score(first))


@pytest.mark.fast
def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    Random(seed=0).score(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(before, torch.get_rng_state())
