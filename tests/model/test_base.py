"""What every family keeps to: padding, token ids, which layers may be compressed, where the blocks are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from slimexp.loss.base import IGNORE
from slimexp.model.base import Family, block_list, by_length, parameters

Tiny = Callable[..., Any]
TASKS = ("seq2seq", "causal_lm", "classification")
ROWS = [("a", "b!", 0), ("äöü and more", "the target", 1), ("<x>\t\n", "", 1)]


@pytest.mark.parametrize("task", TASKS)
def test_blocks_are_the_transformer_blocks_in_order(tiny: Tiny, task: str) -> None:
    family: Family = tiny(task)
    stacks = family.blocks()
    assert set(stacks) == {
        "seq2seq": {"encoder", "decoder"}, "causal_lm": {"decoder"}, "classification": {"encoder"},
    }[task]  # fmt: skip
    assert all(len(blocks) == 2 for blocks in stacks.values())


@pytest.mark.parametrize("task", TASKS)
def test_embeddings_and_heads_are_not_compressible(tiny: Tiny, task: str) -> None:
    family: Family = tiny(task)
    layers = family.compressible()
    modules = dict(family.model.named_modules())
    assert layers and all(modules[name] is layer and isinstance(layer, nn.Linear) for name, layer in layers.items())
    left_out = {name for name, module in modules.items() if isinstance(module, nn.Linear)} - set(layers)
    assert left_out == {
        "seq2seq": {"lm_head"}, "causal_lm": {"lm_head"}, "classification": {"classifier", "bert.pooler.dense"},
    }[task]  # fmt: skip
    tied = {id(family.model.get_input_embeddings().weight)}
    assert not tied & {id(layer.weight) for layer in layers.values()}


@pytest.mark.parametrize("task", TASKS)
def test_compressible_layers_of_every_block_are_alike(tiny: Tiny, task: str) -> None:
    family: Family = tiny(task)
    for blocks in family.blocks().values():
        kinds = [[tuple(m.weight.shape) for m in block.modules() if isinstance(m, nn.Linear)] for block in blocks]
        assert kinds[0] == kinds[1]


@pytest.mark.parametrize("task", TASKS)
def test_encoding_gives_back_the_text(tiny: Tiny, task: str) -> None:
    family: Family = tiny(task)
    batch = family.encode(ROWS)
    real = batch["attention_mask"].bool()
    texts = [
        family.tokenizer.decode(ids[mask], skip_special_tokens=True)
        for ids, mask in zip(batch["input_ids"], real, strict=True)
    ]
    assert texts == [row[0] for row in ROWS]
    assert (batch["input_ids"][~real] == family.tokenizer.pad_token_id).all()
    if task == "seq2seq":
        targets = [family.tokenizer.decode(ids[ids != IGNORE], skip_special_tokens=True) for ids in batch["labels"]]
        assert targets == [row[1] for row in ROWS]
        assert ((batch["labels"] == family.tokenizer.eos_token_id).sum(1) == 1).all()
    if task == "classification":
        assert batch["labels"].tolist() == [row[2] for row in ROWS]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("multiple", [1, 8, 64])
def test_lengths_are_padded_to_a_multiple(tiny: Tiny, task: str, multiple: int) -> None:
    family: Family = tiny(task)
    batch, plain = family.encode(ROWS, multiple=multiple), family.encode(ROWS)
    for name, tensor in batch.items():
        if tensor.ndim > 1:
            width = plain[name].shape[1]
            assert tensor.shape[1] == -(-width // multiple) * multiple
            assert torch.equal(tensor[:, :width], plain[name])
    assert (batch["labels"] != IGNORE).sum() == (plain["labels"] != IGNORE).sum()


@pytest.mark.parametrize("task", TASKS)
@torch.no_grad()
def test_padding_changes_no_logit(tiny: Tiny, task: str) -> None:
    family: Family = tiny(task)
    alone = [family.forward(family.encode([row]))[0][0] for row in ROWS]
    together, _ = family.forward(family.encode(ROWS, multiple=64))
    for logits, padded in zip(alone, together, strict=True):
        real = padded[: len(logits)] if logits.ndim == 2 else padded
        torch.testing.assert_close(real, logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("task", TASKS)
@torch.no_grad()
def test_hidden_states_are_given_when_asked_for(tiny: Tiny, task: str) -> None:
    family: Family = tiny(task)
    batch = family.encode(ROWS)
    logits, none = family.forward(batch)
    again, hidden = family.forward(batch, hidden=True)
    assert none == {} and torch.equal(logits, again)
    assert set(hidden) == set(family.blocks())
    real = {stack: batch["attention_mask"] for stack in hidden}
    if task == "seq2seq":
        real["decoder"] = batch["labels"] != IGNORE
    for stack, states in hidden.items():
        assert len(states) == 1 + len(family.blocks()[stack])
        assert all(state.shape == (int(real[stack].bool().sum()), 32) for state in states)


@pytest.mark.parametrize("task", TASKS)
def test_ids_are_those_of_the_tokenizer(tiny: Tiny, task: str) -> None:
    family: Family = tiny(task)
    texts = ["", "a", "äöü", "x" * 200]
    cut = family.tokenizer(texts, truncation=True, max_length=family.max_length)["input_ids"]
    assert family.token_ids(texts) == cut and max(map(len, cut)) == family.max_length
    assert [ids[-1] for ids in cut] == [family.tokenizer.eos_token_id] * 4
    assert family.token_ids(texts, truncate=False) == family.tokenizer(texts)["input_ids"]


@pytest.mark.parametrize("task", TASKS)
def test_a_saved_tokenizer_does_not_remember_our_cutting(tiny: Tiny, task: str, tmp_path: Any) -> None:
    from transformers import AutoTokenizer

    family: Family = tiny(task)
    family.token_ids(["x" * 200])
    family.tokenizer.save_pretrained(tmp_path)
    assert len(AutoTokenizer.from_pretrained(tmp_path)("x" * 200)["input_ids"]) == 201


def test_a_tokenizer_must_pad(tiny: Tiny) -> None:
    family: Family = tiny("causal_lm")
    family.tokenizer.pad_token = family.tokenizer.eos_token = None
    family.model.config.pad_token_id = family.model.config.eos_token_id = None
    family.model.generation_config.pad_token_id = family.model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="tokenizer of llama has no padding token, and none that ends texts"):
        type(family)(family.model, family.tokenizer, max_length=8)


@pytest.mark.fast
def test_tied_parameters_count_once() -> None:
    first = nn.Linear(3, 3, bias=False)
    second = nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    assert len(list(parameters(nn.ModuleList([first, second])))) == 1


@pytest.mark.fast
def test_blocks_are_the_outermost_list_however_long_the_lists_within() -> None:
    blocks = [nn.ModuleDict({"parts": nn.ModuleList([nn.Identity() for _ in range(5)])}) for _ in range(2)]
    stack = nn.ModuleDict({"norms": nn.ModuleList([nn.Identity()]), "blocks": nn.ModuleList(blocks)})
    assert block_list(stack) is stack["blocks"]


@pytest.mark.fast
def test_a_stack_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no list of blocks: this architecture is not supported"):
        block_list(nn.Linear(2, 2))


@pytest.mark.fast
def test_batches_of_like_length_hold_every_row_once() -> None:
    texts = ["a" * (i * 7 % 11) for i in range(10)]
    batches = list(by_length(texts, 4))
    assert sorted(i for batch in batches for i in batch) == list(range(10))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    lengths = [len(texts[i]) for batch in batches for i in batch]
    assert lengths == sorted(lengths, reverse=True)
