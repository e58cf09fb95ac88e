"""The mirror in Weights & Biases, and curves in plain files."""
