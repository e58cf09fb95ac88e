"""A tokenizer as llama.cpp has it: byte-level byte-pair encoding, and that of SentencePiece.

llama.cpp knows how text is split before pairs are merged by a name. It is found here by the expressions that split, so
that a tokenizer which was trained, or whose vocabulary was pruned, needs no name of its own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
THREE_DIGITS = rf"{_CONTRACTIONS}\p{{N}}{{1,3}}{_REST}"
ONE_DIGIT = rf"{_CONTRACTIONS}\p{{N}}{_REST}"
DIGIT = r"\p{N}"

# Expressions that split, and whether words of the vocabulary are taken whole -> names of it in llama.cpp, that which
# leaves spaces before punctuation first, then that which does not (clean_up_tokenization_spaces).
_SPLITS: dict[tuple[tuple[str, ...], bool], tuple[str, str]] = {
    ((GPT2,), False): ("trillion", "gpt-2"),
    ((DIGIT, GPT2), False): ("smollm", "starcoder"),
    ((THREE_DIGITS,), True): ("llama-bpe", "llama-bpe"),
    ((THREE_DIGITS,), False): ("dbrx", "smaug-bpe"),
    ((ONE_DIGIT,), False): ("qwen2", "megrez"),
}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "\u2581"  # what SentencePiece writes for a space


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer.

    Attributes:
        model: ``gpt2`` or ``llama``.
        split: Name of how text is split.
        tokens: Tokens by id.
        kinds: Kind of each, ``NORMAL`` and others.
        merges: Pairs that are merged, ``left right``, the first one first.
        scores: Of tokens, the greatest is merged first; empty where ``merges`` says it.
        special: ``bos``, ``eos``, ``unknown``, ``padding`` -> id.
        flags: ``add_bos_token``, ``add_eos_token``, ``add_space_prefix``.
        chat_template: Template of a conversation, if there is one.
    """

    model: str
    split: str
    tokens: Sequence[str]
    kinds: Sequence[int]
    merges: Sequence[str]
    scores: Sequence[float]
    special: Mapping[str, int]
    flags: Mapping[str, bool]
    chat_template: str | None


def vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """Describe a tokenizer.

    Args:
        tokenizer: The tokenizer.
        rows: Rows of the embeddings; those without a token are named.

    Raises:
        ValueError: llama.cpp has none like it.
    """
    state = _state(tokenizer)
    model, added = state["model"], {token["id"]: token for token in state["added_tokens"]}
    named = {i: token for token, i in model["vocab"].items()} | {i: token["content"] for i, token in added.items()}
    if max(named, default=0) >= rows:
        raise ValueError(f"the tokenizer has {max(named) + 1} tokens, the model {rows} rows of embeddings")
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    pairs = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    sentence_piece = bool(model.get("byte_fallback"))
    return Vocabulary(
        model="llama" if sentence_piece else "gpt2",
        split="default" if sentence_piece else _split(state, bool(tokenizer.clean_up_tokenization_spaces)),
        tokens=[named.get(i, f"[UNUSED{i}]") for i in range(rows)],
        kinds=[_kind(i, named, added, tokenizer.unk_token_id, sentence_piece) for i in range(rows)],
        merges=[] if sentence_piece else pairs,
        scores=_scores(pairs, named, rows) if sentence_piece else [],
        special={name: i for name, i in ids.items() if i is not None},
        flags=_ends(tokenizer) | ({"add_space_prefix": _starts_with_space(state)} if sentence_piece else {}),
        chat_template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
    )


def _state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer as the JSON of the tokenizers library, if it is one of byte pairs."""
    kind = type(tokenizer).__name__
    if tokenizer.is_fast:
        state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        kind = state["model"]["type"]
        if kind == "BPE":
            return state
    raise ValueError(f"llama.cpp gets tokenizers of byte pairs (BPE) from here, the model has one of kind {kind}")


def _split(state: Mapping[str, Any], cleans: bool) -> str:
    """Name of how a byte-level tokenizer splits text."""
    if (state["normalizer"] or {}).get("type") not in (None, "NFC"):  # nearly all text is in NFC
        raise ValueError(f"llama.cpp does not normalize text ({state['normalizer']['type']}), the tokenizer does")
    whole = bool(state["model"].get("ignore_merges"))
    expressions = tuple(_expressions(state["pre_tokenizer"]))
    if not expressions and not state["model"]["merges"]:  # bytes remain bytes, wherever text is split
        expressions, whole = (GPT2,), False
    if (names := _SPLITS.get((expressions, whole))) is None:
        shown = " and ".join(f"'{expression}'" for expression in expressions) or "nowhere"
        raise ValueError(f"llama.cpp has no name for a tokenizer that splits text {shown}")
    return names[cleans]


def _expressions(node: Mapping[str, Any] | None) -> list[str]:
    """Expressions that a pre-tokenizer splits by, one after another."""
    match node:
        case {"type": "Sequence", "pretokenizers": parts}:
            return [expression for part in parts for expression in _expressions(part)]
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": by_expression}:
            return [GPT2] if by_expression else []
        case {"type": "Digits", "individual_digits": True}:
            return [DIGIT]
        case {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}:
            return [str(expression)]
    raise ValueError(f"llama.cpp does not split text as the tokenizer does ({(node or {}).get('type')})")


def _kind(i: int, named: Mapping[int, str], added: Mapping[int, Any], unknown: int | None, sentence_piece: bool) -> int:
    if i not in named:
        return UNUSED
    if i == unknown and sentence_piece:
        return UNKNOWN
    if i in added:
        return CONTROL if added[i]["special"] else USER_DEFINED
    is_byte = sentence_piece and len(named[i]) == 6 and named[i].startswith("<0x")
    return BYTE if is_byte else NORMAL


def _scores(pairs: Sequence[str], named: Mapping[int, str], rows: int) -> list[float]:
    """Scores of tokens: the earlier the first pair that makes one, the higher."""
    rank: dict[str, int] = {}
    for place, pair in enumerate(pairs):
        rank.setdefault(pair.replace(" ", ""), place)
    return [-float(rank[named[i]]) if named.get(i) in rank else -1e6 for i in range(rows)]


def _starts_with_space(state: Mapping[str, Any]) -> bool:
    text = json.dumps([state["normalizer"], state["pre_tokenizer"]], ensure_ascii=False)
    if SPACE not in text:
        raise ValueError("llama.cpp does not normalize text as the tokenizer does")
    return '"Prepend"' in text or '"prepend_scheme": "first"' in text or '"prepend_scheme": "always"' in text


def _ends(tokenizer: PreTrainedTokenizerBase) -> dict[str, bool]:
    """Whether a text begins with the token of a beginning, and ends with that of an end.

    Raises:
        ValueError: It gets other tokens.
    """
    whole, bare = (tokenizer("a", add_special_tokens=added).input_ids for added in (True, False))
    for bos in (False, True):
        for eos in (False, True):
            if whole == [tokenizer.bos_token_id] * bos + bare + [tokenizer.eos_token_id] * eos:
                return {"add_bos_token": bos, "add_eos_token": eos}
    raise ValueError("llama.cpp adds the tokens of beginning and end to a text, the tokenizer adds others")
