"""Running out of memory: told from other errors, and answered by smaller batches."""

import pytest
import torch

from slimexp.host.out_of_memory import halving, is_out_of_memory

pytestmark = pytest.mark.fast

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.00 GiB."),
    MemoryError("std::bad_alloc"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_it_is_told_from_other_errors(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_batches_are_halved_until_they_fit(capsys: pytest.CaptureFixture[str]) -> None:
    tried: list[int] = []

    def work(size: int) -> str:
        tried.append(size)
        if size > 5:
            raise FULL[0]
        return "done"

    assert halving(work, 19, "batch_size") == "done"
    assert tried == [19, 10, 5]
    assert capsys.readouterr().out == "  out of memory with batch_size=19: went on with 5\n"
    assert halving(work, 4, "batch_size") == "done" and not capsys.readouterr().out


@pytest.mark.parametrize("error", [FULL[0], ValueError("wrong")])
def test_what_smaller_batches_do_not_mend_is_raised(error: Exception) -> None:
    def work(size: int) -> None:
        raise error

    with pytest.raises(type(error)):
        halving(work, 2, "batch_size")
