"""What may become of a model's blocks."""

from typing import Any

import pytest
from transformers import AutoConfig

from slimexp.candidate.choice import Candidate, Place, choices
from slimexp.candidate.precision import FLOAT, Precision
from tests.conftest import TINY

GIVEN = {"remove": True, "heads": [0.5], "ffn": [0.5], "hidden": [0.5], "bits": [FLOAT, 4], "multiple": 8,
         "uniform": True}  # fmt: skip


def config(task: str, **values: Any) -> object:
    return AutoConfig.for_model(**{**TINY[task], **values})


@pytest.mark.fast
def test_a_llama_may_lose_blocks_heads_neurons_and_bits() -> None:
    found = choices(config("causal_lm", num_hidden_layers=3), **GIVEN)
    assert found.widths == {"heads": [2, 1], "ffn": [48, 24], "hidden": [32, 16]}
    assert [str(change) for change in found.changes()][:4] == [
        "decoder 0 removed",
        "decoder 0 heads 1",
        "decoder 0 ffn 24",
        "decoder 0 bits 4",
    ]
    assert len(list(found.changes())) == 13
    assert str(list(found.changes())[-1]) == "hidden 16"
    assert not found.one_width


@pytest.mark.fast
def test_first_blocks_of_a_t5_stay_and_its_blocks_share_their_bits() -> None:
    found = choices(config("seq2seq"), **GIVEN)
    assert found.removable == {Place("encoder", 1), Place("decoder", 1)}
    assert found.one_width
    assert found.paired


@pytest.mark.fast
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ffn": [1.5]}, r"search\.ffn must be shares in \(0, 1\]"),
        ({"bits": [12]}, r"search\.bits must be within 2 to 8, or 16"),
        ({"bits": []}, r"search\.bits must be within 2 to 8, or 16"),
        ({"remove": False, "heads": [], "ffn": [], "hidden": [], "bits": [FLOAT]}, "nothing to choose"),
        ({"heads": [], "ffn": [], "uniform": False}, "uniform=false is for heads and neurons, and none of"),
    ],
)
def test_what_is_no_choice_is_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choices(config("causal_lm"), **{**GIVEN, **changed})


@pytest.mark.fast
def test_a_candidate_reads_block_by_block() -> None:
    candidate = Candidate(heads=None, ffn=24, hidden=None, bits={Place("decoder", 0): 4, Place("decoder", 2): FLOAT})
    assert str(candidate) == "decoder 4.f, ffn 24"
    assert candidate.layers({"decoder": 3}) == {"decoder": [0, 2]}


@pytest.mark.fast
def test_unlike_neurons_are_read_block_by_block() -> None:
    alike = Candidate(heads=None, ffn=24, hidden=None, bits={Place("decoder", 0): 4, Place("decoder", 2): FLOAT})
    neurons = {Place("decoder", 2): 48, Place("decoder", 0): 24}
    unlike = alike.keeping("ffn", neurons)
    assert str(unlike) == "decoder 4.f, ffn 24/48"
    assert (unlike.widths, unlike.widths_at(Place("decoder", 0))) == ({"ffn": 48}, {"ffn": 24})
    assert unlike.keeping("ffn", dict.fromkeys(neurons, 24)) == alike


@pytest.mark.fast
def test_unlike_heads_stand_beside_unlike_neurons() -> None:
    places = [Place("decoder", 0), Place("decoder", 1)]
    alike = Candidate(heads=2, ffn=24, hidden=None, bits=dict.fromkeys(places, 4))
    unlike = alike.keeping("heads", dict(zip(places, (1, 2), strict=True)))
    both = unlike.keeping("ffn", dict(zip(places, (48, 24), strict=True)))
    assert str(both) == "decoder 44, heads 1/2, ffn 48/24"
    assert both.widths_at(places[1]) == {"heads": 2, "ffn": 24}
    assert both.keeping("ffn", dict.fromkeys(places, 24)) == unlike
    assert list(choices(config("causal_lm"), **{**GIVEN, "uniform": False}).unlike) == ["heads", "ffn"]
    assert list(choices(config("seq2seq"), **{**GIVEN, "uniform": False}).unlike) == ["ffn"]


@pytest.mark.fast
def test_blocks_of_a_type_that_cannot_do_without_keep_some() -> None:
    given = GIVEN | {"heads": [], "ffn": [0], "uniform": False}
    with pytest.raises(ValueError, match=r"search\.ffn must not have 0: blocks of this t5 keep some; leave 0 out"):
        choices(config("seq2seq"), **given)


RANKED = GIVEN | {"hidden": [], "uniform": False}


@pytest.mark.fast
def test_a_map_in_the_place_of_a_layer_is_a_choice_of_its_own() -> None:
    """Beside all and half of the units, without 0 being one; a block has units or a map, never both."""
    found = choices(config("causal_lm"), **RANKED, attention_rank=[8, 4], ffn_rank=[16])
    assert found.widths == {"heads": [2, 1, -4, -8], "ffn": [48, 24, -16], "hidden": [32]}
    assert len(found.combinations) == 12 and found.ranks == {"heads": 8, "ffn": 16}
    assert "decoder 0 heads 0~8" in [str(change) for change in found.changes()]
    assert choices(config("causal_lm"), **RANKED).ranks == {}
    alone = choices(config("causal_lm"), **RANKED | {"heads": [], "ffn": [], "bits": [FLOAT]}, ffn_rank=[16])
    assert alone.widths["ffn"] == [48, -16] and list(alone.unlike) == ["ffn"]


@pytest.mark.fast
def test_no_rank_is_above_the_channels_that_stay() -> None:
    found = choices(config("causal_lm"), **RANKED | {"hidden": [0.5], "multiple": 8}, attention_rank=[8], ffn_rank=[24])
    assert found.widths["hidden"] == [32, 16]
    narrow = {(some["heads"], some["ffn"]) for some in found.combinations if some["hidden"] == 16}
    assert narrow == {(heads, ffn) for heads in (2, 1, -8) for ffn in (48, 24)}
    assert len(found.combinations) == 9 + len(narrow)


@pytest.mark.fast
def test_a_map_is_read_as_the_rank_beside_a_zero() -> None:
    places = [Place("decoder", index) for index in range(3)]
    alike = Candidate(heads=2, ffn=48, hidden=None, bits=dict.fromkeys(places, 4))
    mixed = alike.keeping("heads", dict(zip(places, (2, -8, 0), strict=True)))
    assert str(mixed) == "decoder 444, heads 2/0~8/0, ffn 48"
    every = mixed.keeping("heads", dict.fromkeys(places, -8)).keeping("ffn", dict.fromkeys(places, 0))
    assert str(every) == "decoder 444, heads 0~8, ffn 0" and every.has_layers(places[0]) and every.is_rounded


@pytest.mark.fast
@pytest.mark.parametrize(
    ("task", "values", "changed", "message"),
    [
        ("causal_lm", {}, {"ffn_rank": [8], "uniform": True}, r"search\.ffn_rank is for search\.uniform=false"),
        ("causal_lm", {}, {"attention_rank": [8, 0]}, r"search\.attention_rank must have ranks from 1 to 32, got 0"),
        ("causal_lm", {}, {"ffn_rank": [33]}, r"must have ranks from 1 to 32, got 33: .* at most the 32 channels"),
        ("causal_lm", {"intermediate_size": 16}, {"ffn_rank": [24]}, r"ranks from 1 to 23, got 24: .* than the 1536"),
        ("causal_lm", {"mlp_bias": True}, {"ffn_rank": [8]}, r"this llama cannot do without their feed-forward layers"),
        ("seq2seq", {}, {"attention_rank": [8]}, r"search\.attention_rank must be left out: blocks of this t5 cannot"),
        ("causal_lm", {"model_type": "qwen3_moe", "num_experts": 4, "mlp_only_layers": [0]}, {"ffn_rank": [8]},
         r"search\.ffn_rank must be left out: blocks of this qwen3_moe cannot"),
    ],
)  # fmt: skip
def test_ranks_that_no_block_can_have_are_refused(task: str, values: Any, changed: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choices(config(task, **values), **RANKED | changed)


@pytest.mark.fast
def test_group_sizes_are_chosen_with_bits_and_named_where_they_are_not_the_stages_own() -> None:
    found = choices(config("causal_lm", num_hidden_layers=1), **GIVEN, group_sizes=[16, 8, 32])
    assert found.precisions == [Precision(FLOAT), Precision(4), Precision(4, 8), Precision(4, 32)], "floats have none"
    words = [str(change) for change in found.changes() if change.kind == "bits"]
    assert words == ["decoder 0 bits 4", "decoder 0 bits 4 groups of 8", "decoder 0 bits 4 groups of 32"]
    places = [Place("decoder", index) for index in range(3)]
    bare = Candidate.of({"ffn": 24}, {})
    some = bare.rounded(dict(zip(places, (Precision(4, 8), Precision(FLOAT), Precision(3)), strict=True)))
    assert str(some) == "decoder 4f3, ffn 24, group_size 8/-/-" and some.precisions[places[0]] == Precision(4, 8)
    same = bare.rounded({places[0]: Precision(4, 8), places[1]: Precision(FLOAT), places[2]: Precision(3, 8)})
    assert str(same) == "decoder 4f3, ffn 24, group_size 8"
    assert some.rounded({place: Precision(bits) for place, bits in some.bits.items()}).group_sizes == {}
