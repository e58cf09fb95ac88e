"""Results of tests by the weights that were tested: the same weights are not asked the same questions twice."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slimexp.data import rows
from slimexp.data.rows import Scores
from slimexp.file import integrity
from slimexp.file.integrity import Damaged
from slimexp.host.console import printable

FOLDER = "scores"  # in a runs folder
_NAME = re.compile(r"[^\w.-]+")


class ScoreStore:
    """Files of results in a runs folder, which all of its runs share.

    Args:
        runs: The runs folder.
        code: Gives, of a measure's class, what its results depend on beside weights and settings: the code, versions of
            libraries, the hardware.
        reuse: Whether results that earlier commands wrote are used.
    """

    def __init__(self, runs: Path, *, code: Callable[[type], Mapping[str, Any]], reuse: bool = True) -> None:
        self.runs = runs
        self._code = code
        self._reuse = reuse
        self._known: dict[Path, Scores] = {}
        self._taken: dict[Path, dict[str, Path]] = {}

    def path(self, measure: type, test: str, weights: str, settings: Mapping[str, Any]) -> Path:
        """File of the results of a model in a test.

        Args:
            measure: Class of the measure.
            test: Name of the test.
            weights: Digest of the deployable model.
            settings: What the results depend on, as JSON, the questions included.
        """
        content = {"settings": settings, "measure": f"{measure.__module__}.{measure.__qualname__}"}
        content |= self._code(measure)
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return self.runs / FOLDER / weights[:16] / f"{_NAME.sub('_', test)[:80]}-{digest[:12]}.npz"

    def find(self, path: Path) -> tuple[Scores, bool] | None:
        """Results that were written there, and whether another process did it; ``None`` where there are none.

        A damaged file is set aside, which a line says.
        """
        if path in self._known:
            return self._known[path], False
        if not self._reuse or not os.path.lexists(path):
            return None
        try:
            self._known[path] = rows.read(path)
        except (OSError, Damaged) as error:
            aside = integrity.set_aside(path)
            print(f"  {printable(error)}: set aside as {aside}, measured again", flush=True)
            return None
        return self._known[path], True

    def keep(self, path: Path, scores: Scores, about: Mapping[str, Any]) -> None:
        """Write results, with what they are of."""
        rows.write(path, scores, about)
        self._known[path] = scores

    def note(self, model: Path, test: str, path: Path) -> None:
        """Remember where the results of the model in a folder are."""
        self._taken.setdefault(model, {})[test] = path

    def taken(self, model: Path) -> dict[str, str]:
        """Test -> file of the results of the model in a folder, relative to the runs folder."""
        return {test: path.relative_to(self.runs).as_posix() for test, path in self._taken.get(model, {}).items()}
