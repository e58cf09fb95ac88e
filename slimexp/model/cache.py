"""Keys and values cached as integers: a transformers cache whose layers hold them packed.

``config.cache_bits`` is their width, part of ``config.json``. Plain transformers does not read it and caches floats.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, DynamicCache, EncoderDecoderCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from slimexp.quantizer.cached import Cached
from slimexp.quantizer.grid import Grid
from slimexp.quantizer.straight_through import straight_through

_BITS = "cache_bits"
_ROUNDING = "cache_rounding"
_NAMES = {"cache", "past_key_values"}  # transformers 5.24 took the first for the second


class IntegerLayer(DynamicLayer):
    """Keys and values of one layer as integers, two to a byte at 4 bits; a scale and a zero point per head and token.

    Args:
        bits: Width of the integers, 8 or 4.

    Attributes:
        scales: Scales of the grids, in bfloat16, which holds them exactly.
        zeros: Zero points of the grids, int8.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.quantizer = Cached(bits=bits, group_size=None, symmetric=False)
        self.scales, self.zeros = DynamicLayer(), DynamicLayer()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, heads, T, D]; return all, dequantized. Gradients pass straight to the new ones."""
        new = (key_states, value_states)
        grids = [self.quantizer.fitted(x.detach()) for x in new]
        integers = [self.quantizer.integers(x.detach(), grid) for x, grid in zip(new, grids, strict=True)]
        numbers = super().update(*map(self._packed, integers))
        scales = self.scales.update(*(grid.scale.bfloat16() for grid in grids))
        zeros = self.zeros.update(*(grid.zero for grid in grids))  # type: ignore[arg-type]
        keys, values = (self._whole(*parts) for parts in zip(numbers, scales, zeros, new, strict=True))
        return keys, values

    def _whole(self, numbers: Tensor, scale: Tensor, zero: Tensor, new: Tensor) -> Tensor:
        values = self.quantizer.values(self._unpacked(numbers), Grid(scale.float(), zero)).to(new.dtype)
        if not new.requires_grad:
            return values
        old, rounded = values.split([values.shape[-2] - new.shape[-2], new.shape[-2]], dim=-2)
        return torch.cat([old, straight_through(new, lambda _: rounded)], dim=-2)

    def _packed(self, integers: Tensor) -> Tensor:
        if self.quantizer.bits == 8:
            return integers
        unsigned = (integers + 8).to(torch.uint8)
        return unsigned[..., ::2] | unsigned[..., 1::2] << 4

    def _unpacked(self, numbers: Tensor) -> Tensor:
        if self.quantizer.bits == 8:
            return numbers
        return torch.stack([numbers & 15, numbers >> 4], dim=-1).flatten(-2).to(torch.int8) - 8

    def _parts(self) -> tuple[DynamicLayer, DynamicLayer]:
        return self.scales, self.zeros

    def reset(self) -> None:
        super().reset()
        for part in self._parts():
            part.reset()

    def crop(self, *args: Any, **kwargs: Any) -> None:
        super().crop(*args, **kwargs)
        for part in self._parts():
            part.crop(*args, **kwargs)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        for part in self._parts():
            part.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        for part in self._parts():
            part.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        for part in self._parts():
            part.batch_select_indices(indices)


class CacheRounding:
    """Hooks of a whole model that turn its cache, passed or new, into one of integers.

    Without a cache (training, grading) a pass reads rounded keys and values all the same, and drops its cache
    afterwards. Cross-attention reads an encoder's keys and values, which stay floats.

    Attributes:
        active: Whether the hooks round.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.active = True

    def before(self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """Forward pre-hook: replace the layers of the cache, or pass a new one."""
        if not self.active:
            return None
        name = "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"
        passed = next((kwargs.pop(key) for key in _NAMES if kwargs.get(key) is not None), None)
        cache = _fresh(model.config) if passed is None else passed
        self._convert(cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache)
        return args, {**kwargs, name: cache}

    def after(self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook: drop a cache that the caller disabled, which the next pass would read as its past."""
        if self.active and kwargs.get("use_cache") is False and isinstance(output, dict):
            return type(output)(**{name: value for name, value in output.items() if name not in _NAMES})
        return output

    def _convert(self, cache: Cache) -> None:
        make = partial(IntegerLayer, self.bits)
        if cache.layer_class_to_replicate is DynamicLayer:
            cache.layer_class_to_replicate = make  # type: ignore[assignment]
        for number, layer in enumerate(cache.layers):
            if isinstance(layer, IntegerLayer):
                continue
            if type(layer) is not DynamicLayer or layer.get_seq_length():
                raise ValueError(
                    f"this model caches keys and values in {self.bits} bits, which a filled or {type(layer).__name__} "
                    "cache cannot do: give it none, or an empty DynamicCache"
                )
            cache.layers[number] = make()


def round_cache(model: PreTrainedModel, bits: int | None) -> CacheRounding | None:
    """Let ``model`` cache keys and values in ``bits`` bits, and note it in its config; ``None`` for floats."""
    if bits is None:
        return None
    rounding = CacheRounding(bits)
    setattr(model, _ROUNDING, rounding)
    setattr(model.config, _BITS, bits)
    model.register_forward_pre_hook(rounding.before, with_kwargs=True)
    model.register_forward_hook(rounding.after, with_kwargs=True)
    return rounding


def cache_bits(config: PreTrainedConfig) -> int | None:
    """Width of the integers in a model's cache; ``None`` for floats."""
    bits: int | None = getattr(config, _BITS, None)
    return bits


def rounds_cache(model: nn.Module) -> bool:
    """Whether a model rounds the keys and values that it caches, those of a training included."""
    return hasattr(model, _ROUNDING)


@contextmanager
def float_cache(model: nn.Module) -> Iterator[None]:
    """Within the context, keys and values are not rounded."""
    rounding = getattr(model, _ROUNDING, None)
    if rounding is None:
        yield
        return
    before, rounding.active = rounding.active, False
    try:
        yield
    finally:
        rounding.active = before


def require_cache(config: PreTrainedConfig, bits: int) -> None:
    """Refuse a model whose cache cannot be rounded.

    Raises:
        ValueError: The model has no cache, or one of another kind.
    """
    kind = config.model_type
    is_encoder = type(config) in AutoModelForMaskedLM._model_mapping and not getattr(config, "is_decoder", False)
    if is_encoder and not config.is_encoder_decoder:
        raise ValueError(f"a {kind} reads a text at once and caches no keys and values: set cache_bits=null")
    if bits == 4 and _head_size(config) % 2:
        raise ValueError(f"two numbers of 4 bits share a byte, and a head has {_head_size(config)}: set cache_bits=8")
    others = {type(layer).__name__ for layer in DynamicCache(config=config).layers if type(layer) is not DynamicLayer}
    if others:
        what = "keys and values of sliding windows" if any("Sliding" in name for name in others) else "what it reads"
        named = ", ".join(sorted(others))
        raise ValueError(f"a {kind} caches {what} in {named}, which is not rounded: set cache_bits=null")


def bytes_per_token(cache: Cache) -> float:
    """Bytes that the self-attention of all layers caches per token of a sequence; 0 where it caches none."""
    inner = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    total = tokens = 0
    for layer in inner.layers:
        if isinstance(layer, DynamicLayer) and layer.get_seq_length():
            parts = [layer, layer.scales, layer.zeros] if isinstance(layer, IntegerLayer) else [layer]
            total += sum(tensor.nbytes for part in parts for tensor in (part.keys, part.values) if tensor is not None)
            tokens = layer.keys.shape[0] * layer.get_seq_length()
    return total / max(tokens, 1)


def _head_size(config: PreTrainedConfig) -> int:
    sizes = (getattr(config, name, None) for name in ("head_dim", "d_kv", "v_head_dim"))
    return next((size for size in sizes if size), config.hidden_size // config.num_attention_heads)


def _fresh(config: PreTrainedConfig) -> Cache:
    if config.is_encoder_decoder:
        return EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
    return DynamicCache(config=config)
