"""GGUF, which llama.cpp runs: one file of config, tokenizer and weights, packed integers in its blocks."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, PreTrainedModel

from slimexp.format import gguf_architecture, gguf_tokenizer
from slimexp.format.base import Artifact, Facts, Format, Plain, Running
from slimexp.format.ggml_blocks import BLOCK, block_type, blocks, unfit
from slimexp.format.llama_cpp import LlamaCpp
from slimexp.host.extra import require
from slimexp.kernel.base import Packed
from slimexp.model.reading import without_bars
from slimexp.model.serving import stored_type
from slimexp.model.widths import AXES
from slimexp.serialization.unpack import unpacked

FILE = "model.gguf"
EXACT = "exact.gguf"  # the same weights in float32, beside the file while it is compared
NO_MERGE = "no merge"  # a pair of symbols that no text has: the engine wants a list of some pairs
ENGINES = ("llama_cpp", "transformers")

Weights = dict[str, tuple[NDArray[Any], str]]  # name in the file -> rows, and their type in ggml


class Gguf(Format):
    """A file ``model.gguf``.

    Weights of 8, 5 and fewer bits are Q8_0, Q5_0 and Q4_0, with zero points Q4_1: the integers of the artifact. Other
    matrices are floats of the type that the artifact stores them in, vectors float32.

    llama.cpp rounds the inputs of most products: to 8 bits where weights are integers, to 16 where they have 16. So it
    computes the numbers that the file holds twice: in float32, where they must be PyTorch's, and as its users run it.

    Args:
        engine: What reads and computes: ``llama_cpp``, or ``transformers``, which turns blocks into floats.
    """

    sized_by_config = AXES

    def __init__(self, *, engine: str) -> None:
        if engine not in ENGINES:
            raise ValueError(f"engine must be {' or '.join(ENGINES)}, got '{engine}'")
        self.engine = engine

    def require(self) -> None:
        require("gguf", extra="gguf", by="format=gguf")
        if self.engine == "llama_cpp":
            require("llama_cpp", extra="llama_cpp", by="format=gguf with format.engine=llama_cpp")

    def refusal(self, model: Artifact) -> str | None:
        if model.task != "causal_lm":
            return f"llama.cpp gets causal language models from here, this one is of the task {model.task}"
        if why := gguf_architecture.refusal(AutoConfig.from_pretrained(model.folder, trust_remote_code=False)):
            return why
        if model.rounds_activations:
            return "llama.cpp rounds the inputs of layers in steps of its own, not in those of the model"
        if model.content["cache_bits"] is not None:
            return "its keys and values are rounded, in other steps than those of llama.cpp"
        for scheme in model.schemes:
            if why := _unheld(scheme["weights"]):
                return why
        return None

    def write(self, model: Artifact, folder: Path) -> Facts:
        weights, error = _weights(model)
        _write(model, weights, folder / FILE)
        if self.engine == "llama_cpp" and any(kind != "F32" for _, kind in weights.values()):
            _write(model, _dequantized(folder / FILE), folder / EXACT)
        types = Counter(kind for _, kind in weights.values())
        return {"tensors": dict(types), "largest_change_of_a_scale": error}

    def load(self, model: Artifact, folder: Path) -> Running:
        if self.engine == "transformers":
            return Plain(_read(folder))
        exact = folder / EXACT
        running = LlamaCpp(exact if exact.exists() else folder / FILE, length=model.family.max_length, exact=True)
        exact.unlink(missing_ok=True)  # the engine has mapped it
        return running

    def as_run(self, model: Artifact, folder: Path) -> Running | None:
        if self.engine == "transformers":
            return None
        return LlamaCpp(folder / FILE, length=model.family.max_length, exact=False)


def _unheld(weights: Mapping[str, Any]) -> str | None:
    """What of weights of one compressed-tensors scheme blocks cannot hold, or ``None``."""
    bits, symmetric = weights["num_bits"], weights["symmetric"]
    if weights["type"] != "int":
        return "llama.cpp has no float8"
    if block_type(bits, symmetric=symmetric) is None:
        return f"llama.cpp has blocks with a minimum for 4 bits, the model has zero points at {bits}"
    if weights["strategy"] == "group" and weights["group_size"] % BLOCK:
        return f"llama.cpp has a scale for {BLOCK} weights, the model one for {weights['group_size']}"
    return None


def _weights(model: Artifact) -> tuple[Weights, float]:
    """Tensors of the file, and the largest change of a scale by its 16 bits.

    Raises:
        ValueError: llama.cpp has no place for a tensor, or no blocks for integers.
    """
    network, layers = model.family.model, unpacked(model.folder)
    config = network.config
    kind, floats = gguf_architecture.architecture_of(config), stored_type(model.folder)
    names = _names(config.num_hidden_layers, kind.name)
    weights: Weights = {}
    error = 0.0
    state = model.state
    if torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"]):
        del state["lm_head.weight"]  # the engine takes the embeddings
    for name, tensor in state.items():
        if (place := names.get_name(name, try_suffixes=(".weight", ".bias"))) is None:
            raise ValueError(f"llama.cpp has no place for '{name}' of a {config.model_type}")
        order = gguf_architecture.row_order(name, kind, config, len(tensor))
        layer = layers.pop(name.removesuffix(".weight"), None)
        if layer is None:
            ordered = tensor if order is None else tensor[order]
            weights[place] = _floats(ordered, floats if tensor.ndim > 1 else torch.float32)
        else:
            weights[place], changed = _blocks(name, layer, order)
            error = max(error, changed)
    if layers:
        raise ValueError(f"the file has no place for the integers of '{min(layers)}'")
    if (divisors := gguf_architecture.rope_divisors(network)) is not None:
        weights["rope_freqs.weight"] = _floats(divisors, torch.float32)
    return weights, error


def _names(count: int, architecture: str) -> Any:
    """Map of names of transformers to those of the file."""
    import gguf

    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    return gguf.get_tensor_name_map(number, count)


def _floats(tensor: Tensor, dtype: torch.dtype) -> tuple[NDArray[Any], str]:
    if dtype == torch.bfloat16:
        return tensor.to(dtype).contiguous().view(torch.uint8).numpy(), "BF16"
    short = torch.float16 if dtype == torch.float16 else torch.float32
    return tensor.to(short).contiguous().numpy(), "F16" if short == torch.float16 else "F32"


def _blocks(tensor: str, layer: Packed, order: Tensor | None) -> tuple[tuple[NDArray[Any], str], float]:
    columns, groups, name = layer.numbers.shape[1], layer.scale.shape[1], tensor.removesuffix(".weight")
    if unfit(columns, groups):
        raise ValueError(
            f"llama.cpp has a scale for {BLOCK} weights of a row, '{name}' has one for {columns // groups}"
        )
    if order is not None:
        zero = None if layer.zero is None else layer.zero[order]
        layer = layer._replace(numbers=layer.numbers[order], scale=layer.scale[order], zero=zero)
    rows, kind, error = blocks(layer)
    return (rows, kind.name), error


def _write(model: Artifact, weights: Weights, path: Path) -> None:
    """Write a file of ``weights``, with the config and the tokenizer of ``model``."""
    import gguf

    config = model.family.model.config
    writer = gguf.GGUFWriter(path, gguf_architecture.architecture_of(config).name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(_file_type(weights))
    for key, value in gguf_architecture.metadata(config).items():
        number = gguf.GGUFValueType.FLOAT32 if isinstance(value, float) else gguf.GGUFValueType.UINT32
        writer.add_key_value(f"{writer.arch}.{key}", value, number)
    if config.rope_parameters.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    _write_vocabulary(gguf_tokenizer.vocabulary(model.family.tokenizer, config.vocab_size), writer)
    for name, (rows, kind) in weights.items():
        writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _file_type(weights: Weights) -> int:
    """Number of the type that most matrices have, for programs that show it."""
    import gguf

    sizes: Counter[str] = Counter()
    for rows, kind in weights.values():
        sizes[kind] += rows.nbytes if rows.ndim > 1 else 0
    kind = max(sizes, key=lambda name: sizes[name])
    return int(gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])


def _write_vocabulary(vocabulary: gguf_tokenizer.Vocabulary, writer: Any) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    else:
        writer.add_token_merges(vocabulary.merges or [NO_MERGE])
    for name, token in vocabulary.special.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    for name, flag in vocabulary.flags.items():
        writer.add_bool(f"tokenizer.ggml.{name}", flag)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def _dequantized(file: Path) -> Weights:
    """The weights that a file holds, as float32."""
    import gguf

    tensors = gguf.GGUFReader(file).tensors
    return {tensor.name: (_in_float32(tensor), "F32") for tensor in tensors}


def _in_float32(tensor: Any) -> NDArray[np.float32]:
    import gguf

    shape = [int(size) for size in reversed(tensor.shape)]
    array: NDArray[np.float32] = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
    return array


def _read(folder: Path) -> PreTrainedModel:
    """The model as transformers reads it."""
    options = {"gguf_file": FILE, "dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    with without_bars():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options)
    return model.eval()
