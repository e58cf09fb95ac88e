"""What stands in for a teacher whose outputs are kept."""

import torch

from slimexp.loss.base import Outputs
from slimexp.model.base import Batch
from slimexp.teacher_cache.base import TAUGHT, Form
from slimexp.teacher_cache.row_key import label_mask, row_keys
from slimexp.teacher_cache.store import Store


class CachedTeacher:
    """A teacher's outputs, by the rows of a batch.

    Args:
        store: Where they are kept.
        form: The form that they are kept in.
    """

    def __init__(self, store: Store, form: Form) -> None:
        self.store = store
        self.form = form

    def taught(self, batch: Batch) -> Batch:
        """A batch on the host, with what is kept of its rows under ``TAUGHT``.

        Raises:
            ValueError: A row is missing.
        """
        return {**batch, TAUGHT: self.store.read(row_keys(batch), label_mask(batch))}

    @torch.no_grad()
    def outputs(self, batch: Batch, *, whole: bool) -> Outputs:
        """Outputs of the teacher on a batch.

        Args:
            batch: As of ``taught``, on the device.
            whole: Whether logits are wanted, not what a head reads.
        """
        return self.form.outputs(batch[TAUGHT]) if whole else Outputs(batch[TAUGHT])

    @property
    def modules(self) -> list[torch.nn.Module]:
        """What is left of the teacher."""
        module = getattr(self.form.head, "module", None)
        return [] if module is None else [module]
