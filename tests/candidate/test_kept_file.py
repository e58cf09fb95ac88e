"""Numbers that are kept, and refused where they are of something else."""

from pathlib import Path

import pytest

from slimexp.candidate.kept_file import KeptFile

OF = {"model": "a" * 64, "rows": 4}


def test_numbers_are_there_again(tmp_path: Path) -> None:
    path = tmp_path / "below" / "scores.json"
    KeptFile(path, OF, "x").add("decoder 0 removed", 0.25)
    again = KeptFile(path, OF, "x")
    again.add("decoder 1 removed", 0.5)
    assert KeptFile(path, OF, "x").numbers == {"decoder 0 removed": 0.25, "decoder 1 removed": 0.5}
    assert [file.name for file in path.parent.glob("[!.]*")] == ["scores.json"]


def test_searches_side_by_side_lose_no_number(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    one, other = KeptFile(path, OF, "x"), KeptFile(path, OF, "x")
    one.add("a", 1.0)
    other.add("b", 2.0)
    assert KeptFile(path, OF, "x").numbers == other.numbers == {"a": 1.0, "b": 2.0}
    assert one.numbers == {"a": 1.0}


def test_what_differs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    KeptFile(path, OF, "x").add("a", 1.0)
    with pytest.raises(ValueError, match=r"made of something else: model was a{12}\.\.\., is b{12}\.\.\.: give name"):
        KeptFile(path, {**OF, "model": "b" * 64}, "give name")


@pytest.mark.parametrize("text", ["{", "[]", '{"of": 1, "numbers": {}}', '{"of": {}, "numbers": {"a": NaN}}'])
def test_a_damaged_file_is_an_error_of_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        KeptFile(path, {}, "x")
    assert "\n" not in str(error.value)
    assert "scores.json" in str(error.value) and str(error.value).endswith(": remove it, and it is made anew")
