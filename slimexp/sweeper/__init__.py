"""Sweeps: proposals, a journal, and workers anywhere."""
