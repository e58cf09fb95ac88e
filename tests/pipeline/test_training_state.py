"""What stages go on from is dropped where that is asked for, and made anew where it is needed again."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimexp import artifact
from slimexp.model.loading import Pretrained
from slimexp.record import record
from slimexp.serialization import manifest

Make = Callable[..., Any]
CHAIN = [
    *(f"pipeline.{stage}.{value}" for stage in ("prune", "distill") for value in ("steps=2", "batch_size=4")),
    "pipeline.quantize.steps=0", "measure=[size]",
]  # fmt: skip
DROP = "keep_training_state=false"


@pytest.fixture(scope="module")
def line(tiny: Make, write_table: Make, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Command line of a chain of three stages, without its runs folder."""
    home = tmp_path_factory.mktemp("home")
    family = tiny("seq2seq")
    family.model.save_pretrained(home / "dense")
    family.tokenizer.save_pretrained(home / "dense")
    return [
        "model=pretrained", f"model.path={home / 'dense'}", "model.max_length=16", "data=files",
        f"data.path={write_table(home)}", "data.task=seq2seq", "pipeline=prune_quantize_distill", "logger=none",
        "trainer=fast", *CHAIN,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(line: list[str], pipeline: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs folder of the chain."""
    runs = tmp_path_factory.mktemp("finished")
    pipeline([*line, f"runs={runs}"]).run()
    return runs


@pytest.fixture
def chain(line: list[str], finished: Path, pipeline: Make, tmp_path: Path) -> Make:
    """More overrides -> a finished chain in a folder of the test's own, trained there only if there are any."""

    def run(*more: str) -> Any:
        if not more:
            shutil.copytree(finished, tmp_path / "runs")
        made = pipeline([*line, f"runs={tmp_path / 'runs'}", *more])
        made.run()
        return made

    return run


def artifacts(run: Any) -> dict[str, Path]:
    return {stage.name: stage.artifact for stage in run.stages}


def digests(run: Any) -> dict[str, Any]:
    return {name: artifact.read_manifest(folder)["digests"] for name, folder in artifacts(run).items()}


def test_all_is_kept_unless_asked_for(chain: Make) -> None:
    made = artifacts(chain())
    assert all((made[name] / artifact.TRAINING).exists() for name in ("prune", "quantize", "distill"))


def test_of_a_finished_run_the_last_stage_alone_can_be_gone_on_from(chain: Make, fits: list[str], capsys: Any) -> None:
    run = chain(DROP)
    made = artifacts(run)
    assert " MB freed, which stages went on from (keep_training_state=true keeps it)" in capsys.readouterr().out
    assert [name for name, folder in made.items() if (folder / artifact.TRAINING).exists()] == ["distill"]
    for name, folder in made.items():
        manifest.check(folder)
        assert artifact.served(folder).model is not None
        assert manifest.goes_on(folder) == (name in ("dense", "distill"))
    before, rows = len(fits), len(record.read(Path(run.cfg.runs)))
    chain(DROP)
    assert len(fits) == before and len(record.read(Path(run.cfg.runs))) == rows, "nothing is done twice"


def test_what_another_stage_is_to_follow_is_made_anew_and_is_the_same(
    chain: Make, fits: list[str], capsys: Any
) -> None:
    first = digests(chain(DROP))
    del fits[:]
    capsys.readouterr()
    run = chain(DROP, "pipeline.distill.steps=3")
    assert fits == ["Prune", "Distill"]  # quantization trains nothing here
    lines = [line for line in capsys.readouterr().out.splitlines() if "made anew" in line]
    before = ("prune", "quantize")
    assert lines == [f"{name}: made anew, as what the next stage goes on from was dropped" for name in before]
    again = digests(run)
    assert [again[name] for name in before] == [first[name] for name in before]


def test_only_what_is_needed_is_made_anew(chain: Make, fits: list[str]) -> None:
    """The stage that follows has what training goes on from, so the one before it need not."""
    run = chain()
    artifact.drop_training(artifacts(run)["prune"])
    del fits[:]
    chain("pipeline.distill.steps=3")
    assert fits == ["Distill"]


def test_a_model_that_lost_it_is_a_teacher_but_no_start(
    chain: Make, pipeline: Make, overrides: Make, fits: list[str]
) -> None:
    run = chain()
    folder = artifacts(run)["prune"]
    before = Pretrained(path=str(folder), max_length=16).fingerprint()
    artifact.drop_training(folder)
    assert not (folder / artifact.TRAINING).exists()
    assert Pretrained(path=str(folder), max_length=16).fingerprint() == before
    del fits[:]
    words = overrides("finetune", "pipeline.finetune.steps=1", "measure=[size]")
    (dense,) = (word.removeprefix("model.path=") for word in words if word.startswith("model.path="))
    baseline = ["model@baseline=pretrained", f"baseline.path={dense}", "baseline.max_length=16"]
    start = pipeline([*words, f"model.path={folder}", *baseline])
    with pytest.raises(
        ValueError, match=r"was dropped from '.*artifact' \(keep_training_state=false\).*repeat the comm"
    ):
        start.run()
    assert fits == []


def test_a_shared_file_frees_nothing_and_stays_with_the_other(tmp_path: Path, chain: Make) -> None:
    folder = artifacts(chain())["prune"]
    assert artifact.share(folder, tmp_path / "other")
    assert artifact.drop_training(tmp_path / "other") == 0
    assert manifest.goes_on(folder) and not manifest.goes_on(tmp_path / "other")
    assert artifact.drop_training(folder) > 0
    assert artifact.drop_training(folder) == 0, "a second time there is nothing left"


def test_a_file_that_is_missing_though_nobody_dropped_it_is_damage(chain: Make) -> None:
    folder = artifacts(chain())["prune"]
    (folder / artifact.TRAINING).unlink()
    with pytest.raises(manifest.Damaged, match=r"training\.safetensors is missing"):
        manifest.check(folder)
