"""Two runs are held against each other fact by fact: whatever differs is seen, and named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import same_results

pytestmark = pytest.mark.fast

Change = Callable[[dict[str, Any]], object]
LAYER = {"module": "layer", "tensor": "weight", "class": "one.room.Mask", "arguments": {"shape": [2]}}


def written(runs: Path, change: Change = lambda stage: None, stages: tuple[str, ...] = ("dense", "prune")) -> Path:
    """The folder of a run whose last stage is changed before it is written."""
    lines = []
    for name in stages:
        stage: dict[str, Any] = {
            "curves": [{"step": 0, "loss": 0.1}, {"step": 1, "loss": 0.2}],
            "tensors": {"layer": torch.tensor([1.0, 0.0], dtype=torch.bfloat16), "packed": torch.tensor([7])},
            "attachments": [dict(LAYER)],
            "tokenizer": "{}",
            "record": {"metrics": {"cer": 0.5, "disk_mb": 1.0}, "kernel": "int8"},
        }
        if name == stages[-1]:
            change(stage)
        folder = runs / "run" / f"{name}-{len(lines)}"
        (folder / "artifact").mkdir(parents=True)
        save_file(stage["tensors"], folder / "artifact" / "model.safetensors")
        (folder / "artifact" / "manifest.json").write_text(json.dumps({"attachments": stage["attachments"]}))
        (folder / "artifact" / "tokenizer.json").write_text(stage["tokenizer"])
        (folder / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in stage["curves"]))
        places = {"artifact": f"run/{folder.name}/artifact", "curves": f"run/{folder.name}/curves.jsonl"}
        lines.append(json.dumps({"stage": name, **places, **stage["record"]}))
    (runs / "records.jsonl").write_text("\n".join(lines) + "\n")
    return runs


def differences(base: Path, head: Path) -> dict[str, str | None]:
    compared = same_results.compare(same_results.read(base), same_results.read(head))
    return {stage: differs for stage, differs, _ in compared}


def test_equal_runs_are_equal_and_what_was_compared_is_counted(tmp_path: Path) -> None:
    def elsewhere(stage: dict[str, Any]) -> None:
        stage["attachments"][0]["class"] = "another.room.Mask"

    base, head = written(tmp_path / "base"), written(tmp_path / "head", elsewhere)
    assert differences(base, head) == {"dense": None, "prune": None}
    *_, (_, _, compared) = same_results.compare(same_results.read(base), same_results.read(head))
    assert compared == "4 curve values, 2 tensors, 1 attachments, 1 files, 2 figures"


CHANGES: dict[str, tuple[Change, str]] = {
    "a loss in its last bit": (
        lambda stage: stage["curves"][1].update(loss=0.20000000000000004),
        "curve values: loss of row 1 is 0.20000000000000004, was 0.2",
    ),
    "a row of the curves less": (lambda stage: stage["curves"].pop(), "only base has 'step of row 1'"),
    "a tensor's sign of zero": (
        lambda stage: stage["tensors"].update(layer=torch.tensor([1.0, -0.0], dtype=torch.bfloat16)),
        "tensors: model.safetensors: layer is BF16 [2] ",
    ),
    "a packed integer": (
        lambda stage: stage["tensors"].update(packed=torch.tensor([8])),
        "tensors: model.safetensors: packed is I64 [1] ",
    ),
    "a tensor's shape": (
        lambda stage: stage["tensors"].update(layer=torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16)),
        "tensors: model.safetensors: layer is BF16 [1, 2] ",
    ),
    "a tensor more": (
        lambda stage: stage["tensors"].update(more=torch.zeros(1)),
        "tensors: only head has 'model.safetensors: more'",
    ),
    "a tensor less": (
        lambda stage: stage["tensors"].pop("packed"),
        "tensors: only base has 'model.safetensors: packed'",
    ),
    "a class of another name": (
        lambda stage: stage["attachments"][0].update({"class": "one.room.Cover"}),
        "attachments: 0, weight of layer is ['Cover'",
    ),
    "an argument": (
        lambda stage: stage["attachments"][0].update(arguments={"shape": [3]}),
        "attachments: 0, weight of layer is ['Mask', {'shape': [3]}]",
    ),
    "the tokenizer": (lambda stage: stage.update(tokenizer="[]"), "files: tokenizer.json is "),
    "a figure": (
        lambda stage: stage["record"]["metrics"].update(cer=0.25),
        "figures: cer is 0.25, was 0.5",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_named(name: str, tmp_path: Path) -> None:
    change, named = CHANGES[name]
    found = differences(written(tmp_path / "base"), written(tmp_path / "head", change))
    assert found["dense"] is None
    assert named in str(found["prune"])


@pytest.mark.parametrize(
    ("base", "head", "side"), [(("dense",), ("dense", "prune"), "head"), (("a", "b"), ("a",), "base")]
)
def test_a_stage_of_one_side_alone_is_named(
    base: tuple[str, ...], head: tuple[str, ...], side: str, tmp_path: Path
) -> None:
    found = differences(written(tmp_path / "base", stages=base), written(tmp_path / "head", stages=head))
    assert list(found.values()) == [None, f"only {side} has the stage"]


def test_figures_of_other_kernels_are_left_out_and_those_of_files_are_not(tmp_path: Path) -> None:
    def other_kernel(stage: dict[str, Any]) -> None:
        stage["record"] = {"metrics": {"cer": 0.25, "disk_mb": 1.0}, "kernel": "dense"}

    def larger_too(stage: dict[str, Any]) -> None:
        other_kernel(stage)
        stage["record"]["metrics"]["disk_mb"] = 2.0

    base = same_results.read(written(tmp_path / "base"))
    head = same_results.read(written(tmp_path / "head", other_kernel))
    *_, (_, differs, compared) = same_results.compare(base, head)
    assert differs is None and compared.endswith("1 figures; head ran dense, base int8")
    larger = same_results.read(written(tmp_path / "larger", larger_too))
    *_, (_, differs, _) = same_results.compare(base, larger)
    assert differs == "figures: disk_mb is 2.0, was 1.0"


def test_a_run_that_fails_is_no_equal_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(same_results, "train", lambda side, *_: "out of memory" if side.name == "head" else {})
    sides = [same_results.Side(name, Path(), ()) for name in ("base", "head")]
    assert not same_results.same(sides, "prune_t5", 3)
    assert capsys.readouterr().out == "| prune_t5 | | head failed: out of memory |\n"


def test_a_side_that_imports_another_checkout_is_refused(tmp_path: Path) -> None:
    side = same_results.Side("base", same_results.ROOT, ())
    same_results.check_imports(side, tmp_path)
    (tmp_path / "slimexp").mkdir()
    (tmp_path / "slimexp" / "__init__.py").touch()
    with pytest.raises(same_results.Failure, match="base must import slimexp from"):
        same_results.check_imports(side, tmp_path)  # a folder of that name goes before the checkout
