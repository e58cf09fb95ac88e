"""A model in a GGUF file: unpacked once to a folder in the hub's format, which is then read like any other."""

import copy
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from slimexp.file import integrity
from slimexp.file.bounded import one_line, read_object
from slimexp.host import hub, memory
from slimexp.host.console import phase
from slimexp.host.progress import counted_bytes, working
from slimexp.kernel import store
from slimexp.model.base import parameter_count
from slimexp.model.history import History
from slimexp.model.loading import Pretrained
from slimexp.model.reading import check_fit, without_bars, without_report
from slimexp.model.rotary import with_frequencies
from slimexp.model.tokenizer import save_tokenizer
from slimexp.model.vetting import check_config
from slimexp.record import lock
from slimexp.serialization import gguf
from slimexp.serialization.gguf import Header

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_FORMAT = 1  # of the folders; another one is made anew
_SEAL = "unpacked.json"  # digests of the files of a folder, the last that is written
_SHARD = "4GB"


class Gguf(Pretrained):
    """A model in a GGUF file, its weights dequantized.

    The folder it is unpacked to lies in the user's cache (``$SLIMEXP_CACHE``, else ``~/.cache/slimexp``), under the
    digest of the file: plain transformers reads it, and what a run makes of it is as of any other model.

    Args:
        path: The file, or ``OWNER/NAME/FILE.gguf`` on the hub.
        max_length: Longest sequence in tokens, at most the positions of the model.
        dtype: Type of the unpacked weights, ``float32``, ``float16`` or ``bfloat16``; ``auto`` for the file's own, and
            bfloat16 where it is quantized.
    """

    def __init__(self, *, path: str, max_length: int, dtype: str) -> None:
        if dtype not in ("auto", *_DTYPES):
            raise ValueError(f"model.dtype must be auto or one of {', '.join(_DTYPES)}, got '{dtype}'")
        super().__init__(path=path, max_length=max_length)
        self.dtype = dtype
        self._reader: Any = None  # what parsed the file, of whose metadata it holds some 1,500 bytes a token

    def check_files(self) -> None:
        _ = self.header

    def history(self) -> History:
        return History()  # what rounded its weights is not known, and the model is as dense as it can be had

    def fingerprint(self) -> str:
        dtype = str(self._dtype()).removeprefix("torch.")
        with counted_bytes(f"digest of {self.file.name}", self.file.stat().st_size) as read:
            digest = integrity.digest(self.file, read=read)
        return hashlib.sha256(f"{_FORMAT} {dtype} {digest}".encode()).hexdigest()

    def load_tokenizer(self, texts: Callable[[], Iterable[str]]) -> PreTrainedTokenizerBase:
        """The tokenizer in the file, for which nothing needs to be unpacked."""
        if "_unpacked" in vars(self):
            return super().load_tokenizer(texts)
        return copy.deepcopy(self._in_file)

    @cached_property
    def file(self) -> Path:
        """The file on this machine; one of the hub is downloaded.

        Raises:
            ValueError: There is no such file.
        """
        path, parts = Path(self.path), self.path.split("/")
        if not os.path.lexists(path) and len(parts) > 2 and parts[0] and path.suffix == ".gguf":
            from huggingface_hub import hf_hub_download

            try:
                with hub.reached():
                    return Path(hf_hub_download("/".join(parts[:2]), "/".join(parts[2:])))
            except Exception as error:  # whatever the transport raises, of whichever library
                why = hub.missing("/".join(parts[:2]), "model", error, key="model.path")
                raise ValueError(f"model '{self.path}' cannot be loaded: {why}") from error
        return path

    @cached_property
    def header(self) -> Header:
        """What the file says of its model.

        Raises:
            ValueError: The file is no whole GGUF, or transformers cannot read one of its architecture.
        """
        header, self._reader = gguf.read(self.file)
        known = _architectures()
        if _plain(header.architecture) not in map(_plain, known):
            raise ValueError(
                f"'{self.path}' holds a model of architecture '{header.architecture[:80]}', which transformers does "
                f"not read from a GGUF file (it reads {', '.join(known)}): take the model in the hub's format"
            )
        return header

    @property
    def folder(self) -> str:
        """The folder in the hub's format, made where it is not there yet."""
        return str(self._unpacked)

    @cached_property
    def _unpacked(self) -> Path:
        folders = store.folders("gguf")
        if not folders:
            raise ValueError("model=gguf unpacks to a folder in the user's cache, and there is none: set SLIMEXP_CACHE")
        if not any(any(folder.glob(f"*/{_SEAL}")) for folder in folders):  # where none is found, before the digest
            self._check_room()
        for folder in (folder / self.fingerprint()[:32] for folder in folders):
            if _is_whole(folder):
                self._reader = None
                return folder
        self._check_room()
        folder = folders[0] / self.fingerprint()[:32]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock.held(folder.with_suffix(".lock"), f"  another process unpacks {self.file.name}"):
            if not _is_whole(folder):  # which that process has not made meanwhile
                with integrity.aside(folder) as aside, working(f"unpacking {self.file.name}"):
                    aside.mkdir()
                    self._unpack(aside, folder)
                    integrity.remove(folder)
        self._reader = None
        return folder

    def _check_room(self) -> None:
        """Refuse to unpack more weights than memory has room for, as the header tells."""
        needed, there = sum(self.header.weights.values()) * self._dtype().itemsize, memory.available()
        if needed > there:
            raise ValueError(
                f"unpacking '{self.path}' takes at least {needed / 1e9:.3g} GB of memory, all of its weights in "
                f"{self._dtype()}, and {there / 1e9:.3g} GB are available: use a smaller model, or a machine with more"
            )

    def _unpack(self, aside: Path, folder: Path) -> None:
        """Write config, tokenizer, weights and their digests to ``aside``, which becomes ``folder``."""
        stored, dtype = self.header.stored_as, str(self._dtype()).removeprefix("torch.")
        phase(f"unpacking {self.file.name} ({stored}) as {dtype} to {folder}")
        model = self._model()
        with without_bars():
            model.save_pretrained(aside, max_shard_size=_SHARD)
        save_tokenizer(self._in_file, aside)
        digests = integrity.digests(aside)
        integrity.write(aside / _SEAL, json.dumps(integrity.sealed({"file": self.path, "files": digests}), indent=1))

    def _model(self) -> PreTrainedModel:
        """The model in the file, without its tokenizer."""
        config = self._config()
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        if type(config) not in auto._model_mapping:
            raise ValueError(f"'{self.path}' is of type {config.model_type}, which slimexp has no task for")
        with without_report():
            model, report = self._read_by(
                auto,
                config=config,
                dtype=self._dtype(),
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
            )
        check_fit(model, report, self.path)
        self._check_all_read(model)
        model.hf_quantizer = None  # its weights are plain numbers now, which can be saved
        vars(model.config).pop("quantization_config", None)
        return model

    def _check_all_read(self, model: PreTrainedModel) -> None:
        """Refuse a file with weights that the model has no place for: they are dropped without a word."""
        stored = sum(self.header.weights.values()) - len(self.header.rope_frequencies)
        held = parameter_count(model)
        if model.config.tie_word_embeddings and "output.weight" in self.header.tensors:
            stored -= model.get_input_embeddings().weight.numel()
        if stored > held:
            raise ValueError(
                f"'{self.path}' holds {stored:,} weights, and a {model.config.model_type} as transformers reads it "
                f"{held:,}: the rest, biases perhaps, would be lost; take the model in the hub's format"
            )

    @cached_property
    def _in_file(self) -> PreTrainedTokenizerBase:
        """The tokenizer in the file, with the special tokens that the file names.

        Some versions of transformers give those of another tokenizer, add its own, or split control tokens.
        """
        read = self._read_by(AutoTokenizer)
        backend = _within(read.backend_tokenizer, self.header.vocabulary)
        backend.add_special_tokens(
            [AddedToken(token, normalized=False, special=True) for token in self.header.control_tokens]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            chat_template=read.chat_template,
            clean_up_tokenization_spaces=False,
            **self.header.special_tokens,
        )

    def _config(self) -> PreTrainedConfig:
        if self._read is None:
            config: PreTrainedConfig = self._read_by(AutoConfig)
            for name in ("_model_name_or_path", "quantization_config"):
                vars(config).pop(name, None)
            config.name_or_path = ""
            check_config(config.to_dict(), f"model '{self.path}'")
            self._read = with_frequencies(config, self.header, self.path)
        return copy.deepcopy(self._read)

    def _dtype(self) -> torch.dtype:
        return _DTYPES.get(self.dtype, self.header.dtype)

    def _read_by(self, auto: Any, **options: Any) -> Any:
        """Call ``auto.from_pretrained`` on the file; no code of the model's runs.

        Raises:
            ValueError: transformers cannot read it.
        """
        _ = self.header  # refuses what transformers does not read, and parses the file
        if self._reader is None:  # which was dropped when the file was unpacked
            _, self._reader = gguf.read(self.file)
        try:
            with without_bars(), gguf.parsed(self._reader):
                file = self.file.absolute()
                return auto.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False, **options)
        except Exception as error:  # metadata that do not fit each other fail in every way
            raise ValueError(f"'{self.path}' cannot be read by transformers ({one_line(error)})") from error


def _architectures() -> list[str]:
    """Names of the architectures that transformers reads from a GGUF file."""
    return sorted({*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS} - {"general", "tokenizer"})


def _plain(name: str) -> str:
    """The name of an architecture without the marks that llama.cpp and transformers set otherwise (``qwen2_moe``)."""
    return name.replace("_", "").replace("-", "")


def _within(tokenizer: Tokenizer, vocabulary: int) -> Tokenizer:
    """``tokenizer`` without tokens that were added beyond the vocabulary, which the model has no embedding for."""
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < vocabulary]
    return Tokenizer.from_str(json.dumps(content))


def _is_whole(folder: Path) -> bool:
    """Whether what was unpacked is all there; what is damaged is made anew."""
    if not (folder / _SEAL).exists():
        return False
    try:
        seal = read_object(folder / _SEAL)
        integrity.check_seal(seal)
        integrity.check_files(folder, seal["files"])
    except (ValueError, OSError) as error:
        log.warning("%s is damaged (%s), and made anew", folder, error)
        return False
    return True
