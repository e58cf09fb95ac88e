"""Arithmetic of a forward pass, against sums by hand."""

import pytest

from slimexp.data.base import Corpus
from slimexp.measure.base import Subject
from slimexp.measure.flops import Flops

D, FF, V, T, B = 32, 64, 259, 16, 2  # of the tiny models: width, hidden width, vocabulary; tokens, batch


def _flops(subject: Subject, corpus: Corpus) -> dict[str, float]:
    return Flops(batch=B, tokens=T).measure(subject, subject, corpus)


def test_causal_lm_with_attention(subjects: dict[str, Subject], corpora: dict[str, Corpus]) -> None:
    figures = _flops(subjects["causal_lm"], corpora["causal_lm"])
    per_token = D * D + 2 * D * (D // 2) + D * D + 3 * D * FF  # q, k and v of half the heads, out, gated MLP
    attention = 2 * T * T * D
    rotary = D // 4 // 2 * T  # frequencies times positions: a matrix product too, of the batch's one row
    expected = 2 * B * (T * per_token + attention + D * V)
    assert figures["flops_prefill_g"] * 1e9 == pytest.approx(expected, abs=2 * B * rotary)
    decode = 2 * B * (per_token + 2 * (T + 1) * D + D * V)
    assert figures["flops_decode_g"] * 1e9 == pytest.approx(decode, abs=2 * B * rotary)
    assert figures["flops_tokens"] == T


def test_encoder_decoder(subjects: dict[str, Subject], corpora: dict[str, Corpus]) -> None:
    figures = _flops(subjects["seq2seq"], corpora["seq2seq"])
    encoder = T * (4 * D * D + 2 * D * FF) + 2 * T * T * D
    first_step = 4 * D * D + 2 * D + 2 * D * D + 2 * T * D * D + 2 * T * D + 2 * D * FF + D * V
    assert figures["flops_prefill_g"] * 1e9 == 2 * B * (encoder + first_step)
    next_step = 4 * D * D + 2 * 2 * D + 2 * D * D + 2 * T * D + 2 * D * FF + D * V  # cross keys are cached
    assert figures["flops_decode_g"] * 1e9 == 2 * B * next_step


def test_classifier_does_not_decode(subjects: dict[str, Subject], corpora: dict[str, Corpus]) -> None:
    figures = _flops(subjects["classification"], corpora["classification"])
    blocks = T * (4 * D * D + 2 * D * FF) + 2 * T * T * D
    assert figures["flops_prefill_g"] * 1e9 == 2 * B * (blocks + D * D + 2 * D)  # pooler and head read one token
    assert "flops_decode_g" not in figures
