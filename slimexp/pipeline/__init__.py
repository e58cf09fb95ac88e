"""Stages one after the other: what is finished is reused, and what is done is recorded."""
