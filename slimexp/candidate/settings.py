"""Settings of a search, and the budgets that it is given."""

import math
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from slimexp.candidate.bits import layers_of
from slimexp.candidate.choice import Place
from slimexp.candidate.precision import FLOAT
from slimexp.candidate.trial import Stages
from slimexp.config.build import build
from slimexp.config.composition import chosen
from slimexp.measure.interval import FEWEST_PAIRS
from slimexp.model.base import Family
from slimexp.model.layer import latent
from slimexp.model.widths import RANKS


def budgets(node: DictConfig) -> list[dict[str, float]]:
    """Each budget: name -> largest cost.

    Raises:
        ValueError: There is none, one is no positive number, or lists are of unlike lengths.
    """
    values_of: Any = OmegaConf.to_container(node)
    given = {str(name): value for name, value in values_of.items() if value is not None}
    if not any(value != [] for value in given.values()):
        raise ValueError("no budget: give budget.disk_mb=NUMBER, budget.latency_ms=NUMBER or budget.parameters=NUMBER")
    lists = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
    for name, values in lists.items():
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ValueError(f"budget.{name} must be a number > 0, or a list of such, got {value!r}")
        if again := [value for place, value in enumerate(values) if value in values[:place] and len(lists) == 1]:
            raise ValueError(f"budget.{name} has {again[0]:g} twice: give it once")
    count = max(map(len, lists.values()))
    if odd := [name for name, values in lists.items() if len(values) not in (1, count)]:
        raise ValueError(
            f"budget.{odd[0]} has {len(lists[odd[0]])} numbers and another budget {count}: give each as many, or one"
        )
    return [{name: float(values[i % len(values)]) for name, values in lists.items()} for i in range(count)]


def check_settings(cfg: DictConfig, stages: Stages) -> None:
    """Refuse settings that no search can be done with.

    Raises:
        ValueError: The first that is wrong.
    """
    least = {"rows": 1, "graded": 2, "apart": 1, "solutions": 1, "steps": 0, "trials": 1, "promoted": 0, "workers": 1,
             "threads": 1}  # fmt: skip
    for name, value in least.items():
        if cfg.search[name] is not None and cfg.search[name] < value:
            raise ValueError(f"search.{name} must be >= {value}, got {cfg.search[name]}")
    if not 0 < cfg.search.share <= 1:
        raise ValueError(f"search.share must be in (0, 1] of the steps of the last stage, got {cfg.search.share}")
    if cfg.search.promoted > cfg.search.trials:
        raise ValueError(
            f"search.promoted={cfg.search.promoted} of search.trials={cfg.search.trials}: promote at most as many"
        )
    measures = chosen(cfg.measure)
    if cfg.budget.latency_ms is not None and "latency" not in measures:
        raise ValueError(
            "budget.latency_ms is of the request of measure.latency, which is not chosen: add "
            "measure=[size,task,latency]"
        )
    if cfg.budget.latency_ms is not None and cfg.search.pairs < FEWEST_PAIRS:
        raise ValueError(f"search.pairs must be >= {FEWEST_PAIRS} with budget.latency_ms, got {cfg.search.pairs}")
    for name in ("task", "size"):
        if name not in measures:
            raise ValueError(f"a search needs measure {name}: add it, as in measure=[size,task,latency]")
    ranks = [(name, rank) for name in RANKS.values() for rank in cfg.search[name]]
    if ranks and (stages.cut is None or not cfg.pipeline[stages.cut].cut.calibration_batches):
        raise ValueError(
            f"search.{ranks[0][0]} needs a stage with a cut whose calibration_batches is >= 1: maps in the place of "
            "layers are fitted on them"
        )
    if stages.quantize is not None:
        node = cfg.pipeline[stages.quantize]
        if node.group_size is not None and not isinstance(node.group_size, int):
            raise ValueError(
                f"pipeline.{stages.quantize}.group_size must be a number, or null for a scale per channel, got "
                f"{node.group_size}: further sizes that blocks may have are for search.group_size"
            )
        _check_widths(stages.quantize, node, cfg.search.bits)
        rounds = any(bits != FLOAT for bits in cfg.search.bits)
        sizes = {f"pipeline.{stages.quantize}.group_size={size}": size for size in [node.group_size] if size}
        sizes |= {f"the {size} of search.group_size": size for size in cfg.search.group_size if size > 0}
        odd = [(name, rank, of) for name, rank in ranks for of, size in sizes.items() if rounds and rank % size]
        if odd:
            name, rank, of = odd[0]
            raise ValueError(
                f"search.{name} must have multiples of {of}, the length of groups in the rows of a map, got {rank}"
            )
        if node.embeddings or node.exclude or list(node.include) != ["*"]:
            raise ValueError(
                f"a search chooses the layers that pipeline.{stages.quantize} rounds, among those of the blocks: "
                "leave out its include, exclude and embeddings"
            )


def _check_widths(stage: str, node: DictConfig, widths: Sequence[int]) -> None:
    """Refuse widths that the quantizer of the stage that rounds does not have; those of none are refused elsewhere."""
    for bits in widths:
        if 2 <= bits < FLOAT:
            try:
                build(node.quantizer)(bits=bits, group_size=node.group_size, symmetric=node.symmetric)
            except ValueError as error:
                raise ValueError(
                    f"search.bits has {bits}, and pipeline.{stage}.quantizer cannot: {error}; change search.bits or "
                    "choose another quantizer, such as minmax"
                ) from error


def group_sizes(cfg: DictConfig, stages: Stages) -> tuple[int | None, list[int]]:
    """Group size of the stage that rounds, and further ones that blocks may have.

    Raises:
        ValueError: ``search.group_size`` has one that is no further choice.
    """
    own = None if stages.quantize is None else cfg.pipeline[stages.quantize].group_size
    more = list(cfg.search.group_size)
    if more and (stages.quantize is None or set(cfg.search.bits) == {FLOAT}):
        raise ValueError(
            f"search.group_size={more} is of blocks that are rounded, and none may be: leave it out, or give the "
            "pipeline a stage that quantizes and search.bits a width below 16"
        )
    if wrong := [size for size in more if size < 1]:
        raise ValueError(f"search.group_size must be numbers >= 1, got {wrong[0]}")
    if again := [size for place, size in enumerate(more) if size in [own, *more[:place]]]:
        whose = f"that of pipeline.{stages.quantize}, which is a choice anyway" if again[0] == own else "there twice"
        raise ValueError(f"search.group_size has {again[0]}, {whose}: leave it out")
    return own, more


def check_rows(outline: Family, more: Sequence[int]) -> None:
    """Refuse group sizes that do not divide the rows of all layers that they may be given to.

    Args:
        outline: The dense model; its weights need no values.
        more: Group sizes beside that of the stage.

    Raises:
        ValueError: Names the size, the layer, and the way out.
    """
    rows: dict[str, int] = {}
    for stack, blocks in outline.blocks().items() if more else ():
        for index in range(len(blocks)):
            layers = layers_of(outline, Place(stack, index), experts=False)
            rows |= {name: latent(layer).shape[-1] for name, layer in layers.items()}
    for size in more:
        if name := next((name for name, length in rows.items() if length % size), None):
            raise ValueError(
                f"search.group_size must divide the rows of all layers of the blocks, got {size} for rows of "
                f"{rows[name]} ('{name}'): choose divisors of {math.gcd(*rows.values())}"
            )
