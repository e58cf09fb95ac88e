"""Movement: weights that training moves away from zero are important."""

from torch import Tensor

from slimexp.importance.base import Learned


class Movement(Learned):
    """``-sum_t g_t w_t`` over optimizer steps t: positive where training makes the weight larger.

    Sanh et al. 2020, "Movement pruning: adaptive sparsity by fine-tuning", equation 3. The paper's scores are
    parameters with a learning rate, which does not change their order under plain gradient descent; they see the
    gradient of masked weights too, which may come back. Here those stay zero unless ``regrow`` wakes them.

    It takes many steps to rise above the noise, above all in a model that is trained already: choose a late schedule
    (``exponential``, or rare updates) and a long ramp.
    """

    def learn(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return -(weight.float() * gradient.float())

    def score(self, weight: Tensor, statistic: Tensor | None = None) -> Tensor:
        assert statistic is not None
        return statistic
