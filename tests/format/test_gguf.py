"""A GGUF file holds the integers of the artifact, and llama.cpp computes what PyTorch does."""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from slimexp import artifact
from slimexp.export import export
from slimexp.format import ggml_blocks, gguf_tokenizer
from slimexp.format.base import Artifact
from slimexp.format.gguf import EXACT, FILE, Gguf
from slimexp.format.gguf_tokenizer import ONE_DIGIT, THREE_DIGITS, Vocabulary, vocabulary
from slimexp.format.report import Report
from slimexp.format.verification import HARD_TEXTS, Differs
from slimexp.model.loading import Scratch
from slimexp.model.tokenizer import Bpe, Bytes, TokenizerRecipe
from slimexp.quantizer.fp8 import Fp8
from slimexp.quantizer.minmax import MinMax
from slimexp.quantizer.token import Token
from slimexp.serialization.unpack import unpacked
from slimexp.weight.attachment import INPUT, attach

gguf = pytest.importorskip("gguf")

Make = Callable[..., Any]
TINY = {"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
WIDE = {"hidden_size": 64, "intermediate_size": 96}  # whole blocks
INT4 = partial(MinMax, bits=4, group_size=32)
INT8 = partial(MinMax, bits=8, group_size=None)
QUANTIZERS = {
    "Q8_0": INT8,
    "Q5_0": partial(MinMax, bits=5, group_size=32),
    "Q4_0": INT4,
    "Q4_1": partial(MinMax, bits=4, group_size=32, symmetric=False),
}
needs_engine = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")


@pytest.fixture
def made(tiny: Make, tmp_path: Path) -> Make:
    """Quantizer of weights (and type, config values) -> an artifact."""

    def make(weight: Make | None = None, *, dtype: Any = torch.float32, **values: Any) -> Any:
        family = tiny("causal_lm", **WIDE | values)
        for layer in family.compressible().values() if weight else ():
            attach(layer, "weight", weight())
        artifact.save(family, tmp_path / "artifact", dtype=dtype, stages=[])
        return Artifact(tmp_path / "artifact")

    return make


def exported(model: Artifact, engine: str = "transformers") -> tuple[Path, Report]:
    folder = model.folder.parent / "export"
    return folder, export(model, Gguf(engine=engine), "gguf", folder, timed=False)


def read(folder: Path) -> Any:
    return gguf.GGUFReader(folder / FILE)


# --- the file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("engine", ["transformers", pytest.param("llama_cpp", marks=needs_engine)])
def test_packed_integers_stay_as_they_are(engine: str, name: str, made: Make) -> None:
    model = made(QUANTIZERS[name], dtype=torch.bfloat16)
    folder, report = exported(model, engine)
    assert report.agreement.relative < 1e-5 and report.facts["largest_change_of_a_scale"] == 0
    tensors = {tensor.name: tensor for tensor in read(folder).tensors}
    layers = unpacked(model.folder)
    kinds = Counter(tensor.tensor_type.name for tensor in tensors.values())
    assert kinds == report.facts["tensors"] and kinds[name] == len(layers)
    for place, layer in (("ffn_down", "mlp.down_proj"), ("attn_v", "self_attn.v_proj")):
        tensor = tensors[f"blk.1.{place}.weight"]
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(weight, layers[f"model.layers.1.{layer}"].weight().numpy())
    assert tensors["token_embd.weight"].tensor_type.name == "BF16"  # the type that the artifact has
    assert sorted(path.name for path in folder.iterdir()) == [FILE, "slimexp_export.json"]


def test_layers_of_unlike_widths(tiny: Make, tmp_path: Path) -> None:
    family = tiny("causal_lm", **WIDE)
    symmetric = {name: quantizer for name, quantizer in QUANTIZERS.items() if name != "Q4_1"}
    for layer, quantizer in zip(family.compressible().values(), cycle(symmetric.values()), strict=False):
        attach(layer, "weight", quantizer())
    artifact.save(family, tmp_path / "artifact", dtype=torch.float32, stages=[])
    _, report = exported(Artifact(tmp_path / "artifact"))
    assert report.facts["tensors"].keys() == {*symmetric, "F32"}


def test_rows_of_queries_are_turned_with_their_scales(made: Make) -> None:
    model = made(INT4)
    folder, _ = exported(model)
    tensor = next(tensor for tensor in read(folder).tensors if tensor.name == "blk.0.attn_q.weight")
    rows = gguf.dequantize(tensor.data, tensor.tensor_type)
    plain = unpacked(model.folder)["model.layers.0.self_attn.q_proj"].weight().numpy()
    width = plain.shape[0] // 4
    for head in range(4):
        half = plain[head * width : (head + 1) * width].reshape(2, width // 2, -1)
        turned = rows[head * width : (head + 1) * width]
        assert np.array_equal(turned[0::2], half[0]) and np.array_equal(turned[1::2], half[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("engine", ["transformers", pytest.param("llama_cpp", marks=needs_engine)])
def test_floats_keep_their_type(engine: str, dtype: torch.dtype, made: Make) -> None:
    folder, report = exported(made(dtype=dtype), engine)
    assert report.agreement.relative < 1e-5 and not (folder / EXACT).exists()
    kinds = {tensor.name: tensor.tensor_type.name for tensor in read(folder).tensors}
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    assert kinds["blk.0.ffn_up.weight"] == names[dtype] and kinds["blk.0.ffn_norm.weight"] == "F32"


@pytest.mark.parametrize("head", ["of its own", "the embeddings", "the embeddings before they were rounded"])
def test_embeddings_of_integers(head: str, tiny: Make, tmp_path: Path) -> None:
    family = tiny("causal_lm", **WIDE, tie_word_embeddings=head != "of its own")
    model = family.model
    layers = [*family.compressible().values(), model.get_input_embeddings()]
    for layer in layers + ([model.lm_head] if head == "the embeddings" else []):
        attach(layer, "weight", INT8())
    artifact.save(family, tmp_path / "artifact", dtype=torch.float32, stages=[])
    folder, _ = exported(Artifact(tmp_path / "artifact"))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in read(folder).tensors}
    assert kinds["token_embd.weight"] == "Q8_0"
    assert kinds.get("output.weight") == (None if head == "the embeddings" else "F32")


@pytest.mark.parametrize("engine", ["transformers", pytest.param("llama_cpp", marks=needs_engine)])
def test_a_wrong_scale_is_no_export(engine: str, made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One percent more in a single layer of integers."""
    model, layers = made(INT4), []

    def off(packed: Any) -> Any:
        layers.append(packed)
        return ggml_blocks.blocks(packed._replace(scale=packed.scale * 1.01) if len(layers) == 3 else packed)

    monkeypatch.setattr("slimexp.format.gguf.blocks", off)
    with pytest.raises(Differs, match="computes something else than PyTorch"):
        exported(model, engine)
    assert not (model.folder.parent / "export").exists()


# --- what llama.cpp computes -----------------------------------------------------------------------


@needs_engine
@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        {
            "model_type": "llama",
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
                "rope_theta": 5e5,
            },
        },
        {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
        {"model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
        {"model_type": "mistral", "head_dim": 16, "sliding_window": None},
        {"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"model_type": "qwen2", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
        {"model_type": "qwen3", "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32},
        {
            "model_type": "granite",
            "attention_multiplier": 0.3,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "logits_scaling": 2.0,
        },
        {"model_type": "olmo2", "tie_word_embeddings": False, "num_key_value_heads": 4},
        {"model_type": "starcoder2"},
    ],
    ids=lambda values: "-".join(str(value) for value in values.values() if not isinstance(value, dict)),
)
def test_architectures(values: dict[str, Any], made: Make) -> None:
    model = made(**values)
    randomize(model)
    assert exported(model, "llama_cpp")[1].agreement.relative < 1e-4


def randomize(model: Artifact) -> None:
    """Give biases and norms values that matter, which a fresh model has not."""
    chance = torch.Generator().manual_seed(0)
    for name, parameter in model.family.model.named_parameters():
        if parameter.ndim == 1:
            noise = torch.randn(parameter.shape, generator=chance) / 4
            parameter.data = noise if name.endswith("bias") else parameter.data + noise


@needs_engine
def test_what_the_engine_rounds_is_told(made: Make) -> None:
    report = exported(made(INT4), "llama_cpp")[1]
    assert report.as_run is not None and 1e-4 < report.as_run.relative < 0.1 and report.agreement.relative < 1e-5


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"weight": partial(MinMax, bits=8, group_size=None, symmetric=False)}, "zero points at 8"),
        ({"weight": partial(MinMax, bits=4, group_size=16)}, "one for 16"),
        ({"weight": partial(Fp8, bits=8, group_size=None, symmetric=True)}, "no float8"),
        ({"model_type": "gpt_neox", "hidden_act": "gelu"}, "not gpt_neox"),
        ({"hidden_act": "gelu"}, "has silu in a llama, the model gelu"),
        ({"model_type": "mistral", "sliding_window": 16}, "the last 16 of 64 tokens"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "positions scaled by 'dynamic'",
        ),
        (
            {"model_type": "olmo2", "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16},
            "the model has 16",
        ),
    ],
)
def test_what_it_cannot_hold(values: dict[str, Any], why: str, made: Make) -> None:
    reason = Gguf(engine="llama_cpp").refusal(made(**values))
    assert reason is not None and why in reason


def test_rounded_inputs_and_other_tasks_are_refused(tiny: Make, tmp_path: Path) -> None:
    kind = Gguf(engine="llama_cpp")
    family = tiny("causal_lm", **WIDE)
    for layer in family.compressible().values():
        attach(layer, "weight", INT8())
        attach(layer, INPUT, Token(bits=8, group_size=None))
    artifact.save(family, tmp_path / "rounded", dtype=torch.float32, stages=[])
    artifact.save(tiny("seq2seq"), tmp_path / "seq2seq", dtype=torch.float32, stages=[])
    assert "in steps of its own" in kind.refusal(Artifact(tmp_path / "rounded"))
    assert "of the task seq2seq" in kind.refusal(Artifact(tmp_path / "seq2seq"))


def test_rows_that_are_no_blocks(made: Make) -> None:
    model = made(INT8, intermediate_size=48)
    with pytest.raises(
        ValueError, match=r"a scale for 32 weights of a row, 'model.layers.0.mlp.down_proj' has one for 48"
    ):
        exported(model)


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="engine must be llama_cpp or transformers, got 'ollama'"):
        Gguf(engine="ollama")


# --- tokenizers ------------------------------------------------------------------------------------


def trained(split: Any, *, ignore_merges: bool = False, eos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that splits text by ``split``."""
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer = split
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<pad>", "</s>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(HARD_TEXTS * 3, trainer)
    template = "<s> $A </s>" if eos else "<s> $A"
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 2), ("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        clean_up_tokenization_spaces=False,
    )


def sequence(expression: str) -> Any:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), "isolated"), level])


def sentence_piece() -> PreTrainedTokenizerFast:
    """What transformers makes of a tokenizer of SentencePiece: bytes for what has no token."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special[:3], show_progress=False, limit_alphabet=60)
    backend.train_from_iterator(HARD_TEXTS * 3, trainer)
    learned = [token for token, _ in sorted(backend.get_vocab().items(), key=lambda item: item[1])][3:]
    tokens = {token: place for place, token in enumerate([*special, *learned])}
    merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    backend.model = models.BPE(vocab=tokens, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


DIGITS = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": lambda: Bytes().build([]),
    "trillion": lambda: Bpe(vocab_size=420, characters=10**6).build(HARD_TEXTS * 3),
    "smollm": lambda: trained(DIGITS),
    "llama-bpe": lambda: trained(sequence(THREE_DIGITS), ignore_merges=True),
    "dbrx": lambda: trained(sequence(THREE_DIGITS)),
    "qwen2": lambda: trained(sequence(ONE_DIGIT), eos=True),
    "default": sentence_piece,
}


def described(name: str, rows: int = 480) -> Vocabulary:
    return vocabulary(TOKENIZERS[name](), rows)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_is_known_by_how_it_splits(name: str) -> None:
    found = described(name)
    assert found.split == ("trillion" if name == "bytes" else name)
    assert len(found.tokens) == len(set(found.tokens)) == len(found.kinds) == 480


class Given(TokenizerRecipe):
    """A tokenizer that was built before."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def build(self, texts: Any) -> PreTrainedTokenizerFast:
        return self.tokenizer


@needs_engine
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_engine_splits_alike(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]()
    config = TINY | WIDE | {"max_position_embeddings": 256}
    source = Scratch(config=config, tokenizer=Given(tokenizer), max_length=256)
    family = source.load(task="causal_lm", texts=lambda: [], labels=())
    family.model.eval()
    artifact.save(family, tmp_path / "artifact", dtype=torch.float32, stages=[])
    model = Artifact(tmp_path / "artifact")
    folder, _ = exported(model, "llama_cpp")  # compares the tokens
    running = Gguf(engine="llama_cpp").load(model, folder)
    for text in HARD_TEXTS:
        assert running.token_ids([text]) == [tokenizer(text).input_ids]


@needs_engine
def test_text_that_is_split_otherwise_is_no_export(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_tokenizer, "_ends", lambda _: {"add_bos_token": False, "add_eos_token": False})
    with pytest.raises(Differs, match=r"the engine splits 'The quick .* into the tokens"):
        exported(made(), "llama_cpp")


def unknown_split() -> PreTrainedTokenizerFast:
    return trained(pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(False)]))


def lower() -> PreTrainedTokenizerFast:
    tokenizer = TOKENIZERS["trillion"]()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def words() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))


@pytest.mark.parametrize(
    ("tokenizer", "why"),
    [
        (unknown_split, r"does not split text as the tokenizer does \(Punctuation\)"),
        (lambda: trained(sequence(r"\w+")), r"no name for a tokenizer that splits text '\\w\+'"),
        (lower, r"does not normalize text \(Lowercase\)"),
        (words, "one of kind WordLevel"),
    ],
)
def test_tokenizers_that_llama_cpp_has_not(tokenizer: Make, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        vocabulary(tokenizer(), 480)


def test_more_tokens_than_rows() -> None:
    with pytest.raises(ValueError, match="has 259 tokens, the model 100 rows"):
        described("bytes", 100)
