"""Batches are a pure function of (seed, step)."""

import multiprocessing
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.utils import parametrize

from slimexp.data.base import Example
from slimexp.technique.batches import Order, calibration_batches, training_batches

Make = Callable[..., Any]
LENGTHS = random.Random(0).choices(range(1, 500), k=1003)


def order(batch_size: int = 8, seed: int = 0, lengths: list[int] = LENGTHS) -> Order:
    return Order(lengths, batch_size, seed)


@pytest.mark.fast
def test_the_same_seed_gives_the_same_batches_and_another_seed_others() -> None:
    assert list(order().batches(0, 300)) == list(order().batches(0, 300))
    for epoch in (0, 1):
        drawn = {str(next(order(seed=seed).batches(125 * epoch, 125 * epoch + 1))) for seed in (0, 1, 2, 1 << 32)}
        assert len(drawn) == 4


@pytest.mark.fast
@pytest.mark.parametrize("start", [0, 1, 7, 124, 125, 126, 250, 299])
def test_starting_late_gives_what_a_straight_run_gives_from_there(start: int) -> None:
    assert list(order().batches(start, 300)) == list(order().batches(0, 300))[start:]


@pytest.mark.fast
@pytest.mark.parametrize("batch_size", [1, 8, 100, 1003])
def test_an_epoch_has_full_batches_and_every_row_at_most_once(batch_size: int) -> None:
    per_epoch = 1003 // batch_size
    batches = list(order(batch_size).batches(0, 2 * per_epoch))
    assert [epoch for epoch, _ in batches] == [0] * per_epoch + [1] * per_epoch
    assert all(len(rows) == batch_size for _, rows in batches)
    for epoch in (0, 1):
        rows = [row for which, batch in batches if which == epoch for row in batch]
        assert len(set(rows)) == len(rows) == per_epoch * batch_size
    assert batches[:per_epoch] != [(0, rows) for _, rows in batches[per_epoch:]]


@pytest.mark.fast
def test_rows_left_over_in_one_epoch_come_in_another() -> None:
    seen = {row for _, rows in order(100).batches(0, 100) for row in rows}
    assert seen == set(range(1003))


@pytest.mark.fast
def test_rows_of_like_length_come_together() -> None:
    def padding(batches: list[list[int]]) -> float:
        widths = [[LENGTHS[row] for row in rows] for rows in batches]
        return sum(max(w) * len(w) - sum(w) for w in widths) / sum(sum(w) for w in widths)

    shuffled = random.Random(1).sample(range(1003), 1000)
    at_random = [shuffled[i : i + 8] for i in range(0, 1000, 8)]
    assert padding([rows for _, rows in order().batches(0, 125)]) < 0.1 * padding(at_random)


@pytest.mark.fast
def test_long_and_short_batches_are_mixed() -> None:
    """Sorted text in training would be a curriculum."""
    means = [sum(LENGTHS[row] for row in rows) / len(rows) for _, rows in order().batches(0, 125)]
    first, second = means[:62], means[62:124]
    assert abs(sum(first) - sum(second)) / 62 < 80


@pytest.mark.fast
def test_fewer_rows_than_a_batch_holds() -> None:
    batches = list(order(batch_size=8, lengths=[3, 1, 2]).batches(0, 4))
    assert [sorted(rows) for _, rows in batches] == [[0, 1, 2]] * 4


def loader(tiny: Make, corpus: Any, start: int = 0, **values: Any) -> list[dict[str, torch.Tensor]]:
    settings = {"batch_size": 4, "seed": 0, "stop": 12, "workers": 0} | values
    return list(training_batches(corpus, tiny("seq2seq"), start=start, **settings))


def equal(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


def test_a_resumed_loader_goes_on_where_the_straight_one_was(tiny: Make, corpus: Make) -> None:
    straight = loader(tiny, corpus("seq2seq"))
    assert len(straight) == 12
    assert equal(loader(tiny, corpus("seq2seq"), start=5), straight[5:])


def test_worker_processes_change_nothing(tiny: Make, corpus: Make) -> None:
    assert equal(loader(tiny, corpus("seq2seq"), workers=1), loader(tiny, corpus("seq2seq")))


def test_worker_processes_of_a_spawned_process_need_no_copy_of_a_model_with_quantizers(
    tiny: Make, corpus: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers of a sweep's pool are spawned and would spawn in turn; parametrized modules cannot be pickled."""
    monkeypatch.setattr(
        multiprocessing.context._default_context, "_actual_context", multiprocessing.get_context("spawn")
    )
    family = tiny("seq2seq")
    parametrize.register_parametrization(family.model.lm_head, "weight", torch.nn.Identity())
    data = corpus("seq2seq")
    found = training_batches(data, family, start=0, stop=3, batch_size=4, seed=0, workers=1)
    assert equal(list(found), loader(tiny, data, stop=3))


def test_drawing_batches_leaves_the_random_state_to_training(tiny: Make, corpus: Make) -> None:
    """Two loaders that are drawn from in turn, with random numbers in between, give the same text."""
    data = corpus("seq2seq")
    expected = loader(tiny, data)
    torch.manual_seed(5)
    assert equal(loader(tiny, data), expected)


def test_a_corpus_with_fresh_noise_is_asked_by_epoch(tiny: Make, corpus: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    data = corpus("seq2seq")
    drawn: list[tuple[int, int]] = []

    def noisy(index: int, epoch: int) -> Example:
        drawn.append((epoch, index))
        return data.splits["train"][index]

    monkeypatch.setattr(data, "training_example", noisy)
    per_epoch = len(data.splits["train"]) // 4
    loader(tiny, data, stop=2 * per_epoch)
    assert {epoch for epoch, _ in drawn} == {0, 1}
    assert len(set(drawn)) == len(drawn)


def test_lengths_are_padded_to_a_multiple(tiny: Make, corpus: Make) -> None:
    for batch in loader(tiny, corpus("seq2seq"), multiple=16):
        assert batch["input_ids"].shape[1] % 16 == 0 == batch["labels"].shape[1] % 16


# --- calibration ---------------------------------------------------------------------------------


def test_calibration_reads_training_rows_one_by_one_and_no_other_text(tiny: Make, corpus: Make) -> None:
    family, text = tiny("seq2seq"), corpus("seq2seq")
    read: list[Any] = []
    encode = family.encode
    family.encode = lambda rows, **options: (read.extend(rows), encode(rows, **options))[1]
    try:
        batches = list(calibration_batches(text, family, rows=100, seed=0))
    finally:
        del family.encode
    assert len(batches) == len(read) == 100
    assert {row[0] for row in read} == {example.source for example in text.splits["train"]}
    assert all(batch["attention_mask"].all() for batch in batches)


def test_calibration_is_the_same_for_a_seed_and_leaves_the_random_state(tiny: Make, corpus: Make) -> None:
    family, text = tiny("causal_lm"), corpus("causal_lm")
    state = torch.get_rng_state()
    first, again, other = (list(calibration_batches(text, family, rows=8, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(first, again) and not equal(first, other)


@pytest.mark.parametrize("packing", [False, True])
def test_fewer_rows_than_devices_are_refused_before_training(tiny: Make, corpus: Make, packing: bool) -> None:
    """Three short texts are three rows, or one packed row; a device without a row would have nothing to compute."""
    family, few = tiny("causal_lm"), corpus("causal_lm")
    few.splits = {"train": [Example(f"a{number}") for number in range(3)]}

    def load(devices: int) -> list[int]:
        loaders = [
            training_batches(
                few, family, batch_size=8, seed=0, start=0, stop=2, workers=0, packing=packing,
                share=(device, devices),
            )
            for device in range(devices)
        ]  # fmt: skip
        return [len(next(iter(loader))["labels"]) for loader in loaders]

    rows = 1 if packing else 3
    message = rf"each of {rows + 1} devices needs a row.* is {rows}: set trainer\.devices={rows}, or give more text"
    with pytest.raises(ValueError, match=message):
        load(rows + 1)
    assert load(rows) == [1] * rows
    assert load(1) == [rows]
