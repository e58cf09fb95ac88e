"""Integers multiplied as they are, against a float64 reference."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slimexp.kernel import build, store
from slimexp.kernel.base import Packed
from slimexp.kernel.vnni import Vnni

CPU = torch.device("cpu")
Make = Callable[..., Packed]
Distance = Callable[..., float]
compiled = pytest.mark.skipif(build.failure() is not None, reason=f"no compiled kernel: {build.failure()}")


@compiled
@pytest.mark.parametrize("rows", [1, 3, 8, 17, 133])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("out", "size", "group"), [(33, 37, 37), (64, 64, 32), (100, 60, 20), (5, 30, 10)])
def test_inputs_rounded_as_trained(
    packed: Make, distance: Distance, out: int, size: int, group: int, bits: int, rows: int
) -> None:
    assert distance(Vnni, packed(out, size, group, bits=bits), rows) < 1e-6
    assert distance(Vnni, packed(out, size, group, bits=bits, activation=0.03, bias=None), rows) < 1e-6


@compiled
@pytest.mark.parametrize("bits", [4, 8])
def test_float_inputs_are_rounded_per_group_and_said_to_be(packed: Make, distance: Distance, bits: int) -> None:
    layer = packed(64, 128, 32, bits=bits, activation=None)
    assert distance(Vnni, layer, 5) < 1e-2
    assert Vnni(layer).label.endswith(", inputs rounded to int8")


@compiled
def test_a_zero_point(packed: Make, distance: Distance) -> None:
    zero = torch.randint(-100, 100, (48, 4), generator=torch.Generator().manual_seed(0))
    assert distance(Vnni, packed(48, 64, 16, zero=zero), 3) < 1e-6


@compiled
def test_shapes_types_and_odd_inputs(packed: Make) -> None:
    layer = Vnni(packed(33, 37, 37))
    x = torch.randn(2, 3, 37)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(layer(x).flatten(0, 1), layer(x.flatten(0, 1)))
    assert torch.equal(layer(torch.zeros(1, 37))[0], layer.bias[:33])
    assert layer(x[:0]).shape == (0, 3, 33)
    x[1, 1, 5] = float("nan")
    assert layer(x)[1, 1].isnan().all() and layer(x)[0].isfinite().all()


@compiled
def test_it_holds_integers(packed: Make) -> None:
    def held(bits: int) -> int:
        layer = Vnni(packed(64, 128, 128, bits=bits))
        assert layer.integers.dtype == torch.uint8
        return int(layer.integers.nbytes)

    assert held(8) == 64 * 128 and held(4) == 64 * 128 // 2


def test_what_it_refuses(packed: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Vnni.refusal(packed(8, 8, 8), torch.device("cuda")) == "it runs on cpu, not on cuda"
    assert "groups must be at most" in str(Vnni.refusal(packed(1, 70000, 70000), CPU))


def test_a_machine_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLIMEXP_CACHE", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert build.failure.__wrapped__() == "no C++ compiler"


@compiled
def test_a_kept_kernel_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert build.failure.__wrapped__() is None


@compiled
def test_a_kernel_that_another_process_kept_meanwhile_is_no_second_one(tmp_path: Path) -> None:
    (kept, *_) = (path for folder in store.folders() for path in folder.glob("vnni-*.so"))
    build._register(Path(shutil.copy(kept, tmp_path)))


def test_what_the_compiler_says_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLIMEXP_CACHE", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "c++").write_text("#!/bin/sh\necho vnni.cpp: >&2\necho 'fatal error: no such thing' >&2\nexit 1\n")
    (tmp_path / "c++").chmod(0o755)
    monkeypatch.setattr(build.shutil, "which", lambda name: str(tmp_path / name))
    assert build.failure.__wrapped__() == "it does not compile here: fatal error: no such thing"
    assert not list((tmp_path / "kernel").iterdir())
