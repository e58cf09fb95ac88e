"""llm-compressor rounds a model to integers: ``benchmarks.quantize_peers`` runs this in its environment."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

MODELS = {"causal_lm": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}


def scheme(bits: int, group: int | None, activation_bits: int | None) -> dict[str, Any]:
    """In the words of compressed-tensors."""
    weights: dict[str, Any] = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel"}
    if group is not None:
        weights |= {"strategy": "group", "group_size": group}
    inputs = {"num_bits": activation_bits, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return {"targets": ["Linear"], "weights": weights, "input_activations": inputs if activation_bits else None}


def recipe(method: str, config: dict[str, Any]) -> list[Any]:
    """What llm-compressor is asked for; every other setting is its own default."""
    common = {"config_groups": {"group_0": config}, "ignore": ["re:.*lm_head"]}
    if method == "GPTQ":
        return [GPTQModifier(**common)]
    return [*([AWQModifier()] if method == "AWQ" else []), QuantizationModifier(**common)]


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def main() -> None:
    task = json.load(sys.stdin)
    model = MODELS[task["task"]].from_pretrained(task["model"], dtype=getattr(torch, task.get("dtype", "float32")))
    oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(task["model"]),
        dataset=Dataset.from_list(task["rows"]),
        recipe=recipe(task["method"], scheme(task["bits"], task["group"], task["activation_bits"])),
        num_calibration_samples=len(task["rows"]),
        shuffle_calibration_samples=False,
        data_collator=collate,
        pipeline="sequential" if task["task"] == "causal_lm" else "basic",  # T5 cannot be traced
    )
    model.to(torch.bfloat16).save_pretrained(task["into"], save_compressed=True)


if __name__ == "__main__":
    main()
