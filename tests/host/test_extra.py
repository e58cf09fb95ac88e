import json

import pytest

from slimexp.host.extra import require


def test_what_is_there_is_imported() -> None:
    assert require("json", extra="none", by="this test") is json


@pytest.mark.parametrize("module", ["slimexp_nowhere", "slimexp_nowhere.part"])
def test_what_is_missing_is_said_with_the_command(module: str) -> None:
    message = r"^hydra/sweeper/pool=ray needs a package that is not here .*: pip install 'slimexp\[ray\]'$"
    with pytest.raises(ValueError, match=message):
        require(module, extra="ray", by="hydra/sweeper/pool=ray")
