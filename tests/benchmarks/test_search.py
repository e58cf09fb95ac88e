"""The benchmark of the search: both sides train alike, and what speaks against the search is named."""

from pathlib import Path

import pytest

from benchmarks import search
from slimexp.analysis.comparison import Comparison
from slimexp.config.check import check
from slimexp.config.composition import compose
from slimexp.config.schema import Search


def test_both_sides_train_alike() -> None:
    one = compose(search.search_line(1, [3, 4], Path("runs"), []), "search")
    check(one, schema=Search)
    lines = search.grid_lines(1, Path("runs"), [])
    assert len({tuple(line) for line in lines}) == len(search.SHARES) * len(search.BITS)
    other = compose(lines[0])
    check(other)
    for key in ("steps", "batch_size", "packing", "dropout", "losses", "optimizer", "lr_scheduler", "cache"):
        assert one.pipeline.distill[key] == other.pipeline.distill[key], key
    assert one.measure.task == other.measure.task
    assert not other.measure_all
    assert one.pipeline.quantize.group_size == other.pipeline.quantize.group_size


@pytest.mark.fast
def test_what_speaks_against_the_search_is_named() -> None:
    better = Comparison(-1.0, -1.5, -0.5, "rows", "min")
    worse = Comparison(1.0, 0.5, 1.5, "rows", "min")
    both = {"search": 1.2, "grid": 1.3}
    good = {0: [search.Row(4, both, better)], 1: [search.Row(4, {"search": 1.2}, None)]}
    assert search.missed(good, {0: {"search": 0.7, "grid": 0.6}, 1: {"search": 0.5, "grid": 0.6}}, {0: -9.0}) == []
    bad = {0: [search.Row(3, {"grid": 1.3}, None), search.Row(4, both, worse)]}
    assert search.missed(bad, {0: {"search": 0.5, "grid": 0.6}}, {0: 30.0}) == [
        "seed 0: the search took 30 s longer",
        "seed 0, 3 MB: no model",
        "seed 0, 4 MB: surely worse than the grid",
        "hypervolume 0.5000 < 0.6000",
    ]


@pytest.mark.fast
def test_a_grid_alone_needs_its_time(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="give --seconds"):
        search.main(["--sides", "grid", "--seeds", "3", "--runs", str(tmp_path)])


def test_sides_run_by_themselves_and_are_reported_together(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "SHARES", (0.6,))
    monkeypatch.setattr(search, "BITS", (3,))
    toy = ["--toy", "--seeds", "0", "--runs", str(tmp_path), "--seconds", "900"]
    assert search.main([*toy, "--sides", "grid"]) == 0
    assert search.trials(tmp_path, 0) == 1
    assert search.main([*toy, "--sides", "search"]) == 0
    seconds = search.spent(tmp_path, "search", 0)
    assert search.main([*toy, "--sides", "search"]) == 0  # not done again
    assert search.spent(tmp_path, "search", 0) == seconds > 0
    capfd.readouterr()
    search.main([*toy, "--report"])
    assert "| 0 | 4 |" in capfd.readouterr().out
