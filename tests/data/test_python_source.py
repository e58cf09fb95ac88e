import pytest

from slimexp.data.base import HELD_OUT
from slimexp.data.library import blocks
from slimexp.data.python_source import PythonSource


def test_real_library() -> None:
    corpus = PythonSource(packages="none", passage=1024, split_seed=0)
    size = {split: sum(len(row.source) for row in rows) for split, rows in corpus.splits.items()}
    assert size["train"] > 4e6
    assert all(3e5 < size[split] < 2e6 for split in HELD_OUT)
    assert max(len(row.source) for rows in corpus.splits.values() for row in rows) <= 1024
    held_out = {block for split in HELD_OUT for row in corpus.splits[split] for block in blocks(row.source)}
    assert all(held_out.isdisjoint(blocks(row.source)) for row in corpus.splits["train"])


@pytest.mark.fast
def test_refused() -> None:
    with pytest.raises(ValueError, match="passage must be >= 2 characters, got 1"):
        PythonSource(packages="none", passage=1, split_seed=0)
    with pytest.raises(ValueError, match="packages must be one of"):
        PythonSource(packages="some", passage=9, split_seed=0)  # type: ignore[arg-type]
