from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from slimexp.attachment import attached
from slimexp.config import build, compose, options
from slimexp.data.base import Corpus, Example, Split
from slimexp.importance.mask import Mask
from slimexp.loss.base import Outputs
from slimexp.model.causal_lm import CausalLm
from slimexp.model.seq2seq import Seq2Seq
from slimexp.model.tokenizer import Bytes
from slimexp.technique.coverage import Reach, latent
from slimexp.technique.finetune import Finetune
from slimexp.technique.prune import Prune


class Words(Corpus):
    """Four sentences to copy."""

    task = "seq2seq"
    headline = "exact_match"
    direction = "max"

    def load(self) -> Mapping[Split, Sequence[Example]]:
        rows = [Example(source=word, target=word) for word in ("one", "two", "three", "four")]
        return {"train": rows, "validation": rows, "test": rows}

    def grade(self, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        return {"exact_match": 0.0}

    def trivial(self, examples: Sequence[Example]) -> float:
        return 0.0


def family(layers: int = 1) -> Seq2Seq:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=259, d_model=32, d_kv=8, d_ff=48, num_layers=layers, num_heads=4,
        dropout_rate=0.0, decoder_start_token_id=0,
    )  # fmt: skip
    return Seq2Seq(T5ForConditionalGeneration(config), Bytes().build([]), max_length=16)


def prune(*overrides: str, **settings: object) -> Prune:
    """The technique of conf/, at a tiny size; what is calibrated reads every word once."""
    tiny = {"steps": 0, "batch_size": 2} | settings
    if {by("sparsegpt"), by("taylor"), by("wanda")} & set(overrides):
        tiny = {"importance.rows": 4} | tiny
    values = [f"pipeline.prune.{key}={value}" for key, value in tiny.items()]
    return build(compose(["pipeline=prune", *overrides, *values]).pipeline.prune)


def fit(technique: Finetune, *, stop: int | None = None, resume: Path | None = None) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    overrides = {"max_steps": stop or technique.steps, "logger": False, "enable_progress_bar": False}
    trainer = build(compose().trainer, **overrides)
    trainer.fit(technique, ckpt_path=resume, weights_only=True)
    return trainer


ONE_SHOT = [name for name in options("importance") if name not in ("movement", "l0")]  # scores without training
NM = "pattern@pipeline.prune.pattern=n_m"


def by(importance: str) -> str:
    return f"importance@pipeline.prune.importance={importance}"


def masks(technique: Prune) -> list[Tensor]:
    return [attachment.mask for _, attachment in attached(technique.model) if isinstance(attachment, Mask)]


def weights(technique: Prune) -> list[Tensor]:
    return [layer.weight.detach().clone() for layer in technique.layers.values()]


# --- one-shot ------------------------------------------------------------------------------------


@pytest.mark.parametrize("importance", ONE_SHOT)
@pytest.mark.parametrize("scope", ["layer", "global", "row"])
@pytest.mark.parametrize("sparsity", [0.9])
def test_reaches_the_target_within_one_weight_per_scope(importance: str, scope: str, sparsity: float) -> None:
    if (importance, scope) == ("sparsegpt", "global"):
        pytest.skip("refused")
    technique = prune(by(importance), sparsity=sparsity, **{"pattern.scope": scope})
    technique.prepare(family(), Words(), None)
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
def test_n_of_m_in_every_group(importance: str, n: int, m: int) -> None:
    technique = prune(by(importance), NM, sparsity=1 - n / m, **{"pattern.m": m})
    technique.prepare(family(), Words(), None)
    assert technique.finish()["sparsity"] == 1 - n / m
    for weight in weights(technique):
        assert ((weight != 0).reshape(-1, m).sum(1) == n).all()


def test_blocks_are_zero_or_alive_as_a_whole() -> None:
    technique = prune("pattern@pipeline.prune.pattern=block", sparsity=0.5)
    technique.prepare(family(), Words(), None)
    technique.finish()
    for weight in weights(technique):
        blocks = (weight != 0).unfold(0, 4, 4).unfold(1, 4, 4).flatten(2)
        assert torch.equal(blocks.any(-1), blocks.all(-1))
        assert (~blocks.any(-1)).sum() == blocks[..., 0].numel() // 2


def test_wanda_row_by_row_against_a_float64_reference() -> None:
    """Every row loses its smallest ``|w| ||x||``, where ``x`` is what the layer reads of the training text once the
    blocks before it are pruned."""
    technique = prune(by("wanda"), sparsity=0.5, **{"pattern.scope": "row"})
    technique.prepare(family(layers=2), Words(), None)
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
def test_sparsegpt_changes_the_outputs_less_than_its_masks_alone(overrides: list[str]) -> None:
    technique = prune(by("sparsegpt"), *overrides, sparsity=0.5)
    technique.prepare(family(), Words(), None)
    technique.finish()
    dense = family()
    batch = dense.encode([(word, word, None) for word in ("one", "two", "four", "five")])
    with torch.no_grad():
        target, pruned = (one.forward(batch)[0] for one in (dense, technique.family))
        for name, layer in dense.compressible().items():
            layer.weight.mul_(technique.masks[name].mask)
        masked = dense.forward(batch)[0]
    assert (pruned - target).square().mean() < (masked - target).square().mean()


def test_sparsegpt_writes_what_it_moves_where_training_goes_on() -> None:
    """In full at the first step under a schedule that starts at 1; then the masks stay and the weights learn."""
    technique = prune(by("sparsegpt"), sparsity=0.5, steps=4, **{"schedule.start": 1.0})
    technique.prepare(family(), Words(), None)
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
def test_one_shot_on_the_trainers_device_leaves_the_model_where_it_was(importance: str) -> None:
    chosen = []
    for place in ("cpu", "cuda"):
        technique = prune(by(importance), sparsity=0.5)
        technique.workplace = torch.device(place)
        technique.prepare(family(layers=2), Words(), None)
        technique.finish()
        assert {tensor.device.type for tensor in technique.model.state_dict().values()} == {"cpu"}
        chosen.append(torch.cat([mask.flatten() for mask in masks(technique)]))
    assert (chosen[0] != chosen[1]).float().mean() < 0.01  # ties within rounding


def test_taylor_follows_the_objective_that_is_trained() -> None:
    """With the teacher in it: its own copy as a teacher leaves no gradient, another one does."""
    other = family()
    nn.init.normal_(other.model.lm_head.weight)
    kl = ["+loss@pipeline.prune.losses.kl=kl", "pipeline.prune.losses.ce.weight=0"]
    seen = {}
    for name, teacher in {"same": family(), "other": other}.items():
        technique = prune(by("taylor"), *kl)
        technique.prepare(family(), Words(), teacher)
        seen[name] = sum(float(total.sum()) for total in technique._calibrate().values())
    assert seen["same"] < 1e-6 * seen["other"]


def test_zero_sparsity_is_the_identity() -> None:
    technique = prune(sparsity=0)
    original = family()
    technique.prepare(original, Words(), None)
    assert technique.finish()["sparsity"] == 0
    for pruned, dense in zip(weights(technique), family().compressible().values(), strict=True):
        assert torch.equal(pruned, dense.weight)


def test_a_second_stage_keeps_the_zeros_of_the_first() -> None:
    shared = family()
    first = prune("importance@pipeline.prune.importance=random", sparsity=0.3)
    first.prepare(shared, Words(), None)
    first.finish()
    before = [mask.clone() for mask in masks(first)]
    second = prune(sparsity=0.6)
    second.prepare(shared, Words(), None)
    second.finish()
    assert len(masks(second)) == len(before)
    for old, new in zip(before, masks(second), strict=True):
        assert not (new & ~old).any()
        assert abs(int((~new).sum()) - 0.6 * new.numel()) <= 1


# --- along a schedule ----------------------------------------------------------------------------


def test_grows_along_the_schedule_and_is_final_at_the_ramp() -> None:
    technique = prune(sparsity=0.8, steps=20, every=4, ramp=0.5)
    technique.prepare(family(), Words(), None)
    shares = []
    for step in range(20):
        technique.on_step(step / 20)
        shares.append(1 - sum(int(m.sum()) for m in masks(technique)) / sum(m.numel() for m in masks(technique)))
    assert shares[0] == 0
    assert shares[4] == shares[7] == pytest.approx(0.8 * (1 - 0.6**3), abs=1e-3)
    assert shares == sorted(shares)
    assert shares[10:] == [pytest.approx(0.8, abs=1e-3)] * 10


def test_masks_are_monotone_and_exact_while_training() -> None:
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
    technique.prepare(family(), Words(), None)
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
def test_resumed_in_the_middle_of_the_ramp_equals_the_straight_run(tmp_path: Path, overrides: list[str]) -> None:
    def technique() -> Prune:
        stage = prune(*overrides, sparsity=0.75, steps=6, every=2, ramp=1.0)
        stage.prepare(family(), Words(), None)
        return stage

    straight, interrupted, resumed = technique(), technique(), technique()
    fit(straight)
    fit(interrupted, stop=3).save_checkpoint(tmp_path / "checkpoint.ckpt")
    fit(resumed, resume=tmp_path / "checkpoint.ckpt")
    assert straight.finish() == resumed.finish()
    for one, other in zip(straight.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("importance", ["magnitude", "wanda"])
def test_two_of_four_stay_exact_for_200_steps_of_decay_and_momentum(importance: str) -> None:
    values = {"optimizer.weight_decay": 0.5, "optimizer.lr": 0.01}
    technique = prune(by(importance), NM, sparsity=0.5, steps=200, every=20, ramp=0.3, **values)
    technique.prepare(family(), Words(), None)
    dense = weights(technique)
    fit(technique)
    technique.finish()
    for start, end in zip(dense, weights(technique), strict=True):
        assert ((end != 0).reshape(-1, 4).sum(1) == 2).all()
        assert not torch.equal(end[end != 0], start[end != 0])


def test_a_pattern_may_follow_another_at_the_same_sparsity() -> None:
    """Half of the weights are zero already, but not two of every four."""
    first = prune(sparsity=0.5)
    first.prepare(family(), Words(), None)
    first.finish()
    second = prune(NM, sparsity=0.5)
    second.prepare(first.family, Words(), None)
    assert second.finish()["sparsity"] > 0.5
    for weight in weights(second):
        assert ((weight != 0).reshape(-1, 4).sum(1) <= 2).all()


def test_calibration_happens_only_when_masks_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    technique = prune(by("wanda"), sparsity=0.5, steps=20, every=5, ramp=0.5)
    technique.prepare(family(), Words(), None)
    calls, batches = [], technique._calibration_batches
    monkeypatch.setattr(technique, "_calibration_batches", lambda: calls.append(step) or batches())
    for step in range(20):
        technique.on_step(step / 20)
    technique.finish()
    assert calls == [5, 10]


# --- gates ---------------------------------------------------------------------------------------


def test_the_lagrangian_drives_the_gates_to_the_target() -> None:
    """Before anything is cut: the expected sparsity of every layer is near its target at the end of the ramp."""
    values = {"importance.lr": 0.5, "importance.price": 10}
    scheduler = "scheduler@pipeline.prune.scheduler=constant"
    technique = prune(by("l0"), scheduler, sparsity=0.6, steps=60, ramp=1.0, **values)
    technique.prepare(family(), Words(), None)
    assert len(list(technique.model.parameters())) > len(list(family().model.parameters()))
    fit(technique)
    expected = [1 - gate.open().mean().item() for gate in technique.gating._gates.values()]
    assert expected == [pytest.approx(0.6, abs=0.1)] * len(expected)
    technique.finish()
    assert len(list(technique.model.parameters())) == len(list(family().model.parameters()))


# --- regrowth ------------------------------------------------------------------------------------


def test_regrowth_keeps_the_sparsity_and_lets_weights_come_back() -> None:
    technique = prune(sparsity=0.8, steps=12, every=2, ramp=0.8, regrow=0.3, **{"schedule.start": 1.0})
    seen: list[list[Tensor]] = []
    on_step = technique.on_step

    def watch(progress: float) -> None:
        before = weights(technique)
        on_step(progress)
        seen.append([mask.clone() for mask in masks(technique)])
        for old, new, mask in zip(before, weights(technique), masks(technique), strict=True):
            assert ((new != 0) & (old == 0)).sum() == 0, "what wakes is zero"
            assert abs(int((~mask).sum()) - 0.8 * mask.numel()) <= 1

    technique.on_step = watch  # type: ignore[method-assign]
    technique.prepare(family(), Words(), None)
    fit(technique)
    technique.finish()
    woken = [sum(int((new & ~old).sum()) for old, new in zip(*pair, strict=True)) for pair in pairwise(seen)]
    assert [count > 0 for count in woken] == [step % 2 == 0 and step < 9.6 for step in range(1, 12)]
    assert woken[1] > woken[7], "less and less"
    assert sum(int((w != 0).sum()) for w in weights(technique)) > 0.19 * sum(w.numel() for w in weights(technique))


def test_what_wakes_has_the_largest_gradient_and_what_goes_the_lowest_score() -> None:
    technique = prune(sparsity=0.5, steps=4, every=1, regrow=0.2, **{"schedule.start": 1.0})
    technique.prepare(family(), Words(), None)
    technique.on_step(0.0)
    before = {name: mask.mask.clone() for name, mask in technique.masks.items()}
    old = {name: latent(layer).detach().clone() for name, layer in technique.layers.items()}
    batch = next(iter(technique._batches_of_this_step()))
    free = [layer.weight.detach().clone().requires_grad_() for layer in technique.layers.values()]
    plain = family()
    for layer, weight in zip(plain.compressible().values(), free, strict=True):
        layer.weight.data.copy_(weight)
    dense = torch.autograd.grad(
        technique.total({"ce": technique.losses["ce"](Outputs(*plain.forward(batch)), None, batch["labels"], 0.0)}),
        [layer.weight for layer in plain.compressible().values()],
    )
    technique._regrow(1.0, share=0.2)
    for (name, mask), gradient in zip(technique.masks.items(), dense, strict=True):
        woken, asleep = mask.mask & ~before[name], ~mask.mask
        assert (
            woken.any()
            and (old[name][~mask.mask & before[name]].abs() <= old[name][mask.mask & before[name]].abs().max()).all()
        )
        assert gradient[woken].abs().min() >= gradient[asleep].abs().max() * (1 - 1e-4)


def test_resumed_regrowth_equals_the_straight_run(tmp_path: Path) -> None:
    def technique() -> Prune:
        stage = prune(sparsity=0.75, steps=6, every=1, ramp=1.0, regrow=0.3)
        stage.prepare(family(), Words(), None)
        return stage

    straight, interrupted, resumed = technique(), technique(), technique()
    fit(straight)
    fit(interrupted, stop=3).save_checkpoint(tmp_path / "checkpoint.ckpt")
    fit(resumed, resume=tmp_path / "checkpoint.ckpt")
    assert straight.finish() == resumed.finish()
    for one, other in zip(straight.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


# --- layers --------------------------------------------------------------------------------------


def test_only_layers_that_are_asked_for_are_pruned() -> None:
    technique = prune(sparsity=0.5, min_coverage=0.01, include="['*.SelfAttention.*']", exclude="['decoder.*', '*.o']")
    technique.prepare(family(), Words(), None)
    technique.finish()
    dense = family().compressible()
    assert sorted(technique.layers) == [f"encoder.block.0.layer.0.SelfAttention.{letter}" for letter in "kqv"]
    for name, layer in technique.family.compressible().items():
        assert torch.equal(layer.weight, dense[name].weight) is (name not in technique.layers)


@pytest.mark.parametrize("what", ["include", "exclude"])
def test_a_pattern_of_names_that_matches_nothing_lists_those_that_exist(what: str) -> None:
    said = rf"{what}: no layer is called '\*\.mlp'; there are encoder\.block\.0\.layer\.0\.SelfAttention\.q, "
    with pytest.raises(ValueError, match=said):
        prune(**{what: "['*.mlp']"}).prepare(family(), Words(), None)


def test_no_layer_left() -> None:
    with pytest.raises(ValueError, match="include and exclude leave no layer of encoder"):
        prune(exclude="['*']").prepare(family(), Words(), None)


SENSITIVITY = "+allocation@pipeline.prune.allocation=sensitivity"


@pytest.mark.parametrize("steps", [0, 3])
def test_an_allocation_meets_the_target_over_all_and_its_own_in_each_layer(steps: int) -> None:
    technique = prune(SENSITIVITY, sparsity=0.5, steps=steps, every=1, **{"allocation.rows": 2})
    technique.prepare(family(), Words(), None)
    if steps:
        fit(technique)
    technique.finish()
    zeros = {name: int((layer.weight == 0).sum()) for name, layer in technique.layers.items()}
    sizes = {name: layer.weight.numel() for name, layer in technique.layers.items()}
    assert abs(sum(zeros.values()) - 0.5 * sum(sizes.values())) <= 1
    assert all(zeros[name] == round(share * sizes[name]) for name, share in technique.targets.items())
    assert len(set(technique.targets.values())) > 1 and max(technique.targets.values()) < 0.91


def test_an_allocation_is_resumed_and_not_scanned_for_again(tmp_path: Path) -> None:
    def technique() -> Prune:
        stage = prune(SENSITIVITY, sparsity=0.5, steps=4, every=1, ramp=1.0, **{"allocation.rows": 2})
        stage.prepare(family(), Words(), None)
        return stage

    straight, interrupted, resumed = technique(), technique(), technique()
    fit(straight)
    fit(interrupted, stop=2).save_checkpoint(tmp_path / "checkpoint.ckpt")
    resumed.allocation.scan = None  # type: ignore[union-attr,method-assign,assignment]
    fit(resumed, resume=tmp_path / "checkpoint.ckpt")
    assert straight.finish() == resumed.finish()
    for one, other in zip(straight.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1.0"),
        ({"sparsity": -0.1}, r"sparsity must be in \[0, 1\), got -0.1"),
        ({"pattern.scope": "column"}, "scope must be one of layer, global, row, got 'column'"),
        ({"schedule.end": 0.5}, "schedule must end at 1"),
        ({"every": 0}, "every must be >= 1 step, got 0"),
        ({"ramp": 0}, r"ramp must be in \(0, 1\], got 0"),
        ({"regrow": 1.0}, r"regrow must be in \[0, 1\), got 1.0"),
        ({"regrow": 0.3}, "regrow needs training between updates: set steps"),
    ],
)
def test_wrong_values_are_refused_by_the_constructor(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(**settings)


def test_n_m_refuses_a_target_between_and_rows_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"the nearest is 0\.5 \(2:4\)"):
        prune(NM, sparsity=0.6)
    with pytest.raises(ValueError, match=r"layer 'encoder\..*': m must divide .* got 5 for rows of 32"):
        prune(NM, sparsity=0.4, **{"pattern.m": 5}).prepare(family(), Words(), None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pipeline.prune.pattern.scope=global"], "allocation needs layers that do not compete"),
        ([NM], "allocation needs a pattern that takes any sparsity, NM does not"),
        (["pipeline.prune.sparsity=0.95"], "sparsity 0.95 is more than the last of allocation.sparsities, 0.9"),
        (["pipeline.prune.allocation.rows=0"], "rows of training text to scan with must be >= 1, got 0"),
        (["pipeline.prune.allocation.sparsities=[0.5,0.3]"], r"sparsities must ascend within \(0, 1\), got"),
    ],
    ids=str,
)
def test_allocations_that_cannot_be_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(SENSITIVITY, *overrides)


def test_an_allocation_of_bits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"allocation must be sensitivity or null .*, got MixedPrecision"):
        prune("+allocation@pipeline.prune.allocation=mixed_precision")


def test_an_allocation_needs_scores_before_training() -> None:
    with pytest.raises(ValueError, match="allocation scans before Movement has scores"):
        prune(SENSITIVITY, by("movement"), steps=2)


def test_gates_do_not_regrow() -> None:
    with pytest.raises(ValueError, match="gates of L0 open and shut by themselves: set regrow=0"):
        prune(by("l0"), steps=2, regrow=0.3)


def test_taylor_without_a_loss() -> None:
    with pytest.raises(ValueError, match="Taylor needs the gradient of a loss"):
        prune(by("taylor"), "~pipeline.prune.losses.ce")


def test_sparsegpt_where_layers_compete() -> None:
    with pytest.raises(ValueError, match=r"SparseGPT makes up for zeros within a layer.*: set pattern\.scope=layer"):
        prune(by("sparsegpt"), **{"pattern.scope": "global"})


def test_no_linear_layer_names_what_was_looked_for_and_found() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    with pytest.raises(ValueError, match=r"looked for Linear in the blocks of GPT2LMHeadModel, found .*Conv1D \(4\)"):
        Reach(include=["*"], exclude=[], min_coverage=0.01).layers(CausalLm(gpt2, Bytes().build([]), max_length=16))


def test_too_little_coverage() -> None:
    with pytest.raises(ValueError, match=r"compressible layers hold \d+\.\d% .* min_coverage is 99\.0%"):
        prune(min_coverage=0.99).prepare(family(), Words(), None)


def test_a_target_that_is_reached_already_changes_nothing() -> None:
    technique = prune(sparsity=0.5)
    technique.prepare(family(), Words(), None)
    technique.finish()
    with pytest.raises(ValueError, match=r"sparsity 40.0% would change nothing, the model has 50.0% zeros already"):
        prune(sparsity=0.4).prepare(technique.family, Words(), None)


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        ("magnitude", r"Magnitude gave scores of layer '.*' that are not finite"),
        ("sparsegpt", r"layer '.*\.q': its weight holds NaN or infinity"),
    ],
)
def test_scores_that_are_not_finite(importance: str, message: str) -> None:
    technique = prune(by(importance), sparsity=0.5)
    model = family()
    nn.init.constant_(next(iter(model.compressible().values())).weight, float("nan"))
    technique.prepare(model, Words(), None)
    with pytest.raises(ValueError, match=message):
        technique.finish()
