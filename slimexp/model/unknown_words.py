"""Words that a tokenizer cannot write: a model that reads unknown tokens alone trains on noise.

Where a folder lacks the files of its tokenizer, transformers builds an empty one without a word: every word is then the
unknown token, or nothing.
"""

from collections.abc import Iterable
from itertools import islice

from transformers import PreTrainedTokenizerBase

from slimexp.data.base import Corpus
from slimexp.model.tokenizer import unchanged

ROWS, WORDS = 200, 1000  # that are looked at, the rows evenly spread
MOST = 0.5  # share of words


def check_words(tokenizer: PreTrainedTokenizerBase, corpus: Corpus, name: str) -> None:
    """Refuse a tokenizer that cannot write most words of a corpus' training text.

    Args:
        tokenizer: The tokenizer; it stays as it is.
        corpus: The corpus.
        name: What has the tokenizer, in the message.

    Raises:
        ValueError: More than half of the words become the unknown token, or no token.
    """
    words = list(islice(_words(corpus), WORDS))
    lost = unwritten(tokenizer, words)
    if len(lost) > MOST * len(words):
        raise ValueError(
            f"{name}: its tokenizer must know most words of the corpus, and {len(lost)} of {len(words)} "
            f"({', '.join(repr(word[:20]) for word in lost[:3])}, ...) become its unknown token, of "
            f"{len(tokenizer.get_vocab())} tokens that it has: put the tokenizer's files (tokenizer.json, say) that "
            "the model was trained with into its folder, or choose a model or data of the same language"
        )


def unwritten(tokenizer: PreTrainedTokenizerBase, words: list[str]) -> list[str]:
    """Those of ``words`` of whose tokens at least half are unknown, or that have none."""
    if not words:
        return []
    with unchanged(tokenizer):
        rows = tokenizer(words, add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    # half, because a tokenizer of sentence pieces has the blank before a word, and no more, where it is empty
    return [word for word, ids in zip(words, rows, strict=True) if 2 * ids.count(unknown) >= len(ids)]


def _words(corpus: Corpus) -> Iterable[str]:
    rows = corpus.splits["train"]
    for row in rows[:: max(1, len(rows) // ROWS)]:
        yield from row.source.split()
