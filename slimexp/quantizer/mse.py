"""MSE: the grid of least squared error."""

from slimexp.quantizer.least_error import LeastError


class Mse(LeastError):
    """Grid for weights, or a range for activations, searched for in every forward pass until it is frozen.

    Costs ``candidates`` roundings per grid: in training, choose ``freeze``.
    """
