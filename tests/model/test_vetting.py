"""A model folder is data: nothing in it is run, nothing outside it is read, and what is damaged is one line."""

import json
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from slimexp.model import vetting
from slimexp.model.loading import Pretrained, Scratch, from_folder
from slimexp.model.reading import tokenizer_of
from slimexp.model.tokenizer import Bytes
from slimexp.model.vetting import check_config, vet

Make = Callable[..., Any]
Damage = Callable[[Path], Any]
Q = "encoder.block.1.layer.0.SelfAttention.q.weight"


@pytest.fixture(scope="module")
def whole(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 of two blocks, 32 wide."""
    folder: Path = tmp_path_factory.mktemp("whole")
    family = tiny("seq2seq")
    family.model.save_pretrained(folder)
    family.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "model")


def refused(folder: Path) -> str:
    """The error in the order of a run: first the config is validated, then the tokenizer is read, then the weights."""
    source = Pretrained(path=str(folder), max_length=16)
    with pytest.raises(ValueError) as raised:
        source.validate("seq2seq")
        source.outline(task="seq2seq", labels=())
        source.load(task="seq2seq", texts=tuple, labels=())
    with pytest.raises(ValueError):
        from_folder(folder, "seq2seq", 16)
    message = str(raised.value)
    assert "\n" not in message and str(folder) in message
    return message


def config(name: str = "config.json", **changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))

    return damage


def content(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def instead(name: str, make: Callable[[Path], Any]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return damage


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def header(metadata: dict[str, Any] | int, data: bytes = b"") -> Damage:
    text = b"{}" if isinstance(metadata, int) else json.dumps(metadata).encode()
    length = metadata if isinstance(metadata, int) else len(text)
    return content("model.safetensors", length.to_bytes(8, "little") + text + data)


def index(places: Any) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))

    return damage


def vector(*offsets: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": list(offsets)}


WHOLE_NUMBER = "must be a whole number from 1 to"
GROUPS = {"quant_method": "compressed-tensors", "config_groups": 5}
KERNEL = "must be eager or sdpa, which transformers has itself, got 'some/kernel"

CASES: dict[str, tuple[Damage, str]] = {
    # sizes
    "a billion layers": (config(num_layers=10**9), "num_layers must be at most 10,000, got 1000000000"),
    "9999 layers": (
        config(num_layers=9999),
        "its config.json speaks of 15,358,464 weights or more, and its files hold",
    ),
    "more layers": (config(num_layers=3), "its files hold no 'encoder.block.2."),
    "fewer layers": (
        config(num_layers=1),
        "its files hold 'encoder.block.1.layer.0.SelfAttention.k.weight', it has 1 ",
    ),
    "wider": (config(d_model=64), r"must have shape \[32, 64\] by its config.json, got \[32, 32\]"),
    "much wider": (config(d_model=10**7), "its config.json speaks of 960,000,000 weights or more"),
    "too wide": (config(d_model=10**30), "d_model must be at most 10,000,000, got 1000000"),
    "tokens": (config(vocab_size=10**7), "its config.json speaks of 320,037,504 weights, and its files hold"),
    "fewer tokens": (config(vocab_size=100), "the tokenizer has 159 tokens that the model has no embedding for"),
    "no heads": (config(num_heads=0), f"num_heads {WHOLE_NUMBER} 100,000, got 0"),
    "negative": (config(d_ff=-1), f"d_ff {WHOLE_NUMBER} 10,000,000, got -1"),
    "text": (config(d_ff="48"), f"d_ff {WHOLE_NUMBER} 10,000,000, got '48'"),
    "float": (config(d_ff=48.0), f"d_ff {WHOLE_NUMBER} 10,000,000, got 48.0"),
    "true": (config(d_ff=True), f"d_ff {WHOLE_NUMBER} 10,000,000, got True"),
    "no number": (config(d_ff=float("nan")), f"d_ff {WHOLE_NUMBER} 10,000,000, got nan"),
    "within": (config(text_config={"num_hidden_layers": 10**9}), "num_hidden_layers must be at most 10,000"),
    "null": (config(d_ff=None), "d_ff"),
    "a billion labels": (config(num_labels=10**9), "num_labels must be at most 1,000,000, got 1000000000"),
    "buckets": (config(relative_attention_num_buckets=10**7), "its config.json speaks of 80,"),
    "cache_bits": (config(cache_bits=3), "cache_bits must be null, 4 or 8, got 3"),
    "a cache of true": (config(cache_bits=True), "cache_bits must be null, 4 or 8, got True"),
    "activation": (config(dense_act_fn="evil", feed_forward_proj="relu"), r"no model can be made .*\('evil'\)"),
    "dtype": (config(dtype="os.system"), "cannot be loaded: .*os.system"),
    # code, other folders and the hub
    "auto_map": (
        config(model_type="mine", auto_map={"AutoConfig": "evil.C"}),
        r"needs its own code \(auto_map in config",
    ),
    "a tokenizer's auto_map": (
        config("tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["evil.T", None]}),
        r"its tokenizer needs its own code \(auto_map in tokenizer_config.json\), which slimexp doesn't run",
    ),
    "custom_generate": (lambda folder: (folder / "custom_generate").mkdir(), r"its own code \(custom_generate\)"),
    "adapter": (content("adapter_config.json", b'{"base_model_name_or_path": "a/b"}'), "holds an adapter of another"),
    "kernel": (config(attn_implementation="some/kernel"), f"attn_implementation {KERNEL}"),
    "kernel of it": (config(_attn_implementation="some/kernel:f"), f"_attn_implementation {KERNEL}"),
    "kernels": (config(attn_implementation={"": "some/kernel"}), f"attn_implementation {KERNEL}"),
    "experts": (config(experts_implementation="some/kernel"), f"experts_implementation {KERNEL}"),
    "flash": (config(attn_implementation="flash_attention_2"), "got 'flash_attention_2'"),
    "gptq": (
        config(quantization_config={"quant_method": "gptq"}),
        "quant_method must be compressed-tensors, .* 'gptq'",
    ),
    "no method": (config(quantization_config={"bits": 4}), "quant_method must be compressed-tensors, .*, got None"),
    "a number": (config(quantization_config=5), "quantization_config must be an object .*, got 5"),
    "a name": (config(quantization_config="compressed-tensors"), "quantization_config must be .*, got 'compressed-ten"),
    "a list of methods": (config(quantization_config=["compressed-tensors"]), "quantization_config must be an object"),
    "groups": (config(quantization_config=GROUPS), "cannot be loaded: .*config_groups"),
    "weights elsewhere": (config(transformers_weights="../x.safetensors"), "must be the name of a file in the folder"),
    "architectures": (config(architectures="os"), "architectures must be a list of names, got 'os'"),
    "model_type": (config(model_type=[1]), "cannot be loaded"),
    # what is no JSON, or no file
    "empty": (content("config.json", b""), "config.json' is damaged"),
    "a list": (content("config.json", b"[]"), "config.json' is damaged .it holds a list"),
    "brackets": (content("config.json", b"[" * 100_000), "nested too deeply"),
    "braces": (content("config.json", b'{"a":' * 900 + b"1" + b"}" * 900), "maximum recursion depth"),
    "a pipe": (instead("config.json", os.mkfifo), "config.json: it is no regular file: get the file anew"),
    "a folder": (instead("config.json", Path.mkdir), "config.json: it is no regular file"),
    "endless": (
        instead("tokenizer.json", lambda path: path.symlink_to("/dev/zero")),
        "tokenizer.json: it is no regular",
    ),
    "a settings pipe": (instead("generation_config.json", os.mkfifo), "generation_config.json: it is no regular file"),
    "settings": (content("generation_config.json", b"[]"), "generation_config.json' is damaged"),
    "a setting": (config("generation_config.json", max_new_tokens="x"), "cannot be loaded"),
    # weights
    "a long header": (header(2**60), "safetensors file was cut short or is none"),
    "no header": (content("model.safetensors", b""), "safetensors file was cut short or is none"),
    "overlapping": (header({"a": vector(0, 8), "b": vector(4, 12)}, bytes(12)), "cut short or is none .*tensor `b`"),
    "outside": (header({"a": vector(0, 8)}, bytes(4)), "safetensors file was cut short or is none"),
    "a shape": (tensors(lambda s: s.update({Q: s[Q][:8].clone()})), rf"'{Q}' must have shape \[32, 32\] .*\[8, 32\]"),
    "a type": (tensors(lambda s: s.update({Q: s[Q].int()})), f"'{Q}' in model.safetensors must hold floats, got I32"),
    "without a block": (tensors(lambda s: s.pop(Q)), f"its files hold no '{Q}'"),
    "without a norm": (
        tensors(lambda s: s.pop("encoder.final_layer_norm.weight")),
        "hold no 'encoder.final_layer_norm.",
    ),
    "without embeddings": (tensors(lambda s: s.pop("shared.weight")), "its files hold no 'shared.weight'"),
    "a shard less": (
        index({"a": "model-1.safetensors", "b": "model-2.safetensors"}),
        r"lacks model-2\.safetensors, which",
    ),
    "a shard outside": (index({"a": "../../etc/passwd"}), r"must name files in the folder, got '../../etc/passwd'"),
    "a shard of the system": (index({"a": "/etc/passwd"}), "must name files in the folder, got '/etc/passwd'"),
    "no shards": (index([]), "weight_map of model.safetensors.index.json must name files in the folder"),
    # tokenizers
    "tokens cut": (instead("tokenizer.json", lambda path: path.write_text('{"version"')), "cannot be loaded"),
    "tokens empty": (content("tokenizer.json", b""), "cannot be loaded"),
    "tokens null": (content("tokenizer.json", b"null"), "cannot be loaded"),
    "tokens nested": (content("tokenizer.json", b"[" * 100_000), "cannot be loaded"),
    "tokens typed": (config("tokenizer.json", model=5), "cannot be loaded"),
    "a pattern": (
        config("tokenizer.json", normalizer={"type": "Replace", "pattern": {"Regex": "(a"}, "content": ""}),
        "cannot be loaded",
    ),
    "a panic": (
        config("tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "cannot be loaded: Precompiled",
    ),
    "a late panic": (
        config(
            "tokenizer.json",
            post_processor={
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "nope", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            },
        ),
        "its tokenizer is damaged",
    ),
    "no tokenizer": (
        lambda folder: [path.unlink() for path in folder.glob("*token*")],
        r"has no tokenizer in its folder .* write it there by tokenizer\.save_pretrained",
    ),
    "no class": (config("tokenizer_config.json", tokenizer_class=5), "tokenizer_class must be a name, got 5"),
    "a length": (config("tokenizer_config.json", model_max_length="x"), "its tokenizer is damaged"),
    "a token": (config("tokenizer_config.json", eos_token=5), "cannot be loaded"),
}


@pytest.mark.parametrize("what", CASES)
def test_what_is_refused(what: str, folder: Path) -> None:
    damage, why = CASES[what]
    damage(folder)
    began = time.monotonic()
    message = refused(folder)
    assert re.search(why, message), message
    assert time.monotonic() - began < 20


class _Touch:
    """Unpickling it runs a command."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("how", ["zip", "plain"])
def test_pickles_run_nothing(how: str, folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    state = {**load_file(folder / "model.safetensors"), "more": _Touch(canary)}
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=how == "zip")
    assert "cannot be loaded" in refused(folder)
    assert not canary.exists()


def test_code_beside_a_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    """A model of a type that transformers has is that one, whatever else its folder holds."""
    canary = tmp_path / "canary"
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')")
    (folder / "training_args.bin").write_bytes(pickle.dumps(_Touch(canary)))
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    config(auto_map={"AutoConfig": "evil.C", "AutoModelForSeq2SeqLM": "evil.M"}, _name_or_path="/etc")(folder)
    config("tokenizer_config.json", chat_template=template, tokenizer_file="/etc/passwd")(folder)
    family = Pretrained(path=str(folder), max_length=16).load(task="seq2seq", texts=tuple, labels=())
    assert type(family.model).__module__.startswith("transformers.models.t5")
    assert family.tokenizer.decode(family.tokenizer("abc")["input_ids"], skip_special_tokens=True) == "abc"
    assert not canary.exists()


def test_nobody_is_asked_whether_to_run_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prompt(*_: Any) -> str:
        raise AssertionError("a question on the terminal")

    monkeypatch.setattr("builtins.input", prompt)
    config(model_type="mine", auto_map={"AutoConfig": "evil.C"})(folder)
    assert "needs its own code" in refused(folder)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"num_layers": 10**9}, r"^model\.config: num_layers must be at most 10,000"),
        ({"num_heads": 0}, r"^model\.config: num_heads must be a whole number from 1"),
        ({"attn_implementation": "some/kernel"}, r"^model\.config: attn_implementation must be eager or sdpa"),
        ({"cache_bits": 3}, r"^model\.config: cache_bits must be null, 4 or 8, got 3"),
    ],
)
def test_a_config_of_conf_has_the_same_bounds(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Scratch(config={"model_type": "t5", **changes}, tokenizer=Bytes(), max_length=16).validate("seq2seq")


@pytest.mark.parametrize("max_length", [2**24 + 1, 10**30])
def test_a_length_far_over(max_length: int) -> None:
    with pytest.raises(ValueError, match=r"max_length must be <= 16777216, got"):
        Pretrained(path="x", max_length=max_length)


@pytest.mark.parametrize("kind", ["t5", "llama", "bert", "gpt2", "mixtral", "albert", "deepseek_v3", "opt", "bart"])
def test_real_models_are_within_bounds(kind: str) -> None:
    check_config(AutoConfig.for_model(kind).to_dict(), kind)
    check_config({"model_type": "llama", "max_position_embeddings": 10_485_760, "vocab_size": 262_208}, "a long one")


def test_shared_layers_are_no_lie() -> None:
    """ALBERT xxlarge in bfloat16: 12 layers of 4096 by 16384 are one."""
    config = {"model_type": "albert", "num_hidden_layers": 12, "hidden_size": 4096, "intermediate_size": 16384}
    check_config(config, "albert", weights=2 * 223_000_000)


def test_only_a_classifiers_head_may_be_new(tiny_folder: Make) -> None:
    """On a BERT that was saved as a language model; one that was saved as a classifier has it."""
    folder = tiny_folder("classification")
    state = load_file(folder / "model.safetensors")

    def without(*names: str) -> Pretrained:
        left = {name: tensor for name, tensor in state.items() if not name.startswith(names)}
        save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
        return Pretrained(path=str(folder), max_length=16)

    def load(source: Pretrained) -> None:
        source.load(task="classification", texts=tuple, labels=("no", "yes"))

    with pytest.raises(ValueError, match=r"its files hold no 'classifier\.bias'"):
        load(without("classifier"))
    config(architectures=["BertForMaskedLM"])(folder)
    load(without("classifier"))
    load(without("classifier", "bert.pooler"))
    with pytest.raises(ValueError, match=r"its files hold no 'bert\.embeddings\.word_embeddings"):
        load(without("classifier", "bert.embeddings.word"))


def test_a_folder_is_read_once_until_it_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(vetting, "check_config", lambda *_, **__: read.append(1))
    for _ in range(3):
        vet(folder)
    assert len(read) == 1
    config(note="new")(folder)
    vet(folder)
    vet(folder)
    assert len(read) == 2


def test_a_link_as_in_the_hubs_cache_is_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").rename(tmp_path / "blob")
    (folder / "config.json").symlink_to(tmp_path / "blob")
    assert len(tokenizer_of(folder)) == 259
    vet(folder)


@pytest.mark.parametrize("other", ["[]", "{", '{"weight_map": 5}', '{"weight_map": {"shared.weight": "other"}}'])
def test_the_file_that_holds_nan_is_named_whatever_lies_beside_it(other: str, folder: Path) -> None:
    tensors(lambda state: state["shared.weight"].fill_(float("nan")))(folder)
    (folder / "a.index.json").write_text(other)
    assert "'shared.weight' in model.safetensors holds NaN" in refused(folder)


def test_the_shard_that_holds_nan_is_named(folder: Path) -> None:
    tensors(lambda state: state["shared.weight"].fill_(float("nan")))(folder)
    index(dict.fromkeys(load_file(folder / "model.safetensors"), "model-1.safetensors"))(folder)
    config("model.safetensors.index.json", metadata={})(folder)
    assert "'shared.weight' in model-1.safetensors holds NaN" in refused(folder)
