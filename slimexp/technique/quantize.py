"""Integer weights and activations: quantization-aware training, or one-shot after training."""

from collections.abc import Callable, Sequence
from typing import Unpack

import torch
from transformers import PreTrainedConfig

from slimexp.attachment import INPUT, attach, attached
from slimexp.data.base import Corpus
from slimexp.model.base import Family
from slimexp.quantizer.base import Quantizer
from slimexp.quantizer.packing import require_loadable
from slimexp.technique.batches import calibration_batches
from slimexp.technique.coverage import coverage, covered_layers, latent
from slimexp.technique.finetune import Finetune, Training
from slimexp.technique.gptq import GPTQ
from slimexp.technique.post_training import round_weights, smooth
from slimexp.technique.smoothing import Smoothing


class Quantize(Finetune):
    """Fake-quantize every compressible layer, over masks that are there, and train through it.

    ``steps: 0`` is post-training quantization. What is trained is what ``quantizer.packing`` writes.

    Args:
        quantizer: Partial of a quantizer for weights, awaiting ``bits`` and ``group_size``.
        activation_quantizer: Partial of a quantizer for the layers' inputs.
        bits: Width of the weights, 2 to 8.
        group_size: Neighbours in a row of a weight that share a scale; ``None`` for one scale per
            output channel.
        activation_bits: 8, or ``None`` to leave activations in float.
        smoothing: Scales channels before anything is rounded; ``None``: not.
        rounding: Rounds the weights with what training text shows of their inputs; ``None``: to nearest.
        start: Share of the steps after which rounding is on, in [0, 1].
        min_coverage: Least share of the model's parameters that the layers must hold.
        training: See ``Training``.
    """

    attaches = True

    def __init__(
        self,
        *,
        quantizer: Callable[..., Quantizer],
        activation_quantizer: Callable[..., Quantizer],
        bits: int,
        group_size: int | None,
        activation_bits: int | None,
        smoothing: Smoothing | None,
        rounding: GPTQ | None,
        start: float,
        min_coverage: float,
        **training: Unpack[Training],
    ) -> None:
        super().__init__(**training)
        quantizer(bits=bits, group_size=group_size)  # refuses wrong values now, not when the stage starts
        if activation_bits not in (8, None):
            raise ValueError(f"activation_bits must be 8, or null to leave activations in float, got {activation_bits}")
        if not 0 <= start <= 1:
            raise ValueError(f"start must be in [0, 1], got {start}")
        self.quantizer = quantizer
        self.activation_quantizer = activation_quantizer
        self.bits = bits
        self.group_size = group_size
        self.activation_bits = activation_bits
        _check_calibrated(smoothing, rounding, activation_bits=activation_bits)
        self.smoothing = smoothing
        self.rounding = rounding
        self.start = start
        self.min_coverage = min_coverage

    def validate(self, config: PreTrainedConfig, before: Sequence[Finetune]) -> None:
        require_loadable(config, bits=self.bits, activation_bits=self.activation_bits)
        if any(isinstance(stage, Quantize) for stage in before):
            raise ValueError("a pipeline quantizes once: remove one of its quantize stages")

    def prepare(self, family: Family, corpus: Corpus, teacher: Family | None) -> None:
        super().prepare(family, corpus, teacher)
        if taken := [place.module for place, a in attached(family.model) if isinstance(a, Quantizer)]:
            raise ValueError(f"the model is quantized already (e.g. '{taken[0]}'): quantize once per pipeline")
        self.layers = covered_layers(family, min_coverage=self.min_coverage)
        self.quantizers: list[Quantizer] = []
        for name, layer in self.layers.items():
            weight = latent(layer)
            on_weight = self.quantizer(bits=self.bits, group_size=self.group_size)
            try:
                on_weight.granularity.split(weight)
            except ValueError as error:
                raise ValueError(f"layer '{name}': {error}") from error
            self._attach(layer, "weight", on_weight.to(weight.device))
            if self.activation_bits is not None:
                on_input = self.activation_quantizer(bits=self.activation_bits, group_size=None)
                self._attach(layer, INPUT, on_input.to(weight.device))
        self._calibrate()

    def on_step(self, progress: float) -> None:
        for quantizer in self.quantizers:
            quantizer.active = progress >= self.start

    def finish(self) -> dict[str, float]:
        self.on_step(1.0)
        return {"share": coverage(self.family, self.layers), "bits": float(self.bits)} | self.reached

    def _calibrate(self) -> None:
        """What is done to the weights once, before any training."""
        self.reached: dict[str, float] = {}
        on_weights = {name: self._on_weight(layer) for name, layer in self.layers.items()}
        device = self.workplace or self.family.device
        for quantizer in self.quantizers:
            quantizer.active = False
        if self.smoothing is not None:
            batches = list(calibration_batches(self.corpus, self.family, rows=self.smoothing.rows, seed=self.seed))
            share = smooth(self.smoothing, self.family, self.layers, on_weights, batches, device=device)
            self.reached["smoothed"] = share
        for quantizer in self.quantizers:
            quantizer.active = quantizer not in on_weights.values() or self.rounding is None
        if self.rounding is not None:
            batches = list(calibration_batches(self.corpus, self.family, rows=self.rounding.rows, seed=self.seed))
            round_weights(self.rounding, self.family, self.layers, on_weights, batches, device=device)

    @staticmethod
    def _on_weight(layer: torch.nn.Module) -> Quantizer:
        return next(a for place, a in attached(layer) if place.tensor == "weight" and isinstance(a, Quantizer))

    def _attach(self, layer: torch.nn.Module, tensor: str, quantizer: Quantizer) -> None:
        attach(layer, tensor, quantizer)
        self.quantizers.append(quantizer)


def _check_calibrated(smoothing: Smoothing | None, rounding: GPTQ | None, *, activation_bits: int | None) -> None:
    """Refuse what would have no effect."""
    if smoothing is None:
        return
    name = type(smoothing).__name__
    if smoothing.activations and activation_bits is None:
        raise ValueError(f"{name} is for quantized activations: set activation_bits=8, or choose awq")
    if smoothing.clip and rounding is not None:
        raise ValueError(
            f"{name} and {type(rounding).__name__} would both choose the ranges of weights: set smoothing.clip=false"
        )
