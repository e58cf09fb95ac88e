import pytest

from slimexp.budget.parameters import Parameters


@pytest.mark.fast
@pytest.mark.parametrize("share", [0.0, 1.0, 1.2, -1.0])
def test_nothing_and_everything_are_no_targets(share: float) -> None:
    with pytest.raises(
        ValueError, match=rf"budget\.share of the parameters that stay must be in \(0, 1\), got {share}"
    ):
        Parameters(share=share)
