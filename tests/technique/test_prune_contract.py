"""What holds for every importance, in every pattern, along every schedule of conf/."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from slimexp.config.build import build
from slimexp.config.composition import CONF_DIR, compose, options
from slimexp.data.base import Corpus, Example, Split
from slimexp.importance.base import Gated, Learned
from slimexp.loss.base import Loss
from slimexp.model.causal_lm import CausalLm
from slimexp.model.tokenizer import Bytes
from slimexp.technique.prune import Prune

CFG = compose(["pipeline=prune", "trainer=fast"])
TOKENIZER = Bytes().build([])
PATTERNS: dict[str, tuple[str, dict[str, Any]]] = {
    "layer": ("unstructured", {"scope": "layer"}),
    "row": ("unstructured", {"scope": "row"}),
    "global": ("unstructured", {"scope": "global"}),
    "2:4": ("n_m", {"m": 4}),
    "block": ("block", {}),
}
assert {name for name, _ in PATTERNS.values()} == set(options("pattern"))


class FourWords(Corpus):
    """Four words to go on from."""

    task = "causal_lm"
    headline = "bits_per_byte"
    direction = "min"

    def load(self) -> Mapping[Split, Sequence[Example]]:
        rows = [Example(source=word) for word in ("one", "two", "three", "four")]
        return {"train": rows, "validation": rows, "test": rows}

    def grade(self, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        return {}

    def trivial(self, examples: Sequence[Example]) -> float:
        return 0.0


def component(group: str, name: str, **values: Any) -> Any:
    return build(OmegaConf.load(CONF_DIR / group / f"{name}.yaml"), **values)


def schedule(name: str) -> Any:
    others = {"constant": {"value": 1.0}, "step": {"values": [0.0, 1.0], "milestones": [0.5]}}
    return component("schedule", name, **others.get(name, {"start": 0.1 if name == "exponential" else 0.0, "end": 1.0}))


def family() -> CausalLm:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16,
    )  # fmt: skip
    return CausalLm(LlamaForCausalLM(config), TOKENIZER, max_length=16)


def prepared(importance: str, pattern: str, along: str = "cubic", **changes: Any) -> Prune:
    name, values = PATTERNS[pattern]
    loss: Loss = component("loss", "cross_entropy")
    parts = {
        "importance": component("importance", importance, **({"rows": 2} if rows(importance) else {})),
        "pattern": component("pattern", name, **values),
        "schedule": schedule(along),
        "losses": {"ce": loss},
    }
    numbers = {"steps": 4, "every": 1, "ramp": 0.5, "batch_size": 2, "min_coverage": 0.01, "sparsity": 0.5}
    technique = build(CFG.pipeline.prune, **parts, **numbers | changes)
    technique.prepare(family(), FourWords(), None)
    return technique


def rows(importance: str) -> bool:
    return "rows" in OmegaConf.load(CONF_DIR / "importance" / f"{importance}.yaml")


def fit(technique: Prune, **settings: Any) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    resume = settings.pop("resume", None)
    trainer = build(CFG.trainer, **{"max_steps": technique.steps, "logger": False} | settings)
    trainer.fit(technique, ckpt_path=resume, weights_only=True)
    return trainer


def living(technique: Prune) -> list[Tensor]:
    """Of every group of weights that compete, [groups, units]: which units are not zero in the weights themselves."""
    alive = [layer.weight.detach() != 0 for layer in technique.layers.values()]
    groups = [alive] if technique.pattern.across_layers else [[mask] for mask in alive]
    return [torch.cat([technique.pattern.split(mask).any(-1) for mask in group], dim=1) for group in groups]


def state(technique: Prune) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in technique.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


PAIRS = [  # what makes up for zeros within a layer has no layers that compete
    (importance, pattern)
    for importance, pattern in product(options("importance"), PATTERNS)
    if (importance, pattern) != ("sparsegpt", "global")
]
SCHEDULES = options("schedule")


def slow_unless(shown: bool) -> Any:
    return [] if shown else pytest.mark.slow


# By default every pair along one schedule, which change in turns.
COMBINATIONS = [
    pytest.param(*pair, along, id=" ".join((*pair, along)), marks=slow_unless(turn == number % len(SCHEDULES)))
    for number, pair in enumerate(PAIRS)
    for turn, along in enumerate(SCHEDULES)
]
# By default every importance in one pattern, which change in turns.
INTERRUPTED = [
    pytest.param(name, pattern, id=f"{name} {pattern}", marks=slow_unless(turn == number % len(PATTERNS)))
    for number, name in enumerate(options("importance"))
    for turn, pattern in enumerate(PATTERNS)
    if (name, pattern) in PAIRS
]


@pytest.mark.parametrize(("importance", "pattern", "along"), COMBINATIONS)
def test_reaches_the_target_to_the_weight_in_every_scope(importance: str, pattern: str, along: str) -> None:
    technique = prepared(importance, pattern, along)
    if isinstance(technique.importance, Learned | Gated):
        fit(technique)
    else:  # needs no training to score
        for step in range(technique.steps):
            technique.on_step(step / technique.steps)
    technique.finish()
    for group in living(technique):
        assert (group.sum(1) == group.shape[1] - round(0.5 * group.shape[1])).all()


@pytest.mark.parametrize(("importance", "pattern"), PAIRS, ids=map(" ".join, PAIRS))
def test_zero_strength_is_the_identity(importance: str, pattern: str) -> None:
    technique = prepared(importance, pattern, sparsity=0.0, steps=0)
    technique.finish()
    dense = family().compressible()
    assert all(torch.equal(layer.weight, dense[name].weight) for name, layer in technique.layers.items())


@pytest.mark.parametrize(("importance", "pattern"), INTERRUPTED)
def test_resume_equals_straight(importance: str, pattern: str, tmp_path: Path) -> None:
    """Interrupted in the midst of the ramp; so a run is deterministic too."""
    ends = []
    for stop in (None, 3):
        technique = prepared(importance, pattern, steps=6, every=2, ramp=0.8)
        if stop:
            fit(technique, max_steps=stop).save_checkpoint(tmp_path / "checkpoint.ckpt")
            technique = prepared(importance, pattern, steps=6, every=2, ramp=0.8)
        fit(technique, resume=tmp_path / "checkpoint.ckpt" if stop else None)
        assert technique.finish()["sparsity"] == pytest.approx(0.5, abs=0.01)
        ends.append(state(technique))
    assert same(*ends)


@pytest.mark.parametrize(
    ("importance", "pattern"),
    [
        pytest.param(name, list(PATTERNS)[number % len(PATTERNS)], marks=slow_unless(number < len(PATTERNS)))
        for number, name in enumerate(options("importance"))
    ],
)
def test_masks_survive_200_steps_of_decay_and_momentum(importance: str, pattern: str) -> None:
    technique = prepared(importance, pattern, every=1)
    fit(technique)
    technique.finish()
    before, dead = state(technique), [layer.weight == 0 for layer in technique.layers.values()]
    model, batch = technique.model, technique.family.encode([("one", None, None)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        technique._loss(batch).backward()
        optimizer.step()
    assert not same(before, state(technique))
    for layer, zeros in zip(technique.layers.values(), dead, strict=True):
        assert torch.equal(layer.weight == 0, zeros)


@pytest.mark.parametrize("importance", options("importance"))
def test_what_is_learned_needs_steps(importance: str) -> None:
    if isinstance(component("importance", importance), Learned | Gated):
        with pytest.raises(ValueError, match="is learned while training: set steps"):
            prepared(importance, "layer", steps=0)
    else:
        prepared(importance, "layer", steps=0)
