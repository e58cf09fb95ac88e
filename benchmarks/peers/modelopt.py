"""Model-Optimizer's FastNAS removes neurons: ``benchmarks.prune_peers`` runs this in an environment of its own.

It is the one of its pruners that runs without a GPU. Made for vision models, of a Llama it finds the neurons alone.
"""

import json
import sys

import modelopt.torch.prune as mtp
import torch
from torch import nn
from transformers import AutoModelForCausalLM


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    task = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32, use_cache=False).eval()
    rows = [torch.tensor([ids]) for ids in task["rows"]]
    twice = model.get_input_embeddings().weight.numel() if model.config.tie_word_embeddings else 0  # as it counts
    most = task["share"] * size(model)

    @torch.no_grad()
    def score(smaller: nn.Module) -> float:
        return -sum(float(smaller(input_ids=ids, labels=ids).loss) for ids in rows) / len(rows)

    config = {"data_loader": rows, "score_func": score, "checkpoint": None, "verbose": False}
    mtp.prune(model, "fastnas", {"params": most + twice}, rows[0], config)
    if size(model) > most:
        raise RuntimeError(f"it left {size(model):,} parameters")
    torch.save(model.state_dict(), task["into"])


if __name__ == "__main__":
    main()
