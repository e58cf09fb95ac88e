"""Students that are fresh, or another pretrained model: each learns from its teacher, of whatever make it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from tests.conftest import TINY

Make = Callable[..., Any]
OTHER_MAKES: dict[str, dict[str, Any]] = {
    "seq2seq": {"model_type": "bart", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
                "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16,
                "decoder_ffn_dim": 16, "max_position_embeddings": 64},
    "causal_lm": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64},
    "classification": {"model_type": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16,
                       "max_position_embeddings": 64},
}  # fmt: skip
AUTO = {
    "seq2seq": AutoModelForSeq2SeqLM,
    "causal_lm": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
}
TASKS = pytest.mark.parametrize("task", list(OTHER_MAKES))


@pytest.fixture
def run(pipeline: Make, short: Make, table: Path, tmp_path: Path) -> Make:
    """Task and more overrides -> what a stage of distillation leaves: its metrics and its model's config."""

    def make(task: str, *more: str) -> tuple[dict[str, float], Any]:
        made = pipeline(
            ["pipeline=distill", *short("distill"), "data=files", f"data.path={table}", f"data.task={task}",
             "model.max_length=16", "logger=none", "trainer=fast", f"runs={tmp_path / 'runs'}", "measure=[size,task]",
             *more]
        )  # fmt: skip
        metrics = made.run()
        artifact = made.stages[-1].artifact
        assert (artifact.parent / "curves.jsonl").read_text().count('"kl"') == 5
        return metrics, AutoConfig.from_pretrained(artifact)

    return make


def hydra(settings: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in settings.items()) + "}"


@TASKS
def test_a_fresh_student_of_another_make(run: Make, tiny_folder: Make, task: str) -> None:
    """Random weights and the teacher's tokenizer; the teacher is the dense model that it is compared with."""
    teacher = tiny_folder(task, name="teacher")
    metrics, config = run(
        task, "model=scratch", f"model.config={hydra(OTHER_MAKES[task])}", "tokenizer@model.tokenizer=borrowed",
        f"model.tokenizer.path={teacher}", "model@baseline=pretrained", f"baseline.path={teacher}",
        "baseline.max_length=64",
    )  # fmt: skip
    assert config.model_type == OTHER_MAKES[task]["model_type"] and metrics["disk_mb"] > 0


@TASKS
def test_another_pretrained_student_whose_rows_are_padded(
    run: Make, tiny: Make, tiny_folder: Make, tmp_path: Path, task: str
) -> None:
    """The student has 13 rows of its vocabulary more than its teacher, which no token has."""
    teacher, student = tiny_folder(task, name="teacher"), tmp_path / "student"
    tokenizer = tiny(task).tokenizer
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "decoder_start_token_id": 0}
    config = AutoConfig.for_model(**{**OTHER_MAKES[task], **special, "vocab_size": len(tokenizer) + 13})
    if task == "classification":
        config.id2label, config.label2id = {0: "no", 1: "yes"}, {"no": 0, "yes": 1}
    AUTO[task].from_config(config).save_pretrained(student)
    tokenizer.save_pretrained(student)
    metrics, made = run(
        task, "model=pretrained", f"model.path={student}", "+model@pipeline.distill.teacher=pretrained",
        f"pipeline.distill.teacher.path={teacher}", "pipeline.distill.teacher.max_length=64",
    )  # fmt: skip
    assert made.vocab_size == len(tokenizer) + 13 and metrics["disk_mb"] > 0


@pytest.mark.parametrize("wider", ["teacher", "student"])
@pytest.mark.parametrize("logits_at_once", [2**22, 4000])
def test_rows_without_a_token_teach_nothing(
    tiny: Make, technique: Make, corpus: Make, wider: str, logits_at_once: int
) -> None:
    """Tied heads, whole and in chunks: what stands in rows of padding does not matter, on either side."""
    import torch

    from slimexp.technique.training import Execution

    divergences = []
    for value in (0.0, 40.0):
        families = {"teacher": tiny("causal_lm"), "student": tiny("causal_lm", hidden_size=16)}
        model = families[wider].model
        model.resize_token_embeddings(len(families[wider].tokenizer) + 13)
        model.get_input_embeddings().weight.data[-13:] = value
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        stage = technique("distill", steps=1, packing="false")
        stage.execution = Execution(logits_at_once=logits_at_once)
        stage.prepare(families["student"], corpus("causal_lm"), families["teacher"])
        stage.model.eval()
        with torch.no_grad():
            terms = stage.evaluate(next(iter(stage.train_dataloader())))[1]
        divergences.append(terms["kl"].item())
        assert stage.objective.in_chunks
    assert divergences[0] == pytest.approx(divergences[1], rel=1e-6)


def test_a_fresh_student_without_a_dense_model_is_told_what_to_name(run: Make, tiny_folder: Make) -> None:
    teacher = tiny_folder("causal_lm", name="teacher")
    config = f"model.config={hydra(OTHER_MAKES['causal_lm'])}"
    with pytest.raises(ValueError, match=r"has random weights.*name the dense model by model@baseline=pretrained"):
        run("causal_lm", "model=scratch", config, "tokenizer@model.tokenizer=borrowed",
            f"model.tokenizer.path={teacher}")  # fmt: skip


# --- teachers of another tokenizer ------------------------------------------------------------------------------------

ALIGNED = pytest.mark.parametrize("loss", ["universal_logit", "byte_span"])


@pytest.fixture
def other_tokens(tmp_path: Path) -> Make:
    """Task -> a model whose tokens are pairs of bytes, where those of the others are bytes."""
    from slimexp.model.loading import Scratch
    from slimexp.model.tokenizer import Bpe

    def make(task: str) -> Path:
        source = Scratch(config=TINY[task], tokenizer=Bpe(vocab_size=300, characters=10_000), max_length=64)
        family = source.load(task=task, texts=lambda: ["one two words and three words"] * 9, labels=())
        for parameter in family.model.parameters():
            parameter.data *= 3  # so that it is sure of something
        family.model.save_pretrained(tmp_path / "other")
        family.tokenizer.save_pretrained(tmp_path / "other")
        return tmp_path / "other"

    return make


def taught_by(folder: Path, *losses: str, length: int = 64) -> list[str]:
    teacher = ["+model@pipeline.distill.teacher=pretrained", f"pipeline.distill.teacher.path={folder}"]
    added = [f"+loss@pipeline.distill.losses.{loss}={loss}" for loss in losses]
    return ["distill", *teacher, f"pipeline.distill.teacher.max_length={length}", *added]


@pytest.mark.parametrize(
    ("task", "loss"),
    [
        ("seq2seq", "universal_logit"),
        ("causal_lm", "byte_span"),
        pytest.param("seq2seq", "byte_span", marks=pytest.mark.slow),
        pytest.param("causal_lm", "universal_logit", marks=pytest.mark.slow),
    ],
)
def test_losses_that_align_tokens_learn_from_a_teacher_of_other_tokens(
    pipeline: Make, short: Make, overrides: Make, other_tokens: Make, task: str, loss: str
) -> None:
    steps = [*short("distill", steps=40), "pipeline.distill.losses.ce.weight=0", "pipeline.distill.batch_size=16"]
    run = [*taught_by(other_tokens(task), loss), *steps, "~pipeline.distill.losses.kl"]
    made = pipeline(overrides(*run, task=task))
    made.run()
    rows = [json.loads(line) for line in made.stages[-1].curves.read_text().splitlines()]
    values = [row[loss] for row in rows]
    assert sum(values[-5:]) < 0.9 * sum(values[:5])


@ALIGNED
def test_other_losses_keep_the_error(
    pipeline: Make, short: Make, overrides: Make, other_tokens: Make, loss: str
) -> None:
    """One that aligns does not help one that does not."""
    run = [*taught_by(other_tokens("seq2seq"), loss), *short("distill")]
    with pytest.raises(
        ValueError, match=r"pipeline\.distill\.teacher: teacher and student read different vocabularies"
    ):
        pipeline(overrides(*run))
    pipeline(overrides(*run, "~pipeline.distill.losses.kl"))


def test_what_a_teacher_of_other_tokens_cannot_read_is_refused(
    pipeline: Make, short: Make, overrides: Make, other_tokens: Make
) -> None:
    run = [*taught_by(other_tokens("causal_lm"), "byte_span"), *short("distill"), "~pipeline.distill.losses.kl"]
    with pytest.raises(ValueError, match=r"packing=true puts pieces of texts into a row, .*set it to auto"):
        pipeline(overrides(*run, "pipeline.distill.packing=true", task="causal_lm"))
    own = ["+completion@pipeline.distill.completion=student", "pipeline.distill.completion.prompt=4"]
    with pytest.raises(ValueError, match=r"does not read the tokens that the student writes"):
        pipeline(overrides(*run, *own, task="causal_lm"))


@ALIGNED
def test_parts_of_a_batch_add_up_and_like_tokens_need_no_alignment(
    tiny: Make, technique: Make, corpus: Make, other_tokens: Make, loss: str
) -> None:
    from slimexp.model.loading import from_folder

    words = [f"+loss@pipeline.distill.losses.{loss}={loss}", "~pipeline.distill.losses.kl"]
    for teacher in (from_folder(other_tokens("seq2seq"), "seq2seq", 64), tiny("seq2seq", d_ff=32)):
        stage = technique("distill", *words, steps=1, batch_size=6)
        stage.prepare(tiny("seq2seq"), corpus("seq2seq"), teacher)
        stage.model.eval()
        batch = next(iter(stage.train_dataloader()))
        assert (stage.unlike is None) == ("spans" not in batch)
        whole, _ = stage.evaluate(batch)
        stage.rows_at_once = 2
        parts = [part()[0].item() for part in stage.parts(batch)]
        assert len(parts) == 3 and sum(parts) == pytest.approx(whole.item(), rel=1e-4)


@ALIGNED
def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_other_tokens_of_its_own(
    tiny: Make, technique: Make, corpus: Make, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tokenizer, aligned as if it were another: every token is a span, and all agree."""
    from slimexp.technique import finetune

    monkeypatch.setattr(finetune, "reads_alike", lambda *_: False)
    stage = technique("distill", f"+loss@pipeline.distill.losses.{loss}={loss}", "~pipeline.distill.losses.kl", steps=1)
    stage.prepare(tiny("causal_lm"), corpus("causal_lm"), tiny("causal_lm"))
    stage.model.eval()
    batch = next(iter(stage.train_dataloader()))
    assert (batch["spans"] >= 0).sum() == (batch["labels"] != -100).sum() and "teacher_input_ids" in batch
    assert abs(stage.evaluate(batch)[1][loss].item()) < 1e-5
