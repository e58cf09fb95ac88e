"""One JSON line per stage, checked when it is written and when it is read."""
