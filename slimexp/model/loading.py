"""Sources of models: a hub id, a local folder, the zoo, or a config alone."""

import copy
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from slimexp.file import integrity
from slimexp.file.bounded import one_line
from slimexp.file.integrity import Damaged
from slimexp.host.progress import counted_bytes
from slimexp.model import labels as classes
from slimexp.model.base import Family, Source
from slimexp.model.cache import cache_bits, require_cache, round_cache
from slimexp.model.causal_lm import CausalLm
from slimexp.model.encoder import Encoder
from slimexp.model.history import History, of_artifact, stored_as
from slimexp.model.place import local_or_hub
from slimexp.model.reading import check_room, outline, reach, tokenizer_of, weights
from slimexp.model.seq2seq import Seq2Seq
from slimexp.model.special_tokens import longest
from slimexp.model.tokenizer import TokenizerRecipe
from slimexp.model.vetting import SHAPES_MODEL, check_config, require_files
from slimexp.model.widths import class_of, from_config
from slimexp.serialization import manifest
from slimexp.serialization.manifest import LARGEST

_HALF = (torch.float16, torch.bfloat16)

_FAMILIES: dict[str, tuple[Any, type[Family]]] = {
    "seq2seq": (AutoModelForSeq2SeqLM, Seq2Seq),
    "causal_lm": (AutoModelForCausalLM, CausalLm),
    "classification": (AutoModelForSequenceClassification, Encoder),
}


class Pretrained(Source):
    """A pretrained model.

    Args:
        path: A hub id, a local folder in the hub's format, or ``zoo:NAME`` for one that ships with slimexp.
        max_length: Longest sequence in tokens, at most the positions of the model.
    """

    def __init__(self, *, path: str, max_length: int) -> None:
        _check_length(max_length)
        self.path = path
        self.max_length = max_length
        self._read: PreTrainedConfig | None = None

    def check_files(self) -> None:
        folder = Path(self.folder)
        if not manifest.is_in(folder):
            return
        try:
            manifest.check(folder)
        except Damaged as error:
            raise ValueError(f"model '{self.path}' is damaged ({error}): {manifest.WAY_OUT}") from error

    def history(self) -> History:
        return of_artifact(Path(self.folder), format=self.stored_as())

    def stored_as(self) -> str | None:
        return stored_as(getattr(self._config(), "quantization_config", None))

    def validate(self, task: str, labels: Sequence[str] = ()) -> PreTrainedConfig:
        config = _validate(self._config(), task, self.path, self.max_length)
        classes.in_model_order(config, labels)
        return config

    def usual_task(self) -> str:
        return _usual_task(self._config())

    def is_trained(self, task: str) -> bool:
        return task != "classification" or classes.tells_classes(self.validate(task))

    def load_tokenizer(self, texts: Callable[[], Iterable[str]]) -> PreTrainedTokenizerBase:
        return tokenizer_of(self.folder)

    def outline(self, *, task: str, labels: Sequence[str]) -> Family:
        auto, family = _FAMILIES[task]
        config = self.validate(task, labels)
        for name, value in classes.options(config, labels).items():
            setattr(config, name, value)
        model = outline(auto, config, self.path)
        return _build_family(family, model, self.load_tokenizer(texts=tuple), self.max_length, self.path)

    def load(self, *, task: str, texts: Callable[[], Iterable[str]], labels: Sequence[str]) -> Family:
        return self._load(task, texts, labels, torch.float32)

    def load_stored(self, *, task: str, texts: Callable[[], Iterable[str]], labels: Sequence[str]) -> Family:
        kept = self.is_trained(task) and self.stored_as() is None  # a new head is drawn in float32
        dtype = getattr(self._config(), "dtype", None) if kept else None
        return self._load(task, texts, labels, dtype if dtype in _HALF else torch.float32)

    def _load(self, task: str, texts: Callable[[], Iterable[str]], labels: Sequence[str], dtype: torch.dtype) -> Family:
        auto, family = _FAMILIES[task]
        options = classes.options(self.validate(task), labels)
        model = weights(auto, self.folder, dtype, **options)
        vars(model.config).pop("quantization_config", None)  # its weights are dequantized
        round_cache(model, cache_bits(model.config))
        classes.lay_out(model, labels)
        return _build_family(family, model, self.load_tokenizer(texts), self.max_length, self.path)

    def fingerprint(self) -> str:
        """Digest of a local folder's files, which can change under the same path; of a hub model its commit."""
        if not Path(self.folder).is_dir():
            return str(self._config()._commit_hash)
        require_files(Path(self.folder))
        there = {path.name: path for path in Path(self.folder).glob("*") if path.suffix in SHAPES_MODEL}
        dropped = manifest.dropped(Path(self.folder))
        digest = hashlib.sha256()
        size = sum(path.stat().st_size for path in there.values())
        with counted_bytes(f"digest of {self.path}", size) as read:
            integrity.take_digests(there.values(), read=read)
            for name in sorted(there.keys() | dropped.keys()):
                of_file = integrity.digest(there[name]) if name in there else dropped[name]
                digest.update(name.encode() + bytes.fromhex(of_file))
        return digest.hexdigest()

    def _config(self) -> PreTrainedConfig:
        """A copy of the config, which is read once: of a hub id every reading is two requests."""
        if self._read is None:
            self._read = reach(AutoConfig, self.folder)
        return copy.deepcopy(self._read)

    @property
    def folder(self) -> str:
        """The hub id or folder that transformers loads.

        Raises:
            ValueError: The zoo has no such model, or a local folder holds none.
        """
        return local_or_hub(self.path)

    def local_folder(self) -> Path:
        """Folder of the files on this machine; a hub model must have been loaded before."""
        if Path(self.folder).is_dir():
            return Path(self.folder)
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(self.path, local_files_only=True))


class Scratch(Source):
    """A model with random weights.

    Args:
        config: Arguments of the transformers config, ``model_type`` among them.
        tokenizer: Recipe of the tokenizer; its size becomes that of the vocabulary.
        max_length: Longest sequence in tokens.
    """

    is_random = True

    def __init__(self, *, config: dict[str, Any], tokenizer: TokenizerRecipe, max_length: int) -> None:
        if "model_type" not in config:
            raise ValueError("model.config needs a model_type (t5, llama, bert, ...)")
        _check_length(max_length)
        self.config = config
        self.tokenizer = tokenizer
        self.has_tokenizer = tokenizer.reads_files
        self.max_length = max_length

    def stored_as(self) -> str | None:
        return stored_as(self.config.get("quantization_config"))

    def usual_task(self) -> str:
        return _usual_task(self._checked_config())

    def validate(self, task: str, labels: Sequence[str] = ()) -> PreTrainedConfig:
        return _validate(self._checked_config(), task, f"a {self.config['model_type']} config", self.max_length)

    def _checked_config(self) -> PreTrainedConfig:
        check_config(self.config, "model.config")
        try:
            config: PreTrainedConfig = AutoConfig.for_model(**self.config)
        except Exception as error:  # of transformers and of huggingface_hub, which checks the types
            raise ValueError(f"model.config: {one_line(error)}") from error
        return config

    def is_trained(self, task: str) -> bool:
        return False

    def fingerprint(self) -> str:
        return self.tokenizer.fingerprint()

    def load_tokenizer(self, texts: Callable[[], Iterable[str]]) -> PreTrainedTokenizerBase:
        return self.tokenizer.build(texts())

    def load(self, *, task: str, texts: Callable[[], Iterable[str]], labels: Sequence[str]) -> Family:
        self.validate(task)
        tokenizer = self.load_tokenizer(texts)
        special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
        rows = 1 + max(tokenizer.get_vocab().values())
        config = AutoConfig.for_model(**{**self.config, **special, "vocab_size": rows})
        if config.is_encoder_decoder:
            config.decoder_start_token_id = tokenizer.pad_token_id
        for name, value in classes.options(config, labels).items():
            setattr(config, name, value)
        auto, family = _FAMILIES[task]
        return family(from_config(auto, config), tokenizer, max_length=self.max_length)


def family_named(task: str) -> type[Family]:
    """The family that serves ``task``."""
    return _FAMILIES[task][1]


def from_folder(
    folder: str | Path,
    task: str,
    max_length: int,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Family:
    """A family from a model folder, exactly as plain transformers loads it in ``dtype`` onto ``device``."""
    auto, _ = _FAMILIES[task]
    _validate(reach(AutoConfig, folder), task, f"model '{folder}'", max_length)
    return family_of(weights(auto, folder, dtype, device).eval(), folder, task, max_length)


def family_of(model: PreTrainedModel, folder: str | Path, task: str, max_length: int) -> Family:
    """A family of a model that is loaded, with the tokenizer in its folder."""
    round_cache(model, cache_bits(model.config))
    return _build_family(family_named(task), model, tokenizer_of(folder), max_length, folder)


def _build_family(
    family: type[Family],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    path: str | Path,
) -> Family:
    """The family of a model that was read at ``path``."""
    try:
        return family(model, tokenizer, max_length=max_length)
    except ValueError as error:
        raise ValueError(f"model '{path}': {error}") from error


def bare(folder: Path, task: str, max_length: int) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """Class and config of the model that an artifact for ``task`` holds, rounding left out.

    Raises:
        ValueError: The model does not serve ``task`` or ``max_length``, or its config and its files do not fit.
    """
    auto, _ = _FAMILIES[task]
    config: PreTrainedConfig = reach(AutoConfig, folder)
    _validate(config, task, f"model '{folder}'", max_length)
    check_room(outline(auto, config, folder), folder)
    serving = auto._model_mapping[type(config)]
    supported = {kind.__name__: kind for kind in (serving if isinstance(serving, tuple) else (serving,))}
    architecture = next(iter(config.architectures or ()), None)
    if architecture not in supported:
        raise ValueError(
            f"model '{folder}': architectures of its config.json must name {' or '.join(supported)}, which serves the "
            f"task '{task}', got {architecture!r}: get config.json anew"
        )
    vars(config).pop("quantization_config", None)
    return class_of(supported[architecture], config), config


def _check_length(max_length: int) -> None:
    if max_length < 2:
        raise ValueError(f"max_length must be >= 2, got {max_length}")
    if max_length > LARGEST:
        raise ValueError(f"max_length must be <= {LARGEST}, got {max_length}")


def _validate(config: PreTrainedConfig, task: str, name: str, max_length: int) -> PreTrainedConfig:
    if not _serves(config, task):
        raise ValueError(
            f"{name} is of type {config.model_type}, which does not serve the task '{task}' of this corpus: "
            "choose another model=... or data=..."
        )
    if (bits := cache_bits(config)) is not None:
        require_cache(config, bits)
    most = longest(config)
    if most is not None and max_length > most:
        raise ValueError(f"max_length must be <= {most}, the positions that {name} has; got {max_length}: set it lower")
    return config


def _serves(config: PreTrainedConfig, task: str) -> bool:
    auto, _ = _FAMILIES[task]
    # transformers would load a BERT as a language model that sees the token it predicts
    sees_ahead = type(config) in AutoModelForMaskedLM._model_mapping and not getattr(config, "is_decoder", False)
    serves = type(config) in auto._model_mapping and (task == "seq2seq") == bool(config.is_encoder_decoder)
    return serves and not (task == "causal_lm" and sees_ahead)


def _usual_task(config: PreTrainedConfig) -> str:
    tasks = [task for task in _FAMILIES if _serves(config, task)]
    if not tasks:
        raise ValueError(f"a model of type {config.model_type} serves none of the tasks {', '.join(_FAMILIES)}")
    return tasks[0]
