"""Size, task, latency, memory, operations and benchmarks of a model."""
