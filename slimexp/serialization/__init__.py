"""Artifacts on disk: the manifest, packed weights, and reading them back."""
