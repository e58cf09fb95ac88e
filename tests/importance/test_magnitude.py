import pytest
import torch

from slimexp.importance.magnitude import Magnitude


@pytest.mark.fast
def test_sign_does_not_matter_and_larger_matters_more() -> None:
    assert Magnitude().score(torch.tensor([[-3.0, 1.0, 2.0]])).tolist() == [[3.0, 1.0, 2.0]]
