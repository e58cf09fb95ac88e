"""Sources of models: folders, the hub, the zoo and configs give the model that transformers gives, or one error."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.file import integrity
from slimexp.model import loading
from slimexp.model.base import Family
from slimexp.model.cache import round_cache
from slimexp.model.loading import Pretrained, Scratch, family_named, from_folder
from slimexp.model.place import ZOO
from slimexp.model.tokenizer import Bpe, Bytes
from slimexp.serialization import gguf

Tiny = Callable[..., Any]
TASKS = ("seq2seq", "causal_lm", "classification")
ROWS = [("one", "two", 0), ("three!", "four", 1)]


def texts() -> Iterator[str]:
    yield from ("one two three", "four five six")


def load(source: Any, task: str, labels: tuple[str, ...] = ()) -> Family:
    return source.load(task=task, texts=texts, labels=labels)


@torch.no_grad()
def logits(family: Family) -> torch.Tensor:
    family.model.eval()
    return family.forward(family.encode(ROWS))[0]


def scratch(**values: Any) -> Scratch:
    config = {"model_type": "t5", "d_model": 16, "d_kv": 4, "d_ff": 16, "num_heads": 2, "num_layers": 1} | values
    return Scratch(config=config, tokenizer=Bytes(), max_length=32)


# --- pretrained ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_local_folder_in_the_hubs_format_gives_the_same_model(tiny: Tiny, tiny_folder: Tiny, task: str) -> None:
    labels = ("no", "yes") if task == "classification" else ()
    folder = tiny_folder(task)
    loaded = load(Pretrained(path=str(folder), max_length=32), task, labels)
    assert type(loaded) is family_named(task) and loaded.max_length == 32
    assert torch.equal(logits(loaded), logits(tiny(task)))
    assert torch.equal(logits(from_folder(folder, task, 32)), logits(loaded))
    assert all(p.dtype == torch.float32 for p in loaded.model.parameters())


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm"])
def test_a_folder_that_says_so_caches_integers(tiny: Tiny, tmp_path: Path, task: str) -> None:
    family = tiny(task)
    floats = logits(family)
    round_cache(family.model, 4)
    family.model.save_pretrained(tmp_path)
    family.tokenizer.save_pretrained(tmp_path)
    loaded = load(Pretrained(path=str(tmp_path), max_length=32), task)
    assert torch.equal(logits(loaded), logits(family)) and not torch.equal(logits(loaded), floats)


@pytest.mark.parametrize("task", TASKS)
def test_an_outline_has_the_layers_of_the_model_and_no_weights(tiny_folder: Tiny, task: str) -> None:
    labels = ("no", "yes") if task == "classification" else ()
    source = Pretrained(path=str(tiny_folder(task)), max_length=32)
    outline, loaded = source.outline(task=task, labels=labels), load(source, task, labels)
    assert {p.device.type for p in outline.model.parameters()} == {"meta"}
    sizes = [{name: p.shape for name, p in one.model.named_parameters()} for one in (outline, loaded)]
    assert sizes[0] == sizes[1]
    assert list(outline.compressible()) == list(loaded.compressible())


def test_weights_stored_in_bfloat16_are_trained_in_float32(tiny: Tiny, tmp_path: Path) -> None:
    family = tiny("seq2seq")
    family.model.to(torch.bfloat16).save_pretrained(tmp_path)
    family.tokenizer.save_pretrained(tmp_path)
    loaded = load(Pretrained(path=str(tmp_path), max_length=32), "seq2seq")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_a_model_without_a_classifier_gets_the_classes_of_the_corpus(tiny_folder: Tiny) -> None:
    config = tiny_folder("classification") / "config.json"
    config.write_text(config.read_text().replace("ForSequenceClassification", "ForMaskedLM"))
    loaded = load(Pretrained(path=str(config.parent), max_length=32), "classification", ("bad", "good"))
    assert loaded.model.config.id2label == {0: "bad", 1: "good"}
    assert loaded.model.config.label2id == {"bad": 0, "good": 1}


@pytest.mark.parametrize("labels", [("bad", "good"), ("no", "perhaps", "yes")])
def test_classes_that_would_be_confused_are_refused(tiny_folder: Tiny, labels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"2 classes apart \(no, yes\), the corpus"):
        load(Pretrained(path=str(tiny_folder("classification")), max_length=32), "classification", labels)


def test_a_tokenizer_without_padding_pads_with_its_end_token(tiny: Tiny, tmp_path: Path) -> None:
    family = tiny("causal_lm")
    family.model.config.pad_token_id = None
    family.model.save_pretrained(tmp_path)
    family.tokenizer.pad_token = None
    family.tokenizer.save_pretrained(tmp_path)
    loaded = load(Pretrained(path=str(tmp_path), max_length=32), "causal_lm")
    assert loaded.pad_id == loaded.tokenizer.eos_token_id and loaded.tokenizer.pad_token is None
    assert loaded.model.config.pad_token_id == loaded.model.generation_config.pad_token_id == loaded.pad_id
    batch = loaded.encode([("a", None, None), ("abc", None, None)])
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert (batch["labels"] != -100).sum(1).tolist() == [1, 3]  # the end token of a text is a label, padding is not


# --- scratch and cut -----------------------------------------------------------------------------


def test_scratch_reads_the_numbers_of_its_tokenizer() -> None:
    family = load(scratch(), "seq2seq")
    config = family.model.config
    assert (config.vocab_size, config.pad_token_id, config.eos_token_id) == (259, 0, 1)
    assert config.decoder_start_token_id == 0
    bpe = Scratch(config=scratch().config, tokenizer=Bpe(vocab_size=265, characters=1000), max_length=32)
    assert load(bpe, "seq2seq").model.config.vocab_size == 265


def test_scratch_is_a_matter_of_the_seed() -> None:
    torch.manual_seed(1)
    first = load(scratch(), "seq2seq")
    torch.manual_seed(1)
    assert torch.equal(logits(load(scratch(), "seq2seq")), logits(first))
    torch.manual_seed(2)
    other = load(scratch(), "seq2seq")
    assert not torch.equal(logits(other), logits(first))


def test_scratch_from_conf() -> None:
    node = compose(["model=scratch", "model.config={model_type: bert, hidden_size: 16, num_attention_heads: 2}"]).model
    source: Scratch = build(node)
    source.validate("classification")
    assert isinstance(source.tokenizer, Bytes) and source.config["hidden_size"] == 16


# --- what is refused -----------------------------------------------------------------------------


def test_a_missing_folder_or_unknown_hub_id() -> None:
    for path in ("no/such/folder", "/no/such/folder", "./nowhere"):
        with pytest.raises(ValueError, match=rf"model '{path}' cannot be loaded: there is no such folder; model\.path"):
            Pretrained(path=path, max_length=32).validate("seq2seq")
    with pytest.raises(ValueError, match=r"model 'no/model' cannot be loaded: .*`hf download no/model .*model\.path"):
        Pretrained(path="no/model", max_length=32).validate("seq2seq")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.json: give a folder in the hub's format"):
        Pretrained(path=str(tmp_path), max_length=32).validate("seq2seq")


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    rule = f"^'{path}' is a file, and model.path takes a folder or a hub id: "
    with pytest.raises(ValueError, match=f"{rule}give its folder, {tmp_path}$"):
        Pretrained(path=str(path), max_length=32).validate("seq2seq")
    path.write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(ValueError, match=rf"{rule}add model=gguf, .* \(model=gguf model\.path={path}\)$"):
        Pretrained(path=str(path), max_length=32).validate("seq2seq")


def test_a_folder_of_the_other_format(tmp_path: Path) -> None:
    """Of GGUF files where model=pretrained reads, and the reverse."""
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(
        ValueError, match=rf"holds no config\.json, but a\.gguf: add model=gguf, .*path={tmp_path}/a\.gguf"
    ):
        Pretrained(path=str(tmp_path), max_length=32).validate("seq2seq")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"it is in the hub's format, which model=pretrained reads$"):
        gguf.check_path(tmp_path)


def test_an_unknown_name_of_the_zoo() -> None:
    with pytest.raises(ValueError, match=r"no model 'zoo:unicorn': the zoo holds"):
        Pretrained(path="zoo:unicorn", max_length=32).validate("seq2seq")
    assert ZOO.is_dir()


@pytest.mark.parametrize(
    ("model", "task"),
    [
        ("classification", "seq2seq"),
        ("causal_lm", "seq2seq"),
        ("seq2seq", "causal_lm"),
        ("seq2seq", "classification"),
        ("classification", "causal_lm"),  # transformers would load it, and it would see what it predicts
    ],
)
def test_a_model_that_does_not_serve_the_task(tiny_folder: Tiny, model: str, task: str) -> None:
    kind = {"seq2seq": "t5", "causal_lm": "llama", "classification": "bert"}[model]
    with pytest.raises(ValueError, match=rf"is of type {kind}, which does not serve the task '{task}' of this corpus"):
        Pretrained(path=str(tiny_folder(model)), max_length=32).validate(task)


def test_more_tokens_than_positions(tiny_folder: Tiny) -> None:
    source = Pretrained(path=str(tiny_folder("causal_lm")), max_length=65)
    with pytest.raises(ValueError, match=r"max_length must be <= 64, the positions that .* has; got 65"):
        source.validate("causal_lm")


def test_some_models_count_positions_from_behind_the_padding_token() -> None:
    config = {"model_type": "roberta", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1,
              "intermediate_size": 16, "max_position_embeddings": 34, "vocab_size": 300}  # fmt: skip

    def roberta(max_length: int) -> Scratch:
        return Scratch(config=config, tokenizer=Bytes(), max_length=max_length)

    family = load(roberta(32), "classification", ("no", "yes"))
    family.forward(family.encode([("a" * 99, None, 0)]))
    with pytest.raises(ValueError, match=r"max_length must be <= 32, the positions that .* has; got 33"):
        roberta(33).validate("classification")


@pytest.mark.fast
@pytest.mark.parametrize("max_length", [-1, 0, 1])
def test_too_short_a_length(max_length: int) -> None:
    message = rf"max_length must be >= 2, got {max_length}"
    with pytest.raises(ValueError, match=message):
        Pretrained(path="x", max_length=max_length)
    with pytest.raises(ValueError, match=message):
        Scratch(config={"model_type": "t5"}, tokenizer=Bytes(), max_length=max_length)


def test_a_config_that_transformers_refuses() -> None:
    with pytest.raises(ValueError, match="needs a model_type"):
        Scratch(config={}, tokenizer=Bytes(), max_length=32)
    with pytest.raises(ValueError, match=r"model\.config: .*unicorn"):
        scratch(model_type="unicorn").validate("seq2seq")
    with pytest.raises(ValueError, match=r"model\.config: .*d_model"):
        scratch(d_model="wide").validate("seq2seq")


def test_plain_transformers_reads_what_was_saved(tiny: Tiny, tiny_folder: Tiny) -> None:
    folder = tiny_folder("seq2seq")
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    family = tiny("seq2seq")
    inputs = tokenizer("one", return_tensors="pt")
    assert torch.equal(model.generate(**inputs, max_new_tokens=8), family.model.generate(**inputs, max_new_tokens=8))
    assert isinstance(model, T5ForConditionalGeneration) and isinstance(model.config, T5Config)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_the_fingerprint_is_of_every_file_that_shapes_the_model(tiny_folder: Tiny, name: str) -> None:
    source = Pretrained(path=str(tiny_folder("seq2seq")), max_length=16)
    before = source.fingerprint()
    path = Path(source.path) / name
    path.write_bytes(path.read_bytes() + b" ")
    assert source.fingerprint() != before
    (Path(source.path) / "README.md").write_text("a card")
    assert source.fingerprint() == source.fingerprint() != before


def test_the_config_is_read_once_and_every_caller_has_its_own(
    tiny_folder: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a hub id each reading is two requests."""
    read, reach = [], loading.reach
    monkeypatch.setattr(loading, "reach", lambda auto, path: read.append(auto) or reach(auto, path))
    source = Pretrained(path=str(tiny_folder("seq2seq")), max_length=16)
    first = source.validate("seq2seq")
    first.d_model, first.task_specific_params = 5, {"a": 1}
    second = source.validate("seq2seq")
    assert second.d_model != 5 and not getattr(second, "task_specific_params", None)
    assert source.is_trained("seq2seq") and read == [loading.AutoConfig]


def test_the_fingerprint_reads_no_file_that_was_digested(tiny_folder: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is the digest of names and contents that the keys of stored stages were made with."""
    folder = tiny_folder("seq2seq")
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in loading.SHAPES_MODEL:
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    integrity.digests(folder)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert Pretrained(path=str(folder), max_length=16).fingerprint() == digest.hexdigest()
