"""Integer weights and activations: quantization-aware training, or one-shot after training."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import torch
from transformers import PreTrainedConfig

from slimexp.allocation.base import BitAllocation
from slimexp.calibration.input_samples import input_values
from slimexp.calibration.observe import check_called
from slimexp.data.base import Corpus
from slimexp.host import process_group
from slimexp.host.progress import counted
from slimexp.model.base import Batch, Family
from slimexp.model.cache import require_cache, round_cache
from slimexp.model.experts import modules_of, stacks
from slimexp.model.layer import Layer, LayerSelector, check_finite, coverage, embeddings_of, latent, place
from slimexp.quantizer.base import Quantizer
from slimexp.rounding.base import Rounding
from slimexp.serialization.loadable import require_loadable
from slimexp.serialization.pack import before
from slimexp.smoothing.base import Smoothing
from slimexp.technique import automatic
from slimexp.technique.automatic import AUTO
from slimexp.technique.batches import calibration_batches
from slimexp.technique.bit_allocation import allocate_bits
from slimexp.technique.expert_figures import rounding_figures
from slimexp.technique.finetune import Finetune
from slimexp.technique.layer_quantizers import LayerQuantizers
from slimexp.technique.post_training import round_weights, scaled_layers, smooth
from slimexp.technique.quantize_refusals import (
    check_allocation,
    check_embeddings,
    check_encoder_decoder,
    check_experts,
    check_linear,
    check_numbers,
    check_quantizers,
    check_smoothing,
)
from slimexp.technique.training import Training
from slimexp.weight.attachment import INPUT, attach, attached


class Quantize(Finetune):
    """Fake-quantize compressible layers, over the masks on them, and train through it.

    ``steps: 0`` is post-training quantization. The grid that is trained on is the one that ``format.pack`` writes.

    Args:
        quantizer: Partial of a quantizer for weights, awaiting ``bits``, ``group_size`` and ``symmetric``.
        activation_quantizer: Partial of a quantizer for the layers' inputs; one that is not dynamic is calibrated on
            training text before anything is rounded.
        bits: Width of the weights, 2 to 8; with ``allocation`` the budget of all layers, in bits per weight.
        group_size: Number of neighbours in a row of a weight that share a scale; ``None`` for one scale per output
            channel, ``"tensor"`` for one per weight, ``"auto"`` for the largest of 128, 64 and 32 that divides the rows
            of all layers (at 8 bits one scale per channel); or pattern of layers' names -> number or ``None``, of which
            the first that matches a layer counts.
        symmetric: Whether the integer 0 stands for zero in weights; else every scale has a zero point.
        activation_bits: 8, or ``None`` to leave activations in float.
        cache_bits: 8 or 4 for the keys and values that self-attention caches, ``None`` for floats.
        calibration_rows: Number of rows of training text for the ranges of activations, >= 1.
        allocation: Gives each layer a width of its own, by a scan before anything is rounded; ``None``: all alike.
        smoothing: Scales channels before anything is rounded; ``None``: not.
        rounding: Rounds the weights by what training text shows of their inputs, before any training, and freezes
            their grids; ``None``: to nearest.
        start: Share of the steps after which rounding is on, in [0, 1].
        freeze: Share of the steps after which the weights' grids stay as they are, in [start, 1]; ``None`` for never.
        embeddings: Whether embeddings (of tokens, positions, segments), and a head tied to them, are quantized too.
        include: Patterns of layers' names (``*`` for anything); a layer must match one.
        exclude: Patterns of names to leave out of those.
        min_coverage: Least share of the model's parameters that the layers must hold.
        min_block_coverage: Least share that they must hold of the blocks' weights (a mixture's are mostly experts).
        training: See ``Training``.
    """

    attaches = True
    quantizes = True

    def __init__(
        self,
        *,
        quantizer: Callable[..., Quantizer],
        activation_quantizer: Callable[..., Quantizer],
        bits: int,
        group_size: int | str | Mapping[str, int | None] | None,
        symmetric: bool,
        activation_bits: int | None,
        cache_bits: int | None,
        calibration_rows: int,
        allocation: BitAllocation | None,
        smoothing: Smoothing | None,
        rounding: Rounding | None,
        start: float,
        freeze: float | None,
        embeddings: bool,
        include: Sequence[str],
        exclude: Sequence[str],
        min_coverage: float,
        min_block_coverage: float,
        **training: Unpack[Training],
    ) -> None:
        super().__init__(**training)
        chosen = None if group_size == AUTO else group_size
        self.quantizers = LayerQuantizers(partial(quantizer, symmetric=symmetric), chosen)
        self.activation_quantizer = partial(activation_quantizer, bits=activation_bits, group_size=None)
        on_weights = self.quantizers.any(bits)
        check_numbers(activation_bits, cache_bits, calibration_rows, start, freeze)
        check_quantizers(on_weights, None if activation_bits is None else self.activation_quantizer())
        if embeddings:
            check_embeddings(activation_bits, allocation, self.quantizers.sizes)
        check_smoothing(smoothing, rounding, activation_bits=activation_bits)
        check_allocation(allocation, bits, on_weights)
        self._group_size = group_size
        self.bits = bits
        self.symmetric = symmetric
        self.activation_bits = activation_bits
        self.cache_bits = cache_bits
        self.calibration_rows = calibration_rows
        self.allocation = allocation
        self.smoothing = smoothing
        self.rounding = rounding
        self.start = start
        self.frozen_from = freeze  # Lightning has a method freeze
        self.embeddings = embeddings
        self.selector = LayerSelector(
            include=include, exclude=exclude, min_coverage=min_coverage, min_block_coverage=min_block_coverage
        )

    def validate(self, config: PreTrainedConfig, before: Sequence[Finetune]) -> None:
        least = self.bits if self.allocation is None else self.allocation.widths[0]
        require_loadable(
            config,
            bits=least,
            activation_bits=self.activation_bits,
            symmetric=self.symmetric,
            embeddings=self.embeddings,
        )
        check_encoder_decoder(config, self.allocation, self.quantizers.sizes)
        if self.cache_bits is not None:
            require_cache(config, self.cache_bits)
        if any(isinstance(stage, Quantize) for stage in before):
            raise ValueError("a pipeline quantizes once: remove one of its quantize stages")

    def inspect(self, outline: Family) -> None:
        layers = self.selector.layers(outline, stacks(outline))
        check_called(outline, layers)
        check_experts(layers, self.quantizers, self.bits, self.allocation)
        if self.embeddings:
            layers |= embeddings_of(outline)
        self.quantizers.check_names(layers)
        for name, layer in layers.items():
            self.quantizers.of(name, layer, bits=self.bits)
        if self.smoothing is not None:
            scaled_layers(outline, modules_of(layers))

    def adapt_rows(self, outline: Family, lengths: Mapping[str, int]) -> None:
        check_linear(outline)  # here, for stages before this one change rows, but not what holds them
        if self._group_size != AUTO:
            return
        layers = self.selector.named(outline, stacks(outline)) | (embeddings_of(outline) if self.embeddings else {})
        rows = {lengths.get(name, latent(layer).shape[-1]) for name, layer in layers.items()}
        self._group_size = self.chosen["group_size"] = automatic.group_size(rows, bits=self.bits)
        self.quantizers = self.quantizers.sized(self._group_size)

    @property
    def keeps_stored_type(self) -> bool:
        # what a rounding leaves is found again in the 8 digits of a bfloat16, what a smoothing leaves is not
        off_bfloat16 = self.smoothing is not None or (self.rounding is not None and self.bits - self.symmetric > 7)
        return not (self.steps or self.allocation or self._observes_inputs or off_bfloat16)

    @property
    def maps_weights(self) -> bool:
        return not (self.allocation or self.smoothing or self.rounding or self._observes_inputs)

    @property
    def changes_weights(self) -> bool:
        return bool(self.steps) or self.rounding is not None or self.smoothing is not None

    @property
    def idle_parameters(self) -> bool:
        return self.start > 0 or super().idle_parameters  # learned grids have no gradient until rounding starts

    @property
    def whole_weights(self) -> str | None:
        return None if self.frozen_from is None else "whose grids freeze at whole layers in the midst of it (freeze)"

    @property
    def row_multiple(self) -> int:
        return self.quantizers.multiple

    def inspect_rows(self, outline: Family, changed: Collection[str]) -> None:
        layers = self.selector.named(outline, stacks(outline))
        self.quantizers.check_rows({name: layer for name, layer in layers.items() if name not in changed}, self.bits)

    def prepare(self, family: Family, corpus: Corpus, teacher: Family | None) -> None:
        super().prepare(family, corpus, teacher)
        self.adapt_rows(family, {})  # where no pipeline did
        if quantized := [place.module for place, a in attached(family.model) if isinstance(a, Quantizer)]:
            raise ValueError(f"the model is quantized already (e.g. '{quantized[0]}'): quantize once per pipeline")
        self.layers = self.selector.layers(family, stacks(family))
        check_experts(self.layers, self.quantizers, self.bits, self.allocation)
        self.quantizers.check_names(self.layers | (embeddings_of(family) if self.embeddings else {}))
        check_finite(self.layers)
        self.widths, self.allocated = process_group.broadcast_object(self._allocate())
        self.on_weights = {
            name: self.quantizers.of(name, layer, bits=self.widths[name]) for name, layer in self.layers.items()
        }
        self.smoothed = self._smooth()
        blocks = dict(self.layers)
        self._add_embeddings(embeddings_of(family) if self.embeddings else {})
        self._start([name for name in self.layers if self.rounding is None or name not in blocks])
        self.on_inputs = self._on_inputs()
        for name, layer in self.layers.items():
            attach(*place(layer), self.on_weights[name])
            if name in self.on_inputs:
                attach(place(layer)[0], INPUT, self.on_inputs[name])
        self.seen = {} if self.rounding is None else self._round(self.rounding, blocks)
        self.on_cache = round_cache(family.model, self.cache_bits)

    def on_step(self, progress: float) -> None:
        for quantizer in (*self.on_weights.values(), *self.on_inputs.values()):
            quantizer.active = progress >= self.start
        if self.on_cache is not None:
            self.on_cache.active = progress >= self.start
        if self.frozen_from is None or progress < self.frozen_from:
            return
        for name, quantizer in self.on_weights.items():
            if not quantizer.frozen:
                quantizer.freeze(before(*place(self.layers[name]), quantizer))

    def finish(self) -> dict[str, float]:
        self.on_step(1.0)
        widths = {latent(layer): self.widths[name] for name, layer in self.layers.items()}  # tied weights once
        bits = sum(weight.numel() * width for weight, width in widths.items()) / sum(map(torch.numel, widths))
        share = coverage(self.family, self.layers)
        return {"share": share, "bits": bits, **self.smoothed, **self.allocated, **self.seen}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["quantize"] = {"widths": self.widths, "allocated": self.allocated}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The widths chosen before the interruption stay: sums may differ when they are computed again."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint["quantize"]
        self.widths, self.allocated = saved["widths"], saved["allocated"]
        for name, quantizer in self.on_weights.items():
            quantizer.bits = self.widths[name]

    @property
    def _observes_inputs(self) -> bool:
        return self.activation_bits is not None and not self.activation_quantizer().dynamic

    def _allocate(self) -> tuple[dict[str, int], dict[str, float]]:
        """Layer -> bits of its weight; and figures of the scan for the record."""
        if self.allocation is None:
            return dict.fromkeys(self.layers, self.bits), {}
        batches, device = self._calibration_batches(self.allocation.rows), self._device_for(self.family)
        how: dict[str, Any] = {"quantizers": self.quantizers, "bits": self.bits}
        return allocate_bits(self.allocation, self.family, self.layers, **how, batches=batches, device=device)

    def _round(self, rounding: Rounding, blocks: Mapping[str, Layer]) -> dict[str, float]:
        """Round the blocks; figures of the tokens that experts were rounded by, for the record."""
        for name in blocks:
            self.on_weights[name].active = False  # until it is rounded
        family, batches = self.family, self._calibration_batches(rounding.rows)
        tokens = round_weights(rounding, family, blocks, self.on_weights, batches, device=self._device_for(family))
        return rounding_figures(family, tokens, batches)

    def _add_embeddings(self, embeddings: Mapping[str, torch.nn.Module]) -> None:
        """Give embeddings quantizers too; those that share a weight share one."""
        self.widths |= dict.fromkeys(embeddings, self.bits)
        self.layers |= embeddings
        of_weight: dict[torch.Tensor, Quantizer] = {}
        for name, module in embeddings.items():
            if (weight := latent(module)) not in of_weight:
                of_weight[weight] = self.quantizers.of(name, module, bits=self.bits)
            self.on_weights[name] = of_weight[weight]

    def _smooth(self) -> dict[str, float]:
        if self.smoothing is None:
            return {}
        batches, device = self._calibration_batches(self.smoothing.rows), self._device_for(self.family)
        share = smooth(self.smoothing, self.family, modules_of(self.layers), self.on_weights, batches, device=device)
        print(f"  channels of {share:.0%} of the weights scaled by {type(self.smoothing).__name__}")
        return {"smoothed": share}

    def _start(self, names: Iterable[str]) -> None:
        """Start learned grids from the weights; with a rounding, grids are fitted when their layer is rounded."""
        for name in counted(names, "grid of layer"):
            quantizer = self.on_weights[name]
            if quantizer.frozen:
                continue
            try:
                quantizer.start(getattr(*place(self.layers[name])).detach().float())
            except ValueError as error:
                raise ValueError(f"layer '{name}': {error}") from error

    def _calibration_batches(self, rows: int) -> list[Batch]:
        return list(calibration_batches(self.corpus, self.family, rows=rows, seed=self.seed))

    def _on_inputs(self) -> Mapping[str, Quantizer]:
        """Layer -> quantizer of its inputs, calibrated where it is not dynamic; those of experts stay floats."""
        if self.activation_bits is None:
            return {}
        layers = modules_of(self.layers)
        quantizers = {name: self.activation_quantizer().to(latent(layer).device) for name, layer in layers.items()}
        if not all(quantizer.dynamic for quantizer in quantizers.values()):
            batches = self._calibration_batches(self.calibration_rows)
            for name, values in input_values(self.family, layers, batches).items():
                quantizers[name].start(values)
        return quantizers
