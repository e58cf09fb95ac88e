"""How many rows of text a command has: one line at its start, and a warning where figures would be chance."""

import logging

from slimexp.data.base import HELD_OUT, Corpus

log = logging.getLogger(__name__)

FEWEST = 30  # held-out rows: the 95 % interval of a share of 30 rows is as wide as 0.36 at its widest


def tell(corpus: Corpus) -> None:
    """Print the number of rows of each split, and warn of held-out splits with fewer than 30."""
    counts = {split: len(corpus.splits[split]) for split in ("train", *HELD_OUT)}
    print(f"rows of text: {', '.join(f'{count:,} {split}' for split, count in counts.items())}", flush=True)
    if few := [f"{counts[split]} of {split}" for split in HELD_OUT if counts[split] < FEWEST]:
        log.warning(
            "fewer than %d held-out rows (%s): what is measured on them is mostly chance; give more text, or a larger "
            "share of it (data.splits.held_out, for what is taken out of train)",
            FEWEST,
            " and ".join(few),
        )
