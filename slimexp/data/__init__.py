"""Corpora: three shipped ones, datasets of the Hugging Face hub, and files."""
