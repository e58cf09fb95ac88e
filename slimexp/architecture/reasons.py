"""Why an axis of a model type cannot be cut."""

from slimexp.architecture.base import HEADS, HIDDEN, KV_HEADS, Refusal

SIZE_OF_A_HEAD = (
    "transformers has no size of a head of its own for this type, it is the hidden width divided by the heads"
)
LAYER_NORM = (
    "its norms subtract the mean of all channels, so that with fewer of them the rest would not stay what they are"
)
FOUR_TIMES = "transformers has four times as many neurons as channels in this type, whatever the config says"
NEURONS_OF_EXPERTS = "its neurons are those of its experts, an axis of their own (expert_ffn)"
NO_MIXTURE = "none of its blocks is a mixture"
SHARED_BLOCK = "all layers are one block that runs again and again, of which none can go alone"
TWO_VOCABULARIES = "its two tokenizers share one table of ids"
SHARED_TABLE = "the blocks of a stack share one table of positions, which has a column for each head"
TWO_ATTENTIONS = "a block of its decoder has two attentions, each with heads of its own"
FUSED_HEADS = "transformers divides its fused projection by the numbers of heads in the config"
FIRST_TABLE = "whose position table all share"
FIRST_NORM = "which is the only one without a norm before its attention"
FIRST_CONVOLUTION = "behind which the convolution lies"

# Of models whose norms are layer norms and whose heads follow from the hidden width: neurons and whole layers can go.
FIXED_HEADS: dict[str, Refusal] = {HEADS: SIZE_OF_A_HEAD, KV_HEADS: SIZE_OF_A_HEAD}
FIXED_WIDTHS: dict[str, Refusal] = {**FIXED_HEADS, HIDDEN: LAYER_NORM}
UNPROVED = "a small model of this type that lost some did not compute what it computes with them masked"
UNDECLARED = "the type is recognized by its names alone"
