"""A process that trains on another device what the first process trains on its own: see ``pipeline.launch``."""

import os
import pickle
import signal
import sys
import threading
import traceback


def main() -> None:
    """Run the pipeline that comes in on stdin; what goes wrong is the last line on stderr."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the first process heeds them, and this one ends with it
        signal.signal(number, signal.SIG_IGN)
    cfg, overrides = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_first, daemon=True).start()
    from slimexp.config.explanation import explain
    from slimexp.pipeline.pipeline import Pipeline

    try:
        Pipeline(cfg, overrides=overrides).run()
    except Exception as error:
        message = explain(error)
        if message is None:
            traceback.print_exc()
        else:
            print(" ".join(message.split()), file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)  # collectives may be under way, which an orderly end would wait for


def _end_with_first() -> None:
    """End when the first process does, in the midst of anything: it holds the other end of stdin and writes no more."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
