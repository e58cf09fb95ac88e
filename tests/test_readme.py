"""Every command the README shows composes into a right config."""

import re
import shlex
from pathlib import Path

import pytest
from slimexp.config.composition import compose

from slimexp.config.check import check

README = (Path(__file__).parent.parent / "README.md").read_text()
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
TRAIN = re.findall(r"^python -m slimexp\.train (.*)$", SHELL, re.MULTILINE)


def test_the_main_job_is_among_them() -> None:
    assert any(command.startswith("+experiment=distill_t5") for command in TRAIN)


@pytest.mark.parametrize("command", TRAIN)
def test_a_command_composes(command: str) -> None:
    words = [word for word in shlex.split(command, comments=True) if word != "-m" and not word.startswith("hydra")]
    lowest = [re.sub(r"=(?:int\()?interval\(([^,]+),.*", r"=\1", word) for word in words]
    first = [re.sub(r"(=[^\[{,]+),.*", r"\1", word) for word in lowest]  # of the values that a multirun goes through
    check(compose(first))
