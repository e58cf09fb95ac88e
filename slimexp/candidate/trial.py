"""Trials of candidates: ordinary trainings, on any pool of the sweeper, whose finished stages are not done twice."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from slimexp.candidate.bits import bit_settings
from slimexp.candidate.choice import Candidate, Choices, Place, units_of
from slimexp.host.progress import counted
from slimexp.model.base import Family
from slimexp.model.widths import RANKS
from slimexp.sweeper.worker import Job, Pool

OF_SEARCH = ("budget.", "search.", "hydra/sweeper/pool@search.")  # overrides that a training does not know


@dataclass(frozen=True)
class Stages:
    """Names of the stages of a run's pipeline that a search sets.

    Attributes:
        cut: The stage that cuts; ``None`` where nothing may be cut.
        quantize: The stage that rounds; ``None`` where nothing may be rounded.
        train: The last stage, which trains.
    """

    cut: str | None
    quantize: str | None
    train: str

    @classmethod
    def of(cls, pipeline: DictConfig) -> "Stages":
        """Find them.

        Raises:
            ValueError: The pipeline is of another form; states the form.
        """
        names = [str(name) for name in pipeline]
        cut = [name for name in names if pipeline[name].get("cut") is not None]
        quantize = [name for name in names if "activation_quantizer" in pipeline[name]]
        trained = [name for name in names if pipeline[name].get("steps")]
        form = [*cut[:1], *quantize[:1], *names[-1:]]
        if names != form or trained != names[-1:] or not (cut or quantize):
            raise ValueError(
                "the pipeline of a search is a stage with a cut and steps=0, one that quantizes with steps=0 (either "
                f"may be left out), and one that trains; got {', '.join(names)}: start from +experiment=search_llama"
            )
        return cls(next(iter(cut), None), next(iter(quantize), None), names[-1])


def overrides(candidate: Candidate, choices: Choices, stages: Stages, outline: Family) -> list[str]:
    """Overrides by which the run's pipeline makes a candidate.

    Args:
        candidate: The candidate.
        choices: What it is chosen from.
        stages: Names of the pipeline's stages.
        outline: The dense model, whose modules are named.
    """
    words = []
    cut: dict[str, Any] = {}
    for stack, kept in candidate.layers(choices.stacks).items():
        if len(kept) < choices.stacks[stack]:
            cut[f"{stack}_layers"] = kept
    widths = units_of(candidate.widths)
    cut |= {name: n for name, n in widths.items() if n != choices.widths[name][0]}
    none = {name: dict.fromkeys(candidate.bits, n) for name, n in widths.items() if n <= 0}
    for name, units in (none | dict(candidate.unlike)).items():
        blocks = {
            stack: [units[Place(stack, index)] for index in kept]
            for stack, kept in candidate.layers(choices.stacks).items()
        }
        cut[name] = {stack: [max(n, 0) for n in each] for stack, each in blocks.items()}
        if min(units.values()) < 0:
            cut[RANKS[name]] = {stack: [max(-n, 0) for n in each] for stack, each in blocks.items()}
    if stages.cut is not None:
        if cut:
            words += [f"pipeline.{stages.cut}.cut.{name}={_word(value)}" for name, value in cut.items()]
        else:
            words.append(f"~pipeline.{stages.cut}")
    if stages.quantize is not None:
        if not candidate.is_rounded:
            words.append(f"~pipeline.{stages.quantize}")
        else:
            settings = bit_settings(candidate, outline, choices.group_sizes[0])
            words += [f"pipeline.{stages.quantize}.{name}={_word(value)}" for name, value in settings.items()]
    return words


def base(arguments: Sequence[str]) -> list[str]:
    """The overrides of a search that are of its trainings as well."""
    return [word for word in arguments if not word.lstrip("+~").startswith(OF_SEARCH)]


def run(pool: Pool, lines: Mapping[int, Sequence[str]], folder: Path, what: str) -> dict[int, dict[str, float]]:
    """Run trainings; finished ones are read from their records.

    Args:
        pool: Where they run.
        lines: Number -> overrides of a training.
        folder: Folder of their logs.
        what: What they are, for their logs and messages.

    Returns:
        Number -> figures of the last stage, of those that did not fail.
    """
    results: dict[int, dict[str, float]] = {}
    waiting = [Job(number, (tuple(words),), folder / f"{what}-{number:03d}.log") for number, words in lines.items()]
    with pool:
        for _ in counted(lines, f"{what} training"):
            while waiting and pool.free:
                pool.submit(waiting.pop(0))
            for job, outcome in pool.finished() if pool.busy else ():
                if outcome.error is None:
                    results[job.number] = outcome.metrics[0]
                else:
                    print(f"FAILED {what} {job.number}: {outcome.error} (all in {job.log})", flush=True)
    return results


def _word(value: Any) -> str:
    """A value as Hydra's grammar has it; names of modules with dots and stars are fine without quotes."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_word(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_word(item) for item in value) + "]"
    return value if isinstance(value, str) else json.dumps(value)
