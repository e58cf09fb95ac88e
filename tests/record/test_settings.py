"""Settings by dotted name, and seeds that are no settings."""

import pytest

from slimexp.record.settings import flat, unseeded

pytestmark = pytest.mark.fast


def test_leaves_have_dotted_names() -> None:
    tree = {"prune": {"sparsity": 0.5, "steps": [1, {"a": None}]}, 3: "x"}
    assert dict(flat(tree)) == {"prune.sparsity": 0.5, "prune.steps.0": 1, "prune.steps.1.a": None, "3": "x"}
    assert list(flat({})) == [] and list(flat(5)) == [("", 5)]


def test_only_the_seed_of_the_node_itself_is_left_out() -> None:
    assert unseeded({"seed": 1, "splits": {"seed": 2}}) == {"splits": {"seed": 2}}
