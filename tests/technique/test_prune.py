"""Pruned once: the target, the pattern and the references of each importance."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slimexp.config.composition import options
from slimexp.data.base import Corpus
from slimexp.model.seq2seq import Seq2Seq
from slimexp.technique.prune import Prune
from slimexp.weight.attachment import attached
from slimexp.weight.mask import Mask

Make = Callable[..., Any]
ONE_SHOT = [name for name in options("importance") if name not in ("movement", "l0")]  # scores without training
NM = "pattern@pipeline.prune.pattern=n_m"


def by(importance: str) -> str:
    return f"importance@pipeline.prune.importance={importance}"


def masks(technique: Prune) -> list[Tensor]:
    return [attachment.mask for _, attachment in attached(technique.model) if isinstance(attachment, Mask)]


def weights(technique: Prune) -> list[Tensor]:
    return [layer.weight.detach().clone() for layer in technique.layers.values()]


@pytest.mark.parametrize("importance", ONE_SHOT)
@pytest.mark.parametrize("scope", ["layer", "global", "row"])
@pytest.mark.parametrize("sparsity", [0.9])
def test_reaches_the_target_within_one_weight_per_scope(
    words: Corpus, family: Make, prune: Make, importance: str, scope: str, sparsity: float
) -> None:
    if (importance, scope) == ("sparsegpt", "global"):
        pytest.skip("refused")
    technique = prune(by(importance), sparsity=sparsity, **{"pattern.scope": scope})
    technique.prepare(family(), words, None)
    coverage = technique.finish()
    groups = {
        "layer": [[w] for w in weights(technique)],
        "global": [weights(technique)],
        "row": [[row] for w in weights(technique) for row in w],
    }[scope]
    for group in groups:
        size = sum(w.numel() for w in group)
        assert abs(sum(int((w == 0).sum()) for w in group) - sparsity * size) <= 1
    assert coverage["sparsity"] == pytest.approx(sparsity, abs=0.5 / 32)
    assert 0.25 < coverage["share"] < 1


@pytest.mark.parametrize("importance", ONE_SHOT)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (3, 16)])
def test_n_of_m_in_every_group(words: Corpus, family: Make, prune: Make, importance: str, n: int, m: int) -> None:
    technique = prune(by(importance), NM, sparsity=1 - n / m, **{"pattern.m": m})
    technique.prepare(family(), words, None)
    assert technique.finish()["sparsity"] == 1 - n / m
    for weight in weights(technique):
        assert ((weight != 0).reshape(-1, m).sum(1) == n).all()


def test_blocks_are_zero_or_alive_as_a_whole(words: Corpus, family: Make, prune: Make) -> None:
    technique = prune("pattern@pipeline.prune.pattern=block", sparsity=0.5)
    technique.prepare(family(), words, None)
    technique.finish()
    for weight in weights(technique):
        blocks = (weight != 0).unfold(0, 4, 4).unfold(1, 4, 4).flatten(2)
        assert torch.equal(blocks.any(-1), blocks.all(-1))
        assert (~blocks.any(-1)).sum() == blocks[..., 0].numel() // 2


def test_wanda_row_by_row_against_a_float64_reference(words: Corpus, family: Make, prune: Make) -> None:
    """Every row loses its smallest ``|w| ||x||``, where ``x`` is what the layer reads of the training text once the
    blocks before it are pruned."""
    technique = prune(by("wanda"), sparsity=0.5, **{"pattern.scope": "row"})
    technique.prepare(family(layers=2), words, None)
    technique.finish()
    model = family(layers=2)
    model.model.double()
    for stack in model.blocks().values():
        for block in stack:
            inside = {name: layer for name, layer in model.compressible().items() if layer in set(block.modules())}
            norms = input_norms(model, inside)
            for name, layer in inside.items():
                kept, scores = technique.masks[name].mask, layer.weight.detach().abs() * norms[name]
                lowest, highest = scores.masked_fill(~kept, torch.inf).amin(1), scores.masked_fill(kept, 0).amax(1)
                assert (lowest >= highest * (1 - 1e-5)).all()
                layer.weight.data.mul_(kept)


def input_norms(model: Seq2Seq, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Layer -> norm of every input channel over all tokens of the training text."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    hooks = [
        layer.register_forward_hook(lambda _, inputs, __, into=seen[name]: into.append(inputs[0].flatten(0, 1)))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        for word in ("one", "two", "three", "four"):
            model.forward(model.encode([(word, word, None)]))
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(rows).norm(dim=0) for name, rows in seen.items()}


@pytest.mark.parametrize("overrides", [[], ["pipeline.prune.pattern.scope=row"], [NM]], ids=str)
def test_sparsegpt_changes_the_outputs_less_than_its_masks_alone(
    words: Corpus, family: Make, prune: Make, overrides: list[str]
) -> None:
    technique = prune(by("sparsegpt"), *overrides, sparsity=0.5)
    technique.prepare(family(), words, None)
    technique.finish()
    dense = family()
    batch = dense.encode([(word, word, None) for word in ("one", "two", "four", "five")])
    with torch.no_grad():
        target, pruned = (one.forward(batch)[0] for one in (dense, technique.family))
        for name, layer in dense.compressible().items():
            layer.weight.mul_(technique.masks[name].mask)
        masked = dense.forward(batch)[0]
    assert (pruned - target).square().mean() < (masked - target).square().mean()


def test_sparsegpt_writes_what_it_moves_where_training_goes_on(
    words: Corpus, family: Make, prune: Make, fit: Make
) -> None:
    """In full at the first step under a schedule that starts at 1; then the masks stay and the weights learn."""
    technique = prune(by("sparsegpt"), sparsity=0.5, steps=4, **{"schedule.start": 1.0})
    technique.prepare(family(), words, None)
    technique.on_step(0.0)
    moved, chosen = weights(technique), [mask.clone() for mask in masks(technique)]
    for layer, start, mask in zip(family().compressible().values(), moved, chosen, strict=True):
        assert not mask.all() and (start[~mask] == 0).all() and not torch.equal(start[mask], layer.weight[mask])
    fit(technique)
    technique.finish()
    for start, end, old, new in zip(moved, weights(technique), chosen, masks(technique), strict=True):
        assert torch.equal(old, new) and (end[~new] == 0).all() and not torch.equal(end[new], start[new])


@pytest.mark.gpu
@pytest.mark.parametrize("importance", ["sparsegpt", "taylor", "wanda"])
def test_one_shot_on_the_trainers_device_leaves_the_model_where_it_was(
    words: Corpus, family: Make, prune: Make, importance: str
) -> None:
    chosen = []
    for place in ("cpu", "cuda"):
        technique = prune(by(importance), sparsity=0.5)
        technique.compute_device = torch.device(place)
        technique.prepare(family(layers=2), words, None)
        technique.finish()
        assert {tensor.device.type for tensor in technique.model.state_dict().values()} == {"cpu"}
        chosen.append(torch.cat([mask.flatten() for mask in masks(technique)]))
    assert (chosen[0] != chosen[1]).float().mean() < 0.01  # ties within rounding


def test_taylor_follows_the_objective_that_is_trained(words: Corpus, family: Make, prune: Make) -> None:
    """With the teacher in it: its own copy as a teacher leaves no gradient, another one does."""
    other = family()
    nn.init.normal_(other.model.lm_head.weight)
    kl = ["+loss@pipeline.prune.losses.kl=kl", "pipeline.prune.losses.ce.weight=0"]
    seen = {}
    for name, teacher in {"same": family(), "other": other}.items():
        technique = prune(by("taylor"), *kl)
        technique.prepare(family(), words, teacher)
        seen[name] = sum(float(total.sum()) for total in technique._statistics().values())
    assert seen["same"] < 1e-6 * seen["other"]


def test_zero_sparsity_is_the_identity(words: Corpus, family: Make, prune: Make) -> None:
    technique = prune(sparsity=0)
    original = family()
    technique.prepare(original, words, None)
    assert technique.finish()["sparsity"] == 0
    for pruned, dense in zip(weights(technique), family().compressible().values(), strict=True):
        assert torch.equal(pruned, dense.weight)


def test_a_second_stage_keeps_the_zeros_of_the_first(words: Corpus, family: Make, prune: Make) -> None:
    shared = family()
    first = prune("importance@pipeline.prune.importance=random", sparsity=0.3)
    first.prepare(shared, words, None)
    first.finish()
    before = [mask.clone() for mask in masks(first)]
    second = prune(sparsity=0.6)
    second.prepare(shared, words, None)
    second.finish()
    assert len(masks(second)) == len(before)
    for old, new in zip(before, masks(second), strict=True):
        assert not (new & ~old).any()
        assert abs(int((~new).sum()) - 0.6 * new.numel()) <= 1


def test_only_layers_that_are_asked_for_are_pruned(words: Corpus, family: Make, prune: Make) -> None:
    technique = prune(sparsity=0.5, min_coverage=0.01, include="['*.SelfAttention.*']", exclude="['decoder.*', '*.o']")
    technique.prepare(family(), words, None)
    technique.finish()
    dense = family().compressible()
    assert sorted(technique.layers) == [f"encoder.block.0.layer.0.SelfAttention.{letter}" for letter in "kqv"]
    for name, layer in technique.family.compressible().items():
        assert torch.equal(layer.weight, dense[name].weight) is (name not in technique.layers)


def test_losses_that_learn_come_to_the_student_before_what_is_calibrated(
    words: Corpus, family: Make, prune: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After training, Lightning leaves them on another device, as it does the teacher."""
    technique = prune(sparsity=0.5)
    technique.prepare(family(), words, family())
    technique.losses["projected"] = nn.Linear(2, 2)
    monkeypatch.setattr(type(technique.family), "device", torch.device("meta"))
    seen: list[str] = []

    def evaluate(batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        modules = (technique.losses, technique.teacher_family.model)
        seen.extend(parameter.device.type for module in modules for parameter in module.parameters())
        return torch.zeros(()), {}

    monkeypatch.setattr(technique, "evaluate", evaluate)
    technique._loss({})
    assert len(seen) > 2 and set(seen) == {"meta"}
