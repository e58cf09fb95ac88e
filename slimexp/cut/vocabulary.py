"""A smaller vocabulary: the tokens that a corpus uses, and a tokenizer with new ids.

A text whose tokens are all retained is split into the same tokens as before; any other text into shorter ones, as every
character that had a token keeps it.
"""

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

_READING = ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor")  # the rest is of batches


def tokens_to_keep(tokenizer: PreTrainedTokenizerBase, used: Iterable[int], *, rows: int, multiple: int = 1) -> Tensor:
    """Ids that must be retained so that text of ``used`` tokens is tokenized as before, [n], ascending.

    Special tokens, single characters and bytes stay; of byte-pair encoding, the merges on the way to a token too.

    Args:
        tokenizer: The tokenizer of the whole model.
        used: Ids that occur in the text.
        rows: Number of rows of the model's embeddings, which may exceed the number of tokens.
        multiple: Divisor of the number of ids; unused ids fill up, unless all ids stay.

    Raises:
        ValueError: The tokenizer cannot be renumbered, or ``multiple`` is < 1.
    """
    if multiple < 1:
        raise ValueError(f"multiple must be >= 1, got {multiple}")
    state = _state(tokenizer)
    tokens = _tokens(state["model"])
    ids = {*used, *tokenizer.all_special_ids} | {token["id"] for token in state["added_tokens"]}
    ids |= {i for token, i in tokens.items() if _is_character(token)}
    if state["model"]["type"] == "BPE":
        _add_ancestors(ids, state["model"], tokens)
    target = min(-(-len(ids) // multiple) * multiple, rows)
    unused = (i for i in range(rows) if i not in ids)
    return torch.tensor(sorted(ids | {next(unused) for _ in range(target - len(ids))}))


def shrunk(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> PreTrainedTokenizerBase:
    """The tokenizer with the tokens ``ids`` alone; a token's new id is its position among them.

    Raises:
        ValueError: The tokenizer cannot be renumbered, or a special token is not among ``ids``.
    """
    if list(ids[: len(tokenizer)]) == list(range(len(tokenizer))):
        return tokenizer  # only rows without a token are removed
    new = {old: position for position, old in enumerate(ids)}
    state = _state(tokenizer)
    if missing := [token["content"] for token in state["added_tokens"] if token["id"] not in new]:
        raise ValueError(f"vocabulary must keep the special token '{missing[0]}': see vocabulary.tokens_to_keep")
    for token in state["added_tokens"]:
        token["id"] = new[token["id"]]
    _renumber_model(state["model"], new)
    _renumber_processor(state["post_processor"], new)
    small = copy.deepcopy(tokenizer)
    small._tokenizer = Tokenizer.from_str(json.dumps(state))
    return small


def ids_within(small: PreTrainedTokenizerBase, whole: PreTrainedTokenizerBase) -> list[int] | None:
    """The ids by which ``shrunk`` makes ``small`` of ``whole``; ``None`` where it is no part of it."""
    if not (small.is_fast and whole.is_fast) or len(small) > len(whole):
        return None
    old, new = whole.get_vocab(), small.get_vocab()
    tokens = sorted(new, key=new.__getitem__)
    if [new[token] for token in tokens] != list(range(len(tokens))) or not old.keys() >= new.keys():
        return None
    ids = [old[token] for token in tokens]
    try:
        made = _state(shrunk(whole, ids))
    except ValueError:
        return None
    return ids if all(made[part] == value for part, value in _state(small).items() if part in _READING) else None


def renumber(config: PreTrainedConfig | GenerationConfig, ids: Sequence[int]) -> None:
    """Write the new ids of special tokens into a config whose vocabulary becomes ``ids``.

    Raises:
        ValueError: The config names a token that is not among ``ids``.
    """
    new = {old: position for position, old in enumerate(ids)}
    for key, value in config.to_dict().items():
        if key.endswith("_token_id") and value is not None:
            if missing := [i for i in (value if isinstance(value, list) else [value]) if i not in new]:
                raise ValueError(f"vocabulary must keep {key}={missing[0]}: see vocabulary.tokens_to_keep")
            setattr(config, key, [new[i] for i in value] if isinstance(value, list) else new[value])
        elif key.endswith("suppress_tokens") and value:
            setattr(config, key, [new[i] for i in value if i in new])


def _state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer as the JSON of the tokenizers library."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"the vocabulary of {type(tokenizer).__name__} cannot be cut: only tokenizers of the tokenizers library can"
        )
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return state


def _tokens(model: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id."""
    if model["type"] == "Unigram":
        return {token: i for i, (token, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _is_character(token: str) -> bool:
    """Whether a token is one character, at the start of a word or within it, or one byte."""
    return len(token.removeprefix("##").removeprefix("\u2581")) <= 1 or (
        token.startswith("<0x") and token.endswith(">")
    )


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """The two tokens of a merge, of which older versions of the tokenizers library make one string."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _product(left: str, right: str, model: Mapping[str, Any]) -> str:
    """The token that a merge gives."""
    return left + right.removeprefix(model.get("continuing_subword_prefix") or "")


def _add_ancestors(ids: set[int], model: Mapping[str, Any], tokens: Mapping[str, int]) -> None:
    """Add to ``ids`` the two halves of every token that byte-pair encoding merges, the halves of these, and so on.

    A merge never precedes the merges that make its halves, so one pass from the last to the first finds all.
    """
    for left, right in map(_pair, reversed(model["merges"])):
        if tokens[_product(left, right, model)] in ids:
            ids |= {tokens[left], tokens[right]}


def _renumber_model(model: dict[str, Any], new: Mapping[int, int]) -> None:
    """Reduce the vocabulary and merges of a tokenizer's model, in place, to the old ids in ``new``."""
    if model["type"] == "Unigram":
        if model["unk_id"] is not None:
            model["unk_id"] = new[model["unk_id"]]
        model["vocab"] = [entry for old, entry in enumerate(model["vocab"]) if old in new]
        return
    model["vocab"] = {token: new[old] for token, old in model["vocab"].items() if old in new}
    if model["type"] == "BPE":
        vocabulary = model["vocab"]
        model["merges"] = [
            merge
            for merge in model["merges"]
            if all(part in vocabulary for part in (*_pair(merge), _product(*_pair(merge), model)))
        ]


def _renumber_processor(processor: dict[str, Any] | None, new: Mapping[int, int]) -> None:
    """Renumber, in place, the special tokens that a post-processor puts around a text."""
    if processor is None:
        return
    for part in processor.get("processors", ()):
        _renumber_processor(part, new)
    if processor["type"] == "TemplateProcessing":
        for special in processor["special_tokens"].values():
            special["ids"] = [new[i] for i in special["ids"]]
    for side in ("sep", "cls"):
        if side in processor:
            processor[side][1] = new[processor[side][1]]
