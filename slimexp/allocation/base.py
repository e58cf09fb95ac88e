"""How much sparsity, or how many bits, each layer gets where not all get the same."""
