"""Cases of model folders: manifest, config, generation config, tokenizer, weights, shards."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults import damage
from benchmarks.faults.case import Case
from benchmarks.faults.child import HOME
from benchmarks.faults.damage import Damage
from benchmarks.faults.world import CHAIN, PRUNE, PRUNED, Command, evaluate, train

BASELINE = ("model@baseline=pretrained", "baseline.path=model", "baseline.max_length=16")
FROM_MASKED = train("new", *PRUNE, "model.path=masked", *BASELINE)
FROM_MODEL = train("new", *PRUNE)

# class and arguments that a manifest may ask for; {shell} stands for a shell command that must not run
CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("posix.system", {"command": "{shell}"}),
    ("os.system", {"command": "{shell}"}),
    ("os.popen", {"cmd": "{shell}"}),
    ("subprocess.call", {"args": "{shell}", "shell": True}),
    ("subprocess.Popen", {"args": ["sh", "-c", "{shell}"]}),
    ("slimexp.artifact.os.system", {"command": "{shell}"}),
    ("slimexp.artifact.shutil.rmtree", {"path": "../victim"}),
    ("shutil.rmtree", {"path": "../victim"}),
    ("os.remove", {"path": "../victim/thesis.txt"}),
    ("os.mkdir", {"path": "../victim/new"}),
    ("builtins.open", {"file": "../victim/thesis.txt", "mode": "w"}),
    ("runpy.run_path", {"path_name": "evil.py"}),
    ("runpy.run_module", {"mod_name": "evil"}),
    ("evil.Thing", {}),
    ("masked.evil.Thing", {}),
    ("torch.load", {"f": "evil.pt", "weights_only": False}),
    ("numpy.load", {"file": "evil.pt", "allow_pickle": True}),
    ("slimexp.clean.main", {"arguments": ["runs", "--unfinished", "--dominated", "--yes"]}),
    ("slimexp.record.stage.key", {"content": {}}),
    ("slimexp.weight.mask.Missing", {}),
    ("slimexp.importance.missing.Mask", {}),
    ("slimexp.quantizer.minmax.MinMax", {"bits": 8, "group_size": None, "symmetric": True}),
    ("slimexp.quantizer.minmax.MinMax", {"bits": 10**9, "group_size": None, "symmetric": True}),
    ("slimexp.weight.mask.Mask", {"shape": [10**6, 10**6]}),
    ("slimexp.weight.mask.Mask", {"shape": [-1, 2]}),
    ("slimexp.weight.mask.Mask", {"shape": ["x"]}),
    ("slimexp.weight.mask.Mask", {"other": 1}),
    ("torch.nn.Linear", {"in_features": 32, "out_features": 32}),
    ("torch.nn.Identity", {}),
    ("", {}),
    ("x", {}),
)
OTHER_CONFIG: tuple[dict[str, Any], ...] = (
    {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}, "model_type": "evil"},
    {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}},
    {"auto_map": {"AutoModelForCausalLM": "nobody/evil--evil.Model"}},
    {"model_type": "../../victim"}, {"model_type": "bert"}, {"model_type": "t5"}, {"model_type": "nothing"},
    {"architectures": ["pipelines"]}, {"architectures": ["Trainer"]}, {"architectures": ["os"]}, {"architectures": []},
    {"architectures": ["AutoModel"]}, {"architectures": ["pipeline"]}, {"architectures": ["LlamaModel"]},
    {"architectures": ["../x"]}, {"architectures": "LlamaForCausalLM"}, {"architectures": ["BertModel"]},
    {"vocab_size": 10**12}, {"vocab_size": 10**7}, {"vocab_size": 0}, {"vocab_size": 10}, {"hidden_size": 10**9},
    {"hidden_size": 31}, {"hidden_size": "32"}, {"num_hidden_layers": 10**7}, {"num_hidden_layers": 0},
    {"num_hidden_layers": 3}, {"num_hidden_layers": 1}, {"num_attention_heads": 0}, {"num_attention_heads": 7},
    {"num_key_value_heads": 0}, {"intermediate_size": 10**10}, {"hidden_act": "os.system"}, {"hidden_act": None},
    {"max_position_embeddings": -5}, {"max_position_embeddings": "many"}, {"max_position_embeddings": 3},
    {"rope_parameters": {"rope_type": "evil"}}, {"rope_parameters": []}, {"rms_norm_eps": float("nan")},
    {"pad_token_id": 10**6}, {"eos_token_id": [[]]}, {"dtype": "system"}, {"torch_dtype": "load"}, {"dtype": 7},
    {"_attn_implementation": "nobody/evil-kernel"}, {"attn_implementation": "nobody/evil-kernel"},
    {"attention_bias": "x"}, {"id2label": {"0": 1}}, {"id2label": []}, {"tie_word_embeddings": "maybe"},
    {"quantization_config": {}}, {"quantization_config": []}, {"quantization_config": {"quant_method": "evil"}},
    {"quantization_config": {"quant_method": "compressed-tensors"}},
    {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"x": {"targets": ["re:("]}}}},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    {"quantization_config": {"quant_method": "gptq", "bits": 4}}, {"base_model_tp_plan": {"x": "os.system"}},
    {"transformers_version": [9]}, {"slimexp_cache_bits": 10**9}, {"cache_bits": "x"}, {"is_encoder_decoder": True},
    {"use_cache": "x"}, {"_name_or_path": "../../victim"}, {"attention_dropout": 2.0}, {"head_dim": 10**9},
)  # fmt: skip
OTHER_TOKENIZER: tuple[dict[str, Any], ...] = (
    {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}, {"auto_map": {"AutoTokenizer": "evil.Tokenizer"}},
    {"tokenizer_class": "os.system"}, {"tokenizer_class": "Trainer"}, {"tokenizer_class": None}, {"pad_token": 5},
    {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": [None, "evil.Tokenizer"]}},
    {"tokenizer_class": "../victim"}, {"backend": "evil"}, {"model_max_length": -1}, {"model_max_length": "x"},
    {"chat_template": "{{ ''.__class__.__mro__ }}"}, {"eos_token": {"content": []}}, {"added_tokens_decoder": []},
    {"added_tokens_decoder": {"x": 1}}, {"added_tokens_decoder": {"99999999": {"content": "z"}}},
    {"tokenizer_file": "/dev/zero"}, {"name_or_path": "../victim"}, {"pad_token": None, "eos_token": None},
    {"extra_special_tokens": 3}, {"padding_side": "up"}, {"clean_up_tokenization_spaces": "x"},
)  # fmt: skip
OTHER_GENERATION: tuple[dict[str, Any], ...] = (
    {"max_length": -1}, {"max_new_tokens": "x"}, {"temperature": "hot"}, {"do_sample": "x", "top_k": -1},
    {"num_beams": 10**9}, {"cache_implementation": "evil"}, {"eos_token_id": "x"}, {"compile_config": {"x": 1}},
    {"custom_generate": "evil"}, {"watermarking_config": {"x": 1}}, {"transformers_version": 3}, {"pad_token_id": -7},
)  # fmt: skip


def on(file: str, change: Damage) -> Callable[[Path], object]:
    """``change`` of a file below home; a ``*`` in its name stands for anything."""
    return lambda home: change(file_at(home, file))


def file_at(home: Path, pattern: str) -> Path:
    return sorted(home.glob(pattern))[0]


def every(kind: str, file: str, command: Command, *tables: dict[str, Damage], differs: bool = False) -> Iterator[Case]:
    """Each damage of the tables to a file."""
    for table in tables:
        for name, change in table.items():
            yield Case(kind, f"{file}: {name}", command, on(file, change), differs)


def wrong_values(
    kind: str, world: Path, file: str, command: Command, *, each: int, most: int, differs: bool
) -> Iterator[Case]:
    for name, change in damage.values(file_at(world / HOME, file), each=each, most=most):
        yield Case(kind, f"{file}: {name}", command, on(file, change), differs)


def with_module(file: str, content: dict[str, Any]) -> Callable[[Path], None]:
    """Further entries of a JSON file, beside a module that runs code when it is imported."""

    def change(home: Path) -> None:
        path = file_at(home, file)
        path.write_text(json.dumps(json.loads(path.read_text()) | content))
        for folder in (path.parent, home):
            damage.module(folder, "evil")

    return change


def manifests(world: Path) -> Iterator[Case]:
    masked, staged = "masked/manifest.json", "chain/chain/prune-*/artifact/manifest.json"
    yield from every("manifest", masked, evaluate("masked"), damage.BYTES, damage.PLACES, damage.JSON)
    yield from every("manifest", staged, CHAIN, damage.BYTES, damage.PLACES, damage.JSON)
    yield from every("manifest", "runs/p50/prune-*/artifact/manifest.json", PRUNED, damage.BYTES, damage.PLACES)
    for name, change in damage.values(world / HOME / masked, each=2, most=24):
        yield Case("manifest", f"resumed: {name}", CHAIN, on(staged, change), "stages" in name)
        yield Case("manifest", f"evaluated: {name}", evaluate("masked"), on(masked, change), "stages" in name)
    for number, (target, arguments) in enumerate(CALLS):
        name = f"{target}({', '.join(arguments)}) {number}"
        yield Case("manifest", f"resumed: {name}", CHAIN, calling(staged, target, arguments))
        yield Case("manifest", f"trained from: {name}", FROM_MASKED, calling(masked, target, arguments))


def calling(file: str, target: str, arguments: dict[str, Any]) -> Callable[[Path], None]:
    """A manifest whose first attachment is whatever ``target`` names."""

    def change(home: Path) -> None:
        path = file_at(home, file)
        changed = json.loads(json.dumps(arguments).replace("{shell}", damage.command(path)))
        damage.edited(("attachments", 0, "class"), target)(path)
        damage.edited(("attachments", 0, "arguments"), changed)(path)
        for folder in (home, path.parent):
            damage.module(folder, "evil")
            damage.pickled(folder / "evil.pt")

    return change


def configs(world: Path) -> Iterator[Case]:
    tables = (damage.BYTES, damage.PLACES, damage.JSON)
    staged = "chain/chain/prune-*/artifact/config.json"
    yield from every("config", "model/config.json", evaluate("model"), *tables, differs=True)
    yield from every("config", staged, CHAIN, *tables, differs=True)
    yield from wrong_values("config", world, "model/config.json", evaluate("model"), each=1, most=24, differs=True)
    for content in OTHER_CONFIG:
        name = json.dumps(content)[:70]
        yield Case("config", f"evaluated: {name}", evaluate("model"), with_module("model/config.json", content), True)
        yield Case("config", f"resumed: {name}", CHAIN, with_module(staged, content), True)
        if "quantization_config" in content or "auto_map" in content:
            yield Case("config", f"trained: {name}", FROM_MODEL, with_module("model/config.json", content), True)


def other_json(world: Path) -> Iterator[Case]:
    """Generation config and tokenizer files."""
    for file, kind, others in (
        ("generation_config.json", "generation_config", OTHER_GENERATION),
        ("tokenizer_config.json", "tokenizer", OTHER_TOKENIZER),
        ("tokenizer.json", "tokenizer", ()),
    ):
        path, staged = f"model/{file}", f"chain/chain/prune-*/artifact/{file}"
        tables = (damage.BYTES, damage.PLACES, damage.JSON)
        yield from every(kind, path, evaluate("model"), *tables, differs=True)
        yield from every(kind, staged, CHAIN, damage.BYTES, damage.PLACES, differs=True)
        yield from wrong_values(kind, world, path, evaluate("model"), each=1, most=14, differs=True)
        for content in others:
            name = json.dumps(content)[:70]
            yield Case(kind, f"evaluated: {name}", evaluate("model"), with_module(path, content), True)


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """A safetensors file with another header."""

    def damaged(path: Path) -> None:
        data = path.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        content = json.loads(data[8 : 8 + size])
        change(content)
        text = json.dumps(content).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return damaged


def tensors(change: Callable[[dict[str, Any]], object]) -> Damage:
    """A safetensors file with other tensors."""

    def damaged(path: Path) -> None:
        from safetensors.torch import load_file, save_file

        state = load_file(path)
        change(state)
        save_file(state, path, {"format": "pt"})

    return damaged


def _first(state: dict[str, Any]) -> str:
    return max(state, key=lambda name: getattr(state[name], "ndim", 0) if name != "__metadata__" else -1)


def _set(state: dict[str, Any], value: float) -> None:
    name = _first(state)
    tensor = state[name].float()
    tensor.view(-1)[3] = value
    state[name] = tensor


WEIGHTS: dict[str, Damage] = {
    "header of 2^62 bytes": lambda path: path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:]),
    "header of no bytes": lambda path: path.write_bytes(struct.pack("<Q", 0) + path.read_bytes()[8:]),
    "offsets beyond the end": header(lambda h: h[_name(h)].update(data_offsets=[0, 10**12])),
    "shape of 10^12": header(lambda h: h[_name(h)].update(shape=[10**6, 10**6])),
    "another shape": header(lambda h: h[_name(h)].update(shape=[*h[_name(h)]["shape"][::-1], 1])),
    "an unknown type": header(lambda h: h[_name(h)].update(dtype="EVIL")),
    "metadata that is a list": header(lambda h: h.update(__metadata__=[])),
    "another format": header(lambda h: h.update(__metadata__={"format": "tf"})),
    "NaN": tensors(lambda state: _set(state, float("nan"))),
    "infinity": tensors(lambda state: _set(state, float("inf"))),
    "a tensor missing": tensors(lambda state: state.pop(_first(state))),
    "all tensors missing": tensors(lambda state: state.clear()),
    "a tensor too much": tensors(lambda state: state.update(evil=state[_first(state)].clone())),
    "a tensor cut": tensors(lambda state: state.update({_first(state): state[_first(state)][:-1].clone()})),
    "a tensor of whole numbers": tensors(lambda state: state.update({_first(state): state[_first(state)].long()})),
}
BITS = ("flipped", "a tensor of whole numbers", "a tensor too much")  # a foreign model with other numbers is another


def _name(content: dict[str, Any]) -> str:
    return next(name for name in content if name != "__metadata__" and len(content[name]["shape"]) > 1)


def weights(world: Path) -> Iterator[Case]:
    tables = (damage.BYTES, damage.PLACES, damage.CODE, WEIGHTS)
    for folder in ("model", "masked", "packed"):
        for case in every("weights", f"{folder}/model.safetensors", evaluate(folder), *tables):
            foreign = folder == "model" and case.name.endswith(BITS)
            yield Case(case.kind, case.name, case.command, case.damage, foreign)
    for folder, command in (("chain/chain/prune-*/artifact", CHAIN), ("runs/p50/prune-*/artifact", PRUNED)):
        yield from every("finished", f"{folder}/model.safetensors", command, *tables)  # reused, and not loaded
    for name, change in damage.CODE.items():
        yield Case("weights", f"model/pytorch_model.bin: {name}", evaluate("model"), _as_bin(change))


def _as_bin(change: Damage) -> Callable[[Path], None]:
    def damaged(home: Path) -> None:
        (home / "model" / "model.safetensors").unlink()
        change(home / "model" / "pytorch_model.bin")

    return damaged


def shards(world: Path) -> Iterator[Case]:
    index, command = "sharded/model.safetensors.index.json", evaluate("sharded")
    yield from every("shards", index, command, damage.BYTES, damage.PLACES, damage.JSON)
    yield from every("shards", "sharded/model-00002*", command, damage.BYTES, damage.PLACES, damage.CODE)
    yield from wrong_values("shards", world, index, command, each=1, most=8, differs=False)
    for target in ("../../victim/thesis.txt", "/dev/zero", "../model/model.safetensors", "", "evil.pt", 5, None, "/"):
        change = damage.edited(("weight_map", "model.norm.weight"), target)
        yield Case("shards", f"weight in {target!r}", command, on(index, change))


def cases(world: Path) -> Iterator[Case]:
    for make in (manifests, configs, other_json, weights, shards):
        yield from make(world)
