"""Routers that learn to use all experts: a term of the objective for mixtures that are trained from scratch."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig

from slimexp.architecture.base import EXPERTS
from slimexp.architecture.model_type import architecture_of, is_known
from slimexp.architecture.reasons import NO_MIXTURE
from slimexp.cut.expert_use import mixtures
from slimexp.cut.recognition import recognize
from slimexp.loss.base import IGNORE
from slimexp.technique.finetune import Finetune


class RouterBalance(pl.Callback):
    """Adds the load balancing loss of every router to the objective of a training.

    The loss is the number of experts times the sum over them of the share of tokens that they see and their mean
    probability (Fedus et al. 2022, "Switch transformers", equations 4 to 6): 1 where all see as many. Its gradient
    joins that of the gates, so the loss that is logged is without it. Shares are of the tokens that pass a router at
    once, on each device.

    Args:
        weight: Factor of the loss of each router.

    Raises:
        ValueError: ``weight`` is not above 0.
    """

    def __init__(self, *, weight: float) -> None:
        if not weight > 0:
            raise ValueError(f"balance.weight must be > 0, got {weight}: leave the callback out for none")
        self.weight = weight
        self._hooks: list[RemovableHandle] = []
        self._counts: Tensor | None = None  # whether a token of the batch has a label, [B * T]

    def validate(self, config: PreTrainedConfig) -> None:
        """Refuse, before anything is loaded, a model without a router that ``mixtures`` finds.

        Args:
            config: The model's config.

        Raises:
            ValueError: It has no experts, or those of a type whose parameters have names of their own.
        """
        recognize(config)
        found = architecture_of(config) if is_known(config) else None
        if found is None or EXPERTS not in found.sizes or found.refusal(EXPERTS, config) == NO_MIXTURE:
            raise ValueError(
                f"balance finds no experts in a model of type {config.model_type}, or none whose router it knows: "
                "leave callback.balance out"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Finetune)
        model, found = pl_module.family.model, mixtures(pl_module.family)
        assert found, "validate refuses a model without experts"
        scale = self.weight / pl_module.accumulate

        def balance(router: nn.Module, _: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            logits, gates, chosen = output
            if not (torch.is_grad_enabled() and gates.requires_grad):
                return output
            sigmoid = hasattr(router, "e_score_correction_bias")  # DeepSeek-V3's; the others' are softmaxes
            counts = self._counts if self._counts is not None and len(self._counts) == len(logits) else None
            return logits, _Joined.apply(gates, scale * balance_loss(logits, chosen, counts, sigmoid=sigmoid)), chosen

        routers = [model.get_submodule(f"{name.rpartition('.')[0]}.gate") for name in found]
        self._hooks = [router.register_forward_hook(balance) for router in routers]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, _: int) -> None:
        self._counts = batch["labels"].flatten() != IGNORE

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._counts = [], None


def balance_loss(logits: Tensor, chosen: Tensor, counts: Tensor | None, *, sigmoid: bool = False) -> Tensor:
    """Load balancing loss of a router, a scalar: 1 where all experts see as many tokens, up to their number.

    Args:
        logits: [N, experts].
        chosen: Indices of the experts of each token, [N, k].
        counts: Whether a token counts, [N]; ``None`` for all.
        sigmoid: Whether probabilities are sigmoids divided by their sum, in place of a softmax.
    """
    real = torch.ones_like(logits[:, 0], dtype=torch.float32) if counts is None else counts.float()
    scores = logits.float().sigmoid() if sigmoid else logits.float().softmax(1)
    probabilities = scores / scores.sum(1, keepdim=True)
    tokens = real.sum().clamp(min=1)
    seen = torch.zeros_like(probabilities[0]).index_add_(0, chosen.flatten(), real[:, None].expand_as(chosen).flatten())
    shares = seen / (tokens * chosen.shape[1])
    return logits.shape[1] * (shares * (probabilities * real[:, None]).sum(0) / tokens).sum()


class _Joined(torch.autograd.Function):
    """Passes gates on, and has the gradient of a loss of its own start where that of the gates arrives."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, loss: Tensor) -> Tensor:
        return gates.view_as(gates)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient.new_ones((), dtype=torch.float32)
