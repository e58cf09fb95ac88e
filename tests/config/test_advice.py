"""Command lines that are wrong in ways people type them, on conf/ itself: one message, whose advice can be followed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from slimexp.config.check import check
from slimexp.config.composition import compose, options
from slimexp.config.schema import Evaluation, Run

Program = Callable[..., tuple[int, str]]

MODELS = f"options: {', '.join(options('model'))}"
DISTILL = ["+experiment=distill_t5"]
PRUNE = ["pipeline=prune_structured", "model=t5_spelling", "data=spelling"]
TRAIN_TAKES = (
    "it takes seed, runs, name, save_dtype, resume, keep_training_state, measure_all, arms, checkpoint, model, "
    "baseline, data, pipeline, trainer, callback, logger, measure"
)
EVALUATE_TAKES = "it takes name, runs, seed, device, model, baseline, data, measure"
BUDGET = "'target@pipeline.prune_structured.target' is called 'budget@pipeline.prune_structured.budget' now"
LR_SCHEDULER = "'scheduler@pipeline.distill.scheduler' is called 'lr_scheduler@pipeline.distill.lr_scheduler' now"
EVALUATE = ["model=t5_spelling", "data=spelling"]
COMPLETION = "--shell-completion needs install=bash, fish or zsh (or uninstall=...)"
CUT_OUT = ["pipeline=distill", "data=spelling", "model=cut_out"]


@pytest.fixture
def message(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What ``train`` or ``evaluate`` says of a command line that is the user's error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # main sets it; so it is put back

    def of(*arguments: str, command: str = "train") -> str:
        schema, config_name = (Run, "config") if command == "train" else (Evaluation, "evaluate")
        status, said = program(*arguments, task=partial(check, schema=schema), config_name=config_name)
        assert status == 2 and said.startswith("error: ")
        return said.removeprefix("error: ").removesuffix("\n")

    return of


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            [*DISTILL, "pipeline.distill.teacher=pretrained"],
            "pipeline.distill.teacher must be a component, got 'pretrained': "
            f"write +model@pipeline.distill.teacher=pretrained; {MODELS}",
        ),
        (
            [*CUT_OUT, "model.source=t5_spelling"],
            "model.source must be a component, got 't5_spelling': "
            f"write model@model.source=t5_spelling; {MODELS}",
        ),
        (
            [*DISTILL, "baseline=t5_spelling"],
            f"baseline must be a component, got 't5_spelling': write model@baseline=t5_spelling; {MODELS}",
        ),
        (
            [*DISTILL, "+baseline.path=folder"],
            "baseline must be a component, got {'path': 'folder'}: "
            f"write model@baseline=<option>; {MODELS}",
        ),
        (
            [*DISTILL, "pipeline.distill.lr_scheduler=constant"],
            "pipeline.distill.lr_scheduler must be a component, got 'constant': write "
            "lr_scheduler@pipeline.distill.lr_scheduler=constant; options: constant, cosine, linear",
        ),
        (
            [*DISTILL, "pipeline.distill.optimizer=3"],
            "pipeline.distill.optimizer must be a component, got 3: write "
            "optimizer@pipeline.distill.optimizer=<option>; options: adafactor, adamw",
        ),
        (["--shell-completion"], COMPLETION),
        (["--shell-completion", "install=foo"], COMPLETION),
        (["--shell-completion", "install=bash", "uninstall=bash"], COMPLETION),
        (["--shell-completion", "query=bash"], COMPLETION),
        ([*PRUNE, "target@pipeline.prune_structured.target=latency"], BUDGET),
        ([*PRUNE, "+target@pipeline.prune_structured.target=latency"], BUDGET),
        ([*PRUNE, "budget@pipeline.prune_structured.target=latency"], BUDGET.replace("'target@", "'budget@")),
        (["pipeline=distill", "scheduler@pipeline.distill.scheduler=constant"], LR_SCHEDULER),
        ([*DISTILL, "scheduler=constant"], "'scheduler' is called 'lr_scheduler' now"),
        (
            [*PRUNE, "+pipeline.prune_structured.target={speedup: 2}"],
            "'pipeline.prune_structured.target' is called 'pipeline.prune_structured.budget' now"
        ),
        (
            [*DISTILL, "~pipeline.distill.scheduler"],
            "'pipeline.distill.scheduler' is called 'pipeline.distill.lr_scheduler' now",
        ),
        (
            [*DISTILL, "~pipeline.distill.losses.kd"],
            "unknown key 'pipeline.distill.losses.kd'; did you mean 'pipeline.distill.losses.kl'? "
            "valid: ce, kl, hidden",
        ),
        (
            ["pipeline=distill", "~pipeline.distill.cut"],
            "'pipeline.distill.cut' is null already, so that ~pipeline.distill.cut leaves nothing out: "
            "leave out ~pipeline.distill.cut",
        ),
        (
            ["+experiment=distill_llama", "~pipeline.distill.cut"],
            "pipeline.distill lacks 'cut', which slimexp.technique.distill.Distill requires: "
            "pipeline.distill.cut=null is none",
        ),
        (
            ["+experiment=distill_llama", "~cut@pipeline.distill.cut"],
            "pipeline.distill.cut must be a component, got {'decoder_layers': [0, 2, 4, 6, 8, 9], 'ffn': 448, "
            "'calibration_batches': 2}: write +cut@pipeline.distill.cut=<option>; options: keep; "
            "pipeline.distill.cut=null is none",
        ),
        ([*DISTILL, "~stopper@callback.stopper"], "unknown key 'stopper@callback.stopper'; valid: progress"),
        (
            [*DISTILL, "callback.stopper=asha"],
            "there is no 'callback.stopper' yet: write +stopper@callback.stopper=asha; options: asha, median",
        ),
        (
            [*DISTILL, "+stopper@callback.stopper=halving"],
            "stopper 'halving' is called 'asha' now; available: asha, median",
        ),
        (
            [*DISTILL, "+model@baseline=t5_spelling"],
            "'model@baseline' is there already: write model@baseline=t5_spelling, without the +",
        ),
        (
            [*DISTILL, "importance=wanda"],
            f"train has no importance: {TRAIN_TAKES}; a stage takes importance@pipeline.<stage>.importance=<option>",
        ),
        (
            [*DISTILL, "+importance=wanda"],
            f"train has no importance: {TRAIN_TAKES}; a stage takes importance@pipeline.<stage>.importance=<option>",
        ),
        (
            ["pipeline.distill.steps=1"],
            "unknown key 'pipeline.distill.steps'; nothing is chosen for 'pipeline' yet: add pipeline=<option>; "
            f"options: {', '.join(options('pipeline'))}",
        ),
        (
            ["model.path=folder"],
            f"unknown key 'model.path'; nothing is chosen for 'model' yet: add model=<option>; {MODELS}",
        ),
        (["distil", *DISTILL], "'distil' has no value: write KEY=VALUE"),
        (
            [*DISTILL, "model.path=/my", "model"],
            "'model' has no value: write KEY=VALUE, or, if it belongs to the value before, quotes: "
            "'model.path=/my model'",
        ),
        ([*DISTILL, "+trainer.precision=bf16"], "'trainer.precision' is there already: write trainer.precision=bf16, "
                                                "without the +"),
        (
            [*DISTILL, "pipeline.distill.steps=abc"],
            "pipeline.distill.steps must be a whole number, got 'abc': set pipeline.distill.steps=300",
        ),
        (
            ["pipeline=quantize", *EVALUATE, "pipeline.quantize.bits=four"],
            "pipeline.quantize.bits must be a whole number, got 'four': set pipeline.quantize.bits=8",
        ),
        (
            ["pipeline=prune", *EVALUATE, "pipeline.prune.include=layer"],
            "pipeline.prune.include must be a list of words, got 'layer': set 'pipeline.prune.include=[layer]'",
        ),
        (
            ["pipeline=[prune,distill,prune]"],
            "two stages are called 'prune', and names of stages must differ: choose it once in pipeline=[...] and add "
            "the other, as the last stage, by +technique@pipeline.prune_2=prune; other orders go into a file, with a "
            "line '- /technique@pipeline.NAME: prune' for each stage",
        ),
        (
            ["pipeline=prune,quantize"],
            "'pipeline=prune,quantize' has several values: add --multirun to run each, or, for one run with all of "
            "them, write 'pipeline=[prune,quantize]'",
        ),
        (
            ["model=t5_spelling,gguf"],
            "'model=t5_spelling,gguf' has several values: add --multirun to run each",
        ),
        ([*DISTILL, "seed=abc"], "seed must be a whole number, got 'abc'"),
        ([*DISTILL, "seed=[1]"], "seed must be a whole number, got [1]"),
        ([*DISTILL, "resume=maybe"], "resume must be true or false, got 'maybe'"),
        ([*DISTILL, "name=[1]"], "name must be text, got [1]"),
        ([*DISTILL, "checkpoint=5"], "checkpoint must be settings, got 5: set checkpoint.<key>=<value>"),
        ([*DISTILL, "name=${oc.env:NOPE}"], "name: environment variable NOPE is not set"),
        ([*DISTILL, "runs=${oc.env:NOPE}"], "runs: environment variable NOPE is not set"),
        (
            [*DISTILL, "~logger"],
            "logger must be a component, got null: write logger=<option>; options: none, trackio, wandb",
        ),
        (
            [*DISTILL, "-m", "seed=1,2", "resume=false"],
            "write flags such as -m before all overrides: 'seed=1,2 resume=false' stands behind one",
        ),
        (["--cfg", "job", "-m"], "--multirun and --cfg cannot be combined: leave one of them out"),
    ],
)  # fmt: skip
def test_train(message: Callable[..., str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str) -> None:
    monkeypatch.delenv("COMP_LINE", raising=False)
    assert message(*arguments) == said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            [*EVALUATE, "baseline=t5_spelling"],
            f"baseline must be a component, got 't5_spelling': write model@baseline=t5_spelling; {MODELS}",
        ),
        (
            [*EVALUATE, "baseline=[1]"],
            f"baseline must be a component, got [1]: write model@baseline=<option>; {MODELS}",
        ),
        (["--shell-completion"], COMPLETION),
        (["--shell-completion", "query=fish"], COMPLETION),
        ([*EVALUATE, "trainer=gpu"], f"evaluate has no trainer: {EVALUATE_TAKES}"),
        ([*EVALUATE, "+trainer=gpu"], f"evaluate has no trainer: {EVALUATE_TAKES}"),
        ([*EVALUATE, "+experiment=distill_t5"], f"evaluate has no experiment: {EVALUATE_TAKES}"),
        ([*EVALUATE, "seed=abc"], "seed must be a whole number, got 'abc'"),
        ([*EVALUATE, "+stopper@callback.stopper=asha"], f"evaluate has no callback: {EVALUATE_TAKES}"),
        (
            [*EVALUATE, "baseline={}"],
            f"baseline must be a component, got {{}}: write model@baseline=<option>; {MODELS}",
        ),
        (
            [*EVALUATE, "~measure"],
            "'measure' cannot be left out as a whole: ~measure.<name> leaves out one of size, task",
        ),
        ([*EVALUATE, "importance=wanda"], f"evaluate has no importance: {EVALUATE_TAKES}"),
        (
            [*EVALUATE, "pipeline.distill.steps=1"],
            f"unknown key 'pipeline.distill.steps'; valid: {EVALUATE_TAKES.removeprefix('it takes ')}",
        ),
    ],
)
def test_evaluate(
    message: Callable[..., str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.delenv("COMP_LINE", raising=False)
    assert message(*arguments, command="evaluate") == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "defaults: [/target@pipeline.prune_structured.target: latency]",
            "In 'experiment/old': Could not find 'target/latency': 'target' is called 'budget' now",
        ),
        (
            "defaults: [/bugdet@pipeline.prune_structured.budget: latency]",
            "In 'experiment/old': Could not find 'bugdet/latency': did you mean 'budget'?",
        ),
        (
            "defaults: [override /scheduler@pipeline.prune_structured.scheduler: constant]",
            "conf/experiment/old.yaml: 'scheduler@pipeline.prune_structured.scheduler' is called "
            "'lr_scheduler@pipeline.prune_structured.lr_scheduler' now",
        ),
        (
            "pipeline: {prune_structured: {scheduler: {num_warmup_steps: 1}}}",
            "'pipeline.prune_structured.scheduler' is called 'pipeline.prune_structured.lr_scheduler' now",
        ),
        ("seed: abc", "seed must be a whole number, got 'abc'"),
        ("logger: 5", "logger must be a component, got 5: write logger=<option>; options: none, trackio, wandb"),
    ],
)
def test_an_experiment_of_the_users_own(message: Callable[..., str], tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "old.yaml").write_text(f"# @package _global_\n{text}\n")
    arguments = [f"--config-dir={tmp_path / 'conf'}", *PRUNE, "+experiment=old"]
    assert message(*arguments) == said


STEPS = (
    "schedule@pipeline.distill.losses.kl.temperature=step",
    "pipeline.distill.losses.kl.temperature={values:[5,1],milestones:[0.5]}",
)


def test_a_schedule_says_how_to_leave_out_what_another_had(message: Callable[..., str]) -> None:
    said = message(*DISTILL, *STEPS)
    for end in ("start", "end"):
        assert f"; ~pipeline.distill.losses.kl.temperature.{end} leaves it out; valid: values, milestones" in said


@pytest.mark.parametrize(
    "followed",
    [
        [*DISTILL, "+model@pipeline.distill.teacher=t5_spelling"],
        [*CUT_OUT, "model@model.source=t5_spelling"],
        [*DISTILL, "model@baseline=t5_spelling"],
        [*DISTILL, "lr_scheduler@pipeline.distill.lr_scheduler=constant"],
        [*DISTILL, "+stopper@callback.stopper=asha"],
        [
            *DISTILL,
            *STEPS,
            "~pipeline.distill.losses.kl.temperature.start",
            "~pipeline.distill.losses.kl.temperature.end",
        ],
        [*PRUNE, "budget@pipeline.prune_structured.budget=disk", "pipeline.prune_structured.budget.megabytes=3"],
    ],
)
def test_advice_can_be_followed(followed: list[str]) -> None:
    check(compose(followed))


def test_a_completion_that_a_shell_asks_for_is_given(program: Program) -> None:
    assert program("--shell-completion", "install=bash") == (0, "")
