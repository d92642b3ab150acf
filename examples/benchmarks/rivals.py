"""The models of the benchmark written by hand in PyTorch, as a competent person would write them without a library.

The layers and the mathematics are those of the pairs in `workloads.py`, to the last bias. What a library can't do is
done here: log p(z) - log q(z | x) is simplified on paper, where the constants and most of log q cancel.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[], nn.Module]


class OneLayer(nn.Module):
    """p(z) = N(0, I), p(x | z) = Bernoulli(decoder(z)), q(z | x) = N(mu, sigma^2), (mu, log sigma) = encoder(x)."""

    def __init__(self, encoder: nn.Sequential, decoder: nn.Sequential, k: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.k = encoder, decoder, k

    def log_weight(self, x: Tensor) -> Tensor:
        """log w, (K, B), or (B,) where K = 1: the encoder runs once, the decoder on K B rows in one batch."""
        mu, log_sigma = self.encoder(x).chunk(2, -1)
        eps = noise(self.k, mu)
        z = mu + log_sigma.exp() * eps
        return log_bernoulli(self.decoder(z), x) + (0.5 * (eps**2 - z**2) + log_sigma).sum(-1)

    def loss(self, x: Tensor) -> Tensor:
        return loss_of(self.log_weight(x))


class TwoLayers(nn.Module):
    """p(z2) p(z1 | z2) p(x | z1) and q(z1 | x) q(z2 | z1): networks down, decoder; encoder, up."""

    def __init__(
        self, encoder: nn.Sequential, up: nn.Sequential, down: nn.Sequential, decoder: nn.Sequential, k: int
    ) -> None:
        super().__init__()
        self.encoder, self.up, self.down, self.decoder, self.k = encoder, up, down, decoder, k

    def log_weight(self, x: Tensor) -> Tensor:
        """log w, (K, B)."""
        mu1, log_sigma1 = self.encoder(x).chunk(2, -1)
        eps1 = noise(self.k, mu1)
        z1 = mu1 + log_sigma1.exp() * eps1
        mu2, log_sigma2 = self.up(z1).chunk(2, -1)
        eps2 = torch.randn_like(mu2)
        z2 = mu2 + log_sigma2.exp() * eps2
        mu, log_sigma = self.down(z2).chunk(2, -1)
        top = (0.5 * (eps2**2 - z2**2) + log_sigma2).sum(-1)
        middle = (0.5 * (eps1**2 - ((z1 - mu) * torch.exp(-log_sigma)) ** 2) + log_sigma1 - log_sigma).sum(-1)
        return log_bernoulli(self.decoder(z1), x) + middle + top

    def loss(self, x: Tensor) -> Tensor:
        return loss_of(self.log_weight(x))


def noise(k: int, like: Tensor) -> Tensor:
    return torch.randn_like(like) if k == 1 else torch.randn(k, *like.shape, dtype=like.dtype, device=like.device)


def log_bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """log p(x | z), (..., B), from logits (..., B, 784)."""
    target = x.flatten(1).expand_as(logits)
    return -F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)


def loss_of(log_weight: Tensor) -> Tensor:
    """Minus the ELBO (K = 1) or the importance-weighted bound, summed over the batch."""
    if log_weight.dim() == 1:
        return -log_weight.sum()
    return -(torch.logsumexp(log_weight, 0) - math.log(len(log_weight))).sum()


def mlp(sizes: Sequence[int], activation: Activation) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])


def one_layer(hidden: Sequence[int], latent: int, activation: Activation, k: int) -> OneLayer:
    encoder = nn.Sequential(nn.Flatten(), *mlp([784, *hidden, 2 * latent], activation))
    return OneLayer(encoder, mlp([latent, *hidden[::-1], 784], activation), k)


def two_layers(k: int) -> TwoLayers:
    """Burda et al.'s: 784-200-200-100 and 100-100-100-50, tanh."""
    encoder = nn.Sequential(nn.Flatten(), *mlp([784, 200, 200, 2 * 100], nn.Tanh))
    up, down = mlp([100, 100, 100, 2 * 50], nn.Tanh), mlp([50, 100, 100, 2 * 100], nn.Tanh)
    return TwoLayers(encoder, up, down, mlp([100, 200, 200, 784], nn.Tanh), k)


class PixelBias(nn.Module):
    """One bias for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, 1, 28, 28))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


def conv(latent: int, k: int) -> OneLayer:
    """28 x 28 -> 14 x 14 x 32 -> 7 x 7 x 64 -> latent and back, ReLU; k = 1 alone."""
    encoder = nn.Sequential(
        nn.Conv2d(1, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 2 * latent),
    )
    decoder = nn.Sequential(
        nn.Linear(latent, 64 * 7 * 7),
        nn.Unflatten(1, (64, 7, 7)),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 3, stride=2, padding=1, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 1, 3, stride=2, padding=1, output_padding=1, bias=False),
        PixelBias(),
        nn.Flatten(),
    )
    return OneLayer(encoder, decoder, k)


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy each parameter to the target's next one of the same shape.

    Raises:
        ValueError: the two modules do not have the same parameters.
    """
    left = list(source.parameters())
    for parameter in target.parameters():
        match = next((i for i, p in enumerate(left) if p.shape == parameter.shape), None)
        if match is None:
            raise ValueError(f"no parameter of shape {tuple(parameter.shape)} left: not the same architecture")
        parameter.copy_(left.pop(match))
    if left:
        raise ValueError(f"parameters of shape {[tuple(p.shape) for p in left]} left: not the same architecture")
