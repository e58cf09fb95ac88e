"""Importances: a score per weight; pruning keeps the highest."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

Observed = Literal["input", "gradient"]
Strip = tuple[int, int, float]  # first column, end, and the share of zeros among them
Choose = Callable[[Tensor, Tensor, float], Tensor]  # scores, mask, share of zeros -> new mask


class Importance(ABC):
    """Scores the entries of one weight."""

    @abstractmethod
    def score(self, weight: Tensor, statistic: Tensor | None = None) -> Tensor:
        """Importance of each entry.

        Args:
            weight: [out, in], without gradient.
            statistic: Statistic of the calibration of this layer, or of its training; ``None`` only where the
                importance is neither ``Calibrated`` nor ``Learned`` nor ``Gated``.

        Returns:
            Finite scores of the same shape and device; the lowest are pruned first.
        """


class Calibrated(Importance):
    """Scores by the weight and a statistic of the layer's inputs or gradients on training text.

    The technique runs the model on ``rows`` rows, one at a time and without padding. Per row and layer it calls
    ``observe``, adds up the results, and passes the sum to ``score``. So an importance holds no state and knows neither
    models nor corpora, and a layer's calibration takes the memory of one sum.

    Args:
        rows: Number of training rows to calibrate on.

    Attributes:
        observes: What ``observe`` gets: the layer's ``input``, or the ``gradient`` of the training loss.
    """

    observes: ClassVar[Observed]

    def __init__(self, *, rows: int) -> None:
        if rows < 1:
            raise ValueError(f"rows of training text to calibrate on must be >= 1, got {rows}")
        self.rows = rows

    @abstractmethod
    def observe(self, weight: Tensor, observed: Tensor) -> Tensor:
        """The summand of one row in the layer's statistic.

        Args:
            weight: [out, in], without gradient.
            observed: The layer's input at every token of the row, [N, in], or the gradient of the row's loss with
                respect to the weight, [out, in].

        Returns:
            A float32 tensor of the same shape for every row.
        """

    def merge(self, total: Tensor, part: Tensor) -> Tensor:
        """The statistic of several rows: the sum, written to ``total``."""
        return total.add_(part)


class Learned(Importance):
    """Scores by a statistic of the weight's gradients during training.

    At every optimizer step the technique calls ``learn`` with the layer's gradient; results are added up from the first
    step of the stage on, and the sum is passed to ``score``. So masks wait for the first step.
    """

    @abstractmethod
    def learn(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """The summand of one optimizer step in the layer's statistic.

        Args:
            weight: [out, in] before the step, without gradient.
            gradient: Gradient of the training objective, the same shape, finite and clipped; 0 where the weight is
                masked.

        Returns:
            A float32 tensor of the same shape.
        """


class Gate(nn.Module, ABC):
    """Multiplies a weight during training by factors that are trained too.

    Attributes:
        level: The trained parameter of the factors, one entry per weight; a gate of higher level is wider open.
    """

    level: nn.Parameter

    @abstractmethod
    def draw(self) -> None:
        """Draw the noise of one optimizer step from torch's global random state."""

    @abstractmethod
    def open(self) -> Tensor:
        """Probability that each entry is not zero, with gradient."""

    @abstractmethod
    def fold(self, weight: Tensor) -> Tensor:
        """The weight times its gate without noise: the weight once the gate is removed."""


class Gated(Importance):
    """Scores by gates that are trained along with the weights, at a learning rate of their own and without decay.

    The technique puts a gate on every layer. An augmented Lagrangian drives the expected share of closed gates to the
    target: the objective gains ``a gap + b gap^2``, where ``gap`` is the expected sparsity minus the scheduled target.
    ``a`` grows by ``price gap`` and ``b`` by ``price gap^2`` per step.

    Args:
        lr: Learning rate of the gates, which follows the stage's lr_scheduler.
        price: Step size of the gradient ascent of the multipliers.
    """

    def __init__(self, *, lr: float, price: float) -> None:
        if lr <= 0 or price <= 0:
            raise ValueError(f"lr and price of gates must be > 0, got {lr} and {price}")
        self.lr = lr
        self.price = price

    @abstractmethod
    def gate(self, shape: Sequence[int]) -> Gate:
        """A fully open gate for a weight of ``shape``."""


class Compensating(Calibrated):
    """Also updates the weights that stay, to compensate for those that are pruned.

    Attributes:
        strip: Number of columns whose weights are chosen together, where the pattern does not decide that.
    """

    strip: int

    @abstractmethod
    def prune(
        self, weight: Tensor, alive: Tensor, statistic: Tensor, strips: Iterable[Strip], choose: Choose
    ) -> tuple[Tensor, Tensor]:
        """Prune strip by strip, from left to right, and update the weights that stay.

        Args:
            weight: [out, in], without gradient.
            alive: Mask, bool of the same shape; a masked entry counts as zero and stays so.
            statistic: Statistic of the calibration of this layer.
            strips: Columns that are pruned together, in order; together they are all columns.
            choose: Chooses the mask of a strip.

        Returns:
            The new weight in float32, zero where it is masked, and the new mask.
        """
