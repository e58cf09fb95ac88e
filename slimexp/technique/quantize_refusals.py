"""Settings that quantization refuses, before anything is loaded."""

from slimexp.allocation.base import Allocation, BitAllocation
from slimexp.model.base import Family
from slimexp.quantizer.base import Quantizer
from slimexp.rounding.base import Rounding
from slimexp.smoothing.base import Smoothing


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


def check_embeddings(activation_bits: int | None, allocation: Allocation | None) -> None:
    """Refuse quantized embeddings where transformers could not load them.

    Raises:
        ValueError: Activations are quantized, or layers have widths of their own.
    """
    if activation_bits is not None or allocation is not None:
        raise ValueError(
            "transformers loads quantized embeddings only where activations are left in float and all layers have "
            "one width: set activation_bits=null and allocation=null, or embeddings=false"
        )


def check_smoothing(smoothing: Smoothing, rounding: Rounding | None, *, activation_bits: int | None) -> None:
    """Refuse a smoothing that would have no effect.

    Raises:
        ValueError: It is made for quantized activations and there are none, or the rounding chooses ranges too.
    """
    name = type(smoothing).__name__
    if smoothing.activations and activation_bits is None:
        raise ValueError(f"{name} is for quantized activations: set activation_bits=8, or choose awq")
    if smoothing.clip and rounding is not None:
        raise ValueError(
            f"{name} and {type(rounding).__name__} would both choose the ranges of weights: set smoothing.clip=false"
        )


def check_allocation(allocation: Allocation, bits: int, quantizer: Quantizer) -> None:
    """Refuse an allocation of sparsities, a budget below its first width, and widths that no grid has.

    Raises:
        ValueError: Says which, and the way out.
    """
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
