from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from slimexp import artifact
from slimexp.cut.simulate import simulated
from slimexp.loss.base import IGNORE
from slimexp.model.history import History
from slimexp.technique import prune_structured
from slimexp.technique.compatibility import check_order
from slimexp.technique.prune_structured import PruneStructured

Make = Callable[..., Any]
NAME = "prune_structured"
QUICK = {"multiple": 8, "rows": 4, "candidates": 2, "importance.rows": 2}


@pytest.fixture
def prepared(tiny: Make, technique: Make, corpus: Make) -> Make:
    """A stage with a random model cut to its budget."""

    def make(task: str = "causal_lm", *overrides: str, model: dict[str, Any] | None = None, **values: Any) -> Any:
        stage = technique(NAME, *overrides, **QUICK | values)
        stage.prepare(tiny(task, **model or {}), corpus(task), None)
        return stage

    return make


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """(family, layers, kept) of every removal."""
    calls: list[Any] = []
    remove = prune_structured.remove

    def watch(*arguments: Any) -> Any:
        calls.append(arguments)
        return remove(*arguments)

    monkeypatch.setattr(prune_structured, "remove", watch)
    return calls


def size(stage: Any) -> int:
    return sum(parameter.numel() for parameter in stage.model.parameters())


@torch.no_grad()
def logits(family: Any) -> Tensor:
    batch = family.encode([("one", "two!", 0), ("three and four", "5", 1)])
    logits, _ = family.forward(batch)
    return logits[batch["labels"] != IGNORE]


# --- the budget ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "axes"),
    [
        ("seq2seq", "[layers,ffn,hidden]"),
        ("causal_lm", "[layers,heads,ffn,hidden]"),
        ("classification", "[layers,ffn]"),
    ],
)
def test_never_above_the_target_and_as_counted(prepared: Make, tiny: Make, task: str, axes: str) -> None:
    stage = prepared(task, axes=axes, **{"budget.share": 0.85})
    dense = sum(parameter.numel() for parameter in tiny(task).model.parameters())
    reached = stage.finish()
    assert size(stage) / dense == reached["parameters"] <= 0.85
    assert 0 < reached["share"] <= 1


def test_axes_that_must_not_go_stay(prepared: Make) -> None:
    config = prepared(axes="[ffn]", **{"budget.share": 0.9}).model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 32, 4)
    assert config.intermediate_size < 48 and config.intermediate_size % 8 == 0


def test_a_width_that_a_later_stage_cannot_do_with_goes_too(tiny: Make, technique: Make, corpus: Make) -> None:
    """What is reported is what was removed, though no width may stay as it is."""
    stage = technique(NAME, axes="[ffn,hidden]", multiple=3, rows=4, **{"budget.share": 0.8})
    stage.require_row_multiple(8)
    family = tiny("causal_lm")
    dense = sum(parameter.numel() for parameter in family.model.parameters())
    stage.prepare(family, corpus("causal_lm"), None)
    config, reached = stage.model.config, stage.finish()
    assert config.hidden_size == reached["hidden_kept"] == 24
    assert config.intermediate_size == reached["ffn_kept"] and config.intermediate_size % 24 == 0
    assert size(stage) / dense == reached["parameters"] <= 0.8


def test_any_importance_chooses(tiny: Make, technique: Make, corpus: Make) -> None:
    stage = technique(NAME, f"importance@pipeline.{NAME}.importance=magnitude", multiple=8, rows=4, norm=1)
    stage.prepare(tiny("causal_lm"), corpus("causal_lm"), None)
    assert stage.finish()["parameters"] <= 0.75


def test_bytes(prepared: Make, tmp_path: Path) -> None:
    words = (f"budget@pipeline.{NAME}.budget=disk", f"pipeline.{NAME}.budget.megabytes=0.07")
    stage = prepared("causal_lm", *words, axes="[ffn]", model={"intermediate_size": 256})
    artifact.save(stage.family, tmp_path / "a", dtype=torch.bfloat16, stages=[])
    files = artifact.read_manifest(tmp_path / "a")["files"]
    shipped = sum((tmp_path / "a" / name).stat().st_size for name in files) / 1e6
    assert 0.05 < shipped <= 0.07


def test_latency_is_solved_for_again_where_the_estimate_was_hopeful(
    prepared: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A clock on which only blocks cost time, and two of them half as much again as the estimate says."""
    from slimexp.budget.latency import Latency

    def ratio(_: Latency, __: Any, shape: Any) -> float:
        return {4: 1.0, 3: 0.9, 2: 0.6, 1: 0.5}[shape["decoder"]]

    monkeypatch.setattr(Latency, "_ratio", ratio)
    words = (f"budget@pipeline.{NAME}.budget=latency", f"pipeline.{NAME}.budget.ratio=0.8")
    stage = prepared("causal_lm", *words, model={"num_hidden_layers": 4}, axes="[layers]")
    assert stage.model.config.num_hidden_layers == 2
    assert capsys.readouterr().out.count("x the latency") == 2


# --- the same model before and after ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "axes"), [("causal_lm", "[layers,heads,ffn,hidden]"), ("classification", "[layers,ffn]")]
)
def test_masked_is_removed_is_saved(prepared: Make, decided: list[Any], task: str, axes: str, tmp_path: Path) -> None:
    stage = prepared(task, axes=axes, **{"budget.share": 0.7})
    family, layers, kept = decided[-1]
    with simulated(family, layers, kept):
        masked = logits(family)
    torch.testing.assert_close(logits(stage.family), masked, atol=1e-4, rtol=1e-4)
    artifact.save(stage.family, tmp_path / "a", dtype=torch.float32, stages=[])
    assert torch.equal(logits(artifact.deployed(tmp_path / "a")), logits(stage.family))
    if task == "causal_lm":
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
        assert plain.config.to_dict().keys() == family.model.config.to_dict().keys()


@pytest.mark.parametrize(
    ("task", "axes", "share", "unlike"),
    [
        ("causal_lm", "[layers,ffn]", 0.8, {"neurons"}),
        ("seq2seq", "[ffn]", 0.9, {"neurons"}),
        ("causal_lm", "[heads]", 0.85, {"heads"}),
        ("causal_lm", "[heads,ffn]", 0.7, {"heads", "neurons"}),
    ],
)
def test_blocks_may_keep_unlike_numbers(
    prepared: Make, tiny: Make, decided: list[Any], task: str, axes: str, share: float, unlike: set[str], tmp_path: Path
) -> None:
    more = {"num_attention_heads": 8, "num_key_value_heads": 8} if "heads" in unlike else {}
    stage = prepared(task, model=more, axes=axes, uniform=False, **{"budget.share": share})
    family, layers, kept = decided[-1]
    figures = stage.finish()
    units = {name: [n for key, n in figures.items() if key.startswith(f"{name}/")] for name in ("heads", "neurons")}
    assert {name for name, numbers in units.items() if numbers} == unlike
    assert any(len(set(numbers)) > 1 for numbers in units.values())
    assert all(n % multiple == 0 for name, multiple in (("heads", 2), ("neurons", 8)) for n in units[name])
    dense = sum(parameter.numel() for parameter in tiny(task, **more).model.parameters())
    assert size(stage) / dense == figures["parameters"] <= share
    with simulated(family, layers, kept):
        torch.testing.assert_close(logits(stage.family), logits(family), atol=1e-4, rtol=1e-4)
    artifact.save(stage.family, tmp_path / "a", dtype=torch.float32, stages=[])
    assert torch.equal(logits(artifact.deployed(tmp_path / "a")), logits(stage.family))


def test_quantizing_comes_after(prepared: Make, technique: Make, corpus: Make, tmp_path: Path) -> None:
    stage = prepared(**{"budget.share": 0.8})
    artifact.save(stage.family, tmp_path / "a", dtype=torch.float32, stages=[])
    quantize = technique("quantize", bits=8)
    quantize.prepare(artifact.load(tmp_path / "a"), corpus("causal_lm"), None)
    quantize.finish()
    artifact.save(quantize.family, tmp_path / "b", dtype=torch.float32, stages=[])
    assert logits(artifact.deployed(tmp_path / "b")).isfinite().all()


# --- training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("uniform", "axes"), [(True, "[ffn]"), (False, "[ffn]"), (False, "[heads,ffn]")])
def test_resumed_equals_straight_whatever_would_be_chosen_now(
    prepared: Make, fit: Make, tmp_path: Path, uniform: bool, axes: str
) -> None:
    settings = {"steps": 4, "axes": axes, "uniform": uniform, "budget.share": 0.9}
    straight, interrupted, resumed = (
        prepared(**settings),
        prepared(**settings),
        prepared(**settings | {"budget.share": 0.8}),
    )
    fit(straight)
    fit(interrupted, max_steps=2).save_checkpoint(tmp_path / "checkpoint.ckpt")
    assert size(resumed) < size(straight)
    fit(resumed, resume=tmp_path / "checkpoint.ckpt")
    assert resumed.finish() == straight.finish()
    assert resumed.family.model is resumed.model
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_it_learns_from_the_dense_model(tiny: Make, technique: Make, corpus: Make, fit: Make) -> None:
    stage: PruneStructured = technique(NAME, f"+loss@pipeline.{NAME}.losses.kl=kl", **QUICK | {"steps": 2})
    assert stage.needs_teacher and stage.alters and not stage.attaches
    stage.prepare(tiny("causal_lm"), corpus("causal_lm"), tiny("causal_lm"))
    fit(stage)
    assert size(stage) < sum(p.numel() for p in stage.teacher_family.model.parameters())  # type: ignore[union-attr]


# --- what is refused --------------------------------------------------------------------------------


def test_the_nearest_that_can_be_is_named(prepared: Make) -> None:
    message = (
        r"a budget of 0.3 of the parameters cannot be met by cutting ffn in multiples of 8; the least that can be had "
        r"is 0\.\d+: decoder 2, heads 2, ffn 8, hidden 32: raise the budget, add to axes, or lower multiple"
    )
    with pytest.raises(ValueError, match=message):
        prepared(axes="[ffn]", **{"budget.share": 0.3})


def test_a_target_that_is_met_already(prepared: Make) -> None:
    words = (f"budget@pipeline.{NAME}.budget=disk", f"pipeline.{NAME}.budget.megabytes=5")
    with pytest.raises(ValueError, match="the model costs at most 5 MB as it is, nothing would be removed: lower the"):
        prepared("causal_lm", *words)


def test_masks_and_quantizers_come_later(tiny: Make, technique: Make, corpus: Make) -> None:
    family = tiny("causal_lm")
    technique("prune").prepare(family, corpus("causal_lm"), None)
    with pytest.raises(ValueError, match=r"removal comes first: the model has masks or quantizers \(Mask on 'model\."):
        technique(NAME).prepare(family, corpus("causal_lm"), None)


@pytest.mark.parametrize(
    ("task", "config", "axes"),
    [
        ("causal_lm", {}, ["layers", "heads", "ffn", "hidden"]),
        ("seq2seq", {}, ["layers", "heads", "ffn", "hidden"]),
        ("classification", {}, ["layers", "ffn"]),
    ],
)
def test_without_names_all_axes_go_that_the_type_can_lose(
    task: str, config: dict[str, Any], axes: list[str], tiny: Make, technique: Make
) -> None:
    model = tiny(task, **config).model
    stage = technique(NAME)
    stage.validate(model.config, before=[])
    assert stage.axes == axes and set(stage.cuts) == {*axes} - {"layers"}
    compared = technique(NAME, f"+loss@pipeline.{NAME}.losses.hidden=hidden")
    compared.validate(model.config, before=[])
    assert compared.axes == [axis for axis in axes if axis != "hidden"]


def test_before_anything_is_loaded(tiny: Make, technique: Make) -> None:
    with pytest.raises(ValueError, match="that can be cut are layers, ffn; got 'heads'"):
        technique(NAME, axes="[heads,ffn]").validate(tiny("classification").model.config, before=[])
    hidden = technique(NAME, f"+loss@pipeline.{NAME}.losses.hidden=hidden", axes="[hidden]")
    with pytest.raises(ValueError, match="a loss on hidden states needs the teacher's width"):
        hidden.validate(tiny("causal_lm").model.config, before=[])
    projected = technique(NAME, f"+loss@pipeline.{NAME}.losses.hidden=hidden", **{"losses.hidden.projection": True})
    projected.validate(tiny("causal_lm").model.config, before=[])
    assert "hidden" in projected.axes


def test_unlike_widths_come_last(prepared: Make, technique: Make, tiny: Make, corpus: Make) -> None:
    first = prepared(axes="[ffn]", uniform=False, **{"budget.share": 0.9})
    chain = {"first": first, "second": technique(NAME)}
    with pytest.raises(
        ValueError, match=r"pipeline\.first leaves blocks of unlike widths, from which pipeline\.second"
    ):
        check_order(chain, History(format=None))
    with pytest.raises(ValueError, match=r"unlike numbers of ffn \(slimexp_widths of its config.json\), and are taken"):
        technique(NAME).validate(first.model.config, before=[])
    with pytest.raises(ValueError, match="uniform=false is for heads and neurons, and none of them can go: let"):
        technique(NAME, axes="[layers]", uniform=False).validate(tiny("causal_lm").model.config, before=[])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"axes": "[]"}, r"axes must name what may go"),
        ({"norm": 3}, r"norm must be 1 or 2, got 3"),
        ({"multiple": 0}, r"multiple must be >= 1, got 0"),
        ({"candidates": 0}, r"candidates must be >= 1, got 0"),
        ({"budget.share": 1}, r"budget\.share of the parameters that stay must be in \(0, 1\), got 1"),
    ],
)
def test_wrong_values(technique: Make, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        technique(NAME, **values)


@pytest.mark.parametrize("importance", ["movement", "l0"])
def test_what_is_learned_comes_too_late(technique: Make, importance: str) -> None:
    with pytest.raises(ValueError, match="is learned by training, and structure goes before it: choose activation,"):
        technique(NAME, f"importance@pipeline.{NAME}.importance={importance}")


def test_too_little_coverage(prepared: Make) -> None:
    with pytest.raises(ValueError, match=r"only \d\d\.\d% of the parameters are in tensors that lose something"):
        prepared(axes="[ffn]", min_coverage=0.99, **{"budget.share": 0.9})
