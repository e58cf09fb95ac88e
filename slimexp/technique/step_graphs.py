"""Forward and backward passes as CUDA graphs: what are a thousand starts of kernels for the host becomes one.

A step of a small model, or of a few rows, takes the host longer to start than the GPU to compute. Recorded once, it is
replayed on the tensors that it was recorded with: parameters, masks and gradients where they lie in memory, and a batch
that is copied to where the recorded one was. Numbers of the host are constants of a recording, so that what changes
from step to step must be a tensor. (PyTorch, "CUDA semantics", section "CUDA Graphs".)
"""

import random
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from slimexp.file.bounded import one_line
from slimexp.kernel.cuda_graph import undone
from slimexp.kernel.recorded_state import RecordedState
from slimexp.model.base import Batch
from slimexp.model.masks import as_recorded

Loss = tuple[Tensor, dict[str, Tensor]]  # the loss, and name -> its parts
Recorder = Callable[[Callable[[], Loss]], tuple[Callable[[], None], Loss]]  # work -> what does it anew, its result

MOST = 16  # recordings at a time, one for each shape of a batch


@dataclass(frozen=True)
class _Recording:
    """A recorded pass.

    Attributes:
        replay: Computes anew what was recorded.
        inputs: The tensors that it reads the batch from.
        result: The loss and its parts, which every replay writes to.
    """

    replay: Callable[[], None]
    inputs: Batch
    result: Loss


class StepGraphs:
    """Adds the gradients of a loss to ``.grad``; by a recording, where two batches of the same shape came before.

    The first batch of a shape is computed as it is, which also compiles and plans what is still to be; the second is
    recorded. Recordings are of one state of the models: where a tensor moved, or a switch was flipped, they are made
    anew. What cannot be recorded (a number is read on the host, a buffer is replaced in every step) is computed as it
    is from then on, which a line says.

    Args:
        compute: Computes the loss of a batch, and its parts by name, and adds its gradient to ``.grad``.
        modules: All that it is computed with: models and losses.
        constants: What else a recording depends on.
        record: Records what is computed on a GPU.
    """

    def __init__(
        self,
        compute: Callable[[Batch], Loss],
        modules: Iterable[nn.Module],
        *,
        constants: Callable[[], Hashable],
        record: Recorder | None = None,
    ) -> None:
        modules = list(modules)
        trained = (weight for module in modules for weight in module.parameters() if weight.requires_grad)
        self._parameters = list(dict.fromkeys(trained))
        self._add_gradient = compute
        self._constants = constants
        self._record = record or CudaRecorder()
        self._state = RecordedState(modules)
        self._gave_up = False
        self._forget(None)

    @property
    def recorded(self) -> bool:
        """Whether there are recordings, which take memory."""
        return bool(self._recordings)

    @property
    def gave_up(self) -> bool:
        """Whether nothing is recorded any more."""
        return self._gave_up

    def give_up(self, why: str) -> None:
        """Drop all recordings, and make no more."""
        if self._gave_up:
            return
        print(f"  steps are no CUDA graphs, so slower: {why}", flush=True)
        self._gave_up = True
        self._forget(None)

    def zero(self) -> None:
        """Begin a step: set all gradients to zero; to none, where no recording adds to them."""
        if not self._gave_up and (state := (self._state.now(), self._constants())) != self._known:
            self._forget(state)
        if self._gradients:
            torch._foreach_zero_(list(self._gradients.values()))
        for parameter in self._parameters:
            parameter.grad = self._gradients.get(parameter)

    def __call__(self, batch: Batch) -> Loss:
        """Compute the loss of a batch, and add its gradient; ``zero`` comes first.

        Args:
            batch: Inputs and labels, on the models' device.

        Returns:
            The loss and its parts, without gradient; the values of the parts hold until the next call.
        """
        if self._gave_up:
            return self._compute(batch)
        shape = tuple((name, tensor.shape, tensor.dtype) for name, tensor in batch.items())
        if shape not in self._seen or (shape not in self._recordings and len(self._recordings) == MOST):
            return self._compute_first(shape, batch)
        if shape not in self._recordings and (why := self._add_recording(shape, batch)):
            self.give_up(why)
            return self._compute(batch)
        recording = self._recordings[shape]
        for name, tensor in batch.items():
            recording.inputs[name].copy_(tensor, non_blocking=True)
        recording.replay()
        total, parts = recording.result
        return total.clone(), parts

    def _compute(self, batch: Batch) -> Loss:
        with as_recorded():
            return self._add_gradient(batch)

    def _compute_first(self, shape: Hashable, batch: Batch) -> Loss:
        result = self._compute(batch)
        self._seen.add(shape)
        self._trained |= {parameter for parameter in self._parameters if parameter.grad is not None}
        return result

    def _add_recording(self, shape: Hashable, batch: Batch) -> str | None:
        """Record the pass of a batch; returns why it cannot be."""
        for parameter in self._trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self._gradients[parameter] = parameter.grad
        inputs = {name: tensor.clone() for name, tensor in batch.items()}
        before, drawn, why = self._state.kept(), _random_numbers(), None
        try:
            with _given_gradients(self._trained) as given:
                replay, result = self._record(lambda: self._compute(inputs))
        except Exception as error:  # whatever it is: the batch is computed without, and raises anew what is its own
            why = f"{type(error).__name__}: {one_line(error, most=200)}"
        else:
            self._recordings[shape] = _Recording(replay, inputs, result)
            others = [parameter for parameter in self._parameters if parameter not in self._gradients]
            if given != self._trained or any(parameter.grad is not None for parameter in others):
                why = "weights get a gradient in some steps only"
            if _random_numbers() != drawn:
                why = "a step draws random numbers on the host"
            if (self._state.now(), self._constants()) != self._known:
                why = "a step replaces tensors of the model"
        if why is not None:  # what was recorded was not computed
            self._state.bring_back(before)
            for parameter in self._parameters:
                parameter.grad = self._gradients.get(parameter)
        return why

    def _forget(self, state: Hashable) -> None:
        """Drop the recordings, and make new ones of a state."""
        self._known = state
        self._seen: set[Hashable] = set()  # shapes
        self._trained: set[nn.Parameter] = set()  # what got a gradient from their first batches
        self._recordings: dict[Hashable, _Recording] = {}
        self._gradients: dict[nn.Parameter, Tensor] = {}  # which recordings add to


class CudaRecorder:
    """Records what is computed as CUDA graphs, which share their memory, as one at a time is replayed."""

    def __init__(self) -> None:
        self._last: Callable[[], torch.cuda.CUDAGraph | None] = lambda: None

    def __call__(self, work: Callable[[], Loss]) -> tuple[Callable[[], None], Loss]:
        graph, last = torch.cuda.CUDAGraph(), self._last()
        pool = None if last is None else last.pool()
        # other threads pin batches and write checkpoints meanwhile
        with undone(), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = work()
        self._last = weakref.ref(graph)  # whoever drops all recordings gives up their memory
        return graph.replay, result


@contextmanager
def _given_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[set[nn.Parameter]]:
    """Those of the parameters that get a gradient within the context."""
    given: set[nn.Parameter] = set()
    handles = [parameter.register_post_accumulate_grad_hook(given.add) for parameter in parameters]
    try:
        yield given
    finally:
        for handle in handles:
            handle.remove()


def _random_numbers() -> Hashable:
    """States of the host's random numbers, by which some models leave out layers."""
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), repr(np.random.get_state(legacy=False))
