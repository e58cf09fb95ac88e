"""A technique fitted as the pipeline does, and small models with words to prune and quantize them on."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def words() -> Any:
    """Four words to copy."""
    from slimexp.data.base import Corpus, Example

    class FourWords(Corpus):
        task = "seq2seq"
        headline = "exact_match"
        direction = "max"

        def load(self) -> Any:
            rows = [Example(source=word, target=word) for word in ("one", "two", "three", "four")]
            return {"train": rows, "validation": rows, "test": rows}

        def grade(self, predictions: Any, examples: Any) -> dict[str, float]:
            return {"exact_match": 0.0}

        def trivial(self, examples: Any) -> float:
            return 0.0

    return FourWords()


@pytest.fixture(scope="session")
def family() -> Callable[..., Any]:
    """Blocks -> a T5 of so many, always the same."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    from slimexp.model.seq2seq import Seq2Seq
    from slimexp.model.tokenizer import Bytes

    def make(layers: int = 1) -> Seq2Seq:
        torch.manual_seed(0)
        config = T5Config(  # type: ignore[call-arg]
            vocab_size=259, d_model=32, d_kv=8, d_ff=48, num_layers=layers, num_heads=4,
            dropout_rate=0.0, decoder_start_token_id=0,
        )  # fmt: skip
        return Seq2Seq(T5ForConditionalGeneration(config), Bytes().build([]), max_length=16)

    return make


@pytest.fixture(scope="session")
def prune(composed: Callable[..., Any]) -> Callable[..., Any]:
    """Overrides and values -> pruning at a tiny size; what is calibrated reads every word once."""
    from slimexp.config.build import build

    def make(*overrides: str, **settings: object) -> Any:
        tiny = {"steps": 0, "batch_size": 2} | settings
        calibrated = {f"importance@pipeline.prune.importance={name}" for name in ("sparsegpt", "taylor", "wanda")}
        if calibrated & set(overrides):
            tiny = {"importance.rows": 4} | tiny
        values = [f"pipeline.prune.{key}={value}" for key, value in tiny.items()]
        return build(composed("pipeline=prune", *overrides, *values).pipeline.prune)

    return make
