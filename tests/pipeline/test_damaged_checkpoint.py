"""Checkpoints and curves that are damaged cost what is lost with them, and never a traceback."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp.pipeline import checkpoint

Make = Callable[..., Any]
Damage = Callable[[Path], None]
LAST = "prune"
OF_KIND = ["folder", "pipe", "link_to_nothing"]


def flip_a_weight(path: Path) -> None:
    """One bit of the largest part."""
    with zipfile.ZipFile(path) as file:
        part = max(file.infolist(), key=lambda part: part.file_size)
    content = bytearray(path.read_bytes())
    content[part.header_offset + 200 + part.file_size // 2] ^= 1
    path.write_bytes(content)


def of_another_key(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["callbacks"]["Checkpoint"]["key"] = "another"
    torch.save(content, path)


def of_a_negative_step(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["global_step"] = -5
    torch.save(content, path)


def of_no_training(path: Path) -> None:
    torch.save({"weights": torch.ones(3)}, path)


def a_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"global_step": 3}))


OF_CHECKPOINTS = [flip_a_weight, of_another_key, of_a_negative_step, of_no_training, a_pickle]


@pytest.mark.parametrize(
    "damage",
    [
        "cut",
        "folder",
        *OF_CHECKPOINTS,
        *(pytest.param(damage, marks=pytest.mark.slow) for damage in ("cut_at_the_end", "empty", "other", *OF_KIND)
          if damage != "folder"),
    ],
    indirect=["damage"],
)  # fmt: skip
def test_a_checkpoint_that_is_damaged_is_not_gone_on_from(
    stopped: Any, copy: Make, again: Make, fits: list[str], damage: Damage
) -> None:
    run = copy(stopped)
    damage(run.stage() / "checkpoint.ckpt")
    (line,) = again(run)
    assert line.startswith(f"{LAST}: its checkpoint.ckpt is damaged (") and line.endswith("done again")
    assert os.path.lexists(run.stage() / "damaged-checkpoint.ckpt")


@pytest.mark.parametrize("change", ["fewer", "none", "of another shape"])
def test_a_checkpoint_of_another_model_is_one_error_and_then_made_anew(
    stopped: Any, copy: Make, again: Make, change: str
) -> None:
    """Whole, of this stage by its key, and yet without the weights that its model has."""
    run = copy(stopped)
    path = run.stage() / "checkpoint.ckpt"
    content = torch.load(path, weights_only=True)
    state = content["state_dict"]
    first = next(iter(state))
    content["state_dict"] = {
        "fewer": {name: tensor for name, tensor in state.items() if name != first},
        "none": {},
        "of another shape": state | {first: torch.ones(3)},
    }[change]
    torch.save(content, path)
    with pytest.raises(
        ValueError, match=r"checkpoint\.ckpt does not fit the model, and is set aside: repeat the command"
    ):
        run.pipeline().run()
    assert os.path.lexists(run.stage() / "damaged-checkpoint.ckpt") and not os.path.lexists(path)
    assert again(run) == []


def test_a_checkpoint_that_is_whole_is(stopped: Any, copy: Make, again: Make, capsys: Any) -> None:
    run = copy(stopped)
    position = checkpoint.check(run.stage() / "checkpoint.ckpt", run.pipeline().stages[-1].key)
    assert position.step == 3 and 0 < position.curves_bytes < (run.stage() / "curves.jsonl").stat().st_size
    assert again(run) == []


@pytest.mark.parametrize("damage", ["empty", "flip", "missing", *OF_KIND], indirect=["damage"])
def test_curves_that_are_damaged_do_not_cost_the_training(
    stopped: Any, finished: Any, copy: Make, capsys: pytest.CaptureFixture[str], damage: Damage
) -> None:
    run = copy(stopped)
    curves = run.stage() / "curves.jsonl"
    if damage.__name__ == "flip":  # within a name that a row needs, and not just anywhere
        curves.write_text(curves.read_text().replace('"step"', '"stfp"', 1))
    else:
        damage(curves)
    run.pipeline().run()
    output = capsys.readouterr().out
    assert "its curves.jsonl is damaged (" in output and f"{LAST}: resuming at step " in output
    rows = curves.read_text().splitlines()
    straight = (finished[0].stage() / "curves.jsonl").read_text().splitlines()
    assert rows and set(rows) < set(straight)
    files = finished[0].files()
    assert {name: content for name, content in run.files().items() if "artifact" in name}.items() <= files.items()
