"""From a budget to a model: choices per block, their losses and costs, the shapes that fit, and their trials."""
