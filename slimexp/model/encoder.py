"""Encoder classifiers (BERT, RoBERTa, DistilBERT, ...)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slimexp.host.progress import counted
from slimexp.loss.base import IGNORE
from slimexp.model.base import Batch, Family, Text, at_real_tokens, block_list, by_length


class Encoder(Family):
    """Predicts the class of a text."""

    task = "classification"

    def encode(self, rows: Sequence[Text], *, multiple: int = 1) -> Batch:
        input_ids, attention_mask = self.pad(self.token_ids([row[0] for row in rows]), multiple)
        labels = torch.tensor([IGNORE if row[2] is None else row[2] for row in rows])
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def forward(self, batch: Batch, *, hidden: bool = False) -> tuple[Tensor, dict[str, tuple[Tensor, ...]]]:
        output = self.model(
            input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"), output_hidden_states=hidden
        )
        if not hidden:
            return output.logits, {}
        return output.logits, {"encoder": at_real_tokens(output.hidden_states, batch, "attention_mask")}

    def rows_at_once(self, longest: int, batch_size: int) -> int:
        return batch_size  # a row has a logit per class

    @torch.inference_mode()
    def predict(self, rows: Sequence[Text], *, batch_size: int) -> list[Any]:
        """Index of the likeliest class per text."""
        predictions: list[Any] = [None] * len(rows)
        for chunk in counted(list(by_length([row[0] for row in rows], batch_size)), "batch"):
            batch = {name: tensor.to(self.device) for name, tensor in self.encode([rows[i] for i in chunk]).items()}
            logits, _ = self.forward(batch)
            for i, label in zip(chunk, logits.argmax(-1).tolist(), strict=True):
                predictions[i] = label
        return predictions

    def blocks(self) -> dict[str, nn.ModuleList]:
        return {"encoder": block_list(self.model.base_model)}
