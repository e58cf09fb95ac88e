"""Models whose weights have no values yet: nothing is drawn at random, and no memory is taken until it is written."""

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from slimexp.model.widths import class_of


def without_values(
    make: type[PreTrainedModel],
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> PreTrainedModel:
    """A model of zeros, tied weights tied, to be filled from a file or from another model.

    Buffers, as of positions, are in no file and have their values.

    Args:
        make: Class of the model.
        config: Its config.
        dtype: Type of its parameters.
        device: Device of its parameters and buffers.
    """
    with init_empty_weights(include_buffers=False):
        model = class_of(make, config)(config)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                # zeros, because the system hands them out without taking memory for them
                zeros = torch.zeros(parameter.shape, dtype=dtype, device=device)
                module._parameters[name] = nn.Parameter(zeros, requires_grad=parameter.requires_grad)
    model.tie_weights()
    nn.Module.to(model, device)
    return model
