"""What transformers could not load again is refused before anything is trained."""

import pytest
from transformers import LlamaConfig, PreTrainedConfig, T5Config
from transformers.quantizers import quantizer_compressed_tensors

from slimexp.serialization.loadable import require_loadable

T5, LLAMA = T5Config(), LlamaConfig()


@pytest.fixture
def dequantizes_at_load(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers from 5.21 on, or an earlier one."""
    methods = {"get_load_operations": lambda self: []} if request.param else {}
    monkeypatch.setattr(quantizer_compressed_tensors, "CompressedTensorsHfQuantizer", type("Quantizer", (), methods))


@pytest.mark.parametrize("dequantizes_at_load", [False, True], indirect=True)
@pytest.mark.usefixtures("dequantizes_at_load")
@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (T5, {"bits": 4, "activation_bits": 8}, "encoder-decoder with 4-bit weights and quantized activations"),
        (LLAMA, {"bits": 4, "activation_bits": 8, "symmetric": False}, "4-bit weights with zero points"),
    ],
)
def test_what_no_transformers_loads_is_refused(config: PreTrainedConfig, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_loadable(config, **settings)


@pytest.mark.parametrize("dequantizes_at_load", [False], indirect=True)
@pytest.mark.usefixtures("dequantizes_at_load")
@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (T5, {"bits": 4, "activation_bits": None}, "an encoder-decoder with 4-bit weights: install transformers"),
        (LLAMA, {"bits": 8, "activation_bits": None, "embeddings": True}, "quantized embeddings: install transformers"),
    ],
)
def test_what_only_later_transformers_load_is_refused(config: PreTrainedConfig, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_loadable(config, **settings)


@pytest.mark.parametrize("dequantizes_at_load", [True], indirect=True)
@pytest.mark.usefixtures("dequantizes_at_load")
@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (T5, {"bits": 8, "activation_bits": 8}),
        (T5, {"bits": 4, "activation_bits": None}),
        (LLAMA, {"bits": 4, "activation_bits": 8}),
        (LLAMA, {"bits": 8, "activation_bits": 8, "symmetric": False}),
        (LLAMA, {"bits": 4, "activation_bits": None, "embeddings": True}),
    ],
)
def test_what_transformers_loads_passes(config: PreTrainedConfig, settings: dict) -> None:
    require_loadable(config, **settings)
