"""Runs that learn from a teacher's or their own texts: what is shared, what resumes, what is refused."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slimexp import artifact
from slimexp.completion import generation, teacher
from slimexp.pipeline import completions
from slimexp.pipeline.pipeline import Pipeline

Make = Callable[..., Any]
CUT = ["+cut@pipeline.distill.cut=keep", "pipeline.distill.cut.ffn=32"]
BY_TEACHER = ["+completion@pipeline.distill.completion=teacher", "pipeline.distill.completion.longest=6",
              "pipeline.distill.completion.filters.finished=false", "pipeline.distill.completion.prompt=4"]  # fmt: skip
BY_STUDENT = ["+completion@pipeline.distill.completion=student", "pipeline.distill.completion.longest=6",
              "pipeline.distill.completion.prompt=4"]  # fmt: skip
CHECKPOINTS = ("checkpoint.every_steps=2", "checkpoint.every_seconds=0", "checkpoint.share=null")


@pytest.fixture
def writings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the task at every batch of a teacher's texts."""
    seen: list[str] = []

    def counting(family: Any, *arguments: Any) -> list[list[int]]:
        seen.append(family.task)
        return generation.generate_ids(family, *arguments)

    monkeypatch.setattr(teacher, "generate_ids", counting)
    return seen


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm"])
def test_trials_share_what_a_teacher_wrote(
    pipeline: Make, short: Make, overrides: Make, writings: list[str], task: str, tmp_path: Path
) -> None:
    for rate in (0.01, 0.02):
        pipeline(
            overrides(
                "distill", *short("distill"), *CUT, *BY_TEACHER, f"pipeline.distill.optimizer.lr={rate}", task=task
            )
        ).run()
    assert writings == [task]
    assert len(list((tmp_path / "runs" / "completions").glob("*.jsonl"))) == 1
    other = ["pipeline.distill.completion.longest=5"]
    pipeline(overrides("distill", *short("distill"), *CUT, *BY_TEACHER, *other, task=task)).run()
    assert writings == [task, task]


def test_texts_are_of_what_the_teacher_reads_and_the_type_that_it_computes_in(
    tiny: Make, corpus: Make, tmp_path: Path
) -> None:
    known: list[str] = []

    def write(corpus: Any, writer: Any, folder: Path, about: str) -> Path:
        known.append(about)
        return folder

    own = SimpleNamespace(needs_teacher=True, write=write, corpus=lambda corpus, path: corpus)
    technique: Any = SimpleNamespace(completion=own, teacher=None)
    for length in (16, 32):
        family = tiny("seq2seq", max_length=length)
        artifact.save(family, tmp_path / str(length), dtype=torch.float32, stages=[], key="key")

    def ask(length: int, *, keep_type: bool) -> None:
        completions.corpus_of(
            technique, corpus("seq2seq"), teacher=lambda: tiny("seq2seq"), reference=tmp_path / str(length),
            runs=tmp_path, code="code", device=torch.device("cpu"), keep_type=keep_type,
        )  # fmt: skip

    ask(16, keep_type=False)
    ask(16, keep_type=False)
    assert known[0] == known[1]
    ask(32, keep_type=False)
    ask(16, keep_type=True)
    assert len(set(known)) == 3


def test_a_prompt_leaves_room_in_what_a_named_teacher_reads(
    pipeline: Make, overrides: Make, tmp_path: Path, fits: list[str]
) -> None:
    folder = other_make(tmp_path, task="causal_lm")
    named = ["+model@pipeline.distill.teacher=pretrained", f"pipeline.distill.teacher.path={folder}",
             "pipeline.distill.teacher.max_length=5", "~pipeline.distill.losses.kl"]  # fmt: skip
    with pytest.raises(ValueError, match=r"^pipeline\.distill\.completion: .* room for a text in max_length=5, got 4"):
        pipeline(overrides("distill", *CUT, *named, *BY_TEACHER, task="causal_lm"))
    assert fits == []


def test_a_teacher_that_no_loss_reads_may_have_another_tokenizer(
    pipeline: Make, short: Make, overrides: Make, tiny: Make, tmp_path: Path, writings: list[str]
) -> None:
    """Sequence-level distillation is of texts (Kim & Rush 2016)."""
    folder = other_make(tmp_path)
    named = ["+model@pipeline.distill.teacher=pretrained", f"pipeline.distill.teacher.path={folder}",
             "pipeline.distill.teacher.max_length=64"]  # fmt: skip
    run = ["distill", *short("distill"), *named]
    with pytest.raises(
        ValueError, match=r"pipeline\.distill\.teacher: teacher and student read different vocabularies"
    ):
        pipeline(overrides(*run, *BY_TEACHER))
    pipeline(overrides(*run, *BY_TEACHER, "~pipeline.distill.losses.kl")).run()
    assert writings == ["seq2seq"]


def other_make(folder: Path, task: str = "seq2seq") -> Path:
    """A model of a tokenizer of its own."""
    from slimexp.model.loading import Scratch
    from slimexp.model.tokenizer import Bpe
    from tests.conftest import TINY

    source = Scratch(config=TINY[task], tokenizer=Bpe(vocab_size=300, characters=10_000), max_length=64)
    family = source.load(task=task, texts=lambda: ["one two words and three words"] * 9, labels=())
    family.model.save_pretrained(folder / "other")
    family.tokenizer.save_pretrained(folder / "other")
    return folder / "other"


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm"])
def test_resumed_equals_straight_where_the_student_writes(
    pipeline: Make, short: Make, weights: Make, same_tensors: Make, killed: type[BaseException], overrides: Make,
    kill_after: Make, monkeypatch: pytest.MonkeyPatch, task: str,
) -> None:  # fmt: skip
    dropout = {"dropout_rate": 0.2} if task == "seq2seq" else {"attention_dropout": 0.2}

    def make(runs: str) -> Pipeline:
        more = [*short("distill", steps=7), *CHECKPOINTS, *CUT, *BY_STUDENT]
        return pipeline(overrides("distill", *more, runs=runs, task=task, **dropout))

    straight = make("straight")
    expected = straight.run()
    interrupted = make("resumed")
    with monkeypatch.context():
        kill_after(2)
        with pytest.raises(killed):
            interrupted.run()
        monkeypatch.undo()
    assert interrupted.stages[-1].checkpoint.exists()
    resumed = make("resumed")
    assert resumed.run() == expected
    assert same_tensors(weights(resumed), weights(straight))
    curves = straight.stages[-1].curves.read_text()
    assert resumed.stages[-1].curves.read_text() == curves and '"ce": 0.0' in curves


def test_who_writes_is_in_the_key_and_nobody_is_as_before(pipeline: Make, overrides: Make) -> None:
    def key(*more: str) -> str:
        return pipeline(overrides("distill", *CUT, *more)).stages[-1].key

    assert len({key(), key(*BY_TEACHER), key(*BY_STUDENT)}) == 3
    settings = pipeline(overrides("distill", *CUT)).cfg.pipeline.distill
    assert "completion" not in settings  # so that records of before, and their points in reports, are the same


@pytest.mark.parametrize("own", [BY_TEACHER, BY_STUDENT], ids=["teacher", "student"])
def test_a_classifier_writes_nothing(pipeline: Make, overrides: Make, own: list[str], fits: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^pipeline\.distill\.completion: completions are texts, and a classifier"):
        pipeline(overrides("distill", *CUT, *own, task="classification"))
    assert fits == []


def test_shards_do_not_write(pipeline: Make, overrides: Make) -> None:
    devices = ["trainer.devices=2", "trainer.strategy=fsdp", "pipeline.distill.batch_size=4"]
    with pytest.raises(ValueError, match=r"fsdp cannot do pipeline\.distill, whose student writes .*use trainer=ddp"):
        pipeline(overrides("distill", *CUT, *BY_STUDENT, *devices))
    pipeline(overrides("distill", *CUT, *BY_TEACHER, *devices))
