"""Numbers of units that a block may keep, and ranks of maps that may be in the place of its layers."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedConfig

from slimexp.architecture.base import EXPERTS, HIDDEN
from slimexp.candidate.precision import FLOAT
from slimexp.cut.experts import rule
from slimexp.cut.low_rank import check_rank
from slimexp.cut.shape import lattice, possible, whole
from slimexp.model.widths import AXES as UNLIKE
from slimexp.model.widths import RANKS, can_drop, largest_rank


def numbers(
    config: PreTrainedConfig, name: str, shares: Sequence[float], ranks: Sequence[int], multiple: int
) -> list[int]:
    """Numbers of units nearest to some shares, beside all, and ranks below 0; descending."""
    dense = whole(config)
    options = lattice(config, [name], multiple=multiple)[name]
    allowed = [units for units in options if possible(config, {**dense, name: units})]
    if name == EXPERTS and (few := [share for share in shares if round(share * dense[name]) < allowed[-1]]):
        raise ValueError(
            f"search.experts={few[0]} would keep {round(few[0] * dense[name])} of {dense[name]} experts, and their "
            f"number must be {rule(config)}: raise it"
        )
    if 0 in shares and not can_drop(config, name):
        raise ValueError(f"search.{name} must not have 0: blocks of this {config.model_type} keep some; leave 0 out")
    nearest = {min(allowed, key=lambda units: abs(units - share * dense[name])) for share in shares if share}
    none = {0} if 0 in shares else set()
    return sorted({dense[name]} | nearest | none | {-rank for rank in ranks}, reverse=True)


def check_asked(asked: Mapping[str, Sequence[float]], widths: Mapping[str, Sequence[int]], *, uniform: bool) -> None:
    """Refuse shares and widths of weights that are out of range.

    Args:
        asked: ``heads``, ``ffn``, ``hidden`` or ``experts`` -> shares that may stay.
        widths: ``bits`` or ``expert_bits`` -> widths of weights.
        uniform: Whether all blocks must keep as many heads and neurons.

    Raises:
        ValueError: States the rule and the value.
    """
    for name, shares in asked.items():
        least = 0 if name in UNLIKE and not uniform else 1e-9
        if wrong := [share for share in shares if not least <= share <= 1]:
            none = "; 0, for none, is of heads and ffn with search.uniform=false" if wrong[0] == 0 else ""
            raise ValueError(f"search.{name} must be shares in (0, 1] of what may stay, got {wrong[0]}{none}")
    for name, given in widths.items():
        if not given or (odd := [width for width in given if width != FLOAT and not 2 <= width <= 8]):
            raise ValueError(
                f"search.{name} must be within 2 to 8, or {FLOAT} for floats, got {odd if given else 'none'}"
            )


def check_ranks(config: PreTrainedConfig, ranks: Mapping[str, Sequence[int]], *, uniform: bool) -> None:
    """Refuse ranks of maps that no block of a model can have.

    Args:
        config: Config of the model.
        ranks: ``heads`` or ``ffn`` -> ranks of maps in the place of attention, or of feed-forward layers.
        uniform: Whether all blocks must keep as many heads and neurons.

    Raises:
        ValueError: States the rule and the value.
    """
    for name, given in ranks.items():
        if given and uniform:
            raise ValueError(f"search.{RANKS[name]} is for search.uniform=false: set it, or leave the ranks out")
        for place, rank in enumerate(given):
            check_rank(config, name, rank, f"search.{RANKS[name]}")
            if rank in given[:place]:
                raise ValueError(f"search.{RANKS[name]} has {rank}, there twice: leave it out")


def ranks_fit(config: PreTrainedConfig, widths: Mapping[str, int]) -> bool:
    """Whether no rank, of maps that are there or are chosen, is above the channels that some widths leave."""
    rank = max(largest_rank(config), *(-widths.get(name, 0) for name in UNLIKE))
    return rank <= widths.get(HIDDEN, rank)
