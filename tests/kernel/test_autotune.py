"""The fastest kernel is kept per shape, and what runs is told."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from slimexp.kernel import autotune
from slimexp.kernel.autotune import ByRows, converged, fastest, kernel_summary, put, winner, winners
from slimexp.kernel.base import Packed
from slimexp.kernel.dense import DenseBfloat16, DenseFloat32

REAL = autotune.race


def packed(out: int = 8) -> Packed:
    return Packed(torch.ones(out, 16, dtype=torch.int8), torch.ones(out, 1), None, 8, torch.zeros(out), "token")


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "_raced", {})
    monkeypatch.setenv("SLIMEXP_CACHE", str(tmp_path))


def decide(monkeypatch: pytest.MonkeyPatch, few: str, many: str) -> list[int]:
    """Let a race be won so; returns the rows that are raced."""
    asked: list[int] = []

    def timed(layer: Packed, rows: int, dtype: torch.dtype) -> dict[str, list[float]]:
        asked.append(rows)
        won = few if rows == autotune.FEW else many
        return {name: [1.0 if name == won else 2.0] for name in ("DenseFloat32", "DenseBfloat16")}

    monkeypatch.setattr(autotune, "race", timed)
    return asked


def test_a_later_backend_wins_only_beyond_noise() -> None:
    assert winner({"integers": [1.0] * 5, "dense": [0.97] * 5}) == "integers"
    assert winner({"integers": [1.0] * 5, "dense": [0.9] * 5, "half": [0.89] * 5}) == "dense"


def test_a_busy_neighbour_decides_nothing() -> None:
    assert winner({"integers": [1.0, 9.0, 1.0, 8.0, 1.0], "dense": [2.0, 2.0, 2.0, 2.0, 2.0]}) == "integers"
    assert winner({"integers": [1.0] * 5, "dense": [0.5, 0.5, 0.5, 0.5, 7.0]}) == "dense"
    assert winner({"integers": [8.0, 8.0, 8.0, 8.0, 1.0], "dense": [2.0, 2.0, 2.0, 2.0, 2.0]}) == "integers"


def test_a_second_kernel_for_a_layer_must_be_worth_its_memory() -> None:
    few = {"Vnni": [1.2], "IntMM": [1.0], "DenseFloat32": [3.0]}
    many = {"Vnni": [1.0], "IntMM": [2.0], "DenseFloat32": [4.0]}
    assert winners(few, many) == ("Vnni", "Vnni")
    assert winners(few | {"IntMM": [0.9]}, many) == ("IntMM", "Vnni")
    assert winners(few | {"DenseFloat32": [1.1]}, many) == ("IntMM", "Vnni")  # never slower than floats


def test_times_are_trusted_once_some_agree() -> None:
    assert converged({"integers": [9.0, 1.0, 1.05, 1.1], "dense": [1.5] * 4})
    assert not converged({"integers": [9.0, 1.0, 1.05, 1.2], "dense": [1.5] * 4})
    assert not converged({"integers": [1.0] * 4, "dense": [1.5, 1.7, 1.8, 1.9]})
    assert converged({"integers": [1.0] * 4, "dense": [2.5, 9.0, 9.0, 9.0]})  # too far behind to matter


def test_a_race_that_is_not_settled_is_told_and_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(autotune, "race", lambda layer, rows, dtype: {"DenseFloat32": [1.0, 2.0, 3.0]})
    layer = fastest(packed())
    assert kernel_summary(nn.Sequential(layer)) == (
        "dense float32 in 1 of 1 quantized layers; raced on a busy machine, so 1 may not be on their fastest"
    )
    assert not list(tmp_path.rglob("*.json"))


def test_a_race_ends_when_times_agree_and_stops_who_is_far_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    class Slow(DenseFloat32):
        def forward(self, x: Tensor) -> Tensor:
            ran.append("slow")
            return x

    clock = iter(range(10_000))
    monkeypatch.setattr(autotune.time, "perf_counter", lambda: float(next(clock)) + 1e4 * len(ran))
    monkeypatch.setattr(autotune, "_MOST_COPIES", 1)
    seconds = REAL(packed(), 1, backends=(DenseFloat32, Slow))
    assert len(seconds["DenseFloat32"]) == autotune._LEAST_ROUNDS and len(seconds["Slow"]) == 1


def test_every_backend_that_can_is_timed() -> None:
    seconds = REAL(packed(), 1, backends=(DenseFloat32, DenseBfloat16))
    assert list(seconds) == ["DenseFloat32", "DenseBfloat16"] and min(map(min, seconds.values())) > 0


def test_a_shape_is_raced_once_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = decide(monkeypatch, "DenseFloat32", "DenseFloat32")
    assert isinstance(fastest(packed()), DenseFloat32) and isinstance(fastest(packed()), DenseFloat32)
    assert asked == [autotune.FEW, autotune.MANY]
    monkeypatch.setattr(autotune, "_raced", {})  # another process
    fastest(packed())
    assert len(asked) == 2
    fastest(packed(out=24))
    assert len(asked) == 4


def test_few_and_many_rows_may_run_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    decide(monkeypatch, "DenseFloat32", "DenseBfloat16")
    layer = fastest(packed())
    assert isinstance(layer, ByRows)
    ran = []
    for kernel in (layer.few, layer.many):
        kernel.register_forward_hook(lambda module, inputs, y: ran.append(module.label))
    for rows in (1, 15, 16):
        assert layer(torch.ones(rows, 16)).shape == (rows, 8)
    assert ran == ["dense float32", "dense float32", "dense bfloat16"]
    assert kernel_summary(nn.Sequential(layer)) == (
        "dense float32 below 16 rows and dense bfloat16 from there in 1 of 1 quantized layers"
    )


def test_what_runs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_summary(nn.Sequential(nn.Linear(2, 2))) is None
    model = nn.Sequential(*(nn.Linear(16, 8) for _ in range(3)), nn.Linear(4, 4))
    decide(monkeypatch, "DenseFloat32", "DenseFloat32")
    put(model, {"0": packed(), "1": packed()})
    decide(monkeypatch, "DenseBfloat16", "DenseBfloat16")
    put(model, {"2": packed(out=24)})
    assert kernel_summary(model) == "dense float32 in 2 of 3 quantized layers; 1 dense bfloat16"


def _folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "harm",
    [
        *(lambda path, text=text: path.write_text(text) for text in (
            "", "[", "null", "3", "NaN", '"ab"', "{}", '{"few": 1, "many": 2}', "[]", '["DenseFloat32"]',
            '["DenseFloat32", "DenseFloat32", "DenseFloat32"]', "[1, 2]", "[NaN, NaN]", "[null, null]", "[[], {}]",
            '["Fastest", "DenseFloat32"]', '["Vnni", "IntMM"]', "[" * 900, " " * 2000, "\x00",
        )),
        lambda path: path.write_bytes(b"\xff\xfe\x00"),
        _folder,
        _pipe,
    ],
)  # fmt: skip
def test_what_is_no_result_is_raced_anew(
    harm: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(autotune, "BACKENDS", (DenseFloat32, DenseBfloat16))
    asked = decide(monkeypatch, "DenseBfloat16", "DenseBfloat16")
    fastest(packed())
    (kept,) = tmp_path.rglob("*.json")
    harm(kept)
    autotune.store.say.cache_clear()
    monkeypatch.setattr(autotune, "_raced", {})  # another process
    assert isinstance(fastest(packed()), DenseBfloat16) and len(asked) == 4
    assert capsys.readouterr().err == f"{kept} is no result of a race: its layers are raced anew\n"
    if not kept.is_dir():
        assert kept.read_text() == '["DenseBfloat16", "DenseBfloat16"]'
    assert [path for path in kept.parent.iterdir() if path.suffix != ".so"] == [kept]


def test_without_a_home_each_process_races(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLIMEXP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "")
    asked = decide(monkeypatch, "DenseFloat32", "DenseFloat32")
    assert isinstance(fastest(packed()), DenseFloat32) and len(asked) == 2
