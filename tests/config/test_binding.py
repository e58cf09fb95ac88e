"""Walking a config and wording what is wrong with it (what is bound to which signature: test_config.py)."""

import pytest
from omegaconf import OmegaConf

from slimexp.config import binding
from slimexp.config.composition import CONF_DIR

pytestmark = pytest.mark.fast


def test_items_walks_everything_and_resolves_nothing() -> None:
    cfg = OmegaConf.create({"a": {"b": [1, {"c": "${no.such}"}]}, "d": "???", "e": None, "f": "${a}"})
    assert [path for path, _, _ in binding.items(cfg)] == ["a", "a.b", "a.b[0]", "a.b[1]", "a.b[1].c", "d", "e", "f"]


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"x": 1}, []),
        ({"x": "???"}, ["x has no value: add x=<value> to the command line"]),
        ({"x": "${y}"}, ["x: Interpolation key 'y' not found"]),
        ({"x": {"_target_": "slimexp.schedule.Constant", "value": 1}}, []),
        (
            {"x": {"_target_": "slimexp.schedule.Linear", "strat": 1, "end": 0}},
            [
                "unknown key 'x.strat' of slimexp.schedule.Linear; did you mean 'x.start'? valid: start, end",
                "x lacks 'start', which slimexp.schedule.Linear requires",
            ],
        ),
        ({"x": {"_target_": "slimexp.schedule.Linear", "_args_": [1]}}, ["x lacks 'start'", "x lacks 'end'"]),
        ({"x": {"_target_": "torch.optim.AdamW", "_args_": [[]], "lr": 0.1}}, []),
    ],
)
def test_faults(node: dict[str, object], expected: list[str]) -> None:
    found = list(binding.faults("x", OmegaConf.create(node), "x"))
    assert len(found) == len(expected)
    assert all(message.startswith(start) for message, start in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "rounding",
            "gptq",
            "x.rounding must be a component, got 'gptq': write +rounding@x.rounding=gptq; options: gptq",
        ),
        ("quantizer", "hqq", "got 'hqq': write quantizer@x.quantizer=hqq; options: fp8, "),
        ("activation_quantizer", 8, "got 8: write quantizer@x.activation_quantizer=<option>; options: fp8, "),
        ("smoothing", None, None),
        ("smoothing", "${none}", None),
        ("group_size", "tensor", None),
        ("losses", {"ce": 1}, None),
    ],
)
def test_a_word_in_place_of_a_component_is_told_its_group(key: str, value: object, message: str | None) -> None:
    node = {"x": {"_target_": "slimexp.technique.quantize.Quantize", "_partial_": True, key: value}, "none": None}
    found = list(binding.faults("x", OmegaConf.create(node), "x", CONF_DIR))
    assert len(found) == (message is not None)
    assert all(message in one for one in found if message is not None)


@pytest.mark.parametrize(
    ("target", "key", "message"),
    [
        (
            "slimexp.cut.keep.Keep",
            "attention_rank",
            "x.attention_rank must be a list of whole numbers by name or null, got [0, 64]: "
            "set 'x.attention_rank={<name>:[1,2]}'",
        ),
        (
            "slimexp.technique.quantize.Quantize",
            "group_size",
            "x.group_size must be a whole number or text or whole numbers (or null) by name or null, got [0, 64]",
        ),
    ],
)
def test_a_list_in_place_of_a_mapping_is_told_what_a_mapping_looks_like(target: str, key: str, message: str) -> None:
    node = OmegaConf.create({"x": {"_target_": target, "_partial_": True, key: [0, 64]}})
    assert any(one.startswith(message) for one in binding.faults("x", node, "x", CONF_DIR))


def test_a_word_is_fine_where_a_constructor_of_others_takes_it() -> None:
    node = OmegaConf.create({"x": {"_target_": "pytorch_lightning.Trainer", "logger": "none", "strategy": "auto"}})
    assert list(binding.faults("x", node, "x", CONF_DIR)) == []


def test_unknown_names_the_nearest_key_where_there_is_one() -> None:
    assert binding.unknown("setps", "a.b", ["steps", "rate"]) == (
        "unknown key 'a.b.setps'; did you mean 'a.b.steps'? valid: steps, rate"
    )
    assert binding.unknown("target", "a.b", ["steps", "budget"]) == "'a.b.target' is called 'a.b.budget' now"
    assert (
        binding.unknown("target", "a.b", ["steps"])
        == "unknown key 'a.b.target'; ~a.b.target leaves it out; valid: steps"
    )
    assert binding.unknown("zzz", "", []) == "unknown key 'zzz'; valid: none"
