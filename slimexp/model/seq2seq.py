"""Encoder-decoder models (T5, mT5, BART, mBART, NLLB, Marian, ...)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from slimexp.host.progress import counted
from slimexp.loss.base import IGNORE
from slimexp.model.base import Batch, Family, Text, at_real_tokens, block_list, by_length
from slimexp.model.target_language import align_target_language


class Seq2Seq(Family):
    """Reads a source text and writes a target text."""

    task = "seq2seq"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> None:
        align_target_language(model, tokenizer)
        super().__init__(model, tokenizer, max_length=max_length)

    def encode(self, rows: Sequence[Text], *, multiple: int = 1) -> Batch:
        input_ids, attention_mask = self.pad(self.token_ids([row[0] for row in rows]), multiple)
        targets, real = self.pad(self.token_ids([row[1] or "" for row in rows], target=True), multiple)
        labels = targets.masked_fill(real == 0, IGNORE)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def forward(self, batch: Batch, *, hidden: bool = False) -> tuple[Tensor, dict[str, tuple[Tensor, ...]]]:
        labels = batch["labels"]
        output = self.model(
            input_ids=batch["input_ids"],
            attention_mask=batch.get("attention_mask"),
            decoder_input_ids=self.decoder_inputs(labels),
            output_hidden_states=hidden,
            use_cache=False,
        )
        if not hidden:
            return output.logits, {}
        return output.logits, {
            "encoder": at_real_tokens(output.encoder_hidden_states, batch, "attention_mask"),
            "decoder": at_real_tokens(output.decoder_hidden_states, batch, "labels"),
        }

    @torch.inference_mode()
    def predict(self, rows: Sequence[Text], *, batch_size: int) -> list[Any]:
        """The likeliest text without special tokens, by as many beams as the generation settings ask for."""
        predictions: list[Any] = [None] * len(rows)
        for chunk in counted(list(by_length([row[0] for row in rows], batch_size)), "batch"):
            input_ids, attention_mask = self.pad(self.token_ids([rows[i][0] for i in chunk]))
            tokens = self.model.generate(
                input_ids=input_ids.to(self.device),
                attention_mask=attention_mask.to(self.device),
                max_new_tokens=self.max_length,
                do_sample=False,
            )
            for i, text in zip(chunk, self.tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
                predictions[i] = text
        return predictions

    def decoder_inputs(self, labels: Tensor) -> Tensor:
        """Input of the decoder: the labels shifted by one, as in the model's own loss (mBART starts with their end)."""
        if hasattr(self.model, "prepare_decoder_input_ids_from_labels"):
            own: Tensor = self.model.prepare_decoder_input_ids_from_labels(labels=labels)
            return own
        start = self.model.config.decoder_start_token_id
        shifted = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == IGNORE, self.pad_id)

    def blocks(self) -> dict[str, nn.ModuleList]:
        return {
            "encoder": block_list(self.model.get_encoder()),
            "decoder": block_list(self.model.get_decoder()),
        }
