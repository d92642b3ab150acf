"""Monte Carlo EM against Gaussian posteriors, hand-written log densities, and the closed-form maximum likelihood.

The statistical tests compare means over independent chains, one for each datum, with their expectations.
"""

import copy
import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vae.data import Dataset, binarise, load
from ppl_vae.mcem import MarkovGuide, fit_mcem
from ppl_vae.objectives import Trace_ELBO
from ppl_vae.pair import Pair
from ppl_vae.pairs import VAE, HierarchicalVAE
from ppl_vae.rates import Cosine
from ppl_vae.testing import LinearGaussian
from tests.helpers import DiscreteGuide, GlobalSite, assert_same, gradients_of, seeded_bound, seeded_loss

OPTIONS: dict[str, Any] = {"device": "cpu", "progress": False}


class Positive(LinearGaussian):
    """A latent site of positive values."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            scale = pyro.sample("scale", dist.LogNormal(x.new_zeros(()), 1.0))
            pyro.sample("x", self.decode(x.new_zeros(2) * scale.unsqueeze(-1)), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("scale", dist.LogNormal(self.c[0], 1.0))


class Plates(LinearGaussian):
    """A unit for each element of x, in a plate of their own."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.plate("units", 4, dim=-2):
            z = pyro.sample("z", dist.Normal(0 * self.c[0], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.plate("units", 4, dim=-2):
            pyro.sample("z", dist.Normal(0.3 * x.T, 1.0))


class Shapes(Pair):
    """p(a) = p(B_ij) = N(0, 1) for a number a and a matrix B (2, 3), p(x | a, B) = N(a + sum B, 1) in rows of its own.

    The sum has the posterior N(7 / 8 x, 7 / 8).
    """

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def model(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
            B = pyro.sample("B", dist.Normal(x.new_zeros(2, 3), 1.0).to_event(2))
            pyro.sample("x", dist.Normal(a + B.sum((-1, -2)) + self.bias, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("B", dist.Normal(x.new_zeros(2, 3), 1.0).to_event(2))
            pyro.sample("a", dist.Normal(x, 1.0))


def oracle(rows: int, kind: type[LinearGaussian] = LinearGaussian) -> tuple[LinearGaussian, Tensor]:
    """A pair whose posterior is far from its prior, and data of its model."""
    pair = kind(4, 2).double()
    with torch.no_grad():
        pair.log_s.fill_(-0.7)
        pair.b.fill_(0.5)
        x = pair.decode(pair.prior().sample(torch.Size((rows,)))).sample() + 1.0
    return pair, x


def scores(pair: LinearGaussian, x: Tensor, z: Tensor) -> Tensor:
    """Of the five moments of z under the posteriors, in standard errors: above 4.76 by chance with probability 1e-5."""
    moments = whitened_moments(pair, x, z)
    return (moments.mean(0) / (moments.std(0) / len(z) ** 0.5)).abs()


def whitened_moments(pair: LinearGaussian, x: Tensor, z: Tensor) -> Tensor:
    """u_1, u_2, u_1^2 - 1, u_2^2 - 1 and u_1 u_2, (N, 5), where u ~ N(0, I) if z is of the posterior."""
    posterior = pair.posterior(x)
    whiten = torch.linalg.inv(torch.linalg.cholesky(posterior.covariance_matrix))
    u = torch.einsum("nij,nj->ni", whiten, z - posterior.mean).detach()
    return torch.cat([u, u.square() - 1, u.prod(-1, keepdim=True)], 1)


@pytest.mark.parametrize("acceptance", [0.9, 0.65])
def test_chains_come_to_the_posterior_at_the_acceptance_asked_for(acceptance: float) -> None:
    """2,000 chains, and the means of 20 states of theirs. Fails by chance with probability 2e-5.

    The acceptance is known to 0.002.
    """
    pair, x = oracle(2_000)
    chains, rows = MarkovGuide(pair, x, acceptance=acceptance, updates=1), torch.arange(2_000)
    assert scores(pair, x, chains.z).max() > 20
    for _ in range(80):
        chains.move(x, rows)
    before, states = chains.accepted.clone(), []
    for _ in range(20):
        chains.move(x, rows)
        states.append(whitened_moments(pair, x, chains.z))
    assert scores(pair, x, chains.z).max() < 4.76
    means = torch.stack(states).mean(0)  # of each chain, which are independent
    assert (means.mean(0) / means.std(0) * 2_000**0.5).abs().max() < 4.76
    assert ((chains.accepted - before) / 20).mean().item() == pytest.approx(acceptance, abs=0.03)
    assert chains.acceptance_rate == pytest.approx(chains.accepted.mean().item() / 100)


def test_training_moves_the_chains_of_its_rows_to_their_posteriors() -> None:
    """With a learning rate of 0 the model stays. Fails by chance with probability 1e-5."""
    pair, x = oracle(2_000)
    before = copy.deepcopy(pair.state_dict())
    history, chains = fit_mcem(pair, x, steps=120, batch_size=1_000, learning_rate=0.0, updates=1, **OPTIONS)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), pair.state_dict().values(), strict=True))
    assert history.steps == 120 and chains.visits.tolist() == [60] * 2_000
    assert scores(pair, x, chains.z).max() < 4.76
    # The learning curve is of log p(x, z) at the points: at last those of the posterior.
    log_p = (pair.prior().log_prob(chains.z) + pair.decode(chains.z).log_prob(x)).mean().item()
    assert history.records[-1].bound == pytest.approx(log_p, abs=0.2)


def test_sites_of_other_shapes_and_another_plate() -> None:
    """The sum of seven latent values. Fails by chance with probability 1e-5 (two moments)."""
    pair, x = Shapes(), torch.full((3_000,), 1.6, dtype=torch.float64)
    chains, rows = MarkovGuide(pair, x, leapfrogs=5, updates=1), torch.arange(3_000)
    assert chains.z.shape == (3_000, 7) and {n: tuple(s) for n, s in chains.shapes.items()} == {"a": (), "B": (2, 3)}
    for _ in range(50):
        chains.move(x, rows)
    u = (chains.z.sum(-1) - 7 / 8 * 1.6) / math.sqrt(7 / 8)
    for moment in (u, u.square() - 1):
        assert abs(moment.mean() / moment.std() * 3_000**0.5) < 4.57
    nodes: dict[str, Any] = dict(pyro.poutine.trace(chains.eval().guide).get_trace(x[:2], rows[:2]).nodes)
    assert torch.equal(nodes["a"]["value"], chains.z[:2, 0])
    assert torch.equal(nodes["B"]["value"].flatten(1), chains.z[:2, 1:])


def log_joint(pair: LinearGaussian, x: Tensor, z: Tensor) -> Tensor:
    return dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + pair.decode(z).log_prob(x)


def test_the_elbo_is_log_p_at_the_points() -> None:
    """Its loss moves them first, and is then -log p(x, z) with the model's gradient alone."""
    pair, x = oracle(6)
    chains, rows = MarkovGuide(pair, x), torch.tensor([4, 0, 3])
    before = chains.z.clone()
    value, got = seeded_loss(chains, Trace_ELBO(), x[rows], rows)
    assert torch.equal((chains.z != before).all(1), torch.tensor([True, False, False, True, True, False]))
    loss = -log_joint(pair, x[rows], chains.z[rows]).sum()
    expected = {f"pair.{name}": gradient for name, gradient in gradients_of(pair, loss).items()}
    assert_same((value, got), (loss.item(), expected))
    assert all(not got[f"pair.{name}"].any() for name in ("A", "c", "l"))
    bound = seeded_bound(chains, Trace_ELBO(), x[rows], rows)
    torch.testing.assert_close(bound, log_joint(pair, x[rows], chains.z[rows]).detach(), rtol=1e-12, atol=1e-12)


def test_layers_are_side_by_side_in_the_models_order() -> None:
    pair, x = HierarchicalVAE((1, 3, 4), (4, 3), ((6,), (5,))).double(), torch.rand(5, 1, 3, 4).double().round()
    chains, rows = MarkovGuide(pair, x), torch.arange(5)
    z2, z1 = chains.z.split([3, 4], 1)
    log_p = dist.Normal(0.0, 1.0).log_prob(z2).sum(-1) + pair.down[0](z2).log_prob(z1) + pair.decoder(z1).log_prob(x)
    torch.testing.assert_close(seeded_bound(chains, Trace_ELBO(), x, rows), log_p.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("updates", [1, 3])
def test_a_transition_at_every_so_many_visits(updates: int) -> None:
    pair, x = oracle(4)
    chains = MarkovGuide(pair, x, updates=updates)
    assert math.isnan(chains.acceptance_rate)
    made = torch.zeros(4, dtype=torch.int64)
    for visit in range(7):
        rows = torch.arange(4) if visit % 2 == 0 else torch.tensor([3, 1])  # the others have fewer visits
        before, visits, step = chains.accepted.clone(), chains.visits.clone(), chains.step_size.clone()
        chains.move(x[rows], rows)
        moved = torch.zeros(4, dtype=torch.bool)
        moved[rows] = visits[rows] % updates == 0
        assert torch.equal(chains.accepted > before, moved)
        assert (chains.step_size != step).item() == moved.any().item()
        made += moved
    assert chains.visits.tolist() == [4, 7, 4, 7]
    assert chains.acceptance_rate == pytest.approx((chains.accepted.sum() / made.sum()).item())


def test_points_stay_where_nothing_is_learnt() -> None:
    pair, x = oracle(5)
    chains, rows = MarkovGuide(pair, x, updates=1), torch.arange(5)
    state, random = copy.deepcopy(chains.state_dict()), torch.get_rng_state()
    Trace_ELBO().bound(chains.model, chains.guide, x, rows)
    Trace_ELBO().loss(chains.model, chains.guide, x, rows)
    Trace_ELBO(3).bound(chains.model, chains.guide, x, rows)
    chains.eval()
    Trace_ELBO()(chains)(x, rows)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), chains.state_dict().values(), strict=True))
    assert torch.equal(random, torch.get_rng_state())
    chains.train()
    Trace_ELBO()(chains)(x, rows)
    assert all(not torch.equal(a, b) for a, b in zip(chains.buffers(), _of(state, chains), strict=True))


def _of(state: dict[str, Any], chains: MarkovGuide) -> list[Tensor]:
    return [state[name] for name, _ in chains.named_buffers()]


def test_transitions_leave_the_model_and_its_modes_alone() -> None:
    pair, x = oracle(5)
    pair.W.requires_grad_(False)
    before, trained = copy.deepcopy(pair.state_dict()), [p.requires_grad for p in pair.parameters()]
    chains = MarkovGuide(pair, x, updates=1)
    assert pair.training and chains.training
    chains.move(x, torch.arange(5))
    assert pair.training and [p.requires_grad for p in pair.parameters()] == trained
    assert all(p.grad is None for p in pair.parameters()) and not chains.z.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(before.values(), pair.state_dict().values(), strict=True))
    assert len(pyro.get_param_store()) == 0


def test_a_motion_that_diverges_is_refused_and_shortens_the_steps() -> None:
    pair, x = oracle(5)
    chains = MarkovGuide(pair, x, updates=1)
    chains.step_size.fill_(1e200)
    before = chains.z.clone()
    chains.move(x, torch.arange(5))
    assert torch.equal(chains.z, before) and not chains.accepted.any() and chains.step_size < 1e200


class Crash(Exception):
    """What ends a run."""


def test_a_resumed_run_ends_the_same(tmp_path: Path) -> None:
    """Weights, points, step sizes and visits, to the last bit."""
    runs = []

    def run(folder: Path | None = None, crash: int | None = None) -> None:
        def on_step(step: int) -> None:
            if step == crash:
                raise Crash

        torch.manual_seed(0)
        pair, x = oracle(30)
        kept = {"checkpoints": folder, "checkpoint_every": 4, "resume": True} if folder else {}
        options = {"steps": 20, "batch_size": 8, "updates": 2, "on_step": on_step, "learning_rate": 0.05}
        history, chains = fit_mcem(pair, x, **options, **OPTIONS, **kept)
        runs.append((chains.state_dict(), [(r.step, r.bound) for r in history.records]))

    run()
    with pytest.raises(Crash):
        run(tmp_path, crash=11)
    run(tmp_path)
    (whole, curve), (again, resumed) = runs
    assert whole.keys() >= {"z", "step_size", "visits", "accepted", "pair.W"}
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name
    assert curve == resumed and len(curve) == 20


def test_runs_follow_their_seed() -> None:
    """The first points too; the global random state stays."""
    pair, x = oracle(8)
    points, state = [], torch.get_rng_state()
    for seed in (1, 1, 2):
        _, chains = fit_mcem(copy.deepcopy(pair), x, steps=2, batch_size=4, seed=seed, **OPTIONS)
        points.append(chains.z)
    assert torch.equal(points[0], points[1]) and not torch.equal(points[0], points[2])
    assert torch.equal(state, torch.get_rng_state())


def test_it_comes_to_the_maximum_of_the_likelihood() -> None:
    """Probabilistic PCA in closed form: within 0.06 nats, where the first weights are more than 3 nats away."""
    _, x = oracle(500)
    pair = LinearGaussian(4, 2).double()
    best, first = pair.optimum(x), pair.log_likelihood(x).mean().item()
    options: dict[str, Any] = {"learning_rate": 0.05, "schedule": Cosine(500), **OPTIONS}
    guide = [p.clone() for p in (pair.A, pair.c, pair.l)]
    history, chains = fit_mcem(pair, x, steps=500, batch_size=100, **options)
    last = pair.log_likelihood(x).mean().item()
    assert first < best - 3 and best - 0.06 < last <= best
    assert all(torch.equal(a, b) for a, b in zip(guide, (pair.A, pair.c, pair.l), strict=True))
    assert history.steps == 500 and chains.pair is pair and 0.5 < chains.acceptance_rate < 1


def test_statically_binarised_data_are_welcome() -> None:
    digits = binarise(load("digits"), "static")
    history, chains = fit_mcem(VAE(digits.shape, 2, (5,)), digits, steps=2, batch_size=10, leapfrogs=2, **OPTIONS)
    assert history.steps == 2 and chains.z.shape == (len(digits.train), 2) and int(chains.visits.sum()) == 20


def test_other_data_are_refused() -> None:
    digits = load("digits")
    with pytest.raises(ValueError, match=r"data: got binarisation 'dynamic'.*use data.binarise\(..., 'static'\)"):
        fit_mcem(VAE(digits.shape, 2, (5,)), digits, steps=1, **OPTIONS)
    pair, x = oracle(5)
    stored: Any = [x, x]
    with pytest.raises(ValueError, match="data: got list, expected data in memory"):
        fit_mcem(pair, stored, steps=1, **OPTIONS)
    grey = Dataset(name="grey", train=torch.rand(6, 4), test=torch.rand(2, 4), binarisation="none")
    assert fit_mcem(LinearGaussian(4, 2), grey, steps=1, batch_size=3, **OPTIONS)[0].steps == 1


@pytest.mark.parametrize("option", [{"valid": torch.zeros(3, 4)}, {"compile": "off"}, {"aggressive": True}])
def test_options_of_fit_that_have_no_meaning_here(option: dict[str, Any]) -> None:
    pair, x = oracle(5)
    with pytest.raises(ValueError, match=f"{next(iter(option))}: got it for Monte Carlo EM, expected it left out"):
        fit_mcem(pair, x, steps=1, **option, **OPTIONS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"acceptance": 0.0}, "acceptance: got 0.0, expected a probability"),
        ({"acceptance": 1.0}, "acceptance: got 1.0"),
        ({"acceptance": math.nan}, "acceptance: got nan"),
        ({"updates": 0}, "updates: got 0, expected a whole number of at least 1"),
        ({"updates": True}, "updates: got True"),
        ({"updates": 1.5}, "updates: got 1.5"),
        ({"leapfrogs": 0}, "leapfrog.*: got 0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    pair, x = oracle(5)
    with pytest.raises(ValueError, match=message):
        MarkovGuide(pair, x, **settings)
    with pytest.raises(ValueError, match=message):
        fit_mcem(pair, x, steps=1, **settings, **OPTIONS)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (DiscreteGuide, "site 'y': got Bernoulli.*expected all real values"),
        (Positive, "site 'scale': got LogNormal"),
        (GlobalSite, "'m'"),
        (Plates, "pair: got latent sites in several plates, expected the data's alone"),
    ],
)
def test_refused_sites_are_named(kind: type[LinearGaussian], message: str) -> None:
    pair, x = oracle(5, kind)
    with pytest.raises(ValueError, match=message):
        MarkovGuide(pair, x)
