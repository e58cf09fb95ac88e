"""A stage that learns from what is kept of its teacher."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Any]


@pytest.fixture(scope="session")
def keep() -> Make:
    """Prepared stage and folder -> what was found in the cache there; the stage then has no teacher any more."""
    import torch

    from slimexp.teacher_cache.cached import CachedTeacher
    from slimexp.teacher_cache.fill import TeacherPass, look_up
    from slimexp.teacher_cache.store import Store

    def keep(stage: Any, folder: Path) -> Any:
        teacher, student = stage.teacher_family, stage.family
        form = stage.cache.form(teacher, student)
        store = Store(folder, form.settings())

        def batches() -> Any:
            return stage.batches(0, stage.steps * stage.accumulate, workers=0, unseen=True)

        with store.alone():
            found = look_up(store, batches())
            if found.lacking:
                TeacherPass(store, form, teacher, student, device=torch.device("cpu")).run(batches(), found)
        stage.teacher_family, stage.cached = None, CachedTeacher(store, form)
        return found

    return keep


@pytest.fixture
def stage(tiny: Make, technique: Make, corpus: Make) -> Make:
    """Form, task (and values) -> a prepared distillation whose teacher is another model."""
    import torch

    def make(form: str | None, task: str = "causal_lm", *overrides: str, **values: Any) -> Any:
        lines = [] if form is None else [f"+teacher_cache@pipeline.distill.cache={form}"]
        made = technique("distill", *lines, *overrides, **{"steps": 4} | values)
        teacher = tiny(task)
        with torch.no_grad():
            for parameter in teacher.model.parameters():
                parameter.mul_(1.5)
        made.prepare(tiny(task), corpus(task), teacher)
        return made

    return make
