"""Structured pruning: blocks, heads, neurons, channels and experts go, and a smaller plain model is trained on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, Unpack

from torch import nn
from transformers import PreTrainedConfig

from slimexp.architecture.base import EXPERTS, HEADS, HIDDEN
from slimexp.budget.base import Budget, SearchSpace
from slimexp.budget.solver import Loss, Unreachable, describe, solve
from slimexp.calibration.observe import undisturbed, visiting
from slimexp.cut import shape as shapes
from slimexp.cut.expert_use import token_shares
from slimexp.cut.merge import merge
from slimexp.cut.ranking import MERGE, Ranking, rank
from slimexp.cut.recognition import recognize
from slimexp.cut.remove import remove
from slimexp.cut.shape import AXES, ROW_WIDTHS, WIDTHS, ParameterCounter, Shape, axes_of, lattice, possible
from slimexp.cut.unlike import Unlike, measure_unlike, unlike_axes
from slimexp.data.base import Corpus
from slimexp.host import process_group
from slimexp.importance.base import Gated, Importance, Learned
from slimexp.model.base import Family
from slimexp.model.layer import check_min_coverage
from slimexp.model.widths import class_of, refusal
from slimexp.technique import automatic, expert_removal
from slimexp.technique.automatic import AUTO, Auto, Conditions
from slimexp.technique.batches import calibration_batches
from slimexp.technique.expert_figures import token_figures
from slimexp.technique.finetune import Finetune
from slimexp.technique.simulated_loss import SimulatedLoss, cross_entropy
from slimexp.technique.training import Training
from slimexp.weight.attachment import check_bare

ATTEMPTS = 4  # at a budget whose cost is an estimate


class PruneStructured(Finetune):
    """Remove the least important units until the model meets a budget, then train what is left.

    Every unit is ranked once on training text. How much each axis loses is solved for: the loss of cutting an axis
    alone is measured by running the whole model with units masked; of the shapes that just meet the budget, the
    ``candidates`` whose losses add up to least are run themselves. The loss is the cross-entropy before any training,
    which is not the one after it: candidates that are close may change places. Every block keeps as many heads and
    neurons as every other, and every expert as many of its own, so that plain transformers loads the result; unless
    their numbers may be unlike, which are chosen by what each block loses alone (see ``cut.unlike``).

    Args:
        budget: What the model may cost at most.
        axes: Axes that may be cut: ``layers``, ``heads``, ``ffn``, ``hidden``, ``experts``, ``expert_ffn``; ``None``:
            all of these that a model of this type can lose, and that the budget counts.
        multiple: Number that the heads' channels, the neurons and the channels that stay are a multiple of, on an axis
            that is cut; ``"auto"``: the largest power of two from 8 to 128 that leaves enough sizes to choose from.
        uniform: Whether every block keeps as many heads and neurons; if not, what the solver chooses is their mean.
        importance: Scores the weights that read a unit; blocks go by their influence (see ``block_influence``).
        experts: What experts go by: ``reap`` for their gate value times the norm of their output, ``frequency`` for the
            number of tokens that they see, ``merge`` to join those of like outputs (see ``merge``). A merged mixture is
            weighed against other axes as if its least used experts went.
        norm: How scores of weights become one of a unit: 1 adds them up, 2 is their root of squares.
        rows: Number of rows of training text for the blocks' influence and for losses.
        candidates: Number of shapes that are run; the best is taken.
        min_coverage: Least share of the parameters in tensors that lose something.
        training: See ``Training``.
    """

    def __init__(
        self,
        *,
        budget: Budget,
        axes: Sequence[str] | None,
        multiple: int | Auto,
        uniform: bool,
        importance: Importance,
        norm: float,
        experts: str,
        rows: int,
        candidates: int,
        min_coverage: float,
        **training: Unpack[Training],
    ) -> None:
        super().__init__(**training)
        if axes is not None and not axes:
            raise ValueError("axes must name what may go, e.g. [layers, ffn], or be null for all there is; got none")
        if norm not in (1, 2):
            raise ValueError(f"norm must be 1 or 2, got {norm}")
        expert_removal.check_choice(experts)
        if isinstance(importance, Learned | Gated):
            raise ValueError(
                f"{type(importance).__name__} is learned by training, and structure goes before it: choose activation, "
                "magnitude, wanda, taylor or random"
            )
        for name, value in (("multiple", multiple), ("rows", rows), ("candidates", candidates)):
            if not (isinstance(value, int) and value >= 1) and (name, value) != ("multiple", AUTO):
                raise ValueError(f"{name} must be >= 1, got {value}")
        check_min_coverage(min_coverage)
        self.budget = budget
        self.all_axes = axes is None
        self.axes = list(AXES if axes is None else axes)
        self._multiple = multiple
        self.multiple = 1 if multiple == AUTO else int(multiple)
        self.uniform = uniform
        self.strict = False  # whether a width that keeps all its units must be a multiple as well
        self.required = 1  # multiple that later stages need
        self.importance = importance
        self.norm = float(norm)
        self.experts = experts
        self.rows = rows
        self.candidates = candidates
        self.min_coverage = min_coverage

    @property
    def removes(self) -> bool:
        return True

    @property
    def leaves_unlike(self) -> bool:
        return not self.uniform

    @property
    def keeps_stored_type(self) -> bool:
        return not self.steps

    @property
    def cuts(self) -> Mapping[str, int | None]:
        return dict.fromkeys(width for width in ROW_WIDTHS if width in self.axes)

    def require_row_multiple(self, multiple: int) -> None:
        self.multiple, self.strict, self.required = math.lcm(self.multiple, multiple), True, multiple

    def adapt(self, config: PreTrainedConfig, given: Conditions) -> None:
        super().adapt(config, given)
        self._choose_multiple(config)

    def validate(self, config: PreTrainedConfig, before: Sequence[Finetune]) -> None:
        self._choose_axes(config)
        expert_removal.check_counted(self.budget, self.axes)
        try:
            options = lattice(config, self.axes, multiple=self.multiple, strict=self.strict)
        except ValueError as error:
            later = f", or the group_size or n:m pattern of a later stage, which wants multiples of {self.required}"
            raise ValueError(f"{error}{later if self.strict else ''}") from error
        if not self.uniform:
            unlike_axes(config, options)
        if HIDDEN in self.axes and self.needs_width:
            raise ValueError("a loss on hidden states needs the teacher's width: leave out the loss, or hidden of axes")

    def inspect(self, outline: Family) -> None:
        """Refuse a budget below what the smallest shape costs, where counting tells."""
        if not self.budget.counts:
            return
        counter = ParameterCounter(outline.model)
        options = lattice(outline.model.config, self.axes, multiple=self.multiple, strict=self.strict)

        def count(shape: Shape) -> int:
            """Number of parameters with the first blocks: which will stay is not known yet."""
            return counter.count({stack: range(n) for stack, n in shape.items() if stack not in WIDTHS}, shape)

        cost = self.budget.cost(SearchSpace(family=outline, lattice=options, count=count, build=lambda shape: outline))
        least = {key: sizes[-1] for key, sizes in options.items()}
        if cost(least) > self.budget.limit:
            raise self._out_of_reach(Unreachable(least, cost(least)), outline.model.config)

    def prepare(self, family: Family, corpus: Corpus, teacher: Family | None) -> None:
        check_bare(family.model)
        self._choose_axes(family.model.config)
        self._choose_multiple(family.model.config)
        with visiting(family.model, self._device_for(family)):
            options = lattice(family.model.config, self.axes, multiple=self.multiple, strict=self.strict)
            ranking = rank(
                family,
                self.importance,
                norm=self.norm,
                widths=[word for word, units in options.items() if len(units) > 1],
                batches=lambda rows: calibration_batches(corpus, family, rows=rows, seed=self.seed),
                rows=self.rows,
                objective=lambda batch: cross_entropy(family, batch),
                experts=self.experts,
            )
            loss = SimulatedLoss(family, corpus, rows=self.rows, seed=self.seed)
            if not self.uniform:
                axes = unlike_axes(family.model.config, options)
                found = process_group.by_first(lambda: self._unlike(family, axes, ranking, loss))
                ranking = replace(ranking, unlike=found)
            counter = ParameterCounter(family.model)
            space = SearchSpace(
                family=family,
                lattice=options,
                count=lambda shape: counter.count(ranking.layers(shape), shape),
                build=lambda shape: remove(family, ranking.layers(shape), ranking.retained(shape)),
            )
            shape = process_group.by_first(lambda: self._solve(space, _of_shapes(loss, ranking)))
        if shape == space.whole:
            raise ValueError(
                f"the model costs at most {self.budget.limit:g} {self.budget.unit} as it is, nothing would be removed: "
                "lower the budget"
            )
        self.coverage = {
            "share": counter.touched(ranking.layers(shape), shape),
            "parameters": space.count(shape) / space.count(space.whole),
            **{f"{word}_kept": float(units) for word, units in shape.items()},
            **ranking.figures(shape),
            **token_figures(token_shares(ranking.experts)),
        }
        if self.coverage["share"] < self.min_coverage:
            raise ValueError(
                f"only {self.coverage['share']:.1%} of the parameters are in tensors that lose something, min_coverage "
                f"is {self.min_coverage:.1%}: lower min_coverage or the budget"
            )
        super().prepare(self._smaller(family, ranking, shape), corpus, teacher)

    def _unlike(self, family: Family, axes: Sequence[str], ranking: Ranking, loss: SimulatedLoss) -> dict[str, Unlike]:
        """Axis -> what each block loses with fewer of its units, in steps that the multiple divides."""
        rows = {axis: shapes.row_length(family.model.config, axis, 1) for axis in axes}
        steps = {axis: self.multiple // math.gcd(self.multiple, length) for axis, length in rows.items()}
        return {axis: measure_unlike(family, axis, ranking.units[axis], loss, step) for axis, step in steps.items()}

    def _choose_axes(self, config: PreTrainedConfig) -> None:
        """Where none are configured: all, except the width that a loss compares with the teacher's."""
        recognize(config)
        if self.all_axes:
            counted = self.budget.axes or AXES
            available = [axis for axis in axes_of(config) if axis in counted]
            self.axes = [axis for axis in available or counted if axis != HIDDEN or not self.needs_width]

    def _choose_multiple(self, config: PreTrainedConfig) -> None:
        if self._multiple != AUTO:
            return
        self._choose_axes(config)
        widths = [(width, units) for width, units in shapes.whole(config).items() if width in self.cuts]
        self._multiple = automatic.multiple([shapes.row_length(config, width, units) for width, units in widths])
        self.multiple = math.lcm(self.multiple, self._multiple)
        self.chosen["multiple"] = self._multiple

    def _smaller(self, family: Family, ranking: Ranking, shape: Shape) -> Family:
        layers, retained = ranking.layers(shape), ranking.retained(shape)
        if self.experts == MERGE and EXPERTS in retained:
            return merge(family, layers, retained, ranking.experts)
        return remove(family, layers, retained)

    def finish(self) -> dict[str, float]:
        return self.coverage

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["structure"] = {"config": self.model.config.to_dict(), "coverage": self.coverage}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The shape chosen before the interruption stays: times and sums may differ when they are measured again."""
        super().on_load_checkpoint(checkpoint)
        saved, model = checkpoint["structure"], self.model
        self.coverage = saved["coverage"]
        if saved["config"] != model.config.to_dict():
            config = type(model.config).from_dict(saved["config"])
            self.model = class_of(type(model), config)(config)
            if model.can_generate():
                self.model.generation_config = model.generation_config
            nn.Module.to(self.model, self.device)
            self.family = type(self.family)(self.model, self.family.tokenizer, max_length=self.family.max_length)
            if self.packs:
                with undisturbed(self.family):
                    self.family.packs()  # learns how documents of one row are kept apart

    def _solve(self, space: SearchSpace, loss: Loss) -> Shape:
        """The shape of least loss that meets the budget.

        Raises:
            ValueError: No shape does, or none of the attempts came to the budget as it is measured.
        """
        cost, limit = self.budget.cost(space), self.budget.limit
        for _ in range(ATTEMPTS):
            try:
                shape = solve(
                    space.lattice,
                    cost=cost,
                    limit=limit,
                    loss=loss,
                    candidates=self.candidates,
                    allowed=partial(self._allows, space.family.model.config),
                )
            except Unreachable as error:
                raise self._out_of_reach(error, space.family.model.config) from error
            reached = self.budget.reached(space, shape, cost)
            print(f"{describe(space.whole)} -> {describe(shape)}: {reached:.4g} {self.budget.unit}")
            if reached <= self.budget.limit:
                return shape
            limit *= self.budget.limit / reached
        raise ValueError(
            f"{self.budget.limit:g} {self.budget.unit} was not reached in {ATTEMPTS} attempts, the last came to "
            f"{reached:.4g}: raise the budget, or measure on a quieter machine"
        )

    def _allows(self, config: PreTrainedConfig, shape: Shape) -> bool:
        """Whether a model of a shape can exist, and later stages can do with it."""
        fits = not self.strict or shapes.divides(config, shape, self.axes, self.multiple)
        if not self.uniform and refusal(config, HEADS) is None:  # the config may have more than there are in any block
            shape = {**shape, HEADS: shapes.whole(config)[HEADS]}
        return fits and possible(config, shape)

    def _out_of_reach(self, error: Unreachable, config: PreTrainedConfig) -> ValueError:
        steps, finer = (f" in multiples of {self.multiple}", ", or lower multiple") if self.cuts else ("", "")
        wider = ", add to axes" if self.budget.axes is None else ""
        return ValueError(
            f"a budget of {self.budget.limit:g} {self.budget.unit} cannot be met by cutting {', '.join(self.axes)}"
            f"{steps}; {error}{expert_removal.least(config, self.axes)}: raise the budget{wider}{finer}"
        )


def _of_shapes(loss: SimulatedLoss, ranking: Ranking) -> Loss:
    """Shape -> loss of the model of that shape; each is run once."""

    @cache
    def run(items: tuple[tuple[str, int], ...]) -> float:
        shape = dict(items)
        return loss(ranking.layers(shape), ranking.retained(shape))

    return lambda shape: run(tuple(shape.items()))
