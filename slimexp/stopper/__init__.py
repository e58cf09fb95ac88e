"""Which trials of a sweep end early."""
