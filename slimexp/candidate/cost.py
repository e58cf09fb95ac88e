"""Costs of choices: bytes as an artifact holds them, parameters, and milliseconds composed from measured models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from slimexp import artifact
from slimexp.architecture.base import HEADS
from slimexp.architecture.model_type import architecture_of
from slimexp.candidate.bits import layers_of, quantizers_of
from slimexp.candidate.choice import EXPERT_BITS, Candidate, Choices, Place, shape_of, units_of
from slimexp.candidate.precision import FLOAT, OWN, Precision
from slimexp.config.build import build
from slimexp.cut.constraints import entries_per_unit, resized, with_queries
from slimexp.model.base import Family, parameter_count
from slimexp.model.empty import without_values
from slimexp.model.experts import GATE_UP, is_stack
from slimexp.model.layer import Layer, latent
from slimexp.model.widths import set_widths
from slimexp.technique.bit_allocation import stored_bits

MB = 1e6
_PER_TENSOR = 75  # bytes of an entry in a safetensors header beside the name: type, shape, offsets
_LISTED = 14  # bytes of a layer's name in a config.json beside it
_SCHEME = 600  # of a group of layers there, of which a candidate seldom has more than three
_NAMES = ("", "_packed", "_scale", "_shape")  # of a packed weight's tensors, beside that of the weight


Widths = tuple[tuple[str, int], ...]  # names and numbers of units


@dataclass(frozen=True)
class Table:
    """A cost that adds up over blocks, in one unit.

    Attributes:
        outside: Widths -> cost of all that is outside the blocks.
        of_block: (block, widths, precision) -> cost of a block.
    """

    outside: Mapping[Widths, float]
    of_block: Mapping[tuple[Place, Widths, Precision], float]

    def base(self, widths: Mapping[str, int]) -> float:
        """Cost of all that is outside the blocks."""
        return self.outside[_key(widths)]

    def block(self, place: Place, widths: Mapping[str, int], precision: Precision) -> float:
        """Cost of a block of some widths and precision."""
        return self.of_block[place, _key(widths), precision]

    def removed(self, place: Place) -> float:
        """A removed block costs nothing."""
        return 0.0


def outlines(family: Family, choices: Choices) -> dict[Widths, Family]:
    """Widths -> the model of these widths and all blocks, without values; one for all bits of experts."""
    of_units: dict[Widths, Family] = {}
    for widths in choices.combinations:
        units = units_of(widths)
        if _key(units) not in of_units:
            of_units[_key(units)] = _outline(family, units)
    return {_key(widths): of_units[_key(units_of(widths))] for widths in choices.combinations}


def _outline(family: Family, widths: Mapping[str, int]) -> Family:
    model = family.model
    groups = architecture_of(model.config).groups
    named = {groups if name == HEADS else name: n for name, n in shape_of(widths).items()}
    units = with_queries(model.config, named)
    rows = {axis: n * entries_per_unit(model.config, axis) for axis, n in units.items()}
    config = resized(model.config, {}, rows)
    depths = {stack: len(blocks) for stack, blocks in family.blocks().items()}
    for name, n in widths.items():
        if n <= 0:  # none, or a map of rank -n
            none, ranks = ({stack: [number] * depth for stack, depth in depths.items()} for number in (0, -n))
            set_widths(config, name, none, ranks)
    small = without_values(type(model), config, dtype=model.dtype, device=torch.device("meta"))
    small.tie_weights()
    return type(family)(small, family.tokenizer, max_length=family.max_length)


def parameters(family: Family, choices: Choices) -> Table:
    """Numbers of parameters; tied ones count once."""
    table: dict[tuple[Place, Widths, Precision], float] = {}
    outside = {}
    for widths, outline in outlines(family, choices).items():
        inside, blocks = 0, outline.blocks()
        for place in choices.places:
            block = blocks[place.stack][place.index]
            count = sum(parameter.numel() for parameter in block.parameters())
            inside += count
            table |= {(place, widths, precision): float(count) for precision in choices.precisions}
        outside[widths] = float(parameter_count(outline.model) - inside)
    return Table(outside, table)


def disk(
    family: Family,
    choices: Choices,
    *,
    quantize: DictConfig | None,
    dtype: torch.dtype,
    probe: Candidate,
    probe_mb: float,
) -> Table:
    """Megabytes of an artifact's files.

    Args:
        family: The dense model.
        choices: What may become of its blocks.
        quantize: Config of the stage that rounds.
        dtype: Type of the weights that are not rounded.
        probe: A candidate whose artifact was written, which tells the bytes that are in no block.
        probe_mb: Megabytes of that artifact.
    """
    table: dict[tuple[Place, Widths, Precision], float] = {}
    outside = {}
    stage: Any = None
    if quantize is not None:
        stage = build(quantize)
        stage.adapt_rows(family, {})
    for widths, outline in outlines(family, choices).items():
        blocks = outline.blocks()
        inside = {id(p) for stack in blocks.values() for p in stack.parameters()}
        others = [parameter for parameter in outline.model.parameters() if id(parameter) not in inside]
        outside[widths] = sum(parameter.numel() for parameter in others) * dtype.itemsize / MB
        experts = dict(widths).get(EXPERT_BITS, FLOAT)
        for precision in choices.precisions:
            of_kind: dict[Any, float] = {}  # most blocks are alike
            for place in choices.places:
                block = blocks[place.stack][place.index]
                kind = (place.stack, *((name, weight.shape) for name, weight in block.named_parameters()))
                if kind not in of_kind:
                    of_kind[kind] = _block_bytes(outline, place, precision, experts, stage, dtype) / MB
                table[place, widths, precision] = of_kind[kind]
    key = _key(probe.widths)
    blocks_mb = sum(table[place, key, precision] for place, precision in probe.precisions.items())
    files_mb = probe_mb - blocks_mb - outside[key]  # config, tokenizer, header
    schemes = 1 if choices.one_width else sum(precision.bits != FLOAT for precision in choices.precisions)
    if schemes > 1:
        files_mb += (min(schemes, 3) - 1) * _SCHEME / MB
        listed = {place: _listed_bytes(family, place) / MB for place in choices.places}
        table = {at: mb + (listed[at[0]] if at[2].bits != FLOAT else 0.0) for at, mb in table.items()}
    return Table({widths: cost + files_mb for widths, cost in outside.items()}, table)


def _listed_bytes(family: Family, place: Place) -> int:
    """Bytes of the names of a block's layers in a config.json, which names them where their schemes are unlike."""
    return sum(len(name) + _LISTED for name in layers_of(family, place, experts=False))


def _block_bytes(
    outline: Family, place: Place, precision: Precision, expert_bits: int, stage: Any, dtype: torch.dtype
) -> int:
    """Bytes of a block's tensors and of their names; experts of a block of floats are floats."""
    packed: dict[torch.Tensor, tuple[str, Layer, Precision]] = {}
    for experts, of_layers in ((False, precision), (True, Precision(expert_bits))):
        if FLOAT not in (precision.bits, of_layers.bits):
            layers = layers_of(outline, place, experts=experts)
            packed |= {latent(layer): (name, layer, of_layers) for name, layer in layers.items()}
    block = outline.blocks()[place.stack][place.index]
    names = {parameter: name for name, parameter in outline.model.named_parameters()}
    total = 0
    for parameter in block.parameters():
        if parameter not in packed:
            total += parameter.numel() * dtype.itemsize + len(names[parameter]) + _PER_TENSOR
            continue
        assert stage is not None
        name, layer, of_layer = packed[parameter]
        on_weight = quantizers_of(stage, of_layer).of(name, layer, bits=of_layer.bits)
        total += stored_bits(layer, on_weight) // 8
        matrices = len(parameter) * (2 if name.endswith(GATE_UP) else 1) if is_stack(layer) else 1
        total += matrices * (16 + sum(len(names[parameter]) + len(end) + _PER_TENSOR for end in _NAMES[1:]))
    return total


def artifact_mb(folder: Path) -> float:
    """Megabytes of the files of an artifact that are deployed, as ``disk_mb`` of measure size."""
    files = artifact.read_manifest(folder)["files"]
    return float(sum(path.stat().st_size for name in files for path in _files(folder / name))) / MB


def _key(widths: Mapping[str, int]) -> Widths:
    return tuple(sorted(widths.items()))


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def probes(choices: Choices) -> list[Candidate]:
    """Models to measure: for each precision the whole model and one of half the depth; each other width for all bits.

    What fewer heads, neurons and channels save depends on the bits, hardly on the groups.
    """
    whole = {name: sizes[0] for name, sizes in choices.widths.items()}
    found = []
    for precision in sorted(choices.precisions, reverse=True):  # of each width, the stage's own group size last
        found.append(_alike(whole, precision, choices.places))
        for stack, depth in choices.stacks.items():
            removable = [place for place in choices.places if place.stack == stack and place in choices.removable]
            gone = removable[: depth // 2]
            if gone and not (choices.paired and stack == "encoder"):  # whose decoder must not be deeper
                stay = [place for place in choices.places if place not in gone]
                found.append(_alike(whole, precision, stay))
        if choices.paired and choices.removable:
            stay = [place for place in choices.places if place.index < max(1, choices.stacks[place.stack] // 2)]
            found.append(_alike(whole, precision, stay))
        for name, sizes in choices.widths.items() if precision.group_size == OWN else ():
            if name == EXPERT_BITS and precision.bits == FLOAT:
                continue  # experts of a block of floats are floats: that model is there
            found += [_alike({**whole, name: units}, precision, choices.places) for units in sizes[1:]]
    return found


def _alike(widths: Mapping[str, int], precision: Precision, places: Sequence[Place]) -> Candidate:
    return Candidate.of(widths, {}).rounded(dict.fromkeys(places, precision))


def latency(choices: Choices, measured: Mapping[Candidate, float]) -> Table:
    """Milliseconds per request: a sum over blocks, fitted to those of measured models by least squares.

    A block takes a time by its stack and precision, plus what fewer heads, neurons and channels save at its bits.

    Args:
        choices: What may become of the blocks.
        measured: Models, see ``probes``, and the milliseconds of each.
    """
    unknown: dict[Any, int] = {"outside": 0}
    for candidate in measured:
        for feature in _features(choices, candidate):
            unknown.setdefault(feature, len(unknown))
    matrix = np.zeros((len(measured), len(unknown)))
    for row, candidate in enumerate(measured):
        for feature, count in _features(choices, candidate).items():
            matrix[row, unknown[feature]] = count
    times = np.array(list(measured.values()))
    solution = np.linalg.lstsq(matrix / times[:, None], np.ones(len(times)), rcond=None)[0]  # relative errors count
    of = {feature: float(solution[column]) for feature, column in unknown.items()}
    whole = {name: sizes[0] for name, sizes in choices.widths.items()}
    table = {}
    for place in choices.places:
        for widths in choices.combinations:
            for precision in choices.precisions:
                saved = sum(of.get((n, u, precision.bits), 0.0) for n, u in widths.items() if u != whole[n])
                table[place, _key(widths), precision] = max(of.get((place.stack, precision), 0.0) + saved, 0.0)
    return Table({_key(widths): max(of["outside"], 0.0) for widths in choices.combinations}, table)


def _features(choices: Choices, candidate: Candidate) -> dict[Any, float]:
    """Number of blocks of each kind in a model."""
    counts: dict[Any, float] = {"outside": 1.0}
    for place, precision in candidate.precisions.items():
        features: list[Any] = [(place.stack, precision)]
        whole = {name: sizes[0] for name, sizes in choices.widths.items()}
        bits = precision.bits
        features += [(name, units, bits) for name, units in candidate.widths_at(place).items() if units != whole[name]]
        for feature in features:
            counts[feature] = counts.get(feature, 0.0) + 1.0
    return counts
