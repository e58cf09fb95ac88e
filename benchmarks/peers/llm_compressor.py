"""llm-compressor prunes a causal language model: ``benchmarks.prune_peers`` runs this in an environment of its own."""

import json
import sys

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import MagnitudePruningModifier, SparseGPTModifier, WandaPruningModifier
from transformers import AutoModelForCausalLM, AutoTokenizer


def recipe(importance: str, structure: str, sparsity: float) -> object:
    """What llm-compressor is asked for; every other setting is its own default."""
    common = {"targets": ["Linear"], "ignore": ["re:.*lm_head"], "mask_structure": structure}
    if importance == "magnitude":
        common = {
            "targets": ["re:.*proj.weight"],
            "mask_structure": "unstructured" if structure == "0:0" else structure,
        }
        return MagnitudePruningModifier(init_sparsity=0.0, final_sparsity=sparsity, start=0.0, end=1.0, **common)
    modifier = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[importance]
    return modifier(sparsity=sparsity, **common)


def main() -> None:
    task = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=getattr(torch, task.get("dtype", "float32")))
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in task["rows"]]
    oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(task["model"]),
        dataset=Dataset.from_list(rows),
        recipe=recipe(task["importance"], task["structure"], task["sparsity"]),
        num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,
        max_seq_length=max(map(len, task["rows"])),
        pipeline="sequential",
    )
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    torch.save(state, task["into"])


if __name__ == "__main__":
    main()
