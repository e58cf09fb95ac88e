"""Mixtures of experts, decoder-only and of Llama's names."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedConfig

from slimexp.architecture.base import (
    EXPERT_FFN,
    EXPERT_GATE_UP,
    EXPERTS,
    FFN,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LATENTS,
    OTHER,
    QUERIES,
    Rule,
    head_width,
)
from slimexp.architecture.decoder import AFTER_ATTENTION, AFTER_GATE, GATED, INPUTS, LLAMA
from slimexp.architecture.reasons import NEURONS_OF_EXPERTS, NO_MIXTURE

_MIXTURE = {
    r"experts\.gate_up_proj$": (EXPERTS, EXPERT_GATE_UP, HIDDEN),
    r"experts\.down_proj$": (EXPERTS, HIDDEN, EXPERT_FFN),
    r"mlp\.gate\.weight$": (EXPERTS, HIDDEN),
}
_PARTS = {EXPERT_GATE_UP: (EXPERT_FFN, EXPERT_FFN)}
_SCOPES = {EXPERT_FFN: r".*\.(shared_)?experts"}


def _deepseek(config: PreTrainedConfig) -> Sequence[Rule]:
    """Latent attention; a mixture's norm is left out, for experts that are no linear layers read it too."""
    low_rank = config.q_lora_rank is not None
    queries = "self_attn.q_a_proj" if low_rank else "self_attn.q_proj"
    return (
        Rule("input_layernorm", (queries, "self_attn.kv_a_proj_with_mqa")),
        *([Rule("self_attn.q_a_layernorm", ("self_attn.q_b_proj",))] if low_rank else []),
        Rule("self_attn.kv_a_layernorm", ("self_attn.kv_b_proj",)),
        Rule("post_attention_layernorm", GATED),
        AFTER_GATE,
        Rule("mlp.shared_experts.up_proj", ("mlp.shared_experts.down_proj",)),
    )


def _without_mixtures_behind_dense_blocks(config: PreTrainedConfig) -> str | None:
    return NO_MIXTURE if config.first_k_dense_replace >= config.num_hidden_layers else None


DEEPSEEK = replace(  # multi-head latent attention: keys and values of all heads come out of one latent
    LLAMA,
    optional={},
    axes={
        r"(q_a|kv_a)_layernorm\.weight$": (OTHER,),
        r"q_b_proj\.weight$": (QUERIES, OTHER),
        r"\.q_proj\.weight$": (QUERIES, HIDDEN),
        r"kv_b_proj\.weight$": (LATENTS, OTHER),
        r"(q_a_proj|kv_a_proj_with_mqa)\.weight$": (OTHER, HIDDEN),
        r"(q_a_proj|kv_a_proj_with_mqa)\.bias$": (OTHER,),
        **_MIXTURE,
        r"mlp\.gate\.e_score_correction_bias$": (EXPERTS,),
        r"shared_experts\.(gate|up)_proj\.weight$": (EXPERT_FFN, HIDDEN),  # as wide as some of the others together
        r"shared_experts\.(gate|up)_proj\.bias$": (EXPERT_FFN,),
        r"shared_experts\.down_proj\.weight$": (HIDDEN, EXPERT_FFN),
        **LLAMA.axes,
    },
    sizes={**LLAMA.sizes, EXPERTS: "n_routed_experts", EXPERT_FFN: "moe_intermediate_size"},
    parts=_PARTS,
    scopes=_SCOPES,
    head_dim=None,
    widths={
        HEADS: head_width,
        KV_HEADS: head_width,  # of no parameter: config has as many of these as of heads
        QUERIES: lambda config: config.qk_nope_head_dim + config.qk_rope_head_dim,
        LATENTS: lambda config: config.qk_nope_head_dim + config.v_head_dim,
    },
    dense_blocks="first_k_dense_replace",
    refusals={
        FFN: lambda config: None if config.first_k_dense_replace else NEURONS_OF_EXPERTS,
        **dict.fromkeys((EXPERTS, EXPERT_FFN), _without_mixtures_behind_dense_blocks),
    },
    rules=_deepseek,
)


def is_sparse(index: int, config: PreTrainedConfig) -> bool:
    """Whether block ``index`` of a Qwen mixture holds experts."""
    return (
        index not in config.mlp_only_layers and config.num_experts > 0 and (index + 1) % config.decoder_sparse_step == 0
    )


def _without_dense_blocks(config: PreTrainedConfig) -> str | None:
    return NEURONS_OF_EXPERTS if all(is_sparse(i, config) for i in range(config.num_hidden_layers)) else None


def _without_mixtures(config: PreTrainedConfig) -> str | None:
    return None if any(is_sparse(i, config) for i in range(config.num_hidden_layers)) else NO_MIXTURE


QWEN_MOE = replace(
    LLAMA,
    axes={
        **_MIXTURE,
        r"shared_expert\.(gate|up)_proj\.weight$": (OTHER, HIDDEN),
        r"shared_expert\.down_proj\.weight$": (HIDDEN, OTHER),
        r"shared_expert_gate\.weight$": (OTHER, HIDDEN),
        **LLAMA.axes,
    },
    sizes={**LLAMA.sizes, EXPERTS: "num_experts", EXPERT_FFN: "moe_intermediate_size"},
    parts=_PARTS,
    scopes=_SCOPES,
    refusals={FFN: _without_dense_blocks, EXPERTS: _without_mixtures, EXPERT_FFN: _without_mixtures},
    # The norm before a mixture is left out, whose gates and experts read it too; there is no mlp.gate_proj in one.
    rules=lambda _: (*LLAMA.rules(_), Rule("mlp.shared_expert.up_proj", ("mlp.shared_expert.down_proj",))),
)

MIXTRAL = replace(
    LLAMA,
    axes={**_MIXTURE, **LLAMA.axes},
    sizes={key: name for key, name in LLAMA.sizes.items() if key != FFN}
    | {EXPERTS: "num_local_experts", EXPERT_FFN: "intermediate_size"},
    parts=_PARTS,
    scopes=_SCOPES,
    refusals={FFN: NEURONS_OF_EXPERTS},
    rules=lambda _: (Rule("input_layernorm", INPUTS), AFTER_ATTENTION),
)
