"""Latency beside the dense baseline."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from slimexp.data.base import Corpus
from slimexp.measure import latency
from slimexp.measure.base import Subject
from slimexp.measure.latency import Latency
from slimexp.model.loading import from_folder

SMALL: dict[str, Any] = {
    "batch": 1, "tokens": 8, "new_tokens": 2, "warmup": 1, "repeats": 8, "seconds": 10.0, "noisy_above": 1.5,
    "crowded_above": 0.3, "seed": 0,
}  # fmt: skip


@contextmanager
def _slowed(subject: Subject, seconds: float, calls: list[str], name: str) -> Iterator[None]:
    """Each pass through the model's last layer takes at least ``seconds`` more."""

    def hook(*_: Any) -> None:
        calls.append(name)
        time.sleep(seconds)

    handle = subject.family.model.lm_head.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def test_faster_subject_has_a_ratio_below_one_and_they_take_turns(
    subjects: dict[str, Subject], corpora: dict[str, Corpus]
) -> None:
    subject = subjects["causal_lm"]
    dense = Subject(family=from_folder(subject.folder, "causal_lm", 64), folder=subject.folder)
    calls: list[str] = []
    with _slowed(subject, 0.02, calls, "subject"), _slowed(dense, 0.06, calls, "dense"):
        figures = Latency(**SMALL).measure(subject, dense, corpora["causal_lm"])
    assert figures["latency_ratio_low"] <= figures["latency_ratio"] <= figures["latency_ratio_high"] < 0.9
    assert figures["decode_ratio"] > 1.1 and figures["prefill_ratio"] > 1.1
    assert figures["latency_p50_ms"] < figures["latency_p50_ms_dense"]
    assert figures["latency_p50_ms"] >= 60  # prefill and two tokens, 20 ms each
    requests = calls[::3]  # three passes a request
    assert requests == ["subject", "dense"] + 4 * ["subject", "dense", "dense", "subject"]
    assert figures["latency_pairs"] == 8 and figures["threads"] >= 1


@pytest.mark.parametrize("task", ["seq2seq", "classification"])
def test_a_model_against_itself(task: str, subjects: dict[str, Subject], corpora: dict[str, Corpus]) -> None:
    subject = subjects[task]
    figures = Latency(**SMALL).measure(subject, subject, corpora[task])
    assert figures["latency_ratio_low"] <= 1.0 <= figures["latency_ratio_high"] or 0.5 < figures["latency_ratio"] < 2
    assert ("decode_tokens_per_s" in figures) == ("decode_ratio" in figures) == (task != "classification")
    assert figures["latency_new_tokens"] == (0 if task == "classification" else 2)


def test_noise_and_the_time_limit_are_said(subjects: dict[str, Subject], corpora: dict[str, Corpus]) -> None:
    subject = subjects["causal_lm"]
    figures = Latency(**SMALL | {"noisy_above": 1.0000001, "seconds": 1e-6}).measure(
        subject, subject, corpora["causal_lm"]
    )
    assert figures["latency_noisy"] == 1.0 and figures["latency_pairs"] == 6


def test_busy_neighbours_are_said_even_if_the_spread_is_small(
    subjects: dict[str, Subject], corpora: dict[str, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, calm = subjects["causal_lm"], {"noisy_above": 1e9, "seconds": 1e-6}
    for others, noisy in ((0.0, 0.0), (64.0, 1.0)):
        monkeypatch.setattr(latency._CpuClock, "others_since", lambda *_, others=others: others)
        figures = Latency(**SMALL | calm).measure(subject, subject, corpora["causal_lm"])
        assert (figures["latency_noisy"], figures["latency_others_cores"]) == (noisy, others)


@pytest.mark.fast
@pytest.mark.parametrize(
    "bad",
    [{"repeats": 5}, {"warmup": 0}, {"seconds": 0.0}, {"noisy_above": 1.0}, {"crowded_above": 0.0}, {"tokens": 0}],
)
def test_refuses(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Latency(**SMALL | bad)


def test_two_devices_cannot_be_compared(subjects: dict[str, Subject], corpora: dict[str, Corpus]) -> None:
    subject = subjects["causal_lm"]
    elsewhere = Subject(family=from_folder(subject.folder, "causal_lm", 64), folder=Path(subject.folder))
    elsewhere.family.model.to("meta")
    with pytest.raises(ValueError, match="is on cpu and its baseline on meta"):
        Latency(**SMALL).measure(subject, elsewhere, corpora["causal_lm"])
