"""A search: scores of choices, solutions for each budget, whole scores, short trainings, and full ones of the best."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from slimexp import artifact
from slimexp.candidate import basis, cost, trial
from slimexp.candidate.choice import Candidate, Choices, choices
from slimexp.candidate.evolution import evolve
from slimexp.candidate.found import Found, OverAsMeasured, unlike_first
from slimexp.candidate.kept_file import KeptFile
from slimexp.candidate.latency import Stopwatch
from slimexp.candidate.precision import FLOAT
from slimexp.candidate.score import Added, Scorer, own_rows
from slimexp.candidate.settings import budgets, check_rows, check_settings, group_sizes
from slimexp.candidate.solve import Infeasible, Limit, Program, Undecided
from slimexp.candidate.trial import Stages
from slimexp.config.build import build
from slimexp.host.progress import counted, working
from slimexp.measure.base import spread
from slimexp.model.base import Family
from slimexp.pipeline import machine
from slimexp.pipeline.preflight import TrainingParts
from slimexp.sweeper.worker import train

MEASURED = 3  # candidates at most, for each that is trained: where all are over a budget, it is aimed lower
ATTEMPTS = 4  # at a budget that whole models exceed, though their composed costs do not
FOLDER = "search"  # below the run's
_NEW = "give another name=..., or remove the file to make it anew"


class Search:
    """A search over the choices of one model.

    Args:
        cfg: Composed and checked config of the search.
        parts: Its parts as a training.
        arguments: Overrides of the command line.

    Raises:
        ValueError: The search cannot be done; the message says why, and the way out.
    """

    def __init__(self, cfg: DictConfig, parts: TrainingParts, arguments: Sequence[str]) -> None:
        self.cfg, self.settings, self.parts = cfg, cfg.search, parts
        self.arguments = trial.base(arguments)
        self.folder = Path(cfg.runs) / cfg.name / FOLDER
        self.budgets = budgets(cfg.budget)
        self.stages = Stages.of(cfg.pipeline)
        self.device = machine.device(cfg.trainer)
        self.dtype: torch.dtype = getattr(torch, cfg.save_dtype)
        self.quantize = None if self.stages.quantize is None else cfg.pipeline[self.stages.quantize]
        self.cut = None if self.stages.cut is None else cfg.pipeline[self.stages.cut].cut
        check_settings(cfg, self.stages)
        corpus = parts.corpus
        self.graded = spread(len(corpus.splits["validation"]), self.settings.graded, 0)
        graded = [corpus.splits["validation"][index] for index in self.graded]
        self.rows = own_rows(corpus, graded, self.settings.rows, cfg.seed)
        config = parts.source.validate(corpus.task, corpus.labels)
        own, more = group_sizes(cfg, self.stages)
        if more and (outline := parts.source.outline(task=corpus.task, labels=corpus.labels)) is not None:
            check_rows(outline, more)
        self.choices: Choices = choices(
            config,
            remove=self.settings.remove and self.cut is not None,
            heads=self.settings.heads if self.cut is not None else [],
            ffn=self.settings.ffn if self.cut is not None else [],
            hidden=self.settings.hidden if self.cut is not None else [],
            experts=self.settings.experts if self.cut is not None else [],
            bits=self.settings.bits if self.quantize is not None else [FLOAT],
            expert_bits=self.settings.expert_bits,
            multiple=math.lcm(own or 64, *more),
            uniform=self.settings.uniform,
            attention_rank=self.settings.attention_rank,
            ffn_rank=self.settings.ffn_rank,
            group_sizes=[own, *more],
        )
        scored = basis.of_scores(parts.source, self.rows, self.cut, self.quantize, cfg.seed)
        rounded = basis.of_rounding(self.quantize)
        self.scores = KeptFile(self.folder / "scores.json", scored, _NEW)
        self.wholes = KeptFile(self.folder / "whole.json", scored | rounded, _NEW)
        self.megabytes = KeptFile(self.folder / "disk.json", scored | rounded | {"stored type": cfg.save_dtype}, _NEW)
        self.ratios = None
        if any("latency_ms" in limits for limits in self.budgets):
            timed = basis.of_latency(parts.source, cfg.measure.latency, cfg.save_dtype, self.device) | rounded
            self.ratios = KeptFile(self.folder / "latency.json", timed, _NEW)

    def run(self) -> list[Found]:
        """Search for each budget in turn; returns what was found. What cannot be done is refused before any score.

        Raises:
            ValueError: No choice meets a budget, the stages do not fit the smallest model, or no budget has a candidate
                that the solver finds in time and that keeps it as measured. One of several is reported, others go on.
        """
        self._pool()
        smallest = cost.probes(self.choices)[-1]
        with working("trying the stages on the smallest model"):
            self._disk_mb(smallest)
        tables = self._tables(smallest)
        free = Program(self.choices, Added({}))
        for limits in self.budgets:
            free.hold(_limits(limits, tables))
        print(f"search: {len(list(self.choices.changes()))} choices of {len(self.choices.places)} blocks")
        program = Program(self.choices, Added(self.scorer.score(self.choices, self.scores)))
        found: list[Found] = []
        without: list[OverAsMeasured | Undecided] = []
        for limits in self.budgets:
            try:
                found.append(self._solve(program, tables, limits))
            except (OverAsMeasured, Undecided) as error:
                without.append(error)
                if len(self.budgets) > 1:
                    print(f"left out: {error}", flush=True)
        if not found:
            raise without[0]
        if self.settings.promoted:
            self._train(found)
        return found

    @cached_property
    def family(self) -> Family:
        """The dense model, on the device, in float32 on a CPU."""
        corpus = self.parts.corpus
        with working("loading the dense model"):
            family = self.parts.source.load(task=corpus.task, texts=corpus.texts, labels=corpus.labels)
            torch.nn.Module.to(family.model.eval(), self.device)
        return family

    @cached_property
    def scorer(self) -> Scorer:
        """Takes losses."""
        return Scorer(
            self.family,
            self.parts.corpus,
            self.rows,
            cut=self.cut,
            quantize=self.quantize,
            seed=self.cfg.seed,
            ranks=self.choices.ranks,
        )

    @cached_property
    def stopwatch(self) -> Stopwatch:
        """Measures latencies."""
        assert self.ratios is not None
        return Stopwatch(
            self.scorer,
            self.parts.corpus,
            self.cfg.measure.latency,
            pairs=self.settings.pairs,
            device=self.device,
            dtype=self.dtype,
            kept=self.ratios,
        )

    def _tables(self, probe: Candidate) -> dict[str, cost.Table]:
        """Costs of choices, of the kinds that there are budgets of; bytes are held against those of ``probe``."""
        kinds = {name for limits in self.budgets for name in limits}
        tables = {}
        if "parameters" in kinds:
            tables["parameters"] = cost.parameters(self.family, self.choices)
        if "disk_mb" in kinds:
            tables["disk_mb"] = cost.disk(
                self.family,
                self.choices,
                quantize=self.quantize,
                dtype=self.dtype,
                probe=probe,
                probe_mb=self._disk_mb(probe),
            )
        if "latency_ms" in kinds:
            probes = cost.probes(self.choices)
            times = self.stopwatch.milliseconds(probes, "latency of model")
            tables["latency_ms"] = cost.latency(self.choices, {probe: times[str(probe)] for probe in probes})
        return tables

    def _solve(self, program: Program, tables: Mapping[str, cost.Table], most: Mapping[str, float]) -> Found:
        """Candidates of one budget: the solver's, then their offspring; those that are trained are measured whole."""
        found = Found(dict(most))
        print(f"budget: {', '.join(f'{name} {value:g}' for name, value in most.items())}", flush=True)
        aim = dict(most)
        for _ in range(ATTEMPTS):
            limits = _limits(aim, tables)
            try:
                solutions = program.solve(limits, most=self.settings.solutions, apart=self.settings.apart)
            except Infeasible:
                break  # of the lower aim: the budget itself was held before
            found.solved = [candidate for candidate, _ in solutions]
            whole = {c: self._whole(c) for c, _ in counted(solutions, "whole score of solution")}
            whole = evolve(
                whole,
                self.choices,
                fits=lambda c: all(program.cost(c, limit.price) <= limit.most for limit in limits),  # noqa: B023
                loss=self._whole,
                steps=self.settings.steps,
                seed=self.cfg.seed,
            )
            found.losses = dict(sorted(whole.items(), key=lambda item: item[1]))
            found.added = {c: program.cost(c, program.loss) for c in whole}
            found.composed = {c: {limit.name: program.cost(c, limit.price) for limit in limits} for c in whole}
            measured = self._keeping(found, program, tables)
            if measured >= 1 or not found.costs:
                return found
            over = {name: min(costs[name][1] / most[name] for costs in found.costs.values()) for name in most}
            aim = {name: aim[name] / max(1.0, over[name]) for name in aim}
        raise OverAsMeasured(most)

    def _whole(self, candidate: Candidate) -> float:
        """Loss of a candidate, everything at once; one that is in the file is not computed again."""
        name = str(candidate)
        if name not in self.wholes.numbers:
            self.wholes.add(name, self.scorer.whole(candidate))
        return self.wholes.numbers[name]

    def _keeping(self, found: Found, program: Program, tables: Mapping[str, cost.Table]) -> int:
        """Measure candidates, best first, until enough keep the budgets; those that do not are dropped."""
        kept = 0
        found.costs, found.over = {}, {}
        for candidate in unlike_first(found.losses):
            if kept >= self.settings.trials or len(found.costs) >= MEASURED * self.settings.trials:
                break
            costs = {name: self._costs(candidate, name, program, tables) for name in found.limits}
            found.costs[candidate] = costs
            if all(measured <= found.limits[name] for name, (_, measured) in costs.items()):
                kept += 1
            else:
                found.over[candidate] = found.losses.pop(candidate)
        return kept

    def _costs(
        self, candidate: Candidate, name: str, program: Program, tables: Mapping[str, cost.Table]
    ) -> tuple[float, float]:
        """Composed and measured cost of a candidate."""
        composed = program.cost(candidate, tables[name])
        if name == "disk_mb":
            return composed, self._disk_mb(candidate)
        if name == "latency_ms":
            return composed, self.stopwatch.milliseconds([candidate], "latency of candidate")[str(candidate)]
        return composed, composed

    def _disk_mb(self, candidate: Candidate) -> float:
        """Megabytes of a candidate's artifact, which is written and removed; those in the file are not taken again."""
        name = str(candidate)
        if name not in self.megabytes.numbers:
            with self.megabytes.beside() as folder:
                artifact.save(self.scorer.realized(candidate), Path(folder) / "model", dtype=self.dtype, stages=[])
                self.megabytes.add(name, cost.artifact_mb(Path(folder) / "model"))
        return self.megabytes.numbers[name]

    def _train(self, found: Sequence[Found]) -> None:
        """Short trainings of the best candidates of all budgets, then full ones of the best of those."""
        short = [
            *self._shortened(),
            "measure.task.split=validation",
            f"measure.task.limit={self.settings.graded}",
            "measure.task.seed=0",
        ]
        best = {c for one in found for c in self._tried(one)}
        figures: dict[Candidate, dict[str, float]] = {}
        failed: dict[Candidate, str] = {}
        if self.settings.trials > self.settings.promoted:
            figures = self._trainings(sorted(best, key=str), short, "short")
            failed = dict.fromkeys(best - figures.keys(), "short")
        headline, sign = self.parts.corpus.headline, 1 if self.parts.corpus.direction == "min" else -1
        chosen: dict[Candidate, None] = {}
        for one in found:
            one.trained = {c: figures[c] for c in one.losses if c in figures}
            ranked = sorted(one.trained, key=lambda c: sign * one.trained[c][headline]) or self._tried(one)
            chosen |= dict.fromkeys(ranked[: self.settings.promoted])
        full = self._trainings(sorted(chosen, key=str), [], "full")
        failed |= dict.fromkeys(chosen.keys() - full.keys(), "full")
        for one in found:
            one.promoted = {c: full[c] for c in one.losses if c in full}
            one.failed = {c: failed[c] for c in one.losses if c in failed}

    def _shortened(self) -> list[str]:
        """Overrides of the last stage by which it is a share as long, its warmup too."""
        stage, share = f"pipeline.{self.stages.train}", self.settings.share
        node = self.cfg.pipeline[self.stages.train]
        words = [f"{stage}.steps={max(1, round(share * node.steps))}"]
        warmup = (node.lr_scheduler or {}).get("num_warmup_steps")
        if isinstance(warmup, int):
            words.append(f"{stage}.lr_scheduler.num_warmup_steps={round(share * warmup)}")
        return words

    def _tried(self, one: Found) -> list[Candidate]:
        """Candidates that are trained: those that were measured and keep the budgets."""
        return [candidate for candidate in one.costs if candidate in one.losses]

    def _trainings(self, candidates: Sequence[Candidate], more: Sequence[str], what: str) -> dict[Candidate, Any]:
        lines = {
            number: ["measure_all=false", *self.arguments, *self._overrides(candidate), *more]
            for number, candidate in enumerate(candidates)
        }
        figures = trial.run(self._pool(), lines, self.folder, what)
        return {candidate: figures[number] for number, candidate in enumerate(candidates) if number in figures}

    def _pool(self) -> Any:
        """Where trainings run; nothing starts before it is entered."""
        at_once = self.settings.workers or (min(2, torch.get_num_threads()) if self.device.type == "cpu" else 1)
        threads = self.settings.threads or max(1, torch.get_num_threads() // at_once)
        return build(self.settings.pool)(workers=at_once, threads=threads, prepare=train)

    def _overrides(self, candidate: Candidate) -> list[str]:
        return trial.overrides(candidate, self.choices, self.stages, self.family)


def _limits(most: Mapping[str, float], tables: Mapping[str, cost.Table]) -> list[Limit]:
    return [Limit(name, value, tables[name]) for name, value in most.items()]
