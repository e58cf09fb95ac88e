"""torch-pruning removes neurons, heads and channels: ``benchmarks.prune_peers`` runs this in an environment of its own.

Where it is not done in time it says where it was (a traceback on stderr) and exits with status 1.
"""

import faulthandler
import json
import sys
from collections.abc import Collection
from copy import deepcopy

import torch
import torch_pruning as tp
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

HALVINGS = 7  # of the interval in which the ratio lies that leaves the wanted share


def pruned(model: nn.Module, ratio: float, axes: Collection[str]) -> nn.Module:
    """``model`` without the share ``ratio`` of the units of ``axes``, the same in every layer.

    In one step: 1.6.1 takes a head or more in every step, and of many none is left.
    """
    config = model.config
    key_values = getattr(config, "num_key_value_heads", config.num_attention_heads)
    of = dict.fromkeys(("q_proj", "query"), config.num_attention_heads)
    of |= dict.fromkeys(("k_proj", "v_proj", "key", "value"), key_values)
    words = {layer: name.rpartition(".")[2] for name, layer in model.named_modules()}
    last = model.get_output_embeddings() or model.classifier
    tp.pruner.BasePruner(
        model,
        {"input_ids": torch.arange(5, 21)[None], "attention_mask": torch.ones(1, 16, dtype=torch.long)},
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        head_pruning_ratio=ratio if "heads" in axes else 0.0,
        num_heads={layer: of[word] for layer, word in words.items() if word in of},
        prune_num_heads=True,
        prune_head_dims=False,
        ignored_layers=[last] if "hidden" in axes else [last, model.get_input_embeddings()],
        root_module_types=[nn.Linear],
        output_transform=lambda output: output.logits,
    ).step()
    return model


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    task = json.load(sys.stdin)
    faulthandler.dump_traceback_later(task["seconds"], exit=True)
    auto = {"causal_lm": AutoModelForCausalLM, "classification": AutoModelForSequenceClassification}[task["task"]]
    model = auto.from_pretrained(task["model"], dtype=torch.float32, use_cache=False).eval()
    low, high, found = 0.0, 1.0, None
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        smaller = pruned(deepcopy(model), ratio, task["axes"])
        if size(smaller) > task["share"] * size(model):
            low = ratio
        else:
            high, found = ratio, smaller
    torch.save(found, task["into"])


if __name__ == "__main__":
    main()
