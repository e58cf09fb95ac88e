from typing import Any

import pytest

from slimexp.budget.base import SearchSpace
from slimexp.budget.experts import Experts


@pytest.mark.fast
def test_the_cost_is_the_share_of_the_experts() -> None:
    nothing: Any = None
    space = SearchSpace(family=nothing, lattice={"decoder": [2], "experts": [8, 7]}, count=nothing, build=nothing)
    budget = Experts(share=0.75)
    assert budget.cost(space)({"decoder": 2, "experts": 6}) == budget.limit == 0.75
    with pytest.raises(ValueError, match=r"share of the experts that stay must be in \(0, 1\), got 1"):
        Experts(share=1)
