"""DiscretisedLogisticMixture: the sum over components by hand, all values, its own draws, finite differences."""

import itertools

import pytest
import torch
from scipy import stats

from ppl_vae.distributions import DiscretisedLogistic, DiscretisedLogisticMixture


def made(
    batch: tuple[int, ...] = (), places: tuple[int, ...] = (), colours: int = 3, levels: int = 3, components: int = 2
) -> DiscretisedLogisticMixture:
    logits = torch.randn(*batch, components, *places, dtype=torch.float64)
    loc = torch.rand(*batch, components, colours, *places, dtype=torch.float64)
    slope = torch.randn(*batch, components, colours, colours, *places, dtype=torch.float64)
    return DiscretisedLogisticMixture(logits, loc, 0.05 + 0.3 * loc.flip(-1), slope, levels, len(places))


def values(levels: int, colours: int) -> torch.Tensor:
    grid = [i / (levels - 1) for i in range(levels)]
    return torch.tensor(list(itertools.product(grid, repeat=colours)), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_log_prob_by_hand() -> None:
    p, x = made(), torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64)
    assert p.slope is not None
    total = torch.zeros((), dtype=torch.float64)
    for m, weight in enumerate(p.logits.softmax(0)):
        for c in range(3):
            centre = p.loc[m, c] + sum(p.slope[m, c, d] * (x[d] - 0.5) for d in range(c))
            weight = weight * DiscretisedLogistic(torch.as_tensor(centre), p.scale[m, c], 3).log_prob(x[c]).exp()
        total = total + weight
    torch.testing.assert_close(p.log_prob(x), total.log())


@pytest.mark.parametrize(("levels", "colours"), [(3, 3), (256, 1), (17, 2)])
def test_probabilities_of_all_pixels_sum_to_one(levels: int, colours: int) -> None:
    p = made(colours=colours, levels=levels)
    assert p.log_prob(values(levels, colours)).exp().sum().item() == pytest.approx(1.0, abs=1e-10)


def test_draws_have_the_probabilities() -> None:
    """Chi-squared over the 27 pixels, at two batch rows and two places each; fails once in 1e5 runs by chance."""
    p, number = made((2,), (2,)), 20_000
    x = p.sample((number,))
    assert x.shape == (number, 2, 3, 2)
    codes = ((2 * x).round() * torch.tensor([9.0, 3, 1]).view(3, 1)).sum(2).long()
    every = values(3, 3)
    for row, place in itertools.product(range(2), range(2)):
        parts = [part[row, ..., place] for part in (p.logits, p.loc, p.scale, p.slope) if part is not None]
        alone = DiscretisedLogisticMixture(*parts, levels=3)  # pyright: ignore[reportArgumentType]
        expected = number * alone.log_prob(every).exp()
        counts = torch.bincount(codes[:, row, place], minlength=27).double()
        common = expected >= 5
        statistic = ((counts - expected) ** 2 / expected)[common].sum().item()
        assert stats.chi2.sf(statistic, int(common.sum())) > 1e-5 / 4


def test_places_are_independent_and_add_up() -> None:
    p = made((4,), (2, 3))
    x = p.sample()
    assert x.shape == (4, 3, 2, 3) and p.log_prob(x).shape == (4,) and p.event_shape == (3, 2, 3)
    total = 0.0
    for i, j in itertools.product(range(2), range(3)):
        parts = [part[..., i, j] for part in (p.logits, p.loc, p.scale, p.slope) if part is not None]
        total = total + DiscretisedLogisticMixture(*parts, levels=3).log_prob(x[..., i, j])  # pyright: ignore
    torch.testing.assert_close(p.log_prob(x), total)
    wide = p.expand((5, 4))
    torch.testing.assert_close(wide.log_prob(x), p.log_prob(x).expand(5, 4))
    assert wide.sample((2,)).shape == (2, 5, 4, 3, 2, 3)


@pytest.mark.parametrize("edge", [0.0, 0.5, 1.0])
def test_gradients_at_the_edges_agree_with_finite_differences(edge: float) -> None:
    p, x = made(), torch.full((3,), edge, dtype=torch.float64)

    def log_prob(*parts: torch.Tensor) -> torch.Tensor:
        return DiscretisedLogisticMixture(*parts, levels=3).log_prob(x)  # pyright: ignore[reportArgumentType]

    parts = [part.clone().requires_grad_() for part in (p.logits, p.loc, p.scale, p.slope) if part is not None]
    assert torch.autograd.gradcheck(log_prob, parts)


def test_errors() -> None:
    with pytest.raises(ValueError, match="support"):
        p = made()
        DiscretisedLogisticMixture(p.logits, p.loc, p.scale, levels=3, validate_args=True).log_prob(
            torch.full((3,), 0.3)
        )
    with pytest.raises(ValueError, match=r"got logits \(2,\), loc \(3, 3\)"):
        DiscretisedLogisticMixture(torch.zeros(2), torch.zeros(3, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match="places"):
        DiscretisedLogisticMixture(torch.zeros(2, 4), torch.zeros(2, 3, 4), torch.ones(2, 3, 4))
