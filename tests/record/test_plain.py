"""Values in types of JSON: what NumPy and a configuration hold, and what no record may hold."""

from pathlib import Path

import numpy as np
import pytest

from slimexp.record.plain import finite_numbers, plain

pytestmark = pytest.mark.fast


def test_numbers_of_numpy_become_plain() -> None:
    numbers = finite_numbers("metrics", {"cer": np.float32(0.5), "count": 3})  # type: ignore[dict-item]
    assert numbers == {"cer": 0.5, "count": 3} and set(map(type, numbers.values())) == {float, int}


def test_every_number_that_is_not_finite_is_named() -> None:
    with pytest.raises(ValueError, match=r"got metrics\.a = inf, metrics\.c = nan$"):
        finite_numbers("metrics", {"a": float("inf"), "b": 1, "c": float("nan")})


def test_what_json_cannot_express_becomes_text() -> None:
    tree = {"clip": float("inf"), 3: (Path("runs"), None, True, 0.5), "text": "x"}
    assert plain(tree) == {"clip": "inf", "3": ["runs", None, True, 0.5], "text": "x"}
