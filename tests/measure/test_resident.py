"""Bytes of storages, shared ones once, and of the tensors inside of tensor subclasses."""

import pytest
import torch
from torch import Tensor, nn

from slimexp.measure.resident import plain_tensors, resident_bytes


class Wrapped(Tensor):
    """A tensor subclass that holds two tensors, as quantized ones do."""

    @staticmethod
    def __new__(cls, integers: Tensor, scale: Tensor) -> "Wrapped":
        return Tensor._make_wrapper_subclass(cls, integers.shape, dtype=torch.float32)  # type: ignore[attr-defined]

    def __init__(self, integers: Tensor, scale: Tensor) -> None:
        self.integers, self.scale = integers, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["integers", "scale"], None

    @staticmethod
    def __tensor_unflatten__(tensors: dict[str, Tensor], *_: object) -> "Wrapped":
        return Wrapped(tensors["integers"], tensors["scale"])

    @classmethod
    def __torch_dispatch__(cls, *args: object, **kwargs: object) -> None:
        raise NotImplementedError


@pytest.mark.fast
def test_shared_storages_count_once_and_whole() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    assert resident_bytes(model) == 2 * 16 * 4
    model[1].weight = model[0].weight
    assert resident_bytes(model) == 16 * 4
    model.register_buffer("view", model[0].weight.detach()[:1])
    assert resident_bytes(model) == 16 * 4
    model.register_buffer("part", torch.zeros(100, dtype=torch.int8)[:1])  # keeps all of its storage
    assert resident_bytes(model) == 16 * 4 + 100


@pytest.mark.fast
def test_of_a_tensor_subclass_the_tensors_inside_count() -> None:
    module = nn.Module()
    inside = torch.zeros(4, 8, dtype=torch.int8), torch.zeros(4)
    module.register_buffer("weight", Wrapped(*inside))
    assert [tensor.data_ptr() for tensor in plain_tensors(module)] == [tensor.data_ptr() for tensor in inside]
    assert resident_bytes(module) == 32 + 16
