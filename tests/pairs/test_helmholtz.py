"""HelmholtzMachine against sums over all states of its units, and the delta rules of Hinton et al. 1995."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import evaluation, fit
from ppl_vae.objectives import (
    IWAE,
    VIMCO,
    Objective,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    WakeSleep,
)
from ppl_vae.pairs import HelmholtzMachine
from ppl_vae.rates import Cosine
from ppl_vae.terms import draw
from ppl_vae.testing import check_pair
from tests.helpers import assert_same, generate, gradients_of, seeded_bound, seeded_loss, states

SHAPE = (1, 2, 3)
DEPTHS = [(3,), (4, 3), (2, 3, 2)]


def machine(units: tuple[int, ...], shape: tuple[int, ...] = SHAPE) -> HelmholtzMachine:
    """With weights large enough for the states to differ."""
    pair = HelmholtzMachine(shape, units).double()
    for parameter in pair.parameters():
        parameter.data.normal_()
    return pair


def pixels(rows: int = 5, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(rows, *shape, dtype=torch.float64).round()


def belief(network: nn.Module, parent: Tensor, child: Tensor) -> Tensor:
    """log p(child | parent), by hand, of values (..., units)."""
    layer = network[0].output  # pyright: ignore[reportIndexIssue]
    logits = parent @ layer.weight.T + layer.bias
    return (child * logits - nn.functional.softplus(logits)).sum(-1)


def log_joint(pair: HelmholtzMachine, x: Tensor, z: list[Tensor]) -> Tensor:
    """log p(x, z_1, ..., z_L) of flat x, by hand."""
    total = (z[-1] * pair.top - nn.functional.softplus(pair.top)).sum(-1)
    for network, parent, child in zip([pair.decoder, *pair.down], z, [x, *z[:-1]], strict=True):
        total = total + belief(network, parent, child)
    return total


def log_guide(pair: HelmholtzMachine, x: Tensor, z: list[Tensor]) -> Tensor:
    """log q(z_1, ..., z_L | x) of flat x, by hand."""
    total = torch.zeros((), dtype=x.dtype)
    for network, below, above in zip(pair.up, [x, *z[:-1]], z, strict=True):
        total = total + belief(network, below, above)
    return total


def tables(pair: HelmholtzMachine, x: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x, z) and log q(z | x) of all states of all units, (S, B) each."""
    every = states(sum(pair.latent_dims)).unsqueeze(1)
    z = list(every.split(list(pair.latent_dims), -1))
    return log_joint(pair, x.flatten(1), z), log_guide(pair, x.flatten(1), z)


@pytest.mark.parametrize("units", DEPTHS)
def test_terms_by_hand(units):
    pair, x = machine(units), pixels()
    terms, names = draw(pair.model, pair.guide, x, num_particles=4), [f"z{i}" for i in range(1, len(units) + 1)]
    assert list(terms.log_q) == names and list(terms.log_p) == [*reversed(names), "x"]
    z = [terms.draws[0].guide[name].value for name in names]
    assert [v.shape for v in z] == [(4, 5, n) for n in units] and set(z[0].unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(terms.log_likelihood() + terms.log_ratio(), terms.log_weight())
    torch.testing.assert_close(torch.stack(list(terms.log_p.values())).sum(0), log_joint(pair, x.flatten(1), z))
    torch.testing.assert_close(terms.sum_log_q(), log_guide(pair, x.flatten(1), z))


@pytest.mark.parametrize("units", DEPTHS)
def test_probabilities_sum_to_one(units):
    pair = machine(units, (3,))
    log_p, log_q = tables(pair, states(3))
    torch.testing.assert_close(log_p.exp().sum(), torch.ones(()).double())
    torch.testing.assert_close(log_q.exp().sum(0), torch.ones(8).double())


@pytest.mark.parametrize("units", DEPTHS)
def test_enumeration_is_log_p_without_a_guide_and_the_exact_elbo_with_it(units):
    pair, x = machine(units), pixels()
    log_p, log_q = tables(pair, x)
    marginal = TraceEnum_ELBO().bound(pair.model, lambda x: None, x)
    torch.testing.assert_close(marginal, log_p.logsumexp(0).detach(), rtol=1e-10, atol=1e-10)
    elbo = (log_q.exp() * (log_p - log_q)).sum(0)
    assert_same(seeded_loss(pair, TraceEnum_ELBO(), x), (-elbo.sum().item(), gradients_of(pair, -elbo.sum())))
    torch.testing.assert_close(seeded_bound(pair, TraceEnum_ELBO(), x), elbo.detach(), rtol=1e-10, atol=1e-10)


def test_log_likelihood_is_the_sum_over_all_states():
    """By importance sampling with 20,000 particles. Fails by chance with probability 1e-5 (5 data, each 2e-6)."""
    pair, x = machine((4, 3)), pixels()
    for parameter in pair.up.parameters():
        parameter.data.mul_(0.3)
    log_p, log_q = (table.detach() for table in tables(pair, x))
    total = log_p.logsumexp(0)
    error = ((2 * (log_p - total) - log_q).exp().sum(0) - 1).sqrt() / 20_000**0.5
    got = evaluation.log_likelihood(pair, x, num_particles=20_000, seed=0)
    assert (((got - total).expm1()) / error).abs().max() < 4.76 and error.max() < 0.1


def delta_rule(network: nn.Module, parent: Tensor, child: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """-sum w (child - p) parent^T and -sum w (child - p), for values (K, B, ...) and weights (K, B)."""
    error = weight.unsqueeze(-1) * (child - network(parent).mean).flatten(2)
    return {"weight": -torch.einsum("kbi,kbj->ij", error, parent.flatten(2)), "bias": -error.sum((0, 1))}


@pytest.mark.parametrize("units", DEPTHS)
@pytest.mark.parametrize("insomnia", [None, 1.0, 0.3])
@torch.no_grad()
def test_gradients_are_the_delta_rules(units, insomnia):
    """Of wake-sleep (None), and of reweighted wake-sleep, whose wake phases weigh their samples; on the same samples.

    Wake: dW = (x - p) z^T for the model, and (z - q) x^T for the guide; sleep: the latter in a dream.
    """
    pair, x, K = machine(units), pixels(), 1 if insomnia is None else 3
    torch.manual_seed(0)
    awake = [x.expand(K, *x.shape)]
    for network in pair.up:
        below = awake[-1][0] if len(awake) == 1 else awake[-1]
        awake.append(network(below).expand([K, len(x)]).sample())
    dream = [dist.Bernoulli(logits=pair.top).to_event(1).expand([len(x)]).sample()]
    if insomnia != 1.0:
        for network in [*reversed(pair.down), pair.decoder]:
            dream.insert(0, network(dream[0]).sample())
    log_p, log_q = (part(pair, x.flatten(1), awake[1:]) for part in (log_joint, log_guide))
    log_w, ones = log_p - log_q, torch.ones(1, len(x), dtype=torch.float64)
    weight = log_w.softmax(0)
    by_name = {"decoder": pair.decoder, **{f"down.{i}": network for i, network in enumerate(pair.down)}}
    rules = [("top", {"": -(weight.unsqueeze(-1) * (awake[-1] - pair.top.sigmoid())).sum((0, 1))})]
    for (name, network), parent, child in zip(by_name.items(), awake[1:], awake[:-1], strict=True):
        rules.append((f"{name}.0.output.", delta_rule(network, parent, child, weight)))
    wake, sleep = (0.0, 1.0) if insomnia is None else (insomnia, 1 - insomnia)
    for i, network in enumerate(pair.up):
        phases = [delta_rule(network, awake[i], awake[i + 1], wake * weight)]
        if sleep:
            phases.append(delta_rule(network, dream[i].unsqueeze(0), dream[i + 1].unsqueeze(0), sleep * ones))
        rules.append((f"up.{i}.0.output.", {n: torch.stack([phase[n] for phase in phases]).sum(0) for n in phases[0]}))
    expected = {owner + name: value for owner, rule in rules for name, value in rule.items()}
    bound = log_w.mean(0) if insomnia is None else log_w.logsumexp(0) - math.log(K)
    objective = WakeSleep() if insomnia is None else ReweightedWakeSleep(K, insomnia)
    with torch.enable_grad():
        assert_same(seeded_loss(pair, objective, x), (-bound.sum().item(), expected))


PATTERNS = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 1, 0, 1, 0], [0, 1, 1, 0, 0, 1]]).float()
COUNTS = torch.tensor([40, 30, 20, 10])
TRAINED: dict[str, tuple[Objective, float, float]] = {
    # gap between minus the data's entropy and log p(x), and between log p(x) and the bound, in nats
    "wake-sleep": (WakeSleep(), 0.8, 0.3),
    "reweighted": (ReweightedWakeSleep(10), 0.2, 0.05),
    "vimco": (VIMCO(10), 0.25, 0.05),
    "enumerated": (TraceEnum_ELBO(), 0.3, 0.05),
}


@pytest.mark.parametrize("name", TRAINED)
def test_training_approaches_the_entropy_of_the_data(name):
    """No model of the four patterns has more than -1.28 nats, and this one begins near -4.2.

    The bounds are measured to 0.005 nats.
    """
    objective, gap, slack = TRAINED[name]
    x = PATTERNS.repeat_interleave(COUNTS, 0).reshape(-1, *SHAPE)
    frequency = COUNTS.double() / COUNTS.sum()
    entropy = -(frequency * frequency.log()).sum().item()
    pair = HelmholtzMachine(SHAPE, (4, 3))
    options = {"batch_size": 50, "device": "cpu", "compile": "off", "progress": False}
    fit(pair, x, objective, steps=300, learning_rate=0.1, schedule=Cosine(300), **options)
    pair.double()
    exact = (frequency @ tables(pair, PATTERNS.double().reshape(-1, *SHAPE))[0].logsumexp(0)).item()
    bound = evaluation.bound(pair, objective, x.double().repeat(50, 1, 1, 1), seed=0).mean().item()
    assert -entropy - gap < exact < -entropy
    assert exact - slack < bound < exact + 0.005


@pytest.mark.parametrize("units", DEPTHS)
def test_samples_have_the_exact_marginals(units):
    """Fails by chance with probability 1e-5 (6 pixels)."""
    pair = machine(units)
    nodes = generate(pair, torch.zeros(20_000, *SHAPE).double())
    for layer, n in enumerate(units, start=1):
        assert nodes[f"z{layer}"]["value"].shape == (20_000, n)
    x = nodes["x"]["value"]
    assert x.shape == (20_000, *SHAPE) and set(x.unique().tolist()) == {0.0, 1.0}
    every = states(6)
    p = tables(pair, every.reshape(-1, *SHAPE))[0].logsumexp(0).exp().detach() @ every
    error = (p * (1 - p) / 20_000).sqrt()
    assert ((x.flatten(1).mean(0) - p) / error).abs().max() < 4.8


def test_output_starts_at_the_pixel_means():
    pair, mean = machine((4, 3)), 0.2 + 0.6 * torch.rand(SHAPE, dtype=torch.float64)
    for parameter in pair.decoder.parameters():
        parameter.detach().zero_()
    pair.set_output_mean(mean)
    torch.testing.assert_close(pair.decoder(states(4)).mean, mean.expand(16, *SHAPE))


@pytest.mark.parametrize("units", DEPTHS)
def test_pair_passes_the_checks(units):
    report = check_pair(HelmholtzMachine(SHAPE, units), pixels().float())
    assert report.ok, str(report)


@pytest.mark.parametrize("objective", [WakeSleep(2), ReweightedWakeSleep(2, 0.5), VIMCO(2), Trace_ELBO(2)])
def test_every_parameter_learns(objective):
    gradients = seeded_loss(machine((2, 3, 2)), objective, pixels())[1]
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients.values())


def test_defaults_are_two_layers_and_weights_are_single_matrices():
    sizes = [tuple(p.shape) for p in HelmholtzMachine((1, 28, 28)).parameters() if p.dim() == 2]
    assert sizes == [(200, 784), (200, 200), (200, 200), (784, 200)]


def test_objectives_that_need_a_path_and_too_many_states_are_refused():
    with pytest.raises(ValueError, match=r"guide site 'z1': got .*, which is not reparameterised.*Use VIMCO"):
        seeded_loss(machine((4, 3)), IWAE(2), pixels())
    with pytest.raises(ValueError, match=r"site 'z1': got 40 dimensions of 2 states each"):
        seeded_loss(machine((40, 3)), TraceEnum_ELBO(), pixels())


@pytest.mark.parametrize(
    ("shape", "units", "message"),
    [
        (SHAPE, (), "latent_dims: got no layer, expected at least one"),
        (SHAPE, (4, 0), r"latent_dims: got \(4, 0\), expected sizes of at least 1"),
        ((1, 0, 3), (4,), "data_shape: got"),
    ],
)
def test_bad_sizes(shape, units, message):
    with pytest.raises(ValueError, match=message):
        HelmholtzMachine(shape, units)
