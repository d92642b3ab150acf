"""A learnt codebook: vectors are replaced by the nearest code, straight through."""

import torch
from torch import Tensor, nn

from ppl_vae.distributions import nearest_codes, vectors_of
from ppl_vae.nn.shapes import as_size

__all__ = ["Quantiser", "k_means", "straight_through"]

BARELY = 1e-3
"""The count of a code that has not been used yet."""


class Quantiser(nn.Module):
    """K codes e_k of D numbers, learnt by moving averages (or by gradient), and z -> the number of its nearest code.

    With averages, codes are the means of what is assigned to them: in each run with gradients, in training mode,
    N_k <- decay N_k + (1 - decay) n_k and m_k <- decay m_k + (1 - decay) sum of the n_k vectors assigned to k, and
    e_k = m_k / N^_k with Laplace's smoothing N^_k = (N_k + eps) / (sum N + K eps) sum N: k-means on minibatches.
    The codes move before vectors are assigned to them, so that all that a run does is of the same codes. A code that
    hardly anything is assigned to begins anew at some vector of the batch.

    Args:
        codes: K.
        dim: D.
        decay: of the averages; None: the codes are parameters, and `loss` pulls them.
        commitment: beta of `loss`.
        smoothing: eps.
        revive: a code begins anew where N_k is below this share of even use; 0: never.

    Raises:
        ValueError: sizes below 1, decay outside (0, 1), a negative commitment, smoothing or share.

    References:
        Neural discrete representation learning, van den Oord, Vinyals & Kavukcuoglu 2017, eq. 2, 3 and appendix A.1.
        Generating diverse high-fidelity images with VQ-VAE-2, Razavi, van den Oord & Vinyals 2019, eq. 2 and 3.

    Example:
        >>> quantiser = Quantiser(8, 3)
        >>> index = quantiser(torch.randn(5, 3, 4, 4))
        >>> index.shape, quantiser.vectors(index).shape
        (torch.Size([5, 4, 4]), torch.Size([5, 3, 4, 4]))
    """

    counts: Tensor
    sums: Tensor
    started: Tensor

    def __init__(
        self,
        codes: int,
        dim: int,
        decay: float | None = 0.99,
        commitment: float = 0.25,
        smoothing: float = 1e-5,
        revive: float = 0.02,
    ) -> None:
        super().__init__()
        codes, dim = as_size(codes, "codes"), as_size(dim, "dim")
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"decay: got {decay}, expected a number between 0 and 1, or None for codes by gradient")
        for name, value in (("commitment", commitment), ("smoothing", smoothing), ("revive", revive)):
            if not value >= 0:
                raise ValueError(f"{name}: got {value}, expected a number of at least 0")
        self.number, self.dim, self.decay, self.commitment = codes, dim, decay, commitment
        self.smoothing, self.revive = smoothing, revive
        self.register_buffer("started", torch.tensor(False))
        start = torch.randn(codes, dim) / dim**0.5
        if decay is None:
            self.weight = nn.Parameter(start)
        else:
            # Sums and counts, not the codes themselves: those of several processes can be added up.
            self.register_buffer("counts", torch.full((codes,), BARELY))
            self.register_buffer("sums", BARELY * start)

    def current(self) -> Tensor:
        """The codes as they are now: e, (K, D)."""
        if self.decay is None:
            return self.weight
        total = self.counts.sum()
        smooth = (self.counts + self.smoothing) / (total + self.number * self.smoothing) * total
        return self.sums / smooth.unsqueeze(1)

    def forward(self, z: Tensor) -> Tensor:
        """Numbers of the nearest codes (..., *S) of z (..., D, *S), leading dims one at least."""
        places = self._places(z)
        if self.training and torch.is_grad_enabled() and self.decay is not None:
            self._move(z.detach().movedim(1, -1).flatten(0, -2), self.decay)
        return nearest_codes(z, self.current(), places)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """The codes nearest to z (B, D, *S), of the same shape, without gradient; nothing is learnt of it."""
        return self.vectors(nearest_codes(z, self.current(), self._places(z)))

    def vectors(self, index: Tensor) -> Tensor:
        """e of numbers (B, *S): (B, D, *S)."""
        return vectors_of(index, self.current(), index.dim() - 1)

    def loss(self, z: Tensor, e: Tensor) -> Tensor:
        """commitment ||z - sg e||^2, and ||sg z - e||^2 of codes by gradient, (B,): what training adds to -log p.

        Args:
            z: vectors before, (B, D, *S).
            e: their codes, (B, D, *S).
        """
        loss = self.commitment * (z - e.detach()).square().flatten(1).sum(1)
        return loss if self.decay is not None else loss + (z.detach() - e).square().flatten(1).sum(1)

    @torch.no_grad()
    def start(self, z: Tensor, rounds: int = 10) -> None:
        """Set the codes to centres of vectors z (B, D, *S), by k-means, unless they have begun to learn already."""
        self._places(z)
        if self.started:
            return
        rows = z.movedim(1, -1).flatten(0, -2)
        codes = k_means(rows, self.number, rounds)
        if self.decay is None:
            self.weight.copy_(codes)
        else:
            self.counts.fill_(len(rows) / self.number)
            self.sums.copy_(codes * self.counts.unsqueeze(1))
        self.started.fill_(True)

    @torch.no_grad()
    def _move(self, rows: Tensor, decay: float) -> None:
        """Move averages towards a batch of vectors (n, D), and let unused codes begin anew."""
        members = rows.new_zeros(len(rows), self.number)
        members.scatter_(1, nearest_codes(rows, self.current()).unsqueeze(1), 1.0)
        self.counts.mul_(decay).add_(members.sum(0), alpha=1 - decay)
        self.sums.mul_(decay).add_(members.T @ rows, alpha=1 - decay)
        self.started.fill_(True)
        if self.revive == 0:
            return
        even = len(rows) / self.number
        dead = self.counts < self.revive * even
        # No choice by `if`: the step may be recorded. A number below 1 can round up to n.
        chosen = (torch.rand_like(self.counts) * len(rows)).long().clamp(max=len(rows) - 1)
        self.counts.copy_(torch.where(dead, even, self.counts))
        self.sums.copy_(torch.where(dead.unsqueeze(1), even * rows[chosen], self.sums))

    def _places(self, z: Tensor) -> int:
        if z.dim() < 2 or z.shape[1] != self.dim:
            raise ValueError(f"got vectors of shape {tuple(z.shape)}, expected (B, {self.dim}, ...)")
        return z.dim() - 2


def straight_through(z: Tensor, e: Tensor) -> Tensor:
    """e, exactly, with the gradient of z (and none of e).

    References:
        Estimating or propagating gradients through stochastic neurons, Bengio, Léonard & Courville 2013.
    """
    # Not z + (e - z): that is e but for rounding, and would no longer be a code.
    return e.detach() + (z - z.detach())


def k_means(rows: Tensor, number: int, rounds: int = 10) -> Tensor:
    """Centres (K, D) of vectors (n, D): k-means++ seeds, then Lloyd's rounds; a centre that loses all stays.

    References:
        k-means++: the advantages of careful seeding, Arthur & Vassilvitskii 2007.
    """
    centres = rows[torch.randint(len(rows), (1,), device=rows.device)]
    distance = torch.full_like(rows[:, 0], torch.inf)
    while len(centres) < number:
        distance = torch.minimum(distance, (rows - centres[-1]).square().sum(1))
        # Where all vectors are centres already, any will do.
        weights = distance if bool(distance.sum() > 0) else torch.ones_like(distance)
        centres = torch.cat([centres, rows[torch.multinomial(weights, 1)]])
    for _ in range(rounds):
        index = nearest_codes(rows, centres)
        counts = torch.zeros_like(centres[:, 0]).index_add_(0, index, torch.ones_like(rows[:, 0]))
        means = torch.zeros_like(centres).index_add_(0, index, rows) / counts.clamp(min=1).unsqueeze(1)
        centres = torch.where(counts.unsqueeze(1) > 0, means, centres)
    return centres
