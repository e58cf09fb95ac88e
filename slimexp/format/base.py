"""The interface of a format: an artifact is written in it, loaded by the engine that reads it, and computed with."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from slimexp import artifact
from slimexp.file.bounded import read_object
from slimexp.file.integrity import Damaged
from slimexp.model.base import Family
from slimexp.model.experts import DOWN, GATE_UP
from slimexp.model.loading import bare
from slimexp.model.widths import KEY
from slimexp.serialization import manifest
from slimexp.serialization.pack import INPUT_SCALE, SCALE, ZERO
from slimexp.serialization.scheme import WEIGHT
from slimexp.weight.attachment import INPUT

Ids = Sequence[int]
Facts = dict[str, Any]  # of an export, for its report
_OF_LOADER = (SCALE, ZERO, INPUT_SCALE, "weight_shape", "weight_packed")
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Artifact:
    """A finished model in a folder, as a stage of a run leaves it.

    Attributes:
        folder: The folder.
    """

    folder: Path

    @cached_property
    def content(self) -> dict[str, Any]:
        """Its manifest; its files are those that were written.

        Raises:
            ValueError: It is no artifact, damaged, or of a newer version.
        """
        content = manifest.read(self.folder)
        try:
            manifest.check(self.folder)
        except Damaged as error:
            raise ValueError(f"'{self.folder}' is damaged ({error}): {manifest.WAY_OUT}") from error
        return content

    @property
    def task(self) -> str:
        """``seq2seq``, ``causal_lm`` or ``classification``."""
        task: str = self.content["family"]
        return task

    @property
    def bits(self) -> dict[str, int]:
        """Layer, or stack of experts, -> width of its packed weight; empty where none is quantized."""
        found = {}
        for row in self._on_weights:
            stack = "" if row["tensor"] == WEIGHT else f".{row['tensor']}"
            found[f"{row['module']}{stack}"] = int(row["arguments"]["bits"])
        return found

    @property
    def experts(self) -> str | None:
        """Why a format that holds packed weights of layers alone cannot hold it: experts are packed; else ``None``."""
        packed = any(row["tensor"] in (GATE_UP, DOWN) for row in self._on_weights)
        return "experts are among its packed weights, and only those of layers are written" if packed else None

    @property
    def _on_weights(self) -> list[dict[str, Any]]:
        """What the manifest says of quantizers of weights."""
        return [row for row in self.content["attachments"] if row["tensor"] != INPUT and "bits" in row["arguments"]]

    @cached_property
    def schemes(self) -> list[dict[str, Any]]:
        """The schemes of compressed-tensors that its quantized layers have; none where none is quantized."""
        stored = read_object(self.folder / "config.json").get("quantization_config") or {}
        return list(stored.get("config_groups", {}).values())

    @property
    def is_float8(self) -> bool:
        """Whether weights are float8."""
        return any(scheme["weights"]["type"] == "float" for scheme in self.schemes)

    @property
    def unlike_widths(self) -> list[str]:
        """Axes whose numbers of units are unlike from block to block, see ``model.widths``."""
        return list(self._widths)

    @property
    def lacks_layers(self) -> bool:
        """Whether blocks do without attention or feed-forward layers, see ``model.widths``."""
        stacks = [stacks for stacks in self._widths.values() if isinstance(stacks, dict)]
        return any(0 in each for some in stacks for each in some.values())

    @property
    def _widths(self) -> dict[str, Any]:
        return dict(read_object(self.folder / "config.json").get(KEY) or {})

    @property
    def rounds_activations(self) -> bool:
        """Whether the inputs of layers are rounded to integers."""
        return any(row["tensor"] == "input" for row in self.content["attachments"])

    @cached_property
    def family(self) -> Family:
        """The model by plain transformers, in float32 on the CPU: what every engine is held against."""
        return artifact.deployed(self.folder)

    @cached_property
    def unrounded(self) -> PreTrainedModel:
        """``family``'s model of layers that read floats as they are, for a graph to be made of.

        Where an artifact has rounded inputs, or layers of unlike bits, those that transformers loads are wrapped by
        compressed-tensors: they round, and fetch weights and inputs in a way that cannot be traced.
        """
        if not any(hasattr(module, "quantization_status") for module in self.family.model.modules()):
            return self.family.model
        make, config = bare(self.folder, self.task, self.content["max_length"])
        network = make(config)
        network.load_state_dict(self.state)
        return network.eval()

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """Name -> tensor of ``family``'s model in float32, without what its loader keeps beside the weights."""
        tensors = self.family.model.state_dict()
        return {name: tensor for name, tensor in tensors.items() if not name.endswith(_OF_LOADER)}


class Running(ABC):
    """A model that an engine has loaded, and that computes there.

    Attributes:
        decodes: Whether ``greedy`` keeps what was computed of earlier tokens, as those who serve a model do.
    """

    decodes: bool = False

    @abstractmethod
    def logits(self, source: Ids, target: Ids) -> Logits:
        """Logits of one row.

        Args:
            source: Ids of what the model reads.
            target: Ids that the decoder of an encoder-decoder reads, its start first; empty for others.

        Returns:
            [T, V] at every token of the row (of ``target``, where there is one), or [C] of a classifier.
        """

    def greedy(self, source: Ids, start: Ids, count: int) -> list[int]:
        """The ``count`` likeliest tokens, one after another.

        Args:
            source: Ids of what the model reads.
            start: Ids that a decoder starts with; empty for a model without one, which goes on from ``source``.
            count: Number of tokens.
        """
        written: list[int] = []
        for _ in range(count):
            row = (source, [*start, *written]) if start else ([*source, *written], [])
            written.append(int(self.logits(*row)[-1].argmax()))
        return written

    def token_ids(self, texts: Sequence[str]) -> list[list[int]] | None:
        """Ids of texts by the engine's own tokenizer, as a model reads them; ``None`` where it has none."""
        return None


class Format(ABC):
    """A format that an engine reads.

    Attributes:
        tolerance: Largest difference of a logit from PyTorch's in float32 that is rounding, as a share of the standard
            deviation of logits.
        rounding: Largest root mean square of the differences of an engine as its users run it (``as_run``), as such a
            share.
        noise: Largest difference of a logit of an artifact that rounds activations, by how much that rounding itself
            moves one; 0 where ``tolerance`` holds for these too.
        sized_by_config: Axes of which the engine takes the numbers from a config, which has one for all blocks.
    """

    tolerance: float = 1e-3
    rounding: float = 0.5
    noise: float = 0.0
    sized_by_config: Collection[str] = ()

    def require(self) -> None:  # noqa: B027 (some need nothing)
        """Import the packages that write the format and run it.

        Raises:
            ValueError: One is not installed; names the extra of slimexp that installs it.
        """

    def why_not(self, model: Artifact) -> str | None:
        """Why the format cannot hold a model as it is; ``None`` where it can. Loads no weights.

        Which formats can is said by who asks; a setting that would do is part of the reason.
        """
        if axes := [axis for axis in model.unlike_widths if axis in self.sized_by_config]:
            return (
                f"its blocks have unlike widths ({', '.join(axes)}), and what reads this format takes one width for "
                "all from the config"
            )
        return self.refusal(model)

    @abstractmethod
    def refusal(self, model: Artifact) -> str | None:
        """As ``why_not``, of all but the widths of blocks."""

    @abstractmethod
    def write(self, model: Artifact, folder: Path) -> Facts:
        """Write the model.

        Args:
            model: The artifact; integers stay integers.
            folder: An existing, empty folder.

        Returns:
            What the report says of it.
        """

    @abstractmethod
    def load(self, model: Artifact, folder: Path) -> Running:
        """Load by the engine what ``write`` wrote of ``model`` to ``folder``, to compute it as exactly as it can."""

    def as_run(self, model: Artifact, folder: Path) -> Running | None:
        """Load it as the engine's users do, where that rounds more than ``load``; else ``None``."""
        return None


class Plain(Running):
    """A PyTorch model of transformers."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @torch.inference_mode()
    def logits(self, source: Ids, target: Ids) -> Logits:
        inputs = {"input_ids": torch.tensor([list(source)])}
        if target:
            inputs["decoder_input_ids"] = torch.tensor([list(target)])
        output = self.model(**{name: ids.to(self.model.device) for name, ids in inputs.items()}).logits
        array: Logits = output[0].float().cpu().numpy()
        return array
