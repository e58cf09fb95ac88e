"""One decode step of any causal LM of transformers as a CUDA graph: its own kernels, without Python between them."""

from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedConfig, PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer


def cache_arguments(model: torch.nn.Module, cache: Cache) -> dict[str, Any]:
    """Keyword arguments that pass ``cache`` to ``model``: transformers 5.24 renamed the parameter."""
    name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
    return {name: cache, "use_cache": True}


def static_cache(config: PreTrainedConfig, length: int) -> StaticCache:
    """A cache whose every step is the same work, as a CUDA graph needs.

    transformers' layers with a sliding window count positions in Python and change their way once the window is full,
    which a replayed graph never sees. They keep all ``length`` positions here; the mask still hides what lies outside
    the window.
    """
    cache = StaticCache(config, max_cache_len=length)
    cache.layers = [
        StaticLayer(max_cache_len=length) if isinstance(layer, StaticSlidingWindowLayer) else layer
        for layer in cache.layers
    ]
    return cache


class Captured:
    """The decode steps of one model over a cache of fixed size, of all rows at once, which have one length.

    Args:
        model: A causal LM that can use transformers' ``StaticCache``.
        length: Largest number of positions of a sequence.
        rows: Number of sequences, B.
        temperature: Sampling temperature; 0 takes the likeliest token.

    Attributes:
        tokens: Token ids by position [B, length + 1].
        position: Position of the token that the next step reads, in every row, [1].
        logits: Logits of the last step, [B, 1, vocabulary].
    """

    label = "captured transformers step"

    def __init__(self, model: PreTrainedModel, length: int, *, rows: int = 1, temperature: float = 0.0) -> None:
        self.model, self.rows, self.temperature = model, rows, temperature
        self.cache = static_cache(model.config, length)
        self.position = torch.zeros(1, dtype=torch.int64, device=model.device)
        self.tokens = torch.zeros(rows, length + 1, dtype=torch.int64, device=model.device)
        self.logits: Tensor | None = None

    @torch.no_grad()  # no inference mode: a module that replaces a buffer of its own is trained with it later
    def prefill(self, ids: Tensor) -> None:
        """Read prompts [B, T] but for their last tokens, which the next step reads."""
        ids, count = ids.to(self.tokens.device), ids.shape[1]
        self.tokens[:, :count] = ids
        self.position.fill_(count - 1)
        self.cache.reset()
        if count > 1:
            self.model(input_ids=ids[:, :-1], logits_to_keep=1, **cache_arguments(self.model, self.cache))

    @torch.no_grad()
    def step(self) -> None:
        """Decode one token of each row: read those at ``position``, store the next."""
        token = self.tokens.index_select(1, self.position)
        cache = cache_arguments(self.model, self.cache)
        output = self.model(input_ids=token, position_ids=self.position.expand(self.rows, 1), **cache)
        self.logits = output.logits
        scores = output.logits[:, -1].float()
        if self.temperature > 0:  # the largest of logits with Gumbel's noise is a sample of their softmax
            scores = scores / self.temperature - torch.empty_like(scores).exponential_().log()
        self.position += 1
        self.tokens.index_copy_(1, self.position, scores.argmax(-1, keepdim=True))
