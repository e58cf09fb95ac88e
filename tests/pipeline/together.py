"""One of the processes that train together: runs command lines one after the other; see ``test_devices``."""

import json
import os
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch


class Stop(Exception):
    """Ends a training in its midst."""


def no_memory(_: Any) -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory")


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run a command line; returns its metrics, or the error that it ended with.

    ``stop``, the number of a batch, ends its training there. ``alone``: only the first process runs it. ``rows``: more
    do not fit in the memory of the second process. ``recorded``: passes are, and what they ended with says how many
    were replayed in all.
    """
    from slimexp.config.check import check
    from slimexp.config.composition import compose
    from slimexp.host import process_group
    from slimexp.pipeline.checkpoint import Checkpoint
    from slimexp.pipeline.pipeline import Pipeline
    from slimexp.pipeline.trainer import Trainer
    from slimexp.technique import step_graphs
    from slimexp.technique.objective import Objective
    from tests.technique.tape import TapeRecorder

    start, evaluate = Checkpoint.on_train_batch_start, Objective.__call__

    def stopping(self: Checkpoint, *of_batch: Any) -> None:
        start(self, *of_batch)
        if of_batch[-1] == job["stop"]:
            raise Stop

    def failing(self: Objective, batch: Any, progress: float) -> Any:
        total, terms = evaluate(self, batch, progress)
        if total.requires_grad and len(batch["labels"]) > job["rows"]:
            total.register_hook(no_memory)
        return total, terms

    try:
        with ExitStack() as context:
            if job["alone"]:
                context.enter_context(process_group.alone())
                context.enter_context(patch.dict(os.environ))
                for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
                    del os.environ[name]
            if job["rows"] and process_group.rank() == 1:
                context.enter_context(patch.object(Objective, "__call__", failing))
            if job["recorded"]:
                context.enter_context(patch.object(step_graphs, "CudaRecorder", TapeRecorder))
                context.enter_context(patch.object(Trainer, "_records", lambda *_: True))
            if job["stop"]:
                context.enter_context(patch.object(Checkpoint, "on_train_batch_start", stopping))
            cfg = compose(job["arguments"])
            check(cfg)
            metrics = Pipeline(cfg, overrides=[]).run()
            return {"metrics": metrics, "replays": TapeRecorder.replays}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}


def main(jobs: Path, backend: str) -> None:
    """Run every job of a JSON list; what a job ends with is written to its ``result``, with the process's number."""
    import torch

    from slimexp.host import process_group
    from slimexp.pipeline.launch import meeting

    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with process_group.joined(backend, meeting()):
        rank = process_group.rank()
        for job in json.loads(jobs.read_text()):
            outcome = {} if job["alone"] and rank else run(job)
            Path(f"{job['result']}.{rank}").write_text(json.dumps(outcome))
            process_group.all_gather(None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
