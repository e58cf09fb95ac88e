"""What every importance is: a score per weight; pruning keeps the highest."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

Observed = Literal["input", "gradient"]
Strip = tuple[int, int, float]  # columns from, to, and the share of zeros that is due among them
Choose = Callable[[Tensor, Tensor, float], Tensor]  # scores, what is alive, share of zeros -> what stays


class Importance(ABC):
    """Scores the entries of one weight."""

    @abstractmethod
    def score(self, weight: Tensor, statistic: Tensor | None = None) -> Tensor:
        """Importance of each entry.

        Args:
            weight: [out, in], without gradient.
            statistic: What the calibration of this layer, or its training, came to; ``None`` only where the importance
                is neither ``Calibrated`` nor ``Learned`` nor ``Gated``.

        Returns:
            Finite scores of the same shape and device; larger is kept longer.
        """


class Calibrated(Importance):
    """Scores by more than the weight: what is seen of the layer while the model reads training text.

    The technique shows it ``rows`` rows, one at a time and without padding. Per row and layer it calls ``observe``,
    adds up what that returns, and hands the sum to ``score``. So an importance holds no state and knows neither
    models nor corpora, and a layer's calibration takes the memory of one sum.

    Args:
        rows: Training rows to read.

    Attributes:
        observes: What it is shown: the layer's ``input``, or the ``gradient`` of the training loss.
    """

    observes: ClassVar[Observed]

    def __init__(self, *, rows: int) -> None:
        if rows < 1:
            raise ValueError(f"rows of training text to calibrate on must be >= 1, got {rows}")
        self.rows = rows

    @abstractmethod
    def observe(self, weight: Tensor, observed: Tensor) -> Tensor:
        """What one row adds to the layer's statistic.

        Args:
            weight: [out, in], without gradient.
            observed: The layer's input at every token of the row, [N, in], or the gradient of the row's loss with
                respect to the weight, [out, in].

        Returns:
            A float32 tensor of the same shape for every row.
        """

    def merge(self, total: Tensor, part: Tensor) -> Tensor:
        """The statistic of rows together: the sum, written to ``total``."""
        return total.add_(part)


class Learned(Importance):
    """Scores by what training does to the weight.

    At every optimizer step the technique shows it the layer's gradient; what ``learn`` returns is added up from the
    first step of the stage on, and the sum is handed to ``score``. So masks wait for the first step.
    """

    @abstractmethod
    def learn(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """What one optimizer step adds to the layer's statistic.

        Args:
            weight: [out, in] before the step, without gradient.
            gradient: Of the training objective, the same shape, finite and clipped; 0 where the weight is masked.

        Returns:
            A float32 tensor of the same shape.
        """


class Gate(nn.Module, ABC):
    """Multiplies a weight, while it is trained, by numbers that are trained too.

    Attributes:
        level: The trained parameter behind the numbers, one entry per weight; the higher, the wider open.
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
        """The weight times its gate without noise: what stays when the gate is taken away."""


class Gated(Importance):
    """Scores by gates that are trained along with the weights, at a learning rate of their own and without decay.

    The technique puts a gate on every layer. A Lagrangian drives the share of open ones to the target: the objective
    gains ``a gap + b gap^2``, where ``gap`` is the expected sparsity minus the target of the moment. ``a`` grows by
    ``price gap`` and ``b`` by ``price gap^2`` per step.

    Args:
        lr: Learning rate of the gates, which follows the stage's lr_scheduler.
        price: Gradient ascent's step of the multipliers.
    """

    def __init__(self, *, lr: float, price: float) -> None:
        if lr <= 0 or price <= 0:
            raise ValueError(f"lr and price of gates must be > 0, got {lr} and {price}")
        self.lr = lr
        self.price = price

    @abstractmethod
    def gate(self, shape: Sequence[int]) -> Gate:
        """A gate, wide open, for a weight of ``shape``."""


class Compensating(Calibrated):
    """Also moves the weights that stay, so that they make up for those that go.

    Attributes:
        strip: Columns whose weights are chosen together, where the pattern leaves that open.
    """

    strip: int

    @abstractmethod
    def prune(
        self, weight: Tensor, alive: Tensor, statistic: Tensor, strips: Iterable[Strip], choose: Choose
    ) -> tuple[Tensor, Tensor]:
        """Choose strip after strip, from left to right, and move what stays.

        Args:
            weight: [out, in], without gradient.
            alive: Bool, same shape; what is dead counts as zero and stays so.
            statistic: What the calibration of this layer came to.
            strips: Columns that are decided together, in order; together they are all columns.
            choose: Picks what stays in a strip.

        Returns:
            The new weight in float32, zero where it is dead, and what is alive now.
        """
