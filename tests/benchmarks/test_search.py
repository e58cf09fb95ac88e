"""The benchmark of the search: both sides train alike, and what speaks against the search is named."""

from pathlib import Path
from types import SimpleNamespace

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


@pytest.mark.fast
def test_a_grid_goes_on_with_what_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two side by side the second may have ended first."""
    begun: list[int] = []

    class Instant:
        free = True

        def __init__(self, **_: object) -> None:
            self.busy: list[search.Job] = []

        def __enter__(self) -> "Instant":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def submit(self, job: search.Job) -> None:
            begun.append(job.number)
            self.busy.append(job)

        def finished(self) -> list[tuple[search.Job, SimpleNamespace]]:
            ended, self.busy = self.busy, []
            return [(job, SimpleNamespace(error=None)) for job in ended]

    monkeypatch.setattr(search, "Pool", Instant)
    search._note(tmp_path, "grid", 0, 5.0, [1])
    search.train_grid([["a=0"], ["a=1"], ["a=2"]], tmp_path, 0, 60.0)
    assert begun == [0, 2] and search.finished(tmp_path, 0) == [1, 0, 2]


@pytest.mark.slow
def test_sides_run_by_themselves_and_are_reported_together(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "SHARES", (0.6,))
    monkeypatch.setattr(search, "BITS", (3,))
    runs, toy = search.folder_of(0, tmp_path), ["--toy", "--seeds", "0", "--runs", str(tmp_path), "--seconds", "900"]
    assert search.main([*toy, "--sides", "grid"]) == 0
    assert search.finished(runs, 0) == [0]
    assert search.main([*toy, "--sides", "search"]) == 0
    seconds = search.spent(runs, "search", 0)
    assert search.main([*toy, "--sides", "search"]) == 0  # not done again
    assert search.spent(runs, "search", 0) == seconds > 0
    capfd.readouterr()
    search.main([*toy, "--report"])
    assert "| 0 | 4 |" in capfd.readouterr().out
