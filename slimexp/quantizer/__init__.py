"""Grids of integers and 8-bit floats, fitted or trained."""
