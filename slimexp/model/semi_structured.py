"""2:4 weights on the kernels that skip their zeros: NVIDIA GPUs since Ampere, in half precision."""

import torch
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

AMPERE = (8, 0)  # the first compute capability whose tensor cores skip zeros
_GROUP, _KEPT = 4, 2


def supported() -> bool:
    """Whether this machine's GPU has such kernels."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= AMPERE


def use_sparse_kernels(model: nn.Module) -> dict[str, nn.Linear]:
    """Put every linear layer with a 2:4 weight on semi-structured kernels, in place; what it computes stays the same.

    A layer stays dense where its weight is not 2:4, lies elsewhere than on a GPU, is of a type or a size that the
    kernels do not take (in bfloat16, multiples of 16 or 64, by library), or is tied to another's.

    Args:
        model: Plain, in bfloat16 or float16, e.g. as ``from_pretrained(folder, dtype=torch.bfloat16).cuda()``.

    Returns:
        Name -> layer, of the layers on sparse kernels. Their weights can no longer be trained.
    """
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    moved = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and id(module.weight) not in embedded and is_2_4(module.weight):
            try:
                sparse = to_sparse_semi_structured(module.weight.detach())
            except RuntimeError:  # how it refuses a device, a type or a shape
                continue
            module.weight = nn.Parameter(sparse, requires_grad=False)
            moved[name] = module
    return moved


def is_2_4(weight: Tensor) -> bool:
    """Whether of every 4 neighbours in a row of ``weight`` [out, in] at most 2 are not zero."""
    if weight.shape[-1] % _GROUP:
        return False
    return bool((weight.detach().unflatten(-1, (-1, _GROUP)).count_nonzero(-1) <= _KEPT).all())
