"""Pairs of switches, chains and mixtures, small enough to sum over all their states."""

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import torch
from pyro.infer import config_enumerate
from torch import Tensor, nn

from ppl_vae import Pair
from tests import helpers
from tests.helpers import (
    DiscreteGuide,
    Grads,
    Switches,
    gradients,
    gradients_of,
    linear,
    vectors,
)

X = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
AVERAGE = {"use_decaying_avg_baseline": True, "baseline_beta": 0.7}


def switches(rows: int = 5) -> Tensor:
    return torch.bernoulli(torch.full((rows, 3), 0.5, dtype=torch.float64))


class Two(Pair):
    """Two independent switches, each with a pixel of its own and one that both see."""

    baselines: Any = ({}, {})

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(n, dtype=torch.float64)) for n in (2, 3, 2))
        self.w, self.A = nn.Parameter(torch.randn(4).double()), nn.Parameter(torch.randn(3, 2).double())
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)).double()

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(logits=self.a[0]))
            z = pyro.sample("z", dist.Bernoulli(logits=self.a[1]))
            pyro.sample("x0", dist.Bernoulli(logits=self.b[0] + self.w[0] * y), obs=x[:, 0])
            pyro.sample("x1", dist.Bernoulli(logits=self.b[1] + self.w[1] * z), obs=x[:, 1])
            pyro.sample("x2", dist.Bernoulli(logits=self.b[2] + self.w[2] * y + self.w[3] * y * z), obs=x[:, 2])

    def infer(self, i: int, x: Tensor) -> Any:
        options = dict(self.baselines[i])
        particles = options.pop("particles", None)
        if options.pop("network", False):
            # The cost of K particles drawn in one trace has the shape (K, B).
            options |= {"nn_baseline": self.net, "nn_baseline_input": x}
            if particles:
                options["nn_baseline"] = lambda x: self.net(x).expand(particles, len(x))
        if options.pop("value", False):
            options["baseline_value"] = self.net(x)
        return {"baseline": options} if options else {}

    def guide(self, x):
        logits = x @ self.A + self.c
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Bernoulli(logits=logits[..., 0]), infer=self.infer(0, x))
            pyro.sample("z", dist.Bernoulli(logits=logits[..., 1]), infer=self.infer(1, x))


class Tied(Two):
    """The second switch depends on the first, in model and guide; a category and a Normal besides."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(logits=self.a[0]))
            z = pyro.sample("z", dist.Bernoulli(logits=self.a[1] * y))
            k = pyro.sample("k", dist.Categorical(logits=self.b * z.unsqueeze(-1)))
            u = pyro.sample("u", dist.Normal(self.b[k.long()], 1.0))
            pyro.sample("x0", dist.Bernoulli(logits=self.b[0] + self.w[0] * y * u), obs=x[:, 0])
            pyro.sample("x1", dist.Bernoulli(logits=self.b[1] + self.w[1] * z + k), obs=x[:, 1])

    def guide(self, x):
        logits = x @ self.A + self.c
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(logits=logits[..., 0]))
            pyro.sample("z", dist.Bernoulli(logits=logits[..., 1] * y))
            pyro.sample("k", dist.Categorical(logits=x @ torch.diag(self.b)))
            pyro.sample("u", dist.Normal(logits[..., 0] * y, 1.0))


class Sequential(Two):
    """One switch is enumerated by a run for each of its states."""

    def infer(self, i: int, x: Tensor) -> Any:
        return {"enumerate": "sequential"} if i == 0 else {}


class GlobalSequential(Two):
    """A latent mean that all data share, outside the plate whose switch is enumerated by runs."""

    def model(self, x):
        m = pyro.sample("m", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(logits=self.a[0]))
            pyro.sample("x", dist.Bernoulli(logits=self.b + (self.w[0] * y + m).unsqueeze(-1)).to_event(1), obs=x)

    def guide(self, x):
        pyro.sample("m", dist.Normal(self.c[0], 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Bernoulli(logits=(x @ self.A)[:, 0]), infer={"enumerate": "sequential"})


class HalfSampled(Two):
    """One switch is sampled."""

    def infer(self, i: int, x: Tensor) -> Any:
        return {"enumerate": None} if i == 0 else {}


class Chain(Two):
    """A chain of switches y0, y1, y2, one for each pixel; the guide has it too, with memory of its own."""

    def chain(self, x, first: Tensor, stay: Tensor, observed: bool) -> None:
        y: Any = 0.0
        with pyro.plate("data", len(x), dim=-1):
            for t in pyro.markov(range(3)):
                y = pyro.sample(f"y{t}", dist.Bernoulli(logits=first[..., t] + stay * y))
                if observed:
                    pyro.sample(f"x{t}", dist.Bernoulli(logits=self.w[1] + self.w[2] * y), obs=x[:, t])

    def model(self, x):
        self.chain(x, self.b, self.a[0], True)

    def guide(self, x):
        self.chain(x, x * self.c[0], self.c[1], False)


class HiddenChain(Chain):
    """The guide leaves the chain out."""

    def guide(self, x):
        pass


class Mixture(Pair):
    """p(k) = Categorical(a), p(z) = Normal(0, 1), p(x | z, k) = Normal(m_k + z, s): the guide leaves k out."""

    penalised = False

    def __init__(self):
        super().__init__()
        self.a, self.m, self.c = (nn.Parameter(torch.randn(n, dtype=torch.float64)) for n in (3, 3, 3))

    def rows(self, x) -> Any:
        return pyro.plate("data", len(x), dim=-1)

    def model(self, x):
        with self.rows(x):
            k = pyro.sample("k", dist.Categorical(logits=self.a))
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(self.m[k] + z, 0.5), obs=x)
            if self.penalised:
                pyro.factor("penalty", -x.square())

    def guide(self, x):
        with self.rows(x):
            pyro.sample("z", dist.Normal(self.c[0] * x + self.c[1], self.c[2].exp()))

    def log_p(self, x: Tensor, z: Tensor | float = 0.0) -> Tensor:
        """log sum_k p(k) p(x | z, k), (..., B)."""
        parts = [self.a.log_softmax(0)[k] + dist.Normal(self.m[k] + z, 0.5).log_prob(x) for k in range(3)]
        return torch.stack(parts).logsumexp(0)


class Renamed(Mixture):
    def rows(self, x) -> Any:
        return pyro.plate("rows", len(x), dim=-1)


class PureMixture(Mixture):
    """Without z: log p(x) is known, and the guide is empty."""

    def model(self, x):
        with self.rows(x):
            k = pyro.sample("k", dist.Categorical(logits=self.a))
            pyro.sample("x", dist.Normal(self.m[k], 0.5), obs=x)

    def guide(self, x):
        pass


class Subsampled(Mixture):
    def rows(self, x) -> Any:
        return pyro.plate("data", 50, subsample=torch.arange(len(x)), dim=-1)


class Penalised(Subsampled):
    penalised = True


def by_pyro(pair: Pair, elbo: Any, x: Tensor, seed: int = 0) -> tuple[float, Grads]:
    """Pyro's value and gradient; discrete sites are configured as its users do."""
    pair.zero_grad()
    torch.manual_seed(seed)
    if isinstance(elbo, pyro.infer.TraceGraph_ELBO):
        return elbo.loss_and_grads(pair.model, pair.guide, x), gradients(pair)
    loss = elbo.differentiable_loss(config_enumerate(pair.model), config_enumerate(pair.guide), x)
    return loss.item(), gradients_of(pair, loss)


def exact_elbo(pair: Switches, x: Tensor) -> Tensor:
    log_p, log_q = pair.tables(x)
    return (log_q.exp() * (log_p - log_q)).sum()


def numbers(rows: int = 5) -> Tensor:
    return torch.randn(rows, dtype=torch.float64)


ENUMERATED = {
    "two": (Two, switches), "tied": (Tied, switches), "sequential": (Sequential, switches),
    "global sequential": (GlobalSequential, switches), "half": (HalfSampled, switches),
    "chain": (Chain, switches), "hidden": (HiddenChain, switches),
    "mixture": (Mixture, numbers), "pure": (PureMixture, numbers),
    "subsampled": (Subsampled, numbers), "factor": (Penalised, numbers),
    "normal": (lambda: linear(DiscreteGuide), vectors), "global": (lambda: linear(helpers.GlobalSite), vectors),
}  # fmt: skip


def with_averages(seed: int = 0) -> Two:
    torch.manual_seed(seed)
    pair = Two()
    pair.baselines = (AVERAGE, AVERAGE)
    return pair


def weights_after(pair: Two, svi: Any, x: Tensor, number: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    for _ in range(number):
        svi.step(x)
    return torch.cat([p.detach().flatten() for p in pair.parameters()])


def adam(pair: Pair) -> torch.optim.Adam:
    return torch.optim.Adam(pair.parameters(), lr=0.05)
