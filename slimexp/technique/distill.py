"""Teacher-student distillation, where the student may be cut out of the incoming model."""

from collections.abc import Mapping, Sequence
from typing import Unpack

from torch import nn
from transformers import PreTrainedConfig

from slimexp.architecture.base import HIDDEN
from slimexp.calibration.observe import visiting
from slimexp.cut.keep import CALIBRATION_ROWS, Keep, cut_stacks
from slimexp.data.base import Corpus
from slimexp.loss.base import Stacks
from slimexp.model.attention import stacks
from slimexp.model.base import Family
from slimexp.technique.batches import training_batches
from slimexp.technique.choice import kept
from slimexp.technique.finetune import Finetune
from slimexp.technique.training import Training
from slimexp.weight.attachment import check_bare


class Distill(Finetune):
    """Train a student on its teacher's outputs (Hinton et al. 2015, "Distilling the knowledge in a neural network").

    Args:
        cut: What the student keeps of the incoming model; ``None`` trains that model as it is.
        training: See ``Training``.
    """

    def __init__(self, *, cut: Keep | None, **training: Unpack[Training]) -> None:
        super().__init__(**training)
        self.cut = cut

    @property
    def maps_weights(self) -> bool:
        return self.cut is None

    @property
    def removes(self) -> bool:
        return self.cut is not None

    @property
    def leaves_unlike(self) -> bool:
        return self.cut is not None and self.cut.is_unlike

    @property
    def cuts(self) -> Mapping[str, int | None]:
        if self.cut is None:
            return {}
        sizes = {**self.cut.divisors, HIDDEN: self.cut.hidden}
        return {width: units for width, units in sizes.items() if units is not None}

    def validate(self, config: PreTrainedConfig, before: Sequence[Finetune]) -> None:
        if self.cut is not None:
            self.cut.validate(config)
            if self.cut.hidden is not None and self.needs_width:
                raise ValueError(
                    "a loss on hidden states needs the teacher's width: set projection=true of the loss, or leave out "
                    "the loss or cut.hidden"
                )

    def student_stacks(self, incoming: Family) -> Stacks:
        whole = stacks(incoming)
        return whole if self.cut is None else cut_stacks(whole, self.cut, incoming.model.config)

    def prepare(self, family: Family, corpus: Corpus, teacher: Family | None) -> None:
        if self.cut is not None:
            check_bare(family.model)
            family = self._student(self.cut, family, corpus)
        super().prepare(family, corpus, teacher)

    def _student(self, cut: Keep, family: Family, corpus: Corpus) -> Family:
        """The smaller model, whose units are chosen on the device that trains it."""
        batches = training_batches(
            corpus,
            family,
            batch_size=CALIBRATION_ROWS,
            seed=self.seed,
            start=0,
            stop=cut.calibration_batches,
            workers=0,
        )
        home = family.device
        with visiting(family.model, self._device_for(family)):
            retained = kept(self.choice, lambda: cut.choice(family, batches), family.device)
            student = cut.applied(family, retained, cut.maps(family, batches))
        nn.Module.to(student.model, home)
        return student
