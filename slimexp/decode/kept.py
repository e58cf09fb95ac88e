"""A decoder that is kept from one batch to the next, while the model is the one that it was recorded from."""

from collections.abc import Hashable
from itertools import chain
from typing import Self

from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.cache_utils import StaticLayer

from slimexp.decode.base import Decoder
from slimexp.decode.static_cache import static_cache
from slimexp.file.bounded import one_line
from slimexp.host import out_of_memory, process_group
from slimexp.kernel.recorded_state import RecordedState


class KeptDecoder:
    """The decoder of the last batch: made when one is asked for that does not serve, and let go by ``release``.

    A CUDA graph reads weights at the addresses that they had when it was recorded. A step of an optimizer changes them
    in place, so that the next token is of the new ones. Before every use, the modules of the model, the addresses,
    shapes and types of all its tensors, and the switches of masks and quantizers on it are compared with those of the
    recording; where one is another, the decoder is dropped and a new one recorded.

    The fused kernels are not used: they move weights together, of which an optimizer knows nothing.

    Args:
        least: Least number of positions of a decoder, so that shorter prompts need no other one.
    """

    def __init__(self, *, least: int = 0) -> None:
        self.least = least
        self._decoder: Decoder | None = None
        self._shape: Hashable = None
        self._known: Hashable = None
        self._gave_up = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def of(self, model: PreTrainedModel, *, length: int, rows: int, temperature: float) -> Decoder | None:
        """A decoder of ``model`` as it stands, which may draw random numbers; ``None`` if its step cannot be recorded.

        A line says why not, and no other one is tried.

        Args:
            model: A causal LM in eval mode.
            length: Largest number of positions of prompt and answer together.
            rows: Number of sequences.
            temperature: Sampling temperature; 0 takes the likeliest token.
        """
        if self._gave_up:
            return None
        if (why := refusal(model)) is not None:
            self._give_up(why)
            return None
        shape, known = (length, rows, temperature), _state(model)
        if self._decoder is None or (shape, known) != (self._shape, self._known):
            self.release()
            state = RecordedState([model])
            before = state.kept()
            try:
                self._decoder = Decoder(model, length, rows=rows, temperature=temperature, fused=False)
            except Exception as error:  # whatever it is: generate raises anew what is its own
                if out_of_memory.is_out_of_memory(error):
                    raise
                state.bring_back(before)
                self._give_up(f"{type(error).__name__}: {one_line(error, most=200)}")
                return None
            self._shape, self._known = shape, known
        return self._decoder

    def release(self) -> None:
        """Free the memory of graph and cache."""
        if self._decoder is not None:
            self._decoder = None
            out_of_memory.release()

    def _give_up(self, why: str) -> None:
        self.release()
        if process_group.is_first():
            print(f"  texts are written by transformers' generate, so slower: {why}", flush=True)
        self._gave_up = True


def refusal(model: PreTrainedModel) -> str | None:
    """Why the decode loop cannot run the step of transformers for ``model``; ``None`` if it can."""
    config = model.config
    if (bits := getattr(config, "cache_bits", None)) is not None:  # see model.cache
        return f"keys and values are cached in {bits} bits"
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return "the weights are shards"
    if not getattr(model, "_can_compile_fullgraph", False):
        return f"transformers does not declare that the step of a {config.model_type} can be a CUDA graph"
    others = {type(layer).__name__ for layer in static_cache(config, 2).layers if type(layer) is not StaticLayer}
    if others:
        return f"a {config.model_type} caches more than keys and values of every position ({', '.join(sorted(others))})"
    return None


def _state(model: PreTrainedModel) -> Hashable:
    """Equal to that of another time where a recording of then holds."""
    modules = tuple((name, type(module)) for name, module in model.named_modules())
    tensors = chain(model.parameters(), model.buffers())
    return modules, tuple((tensor.shape, tensor.dtype) for tensor in tensors), RecordedState([model]).now()
