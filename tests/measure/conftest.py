"""Tiny models of every family, saved and reloaded like an artifact, and a tiny corpus for each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from slimexp.data.base import Corpus, Example, Split
from slimexp.measure.base import Subject
from slimexp.model.loading import from_folder
from slimexp.model.tokenizer import Bytes

VOCAB, LENGTH = 259, 64


class TinyCorpus(Corpus):
    """Twelve rows a split; the grade is the share of right answers (or the mean nats)."""

    headline = "exact_match"
    direction = "max"
    labels = ("zero", "one")

    def __init__(self, task: str) -> None:
        self.task = task  # type: ignore[assignment]

    def load(self) -> Mapping[Split, Sequence[Example]]:
        return {split: [self._example(i) for i in range(12)] for split in ("train", "validation", "test")}

    def grade(self, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        if self.task == "causal_lm":
            return {"perplexity": sum(p[0] for p in predictions) / sum(p[1] for p in predictions)}
        truth = [e.target if self.task == "seq2seq" else e.label for e in examples]
        return {"exact_match": sum(p == t for p, t in zip(predictions, truth, strict=True)) / len(truth)}

    def trivial(self, examples: Sequence[Example]) -> float:
        return 0.0

    def _example(self, i: int) -> Example:
        sentence = f"Sentence number {i} is here."
        if self.task == "seq2seq":
            return Example(source=sentence.replace("e", "r", 1), target=sentence)
        if self.task == "classification":
            return Example(source=sentence, label=i % 2)
        return Example(source="\n".join(f"    value_{j} = {i} + {j}" for j in range(8)))


def tiny_model(task: str, *, width: int = 32, layers: int = 1) -> PreTrainedModel:
    torch.manual_seed(0)
    if task == "seq2seq":
        return T5ForConditionalGeneration(
            T5Config(  # type: ignore[call-arg]
                vocab_size=VOCAB, d_model=width, d_kv=8, d_ff=2 * width, num_layers=layers, num_heads=4,
                decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
            )
        )  # fmt: skip
    if task == "causal_lm":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LENGTH,
                pad_token_id=0, eos_token_id=1, bos_token_id=1, tie_word_embeddings=True,
            )
        )  # fmt: skip
    return BertForSequenceClassification(
        BertConfig(  # type: ignore[call-arg]
            vocab_size=VOCAB, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
            num_attention_heads=4, max_position_embeddings=LENGTH, num_labels=2, pad_token_id=0,
        )
    )  # fmt: skip


def saved(model: PreTrainedModel, task: str, folder: Path) -> Subject:
    model.save_pretrained(folder)
    Bytes().build([]).save_pretrained(folder)
    return Subject(family=from_folder(folder, task, LENGTH), folder=folder)


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    """Task -> a tiny trained-shape model."""
    tasks = ("seq2seq", "causal_lm", "classification")
    return {task: saved(tiny_model(task), task, tmp_path_factory.mktemp(task)) for task in tasks}


@pytest.fixture(scope="session")
def corpora() -> dict[str, Corpus]:
    return {task: TinyCorpus(task) for task in ("seq2seq", "causal_lm", "classification")}
