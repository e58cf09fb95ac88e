"""Distance between the hidden states of student and teacher."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimexp.loss.base import Loss, Outputs, Ratio, Stacks
from slimexp.schedule import Schedule

EVEN, LAST = "even", "last"
MSE, COSINE = "mse", "cosine"

Layers = str | Sequence[int] | Mapping[str, Sequence[int]]


class HiddenStates(Loss):
    """A distance between hidden states, a mean over the student's layers and all stacks.

    ``mse`` is ``||h_student - h_teacher||^2 / ||h_teacher||^2``: division by the teacher's norm makes the weight
    independent of its scale. ``cosine`` is ``1 - cos(h_student, h_teacher)``, a mean over tokens (Sanh et al. 2019,
    "DistilBERT", section 3).

    ``even`` compares layer j of a student of S blocks with layer ``round(j T / S)`` of a teacher of T blocks: embedding
    with embedding, last with last, the others evenly spread (Jiao et al. 2020, "TinyBERT", section 4.1). ``last``
    compares the last alone, as DistilBERT does. A list holds a block of the teacher for each block of the student, from
    0, the numbers that a cut retains; embedding is compared with embedding then, too.

    A projection makes the student's states as wide as the teacher's: one matrix for each stack, without bias, that is
    trained with the student and is no part of it (TinyBERT, equation 8).

    Args:
        weight: Weight of the term.
        distance: ``mse`` or ``cosine``.
        layers: ``even``, ``last``, or blocks of the teacher: a list for every stack, or a list by the stack's name.
        projection: Whether the student's states go through a learned projection; without, widths must be equal.

    Raises:
        ValueError: A word that names nothing.
    """

    needs_teacher = True
    needs_hidden = True
    needs_logits = False

    # the defaults: configurations that are older than the choices did so
    def __init__(
        self,
        *,
        weight: float | Schedule,
        distance: str = MSE,
        layers: str | Sequence[int] | Mapping[str, Sequence[int]] = EVEN,
        projection: bool = False,
    ) -> None:
        super().__init__(weight=weight)
        if distance not in (MSE, COSINE):
            raise ValueError(f"distance must be {MSE} or {COSINE}, got {distance!r}")
        if isinstance(layers, str) and layers not in (EVEN, LAST):
            raise ValueError(f"layers must be {EVEN}, {LAST}, or a list of the teacher's blocks, got {layers!r}")
        self.distance = distance
        self.layers = layers
        self.learns = projection
        self.needs_width = not projection
        self.projections = nn.ModuleDict()

    def prepare(self, student: Stacks, teacher: Stacks, *, seed: int) -> None:
        if isinstance(self.layers, Mapping) and (unknown := set(self.layers) - set(student)):
            raise ValueError(f"layers names the stack '{min(unknown)}', the model has {' and '.join(student)}")
        for name, stack in student.items():
            matched(self.layers, name, stack.depth, teacher[name].depth)
            if self.needs_width:
                _check_widths(stack.width, teacher[name].width)
        if self.learns:
            generator = torch.Generator().manual_seed(seed)
            self.projections = nn.ModuleDict(
                {name: _projection(stack.width, teacher[name].width, generator) for name, stack in student.items()}
            )

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor, progress: float) -> Ratio:
        assert teacher is not None
        distance = _squared_error if self.distance == MSE else _cosine_distance
        sums = []
        for stack, states in student.hidden.items():
            targets = teacher.hidden[stack]
            for layer, target in matched(self.layers, stack, len(states) - 1, len(targets) - 1):
                state = self.projections[stack](states[layer]) if self.learns else states[layer]
                _check_widths(state.shape[-1], targets[target].shape[-1])
                sums.append(distance(state.float(), targets[target].float()))
        numerators, denominators = zip(*sums, strict=True)
        return Ratio(torch.stack(numerators), torch.stack(denominators))


def matched(layers: Layers, stack: str, student: int, teacher: int) -> list[tuple[int, int]]:
    """Layers of the student, and those of the teacher that they are compared with; 0 is the embedding.

    Args:
        layers: See ``HiddenStates``.
        stack: Name of the stack.
        student: Number of the student's blocks.
        teacher: Number of the teacher's.

    Raises:
        ValueError: A block that the teacher does not have, or another number of blocks than the student has.
    """
    if layers == LAST:
        return [(student, teacher)]
    if layers == EVEN:
        return [(layer, round(layer * teacher / student)) for layer in range(student + 1)]
    assert not isinstance(layers, str)
    blocks = layers.get(stack) if isinstance(layers, Mapping) else layers
    if blocks is None:
        return matched(EVEN, stack, student, teacher)
    if len(blocks) != student:
        raise ValueError(
            f"layers must name a block of the teacher for each of the student's {student} ({stack}), got {list(blocks)}"
        )
    if outside := [block for block in blocks if not 0 <= block < teacher]:
        raise ValueError(f"layers must be blocks 0..{teacher - 1} of the teacher ({stack}), got {outside[0]}")
    return [(0, 0), *((layer, block + 1) for layer, block in enumerate(blocks, start=1))]


def _projection(student: int, teacher: int, generator: torch.Generator) -> nn.Linear:
    """A map from the student's width to the teacher's; its columns are orthogonal, so that it keeps lengths."""
    projection = nn.utils.skip_init(nn.Linear, student, teacher, bias=False)
    nn.init.orthogonal_(projection.weight, generator=generator)
    return projection


def _check_widths(student: int, teacher: int) -> None:
    """Refuse states of two widths.

    Raises:
        ValueError: The widths differ.
    """
    if student != teacher:
        raise ValueError(
            f"hidden states of width {student} cannot be held against a teacher's of width {teacher}: "
            "set projection=true of the loss, leave cut.hidden at null, or the loss out"
        )


def _squared_error(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error of states [N, D], and the teacher's squared norm: sums."""
    return (student - teacher).square().sum(), teacher.square().sum()


def _cosine_distance(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine distance of states [N, D], a sum, and the number of tokens at which the teacher is not all zeros."""
    real = (teacher != 0).any(-1)
    distance = 1 - F.cosine_similarity(student, teacher, dim=-1)
    return torch.where(real, distance, 0.0).sum(), real.sum(dtype=torch.float32)
