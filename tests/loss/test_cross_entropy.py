import math

import pytest
import torch

from slimexp.loss.base import Outputs
from slimexp.loss.cross_entropy import CrossEntropy

LOGITS = 4 * torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([[1, 8, -100, 3, 0, -100], [5, 5, 2, -100, -100, -100]])


def reference(smoothing: float) -> float:
    """By hand, in float64: -(1 - s) log p_y - s / V sum_v log p_v, averaged over real labels."""
    total, count = 0.0, 0
    for row, labels in zip(LOGITS.double().tolist(), LABELS.tolist(), strict=True):
        for scores, label in zip(row, labels, strict=True):
            if label == -100:
                continue
            partition = math.log(sum(math.exp(score) for score in scores))
            logs = [score - partition for score in scores]
            total -= (1 - smoothing) * logs[label] + smoothing * sum(logs) / len(logs)
            count += 1
    return total / count


@pytest.mark.fast
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_equals_the_reference(smoothing: float) -> None:
    loss = CrossEntropy(weight=1.0, label_smoothing=smoothing)
    assert loss(Outputs(LOGITS), None, LABELS, 0.0).mean().item() == pytest.approx(reference(smoothing), rel=1e-6)


@pytest.mark.fast
def test_reads_no_teacher_and_no_progress() -> None:
    loss = CrossEntropy(weight=1.0, label_smoothing=0.0)
    assert not loss.needs_teacher and not loss.needs_hidden and loss.scheduled(0.5) == {}
    assert torch.equal(
        loss(Outputs(LOGITS), None, LABELS, 0.0).mean(), loss(Outputs(LOGITS), Outputs(-LOGITS), LABELS, 1.0).mean()
    )


@pytest.mark.fast
@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_out_of_range(smoothing: float) -> None:
    with pytest.raises(ValueError, match=rf"label_smoothing must be in \[0, 1\), got {smoothing}"):
        CrossEntropy(weight=1.0, label_smoothing=smoothing)
