"""What a run takes, by the sizes of its models alone, beside what is allocated; and what is refused."""

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.profiler import ProfilerActivity, profile

from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.model.loading import Pretrained
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


GIB = 2**30
SMOLLM2 = Sizes(weights=135 * 10**6, layers=106 * 10**6, block=3_540_000, width=576, blocks=30, vocabulary=49_152,
                stored=2)  # fmt: skip
SMALLER = replace(SMOLLM2, weights=101 * 10**6)
LLAMA_7B = Sizes(weights=6738 * 10**6, layers=6476 * 10**6, block=202 * 10**6, width=4096, blocks=32, vocabulary=32_000,
                 stored=2)  # fmt: skip


def built(kind: str, *more: str) -> Any:
    """A technique of some steps, of no pipeline."""
    prefix = f"pipeline.{kind}."
    lines = [
        line.replace("loss@", f"loss@{prefix}", 1) if "@" in line else prefix + line for line in ("steps=9", *more)
    ]
    return build(compose([f"pipeline={kind}", *lines]).pipeline[kind])


@pytest.mark.parametrize(
    ("rows", "more", "student", "teacher", "measured"),
    [
        (16, {}, SMALLER, SMOLLM2, 7.8),
        (64, {}, SMALLER, SMOLLM2, 18.6),
        (128, {}, SMALLER, SMOLLM2, 39.7),
        (128, {"devices": 2, "processes": 2}, SMALLER, SMOLLM2, 22.7),
        (8, {"devices": 2, "processes": 2, "shards": 2}, LLAMA_7B, LLAMA_7B, 74.1),
    ],
)
def test_it_is_near_to_what_was_measured_on_gpus(
    rows: int, more: dict[str, int], student: Sizes, teacher: Sizes, measured: float
) -> None:
    """Of docs/results/real_models.md: SmolLM2's shape alone and on two GPUs, and a 7B Llama in shards on two."""
    stage = built("distill", f"batch_size={rows}")
    need = of_stage(stage, student, replace(SETTING, logits_at_once=2**28, **more), teacher=teacher)
    assert need.device / GIB == pytest.approx(measured, rel=0.3)


def test_logits_that_a_loss_reads_otherwise_are_there_at_once() -> None:
    chunked = replace(SETTING, logits_at_once=2**20)
    stages = [built("distill", "batch_size=16", *more) for more in ((), ("+loss@losses.span=byte_span",))]
    sums, others = (of_stage(stage, SMALLER, chunked, teacher=SMOLLM2).device for stage in stages)
    assert others - sums > 0.9 * 2 * 8 * 16 * 512 * 49_152


def test_each_process_of_a_machine_loads_the_models() -> None:
    """Devices of a batch share it; in shards, processes share pages of files, and one puts a checkpoint together."""
    stage = built("finetune", "batch_size=16")
    one, eight = (
        of_stage(stage, LLAMA_7B, replace(SETTING, devices=count, processes=count), teacher=LLAMA_7B)
        for count in (1, 8)
    )
    models, snapshot = 6 * LLAMA_7B.weights, 12 * LLAMA_7B.weights
    assert one.host == snapshot and eight.host == 8 * models
    assert eight.device - eight.least_device == pytest.approx((one.device - one.least_device) / 8, rel=0.01)
    shards = replace(SETTING, devices=8, processes=8, shards=8)
    assert of_stage(stage, LLAMA_7B, shards, teacher=LLAMA_7B).host == snapshot
    two = replace(SETTING, gpu=False, half=False, devices=2, processes=2)
    plain = of_stage(stage, LLAMA_7B, replace(two, devices=1, processes=1), teacher=LLAMA_7B)
    both = of_stage(stage, LLAMA_7B, two, teacher=LLAMA_7B)
    assert both.least_host == 2 * plain.least_host and both.host == pytest.approx(plain.host + plain.least_host)
    in_parts = of_stage(stage, LLAMA_7B, replace(SETTING, rows_at_once=2), teacher=LLAMA_7B)
    assert in_parts.device == eight.device


def test_advice_for_shards_counts_the_whole_model() -> None:
    """Of 18 bytes a weight, half on each of two GPUs is too much, and a third would do."""
    stage = built("finetune")
    half = of_stage(stage, SIZES, replace(SETTING, devices=2, processes=2, shards=2), teacher=SIZES)
    assert half.least_device == 63 * GB
    machine = replace(MACHINE, device=45 * GB, devices=8)
    with pytest.raises(ValueError, match=r"takes at least 63 GB of GPU memory \(weights 14 GB, .*optimizer 28 GB") as e:
        capacity.check({"finetune": half}, machine)
    assert "adafactor (35 GB), or trainer=fsdp with 3 devices (42 GB on each)" in str(e.value)
    with pytest.raises(ValueError) as e:
        capacity.check({"finetune": half}, replace(machine, devices=2))
    assert "fsdp" not in str(e.value)


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
    setting = Setting.of(trainer, torch.device("cuda"), 512)
    assert (setting.devices, setting.processes) == (shards, shards // nodes)
    trainer.strategy = "ddp"
    assert Setting.of(trainer, torch.device("cuda"), 512).shards == 1


def test_what_cannot_be_is_refused_before_weights_are_read(
    pipeline: Make, overrides: Make, short: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the sizes alone; a stage that may be finished is left to the digest, which tells."""
    run = overrides("finetune", *short("finetune", steps=1), "measure=[]")
    with monkeypatch.context() as patch:
        patch.setattr(capacity.Machine, "here", classmethod(lambda *_: Machine(host=1, device=0, disk=GB, devices=0)))
        patch.delattr(Pretrained, "fingerprint")
        with pytest.raises(ValueError, match=r"^pipeline\.finetune takes at least .* of memory \(weights "):
            pipeline(run)
    pipeline(run).run()
    monkeypatch.setattr(capacity.Machine, "here", classmethod(lambda *_: Machine(host=1, device=0, disk=GB, devices=0)))
    pipeline(run).run()  # all of it is there
