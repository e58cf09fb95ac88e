"""Settings that quantization refuses, before anything is loaded."""

from collections.abc import Collection, Mapping

from transformers import PreTrainedConfig

from slimexp.allocation.base import Allocation, BitAllocation
from slimexp.model.base import Family
from slimexp.model.experts import is_stack
from slimexp.model.layer import Layer
from slimexp.quantizer.base import Quantizer
from slimexp.rounding.base import Rounding
from slimexp.serialization.loadable import dequantizes_at_load
from slimexp.smoothing.base import Smoothing
from slimexp.technique.layer_quantizers import GroupSize, LayerQuantizers


def check_numbers(
    activation_bits: int | None, cache_bits: int | None, calibration_rows: int, start: float, freeze: float | None
) -> None:
    """Refuse numbers out of range.

    Raises:
        ValueError: States the rule and the value.
    """
    if activation_bits not in (8, None):
        raise ValueError(f"activation_bits must be 8, or null to leave activations in float, got {activation_bits}")
    if cache_bits not in (8, 4, None):
        raise ValueError(f"cache_bits must be 8, 4, or null to cache keys and values as floats, got {cache_bits}")
    if calibration_rows < 1:
        raise ValueError(f"calibration_rows must be >= 1, got {calibration_rows}")
    if not 0 <= start <= 1:
        raise ValueError(f"start must be in [0, 1], got {start}")
    if freeze is not None and not start <= freeze <= 1:
        raise ValueError(f"freeze must be in [start, 1] = [{start}, 1], or null for never, got {freeze}")


def check_quantizers(on_weights: Quantizer, on_inputs: Quantizer | None) -> None:
    """Refuse quantizers that are not made for their place, and pairs that no kernel multiplies.

    Args:
        on_weights: Quantizer of the layers' weights.
        on_inputs: Quantizer of the layers' inputs; ``None`` where activations stay in float.

    Raises:
        ValueError: Names the quantizer, and the way out.
    """
    if not on_weights.on_weights:
        raise ValueError(
            f"{type(on_weights).__name__} rounds activations: for weights choose minmax, mse, percentile, hqq, "
            "ternary, lsq or fp8"
        )
    if on_inputs is None:
        return
    if not on_inputs.on_activations:
        raise ValueError(
            f"{type(on_inputs).__name__} rounds weights: for activations choose token (a scale per token), static "
            "(calibrated), lsq or pact (learned), beside fp8 weights fp8_token or fp8_static, "
            "or set activation_bits to null"
        )
    if on_weights.stored != on_inputs.stored:
        raise ValueError(
            f"{type(on_weights).__name__} and {type(on_inputs).__name__}: no kernel multiplies integers with fp8; "
            "choose quantizer fp8 with activation_quantizer fp8_token or fp8_static, or both of integers, "
            "or set activation_bits to null"
        )


def check_linear(family: Family) -> None:
    """Refuse a model whose blocks hold weights, and none of them in an ``nn.Linear``, such as GPT-2's Conv1D.

    compressed-tensors makes packed weights of ``nn.Linear`` and ``nn.Embedding`` alone, so plain transformers could not
    load what would be written.

    Raises:
        ValueError: Names what the weights are in, and the way out.
    """
    others = {type(weight.module).__name__ for weight in family.other_weights().values()}
    if others and not family.compressible():
        raise ValueError(
            f"{type(family.model).__name__} keeps the weights of its blocks in {', '.join(sorted(others))}, and "
            "transformers loads quantized weights of Linear layers alone: prune or distil it instead "
            "(pipeline=prune, prune_structured, distill), or choose a model of Linear layers"
        )


def check_embeddings(activation_bits: int | None, allocation: Allocation | None, sizes: Collection[GroupSize]) -> None:
    """Refuse quantized embeddings where transformers could not load them.

    Raises:
        ValueError: Activations are quantized, or layers have widths or group sizes of their own.
    """
    if activation_bits is not None or allocation is not None or len(sizes) > 1:
        raise ValueError(
            "transformers loads quantized embeddings only where activations are left in float and all layers have "
            "one width and one group size: set activation_bits=null, allocation=null and group_size to a number, or "
            "embeddings=false"
        )


def check_encoder_decoder(
    config: PreTrainedConfig, allocation: Allocation | None, sizes: Collection[GroupSize]
) -> None:
    """Refuse layers of unlike schemes in an encoder-decoder, which transformers could not load.

    Raises:
        ValueError: Says what is unlike, and the way out.
    """
    if not config.is_encoder_decoder:
        return
    if allocation is not None:
        raise ValueError("transformers loads an encoder-decoder with one width for all layers: set allocation=null")
    if len(sizes) > 1:
        raise ValueError(
            "transformers loads an encoder-decoder with one group size for all layers: set group_size to a number, got "
            f"{', '.join(map(str, sizes))}"
        )


def check_smoothing(smoothing: Smoothing | None, rounding: Rounding | None, *, activation_bits: int | None) -> None:
    """Refuse a smoothing that would have no effect.

    Raises:
        ValueError: It is made for quantized activations and there are none, or the rounding chooses ranges too.
    """
    if smoothing is None:
        return
    name = type(smoothing).__name__
    if smoothing.activations and activation_bits is None:
        raise ValueError(f"{name} is for quantized activations: set activation_bits=8, or choose awq")
    if smoothing.clip and rounding is not None:
        raise ValueError(
            f"{name} and {type(rounding).__name__} would both choose the ranges of weights: set smoothing.clip=false"
        )


def check_allocation(allocation: Allocation | None, bits: int, quantizer: Quantizer) -> None:
    """Refuse an allocation of sparsities, a budget below its first width, and widths that no grid has.

    Raises:
        ValueError: Says which, and the way out.
    """
    if allocation is None:
        return
    if not isinstance(allocation, BitAllocation):
        raise ValueError(
            "allocation must be mixed_precision, given or null where weights are quantized, got "
            f"{type(allocation).__name__}"
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


def check_experts(
    layers: Mapping[str, Layer], quantizers: LayerQuantizers, bits: int, allocation: BitAllocation | None
) -> None:
    """Refuse grids on which transformers could not load experts again.

    Args:
        layers: The layers to be quantized, by name.
        quantizers: Of their weights.
        bits: Width of these.
        allocation: Gives layers widths of their own; ``None``: all alike.

    Raises:
        ValueError: There are stacks of experts among the layers, and they would have zero points, one scale for all,
            unlike widths or group sizes, or float8 before transformers 5.21, which cast its products to bfloat16.
    """
    experts = [name for name, layer in layers.items() if is_stack(layer)]
    if not experts:
        return
    quantizer = quantizers.any(bits)
    floats = "or leave them in float by exclude=['*.experts.*']"
    if not quantizer.symmetric:
        raise ValueError(f"transformers loads experts without zero points: set symmetric=true, {floats}")
    if quantizer.granularity.per_tensor:
        raise ValueError(f"experts have scales of their own: set group_size=null, auto or a number, {floats}")
    if quantizer.stored.is_floating_point and not dequantizes_at_load():
        raise ValueError(f"experts of float8 need transformers >= 5.21: install it, choose another quantizer, {floats}")
    if len(sizes := {quantizers.size_of(name) for name in experts}) > 1:
        raise ValueError(
            f"transformers loads all experts with one group size, and group_size has {sorted(sizes, key=str)} for "
            f"them: give them one pattern, '*.experts.*', {floats}"
        )
    if allocation is None:
        return
    widths = set(allocation.widths)
    if not allocation.scans:
        given = allocation.choose(dict.fromkeys(layers, ()), {}, 0)
        widths = {given[name] for name in experts}
    if len(widths) > 1:
        raise ValueError(
            f"transformers loads all experts with one width, and allocation has {sorted(widths)} for them: set "
            f"allocation=null, or allocation=given with one pattern for '*.experts.*', {floats}"
        )
