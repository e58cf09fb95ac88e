"""Which model is dense, and which teachers are refused before anything is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimexp.cut.keep import Keep
from slimexp.cut.source import CutOut
from slimexp.model.loading import Pretrained, Scratch
from slimexp.model.tokenizer import Bpe, Bytes
from slimexp.pipeline.reference import check_losses, check_teachers, dense, found_at

Make = Callable[..., Any]
CUT = Keep(
    encoder_layers=None, decoder_layers=None, ffn=16, heads=None, attention_rank=None, ffn_rank=None, hidden=None,
    experts=None, calibration_batches=0,
)  # fmt: skip


@pytest.fixture
def source(tiny_folder: Make) -> Pretrained:
    return Pretrained(path=str(tiny_folder("seq2seq")), max_length=16)


@pytest.fixture
def scratch() -> Scratch:
    return Scratch(config={"model_type": "t5", "num_layers": 1}, tokenizer=Bytes(), max_length=16)


def test_a_trained_model_is_dense_and_a_cut_out_one_has_its_source(
    source: Pretrained, technique: Make, corpus: Make
) -> None:
    first, text = technique("prune"), corpus("seq2seq")
    assert dense(source, None, first, text) is source
    assert dense(CutOut(source=source, cut=CUT), None, first, text) is source


def test_random_weights_are_trained_first_or_have_a_named_one(
    source: Pretrained, scratch: Scratch, technique: Make, corpus: Make
) -> None:
    text = corpus("seq2seq")
    assert dense(scratch, None, technique("finetune"), text) is None
    assert dense(scratch, source, technique("prune"), text) is source
    for first in ("prune", "quantize", "distill"):
        with pytest.raises(ValueError, match=r"has random weights, which nothing can be compared with or taught by"):
            dense(scratch, None, technique(first), text)


@pytest.fixture
def headless(tiny: Make, tmp_path: Path) -> Pretrained:
    """A BERT that was saved without a classifier."""
    family = tiny("classification")
    family.model.base_model.save_pretrained(tmp_path / "headless")
    family.tokenizer.save_pretrained(tmp_path / "headless")
    return Pretrained(path=str(tmp_path / "headless"), max_length=16)


def test_a_classifier_that_nobody_trained_is_trained_first_and_teaches_nobody(
    headless: Pretrained, tiny_folder: Make, technique: Make, corpus: Make, caplog: pytest.LogCaptureFixture
) -> None:
    text = corpus("classification")
    trained = Pretrained(path=str(tiny_folder("classification")), max_length=16)
    assert trained.is_trained("classification") and not headless.is_trained("classification")
    assert not CutOut(source=headless, cut=CUT).is_trained("classification")
    assert dense(headless, None, technique("finetune"), text) is None
    assert "has a classifier that nobody trained: the first stage trains it" in caplog.text
    assert dense(headless, trained, technique("prune"), text) is trained
    for first in ("prune", "quantize", "distill"):
        with pytest.raises(ValueError, match=r"has a classifier that nobody trained, .* as pipeline=finetune_prune"):
            dense(headless, None, technique(first), text)
    with pytest.raises(ValueError, match="the baseline has a classifier that nobody trained, whose answers are random"):
        dense(trained, headless, technique("prune"), text)
    taught = technique("distill")
    taught.teacher = headless
    with pytest.raises(ValueError, match=r"pipeline\.distill\.teacher has a classifier that nobody trained"):
        check_teachers({"distill": taught}, trained, trained, text)


def test_a_quantized_model_of_other_makers_is_not_dense(
    source: Pretrained, tiny: Make, technique: Make, corpus: Make
) -> None:
    config = tiny("seq2seq").model.config
    config.quantization_config = {"quant_method": "compressed-tensors"}
    config.save_pretrained(source.path)
    with pytest.raises(ValueError, match=r"this model is compressed \(compressed-tensors\): name the dense model"):
        dense(source, None, technique("finetune"), corpus("seq2seq"))
    with pytest.raises(ValueError, match=r"this baseline is compressed .*: choose another baseline"):
        dense(source, source, technique("finetune"), corpus("seq2seq"))


def test_nobody_is_taught_by_himself(source: Pretrained, scratch: Scratch, technique: Make, corpus: Make) -> None:
    text, distill = corpus("seq2seq"), technique("distill")
    own = r"pipeline\.student: the student would be its own teacher: give a cut .*, a teacher .*a stage before"
    with pytest.raises(ValueError, match=own):
        check_teachers({"student": distill}, source, source, text)
    with pytest.raises(ValueError, match=own):
        check_teachers({"dense": technique("finetune"), "student": distill}, scratch, None, text)
    check_teachers({"prune": technique("prune"), "student": distill}, source, source, text)
    check_teachers({"student": distill}, CutOut(source=source, cut=CUT), source, text)


@pytest.mark.parametrize(("where", "choice"), [("baseline", "model@"), ("pipeline.distill.teacher", "+model@")])
def test_what_another_model_refuses_names_its_own_keys(where: str, choice: str) -> None:
    with pytest.raises(ValueError, match="no folder") as caught, found_at(where):
        raise ValueError("model 'x': no folder; model.path takes one: choose another model=... or model=gguf")
    said = f"no folder; {where}.path takes one: choose another {choice}{where}=... or {choice}{where}=gguf"
    assert str(caught.value) == f"{where}: model 'x': {said}"


def test_a_teacher_reads_what_the_student_reads(tiny_folder: Make, technique: Make, corpus: Make) -> None:
    text, folder = corpus("seq2seq"), tiny_folder("seq2seq", name="teacher")
    student = Pretrained(path=str(tiny_folder("seq2seq")), max_length=16)
    short = Pretrained(path=str(folder), max_length=8)
    with pytest.raises(ValueError, match=r"baseline\.max_length must be >= model\.max_length, .* got 8 and 16"):
        check_teachers({"student": technique("distill")}, student, short, text)
    Bpe(vocab_size=300, characters=100).build(["text"]).save_pretrained(Path(folder))
    long = Pretrained(path=str(folder), max_length=16)
    with pytest.raises(ValueError, match=r"^baseline: teacher and student read different vocabularies"):
        check_teachers({"student": technique("distill")}, student, long, text)


LOSSES = "pipeline.distill.losses"
KEEP = ("+cut@pipeline.distill.cut=keep", f"+loss@{LOSSES}.hidden=hidden", f"+loss@{LOSSES}.relations=relations")


def test_losses_that_fit_pass_and_others_are_refused_before_anything_is_measured(
    source: Pretrained, tiny_folder: Make, technique: Make, corpus: Make
) -> None:
    text = corpus("seq2seq")
    fitting = {"cut.encoder_layers": "[1]", "cut.heads": 2, "losses.hidden.layers": "{encoder: [1]}"}
    check_losses({"a": technique("distill", *KEEP, **fitting)}, source, source, text)
    refused = {
        "losses.hidden.layers=[0,1]": r"pipeline\.a\.losses\.hidden: layers must name .* the student's 1 \(encoder\)",
        "losses.relations.teacher_block=2": r"a\.losses\.relations: teacher_block must be one of the teacher's 2",
        "losses.relations.relation_heads=32": r"relations: relation_heads must divide the student's .* of 16, 16, 16",
    }
    for setting, message in refused.items():
        key, _, value = setting.partition("=")
        stage = technique("distill", *KEEP, **fitting | {key: value})
        with pytest.raises(ValueError, match=message):
            check_losses({"a": stage}, source, source, text)
    wide = Pretrained(path=str(tiny_folder("seq2seq", "wide", d_model=64)), max_length=16)
    with pytest.raises(ValueError, match=r"width 32 cannot be held against .* width 64: set projection=true"):
        check_losses({"a": technique("distill", *KEEP)}, source, wide, text)
    named = technique("distill", *KEEP, **{"losses.hidden.projection": True})
    named.teacher = wide
    check_losses({"a": named}, source, source, text)


def test_losses_after_a_stage_that_removes_wait_for_its_model(
    source: Pretrained, technique: Make, corpus: Make
) -> None:
    wrong = technique("distill", *KEEP, **{"losses.relations.teacher_block": 2})
    check_losses({"a": technique("prune_structured"), "b": wrong}, source, source, corpus("seq2seq"))
