"""DiscretisedLogistic against a float64 reference written from the definition, and against its own samples."""

import doctest
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vae.distributions import DiscretisedLogistic, discretised_logistic

LOCS = [-30.0, -0.5, 0.0, 0.1234, 0.5, 1.0, 1.3, 40.0]
SCALES = [1e-12, 1e-5, 1e-3, 0.03, 1.0, 50.0, 1e6]


def grid(levels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.arange(levels, dtype=dtype) / (levels - 1)


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def reference(i: int, loc: float, scale: float, levels: int) -> float:
    """log P(level i) in float64 by the tail that keeps its digits; loc and scale in units of the pixel."""
    top = levels - 1
    upper = math.inf if i == top else ((i + 0.5) / top - loc) / scale
    lower = -math.inf if i == 0 else ((i - 0.5) / top - loc) / scale
    if lower > 0:  # the mirror image has the same probability and lies in the lower tail
        upper, lower = -lower, -upper
    log_upper = 0.0 if upper == math.inf else -softplus(-upper)
    if lower == -math.inf:
        return log_upper
    return log_upper + math.log(-math.expm1(-softplus(-lower) - log_upper))


@pytest.mark.parametrize("levels", [2, 5, 256])
def test_probabilities_sum_to_one(levels: int) -> None:
    loc, scale = (t.reshape(-1, 1) for t in torch.meshgrid(torch.tensor(LOCS), torch.tensor(SCALES), indexing="ij"))
    for dtype, atol in [(torch.float32, 1e-6), (torch.float64, 1e-12)]:
        log_p = DiscretisedLogistic(loc.to(dtype), scale.to(dtype), levels).log_prob(grid(levels, dtype))
        total = log_p.double().exp().sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=atol)


@pytest.mark.parametrize("loc", [-1.5, -0.1, 0.3, 0.5, 1.25])
@pytest.mark.parametrize("scale", [2e-5, 1e-3, 0.03, 1.0, 1e3])
def test_log_prob_equals_the_float64_reference(loc: float, scale: float) -> None:
    levels = 256
    expected = torch.tensor([reference(i, loc, scale, levels) for i in range(levels)], dtype=torch.float64)
    double = DiscretisedLogistic(*torch.tensor([loc, scale], dtype=torch.float64), levels=levels)
    torch.testing.assert_close(double.log_prob(grid(levels, torch.float64)), expected, rtol=1e-9, atol=1e-8)
    single = DiscretisedLogistic(torch.tensor(loc), torch.tensor(scale), levels)
    # float32 rounds loc by 6e-8, so log P moves by as much over the scale.
    torch.testing.assert_close(single.log_prob(grid(levels)).double(), expected, rtol=1e-6, atol=3e-6 + 2e-7 / scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_are_finite_everywhere(dtype: torch.dtype) -> None:
    loc = torch.tensor([*LOCS, -1e6, 1e6, 1e20], dtype=dtype).reshape(-1, 1, 1).requires_grad_()
    # From the smallest normal float32: what is smaller is 0 where training runs.
    scale = torch.tensor([*SCALES, 1.2e-38, 1e-30, 1e20, 1e38], dtype=dtype).reshape(-1, 1).requires_grad_()
    log_p = DiscretisedLogistic(loc, scale).log_prob(grid(256, dtype))
    grads = torch.autograd.grad(log_p.sum(), [loc, scale])
    assert all(t.isfinite().all() for t in (log_p, *grads))
    assert (log_p <= 0).all()


def test_gradient_equals_finite_differences() -> None:
    loc = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64, requires_grad=True).reshape(-1, 1)
    scale = torch.tensor([0.02, 0.1, 2.0], dtype=torch.float64, requires_grad=True).reshape(-1, 1)
    x = grid(9, torch.float64)
    assert torch.autograd.gradcheck(lambda m, s: DiscretisedLogistic(m, s, 9).log_prob(x), (loc, scale))


def test_samples_have_the_stated_probabilities() -> None:
    levels, n, failure_rate = 8, 200_000, 1e-5
    pyro.set_rng_seed(0)
    loc = torch.tensor([-0.2, 0.0, 0.4, 0.93]).repeat_interleave(3)
    scale = torch.tensor([0.02, 0.1, 1.0]).repeat(4)
    d = DiscretisedLogistic(loc, scale, levels)
    x = d.sample(torch.Size([n]))
    assert d.support.check(x).all()
    p = d.log_prob(grid(levels)[:, None]).exp()  # (levels, 12)
    counts = (x == grid(levels)[:, None, None]).sum(1)
    common = n * p * (1 - p) > 100  # the normal approximation needs some hundred hits and misses
    z = ((counts - n * p) / (n * p * (1 - p)).sqrt())[common]
    limit = dist.Normal(0.0, 1.0).icdf(torch.tensor(1 - failure_rate / (2 * len(z)), dtype=torch.float64))
    assert len(z) > 40
    assert z.abs().max() < limit
    # Where at most some 100 hits are expected, 300 has a probability far below the failure rate.
    rare = counts[~common & (p < 0.5)].double()
    assert (rare < 300).all()


@pytest.mark.parametrize("levels", [2, 7, 256])
def test_mean_is_the_sum_over_levels(levels: int) -> None:
    loc, scale = torch.meshgrid(torch.tensor([-0.3, 0.4, 1.0]), torch.tensor([1e-9, 0.05, 3.0]), indexing="ij")
    d = DiscretisedLogistic(loc.double(), scale.double(), levels)
    x = grid(levels, torch.float64).reshape(-1, 1, 1)
    torch.testing.assert_close(d.mean, (x * d.log_prob(x).exp()).sum(0))


def test_support_accepts_grey_levels_only() -> None:
    d = DiscretisedLogistic(torch.tensor(0.5), torch.tensor(0.1), validate_args=True)
    every_byte = torch.arange(256, dtype=torch.uint8) / 255
    assert d.support.check(every_byte).all()
    bad = torch.tensor([0.5 / 255, -1 / 255, 256 / 255, math.nan, math.inf, 0.5])
    assert not d.support.check(bad).any()
    with pytest.raises(ValueError, match="support"):
        d.log_prob(torch.tensor(0.5))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="levels=1"):
        DiscretisedLogistic(torch.tensor(0.5), torch.tensor(0.1), levels=1)
    with pytest.raises(ValueError, match="scale"):
        DiscretisedLogistic(torch.tensor(0.5), torch.tensor(0.0), validate_args=True)


def test_half_precision_is_raised() -> None:
    loc, scale = torch.tensor([0.2, 0.7]).bfloat16(), torch.tensor([0.001, 0.5]).bfloat16()
    x = grid(256)[[50, 180]]
    log_p = DiscretisedLogistic(loc, scale).log_prob(x)
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p, DiscretisedLogistic(loc.float(), scale.float()).log_prob(x))


def test_it_lives_in_plates() -> None:
    pixels = DiscretisedLogistic(torch.full((3,), 0.5), torch.full((3,), 0.1), levels=4)
    d = pixels.to_event(1)
    wide = pixels.expand((2, 5, 3)).to_event(1).mask(torch.tensor([True, False])[:, None])
    x = d.sample((5,))
    log_p = wide.log_prob(x)
    assert wide.batch_shape == (2, 5) and wide.event_shape == (3,)
    torch.testing.assert_close(log_p, torch.stack([d.log_prob(x), torch.zeros(5)]))
    with pyro.plate("data", 5):
        assert pyro.sample("x", d).shape == (5, 3)
    assert pixels.support.is_discrete and not pixels.has_rsample


def test_docstring_examples() -> None:
    result = doctest.testmod(discretised_logistic)
    assert result.attempted > 0 and result.failed == 0
