"""What is hopeless is stopped in the midst of its training, and what goes on is as without the rule."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from slimexp.config.build import build
from slimexp.config.check import check
from slimexp.config.composition import CONF_DIR, compose
from slimexp.record.stage import Stopped
from slimexp.stopper.base import Stopper, read, validation_loss, write

Make = Callable[..., Any]
RULES = sorted(path.stem for path in (CONF_DIR / "stopper").glob("*.yaml"))
GOOD, BAD = 1e-3, 1e9


def build_rule(name: str, **changes: Any) -> Stopper:
    settings = OmegaConf.load(CONF_DIR / "stopper" / f"{name}.yaml")
    return build(OmegaConf.merge(settings, {"folder": "rungs"} | changes))


@pytest.mark.fast
@pytest.mark.parametrize("name", RULES)
def test_a_rule_keeps_the_best_and_stops_the_worst(name: str) -> None:
    rule, grades = build_rule(name), [1.0, 2.0, 3.0, 4.0]
    assert not rule.hopeless(9.0, [])  # the first of a rung
    assert not rule.hopeless(0.5, grades)
    assert not rule.hopeless(1.0, [1.0, 1.0, 1.0])  # none is better
    assert rule.hopeless(9.0, grades)
    assert rule.hopeless(float("nan"), grades)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rungs": [0.5, 1.0]}, r"rungs must be shares of the steps in \(0, 1\), got 1.0"),
        ({"rungs": ["half"]}, r"rungs must be shares of the steps in \(0, 1\), got half"),
        ({"least": 0}, "least must be >= 1, got 0"),
        ({"rows": 0}, "rows must be >= 1"),
    ],
)
@pytest.mark.parametrize("name", RULES)
def test_wrong_rules_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_rule(name, **changes)


@pytest.fixture
def run(tiny_folder: Callable[..., Path], table: Path, tmp_path: Path) -> Callable[..., dict[str, float]]:
    """Overrides -> a short finetuning of a tiny model."""
    from slimexp.pipeline.pipeline import Pipeline

    base = [
        "pipeline=finetune", "pipeline.finetune.steps=4", "pipeline.finetune.batch_size=2", "model=pretrained",
        f"model.path={tiny_folder('seq2seq')}", "model.max_length=16", "data=files", f"data.path={table}",
        "data.task=seq2seq", "logger=none", "trainer=fast", "measure=[size]", f"runs={tmp_path / 'runs'}", "name=a",
    ]  # fmt: skip

    def call(*overrides: str) -> dict[str, float]:
        cfg = compose([*base, *overrides])
        check(cfg)
        return Pipeline(cfg, overrides=list(overrides)).run()

    return call


def leave(folder: Path, trial: str, loss: float, among: str = "") -> None:
    write(folder / f"{trial}.json", {"among": among, "loss": loss})


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "median" else name for name in RULES]
)
def test_a_hopeless_trial_is_stopped_at_its_rung_and_a_good_one_is_not(
    run: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    rules = [f"+stopper@callback.stopper={name}", "callback.stopper.rungs=[0.5]", "callback.stopper.rows=4"]
    folder = tmp_path / "runs/a/rungs/finetune-at-0.5"
    for trial in range(3):
        leave(folder, f"finetune-{trial}", BAD)
        leave(folder, f"finetune-{trial}-of-others", GOOD, among="4")
    run(*rules)  # better than those it is held against
    (own,) = [path for path in folder.glob("*.json") if json.loads(path.read_text())["loss"] not in (GOOD, BAD)]
    assert len(list((tmp_path / "runs/a").glob("finetune-*/artifact"))) == 1
    with pytest.raises(Stopped, match=r"finetune was stopped at 50% of its steps: a validation loss of \d.*, where 3"):
        run(*rules, "callback.stopper.among=4", "seed=1")
    assert len(list((tmp_path / "runs/a").glob("finetune-*/artifact"))) == 1
    assert len(list(folder.glob("*.json"))) == 8 and own.exists()
    run("seed=1")  # goes on from its checkpoint without the rule
    assert len(list((tmp_path / "runs/a").glob("finetune-*/artifact"))) == 2


@pytest.mark.fast
@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"3", b"\0\0", b"\xff", b'{"loss": 1}', b'{"among": "", "loss": "low"}', b"[" * 10**5]
)
def test_a_damaged_grade_decides_nothing(tmp_path: Path, text: bytes) -> None:
    leave(tmp_path, "finetune-whole", GOOD)
    (tmp_path / "finetune-damaged.json").write_bytes(text)
    assert read(tmp_path) == {"finetune-whole": {"among": "", "loss": GOOD}}


@pytest.mark.fast
def test_what_is_no_grade_is_neither_waited_for_nor_read_to_its_end(tmp_path: Path) -> None:
    leave(tmp_path, "finetune-whole", GOOD)
    os.mkfifo(tmp_path / "finetune-pipe.json")
    (tmp_path / "finetune-device.json").symlink_to("/dev/zero")
    (tmp_path / "finetune-folder.json").mkdir()
    (tmp_path / "finetune-long.json").write_text(json.dumps({"among": "x" * 100_000, "loss": GOOD}))
    assert read(tmp_path) == {"finetune-whole": {"among": "", "loss": GOOD}}


@pytest.mark.fast
@pytest.mark.parametrize("place", ["a.json", f"a.{os.getpid()}.partial"], ids=["grade", "partial"])
@pytest.mark.parametrize("put", ["pipe", "link"])
def test_a_grade_is_written_into_no_pipe_and_through_no_link(tmp_path: Path, place: str, put: str) -> None:
    (tmp_path / "other").write_text("other")
    os.mkfifo(tmp_path / place) if put == "pipe" else (tmp_path / place).symlink_to("other")
    leave(tmp_path, "a", GOOD)
    assert read(tmp_path)["a"]["loss"] == GOOD and not (tmp_path / "a.json").is_symlink()
    assert (tmp_path / "other").read_text() == "other"


def test_few_at_a_rung_decide_nothing(run: Callable[..., Any], tmp_path: Path) -> None:
    leave(tmp_path / "runs/a/rungs/finetune-at-0.5", "finetune-other", GOOD)
    run("+stopper@callback.stopper=median", "callback.stopper.rungs=[0.5]", "callback.stopper.least=3")


def test_another_stage_has_no_rungs(run: Callable[..., Any], tmp_path: Path) -> None:
    run("+stopper@callback.stopper=median", "callback.stopper.stage=prune")
    assert not (tmp_path / "runs/a/rungs").exists()


def test_a_trial_that_goes_on_is_as_without_the_rule(run: Callable[..., Any], tmp_path: Path) -> None:
    from slimexp import artifact

    weights = []
    for rules in ([], ["+stopper@callback.stopper=asha"]):
        run(*rules, "resume=false", "pipeline.finetune.dropout=true")
        (folder,) = (tmp_path / "runs/a").glob("finetune-*")  # one key: rules shape no result
        weights.append(artifact.load(folder / "artifact").model.state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_the_validation_loss_is_that_of_the_labels(tiny: Make, corpus: Make, technique: Make, task: str) -> None:
    stage = technique("finetune")
    stage.prepare(tiny(task), corpus(task), None)
    loss = validation_loss(stage, 2)
    assert 0 < loss == validation_loss(stage, 2)
    assert loss != validation_loss(stage, 3)
