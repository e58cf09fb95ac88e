"""The base class of model families, a transformers model with its tokenizer, and of the sources of models.

A family knows tokens: how text becomes a batch, how logits line up with labels, which linear
layers may be compressed and where the blocks are. It knows nothing of corpora.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from slimexp.loss.base import IGNORE
from slimexp.model.history import History
from slimexp.model.special_tokens import align
from slimexp.model.tokenizer import token_ids

Text = tuple[str, str | None, int | None]  # source, target (seq2seq), label (classification)
Batch = dict[str, Tensor]
Ids = NDArray[np.int32]
PackedRow = tuple[Ids, Ids]  # ids of documents, one after the other, and the length of each
POSITIONS = "positions_of_"  # what names of a batch begin with that say where another of its tensors counts
REAL = "real_of_"  # and with that say which of those places do
LOGITS = 2**26  # the most in one pass: 256 MB of float32, 1,300 tokens of a vocabulary of 49k at once
LOGITS_ON_GPU = 8 * LOGITS  # a pass of few rows takes as long as one of many: it waits for kernels to start


@dataclass(frozen=True)
class Weight:
    """A weight of a block that belongs to no ``nn.Linear``: of a Conv1D, or of all experts of a mixture together.

    Attributes:
        module: Module that holds the weight.
        tensor: Name of the weight in the module.
        expert: Index of the one expert that is meant; ``None`` for all.
    """

    module: nn.Module
    tensor: str
    expert: int | None = None

    def matrix(self, x: Tensor) -> Tensor:
        """A tensor of the weight's shape as [out, in], sharing its memory: [in, out], or [experts, out, in]."""
        if x.ndim == 2:
            return x.T
        return x.flatten(0, 1) if self.expert is None else x[self.expert]


class Family(ABC):
    """A model with its tokenizer.

    Args:
        model: A transformers model of this family.
        tokenizer: The model's tokenizer; it stays as it is.
        max_length: Longest sequence in tokens; longer ones are truncated.

    Attributes:
        task: The corpus task this family serves.
        pad_id: Id of the token that batches are padded with.

    Raises:
        ValueError: Tokenizer, config and generation settings contradict each other, see ``special_tokens.align``.
    """

    task: ClassVar[str]

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> None:
        self.pad_id = align(model, tokenizer)
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length

    @abstractmethod
    def encode(self, rows: Sequence[Text], *, multiple: int = 1) -> Batch:
        """Encode texts as padded tensors on the CPU.

        Args:
            rows: Source, target and label of every row.
            multiple: Number that lengths are padded to a multiple of (few distinct shapes suit a compiler).

        Returns:
            Inputs by their names in transformers; ``labels`` are aligned with ``logits``: [B, T], or [B] for a
            classifier.
        """

    def packs(self) -> bool:
        """Whether several documents can share a row without seeing each other (``pack``), tried on the model.

        In eval mode, and before the model is compiled.
        """
        return False

    def pack(self, rows: Sequence[PackedRow], *, multiple: int = 1) -> Batch:
        """A batch like ``encode``, of rows that hold several documents; where ``packs``."""
        raise NotImplementedError(f"{type(self).__name__} packs no rows")

    @abstractmethod
    def forward(self, batch: Batch, *, hidden: bool = False) -> tuple[Tensor, dict[str, tuple[Tensor, ...]]]:
        """Run the model.

        Returns:
            logits aligned with ``batch["labels"]`` ([B, T, V], or [B, C] for a classifier), and, when
            ``hidden``, stack name -> outputs of embedding and blocks at the N real tokens, each [N, D].
            Else empty.
        """

    def run(self, batch: Batch) -> None:
        """Run the model for what hooks see of its layers; logits are computed at no more tokens than need be."""
        self.forward(batch)

    def rows_at_once(self, longest: int, batch_size: int) -> int:
        """Number of rows whose float32 logits take at most 256 MB, 2 GB on a GPU; at least one, at most ``batch_size``.

        Args:
            longest: Tokens of the longest row.
            batch_size: Number of rows that was asked for.
        """
        head = self.model.get_output_embeddings()
        outputs = 1 if head is None else longest * head.weight.shape[0]
        return max(1, min(batch_size, (LOGITS_ON_GPU if self.device.type == "cuda" else LOGITS) // outputs))

    @abstractmethod
    def predict(self, rows: Sequence[Text], *, batch_size: int) -> list[Any]:
        """Predictions in the form ``Corpus.grade`` reads, one per row."""

    @abstractmethod
    def blocks(self) -> dict[str, nn.ModuleList]:
        """Stack name (``encoder``, ``decoder``) -> its transformer blocks, in order."""

    def compressible(self) -> dict[str, nn.Module]:
        """Name -> module of every linear layer inside the blocks (embeddings and heads are left out)."""
        names = {module: name for name, module in self.model.named_modules()}
        return {
            names[module]: module
            for stack in self.blocks().values()
            for module in stack.modules()
            if isinstance(module, nn.Linear)
        }

    def other_weights(self) -> dict[str, Weight]:
        """Name -> every weight inside the blocks that ``compressible`` has no layer for; routers are left out.

        GPT-2's layers are Conv1D, and transformers 5 holds the experts of a mixture as parameters of three dimensions.
        """
        names = {module: name for name, module in self.model.named_modules()}
        weights: dict[str, Weight] = {}
        for module in (module for stack in self.blocks().values() for module in stack.modules()):
            if isinstance(module, Conv1D):
                weights[names[module]] = Weight(module, "weight")
            elif hasattr(module, "num_experts") and getattr(module, "is_transposed", None) is False:
                # [experts, out, in]; experts that are [experts, in, out] (gpt-oss) are not reached
                masked = {name: chain.original for name, chain in getattr(module, "parametrizations", {}).items()}
                stored = {**dict(module.named_parameters(recurse=False)), **masked}
                matrices = sorted(name for name, parameter in stored.items() if parameter.ndim == 3)
                weights |= {f"{names[module]}.{name}": Weight(module, name) for name in matrices}
        return weights

    def token_ids(self, texts: Sequence[str], *, truncate: bool = True, target: bool = False) -> list[list[int]]:
        """Ids per text, special tokens included.

        Args:
            texts: Texts that the model reads or writes.
            truncate: Cut after ``max_length`` tokens.
            target: Whether the texts are what a seq2seq model writes: translators encode it by another vocabulary, or
                with the code of another language.
        """
        limit = self.max_length if truncate else None
        return token_ids(self.tokenizer, texts, limit=limit, target=target)

    def pad(self, rows: Sequence[Sequence[int] | Ids], multiple: int = 1) -> tuple[Tensor, Tensor]:
        """Ids -> (ids [B, T] padded at the end, mask [B, T] of the real ones).

        T is a multiple of ``multiple``, or ``max_length`` where that multiple would be longer.
        """
        longest = max(len(row) for row in rows)
        width = max(longest, min(-(-longest // multiple) * multiple, self.max_length))
        lengths = np.array([len(row) for row in rows])
        mask = np.arange(width) < lengths[:, None]
        ids = np.full(mask.shape, self.pad_id, dtype=np.int64)
        ids[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
        return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


class Source(ABC):
    """Where a model comes from. Constructing one is cheap; ``validate`` reads no weights; ``load`` does the work.

    Attributes:
        max_length: Longest sequence in tokens.
        is_random: Whether all of it starts from random weights.
        has_tokenizer: Whether its tokenizer is read from files; otherwise it is made from the training text.
    """

    max_length: int
    is_random: bool = False
    has_tokenizer: bool = True

    def check_files(self) -> None:  # noqa: B027 (most sources have no files that slimexp wrote)
        """Refuse a damaged artifact; what slimexp did not write has nothing to be compared with.

        Raises:
            ValueError: A file is missing or of other content than was written.
        """

    def history(self) -> History:
        """What was done to the model before.

        Raises:
            ValueError: The manifest of an artifact cannot be read, or the model cannot be had.
        """
        return History(format=self.stored_as())

    def stored_as(self) -> str | None:
        """What its quantized weights are stored as; ``None`` for plain numbers."""
        return None

    @property
    def origin(self) -> "Source":
        """The model before what the source itself does to it."""
        return self

    @abstractmethod
    def validate(self, task: str, labels: Sequence[str] = ()) -> PreTrainedConfig:
        """Its config; raises ``ValueError`` if the model cannot be had or does not serve ``task`` and its classes."""

    @abstractmethod
    def usual_task(self) -> str:
        """The corpus task that a model of its type serves, the first of seq2seq, causal_lm and classification."""

    def fingerprint(self) -> str:
        """What tells the model from others under the same configuration; empty where the configuration says all."""
        return ""

    def is_trained(self, task: str) -> bool:
        """Whether nothing of the model for ``task`` starts from random weights."""
        return True

    def outline(self, *, task: str, labels: Sequence[str]) -> Family | None:
        """The model as ``load`` would give it, without its weights; ``None`` where a config does not tell.

        Its parameters are on the meta device: they have names and sizes, and no values.
        """
        return None

    @abstractmethod
    def load_tokenizer(self, texts: Callable[[], Iterable[str]]) -> PreTrainedTokenizerBase:
        """The tokenizer alone, as in ``load``."""

    @abstractmethod
    def load(self, *, task: str, texts: Callable[[], Iterable[str]], labels: Sequence[str]) -> Family:
        """Build the model in float32 on the CPU.

        Args:
            task: The corpus task it must serve.
            texts: Gives training text (only a source that trains a tokenizer reads it).
            labels: Class names (only classifiers read them).
        """

    def load_stored(self, *, task: str, texts: Callable[[], Iterable[str]], labels: Sequence[str]) -> Family:
        """As ``load``, in the type that the weights are stored in, where all of them are in files."""
        return self.load(task=task, texts=texts, labels=labels)


def parameters(model: nn.Module) -> Iterator[Tensor]:
    """Distinct parameters of ``model``: tied ones once."""
    return iter({id(p): p for p in model.parameters()}.values())


def parameter_count(model: nn.Module) -> int:
    """Number of numbers in them."""
    return sum(parameter.numel() for parameter in parameters(model))


def block_list(stack: nn.Module) -> nn.ModuleList:
    """The transformer blocks of a stack: its longest list of modules that is not part of another list.

    Raises:
        ValueError: The stack holds no list of modules.
    """
    lists = {name: module for name, module in stack.named_modules() if isinstance(module, nn.ModuleList)}
    outer = [module for name, module in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    if not outer:
        raise ValueError(f"{type(stack).__name__} has no list of blocks: this architecture is not supported")
    return max(outer, key=len)


def by_length(texts: Sequence[Any], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first (so that memory peaks at once)."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def at_real_tokens(hidden: Sequence[Tensor], batch: Batch, name: str) -> tuple[Tensor, ...]:
    """Hidden states [B, T, D] at the tokens of ``positions``, each [N, D]; zeros where ``REAL`` and the name say no."""
    index, real = positions(batch, name), batch.get(f"{REAL}{name}")
    chosen = (state.flatten(0, 1).index_select(0, index.to(state.device)) for state in hidden)
    return tuple(chosen if real is None else (torch.where(real[:, None], state, 0.0) for state in chosen))


def positions(batch: Batch, name: str) -> Tensor:
    """Places in the flattened batch whose label counts (``labels``), or that are no padding (``attention_mask``), [N].

    Where they are in the batch under ``POSITIONS`` and the name, nobody has to wait for the device to count them.
    """
    if (known := batch.get(f"{POSITIONS}{name}")) is not None:
        return known
    if name not in batch:  # nothing is padded
        return torch.arange(batch["input_ids"].numel(), device=batch["input_ids"].device)
    counts = batch[name] != (IGNORE if name == "labels" else 0)
    return counts.flatten().nonzero().squeeze(1)
