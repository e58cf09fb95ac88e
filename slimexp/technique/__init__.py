"""Finetuning, pruning, quantization and distillation, each a stage of a pipeline."""
