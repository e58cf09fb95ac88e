"""Reading a model by transformers: its files are vetted before, complete afterwards, and every failure is one line."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from slimexp.file.bounded import one_line
from slimexp.host import hub
from slimexp.host.progress import working
from slimexp.model.vetting import Refused, check_config, damaged, file_of, stored_bytes, vet
from slimexp.model.widths import Replacement, class_of, from_config
from slimexp.serialization.experts import cast_stacks
from slimexp.serialization.pack import decompress

_OF_TOKENIZER = re.compile(r"token|vocab|merges|tekken|\.(model|spm)$")  # in the names of a tokenizer's files


def reach(auto: Any, path: str | Path, **options: Any) -> Any:
    """Call ``auto.from_pretrained`` on a folder that was vetted, or on the hub; no code of the model's runs.

    Raises:
        ValueError: The model cannot be read.
    """
    local = Path(path).is_dir()
    if local:
        vet(Path(path))
    if auto is not GenerationConfig:
        options["trust_remote_code"] = False
    try:
        with nullcontext() if local else hub.reached(), without_bars(), working(f"loading {path}"):
            if not local:
                check_config(PreTrainedConfig.get_config_dict(path)[0], f"model '{path}'")
            return auto.from_pretrained(path, **options)
    except Refused:
        raise
    except SafetensorError as error:  # a file that was cut short
        raise damaged(path, error) from error
    except BaseException as error:  # the libraries below raise every kind
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        why = one_line(error)
        if isinstance(error, OSError) and not local:
            why = hub.missing(str(path), "model", error, key="model.path")
        raise ValueError(f"model '{path}' cannot be loaded: {why}") from error


def _is_panic(error: BaseException) -> bool:
    """Whether it is the panic of a library written in Rust, which is no ``Exception`` of Python's."""
    return type(error).__name__ == "PanicException"


def tokenizer_of(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, tried on a word.

    Raises:
        ValueError: There is none in the folder, it cannot be read, or fails on a word.
    """
    folder = Path(path)
    if folder.is_dir() and not any(_OF_TOKENIZER.search(entry.name) for entry in folder.iterdir()):
        raise ValueError(  # transformers makes an empty one by the model's type
            f"model '{path}' has no tokenizer in its folder (tokenizer.json, vocab.txt, *.model): write it there by "
            "tokenizer.save_pretrained(FOLDER)"
        )
    tokenizer: PreTrainedTokenizerBase = reach(AutoTokenizer, path)
    try:
        tokenizer("a"), tokenizer("a", "a")
    except BaseException as error:  # parts that do not fit each other are a panic of its library only now
        if isinstance(error, Exception) or _is_panic(error):
            raise ValueError(f"model '{path}': its tokenizer is damaged ({one_line(error)}): get it anew") from error
        raise
    return tokenizer


def outline(auto: Any, config: PreTrainedConfig, path: str | Path) -> PreTrainedModel:
    """A model without weights, its parameters on the meta device.

    Raises:
        ValueError: transformers cannot build a model of this config.
    """
    try:
        with torch.device("meta"):
            model = from_config(auto, config)
    except Exception as error:  # numbers that do not fit each other show up anywhere
        raise ValueError(f"model '{path}': no model can be made from its config.json ({one_line(error)})") from error
    return model


def weights(
    auto: Any,
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    **options: Any,
) -> PreTrainedModel:
    """A trained model in ``dtype``, as plain transformers loads it, if its weights are all there.

    On a CPU, weights that are stored in ``dtype`` are mapped from their files. On another device every weight is cast
    there, and the machine's memory holds one at a time.
    """
    if torch.device(device).type != "cpu":
        options["device_map"] = {"": torch.device(device)}
    config = reach(AutoConfig, path)
    check_room(outline(auto, config, path), path)
    with without_report():
        model, report = reach(
            class_of(auto, config), path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    check_fit(model, report, path)
    with without_bars():
        decompress(model)
    cast_stacks(model, dtype)
    check_checkpoint(model.named_parameters(), path)
    return model


@contextmanager
def without_report() -> Iterator[None]:
    """Hide messages of transformers on missing weights, which ``check_fit`` reports in one line, and on sharding."""
    names = (
        "transformers.modeling_utils",
        "transformers.distributed.tensor_parallel",
        "compressed_tensors.utils.match",  # experts are no modules of the model, though a scheme names them
    )
    levels = {(logger := logging.getLogger(name)): logger.level for name in names}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def check_room(model: PreTrainedModel, path: str | Path) -> None:
    """Refuse a model with more weights than its files can hold at a bit for each, before they are allocated."""
    stored = stored_bytes(Path(path)) if Path(path).is_dir() else 0
    expected = sum(parameter.numel() for parameter in model.parameters())
    if stored and expected > 8 * stored:
        raise ValueError(
            f"model '{path}': its config.json speaks of {expected:,} weights, and its files hold {stored:,} bytes: "
            "get config.json anew"
        )


def check_fit(model: PreTrainedModel, report: Mapping[str, Any], path: str | Path) -> None:
    """Refuse a model that differs from its files: transformers initializes missing weights, and drops surplus ones.

    Args:
        model: The model as transformers loaded it.
        report: The loading info of transformers.
        path: Folder or hub id that it was loaded from.

    Raises:
        ValueError: A tensor has another shape than the config says, or the files hold more or fewer blocks, or a map
            that the config does not speak of.
    """
    way_out = "config.json and weights do not belong together: get both anew"
    for name, stored, expected in sorted(report["mismatched_keys"]):
        raise ValueError(
            f"model '{path}': '{name}' must have shape {list(expected)} by its config.json, got {list(stored)}: "
            f"{way_out}"
        )
    new = sorted(dict(model.named_parameters()).keys() & set(report["missing_keys"]))
    if missing := next((name for name in new if not _may_be_new(model, name)), None):
        raise ValueError(f"model '{path}': its files hold no '{missing}': {way_out}")
    base = f"{model.base_model_prefix}."
    for block, module in model.named_modules():
        if isinstance(module, nn.ModuleList | Replacement):
            below = re.compile(rf"(?:{re.escape(base)})?{re.escape(block.removeprefix(base))}\.(\w+)\.")
            surplus = ((name, place[1]) for name in sorted(report["unexpected_keys"]) if (place := below.match(name)))
            for name, part in surplus:
                if isinstance(module, Replacement):
                    raise ValueError(
                        f"model '{path}': its files hold '{name}', and its config.json has nothing there: {way_out}"
                    )
                if part.isdecimal() and int(part) >= len(module):
                    raise ValueError(f"model '{path}': its files hold '{name}', it has {len(module)} blocks: {way_out}")


def _may_be_new(model: PreTrainedModel, name: str) -> bool:
    """Whether a weight belongs to a classifier's head, or its pooler, of a model that was saved without one."""
    kind, base = type(model).__name__, f"{model.base_model_prefix}."
    if not kind.endswith("ForSequenceClassification") or kind in (model.config.architectures or ()):
        return False
    return not name.startswith(base) or name.startswith(f"{base}pooler.")


def check_checkpoint(tensors: Iterable[tuple[str, Tensor]], path: str | Path) -> None:
    """Refuse a checkpoint with values that are not finite, before it is used.

    Args:
        tensors: Names and tensors of the checkpoint.
        path: Folder or hub id that it was loaded from.

    Raises:
        ValueError: A tensor holds NaN or infinity.
    """
    for name, tensor in tensors:
        if not _is_finite(tensor):
            file = file_of(name, Path(path))
            raise ValueError(
                f"model '{path}': '{name}'{f' in {file}' if file else ''} holds NaN or infinity: get the file anew, "
                "or train the model anew"
            )


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite; without the copy that ``isfinite`` makes, which only 8-bit floats need."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    ends = (tensor.float() if tensor.dtype.itemsize == 1 else tensor).aminmax()
    return all(bool(end.isfinite()) for end in ends)


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the progress bars of loading and saving (of transformers and compressed-tensors), not those of downloads."""
    draw = tqdm.__init__

    def hidden(bar: tqdm, *args: Any, **options: Any) -> None:
        draw(bar, *args, **options if isinstance(bar, huggingface_hub.utils.tqdm) else {**options, "disable": True})

    tqdm.__init__ = hidden
    try:
        yield
    finally:
        tqdm.__init__ = draw
