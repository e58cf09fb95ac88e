"""Formats of programs that run models without slimexp: written, loaded by the engine itself, and compared."""
