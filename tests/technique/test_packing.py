"""Packed rows lose no text, waste no room, and are a pure function of (seed, step)."""

import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp.data.base import Corpus, Example
from slimexp.model.tokenizer import Bytes
from slimexp.technique import packing
from slimexp.technique.batches import processes, training_batches
from slimexp.technique.packing import Packed, PackedOrder, best_fit, fill

Make = Callable[..., Any]
RANDOM = random.Random(0)
TEXTS = ["".join(RANDOM.choices("abcdefgh ", k=RANDOM.randrange(60))) for _ in range(500)]
WIDTH = 32


class Lines(Corpus):
    task = "causal_lm"
    headline = "loss"
    direction = "min"

    def load(self) -> Any:
        rows = [Example(text) for text in TEXTS]
        return {"train": rows, "validation": rows, "test": rows}

    def grade(self, predictions: Any, examples: Any) -> dict[str, float]:
        return {"loss": 0.0}

    def trivial(self, examples: Any) -> float:
        return 0.0


def rows(seed: int = 0, texts: list[str] = TEXTS, pool: int = 3000) -> Packed:
    return Packed(texts, Bytes().build([]), width=WIDTH, seed=seed, pool=pool)


def listed(order: PackedOrder, start: int, stop: int) -> list[tuple[int, list[list[list[int]]]]]:
    batches = order.batches(start, stop)
    return [(epoch, [[array.tolist() for array in row] for row in batch]) for epoch, batch in batches]


@pytest.mark.fast
@pytest.mark.parametrize("seed", range(20))
def test_best_fit_holds_every_item_once_and_overfills_no_row(seed: int) -> None:
    lengths = random.Random(seed).choices(range(1, 65), k=300)
    rows = best_fit(lengths, 64)
    assert sorted(item for row in rows for item in row) == list(range(300))
    assert all(sum(lengths[item] for item in row) <= 64 for row in rows)
    assert (
        len(rows) <= 1.06 * sum(lengths) / 64 + 1
    )  # many are longer than half a row, and find no partner that fills it


@pytest.mark.fast
@pytest.mark.parametrize(
    ("lengths", "expected"), [([], []), ([4], [[0]]), ([1, 3, 2, 2], [[1, 0], [2, 3]]), ([4, 4], [[0], [1]])]
)
def test_best_fit_of_a_few(lengths: list[int], expected: list[list[int]]) -> None:
    assert best_fit(lengths, 4) == expected


@pytest.mark.fast
@pytest.mark.parametrize("seed", range(20))
def test_rows_are_filled_with_pieces_and_every_pair_of_neighbours_is_in_one(seed: int) -> None:
    lengths = random.Random(seed).choices(range(1, 65), k=300)
    lengths += [40] * 200  # no two of which share a row
    rows = fill(lengths, 64)
    assert all(0 < sum(end - start for _, start, end in row) <= 64 for row in rows)
    pairs = Counter((item, at) for row in rows for item, start, end in row for at in range(start, end - 1))
    assert pairs == Counter((item, at) for item, length in enumerate(lengths) for at in range(length - 1))
    ones = [item for item, length in enumerate(lengths) if length == 1]
    assert set(ones) <= {item for row in rows for item, _, _ in row}
    whole = sum(start == 0 and end == lengths[item] for row in rows for item, start, end in row)
    assert whole > 0.7 * len(lengths)
    assert len(rows) <= 1.06 * sum(lengths) / 64 + 1


def test_every_token_of_every_text_is_predicted_once_in_each_epoch() -> None:
    packed = rows()
    assert len(packed) > 3
    tokenizer = Bytes().build([])
    expected = Counter(pair for text in TEXTS for pair in pairwise(tokenizer(text)["input_ids"]))
    for epoch in (0, 1):
        found: Counter[tuple[int, int]] = Counter()
        for pool, row in packed.rows(epoch):
            ids, lengths = packed.pool(pool).row(row)
            assert 0 < len(ids) == lengths.sum() <= WIDTH
            for document in torch.from_numpy(ids).split(lengths.tolist()):
                found.update(pairwise(document.tolist()))
        assert found == expected


def test_the_same_seed_gives_the_same_batches_and_another_seed_or_epoch_others() -> None:
    straight = listed(PackedOrder(rows(), 8), 0, 200)
    assert listed(PackedOrder(rows(), 8), 0, 200) == straight
    assert listed(PackedOrder(rows(seed=1), 8), 0, 20) != straight[:20]
    epochs = [[batch for number, batch in straight if number == epoch] for epoch in (0, 1)]
    assert len(epochs[0]) == len(epochs[1]) and epochs[0] != epochs[1]


@pytest.mark.parametrize("start", [0, 1, 7, 58, 59, 60, 120, 199])
def test_starting_late_gives_what_a_straight_run_gives_from_there(start: int) -> None:
    straight = listed(PackedOrder(rows(), 8), 0, 200)
    assert straight[-1][0] > 1
    assert listed(PackedOrder(rows(), 8), start, 200) == straight[start:]


def test_fewer_rows_than_a_batch_holds() -> None:
    batches = listed(PackedOrder(rows(texts=["abc", "defg"]), 8), 0, 3)
    assert [(epoch, len(batch)) for epoch, batch in batches] == [(0, 1), (1, 1), (2, 1)]
    assert listed(PackedOrder(rows(texts=["abc", "defg"]), 8), 2, 3) == batches[2:]


def test_text_is_tokenized_when_it_is_needed_and_once() -> None:
    packed = rows()
    next(PackedOrder(packed, 2).batches(0, 1))
    assert len(packed._pools) < len(packed)
    assert packed.pool(0) is packed.pool(0)


def test_a_resumed_run_prints_that_it_tokenizes(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(packing, "_SILENT_S", -1.0)
    next(PackedOrder(rows(), 8).batches(30, 31))
    assert "tokenizing the text that was trained on before: 29 of 30 batches" in capsys.readouterr().out


def loader(family: Any, corpus: Corpus, **values: Any) -> list[dict[str, torch.Tensor]]:
    settings = {"batch_size": 4, "seed": 0, "start": 0, "stop": 60, "workers": 0, "packing": True} | values
    return list(training_batches(corpus, family, **settings))


def test_worker_processes_and_the_place_to_start_change_nothing(tiny: Make) -> None:
    family, corpus = tiny("causal_lm", max_length=WIDTH), Lines()
    straight = loader(family, corpus)
    for other, expected in (
        (loader(family, corpus, workers=1), straight),
        (loader(family, corpus, start=9), straight[9:]),
    ):
        assert len(other) == len(expected)
        for one, two in zip(other, expected, strict=True):
            assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_packed_rows_are_full(tiny: Make) -> None:
    family, corpus = tiny("causal_lm", max_length=WIDTH), Lines()
    real = torch.stack([batch["attention_mask"].float().mean() for batch in loader(family, corpus)])
    assert real.mean() > 0.98


def test_a_later_stage_uses_what_was_tokenized(tiny: Make) -> None:
    corpus = Lines()
    tokenizers = [tiny("causal_lm").tokenizer for _ in range(2)]
    first, second = (packing.packed(corpus, tokenizer, width=WIDTH, seed=0) for tokenizer in tokenizers)
    assert first is second
    assert packing.packed(corpus, tokenizers[0], width=WIDTH, seed=1) is not first


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_training_equals_a_straight_one(
    tiny: Make, technique: Make, fit: Make, tmp_path: Path, workers: int
) -> None:
    def train(stop: int, **options: Any) -> dict[str, torch.Tensor]:
        stage = technique("finetune", steps=6, workers=workers, packing=True)
        stage.prepare(tiny("causal_lm", max_length=WIDTH, attention_dropout=0.1), Lines(), None)
        trainer = fit(stage, max_steps=stop, **options)
        trainer.save_checkpoint(tmp_path / f"{stop}.ckpt")
        return {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}

    straight = train(6)
    train(3)
    resumed = train(6, resume=tmp_path / "3.ckpt")
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


# --- whether to pack ------------------------------------------------------------------------------


def test_packing_is_for_causal_text_that_stays_the_same(tiny: Make, corpus: Make, capsys: Any) -> None:
    families = [tiny("causal_lm")]
    assert packing.chosen("auto", Lines(), families) and packing.chosen(True, Lines(), families)
    assert not packing.chosen(False, Lines(), families)
    assert not packing.chosen("auto", corpus("seq2seq"), [tiny("seq2seq")])
    assert not capsys.readouterr().out
    with pytest.raises(
        ValueError, match=r"^packing=true needs causal text .* is for the task seq2seq: set it to auto$"
    ):
        packing.check(True, corpus("seq2seq"))


def test_text_that_is_new_in_every_epoch_is_not_packed(tiny: Make) -> None:
    class Noisy(Lines):
        def training_example(self, index: int, epoch: int) -> Example:
            return Example(f"{epoch}")

    assert not packing.chosen("auto", Noisy(), [tiny("causal_lm")])
    with pytest.raises(ValueError, match="that of Noisy is new in every epoch"):
        packing.check(True, Noisy())


def test_a_model_that_cannot_keep_documents_apart_gets_padded_rows(tiny: Make, capsys: Any) -> None:
    bloom = tiny("causal_lm", model_type="bloom", hidden_size=32, n_layer=1, n_head=4)
    for families in ([bloom], [tiny("causal_lm"), bloom]):
        assert not packing.chosen("auto", Lines(), families)
        printed = capsys.readouterr().out
        assert printed == "  rows are padded, not packed: BloomForCausalLM does not keep documents of one row apart\n"
    with pytest.raises(ValueError, match=r"^packing=true, but BloomForCausalLM .*: set it to auto"):
        packing.chosen(True, Lines(), [bloom])


@pytest.mark.fast
@pytest.mark.parametrize(
    ("workers", "device", "packed", "cores", "devices", "expected"),
    [
        (3, "cpu", True, 2, 1, 3), ("auto", "cpu", False, 64, 1, 0), ("auto", "cuda", False, 2, 1, 0),
        ("auto", "cuda", True, 64, 1, 0), ("auto", "cuda", False, 64, 1, 8), ("auto", "cuda", False, 16, 4, 4),
    ],
)  # fmt: skip
def test_the_number_of_loader_processes(
    monkeypatch: pytest.MonkeyPatch, workers: Any, device: str, packed: bool, cores: int, devices: int, expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(cores))
    assert processes(workers, torch.device(device), packing=packed, devices=devices) == expected
