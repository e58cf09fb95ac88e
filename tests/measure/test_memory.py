"""Peak memory of serving."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from slimexp.data.base import Corpus
from slimexp.measure.base import Subject
from slimexp.measure.memory import Memory
from slimexp.measure.resident import resident_bytes
from slimexp.model.loading import from_folder
from slimexp.model.tokenizer import Bytes

SHAPE: dict[str, Any] = {"batch": 1, "tokens": 16, "new_tokens": 2, "seed": 0, "timeout_s": 200.0}


def _wide() -> PreTrainedModel:
    """12 M parameters, nearly all in one table."""
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=48_000, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
            max_position_embeddings=64,
        )
    )  # fmt: skip


def test_is_the_weights_and_a_little(tmp_path: Path, corpora: dict[str, Corpus]) -> None:
    _wide().save_pretrained(tmp_path)
    Bytes().build([]).save_pretrained(tmp_path)
    subject = Subject(family=from_folder(tmp_path, "classification", 64), folder=tmp_path)
    hoard = bytearray(300_000_000)  # what this process holds must not show
    hoard[::4096] = b"x" * len(hoard[::4096])
    peak = Memory(**SHAPE).measure(subject, subject, corpora["classification"])["peak_mb"]
    weights = resident_bytes(subject.family.model) / 1e6
    assert weights * 0.95 < peak < weights * 2.2


def test_says_why_a_folder_cannot_be_served(
    subjects: dict[str, Subject], corpora: dict[str, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = subjects["seq2seq"]
    with pytest.raises(ValueError, match=r"raise measure\.memory\.timeout_s"):
        Memory(**SHAPE | {"timeout_s": 0.01}).measure(subject, subject, corpora["seq2seq"])
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nOSError: no config.json")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ValueError, match=r"cannot be loaded and run in a fresh process: OSError: no config\.json"):
        Memory(**SHAPE).measure(subject, subject, corpora["seq2seq"])


def test_bytes_that_the_cache_keeps_of_a_token(
    subjects: dict[str, Subject], corpora: dict[str, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Memory, "_fresh_peak", lambda *_: 10**6)
    figures = {}
    for task, subject in subjects.items():
        figures[task] = Memory(**SHAPE).measure(subject, subject, corpora[task])
    assert "cache_bytes_per_token" not in figures["classification"]
    config = subjects["causal_lm"].family.model.config
    expected = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert figures["causal_lm"]["cache_bytes_per_token"] == expected
    assert figures["seq2seq"]["cache_bytes_per_token"] > 0


@pytest.mark.fast
@pytest.mark.parametrize("bad", [{"timeout_s": 0.0}, {"batch": 0}])
def test_refuses(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Memory(**SHAPE | bad)
