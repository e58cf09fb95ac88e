"""What suits the chip: each choice is checked, handed on, and taken where it pays back."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning.strategies import ModelParallelStrategy
from safetensors.torch import load_file

from slimexp.config.build import build
from slimexp.config.check import check
from slimexp.config.composition import CONF_DIR, compose
from slimexp.pipeline import machine
from slimexp.pipeline import trainer as module
from slimexp.pipeline.trainer import Trainer
from slimexp.quantizer.minmax import MinMax
from slimexp.technique.training import Execution
from slimexp.weight.attachment import attach

Make = Callable[..., Any]


def made(**options: object) -> Trainer:
    trainer = build(OmegaConf.merge(OmegaConf.load(CONF_DIR / "trainer" / "cpu.yaml"), options))
    assert isinstance(trainer, Trainer)
    return trainer


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("pad_to", 0, r"trainer\.pad_to must be >= 1, got 0"),
        ("logits_at_once", 0, r"trainer\.logits_at_once must be >= 1, got 0"),
        (
            "attention",
            [],
            r"trainer\.attention must be some of .*flash_attention, math, or null for torch's own choice",
        ),
        ("attention", ["fast"], r"got \['fast'\]"),
    ],
)
def test_what_it_cannot_be_is_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**{key: value})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+trainer.max_stepz=1", "unknown key 'trainer.max_stepz'"),
        ("trainer.compile=maybe", "trainer.compile must be"),
        ("+trainer.max_steps=5", "trainer.max_steps is not for the trainer to say"),
    ],
)
def test_a_wrong_key_is_found_before_anything_is_built(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(compose(["+experiment=distill_t5", override]))


def test_attention_uses_the_kernels_that_it_may() -> None:
    before = torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()
    with made(attention=["math"]).attention_kernels():
        assert torch.backends.cuda.math_sdp_enabled() and not torch.backends.cuda.flash_sdp_enabled()
    with made(attention=None).attention_kernels():
        assert (torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()) == before


@pytest.fixture
def stage(tiny: Make, technique: Make, corpus: Make) -> Make:
    def make(**values: Any) -> Any:
        stage = technique("distill", **values)
        stage.prepare(tiny("causal_lm"), corpus("causal_lm"), tiny("causal_lm"))
        return stage

    return make


def test_compiles_where_it_pays_back(stage: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = made(compile="auto")
    monkeypatch.setattr(module, "_has_compiler", lambda: True)

    def compiles(stage: Any) -> bool:
        trainer.suit(stage)
        compiled: bool = stage.execution.compiled
        return compiled

    blocks, unlike = 4, 2  # of student and teacher
    enough = unlike * module._PAYS_BACK // blocks
    long = stage(steps=enough)
    assert not compiles(long), "not on a CPU"
    monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device("cuda"))
    assert compiles(long)
    assert not compiles(stage(steps=enough - 1))
    layers = list(long.family.compressible().values())
    attach(layers[0], "weight", MinMax(bits=4, group_size=16))
    assert not compiles(long), "a third kind of block, whose layers do not all have a quantizer"
    for layer in layers[1:]:
        attach(layer, "weight", MinMax(bits=4, group_size=16))
    assert compiles(long)


@pytest.mark.parametrize("compile", [True, False])
def test_hands_on_what_is_chosen(stage: Make, compile: bool) -> None:
    trained = stage(steps=1)
    made(compile=compile, pad_to=8, fused=True, logits_at_once=5).suit(trained)
    chosen = trained.execution
    assert (chosen.pad_to, chosen.compiled, chosen.fused, chosen.logits_at_once) == (8, compile, True, 5)
    assert trained.pad_to == 8 and next(iter(trained.train_dataloader()))["input_ids"].shape[1] % 8 == 0
    assert stage(steps=1, pad_to=3).pad_to == 3, "a stage's own goes first"


@pytest.fixture
def _no_look_at_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no mask, transformers looks whether positions are those of packed rows."""
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda positions: None)


class Waits(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts what would wait for a GPU: numbers that are read on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        if any(
            word in name for word in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal.default")
        ):
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("_no_look_at_positions")
@pytest.mark.parametrize("task", ["seq2seq", "causal_lm"])
def test_a_step_reads_no_number_on_the_host(
    tiny: Make, technique: Make, corpus: Make, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slimexp.technique.finite import FiniteCheck

    monkeypatch.setattr(FiniteCheck, "_is_far", staticmethod(lambda value: True))
    monkeypatch.setattr(FiniteCheck, "_look", lambda self, step: None)
    losses = "pipeline.distill.losses"
    chosen = [f"+loss@{losses}.{name}={name}" for name in ("hidden", "relations")]
    chosen += [f"+schedule@{losses}.kl.weight=linear", f"{losses}.kl.weight.start=0", f"{losses}.kl.weight.end=1"]
    stage = technique("distill", *chosen, steps=2, **{"losses.hidden.projection": True})
    stage.prepare(tiny(task), corpus(task), tiny(task))
    batch = stage.on_before_batch_transfer(stage.family.encode([("some text", "word", None)] * 2), 0)
    stage.evaluate(batch)  # looks at the heads
    stage.trainer = made(log_every_n_steps=0)
    with Waits() as waits:
        stage.training_step(batch, 0)
        stage.configure_gradient_clipping(None)
    assert waits.seen == []


@pytest.mark.gpu
@pytest.mark.usefixtures("_no_look_at_positions")
@pytest.mark.parametrize("compile", [False, True])
def test_training_on_a_gpu_waits_for_nothing(stage: Make, tiny: Make, compile: bool) -> None:
    """Between two lines of the log no step waits for the device; and the losses are those of a CPU in bfloat16."""
    import pytorch_lightning as pl

    class Strict(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            torch.cuda.set_sync_debug_mode("error" if 2 <= trainer.global_step < 6 else "default")

        def on_train_batch_end(self, *_: Any) -> None:
            torch.cuda.set_sync_debug_mode("default")

    trained = stage(steps=8)
    family = trained.family
    rows = [family.encode([("x" * 30, None, None)] * 4) for _ in range(8)]
    trained.train_dataloader = lambda: torch.utils.data.DataLoader(rows, batch_size=None, pin_memory=True)
    node = compose(["trainer=gpu"]).trainer
    trainer = build(OmegaConf.merge(node, {"compile": compile, "enable_progress_bar": False}), max_steps=8,
                    callbacks=[Strict()], log_every_n_steps=100)  # fmt: skip
    trainer.suit(trained)
    try:
        trainer.fit(trained)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        trained.release()
    assert trainer.optimizers[0].defaults["fused"] and trainer.global_step == 8
    assert {p.dtype for p in trained.teacher_family.model.parameters()} == {torch.bfloat16}
    assert all(p.isfinite().all() for p in trained.parameters())


def test_cuda_graphs_on_a_cpu_are_refused() -> None:
    with pytest.raises(ValueError, match=r"trainer\.cuda_graphs=true cannot be had on a CPU: set it to auto or false"):
        made(cuda_graphs=True)


def test_shards_are_not_compiled_and_that_is_said(stage: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def sharded(**options: Any) -> Any:
        node = OmegaConf.merge(OmegaConf.load(CONF_DIR / "trainer" / "cpu.yaml"), options, {"devices": 2})
        node.strategy = "fsdp"
        return machine.trainer(node, steps=1, accumulate=1, callbacks=(), loggers=(), folder=None)

    message = r"trainer\.compile=true cannot be had by trainer\.strategy=fsdp.*set it to auto or false"
    with pytest.raises(ValueError, match=message):
        sharded(compile=True)
    trainer = sharded(compile="auto")
    monkeypatch.setattr(module, "_has_compiler", lambda: True)
    monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device("cuda"))
    long = stage(steps=2 * module._PAYS_BACK)
    trainer.suit(long)
    assert not long.execution.compiled


def test_passes_are_recorded_where_they_can_be(stage: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = made(cuda_graphs="auto")

    def records(steps: int) -> bool:
        long = stage(steps=steps)
        trainer.suit(long)
        recorded: bool = long.execution.recorded
        return recorded

    enough = module._WORTH_RECORDING
    assert not records(enough), "not on a CPU"
    monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device("cuda"))
    assert records(enough) and not records(enough - 1)
    monkeypatch.setattr(ModelParallelStrategy, "root_device", torch.device("cuda"))
    monkeypatch.setattr(Trainer, "strategy", ModelParallelStrategy())
    assert not records(enough), "not in shards"


@pytest.mark.parametrize(("fitting", "configured", "rows"), [(2, None, 2), (2, 4, 4), (None, None, None)])
def test_rows_that_are_sure_to_fit_where_a_step_cannot_be_repeated(
    stage: Make, fitting: int | None, configured: int | None, rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, trainer = stage(steps=30), made(rows_at_once=configured)
    trained.fitting_rows = fitting
    trainer.suit(trained)
    assert trained.rows_at_once == rows
    monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device("cuda"))
    trainer.suit(trained)
    assert trained.rows_at_once == configured, "a GPU that holds the model finds out by itself"


def test_activations_may_be_computed_anew_and_change_neither_weights_nor_key(pipeline: Make, overrides: Make) -> None:
    runs = []
    for name, on in (("plain", "false"), ("anew", "true")):
        short = ["pipeline.distill.steps=3", "pipeline.distill.batch_size=4", f"trainer.activation_checkpointing={on}"]
        cut = ["+cut@pipeline.distill.cut=keep", "pipeline.distill.cut.ffn=24"]
        run = pipeline(overrides("distill", *cut, *short, f"name={name}", "measure=[size]", task="causal_lm"))
        run.run()
        runs.append(run.stages[-1])
    assert runs[0].key == runs[1].key
    plain, anew = (load_file(stage.artifact / "model.safetensors") for stage in runs)
    assert all(torch.equal(plain[name], anew[name]) for name in plain)


def test_what_is_computed_anew_is_not_recorded(technique: Make, tiny: Make, corpus: Make) -> None:
    stage = technique("finetune", steps=100)
    stage.prepare(tiny("causal_lm"), corpus("causal_lm"), None)
    stage.execution = Execution(recorded=True)
    assert stage.records
    stage.execution = Execution(recorded=True, recomputed=True)
    assert not stage.records
