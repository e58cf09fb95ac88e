"""Where zeros may be."""
