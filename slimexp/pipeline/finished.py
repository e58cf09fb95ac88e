"""Which stages need not be done again."""

import os
from collections.abc import Sequence

from slimexp.file.integrity import Damaged
from slimexp.record.stage import Stage
from slimexp.serialization import manifest


def is_finished(stage: Stage) -> bool:
    """Whether the stage's artifact is there and whole; a damaged one is set aside."""
    if not os.path.lexists(stage.artifact):
        return False
    try:
        manifest.check(stage.artifact, key=stage.key)
    except Damaged as error:
        stage.set_aside(stage.artifact, error)
        return False
    return True


def is_there(stage: Stage, stages: Sequence[Stage]) -> bool:
    """Whether the stage's artifact is there, with what the stages after it go on from where they are not.

    Args:
        stage: The stage.
        stages: All stages of the run.
    """
    if not is_finished(stage):
        return False
    following = [later for later in stages if later.parent == stage.key]
    return manifest.goes_on(stage.artifact) or all(is_there(later, stages) for later in following)


def is_last(stage: Stage, stages: Sequence[Stage]) -> bool:
    """Whether none of the stages of its run goes on from the stage."""
    return all(other.parent != stage.key for other in stages)
