"""What was done to a model before a command takes it up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimexp.serialization import manifest


@dataclass(frozen=True, kw_only=True)
class History:
    """What was done to a model; by default nothing that can be seen.

    Attributes:
        artifact: The folder of the artifact that the model is; ``None`` for a model of others.
        max_length: Tokens that the artifact was made for; ``None`` for a model of others.
        stages: What runs of slimexp did, oldest first, as the manifest lists it.
        attachments: Masks and fake-quantizers that sit on its weights still, as the manifest lists them.
        format: What its quantized weights are stored as, such as ``compressed-tensors``; ``None`` for plain numbers.
        cut: Whether it is cut out of a larger model.
    """

    artifact: Path | None = None
    max_length: int | None = None
    stages: Sequence[Mapping[str, Any]] = ()
    attachments: Sequence[Mapping[str, Any]] = ()
    format: str | None = None
    cut: bool = False

    @property
    def quantized(self) -> bool:
        """Whether its weights are quantized, by a run of slimexp or by others."""
        return self.format is not None or any(row["class"].startswith("slimexp.quantizer.") for row in self.attachments)

    @property
    def compressed_by(self) -> list[str]:
        """What made it smaller: its stages, or the format of a foreign one; empty for a dense model."""
        if self.cut:
            return ["cut"]
        done = [stage["name"] for stage in manifest.compressing(self.stages)]
        return done or ([] if self.format is None else [self.format])


def of_artifact(folder: Path, *, format: str | None) -> History:
    """The history of the model in ``folder``, as its manifest tells it, where it has one.

    Raises:
        ValueError: The manifest cannot be read, see ``manifest.read``.
    """
    if not manifest.is_in(folder):
        return History(format=format)
    held = manifest.read(folder)
    return History(
        artifact=folder,
        max_length=held["max_length"],
        stages=held["stages"],
        attachments=held["attachments"],
        format=format,
    )


def stored_as(quantization: Any) -> str | None:
    """The method that a ``quantization_config`` names; ``None`` where there is no such config."""
    return str(dict(quantization).get("quant_method", "quantized")) if quantization else None
