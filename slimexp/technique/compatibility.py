"""Checks that the stages of a pipeline fit the model and each other, before anything is trained."""

import math
from collections.abc import Callable, Mapping, Sequence

from transformers import PreTrainedConfig

from slimexp.architecture.model_type import architecture_of, size
from slimexp.cut.shape import HEADS, HIDDEN, KV_HEADS, WIDTHS, readers, row_length
from slimexp.data.base import Corpus
from slimexp.model.base import Family, Source
from slimexp.model.experts import stacks
from slimexp.model.history import History
from slimexp.technique.finetune import Finetune


def check_order(techniques: Mapping[str, Finetune], history: History) -> None:
    """Refuse stages that lack what they need of those before them, by what each declares (see ``Contract``).

    Any other order, subset and repetition can be trained.

    Args:
        techniques: The stages by name, in order.
        history: What was done to the run's model before.

    Raises:
        ValueError: Names the stage, the one before that it cannot follow, and the way out.
    """
    stages = list(techniques.items())
    for position, (name, technique) in enumerate(stages):
        before = dict(stages[:position])
        if technique.removes:
            _check_bare(name, before, history)
        if (
            technique.removes
            and not technique.renumbers
            and (first := _last(before, lambda stage: stage.leaves_unlike))
        ):
            raise ValueError(
                f"pipeline.{first} leaves blocks of unlike widths, from which pipeline.{name} cannot remove more: move "
                f"it before pipeline.{first}, or let that leave the same everywhere"
            )
        if technique.renumbers and (first := _last(before, lambda stage: stage.renumbers)):
            raise ValueError(
                f"pipeline.{first} has removed the tokens that training text does not use, none is left for "
                f"pipeline.{name}: leave it out"
            )
        if technique.needs_width and technique.teacher is None and (first := _last(before, _changes_width)):
            raise ValueError(
                f"a loss of pipeline.{name} compares hidden states with the dense model's, and pipeline.{first} may "
                f"leave another width: leave hidden out of pipeline.{first}, or set projection=true of the loss"
            )
        _check_sizes(name, technique, before)


def _check_bare(name: str, before: dict[str, Finetune], history: History) -> None:
    """Refuse to take parts out of weights on which something sits."""
    if first := _last(before, lambda stage: stage.attaches):
        where, way_out = f"pipeline.{first}", f"move pipeline.{name} before it"
    elif history.attachments:
        where, way_out = "the run's model", "start from the model before those"
    else:
        return
    raise ValueError(
        f"removal comes first: masks and quantizers of {where} would not survive pipeline.{name}; {way_out}"
    )


def _check_sizes(name: str, technique: Finetune, before: Mapping[str, Finetune]) -> None:
    """Refuse a cut that would leave more units than an earlier one has left."""
    for width, units in technique.cuts.items():
        for first, stage in before.items():
            left = stage.cuts.get(width)
            if units is not None and left is not None and units > left:
                raise ValueError(
                    f"pipeline.{name} keeps {units} ({width}), and pipeline.{first} leaves {left}: keep fewer"
                )


def _changes_width(stage: Finetune) -> bool:
    return HIDDEN in stage.cuts


def _last(stages: dict[str, Finetune], holds: Callable[[Finetune], bool]) -> str | None:
    """Name of the last stage of which ``holds`` is true."""
    return next((name for name in reversed(stages) if holds(stages[name])), None)


def check_stages(
    techniques: Mapping[str, Finetune], source: Source, corpus: Corpus, config: PreTrainedConfig
) -> dict[str, int]:
    """Show the model's layers to the stages that meet them unchanged, and align the rows that others leave.

    Args:
        techniques: The stages by name, in order.
        source: Gives the run's model.
        corpus: Its task and labels shape the model's head.
        config: Configuration of the run's model.

    Returns:
        Stage -> row multiple that later stages require of it, as ``align_rows`` returns it.

    Raises:
        ValueError: A stage cannot compress the layers; names it and the way out.
    """
    outline = None
    if any(technique.alters for technique in techniques.values()):
        outline = source.outline(task=corpus.task, labels=corpus.labels)
    if outline is not None:
        stages = list(techniques.values())
        for position, technique in enumerate(stages):
            technique.adapt_rows(outline, _known_lengths(outline, stages[:position], config))
        for technique in stages:
            technique.inspect(outline)
            if technique.alters and not technique.attaches:
                break  # later stages meet another model
    return align_rows(techniques, config, outline)


def align_rows(techniques: Mapping[str, Finetune], config: PreTrainedConfig, outline: Family | None) -> dict[str, int]:
    """Have stages that change widths leave rows that the stages after them can divide.

    Groups of quantization, n:m patterns and blocks need rows of certain multiples. A stage that chooses its widths
    (structured pruning) is required to choose multiples; the widths of one that has them fixed (a cut) are checked.

    Args:
        techniques: The stages by name, in order.
        config: Configuration of the run's model.
        outline: That model on the meta device; ``None`` where there is none.

    Returns:
        Stage -> what its widths are a multiple of for the sake of later stages; stages without such a requirement are
        left out.

    Raises:
        ValueError: Rows that a stage leaves, or that no stage changes, do not divide; names the stages and the way out.
    """
    stages = list(techniques.items())
    required: dict[str, int] = {}
    for position, (name, technique) in enumerate(stages):
        needs = {later: stage.row_multiple for later, stage in stages[position + 1 :] if stage.row_multiple > 1}
        if not technique.cuts or not needs:
            continue
        multiple = math.lcm(*needs.values())
        for width, units in technique.cuts.items():
            if units is not None and row_length(config, width, units) % multiple:
                _refuse(name, width, row_length(config, width, units), needs, config, unlike=technique.leaves_unlike)
        if None in technique.cuts.values():
            technique.require_row_multiple(multiple)
            try:
                technique.validate(config, before=[stage for _, stage in stages[:position]])
            except ValueError as error:
                wish = " and ".join(f"pipeline.{later}{_asking(techniques[later], needs[later])}" for later in needs)
                raise ValueError(f"{wish} cannot be met after pipeline.{name}: {error}") from error
            required[name] = multiple
    for position, (_, technique) in enumerate(stages if outline is not None else ()):
        before = [stage for _, stage in stages[:position]]
        if technique.row_multiple > 1 and any(stage.removes for stage in before):
            assert outline is not None
            technique.inspect_rows(outline, set[str]().union(*(_readers(outline, stage) for stage in before)))
    return required


def _asking(technique: Finetune, multiple: int) -> str:
    """What of a stage asks for rows of a multiple: ``.group_size=64``, where it is that."""
    return (
        f".group_size={multiple}" if technique.quantizes else f", whose pattern needs rows of multiples of {multiple},"
    )


def _known_lengths(outline: Family, before: Sequence[Finetune], config: PreTrainedConfig) -> dict[str, int]:
    """Layers whose rows the stages ``before`` cut to a length that is configured -> that length."""
    return {
        name: row_length(config, width, units)
        for stage in before
        for width, units in stage.cuts.items()
        if units is not None
        for name in _reading(outline, width)
    }


def _reading(outline: Family, width: str) -> set[str]:
    """Layers, and stacks of experts, whose rows get longer with ``width``."""
    axes, architecture = (HEADS, KV_HEADS) if width == HEADS else (width,), architecture_of(outline.model.config)
    experts = {name for name in stacks(outline) if architecture.of(name)[-1] in axes}
    return experts.union(*(readers(outline.model, axis) for axis in axes))


def _readers(outline: Family, technique: Finetune) -> set[str]:
    """Layers whose rows change their length when ``technique`` cuts."""
    return {name for width in technique.cuts for name in _reading(outline, width)}


def _refuse(
    stage: str, width: str, length: int, needs: Mapping[str, int], config: PreTrainedConfig, *, unlike: bool
) -> None:
    """Refuse rows of a length, or, where blocks are ``unlike``, of lengths that it is the greatest divisor of."""
    later, multiple = next((later, need) for later, need in needs.items() if length % need)
    below, above = length // multiple * multiple, -(-length // multiple) * multiple
    axis = architecture_of(config).groups if width == HEADS else width
    most = row_length(config, width, size(config, axis)) if width in WIDTHS else above
    nearest = dict.fromkeys(str(rows) for rows in (below, above) if 0 < rows <= most)
    rows = f"rows whose lengths have the divisor {length} in common" if unlike else f"rows of {length}"
    raise ValueError(
        f"pipeline.{stage} leaves {rows} ({width}), and pipeline.{later} needs multiples of {multiple}: "
        f"let {stage} keep {' or '.join(nearest) if nearest and not unlike else f'multiples of {multiple}'}, or choose "
        f"another group for {later}"
    )
