"""The request that latency, memory and FLOPs are stated for: a prompt of random tokens, then greedy decoding.

Prefill is one pass over the prompt: for an encoder-decoder the encoder and the first decoder step, for a
causal model the logits of the last position only (as ``generate`` does), for a classifier the whole pass.
Decode is one token at a time with a key-value cache, never stopped by an end token.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, EncoderDecoderCache

from slimexp.decode.base import Decoder, capturable
from slimexp.decode.static_cache import cache_arguments, static_cache
from slimexp.kernel.cuda_graph import capture
from slimexp.model.base import Family
from slimexp.model.cache import cache_bits


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Shape of a request.

    Attributes:
        batch: Number of sequences at once.
        tokens: Tokens of each prompt.
        new_tokens: Tokens decoded after the prompt (no classifier decodes).
        seed: Seed of the random prompt.
    """

    batch: int
    tokens: int
    new_tokens: int
    seed: int

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("tokens", 1), ("new_tokens", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")

    def fitted(self, *families: Family) -> "Workload":
        """The workload shortened to the smallest ``max_length`` of ``families``."""
        longest = min(family.max_length for family in families)
        match families[0].task:
            case "classification":
                return replace(self, tokens=min(self.tokens, longest), new_tokens=0)
            case "causal_lm":  # prompt and answer share the positions
                new = min(self.new_tokens, longest // 2)
                return replace(self, tokens=min(self.tokens, longest - new), new_tokens=new)
            case _:
                return replace(self, tokens=min(self.tokens, longest), new_tokens=min(self.new_tokens, longest))

    def prompt(self, family: Family) -> Tensor:
        """Random ids [batch, tokens] without the special ones, on the model's device; equal for equal vocabularies."""
        special = set(family.tokenizer.all_special_ids)
        embedding = family.model.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        ids = torch.tensor([i for i in range(min(len(family.tokenizer), embedding.num_embeddings)) if i not in special])
        if not len(ids):
            raise ValueError("the vocabulary has special tokens only: no prompt can be drawn")
        chance = torch.Generator().manual_seed(self.seed)
        drawn = torch.randint(len(ids), (self.batch, self.tokens), generator=chance)
        return ids[drawn].to(family.device)


class Runner(Protocol):
    """A model that serves requests, one after the other."""

    def prefill(self, prompt: Tensor) -> None:
        """Read ``prompt`` [B, T]."""

    def decode(self, new_tokens: int) -> None:
        """Decode ``new_tokens`` tokens, one at a time."""


def runner(family: Family, shape: Workload) -> Runner:
    """The fastest runner of ``family``: on a GPU as CUDA graphs.

    A causal LM decodes one sequence by ``decode.Decoder``. Several sequences, models that cache keys and values as
    integers, and models that cannot be captured run without graphs.
    """
    if family.device.type != "cuda" or cache_bits(family.model.config) is not None:
        return Request(family)
    if family.task != "causal_lm":
        return _replayed(family, shape)
    if shape.batch == 1 and capturable(family.model):
        return Decoder(family.model, shape.tokens + max(shape.new_tokens, 1))
    return Request(family)


def _replayed(family: Family, shape: Workload) -> Runner:
    try:
        return Replayed(family, shape)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # its control flow depends on values on the GPU
        return Request(family)


class Request:
    """One request to a model: ``prefill``, then ``decode``.

    Attributes:
        next_ids: Ids that the model reads next, the tokens decoded last, [B, 1].
        classes: Logits of a classifier, [B, classes].
    """

    def __init__(self, family: Family) -> None:
        self.model = family.model
        self.task = family.task
        self.next_ids: Tensor | None = None
        self.classes: Tensor | None = None
        self._state: dict[str, Any] = {}

    def prefill(self, prompt: Tensor) -> None:
        """Read ``prompt`` [B, T], and drop the cache of an earlier one."""
        self._state = self._initial_state()
        if self.task == "classification":
            self.classes = self.model(input_ids=prompt).logits
        elif self.task == "seq2seq":
            encoded = self.model.get_encoder()(input_ids=prompt)
            start = self.model.config.decoder_start_token_id
            self.next_ids = torch.full_like(prompt[:, :1], start if start is not None else 0)
            self._state["encoder_outputs"] = encoded
            self._step("decoder_input_ids")
        else:
            self.next_ids = prompt
            self._step("input_ids", logits_to_keep=1)

    def _initial_state(self) -> dict[str, Any]:
        """Arguments of the model beside its first ids."""
        return {}

    @property
    def cache(self) -> Cache | None:
        """Keys and values of the tokens read so far; ``None`` where the model caches none."""
        return next((value for value in self._state.values() if isinstance(value, Cache)), None)

    def decode(self, new_tokens: int) -> None:
        """Decode ``new_tokens`` tokens, one at a time."""
        name = "decoder_input_ids" if self.task == "seq2seq" else "input_ids"
        for _ in range(new_tokens):
            self._step(name)

    def _step(self, name: str, **options: Any) -> None:
        output = self.model(**{name: self.next_ids}, **self._state, use_cache=True, **options)
        cache = "cache" if "cache" in output else "past_key_values"  # transformers 5.24 renamed it
        self._state[cache] = output[cache]
        self.next_ids = output.logits[:, -1:].argmax(-1)


class Replayed(Request):
    """A request of one shape as two CUDA graphs, one to read the prompt and one per token; for all but causal LMs.

    Raises:
        RuntimeError: The model cannot be captured.
    """

    @torch.no_grad()
    def __init__(self, family: Family, shape: Workload) -> None:
        super().__init__(family)
        self._prompt = shape.prompt(family)
        self._static_cache: Cache | None = None
        if self.task == "seq2seq":
            config = self.model.config.get_text_config(decoder=True)
            lengths = shape.new_tokens + 1, shape.tokens
            self._static_cache = EncoderDecoderCache(*(static_cache(config, length) for length in lengths))
        self._read = capture(lambda: Request.prefill(self, self._prompt), family.device)
        self._token = self.next_ids
        self._next = capture(self._replace, family.device) if shape.new_tokens else None
        self.next_ids = self._token

    def _initial_state(self) -> dict[str, Any]:
        if self._static_cache is None:
            return {}
        self._static_cache.reset()
        return {next(iter(cache_arguments(self.model, self._static_cache))): self._static_cache}

    def _replace(self) -> None:
        """Replace ``_token`` by the token that follows it."""
        assert self._token is not None
        self.next_ids = self._token
        self._step("decoder_input_ids")
        self._token.copy_(self.next_ids)

    def prefill(self, prompt: Tensor) -> None:
        self._prompt.copy_(prompt)
        self._read.replay()

    def decode(self, new_tokens: int) -> None:
        for _ in range(new_tokens):
            assert self._next is not None
            self._next.replay()
