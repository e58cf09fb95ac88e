"""What memory and disk a run will take, by the sizes of its models alone, before anything is loaded.

Two figures for every place. The need is what is printed: an estimate, activations included. The least is what no way to
compute avoids (weights, gradients, states of the optimizer): only where that is more than there is, a run is refused.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import nn

from slimexp.data.base import Corpus
from slimexp.measure.base import Measure
from slimexp.model.base import Family, Source, parameter_count
from slimexp.model.layer import latent
from slimexp.pipeline import background_writer, devices, machine
from slimexp.technique.finetune import Finetune
from slimexp.technique.objective import summed

FLOAT = 4  # bytes of a float32
# Numbers that a block keeps of a token for its gradient, in widths of the model (Korthikanti et al. 2022, "Reducing
# activation recomputation in large transformer models", table 2, without the attention scores that no kernel keeps).
KEPT_PER_TOKEN = 17


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a model.

    Attributes:
        weights: Number of weights, tied ones once.
        layers: Number of those in the layers that techniques compress.
        block: Number of those in the largest block.
        width: Numbers of a hidden state.
        blocks: Number of blocks.
        vocabulary: Number of logits of a token; 0 for a classifier.
        stored: Bytes of a stored weight.
    """

    weights: int
    layers: int
    block: int
    width: int
    blocks: int
    vocabulary: int
    stored: int

    @classmethod
    def of(cls, outline: Family, stored: int) -> "Sizes":
        """Sizes of a model on the meta device."""
        config = outline.model.config
        blocks = [block for stack in outline.blocks().values() for block in stack]
        return cls(
            weights=parameter_count(outline.model),
            layers=sum(weight.numel() for weight in set(map(latent, outline.compressible().values()))),
            block=max(map(parameter_count, blocks)),
            width=int(getattr(config, "hidden_size", 0) or getattr(config, "d_model", 0)),
            blocks=len(blocks),
            vocabulary=0 if outline.task == "classification" else int(config.vocab_size),
            stored=stored,
        )


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that a stage takes.

    Attributes:
        host: Of the machine's memory.
        device: Of the memory of each GPU; on a CPU 0, for its part is in ``host``.
        disk: For what stays on the disk, and a checkpoint meanwhile.
        least_host: What cannot be less.
        least_device: What cannot be less.
        parts: What the least is made of, by name.
        copies: Number of times that it holds a whole model: less than one where several devices share it.
    """

    host: int = 0
    device: int = 0
    disk: int = 0
    least_host: int = 0
    least_device: int = 0
    parts: Mapping[str, int] | None = None
    copies: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How stages compute.

    Attributes:
        gpu: Whether on a GPU.
        half: Whether training computes in 16 bits.
        length: Tokens of the longest row.
        shards: Number of devices that weights, gradients and states are spread over.
        recomputed: Whether blocks keep their inputs alone for the gradient.
        devices: Number of devices that a batch is split among.
        processes: Number of those on this machine, each with a process of its own.
        rows_at_once: Most rows in memory at once, on each device; ``None`` for all of a batch.
        logits_at_once: Number of logits in memory at once, of each model; ``None`` for all of a batch.
    """

    gpu: bool
    half: bool
    length: int
    shards: int
    recomputed: bool = False
    devices: int = 1
    processes: int = 1
    rows_at_once: int | None = None
    logits_at_once: int | None = None

    @classmethod
    def of(cls, trainer: DictConfig, device: torch.device, length: int) -> "Setting":
        """By the trainer's settings, on ``device``, for rows of at most ``length`` tokens."""
        return cls(
            gpu=device.type == "cuda",
            half=str(trainer.get("precision")).startswith(("bf16", "16")),
            length=length,
            shards=devices.shards(trainer),
            recomputed=bool(trainer.get("activation_checkpointing")),
            devices=devices.total(trainer),
            processes=devices.per_node(trainer),
            rows_at_once=trainer.get("rows_at_once"),
            logits_at_once=trainer.get("logits_at_once"),
        )


def needs(
    techniques: Mapping[str, Finetune],
    *,
    source: Source,
    dense: Source | None,
    corpus: Corpus,
    setting: Setting,
    save_type: torch.dtype,
    measured: int,
) -> dict[str, Need]:
    """Stage -> what it takes, in order; empty where a model's sizes are not known before it is built.

    Args:
        techniques: Techniques of the stages that are not finished.
        source: The model that the run starts from.
        dense: The dense model, the teacher of those that name none; ``None`` where the run trains it.
        corpus: Shapes the models' heads.
        setting: How stages compute.
        save_type: Type of saved weights.
        measured: Models that measures hold at once; 0 where nothing is measured.
    """

    def sizes_of(model: Source) -> Sizes | None:
        outline = model.outline(task=corpus.task, labels=corpus.labels)
        return None if outline is None else Sizes.of(outline, save_type.itemsize)

    sizes = sizes_of(source) if techniques else None
    if sizes is None:
        return {}
    found = {}
    for name, technique in techniques.items():
        teacher = None
        if technique.consults_teacher:
            chosen = technique.teacher or dense or source
            teacher = sizes if chosen is source else sizes_of(chosen)
        found[name] = of_stage(technique, sizes, setting, teacher=teacher)
    if measured:
        found["measuring"] = of_measures(sizes, gpu=setting.gpu, models=measured)
    return found


def of_run(
    cfg: DictConfig,
    techniques: Mapping[str, Finetune],
    *,
    source: Source,
    dense: Source | None,
    corpus: Corpus,
    measures: Iterable[Measure] = (),
) -> dict[str, Need]:
    """What stages of a run take on the device of ``cfg``; other arguments as of ``needs``."""
    return needs(
        techniques,
        source=source,
        dense=dense,
        corpus=corpus,
        setting=Setting.of(cfg.trainer, machine.device(cfg.trainer), source.max_length),
        save_type=getattr(torch, cfg.save_dtype),
        measured=max((2 if measure.compares else 1 for measure in measures), default=0),
    )


def of_stage(technique: Finetune, sizes: Sizes, setting: Setting, *, teacher: Sizes | None) -> Need:
    """What a stage takes.

    Args:
        technique: Its technique.
        sizes: Sizes of the model that comes in; one that the stage makes smaller is counted whole.
        setting: How it computes.
        teacher: Sizes of the teacher; ``None`` where there is none.
    """
    saved = sizes.stored * sizes.weights + _state(technique, sizes)
    if not technique.steps:
        return _one_shot(technique, sizes, gpu=setting.gpu, disk=saved)
    optimizer = _optimizer_bytes(technique)
    shrinks = bool(technique.cuts) or (technique.alters and not technique.attaches)
    of_teacher = 0 if teacher is None else teacher.weights * (teacher.stored if setting.half else FLOAT)
    weights, state = FLOAT * sizes.weights, round(optimizer * sizes.weights)
    copies = (1 if setting.gpu else setting.processes) / setting.shards
    # A teacher whose outputs are kept (``cache``) is counted too: it is there until all of them are.
    whole = {"weights": weights, "gradients": weights, "optimizer": state, "teacher": of_teacher}
    parts = {name: round(size * copies) for name, size in whole.items()}
    # how small the student will be is not known yet
    least = parts["teacher"] if shrinks else sum(parts.values())
    activations = _activations(technique, sizes, setting, models=1 if teacher is None else 2)
    written = weights + state  # in a checkpoint, which waits in host memory meanwhile unless it is small
    snapshot = written if written >= background_writer.SMALL else 0
    if setting.gpu:
        # Shards are read from mapped files, which processes share, and put together in host memory for a checkpoint.
        loaded = 1 if setting.shards > 1 else setting.processes
        return Need(
            host=max(loaded * (weights + of_teacher), snapshot), device=sum(parts.values()) + activations,
            disk=saved + written, least_device=least, parts=parts, copies=copies,
        )  # fmt: skip
    host = sum(parts.values()) + setting.processes * activations + snapshot
    return Need(host=host, disk=saved + written, least_host=least, parts=parts, copies=copies)


def _activations(technique: Finetune, sizes: Sizes, setting: Setting, *, models: int) -> int:
    """Bytes that the rows on one device take, those of logits of ``models`` models among them."""
    number = FLOAT // 2 if setting.half else FLOAT
    rows = -(-technique.batch_size // setting.devices)
    tokens = min(rows, setting.rows_at_once or rows) * setting.length
    widths = sizes.blocks + KEPT_PER_TOKEN if setting.recomputed else sizes.blocks * KEPT_PER_TOKEN
    logits = tokens * sizes.vocabulary
    # a head that is sharded has the logits of all tokens at once
    if setting.logits_at_once and setting.shards == 1 and summed(technique.named_losses):
        logits //= max(1, -(-logits // setting.logits_at_once))
    # as they are computed, in float32, and their gradient
    return tokens * widths * sizes.width * number + models * (2 * number + FLOAT) * logits


def _one_shot(technique: Finetune, sizes: Sizes, *, gpu: bool, disk: int) -> Need:
    masks = sizes.layers if technique.attaches and not technique.quantizes else 0
    if not technique.keeps_stored_type or sizes.stored >= FLOAT:
        weights = FLOAT * sizes.weights
        return Need(
            host=weights + masks, device=weights if gpu else 0, disk=disk,
            least_host=weights, least_device=0, parts={"weights": weights},
        )  # fmt: skip
    if not technique.attaches:  # the whole model is ranked, and cut
        whole = sizes.stored * sizes.weights if gpu else FLOAT * sizes.weights
        host = sizes.stored * sizes.weights + (0 if gpu else whole)
        return Need(host=host, device=whole if gpu else 0, disk=disk)
    weights = sizes.stored * sizes.layers if technique.changes_weights else 0  # others stay in their file
    at_hand = 3 * FLOAT * sizes.block  # the block, its statistics, and what a layer becomes
    return Need(
        host=weights + masks + (0 if gpu else at_hand), device=at_hand if gpu else 0, disk=disk,
        least_host=weights + masks, parts={"weights": weights, "masks": masks},
    )  # fmt: skip


def of_measures(sizes: Sizes, *, gpu: bool, models: int) -> Need:
    """What measuring takes: ``models`` models in float32."""
    held = models * FLOAT * sizes.weights
    return Need(host=0 if gpu else held, device=held if gpu else 0)


def _state(technique: Finetune, sizes: Sizes) -> int:
    """Bytes of what training resumes from beside the deployable model."""
    if not technique.attaches:
        return 0
    latent = FLOAT if technique.steps or not technique.keeps_stored_type else sizes.stored
    return latent * sizes.weights + (0 if technique.quantizes else sizes.layers)


def _optimizer_bytes(technique: Finetune) -> float:
    """Bytes of the optimizer's state for a weight, found by a step on a small matrix."""
    weight = nn.Parameter(torch.zeros(128, 128))
    weight.grad = torch.zeros_like(weight)
    optimizer = technique._optimizer([{"params": [weight]}], lr=1e-3)
    optimizer.step()
    tensors = [value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)]
    return sum(tensor.nbytes for tensor in tensors if tensor.ndim) / weight.numel()
