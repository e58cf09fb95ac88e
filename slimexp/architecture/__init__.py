"""Where a model type has its heads, neurons, channels, experts and tokens: one short declaration per type."""
