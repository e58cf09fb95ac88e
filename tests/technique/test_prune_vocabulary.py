"""A vocabulary of the tokens that training text uses: the same model of that text, and a smaller one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp import artifact
from slimexp.loss.base import IGNORE
from slimexp.model.base import Family
from slimexp.model.loading import Scratch
from slimexp.model.tokenizer import Bpe
from slimexp.technique.prune_vocabulary import PruneVocabulary

Make = Callable[..., Any]
OTHER = ["an unseen zebra crossing the unseen street"] * 9  # has merges of its own


@pytest.fixture
def build(corpus: Make) -> Make:
    def make(task: str) -> tuple[Family, Any]:
        data = corpus(task)
        labels = {"labels": data.labels} if task == "classification" else {"labels": ()}
        shapes = {"seq2seq": ("t5", {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}),
                  "causal_lm": ("llama", {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                                          "num_attention_heads": 2}),
                  "classification": ("bert", {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                                              "num_attention_heads": 2})}  # fmt: skip
        kind, values = shapes[task]
        torch.manual_seed(0)
        source = Scratch(config={"model_type": kind, **values}, tokenizer=Bpe(vocab_size=380, characters=10_000),
                         max_length=64)  # fmt: skip
        family = source.load(task=task, texts=lambda: [*data.texts(), *OTHER], **labels)
        family.model.eval()
        return family, data

    return make


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_training_text_reads_as_before(build: Make, technique: Make, tmp_path: Path, task: str) -> None:
    family, corpus = build(task)
    rows = [(e.source, e.target, e.label) for e in corpus.splits["train"]]
    stage: PruneVocabulary = technique("prune_vocabulary")
    stage.prepare(family, corpus, None)
    figures = stage.finish()
    assert 0 < figures["tokens_kept"] < 1 and 0 < figures["share"] < 1
    artifact.save(stage.family, tmp_path / "a", dtype=torch.float32, stages=[])
    small = artifact.deployed(tmp_path / "a")
    assert small.model.config.vocab_size == len(small.tokenizer) < len(family.tokenizer)
    before, after = family.encode(rows), small.encode(rows)
    back = {small.tokenizer.convert_tokens_to_ids(token): i for token, i in family.tokenizer.get_vocab().items()
            if token in small.tokenizer.get_vocab()}  # fmt: skip
    kept = torch.tensor([back[i] for i in range(len(small.tokenizer))])
    assert torch.equal(kept[after["input_ids"]], before["input_ids"])
    with torch.no_grad():
        large_logits, small_logits = family.forward(before)[0], small.forward(after)[0]
    if task != "classification":
        large_logits = large_logits[..., kept]
    real = before["labels"] != IGNORE
    torch.testing.assert_close(small_logits[real], large_logits[real], atol=1e-5, rtol=1e-5)


def test_it_can_be_trained(build: Make, technique: Make, fit: Make) -> None:
    family, corpus = build("causal_lm")
    stage = technique("prune_vocabulary", steps=2)
    stage.prepare(family, corpus, None)
    assert fit(stage).global_step == 2


def test_bytes_all_stay(tiny: Make, corpus: Make, technique: Make) -> None:
    with pytest.raises(ValueError, match="all 259 tokens are used, or stay so that any text can be written: leave"):
        technique("prune_vocabulary").prepare(tiny("causal_lm"), corpus("causal_lm"), None)


def test_a_teacher_is_renumbered_too(build: Make, technique: Make, fit: Make) -> None:
    """The student starts as the teacher's equal, so nothing is to be learned."""
    (family, corpus), (dense, _) = build("causal_lm"), build("causal_lm")
    words = ["+loss@pipeline.prune_vocabulary.losses.kl=kl", "~pipeline.prune_vocabulary.losses.ce"]
    stage = technique("prune_vocabulary", *words, steps=1)
    stage.prepare(family, corpus, dense)
    loss, _ = stage.evaluate(next(iter(stage.batches(0, 1, workers=0))))
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert len(stage.teacher_family.tokenizer) == len(stage.family.tokenizer) < len(dense.tokenizer)
    fit(stage)


def test_multiple_is_positive(technique: Make) -> None:
    with pytest.raises(Exception, match="multiple must be >= 1, got 0"):
        technique("prune_vocabulary", multiple=0)
