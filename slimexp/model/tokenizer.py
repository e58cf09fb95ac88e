"""Tokenizers that need no download: bytes as they are, or byte-pair encoding trained on the corpus; and saving any."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

PAD, EOS, UNKNOWN, BOS = "<pad>", "</s>", "<unk>", "<s>"


class TokenizerRecipe(ABC):
    """A recipe of a tokenizer, which is built from training text.

    Attributes:
        reads_files: Whether it is another model's instead, read from that one's files.
    """

    reads_files: bool = False

    @abstractmethod
    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        """Train, or just assemble, the tokenizer."""

    def fingerprint(self) -> str:
        """What tells the tokenizer from others under the same configuration; empty where that and the text say all."""
        return ""


class Bytes(TokenizerRecipe):
    """One token per UTF-8 byte, id = byte + 3; text ends in ``</s>`` (the ids of ByT5, Xue et al. 2021)."""

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        vocabulary = {PAD: 0, EOS: 1, UNKNOWN: 2}
        vocabulary |= {character: byte + 3 for byte, character in bytes_to_unicode().items()}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([PAD, EOS, UNKNOWN])
        tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token=PAD,
            eos_token=EOS,
            unk_token=UNKNOWN,
            clean_up_tokenization_spaces=False,
        )


class Bpe(TokenizerRecipe):
    """Byte-level byte-pair encoding (Sennrich et al. 2016); text starts with ``<s>``.

    Args:
        vocab_size: Number of tokens, the 256 bytes and the special ones included.
        characters: Number of characters of text to train on.
    """

    def __init__(self, *, vocab_size: int, characters: int) -> None:
        if vocab_size < 260:
            raise ValueError(f"vocab_size must be >= 260 (256 bytes and 4 special tokens), got {vocab_size}")
        if characters < 1:
            raise ValueError(f"characters must be >= 1, got {characters}")
        self.vocab_size = vocab_size
        self.characters = characters

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=[PAD, EOS, UNKNOWN, BOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(self._limited(texts), trainer)
        bos = tokenizer.token_to_id(BOS)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos)])
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token=PAD,
            eos_token=EOS,
            unk_token=UNKNOWN,
            bos_token=BOS,
            clean_up_tokenization_spaces=False,
        )

    def _limited(self, texts: Iterable[str]) -> Iterable[str]:
        left = self.characters
        for text in texts:
            if left <= 0:
                return
            left -= len(text)
            yield text


@contextmanager
def unchanged(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Restore truncation and padding afterwards, whatever a batch sets: they are saved with the tokenizer."""
    if not tokenizer.is_fast:
        yield
        return
    backend = tokenizer.backend_tokenizer
    truncation, padding = backend.truncation, backend.padding
    try:
        yield
    finally:
        backend.no_truncation() if truncation is None else backend.enable_truncation(**truncation)
        backend.no_padding() if padding is None else backend.enable_padding(**padding)


def token_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, limit: int | None, target: bool = False
) -> list[list[int]]:
    """Ids per text, special tokens included.

    Args:
        tokenizer: The tokenizer; it stays as it is.
        texts: Texts that a model reads or writes.
        limit: Number of tokens that a text is cut after; ``None`` for no limit.
        target: As in ``Family.token_ids``.
    """
    written = target and hasattr(tokenizer, "_switch_to_target_mode")  # as transformers checks
    with unchanged(tokenizer):
        if written or not tokenizer.is_fast:
            named = {"text_target" if written else "text": list(texts)}
            ids: list[list[int]] = tokenizer(**named, truncation=limit is not None, max_length=limit)["input_ids"]
            return ids
        # Straight to the Rust tokenizer: the wrapper around it takes eight times as long for one batch.
        backend, side = tokenizer.backend_tokenizer, tokenizer.truncation_side
        backend.no_padding()
        backend.no_truncation() if limit is None else backend.enable_truncation(limit, direction=side)
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts))]


def digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """What tells a tokenizer from one that gives other ids."""
    if tokenizer.is_fast:
        content = tokenizer.backend_tokenizer.to_str()
    else:
        content = repr((type(tokenizer), sorted(tokenizer.get_vocab().items()), tokenizer.init_kwargs))
    return hashlib.sha256(content.encode()).hexdigest()


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write what plain transformers loads, ``tokenizer.json`` without the indentation that is about half of it."""
    tokenizer.save_pretrained(folder)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
