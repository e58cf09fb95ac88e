"""Decoder-only language models (Llama, Qwen, Mistral, DeepSeek, GPT-2, ...)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from slimexp.host.progress import counted
from slimexp.loss.base import IGNORE
from slimexp.model.base import Batch, Family, Text, at_real_tokens, block_list, by_length

_LOGITS = 2**26  # the most in one pass of grading: 256 MB of float32, 2,700 tokens of a vocabulary of 49k at once
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


class CausalLm(Family):
    """Predicts each token from those before it."""

    task = "causal_lm"

    def encode(self, rows: Sequence[Text], *, multiple: int = 1) -> Batch:
        return self._batch(self.token_ids([row[0] for row in rows]), multiple)

    def forward(self, batch: Batch, *, hidden: bool = False) -> tuple[Tensor, dict[str, tuple[Tensor, ...]]]:
        output = self.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            output_hidden_states=hidden,
            use_cache=False,
        )
        if not hidden:
            return output.logits, {}
        return output.logits, {"decoder": at_real_tokens(output.hidden_states, batch["attention_mask"])}

    @torch.inference_mode()
    def predict(self, rows: Sequence[Text], *, batch_size: int) -> list[Any]:
        """``(nats, tokens, hits)`` per text. Texts longer than ``max_length`` are read in windows, none is cut.

        Every token of a text is predicted, the first from ``<s>`` (or, where there is none, from the token that ends
        texts), so that bits per byte compare across tokenizers. A pass has at most ``batch_size`` windows, and fewer
        where their logits would take more than 256 MB.
        """
        ids = [self._started(text) for text in self.token_ids([row[0] for row in rows], truncate=False)]
        windows = [(i, window) for i, text in enumerate(ids) for window in self._windows(text)]
        totals = torch.zeros(len(rows), 3, dtype=torch.float64)
        chunks = list(by_length([window for _, window in windows], self._rows_at_once(windows, batch_size)))
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

    def _rows_at_once(self, windows: Sequence[tuple[int, list[int]]], batch_size: int) -> int:
        """Number of windows whose logits [B, T, V] stay below the limit, at least one."""
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        longest = max((len(window) for _, window in windows), default=1)
        return max(1, min(batch_size, _LOGITS // (longest * vocabulary)))

    def blocks(self) -> dict[str, nn.ModuleList]:
        return {"decoder": block_list(self.model.base_model)}

    def _started(self, ids: list[int]) -> list[int]:
        """``ids`` with a token before the first of the text, which predicts it."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        start = bos if bos is not None else eos
        return ids if start is None or ids[:1] == [start] else [start, *ids]

    def _windows(self, ids: list[int]) -> list[list[int]]:
        """Token windows of at most ``max_length``; each starts with the last token of the one before."""
        step = self.max_length - 1
        return [ids[start : start + self.max_length] for start in range(0, max(len(ids) - 1, 1), step)]

    def _batch(self, rows: Sequence[Sequence[int]], multiple: int = 1) -> Batch:
        input_ids, attention_mask = self.pad(rows, multiple)
        ahead = torch.cat([input_ids[:, 1:], input_ids[:, :1]], dim=1)
        real = torch.cat([attention_mask[:, 1:], torch.zeros_like(attention_mask[:, :1])], dim=1)
        labels = ahead.masked_fill(real == 0, IGNORE)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
