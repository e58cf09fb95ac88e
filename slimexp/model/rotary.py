"""Frequencies of rotary positions that a GGUF file holds as numbers, as the settings that transformers reads."""

import copy

import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from slimexp.serialization.gguf import Header

_CLOSE = 1e-3  # relative: the file holds float32 of the same formula
# Of Llama 3.1 and 3.2, which alone scale so (Dubey et al. 2024); the factor is 8 or 32
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def with_frequencies(config: PreTrainedConfig, header: Header, name: str) -> PreTrainedConfig:
    """``config`` with the scaling of positions that the file's header tells, which transformers leaves out.

    Args:
        config: The config as transformers reads it from the file.
        header: The file's header.
        name: Name of the file in messages.

    Raises:
        ValueError: Positions are scaled in a way that transformers has no setting for.
    """
    divisors = torch.tensor(header.rope_frequencies)
    if divisors.numel() and not torch.equal(divisors, torch.ones_like(divisors)):
        scaled = copy.deepcopy(config)
        scaled.rope_parameters |= {"rope_type": "llama3", "factor": float(divisors.max()), **_LLAMA3}
        plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, 2 * len(divisors), 2) / (2 * len(divisors)))
        llama3 = ROPE_INIT_FUNCTIONS["llama3"](scaled, torch.device("cpu"))[0]
        if llama3.shape != plain.shape or not torch.allclose(plain / llama3, divisors, rtol=_CLOSE):
            raise _unread(name, "rope_freqs.weight, numbers of no rule that transformers has")
        return scaled
    kind = header.rope_scaling
    if kind not in (None, "none") and config.rope_parameters.get("rope_type", "default") == "default":
        raise _unread(name, f"the rule '{kind}'")
    return config


def _unread(name: str, rule: str) -> ValueError:
    return ValueError(
        f"'{name}' scales positions by {rule}, which transformers does not read from a GGUF file: take the model in "
        "the hub's format"
    )
