"""Settings that are ``auto``: numbers that suit the model and the machine, chosen before anything is trained."""

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from slimexp.model.base import Family
from slimexp.model.reading import outline

AUTO = "auto"
Auto = Literal["auto"]

WARMUP = 0.1  # of the steps: Devlin et al. 2019, code of the fine-tuning
GROUPS = (128, 64, 32)  # neighbours that share a scale: Frantar et al. 2023 (GPTQ) use 128
MULTIPLES = (128, 64, 32, 16, 8)  # of half-precision numbers that fill the tiles of a tensor core
FEWEST_SIZES = 8  # of a width: with a coarser multiple a budget is missed by too much
ROWS = 32  # of a batch
_SHARE_OF_MEMORY = 0.6
_PER_WEIGHT = 20  # bytes: float32 weight, gradient, two moments of AdamW; teacher and copies in 16 bits
_PER_ACTIVATION = 8  # bytes of each input and output of a linear layer: itself, and what lies between such layers
_PER_LOGIT = 32  # bytes of each at once: those of student and teacher, in 16 and 32 bits, their logarithms, a gradient


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What automatic settings depend on.

    Attributes:
        parameters: Number of parameters outside of embeddings.
        is_random: Whether the weights start random.
        row_bytes: Memory that one row of a batch takes in training, at its longest, without its logits; 0 where it is
            unknown.
        row_logits: Number of logits of such a row; 0 for a model that has none at its tokens.
        logits_at_once: Number of logits in memory at once, whatever number of rows they are of.
        memory: Memory of each device that is left for its rows, in bytes.
        devices: Number of devices among which a batch is split.
    """

    parameters: int
    is_random: bool = False
    row_bytes: int = 0
    row_logits: int = 0
    logits_at_once: int = 0
    memory: int = 0
    devices: int = 1

    def bytes_of(self, rows: int) -> int:
        """Memory that a batch of so many rows takes in training."""
        return rows * self.row_bytes + _PER_LOGIT * min(rows * self.row_logits, self.logits_at_once)


def conditions(
    config: PreTrainedConfig,
    *,
    is_random: bool,
    predicts_tokens: bool,
    max_length: int,
    logits_at_once: int,
    memory: int,
    shards: int = 1,
) -> Conditions:
    """The conditions of training a model, by its config alone.

    Args:
        config: Config of the model.
        is_random: Whether its weights start random.
        predicts_tokens: Whether it gives logits over its vocabulary, at every token.
        max_length: Longest row of a batch, in tokens.
        logits_at_once: Number of logits in memory at once, of student and of teacher.
        memory: Memory of a device that trains it, in bytes.
        shards: Number of devices that weights, gradients and states are spread over.

    Raises:
        ValueError: transformers cannot build a model of this config.
    """
    model = outline(AutoModel, config, config.name_or_path or config.model_type)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    activations = sum(layer.in_features + layer.out_features for layer in layers)
    logits = getattr(config, "vocab_size", 0) if predicts_tokens else 0
    return Conditions(
        parameters=outside_embeddings(model),
        is_random=is_random,
        row_bytes=max_length * _PER_ACTIVATION * activations,
        row_logits=max_length * logits,
        logits_at_once=logits_at_once if shards == 1 else sys.maxsize,  # a sharded head has those of all rows at once
        memory=max(0, int(_SHARE_OF_MEMORY * memory) - _PER_WEIGHT * model.num_parameters() // shards),
    )


def outside_embeddings(model: PreTrainedModel) -> int:
    """Number of parameters without embeddings, and without a head as wide as a vocabulary."""
    count: int = model.num_parameters(exclude_embeddings=True)
    head = model.get_output_embeddings() if model.can_generate() else None
    if head is None or head.weight is getattr(model.get_input_embeddings(), "weight", None):
        return count
    return count - int(head.weight.numel())


def learning_rate(given: Conditions) -> float:
    """Highest learning rate of AdamW: ``6e-4 * (85e6 / parameters)^(1/3)``, a fifth of it for pretrained weights.

    The law runs through the rates of GPT-3 (Brown et al. 2020, table 2.1: 6e-4 for 85 M parameters outside of
    embeddings, 0.6e-4 for 175 B). Weights that were trained go on at less, or they would forget: SmolLM2-135M gets
    1.1e-4, a 7B Llama 2.8e-5, where 2e-5 is usual.

    Args:
        given: The conditions.
    """
    rate = 6e-4 * (85e6 / max(1, given.parameters)) ** (1 / 3)
    return float(f"{min(rate if given.is_random else rate / 5, 1e-2):.1e}")


def warmup(steps: int) -> int:
    """Number of steps in which the learning rate rises: a tenth of all."""
    return round(WARMUP * steps)


def batch_size(given: Conditions) -> int:
    """Number of rows per batch: ``ROWS``, or the multiple of the number of devices that is nearest to it.

    It is a matter of training, and of a stage's key, and so not of memory: see ``fitting_rows``.
    """
    return max(1, round(ROWS / given.devices)) * given.devices


def fitting_rows(given: Conditions, rows: int) -> int | None:
    """Number of rows that a device's memory is sure to hold at once; ``None`` where it holds its share of ``rows``."""
    share = fitting = -(-rows // given.devices)
    while fitting > 1 and given.bytes_of(fitting) > given.memory:
        fitting //= 2
    return fitting if fitting < share else None


def group_size(lengths: Collection[int], *, bits: int) -> int | None:
    """Number of neighbours that share a scale: the largest of ``GROUPS`` that divides all rows.

    Args:
        lengths: Lengths of the rows of the weights.
        bits: Width of the weights.

    Returns:
        ``None``, one scale for a whole row, where none does, and at 8 bits, which need no more.
    """
    if bits >= 8:
        return None
    return next((size for size in GROUPS if not any(length % size for length in lengths)), None)


def multiple(lengths: Collection[int]) -> int:
    """Multiple that widths are cut to: the largest of ``MULTIPLES`` that leaves every width enough sizes.

    Args:
        lengths: The widths as they are, in channels.
    """
    shortest = min(lengths, default=0)
    fine = (size for size in MULTIPLES if shortest // size >= FEWEST_SIZES and not any(n % size for n in lengths))
    return next(fine, MULTIPLES[-1])


def settled(
    optimizer: Callable[..., Any], lr_scheduler: Callable[..., Any], *, given: Conditions, steps: int
) -> tuple[Callable[..., Any], Callable[..., Any], dict[str, float]]:
    """Optimizer and schedule with numbers for what is ``auto``.

    Args:
        optimizer: Partial of an optimizer.
        lr_scheduler: Partial of a learning-rate schedule.
        given: The conditions.
        steps: Number of optimizer steps.

    Returns:
        Both partials, and key of the stage -> number, for what was ``auto``.
    """
    chosen: dict[str, float] = {}
    if keywords(optimizer).get("lr") == AUTO:
        chosen["optimizer.lr"] = learning_rate(given)
        optimizer = partial(optimizer, lr=chosen["optimizer.lr"])
    if keywords(lr_scheduler).get("num_warmup_steps") == AUTO:
        chosen["lr_scheduler.num_warmup_steps"] = warmup(steps)
        lr_scheduler = partial(lr_scheduler, num_warmup_steps=warmup(steps))
    return optimizer, lr_scheduler, chosen


def keywords(factory: object) -> Mapping[str, Any]:
    """Arguments that a partial holds; none where it is no partial."""
    return factory.keywords if isinstance(factory, partial) else {}


class Adaptive:
    """A technique whose settings may be ``auto``.

    Attributes:
        chosen: Key of a setting that was ``auto`` -> the value that was chosen for it.
        fitting_rows: Number of rows of a batch that was ``auto`` which a device is sure to hold at once; ``None`` for
            all.
    """

    chosen: dict[str, Any]
    fitting_rows: int | None = None
    steps: int
    batch_size: int
    _batch_size: int | Auto
    _optimizer: Callable[..., Any]
    _lr_scheduler: Callable[..., Any]

    def adapt(self, config: PreTrainedConfig, given: Conditions) -> None:
        """Choose values for settings that are ``auto``; those of a training that is none stay.

        Args:
            config: Configuration of the model that the run starts from.
            given: What the values depend on.
        """
        if not self.steps:
            return
        self.settle(given)
        if self._batch_size == AUTO:
            self.batch_size = self._batch_size = batch_size(given)
            self.chosen["batch_size"] = self.batch_size
            self.fitting_rows = fitting_rows(given, self.batch_size)

    def adapt_rows(self, outline: Family, lengths: Mapping[str, int]) -> None:
        """The same for settings that depend on the rows of its layers.

        Args:
            outline: The run's model, on the meta device.
            lengths: Name of a layer -> length of its rows where an earlier stage changes it to a known one.
        """

    def settle(self, given: Conditions) -> None:
        """The same for the optimizer and the schedule alone."""
        both = settled(self._optimizer, self._lr_scheduler, given=given, steps=self.steps)
        self._optimizer, self._lr_scheduler, chosen = both
        self.chosen |= chosen
