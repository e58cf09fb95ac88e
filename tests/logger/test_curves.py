"""Curves of a resumed run equal those of a straight one, and their file is strict JSON whatever happened to it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from slimexp.logger.curves import Curves, drop_from

Fit = Callable[..., pl.Trainer]


@pytest.mark.fast
@pytest.mark.parametrize(
    "wrong",
    [b"junk", b"[]", b"{}", b'{"step": "1"}', b'{"step": 1, "loss": "low"}', b'{"step": 1, "loss": NaN}',
     b'{"step": true}', b'{"step": 1, "loss": [1]}', b"\xff\xfe", b"[" * 10**5, b"0" * 2**21,
     b'{"step": 1, "loss": 1' + b"0" * 400 + b"}", b'{"step": 1, "\xed\xa0\x80": 1}'],
)  # fmt: skip
def test_rows_that_are_none_go_and_the_first_is_said(tmp_path: Path, wrong: bytes) -> None:
    path, rows = tmp_path / "curves.jsonl", [b'{"step": 0, "loss": 1.5}\n', b'{"step": 1, "loss": null}\n']
    path.write_bytes(rows[0] + wrong + b"\n" + rows[1] + b'{"step": 2}\n{"step": 3, "lo')
    assert drop_from(path, 2) == "line 2 is no row of it"
    assert path.read_bytes() == b"".join(rows)
    assert drop_from(path, 2) is None  # the last was torn by a kill: no damage
    assert drop_from(tmp_path / "none", 2) is None


def test_curves_of_a_resumed_run_equal_the_straight_ones(fit: Fit, tmp_path: Path) -> None:
    straight, stopped = tmp_path / "straight.jsonl", tmp_path / "stopped.jsonl"
    fit([Curves(path=straight)], 12, tmp_path)
    fit([Curves(path=stopped)], 5, tmp_path).save_checkpoint(tmp_path / "five.ckpt")
    with stopped.open("a") as file:  # it went on after the checkpoint, and was killed while it wrote
        file.write('{"step": 5, "loss": 9.0}\n{"step": 7, "loss": 9.0}\n{"step": 9, "lo')
    fit([Curves(path=stopped)], 12, tmp_path, resume=tmp_path / "five.ckpt")
    assert stopped.read_text() == straight.read_text()
    assert [json.loads(line)["step"] for line in straight.read_text().splitlines()] == [1, 3, 5, 7, 9, 11]


def test_curves_hold_strict_json(tmp_path: Path) -> None:
    curves = Curves(path=tmp_path / "deep" / "curves.jsonl")
    assert not (tmp_path / "deep").exists()
    curves.log_metrics({"loss": float("nan"), "rate": torch.tensor(0.5)}, 3)  # type: ignore[dict-item]
    assert json.loads((tmp_path / "deep" / "curves.jsonl").read_text()) == {"step": 3, "loss": None, "rate": 0.5}
