"""GGUF files: unpacked once to a folder that plain transformers reads; what cannot be read is one error."""

import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.model import gguf as model_gguf
from slimexp.model.gguf import Gguf
from slimexp.record import lock
from slimexp.serialization import gguf as format_gguf

gguf = pytest.importorskip("gguf", reason="pip install slimexp[gguf]")

Write = Callable[..., Path]
TEXT = "def f(x):\n    return x  +  12 # é"
CONFIG = LlamaConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, vocab_size=262, rms_norm_eps=1e-6, tie_word_embeddings=True,
)  # fmt: skip
SPECIAL = ["<unk>", "<s>", "</s>", "<|turn|>"]
CHAT = "{% for message in messages %}<|turn|>{{ message['content'] }}{% endfor %}"
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "model.layers": "blk",
}  # fmt: skip


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**CONFIG.to_dict(), **changes})).eval()


def interleaved(matrix: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a projection in llama.cpp's order, whose rotary pairs lie side by side."""
    return matrix.view(heads, 2, -1, matrix.shape[1]).transpose(1, 2).reshape(matrix.shape)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a model as llama.cpp's converter does."""

    def write(
        name: str = "tiny.gguf", *, kind: str = "F16", architecture: str = "llama", extra: dict[str, Any] | None = None,
        tensors: dict[str, np.ndarray] | None = None, split: int = 0, theta: float = 10000.0,
    ) -> Path:  # fmt: skip
        model = llama()
        writer = gguf.GGUFWriter(tmp_path / name, architecture)
        writer.add_block_count(2)
        writer.add_context_length(64)
        writer.add_embedding_length(32)
        writer.add_feed_forward_length(64)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_dimension_count(8)
        writer.add_rope_freq_base(theta)
        writer.add_vocab_size(262)
        for key, value in (extra or {}).items():
            writer.add_string(key, value)
        if split:
            writer.add_uint16("split.count", split)
        tokens = [*SPECIAL, *bytes_to_unicode().values(), "xy", "xyz"]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        writer.add_token_types([3] * len(SPECIAL) + [1] * 258)
        writer.add_token_merges(["x y", "xy z"])
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_chat_template(CHAT)
        for key, tensor in model.state_dict().items():
            if key == "lm_head.weight":
                continue
            heads = {"q_proj": 4, "k_proj": 2}.get(key.split(".")[-2])
            matrix = (interleaved(tensor, heads) if heads else tensor).numpy()
            for ours, theirs in NAMES.items():
                key = key.replace(ours, theirs)
            stored = gguf.GGMLQuantizationType[kind if matrix.ndim == 2 else "F32"]
            packed = gguf.quantize(matrix, stored)
            writer.add_tensor(key, packed, raw_dtype=stored)
        for key, extra_tensor in (tensors or {}).items():
            writer.add_tensor(key, extra_tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    return write


def source(path: object, **options: Any) -> Gguf:
    return Gguf(**{"path": str(path), "max_length": 32, "dtype": "auto", **options})


def test_what_memory_has_no_room_for_is_refused_before_its_digest(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLIMEXP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))  # whose cache may hold other models
    path, room = write(kind="F16"), [0]
    monkeypatch.setattr(model_gguf.memory, "available", lambda: room[0])
    made = source(path)
    weights = sum(made.header.weights.values())
    room[0] = 2 * weights - 1
    with monkeypatch.context() as patch:
        patch.delattr(model_gguf.integrity, "digest")
        assert made.load_tokenizer(tuple).vocab_size == 262
        with pytest.raises(ValueError, match=rf"^unpacking '{path}' takes at least .* torch\.float16, and "):
            _ = made.folder
    room[0] += 1
    assert Path(made.folder).is_dir()
    room[0] = 0
    assert Path(source(path).folder).is_dir()  # unpacked before


# --- what it becomes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    [("F32", torch.float32, 1e-6), ("F16", torch.float16, 2e-3), ("BF16", torch.bfloat16, 2e-2),
     ("Q8_0", torch.bfloat16, 3e-2)],
)  # fmt: skip
def test_it_is_the_model_that_was_written(write: Write, kind: str, dtype: torch.dtype, tolerance: float) -> None:
    made = source(write(kind=kind))
    family = made.load(task="causal_lm", texts=tuple, labels=())
    plain = AutoModelForCausalLM.from_pretrained(made.folder)
    assert plain.dtype == dtype and type(plain) is LlamaForCausalLM
    ids = torch.tensor([[1, 5, 60, 200, 2]])
    with torch.no_grad():
        expected = llama()(ids).logits
        assert torch.allclose(plain.float()(ids).logits, expected, atol=tolerance)
        assert torch.allclose(family.model.float()(ids).logits, expected, atol=tolerance)
    assert plain.config.tie_word_embeddings and plain.config.eos_token_id == 2


def test_its_tokenizer_has_the_files_special_tokens(write: Write) -> None:
    made = source(write())
    tokenizer = made.load_tokenizer(tuple)
    again = AutoTokenizer.from_pretrained(made.folder)
    for each in (tokenizer, again):
        ids = each(TEXT).input_ids
        assert each.decode(ids) == TEXT and len(ids) == len(TEXT.encode())
        assert (each.bos_token, each.eos_token, each.unk_token) == ("<s>", "</s>", "<unk>")
        assert each("a<|turn|>b").input_ids[1] == 3
        assert each.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "<|turn|>a"


def test_validating_reads_the_header_alone(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gguf, "_unpack", lambda *_: pytest.fail("unpacked"))
    made = source(write())
    made.check_files()
    config = made.validate("causal_lm")
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (2, 32, 262)
    assert made.history().compressed_by == [] and made.stored_as() is None
    with pytest.raises(ValueError, match="does not serve the task 'seq2seq'"):
        made.validate("seq2seq")


def test_the_metadata_are_parsed_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    parse = gguf.GGUFReader.__init__

    def count(self: Any, *arguments: Any) -> None:
        parsed.append(arguments)
        parse(self, *arguments)

    monkeypatch.setattr(gguf.GGUFReader, "__init__", count)
    made = source(write())
    made.check_files()
    made.validate("causal_lm")
    made.load_tokenizer(lambda: [])
    assert Path(made.folder).is_dir()
    assert len(parsed) == 1
    source(write()).load_tokenizer(lambda: [])  # nobody has looked at the header before
    assert len(parsed) == 2


def test_it_is_unpacked_once_and_again_where_it_was_damaged(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLIMEXP_CACHE", str(tmp_path / "cache"))
    path = write()
    folder = Path(source(path).folder)
    assert "unpacking tiny.gguf (F16) as float16" in capsys.readouterr().out
    assert source(path).folder == str(folder) and not capsys.readouterr().out
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1])
    assert source(path).folder == str(folder)
    assert (folder / "model.safetensors").read_bytes() == weights
    assert {entry.name for entry in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}


def test_processes_that_unpack_one_file_at_once_do_so_once(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who comes second finds none, waits for the first, and takes what that has made; what a killed one left goes."""
    monkeypatch.setenv("SLIMEXP_CACHE", str(tmp_path / "first"))
    path = write()
    name = source(path).fingerprint()[:32]
    left = tmp_path / "first" / "gguf" / f".999999999.{name}"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half of it")
    made = Path(source(path).folder)
    assert not left.exists()
    monkeypatch.setenv("SLIMEXP_CACHE", str(tmp_path / "second"))
    monkeypatch.setattr(Gguf, "_unpack", lambda *_: pytest.fail("unpacked twice"))
    folder, found = tmp_path / "second" / "gguf" / name, []
    thread = threading.Thread(target=lambda: found.append(source(path).folder))
    folder.parent.mkdir(parents=True)
    with lock.held(folder.with_suffix(".lock"), "nobody"):
        thread.start()
        while "another process unpacks tiny.gguf, waiting" not in capsys.readouterr().out and thread.is_alive():
            time.sleep(0.01)
        shutil.copytree(made, folder)
    thread.join()
    assert found == [str(folder)]


def test_the_fingerprint_is_of_the_content(write: Write, tmp_path: Path) -> None:
    path = write()
    copied = Path(shutil.copy(path, tmp_path / "copied.gguf"))
    first = source(path).fingerprint()
    assert first == source(copied).fingerprint()
    assert first != source(path, dtype="bfloat16").fingerprint()
    assert first != source(write("other.gguf", kind="F32")).fingerprint()


def test_the_scaling_of_llama3_is_read_from_its_frequencies(write: Write) -> None:
    def divisors(factor: float) -> np.ndarray:
        scaled = LlamaConfig(**{**CONFIG.to_dict(), "head_dim": 8})
        scaled.rope_parameters = {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        }  # fmt: skip
        plain = 500000.0 ** -(torch.arange(0, 8, 2) / 8)
        return (plain / ROPE_INIT_FUNCTIONS["llama3"](scaled, torch.device("cpu"))[0]).numpy()

    config = source(write(tensors={"rope_freqs.weight": divisors(32.0)}, theta=500000.0)).validate("causal_lm")
    assert config.rope_parameters["rope_type"] == "llama3" and config.rope_parameters["factor"] == 32
    config = source(write(tensors={"rope_freqs.weight": np.ones(4, np.float32)})).validate("causal_lm")
    assert config.rope_parameters["rope_type"] == "default"
    with pytest.raises(ValueError, match=r"scales positions by rope_freqs\.weight"):
        source(write(tensors={"rope_freqs.weight": np.array([1, 2, 3, 3], np.float32)})).validate("causal_lm")


def test_the_configuration_builds_it(write: Write) -> None:
    cfg = compose(
        ["model=gguf", f"model.path={write()}", "model.max_length=32", "data=python_source", "pipeline=prune"]
    )
    built = build(cfg.model)
    assert isinstance(built, Gguf) and built.validate("causal_lm").model_type == "llama"


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 3, 20, 500])
def test_a_file_that_was_cut_short_is_refused(write: Write, cut: int) -> None:
    path = write()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - len(whole) * cut // 500] if cut < 500 else whole[:30])
    with pytest.raises(ValueError, match=r"cut short.*get the file anew"):
        source(path).check_files()


def test_what_is_no_gguf_is_refused(tmp_path: Path, write: Write) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(ValueError, match="is no GGUF file, for it starts with b'no m'"):
        source(tmp_path / "text.gguf").check_files()
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ValueError, match="is no GGUF file"):
        source(tmp_path / "empty.gguf").check_files()
    with pytest.raises(ValueError, match="no file"):
        source(tmp_path / "none.gguf").check_files()
    write()
    with pytest.raises(ValueError, match=r"is a folder, and model=gguf takes a file.*it holds .*tiny\.gguf"):
        source(tmp_path).check_files()


def test_a_part_of_several_is_refused(write: Write) -> None:
    with pytest.raises(ValueError, match=r"part 2 of 3 files: join them by `llama-gguf-split --merge"):
        source(write("tiny-00002-of-00003.gguf")).check_files()
    with pytest.raises(ValueError, match=r"one of 3 files: join them by `llama-gguf-split --merge"):
        source(write(split=3)).check_files()


def test_an_unknown_architecture_is_refused(write: Write) -> None:
    path = write(architecture="rwkv7")
    for look in (Gguf.check_files, lambda made: made.load_tokenizer(tuple)):
        with pytest.raises(ValueError, match=r"architecture 'rwkv7', which transformers does not read .*llama"):
            look(source(path))


def test_positions_of_an_unread_rule_are_refused(write: Write) -> None:
    with pytest.raises(ValueError, match="scales positions by the rule 'yarn'"):
        source(write(extra={"llama.rope.scaling.type": "yarn"})).validate("causal_lm")


def test_weights_that_the_model_has_no_place_for_are_refused(write: Write) -> None:
    with pytest.raises(ValueError, match="would be lost"):
        _ = source(write(tensors={"blk.0.attn_q.bias": np.zeros(32, np.float32)})).folder


def test_a_model_on_the_hub_is_asked_for_by_its_file(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *names: asked.append(names) or str(path))
    path = write()
    assert source("owner/name/Q4/file.gguf").validate("causal_lm").hidden_size == 32
    assert asked == [("owner/name", "Q4/file.gguf")]
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"model 'owner/name/file\.gguf' cannot be loaded: HF_HUB_OFFLINE is set"):
        source("owner/name/file.gguf").check_files()


def test_without_the_package_the_refusal_names_the_extra(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"model=gguf needs a package .*pip install 'slimexp\[gguf\]'"):
        source(write()).check_files()


def test_a_type_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.dtype must be auto or one of float32, .* got 'int8'"):
        source("a.gguf", dtype="int8")


def test_all_architectures_of_transformers_have_a_name() -> None:
    assert {"llama", "qwen2", "gemma2"} <= set(model_gguf._architectures())
    assert format_gguf.MAGIC == b"GGUF"
