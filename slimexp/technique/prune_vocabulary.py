"""Pruning of the vocabulary: rows of the embeddings go whose tokens no training text has."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Unpack

from torch import Tensor
from transformers import PreTrainedConfig

from slimexp.architecture.base import VOCABULARY
from slimexp.architecture.model_type import architecture_of, size
from slimexp.cut.remove import remove
from slimexp.cut.vocabulary import tokens_to_keep
from slimexp.data.base import Corpus
from slimexp.model.base import Family
from slimexp.model.layer import share_of
from slimexp.technique.finetune import Finetune
from slimexp.technique.training import Training
from slimexp.weight.attachment import check_bare

TEXTS_PER_CALL = 1000  # of the tokenizer


class PruneVocabulary(Finetune):
    """Remove tokens that training text does not use, then train what is left.

    The tokenizer is renumbered, and splits other text into smaller pieces (see ``cut.vocabulary``), so that the model
    reads training text exactly as before. A teacher of the old vocabulary is renumbered likewise.

    Args:
        multiple: Number that the size of the new vocabulary is a multiple of.
        training: See ``Training``.
    """

    renumbers = True

    def __init__(self, *, multiple: int, **training: Unpack[Training]) -> None:
        super().__init__(**training)
        if multiple < 1:
            raise ValueError(f"multiple must be >= 1, got {multiple}")
        self.multiple = multiple

    @property
    def removes(self) -> bool:
        return True

    def validate(self, config: PreTrainedConfig, before: Sequence[Finetune]) -> None:
        size(config, VOCABULARY)

    def prepare(self, family: Family, corpus: Corpus, teacher: Family | None) -> None:
        check_bare(family.model)
        rows = size(family.model.config, VOCABULARY)
        kept = tokens_to_keep(family.tokenizer, set(_ids(family, corpus)), rows=rows, multiple=self.multiple)
        if len(kept) == rows:
            raise ValueError(
                f"all {rows} tokens are used, or stay so that any text can be written: leave this stage out"
            )
        architecture = architecture_of(family.model.config)
        tables: list[Tensor] = [p for name, p in family.model.named_parameters() if VOCABULARY in architecture.of(name)]
        self.coverage = {"share": share_of(family, tables), "tokens_kept": len(kept) / rows}
        whole = {stack: range(len(blocks)) for stack, blocks in family.blocks().items()}
        super().prepare(remove(family, whole, {VOCABULARY: {"": kept}}), corpus, teacher)

    def finish(self) -> dict[str, float]:
        return self.coverage


def _ids(family: Family, corpus: Corpus) -> Iterator[int]:
    """The id of every token of the training text, of sources and targets."""
    rows = corpus.splits["train"]
    targets = (row.target for row in rows if row.target is not None)
    for texts, target in (((row.source for row in rows), False), (targets, True)):
        while batch := list(islice(texts, TEXTS_PER_CALL)):
            for ids in family.token_ids(batch, truncate=False, target=target):
                yield from ids
