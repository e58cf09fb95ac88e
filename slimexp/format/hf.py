"""Plain transformers: the deployable files as they are."""

import shutil
from pathlib import Path

from slimexp.format.base import Artifact, Facts, Format, Plain, Running
from slimexp.model.loading import from_folder
from slimexp.model.widths import AXES


class Hf(Format):
    """A Hugging Face folder of floats, without what only slimexp reads."""

    sized_by_config = AXES

    def refusal(self, model: Artifact) -> str | None:
        if model.bits:
            return "its weights are packed integers, which would become floats"
        return None

    def write(self, model: Artifact, folder: Path) -> Facts:
        for name in model.content["files"]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model.folder / name, folder / name)
        return {}

    def load(self, model: Artifact, folder: Path) -> Running:
        return Plain(from_folder(folder, model.task, model.content["max_length"]).model)


class CompressedTensors(Hf):
    """A Hugging Face folder of packed integers, as the engines load it that know compressed-tensors (vLLM, for one)."""

    def refusal(self, model: Artifact) -> str | None:
        return None if model.bits else "none of its weights is quantized"
