"""The tokenizer of another model, for a model of random weights that is to be taught by it."""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from slimexp.model.loading import Pretrained
from slimexp.model.tokenizer import TokenizerRecipe, digest


class BorrowedTokenizer(TokenizerRecipe):
    """The tokenizer of a pretrained model, as it is: student and teacher then read the same tokens.

    Args:
        path: A hub id, a local folder in the hub's format, or ``zoo:NAME``, as of ``Pretrained``.
    """

    reads_files = True

    def __init__(self, *, path: str) -> None:
        self.path = path

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        return Pretrained(path=self.path, max_length=2).load_tokenizer(texts=tuple)

    def fingerprint(self) -> str:
        return digest(self.build(()))
