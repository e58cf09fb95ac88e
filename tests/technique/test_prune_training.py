"""Pruned while training: along a schedule, by gates, with regrowth, and as if never interrupted."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from slimexp.data.base import Corpus
from slimexp.loss.base import Outputs
from slimexp.model.layer import latent
from slimexp.technique.prune import Prune
from slimexp.weight.attachment import attached
from slimexp.weight.mask import Mask

Make = Callable[..., Any]
SENSITIVITY = "+allocation@pipeline.prune.allocation=sensitivity"
NM = "pattern@pipeline.prune.pattern=n_m"


def by(importance: str) -> str:
    return f"importance@pipeline.prune.importance={importance}"


def masks(technique: Prune) -> list[Tensor]:
    return [attachment.mask for _, attachment in attached(technique.model) if isinstance(attachment, Mask)]


def weights(technique: Prune) -> list[Tensor]:
    return [layer.weight.detach().clone() for layer in technique.layers.values()]


def resumes(technique: Callable[[], Prune], fit: Make, folder: Path) -> None:
    """Interrupted after three steps and resumed, a stage ends where the straight one does."""
    straight, interrupted, resumed = technique(), technique(), technique()
    fit(straight)
    fit(interrupted, max_steps=3).save_checkpoint(folder / "checkpoint.ckpt")
    fit(resumed, resume=folder / "checkpoint.ckpt")
    assert straight.finish() == resumed.finish()
    for one, other in zip(straight.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_grows_along_the_schedule_and_is_final_at_the_ramp(words: Corpus, family: Make, prune: Make) -> None:
    technique = prune(sparsity=0.8, steps=20, every=4, ramp=0.5)
    technique.prepare(family(), words, None)
    shares = []
    for step in range(20):
        technique.on_step(step / 20)
        shares.append(1 - sum(int(m.sum()) for m in masks(technique)) / sum(m.numel() for m in masks(technique)))
    assert shares[0] == 0
    assert shares[4] == shares[7] == pytest.approx(0.8 * (1 - 0.6**3), abs=1e-3)
    assert shares == sorted(shares)
    assert shares[10:] == [pytest.approx(0.8, abs=1e-3)] * 10


def test_masks_are_monotone_and_exact_while_training(words: Corpus, family: Make, prune: Make, fit: Make) -> None:
    technique = prune(
        sparsity=0.7, steps=8, every=1, ramp=0.75, **{"optimizer.weight_decay": 0.5, "optimizer.lr": 0.01}
    )
    seen: list[list[Tensor]] = []
    on_step = technique.on_step

    def watch(progress: float) -> None:
        on_step(progress)
        seen.append([mask.clone() for mask in masks(technique)])
        assert all((w[~mask] == 0).all() for w, mask in zip(weights(technique), masks(technique), strict=True))

    technique.on_step = watch  # type: ignore[method-assign]
    technique.prepare(family(), words, None)
    dense = weights(technique)
    fit(technique)
    coverage = technique.finish()
    assert len(seen) == 8
    for earlier, later in pairwise(seen):
        assert all(not (new & ~old).any() for old, new in zip(earlier, later, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(seen[6], masks(technique), strict=True))
    assert coverage["sparsity"] == pytest.approx(0.7, abs=1e-3)
    for start, end, mask in zip(dense, weights(technique), masks(technique), strict=True):
        assert (end[~mask] == 0).all() and not torch.equal(end[mask], start[mask])


@pytest.mark.parametrize(
    "overrides",
    [[], [by("wanda"), NM], [by("sparsegpt")], [by("taylor"), "pipeline.prune.pattern.scope=global"]],
    ids=str,
)
def test_resumed_in_the_middle_of_the_ramp_equals_the_straight_run(
    words: Corpus, family: Make, prune: Make, fit: Make, tmp_path: Path, overrides: list[str]
) -> None:
    def technique() -> Prune:
        stage = prune(*overrides, sparsity=0.75, steps=6, every=2, ramp=1.0)
        stage.prepare(family(), words, None)
        return stage

    resumes(technique, fit, tmp_path)


@pytest.mark.parametrize("importance", ["magnitude", "wanda"])
def test_two_of_four_stay_exact_for_200_steps_of_decay_and_momentum(
    words: Corpus, family: Make, prune: Make, fit: Make, importance: str
) -> None:
    values = {"optimizer.weight_decay": 0.5, "optimizer.lr": 0.01}
    technique = prune(by(importance), NM, sparsity=0.5, steps=200, every=20, ramp=0.3, **values)
    technique.prepare(family(), words, None)
    dense = weights(technique)
    fit(technique)
    technique.finish()
    for start, end in zip(dense, weights(technique), strict=True):
        assert ((end != 0).reshape(-1, 4).sum(1) == 2).all()
        assert not torch.equal(end[end != 0], start[end != 0])


def test_a_pattern_may_follow_another_at_the_same_sparsity(words: Corpus, family: Make, prune: Make) -> None:
    """Half of the weights are zero already, but not two of every four."""
    first = prune(sparsity=0.5)
    first.prepare(family(), words, None)
    first.finish()
    second = prune(NM, sparsity=0.5)
    second.prepare(first.family, words, None)
    assert second.finish()["sparsity"] > 0.5
    for weight in weights(second):
        assert ((weight != 0).reshape(-1, 4).sum(1) <= 2).all()


def test_calibration_happens_only_when_masks_grow(
    words: Corpus, family: Make, prune: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    technique = prune(by("wanda"), sparsity=0.5, steps=20, every=5, ramp=0.5)
    technique.prepare(family(), words, None)
    calls, batches = [], technique._calibration_batches
    monkeypatch.setattr(technique, "_calibration_batches", lambda: calls.append(step) or batches())
    for step in range(20):
        technique.on_step(step / 20)
    technique.finish()
    assert calls == [5, 10]


def test_the_lagrangian_drives_the_gates_to_the_target(words: Corpus, family: Make, prune: Make, fit: Make) -> None:
    """Before anything is cut: the expected sparsity of every layer is near its target at the end of the ramp."""
    values = {"importance.lr": 0.5, "importance.price": 10, "optimizer.lr": 1e-3}
    scheduler = "lr_scheduler@pipeline.prune.lr_scheduler=constant"
    technique = prune(by("l0"), scheduler, sparsity=0.6, steps=60, ramp=1.0, **values)
    technique.prepare(family(), words, None)
    assert len(list(technique.model.parameters())) > len(list(family().model.parameters()))
    fit(technique)
    expected = [1 - gate.open().mean().item() for gate in technique.gating._gates.values()]
    assert expected == [pytest.approx(0.6, abs=0.1)] * len(expected)
    technique.finish()
    assert len(list(technique.model.parameters())) == len(list(family().model.parameters()))


def test_regrowth_keeps_the_sparsity_and_lets_weights_come_back(
    words: Corpus, family: Make, prune: Make, fit: Make
) -> None:
    technique = prune(sparsity=0.8, steps=12, every=2, ramp=0.8, regrow=0.3, **{"schedule.start": 1.0})
    seen: list[list[Tensor]] = []
    on_step = technique.on_step

    def watch(progress: float) -> None:
        before = weights(technique)
        on_step(progress)
        seen.append([mask.clone() for mask in masks(technique)])
        for old, new, mask in zip(before, weights(technique), masks(technique), strict=True):
            assert ((new != 0) & (old == 0)).sum() == 0, "revived weights are zero"
            assert abs(int((~mask).sum()) - 0.8 * mask.numel()) <= 1

    technique.on_step = watch  # type: ignore[method-assign]
    technique.prepare(family(), words, None)
    fit(technique)
    technique.finish()
    revived = [sum(int((new & ~old).sum()) for old, new in zip(*pair, strict=True)) for pair in pairwise(seen)]
    assert [count > 0 for count in revived] == [step % 2 == 0 and step < 9.6 for step in range(1, 12)]
    assert revived[1] > revived[7], "less and less"
    assert sum(int((w != 0).sum()) for w in weights(technique)) > 0.19 * sum(w.numel() for w in weights(technique))


def test_what_wakes_has_the_largest_gradient_and_what_goes_the_lowest_score(
    words: Corpus, family: Make, prune: Make
) -> None:
    technique = prune(sparsity=0.5, steps=4, every=1, regrow=0.2, **{"schedule.start": 1.0})
    technique.prepare(family(), words, None)
    technique.on_step(0.0)
    before = {name: mask.mask.clone() for name, mask in technique.masks.items()}
    old = {name: latent(layer).detach().clone() for name, layer in technique.layers.items()}
    batch = next(iter(technique.batches(technique.global_step, technique.global_step + 1, workers=0)))
    free = [layer.weight.detach().clone().requires_grad_() for layer in technique.layers.values()]
    plain = family()
    for layer, weight in zip(plain.compressible().values(), free, strict=True):
        layer.weight.data.copy_(weight)
    dense = torch.autograd.grad(
        technique.losses["ce"](Outputs(*plain.forward(batch)), None, batch["labels"], 0.0).mean(),
        [layer.weight for layer in plain.compressible().values()],
    )
    technique._regrow(1.0, share=0.2)
    for (name, mask), gradient in zip(technique.masks.items(), dense, strict=True):
        revived, dead = mask.mask & ~before[name], ~mask.mask
        assert (
            revived.any()
            and (old[name][~mask.mask & before[name]].abs() <= old[name][mask.mask & before[name]].abs().max()).all()
        )
        assert gradient[revived].abs().min() >= gradient[dead].abs().max() * (1 - 1e-4)


def test_resumed_regrowth_equals_the_straight_run(
    words: Corpus, family: Make, prune: Make, fit: Make, tmp_path: Path
) -> None:
    def technique() -> Prune:
        stage = prune(sparsity=0.75, steps=6, every=1, ramp=1.0, regrow=0.3)
        stage.prepare(family(), words, None)
        return stage

    resumes(technique, fit, tmp_path)


@pytest.mark.parametrize("steps", [0, 3])
def test_an_allocation_meets_the_target_over_all_and_its_own_in_each_layer(
    words: Corpus, family: Make, prune: Make, fit: Make, steps: int
) -> None:
    technique = prune(SENSITIVITY, sparsity=0.5, steps=steps, every=1, **{"allocation.rows": 2})
    technique.prepare(family(), words, None)
    if steps:
        fit(technique)
    technique.finish()
    zeros = {name: int((layer.weight == 0).sum()) for name, layer in technique.layers.items()}
    sizes = {name: layer.weight.numel() for name, layer in technique.layers.items()}
    assert abs(sum(zeros.values()) - 0.5 * sum(sizes.values())) <= 1
    targets = technique.mask_update.targets
    assert all(zeros[name] == round(share * sizes[name]) for name, share in targets.items())
    assert len(set(targets.values())) > 1 and max(targets.values()) < 0.91


def test_an_allocation_is_resumed_and_not_scanned_for_again(
    words: Corpus, family: Make, prune: Make, fit: Make, tmp_path: Path
) -> None:
    def technique() -> Prune:
        stage = prune(SENSITIVITY, sparsity=0.5, steps=4, every=1, ramp=1.0, **{"allocation.rows": 2})
        stage.prepare(family(), words, None)
        return stage

    straight, interrupted, resumed = technique(), technique(), technique()
    fit(straight)
    fit(interrupted, max_steps=2).save_checkpoint(tmp_path / "checkpoint.ckpt")
    resumed.allocation.scan = None  # type: ignore[union-attr,method-assign,assignment]
    fit(resumed, resume=tmp_path / "checkpoint.ckpt")
    assert straight.finish() == resumed.finish()
    for one, other in zip(straight.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
