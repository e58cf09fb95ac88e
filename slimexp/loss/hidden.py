"""Distance between the hidden states of student and teacher."""

import torch
from torch import Tensor

from slimexp.loss.base import Loss, Outputs, Ratio


class HiddenStates(Loss):
    """``||h_student - h_teacher||^2 / ||h_teacher||^2``, a mean over the student's layers and all stacks.

    Layer j of a student of S blocks is compared with layer ``round(j T / S)`` of a teacher of T blocks: embedding with
    embedding, last with last, the others evenly spread (Jiao et al. 2020, "TinyBERT", section 4.1). The widths are
    equal, so nothing is projected; division by the teacher's norm makes the weight independent of its scale.

    Args:
        weight: Weight of the term.
    """

    needs_teacher = True
    needs_hidden = True
    needs_logits = False

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor, progress: float) -> Ratio:
        assert teacher is not None
        pairs = [
            (state, targets[round(layer * (len(targets) - 1) / (len(states) - 1))])
            for stack, states in student.hidden.items()
            for targets in (teacher.hidden[stack],)
            for layer, state in enumerate(states)
        ]
        errors = [_squared_error(state, target) for state, target in pairs]
        return Ratio(torch.stack(errors), torch.stack([target.float().square().sum() for _, target in pairs]))


def _squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of states [N, D], a sum.

    Raises:
        ValueError: The widths differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"hidden states of width {student.shape[-1]} cannot be held against a teacher's of width "
            f"{teacher.shape[-1]}: leave cut.hidden at null, or the loss out"
        )
    return (student.float() - teacher.float()).square().sum()
