"""llama.cpp as a Python package, which computes what a GGUF file holds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from slimexp.format.base import Ids, Logits, Running

_FLOAT32 = 0  # of ggml's types
_TOKENS = 512  # that it has room for: the logits of all of them are kept


class LlamaCpp(Running):
    """A file that llama.cpp has loaded.

    Args:
        file: The file.
        length: Tokens that a row may have.
        exact: Whether keys and values are float32 and attention is computed in plain products, beside which nothing is
            rounded where the weights are float32; else as the engine does by itself.
    """

    decodes = True

    def __init__(self, file: Path, *, length: int, exact: bool) -> None:
        from llama_cpp import Llama

        options = {"type_k": _FLOAT32, "type_v": _FLOAT32, "flash_attn": False} if exact else {}
        threads = torch.get_num_threads()
        try:
            self.engine = Llama(
                str(file),
                n_ctx=min(length, _TOKENS),
                n_gpu_layers=0,
                n_threads=threads,
                n_threads_batch=threads,
                logits_all=True,
                verbose=False,
                **options,
            )
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"llama.cpp cannot load what was written ({error}): take another format") from error

    def logits(self, source: Ids, target: Ids) -> Logits:
        self.engine.reset()
        self.engine.eval(list(source))
        array: Logits = np.array(self.engine.scores[: len(source)], np.float32)
        return array

    def greedy(self, source: Ids, start: Ids, count: int) -> list[int]:
        written = [int(self.logits(source, [])[-1].argmax())]
        while len(written) < count:
            self.engine.eval(written[-1:])
            written.append(int(self.engine.scores[self.engine.n_tokens - 1].argmax()))
        return written

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.engine.tokenize(text.encode(), add_bos=True, special=False) for text in texts]
