"""One of the processes that train together: runs command lines one after the other; see ``test_devices``."""

import json
import os
import sys
import traceback
from pathlib import Path


def main(jobs: Path) -> None:
    """Run every job of a JSON list of ``{arguments, result}``; what a job ends with is written to ``result.RANK``."""
    from slimexp.config.check import check
    from slimexp.config.composition import compose
    from slimexp.host import process_group
    from slimexp.pipeline.launch import meeting
    from slimexp.pipeline.pipeline import Pipeline

    rank = os.environ["RANK"]
    with process_group.joined("gloo", meeting()):
        for job in json.loads(jobs.read_text()):
            try:
                cfg = compose(job["arguments"])
                check(cfg)
                outcome = {"metrics": Pipeline(cfg, overrides=[]).run()}
            except Exception as error:
                outcome = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
            Path(f"{job['result']}.{rank}").write_text(json.dumps(outcome))
            process_group.gathered(None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
