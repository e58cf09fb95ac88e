"""Evolution keeps the budgets and gets no worse."""

from dataclasses import replace

import pytest

from slimexp.candidate.choice import Candidate, Choices, Place
from slimexp.candidate.evolution import evolve
from slimexp.candidate.precision import FLOAT, Precision

PLACES = [Place("decoder", index) for index in range(6)]
CHOICES = Choices(
    stacks={"decoder": 6},
    removable=frozenset(PLACES[1:]),
    widths={"ffn": [8, 4]},
    combinations=[{"ffn": 8}, {"ffn": 4}],
    bits=[FLOAT, 8, 4],
    one_width=False,
    paired=False,
)
WEIGHT = dict(zip(PLACES, [9.0, 1.0, 5.0, 2.0, 7.0, 3.0], strict=True))


def loss(candidate: Candidate) -> float:
    """Low where heavy blocks stay and have many bits."""
    return sum(w - w * candidate.bits[p] / 20 if p in candidate.bits else 2 * w for p, w in WEIGHT.items())


def fits(candidate: Candidate) -> bool:
    return sum(candidate.bits.values()) * (candidate.ffn or 0) <= 256


@pytest.mark.fast
@pytest.mark.parametrize("seed", range(3))
def test_it_finds_better_candidates_within_the_budget(seed: int) -> None:
    start = Candidate(heads=None, ffn=8, hidden=None, bits={PLACES[0]: 8, PLACES[1]: 8, PLACES[3]: 8})
    found = evolve({start: loss(start)}, CHOICES, fits=fits, loss=loss, steps=40, seed=seed)
    assert all(map(fits, found))
    assert all(PLACES[0] in candidate.bits for candidate in found)
    assert min(found.values()) < loss(start) - 5
    assert len(found) <= 41
    assert found == evolve({start: loss(start)}, CHOICES, fits=fits, loss=loss, steps=40, seed=seed)


@pytest.mark.fast
@pytest.mark.parametrize("axis", ["heads", "ffn"])
def test_units_of_blocks_change_one_by_one_where_they_may_be_unlike(axis: str) -> None:
    def narrow(candidate: Candidate) -> float:
        return loss(candidate) - sum(WEIGHT[p] * candidate.widths_at(p)[axis] for p in candidate.bits)

    start = Candidate.of({axis: 4}, {place: 8 for place in PLACES[:4]})
    combinations = [{axis: 8}, {axis: 4}]
    choices = replace(CHOICES, widths={axis: [8, 4]}, combinations=combinations, unlike=[axis])

    def few(candidate: Candidate) -> bool:
        return sum(candidate.widths_at(place)[axis] for place in candidate.bits) <= 24

    found = evolve({start: narrow(start)}, choices, fits=few, loss=narrow, steps=60, seed=0)
    best = min(found, key=lambda candidate: found[candidate])
    assert best.unlike[axis].keys() == best.bits.keys() and found[best] < found[start] - 5


@pytest.mark.fast
def test_no_block_gets_a_map_above_the_channels_of_a_candidate() -> None:
    """Also where another block of the candidate has units."""
    combinations = [{"ffn": ffn, "hidden": hidden} for hidden in (8, 4) for ffn in (8, -6) if -ffn <= hidden]
    widths = {"ffn": [8, -6], "hidden": [8, 4]}
    choices = replace(
        CHOICES, widths=widths, combinations=combinations, unlike=["ffn"], bits=[8], removable=frozenset()
    )
    alike = Candidate.of({"ffn": 8, "hidden": 8}, dict.fromkeys(PLACES[:2], 8))
    mixed = alike.keeping("ffn", dict(zip(PLACES, (8, -6), strict=False)))

    def size(candidate: Candidate) -> float:
        return candidate.widths["hidden"] + len(candidate.unlike)

    found = evolve({mixed: size(mixed)}, choices, fits=lambda _: True, loss=size, steps=60, seed=0)
    narrow = [candidate for candidate in found if candidate.hidden == 4]
    assert narrow and not any(candidate.unlike for candidate in narrow)


@pytest.mark.fast
def test_group_sizes_change_with_bits_and_floats_have_none() -> None:
    def coarse(candidate: Candidate) -> float:
        return loss(candidate) + sum(WEIGHT[p] * (8 - size) / 80 for p, size in candidate.group_sizes.items())

    start = Candidate.of({"ffn": 8}, dict.fromkeys(PLACES[:4], 4))
    choices = replace(CHOICES, group_sizes=[8, 16])
    found = evolve({start: coarse(start)}, choices, fits=fits, loss=coarse, steps=60, seed=0)
    assert len({str(candidate) for candidate in found}) == len(found) == 61
    assert min(found, key=lambda candidate: found[candidate]).group_sizes
    for candidate in found:
        assert {Precision(candidate.bits[p], size) for p, size in candidate.group_sizes.items()} <= {
            Precision(8, 16), Precision(4, 16)
        }  # fmt: skip


@pytest.mark.fast
def test_without_steps_nothing_is_added() -> None:
    start = Candidate(heads=None, ffn=8, hidden=None, bits={PLACES[0]: 8})
    assert evolve({start: 1.0}, CHOICES, fits=fits, loss=loss, steps=0, seed=0) == {start: 1.0}
