import pytest
import torch

from slimexp.quantizer.straight_through import straight_through


@pytest.mark.fast
def test_values_are_those_of_the_function_and_gradients_those_of_the_identity() -> None:
    x = torch.tensor([0.1, 1.7, -2.2, 1e8], requires_grad=True)
    upstream = torch.tensor([1.0, -2.0, 3.0, 0.5])
    values = straight_through(x, lambda x: x / 3)
    assert torch.equal(values, x.detach() / 3)
    values.backward(upstream)
    assert torch.equal(x.grad, upstream)
