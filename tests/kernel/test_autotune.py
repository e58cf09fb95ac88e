"""The fastest kernel is cached per shape, and the summary names what runs."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from slimexp.kernel import autotune
from slimexp.kernel.autotune import ByRows, fastest, kernel_summary, replace_layers
from slimexp.kernel.base import Packed
from slimexp.kernel.dense import DenseBfloat16, DenseFloat32


def packed(out: int = 8) -> Packed:
    return Packed(torch.ones(out, 16, dtype=torch.int8), torch.ones(out, 1), None, 8, torch.zeros(out), "token")


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "_choices", {})
    monkeypatch.setenv("SLIMEXP_CACHE", str(tmp_path))


def decide(monkeypatch: pytest.MonkeyPatch, few: str, many: str) -> list[int]:
    """Let the times choose these backends; returns the numbers of rows that are timed."""
    timed_rows: list[int] = []

    def timed(layer: Packed, rows: int, dtype: torch.dtype) -> dict[str, list[float]]:
        timed_rows.append(rows)
        best = few if rows == autotune.FEW else many
        return {name: [1.0 if name == best else 2.0] for name in ("DenseFloat32", "DenseBfloat16")}

    monkeypatch.setattr(autotune, "time_backends", timed)
    return timed_rows


def test_a_choice_that_has_not_converged_is_marked_and_not_cached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(autotune, "time_backends", lambda layer, rows, dtype: {"DenseFloat32": [1.0, 2.0, 3.0]})
    layer = fastest(packed())
    assert kernel_summary(nn.Sequential(layer)) == (
        "dense float32 in 1 of 1 quantized layers; timed on a busy machine, so 1 may not be on their fastest"
    )
    assert not list(tmp_path.rglob("*.json"))


def test_a_shape_is_timed_once_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    timed_rows = decide(monkeypatch, "DenseFloat32", "DenseFloat32")
    assert isinstance(fastest(packed()), DenseFloat32) and isinstance(fastest(packed()), DenseFloat32)
    assert timed_rows == [autotune.FEW, autotune.MANY]
    monkeypatch.setattr(autotune, "_choices", {})  # another process
    fastest(packed())
    assert len(timed_rows) == 2
    fastest(packed(out=24))
    assert len(timed_rows) == 4


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


def test_the_summary_of_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_summary(nn.Sequential(nn.Linear(2, 2))) is None
    model = nn.Sequential(*(nn.Linear(16, 8) for _ in range(3)), nn.Linear(4, 4))
    decide(monkeypatch, "DenseFloat32", "DenseFloat32")
    replace_layers(model, {"0": packed(), "1": packed()})
    decide(monkeypatch, "DenseBfloat16", "DenseBfloat16")
    replace_layers(model, {"2": packed(out=24)})
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
def test_what_is_no_choice_is_timed_anew(
    harm: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(autotune, "BACKENDS", (DenseFloat32, DenseBfloat16))
    timed_rows = decide(monkeypatch, "DenseBfloat16", "DenseBfloat16")
    fastest(packed())
    (cached,) = tmp_path.rglob("*.json")
    harm(cached)
    autotune.store.print_once.cache_clear()
    monkeypatch.setattr(autotune, "_choices", {})  # another process
    assert isinstance(fastest(packed()), DenseBfloat16) and len(timed_rows) == 4
    assert capsys.readouterr().err == f"{cached} is no result of autotuning: its layers are timed anew\n"
    if not cached.is_dir():
        assert cached.read_text() == '["DenseBfloat16", "DenseBfloat16"]'
    assert [path for path in cached.parent.iterdir() if path.suffix != ".so"] == [cached]


def test_without_a_home_each_process_times(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLIMEXP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "")
    timed_rows = decide(monkeypatch, "DenseFloat32", "DenseFloat32")
    assert isinstance(fastest(packed()), DenseFloat32) and len(timed_rows) == 2
