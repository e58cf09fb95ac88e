"""Loading, families, tokenizers and execution of transformers models."""
