"""Numbers for what is auto: by laws that hold for any model, and the same however a technique comes to them."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, get_cosine_schedule_with_warmup

from slimexp.technique import automatic
from slimexp.technique.automatic import Conditions

Make = Callable[..., Any]
GPT3 = {85_000_000: 6e-4, 1_300_000_000: 2e-4, 6_700_000_000: 1.2e-4, 175_000_000_000: 0.6e-4}  # Brown et al. 2020


@pytest.mark.parametrize(("parameters", "published"), GPT3.items())
def test_random_weights_learn_at_published_rates(parameters: int, published: float) -> None:
    rate = automatic.learning_rate(Conditions(parameters=parameters, is_random=True))
    assert published / 1.5 < rate < published * 1.5


def test_pretrained_weights_go_on_at_a_fifth_in_two_digits() -> None:
    assert automatic.learning_rate(Conditions(parameters=106_000_000)) == 1.1e-4  # SmolLM2-135M
    assert automatic.learning_rate(Conditions(parameters=6_500_000_000)) == 2.8e-5  # a 7B Llama
    assert automatic.learning_rate(Conditions(parameters=0)) == 1e-2


@pytest.mark.parametrize(
    ("lengths", "bits", "size"),
    [
        ({4096, 11008}, 4, 128), ({576, 1536}, 4, 64), ({256, 704}, 2, 64), ({96}, 4, 32), ({576, 1544}, 4, None),
        ({4096}, 8, None),
    ],
)  # fmt: skip
def test_groups_divide_every_row(lengths: set[int], bits: int, size: int | None) -> None:
    assert automatic.group_size(lengths, bits=bits) == size


@pytest.mark.parametrize(
    ("lengths", "multiple"), [((4096, 11008), 128), ((576, 1536, 576), 64), ((384, 1536), 32), ((36, 48), 8), ((), 8)]
)
def test_a_multiple_leaves_sizes_to_choose_from(lengths: tuple[int, ...], multiple: int) -> None:
    assert automatic.multiple(lengths) == multiple


def test_memory_decides_how_many_rows_are_computed_at_once_and_not_how_many_are_in_a_batch() -> None:
    row = partial(Conditions, parameters=1, row_bytes=10)
    assert {automatic.batch_size(row(memory=memory)) for memory in (0, 19, 20, 79, 10**6)} == {32}
    fitting = [automatic.fitting_rows(row(memory=memory), 32) for memory in (0, 19, 20, 79, 319, 320)]
    assert fitting == [1, 1, 2, 4, 16, None]
    assert automatic.fitting_rows(row(memory=160, devices=2), 32) is None, "each device holds half of them"


def test_shards_leave_memory_for_rows() -> None:
    """A 7B Llama on GPUs of 150 GB: none is left for rows on one, and on several the batch is the same."""
    config = LlamaConfig(vocab_size=102_400, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=30,
                         num_attention_heads=32, num_key_value_heads=32)  # fmt: skip
    known = partial(automatic.conditions, config, is_random=False, predicts_tokens=True, max_length=512,
                    logits_at_once=2**28, memory=150 * 10**9)  # fmt: skip
    found = []
    for shards in (1, 2, 8):
        given = replace(known(shards=shards), devices=shards)
        found.append((automatic.batch_size(given), automatic.fitting_rows(given, 32)))
    assert found == [(32, 1), (32, 2), (32, None)]


def test_logits_of_many_rows_are_in_memory_in_chunks() -> None:
    given = Conditions(parameters=1, row_bytes=1, row_logits=100, logits_at_once=250)
    whole = given.bytes_of(1) - 1
    assert whole > 100, "more than a byte each"
    assert given.bytes_of(2) == 2 + 2 * whole
    assert given.bytes_of(3) == 3 + 2.5 * whole and given.bytes_of(8) == 8 + 2.5 * whole


def test_conditions_need_the_config_alone() -> None:
    config = LlamaConfig(vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    given = automatic.conditions(config, is_random=False, predicts_tokens=True, max_length=10, logits_at_once=7,
                                 memory=10**9)  # fmt: skip
    blocks = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 32 * 48 * 3 + 2 * 32) + 32
    assert given.parameters == blocks
    linear = 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
    assert given.row_bytes == 10 * 8 * linear
    assert (given.row_logits, given.logits_at_once) == (10 * 100, 7)
    assert 0 < given.memory < 0.6e9
    classifier = automatic.conditions(config, is_random=False, predicts_tokens=False, max_length=10, logits_at_once=7,
                                      memory=0)  # fmt: skip
    assert classifier.row_bytes == 10 * 8 * linear and classifier.row_logits == classifier.memory == 0


def test_a_head_as_wide_as_the_vocabulary_is_no_part_of_the_count(tiny: Make) -> None:
    tied, untied = tiny("causal_lm"), tiny("causal_lm", tie_word_embeddings=False)
    assert automatic.outside_embeddings(tied.model) == automatic.outside_embeddings(untied.model)


def test_numbers_that_are_given_stay() -> None:
    given, steps = Conditions(parameters=85_000_000), 50
    optimizer, schedule = partial(torch.optim.AdamW, lr=3e-4), partial(get_cosine_schedule_with_warmup)
    same, _, chosen = automatic.settled(optimizer, partial(schedule, num_warmup_steps=3), given=given, steps=steps)
    assert same is optimizer and chosen == {}
    *_, chosen = automatic.settled(
        partial(optimizer, lr="auto"), partial(schedule, num_warmup_steps="auto"), given=given, steps=steps
    )
    assert chosen == {"optimizer.lr": 1.2e-4, "lr_scheduler.num_warmup_steps": 5}


def test_a_technique_without_a_pipeline_chooses_for_itself(tiny: Make, technique: Make, corpus: Make) -> None:
    stage = technique("quantize", steps=20, bits=4, activation_bits=None)
    stage.prepare(tiny("causal_lm", hidden_size=64, intermediate_size=96), corpus("causal_lm"), None)
    configured = stage.configure_optimizers()
    assert stage.chosen["group_size"] == 32 and stage.chosen["lr_scheduler.num_warmup_steps"] == 2
    assert configured["optimizer"].defaults["lr"] == stage.chosen["optimizer.lr"] > 1e-4


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_a_removal_chooses_its_axes_and_their_multiple(tiny: Make, technique: Make, task: str) -> None:
    stage, config = technique("prune_structured"), tiny(task).model.config
    stage.adapt(config, Conditions(parameters=1))
    stage.validate(config, before=[])
    assert stage.multiple == stage.chosen["multiple"] == 8 and "ffn" in stage.axes


@pytest.mark.parametrize("setting", ["steps", "accumulate", "clip_norm"])
def test_what_cannot_be_chosen_is_refused(technique: Make, setting: str) -> None:
    with pytest.raises(ValueError, match=rf"{setting} must be (a (whole )?number )?>= \d, got auto"):
        technique("finetune", **{setting: "auto"})


@pytest.mark.parametrize(("devices", "rows"), [(1, 32), (2, 32), (3, 33), (6, 30), (7, 35), (64, 64)])
def test_a_batch_is_split_evenly_among_devices(devices: int, rows: int) -> None:
    given = Conditions(parameters=1, memory=1, devices=devices)
    assert automatic.batch_size(given) == rows
