"""Gates on layers while they are trained, and the Lagrangian that drives the share of closed ones to the target."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from slimexp.host import process_group
from slimexp.importance.base import Gate, Gated
from slimexp.model.layer import Layer, latent, place

OPEN = 1e4  # level at which a gate is open for good


class L0Gates(nn.Module):
    """Puts a gate over everything else on the weight of every layer.

    The gates are the model's as long as they are there: its parameters, its checkpoint. The multipliers are buffers
    here, so that they are in the checkpoint too.

    Args:
        importance: Builds the gates; its ``price`` is the step of the multipliers.
        layers: The layers, by name.
        groups: Names of the layers of each group that reaches its target as a whole.

    Attributes:
        multipliers: Lagrange multipliers of the gap and of its square, [2, groups].
    """

    multipliers: Tensor

    def __init__(self, importance: Gated, layers: Mapping[str, Layer], groups: Sequence[Sequence[str]]) -> None:
        super().__init__()
        self._layers = dict(layers)
        self._groups = groups
        self._price = importance.price
        self._gates: dict[str, Gate] = {}
        for name, layer in layers.items():
            weight = latent(layer)
            self._gates[name] = importance.gate(weight.shape).to(weight.device)
            parametrize.register_parametrization(*place(layer), self._gates[name])
        self.register_buffer("multipliers", torch.zeros(2, len(groups)))

    def levels(self) -> dict[str, Tensor]:
        """Layer -> the trained parameter of its gate, in the shape of its weight."""
        return {name: gate.level for name, gate in self._gates.items()}

    def draw(self) -> None:
        """Draw the noise of one optimizer step."""
        for gate in self._gates.values():
            gate.draw()
            process_group.broadcast(gate.buffers())

    def penalty(self, target: Tensor) -> Tensor:
        """Term of the objective for the gap between the groups' expected sparsity and ``target`` [groups]."""
        gap = self._gap(target)
        linear, quadratic = self.multipliers
        return (linear * gap + quadratic * gap.square()).sum()

    @torch.no_grad()
    def ascend(self, target: Tensor) -> None:
        """Move the multipliers of the gap to ``target`` [groups] by a step of gradient ascent."""
        gap = self._gap(target)
        self.multipliers += self._price * torch.stack([gap, gap.square()])

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply the gates into the weights and open them for good; a second time changes nothing."""
        for name, gate in self._gates.items():
            weight = latent(self._layers[name])
            weight.copy_(gate.fold(weight))
            gate.level.fill_(OPEN)

    def remove(self) -> None:
        """Take the gates off the layers."""
        for layer in self._layers.values():
            module, tensor = place(layer)
            del module.parametrizations[tensor][-1]  # type: ignore[index,union-attr]

    def _gap(self, target: Tensor) -> Tensor:
        """Expected sparsity minus ``target``, [groups]."""
        sparsity = []
        for names in self._groups:
            gates = [self._gates[name] for name in names]
            opened = torch.stack([gate.open().sum() for gate in gates]).sum()
            sparsity.append(1 - opened / sum(gate.level.numel() for gate in gates))
        return torch.stack(sparsity) - target
