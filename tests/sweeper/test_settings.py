"""What a sweep cannot be is one line, said before anything of it starts, however absurd."""

import time
from typing import Any

import pytest
from omegaconf import OmegaConf

from slimexp.config.composition import CONF_DIR
from slimexp.sweeper.pool import local, ray, submitit
from slimexp.sweeper.settings import check_settings, parse_promotion
from slimexp.sweeper.space import Space

pytestmark = pytest.mark.fast

SHIPPED: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "hydra/sweeper/pareto.yaml"))
SETTINGS = {name: value for name, value in SHIPPED.items() if name not in ("defaults", "_target_")}
NAN, INF = float("nan"), float("inf")
WRONG: list[tuple[str, Any, str]] = [
    ("workers", 0, "must be >= 1, got 0"),
    ("workers", -1, "must be >= 1, got -1"),
    ("workers", 1e9, r"must be a whole number, got 1000000000\.0"),
    ("workers", 10**9, "must be at most 100000, got 1000000000"),
    ("workers", "2", "must be a whole number, got '2'"),
    ("workers", True, "must be a whole number, got True"),
    ("workers", None, "must be a whole number, got None"),
    ("workers", [2], r"must be a whole number, got \[2\]"),
    ("threads", 0, "must be >= 1, got 0"),
    ("threads", 10**6, "must be at most 4096"),
    ("threads", NAN, "must be a whole number, got nan"),
    ("trials", 0, "must be >= 1, got 0"),
    ("trials", 2.5, r"must be a whole number, got 2\.5"),
    ("trials", 10**12, "must be at most 1000000"),
    ("trials", False, "must be a whole number, got False"),
    ("max_failures", -1, "must be >= 0, or null for any number, got -1"),
    ("max_failures", "few", "must be a whole number, got 'few'"),
    ("seeds", [-1], "must be in 0 to 4294967295, got -1"),
    ("seeds", [0, 2**40], "must be in 0 to 4294967295, got 1099511627776"),
    ("seeds", [True], "must be a list of whole numbers"),
    ("seeds", [0.5], "must be a list of whole numbers"),
    ("seeds", [None], "must be a list of whole numbers"),
    ("seeds", "012", "must be a list of whole numbers, got 012"),
    ("seeds", None, "must be a list of whole numbers, got None"),
    ("seeds", [3, 3], "must be distinct"),
    ("limits", {"cer": NAN}, r"must be finite, got {'cer': nan}: leave out what has no limit"),
    ("limits", {"cer": INF}, "must be finite"),
    ("limits", {"cer": -INF}, "must be finite"),
    ("limits", {"cer": True}, "must be metrics with a number each"),
    ("limits", {"cer": None}, "must be metrics with a number each"),
    ("limits", {1: 2.0}, "must be metrics with a number each"),
    ("limits", 5, "must be metrics with a number each"),
    ("objectives", {"cer": NAN}, "must be metrics with min or max each"),
    ("objectives", {NAN: "min"}, "must be metrics with min or max each"),
    ("objectives", {1: "min"}, "must be metrics with min or max each"),
    ("objectives", {"cer": None}, "must be metrics with min or max each"),
    ("objectives", "cer", "must be metrics with min or max each"),
    ("objectives", 0, "must be metrics with min or max each"),
    ("fail_fast", "no", "must be true or false, got 'no'"),
    ("fail_fast", 1, "must be true or false, got 1"),
    ("retry_failed", None, "must be true or false, got None"),
    ("trial_timeout", 0, "must be seconds > 0, or null for no limit, got 0"),
    ("trial_timeout", -5.0, "must be seconds > 0"),
    ("trial_timeout", NAN, "must be seconds > 0"),
    ("trial_timeout", INF, "must be seconds > 0"),
    ("trial_timeout", "1h", "must be seconds > 0"),
    ("trial_timeout", True, "must be seconds > 0"),
    ("storage", 5, "must be the URL of a database, or null, got a value of type int"),
    ("storage", ["postgresql://u:secret@h/d"], "must be the URL of a database, or null, got a value of type list$"),
    ("pool", "ray", "must be chosen by hydra/sweeper/pool=NAME, got 'ray'"),
    ("pool", None, "must be chosen by hydra/sweeper/pool=NAME, got None"),
    ("sampler", "tpe", "must be chosen by hydra/sweeper/sampler=NAME, got 'tpe'"),
    ("sampler", {"seed": 1}, "must be chosen by hydra/sweeper/sampler=NAME"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_a_wrong_setting_is_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^hydra\.sweeper\.{name} {message}") as caught:
        check_settings({**SETTINGS, name: value}, [*SETTINGS, "pool"])
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "right",
    [
        {}, {"workers": 64}, {"seeds": [0, 2**32 - 1]}, {"limits": {"disk_mb": 5, "cer": 0.0}}, {"trials": 1_000_000},
        {"objectives": {"cer": "min", "size": "max"}}, {"trial_timeout": 0.5}, {"trial_timeout": 86400},
        {"max_failures": 0}, {"storage": "sqlite:///x.db"}, {"retry_failed": True}, {"pool": local.Pool},
    ],
)  # fmt: skip
def test_what_can_be_passes(right: dict[str, Any]) -> None:
    check_settings({**SETTINGS, **right}, [*SETTINGS, "pool"])


def test_an_objective_has_one_of_two_ways() -> None:
    with pytest.raises(ValueError, match=r"an objective must be min or max, got {'cer': 'down'}"):
        check_settings({**SETTINGS, "objectives": {"cer": "down"}}, list(SETTINGS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"most": -1}, r"\.most must be >= 0, got -1"),
        ({"most": 1.5}, r"\.most must be a whole number, got 1\.5"),
        ({"most": None}, r"\.most must be a whole number, got None"),
        ({"overrides": "a=1"}, r"\.overrides must be a list of overrides"),
        ({"overrides": [1]}, r"\.overrides must be a list of overrides"),
        ({"seeds": [-1]}, r"\.seeds must be in 0 to 4294967295, got -1"),
        ({"seeds": [2**40]}, r"\.seeds must be in 0 to 4294967295"),
        ({"seeds": [1, 1]}, r"\.seeds must be distinct"),
        ({"seeds": 3}, r"\.seeds must be a list of whole numbers"),
        ({"points": 3}, " must hold most, overrides and seeds"),
    ],
)
def test_a_wrong_promotion_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^hydra\.sweeper\.promote{message}"):
        parse_promotion({**SETTINGS["promote"], **changes})


@pytest.mark.parametrize("promote", [None, 3, "most", [1], {}])
def test_a_promotion_of_another_kind_is_named(promote: Any) -> None:
    with pytest.raises(ValueError, match=r"^hydra\.sweeper\.promote must hold most, overrides and seeds"):
        parse_promotion(promote)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a=range(0,1,0)", "a step that is not 0"),
        ("a=range(0.0,1.0,0)", "a step that is not 0"),
        ("a=range(0,1e18)", "goes through more than 10000 values"),
        ("a=range(0,1,1e-300)", "goes through more than 10000 values"),
        ("a=range(0,1000000000)", "goes through more than 10000 values"),
        ("a=range(0,inf)", "a range of finite numbers"),
        ("a=range(nan,1)", "a range of finite numbers"),
        ("a=range(0,1,nan)", "a range of finite numbers"),
        ("a=range(1,0)", "goes through nothing"),
        ("a=interval(1,0)", "an interval with low < high"),
        ("a=interval(1,1)", "an interval with low < high"),
        ("a=interval(nan,1)", "an interval with low < high"),
        ("a=interval(0,nan)", "an interval with low < high"),
        ("a=interval(0,inf)", "an interval with low < high"),
        ("a=tag(log,interval(0,1))", "an interval with 0 < low < high"),
        ("a=int(interval(0.1,0.9))", r"both whole numbers, got int\(interval\(0.1,0.9\)\)"),
        ("a=int(interval(0,1e18))", r"whole numbers of at most 2\*\*53"),
        ("a=1,1", "has 1 twice: give each value once"),
        ("a=0.5,0.50,1e0,1", r"has 1 twice \(as 1.0 and 1\)|has 0.5 twice"),
        ("a=1,1.0", r"has 1.0 twice \(as 1 and 1.0\)"),
        ("a=x,'x'", "twice"),
        ("a=[1,2],[1,2.0]", "twice"),
        ("a={b:1},{b:1}", "twice"),
        ("a=null,null", "twice"),
        ("~a=1,2", "takes something away"),
        ("name=a,b", "name cannot be swept: it names the folder of a sweep"),
        ("++name=a,b", "name cannot be swept"),
        ("runs=a,b", "runs cannot be swept: it is where a sweep lies"),
        ("resume=true,false", "resume cannot be swept"),
    ],
)
def test_what_cannot_be_gone_through_is_said_at_once(override: str, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        Space.parse([override])
    assert time.monotonic() - began < 2 and "\n" not in str(caught.value)


def test_true_and_one_are_two_values() -> None:
    assert Space.parse(["a=true,1,on,'1'"]).size == 4


@pytest.mark.parametrize(
    ("overrides", "trials", "message"),
    [
        (["a=range(0,1000)", "b=range(0,1000)", "c=range(0,1000)"], None, "a grid of 1000000000 combinations"),
        (["a=int(interval(0,1000000000000))"], None, "a has 1000000000001 values, a grid at most 1000000"),
        (["a=int(interval(0,1000000000000))"], 5, "a has 1000000000001 values, a grid at most 1000000"),
        (["a=interval(0,1)"], 5, "a has an interval, which a grid cannot go through"),
    ],
)
def test_a_grid_without_end_is_refused_before_it_is_made(
    overrides: list[str], trials: int | None, message: str
) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=message):
        next(Space.parse(overrides).grid(trials))
    assert time.monotonic() - began < 2


def test_a_few_trials_of_a_large_grid() -> None:
    rows = list(Space.parse(["a=range(0,1000)", "b=range(0,1000)", "c=range(0,1000)"]).grid(3))
    assert rows == [{"a": "0", "b": "0", "c": str(c)} for c in range(3)]


@pytest.mark.parametrize(
    ("pool", "settings", "message"),
    [
        (local, {"workers": 1001}, r"workers must be at most 1000 on one machine, got 1001"),
        (ray, {"address": 5, "gpus": 0}, r"pool\.address must be local, auto or HOST:PORT, got 5"),
        (ray, {"address": "", "gpus": 0}, r"pool\.address must be local, auto or HOST:PORT"),
        (ray, {"address": "local", "gpus": "one"}, r"pool\.gpus must be a number >= 0, got 'one'"),
        (ray, {"address": "local", "gpus": -1}, r"pool\.gpus must be a number >= 0, got -1"),
        (ray, {"address": "local", "gpus": NAN}, r"pool\.gpus must be a number >= 0, got nan"),
        (ray, {"address": "local", "gpus": True}, r"pool\.gpus must be a number >= 0, got True"),
        (submitit, {"cluster": 3, "parameters": {}}, r"pool\.cluster must be slurm or local, got 3"),
        (submitit, {"cluster": "local", "parameters": [1]}, r"pool\.parameters must be settings by name, got \[1\]"),
        (submitit, {"cluster": "local", "parameters": None}, r"pool\.parameters must be settings by name, got None"),
    ],
)
def test_a_pool_of_other_settings_is_refused(pool: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^hydra\.sweeper\.{message}"):
        pool.Pool(**{"workers": 1, "threads": 1, "prepare": None, **settings})
