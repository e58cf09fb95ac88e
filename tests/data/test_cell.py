from typing import Any

import pytest

from slimexp.data.cell import check_text, label_name, missing_column
from slimexp.data.reader import Row


def row(**cells: Any) -> Row:
    return Row(cells, "a.jsonl", 7)


@pytest.mark.fast
def test_a_missing_column_is_named_with_those_that_are_there() -> None:
    assert missing_column("source", row(sourse="a", label="b"), split="dev") == (
        "a.jsonl, line 7: column 'source' is missing in split 'dev'; there are: sourse, label; did you mean 'sourse'? "
        "(name yours under data.columns)"
    )
    assert "; there are: none (name" in missing_column("source", row(), split="dev")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "a.jsonl, line 7: column 'text' must hold text, got None: fill or drop the row"),
        (["a"] * 40, r"must hold text, got \['a', .*\[\.\.\.\]: fill"),
        ("half \ud83d", r"column 'text' holds half a character \(\\ud83d, character 6\): write the whole one"),
    ],
)
def test_a_cell_without_text_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_text("text", row(text=value))
    check_text("text", row(text="whole \U0001f600"))


@pytest.mark.fast
def test_a_label_is_a_name_that_is_not_empty() -> None:
    assert label_name("label", row(label=1.0)) == "1"
    with pytest.raises(ValueError, match=r"a\.jsonl, line 7: column 'label' is empty: give the row a label"):
        label_name("label", row(label=" "))
    with pytest.raises(ValueError, match=r"a\.jsonl, line 7: column 'label' must hold text or integers, got 0\.5"):
        label_name("label", row(label=0.5))
