"""An oracle: a pair whose likelihood, posterior and maximum-likelihood fit are known in closed form."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.pair import Pair

__all__ = ["LinearGaussian"]


class LinearGaussian(Pair):
    """p(z) = N(0, I);  p(x | z) = N(W z + b, s^2 I);  q(z | x) = N(A x + c, diag(exp(l))^2).

    Probabilistic PCA with a linear, diagonal guide. A rotation of z leaves p(x) as it is and can make
    the posterior covariance diagonal, so the best ELBO over all parameters is the maximum likelihood.

    Args:
        data_dim: D, the size of x.
        latent_dim: d, the size of z, at most D.

    Raises:
        ValueError: latent_dim is not in 1, ..., data_dim.

    References:
        Probabilistic Principal Component Analysis, Tipping & Bishop 1999, eq. 4, 6 and 8.
        Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse, Lucas et al. 2019, section 4.

    Example:
        >>> from ppl_vae.objectives import IWAE
        >>> pair, x = LinearGaussian(5, 2).double(), torch.ones(3, 5).double()
        >>> pair.set_guide_to_posterior()
        >>> bound = IWAE(num_particles=2).bound(pair.model, pair.guide, x)
        >>> torch.allclose(bound, pair.log_likelihood(x))
        True
    """

    def __init__(self, data_dim: int, latent_dim: int) -> None:
        super().__init__()
        if not 1 <= latent_dim <= data_dim:
            raise ValueError(f"latent_dim: got {latent_dim}, expected 1 to data_dim = {data_dim}")
        self.W = nn.Parameter(torch.randn(data_dim, latent_dim) / math.sqrt(latent_dim))
        self.b = nn.Parameter(torch.zeros(data_dim))
        self.log_s = nn.Parameter(torch.zeros(()))
        self.A = nn.Parameter(torch.randn(latent_dim, data_dim) / data_dim)
        self.c = nn.Parameter(torch.zeros(latent_dim))
        self.l = nn.Parameter(torch.zeros(latent_dim))

    def prior(self) -> dist.Independent:
        """p(z), event shape (d,)."""
        return dist.Normal(torch.zeros_like(self.c), 1.0).to_event(1)

    def decode(self, z: Tensor) -> dist.Independent:
        """p(x | z) for z of shape (..., d)."""
        return dist.Normal(z @ self.W.T + self.b, self.log_s.exp()).to_event(1)

    def encode(self, x: Tensor) -> dist.Independent:
        """q(z | x) for x of shape (..., D)."""
        return dist.Normal(x @ self.A.T + self.c, self.l.exp()).to_event(1)

    def model(self, x: Tensor) -> None:
        """p(x, z) for x of shape (B, D)."""
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z | x) for x of shape (B, D)."""
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encode(x))

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log p(x) = log N(x; b, W W^T + s^2 I) in nats, (B,); computed in float64, given in x's dtype."""
        W, b, s2 = self._double()
        covariance = W @ W.T + s2 * torch.eye(len(b), dtype=b.dtype, device=b.device)
        return dist.MultivariateNormal(b, covariance).log_prob(x.double()).to(x.dtype)

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """p(z | x) = N(M^-1 W^T (x - b), s^2 M^-1) with M = W^T W + s^2 I, in float64: batch shape (B,)."""
        W, b, s2 = self._double()
        inverse = torch.linalg.inv(W.T @ W + s2 * torch.eye(W.shape[1], dtype=W.dtype, device=W.device))
        return dist.MultivariateNormal((x.double() - b) @ W @ inverse, s2 * inverse)

    @torch.no_grad()
    def set_guide_to_posterior(self) -> None:
        """Make q(z | x) = p(z | x), by a rotation of W that leaves p(x) as it is: every bound is then log p(x)."""
        W, b, s2 = self._double()
        eigenvalues, vectors = torch.linalg.eigh(W.T @ W)
        W = W @ vectors
        A = W.T / (eigenvalues + s2).unsqueeze(-1)
        self.W.copy_(W)
        self.A.copy_(A)
        self.c.copy_(-A @ b)
        self.l.copy_((s2 / (eigenvalues + s2)).log() / 2)

    def optimum(self, x: Tensor) -> float:
        """The greatest mean log-likelihood of data (N, D) that any W, b and s reach, in nats per datum.

        The N x D data must have more than latent_dim directions of variance; otherwise there is none.
        """
        data = x.double()
        D, d = self.W.shape
        eigenvalues = torch.linalg.eigvalsh((data - data.mean(0)).T @ (data - data.mean(0)) / len(data)).flip(0)
        kept, rest = eigenvalues[:d], eigenvalues[d:]
        # With d = D the covariance is fitted as it is; otherwise s^2 is the mean of the discarded variances.
        noise = (D - d) * rest.mean().log().item() if d < D else 0.0
        return -0.5 * (kept.log().sum().item() + noise + D * math.log(2 * math.pi) + D)

    def _double(self) -> tuple[Tensor, Tensor, Tensor]:
        """W, b and s^2 in float64."""
        return self.W.double(), self.b.double(), (2 * self.log_s.double()).exp()
