"""What a technique tells the pipeline of itself before anything is loaded, and what it refuses then."""

from collections.abc import Collection, Mapping
from typing import ClassVar

from torch import nn

from slimexp.completion.base import Completion
from slimexp.loss.base import Loss, Stacks
from slimexp.model.attention import stacks
from slimexp.model.base import Family


class Contract:
    """The part of a technique that needs no weights: what it needs of the stages before it, and gives to those after.

    Attributes:
        attaches: Whether it leaves masks or quantizers on the weights.
        quantizes: Whether it leaves quantizers on them.
        renumbers: Whether it leaves another vocabulary.
        losses: Name -> term of the objective.
        completion: Who writes targets in place of the gold ones; ``None``: nobody.
    """

    attaches: ClassVar[bool] = False
    quantizes: ClassVar[bool] = False
    renumbers: ClassVar[bool] = False
    losses: nn.ModuleDict
    completion: Completion | None

    @property
    def needs_teacher(self) -> bool:
        """Whether any loss reads a teacher."""
        return any(loss.needs_teacher for loss in self._losses())

    @property
    def consults_teacher(self) -> bool:
        """Whether a teacher is needed at all: by a loss, or to write targets before training."""
        return self.needs_teacher or (self.completion is not None and self.completion.needs_teacher)

    @property
    def needs_hidden(self) -> bool:
        """Whether any loss reads hidden states."""
        return any(loss.needs_hidden for loss in self._losses())

    @property
    def needs_width(self) -> bool:
        """Whether any loss needs hidden states as wide as the teacher's."""
        return any(loss.needs_width for loss in self._losses())

    @property
    def named_losses(self) -> dict[str, Loss]:
        """Name -> term of the objective."""
        return dict(self.losses.items())  # type: ignore[arg-type]

    def _losses(self) -> list[Loss]:
        return list(self.named_losses.values())

    @property
    def removes(self) -> bool:
        """Whether it takes parts out of the model, and so needs weights on which nothing sits."""
        return False

    @property
    def leaves_unlike(self) -> bool:
        """Whether it may leave blocks of unlike widths, see ``model.widths``."""
        return False

    @property
    def alters(self) -> bool:
        """Whether the model that is trained computes something else than the one that came in."""
        return self.attaches or self.removes

    @property
    def keeps_stored_type(self) -> bool:
        """Whether it works on 16-bit weights as they are stored, and computes in float32 on the part at hand."""
        return False

    @property
    def maps_weights(self) -> bool:
        """Whether ``prepare`` may be given weights as they lie in their files: it computes nothing with them."""
        return False

    @property
    def changes_weights(self) -> bool:
        """Whether it changes weights themselves, beneath what it attaches to them."""
        return True

    @property
    def row_multiple(self) -> int:
        """Number that the length of its layers' rows must be a multiple of; 1 where any length will do."""
        return 1

    @property
    def cuts(self) -> Mapping[str, int | None]:
        """Width that it changes (``heads``, ``ffn``, ``hidden``) -> units that it leaves, ``None`` if it chooses."""
        return {}

    def require_row_multiple(self, multiple: int) -> None:
        """Have it leave rows whose length is a multiple of ``multiple``; called where it chooses their length."""

    def inspect(self, outline: Family) -> None:
        """Refuse, before anything is measured, a model whose layers this stage cannot compress.

        Args:
            outline: The model that comes in, on the meta device: its layers have names and sizes, and no values.

        Raises:
            ValueError: Names the layer, and the way out.
        """

    def student_stacks(self, incoming: Family) -> Stacks | None:
        """What stacks of the model that is trained will be like; ``None`` where that is not known before.

        Args:
            incoming: The model that comes in; it may be on the meta device.
        """
        return None if self.removes else stacks(incoming)

    def inspect_rows(self, outline: Family, changed: Collection[str]) -> None:
        """Refuse layers whose rows do not divide, where an earlier stage changes the model before this one sees it.

        Args:
            outline: The run's model before that stage, on the meta device.
            changed: Names of layers whose rows will have another length.

        Raises:
            ValueError: Names the layer, and the way out.
        """
