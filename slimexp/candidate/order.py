"""The order in which units go: the least important of every block first, as a cut would choose them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slimexp.architecture.base import FFN, HEADS, HIDDEN
from slimexp.architecture.model_type import architecture_of, size
from slimexp.cut.expert_use import expert_importance, per_group
from slimexp.cut.experts import router_groups
from slimexp.cut.shape import axes_of
from slimexp.cut.unit_importance import activity, by_scope, hidden_importance, reader_importance
from slimexp.host.progress import working
from slimexp.model.base import Batch, Family


@dataclass(frozen=True)
class Order:
    """Units of every block, most important first; empty are those that a model of the type cannot lose.

    Attributes:
        heads: Scope -> groups of heads.
        ffn: Scope -> neurons.
        experts: Scope -> experts of a mixture.
        hidden: Channels of the residual stream.
    """

    heads: Mapping[str, Tensor]
    ffn: Mapping[str, Tensor]
    experts: Mapping[str, Tensor]
    hidden: Tensor

    @classmethod
    def of(cls, family: Family, batches: Sequence[Batch]) -> "Order":
        """The order by importance on training text, or by weights alone where there is none."""
        config, architecture = family.model.config, architecture_of(family.model.config)
        axes = [axis for axis in (FFN, HEADS, HIDDEN) if axis in axes_of(config)]
        with working("importance of heads, neurons, channels and experts"):
            seen = activity(family, axes, batches)
            of = {axis: by_scope(reader_importance(family, axis, seen), axis, architecture)
                  for axis in axes if axis != HIDDEN}  # fmt: skip
            channels = hidden_importance(family, seen) if HIDDEN in axes else torch.empty(0)
            experts = expert_importance(family, batches or None)
        groups = size(config, architecture.groups) if HEADS in axes else 1
        return cls(
            heads={name: _descending(scores.view(groups, -1).sum(1)) for name, scores in of.get(HEADS, {}).items()},
            ffn={name: _descending(scores) for name, scores in of.get(FFN, {}).items()},
            experts={name: per_group(scores, router_groups(config)).cpu() for name, scores in experts.items()},
            hidden=_descending(channels),
        )


def _descending(scores: Tensor) -> Tensor:
    return scores.argsort(descending=True, stable=True).cpu()
