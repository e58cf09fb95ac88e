"""A folder holds one sweep, which is known again wherever the folder lies, and no other one."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from optuna.samplers import RandomSampler

from slimexp.sweeper.promotion import Promotion
from slimexp.sweeper.sweep import Sweep

Make = Callable[..., Sweep]


def test_another_sweep_at_the_same_place_is_refused(make: Make) -> None:
    make("x=1,2", "y=1").run()
    with pytest.raises(
        ValueError, match=r"holds another sweep \(x was 1,2 and is 1,2,3, z is new\): repeat its command"
    ):
        make("x=1,2,3", "y=1", "z=1,2")
    with pytest.raises(ValueError, match=r"\(limits was {} and is {disk_mb: 3}\)"):
        make("x=1,2", "y=1", limits={"disk_mb": 3})
    with pytest.raises(ValueError, match=r"\(what is not swept changed\)"):
        make("x=1,2", "y=1", content="other")


def test_what_has_changed_is_named(make: Make) -> None:
    there = {"fixed": {"lr": 0.1, "bits": 8, "old": 1}, "content": "a"}
    make("x=1,2", "y=tag(log,interval(1,8))", sampler=RandomSampler, trials=1, **there).run()
    here = {"sampler": RandomSampler, "trials": 1, "fixed": {"lr": 0.1, "bits": None}, "content": "b"}
    with pytest.raises(ValueError, match=r"sweep \(bits was 8 and is null, old is no longer there\)"):
        make("x=1,2", "y=tag(log,interval(1,8))", **here)
    with pytest.raises(ValueError, match=r"\(y was tag\(log, interval\(1, 8\)\) and is int\(interval\(1, 8\)\)\)"):
        make("x=1,2", "y=int(interval(1,8))", **here)


def test_objectives_in_another_order_are_another_sweep(make: Make) -> None:
    """Values of finished trials stand in the order of their study's objectives."""
    make("x=1,2", "y=1").run()
    with pytest.raises(ValueError, match=r"objectives was {cer: min, disk_mb: min} and is {disk_mb: min, cer: min}"):
        make("x=1,2", "y=1", objectives={"disk_mb": "min", "cer": "min"})


@pytest.mark.parametrize("named", [True, False], ids=["now", "an older slimexp"])
@pytest.mark.parametrize("storage", [None, "sqlite"])
@pytest.mark.parametrize("how", ["moved", "linked", "relative", "absolute"])
def test_a_sweep_goes_on_wherever_its_folder_is(
    make: Make, here: Any, tmp_path: Path, monkeypatch: Any, how: str, storage: str | None, named: bool
) -> None:
    url = storage and f"sqlite:///{tmp_path / 'sweeps.db'}"
    monkeypatch.chdir(tmp_path)
    began = {"relative": tmp_path / "a/sweep", "absolute": Path("a/sweep")}.get(how, tmp_path / "a/sweep")
    ran: list[str] = []
    earnest = {"promotion": Promotion(most=1, overrides=("z=1",)), "pool": partial(here, ran), "workers": 1}
    make("x=1,2", f"runs={began.parent}", folder=began, storage=url, **earnest).run()
    assert sorted(ran[:2]) == ["1", "2"] and len(ran) == 3
    if not named:
        (tmp_path / "a/sweep/study").unlink()
        if storage and how == "moved":
            pytest.skip("a database does not know that a folder was moved")
    if how == "moved":
        (tmp_path / "a").rename(tmp_path / "b")
    elif how == "linked":
        (tmp_path / "b").symlink_to(tmp_path / "a")
    now = {"relative": Path("a/sweep"), "absolute": tmp_path / "a/sweep"}.get(how, tmp_path / "b/sweep")
    again = make("x=1,2", f"runs={now.parent}", folder=now, storage=url, **earnest)
    assert again.done == 2
    again.run()
    assert len(ran) == 3 and len(again.promoted) == 1
