"""Writing by a model: ids that follow prompts, or answer sources."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from slimexp.calibration.observe import undisturbed
from slimexp.decode.kept import KeptDecoder
from slimexp.model.base import Family
from slimexp.weight.shared_class import computed_once

_LOOPS_ON = {"cuda"}  # without graphs the loop takes as long as generate


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How text is written.

    Attributes:
        temperature: Logits are divided by it and a token is drawn from their softmax; 0 takes the likeliest.
        beams: Number of beams of a search for the likeliest text; 1 for none.
        longest: Largest number of tokens.
    """

    temperature: float
    beams: int
    longest: int

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be >= 0, got {self.temperature}")
        if self.beams < 1:
            raise ValueError(f"beams must be >= 1, got {self.beams}")
        if self.beams > 1 and self.temperature > 0:
            raise ValueError(
                f"beams search for the likeliest text, and temperature={self.temperature} draws one: set one of them "
                "to beams=1 or temperature=0"
            )
        if self.longest < 1:
            raise ValueError(f"longest must be >= 1 token, got {self.longest}")

    def within(self, room: int) -> "Decoding":
        """The same where there is room for so many tokens."""
        return replace(self, longest=min(self.longest, room))


@torch.no_grad()
def generate_ids(
    family: Family,
    input_ids: Tensor,
    attention_mask: Tensor,
    decoding: Decoding,
    seed: Sequence[int],
    kept: KeptDecoder | None = None,
) -> list[list[int]]:
    """Ids that the model writes for each row, up to and with the token that ends a text.

    Tokens are drawn from the model's whole distribution: what its own settings cut off, punish or force (``top_k``,
    ``suppress_tokens``, ``min_length``, repeated words) has no effect. The model's dropout is off, and the global
    random state stays.

    On a GPU a causal LM writes through the decode loop, without beams and where its step can be a CUDA graph;
    transformers' ``generate`` writes elsewhere.

    Args:
        family: An encoder-decoder, or a causal LM.
        input_ids: Sources [B, S], padded at the end; or prompts [B, P] of one length.
        attention_mask: [B, S] or [B, P], 0 at padding.
        decoding: How it is written.
        seed: Numbers that the draw is a function of, beside the weights.
        kept: Keeps the recorded step from one batch to the next; ``None`` to record one for this batch alone.

    Raises:
        ValueError: The decoder begins as no training does.
    """
    loops = _loops(family, attention_mask, decoding)
    output = generate_by_decode_loop(family, input_ids, decoding, seed, kept) if loops else None
    if output is None:
        output = generate_by_transformers(family, input_ids, attention_mask, decoding, seed)
    new = output[:, 1:] if family.task == "seq2seq" else output[:, input_ids.shape[1] :]
    ends = _eos_ids(family.model)
    return [up_to_eos(row, ends) for row in new.tolist()]


def generate_by_decode_loop(
    family: Family, input_ids: Tensor, decoding: Decoding, seed: Sequence[int], kept: KeptDecoder | None = None
) -> Tensor | None:
    """Prompts [B, P] of a causal LM and what it writes after them, [B, at most P + longest], by the decode loop.

    Arguments are those of ``generate_ids``. On a CPU the result is that of ``generate_by_transformers``, token for
    token but for near ties.

    Returns:
        Ids, padded after the end of a text; ``None`` where the loop cannot run the model, which a line says.
    """
    if kept is None:
        with KeptDecoder() as own:
            return generate_by_decode_loop(family, input_ids, decoding, seed, own)
    length = max(input_ids.shape[1] + decoding.longest, min(kept.least, family.max_length))
    rows, temperature = len(input_ids), decoding.temperature
    with undisturbed(family):
        with _seeded(family.device, seed):  # a step that is recorded draws numbers too
            decoder = kept.of(family.model, length=length, rows=rows, temperature=temperature)
        if decoder is None:
            return None
        with _seeded(family.device, seed):
            return decoder.generate(input_ids.to(family.device), decoding.longest, pad_id=family.pad_id)


def _loops(family: Family, attention_mask: Tensor, decoding: Decoding) -> bool:
    """Whether the decode loop knows this way to write, and there is something to be gained."""
    if family.device.type not in _LOOPS_ON or family.task != "causal_lm" or decoding.beams > 1:
        return False
    return family.model.generation_config.forced_bos_token_id is None and bool(attention_mask.all())


def generate_by_transformers(
    family: Family, input_ids: Tensor, attention_mask: Tensor, decoding: Decoding, seed: Sequence[int]
) -> Tensor:
    """As ``generate_by_decode_loop``, by transformers' ``generate``; and what an encoder-decoder writes to sources.

    Returns:
        Ids, [B, at most P + longest]; of an encoder-decoder, [B, at most 1 + longest], its first token included.
    """
    device, settings = family.device, _settings(family.model, family.pad_id, decoding)
    # masks and quantizers are computed once, not at every token
    with undisturbed(family), _without_own_settings(family.model), _seeded(device, seed), computed_once():
        output: Tensor = family.model.generate(  # type: ignore[operator]
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            generation_config=settings,
        )
    return output


def up_to_eos(ids: list[int], ends: frozenset[int]) -> list[int]:
    """``ids`` up to and with the first that ends a text; what follows is padding."""
    for position, token in enumerate(ids):
        if token in ends:
            return ids[: position + 1]
    return ids


def is_finished(ids: Sequence[int], family: Family) -> bool:
    """Whether ``ids`` end as a text ends, and were not cut off."""
    return bool(ids) and ids[-1] in _eos_ids(family.model)


def decoder_start_id(model: PreTrainedModel) -> int | None:
    """Id that a decoder begins to write from."""
    own: int | None = model.generation_config.decoder_start_token_id
    return model.config.decoder_start_token_id if own is None else own


def _eos_ids(model: PreTrainedModel) -> frozenset[int]:
    end = model.generation_config.eos_token_id
    return frozenset() if end is None else frozenset(end if isinstance(end, list) else [end])


def _settings(model: PreTrainedModel, pad_id: int, decoding: Decoding) -> GenerationConfig:
    """Settings of ``generate``, beside its defaults, none of which changes a distribution but ``top_k``."""
    own = model.generation_config
    special = ("bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id")
    draw = {"temperature": decoding.temperature, "top_k": 0} if decoding.temperature > 0 else {}
    return GenerationConfig(
        do_sample=decoding.temperature > 0,
        num_beams=decoding.beams,
        max_new_tokens=decoding.longest,
        pad_token_id=pad_id,
        **draw,
        **{name: getattr(own, name, None) for name in special},
    )


@contextmanager
def _without_own_settings(model: PreTrainedModel) -> Iterator[None]:
    """``generate`` takes from the model's own settings whatever it is not given, such as ``min_length`` of BART."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _seeded(device: torch.device, seed: Sequence[int]) -> Iterator[None]:
    """Random numbers that are a function of ``seed`` within the context; afterwards those go on that were before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        yield
