"""The table of architectures: cells are runs, and what does not work has a reason below the table."""

from pathlib import Path

import pytest

from benchmarks.architectures import ACTIONS, COLUMNS, MODELS, WORKS, Bench, _short, markdown


@pytest.mark.fast
def test_reasons_stand_once_below_the_table() -> None:
    works = dict.fromkeys(COLUMNS, WORKS)
    text = markdown({"bert": works | {"cache": "caches nothing"}, "albert": works | {"cache": "caches nothing"}})
    lines = text.splitlines()
    assert lines[2] == "| bert | yes | yes | yes | yes | yes | yes | yes | yes | no (1) | yes | yes |"
    assert lines[3].count("no (1)") == 1 and "20 of 22 cells work" in text and lines[-1] == "1. caches nothing"


@pytest.mark.fast
def test_a_reason_is_without_the_type_and_the_stage() -> None:
    error = ValueError(
        "pipeline.p: axes of a model of type bert that can be cut are layers, ffn; got 'hidden': its norms"
    )
    assert _short(error) == "its norms"
    assert _short(ValueError("a model of type gpt_neo has none")) == "a model of this type has none"


@pytest.mark.fast
def test_there_are_at_least_24_types() -> None:
    assert len(MODELS) >= 24 and {"mask", "layers", "int8", "int4", "cache", "distil"} <= set(ACTIONS)


@pytest.mark.parametrize(
    ("kind", "action", "why"), [("phi3", "layers", None), ("albert", "layers", "all layers are one block")]
)
def test_a_cell_is_a_run(tmp_path: Path, kind: str, action: str, why: str | None) -> None:
    bench = Bench(tmp_path)
    bench.save_dense(kind)
    cell = bench.cell(kind, action)
    if why is None:
        assert cell == WORKS and bench.reload(kind, [action]) == WORKS
    else:
        assert cell.startswith(why)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gemma2", "phi3", "bart", "modernbert"])
def test_a_row(tmp_path: Path, kind: str) -> None:
    cells = Bench(tmp_path).row(kind)
    assert list(cells) == list(COLUMNS)
    assert {cells[name] for name in ("evaluate", "mask", "layers", "ffn", "int8", "int4", "distil", "reload")} == {
        WORKS
    }
