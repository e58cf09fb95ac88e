"""A config names components, and nothing else that could be called."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from slimexp.config import allowlist
from slimexp.config.build import ConfigError
from slimexp.config.check import check
from slimexp.config.command_line import main
from slimexp.config.composition import CONF_DIR, compose

REFUSED = [
    "os.system", "builtins.eval", "builtins.exec", "subprocess.Popen", "importlib.import_module", "pathlib.Path",
    "torch.load", "torch.hub.load", "torch.utils.cpp_extension.load", "torch.save", "torch.nn.Linear",
    "transformers.pipeline", "transformers.AutoModel.from_pretrained", "hydra.utils.get_method", "hydra.utils.call",
    "pytorch_lightning.Trainer.fit", "pytorch_lightning.callbacks.model_checkpoint.Path",
    "torch.optim.lr_scheduler.math.pow", "slimexp.host.progress.counted", "slimexp.record.record.Record",
    "slimexp.config.build.build",
    "slimexp.artifact.load", "slimexp.logger.wandb_run.os.system", "optuna.create_study", "wandb.init", "shutil.rmtree",
]  # fmt: skip
ALLOWED = [
    "torch.optim.SGD", "torch.optim.AdamW", "torch.optim.lr_scheduler.StepLR", "transformers.Adafactor",
    "transformers.get_constant_schedule", "transformers.optimization.get_inverse_sqrt_schedule",
    "pytorch_lightning.callbacks.EarlyStopping", "pytorch_lightning.callbacks.timer.Timer",
    "pytorch_lightning.profilers.SimpleProfiler", "pytorch_lightning.strategies.DDPStrategy",
    "optuna.samplers.CmaEsSampler", "slimexp.loss.kl.ForwardKl", "slimexp.schedule.Cosine",
]  # fmt: skip
PLACES = [
    {"a": {"_target_": "os.system"}},
    {"a": [{"_target_": "os.system"}]},
    {"a": {"_target_": "torch.optim.SGD", "_args_": [{"_target_": "os.system"}]}},
    {"a": {"_target_": "torch.optim.SGD", "lr": {"_target_": "os.system", "_partial_": True}}},
    {"name": "os.system", "a": {"_target_": "${name}"}},
    {"a": "${oc.create:{_target_: os.system}}"},
    {"a": {"b": {"c": [[{"_target_": "os.system"}]]}}},
]


@pytest.mark.parametrize("target", REFUSED)
def test_refused(target: str) -> None:
    (message,) = allowlist.faults(OmegaConf.create({"x": {"_target_": target}}), CONF_DIR)
    assert message.startswith(f"x._target_ must be a component, got '{target}': ")
    assert "SLIMEXP_PACKAGES=<package>" in message and "\n" not in message


@pytest.mark.parametrize("target", ALLOWED)
def test_allowed(target: str) -> None:
    assert list(allowlist.faults(OmegaConf.create({"x": {"_target_": target}}), CONF_DIR)) == []


@pytest.mark.parametrize("path", sorted(CONF_DIR.rglob("*.yaml")), ids=lambda path: path.stem)
def test_all_that_conf_names_is_allowed(path: Path) -> None:
    assert list(allowlist.faults(OmegaConf.load(path), CONF_DIR)) == []


@pytest.mark.parametrize("tree", PLACES, ids=str)
def test_wherever_it_stands(tree: dict[str, object]) -> None:
    assert len(list(allowlist.faults(OmegaConf.create(tree), CONF_DIR))) == 1


@pytest.mark.parametrize(
    ("depth", "message"),
    [(20, "must be a component"), (21, "is nested deeper than 20 levels"), (60, "is nested deeper than 20 levels")],
)
@pytest.mark.parametrize("listed", [False, True])
def test_however_deep_it_stands(depth: int, message: str, listed: bool) -> None:
    tree: object = {"_target_": "os.system"}
    for _ in range(depth - 1):
        tree = [tree] if listed else {"a": tree}
    (fault,) = allowlist.faults(OmegaConf.create({"x": tree}), CONF_DIR)
    assert message in fault


def test_a_package_of_ones_own_is_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    node = OmegaConf.create({"x": {"_target_": "json.JSONDecoder"}})
    assert len(list(allowlist.faults(node, CONF_DIR))) == 1
    monkeypatch.setenv("SLIMEXP_PACKAGES", "my_package, json")
    assert list(allowlist.faults(node, CONF_DIR)) == []


@pytest.mark.parametrize(
    "override",
    [
        "+callback.x={_target_: os.system, command: 'touch %s'}",
        "+pipeline.prune.teacher={_target_: os.system, command: 'touch %s'}",
        "+data.x=[{_target_: os.system, command: 'touch %s'}]",
        "+hydra.callbacks.x={_target_: os.system, command: 'touch %s'}",
        "+hydra.job_logging.handlers.x={class: subprocess.Popen, args: 'touch %s'}",
    ],
)
def test_nothing_of_it_runs(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["+experiment=prune_t5", f"runs={tmp_path / 'runs'}", override % (tmp_path / "touched")]
    monkeypatch.setattr("sys.argv", ["train", *arguments])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(SystemExit) as stop:
        main(check)
    assert stop.value.code == 2
    assert "must be a component, got" in capsys.readouterr().err
    assert not (tmp_path / "touched").exists()


def test_no_source_is_read_for_the_kind_of_what_conf_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("reading the source of every option of a group takes a fifth of a second")

    monkeypatch.setattr("slimexp.config.check.lineage", refuse)
    check(compose(["+experiment=prune_t5", "model=t5_spelling", "measure=[size,task,latency]", "logger=wandb"]))


@pytest.mark.parametrize(
    ("place", "kind"), [("logger", "Tracker"), ("measure.size", "Measure"), ("data", "Corpus"), ("model", "Source")]
)
def test_a_component_of_another_kind(place: str, kind: str) -> None:
    cfg = compose(["+experiment=prune_t5"])
    OmegaConf.update(cfg, place, {"_target_": "slimexp.schedule.Constant", "value": 1}, merge=False)
    with pytest.raises(ConfigError, match=f"^{place} must be a {kind}, got slimexp.schedule.Constant: options: "):
        check(cfg)
