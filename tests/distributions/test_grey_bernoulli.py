"""GreyBernoulli against the cross-entropy written by hand."""

import doctest

import pyro.distributions as dist
import pytest
import torch

from ppl_vae.distributions import GreyBernoulli, grey_bernoulli


def test_log_prob_is_the_cross_entropy() -> None:
    logits, x = torch.linspace(-5, 5, 11).double()[:, None], torch.linspace(0, 1, 7).double()
    p = torch.sigmoid(logits)
    expected = x * p.log() + (1 - x) * (1 - p).log()
    torch.testing.assert_close(GreyBernoulli(logits, validate_args=True).log_prob(x), expected)


def test_it_does_not_integrate_to_one() -> None:
    # At p = 1/2 the formula is log(1/2) for every x: the integral over [0, 1] is 1/2.
    x = torch.linspace(0, 1, 101)
    total = torch.trapezoid(GreyBernoulli(torch.tensor(0.0)).log_prob(x).exp(), x)
    torch.testing.assert_close(total, torch.tensor(0.5))
    assert GreyBernoulli.normalised is False


def test_support_is_the_unit_interval() -> None:
    d = GreyBernoulli(torch.zeros(()), validate_args=True)
    for bad in (-0.01, 1.01, float("nan")):
        with pytest.raises(ValueError, match="support"):
            d.log_prob(torch.tensor(bad))


def test_samples_are_binary_and_mean_is_p() -> None:
    torch.manual_seed(0)
    d, n = GreyBernoulli(torch.tensor([-1.0, 0.0, 2.0])), 100_000
    x = d.sample((n,))
    assert set(x.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(d.mean, torch.sigmoid(torch.tensor([-1.0, 0.0, 2.0])))
    z = (x.mean(0) - d.mean) / (d.mean * (1 - d.mean) / n).sqrt()
    assert z.abs().max() < 4.7  # three two-sided tests: a failure rate of 1e-5


def test_expand_and_mask_keep_the_class() -> None:
    d = GreyBernoulli(torch.tensor([-1.0, 0.5]), validate_args=True)
    wide = d.expand((4, 2))
    assert isinstance(wide, GreyBernoulli) and wide.batch_shape == (4, 2)
    x = torch.full((2,), 0.3)
    expected = dist.Bernoulli(logits=d.logits, validate_args=False).log_prob(x).sum().expand(4)
    torch.testing.assert_close(wide.to_event(1).log_prob(x), expected)
    torch.testing.assert_close(wide.to_event(1).mask(False).log_prob(x), torch.zeros(4))


def test_docstring_examples() -> None:
    result = doctest.testmod(grey_bernoulli)
    assert result.attempted > 0 and result.failed == 0
