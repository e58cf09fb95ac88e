"""Layers, heads, neurons and words leave a model."""
