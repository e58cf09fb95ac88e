"""Where an object is written is found in source text, and nothing is imported for it."""

from pathlib import Path

import pytest

from slimexp.config.definition import PackageNotFound, TargetNotFound, find, home, lineage

pytestmark = [pytest.mark.fast, pytest.mark.usefixtures("shop")]


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("shop.Mode", TargetNotFound, "did you mean 'shop.Made'"),
        ("shop.bakc.starred", TargetNotFound, "did you mean 'shop.back'"),
        ("no_such_package.X", PackageNotFound, "no_such_package"),
        ("Word", TargetNotFound, "not a dotted name"),
        ("shop..X", TargetNotFound, "not a dotted name"),
    ],
)
def test_says_what_is_missing(target: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        find(target)


def test_lineage_follows_bases() -> None:
    assert list(lineage("shop.LongRow")) == ["shop.LongRow", "shop.Row"]
    assert list(lineage("shop.Alias")) == ["shop.back.Hidden"]


def test_reads_no_more_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target deep in a large package costs a few files, not the package."""
    read: list[Path] = []
    text = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read.append(self) or text(self))  # type: ignore[func-returns-value]
    find("torch.optim.SGD")
    assert len(read) <= 3


def test_home_is_where_a_name_is_written() -> None:
    assert home("shop.Alias") == ("shop.back.Hidden", True)
    assert home("shop.tool") == ("shop.tool", False)
    assert home("math.sqrt") is None and home("shop.Own.load") is None
