"""A training whose passes are recorded and replayed ends with the weights of one whose are not."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slimexp.technique import finetune, step_graphs
from slimexp.technique.finetune import Finetune
from slimexp.technique.step_graphs import MOST, StepGraphs
from slimexp.technique.training import Execution
from tests.technique.tape import TapeRecorder

Make = Callable[..., Any]
STEPS = 8
LENGTH = 64  # of every batch


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[TapeRecorder]]:
    monkeypatch.setattr(step_graphs, "CudaRecorder", TapeRecorder)
    TapeRecorder.replays = TapeRecorder.recordings = 0
    yield TapeRecorder


def by(importance: str) -> str:
    return f"importance@pipeline.prune.importance={importance}"


def rounded(quantizer: str) -> str:
    return f"quantizer@pipeline.quantize.quantizer={quantizer}"


PRUNE = {"steps": STEPS, "sparsity": 0.5, "every": 2, "ramp": 0.5}
QUANTIZE = {"steps": STEPS, "bits": 4, "group_size": 16, "activation_bits": None}
LOSSES = "pipeline.distill.losses"
HIDDEN = [f"+loss@{LOSSES}.hidden=hidden"]
WEIGHTS = [f"+schedule@{LOSSES}.{name}.weight=linear" for name in ("ce", "kl")]
WEIGHTS += [f"{LOSSES}.ce.weight={{start:0,end:1}}", f"{LOSSES}.kl.weight={{start:1,end:0}}"]
OWN = "some written by the student"
WRITTEN = ["+completion@pipeline.distill.completion=student"]
ADDED = "+loss@pipeline.distill.losses"
PACT = "quantizer@pipeline.quantize.activation_quantizer=pact"
DISTILL = "distill, at a temperature that falls"
CASES: dict[str, tuple[str, list[str], dict[str, Any], int]] = {  # technique, overrides, values, replays at least
    DISTILL: ("distill", [], {"steps": STEPS}, STEPS - 4),
    "two batches a step": ("distill", [], {"steps": STEPS, "accumulate": 2}, 2 * STEPS - 4),
    "hidden states": ("distill", HIDDEN, {"steps": STEPS}, 1),
    "projected hidden states": ("distill", HIDDEN, {"steps": STEPS, "losses.hidden.projection": True}, 1),
    "cosine of hidden states": ("distill", HIDDEN, {"steps": STEPS, "losses.hidden.distance": "cosine"}, 1),
    "relations": ("distill", [f"+loss@{LOSSES}.relations=relations"], {"steps": STEPS}, STEPS - 4),
    "weights that change": ("distill", WEIGHTS, {"steps": STEPS}, STEPS - 4),
    "Jensen-Shannon": ("distill", [f"+loss@{LOSSES}.jsd=jsd"], {"steps": STEPS}, STEPS - 4),
    OWN: ("distill", WRITTEN, {"steps": STEPS, "completion.longest": 8}, STEPS - 5),
    "byte spans": ("distill", [f"{ADDED}.byte_span=byte_span"], {"steps": STEPS}, STEPS - 4),
    "universal logits": ("distill", [f"{ADDED}.universal_logit=universal_logit"], {"steps": STEPS}, STEPS - 4),
    "dropout": ("distill", [], {"steps": STEPS, "dropout": True}, STEPS - 4),
    "magnitude": ("prune", [by("magnitude")], PRUNE, STEPS - 4),
    "movement": ("prune", [by("movement")], PRUNE, STEPS - 4),
    "Wanda": ("prune", [by("wanda")], PRUNE | {"importance.rows": 2}, STEPS - 4),
    "L0": ("prune", [by("l0")], PRUNE, 0),
    "min-max, on at half, frozen later": ("quantize", [], QUANTIZE | {"start": 0.5, "freeze": 0.75}, 1),
    "affine, tokens": ("quantize", [], QUANTIZE | {"symmetric": False, "activation_bits": 8}, STEPS - 4),
    "LSQ": ("quantize", [rounded("lsq")], QUANTIZE, STEPS - 4),
    "PACT": ("quantize", [PACT], QUANTIZE | {"activation_bits": 8, "calibration_rows": 2}, STEPS - 4),
}


@pytest.fixture
def trained(tiny: Make, technique: Make, corpus: Make, fit: Make) -> Make:
    """Case -> weights of a training on a device, in the order of the model's state."""

    def train(case: str, device: str, *, recorded: bool, task: str = "causal_lm") -> dict[str, Tensor]:
        name, overrides, values, _ = CASES[case]
        stage = technique(name, *overrides, **values)
        family = tiny(task)
        family.max_length = LENGTH
        stage.compute_device = torch.device(device)
        stage.prepare(family, corpus(task), tiny(task) if stage.needs_teacher else None)
        stage.execution = Execution(pad_to=LENGTH, recorded=recorded)
        fit(stage, accelerator=device.replace("cuda", "gpu"))
        stage.release()
        stage.finish()
        return {name: tensor.cpu() for name, tensor in stage.model.state_dict().items()}

    return train


@pytest.mark.parametrize("case", CASES)
def test_training_ends_with_the_same_weights(case: str, trained: Make, tape: type[TapeRecorder]) -> None:
    straight, other = (trained(case, "cpu", recorded=recorded) for recorded in (False, True))
    assert straight.keys() == other.keys()
    for key, expected in straight.items():
        assert torch.allclose(expected, other[key], atol=1e-5), key
    least = CASES[case][-1]
    assert tape.replays >= least and bool(tape.replays) == bool(least)


@pytest.mark.parametrize("case", ["byte spans", "universal logits"])
def test_what_a_teacher_reads_in_other_tokens_is_recorded_too(
    case: str, trained: Make, tape: type[TapeRecorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "reads_alike", lambda *_: False)
    monkeypatch.setitem(
        CASES, case, (*CASES[case][:1], [*CASES[case][1], "~pipeline.distill.losses.kl"], *CASES[case][2:])
    )
    test_training_ends_with_the_same_weights(case, trained, tape)


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["causal_lm", "seq2seq", "classification"])
@pytest.mark.parametrize("case", CASES)
def test_training_on_a_gpu_ends_with_the_same_weights(
    case: str, task: str, trained: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if case == OWN and task == "classification":
        pytest.skip("a classifier writes nothing")
    replays = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: replays.append(self) or replay(self))
    straight, other = (trained(case, "cuda", recorded=recorded, task=task) for recorded in (False, True))
    assert "so slower" not in capsys.readouterr().out
    assert bool(replays) == bool(CASES[case][-1]) or ("hidden states" in case and task != "causal_lm")
    if case not in ("dropout", OWN):  # which draw other numbers, or other tokens where weights differ by rounding
        floats = [key for key, tensor in straight.items() if tensor.is_floating_point()]
        one, wanted = (torch.cat([state[key].flatten().float() for key in floats]) for state in (other, straight))
        assert (one - wanted).norm() < 0.02 * wanted.norm()


class Model(nn.Module):
    """``scale * weight @ x``, with what recordings cannot hold, where it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))
        self.idle = nn.Parameter(torch.ones(3))
        self.register_buffer("scale", torch.ones(()))
        self.trouble = ""

    def compute(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        total, parts = self.loss(batch)
        total.backward()
        return total.detach(), parts

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        total = self.scale * (batch["x"] @ self.weight.T).square().sum()
        if self.trouble == "reads":
            total = total * total.item()
        if self.trouble == "replaces":
            self.scale = self.scale.clone()
        return total, {"part": total.detach()}


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def graphs(model: Model, tape: type[TapeRecorder]) -> StepGraphs:
    return StepGraphs(model.compute, [model], constants=lambda: None)


def rows(count: int, seed: int = 0) -> dict[str, Tensor]:
    return {"x": torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))}


def gradient(graphs: StepGraphs, model: Model, batch: dict[str, Tensor]) -> tuple[float, Tensor]:
    graphs.zero()
    total, parts = graphs(batch)
    assert model.weight.grad is not None and torch.equal(parts["part"], total) and not total.requires_grad
    return total.item(), model.weight.grad.clone()


def expected(model: Model, batch: dict[str, Tensor]) -> tuple[float, Tensor]:
    total, _ = model.loss(batch)
    return total.item(), torch.autograd.grad(total, model.weight)[0]


def check(graphs: StepGraphs, model: Model, *batches: dict[str, Tensor]) -> None:
    for batch in batches:
        one, other = gradient(graphs, model, batch), expected(model, batch)
        assert one[0] == pytest.approx(other[0]) and torch.allclose(one[1], other[1])


def test_every_shape_is_recorded_at_its_second_batch(
    model: Model, graphs: StepGraphs, tape: type[TapeRecorder]
) -> None:
    check(graphs, model, rows(2), rows(4), rows(2, 1), rows(4, 1), rows(2, 2))
    assert (tape.recordings, tape.replays) == (2, 3)
    assert model.idle.grad is None


def test_only_so_many_shapes_are_recorded(model: Model, graphs: StepGraphs, tape: type[TapeRecorder]) -> None:
    check(graphs, model, *(rows(count, seed) for count in range(1, MOST + 3) for seed in range(2)))
    assert tape.recordings == MOST


def test_what_an_optimizer_changes_in_place_is_read_anew(model: Model, graphs: StepGraphs) -> None:
    for seed in range(4):
        check(graphs, model, rows(2, seed))
        with torch.no_grad():
            model.weight.mul_(2)
            model.scale.add_(1)


@pytest.mark.parametrize("change", ["weight", "buffer", "setting"])
def test_recordings_of_another_state_are_dropped(
    change: str, model: Model, graphs: StepGraphs, tape: type[TapeRecorder]
) -> None:
    check(graphs, model, rows(2), rows(2, 1))
    if change == "weight":
        model.weight.data = model.weight.data * 3
    elif change == "buffer":
        model.scale = torch.full((), 3.0)
    else:
        model.trouble = "none"
    check(graphs, model, rows(2, 2))
    assert tape.recordings == 1, "it may be gone again in the next step"
    check(graphs, model, rows(2, 3))
    assert tape.recordings == 2


def test_what_cannot_be_recorded_is_computed_and_a_line_says_so(
    model: Model, graphs: StepGraphs, capsys: pytest.CaptureFixture[str]
) -> None:
    model.trouble = "reads"
    check(graphs, model, rows(2), rows(2, 1), rows(2, 2))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("  steps are no CUDA graphs, so slower: RuntimeError: aten._local_scalar_dense")


def test_what_replaces_its_tensors_in_every_step_is_never_recorded(
    model: Model, graphs: StepGraphs, tape: type[TapeRecorder]
) -> None:
    model.trouble = "replaces"
    check(graphs, model, rows(2), rows(2, 1), rows(2, 2))
    assert not tape.recordings


def test_what_a_recording_replaced_is_brought_back(
    model: Model, graphs: StepGraphs, capsys: pytest.CaptureFixture[str]
) -> None:
    check(graphs, model, rows(2))
    scale, compute, left = model.scale, model.compute, [torch.zeros(())]

    def replaces_once(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        result = compute(batch)
        model.scale = left.pop() if left else model.scale
        return result

    graphs._add_gradient = replaces_once
    check(graphs, model, rows(2, 1), rows(2, 2))
    assert not left and model.scale is scale
    assert "a step replaces tensors of the model" in capsys.readouterr().out


def test_what_trains_in_some_passes_only_is_not_recorded(
    model: Model, graphs: StepGraphs, capsys: pytest.CaptureFixture[str]
) -> None:
    """A layer that is left out of a recording would be out for good."""
    compute = model.compute
    with_idle = [True]

    def sometimes(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if with_idle:
            model.idle.sum().backward()
        return compute(batch)

    graphs._add_gradient = sometimes
    check(graphs, model, rows(3))
    with_idle.clear()
    check(graphs, model, rows(3, 1))
    assert not graphs.recorded
    assert "weights get a gradient in some steps only" in capsys.readouterr().out


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), random.random, np.random.rand])
def test_what_draws_on_the_host_is_not_recorded(
    draw: Callable[[], object], model: Model, tape: type[TapeRecorder], capsys: pytest.CaptureFixture[str]
) -> None:
    def record(work: Callable[[], Any]) -> Any:
        draw()  # which a recording on a GPU sees nothing of
        return tape()(work)

    graphs = StepGraphs(model.compute, [model], constants=lambda: None, record=record)
    check(graphs, model, rows(2), rows(2, 1), rows(2, 2))
    assert not tape.replays and "draws random numbers on the host" in capsys.readouterr().out


def test_batches_of_a_step_add_up(model: Model, tape: type[TapeRecorder]) -> None:
    graphs = StepGraphs(model.compute, [model], constants=lambda: None)
    for first in (0, 2, 4):
        graphs.zero()
        graphs(rows(2, first))
        graphs(rows(2, first + 1))
        whole = [expected(model, rows(2, first + number))[1] for number in range(2)]
        assert model.weight.grad is not None and torch.allclose(model.weight.grad, sum(whole))


def test_where_memory_runs_out_recordings_make_room(
    trained: Make, tape: type[TapeRecorder], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, before batches are divided."""
    compute, left = Finetune.compute, [torch.OutOfMemoryError("no room")]

    def fails_once(self: Finetune, batch: dict[str, Tensor]) -> Any:
        if tape.replays == 2 and left:
            raise left.pop()
        return compute(self, batch)

    straight = trained(DISTILL, "cpu", recorded=False)
    monkeypatch.setattr(Finetune, "compute", fails_once)
    monkeypatch.setattr(step_graphs, "MOST", 1)  # so that steps are computed now and then
    other = trained(DISTILL, "cpu", recorded=True)
    assert not left and tape.replays == 2
    assert all(torch.allclose(expected, other[key], atol=1e-5) for key, expected in straight.items())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "memory" in line]
    assert line == "  steps are no CUDA graphs, so slower: memory for them is lacking"


@pytest.mark.gpu
def test_on_a_gpu_recordings_are_dropped_made_anew_and_given_up(capsys: pytest.CaptureFixture[str]) -> None:
    """And random numbers are drawn as ever after a recording that failed in the midst."""
    model = Model().cuda()
    graphs = StepGraphs(model.compute, [model], constants=lambda: None)
    stream = torch.cuda.current_stream()
    for number in range(3):  # each time in other memory
        model.weight.data = model.weight.data.clone() * (number + 1)
        check(graphs, model, *({"x": rows(2, seed)["x"].cuda()} for seed in range(4)))
        assert graphs.recorded and capsys.readouterr().out == ""
    model.trouble = "reads"
    check(graphs, model, *({"x": rows(2, seed)["x"].cuda()} for seed in range(3)))
    assert "steps are no CUDA graphs" in capsys.readouterr().out
    assert torch.cuda.current_stream() == stream and torch.rand(4, device="cuda").isfinite().all()
