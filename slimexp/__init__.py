"""slimexp: experiment-tracked compression of transformer models."""

__version__ = "0.1.0"
