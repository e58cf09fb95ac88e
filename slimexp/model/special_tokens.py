"""Ids of padding, start and end: tokenizer, config and generation settings each hold them, and must mean the same."""

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# The first token of these is at position pad_token_id + 1 (create_position_ids_from_input_ids of transformers).
COUNT_FROM_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "esm",
        "ibert",
        "layoutlmv3",
        "lilt",
        "longformer",
        "luke",
        "markuplm",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
_START_FROM_PADDING = ("t5", "mt5", "umt5", "longt5", "switch_transformers")  # as transformers documents for T5


_BYTES = 256  # a tokenizer of bytes has as many tokens, however many embeddings there are
_SEVERAL = ("eos_token_id", "forced_eos_token_id")  # each of several ends a text
_ONE = ("pad_token_id", "bos_token_id", "decoder_start_token_id", "forced_bos_token_id")


def holders(model: PreTrainedModel) -> list[Any]:
    """The config of ``model`` and its generation settings, if it has any, their ids being whole numbers.

    A list of one id, where one is meant, becomes that id, in place.

    Raises:
        ValueError: An id is no whole number, or there are several where one is meant.
    """
    generation = getattr(model, "generation_config", None)
    by_file = {"config.json": model.config}
    if generation is not None:
        by_file["generation_config.json"] = generation
    for file, holder in by_file.items():
        for name in (*_ONE, *_SEVERAL):
            value = getattr(holder, name, None)
            ids = _ids(value)
            if any(type(token) is not int for token in ids) or (len(ids) > 1 and name in _ONE):
                rule = "one whole number" if name in _ONE else "whole numbers"
                raise ValueError(f"{name} in {file} must be {rule}, got {repr(value)[:80]}: correct it")
            if name in _ONE and isinstance(value, list | tuple):
                setattr(holder, name, ids[0] if ids else None)
    return list(by_file.values())


def align(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Let the config and the generation settings of ``model`` mean what its tokenizer means, in place.

    - Padding is the tokenizer's; where it has none, or one that the model has no embedding for, the config's, else the
      token that ends texts. The tokenizer itself stays as it is, since it is saved with the model.
    - Generation stops at its own end tokens, and an encoder-decoder also at the one its targets end with.
    - A decoder starts from the one token that config and generation settings agree on.

    Ids that no embedding has (-1, say) count as not set.

    Args:
        model: The model, on any device.
        tokenizer: The model's tokenizer.

    Returns:
        The id that batches are padded with.

    Raises:
        ValueError: An id is no whole number, two ids contradict each other, or an id is missing; the message names the
            file to correct.
    """
    config, generation = model.config, getattr(model, "generation_config", None)
    embedded = range(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    both = holders(model)
    for holder in both:
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
            _drop_unknown(holder, name, embedded)
    pad = _padding(config, both, tokenizer, embedded)
    _check_embedded(tokenizer, embedded, but=tokenizer.pad_token_id)
    _check_filled(tokenizer, embedded)
    for holder in both:
        holder.pad_token_id = pad
        if not _ids(holder.eos_token_id) and tokenizer.eos_token_id in embedded:
            holder.eos_token_id = tokenizer.eos_token_id
    if config.is_encoder_decoder:
        _start(config, both)
        ends = _ids(generation.eos_token_id) if generation is not None else []
        if generation is not None and tokenizer.eos_token_id in embedded and tokenizer.eos_token_id not in ends:
            generation.eos_token_id = [*ends, tokenizer.eos_token_id]
    return pad


def _padding(config: PreTrainedConfig, both: Iterable[Any], tokenizer: PreTrainedTokenizerBase, embedded: range) -> int:
    own, counted = tokenizer.pad_token_id, config.pad_token_id
    if config.model_type in COUNT_FROM_PADDING and counted is not None and own in embedded and own != counted:
        raise ValueError(
            f"positions of a {config.model_type} count from its padding, id {counted} in config.json, and the "
            f"tokenizer pads with id {own} ('{tokenizer.pad_token}'): set pad_token to '{_token(tokenizer, counted)}'"
        )
    ends = [end for holder in both for end in _ids(holder.eos_token_id)]
    candidates = (own, counted, tokenizer.eos_token_id, *ends)
    padding = next((token_id for token_id in candidates if token_id in embedded), None)
    if padding is None:
        raise ValueError(
            f"tokenizer of {config.model_type} has no padding token, and none that ends texts could stand for it: set "
            "pad_token in tokenizer_config.json"
        )
    return int(padding)


def _start(config: PreTrainedConfig, both: Iterable[Any]) -> None:
    """Set the one token that a decoder starts from."""
    starts = {start for holder in both if (start := holder.decoder_start_token_id) is not None}
    if len(starts) > 1:
        first, second = sorted(starts)
        raise ValueError(
            f"decoder_start_token_id is {first} in one of config.json and generation_config.json, and {second} in the "
            "other: the decoder starts from one token; make them equal"
        )
    if not starts and config.model_type in _START_FROM_PADDING:
        starts = {config.pad_token_id}
    if not starts and config.bos_token_id is not None:
        starts = {config.bos_token_id}  # as transformers generates
    if not starts:
        raise ValueError(
            f"decoder_start_token_id of this {config.model_type} is neither in config.json nor in "
            "generation_config.json: set it to the token that targets start from"
        )
    for holder in both:
        holder.decoder_start_token_id = next(iter(starts))


def _check_embedded(tokenizer: PreTrainedTokenizerBase, embedded: range, *, but: int | None) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding for; a padding token is never read."""
    missing = {token: i for token, i in tokenizer.get_vocab().items() if i not in embedded and i != but}
    if missing:
        token, last = max(missing.items(), key=lambda item: item[1])
        raise ValueError(
            f"the tokenizer has {len(missing)} tokens that the model has no embedding for, up to '{token}' with id "
            f"{last} of {len(embedded)}: the tokenizer is of another model, or its added tokens were never trained; "
            "take the one that the model was saved with"
        )


def _check_filled(tokenizer: PreTrainedTokenizerBase, embedded: range) -> None:
    """Refuse the empty tokenizer that transformers makes where its files are missing; a padded embedding is fine."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    plain = sum(index not in special for index in tokenizer.get_vocab().values())
    if plain < _BYTES and plain < len(embedded) // 100:
        raise ValueError(
            f"the tokenizer must have tokens for the model's {len(embedded)} embeddings, got {plain} beside special "
            "ones: files of it are missing, tokenizer.json perhaps; take those that the model was saved with"
        )


def _drop_unknown(holder: object, name: str, embedded: range) -> None:
    """Remove ids that no token has."""
    value = getattr(holder, name, None)
    remaining = [token for token in _ids(value) if token in embedded]
    if value is not None and len(remaining) != len(_ids(value)):
        setattr(holder, name, (remaining if isinstance(value, list) else remaining[0]) if remaining else None)
    elif not hasattr(holder, name):
        setattr(holder, name, None)


def _ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _token(tokenizer: PreTrainedTokenizerBase, index: int) -> str:
    return str(tokenizer.convert_ids_to_tokens(index))


def longest(config: PreTrainedConfig) -> int | None:
    """Number of tokens that the model has positions for; ``None`` where the length is unlimited."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in COUNT_FROM_PADDING:
        return positions - (config.pad_token_id or 0) - 1
    return positions
