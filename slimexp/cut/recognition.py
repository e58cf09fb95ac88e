"""Model types without a declaration of their own: recognized by the names of their parameters, and put to the proof.

Many types have the parameters of Llama, Gemma or BERT under the same names. Names do not tell whether a norm subtracts
a mean, or what is multiplied by the root of the hidden width; so a small model of random weights is built of the type,
and only the axes stay whose units can be sliced away with the same result as masking them.
"""

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedConfig

from slimexp.architecture.base import (
    EXPERT_FFN,
    EXPERTS,
    FFN,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    OTHER,
    VOCABULARY,
    Architecture,
    Refusal,
    Rule,
)
from slimexp.architecture.model_type import ARCHITECTURES, RECOGNIZED, is_known, variant
from slimexp.architecture.reasons import UNDECLARED, UNPROVED
from slimexp.cut.block_lists import renumber_blocks
from slimexp.cut.proof import PROVABLE, logits, prove, randomize
from slimexp.model.base import Family, parameter_count
from slimexp.model.loading import Scratch
from slimexp.model.scaling import scalings
from slimexp.model.tokenizer import Bytes

_BLOCK = r"\.(?:layers?|h|blocks?)\.(\d+)\."
# Of any type: whatever the names, whole layers may go.
_NAMELESS = (
    Architecture(axes={"": (OTHER,)}, block=_BLOCK, sizes={}, depths={"decoder": "num_hidden_layers"}),
    Architecture(axes={"": (OTHER,)}, block=_BLOCK, sizes={}, depths={"encoder": "num_hidden_layers"}),
    Architecture(
        axes={"": (OTHER,)}, block=_BLOCK, sizes={}, depths={"encoder": "encoder_layers", "decoder": "decoder_layers"}
    ),
)
_BLOCKS = 3  # one can go between two that stay
_SIZES = {HIDDEN: 32, HEADS: 4, FFN: 48, EXPERTS: 4, EXPERT_FFN: 16}
_NARROW = {  # config keys of widths that no candidate may have named
    "intermediate_size": 48, "ffn_dim": 48, "moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4,
    "num_experts_per_tok": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}  # fmt: skip
_IF_SET = {"head_dim": 8, "max_position_embeddings": 64}
_LENGTH = 16  # tokens
_MOST = 4_000_000  # parameters of a small model: more, and something else is wide


def recognize(config: PreTrainedConfig) -> None:
    """Find the architecture of a type that has none declared, so that ``architecture_of`` knows it; else do nothing.

    What is found counts for all models of this variant of the type, whatever their sizes, in this process.
    """
    if is_known(config):
        return
    with torch.random.fork_rng(devices=[]):  # a run draws the same numbers with or without the proof
        torch.manual_seed(0)
        found = _found(config)
    if found is not None:  # else architecture_of says that the type cannot be cut
        RECOGNIZED[variant(config)], axes = found
        print(f"{config.model_type} is cut by the names of its parameters: of a small one, {', '.join(axes)} could go")


def _found(config: PreTrainedConfig) -> tuple[Architecture, list[str]] | None:
    """The architecture of which most is proved, and the axes that can go."""
    found: dict[tuple[int, int], tuple[Architecture, list[str]]] = {}
    distinct = {id(architecture): architecture for architecture in ARCHITECTURES.values()}.values()
    candidates = sorted(distinct, key=lambda one: (len(one.axes), one.gain))  # the plainest first
    for candidate in (*candidates, *_NAMELESS):
        try:
            proved, axes, complete = _proved(config, candidate)
        except Exception:
            continue
        if axes:
            found.setdefault((len(axes), len(proved.rules(config))), (proved, axes))
        if complete:
            break
    return found[max(found)] if found else None


def _proved(config: PreTrainedConfig, candidate: Architecture) -> tuple[Architecture, list[str], bool]:
    """What holds of an architecture for a small model of this type: with the axes that can go, and whether all holds.

    Raises:
        Exception: transformers has no such model, or names and shapes differ.
    """
    family = randomize(_small(config, candidate))
    small = family.model.config
    axes = [axis for axis in PROVABLE if candidate.can_cut(_units(axis, candidate), small)]
    with _taken_for(small, candidate):
        right = [axis for axis in axes if _holds(family, axis)]
    rules = [rule for rule in candidate.rules(small) if _scaling_holds(family, candidate, rule)]
    return _only(candidate, right, rules), right, right == axes and len(rules) == len(candidate.rules(small))


@contextmanager
def _taken_for(config: PreTrainedConfig, candidate: Architecture) -> Iterator[None]:
    """A context in which models of a variant are of an architecture that is yet to be proved."""
    key = variant(config)
    before = RECOGNIZED.get(key)
    RECOGNIZED[key] = candidate
    try:
        yield
    finally:
        del RECOGNIZED[key]
        if before is not None:
            RECOGNIZED[key] = before


def _units(axis: str, architecture: Architecture) -> str:
    return architecture.groups if axis == HEADS else axis


def _holds(family: Family, axis: str) -> bool:
    try:
        prove(family, axis)
    except Exception:  # of any kind: what does not fit breaks somewhere
        return False
    return True


def _scaling_holds(family: Family, candidate: Architecture, rule: Rule) -> bool:
    """Whether there are channels that a rule scales, and the model stays what it is."""
    before, generator = logits(family), torch.Generator().manual_seed(2)
    twin = copy.deepcopy(family)
    try:
        with _taken_for(twin.model.config, replace(candidate, rules=lambda _: [rule])):
            found = [s for stack in twin.blocks().values() for block in stack for s in scalings(twin, block)]
        for scaling in found:
            scaling.apply(torch.rand(scaling.channels, generator=generator) * 3 + 0.2)
        return bool(found) and float((logits(twin) - before).abs().max()) <= 1e-4 * float(before.std())
    except Exception:  # as above
        return False


def _only(candidate: Architecture, axes: Collection[str], rules: Sequence[Rule]) -> Architecture:
    """The architecture with refusals of what was not proved, and the rules that were."""
    proved = {*axes, *([KV_HEADS] if HEADS in axes else [])}
    refused: dict[str, Refusal] = {
        axis: candidate.refusals.get(axis, UNPROVED)
        for axis in (LAYERS, HEADS, KV_HEADS, FFN, HIDDEN, EXPERTS, EXPERT_FFN)
        if axis not in proved and (axis == LAYERS or axis in candidate.sizes or axis in candidate.refusals)
    }
    refused |= {axis: UNDECLARED for axis in (VOCABULARY, *_SIZES, KV_HEADS) if axis not in proved | refused.keys()}
    return replace(candidate, refusals=refused, rules=lambda _: rules)


def _small(config: PreTrainedConfig, candidate: Architecture) -> Family:
    """A model of the type with random weights, in the sizes of ``_SIZES``.

    Raises:
        Exception: transformers has no such model, or its parameters have other names than the candidate's.
    """
    task = _task(config)
    labels = ("no", "yes") if task == "classification" else ()
    source = Scratch(config=_small_config(config, candidate), tokenizer=Bytes(), max_length=_LENGTH)
    with torch.device("meta"):
        outline = source.load(task=task, texts=list, labels=labels).model
    for name in outline.state_dict():
        candidate.of(name)
    if (count := parameter_count(outline)) > _MOST:
        raise ValueError(f"a small model of type {config.model_type} has {count} parameters")
    family = source.load(task=task, texts=list, labels=labels)
    family.model.eval()
    return family


def _small_config(config: PreTrainedConfig, candidate: Architecture) -> dict[str, Any]:
    """Arguments of a config of the type in the sizes of ``_SIZES``, else as it is."""
    small = copy.deepcopy(config)
    for key in candidate.depths.values():
        depth = getattr(small, key)
        renumber_blocks(small, [0, min(1, depth - 1), depth - 1])
    groups = getattr(small, "num_key_value_heads", None)
    sizes = {**_SIZES, KV_HEADS: 4 if groups == getattr(small, "num_attention_heads", None) else 2}
    new: dict[str, Any] = {} if groups is None else {"num_key_value_heads": sizes[KV_HEADS]}
    new |= {key: value for key, value in _NARROW.items() if isinstance(getattr(small, key, None), int)}
    new |= dict.fromkeys(candidate.depths.values(), _BLOCKS)
    new |= {key: sizes[axis] for axis in candidate.sizes if axis in sizes for key in candidate.keys(axis)}
    new |= {"hidden_size": sizes[HIDDEN], "num_attention_heads": sizes[HEADS]}
    new |= {key: most for key, most in _IF_SET.items() if getattr(small, key, None) is not None}
    names = getattr(small, "attribute_map", {})
    values = small.to_dict()
    for key, value in new.items():
        getattr(small, key)  # raises where it is a key of another type's config
        values[names.get(key, key)] = value
    return {key: value for key, value in values.items() if not key.startswith("_") and key not in _NOT_OF_THE_SHAPE}


_NOT_OF_THE_SHAPE = {"architectures", "transformers_version", "dtype", "torch_dtype", "id2label", "label2id"}
_NOT_OF_THE_SHAPE |= {"quantization_config", "bos_token_id", "eos_token_id", "pad_token_id"}


def _task(config: PreTrainedConfig) -> str:
    """The task of which a model of this type is built for the proof."""
    if config.is_encoder_decoder:
        return "seq2seq"
    generates = type(config) in AutoModelForCausalLM._model_mapping
    reads_all = type(config) in AutoModelForMaskedLM._model_mapping
    return "causal_lm" if generates and not reads_all else "classification"
