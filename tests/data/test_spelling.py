"""Spelling on the real library: how much text there is, and how wrong it is typed."""

from pathlib import Path

import pytest

from slimexp.data.base import HELD_OUT, Example
from slimexp.data.spelling import Spelling


def spelling(*, rate: float = 0.08, seed: int = 0, split_seed: int = 0) -> Spelling:
    return Spelling(packages="none", rate=rate, split_seed=split_seed, seed=seed)


def test_real_library() -> None:
    corpus = spelling()
    sizes = {split: len(rows) for split, rows in corpus.splits.items()}
    assert 7_000 < sizes["train"] < 14_000
    assert all(500 < sizes[split] < 1_200 for split in HELD_OUT)
    sample = corpus.splits["test"][::4]
    assert corpus.trivial(sample) == pytest.approx(0.077, abs=0.012)


@pytest.mark.usefixtures("library")
def test_training_noise_changes_with_epoch_row_and_seed() -> None:
    one, other = spelling(seed=0), spelling(seed=1)
    drawn = {corpus.training_example(0, epoch).source for corpus in (one, other) for epoch in range(4)}
    assert len(drawn) > 6
    assert len({one.training_example(0, epoch).target for epoch in range(4)}) == 1


def test_held_out_noise_is_that_of_the_sentence(library: Path) -> None:
    whole = {example.target: example.source for example in spelling().splits["test"]}
    path = next(path for path in library.glob("*.py") if any(f"about {path.stem} that" in text for text in whole))
    path.write_text("".join(path.read_text().partition("def encoder")[1:]))
    fewer = {example.target: example.source for example in spelling().splits["test"]}
    assert 0 < len(fewer) < len(whole)
    assert fewer.items() < whole.items()


@pytest.mark.usefixtures("library")
def test_rate_zero_copies() -> None:
    corpus = spelling(rate=0.0)
    assert all(example.source == example.target for example in corpus.splits["test"])
    assert corpus.trivial([Example("a b", "a b")]) == 0


@pytest.mark.fast
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 1.0}, r"rate of typing errors must be in \[0, 1\), got 1.0"),
        ({"packages": "all"}, "packages must be one of none, installed, got 'all'"),
    ],
)
def test_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spelling(**({"packages": "none", "rate": 0.1, "split_seed": 0, "seed": 0} | change))  # type: ignore[arg-type]
