"""The compact cache: a sample of the teacher's distribution at each label, of at most so many bytes."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from slimexp.loss.base import LabelLoss, Loss, Outputs
from slimexp.loss.sample import HIGHEST, RANGE, Layout
from slimexp.model.base import Family
from slimexp.model.head import head_of
from slimexp.teacher_cache.base import Form, TeacherCache, TeacherOutputs

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)  # at which estimates are held against the teacher itself
_LOGITS = {"cpu": 2**22, "cuda": 2**25}  # at once: 32 and 256 MB of float64
_LOWEST = HIGHEST - RANGE


class Compact(TeacherCache):
    """Keeps the likeliest tokens and a sample of the others, see ``loss.sample``.

    Args:
        folder: See ``TeacherCache``.
        epochs: See ``TeacherCache``.
        bytes: Most bytes of a label.
        head: Number of likeliest tokens.
        nodes: Number of temperatures at which the mass of the others is kept, >= 2.
        lowest: Lowest temperature that a loss may ask for, > 0.
        highest: Highest temperature that a loss may ask for.
        sample_seed: Seed of the samples.

    Raises:
        ValueError: Temperatures, head, nodes or bytes are out of range.
    """

    name = "compact"

    def __init__(
        self,
        *,
        folder: str | None,
        epochs: int,
        bytes: int,
        head: int,
        nodes: int,
        lowest: float,
        highest: float,
        sample_seed: int,
    ) -> None:
        super().__init__(folder=folder, epochs=epochs)
        if not 0 < lowest < highest:
            raise ValueError(f"temperatures must be 0 < lowest < highest, got {lowest} and {highest}")
        if head < 1 or nodes < 2:
            raise ValueError(f"a compact teacher cache needs head >= 1 and nodes >= 2, got {head} and {nodes}")
        self.bytes, self.head, self.nodes = bytes, head, nodes
        self.lowest, self.highest = lowest, highest
        self.sample_seed = sample_seed
        self._layout(2**16)

    def check(self, losses: Mapping[str, Loss]) -> None:
        super().check(losses)
        for name, loss in losses.items():
            if not loss.needs_teacher:
                continue
            if not isinstance(loss, LabelLoss) or not loss.reads_samples:
                raise ValueError(
                    f"losses.{name} cannot be estimated from a sample of the teacher without bias: use "
                    "teacher_cache=exact, or another loss"
                )
            for progress in (0.0, 1.0):
                temperature = loss.scheduled(progress).get("temperature", 1.0)
                if not self.lowest <= temperature <= self.highest:
                    raise ValueError(
                        f"losses.{name}.temperature must be in {self.lowest:g}..{self.highest:g}, for which the cache "
                        f"is right, got {temperature:g}: set its lowest or highest, or use teacher_cache=exact"
                    )

    def form(self, teacher: Family, student: Family) -> Form:
        if teacher.task == "classification":
            raise ValueError("the logits of a classifier take less room than samples of them: use teacher_cache=exact")
        width = min(_width(family) for family in (teacher, student))
        if width <= self.head:
            raise ValueError(f"head of a teacher cache must be below the {width} tokens of the vocabulary")
        return Samples(self._layout(width), self.sample_seed)

    def _layout(self, vocabulary: int) -> Layout:
        """The layout whose samples fill the bytes.

        Raises:
            ValueError: They hold none.
        """
        bare = Layout(vocabulary, self.head, 0, self.nodes, self.lowest, self.highest)
        samples = (self.bytes - bare.bytes) // bare.kept_bytes
        if samples < 1:
            least = bare.bytes + bare.kept_bytes
            raise ValueError(f"bytes of a teacher cache must be >= {least} for this head and nodes, got {self.bytes}")
        return replace(bare, samples=samples)


class Samples(Form):
    """Samples of distributions.

    Args:
        layout: What a sample consists of.
        seed: Seed of the samples.
    """

    estimated = True

    def __init__(self, layout: Layout, seed: int) -> None:
        self.layout = layout
        self.seed = seed

    @property
    def head(self) -> Layout:
        return self.layout

    def settings(self) -> dict[str, Any]:
        return {"form": Compact.name, **asdict(self.layout), "sample_seed": self.seed}

    @torch.no_grad()
    def encode(self, outputs: TeacherOutputs, *, seed: int) -> Tensor:
        count = len(outputs.states)
        random = torch.Generator().manual_seed(int(np.random.SeedSequence([self.seed, seed]).generate_state(1)[0]))
        noise = torch.rand(count, 1 + self.layout.nodes + self.layout.head + self.layout.samples, generator=random)
        device = outputs.states.device
        some = max(1, _LOGITS.get(device.type, _LOGITS["cpu"]) // self.layout.vocabulary)
        parts = [slice(start, start + some) for start in range(0, count, some)]
        drawn = [draw(outputs.logits(part), self.layout, noise[part].to(device)) for part in parts]
        return torch.cat(drawn)

    def outputs(self, taught: Tensor) -> Outputs:
        return Outputs(taught, sample=self.layout.read(taught.flatten(0, -2)))

    @torch.no_grad()
    def estimates(self, student: Tensor, teacher: Tensor, kept: Tensor) -> dict[str, tuple[float, float]]:
        width, sample = self.layout.vocabulary, self.layout.read(kept)
        sums = {}
        for temperature in TEMPERATURES:
            if not self.layout.lowest <= temperature <= self.layout.highest:
                continue
            log_s, log_p = (F.log_softmax(logits[:, :width] / temperature, dim=-1) for logits in (student, teacher))
            exact = F.kl_div(log_s, log_p, log_target=True, reduction="sum")
            sums[f"{temperature:g}"] = (float(sample.divergence(student, temperature).sum()), float(exact))
        return sums


def draw(logits: Tensor, layout: Layout, noise: Tensor) -> Tensor:
    """Bytes of samples of distributions, uint8 [N, bytes].

    The samples of a token are systematic: n places at equal distances on the cumulative proposal, whose first is random
    (Madow 1949). A token is then drawn ``n q`` times in the mean, and never far from that.

    Args:
        logits: [N, V].
        layout: What a sample consists of.
        noise: Uniform in [0, 1), [N, 1 + G + K].
    """
    log_p = F.log_softmax(logits[:, : layout.vocabulary].float(), dim=-1)
    top = log_p.topk(layout.head, dim=-1).indices
    outside = log_p.scatter(1, top, -math.inf)
    inverse = layout.inverse_temperatures(logits.device)
    masses = [torch.logsumexp(outside * inverse[node], dim=-1) for node in range(layout.nodes)]
    tail = torch.stack(masses, dim=1).clamp(min=_LOWEST)
    cumulative = layout.log_proposal(outside, tail).double().exp().cumsum(-1)
    first = noise[:, :1].double()
    places = (torch.arange(layout.samples, device=logits.device) + first) / layout.samples
    sampled = torch.searchsorted(cumulative, places * cumulative[:, -1:], right=True)
    ids = torch.cat([top, sampled.clamp(max=layout.vocabulary - 1)], dim=1)
    return layout.write(ids, log_p.gather(1, ids), tail, noise[:, 1:])


def _width(family: Family) -> int:
    """Number of its logits."""
    head = head_of(family)
    if head is None:
        return int(family.model.config.get_text_config().vocab_size)
    return int(head.module.weight.shape[0])
