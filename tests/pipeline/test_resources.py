"""What a run takes, by the sizes of its models alone, beside what is allocated; and what is refused."""

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.profiler import ProfilerActivity, profile

from slimexp.pipeline import capacity
from slimexp.pipeline.capacity import Machine
from slimexp.pipeline.resources import Need, Setting, Sizes, of_stage

Make = Callable[..., Any]
GB = 10**9
SIZES = Sizes(weights=7 * GB, layers=6 * GB, block=GB // 5, width=4096, blocks=32, vocabulary=32_000, stored=2)
SETTING = Setting(gpu=True, half=True, length=512, shards=1)
MACHINE = Machine(host=500 * GB, device=80 * GB, disk=1000 * GB, devices=2)


def peak(work: Callable[[], Any]) -> int:
    """Most bytes that tensors on the CPU take at once while ``work`` runs, beside those before."""
    gc.collect()  # what is freed meanwhile would count
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    sizes = [event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = most = 0
    for size in sizes:
        level += size
        most = max(most, level)
    return most


@pytest.mark.parametrize("stage", ["finetune", "distill"])
def test_training_takes_what_it_is_said_to(
    stage: str, pipeline: Make, overrides: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that outweighs its batch: weights, gradients, two states, the teacher, activations."""
    more = [f"pipeline.{stage}.steps=2", f"pipeline.{stage}.batch_size=1", "measure=[]"]
    if stage == "distill":
        more += [f"+cut@pipeline.{stage}.cut=keep", f"pipeline.{stage}.cut.decoder_layers=[0,1]"]
    run = pipeline(overrides(stage, *more, task="causal_lm", hidden_size=256, intermediate_size=512))
    needs = run._needs()
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # the profiler sees one thread
    run.techniques[stage].cut = None  # the whole model is its own student
    measured = peak(run.run)
    assert needs[stage].host == pytest.approx(measured, rel=0.3)


def technique(pipeline: Make, overrides: Make, *more: str, kind: str = "finetune") -> Any:
    return pipeline(overrides(kind, *more, task="causal_lm")).techniques[kind]


def test_what_trains_is_refused_where_its_states_do_not_fit(pipeline: Make, overrides: Make) -> None:
    need = of_stage(technique(pipeline, overrides), SIZES, SETTING, teacher=SIZES)
    assert need.parts == {"weights": 28 * GB, "gradients": 28 * GB, "optimizer": 56 * GB, "teacher": 14 * GB}
    with pytest.raises(
        ValueError, match=r"pipeline\.finetune takes at least 126 GB of GPU memory .* 46 GB more than"
    ) as e:
        capacity.check({"finetune": need}, MACHINE)
    ways = str(e.value).partition("use ")[2]
    assert ways == (
        "optimizer@pipeline.finetune.optimizer=adafactor (70 GB), or trainer=fsdp with 2 devices (63 GB on each), or a "
        "machine with 126 GB"
    )
    spread = of_stage(technique(pipeline, overrides), SIZES, replace(SETTING, shards=2), teacher=SIZES)
    capacity.check({"finetune": spread}, MACHINE)


def test_a_teacher_that_does_not_fit_is_named_with_one_that_would(pipeline: Make, overrides: Make) -> None:
    student, teacher = replace(SIZES, weights=GB), replace(SIZES, weights=45 * GB)
    need = of_stage(technique(pipeline, overrides), student, SETTING, teacher=teacher)
    with pytest.raises(ValueError, match=r"takes at least 106 GB of GPU memory \(.*teacher 90 GB\)") as e:
        capacity.check({"finetune": need}, replace(MACHINE, devices=1))
    assert "a teacher of at most 64 GB (pipeline.finetune.teacher), or a machine with 106 GB" in str(e.value)


def test_activations_that_are_computed_anew_take_less(pipeline: Make, overrides: Make) -> None:
    plain, anew = (
        of_stage(technique(pipeline, overrides), SIZES, replace(SETTING, recomputed=recomputed), teacher=None)
        for recomputed in (False, True)
    )
    assert anew.parts == plain.parts and anew.least_device == plain.least_device
    assert plain.device - anew.device > 0.5 * (plain.device - plain.least_device)


def test_what_may_fit_is_not_refused(pipeline: Make, overrides: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Activations are an estimate, and how small a student will be is not known yet."""
    capacity.check({"finetune": Need(host=600 * GB, least_host=100 * GB)}, MACHINE)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "this run takes about memory 600 GB of 500 GB"
    assert lines[1].strip().startswith("that is 100 GB more than there is (memory): it may not fit; lower batch_size")
    cut = ["+cut@pipeline.distill.cut=keep", "pipeline.distill.cut.ffn=16"]
    need = of_stage(technique(pipeline, overrides, *cut, kind="distill"), SIZES, SETTING, teacher=SIZES)
    assert need.least_device == 14 * GB < need.device


@pytest.mark.parametrize(("importance", "host"), [("wanda", 6 * GB), ("sparsegpt", 18 * GB)])
def test_one_shot_stages_hold_what_they_change(importance: str, host: int, pipeline: Make, overrides: Make) -> None:
    more = ["pipeline.prune.steps=0", f"importance@pipeline.prune.importance={importance}"]
    need = of_stage(technique(pipeline, overrides, *more, kind="prune"), SIZES, SETTING, teacher=None)
    assert need.host == need.least_host == host and need.device < 16 * GB


def test_nothing_is_said_of_finished_stages(
    pipeline: Make, overrides: Make, short: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    line = overrides("finetune", *short("finetune", steps=1))
    run = pipeline(line)
    run.run()
    assert "this run takes about memory" in capsys.readouterr().out
    assert not hasattr(run.techniques["finetune"], "family")  # no model outlives its stage
    pipeline(line).run()
    assert "this run takes" not in capsys.readouterr().out


def test_the_dense_model_is_not_copied_for_another_name(pipeline: Make, overrides: Make, short: Make) -> None:
    runs = [pipeline(overrides("finetune", *short("finetune", steps=1), f"name={name}")) for name in ("a", "b")]
    for run in runs:
        run.run()
    files = [run.stages[0].artifact / "model.safetensors" for run in runs]
    assert files[0] != files[1] and files[0].samefile(files[1]) and files[0].stat().st_nlink == 2
    assert torch.cuda.is_available() or runs[0].stages[0].key == runs[1].stages[0].key


@pytest.mark.parametrize(("devices", "nodes", "shards"), [("auto", 1, 8), (4, 2, 8), ([0, 2], 1, 2), ("4", 1, 4)])
def test_weights_are_spread_over_all_devices_of_fsdp(
    devices: object, nodes: int, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    trainer = OmegaConf.create({"accelerator": "gpu", "strategy": "fsdp", "devices": devices, "num_nodes": nodes})
    assert Setting.of(trainer, torch.device("cuda"), 512).shards == shards
    trainer.strategy = "ddp"
    assert Setting.of(trainer, torch.device("cuda"), 512).shards == 1
