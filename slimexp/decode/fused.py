"""One decode step of Llama-like models in five Triton kernels per block (``triton_attention``, ``triton_gemv``).

Attention takes three of them, feed-forward layers two; a block may do without either, or have a linear map of low rank
in its place, of two kernels (see ``model.widths``).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from slimexp.decode.operand import Matrix, Vector, launch, programs, stacked, tile_of
from slimexp.decode.packed_linear import BLOCK, PackedLinear
from slimexp.decode.static_cache import cache_arguments
from slimexp.kernel.cuda_graph import capture, has_triton
from slimexp.kernel.scaled_mm import ScaledMM

TYPES = ("llama", "mistral", "qwen2", "qwen3")


def refusal(model: PreTrainedModel, length: int) -> str | None:
    """Why the fused kernels cannot run ``model`` on sequences of ``length``; ``None`` if they can."""
    config = model.config
    if not has_triton():
        return "triton is not installed"
    if config.model_type not in TYPES:
        return f"the kernels know {', '.join(TYPES)}, not {config.model_type}"
    if config.hidden_act != "silu":
        return f"the kernels know silu, not {config.hidden_act}"
    if (kind := config.rope_parameters.get("rope_type", "default")) in ("dynamic", "longrope"):
        return f"positions of kind {kind} change with the length"
    window = getattr(config, "sliding_window", None)
    slides = getattr(config, "use_sliding_window", config.model_type == "mistral")
    if slides and window is not None and window < length:
        return f"attention looks back {window} positions only, and sequences may have {length}"
    width = _head_width(model)
    if width & (width - 1) or width < BLOCK:
        return f"a head has {width} channels, which is no power of two from {BLOCK} on"
    if next(_parts(model), None) is None:
        return "no block has attention or feed-forward layers"
    supported = nn.Linear | PackedLinear | ScaledMM
    if unsupported := [name for name, layer in _layers(model).items() if not isinstance(layer, supported)]:
        return f"{unsupported[0]} is neither a linear layer nor one of packed words or float8"
    return None


def _layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    parts = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "to_rank", "from_rank", "lm_head"
    )  # fmt: skip
    return {name: module for name, module in model.named_modules() if name.rpartition(".")[2] in parts}


def _head_width(model: PreTrainedModel) -> int:
    config = model.config
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _parts(model: PreTrainedModel) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Attention, feed-forward layers and maps that are there, in order, each with the norm of what it reads."""
    for block in model.model.layers:
        for part, norm in ((block.self_attn, block.input_layernorm), (block.mlp, block.post_attention_layernorm)):
            if next(part.children(), None) is not None:
                yield part, norm


@dataclass
class Part:
    """Attention or feed-forward layers of a block, or a map in their place.

    Attributes:
        into: Weight that reads the residual stream, normed.
        out: Weight whose product is added to it.
        next_gain: Gain of the norm that what follows reads the stream through.
    """

    into: Matrix
    out: Matrix
    next_gain: Tensor


@dataclass
class Attention(Part):
    """Attention, the gains of the norms of its heads, and its keys and values [KV heads, length, width]."""

    heads: int
    kv_heads: int
    head_gains: tuple[Tensor | None, Tensor | None]
    keys: Tensor
    values: Tensor


@dataclass
class FeedForward(Part):
    """Feed-forward layers, gate and upper projection stacked."""


@dataclass
class Map(Part):
    """A linear map of low rank."""


class Fused:
    """The decode steps of one model at batch 1, in fused kernels.

    Args:
        model: A model that ``refusal`` returns ``None`` for.
        length: Largest number of positions of a sequence.
        temperature: Sampling temperature; 0 takes the likeliest token.
        seed: Seed of sampling.
        overlap: Whether a kernel may start before the previous one ends (compute capability 9.0).

    Attributes:
        tokens: Token ids by position [1, length + 1].
        position: Position of the token that the next step reads, a scalar.
        logits: Logits of the last step, float32 [vocabulary].
    """

    label = "fused kernels"
    SPLITS = 16
    KEYS = 32  # positions that a program reads at once
    WARPS = 2
    SHORT = 512  # tokens of a prompt that is read as a graph: of a longer one, launching takes little of the time

    def __init__(
        self,
        model: PreTrainedModel,
        length: int,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        overlap: bool = False,
    ) -> None:
        self.model, self.length, self.overlap = model, length, overlap
        self.temperature, self.seed = temperature, seed
        base, config = model.model, model.config
        self.epsilon = config.rms_norm_eps
        self.width = _head_width(model)
        self.embedding = base.embed_tokens.weight.data
        device = self.embedding.device
        there = list(_parts(model))
        gains = [norm.weight.data for _, norm in there] + [base.norm.weight.data]
        self.first_gain = gains[0]
        self.parts = [self._part(part, gain) for (part, _), gain in zip(there, gains[1:], strict=True)]
        self.attentions = [part for part in self.parts if isinstance(part, Attention)]
        others = [part for part in self.parts if not isinstance(part, Attention)]
        self.head = stacked([model.lm_head], self.embedding.dtype)
        self.cosine, self.sine = self._angles()

        def empty(*shape: int) -> Tensor:
            return torch.zeros(shape, device=device)

        def vector(size: int, dtype: torch.dtype = self.embedding.dtype) -> Vector:
            return Vector(size, dtype, device)

        self.hidden, self.normed_in = empty(config.hidden_size), vector(config.hidden_size)
        self.qkv = {rows: vector(rows, torch.float32) for rows in {part.into.rows for part in self.attentions}}
        self.attended = {width: vector(width) for width in {part.out.columns for part in self.attentions}}
        self.neurons = {width: vector(width) for width in {part.out.columns for part in others}}
        self.squares = empty(config.hidden_size)
        self.squares_in = self.squares[: programs(self.parts[-1].out, "residual")]  # what ``advance`` stores
        self.scores, self.best = vector(self.head.rows, torch.float32), empty(2, programs(self.head, "head"))
        self.angles = empty(2, self.width // 2)
        self.splits = min(self.SPLITS, -(-length // self.KEYS))  # more would have nothing to attend to
        most = max((part.heads for part in self.attentions), default=1)
        self.partial = empty(most, self.splits, self.width + 2)
        self.arrived = torch.zeros(most, dtype=torch.int32, device=device)
        self.position = torch.zeros((), dtype=torch.int64, device=device)
        self.tokens = torch.zeros(1, length + 1, dtype=torch.int64, device=device)
        self._graphs: dict[int, tuple[Tensor, torch.cuda.CUDAGraph]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def bytes(self) -> int:
        """Bytes of the weights that a step reads."""
        matrices = [matrix for part in self.parts for matrix in (part.into, part.out)]
        return sum(matrix.bytes for matrix in (*matrices, self.head))

    def _part(self, part: Any, next_gain: Tensor) -> Part:
        dtype = self.embedding.dtype
        if hasattr(part, "to_rank"):
            return Map(stacked([part.to_rank], dtype), stacked([part.from_rank], dtype), next_gain)
        if hasattr(part, "gate_proj"):
            gated, down = stacked([part.gate_proj, part.up_proj], dtype), stacked([part.down_proj], dtype)
            return FeedForward(gated, down, next_gain)
        qkv = stacked([part.q_proj, part.k_proj, part.v_proj], dtype)
        o = stacked([part.o_proj], dtype)
        heads = o.columns // self.width
        kv_heads = (qkv.rows // self.width - heads) // 2
        shape = (kv_heads, self.length, self.width)
        return Attention(
            qkv,
            o,
            next_gain,
            heads=heads,
            kv_heads=kv_heads,
            head_gains=tuple(getattr(getattr(part, name, None), "weight", None) for name in ("q_norm", "k_norm")),  # type: ignore[arg-type]
            keys=torch.zeros(shape, dtype=dtype, device=self.embedding.device),
            values=torch.zeros(shape, dtype=dtype, device=self.embedding.device),
        )

    def _angles(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine by position [length, half of a head], as the model scales them."""
        positions = torch.arange(self.length, device=self.embedding.device)[None]
        like = torch.zeros((), device=self.embedding.device)
        cosine, sine = self.model.model.rotary_emb(like, positions)
        half = self.width // 2
        return cosine[0, :, :half].float().contiguous(), sine[0, :, :half].float().contiguous()

    @torch.inference_mode()
    def prefill(self, ids: Tensor) -> None:
        """Read a prompt [1, T] with the transformers model; the next step reads its last token again."""
        ids, count = ids.to(self.tokens.device), ids.shape[1]
        self.tokens[:, :count] = ids
        self.position.fill_(count - 1)
        self.arrived.zero_()
        if 1 < count <= self.SHORT:
            self._read_as_graph(ids[:, :-1])
        elif count > 1:
            self._read(ids[:, :-1])
        self.advance(chooses=False)

    def _read(self, ids: Tensor) -> None:
        """Store the keys and values of ``ids`` [1, T] from the first position on.

        The cache keeps every position: ``refusal`` lets no window be shorter than ``length``, and that of a model with
        a window would copy its size from the CPU, which no capture allows.
        """
        count = ids.shape[1]
        cache = DynamicCache()
        self.model.model(input_ids=ids, **cache_arguments(self.model.model, cache))
        for part, layer in zip(self.attentions, cache.layers, strict=True):
            assert layer.keys is not None and layer.values is not None
            part.keys[:, :count] = layer.keys[0]
            part.values[:, :count] = layer.values[0]

    def _read_as_graph(self, ids: Tensor) -> None:
        """As ``_read``, by a CUDA graph whose size is rounded up; no token attends to the padding, which is last."""
        count = ids.shape[1]
        step = 1 << max(5, count.bit_length() - 3)
        size = min(-(-count // step) * step, self.length - 1)
        if size not in self._graphs:
            prompt = torch.zeros(1, size, dtype=torch.int64, device=ids.device)
            self._graphs[size] = prompt, capture(lambda: self._read(prompt), ids.device, self._pool)
        prompt, graph = self._graphs[size]
        prompt[:, :count] = ids
        graph.replay()

    @property
    def logits(self) -> Tensor:
        return self.scores.values

    def step(self) -> None:
        """Decode one token: read the one at ``position``, store the next."""
        followers = [part.into for part in self.parts[1:]] + [self.head]
        squares = self.squares_in
        for part, following in zip(self.parts, followers, strict=True):
            if isinstance(part, Attention):
                self._gemv(part.into, self.normed_in, self.qkv[part.into.rows], "plain", squares=squares)
                self.attend(part)
                inner = self.attended[part.out.columns]
            else:
                inner, kind = self.neurons[part.out.columns], "plain" if isinstance(part, Map) else "gated"
                self._gemv(part.into, self.normed_in, inner, kind, squares=squares, rounds=part.out.packed)
            squares = self._residual(part, inner, following.packed)
        self._gemv(
            self.head, self.normed_in, self.scores, "head", squares=squares, best=self.best,
            position=self.position, temperature=self.temperature, seed=self.seed,
        )  # fmt: skip
        self.advance(chooses=True)

    def attend(self, part: Attention) -> None:
        """Attention of one block, from ``qkv`` to ``attended``."""
        import triton

        from slimexp.decode import triton_attention

        triton_attention.attend[(part.heads, self.splits)](
            self.qkv[part.into.rows].values, *part.head_gains, self.angles, part.keys, part.values, self.position,
            *self.attended[part.out.columns].written(part.out.packed), self.partial, self.arrived,
            SCALE=self.width**-0.5, EPSILON=self.epsilon, HEADS=part.heads, KV_HEADS=part.kv_heads,
            HALF=self.width // 2, LENGTH=self.length,
            SPLITS=self.splits, SPLITS_UP=triton.next_power_of_2(self.splits), BLOCK=self.KEYS,
            num_warps=self.WARPS, **self._overlapped(),
        )  # fmt: skip

    def _overlapped(self) -> dict[str, Any]:
        return {"PDL": True, "launch_pdl": True} if self.overlap else {"PDL": False}

    def _gemv(
        self, matrix: Matrix, x: Vector, out: Vector, epilogue: str, *, rounds: bool = False, **others: Any
    ) -> None:
        tile = tile_of(matrix, epilogue, rounds)
        launch(matrix, x, out, epilogue, tile, rounds=rounds, epsilon=self.epsilon, overlap=self.overlap, **others)

    def _residual(self, part: Part, x: Vector, rounds: bool) -> Tensor:
        """Add a product to the residual stream; returns the part of ``squares`` that holds the sums of its squares."""
        squares = self.squares[: programs(part.out, "residual", rounds)]
        out = {"hidden": self.hidden, "gain": part.next_gain, "out_squares": squares}
        self._gemv(part.out, x, self.normed_in, "residual", rounds=rounds, **out)
        return squares

    def advance(self, *, chooses: bool) -> None:
        """Put the embedding of the token that won, or of the one at ``position``, on the residual stream."""
        import triton

        from slimexp.decode import triton_attention

        size, heads, parts = len(self.hidden), self.best.shape[1], len(self.squares_in)
        triton_attention.advance[(1,)](
            self.best, self.tokens, self.position, self.embedding, self.first_gain, self.cosine, self.sine, self.angles,
            self.hidden, *self.normed_in.written(self.parts[0].into.packed), self.squares_in,
            SIZE=size, SIZE_UP=triton.next_power_of_2(size),
            PROGRAMS=heads, PROGRAMS_UP=triton.next_power_of_2(heads),
            PARTS=parts, PARTS_UP=triton.next_power_of_2(parts), HALF=self.width // 2,
            CHOOSES=chooses, num_warps=8, **self._overlapped(),
        )  # fmt: skip
