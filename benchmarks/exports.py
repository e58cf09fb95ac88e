"""Which artifact goes into which format, how right and how fast is it there: a table, every cell by an export.

    python -m benchmarks.exports
    python -m benchmarks.exports --model bert --only onnx openvino
    python -m benchmarks.exports --artifact int4 --untimed    # on a machine that does other work
    python -m benchmarks.exports --toy    # tiny models of random weights, not timed: does it run?

The T5, Llama and BERT of the zoo, each as it is, with a quarter of its parameters removed, in int8 (weights alone, and
the inputs of layers too) and in int4, are made by ``slimexp.pipeline.pipeline`` as ``slimexp.train`` does it, without
training, and written in every format of ``conf/format`` as ``slimexp.export`` does it. The engine of the format is
compared and timed beside PyTorch as every export is. A cell without figures has the number of the reason below the
table: a refusal, or a package that is not installed. Exit status 1 where an export ends by anything else.
"""

import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slimexp.config.composition import CONF_DIR, options

if TYPE_CHECKING:
    from slimexp.format.report import Report

ZOO = {"t5": ("t5_spelling", "spelling"), "llama": ("llama_python_source", "python_source")}
ZOO |= {"bert": ("bert_docstring_topic", "docstring_topic")}  # -> model, data
KINDS: Mapping[str, tuple[str, list[str]]] = {  # artifact -> pipeline, values of its stage
    "dense": ("finetune", []),
    "a quarter removed": ("prune_structured", ["budget.share=0.75"]),
    "int8": ("quantize", ["bits=8", "activation_bits=null"]),
    "int8, inputs too": ("quantize", ["bits=8", "activation_bits=8"]),
    "int4": ("quantize", ["bits=4", "activation_bits=null", "group_size=32"]),
}
TOY = {"prune_structured": ["rows=8", "min_coverage=0.001"], "quantize": ["min_coverage=0.01"], "finetune": []}
# What a format does not take as it is set in conf, and takes so.
ELSE: Mapping[tuple[str, str], list[str]] = {
    ("ctranslate2", "int8, inputs too"): ["compute_type=int8", "tolerance=1"],
}
COLUMNS = ("model", "artifact", "format", "MB", "logits differ by", "as it is run", "tokens", "forward pass", "answer")


class Cell(NamedTuple):
    """What became of an export.

    Attributes:
        report: Its report; ``None`` where there is none.
        reason: Why there is none; empty where there is one.
        settings: Values of the format that are not those of its conf.
        broken: Whether it ended by something that is no refusal.
    """

    report: "Report | None"
    reason: str = ""
    settings: Sequence[str] = ()
    broken: bool = False


Rows = Mapping[tuple[str, str, str], Cell]  # model, artifact, format


class Bench:
    """Makes artifacts and exports them.

    Args:
        folder: Folder for runs and exports.
        toy: Whether models are tiny, of random weights, and nothing is timed.
        timed: Whether the models of the zoo are timed.
    """

    def __init__(self, folder: Path, *, toy: bool, timed: bool = True) -> None:
        self.folder = folder
        self.toy = toy
        self.timed = timed and not toy

    def artifact(self, model: str, kind: str) -> Path:
        """The folder of an artifact that was made now.

        Raises:
            ValueError: The technique refuses the model.
        """
        from slimexp.config.composition import compose
        from slimexp.pipeline.pipeline import Pipeline

        pipeline, values = KINDS[kind]
        stage, name = f"pipeline.{pipeline}", re.sub(r"\W+", "_", f"{model}_{kind}")
        values = [*values, "steps=0", *(TOY[pipeline] if self.toy else [])]
        source = self._toy(model) if self.toy else [f"model={ZOO[model][0]}", f"data={ZOO[model][1]}"]
        overrides = [*source, f"pipeline={pipeline}", *(f"{stage}.{value}" for value in values)]
        overrides += ["logger=none", "measure=[size]", f"runs={self.folder / 'runs'}", f"name={name}"]
        with _silent():
            Pipeline(compose(overrides), overrides=overrides).run()
        return next((self.folder / "runs" / name).glob(f"{pipeline}-*")) / "artifact"

    def _toy(self, model: str) -> list[str]:
        from benchmarks.architectures import MODELS
        from benchmarks.architectures import Bench as Small

        small, dense = Small(self.folder), self.folder / model / "dense"
        if not dense.exists():
            small.save_dense(model)
        data = ["data=files", f"data.path={small.table}", f"data.task={MODELS[model][0]}"]
        return ["model=pretrained", f"model.path={dense}", "model.max_length=32", "trainer=fast", *data]

    def cell(self, artifact: Path, kind: str, name: str) -> Cell:
        """An artifact in a format, or why not."""
        from omegaconf import OmegaConf

        from slimexp.config.build import build
        from slimexp.export import export
        from slimexp.format.base import Artifact

        settings = ELSE.get((name, kind), [])
        node = OmegaConf.merge(OmegaConf.load(CONF_DIR / "format" / f"{name}.yaml"), OmegaConf.from_dotlist(settings))
        try:
            with _silent():
                report = export(Artifact(artifact), build(node), name, self.folder / "export", timed=self.timed)
        except ValueError as error:
            reason = " ".join(str(error).split()).removeprefix(f"{artifact} cannot be exported as {name}: ")
            reason = reason.partition("; these hold it: ")[0]  # the other rows of the table
            return Cell(None, reason, broken="fails on this model" in reason)
        except Exception as error:  # a gap: no export may end so
            return Cell(None, f"{type(error).__name__}: {' '.join(str(error).split())}", broken=True)
        return Cell(report, settings=settings)

    def rows(
        self, models: Sequence[str], formats: Sequence[str], kinds: Sequence[str] = tuple(KINDS)
    ) -> dict[tuple[str, str, str], Cell]:
        """Model, artifact and format -> what became of it; every one is there."""
        rows = {}
        for model in models:
            for kind in kinds:
                try:
                    artifact, why = self.artifact(model, kind), ""
                except ValueError as error:
                    artifact, why = None, f"there is no such artifact: {error}"
                for name in formats:
                    cell = Cell(None, why) if artifact is None else self.cell(artifact, kind, name)
                    rows[model, kind, name] = cell
                    said = cell.reason if cell.report is None else str(cell.report).replace("\n", "; ")
                    print(f"{model}, {kind}, {name}: {said}", flush=True)
        return rows


def markdown(rows: Rows) -> str:
    """The table, and the reasons by their numbers."""
    reasons: dict[str, int] = {}
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for (model, kind, name), cell in rows.items():
        if cell.report is None:
            shown = [name, f"no ({reasons.setdefault(cell.reason, len(reasons) + 1)})", *[""] * 5]
        else:
            shown = [" ".join([name, *cell.settings]), *_figures(cell.report)]
        lines.append(f"| {' | '.join([model, kind, *shown])} |")
    done = sum(cell.report is not None for cell in rows.values())
    listed = [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join([*lines, "", f"{done} of {len(rows)} exports are done. The others say why:", "", *listed])


def _figures(report: "Report") -> list[str]:
    agreement, speed = report.agreement, report.speed
    as_run = "" if report.as_run is None else f"{report.as_run.relative:.1e}"
    tokens = f"{agreement.same_tokens} of {agreement.tokens}" if agreement.tokens else ""
    ratios = [f"{speed[name]:.2f}" if name in speed else "" for name in ("forward_ratio", "tokens_ratio")]
    return [f"{report.disk_mb:.1f}", f"{agreement.relative:.1e}", as_run, tokens, *ratios]


def conditions() -> str:
    """What the figures were taken on."""
    import torch
    import transformers

    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{torch.get_num_threads()} threads on {os.cpu_count()} cores ({torch.backends.cpu.get_cpu_capability()})"
        f"{load}, torch {torch.__version__}, transformers {transformers.__version__}"
    )


@contextlib.contextmanager
def _silent() -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def main() -> int:
    known = options("format")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=known, metavar="FORMAT", help="formats, all by default")
    parser.add_argument(
        "--model", nargs="+", choices=list(ZOO), metavar="MODEL", help="t5, llama, bert; all by default"
    )
    parser.add_argument(
        "--artifact", nargs="+", choices=list(KINDS), metavar="ARTIFACT", help=f"{', '.join(KINDS)}; all by default"
    )
    parser.add_argument("--untimed", action="store_true", help="only whether it is right and how many bytes it has")
    parser.add_argument("--threads", type=int, help="of PyTorch and the engines; torch's own choice unless given")
    parser.add_argument("--toy", action="store_true", help="tiny models, not timed: does it run?")
    parser.add_argument("--out", type=Path, help="file for the table")
    arguments = parser.parse_args()
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), toy=arguments.toy, timed=not arguments.untimed)
        rows = bench.rows(arguments.model or list(ZOO), arguments.only or known, arguments.artifact or list(KINDS))
    text = f"{markdown(rows)}\n\n{conditions()}"
    print(f"\n{text}")
    if arguments.out:
        arguments.out.write_text(text + "\n")
    return int(any(cell.broken for cell in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
