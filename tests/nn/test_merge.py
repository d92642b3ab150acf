"""The merge of two Normals: it is the normalised product of their densities."""

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vae.nn import merge_normals


def normals(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*shape, dtype=torch.float64), torch.randn(*shape, dtype=torch.float64).exp()


def parameters(normal: Any) -> tuple[Tensor, Tensor]:
    return normal.base_dist.loc, normal.base_dist.scale


@pytest.mark.parametrize("sigmas", [(1.0, 1.0), (0.1, 2.0), (1.5, 0.3)])
def test_it_is_the_normalised_product_of_the_densities(sigmas: tuple[float, float]) -> None:
    """By the trapezoid rule, which is exact to rounding for Normals on a grid this fine."""
    z = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    a, b = (dist.Normal(z.new_tensor(mu), sigma) for mu, sigma in zip((-0.7, 1.1), sigmas, strict=True))
    product = (a.log_prob(z) + b.log_prob(z)).exp()
    torch.testing.assert_close(merge_normals(a, b).log_prob(z).exp(), product / torch.trapezoid(product, z))


def test_closed_form_and_particles() -> None:
    """Precisions add up and means are weighted by them; (B,) with (K, B), in either order."""
    (mu_a, sigma_a), (mu_b, sigma_b) = normals(5, 3), normals(4, 5, 3)
    a, b = dist.Normal(mu_a, sigma_a).to_event(1), dist.Normal(mu_b, sigma_b).to_event(1)
    merged = merge_normals(a, b)
    assert (merged.batch_shape, merged.event_shape) == ((4, 5), (3,))
    precision = sigma_a**-2 + sigma_b**-2
    expected = ((mu_a * sigma_a**-2 + mu_b * sigma_b**-2) / precision, precision**-0.5)
    torch.testing.assert_close(parameters(merged), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parameters(merge_normals(b, a)), expected, rtol=1e-12, atol=1e-12)


def test_one_that_says_nothing_leaves_the_other() -> None:
    (mu, sigma), (other, _) = normals(4, 3), normals(4, 3)
    known, vague = dist.Normal(mu, sigma).to_event(1), dist.Normal(other, 1e12 * torch.ones_like(other)).to_event(1)
    for merged in (merge_normals(known, vague), merge_normals(vague, known)):
        torch.testing.assert_close(parameters(merged), (mu, sigma), rtol=1e-12, atol=1e-12)


def test_gradients() -> None:
    given = [t.requires_grad_() for t in (*normals(3), *normals(3))]

    def merged(mu_a: Tensor, sigma_a: Tensor, mu_b: Tensor, sigma_b: Tensor) -> tuple[Tensor, Tensor]:
        result: Any = merge_normals(dist.Normal(mu_a, sigma_a), dist.Normal(mu_b, sigma_b))
        return result.loc, result.scale

    assert torch.autograd.gradcheck(merged, given)


@pytest.mark.parametrize("small", [1e-25, 1e-12])
def test_precisions_that_overflow_float32(small: float) -> None:
    sigma = torch.tensor([small, 1.0, 1e10], requires_grad=True)
    merged: Any = merge_normals(dist.Normal(torch.ones(3), sigma), dist.Normal(torch.zeros(3), sigma.flip(0)))
    (merged.loc + merged.scale).sum().backward()
    torch.testing.assert_close(merged.loc, torch.tensor([1.0, 0.5, 0.0]))
    assert merged.scale[0].item() == pytest.approx(small, rel=1e-6)
    assert sigma.grad is not None and bool(sigma.grad.isfinite().all())


def test_what_is_refused() -> None:
    normal = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    with pytest.raises(ValueError, match="got Laplace, expected a Normal"):
        merge_normals(normal, dist.Laplace(torch.zeros(3), 1.0).to_event(1))
    with pytest.raises(ValueError, match=r"got event shapes \(3,\) and \(2,\), expected two Normals over one event"):
        merge_normals(normal, dist.Normal(torch.zeros(2), 1.0).to_event(1))
