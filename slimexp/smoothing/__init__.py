"""Scales moved between weights and inputs before both are rounded: AWQ, SmoothQuant."""
