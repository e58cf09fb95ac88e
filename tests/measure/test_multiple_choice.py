"""Questions of the bundled tasks: one right answer, plausible wrong ones, the same under one seed."""

import pytest

from slimexp.data.base import Example
from slimexp.measure.multiple_choice import next_line_items, spelling_items


@pytest.mark.fast
def test_spelling_items() -> None:
    rows = [Example(source=f"A sentance {i}.", target=f"A sentence {i}.") for i in range(20)]
    items = spelling_items(rows, choices=4, seed=0)
    assert items == spelling_items(rows, choices=4, seed=0) != spelling_items(rows, choices=4, seed=1)
    for row, item in zip(rows, items, strict=True):
        assert item["context"] == row.source and item["choices"][item["answer"]] == row.target
        assert len(set(item["choices"])) == 4 and row.source not in item["choices"]
        assert {len(choice) for choice in item["choices"]} == {len(row.target or "")}
    assert len({item["answer"] for item in items}) == 4  # the right one may stand anywhere
    with pytest.raises(ValueError, match="too few letters"):
        spelling_items([Example(source="1", target="12")], choices=2, seed=0)


@pytest.mark.fast
def test_next_line_items() -> None:
    rows = [Example(source="\n".join(f"    variable_{i}_{j} = 1" for j in range(9))) for i in range(10)]
    rows += [Example(source="one line")]
    items = next_line_items(rows, choices=4, limit=5, longest=40, seed=0)
    assert items == next_line_items(rows, choices=4, limit=5, longest=40, seed=0) and len(items) == 5
    for item in items:
        right = item["choices"][item["answer"]]
        passage = next(row.source for row in rows if row.source.startswith(item["context"]))
        assert (item["context"] + right + "\n") in passage
        assert len(set(item["choices"])) == 4 and all(choice.startswith("    v") for choice in item["choices"])
        assert sum(choice in passage for choice in item["choices"]) == 1
    with pytest.raises(ValueError, match="text of several lines"):
        next_line_items(rows, choices=4, limit=None, longest=5, seed=0)
