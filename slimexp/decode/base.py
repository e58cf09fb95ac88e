"""The decode loop: prompts in, tokens out; on a GPU one CUDA graph per token."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from slimexp.decode.fused import Fused, refusal
from slimexp.decode.static_cache import Captured
from slimexp.kernel.cuda_graph import capture
from slimexp.weight.shared_class import computed_once

_BURST = 32  # tokens between two looks at whether the texts have ended: a look waits for the GPU


def capturable(model: PreTrainedModel) -> bool:
    """Whether ``model`` runs in fused kernels, or transformers declares that its step can be captured."""
    return refusal(model, 2) is None or bool(getattr(model, "_can_compile_fullgraph", False))


class Decoder:
    """Generates from a causal LM: one sequence at a time, or several whose prompts have one length.

    On a GPU every token is the replay of a CUDA graph. One sequence of a Llama-like model, dense, packed or float8, is
    decoded in few fused kernels (``fused``); others, several, and where Triton is missing, by a capture of the step
    that transformers does (``static_cache``). Elsewhere that step runs as it is.

    For the fused kernels, weights of layers that read the same input move together in memory; the model's own become
    views of it. A graph reads tensors where they lay when it was recorded: what is changed in place is seen by the next
    token, what is replaced by none (``kept`` watches over that).

    Args:
        model: A causal LM in eval mode.
        length: Largest number of positions of prompt and answer together.
        rows: Number of sequences.
        temperature: Sampling temperature; 0 takes the likeliest token.
        seed: Seed of sampling by the fused kernels; the step of transformers draws from the global random state.
        fused: Whether the fused kernels run where they can.

    Attributes:
        label: Name of what runs: fused kernels or the captured step.
        reason: Why the fused kernels do not run; ``None`` where they do.

    Raises:
        ValueError: The model caches keys and values as integers, or the length, the number of rows or the temperature
            is out of range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        length: int,
        *,
        rows: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        fused: bool = True,
    ) -> None:
        if (bits := getattr(model.config, "cache_bits", None)) is not None:  # see model.cache
            raise ValueError(
                f"the decode loop caches keys and values as floats, and this model in {bits} bits: use model.generate"
            )
        if length < 2:
            raise ValueError(f"length must be >= 2, a prompt and an answer, got {length}")
        if rows < 1:
            raise ValueError(f"rows must be >= 1, got {rows}")
        if temperature < 0:
            raise ValueError(f"temperature must be >= 0, got {temperature}")
        self.model, self.length, self.rows = model, length, rows
        self.reason = self._refusal() if fused else "another step was asked for"
        self.steps: Fused | Captured
        if self.reason is None:
            overlap = torch.cuda.get_device_capability(model.device) >= (9, 0)
            self.steps = Fused(model, length, temperature=temperature, seed=seed, overlap=overlap)
        else:
            self.steps = Captured(model, length, rows=rows, temperature=temperature)
        self.label = self.steps.label
        self._computed: list[tuple[nn.Module, str, Tensor]] = []
        self._next = self._recorded()

    def _refusal(self) -> str | None:
        """Why the fused kernels do not run."""
        if self.model.device.type != "cuda":
            return f"the kernels run on a GPU, and the model is on {self.model.device}"
        if self.rows > 1:
            return f"the kernels decode one sequence, not {self.rows}"
        return refusal(self.model, self.length)

    def _recorded(self) -> Callable[[], None]:
        """What decodes a token of each row: on a GPU a CUDA graph of the step, elsewhere the step itself."""
        device = self.model.device
        return self._replayed(lambda step: capture(step, device).replay) if device.type == "cuda" else self.steps.step

    @torch.no_grad()
    def _replayed(self, record: Callable[[Callable[[], None]], Callable[[], None]]) -> Callable[[], None]:
        """The step by ``record``, which reads weights under masks and quantizers that ``prefill`` has computed."""
        with computed_once():
            self.prefill(torch.zeros(self.rows, 1, dtype=torch.int64, device=self.model.device))
            replay = record(self.steps.step)
            steps_of_model = self.model.modules() if isinstance(self.steps, Captured) else ()  # fused: has its own
            on_weights = [module for module in steps_of_model if parametrize.is_parametrized(module)]
            self._computed = [
                (module, name, getattr(module, name)) for module in on_weights for name in module.parametrizations
            ]
        return replay

    @torch.no_grad()
    def prefill(self, ids: Tensor) -> None:
        """Read prompts [rows, T], with the weights as they are; those under masks and quantizers are computed once.

        Raises:
            ValueError: They are not as many as rows, or leave no room for an answer.
        """
        if ids.ndim != 2 or len(ids) != self.rows or not 0 < ids.shape[1] < self.length:
            number = "a prompt is one sequence" if self.rows == 1 else f"prompts are {self.rows} sequences"
            raise ValueError(
                f"{number} of 1 to {self.length - 1} tokens, [{self.rows}, T], got {list(ids.shape)}: "
                "give as many as rows, or a larger length"
            )
        for module, name, known in self._computed:
            known.copy_(getattr(module, name))
        if self.model.device.type != "cuda":
            self.steps.prefill(ids)
            return
        with torch.cuda.device(self.model.device):
            self.steps.prefill(ids)

    def decode(self, count: int) -> None:
        """Append ``count`` tokens to each row, end tokens among them, without waiting for the GPU."""
        for _ in range(count):
            self._next()

    def generate(self, ids: Tensor, max_new_tokens: int, *, pad_id: int = 0) -> Tensor:
        """``ids`` [rows, T] and their continuations, up to ``max_new_tokens`` or the first token that ends a text.

        Rows that end before the longest are filled up with ``pad_id``. Until then they are decoded like the others,
        which do not see it.

        Raises:
            ValueError: Prompts and answers do not fit into ``length``.
        """
        start = ids.shape[-1]
        if max_new_tokens < 1 or start + max_new_tokens > self.length:
            raise ValueError(
                f"{start} + {max_new_tokens} tokens must be more than the prompt and fit into length {self.length}"
            )
        # steps that are not recorded compute weights under masks and quantizers once a text, too
        with nullcontext() if self._computed else computed_once():
            return self._generate(ids, max_new_tokens, pad_id)

    def _generate(self, ids: Tensor, max_new_tokens: int, pad_id: int) -> Tensor:
        self.prefill(ids)
        start, tokens = ids.shape[-1], self.steps.tokens
        ends = _ends(self.model).to(tokens.device)
        done = 0
        while done < max_new_tokens:
            burst = min(_BURST, max_new_tokens - done)
            self.decode(burst)
            done += burst
            ended = torch.isin(tokens[:, start : start + done], ends)
            if ended.any(1).all():
                break
        after = ended.cumsum(1) > ended.long()  # behind the first end of a row
        longest = int((~after).sum(1).max())
        answers = tokens[:, start : start + longest].masked_fill(after[:, :longest], pad_id)
        return torch.cat([tokens[:, :start], answers], dim=1)


def _ends(model: PreTrainedModel) -> Tensor:
    """Ids of the tokens that end a text."""
    config = model.generation_config
    ends = config.eos_token_id if config is not None else None
    return torch.tensor([] if ends is None else ends, dtype=torch.int64).reshape(-1)
