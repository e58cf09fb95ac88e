"""The mean of the devices' gradients is the gradient of the whole batch, however the labels are spread."""

import pytest
import torch
from torch import Tensor

from slimexp.host import process_group
from slimexp.loss.base import Ratio
from slimexp.technique.across_devices import across_devices


def ratios(weight: Tensor, rows: Tensor) -> dict[str, Ratio]:
    """Two terms, of one quotient and of two."""
    squares = torch.stack([(weight * rows).square().sum(), rows.sum() * weight])
    return {
        "ce": Ratio((weight * rows).sum()[None], torch.tensor([float(len(rows))])),
        "hidden": Ratio(squares, rows.square().sum().expand(2)),
    }


def flat(terms: dict[str, Ratio]) -> Tensor:
    return torch.cat([part.detach() for ratio in terms.values() for part in (ratio.numerator, ratio.denominator)])


def test_two_devices_of_unlike_shares_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, weight = torch.tensor([1.0, 2.0, 4.0, 5.0, 9.0]), torch.tensor(3.0, requires_grad=True)
    whole = across_devices(ratios(weight, rows))
    (expected,) = torch.autograd.grad(torch.stack(list(whole.values())).sum(), weight)
    shares = (rows[:4], rows[4:])
    sums = [flat(ratios(weight, share)) for share in shares]
    monkeypatch.setattr(process_group, "size", lambda: 2)
    monkeypatch.setattr(process_group, "add_up", lambda tensor: sums[0] + sums[1])
    gradients = []
    for share in shares:
        terms = across_devices(ratios(weight, share))
        for name, term in terms.items():
            torch.testing.assert_close(term, whole[name])
        gradients += torch.autograd.grad(torch.stack(list(terms.values())).sum(), weight)
    torch.testing.assert_close(torch.stack(gradients).mean(), expected)


def test_a_share_without_labels_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.tensor(3.0, requires_grad=True)
    monkeypatch.setattr(process_group, "size", lambda: 2)
    monkeypatch.setattr(process_group, "add_up", lambda tensor: torch.tensor([12.0, 4.0]))
    term = across_devices({"ce": Ratio((weight * 0.0)[None], torch.zeros(1))})["ce"]
    assert term == 3.0 and torch.autograd.grad(term, weight) == (0.0,)
