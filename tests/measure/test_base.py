"""What holds for every measure of conf/measure, and how figures are gathered."""

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slimexp import artifact
from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.data.base import Corpus
from slimexp.measure.base import Measure, Stored, Subject, direction, directions, run, spread, untouched
from slimexp.measure.resident import resident_bytes
from slimexp.model.loading import from_folder

CONF = sorted((Path(__file__).parents[2] / "conf" / "measure").glob("*.yaml"))
SMALLER = {"limit": 4, "repeats": 6, "warmup": 1, "new_tokens": 2, "tokens": 16, "rows": 4}
UNIT = re.compile(r"[a-z][a-z0-9_@]*(/[\w.]+)?$")  # of a layer: name_unit/layer


def _built(path: Path) -> Measure:
    node = compose([f"measure=[{path.stem}]"]).measure[path.stem]
    node.update({key: value for key, value in SMALLER.items() if key in node})
    return build(node)


def _state(subject: Subject) -> Any:
    model = subject.family.model
    weights = {name: (t.dtype, t.device, t.requires_grad, t.sum().item()) for name, t in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    tokenizer = subject.family.tokenizer
    chance = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
    return weights, modes, chance, tokenizer.padding_side, tokenizer.pad_token_id, torch.is_grad_enabled()


def _cases() -> list[Any]:
    tasks = ("seq2seq", "causal_lm", "classification")
    fits = [(task, path) for task in tasks for path in CONF if (task, path.stem) != ("classification", "lm_eval")]
    return [pytest.param(task, path, id=f"{task}-{path.stem}") for task, path in fits]


@pytest.mark.parametrize(("task", "path"), _cases())
def test_every_measure_is_flat_finite_and_leaves_no_trace(
    task: str, path: Path, subjects: dict[str, Subject], corpora: dict[str, Corpus]
) -> None:
    if path.stem == "memory" and task != "seq2seq":
        pytest.skip("a fresh process each: one family is enough")
    subject = subjects[task]
    subject.family.model.train()
    subject.family.model.base_model.eval()  # mixed modes must come back too
    before = _state(subject)
    figures = _built(path).measure(subject, subject, corpora[task])
    assert _state(subject) == before
    subject.family.model.eval()
    assert figures
    assert all(isinstance(value, float) and math.isfinite(value) and UNIT.match(key) for key, value in figures.items())
    json.dumps(figures)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("task", "path"), _cases())
def test_every_measure_runs_on_cuda(
    task: str, path: Path, subjects: dict[str, Subject], corpora: dict[str, Corpus]
) -> None:
    if path.stem == "lm_eval":
        pytest.importorskip("lm_eval", reason="measure lm_eval needs the package lm_eval")
    folder = subjects[task].folder
    subject = Subject(family=from_folder(folder, task, subjects[task].family.max_length), folder=folder)
    subject.family.model.to("cuda")
    before = torch.cuda.get_rng_state().tolist()
    figures = _built(path).measure(subject, subject, corpora[task])
    assert figures and all(math.isfinite(value) for value in figures.values())
    assert torch.cuda.get_rng_state().tolist() == before and subject.family.device.type == "cuda"
    if "peak_mb" in figures:
        weights = resident_bytes(subject.family.model) / 1e6
        assert weights < figures["peak_mb"] < weights + 100


@pytest.mark.parametrize(("device", "types"), [("cuda", [torch.bfloat16]), ("cpu", [])])
def test_a_stored_model_is_not_loaded_in_float32_to_time_it(
    device: str, types: list[torch.dtype], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("slimexp.measure.base.stored_type", lambda _: torch.bfloat16)
    loaded: list[torch.dtype] = []
    stored = Stored(tmp_path, loaded.append, torch.device(device), max_length=8)
    assert (stored.shipped is stored) == (device == "cpu") and loaded == types


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_on_a_gpu_speed_and_memory_are_those_of_the_stored_type(
    task: str, subjects: dict[str, Subject], corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    family = subjects[task].family
    artifact.save(family, tmp_path / "half", dtype=torch.bfloat16, stages=[])
    half = Subject(artifact.served(tmp_path / "half", "cuda"), tmp_path / "half")
    full = Subject(from_folder(subjects[task].folder, task, family.max_length), subjects[task].folder)
    full.family.model.to("cuda")
    assert half.family.model.dtype == torch.float32 and full.shipped is full
    assert {t.dtype for t in half.shipped.family.model.parameters()} == {torch.bfloat16}
    latency = _built(CONF[0].with_name("latency.yaml"))
    for subject, bits in ((half, 16.0), (full, 32.0)):
        figures = latency.measure(subject, full, corpora[task])
        assert (figures["latency_float_bits"], figures["latency_float_bits_dense"]) == (bits, 32.0)
    assert half.kernel == "bfloat16 matmul; graded on float32 matmul" and full.kernel == "float32 matmul"
    memory = _built(CONF[0].with_name("memory.yaml"))
    assert memory.measure(half, full, corpora[task])["peak_mb"] < memory.measure(full, full, corpora[task])["peak_mb"]


@pytest.mark.parametrize("path", CONF, ids=lambda path: path.stem)
def test_every_measure_names_directions(path: Path) -> None:
    directions = _built(path).directions
    assert directions and set(directions.values()) <= {"min", "max"}


class _Fixed(Measure):
    directions = {"bytes_*": "min", "*_acc": "max"}  # noqa: RUF012

    def __init__(self, figures: dict[str, float]) -> None:
        self.figures = figures

    def measure(self, subject: Subject, baseline: Subject, corpus: Corpus) -> dict[str, float]:
        return self.figures


def test_run_merges_in_order(subjects: dict[str, Subject], corpora: dict[str, Corpus]) -> None:
    subject = subjects["seq2seq"]
    figures = run({"a": _Fixed({"x": 1}), "b": _Fixed({"y": 2.0})}, subject, subject, corpora["seq2seq"])
    assert figures == {"x": 1.0, "y": 2.0} and all(isinstance(value, float) for value in figures.values())


@pytest.mark.parametrize(
    ("second", "message"), [({"x": 1.0}, "'a' and 'b' both give 'x'"), ({"y": math.nan}, "measure 'b' gave y = nan")]
)
def test_run_refuses(
    second: dict[str, float], message: str, subjects: dict[str, Subject], corpora: dict[str, Corpus]
) -> None:
    subject = subjects["seq2seq"]
    with pytest.raises(ValueError, match=message):
        run({"a": _Fixed({"x": 1.0}), "b": _Fixed(second)}, subject, subject, corpora["seq2seq"])


@pytest.mark.fast
def test_direction_by_name_and_pattern() -> None:
    assert direction("bytes_total", [_Fixed]) == "min"
    assert direction("arc_acc", [_Fixed({})]) == "max"
    assert direction("arc_acc_stderr", [_Fixed]) is None
    assert directions(["arc_acc", "count"], [_Fixed({})]) == {"arc_acc": "max"}


@pytest.mark.fast
@pytest.mark.parametrize(("count", "limit"), [(10, None), (10, 10), (10, 20), (100, 7), (7, 1)])
def test_spread_is_even_and_fixed(count: int, limit: int | None) -> None:
    taken = spread(count, limit, seed=3)
    assert list(taken) == list(spread(count, limit, seed=3)) == sorted(set(taken))
    expected = min(limit or count, count)
    assert len(taken) == expected
    assert all(i * count // expected <= row < (i + 1) * count // expected for i, row in enumerate(taken))


def test_untouched_restores_after_an_error() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 2)).train()
    model[1].eval()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with pytest.raises(RuntimeError), untouched(model, seed=1):
        assert not model.training and not torch.is_grad_enabled()
        torch.rand(3), random.random(), np.random.rand()
        raise RuntimeError
    assert [module.training for module in model.modules()] == [True, True, False]
    assert torch.is_grad_enabled()
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
