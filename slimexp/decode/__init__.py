"""Decoding at the speed of the memory: one step of a causal LM as a CUDA graph, of few fused kernels where it fits."""
