"""Why a candidate was not promoted: what the file of a search, the page and the notebook say of it."""

import pytest

from slimexp.candidate.choice import Candidate, Place
from slimexp.candidate.found import Found

pytestmark = pytest.mark.fast


def candidate(ffn: int, bits: int) -> Candidate:
    return Candidate(heads=None, ffn=ffn, hidden=None, bits={Place("decoder", 0): bits})


BEST, FAILED, WORSE, OVER, ALIKE, LAST = (
    candidate(8, 8), candidate(6, 8), candidate(4, 8), candidate(8, 16), candidate(8, 4), candidate(2, 2),
)  # fmt: skip
LOSSES = {BEST: 0.1, ALIKE: 0.15, FAILED: 0.2, WORSE: 0.3, LAST: 0.9}


def test_each_way_of_losing_has_its_reason() -> None:
    found = Found({"parameters": 9.0}, dict(LOSSES), over={OVER: 0.05})
    found.costs = {one: {"parameters": (1.0, 1.0)} for one in (BEST, FAILED, WORSE, OVER)}
    found.trained = {BEST: {"cer": 0.1}, WORSE: {"cer": 0.2}}
    found.promoted = {BEST: {"cer": 0.1}}
    found.failed = {FAILED: "short"}
    assert {one: found.why_lost(one) for one in (*LOSSES, OVER)} == {
        BEST: None,
        ALIKE: "like a better one in depth and widths",
        FAILED: "its short training failed",
        WORSE: "worse after a short training",
        LAST: "worse as a whole before training",
        OVER: "over the budget as measured",
    }


def test_where_nothing_was_trained_none_is_worse() -> None:
    found = Found({"parameters": 9.0}, dict(LOSSES), costs={BEST: {"parameters": (1.0, 1.0)}})
    assert {found.why_lost(one) for one in LOSSES} == {"nothing was trained"}
