"""Which backend the times speak for, and when they are reliable."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from slimexp.kernel import timing
from slimexp.kernel.base import FLOAT8, Packed
from slimexp.kernel.dense import DenseBfloat16, DenseFloat32
from slimexp.kernel.timing import choose, converged, fastest_backend, time_backends

Make = Callable[..., Packed]


def test_a_later_backend_wins_only_beyond_noise() -> None:
    assert fastest_backend({"integers": [1.0] * 5, "dense": [0.97] * 5}) == "integers"
    assert fastest_backend({"integers": [1.0] * 5, "dense": [0.9] * 5, "half": [0.89] * 5}) == "dense"


def test_a_busy_neighbour_decides_nothing() -> None:
    assert fastest_backend({"integers": [1.0, 9.0, 1.0, 8.0, 1.0], "dense": [2.0, 2.0, 2.0, 2.0, 2.0]}) == "integers"
    assert fastest_backend({"integers": [1.0] * 5, "dense": [0.5, 0.5, 0.5, 0.5, 7.0]}) == "dense"
    assert fastest_backend({"integers": [8.0, 8.0, 8.0, 8.0, 1.0], "dense": [2.0, 2.0, 2.0, 2.0, 2.0]}) == "integers"


def test_a_second_kernel_for_a_layer_must_be_worth_its_memory() -> None:
    few = {"Vnni": [1.2], "IntMM": [1.0], "DenseFloat32": [3.0]}
    many = {"Vnni": [1.0], "IntMM": [2.0], "DenseFloat32": [4.0]}
    assert choose(few, many) == ("Vnni", "Vnni")
    assert choose(few | {"IntMM": [0.9]}, many) == ("IntMM", "Vnni")
    assert choose(few | {"DenseFloat32": [1.1]}, many) == ("IntMM", "Vnni")  # never slower than floats


def test_times_are_trusted_once_some_agree() -> None:
    assert converged({"integers": [9.0, 1.0, 1.05, 1.1], "dense": [1.5] * 4})
    assert not converged({"integers": [9.0, 1.0, 1.05, 1.2], "dense": [1.5] * 4})
    assert not converged({"integers": [1.0] * 4, "dense": [1.5, 1.7, 1.8, 1.9]})
    assert converged({"integers": [1.0] * 4, "dense": [2.5, 9.0, 9.0, 9.0]})  # too far behind to matter


def test_timing_ends_when_times_agree_and_stops_who_is_far_behind(
    packed: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    class Slow(DenseFloat32):
        def forward(self, x: Tensor) -> Tensor:
            ran.append("slow")
            return x

    clock = iter(range(10_000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)) + 1e4 * len(ran))
    monkeypatch.setattr(timing, "_MOST_COPIES", 1)
    seconds = time_backends(packed(8, 16, 16), 1, backends=(DenseFloat32, Slow))
    assert len(seconds["DenseFloat32"]) == timing._LEAST_ROUNDS and len(seconds["Slow"]) == 1


def test_every_backend_that_can_is_timed(packed: Make) -> None:
    seconds = time_backends(packed(8, 16, 16), 1, backends=(DenseFloat32, DenseBfloat16))
    assert list(seconds) == ["DenseFloat32", "DenseBfloat16"] and min(map(min, seconds.values())) > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rows", [1, 128])
@pytest.mark.parametrize(("kind", "product"), [(torch.int8, "IntMM"), (FLOAT8, "ScaledMM")])
def test_what_can_run_is_timed(packed: Make, kind: torch.dtype, product: str, rows: int) -> None:
    layer = packed(64, 96, 96)
    seconds = time_backends(layer._replace(numbers=layer.numbers.to(kind)).to("cuda"), rows)
    assert list(seconds) == [product, "DenseFloat32", "DenseBfloat16"] and min(map(min, seconds.values())) > 0
