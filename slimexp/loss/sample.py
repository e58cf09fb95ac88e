"""A sample of a distribution over a vocabulary, from which a divergence is estimated without bias at any temperature.

The likeliest tokens, the *head*, are kept with their probabilities. The rest, the *tail*, is sampled from a proposal
that covers all temperatures T in a range, and a sampled token stands for ``p_T / (n q)`` of its like, where p_T is the
distribution at T, n the number of samples and q the proposal. What p_T is divided by follows from the tail's mass
``sum exp(log p / T)``, kept at Chebyshev nodes of 1/T; between them, how far the sample is off is interpolated.

Anshumann et al. 2025, "Sparse Logit Sampling" (Random Sampling KD, arXiv 2503.16870), show that the top-k is biased and
a sample is not, at T = 1. Here the head is no sample, any T is right, and the student's own distribution serves as a
control variate, which at T = 8 takes most of the noise away.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

RANGE = 128.0  # nats that codes reach over: log-probabilities from 0 downwards
HIGHEST = 16.0  # of the logarithm of a tail's mass, which is that of the vocabulary at most
_PROBABILITY, _MASS = 2, 3  # bytes of a code
_LEAST = 1e-6


@dataclass(frozen=True)
class Layout:
    """How the sample of a label's distribution lies in its bytes: tail masses, ids, log-probabilities, little-endian.

    Attributes:
        vocabulary: Number of tokens that the distribution is over.
        head: Number of likeliest tokens.
        samples: Number of sampled ones.
        nodes: Number of temperatures at which the tail's mass is kept.
        lowest: Lowest temperature.
        highest: Highest temperature.
    """

    vocabulary: int
    head: int
    samples: int
    nodes: int
    lowest: float
    highest: float

    @property
    def id_bytes(self) -> int:
        """Bytes of an id."""
        return 2 if self.vocabulary <= 2**16 else 3

    @property
    def kept_bytes(self) -> int:
        """Bytes of an id and its probability."""
        return self.id_bytes + _PROBABILITY

    @property
    def bytes(self) -> int:
        """Bytes of a label."""
        return _MASS * self.nodes + self.kept_bytes * (self.head + self.samples)

    def inverse_temperatures(self, device: torch.device) -> Tensor:
        """1/T at the nodes, [G], from the lowest T to the highest; made on the device, as a recorded pass must."""
        most, least = 1 / self.lowest, 1 / self.highest
        angles = torch.arange(self.nodes, device=device) * (math.pi / (self.nodes - 1))
        return (most + least) / 2 + (most - least) / 2 * angles.cos()

    def log_proposal(self, log_p: Tensor, tail: Tensor) -> Tensor:
        """Log-probability by which a token of the tail is sampled: a mean over the nodes of the tail at their T.

        Args:
            log_p: Log-probabilities at T = 1, [N, K].
            tail: Logarithm of the tail's mass at the nodes, [N, G].
        """
        inverse = self.inverse_temperatures(log_p.device).to(log_p.dtype)
        total = torch.full_like(log_p, -math.inf)
        for node in range(self.nodes):  # not all at once: the vocabulary is wide
            total = torch.logaddexp(total, log_p * inverse[node] - tail[:, node : node + 1])
        return total - math.log(self.nodes)

    def write(self, ids: Tensor, log_p: Tensor, tail: Tensor, noise: Tensor) -> Tensor:
        """The bytes of samples.

        Codes are rounded up or down at random, so that no probability is off in the mean.

        Args:
            ids: Tokens, the head first, [N, K].
            log_p: Their log-probabilities at T = 1, [N, K].
            tail: Logarithm of the tail's mass at the nodes, [N, G].
            noise: Uniform in [0, 1), [N, K + G].

        Returns:
            uint8 [N, bytes].
        """
        of_mass, of_probability = noise.split([self.nodes, ids.shape[1]], dim=1)
        masses, probabilities = _coded(HIGHEST - tail, _MASS, of_mass), _coded(-log_p, _PROBABILITY, of_probability)
        return torch.cat([masses, _split(ids, self.id_bytes), probabilities], dim=1)

    def read(self, raw: Tensor) -> "Sample":
        """The samples in bytes, uint8 [N, bytes]."""
        count = self.head + self.samples
        sizes = [_MASS * self.nodes, self.id_bytes * count, _PROBABILITY * count]
        masses, ids, probabilities = raw.split(sizes, dim=1)
        return Sample(
            layout=self,
            ids=_joined(ids, self.id_bytes).long(),
            log_p=_joined(probabilities, _PROBABILITY) * -_step(_PROBABILITY),
            tail=HIGHEST - _joined(masses, _MASS) * _step(_MASS),
        )


@dataclass(frozen=True)
class Sample:
    """Samples of N distributions.

    Attributes:
        layout: What they consist of.
        ids: Tokens, the head first, [N, K].
        log_p: Their log-probabilities at T = 1, [N, K].
        tail: Logarithm of the tail's mass at the nodes, [N, G].
    """

    layout: Layout
    ids: Tensor
    log_p: Tensor
    tail: Tensor

    def divergence(self, student: Tensor, temperature: Tensor | float) -> Tensor:
        """Estimates of ``KL(p_T || s_T)``, in nats, [N], unbiased in value and gradient.

        That holds at the temperatures of the nodes; between them as far as the tail's mass is interpolated, which is
        off by less than 1e-4 in the mean.

        The tail is ``sum p log(p / s)``. A sampled token gives ``p log(p / s) - p + c s`` in its place, and the sums
        that are known exactly, ``P`` of the teacher's tail and ``S`` of the student's, make up for it: ``P - c S``.
        Where the student is near, what is left is of second order in the difference. Any c that does not depend on the
        sample keeps the mean; it is ``P / S`` where the heads agree, and falls to 0 as they part.

        Args:
            student: Logits of the student, [N, V].
            temperature: T, within the range of the layout.
        """
        head, samples = self.layout.head, self.layout.samples
        student = F.log_softmax(student[:, : self.layout.vocabulary].float() / temperature, dim=-1)
        log_s = student.gather(1, self.ids)
        log_p, log_q, mass = self._at(temperature)
        ratio, p, s = log_p - log_s, log_p.exp(), log_s[:, :head].exp()
        outside = 1 - s.sum(1)
        control = (mass / outside.clamp(min=_LEAST) * _agreement(p[:, :head], s)).detach()
        weight = (log_p[:, head:] - log_q).exp() / samples
        of_student = (log_s[:, head:] - log_q).exp() / samples
        controlled = weight * (ratio[:, head:] - 1) + control[:, None] * of_student
        return (p[:, :head] * ratio[:, :head]).sum(1) + controlled.sum(1) + mass - control * outside

    def _at(self, temperature: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities at T, [N, K]; those by which sampled tokens are, [N, n]; mass of the tail at T, [N]."""
        head = self.layout.head
        inverse = torch.full((), 1.0, device=self.log_p.device) / temperature
        nodes = self.layout.inverse_temperatures(self.log_p.device)
        scaled, sampled = self.log_p * inverse, self.log_p[:, head:]
        log_q = self.layout.log_proposal(sampled, self.tail)
        known = torch.stack([(sampled * node - log_q).logsumexp(1) for node in nodes.unbind()], dim=1)
        tail = (scaled[:, head:] - log_q).logsumexp(1) + (self.tail - known) @ _lagrange(nodes, inverse)
        total = torch.logaddexp(scaled[:, :head].logsumexp(1), tail)
        return scaled - total[:, None], log_q, (tail - total).exp()


def _agreement(teacher: Tensor, student: Tensor) -> Tensor:
    """How far two heads [N, m] agree, in [0, 1]: 1 - (1 - J)^2, where J is their weighted Jaccard index."""
    shared = torch.minimum(teacher, student).sum(1) / torch.maximum(teacher, student).sum(1).clamp(min=_LEAST)
    return 1 - (1 - shared) ** 2


def _lagrange(nodes: Tensor, at: Tensor) -> Tensor:
    """Weights [G] by which values at ``nodes`` make up the polynomial through them at a place."""
    itself = torch.eye(len(nodes), dtype=torch.bool, device=nodes.device)
    distances = torch.where(itself, 1.0, nodes[:, None] - nodes[None, :])
    return torch.where(itself, 1.0, (at - nodes)[None, :] / distances).prod(1)


def _step(count: int) -> float:
    """Nats from one code of ``count`` bytes to the next."""
    return RANGE / 256**count


def _coded(values: Tensor, count: int, noise: Tensor) -> Tensor:
    """Values [N, K] in nats as codes of ``count`` bytes, uint8 [N, K count], rounded by ``noise`` in [0, 1)."""
    codes = (values.double() / _step(count) + noise).floor()
    return _split(codes.clamp(0, 256**count - 1).long(), count)


def _split(numbers: Tensor, count: int) -> Tensor:
    """Numbers [N, K] as ``count`` bytes each, uint8 [N, K count]."""
    parts = [(numbers >> (8 * place)) & 255 for place in range(count)]
    return torch.stack(parts, dim=-1).flatten(1).to(torch.uint8)


def _joined(raw: Tensor, count: int) -> Tensor:
    """Numbers [N, K] of ``count`` bytes each, int32."""
    parts = raw.to(torch.int32).unflatten(1, (-1, count))
    total = parts[..., 0]
    for place in range(1, count):
        total = total + parts[..., place] * 256**place
    return total
