"""The decode loop: a prompt in, tokens out, one CUDA graph per token."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from slimexp.decode.fused import Fused, refusal
from slimexp.decode.static_cache import Captured
from slimexp.kernel.cuda_graph import capture

_BURST = 32  # tokens between two looks at whether the text has ended: a look waits for the GPU


def capturable(model: PreTrainedModel) -> bool:
    """Whether ``model`` runs in fused kernels, or transformers declares that its step can be captured."""
    return refusal(model, 2) is None or bool(getattr(model, "_can_compile_fullgraph", False))


class Decoder:
    """Generates from a causal LM on a CUDA device, one sequence at a time.

    Llama-like models, dense, packed or float8, run in few fused kernels (``fused``); others, and where Triton is
    missing, as a capture of the step that transformers does (``static_cache``). The weights of layers that read the
    same input move together in memory; the model's own become views of it.

    Args:
        model: A causal LM in eval mode on a CUDA device.
        length: Largest number of positions of prompt and answer together.
        temperature: Sampling temperature; 0 takes the likeliest token.
        seed: Seed of sampling.

    Attributes:
        label: Name of what runs: fused kernels or the captured step.
        reason: Why the fused kernels do not run; ``None`` where they do.

    Raises:
        ValueError: The model is not on a CUDA device or caches keys and values as integers, or the length or the
            temperature is out of range.
    """

    def __init__(self, model: PreTrainedModel, length: int, *, temperature: float = 0.0, seed: int = 0) -> None:
        if (bits := getattr(model.config, "cache_bits", None)) is not None:  # see model.cache
            raise ValueError(
                f"the decode loop caches keys and values as floats, and this model in {bits} bits: use model.generate"
            )
        if model.device.type != "cuda":
            raise ValueError(f"the decode loop is a CUDA graph, and the model is on {model.device}: use model.generate")
        if length < 2:
            raise ValueError(f"length must be >= 2, a prompt and an answer, got {length}")
        if temperature < 0:
            raise ValueError(f"temperature must be >= 0, got {temperature}")
        self.model, self.length = model, length
        self.reason = refusal(model, length)
        self.steps: Fused | Captured
        if self.reason is None:
            overlap = torch.cuda.get_device_capability(model.device) >= (9, 0)
            self.steps = Fused(model, length, temperature=temperature, seed=seed, overlap=overlap)
        else:
            self.steps = Captured(model, length, temperature=temperature)
        self.label = self.steps.label
        self._graph = self._capture_step()

    @torch.inference_mode()
    def _capture_step(self) -> torch.cuda.CUDAGraph:
        self.prefill(torch.zeros(1, 1, dtype=torch.int64, device=self.model.device))
        return capture(self.steps.step, self.model.device)

    def prefill(self, ids: Tensor) -> None:
        """Read a prompt [1, T].

        Raises:
            ValueError: The prompt is not one sequence that leaves room for an answer.
        """
        if ids.ndim != 2 or len(ids) != 1 or not 0 < ids.shape[1] < self.length:
            raise ValueError(
                f"a prompt is one sequence of 1 to {self.length - 1} tokens, [1, T], got {list(ids.shape)}: "
                "give sequences one by one, or a larger length"
            )
        with torch.cuda.device(self.model.device):
            self.steps.prefill(ids)

    def decode(self, count: int) -> None:
        """Append ``count`` tokens, end tokens among them, without waiting for the GPU."""
        for _ in range(count):
            self._graph.replay()

    def generate(self, ids: Tensor, max_new_tokens: int) -> Tensor:
        """``ids`` [1, T] and its continuation, up to ``max_new_tokens`` or the first token that ends a text.

        Raises:
            ValueError: Prompt and answer do not fit into ``length``.
        """
        start = ids.shape[-1]
        if max_new_tokens < 1 or start + max_new_tokens > self.length:
            raise ValueError(
                f"{start} + {max_new_tokens} tokens must be more than the prompt and fit into length {self.length}"
            )
        self.prefill(ids)
        ends = _ends(self.model).to(ids.device)
        done = 0
        while done < max_new_tokens:
            burst = min(_BURST, max_new_tokens - done)
            self.decode(burst)
            ended = torch.isin(self.steps.tokens[start + done : start + done + burst], ends).nonzero()
            done += burst
            if len(ended):
                done += int(ended[0]) + 1 - burst
                break
        return self.steps.tokens[None, : start + done].clone()


def _ends(model: PreTrainedModel) -> Tensor:
    """Ids of the tokens that end a text."""
    config = model.generation_config
    ends = config.eos_token_id if config is not None else None
    return torch.tensor([] if ends is None else ends, dtype=torch.int64).reshape(-1)
