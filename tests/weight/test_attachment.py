from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from slimexp.weight.attachment import INPUT, Attachment, Place, attach, attached, without_weight_attachments

pytestmark = pytest.mark.fast


class Scale(Attachment):
    """Multiplies by a factor."""

    def __init__(self, *, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def arguments(self) -> dict[str, Any]:
        return {"factor": float(self.factor)}


class Shift(Scale):
    """Adds a number."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def test_on_a_weight_it_changes_what_the_layer_uses_and_not_what_is_stored() -> None:
    layer = nn.Linear(4, 3)
    stored = layer.weight.detach().clone()
    attach(layer, "weight", Scale(factor=2.0))
    x = torch.randn(5, 4)
    assert torch.equal(layer(x), nn.functional.linear(x, 2 * stored, layer.bias))
    assert torch.equal(layer.parametrizations.weight.original, stored)  # type: ignore[union-attr,index]


def test_later_ones_on_a_weight_apply_to_what_earlier_ones_made() -> None:
    layer = nn.Linear(4, 3)
    stored = layer.weight.detach().clone()
    attach(layer, "weight", Scale(factor=2.0))
    attach(layer, "weight", Shift(factor=1.0))
    assert torch.equal(layer.weight, 2 * stored + 1)
    assert [type(attachment).__name__ for _, attachment in attached(layer)] == ["Scale", "Shift"]


def test_a_layer_sees_its_latent_weight_while_attachments_are_left_out() -> None:
    layers = model()
    attach(layers[0], "weight", Scale(factor=2.0))
    stored = layers[0].parametrizations.weight.original  # type: ignore[union-attr,index]
    with without_weight_attachments(layers):
        assert layers[0].weight is stored
    assert torch.equal(layers[0].weight, 2 * stored)  # type: ignore[arg-type,operator]
    with pytest.raises(RuntimeError, match="within"), without_weight_attachments(layers):
        raise RuntimeError("within")
    assert torch.equal(layers[0].weight, 2 * stored)  # type: ignore[arg-type,operator]


def test_on_an_input_it_changes_what_the_layer_reads() -> None:
    layer = nn.Linear(4, 3)
    x = torch.randn(5, 4)
    expected = layer(2 * x)
    attach(layer, INPUT, Scale(factor=2.0))
    assert torch.equal(layer(x), expected)
    assert "input_attachment.factor" in layer.state_dict()


def test_an_input_carries_one_attachment() -> None:
    layer = nn.Linear(4, 3)
    attach(layer, INPUT, Scale(factor=2.0))
    with pytest.raises(ValueError, match="carries an attachment already"):
        attach(layer, INPUT, Scale(factor=3.0))


def test_attached_names_every_place_in_order() -> None:
    net = model()
    attach(net[2], "weight", Scale(factor=2.0))
    attach(net[0], "weight", Shift(factor=3.0))
    attach(net[0], INPUT, Scale(factor=4.0))
    places = [(place, attachment.arguments()["factor"]) for place, attachment in attached(net)]
    assert places == [(Place("0", "weight"), 3.0), (Place("0", INPUT), 4.0), (Place("2", "weight"), 2.0)]


def test_foreign_parametrizations_are_not_ours() -> None:
    net = model()
    parametrize.register_parametrization(net[0], "weight", nn.Identity())
    assert list(attached(net)) == []


def test_arguments_and_state_rebuild_the_same_model() -> None:
    net = model()
    attach(net[0], "weight", Scale(factor=2.0))
    attach(net[0], INPUT, Shift(factor=3.0))
    twin = model()
    for place, attachment in attached(net):
        attach(twin.get_submodule(place.module), place.tensor, type(attachment)(**attachment.arguments()))
    twin.load_state_dict(net.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(twin(x), net(x))
