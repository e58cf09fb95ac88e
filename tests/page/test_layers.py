"""Figures of single layers: sensitivities and bits, in the order of the model, with how they were measured."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slimexp.analysis.section import Section, load
from slimexp.page.content import content
from slimexp.record import record
from slimexp.record.record import append, read

pytestmark = pytest.mark.fast


@pytest.fixture
def layered(shared_runs: Path, sections: list[Section]) -> dict[str, Any]:
    (section,) = content(sections, shared_runs, shared_runs)["sections"]
    return section


def named(section: dict[str, Any], key: str) -> dict[str, Any]:
    return next(point for point in section["points"] if key in point["id"].split())


def test_figures_of_layers_stand_apart_in_the_order_of_the_model(layered: dict[str, Any]) -> None:
    assert not any("sensitivity" in metric["name"] for metric in layered["metrics"])
    assert not any("sensitivity" in name for point in layered["points"] for name in point["figures"])
    place = "block.0.layer"
    assert layered["layers"] == [
        f"encoder.{place}.0.SelfAttention.q",
        f"encoder.{place}.1.wo",
        f"decoder.{place}.0.SelfAttention.q",
    ]
    found = named(layered, "bare")["sensitivity"]
    assert found["figures"] == [[0.01235], [0.04], [-0.001]]
    assert found["how"] == (
        "Growth of ForwardKl on 16 rows of validation text when 50 % of the layer's weights that are not zero yet "
        "(chosen by Magnitude) are set to zero; nothing is trained."
    )
    assert named(layered, "q8")["sensitivity"] is None


def test_figures_of_layers_over_seeds_and_of_a_model_that_lacks_some(runs: Path) -> None:
    seeds = [one for one in read(runs) if one.key in ("s0", "s1")]
    for one, nats in zip(seeds, (0.1, 0.3), strict=True):
        append(
            runs / record.FILE,
            replace(one, metrics={**one.metrics, "sensitivity_nats/encoder.block.0.layer.1.wo": nats}),
        )
    (section,) = content(load(runs), runs, None)["sections"]
    found = named(section, "s0")["sensitivity"]
    assert dict(zip(section["layers"], found["figures"], strict=True)) == {
        "encoder.block.0.layer.1.wo": [0.2, 0.1, 0.3],
        "encoder.block.0.layer.0.SelfAttention.q": None,
        "decoder.block.0.layer.0.SelfAttention.q": None,
    }
    assert found["how"].startswith("Growth of the loss when")


def test_bits_of_layers_beside_what_each_would_cost(runs: Path) -> None:
    (section,) = content(load(runs), runs, None)["sections"]
    assert named(section, "q8")["bits"] is None
    found = named(section, "q4")["bits"]
    assert found["figures"] == [[4.0], [8.0], [2.0]]
    assert found["growth"] == {"2": [[0.01], [0.04], [0.002]], "4": [[0.0006], [0.002], [0.0001]]}
    assert found["how"] == "Bits that the weights of each layer got."
    one = next(one for one in read(runs) if one.key == "q4")
    stage = {"bits": 4, "allocation": {"rows": 8, "widths": [2, 4, 8]}}
    append(runs / record.FILE, replace(one, key="mixed", config={**one.config, "pipeline": {"quantize": stage}}))
    (section,) = content(load(runs), runs, None)["sections"]
    assert named(section, "mixed")["bits"]["how"].startswith("Of 2, 4, 8 bits, within the bytes of one width")
    assert "8 rows of training text" in named(section, "mixed")["bits"]["how"]
