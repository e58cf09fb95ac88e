"""Targets that the student writes: what is learned there and what is not, and that nothing else changes."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MBartConfig, MBartForConditionalGeneration

from slimexp.completion import student
from slimexp.completion.base import WRITTEN
from slimexp.completion.generation import generate_by_decode_loop, generate_ids, up_to_eos
from slimexp.completion.student import StudentWritten, check_beginning, prompts
from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.decode.base import Decoder
from slimexp.decode.kept import KeptDecoder
from slimexp.logger.curves import Curves
from slimexp.loss.base import IGNORE
from slimexp.model.seq2seq import Seq2Seq
from slimexp.model.tokenizer import Bytes
from slimexp.quantizer.minmax import MinMax
from slimexp.schedule import Constant, Linear, Schedule
from slimexp.technique.finite import FiniteCheck, NonFiniteLoss
from slimexp.weight.attachment import attach

Make = Callable[..., Any]
ROWS = [("one", "one", None), ("three and four", "two", None), ("two words", "three", None)]
CHOSEN = "+completion@pipeline.distill.completion=student"


def completion(share: Schedule | float = 1.0, *, longest: int = 8, prompt: int = 4) -> StudentWritten:
    schedule = share if isinstance(share, Schedule) else Constant(value=share)
    return StudentWritten(share=schedule, temperature=1.0, longest=longest, prompt=prompt)


def batch_of(family: Any, own: StudentWritten, *, number: int = 0, progress: float = 0.0, multiple: int = 1) -> Any:
    return own.batch(family.encode(ROWS), family, seed=0, number=number, progress=progress, multiple=multiple)


@pytest.fixture
def prepared(tiny: Make, technique: Make, corpus: Make) -> Make:
    """A stage whose student, unlike its teacher, writes."""

    def make(task: str = "seq2seq", *overrides: str, config: dict[str, Any] | None = None, **values: Any) -> Any:
        tight = {
            "steps": 6,
            "batch_size": 4,
            "completion.longest": 8,
            "completion.prompt": 4,
        }
        stage = technique("distill", CHOSEN, *overrides, **tight | values)
        teacher = tiny(task)
        with torch.no_grad():
            for parameter in teacher.model.parameters():
                parameter.mul_(1.5)
        stage.prepare(tiny(task, **config or {}), corpus(task), teacher)
        return stage

    return make


def test_a_seq2seq_student_answers_the_sources_of_the_batch(tiny: Make) -> None:
    family, own = tiny("seq2seq"), completion()
    gold = family.encode(ROWS)
    batch = batch_of(family, own)
    assert torch.equal(batch["input_ids"], gold["input_ids"]) and batch[WRITTEN].tolist() == [1, 1, 1]
    texts = generate_ids(family, gold["input_ids"], gold["attention_mask"], own.decoding, [0, 0, 0])
    assert [row[row != IGNORE].tolist() for row in batch["labels"]] == texts


@pytest.mark.parametrize("multiple", [1, 16])
def test_a_causal_student_goes_on_after_prompts_of_which_nothing_is_learned(tiny: Make, multiple: int) -> None:
    family, own = tiny("causal_lm"), completion(longest=5, prompt=3)
    gold = family.encode(ROWS)["input_ids"]
    batch = batch_of(family, own, multiple=multiple)
    assert batch["input_ids"].shape[1] % multiple == 0
    assert torch.equal(batch["input_ids"][:, :3], gold[:, :3])
    texts = generate_ids(family, gold[:, :3], torch.ones(3, 3), own.decoding, [0, 0, 0])
    for row, text in enumerate(texts):
        labels = batch["labels"][row]
        assert labels[labels != IGNORE].tolist() == text and (labels[:2] == IGNORE).all()
        assert batch["input_ids"][row, 3 : 3 + len(text)].tolist() == text
        assert batch["attention_mask"][row].sum() == 3 + len(text)


def test_no_text_is_longer_than_what_the_model_reads(tiny: Make) -> None:
    for task in ("seq2seq", "causal_lm"):
        family = tiny(task, max_length=10)
        batch = batch_of(family, completion(longest=50, prompt=7), multiple=64)
        assert max(tensor.shape[-1] for tensor in batch.values()) <= 10


def test_a_prompt_is_the_beginning_of_the_longest_document_of_a_row() -> None:
    ids = torch.arange(24).view(2, 12)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4]])
    mask = torch.tensor([[1] * 10 + [0] * 2, [1] * 12])
    packed = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
    assert prompts(packed, 3).tolist() == [[3, 4, 5], [12, 13, 14]]
    assert prompts(packed, 99).tolist() == [[3, 4, 5, 6], [12, 13, 14, 15]]  # the first row's has 5 tokens
    padded = {"input_ids": ids, "attention_mask": mask}
    assert prompts(padded, 99).tolist() == [list(range(9)), list(range(12, 21))]
    assert prompts({"input_ids": ids[:, :1], "attention_mask": mask[:, :1]}, 9).tolist() == [[0], [12]]


def test_share_is_how_often_a_batch_is_written(tiny: Make) -> None:
    family = tiny("seq2seq")
    own = completion(Linear(start=0.0, end=1.0), longest=1)
    at = {p: [batch_of(family, own, number=n, progress=p)[WRITTEN][0].item() for n in range(60)] for p in (0, 0.3, 1)}
    assert sum(at[0]) == 0 and sum(at[1]) == 60 and 8 <= sum(at[0.3]) <= 28
    assert own.scheduled(0.3) == {"written_share": pytest.approx(0.3)}
    gold = family.encode(ROWS)
    batch = batch_of(family, own)
    assert all(torch.equal(batch[name], gold[name]) for name in gold) and batch[WRITTEN].shape == (3,)


@pytest.mark.parametrize("logits_at_once", [2**22, 4000])
def test_the_divergence_is_that_of_the_written_text_and_gold_labels_count_for_nothing(
    prepared: Make, logits_at_once: int
) -> None:
    stage = prepared(**{"losses.kl.weight": 2.0, "completion.share.start": 1.0, "completion.share.end": 1.0})
    stage.model.eval()
    batch = next(iter(stage.train_dataloader()))
    own = stage.completion.batch(batch, stage.family, seed=0, number=0, progress=0.0, multiple=1)
    total, terms = stage.evaluate(own)
    expected = stage.losses["kl"](
        *(outputs(family, own) for family in (stage.family, stage.teacher_family)), own["labels"], 0.0
    ).mean()
    assert terms["kl"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert terms["ce"].item() == 0 and total.item() == pytest.approx(2 * expected.item(), rel=1e-4)
    gold, terms = stage.evaluate({**batch, WRITTEN: torch.zeros(4)})
    same, without = stage.evaluate(batch)
    assert gold.item() == same.item() and terms["ce"].item() == without["ce"].item() > 0


def outputs(family: Any, batch: Any) -> Any:
    from slimexp.loss.base import Outputs

    with torch.no_grad():
        return Outputs(family.forward(batch)[0])


def test_a_loss_that_no_chunk_holds_counts_for_nothing_either(prepared: Make) -> None:
    """With a head that cannot be told apart, losses read whole logits."""
    stage = prepared(**{"completion.share.start": 1.0, "completion.share.end": 1.0})
    stage.model.lm_head.register_forward_hook(lambda *_: None)
    batch = next(iter(stage.train_dataloader()))
    own = stage.completion.batch(batch, stage.family, seed=0, number=0, progress=0.0, multiple=1)
    assert not stage.objective.in_chunks
    assert stage.evaluate(own)[1]["ce"].item() == 0 < stage.evaluate(batch)[1]["ce"].item()


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm"])
def test_parts_of_a_written_batch_add_up_to_it(prepared: Make, task: str) -> None:
    stage = prepared(task, **{"completion.share.start": 1.0, "completion.share.end": 1.0})
    stage.model.eval()
    batch = next(iter(stage.train_dataloader()))
    batch.pop("position_ids", None)
    own = stage.completion.batch(batch, stage.family, seed=0, number=0, progress=0.0, multiple=1)
    whole, _ = stage.evaluate(own)
    stage.rows_at_once = 1
    parts = [part()[0] for part in stage.parts(own)]
    assert len(parts) == len(own["labels"]) > 1
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-4)


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_equals_straight(prepared: Make, fit: Make, task: str, accumulate: int, tmp_path: Path) -> None:
    dropout = {"dropout_rate": 0.2} if task == "seq2seq" else {"attention_dropout": 0.2}

    def stage() -> Any:
        return prepared(task, accumulate=accumulate, config=dropout)

    straight, interrupted, resumed = stage(), stage(), stage()
    fit(straight, logger=Curves(path=tmp_path / "straight"))
    trainer = fit(interrupted, logger=Curves(path=tmp_path / "resumed"), max_steps=3)
    trainer.save_checkpoint(tmp_path / "checkpoint.ckpt")
    fit(resumed, logger=Curves(path=tmp_path / "resumed"), resume=tmp_path / "checkpoint.ckpt")
    text = (tmp_path / "straight").read_text()
    assert text == (tmp_path / "resumed").read_text() and '"ce": 0.0' in text and '"written_share": 0.5' in text
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_student_comes_to_write_what_its_teacher_likes(prepared: Make, fit: Make) -> None:
    """On its own text alone: the divergence there falls."""
    flat = ["schedule@pipeline.distill.losses.kl.temperature=constant", "~pipeline.distill.losses.kl.temperature.start",
            "~pipeline.distill.losses.kl.temperature.end", "pipeline.distill.losses.kl.temperature.value=1.0",
            "~pipeline.distill.losses.ce"]  # fmt: skip
    values = {
        "optimizer.lr": 0.01,
        "lr_scheduler.num_warmup_steps": 0,
        "completion.share.start": 1.0,
        "completion.share.end": 1.0,
    }
    stage = prepared("seq2seq", *flat, steps=30, **values)
    batch = next(iter(stage.train_dataloader()))

    def divergence() -> float:
        stage.model.eval()
        own = stage.completion.batch(batch, stage.family, seed=9, number=9, progress=0.0, multiple=1)
        with torch.no_grad():
            return stage.evaluate(own)[1]["kl"].item()

    before = divergence()
    fit(stage)
    assert divergence() < 0.7 * before


def test_masks_stay_while_the_student_writes(tiny: Make, technique: Make, corpus: Make, fit: Make) -> None:
    """Any technique takes completions."""
    words = ["+loss@pipeline.prune.losses.kl=kl", "+completion@pipeline.prune.completion=student"]
    values = {
        "steps": 3,
        "batch_size": 4,
        "every": 1,
        "completion.longest": 4,
        "completion.share.start": 1.0,
        "completion.share.end": 1.0,
    }
    stage = technique("prune", *words, **values)
    stage.prepare(tiny("seq2seq"), corpus("seq2seq"), tiny("seq2seq"))
    fit(stage)
    weight = stage.model.get_submodule("encoder.block.0.layer.0.SelfAttention.q").weight
    assert 0.4 < (weight == 0).float().mean() < 0.6


def test_nobody_draws_from_weights_that_are_not_finite(
    prepared: Make, fit: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where numbers are looked at only by and by."""
    monkeypatch.setattr(FiniteCheck, "_is_far", staticmethod(lambda value: True))
    monkeypatch.setattr(FiniteCheck, "_look", lambda self, step: None)
    drawn: list[bool] = []

    def watched(family: Any, *arguments: Any) -> Any:
        drawn.append(all(parameter.isfinite().all() for parameter in family.model.parameters()))
        return generate_ids(family, *arguments)

    monkeypatch.setattr(student, "generate_ids", watched)
    stage = prepared("seq2seq", **{"completion.share.start": 1.0, "completion.share.end": 1.0})
    next(stage.model.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NonFiniteLoss, match=r"^norm of the gradient is nan at step 0"):
        fit(stage)
    assert drawn == [True]


@pytest.mark.parametrize("attached", [False, True])
def test_a_causal_lm_writes_through_one_decoder_that_sees_what_is_learned(
    prepared: Make, fit: Make, monkeypatch: pytest.MonkeyPatch, attached: bool
) -> None:
    """On a CPU ``generate`` writes: the decode loop of the stage would have written the same at every step."""
    made: list[Decoder] = []
    kept: list[KeptDecoder] = []

    def recorded(decoder: Decoder) -> Callable[[], None]:
        made.append(decoder)
        return decoder.steps.step

    def both(family: Any, ids: Tensor, mask: Tensor, decoding: Any, draw: list[int], own: KeptDecoder) -> Any:
        texts = generate_ids(family, ids, mask, decoding, draw, own)
        found = generate_by_decode_loop(family, ids, decoding, draw, own)
        assert found is not None
        assert [up_to_eos(row, frozenset({1})) for row in found[:, ids.shape[1] :].tolist()] == texts
        kept.append(own)
        return texts

    monkeypatch.setattr(Decoder, "_recorded", recorded)
    monkeypatch.setattr(student, "generate_ids", both)
    stage = prepared("causal_lm", **{"completion.share.start": 1.0, "completion.share.end": 1.0})
    assert stage.model.generation_config.eos_token_id == 1
    if attached:
        for layer in stage.family.compressible().values():
            attach(layer, "weight", MinMax(bits=4, group_size=16))
    fit(stage)
    assert len(made) == 1 and len(kept) == 6
    known = weakref.ref(made.pop())
    stage.release()
    assert known() is None


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.fast
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 1.5}, r"share must stay in \[0, 1\], got 1\.5 at progress 0"),
        ({"share": Linear(start=1.0, end=-0.5)}, r"share must stay in \[0, 1\], got -0\.5 at progress 1"),
        ({"longest": 0}, "longest must be >= 1 token, got 0"),
        ({"prompt": 0}, "prompt must be >= 1 token, got 0"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        completion(**values)


def test_a_classifier_writes_nothing(corpus: Make) -> None:
    with pytest.raises(ValueError, match="a classifier of the task classification writes none"):
        completion().check(corpus("classification"), 64)


def test_a_prompt_must_leave_room(corpus: Make) -> None:
    with pytest.raises(ValueError, match=r"prompt must leave room for a text in max_length=16, got 15"):
        completion(prompt=15).check(corpus("causal_lm"), 16)
    completion(prompt=14).check(corpus("causal_lm"), 16)
    completion(prompt=99).check(corpus("seq2seq"), 16)


def test_without_a_teacher_nothing_is_learned_from_own_text() -> None:
    cfg = compose(["pipeline=distill", CHOSEN, "~pipeline.distill.losses.kl"])
    with pytest.raises(ValueError, match=r"no loss reads a teacher: add one .*losses\.kl=kl"):
        build(cfg.pipeline.distill)


def test_a_decoder_that_begins_otherwise_than_in_training() -> None:
    config = MBartConfig(
        vocab_size=259, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, pad_token_id=0, eos_token_id=1,
        bos_token_id=2, decoder_start_token_id=9,
    )  # fmt: skip
    family = Seq2Seq(MBartForConditionalGeneration(config), Bytes().build([]), max_length=16)
    with pytest.raises(ValueError, match=r"MBartForConditionalGeneration begins to write .*completion=teacher"):
        check_beginning(family, torch.tensor([[5, 1, IGNORE]]))
