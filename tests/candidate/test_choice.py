"""What may become of a model's blocks."""

import pytest
from transformers import AutoConfig

from slimexp.candidate.choice import FLOAT, Candidate, Place, choices
from tests.conftest import TINY

GIVEN = {"remove": True, "heads": [0.5], "ffn": [0.5], "hidden": [0.5], "bits": [FLOAT, 4], "multiple": 8,
         "uniform": True}  # fmt: skip


def config(task: str, **values: int) -> object:
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
