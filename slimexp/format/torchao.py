"""torchao: a folder that plain transformers loads with torchao's quantized tensors in its linear layers."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel, TorchAoConfig

from slimexp.format.base import Artifact, Facts, Format, Plain, Running
from slimexp.host.extra import require
from slimexp.kernel.base import Packed
from slimexp.model.loading import bare
from slimexp.model.reading import without_bars
from slimexp.model.tokenizer import save_tokenizer
from slimexp.model.widths import AXES
from slimexp.serialization.unpack import unpacked


class Torchao(Format):
    """A Hugging Face folder whose linear layers are ``IntxUnpackedToInt8Tensor``, what torch.export takes.

    It has the integers, scales and zero points of the artifact, each integer in a byte whatever its width, and
    multiplies in float32, the type that all other weights are stored in too.
    """

    sized_by_config = AXES

    def require(self) -> None:
        require("torchao", extra="torchao", by="format=torchao")

    def refusal(self, model: Artifact) -> str | None:
        if not model.bits:
            return "none of its weights is quantized"
        if model.rounds_activations:
            return "torchao rounds the inputs of layers in steps of its own, not in those of the model"
        if model.content["cache_bits"] is not None:
            return "its keys and values are rounded, which the folder would not say"
        if model.is_float8:
            return "its weights are float8, and only integers are written"
        if model.experts is not None:
            return model.experts
        return None

    def write(self, model: Artifact, folder: Path) -> Facts:
        make, config = bare(model.folder, model.task, model.content["max_length"])
        network, layers = make(config), unpacked(model.folder)
        network.load_state_dict(model.state)
        for name, packed in layers.items():
            module = network.get_submodule(name)
            if not isinstance(module, nn.Linear) or module.weight is network.get_input_embeddings().weight:
                raise ValueError(f"transformers has torchao's tensors in linear layers, '{name}' is one of embeddings")
            module.weight = nn.Parameter(_tensor(packed), requires_grad=False)
        _describe(network, layers)
        with without_bars():
            network.save_pretrained(folder)
        save_tokenizer(model.family.tokenizer, folder)
        widths = Counter(f"int{packed.bits}" for packed in layers.values())
        return {"layers": dict(widths), "bytes_of_an_integer": 1}

    def load(self, model: Artifact, folder: Path) -> Running:
        with without_bars():
            kind = type(model.family.model)
            return Plain(kind.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32).eval())


def _tensor(packed: Packed) -> torch.Tensor:
    from torchao.quantization import IntxUnpackedToInt8Tensor

    zero = torch.zeros_like(packed.scale, dtype=torch.int8) if packed.zero is None else packed.zero
    made: torch.Tensor = IntxUnpackedToInt8Tensor(
        qdata=packed.numbers,
        scale=packed.scale.contiguous(),
        zero_point=zero.contiguous(),
        target_dtype=getattr(torch, f"int{packed.bits}"),
        block_size=(1, packed.group_size),
        dtype=torch.float32,
        activation_quantization=None,
    )
    return made


def _describe(network: PreTrainedModel, layers: Mapping[str, Packed]) -> None:
    """Say in the config of a model which layers have torchao's tensors: all linear ones but some, or each by name."""
    from torchao.quantization import FqnToConfig
    from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

    kinds = {name: _Kind(packed.bits, packed.group_size, packed.zero is None) for name, packed in layers.items()}
    configs = {name: kind.config() for name, kind in kinds.items()}
    one = len(set(kinds.values())) == 1
    floats = [name for name, module in network.named_modules() if isinstance(module, nn.Linear) and name not in layers]
    kind = next(iter(configs.values())) if one else FqnToConfig(configs)
    said = TorchAoConfig(kind, modules_to_not_convert=floats)
    network.config.quantization_config = said
    quantizer: Any = TorchAoHfQuantizer(said, pre_quantized=True)
    network.hf_quantizer = quantizer


class _Kind(NamedTuple):
    """What layers have in common that one config of torchao's is for."""

    bits: int
    group_size: int
    symmetric: bool

    def config(self) -> Any:
        """What would make such a tensor of a float weight."""
        from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerGroup

        return IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, f"int{self.bits}"),
            granularity=PerGroup(self.group_size),
            mapping_type=MappingType.SYMMETRIC if self.symmetric else MappingType.ASYMMETRIC,
        )
