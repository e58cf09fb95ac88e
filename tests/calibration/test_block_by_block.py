"""Every block is seen behind blocks that are pruned, as if the whole model ran anew for each."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slimexp.calibration import block_by_block
from slimexp.calibration.block_by_block import calibrate_blocks
from slimexp.calibration.observe import calibrate
from slimexp.importance.wanda import Wanda
from slimexp.weight.attachment import attach
from slimexp.weight.mask import Mask

ROWS = [("one two", "one 2", 0), ("three", "3", 1), ("four and five", "four & 5", 1)]
# every other block looks back four tokens only: masks of two kinds, of which the first block's is but one
TWO_MASKS = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
MODELS = [("seq2seq", {}), ("causal_lm", {}), ("causal_lm", TWO_MASKS), ("classification", {})]
Prune = Callable[[Mapping[str, Tensor]], None]


@pytest.fixture(params=MODELS, ids=lambda model: f"{model[0]} {model[1].get('model_type', '')}")
def family(request: pytest.FixtureRequest, tiny: Callable[..., Any]) -> Any:
    task, values = request.param
    return tiny(task, **values)


def show(family: Any, prune: Prune, *, rows: list[Any] = ROWS, **layers: nn.Module) -> None:
    batches = [family.encode([row]) for row in rows]
    calibrate_blocks(
        Wanda(rows=len(rows)),
        family,
        family.compressible() | layers,
        batches,
        device=torch.device("cpu"),
        update=prune,
    )


def halve(family: Any, names: Any) -> None:
    """Take every other weight out of layers."""
    for name in names:
        family.compressible()[name].weight.data.view(-1)[::2] = 0


def inputs_squared(family: Any, names: Any) -> dict[str, Tensor]:
    """Layer -> sum of squares of every input channel over all rows."""
    totals: dict[str, Tensor] = {}

    def add(name: str, inputs: tuple[Tensor, ...]) -> None:
        totals[name] = totals.get(name, 0) + inputs[0].square().flatten(0, -2).sum(0)

    layers = family.compressible()
    hooks = [layers[name].register_forward_pre_hook(lambda _, x, name=name: add(name, x)) for name in names]
    for row in ROWS:
        with torch.no_grad():
            family.forward(family.encode([row]))
    for hook in hooks:
        hook.remove()
    return totals


def test_as_it_stands_where_nothing_is_pruned(family: Any) -> None:
    seen: dict[str, Tensor] = {}
    show(family, seen.update)
    batches = [family.encode([row]) for row in ROWS]
    plain = calibrate(Wanda(rows=3), family, family.compressible(), batches, objective=lambda _: torch.zeros(()))
    assert list(seen) == list(plain)
    for name, total in plain.items():
        torch.testing.assert_close(seen[name], total)


def test_behind_pruned_blocks_in_float64(family: Any) -> None:
    """Against a model that runs from the beginning for every block."""
    twin = copy.copy(family)
    twin.model = copy.deepcopy(family.model).double()
    order: list[str] = []

    def prune(statistics: Mapping[str, Tensor]) -> None:
        expected = inputs_squared(twin, statistics)
        for name, total in statistics.items():
            torch.testing.assert_close(total.double(), expected[name], rtol=1e-4, atol=1e-6)
        for model in (family, twin):
            halve(model, statistics)
        order.extend(statistics)

    show(family, prune)
    assert order == list(family.compressible())


@pytest.mark.parametrize(("values", "runs"), [({}, 1), (TWO_MASKS, 2)])
def test_the_model_is_entered_once_where_its_blocks_can_be_followed(
    values: dict[str, Any], runs: int, tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = tiny("causal_lm", **values)
    entered, run = [], family.run
    monkeypatch.setattr(family, "run", lambda batch: entered.append(len(batch["input_ids"][0])) or run(batch))
    show(family, lambda _: None)
    assert len(entered) == 1 + runs * len(ROWS)
    assert entered[0] <= block_by_block.PROBE


def test_no_weight_is_masked_before_its_block_is_run(tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    family = tiny("causal_lm")
    for layer in family.compressible().values():
        attach(layer, "weight", Mask(shape=layer.weight.shape))
    entered: list[Any] = []
    when: list[int] = []
    run, forward = family.run, Mask.forward
    monkeypatch.setattr(family, "run", lambda batch: entered.append(batch) or run(batch))
    monkeypatch.setattr(Mask, "forward", lambda self, weight: when.append(len(entered)) or forward(self, weight))
    show(family, lambda _: None)
    assert set(when) == {1 + len(ROWS)}  # the row that shows where outputs go, and the entries, need none


def test_a_mixture_with_two_masks_is_calibrated_as_it_runs(tiny: Callable[..., Any]) -> None:
    """It does not run without values, and a short row needs no masks: they must be made all the same."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
               "shared_expert_intermediate_size": 16, "mlp_only_layers": [],
               "sliding_window": block_by_block.PROBE + 2}  # fmt: skip
    family = tiny("causal_lm", **TWO_MASKS | {"model_type": "qwen2_moe"} | experts)
    seen: dict[str, Tensor] = {}
    show(family, seen.update)
    batches = [family.encode([row]) for row in ROWS]
    plain = calibrate(Wanda(rows=3), family, family.compressible(), batches, objective=lambda _: torch.zeros(()))
    for name, total in plain.items():
        torch.testing.assert_close(seen[name], total)


def test_a_layer_that_no_row_reaches(tiny: Callable[..., Any]) -> None:
    family = tiny("causal_lm")
    block = family.blocks()["decoder"][0]
    block.expert = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"layer 'expert' had no part in the 3 rows .* raise importance\.rows"):
        show(family, lambda _: None, expert=block.expert)


@pytest.mark.parametrize("fails", [True, False])
def test_nothing_is_left(fails: bool, family: Any) -> None:
    def prune(_: Mapping[str, Tensor]) -> None:
        assert not any(module.training for module in family.model.modules())
        if fails:
            raise KeyError

    family.model.train()
    state = torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in family.model.state_dict().items()}
    try:
        show(family, prune)
    except KeyError:
        assert fails
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in family.model.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in family.model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in family.model.state_dict().items())


@pytest.mark.gpu
def test_blocks_keep_their_type_on_a_gpu(family: Any) -> None:
    """As they are loaded where no stage trains: of 16 bits, and on the CPU."""
    family.model.bfloat16()
    seen: dict[str, Tensor] = {}
    batches = [family.encode([row]) for row in ROWS]
    calibrate_blocks(
        Wanda(rows=3), family, family.compressible(), batches, device=torch.device("cuda"), update=seen.update
    )
    assert {(x.dtype, x.device.type) for x in family.model.parameters()} == {(torch.bfloat16, "cpu")}
    on_cpu: dict[str, Tensor] = {}
    show(family, on_cpu.update)
    for name, total in on_cpu.items():
        assert (seen[name].cpu() - total).norm() < 0.02 * total.norm()


@pytest.mark.gpu
def test_blocks_visit_the_gpu_one_at_a_time(family: Any) -> None:
    on_cpu: dict[str, Tensor] = {}
    show(family, on_cpu.update)
    on_gpu: dict[str, Tensor] = {}
    batches = [family.encode([row]) for row in ROWS]
    calibrate_blocks(
        Wanda(rows=3), family, family.compressible(), batches, device=torch.device("cuda"), update=on_gpu.update
    )
    assert {parameter.device.type for parameter in family.model.parameters()} == {"cpu"}
    for name, total in on_cpu.items():
        assert on_gpu[name].is_cuda
        torch.testing.assert_close(on_gpu[name].cpu(), total, rtol=1e-4, atol=1e-5)
