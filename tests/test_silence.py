"""No phase is silent: on a clock on which every product with a weight takes a second, a line comes every ten."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from slimexp.host import progress
from slimexp.host.progress import EVERY_S, FIRST_S, Reporter, working
from slimexp.measure.base import Subject, run
from slimexp.pipeline.progress import Progress

Make = Callable[..., Any]
PRODUCT_S = 1.0
ROWS = 16


class Watch:
    """A clock that products with weights move, and the times at which lines were printed."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.reporter = Reporter(lambda: self.now, watching=False)
        self.lines: list[tuple[float, str]] = []
        self.began = self.now = self.now + 100  # after another phase that printed for itself

    def work(self, seconds: float = PRODUCT_S) -> None:
        self.now += seconds
        self.reporter.report()

    def longest_silence(self) -> float:
        times = [self.began, *(time for time, _ in self.lines), self.now]
        return max(after - before for before, after in pairwise(times))


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    watch = Watch()
    multiply = nn.Linear.forward

    def forward(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        watch.work()
        return multiply(layer, x)

    monkeypatch.setattr(progress, "reporter", watch.reporter)
    monkeypatch.setattr(watch.reporter, "_print", lambda text, **_: _print(watch, text))
    monkeypatch.setattr(nn.Linear, "forward", forward)
    yield watch
    assert watch.reporter._stack == []  # whatever began has ended


def _print(watch: Watch, text: str) -> None:
    watch.reporter._printed = watch.now
    watch.lines.append((watch.now, text))


def prepare(stage: Any, tiny: Make, corpus: Make) -> None:
    """As ``pipeline.fit`` does."""
    with working("stage: preparing"):
        stage.prepare(tiny("causal_lm"), corpus("causal_lm"), None)
    with working("stage: finishing"):
        stage.finish()


def heard(watch: Watch, what: str) -> None:
    """Every phase was long, a line came in time, and it says what is done and how far it is."""
    assert watch.now - watch.began > 3 * EVERY_S
    assert watch.longest_silence() <= EVERY_S + PRODUCT_S, watch.lines
    assert watch.lines[0][0] - watch.began <= FIRST_S + PRODUCT_S
    assert any(what in text and " of " in text for _, text in watch.lines), watch.lines


@pytest.fixture
def conf() -> Make:
    """Overrides -> the measures of a run."""
    from types import SimpleNamespace

    from slimexp.config.build import build
    from slimexp.config.composition import chosen, compose

    def measures(*overrides: str) -> Any:
        return SimpleNamespace(**{name: build(node) for name, node in chosen(compose(overrides).measure).items()})

    return measures


CALIBRATED = {
    "wanda": ("prune", ["importance@pipeline.prune.importance=wanda", f"pipeline.prune.importance.rows={ROWS}"]),
    "sparsegpt": (
        "prune",
        ["importance@pipeline.prune.importance=sparsegpt", f"pipeline.prune.importance.rows={ROWS}"],
    ),
    "taylor": ("prune", ["importance@pipeline.prune.importance=taylor", f"pipeline.prune.importance.rows={ROWS}"]),
    "gptq": ("quantize", ["+rounding@pipeline.quantize.rounding=gptq", f"pipeline.quantize.rounding.rows={ROWS}"]),
    "awq": ("quantize", ["+smoothing@pipeline.quantize.smoothing=awq", f"pipeline.quantize.smoothing.rows={ROWS}"]),
}


@pytest.mark.parametrize("method", CALIBRATED)
def test_calibrating(method: str, watch: Watch, tiny: Make, corpus: Make, technique: Make) -> None:
    name, overrides = CALIBRATED[method]
    stage = technique(name, *overrides)
    prepare(stage, tiny, corpus)
    heard(watch, "row")


def test_ranges_of_activations(watch: Watch, tiny: Make, corpus: Make, technique: Make) -> None:
    values = {"bits": 8, "activation_bits": 8, "calibration_rows": ROWS}
    static = "quantizer@pipeline.quantize.activation_quantizer=static"
    stage = technique("quantize", static, **values)
    prepare(stage, tiny, corpus)
    heard(watch, "calibration row")


def test_solving_for_a_shape(watch: Watch, tiny: Make, corpus: Make, technique: Make) -> None:
    stage = technique(
        "prune_structured", "pipeline.prune_structured.importance.rows=4", rows=4, multiple=8, axes="[ffn,hidden]"
    )
    prepare(stage, tiny, corpus)
    heard(watch, "cut")


@pytest.mark.parametrize("task", ["causal_lm", "classification"])
def test_measuring_the_task(task: str, watch: Watch, tiny: Make, corpus: Make, tmp_path: Any, conf: Make) -> None:
    subject = Subject(tiny(task), tmp_path)
    run({"task": conf("measure=task", "measure.task.batch_size=1").task}, subject, subject, corpus(task))
    heard(watch, "measuring task: batch")


def test_measuring_latency(watch: Watch, tiny: Make, corpus: Make, tiny_folder: Make, conf: Make) -> None:
    subject = Subject(tiny("causal_lm"), tiny_folder("causal_lm"))
    latency = conf("measure=latency", "measure.latency.tokens=4", "measure.latency.new_tokens=2").latency
    run({"latency": latency}, subject, subject, corpus("causal_lm"))
    heard(watch, "measuring latency: pair of requests")


def test_measuring_sensitivity(watch: Watch, tiny: Make, corpus: Make, tmp_path: Any, conf: Make) -> None:
    subject = Subject(tiny("causal_lm"), tmp_path)
    measures = {"sensitivity": conf("measure=sensitivity", "measure.sensitivity.rows=2").sensitivity}
    run(measures, subject, subject, corpus("causal_lm"))
    heard(watch, "measuring sensitivity: layer")


def test_the_first_step_of_a_training(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimexp.pipeline.progress.reporter", watch.reporter)
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    callback = Progress(refresh_rate=1)
    trainer: Any = type("Trainer", (), {"global_step": 0, "max_steps": 5, "accumulate_grad_batches": 1})()
    monkeypatch.setattr("pytorch_lightning.callbacks.TQDMProgressBar.on_train_start", lambda *_: None)
    monkeypatch.setattr("pytorch_lightning.callbacks.TQDMProgressBar.on_train_batch_end", lambda *_: None)
    monkeypatch.setattr("pytorch_lightning.callbacks.TQDMProgressBar.on_train_end", lambda *_: None)
    monkeypatch.setattr(callback, "get_metrics", lambda *_: {})
    callback.on_train_start(trainer, trainer)
    for _ in range(40):
        watch.work()
    assert watch.lines[0][1].startswith("waiting for the first step, ")
    for index in range(5):
        for _ in range(40):  # seconds of a step
            watch.work()
        trainer.global_step = index + 1
        callback.on_train_batch_end(trainer, trainer, None, None, index)
    callback.on_train_end(trainer, trainer)
    heard(watch, "step 2 of 5")


@pytest.mark.parametrize("what", ["loading", "saving", "digests"])
def test_what_goes_to_and_from_the_disk(
    what: str, watch: Watch, tiny_folder: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    from slimexp import artifact
    from slimexp.file import integrity
    from slimexp.model.loading import Pretrained

    folder = tiny_folder("causal_lm")

    def slow(function: Make) -> Make:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            for _ in range(35):
                watch.work()
            return function(*arguments, **options)

        return wrapped

    source = Pretrained(path=str(folder), max_length=16)
    family = source.load(task="causal_lm", texts=tuple, labels=())
    if what == "loading":
        import transformers

        monkeypatch.setattr(
            transformers.PreTrainedModel,
            "_load_pretrained_model",
            slow(transformers.PreTrainedModel._load_pretrained_model),
        )
        source.load(task="causal_lm", texts=tuple, labels=())
        assert watch.lines[0][1].startswith("loading ")
    elif what == "saving":
        monkeypatch.setattr(artifact, "save_weights", slow(artifact.save_weights))
        artifact.save(family, tmp_path / "artifact", dtype=torch.float32, stages=[])
        assert watch.lines[0][1].startswith("saving the model")
    else:
        monkeypatch.setattr(integrity, "digest", slow(integrity.digest))
        one_by_one = lambda files, **_: list(map(integrity.digest, files))  # noqa: E731 (the watch is of one thread)
        monkeypatch.setattr(integrity, "take_digests", one_by_one)
        source.fingerprint()
        assert watch.lines[0][1].startswith("digest of ")
    assert watch.longest_silence() <= EVERY_S + PRODUCT_S
