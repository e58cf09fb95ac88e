"""Lineage: the stages that led to a record, and the settings that shaped them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from slimexp.analysis.lineage import LONGEST, chain_of, lineage, settings_of
from slimexp.analysis.section import Section, sections
from slimexp.record.record import Record

pytestmark = pytest.mark.fast


def only(records: list[Record], **axes: str) -> Section:
    (section,) = sections(records, **axes)
    return section


def test_a_chain_whose_first_record_is_lost_follows_the_configuration(make: Callable[..., Record]) -> None:
    plan = {"prune": {}, "quantize": {}, "distill": {}}
    assert chain_of(make("quantize", {"cer": 0.03}, plan, parent="lost"), {}) == ["prune", "quantize"]


def test_options_that_do_not_shape_a_training_are_no_settings(make: Callable[..., Record]) -> None:
    def trained(seed: int, **trainer: Any) -> Record:
        one = make("prune", {"cer": 0.02, "disk_mb": 8.0}, seed=seed)
        return replace(one, config={**one.config, "trainer": trainer})

    quiet = {"precision": "32-true", "enable_progress_bar": False, "log_every_n_steps": 1}
    section = only([trained(0, precision="32-true"), trained(1, **quiet), trained(2, precision="bf16-mixed")])
    assert [point.seeds for point in section.points if not point.dense] == [(0, 1), (2,)]


@pytest.mark.parametrize("length", [1, 3, LONGEST + 50])
def test_a_circle_of_parents_ends(make_record: Callable[..., Record], length: int) -> None:
    ring = {f"k{index}": make_record(f"k{index}", parent=f"k{(index + 1) % length}") for index in range(length)}
    found = lineage(ring["k0"], ring)
    assert found[-1] is ring["k0"] and len(found) == len({record.key for record in found}) == min(length, LONGEST)


def test_a_chain_leaves_out_the_dense_model_unless_it_is_all(make_record: Callable[..., Record]) -> None:
    dense = make_record("d", stage="dense")
    parents: Mapping[str, Record] = {"d": dense}
    assert chain_of(dense, parents) == ["dense"]
    assert chain_of(make_record("p", parent="d"), parents) == ["prune"]


def test_settings_are_of_the_stages_of_the_chain_and_of_the_run(make_record: Callable[..., Record]) -> None:
    pipeline = {"prune": {"sparsity": 0.5, "seed": 3}, "quantize": {"bits": 4}}
    record = make_record(config={"seed": 3, "pipeline": pipeline, "save_dtype": "float16", "name": "run"})
    assert settings_of(record, {}) == {"save_dtype": "float16", "prune.sparsity": 0.5}
