"""Checks of a model's files before transformers reads them: data within bounds, and no code."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from slimexp.file.bounded import one_line, read_object, require_file
from slimexp.model.widths import KEY
from slimexp.serialization.manifest import CACHE_BITS, is_plain

SHAPES_MODEL = (".safetensors", ".bin", ".json", ".txt", ".model", ".tiktoken")  # files of weights, config, tokenizer
_MOST_MB = 512  # the largest file of a tokenizer

# Largest whole number of a config by its name, the first pattern that matches. Far above those of existing models.
_BOUNDS = [
    (re.compile(r"(layers?|depths?|blocks|stages)$"), 10_000),
    (re.compile(r"(heads?|experts|codebooks|groups)$"), 100_000),
    (re.compile(r"labels$"), 1_000_000),
    (re.compile(r"(positions?|position_embeddings|n_ctx)$"), 2**25),
    (re.compile(r"(size|dim|embd|inner|state|rank|width|channels|buckets)$|^(d|n|num|dim|hidden)_"), 10_000_000),
]
# These are at least 1; some configs list them for each layer.
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_WIDTHS = ("hidden_size", "d_model", "n_embd", "dim")
_INNER = ("intermediate_size", "d_ff", "ffn_dim", "hidden_dim")
_HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "num_key_value_heads", "d_kv")
_OF_A_SIDE = ("num_decoder_layers", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim")
_TOKENS = ("vocab_size", "max_position_embeddings", "n_positions")
_LEAST_ONE = {*_LAYERS, *_WIDTHS, *_INNER, *_HEADS, *_OF_A_SIDE, *_TOKENS}
_CHOOSES_KERNELS = re.compile(r"_?(attn|experts)_implementation(_internal)?")
_IN_TRANSFORMERS = {None, "eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm"}  # others may be downloaded
_INDEXES = {"model.safetensors": "model.safetensors.index.json", "pytorch_model.bin": "pytorch_model.bin.index.json"}
_SETTINGS = ("generation_config.json", "special_tokens_map.json", "added_tokens.json")

_vetted: dict[Path, list[tuple[Any, ...]]] = {}  # folder -> state of its files when they last passed


class Refused(ValueError):
    """A model's files break a rule."""


def vet(folder: Path) -> None:
    """Refuse a folder that would run code, read files elsewhere, or is damaged; once, until its files change.

    Raises:
        Refused: A file breaks a rule; the message has the file or the key, the rule and the value.
    """
    state = [_state(path) for path in sorted(folder.iterdir())]
    if _vetted.get(folder.absolute()) == state:
        return
    try:
        _vet_files(folder)
        config = read_object(folder / "config.json")
        _vet_weights(folder, packed=config.get("quantization_config") is not None)
        check_config(config, f"model '{folder}'", weights=stored_bytes(folder))
        _vet_tokenizer(folder)
    except SafetensorError as error:
        raise damaged(folder, error) from error
    except Refused:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise Refused(f"model '{folder}': {one_line(error)}") from error
    _vetted[folder.absolute()] = state


def _state(path: Path) -> tuple[Any, ...]:
    """State of a file, or of the one that a link leads to, that changes with its content."""
    status = path.stat() if path.exists() else path.lstat()
    return path.name, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def damaged(path: str | Path, error: SafetensorError) -> ValueError:
    """The error to raise where the weights of a model cannot be read."""
    return Refused(f"model '{path}': its safetensors file was cut short or is none ({error}): get the file anew")


def check_config(config: Mapping[str, Any], name: str, *, weights: int = 0) -> None:
    """Refuse a config that would run or download code, or that is larger than any model.

    Args:
        config: The content of a ``config.json``, or arguments of a transformers config.
        name: Name of the model in messages.
        weights: Bytes of the model's weights on disk; 0 where there are none.

    Raises:
        Refused: A key breaks its rule; the message has the key, the rule and the value.
    """
    kind = config.get("model_type")
    if "auto_map" in config and not (isinstance(kind, str) and kind in CONFIG_MAPPING):
        raise Refused(
            f"{name} needs its own code (auto_map in config.json), which slimexp doesn't run: choose a model that "
            "transformers itself has"
        )
    for key, value in _items(config):
        _check_value(key, value, name)
    if type(config.get("cache_bits")) not in (int, type(None)) or config.get("cache_bits") not in CACHE_BITS:
        raise _refused(name, "cache_bits", "null, 4 or 8", config["cache_bits"])
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(item, str) for item in architectures):
        raise _refused(name, "architectures", "a list of names", architectures)
    if (file := config.get("transformers_weights")) is not None and not is_plain(file):
        raise _refused(name, "transformers_weights", "the name of a file in the folder", file)
    if weights and (least := _least_weights(config)) > 8 * weights:
        raise Refused(
            f"{name}: its config.json speaks of {least:,} weights or more, and its files hold {weights:,} bytes: get "
            "config.json anew"
        )


def _check_value(key: str, value: Any, name: str) -> None:
    if _CHOOSES_KERNELS.fullmatch(key):
        for item in value.values() if isinstance(value, dict) else [value]:
            if not isinstance(item, str | None) or item not in _IN_TRANSFORMERS:
                raise _refused(name, key, "eager or sdpa, which transformers has itself", item)
    elif key == "quantization_config" and value is not None:
        if not isinstance(value, dict):
            raise _refused(name, key, "an object with quant_method compressed-tensors", value)
        method = value.get("quant_method")
        if method != "compressed-tensors":
            raise _refused(name, f"{key}.quant_method", "compressed-tensors, which needs no other package", method)
    else:
        _check_size(key, value, name)


def _check_size(key: str, value: Any, name: str) -> None:
    most = next((most for pattern, most in _BOUNDS if pattern.search(key)), None)
    if most is None:
        return
    for item in value if isinstance(value, list) else [value]:
        if (
            key in _LEAST_ONE
            and item is not None
            and not isinstance(item, dict)
            and (type(item) is not int or item < 1)
        ):
            raise _refused(name, key, f"a whole number from 1 to {most:,}", item)
        if isinstance(item, int | float) and not isinstance(item, bool) and not abs(item) <= most:
            raise _refused(name, key, f"at most {most:,}", item)


def _refused(name: str, key: str, rule: str, value: Any) -> Refused:
    shown = repr(value)
    return Refused(f"{name}: {key} must be {rule}, got {shown if len(shown) <= 80 else shown[:80] + ' ...'}")


def _items(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key and value, those of configs within it too."""
    for key, value in config.items():
        yield str(key), value
        if isinstance(value, dict):
            yield from _items(value)


def _least_weights(config: Mapping[str, Any]) -> int:
    """A lower bound of the number of a model's weights: one matrix per layer."""

    def largest(names: tuple[str, ...]) -> int:
        return max((value for name in names if type(value := config.get(name)) is int), default=0)

    inner = 1 if KEY in config else largest(_INNER)  # of the widest block alone
    return largest(_LAYERS) * largest(_WIDTHS) * max(inner, 1)


def require_files(folder: Path) -> None:
    """Refuse a folder with something in place of a file of the model that cannot be read to its end.

    Raises:
        Refused: A file cannot be read; the message has the file and the rule.
    """
    for path in folder.iterdir():
        if path.suffix in SHAPES_MODEL:
            try:
                require_file(path, most_mb=None if path.suffix in (".safetensors", ".bin") else _MOST_MB)
            except (OSError, ValueError) as error:
                raise Refused(f"model '{folder}': {path.name}: {one_line(error)}: get the file anew") from error


def _vet_files(folder: Path) -> None:
    """Refuse files that bring code or the model of another folder."""
    require_files(folder)
    if (folder / "custom_generate").exists():
        raise Refused(f"model '{folder}' brings its own code (custom_generate), which slimexp doesn't run: remove it")
    if (folder / "adapter_config.json").exists():
        raise Refused(
            f"model '{folder}' holds an adapter of another model (adapter_config.json): merge it into that model, and "
            "give the folder of the whole"
        )


def _vet_weights(folder: Path, *, packed: bool) -> None:
    """Read the headers of the weights; only packed ones are whole numbers."""
    for path in _safetensors(folder):
        # torch would reserve memory for the whole file, of which the header alone is read
        with safe_open(path, framework="numpy") as file:
            for name in () if packed else file.keys():
                kind = file.get_slice(name).get_dtype() if name.endswith(".weight") else "F32"
                if kind[0] != "F" and kind != "BF16":
                    raise ValueError(f"'{name}' in {path.name} must hold floats, got {kind}: get the file anew")


def _safetensors(folder: Path) -> list[Path]:
    """The files that transformers reads the weights from, shards of an index among them."""
    weights: list[Path] = []
    for whole, index in _INDEXES.items():
        names = _shards(folder / index)
        if weights or (folder / whole).exists():
            weights = weights or [folder / whole]
        elif names:
            if missing := sorted(name for name in names if not (folder / name).exists()):
                raise Refused(
                    f"model '{folder}' lacks {', '.join(missing[:3])}, which {index} names: get the file anew"
                )
            weights = [folder / name for name in sorted(names)]
    return [path for path in weights if path.suffix == ".safetensors"]


def file_of(tensor: str, folder: Path) -> str | None:
    """Name of the file that transformers reads ``tensor`` from; ``None`` where no file or index has it."""
    for whole, index in _INDEXES.items():
        if (folder / whole).exists():
            return whole
        if (folder / index).exists():
            return _places(folder / index).get(tensor)
    return None


def _shards(index: Path) -> set[str]:
    """Names of the files in an index; empty where there is no index."""
    return set(_places(index).values()) if index.exists() else set()


def _places(index: Path) -> dict[str, str]:
    """Name of the tensor -> name of its file, of an index."""
    places = read_object(index).get("weight_map")
    files = {name: str(file) for name, file in places.items()} if isinstance(places, dict) else {}
    names = set(files.values())
    if strange := next((name for name in names if not is_plain(name)), None) or (not names and str(places)[:80]):
        raise ValueError(
            f"weight_map of {index.name} must name files in the folder, got {strange!r}: get the file anew"
        )
    return files


def stored_bytes(folder: Path) -> int:
    """Bytes of the weights in a folder on disk."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))


def _vet_tokenizer(folder: Path) -> None:
    for name in _SETTINGS:
        if (folder / name).exists():
            read_object(folder / name)
    if not (folder / "tokenizer_config.json").exists():
        return
    config = read_object(folder / "tokenizer_config.json")
    kind = config.get("tokenizer_class")
    if kind is not None and not isinstance(kind, str):
        raise _refused(f"model '{folder}'", "tokenizer_class", "a name", kind)
    if "auto_map" in config and not (
        kind and (tokenizer_class_from_name(kind) or tokenizer_class_from_name(f"{kind}Fast"))
    ):
        raise Refused(
            f"model '{folder}': its tokenizer needs its own code (auto_map in tokenizer_config.json), which slimexp "
            "doesn't run: choose a model whose tokenizer transformers itself has"
        )
