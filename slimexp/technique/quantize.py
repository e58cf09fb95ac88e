"""Integer weights and activations: quantization-aware training, or one-shot after training."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import torch
from transformers import PreTrainedConfig

from slimexp.allocation.mixed_precision import MixedPrecision
from slimexp.calibration.divergence import Divergence
from slimexp.calibration.input_samples import input_values
from slimexp.calibration.observe import check_called, visiting
from slimexp.data.base import Corpus
from slimexp.format.pack import before, require_loadable
from slimexp.model.base import Batch, Family
from slimexp.model.cache import require_cache, round_cache
from slimexp.model.layer import LayerSelector, check_finite, coverage, latent
from slimexp.quantizer.base import Quantizer
from slimexp.record.figures import OF_LAYER
from slimexp.rounding.gptq import GPTQ
from slimexp.smoothing.base import Smoothing
from slimexp.technique.batches import calibration_batches
from slimexp.technique.finetune import Finetune, Training
from slimexp.technique.post_training import round_weights, scaled_layers, smooth
from slimexp.weight.attachment import INPUT, attach, attached


class Quantize(Finetune):
    """Fake-quantize compressible layers, over masks that are there, and train through it.

    ``steps: 0`` is post-training quantization. What is trained is what ``quantizer.packing`` writes.

    Args:
        quantizer: Partial of a quantizer for weights, awaiting ``bits``, ``group_size`` and ``symmetric``.
        activation_quantizer: Partial of a quantizer for the layers' inputs; one that is not dynamic is calibrated on
            training text before anything is rounded.
        bits: Width of the weights, 2 to 8; with ``allocation`` what they take together, in bits per weight.
        group_size: Neighbours in a row of a weight that share a scale; ``None`` for one scale per
            output channel, ``"tensor"`` for one per weight.
        symmetric: Whether the integer 0 stands for zero in weights; else every scale has a zero point.
        activation_bits: 8, or ``None`` to leave activations in float.
        cache_bits: 8 or 4 for the keys and values that self-attention caches, ``None`` for floats.
        calibration_rows: Training rows that the activations' ranges are taken from, >= 1.
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
    allocated: dict[str, float]  # figure/layer, of the scan and what it led to

    def __init__(
        self,
        *,
        quantizer: Callable[..., Quantizer],
        activation_quantizer: Callable[..., Quantizer],
        bits: int,
        group_size: int | str | None,
        symmetric: bool,
        activation_bits: int | None,
        cache_bits: int | None,
        calibration_rows: int,
        allocation: MixedPrecision | None,
        smoothing: Smoothing | None,
        rounding: GPTQ | None,
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
        # What is wrong is refused now, not at its turn.
        self.quantizer = partial(quantizer, group_size=group_size, symmetric=symmetric)
        on_weights = self.quantizer(bits=bits)
        _check_rounds_weights(on_weights)
        if activation_bits not in (8, None):
            raise ValueError(f"activation_bits must be 8, or null to leave activations in float, got {activation_bits}")
        self.activation_quantizer = partial(activation_quantizer, bits=activation_bits, group_size=None)
        if activation_bits is not None:
            on_inputs = self.activation_quantizer()
            _check_rounds_activations(on_inputs)
            _check_multiplied(on_weights, on_inputs)
        if cache_bits not in (8, 4, None):
            raise ValueError(f"cache_bits must be 8, 4, or null to cache keys and values as floats, got {cache_bits}")
        if not 0 <= start <= 1:
            raise ValueError(f"start must be in [0, 1], got {start}")
        if freeze is not None and not start <= freeze <= 1:
            raise ValueError(f"freeze must be in [start, 1] = [{start}, 1], or null for never, got {freeze}")
        if embeddings and (activation_bits is not None or allocation is not None):
            raise ValueError(
                "transformers loads quantized embeddings only where activations are left in float and all layers have "
                "one width: set activation_bits=null and allocation=null, or embeddings=false"
            )
        if calibration_rows < 1:
            raise ValueError(f"calibration_rows must be >= 1, got {calibration_rows}")
        self.bits = bits
        self.symmetric = symmetric
        self.activation_bits = activation_bits
        self.cache_bits = cache_bits
        self.calibration_rows = calibration_rows
        _check_calibrated(smoothing, rounding, activation_bits=activation_bits)
        if allocation is not None:
            _check_allocation(allocation, bits, on_weights)
        self.allocation = allocation
        self.smoothing = smoothing
        self.rounding = rounding
        self.start = start
        self.frozen_from = freeze  # Lightning has a method freeze
        self.embeddings = embeddings
        self.reach = LayerSelector(
            include=include,
            exclude=exclude,
            min_coverage=min_coverage,
            min_block_coverage=min_block_coverage,
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
        if self.allocation is not None and config.is_encoder_decoder:
            raise ValueError("transformers loads an encoder-decoder with one width for all layers: set allocation=null")
        if self.cache_bits is not None:
            require_cache(config, self.cache_bits)
        if any(isinstance(stage, Quantize) for stage in before):
            raise ValueError("a pipeline quantizes once: remove one of its quantize stages")

    def inspect(self, outline: Family) -> None:
        layers = self.reach.layers(outline)
        check_called(outline, layers)
        if self.embeddings:
            layers |= _embeddings(outline)
        for name, layer in layers.items():
            self._quantizer_of(name, layer, self.bits)
        if self.smoothing is not None:
            scaled_layers(outline, layers)

    @property
    def row_multiple(self) -> int:
        size = self.quantizer.keywords["group_size"]
        return size if isinstance(size, int) else 1

    def inspect_rows(self, outline: Family, changed: Collection[str]) -> None:
        for name, layer in self.reach.named(outline).items():
            if name not in changed:
                self._quantizer_of(name, layer, self.bits)

    def prepare(self, family: Family, corpus: Corpus, teacher: Family | None) -> None:
        super().prepare(family, corpus, teacher)
        if taken := [place.module for place, a in attached(family.model) if isinstance(a, Quantizer)]:
            raise ValueError(f"the model is quantized already (e.g. '{taken[0]}'): quantize once per pipeline")
        self.layers = self.reach.layers(family)
        check_finite(self.layers)
        self.allocated = {}
        self.widths = self._widths()
        self.on_weights = {name: self._on_weight(name, layer) for name, layer in self.layers.items()}
        self.smoothed = self._smooth()
        blocks = dict(self.layers)
        if self.embeddings:
            self._add(_embeddings(family))
        self._start([name for name in self.layers if self.rounding is None or name not in blocks])
        self.on_inputs = self._on_inputs()
        for name, layer in self.layers.items():
            attach(layer, "weight", self.on_weights[name])
            if name in self.on_inputs:
                attach(layer, INPUT, self.on_inputs[name])
        if self.rounding is not None:
            for name in blocks:
                self.on_weights[name].active = False  # until its turn has come
            batches, device = self._calibration_batches(self.rounding.rows), self._where()
            round_weights(self.rounding, family, blocks, self.on_weights, batches, device=device)
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
                quantizer.freeze(before(self.layers[name], quantizer))

    def finish(self) -> dict[str, float]:
        self.on_step(1.0)
        held = {latent(layer): self.widths[name] for name, layer in self.layers.items()}  # tied weights once
        bits = sum(weight.numel() * width for weight, width in held.items()) / sum(weight.numel() for weight in held)
        return {"share": coverage(self.family, self.layers), "bits": bits, **self.smoothed, **self.allocated}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["quantize"] = {"widths": self.widths, "allocated": self.allocated}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What was chosen before the interruption stays: sums may differ when they are taken again."""
        super().on_load_checkpoint(checkpoint)
        own = checkpoint["quantize"]
        self.widths, self.allocated = own["widths"], own["allocated"]
        for name, quantizer in self.on_weights.items():
            quantizer.bits = self.widths[name]

    def _widths(self) -> dict[str, int]:
        """Bits of each layer's weights; what was found on the way goes into ``allocated``."""
        if self.allocation is None:
            return dict.fromkeys(self.layers, self.bits)
        weights = {name: latent(layer) for name, layer in self.layers.items()}
        with visiting(self.family.model, self._where()):
            costs = self.allocation.scan(
                weights,
                quantizer=lambda bits: self.quantizer(bits=bits),
                cost=Divergence(self.family, self._calibration_batches(self.allocation.rows)),
            )
        tried = {*self.allocation.widths, self.bits}
        stored = {name: {bits: self._stored(name, bits) for bits in tried} for name in weights}
        widths = self.allocation.choose(costs, stored, sum(taken[self.bits] for taken in stored.values()))
        self.allocated = {f"bits{OF_LAYER}{name}": float(width) for name, width in widths.items()}
        for place, width in enumerate(self.allocation.widths):
            self.allocated |= {f"rounded_to_{width}_nats{OF_LAYER}{name}": costs[name][place] for name in costs}
        return widths

    def _add(self, embeddings: Mapping[str, torch.nn.Module]) -> None:
        """Quantize these too, those that share a weight by one quantizer."""
        self.widths |= dict.fromkeys(embeddings, self.bits)
        self.layers |= embeddings
        of_weight: dict[torch.Tensor, Quantizer] = {}
        for name, module in embeddings.items():
            if (weight := latent(module)) not in of_weight:
                of_weight[weight] = self._on_weight(name, module)
            self.on_weights[name] = of_weight[weight]

    def _stored(self, name: str, bits: int) -> int:
        """Bits that a layer's weight takes in an artifact, in rows of whole words, with its scales and zero points."""
        weight, quantizer = latent(self.layers[name]), self._quantizer_of(name, self.layers[name], bits)
        scales = quantizer.granularity.split(torch.empty_like(weight, device="meta")).shape[:-1].numel()
        rows, columns = weight.shape
        return rows * -(-columns * bits // 32) * 32 + scales * (quantizer.scale_bits + (0 if self.symmetric else bits))

    def _on_weight(self, name: str, layer: torch.nn.Module) -> Quantizer:
        return self._quantizer_of(name, layer, self.widths[name]).to(latent(layer).device)

    def _quantizer_of(self, name: str, layer: torch.nn.Module, bits: int) -> Quantizer:
        """The quantizer of a layer's weight, which it fits."""
        quantizer = self.quantizer(bits=bits)
        try:
            quantizer.granularity.split(torch.empty_like(latent(layer), device="meta"))
        except ValueError as error:
            raise ValueError(f"layer '{name}': {error}") from error
        return quantizer

    def _smooth(self) -> dict[str, float]:
        if self.smoothing is None:
            return {}
        batches, device = self._calibration_batches(self.smoothing.rows), self._where()
        share = smooth(self.smoothing, self.family, self.layers, self.on_weights, batches, device=device)
        print(f"  channels of {share:.0%} of the weights scaled by {type(self.smoothing).__name__}")
        return {"smoothed": share}

    def _start(self, names: Iterable[str]) -> None:
        """Let what is learned start from the weights; elsewhere a grid is fitted as rounding goes along."""
        for name in names:
            quantizer = self.on_weights[name]
            if quantizer.frozen:
                continue
            try:
                quantizer.start(self.layers[name].weight.detach())  # type: ignore[operator]
            except ValueError as error:
                raise ValueError(f"layer '{name}': {error}") from error

    def _calibration_batches(self, rows: int) -> list[Batch]:
        return list(calibration_batches(self.corpus, self.family, rows=rows, seed=self.seed))

    def _where(self) -> torch.device:
        return self.workplace or self.family.device

    def _on_inputs(self) -> Mapping[str, Quantizer]:
        """Quantizers of the layers' inputs, calibrated where they need it."""
        if self.activation_bits is None:
            return {}
        quantizers = {name: self.activation_quantizer().to(latent(layer).device) for name, layer in self.layers.items()}
        if not all(quantizer.dynamic for quantizer in quantizers.values()):
            batches = self._calibration_batches(self.calibration_rows)
            for name, values in input_values(self.family, self.layers, batches).items():
                quantizers[name].start(values)
        return quantizers


def _embeddings(family: Family) -> dict[str, torch.nn.Module]:
    """Name -> module of the embeddings that add up to the first hidden state, and of all that share a weight with one.

    T5's embedding of relative positions, within a block and as wide as there are heads, is none of these.
    """
    modules = dict(family.model.named_modules())
    width = latent(family.model.get_input_embeddings()).shape[1]
    in_blocks = {module for stack in family.blocks().values() for module in stack.modules()}
    first = {
        latent(module)
        for module in modules.values()
        if isinstance(module, torch.nn.Embedding) and module not in in_blocks and latent(module).shape[1] == width
    }
    sharing = (torch.nn.Embedding, torch.nn.Linear)
    return {name: module for name, module in modules.items() if isinstance(module, sharing) and latent(module) in first}


def _check_rounds_weights(quantizer: Quantizer) -> None:
    if not quantizer.on_weights:
        raise ValueError(
            f"{type(quantizer).__name__} rounds activations: for weights choose minmax, mse, percentile, hqq, ternary, "
            "lsq or fp8"
        )


def _check_rounds_activations(quantizer: Quantizer) -> None:
    if not quantizer.on_activations:
        raise ValueError(
            f"{type(quantizer).__name__} rounds weights: for activations choose token (a scale per token), static "
            "(calibrated), lsq or pact (learned), beside fp8 weights fp8_token or fp8_static, "
            "or set activation_bits to null"
        )


def _check_multiplied(weights: Quantizer, inputs: Quantizer) -> None:
    if weights.stored != inputs.stored:
        raise ValueError(
            f"{type(weights).__name__} and {type(inputs).__name__}: no kernel multiplies integers with fp8; choose "
            "quantizer fp8 with activation_quantizer fp8_token or fp8_static, or both of integers, "
            "or set activation_bits to null"
        )


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


def _check_allocation(allocation: MixedPrecision, bits: int, quantizer: Quantizer) -> None:
    """Refuse an allocation of something else, one that cannot meet the budget, and widths that no grid has."""
    if not isinstance(allocation, MixedPrecision):
        raise ValueError(
            f"allocation must be mixed_precision or null where weights are quantized, got {type(allocation).__name__}"
        )
    if not {*allocation.widths} <= {*quantizer.widths}:
        raise ValueError(
            f"{type(quantizer).__name__} has {quantizer.span()} bits alone, so allocation cannot give layers "
            f"{allocation.widths}: set allocation=null, or choose another quantizer, such as minmax"
        )
    if bits < allocation.widths[0]:
        raise ValueError(
            f"bits={bits} is less than the first of allocation.widths, {allocation.widths[0]}: add a smaller one"
        )
