"""Codebook: probabilities by hand and of all grids, its own draws, the nearest code by brute force."""

import itertools

import pytest
import torch
from scipy import stats

from ppl_vae.distributions import Codebook, nearest_codes, vectors_of

CODES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_the_nearest_code_by_brute_force() -> None:
    codes, z = torch.randn(7, 3), torch.randn(2, 5, 3, 4, 6)
    distance = (z.unsqueeze(2) - codes.view(7, 3, 1, 1)).square().sum(3)
    index = nearest_codes(z, codes, places=2)
    assert torch.equal(index, distance.argmin(2)) and index.shape == (2, 5, 4, 6)
    assert torch.equal(vectors_of(index, codes, 2)[1, 3, :, 2, 5], codes[index[1, 3, 2, 5]])
    assert torch.equal(nearest_codes(vectors_of(index, codes, 2), codes, 2), index)


def test_log_prob_by_hand() -> None:
    logits = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    p, index = Codebook(CODES, logits, places=2), torch.randint(3, (4, 2, 2))
    expected = torch.zeros(4, dtype=torch.float64)
    for b, i, j in itertools.product(range(4), range(2), range(2)):
        expected[b] += logits[b, :, i, j].softmax(0)[index[b, i, j]].log()
    z = vectors_of(index, CODES, 2)
    torch.testing.assert_close(p.log_prob(z), expected)
    torch.testing.assert_close(p.expand((5, 4)).log_prob(z), expected.expand(5, 4))
    torch.testing.assert_close(p.log_prob(z.expand(5, 4, 2, 2, 2)), expected.expand(5, 4))
    one = Codebook(CODES, logits[0, :, 0, 0])
    torch.testing.assert_close(one.log_prob(CODES), logits[0, :, 0, 0].log_softmax(0))


def test_probabilities_of_all_grids_sum_to_one() -> None:
    p = Codebook(CODES, torch.randn(3, 2, 2, dtype=torch.float64), places=2)
    index = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)
    assert p.log_prob(vectors_of(index, CODES, 2)).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


def test_draws_have_the_probabilities() -> None:
    """Chi-squared over the 9 pairs of codes; fails once in 1e5 runs by chance."""
    logits, number = torch.randn(3, 2, dtype=torch.float64), 20_000
    index = nearest_codes(Codebook(CODES, logits, places=1).sample((number,)), CODES, 1)
    p = logits.softmax(0)
    expected = number * (p[:, 0, None] * p[:, 1]).flatten()
    counts = torch.bincount(index[:, 0] * 3 + index[:, 1], minlength=9)
    assert stats.chi2.sf(((counts - expected) ** 2 / expected).sum().item(), 8) > 1e-5


def test_draws_have_the_shapes() -> None:
    p = Codebook(CODES, torch.zeros(5, 3, 4, 6), places=2)
    assert p.sample().shape == (5, 2, 4, 6) and p.sample((7,)).shape == (7, 5, 2, 4, 6)
    assert p.expand((3, 5)).sample((2,)).shape == (2, 3, 5, 2, 4, 6)


def test_the_gradient_is_that_of_the_logits_alone() -> None:
    logits = torch.randn(3, dtype=torch.float64, requires_grad=True)
    z = CODES[1].clone().requires_grad_()
    log_p = Codebook(CODES.clone().requires_grad_(), logits).log_prob(z)
    (found,) = torch.autograd.grad(log_p, logits, retain_graph=True)
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64) - logits.detach().softmax(0))
    assert torch.autograd.grad(log_p, z, allow_unused=True) == (None,)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"got codes \(3, 2\) and logits \(4,\) with places=0"):
        Codebook(CODES, torch.zeros(4))
    with pytest.raises(ValueError, match="places"):
        Codebook(CODES, torch.zeros(5, 3, 4))
    p = Codebook(CODES, torch.zeros(3, 2), places=1, validate_args=True)
    p.log_prob(CODES[:2].T)
    with pytest.raises(ValueError, match="support"):
        p.log_prob(1.01 * CODES[:2].T)
