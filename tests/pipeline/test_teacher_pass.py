"""Runs whose teacher's outputs are kept: one pass serves a sweep, and each run is what it is with its teacher."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp.config.check import check
from slimexp.config.composition import compose
from slimexp.host import process_group
from slimexp.pipeline import teacher_pass
from slimexp.pipeline.pipeline import Pipeline
from slimexp.teacher_cache import store
from slimexp.teacher_cache.fill import TeacherPass
from slimexp.teacher_cache.store import ABOUT, FOLDER
from slimexp.technique.automatic import Conditions
from slimexp.technique.teacher import low_precision

Make = Callable[..., Any]
EXACT, COMPACT = (f"+teacher_cache@pipeline.distill.cache={form}" for form in ("exact", "compact"))
CUT = ("+cut@pipeline.distill.cut=keep", "pipeline.distill.cut.ffn=16", "measure=[size]")


@pytest.fixture
def run(overrides: Make, pipeline: Make, short: Make) -> Make:
    """Overrides (and task) -> a finished run of five steps; a cut student learns from the dense model."""

    def make(*more: str, task: str = "seq2seq", name: str = "run") -> Any:
        cut = [*CUT, *(["pipeline.distill.packing=true"] if task == "causal_lm" else [])]
        made = pipeline(overrides("distill", *short("distill"), *cut, f"name={name}", *more, task=task))
        made.run()
        return made

    return make


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows at every batch that a teacher's pass runs."""
    seen: list[int] = []
    outputs = TeacherPass._outputs

    def counting(self: TeacherPass, batch: Any) -> Any:
        seen.append(len(batch["labels"]))
        return outputs(self, batch)

    monkeypatch.setattr(TeacherPass, "_outputs", counting)
    return seen


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_the_student_is_the_same_to_the_last_bit(run: Make, weights: Make, same_tensors: Make, task: str) -> None:
    online = run(task=task, name="online")
    cached = run(EXACT, task=task, name="cached")
    again = run(EXACT, task=task, name="again")
    assert same_tensors(weights(online), weights(cached)) and same_tensors(weights(online), weights(again))


def test_all_temperatures_take_one_pass(
    run: Make, passes: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    temperatures = [f"pipeline.distill.losses.kl.temperature.start={t}" for t in (1, 2, 8)]
    run(EXACT, temperatures[0], name="t0")
    assert passes == [4] * 5
    assert re.search(r"teacher cache: 0 of (\d+) rows were there, \1 made in", capsys.readouterr().out)
    monkeypatch.setattr(teacher_pass, "_moved", None)  # the teacher stays where it is
    for number, temperature in enumerate(temperatures[1:], start=1):
        run(EXACT, temperature, name=f"t{number}")
        assert re.search(r"teacher cache: (\d+) of \1 rows were there", capsys.readouterr().out)
    assert passes == [4] * 5


def test_figures_of_the_cache_are_in_the_record(run: Make, records: Make) -> None:
    row = records(run(COMPACT, name="first"))[-1]
    again = records(run(COMPACT, "pipeline.distill.optimizer.lr=0.001", name="second"))[-1]
    metrics = row["metrics"]
    assert metrics["distill_cache_hit_ratio"] == 0 and again["metrics"]["distill_cache_hit_ratio"] == 1
    assert metrics["distill_cache_bytes_per_label"] == 98
    assert metrics["distill_cache_mb"] == pytest.approx(98e-6 * metrics["distill_cache_labels"])
    assert metrics["distill_cache_pass_seconds"] > 0 == metrics["distill_cache_saved_seconds"]
    assert again["metrics"]["distill_cache_saved_seconds"] == pytest.approx(metrics["distill_cache_pass_seconds"])
    assert all(0 <= metrics[f"distill_cache_kl_error_t{t}"] < 0.5 for t in (1, 2, 4, 8))


def test_another_seed_of_the_training_finds_the_same_rows(run: Make, passes: list[int]) -> None:
    """Rows of a fixed text are what they are, in whatever order; those that the first run left out are made."""
    every = ("pipeline.distill.steps=8",)  # an epoch, and its remainder
    run(EXACT, *every, name="first")
    made = sum(passes)
    run(EXACT, *every, "pipeline.distill.seed=7", "pipeline.distill.batch_size=3", name="other")
    assert sum(passes) - made <= 4


def test_a_new_cache_says_by_what_it_is_another(run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run(EXACT, name="first")
    capsys.readouterr()
    run(EXACT, "model.max_length=12", name="second")
    assert "a new teacher cache; the nearest one differs in max_length: 16, not 12" in capsys.readouterr().out


def test_a_second_folder_of_the_same_cache_differs_in_nothing(
    run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(EXACT, f"pipeline.distill.cache.folder={tmp_path / 'caches' / 'first'}", name="first")
    run(EXACT, f"pipeline.distill.cache.folder={tmp_path / 'caches' / 'second'}", name="second")
    assert "differs in" not in capsys.readouterr().out


def test_a_folder_that_is_named_must_hold_the_same(run: Make, tmp_path: Path) -> None:
    folder = f"pipeline.distill.cache.folder={tmp_path / 'own'}"
    run(EXACT, folder, name="first")
    assert (tmp_path / "own" / ABOUT).is_file() and not (tmp_path / "runs" / FOLDER).exists()
    with pytest.raises(ValueError, match=r"is of something else \(max_length: 16, not 12\): leave its folder at null"):
        run(EXACT, folder, "model.max_length=12", name="second")
    assert not (tmp_path / "runs" / "second").exists()  # before anything is done
    with pytest.raises(ValueError, match=r"is of something else \(kept\.form: exact, not compact"):
        run(COMPACT, folder, name="third")
    assert not (tmp_path / "runs" / "third").exists()


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_done(run: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    rule = r"pipeline\.distill\.cache\.folder: cannot write to .*file/cache \(.*\): name another folder"
    with pytest.raises(ValueError, match=rule):
        run(EXACT, f"pipeline.distill.cache.folder={tmp_path / 'file' / 'cache'}")
    assert not (tmp_path / "runs" / "run").exists()


def test_a_cache_on_a_share_is_read_as_it_is(
    run: Make, passes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = f"pipeline.distill.cache.folder={tmp_path / 'own'}"
    run(EXACT, folder, name="first")
    made = list(passes)
    monkeypatch.setattr(store.os, "access", lambda *_: False)
    run(EXACT, folder, "pipeline.distill.losses.kl.temperature.start=2", name="second")
    assert passes == made
    with pytest.raises(ValueError, match=r"own cannot be written to, and lacks \d+ of \d+ rows: make it writable"):
        run(EXACT, folder, "pipeline.distill.steps=8", name="third")


def test_a_named_folder_serves_texts_that_a_teacher_writes(run: Make, passes: list[int], tmp_path: Path) -> None:
    written = ["+completion@pipeline.distill.completion=teacher", "pipeline.distill.completion.longest=6",
               "pipeline.distill.completion.filters.finished=false"]  # fmt: skip
    folder = f"pipeline.distill.cache.folder={tmp_path / 'own'}"
    run(EXACT, folder, *written, name="first")
    made = len(passes)
    run(EXACT, folder, *written, "pipeline.distill.losses.kl.temperature.start=2", name="second")
    assert len(passes) == made > 0


def test_what_a_pass_made_before_it_was_stopped_is_of_use(
    run: Make, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slimexp.teacher_cache.fill.PART_BYTES", 1)
    add = TeacherPass._add

    def stopping(self: TeacherPass, *of_batch: Any) -> None:
        if len(passes) == 3:
            raise KeyboardInterrupt
        add(self, *of_batch)

    monkeypatch.setattr(TeacherPass, "_add", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(EXACT, name="stopped")
    monkeypatch.setattr(TeacherPass, "_add", add)
    run(EXACT, name="again")
    assert passes == [4] * 5


def test_the_key_knows_the_form_and_not_the_place(overrides: Make, pipeline: Make) -> None:
    def key(*more: str) -> str:
        return str(pipeline(overrides("distill", *CUT, *more)).stages[-1].key)

    plain, exact = key(), key(EXACT)
    assert len({plain, exact, key(COMPACT), key(EXACT, "pipeline.distill.cache.epochs=2")}) == 4
    assert key(EXACT, "pipeline.distill.cache.folder=elsewhere") == exact
    cfg = compose(overrides("distill", *CUT))
    del cfg.pipeline.distill.cache  # a config of before there were caches
    check(cfg)
    assert Pipeline(cfg, overrides=[]).stages[-1].key == plain


def test_the_teacher_is_known_by_its_weights_and_its_config(tiny: Make) -> None:
    from slimexp.teacher_cache.identity import teacher_digest

    one, same, other = tiny("causal_lm"), tiny("causal_lm"), tiny("causal_lm")
    same.model.config.name_or_path = "elsewhere"
    assert teacher_digest(one) == teacher_digest(same)
    with torch.no_grad():
        next(other.model.parameters())[0, 0] += 1
    assert teacher_digest(one) != teacher_digest(other)
    same.model.config.rms_norm_eps *= 2
    assert teacher_digest(one) != teacher_digest(same)


def test_processes_that_made_no_pass_have_its_type_too(
    run: Make, overrides: Make, pipeline: Make, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run(EXACT, name="first")
    technique = pipeline(overrides("distill", *CUT, EXACT, "pipeline.distill.steps=5")).techniques["distill"]
    technique.settle(Conditions(parameters=1))
    technique.prepare(tiny("seq2seq", d_ff=16), made.corpus, tiny("seq2seq"))
    monkeypatch.setattr(teacher_pass, "low_precision", lambda *_: torch.bfloat16)
    monkeypatch.setattr(process_group, "by_first", lambda work: {})
    teacher_pass.keep(technique, made.cfg)
    assert technique.cached.modules[0].weight.dtype == torch.bfloat16 and technique.teacher_family is None


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_the_pass_runs_the_teacher_in_the_type_of_training(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """As on a GPU: autocast has nothing to do where the weights have the type."""
    teacher, gpu = tiny("causal_lm"), torch.device("cuda")
    monkeypatch.setattr(teacher_pass, "low_precision", lambda name, _: low_precision(name, gpu))
    autocast = teacher_pass._moved(teacher, torch.device("cpu"), precision)
    batch = teacher.encode([("a", "a", None)])
    with autocast(), torch.no_grad():
        assert not torch.is_autocast_enabled("cpu")
        logits = teacher.forward(batch)[0]
    assert logits.dtype == (torch.float32 if precision == "32-true" else torch.bfloat16)


def test_values_of_the_environment_are_written_nowhere(
    run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    abouts = []
    for name, value in (("first", "splendid"), ("second", "wonderful")):
        monkeypatch.setenv("SOME_COLUMN", value)
        run(EXACT, "data.columns.label='${oc.env:SOME_COLUMN}'", name=name)
        abouts = [path.read_text() for path in (tmp_path / "runs" / FOLDER).glob(f"*/{ABOUT}")]
        assert not any(value in about for about in abouts)
    assert len(abouts) == 2 and all("${oc.env:SOME_COLUMN}" in about for about in abouts)


def test_the_cache_says_what_it_is_for(run: Make, tmp_path: Path) -> None:
    run(EXACT)
    (path,) = (tmp_path / "runs" / FOLDER).glob(f"*/{ABOUT}")
    about = json.loads(path.read_text())
    assert about["kept"] == {"form": "exact"} and about["split"] == "train" and about["max_length"] == 16
    assert about["corpus"]["_target_"] == "slimexp.data.files.Files"
    assert about["computed"] == {"device": "cpu", "precision": "32-true", "weights": "float32"}
