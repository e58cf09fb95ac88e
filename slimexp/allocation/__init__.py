"""Sparsity or bits per layer, chosen by what each layer costs."""
