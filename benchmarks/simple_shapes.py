"""Simple ways to so many bytes, without a search: whole blocks go, or as much of every block."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from slimexp import artifact
from slimexp.candidate import cost, trial
from slimexp.candidate.choice import Candidate, Choices, Place, choices
from slimexp.candidate.precision import FLOAT
from slimexp.candidate.score import Added
from slimexp.candidate.solve import Program
from slimexp.config.check import check
from slimexp.config.composition import compose
from slimexp.cut.ranking import rank
from slimexp.importance.magnitude import Magnitude
from slimexp.model.base import Batch, Family
from slimexp.pipeline import machine, preflight
from slimexp.technique.batches import training_batches

ROWS = 32  # of training text, for the influence of blocks
WIDTHS = 32  # number of shares of the heads and neurons that may stay


@dataclass(frozen=True)
class Simple:
    """The dense model, and what the simple arms cut out of it.

    Attributes:
        family: The dense model.
        mb: Its megabytes on disk.
        choices: Blocks that may go, and numbers of heads and neurons.
        bits: Of all weights of blocks.
        stages: Stages of the pipeline.
        price: Megabytes of candidates.
        blocks: Blocks, least influential first.
    """

    family: Family
    mb: float
    choices: Choices
    bits: int
    stages: trial.Stages
    price: cost.Table
    blocks: Sequence[Place]

    @classmethod
    def of(cls, words: Sequence[str], bits: int) -> "Simple":
        """From the overrides of a search; the weights of blocks will have ``bits``."""
        cfg = compose(trial.base(words))
        check(cfg)
        parts, stages = preflight.training(cfg), trial.Stages.of(cfg.pipeline)
        corpus, dtype = parts.corpus, getattr(torch, cfg.save_dtype)
        family = parts.source.load(task=corpus.task, texts=corpus.texts, labels=corpus.labels)
        torch.nn.Module.to(family.model.eval(), machine.device(cfg.trainer))
        shares = [number / WIDTHS for number in range(1, WIDTHS)]
        quantize = None if stages.quantize is None else cfg.pipeline[stages.quantize]
        group = None if quantize is None else quantize.get("group_size")
        options = choices(
            family.model.config, remove=True, heads=shares, ffn=shares, hidden=[], bits=[FLOAT, bits],
            multiple=group if isinstance(group, int) else 64, uniform=True,
        )  # fmt: skip
        whole = Candidate.of(_widest(options), dict.fromkeys(options.places, FLOAT))
        mb = _mb(family, dtype)
        price = cost.disk(family, options, quantize=quantize, dtype=dtype, probe=whole, probe_mb=mb)

        def text(rows: int) -> DataLoader[Batch]:
            return training_batches(corpus, family, batch_size=1, seed=cfg.seed, start=0, stop=rows, workers=0)

        ranking = rank(
            family, Magnitude(), norm=2, widths=(), batches=text, rows=ROWS, objective=lambda batch: batch["labels"]
        )
        [(stack, order)] = ranking.blocks.items()
        blocks = [Place(stack, index) for index in reversed(order)]
        return cls(family, mb, options, bits, stages, price, blocks)

    def depth(self, most: float) -> Candidate:
        """The model without its blocks of least influence, as many as must go to fit in ``most`` megabytes."""
        for count in range(len(self.blocks)):
            stay = [place for place in self.choices.places if place not in self.blocks[:count]]
            found = Candidate.of(_widest(self.choices), dict.fromkeys(stay, self.bits))
            if self._fits(found, most):
                return found
        raise ValueError(f"one block does not fit in {most:.4g} MB: raise --shares")

    def uniform(self, most: float) -> list[Candidate]:
        """Models of all blocks, each of which has as many heads and neurons: of each number of heads the widest.

        Only those that fit in ``most`` megabytes.
        """
        bits = dict.fromkeys(self.choices.places, self.bits)
        every = [Candidate.of(widths, bits) for widths in self.choices.combinations]
        widest: dict[int | None, Candidate] = {}
        for found in sorted((one for one in every if self._fits(one, most)), key=lambda one: one.ffn or 0):
            widest[found.heads] = found
        if not widest:
            raise ValueError(f"no number of heads and neurons fits in {most:.4g} MB: raise --shares")
        return list(widest.values())

    def overrides(self, candidate: Candidate) -> tuple[str, ...]:
        """By which a training makes a candidate."""
        return tuple(trial.overrides(candidate, self.choices, self.stages, self.family))

    def _fits(self, candidate: Candidate, most: float) -> bool:
        return self._program.cost(candidate, self.price) <= most

    @cached_property
    def _program(self) -> Program:
        return Program(self.choices, Added({}))


def _widest(options: Choices) -> dict[str, int]:
    """The dense model's own widths."""
    return {name: sizes[0] for name, sizes in options.widths.items()}


def _mb(family: Family, dtype: torch.dtype) -> float:
    """Megabytes of a model's artifact."""
    with tempfile.TemporaryDirectory() as folder:
        artifact.save(family, Path(folder) / "model", dtype=dtype, stages=[])
        return cost.artifact_mb(Path(folder) / "model")
