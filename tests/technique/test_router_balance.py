from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.pipeline import preflight
from slimexp.technique.router_balance import RouterBalance, balance_loss
from tests.cut.test_expert_use import MIXTURES, ROWS

Tiny = Callable[..., Any]


@pytest.mark.fast
def test_the_loss_is_one_where_all_experts_see_as_many_and_their_number_where_one_sees_all() -> None:
    even = torch.eye(4) * 30
    assert float(balance_loss(even, torch.arange(4)[:, None], None)) == pytest.approx(1)
    one = torch.tensor([[30.0, 0.0, 0.0, 0.0]] * 4)
    assert float(balance_loss(one, torch.zeros(4, 1, dtype=torch.long), None)) == pytest.approx(4)
    counts = torch.tensor([True, False, False, False])
    assert float(balance_loss(even, torch.arange(4)[:, None], counts)) == pytest.approx(4), "of what counts"
    assert float(balance_loss(even, torch.arange(4)[:, None], counts & False)) == 0
    assert float(balance_loss(torch.zeros(2, 4), torch.tensor([[0, 1], [2, 3]]), None, sigmoid=True)) == 1


@pytest.mark.parametrize("kind", ["qwen3_moe", "deepseek_v3"])
def test_the_gradient_of_the_loss_joins_that_of_the_model(tiny: Tiny, kind: str) -> None:
    family = tiny("causal_lm", model_type=kind, **MIXTURES[kind])
    batch = family.encode(ROWS)
    router = family.blocks()["decoder"][1].mlp.gate
    seen: list[Any] = []
    hook = router.register_forward_hook(lambda _, __, output: seen.append(output))
    stage = build_stage(family)

    def gradient(extra: Any) -> torch.Tensor:
        family.model.zero_grad()
        total = family.forward(batch)[0].square().mean()
        (total + extra() if extra else total).backward()
        return router.weight.grad.clone()

    def plain() -> torch.Tensor:
        logits, _, chosen = seen[-1]
        return 0.5 * balance_loss(logits, chosen, counts, sigmoid=kind == "deepseek_v3")

    counts = batch["labels"].flatten() != -100
    alone, expected = gradient(None), gradient(plain)
    hook.remove()
    callback: Any = RouterBalance(weight=0.5)
    callback.on_fit_start(None, stage)
    callback.on_train_batch_start(None, stage, batch, 0)
    torch.testing.assert_close(gradient(None), expected)
    assert not torch.allclose(alone, expected)
    callback.teardown(None, stage, "fit")
    torch.testing.assert_close(gradient(None), alone)


def build_stage(family: Any) -> Any:
    stage = build(compose(["pipeline=finetune"]).pipeline.finetune)
    stage.family = family
    return stage


def test_refusals(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"balance\.weight must be > 0, got 0"):
        RouterBalance(weight=0)
    callback = RouterBalance(weight=0.1)
    for model in ({}, {"model_type": "gpt_neo", "num_heads": 4, "num_layers": 2, "attention_types": [[["global"], 2]]}):
        with pytest.raises(
            ValueError, match=r"no experts in a model of type (llama|gpt_neo), .* leave callback\.balance"
        ):
            callback.validate(tiny("causal_lm", **model).model.config)
    dense = {"model_type": "qwen3_moe", **MIXTURES["qwen3_moe"], "mlp_only_layers": [0, 1]}
    with pytest.raises(ValueError, match="no experts in a model of type qwen3_moe"):
        callback.validate(tiny("causal_lm", **dense).model.config)
    for kind, values in MIXTURES.items():
        callback.validate(tiny("causal_lm", model_type=kind, **values).model.config)


def test_a_model_without_experts_is_refused_before_anything_is_measured(table: Path) -> None:
    model = "{model_type:llama,hidden_size:32,intermediate_size:48,num_hidden_layers:1,num_attention_heads:2}"
    cfg = compose(
        [
            "pipeline=finetune", "model=scratch", f"model.config={model}", "tokenizer@model.tokenizer=bytes",
            "data=files", f"data.path={table}", "data.task=causal_lm", "trainer=fast", "callback=[default,balance]",
        ]
    )  # fmt: skip
    with pytest.raises(ValueError, match="no experts in a model of type llama"):
        preflight.training(cfg)
