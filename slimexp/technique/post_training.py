"""Quantization after training, block by block: channels are smoothed, then weights rounded."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from slimexp.calibration.block_by_block import calibrate_blocks
from slimexp.cut.recognition import recognize
from slimexp.host.progress import counted
from slimexp.model.base import Batch, Family
from slimexp.model.experts import is_stack, matrices
from slimexp.model.layer import Layer, latent, matrix, place
from slimexp.model.scaling import Scaling, scalings
from slimexp.quantizer.base import Quantizer
from slimexp.quantizer.grid import Grid, stacked
from slimexp.rounding.base import Rounding
from slimexp.smoothing.base import Readers, Smoothing


@torch.no_grad()
def smooth(
    smoothing: Smoothing,
    family: Family,
    layers: Mapping[str, Layer],
    quantizers: Mapping[str, Quantizer],
    batches: Sequence[Batch],
    *,
    device: torch.device,
) -> float:
    """Scale channels so that the model stays what it is, and narrow ranges of weights where ``smoothing.clip`` is set.

    A layer whose inputs nothing can scale (behind a post-norm, say, whose output goes past it too) is left alone.

    Args:
        smoothing: Chooses the scales and the ranges.
        family: The model, in float: none of its quantizers is active.
        layers: The layers to be quantized, by name.
        quantizers: Layer -> the quantizer of its weight; its grid is frozen where its range was narrowed.
        batches: Training text without padding.
        device: Device to compute on.

    Returns:
        Share of the layers' weights that were scaled.

    Raises:
        ValueError: No layer can be scaled, or it is not known where to scale a model of this type.
    """
    of_layer = scaled_layers(family, layers)

    def scale(statistics: Mapping[str, Tensor]) -> None:
        scaled: dict[str, Tensor] = {}
        for scaling in counted(_distinct(of_layer[name] for name in statistics if name in of_layer), "scale"):
            columns = _scale(smoothing, scaling, layers, quantizers, statistics)
            scaled |= dict.fromkeys(scaling.after, columns)
        if smoothing.clip:
            for name, statistic in counted(statistics.items(), "range of layer"):
                weight = _weight(layers[name])
                columns = scaled.get(name, weight.new_ones(weight.shape[1]))
                quantizers[name].freeze(smoothing.clipped(weight, statistic, columns, quantizers[name]).to(home))

    home = family.device
    calibrate_blocks(smoothing, family, layers, batches, device=device, update=scale)
    return sum(latent(layers[name]).numel() for name in of_layer) / sum(map(torch.numel, map(latent, layers.values())))


def scaled_layers(family: Family, layers: Mapping[str, Layer]) -> dict[str, Scaling]:
    """Layer -> the scaling of its inputs, for those of ``layers`` whose inputs can be scaled.

    Raises:
        ValueError: There are none, or it is not known where to scale a model of this type.
    """
    recognize(family.model.config)
    blocks = (block for stack in family.blocks().values() for block in stack)
    of_layer = {
        name: scaling
        for block in blocks
        for scaling in scalings(family, block)
        for name in scaling.after
        if name in layers
    }
    if not of_layer:
        raise ValueError("smoothing scales the inputs of none of the layers: set smoothing=null")
    return of_layer


@torch.no_grad()
def round_weights(
    rounding: Rounding,
    family: Family,
    layers: Mapping[str, Layer],
    quantizers: Mapping[str, Quantizer],
    batches: Sequence[Batch],
    *,
    device: torch.device,
) -> dict[str, int]:
    """Round every layer behind blocks that are rounded already, and freeze its grid.

    Every expert of a stack is rounded by the tokens that are routed to it; one that sees none, to nearest.

    Args:
        rounding: Rounds the weights.
        family: The model; quantizers of activations may be active, and shape the inputs that are observed.
        layers: The layers to be quantized, by name; zeros in their weights stay.
        quantizers: Layer -> the quantizer of its weight, which becomes active when the layer is rounded.
        batches: Training text without padding.
        device: Device to compute on.

    Returns:
        Layer, or expert of a stack as ``matrices`` names it -> number of tokens that it was rounded by.

    Raises:
        ValueError: Inputs or weights are not finite, or a layer's inputs do not allow it; names the layer.
    """
    parts = {name: matrices(name, layer) for name, layer in layers.items()}
    whole = {part: name for name, some in parts.items() for part in some}

    def round_block(statistics: Mapping[str, Tensor]) -> None:
        grids: dict[str, Grid] = {}
        for part, statistic in counted(statistics.items(), "layer"):
            layer, quantizer = parts[whole[part]][part], quantizers[whole[part]]
            weight = _weight(layer)
            try:
                new, grids[part] = rounding.round(weight, weight != 0, statistic, quantizer)
            except ValueError as error:
                raise ValueError(f"layer '{part}': {error}") from error
            matrix(layer, latent(layer)).copy_(new)
        for name in dict.fromkeys(whole[part] for part in grids):
            of_parts = [grids[part] for part in parts[name]]
            quantizers[name].keep(stacked(of_parts) if is_stack(layers[name]) else of_parts[0])
            quantizers[name].active = True

    each = {part: layer for some in parts.values() for part, layer in some.items()}
    return calibrate_blocks(rounding, family, each, batches, device=device, update=round_block)


def _scale(
    smoothing: Smoothing,
    scaling: Scaling,
    layers: Mapping[str, Layer],
    quantizers: Mapping[str, Quantizer],
    statistics: Mapping[str, Tensor],
) -> Tensor:
    """Apply a scaling; returns what each input channel of the layers was divided by, [in]."""
    weights = {name: _weight(layers[name]) for name in scaling.after if name in layers}
    statistic = statistics[next(iter(weights))]  # the layers read the same inputs
    scales = smoothing.scales(Readers(scaling, weights, statistic, quantizers))
    scaling.apply(scales)
    return scaling.spread(scales)


def _weight(layer: Layer) -> Tensor:
    """The weight that the layer multiplies with, in float32 as [out, in]; its quantizer is not active yet."""
    module, tensor = place(layer)
    return matrix(layer, getattr(module, tensor).detach()).float()


def _distinct(scalings: Iterable[Scaling]) -> list[Scaling]:
    return list({id(scaling): scaling for scaling in scalings}.values())
