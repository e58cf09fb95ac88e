"""A compressed model as it is served: its quantized layers on the kernels that are fastest here."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from slimexp.kernel.race import put
from slimexp.model.base import Family
from slimexp.model.loading import family_of, from_folder
from slimexp.quantizer.unpacking import refusal, unpack


def served(folder: str | Path, task: str, max_length: int, *, device: str | torch.device = "cpu") -> Family:
    """A family from a model folder, its integers multiplied as they are.

    Weights that are not quantized, and models that no kernel here can run (``quantizer.unpacking.refusal``, or a
    device other than a CPU), are as ``from_folder`` loads them. No quantized layer exists as floats meanwhile.

    Args:
        folder: In the hub's format.
        task: The corpus task that it serves.
        max_length: Longest sequence in tokens.
        device: Where it runs.
    """
    folder, device = Path(folder), torch.device(device)
    if device.type != "cpu" or refusal(folder) is not None:
        family = from_folder(folder, task, max_length)
        nn.Module.to(family.model, device)
        return family
    return family_of(_integers(folder), folder, task, max_length)


def _integers(folder: Path) -> PreTrainedModel:
    import transformers

    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    with _without_weights():
        model: PreTrainedModel = getattr(transformers, config.architectures[0])(config)
    layers, state = unpack(folder)
    for name in [name for name in layers if isinstance(model.get_submodule(name), nn.Embedding)]:
        state[f"{name}.weight"] = layers.pop(name).weight()  # looked up, and multiplied where a head is tied to it
    put(model, layers)
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    model.load_state_dict(floats, strict=False, assign=True)  # tied weights are in it once
    model.tie_weights()
    if missing := [name for name, tensor in model.named_parameters() if tensor.is_meta]:
        raise ValueError(f"'{folder}' lacks {', '.join(missing[:3])}: it is not whole, save it again")
    if model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


@contextmanager
def _without_weights() -> Iterator[None]:
    """Parameters that modules register take no memory; buffers (positions, say) are computed as ever."""
    register = nn.Module.register_parameter

    def light(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        bare = None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, bare)

    with mock.patch.object(nn.Module, "register_parameter", light), mock.patch.object(nn.Linear, "reset_parameters"):
        yield
