from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp import artifact
from slimexp.budget.base import SearchSpace
from slimexp.budget.disk import Disk
from slimexp.cut.shape import whole


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_price_is_what_the_artifact_takes(tiny: Callable[..., Any], dtype: str, tmp_path: Path) -> None:
    family = tiny("causal_lm")
    shape = whole(family.model.config)
    size = sum(parameter.numel() for parameter in family.model.parameters())
    space = SearchSpace(
        family=family,
        lattice={word: [units] for word, units in shape.items()},
        count=lambda shape: size,
        build=lambda shape: family,
    )
    priced = 1e6 * Disk(megabytes=1, dtype=dtype).cost(space)(shape)
    artifact.save(family, tmp_path / "a", dtype=getattr(torch, dtype), stages=[])
    files = artifact.read_manifest(tmp_path / "a")["files"]
    shipped = sum((tmp_path / "a" / name).stat().st_size for name in files)
    assert shipped <= priced <= shipped + 3000


@pytest.mark.fast
def test_what_is_no_size() -> None:
    with pytest.raises(ValueError, match=r"budget\.megabytes must be > 0, got 0"):
        Disk(megabytes=0, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"budget\.dtype must be a torch type such as bfloat16, got 'int9'"):
        Disk(megabytes=1, dtype="int9")
