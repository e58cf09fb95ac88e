"""Which of the formats that ``pack`` writes transformers can load again."""

from typing import Any


def require_loadable(
    config: Any, *, bits: int, activation_bits: int | None, symmetric: bool = True, embeddings: bool = False
) -> None:
    """Refuse, before anything is trained, a quantization that transformers could not load again.

    Args:
        config: The model's transformers config.
        bits: Width of the weights.
        activation_bits: Width of the activations; ``None`` for float.
        symmetric: Whether weights have no zero points.
        embeddings: Whether embeddings are quantized.

    Raises:
        ValueError: Zero points of weights of less than 8 bits beside quantized activations (transformers looks for them
            unpacked), an encoder-decoder (T5 looks for its weights while they are packed) with weights of
            less than 8 bits, and either quantized activations or transformers before 5.21, or such a transformers and
            embeddings (it packs linear layers alone before it reads the file).
    """
    from transformers import __version__

    if bits < 8 and activation_bits is not None and not symmetric:
        raise ValueError(
            f"transformers cannot load {bits}-bit weights with zero points beside quantized activations: "
            "set symmetric=true, activation_bits=null, or bits=8"
        )
    if embeddings and not dequantizes_at_load():
        raise ValueError(
            f"transformers {__version__} cannot load quantized embeddings: install transformers >= 5.21, "
            "or set embeddings=false"
        )
    if bits == 8 or not config.is_encoder_decoder:
        return
    if activation_bits is not None:
        raise ValueError(
            f"transformers cannot load an encoder-decoder with {bits}-bit weights and quantized activations: "
            "set activation_bits=null, or bits=8"
        )
    if not dequantizes_at_load():
        raise ValueError(
            f"transformers {__version__} cannot load an encoder-decoder with {bits}-bit weights: "
            "install transformers >= 5.21, or set bits=8"
        )


def dequantizes_at_load() -> bool:
    """Whether transformers is 5.21 or later, which dequantizes every layer as it reads it."""
    from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer

    return hasattr(CompressedTensorsHfQuantizer, "get_load_operations")
