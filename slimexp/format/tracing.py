"""What formats have in common that are made from a graph of the whole model."""

import inspect
import io
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from slimexp.format.base import Artifact

_WEIGHTS = (".safetensors", ".safetensors.index.json")


def sample(model: Artifact) -> dict[str, Any]:
    """Inputs to trace with: neither a batch of one nor a length of one, which would become fixed."""
    ids = torch.ones(2, min(7, model.family.max_length), dtype=torch.long)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.task == "seq2seq":
        inputs["decoder_input_ids"] = ids[:, :-1]
    return inputs if model.task == "classification" else inputs | {"use_cache": False}


def sample_with_cache(model: Artifact) -> dict[str, Any]:
    """Inputs to trace a causal language model with: tokens that follow others, whose keys and values are in a cache."""
    inputs, network = sample(model), model.family.model
    ids = inputs["input_ids"]
    with torch.no_grad():
        output = network(input_ids=ids[:, :-2], use_cache=True)
    name = "cache" if "cache" in inspect.signature(network.forward).parameters else "past_key_values"
    return {"input_ids": ids[:, -2:], "attention_mask": inputs["attention_mask"], name: output[name]}


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the tracer says of its own progress and of libraries that the model does not use."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def copy_beside(model: Artifact, folder: Path) -> None:
    """Copy the config, the tokenizer and whatever else is no weight to ``folder``."""
    for name in model.content["files"]:
        if not name.endswith(_WEIGHTS):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model.folder / name, folder / name)
