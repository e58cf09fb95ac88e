"""Shares of the calibration tokens that experts see, for the record."""

from collections.abc import Mapping, Sequence

from slimexp.cut.expert_use import report_unseen
from slimexp.model.base import Batch, Family
from slimexp.model.experts import GATE_UP
from slimexp.record.figures import OF_LAYER


def token_figures(shares: Mapping[str, float]) -> dict[str, float]:
    """Share of the calibration tokens that each expert sees, and the number of those that see none.

    Args:
        shares: Name of every expert, as ``model.layers.1.experts.3`` -> its share.
    """
    if not shares:
        return {}
    figures = {f"expert_tokens{OF_LAYER}{name}": round(share, 6) for name, share in shares.items()}
    return {"experts_unseen": float(sum(not share for share in shares.values())), **figures}


def rounding_figures(family: Family, tokens: Mapping[str, int], batches: Sequence[Batch]) -> dict[str, float]:
    """What ``token_figures`` says of the tokens that experts were rounded by; prints a line where some saw none.

    Args:
        family: The model.
        tokens: What ``round_weights`` returns.
        batches: The calibration text, without padding.
    """
    total = sum(batch["input_ids"].numel() for batch in batches)
    names = {module: name for name, module in family.model.named_modules()}
    blocks = [f"{names[block]}." for stack in family.blocks().values() for block in stack]
    shares = {}
    for name, count in tokens.items():
        stack, _, expert = name.rpartition(".")
        if stack.endswith(f".{GATE_UP}"):
            block = next(block for block in blocks if stack.startswith(block))
            shares[f"{block}experts.{expert}"] = count / total
    report_unseen(shares, total, "they are rounded to nearest; calibrate on more rows (rounding.rows)")
    return token_figures(shares)
