"""Class labels of a classifier matched by name with those of a corpus, whatever their order."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

_SHOWN = 8  # names in a message


def class_names(config: PreTrainedConfig) -> list[str]:
    """Names of a model's classes in the order of their ids: a config's file may list them in any order."""
    names = {int(i): str(name) for i, name in (config.id2label or {}).items()}
    return [names[i] for i in sorted(names)]


def tells_classes(config: PreTrainedConfig) -> bool:
    """Whether a model was saved with a classifier; one that was not gets a new one, of random weights."""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def in_model_order(config: PreTrainedConfig, labels: Sequence[str]) -> tuple[str, ...]:
    """The corpus' classes in the order of the model's outputs.

    Names are the same whatever their case and blanks. Where one side has no names but numbers (``LABEL_0`` or ``0``,
    and so on), classes are taken by position.

    Args:
        config: A model's config; one without a trained classifier takes the corpus' order.
        labels: Names of the corpus' classes; empty for another task.

    Raises:
        ValueError: The model has other classes.
    """
    if not labels or not tells_classes(config):
        return tuple(labels)
    model_names = class_names(config)
    if by_position(config, labels):
        return tuple(labels)
    for key in (str, _plain):
        corpus_names = {key(name): name for name in labels}
        keys = [key(name) for name in model_names]
        if set(keys) == set(corpus_names) and len(keys) == len(corpus_names) == len(labels):
            return tuple(corpus_names[name] for name in keys)
    raise ValueError(
        f"the model tells {len(model_names)} classes apart ({_listed(model_names)}), the corpus {len(labels)} "
        f"({_listed(labels)}): the same names must be on both sides, in any order; change the corpus' labels or the "
        "model's id2label, or take a model without a classifier's head"
    )


def by_position(config: PreTrainedConfig, labels: Sequence[str]) -> bool:
    """Whether the classes of model and corpus are matched by position, for want of names."""
    if not labels or not tells_classes(config):
        return False
    model_names = class_names(config)
    same = sorted(map(_plain, model_names)) == sorted(map(_plain, labels))
    return len(model_names) == len(labels) and not same and (_only_numbered(model_names) or _only_numbered(labels))


def options(config: PreTrainedConfig, labels: Sequence[str]) -> dict[str, Any]:
    """Settings of a config that name the corpus' classes; empty where the model has names of its own, which it keeps.

    Raises:
        ValueError: See ``in_model_order``.
    """
    in_model_order(config, labels)
    if not labels or tells_classes(config):
        return {}
    return {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}


def lay_out(model: PreTrainedModel, labels: Sequence[str]) -> None:
    """Put the rows of a trained classifier's head, and the names of its classes, in the order of ``labels``.

    Raises:
        ValueError: The classes are in another order, and the layer that is the head is ambiguous.
    """
    model_names = in_model_order(model.config, labels)
    if model_names == tuple(labels):
        return
    order = [model_names.index(name) for name in labels]
    head = _head(model)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(parameter[order])
    names = class_names(model.config)
    model.config.id2label = {new: names[old] for new, old in enumerate(order)}
    model.config.label2id = {name: new for new, name in model.config.id2label.items()}


def _only_numbered(names: Sequence[str]) -> bool:
    return any(list(names) == [f"{prefix}{i}" for i in range(len(names))] for prefix in ("LABEL_", ""))


def _plain(name: str) -> str:
    return "".join(unicodedata.normalize("NFC", name).casefold().split())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _head(model: PreTrainedModel) -> nn.Linear:
    base = set(model.base_model.modules())
    outside = [module for module in model.modules() if isinstance(module, nn.Linear) and module not in base]
    heads = [module for module in outside if module.out_features == model.config.num_labels]
    if len(heads) != 1:
        raise ValueError(
            f"the classes of {type(model).__name__} are in another order, and which layer is its head cannot be told: "
            f"write its classes in the order {_listed(class_names(model.config))} everywhere"
        )
    return heads[0]
