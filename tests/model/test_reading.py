"""What transformers reads of a model is complete and finite, or the error is one line."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from slimexp.model.reading import check_checkpoint, check_fit, check_room, outline, reach, weights, without_bars

Make = Callable[..., Any]


def read(folder: Path) -> Any:
    return weights(AutoModelForSeq2SeqLM, folder)


def small(**values: int) -> T5Config:
    return T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_heads=2, num_layers=1, **values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_those_that_were_saved(dtype: torch.dtype, tiny: Make, tiny_folder: Make) -> None:
    model = weights(AutoModelForSeq2SeqLM, tiny_folder("seq2seq"), dtype)
    expected = dict(tiny("seq2seq").model.named_parameters())
    assert all(torch.equal(tensor, expected[name].to(dtype)) for name, tensor in model.named_parameters())


def test_an_outline_takes_no_memory_or_is_refused_in_one_line() -> None:
    model = outline(AutoModelForSeq2SeqLM, small(), "x")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    config = small()
    config.num_heads = -1
    with pytest.raises(ValueError, match=r"model 'x': no model can be made from its config\.json") as raised:
        outline(AutoModelForSeq2SeqLM, config, "x")
    assert "\n" not in str(raised.value)


def test_more_weights_than_the_files_hold_are_refused(tmp_path: Path) -> None:
    model = outline(AutoModelForSeq2SeqLM, small(), "x")
    count = sum(parameter.numel() for parameter in model.parameters())
    (tmp_path / "model.safetensors").write_bytes(b"x" * (count // 8 + 1))
    check_room(model, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x" * (count // 8 - 1))
    with pytest.raises(ValueError, match=rf"speaks of {count:,} weights, and its files hold {count // 8 - 1:,} bytes"):
        check_room(model, tmp_path)


def test_files_that_differ_from_the_config_are_refused() -> None:
    model = T5ForConditionalGeneration(small())
    report: dict[str, Any] = {"mismatched_keys": [], "missing_keys": [], "unexpected_keys": ["old.weight"]}
    check_fit(model, report, "x")
    with pytest.raises(ValueError, match=r"'a' must have shape \[2\] by its config.json, got \[3\]"):
        check_fit(model, report | {"mismatched_keys": [("a", torch.Size([3]), torch.Size([2]))]}, "x")
    with pytest.raises(ValueError, match=r"its files hold no 'shared\.weight'"):
        check_fit(model, report | {"missing_keys": ["shared.weight"]}, "x")
    with pytest.raises(ValueError, match=r"its files hold 'encoder\.block\.1\.layer\.0\.q', it has 1 blocks"):
        check_fit(model, report | {"unexpected_keys": ["encoder.block.1.layer.0.q"]}, "x")


def test_a_folder_without_weights(tiny_folder: Make) -> None:
    folder = tiny_folder("seq2seq")
    (folder / "model.safetensors").unlink()
    reach(AutoConfig, folder)
    with pytest.raises(ValueError, match="cannot be loaded"):
        read(folder)


def test_weights_that_were_cut_short(tiny_folder: Make) -> None:
    folder = tiny_folder("seq2seq")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model '.+': its safetensors file was cut short or is none"):
        read(folder)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
@pytest.mark.parametrize("shards", [False, True])
def test_weights_that_are_not_finite_name_tensor_and_file(
    tiny: Make, tmp_path: Path, value: float, shards: bool
) -> None:
    family, name = tiny("causal_lm"), "model.layers.1.mlp.up_proj.weight"
    family.model.get_parameter(name).data[0, 0] = value
    family.model.save_pretrained(tmp_path, max_shard_size="20KB" if shards else "1GB")
    family.tokenizer.save_pretrained(tmp_path)
    file = r"model-\d+-of-\d+\.safetensors" if shards else r"model\.safetensors"
    message = rf"model '.*': '{name}' in {file} holds NaN or infinity: get the file anew, or train"
    with pytest.raises(ValueError, match=message):
        weights(AutoModelForCausalLM, tmp_path)


def test_float8_is_checked_and_integers_pass() -> None:
    tensor = torch.tensor([1.0, torch.nan])
    check_checkpoint([("a", tensor[:1].to(torch.float8_e4m3fn)), ("b", torch.ones(2, dtype=torch.int32))], "x")
    with pytest.raises(ValueError, match="model 'x': 'c' holds NaN or infinity"):
        check_checkpoint([("c", tensor.to(torch.float8_e4m3fn))], "x")


def test_loading_draws_no_bars_and_leaves_those_of_others_alone(
    tiny_folder: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_folder("seq2seq")
    capsys.readouterr()
    read(folder)
    with without_bars():
        list(tqdm(range(3)))
    assert capsys.readouterr().err == ""
    with without_bars():
        list(huggingface_hub.utils.tqdm(range(3), disable=False))
    assert "3/3" in capsys.readouterr().err
    list(tqdm(range(3)))
    assert "3/3" in capsys.readouterr().err


def test_reading_restores_the_levels_of_loggers(tiny_folder: Make) -> None:
    logger = logging.getLogger("transformers.modeling_utils")
    logger.setLevel(logging.INFO)
    try:
        read(tiny_folder("seq2seq"))
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(logging.NOTSET)
