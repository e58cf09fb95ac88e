"""How much of a batch of causal text is padding, and how fast do batches come, without a model to train?

    python -m benchmarks.loader --tokenizer llama_python_source --max-length 512 --batch-size 16

Draws the batches of a training on the corpus of ``--data``, with one text a row and with packed rows. Prints a Markdown
table: tokens are those of the text, without padding; the first batch is apart, since it waits for the tokenizer. Where
the rate is above that of training, training does not wait for text.
"""

import argparse
import time
from collections.abc import Iterable
from typing import Any

from slimexp.config.build import build
from slimexp.config.composition import compose


class Line:
    """Figures of the batches of one way to fill rows."""

    def __init__(self, batches: Iterable[Any]) -> None:
        began = time.perf_counter()
        real, room, shapes, first = 0, 0, set(), 0.0
        for batch in batches:
            mask = batch["attention_mask"]
            first = first or time.perf_counter() - began
            real, room = real + int(mask.sum()), room + mask.numel()
            shapes.add(tuple(mask.shape))
        self.first, self.seconds = first, time.perf_counter() - began - first
        self.padding, self.tokens, self.shapes = 1 - real / room, real, len(shapes)

    def __str__(self) -> str:
        rate = self.tokens / self.seconds
        return f"{self.padding:.2%} | {self.shapes} | {rate:,.0f} | {1e3 * self.first:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="python_source", help="an option of the group data")
    parser.add_argument("--tokenizer", default="llama_python_source", help="the option of the group model that has it")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--workers", type=int, default=0)
    arguments, overrides = parser.parse_known_args()
    from slimexp.technique.batches import training_batches

    length = f"model.max_length={arguments.max_length}"
    cfg = compose([f"data={arguments.data}", f"model={arguments.tokenizer}", length, *overrides])
    corpus = build(cfg.data)
    family = build(cfg.model).load(task=corpus.task, texts=corpus.texts, labels=corpus.labels)
    print("| rows | padding | shapes | tokens/s | first batch ms |\n| --- | ---: | ---: | ---: | ---: |")
    ways = (("one text each", False, 1), ("one text each, multiples of 64", False, 64), ("packed", True, 64))
    for name, packing, multiple in ways:
        batches = training_batches(
            corpus, family, batch_size=arguments.batch_size, seed=0, start=0, stop=arguments.batches,
            workers=arguments.workers, multiple=multiple, packing=packing,
        )  # fmt: skip
        print(f"| {name} | {Line(batches)} |", flush=True)


if __name__ == "__main__":
    main()
