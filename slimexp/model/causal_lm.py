"""Decoder-only language models (Llama, Qwen, Mistral, DeepSeek, GPT-2, ...)."""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from slimexp.host.progress import counted
from slimexp.loss.base import IGNORE
from slimexp.model import masks, packed
from slimexp.model.base import Batch, Family, Ids, PackedRow, Text, at_real_tokens, block_list, by_length

_CHUNK = 2**22  # logits that are float64 at once: 32 MB


def token_nats(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each label.

    Summed in float64, a chunk of tokens at a time: sums in float32 come out low, by 1e-5 nats per token at 150k words
    where the vocabulary is the last axis, and by 2e-4 over any other axis, since torch adds up in another order there.

    Args:
        logits: [B, T, V], in any floating-point type.
        labels: [B, T]; ``IGNORE`` gives 0.

    Returns:
        float64 [B, T], in nats.
    """
    rows = max(1, _CHUNK // logits.shape[-1])
    chunks = zip(logits.flatten(0, -2).split(rows), labels.flatten().split(rows), strict=True)
    nats = [cross_entropy(chunk.double(), label, ignore_index=IGNORE, reduction="none") for chunk, label in chunks]
    return torch.cat(nats).view_as(labels)


def keeps_some(model: nn.Module) -> bool:
    """Whether the model can be told at which positions it computes logits."""
    return "logits_to_keep" in inspect.signature(type(model).forward).parameters


class CausalLm(Family):
    """Predicts each token from those before it."""

    task = "causal_lm"
    _separation: packed.Separation | None = None

    def encode(self, rows: Sequence[Text], *, multiple: int = 1) -> Batch:
        return self._batch(self.token_ids([row[0] for row in rows]), multiple)

    def packs(self) -> bool:
        self._separation = packed.separation(self.model)
        return self._separation is not None

    def pack(self, rows: Sequence[PackedRow], *, multiple: int = 1) -> Batch:
        """The tokens of every document are predicted from those before them in the document, as in ``encode``."""
        batch = self._batch([ids for ids, _ in rows], multiple)
        starts = torch.zeros_like(batch["input_ids"])
        for row, (_, lengths) in zip(starts, rows, strict=True):
            ends = torch.from_numpy(lengths).cumsum(0)[:-1]
            row[ends] = ends
        positions = torch.arange(starts.shape[1]) - starts.cummax(1).values
        others = torch.cat([positions[:, 1:] == 0, torch.zeros_like(positions[:, :1], dtype=torch.bool)], dim=1)
        return batch | {"position_ids": positions, "labels": batch["labels"].masked_fill(others, IGNORE)}

    def forward(self, batch: Batch, *, hidden: bool = False) -> tuple[Tensor, dict[str, tuple[Tensor, ...]]]:
        with self._masks(batch):
            output = self.model(
                input_ids=batch["input_ids"], **self._attention(batch), output_hidden_states=hidden, use_cache=False
            )
        if not hidden:
            return output.logits, {}
        return output.logits, {"decoder": at_real_tokens(output.hidden_states, batch, "attention_mask")}

    def run(self, batch: Batch) -> None:
        last = {"logits_to_keep": 1} if keeps_some(self.model) else {}
        with self._masks(batch):
            self.model(input_ids=batch["input_ids"], **self._attention(batch), use_cache=False, **last)

    @torch.inference_mode()
    def predict(self, rows: Sequence[Text], *, batch_size: int) -> list[Any]:
        """``(nats, tokens, hits)`` per text. Texts longer than ``max_length`` are read in windows, none is cut.

        Every token of a text is predicted, the first from ``<s>`` (or, where there is none, from the token that ends
        texts), so that bits per byte compare across tokenizers. A pass has at most ``batch_size`` windows, and fewer
        where their logits would take more than ``rows_at_once`` allows.
        """
        ids = [self._started(text) for text in self.token_ids([row[0] for row in rows], truncate=False)]
        windows = [(i, window) for i, text in enumerate(ids) for window in packed.windows(text, self.max_length)]
        totals = torch.zeros(len(rows), 3, dtype=torch.float64)
        longest = max((len(window) for _, window in windows), default=1)
        chunks = list(by_length([window for _, window in windows], self.rows_at_once(longest, batch_size)))
        for chunk in counted(chunks, "batch"):
            batch = self._batch([windows[j][1] for j in chunk])
            batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
            logits, _ = self.forward(batch)
            labels = batch["labels"]
            nats = token_nats(logits, labels)
            real = labels != IGNORE
            hits = (logits.argmax(-1) == labels) & real
            sums = torch.stack([nats.sum(1), real.double().sum(1), hits.double().sum(1)], dim=1).cpu()
            totals.index_add_(0, torch.tensor([windows[j][0] for j in chunk]), sums)
        return [(nats, int(tokens), int(hits)) for nats, tokens, hits in totals.tolist()]

    def blocks(self) -> dict[str, nn.ModuleList]:
        return {"decoder": block_list(self.model.base_model)}

    def _attention(self, batch: Batch) -> dict[str, Tensor | None]:
        if "position_ids" not in batch:
            return {"attention_mask": batch.get("attention_mask")}
        assert self._separation is not None, "packs() comes first"
        return packed.inputs(batch["position_ids"], self._separation)  # padding comes last, so nothing attends to it

    @staticmethod
    def _masks(batch: Batch) -> AbstractContextManager[None]:
        full = "position_ids" not in batch and "attention_mask" not in batch
        return masks.of_full_rows() if full else nullcontext()

    def _started(self, ids: list[int]) -> list[int]:
        """``ids`` with a token before the first of the text, which predicts it."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        start = bos if bos is not None else eos
        return ids if start is None or ids[:1] == [start] else [start, *ids]

    def _batch(self, rows: Sequence[Sequence[int] | Ids], multiple: int = 1) -> Batch:
        input_ids, attention_mask = self.pad(rows, multiple)
        ahead = torch.cat([input_ids[:, 1:], input_ids[:, :1]], dim=1)
        real = torch.cat([attention_mask[:, 1:], torch.zeros_like(attention_mask[:, :1])], dim=1)
        labels = ahead.masked_fill(real == 0, IGNORE)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
