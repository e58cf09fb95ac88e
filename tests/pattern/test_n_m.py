import pytest
import torch

from slimexp.pattern.n_m import NM


@pytest.mark.fast
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4), (3, 5), (1, 2)])
def test_exactly_n_of_every_m_neighbours_in_a_row(n: int, m: int) -> None:
    scores = torch.rand(6, 40, generator=torch.Generator().manual_seed(0))
    (mask,) = NM(m=m).keep([scores], [torch.ones(6, 40, dtype=torch.bool)], 1 - n / m)
    for row in range(6):
        for start in range(0, 40, m):
            group = slice(start, start + m)
            best = sorted(range(start, start + m), key=lambda i: float(scores[row, i]))[-n:]
            assert mask[row, group].nonzero().flatten().add(start).tolist() == sorted(best)


@pytest.mark.fast
def test_along_a_schedule_a_group_loses_one_after_another() -> None:
    pattern, mask = NM(m=4), torch.ones(3, 8, dtype=torch.bool)
    scores = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))
    counts = []
    for share in (0.0, 0.3, 0.5, 0.8, 1.0):
        (mask,) = pattern.keep([scores], [mask], share * 0.5)
        counts.append(set(mask.reshape(-1, 4).sum(1).tolist()))
    assert counts == [{4}, {3}, {3}, {2}, {2}]


@pytest.mark.fast
def test_what_an_earlier_stage_left_of_a_group_stays_if_it_is_no_more_than_n() -> None:
    alive = torch.tensor([[True, False, False, False, True, True, True, False]])
    (mask,) = NM(m=4).keep([torch.arange(8.0).reshape(1, 8)], [alive], 0.5)
    assert mask.tolist() == [[True, False, False, False, False, True, True, False]]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("m", "sparsity", "nearest"),
    [(4, 0.6, r"0\.5 \(2:4\)"), (4, 0.7, r"0\.75 \(1:4\)"), (4, 0.99, r"0\.75 \(1:4\)"), (8, 0.3, r"0\.25 \(6:8\)")],
)
def test_a_target_between_two_n_names_the_nearest(m: int, sparsity: float, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"a multiple of 1/{m} for groups of m={m}, got {sparsity}: .* is {nearest}"):
        NM(m=m).validate(sparsity)


@pytest.mark.fast
@pytest.mark.parametrize(("m", "sparsity"), [(4, 0.5), (10, 0.3), (10, 0.7), (3, 2 / 3), (7, 0.571429), (4, 0)])
def test_a_target_that_leaves_whole_weights_is_fine(m: int, sparsity: float) -> None:
    NM(m=m).validate(sparsity)


@pytest.mark.fast
def test_wrong_sizes() -> None:
    with pytest.raises(ValueError, match="m must divide the length of a row, got 4 for rows of 6"):
        NM(m=4).split(torch.zeros(4, 6))
    with pytest.raises(ValueError, match="m must be >= 2 neighbours, got 1"):
        NM(m=1)
