"""Monte Carlo EM: the model learns from posterior samples that Hamiltonian Monte Carlo draws; there is no encoder."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.checks import check_batch
from ppl_vae.data import Dataset
from ppl_vae.evaluation.hmc import AnnealedPath, AnnealingSettings, quiet_run, transition
from ppl_vae.objectives import Trace_ELBO
from ppl_vae.pair import Pair
from ppl_vae.parallel import Ranks
from ppl_vae.quiet import private_stream
from ppl_vae.training import History, fit

__all__ = ["MarkovGuide", "fit_mcem"]

FIRST_STEP, JITTER = 0.1, 0.2
"""Leapfrog step size at first, and the part of it that each motion draws anew, lest it come back to where it began."""


class MarkovGuide(Pair):
    """p(x, z) of a pair;  q(z_n) = a point that Hamiltonian Monte Carlo moves through p(z | x_n), one for each datum.

    The programs take x and the rows n that it is of. In training mode, where gradients are recorded, the guide first
    moves the points of these rows, at each `updates`-th visit; elsewhere it leaves them. Its ELBO is log p(x_n, z_n) at
    the points: what the M-step of Monte Carlo EM raises, and no bound on log p(x).

    All data share one step size, which follows the mean acceptance of each batch: so it tells next to nothing of where
    any one chain is, and leaves its law alone. Each motion draws its steps anew, within a fifth of that size: one that
    takes as long as the period of a narrow posterior would come back to where it began (Neal 2011, section 3.2).

    Args:
        pair: the model, with continuous latent sites in one plate; its guide is only asked for the sites' names.
        x: the data that the points are for, (N, *shape).
        leapfrogs: L, steps of a transition.
        acceptance: that the step size is tuned to, in the mean over the data.
        updates: visits of a datum for each of its transitions.

    Raises:
        ValueError: leapfrogs or updates below 1, an acceptance outside (0, 1); discrete or bounded sites.
    """

    z: Tensor
    step_size: Tensor
    """Of all data, a number."""
    moves: Tensor
    """How often some of the points were moved."""
    visits: Tensor
    accepted: Tensor
    """Sum of the acceptance probabilities of the transitions of each datum."""

    def __init__(self, pair: Pair, x: Tensor, leapfrogs: int = 10, acceptance: float = 0.9, updates: int = 5) -> None:
        super().__init__()
        if not 0 < acceptance < 1:
            raise ValueError(f"acceptance: got {acceptance}, expected a probability, above 0 and below 1")
        if isinstance(updates, bool) or not isinstance(updates, int) or updates < 1:
            raise ValueError(f"updates: got {updates!r}, expected a whole number of at least 1")
        self.pair, self.leapfrogs, self.acceptance, self.updates = pair, leapfrogs, acceptance, updates
        with quiet_run(pair, None):
            path = AnnealedPath.of(pair, (x[:1],), AnnealingSettings(1, 1, leapfrogs, "prior", 1))
        latent = {name: site for name, site in path.layout.model.items() if not site.observed}
        self.plate = path.layout.data_plate.name
        self.shapes = {name: site.fn.event_shape for name, site in latent.items()}
        if any(site.log_prob.dim() > 1 for site in latent.values()):
            raise ValueError("pair: got latent sites in several plates, expected the data's alone; use .to_event(n)")
        size = sum(shape.numel() for shape in self.shapes.values())
        # What the model has learnt nothing from yet tells nothing either: its posterior is the prior, near enough.
        self.register_buffer("z", torch.randn(len(x), size, dtype=x.dtype, device=x.device))
        self.register_buffer("step_size", self.z.new_tensor(FIRST_STEP))
        self.register_buffer("moves", torch.zeros((), dtype=torch.int64, device=x.device))
        self.register_buffer("visits", torch.zeros(len(x), dtype=torch.int64, device=x.device))
        self.register_buffer("accepted", self.z.new_zeros(len(x)))

    @property
    def acceptance_rate(self) -> float:
        """Mean acceptance probability of all transitions so far; NaN where there was none."""
        transitions = (self.visits + self.updates - 1) // self.updates
        return (self.accepted.sum() / transitions.sum()).item()

    def model(self, x: Tensor, rows: Tensor) -> None:
        """p(x, z), that of the pair."""
        self.pair.model(x)

    def guide(self, x: Tensor, rows: Tensor) -> None:
        """z of rows (B,) of the data, as they are after a transition where one is due."""
        if self.training and torch.is_grad_enabled():
            self.move(x, rows)
        self._points(self.z[rows])

    @torch.no_grad()
    def move(self, x: Tensor, rows: Tensor) -> None:
        """Count a visit of these rows, and make the transitions that are due: all as one batch, one chain a datum."""
        is_due = self.visits[rows] % self.updates == 0
        self.visits[rows] += 1
        if not bool(is_due.any()):
            return
        x, rows = x[is_due], rows[is_due]
        # Blocked: the transitions' sites are none of the guide's.
        with quiet_run(self.pair, None), poutine.block():
            path = AnnealedPath(_At(self, self.z[rows]), (x,), "prior", chains=1, nesting=1)
            steps = self.step_size * (1 + JITTER * (2 * torch.rand_like(self.z[rows, 0]) - 1))
            z, _, accepted = transition(path, self.z[rows].unsqueeze(0), 1.0, steps, self.leapfrogs)
        self.z[rows] = z.squeeze(0)
        self.accepted[rows] += accepted[0]
        self.moves += 1
        # Slower and slower, but never still, for the model moves too.
        rate = (0.2 / self.moves.to(steps.dtype).sqrt()).clamp(min=0.02)
        self.step_size *= (1 + rate) ** ((accepted.mean() - self.acceptance) / (1 - self.acceptance))

    def _points(self, z: Tensor) -> None:
        sizes = [shape.numel() for shape in self.shapes.values()]
        with pyro.plate(self.plate, len(z), dim=-1):
            for (name, shape), part in zip(self.shapes.items(), z.split(sizes, -1), strict=True):
                pyro.sample(name, dist.Delta(part.reshape(len(z), *shape), event_dim=len(shape)))


class _At(Pair):
    """The model, guided to some points: what transitions are made with; no encoder is run."""

    def __init__(self, chains: MarkovGuide, z: Tensor) -> None:
        super().__init__()
        self._chains, self._z = (chains,), z

    def model(self, x: Tensor) -> None:
        self._chains[0].pair.model(x)

    def guide(self, x: Tensor) -> None:
        self._chains[0]._points(self._z)


def fit_mcem(
    pair: Pair,
    data: Dataset[Any] | Tensor,
    *,
    steps: int,
    leapfrogs: int = 10,
    acceptance: float = 0.9,
    updates: int = 5,
    **options: Any,
) -> tuple[History, MarkovGuide]:
    """Train the model of a pair by Monte Carlo EM; its guide is not used, and learns nothing.

    E-step: each datum has a point z_n of its own, moved through p(z | x_n) by Hamiltonian Monte Carlo, a transition at
    every `updates`-th visit. M-step: a gradient step on the mean of log p(x_n, z_n) over the batch. As each datum has
    its chain, and a chain needs many visits, this is no method for data that are seen once.

    Args:
        pair: its model takes x alone, with continuous latent sites.
        data: data that stay as they are, in memory: not dynamically binarised.
        steps: how many M-steps.
        leapfrogs, acceptance, updates: as for `MarkovGuide`.
        options: those of `fit`, but for `valid` and `compile`.

    Returns:
        The learning curve, of mean log p(x_n, z_n) in nats (not a bound on log p(x)), and the chains.

    Raises:
        ValueError: data that are drawn anew or on disk; several processes; what `MarkovGuide` and `fit` raise.

    References:
        Auto-encoding variational Bayes, Kingma & Welling 2013, section 5 and appendix E.
        MCMC using Hamiltonian dynamics, Neal 2011, section 3.

    Example:
        >>> from ppl_vae.pairs import VAE
        >>> pair, x = VAE((4,), latent_dim=2, hidden=(3,)), torch.ones(10, 4)
        >>> history, chains = fit_mcem(pair, x, steps=4, batch_size=5, device="cpu", progress=False)
        >>> history.steps, chains.z.shape
        (4, torch.Size([10, 2]))
    """
    if isinstance(data, Dataset) and data.binarisation == "dynamic":
        raise ValueError(
            "data: got binarisation 'dynamic', which draws x anew at each visit, expected data that stay, as the "
            "chains do; use data.binarise(..., 'static')"
        )
    x = data.train if isinstance(data, Dataset) else data
    if not isinstance(x, Tensor):
        raise ValueError(f"data: got {type(x).__name__}, expected data in memory; a chain is kept for each datum")
    if wrong := [name for name in ("valid", "compile", "aggressive") if name in options]:
        raise ValueError(
            f"{wrong[0]}: got it for Monte Carlo EM, expected it left out; the chains are of training data"
        )
    check_batch(pair, x)
    if Ranks().size > 1:
        raise ValueError("got several processes, expected one: each would move chains of its own; run it by itself")
    with private_stream(options.get("seed", 0) + 1, x.device):  # not the stream of the first momenta
        chains = MarkovGuide(pair, x, leapfrogs, acceptance, updates)
    rows = torch.arange(len(x), device=x.device)
    return fit(chains, (x, rows), Trace_ELBO(), steps=steps, compile="off", **options), chains
