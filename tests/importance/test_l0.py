import math

import pytest
import torch
from omegaconf import OmegaConf

from slimexp.config.build import build
from slimexp.config.composition import CONF_DIR
from slimexp.importance.l0 import HIGH, LOW, TEMPERATURE, HardConcrete

pytestmark = pytest.mark.fast


def gate(level: float, count: int = 20_000) -> HardConcrete:
    hard_concrete = HardConcrete((count,))
    torch.nn.init.constant_(hard_concrete.level, level)
    torch.manual_seed(0)
    hard_concrete.draw()
    return hard_concrete


def test_a_new_gate_changes_nothing() -> None:
    weight = torch.randn(3, 4)
    assert torch.equal(HardConcrete((3, 4))(weight), weight)
    assert torch.equal(HardConcrete((3, 4)).fold(weight), weight)


@pytest.mark.parametrize("level", [-3.0, -1.0, 0.0, 2.0])
def test_is_the_hard_concrete_distribution_of_the_paper(level: float) -> None:
    """Louizos et al. 2018, eq. 10 to 12: as often not zero as ``open`` says; the mean against the formula."""
    hard_concrete = gate(level)
    drawn = hard_concrete(torch.ones(20_000))
    assert ((drawn >= 0) & (drawn <= 1)).all()
    probability = 1 / (1 + math.exp(-(level - TEMPERATURE * math.log(-LOW / HIGH))))
    assert hard_concrete.open()[0].item() == pytest.approx(probability, rel=1e-5)
    assert (drawn > 0).float().mean().item() == pytest.approx(probability, abs=0.01)
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    s = torch.sigmoid((u.log() - (1 - u).log() + level) / TEMPERATURE)
    assert drawn.mean().item() == pytest.approx((s * (HIGH - LOW) + LOW).clamp(0, 1).mean().item(), abs=0.01)


def test_the_gradient_reaches_levels_of_gates_in_between_only() -> None:
    hard_concrete = gate(0.0)
    drawn = hard_concrete(torch.ones(20_000))
    drawn.sum().backward()
    assert torch.equal(hard_concrete.level.grad != 0, (drawn > 0) & (drawn < 1))


@pytest.mark.parametrize("name", ["lr", "price"])
def test_settings_that_train_nothing_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="lr and price of gates must be > 0"):
        build(OmegaConf.load(CONF_DIR / "importance" / "l0.yaml"), **{name: 0.0})
