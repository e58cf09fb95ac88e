"""A width for each layer by a bit allocation, within the bits that one width for all layers would take."""

from collections.abc import Mapping, Sequence

import torch

from slimexp.allocation.base import BitAllocation
from slimexp.calibration.divergence import Divergence
from slimexp.calibration.observe import visiting
from slimexp.model.base import Batch, Family
from slimexp.model.layer import Layer, latent
from slimexp.quantizer.base import Quantizer
from slimexp.record.figures import OF_LAYER
from slimexp.technique.layer_quantizers import LayerQuantizers

WORD = 32  # bits; a row of packed integers ends with a whole one


def allocate_bits(
    allocation: BitAllocation,
    family: Family,
    layers: Mapping[str, Layer],
    *,
    quantizers: LayerQuantizers,
    bits: int,
    batches: Sequence[Batch],
    device: torch.device,
) -> tuple[dict[str, int], dict[str, float]]:
    """Choose the width of each layer's weight by how far the model's answers move when that layer alone is rounded.

    Args:
        allocation: Scans the layers, and chooses.
        family: The model, in float; it is left as it was.
        layers: Layers to be quantized, by name.
        quantizers: Makes the quantizers of their weights.
        bits: The budget, as one width for all layers.
        batches: Training text without padding.
        device: Device to compute on.

    Returns:
        Layer -> width; and figures for the record: ``bits/<layer>``, and in nats what each width of it alone costs.

    Raises:
        ValueError: An answer or a cost is not finite.
    """
    costs: Mapping[str, Sequence[float]] = {name: () for name in layers}
    if allocation.scans:
        weights = {name: latent(layer) for name, layer in layers.items()}
        with visiting(family.model, device):
            cost = Divergence(family, batches)
            costs = allocation.scan(
                weights, quantizer=lambda name, width: quantizers.of(name, layers[name], bits=width), cost=cost
            )
    stored = {
        name: {
            width: stored_bits(layer, quantizers.of(name, layer, bits=width)) for width in {*allocation.widths, bits}
        }
        for name, layer in layers.items()
    }
    widths = allocation.choose(costs, stored, sum(sizes[bits] for sizes in stored.values()))
    figures = {f"bits{OF_LAYER}{name}": float(width) for name, width in widths.items()}
    for place, width in enumerate(allocation.widths if allocation.scans else ()):
        figures |= {f"rounded_to_{width}_nats{OF_LAYER}{name}": costs[name][place] for name in costs}
    return widths, figures


def stored_bits(layer: Layer, quantizer: Quantizer) -> int:
    """Bits that a layer's weight takes in an artifact, in rows of whole words, with its scales and zero points."""
    weight, bits = latent(layer), quantizer.bits
    scales = quantizer.granularity.split(torch.empty_like(weight, device="meta")).shape[:-1].numel()
    columns = weight.shape[-1]
    zero_bits = 0 if quantizer.symmetric else bits
    return weight.numel() // columns * -(-columns * bits // WORD) * WORD + scales * (quantizer.scale_bits + zero_bits)
