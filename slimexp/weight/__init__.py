"""Masks and fake-quantizers on weights."""
