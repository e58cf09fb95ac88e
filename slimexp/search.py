"""From a budget to a model: ``python -m slimexp.search +experiment=search_llama budget.disk_mb=4``.

Every choice for every block is scored alone, once. A solver then names the shapes that meet the budget with the least
added-up loss; the best are scored again as a whole, and changed in small steps; a few are trained for a short time,
and the best of those in full. Another budget uses the scores again. ``budget.disk_mb=[3,4,6]`` gives a front.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from slimexp.config.check import check
from slimexp.config.command_line import main
from slimexp.config.schema import Search as Schema
from slimexp.config.secret import masked
from slimexp.host.progress import working
from slimexp.record.stage import at_work

if TYPE_CHECKING:
    from slimexp.candidate.found import Found
    from slimexp.candidate.search import Search


def search(cfg: DictConfig) -> None:
    """Check the configuration, search, and report what was found."""
    check(cfg, schema=Schema)
    with working("importing the libraries"):  # torch, only once the config is right
        from slimexp.candidate.report import write
        from slimexp.candidate.search import Search
        from slimexp.candidate.settings import budgets
        from slimexp.pipeline import preflight
        from slimexp.pipeline.launch import silence_others

    silence_others()
    began = time.monotonic()
    budgets(cfg.budget)
    with at_work(Path(cfg.runs)):
        with working("checking the model, the data and the stages"):
            work = Search(cfg, preflight.training(cfg.copy()), masked(HydraConfig.get().overrides.task))
        found = work.run()
    print("\n".join([*lines(work, found), write(work, found, seconds=time.monotonic() - began)]))


def lines(work: "Search", found: Sequence["Found"]) -> Iterator[str]:
    """What was found, budget by budget."""
    from slimexp.candidate.report import answer

    headline = work.parts.corpus.headline
    for one in found:
        yield f"at most {', '.join(f'{name} {value:g}' for name, value in one.limits.items())}:"
        for candidate, figures in one.promoted.items():
            short = one.trained.get(candidate, {}).get(headline)
            after = "" if short is None else f", {short:.4g} after the short training on validation text"
            yield f"  {headline} {figures[headline]:.4g}, disk_mb {figures['disk_mb']:.4g}  {candidate}{after}"
        if not one.promoted and work.settings.promoted:
            yield "  none: every training failed, see above"
        elif not one.promoted:
            candidate = answer(one, headline, work.parts.corpus.direction)
            costs = ", ".join(f"{name} {measured:.6g}" for name, (_, measured) in one.costs[candidate].items())
            yield f"  {candidate}: {costs}, {one.losses[candidate]:.4g} nats per token from dense before any training"
    if any(one.promoted for one in found):
        yield f"python -m slimexp.select {work.cfg.runs} max_size_mb=NUMBER   names a model of all that were trained"


if __name__ == "__main__":
    main(search, "search")
