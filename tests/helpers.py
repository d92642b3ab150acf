"""What the tests of objectives share: small pairs, hand-written log weights, stock Pyro on a shared seed."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.optim import PyroOptim
from pyro.poutine.trace_struct import Trace
from scipy import stats
from torch import Tensor

from ppl_vae import Pair
from ppl_vae.compile import CompiledBackward, eager_backward
from ppl_vae.nn import Rollout
from ppl_vae.objectives import Objective, PairLoss
from ppl_vae.pairs import VAE, HierarchicalVAE
from ppl_vae.testing import LinearGaussian

# |z| of a standard Normal exceeds this with probability 1e-5, so a two-sided test fails so often by chance.
Z_LIMIT = 4.417

Grads = dict[str, Tensor]


def small_vae() -> VAE:
    return VAE((1, 3, 4), latent_dim=3, hidden=(6,)).double()


def small_hierarchy(layers: int = 2) -> HierarchicalVAE:
    return HierarchicalVAE((1, 3, 4), (4, 3, 2)[:layers], ((6,), (5,), (4,))[:layers]).double()


def pixels(rows: int = 5) -> Tensor:
    return torch.rand(rows, 1, 3, 4, dtype=torch.float64).round()


def vectors(rows: int = 5, dim: int = 4) -> Tensor:
    return torch.randn(rows, dim, dtype=torch.float64)


def linear(cls: type[LinearGaussian] = LinearGaussian) -> LinearGaussian:
    return cls(4, 2).double()


class DiscreteGuide(LinearGaussian):
    """A switch y without a reparameterised sampler beside the Normal z."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(x.new_tensor(0.3)))
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z + y.unsqueeze(-1)), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(logits=x @ self.A[0] + self.c[0]))
            pyro.sample("z", self.encode(x - y.unsqueeze(-1)))


class Switches(Pair):
    """Two switches z and three observed ones: every expectation is a sum over 4 or 8 states."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Parameter(torch.randn(n)) for n in (2, 3, 2))
        self.W, self.A = (torch.nn.Parameter(1.5 * torch.randn(n, m)) for n, m in ((2, 3), (3, 2)))

    def prior(self):
        return dist.Bernoulli(logits=self.a).to_event(1)

    def decode(self, z):
        return dist.Bernoulli(logits=z @ self.W + self.b).to_event(1)

    def encode(self, x):
        return dist.Bernoulli(logits=x @ self.A + self.c).to_event(1)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encode(x))

    def tables(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x, z) and log q(z | x) for one datum x, (3,), and the four states of z: (4,) and (4,)."""
        z = states(2)
        return self.prior().log_prob(z) + self.decode(z).log_prob(x), self.encode(x).log_prob(z)


def states(number: int) -> Tensor:
    """All values of so many switches, (2^number, number)."""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=number)), dtype=torch.float64)


def expected_gradients(pair: Switches, objective: Objective, x: Tensor) -> tuple[float, Grads]:
    """The exact mean of the objective's loss and gradients for one datum: a sum over what K particles can be."""
    # Found by a run of the guide otherwise, which would meet the values of K particles.
    objective.max_plate_nesting = 1
    value, total = 0.0, {name: torch.zeros_like(p) for name, p in pair.named_parameters()}
    log_q = pair.tables(x)[1].detach()
    for outcome in itertools.product(range(4), repeat=objective.num_particles):
        drawn = Trace()
        z = states(2)[list(outcome)].unsqueeze(1)
        drawn.add_node("z", name="z", type="sample", value=z, is_observed=False, infer={})
        guide = pyro.poutine.replay(pair.guide, trace=drawn)
        chance = log_q[list(outcome)].sum().exp()
        loss = objective.differentiable_loss(pair.model, guide, x.unsqueeze(0))
        value += (chance * loss).item()
        for name, gradient in gradients_of(pair, loss).items():
            total[name] += chance * gradient
    return value, total


class GlobalSite(LinearGaussian):
    """A latent mean m that all data share, beside the z of each datum."""

    def model(self, x):
        m = pyro.sample("m", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z + m.unsqueeze(-1)), obs=x)

    def guide(self, x):
        pyro.sample("m", dist.Normal(self.c[0], self.l[1].exp()))
        super().guide(x)


class Subsampled(LinearGaussian):
    """The batch is a minibatch of `full_size` data."""

    full_size = 50

    def rows(self, x):
        return pyro.plate("data", self.full_size, subsample=torch.arange(len(x)), dim=-1)

    def model(self, x):
        with self.rows(x):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x):
        with self.rows(x):
            pyro.sample("z", self.encode(x))


class Scaled(LinearGaussian):
    """Both programs under one `poutine.scale`."""

    factor = 3.0

    def model(self, x):
        with pyro.poutine.scale(scale=self.factor):
            super().model(x)

    def guide(self, x):
        with pyro.poutine.scale(scale=self.factor):
            super().guide(x)


class Masked(LinearGaussian):
    """Rows that start with a negative number are left out."""

    def rows(self, x) -> Any:
        return x[:, 0] > 0

    def model(self, x):
        with pyro.poutine.mask(mask=self.rows(x)):
            super().model(x)

    def guide(self, x):
        with pyro.poutine.mask(mask=self.rows(x)):
            super().guide(x)


def log_weights(pair: LinearGaussian, x: Tensor, num_particles: int, seed: int = 0) -> Tensor:
    """log w by hand, (K, B), for the values that the guide draws after `torch.manual_seed(seed)`."""
    torch.manual_seed(seed)
    q = pair.encode(x)
    z = q.expand(torch.Size((num_particles, len(x)))).rsample()
    return pair.prior().log_prob(z) + pair.decode(z).log_prob(x) - q.log_prob(z)


class Never(Rollout):
    """Hands nothing over."""

    def once(self, name: str, inputs: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        return compute()


def seeded_bound(pair: Pair, objective: Objective, *batch, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return objective.bound(pair.model, pair.guide, *batch)


def seeded_loss(pair: Pair, objective: Objective, *batch, seed: int = 0) -> tuple[float, Grads]:
    """Our loss and its gradients."""
    pair.zero_grad()
    torch.manual_seed(seed)
    loss = objective.loss_and_grads(pair.model, pair.guide, *batch)
    return loss, gradients(pair)


def stock_loss(pair: Pair, elbo: pyro.infer.ELBO, *batch, seed: int = 0) -> tuple[float, Grads]:
    """Pyro's loss and its gradients, on the same seed."""
    svi = pair.pyro_svi(PyroOptim(torch.optim.SGD, {"lr": 0.0}), elbo)
    pair.zero_grad()
    torch.manual_seed(seed)
    loss = svi.loss_and_grads(svi.model, svi.guide, *batch)
    return float(loss), gradients(pair)


def gradients(pair: Pair) -> Grads:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in pair.named_parameters()}


def gradients_of(pair: Pair, loss: Tensor) -> Grads:
    """Gradients of a hand-written loss."""
    pair.zero_grad()
    loss.backward()
    return gradients(pair)


def assert_same(got: tuple[float, Grads], expected: tuple[float, Grads]) -> None:
    """Value and gradients are equal to 1e-10, and the gradients are not all zero."""
    assert got[0] == pytest.approx(expected[0], rel=1e-10, abs=1e-10)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-10, atol=1e-10)
    assert any(g.abs().max() > 1e-6 for g in expected[1].values())


def assert_compiled_is_eager(loss: PairLoss, x: Tensor) -> None:
    """Through Inductor, on shared noise: the loss and each parameter's gradient, to 1e-5 (float32)."""
    compiled = CompiledBackward(loss)
    losses, gradients = [], []
    for run in (partial(eager_backward, loss), compiled):
        loss.zero_grad()
        torch.manual_seed(1)
        losses.append(run(x))
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad for p in loss.parameters()])
    assert not compiled.failed
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    for got, expected in zip(*gradients, strict=True):
        assert (got - expected).norm() <= 1e-5 * expected.norm() + 1e-6


def z_score(sample: Tensor, expected: float | Tensor = 0.0) -> Tensor:
    """(mean - expected) / standard error over dimension 0."""
    return (sample.mean(0) - expected) / (sample.std(0) / len(sample) ** 0.5)


def chunk_gradients(pair: Pair, objective: Objective, x: Tensor, chunks: int = 100) -> Tensor:
    """The gradient of the mean objective over the rows of x, `chunks` times independently: (chunks, parameters)."""
    rows = []
    for chunk in range(chunks):
        gradient = seeded_loss(pair, objective, x, seed=chunk)[1]
        rows.append(torch.cat([-g.flatten() / len(x) for g in gradient.values()]))
    return torch.stack(rows)


def farthest(sample: Tensor, expected: float | Tensor = 0.0) -> float:
    """Largest |t| of sample, (chunks, parameters), over its limit: by chance above 1 with probability 1e-5.

    The limit is Bonferroni's over the parameters. For two gradients on shared seeds, `sample` is their difference.
    Entries that are constant and as expected are left out.
    """
    difference, deviation = sample.mean(0) - expected, sample.std(0)
    keep = (deviation > 1e-14) | (difference.abs() > 1e-12)
    t = difference[keep].abs() / (deviation[keep] / len(sample) ** 0.5)
    return t.max().item() / float(stats.t.isf(0.5e-5 / len(t), len(sample) - 1))


def pyro_adam(lr: float) -> PyroOptim:
    return PyroOptim(torch.optim.Adam, {"lr": lr})


def stock_renyi(alpha: Any, num_particles: int, vectorised: bool) -> pyro.infer.RenyiELBO:
    return pyro.infer.RenyiELBO(alpha, num_particles, max_plate_nesting=1, vectorize_particles=vectorised)


def generate(pair: Pair, *batch: Tensor) -> dict[str, Any]:
    """The nodes of an ancestral sample."""
    return dict(pair.generate(*batch).nodes)


def steps(svi: Any, batch: Sequence[Tensor], number: int) -> list[float]:
    return [float(svi.step(*batch)) for _ in range(number)]
