"""A cut model is a plain transformers model, and equals the larger one with the rest masked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    GPTNeoConfig,
    GPTNeoForCausalLM,
)

from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.cut.keep import Keep
from slimexp.loss.base import IGNORE
from slimexp.model.base import Family

Tiny = Callable[..., Any]
ROWS = [("one", "two!", 0), ("three and four", "5", 1), ("six", "seven", 0)]
AUTO = {
    "seq2seq": AutoModelForSeq2SeqLM,
    "causal_lm": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
}
MODELS = {
    "t5": ("seq2seq", {}),
    "t5 gated": ("seq2seq", {"feed_forward_proj": "gated-gelu"}),
    "t5 1.1": ("seq2seq", {"tie_word_embeddings": False}),  # no scale before the head
    "mt5": ("seq2seq", {"model_type": "mt5"}),
    "llama": ("causal_lm", {}),
    "llama untied": ("causal_lm", {"tie_word_embeddings": False}),
    "deepseek-llm": ("causal_lm", {"num_key_value_heads": 4}),
    "qwen2": ("causal_lm", {"model_type": "qwen2"}),  # biases
    "qwen3": ("causal_lm", {"model_type": "qwen3", "head_dim": 8}),  # norms within a head
    "bert": ("classification", {}),
}
WITH_HIDDEN = [name for name in MODELS if name != "bert"]
WITH_HEADS = ["llama", "llama untied", "qwen2", "qwen3"]


def cut(**kept: Any) -> Keep:
    none = dict.fromkeys(name for name in Keep.__dataclass_fields__ if name != "calibration_batches")
    return Keep(**none | {"calibration_batches": 0} | kept)


def model(tiny: Tiny, name: str) -> Family:
    task, values = MODELS[name]
    family: Family = tiny(task, **values)
    with torch.no_grad():  # norms and biases that differ, and a residual stream far above the norms' epsilon
        family.model.get_input_embeddings().weight.mul_(50 if task == "causal_lm" else 1)
        for parameter in family.model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return family


@torch.no_grad()
def logits(family: Family) -> Tensor:
    """At real tokens."""
    batch = family.encode(ROWS)
    given, _ = family.forward(batch)
    return given[batch["labels"] != IGNORE]


def zero(family: Family, *places: tuple[str, int, slice | Tensor]) -> None:
    """Set entries of every parameter whose name contains a word to zero, along a dimension."""
    with torch.no_grad():
        for name, parameter in family.model.named_parameters():
            for word, dimension, entries in places:
                if word in name and parameter.ndim > dimension:
                    parameter.movedim(dimension, 0)[entries] = 0


# --- the same model before and after --------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_keeping_everything_is_the_identity(tiny: Tiny, name: str) -> None:
    family = model(tiny, name)
    small = cut().apply(family, [])
    assert torch.equal(logits(small), logits(family))
    assert small.model is not family.model and small.max_length == family.max_length
    assert {p.data_ptr() for p in small.model.parameters()}.isdisjoint(p.data_ptr() for p in family.model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_the_large_model_stays_as_it_was(tiny: Tiny, name: str) -> None:
    family = model(tiny, name)
    before = {key: value.clone() for key, value in family.model.state_dict().items()}
    config = family.model.config.to_dict()
    cut(ffn=16).apply(family, [family.encode(ROWS)])
    assert all(torch.equal(value, before[key]) for key, value in family.model.state_dict().items())
    assert family.model.config.to_dict() == config
    assert not any(module._forward_pre_hooks for module in family.model.modules())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("calibrated", [False, True])
def test_neurons_that_write_nothing_can_go(tiny: Tiny, name: str, calibrated: bool) -> None:
    """Masked is sliced."""
    family = model(tiny, name)
    dead = torch.arange(0, 48, 3)  # a third of them
    zero(
        family, (".wo.weight", 1, dead), ("down_proj.weight", 1, dead), (".0.output.dense.weight", 1, dead),
        (".1.output.dense.weight", 1, dead),
    )  # fmt: skip
    small = cut(ffn=32).apply(family, [family.encode(ROWS)] if calibrated else [])
    torch.testing.assert_close(logits(small), logits(family), atol=1e-5, rtol=1e-5)
    assert size(small) < size(family)


@pytest.mark.parametrize("name", WITH_HIDDEN)
@pytest.mark.parametrize("calibrated", [False, True])
def test_channels_that_nobody_writes_can_go(tiny: Tiny, name: str, calibrated: bool) -> None:
    """Masked is sliced: the norms take their mean over fewer channels, and their weights make up for it."""
    family = model(tiny, name)
    dead = torch.arange(1, 32, 4)  # a quarter of them
    writers = [("shared", 1), ("embed_tokens", 1), (".o.weight", 0), (".wo.weight", 0), ("o_proj", 0), ("down_proj", 0)]
    zero(family, *((word, dimension, dead) for word, dimension in writers))
    small = cut(hidden=24).apply(family, [family.encode(ROWS)] if calibrated else [])
    torch.testing.assert_close(logits(small), logits(family), atol=1e-4, rtol=1e-4)
    assert small.model.config.hidden_size == 24 and size(small) < size(family)


@pytest.mark.parametrize("name", WITH_HEADS)
@pytest.mark.parametrize("calibrated", [False, True])
def test_heads_that_write_nothing_can_go(tiny: Tiny, name: str, calibrated: bool) -> None:
    """A key/value head goes with the query heads that share it."""
    family = model(tiny, name)
    zero(family, ("o_proj.weight", 1, slice(0, 16)))  # the first of two groups of two heads of eight channels
    small = cut(heads=1).apply(family, [family.encode(ROWS)] if calibrated else [])
    torch.testing.assert_close(logits(small), logits(family), atol=1e-5, rtol=1e-5)
    config = small.model.config
    assert (config.num_key_value_heads, config.num_attention_heads) == (1, 2)


@pytest.mark.parametrize("calibrated", [False, True])
def test_heads_that_are_silent_in_all_blocks_of_a_stack_of_t5_can_go(tiny: Tiny, calibrated: bool) -> None:
    """They share one position table; cross-attention has none, and chooses block by block."""
    family = model(tiny, "t5")
    for name, layer in family.model.named_modules():
        if name.endswith(".o"):
            silent = slice(8, 24) if name.startswith("encoder") else slice(16, 32)
            nn.init.zeros_(layer.weight[:, silent if "SelfAttention" in name else slice(0, 16)])
    small = cut(heads=2).apply(family, [family.encode(ROWS)] if calibrated else [])
    torch.testing.assert_close(logits(small), logits(family), atol=1e-5, rtol=1e-5)
    assert small.model.config.num_heads == 2
    assert small.model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.shape[1] == 2


@pytest.mark.parametrize("calibrated", [False, True])
def test_neurons_of_gpt2_that_write_nothing_can_go(tiny: Tiny, calibrated: bool) -> None:
    """Its weights are [in, out]."""
    family = tiny("causal_lm", model_type="gpt2", n_inner=48)
    zero(family, ("mlp.c_proj.weight", 0, torch.arange(0, 48, 3)))
    small = cut(ffn=32).apply(family, [family.encode(ROWS)] if calibrated else [])
    torch.testing.assert_close(logits(small), logits(family), atol=1e-5, rtol=1e-5)
    assert small.model.config.n_inner == 32


MIXTURE = {
    "model_type": "deepseek_v3", "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": None, "v_head_dim": 8,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "moe_intermediate_size": 12, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 2,
}  # fmt: skip


@pytest.mark.parametrize("calibrated", [False, True])
def test_experts_that_no_token_goes_to_can_go(tiny: Tiny, calibrated: bool) -> None:
    family = tiny("causal_lm", **MIXTURE)
    mixture = family.blocks()["decoder"][1].mlp
    with torch.no_grad():
        mixture.gate.e_score_correction_bias[torch.tensor([1, 3, 4, 6])] = 10.0  # far above sigmoids: these are chosen
        if not calibrated:
            mixture.experts.down_proj[torch.tensor([1, 3, 4, 6])] *= 10
    small = cut(experts=4).apply(family, [family.encode(ROWS)] if calibrated else [])
    torch.testing.assert_close(logits(small), logits(family), atol=1e-5, rtol=1e-5)
    assert small.model.config.n_routed_experts == 4 and size(small) < size(family)


@pytest.mark.parametrize("name", MODELS)
def test_blocks_that_write_nothing_can_go(tiny: Tiny, name: str) -> None:
    family = model(tiny, name)
    encoder, decoder = "encoder" in family.blocks(), "decoder" in family.blocks()
    if name == "bert":  # its norms come last, so no block writes nothing: the first alone must be what is left
        small = cut(encoder_layers=[0]).apply(family, [])
        family.model.bert.encoder.layer = family.model.bert.encoder.layer[:1]
    else:
        for blocks in family.blocks().values():
            for writer in (m for n, m in blocks[1].named_modules() if n.endswith((".o", ".wo", "o_proj", "down_proj"))):
                nn.init.zeros_(writer.weight)
        small = cut(encoder_layers=[0] if encoder else None, decoder_layers=[0] if decoder else None).apply(family, [])
    torch.testing.assert_close(logits(small), logits(family), atol=1e-5, rtol=1e-5)
    assert all(len(blocks) == 1 for blocks in small.blocks().values())


def test_kept_blocks_keep_their_weights_in_order(tiny: Tiny) -> None:
    family: Family = tiny("seq2seq", num_layers=4, num_decoder_layers=4)
    small = cut(encoder_layers=[0, 1, 3], decoder_layers=[0, 2]).apply(family, [])
    for stack, kept in (("encoder", [0, 1, 3]), ("decoder", [0, 2])):
        for new, old in zip(small.blocks()[stack], [family.blocks()[stack][i] for i in kept], strict=True):
            for a, b in zip(new.state_dict().values(), old.state_dict().values(), strict=True):
                assert torch.equal(a, b)


# --- what is retained ---------------------------------------------------------------------------------


def test_neurons_and_channels_of_large_weights_are_retained(tiny: Tiny) -> None:
    family = model(tiny, "llama")
    with torch.no_grad():
        for block in family.blocks()["decoder"]:
            block.mlp.down_proj.weight[:, 40:].mul_(100)
        family.model.get_input_embeddings().weight[:, :8].mul_(100)
    small = cut(ffn=8, hidden=8).apply(family, [])
    kept = small.blocks()["decoder"][0].mlp.down_proj.weight
    assert torch.equal(kept, family.blocks()["decoder"][0].mlp.down_proj.weight[:8, 40:])


def test_calibration_sees_what_weights_do_not(tiny: Tiny) -> None:
    """Neurons that never fire go first, however large the weights that read them."""
    family = model(tiny, "t5")
    with torch.no_grad():
        for stack in family.blocks().values():
            for block in stack:
                feed_forward = block.layer[-1].DenseReluDense
                feed_forward.wi.weight[:24] = 0
                feed_forward.wo.weight[:, :24].mul_(100)
    torch.testing.assert_close(
        logits(cut(ffn=24).apply(family, [family.encode(ROWS)])), logits(family), atol=1e-5, rtol=1e-5
    )


# --- plain transformers ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_saved_it_is_what_plain_transformers_loads(tiny: Tiny, name: str, tmp_path: Path) -> None:
    task, _ = MODELS[name]
    family = model(tiny, name)
    sizes: dict[str, Any] = {"ffn": 16}
    sizes |= {"hidden": 16} if name in WITH_HIDDEN else {}
    sizes |= {"heads": 1} if name in WITH_HEADS else {}
    sizes |= {f"{stack}_layers": [0] for stack in family.blocks()}
    small = cut(**sizes).apply(family, [family.encode(ROWS)])
    small.model.save_pretrained(tmp_path)
    loaded = type(small)(AUTO[task].from_pretrained(tmp_path).eval(), small.tokenizer, max_length=64)
    torch.testing.assert_close(logits(loaded), logits(small), atol=1e-5, rtol=1e-5)
    if task == "classification":
        return
    batch = family.encode(ROWS[:1])
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    written = [m.generate(**inputs, max_new_tokens=6, do_sample=False, use_cache=c)
               for m, c in ((loaded.model, True), (loaded.model, False), (small.model, True))]  # fmt: skip
    assert torch.equal(written[0], written[1]) and torch.equal(written[0], written[2])


def test_it_can_be_trained(tiny: Tiny) -> None:
    small = cut(ffn=16, hidden=16, encoder_layers=[0], decoder_layers=[0]).apply(model(tiny, "t5"), [])
    small.forward(small.encode(ROWS))[0].sum().backward()
    assert all(p.grad is not None for p in small.model.parameters())


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kept", "message"),
    [
        ("t5", {"ffn": 49}, r"cut\.ffn must be in 1\.\.48, the model's own; got 49"),
        ("t5", {"ffn": 0}, r"cut\.ffn must be in 1\.\.48, the model's own; got 0"),
        ("t5", {"hidden": 33}, r"cut\.hidden must be in 1\.\.32, the model's own; got 33"),
        ("bert", {"heads": 2}, r"cut\.heads must be null for a model of type bert"),
        ("bert", {"hidden": 16}, r"cut\.hidden must be null for a model of type bert"),
        ("llama", {"heads": 3}, r"cut\.heads must be in 1\.\.2, the model's own; got 3"),
        ("deepseek-llm", {"heads": 3}, r"cut\.heads=3 gives a model .* not divide .* nearest that it does 2 and 4"),
        ("llama", {"hidden": 18}, r"cut\.hidden=18 gives a model of type llama .* nearest that it does 16 and 20"),
        ("t5", {"experts": 2}, r"cut\.experts must be null for a model of type t5: it has none"),
        (
            "t5",
            {"encoder_layers": [0, 2]},
            r"cut: blocks of the encoder must be rising indices in 0\.\.1.*got \[0, 2\]",
        ),
        (
            "t5",
            {"decoder_layers": [1, 0]},
            r"cut: blocks of the decoder must be rising indices in 0\.\.1.*got \[1, 0\]",
        ),
        ("t5", {"decoder_layers": [0, 0]}, r"cut: blocks of the decoder must be rising"),
        (
            "t5",
            {"encoder_layers": []},
            r"cut: blocks of the encoder must be rising indices in 0\.\.1, at least one; got \[\]",
        ),
        ("t5", {"encoder_layers": [1]}, r"cut: block 0 of the encoder must stay, whose position table all share"),
        ("t5", {"encoder_layers": [0]}, r"more decoder blocks \(2\) than encoder blocks \(1\)"),
        ("llama", {"encoder_layers": [0]}, r"cut\.encoder_layers must be null: a model of type llama has no encoder"),
    ],
)
def test_what_cannot_be_cut(tiny: Tiny, name: str, kept: dict[str, Any], message: str) -> None:
    family = model(tiny, name)
    with pytest.raises(ValueError, match=message):
        cut(**kept).validate(family.model.config)
    with pytest.raises(ValueError, match=message):
        cut(**kept).apply(family, [])


def test_a_type_without_an_architecture(tiny: Tiny) -> None:
    family = tiny("causal_lm")
    family.model = GPTNeoForCausalLM(
        GPTNeoConfig(vocab_size=259, hidden_size=16, num_layers=1, num_heads=1, attention_types=[[["global"], 1]])
    )
    with pytest.raises(ValueError, match=r"a model of type gpt_neo cannot be cut: .*\(albert, bart, bert, "):
        cut(ffn=4).apply(family, [])


def test_the_cut_of_conf_keeps_everything() -> None:
    kept: Keep = build(compose(["+cut@measure.probe=keep"]).measure.probe)
    assert kept == cut(calibration_batches=8)


def size(family: Family) -> int:
    return sum(parameter.numel() for parameter in family.model.parameters())
