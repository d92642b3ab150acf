"""`ReweightedWakeSleep` and `WakeSleep` against hand-written gradients, and sums over a discrete pair's states."""

import pyro
import pyro.infer
import pytest
import torch
from torch import Tensor

from ppl_vae.objectives import IWAE, ReweightedWakeSleep, Trace_ELBO, WakeSleep
from ppl_vae.testing import LinearGaussian
from tests import helpers
from tests.helpers import (
    Switches,
    assert_same,
    chunk_gradients,
    expected_gradients,
    farthest,
    gradients_of,
    linear,
    seeded_bound,
    seeded_loss,
    states,
    vectors,
)

X = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)


class Tiled(LinearGaussian):
    particles = "tile"


def phases(pair: LinearGaussian, x: Tensor, num_particles: int) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x, z_k) and log q(z_k | x), (K, B), at constant samples, and one dream's log q, (B,), after seed 0."""
    torch.manual_seed(0)
    with torch.no_grad():
        z = pair.encode(x).expand(torch.Size((num_particles, len(x)))).sample()
        dream_z = pair.prior().expand(torch.Size((len(x),))).sample()
        dream_x = pair.decode(dream_z).sample()
    log_p = pair.prior().log_prob(z) + pair.decode(z).log_prob(x)
    return log_p, pair.encode(x).log_prob(z), pair.encode(dream_x).log_prob(dream_z)


@pytest.mark.parametrize("cls", [LinearGaussian, Tiled])
@pytest.mark.parametrize("insomnia", [1.0, 0.3, 0.0])
def test_reweighted_wake_sleep_by_hand(insomnia, cls):
    pair, x = linear(cls), vectors()
    log_p, log_q, dream = phases(pair, x, 4)
    weight = torch.softmax(log_p - log_q, 0).detach()
    surrogate = (weight * log_p).sum() + insomnia * (weight * log_q).sum() + (1 - insomnia) * dream.sum()
    bound = (log_p - log_q).exp().mean(0).log()
    expected = -bound.sum().item(), gradients_of(pair, -surrogate)
    assert_same(seeded_loss(pair, ReweightedWakeSleep(4, insomnia), x), expected)
    torch.testing.assert_close(seeded_bound(pair, ReweightedWakeSleep(4, insomnia), x), bound.detach())


@pytest.mark.parametrize("cls", [LinearGaussian, Tiled])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_wake_sleep_by_hand(num_particles, cls):
    pair, x = linear(cls), vectors()
    log_p, log_q, dream = phases(pair, x, num_particles)
    elbo = (log_p - log_q).mean(0)
    expected = -elbo.sum().item(), gradients_of(pair, -(log_p.mean(0).sum() + dream.sum()))
    assert_same(seeded_loss(pair, WakeSleep(num_particles), x), expected)
    torch.testing.assert_close(seeded_bound(pair, WakeSleep(num_particles), x), elbo.detach())


def test_the_reported_bounds_are_those_of_iwae_and_the_elbo():
    pair, x = linear(), vectors()
    torch.testing.assert_close(
        seeded_bound(pair, ReweightedWakeSleep(4, 0.5), x), seeded_bound(pair, IWAE(4), x), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        seeded_bound(pair, WakeSleep(4), x), seeded_bound(pair, Trace_ELBO(4), x), rtol=1e-12, atol=1e-12
    )


def test_scale_and_factors_are_in_the_loss():
    class Penalised(helpers.Subsampled):
        def model(self, x):
            with self.rows(x):
                pyro.sample("x", self.decode(pyro.sample("z", self.prior())), obs=x)
                pyro.factor("penalty", -self.b.square().sum() + x.new_zeros(len(x)))

    plain, pair, x = linear(), linear(Penalised), vectors()
    pair.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for p in (plain, pair):
            p.b.fill_(0.5)
    for objective in (ReweightedWakeSleep(3), ReweightedWakeSleep(3, 0.5), WakeSleep(2)):
        value, gradient = seeded_loss(plain, objective, x)
        gradient["b"] += 5 * 2 * 0.5  # the penalty's, of each of 5 rows
        expected = 10 * (value + 5 * 4 * 0.25), {name: 10 * g for name, g in gradient.items()}
        assert_same(seeded_loss(pair, objective, x), expected)


def exact_wake(pair: Switches, x: Tensor) -> dict[str, Tensor]:
    """Gradients of -log p(x) for the model and of E_{p(z | x)}[-log q(z | x)] for the guide."""
    log_p, log_q = pair.tables(x)
    posterior = torch.softmax(log_p, 0).detach()
    return gradients_of(pair, -log_p.logsumexp(0) - (posterior * log_q).sum())


def test_the_bias_of_the_wake_phases_falls_with_the_particles():
    """By enumeration, without a random number: K (bias) does not grow."""
    pair = Switches().double()
    exact = torch.cat([g.flatten() for g in exact_wake(pair, X).values()])
    bias = []
    for size in (2, 3, 4):
        gradient = expected_gradients(pair, ReweightedWakeSleep(size), X)[1]
        bias.append((torch.cat([g.flatten() for g in gradient.values()]) - exact).norm().item())
    assert bias[0] > 0.01 * exact.norm()
    assert bias == sorted(bias, reverse=True)
    assert 0.5 * bias[0] * 2 < bias[2] * 4 < bias[1] * 3 < bias[0] * 2


def test_wake_phases_with_many_particles_are_the_exact_gradients():
    """Fails by chance with probability 1e-5; the bias at K = 20,000 is far below the error."""
    pair = Switches().double()
    exact = torch.cat([-g.flatten() for g in exact_wake(pair, X).values()])
    sample = chunk_gradients(pair, ReweightedWakeSleep(20_000), X.expand(2, 3))
    assert farthest(sample, exact) < 1
    few = chunk_gradients(pair, ReweightedWakeSleep(2), X.expand(20_000, 3))
    assert farthest(few, exact) > 5


@pytest.mark.parametrize("objective", [WakeSleep(), ReweightedWakeSleep(2, insomnia=0.0)])
def test_the_sleep_phase_is_the_mean_score_of_the_models_dreams(objective):
    """E_{p(x, z)}[grad log q(z | x)], a sum over 4 x 8 states. Fails by chance with probability 1e-5."""
    pair = Switches().double()
    total = torch.zeros((), dtype=torch.float64)
    for x in states(3):
        log_p, log_q = pair.tables(x)
        total = total + (log_p.detach().exp() * log_q).sum()
    exact = gradients_of(pair, total)
    names = list(exact)
    sizes = [exact[n].numel() for n in names]
    # The data do not matter to the guide: it learns from dreams alone.
    sample = dict(zip(names, chunk_gradients(pair, objective, X.expand(2_000, 3)).split(sizes, 1), strict=True))
    for name in ("A", "c"):
        assert farthest(sample[name], exact[name].flatten()) < 1
        assert farthest(sample[name], 1.2 * exact[name].flatten()) > 2


def test_the_wake_phase_of_the_model_is_exact_in_expectation():
    pair = Switches().double()
    log_p, log_q = pair.tables(X)
    q = log_q.detach().exp()
    expected = gradients_of(pair, -(q * log_p).sum())
    value, got = expected_gradients(pair, WakeSleep(2), X)
    assert value == pytest.approx(-(q * (log_p - log_q)).sum().item(), rel=1e-10)
    for name in ("a", "b", "W"):
        torch.testing.assert_close(got[name], expected[name], rtol=1e-10, atol=1e-10)


class Labelled(LinearGaussian):
    """Both programs condition on a label y, which dreams keep as it is."""

    def model(self, x, y):  # pyright: ignore[reportIncompatibleMethodOverride]
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z + y.unsqueeze(-1)), obs=x)

    def guide(self, x, y):  # pyright: ignore[reportIncompatibleMethodOverride]
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encode(x - y.unsqueeze(-1)))


def test_dreams_keep_what_the_model_conditions_on():
    pair, x, y = linear(Labelled), vectors(), 2 * vectors(5, 1).squeeze(-1)
    torch.manual_seed(0)
    with torch.no_grad():
        pair.encode(x).sample()
        z = pair.prior().expand(torch.Size((5,))).sample()
        dream = pair.decode(z + y.unsqueeze(-1)).sample()
    expected = gradients_of(pair, -pair.encode(dream - y.unsqueeze(-1)).log_prob(z).sum())
    got = seeded_loss(pair, WakeSleep(), x, y)[1]
    for name in ("A", "c", "l"):
        torch.testing.assert_close(got[name], expected[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("objective", [WakeSleep(), ReweightedWakeSleep(3, 0.5)])
def test_a_model_that_reshapes_its_data_is_refused(objective):
    class Reshaped(LinearGaussian):
        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", self.prior())
                pyro.sample("x", self.decode(z), obs=x.flatten(1))

        def guide(self, x):
            super().guide(x.flatten(1))

    pair, x = linear(Reshaped), vectors().unflatten(1, (2, 2))
    with pytest.raises(ValueError, match=r"site 'x': its observed value is not an argument of the model.*obs=x"):
        seeded_loss(pair, objective, x)
    assert seeded_loss(pair, ReweightedWakeSleep(3), x)[0] > 0  # the wake phases need no dream


def test_weights_are_per_datum_where_stock_pyros_are_of_the_whole_batch():
    """Wake-phi of both by hand; a batch of one is the same to both."""
    pair, x = linear(), vectors()
    stock = pyro.infer.ReweightedWakeSleep(3, insomnia=1.0, vectorize_particles=False, max_plate_nesting=1)
    ours = ReweightedWakeSleep(3, vectorize_particles=False)
    for batch, same in ((x[:1], True), (x, False)):
        torch.manual_seed(0)
        z = torch.stack([pair.encode(batch).sample() for _ in range(3)])
        log_q = pair.encode(batch).log_prob(z)
        log_w = (pair.prior().log_prob(z) + pair.decode(z).log_prob(batch) - log_q).detach()
        jointly = torch.softmax(log_w.sum(1, keepdim=True), 0)
        expected = gradients_of(pair, -(jointly * log_q).sum())["A"]
        svi = pair.pyro_svi(helpers.pyro_adam(0.0), stock)
        pair.zero_grad()
        torch.manual_seed(0)
        stock.loss_and_grads(svi.model, svi.guide, batch)
        torch.testing.assert_close(helpers.gradients(pair)["A"], expected, rtol=1e-10, atol=1e-10)
        far = (seeded_loss(pair, ours, batch)[1]["A"] - expected).abs().max()
        assert far < 1e-10 if same else far > 1e-2


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_particles: got 1, expected at least 2; for one use WakeSleep"):
        ReweightedWakeSleep(1)
    for insomnia in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"insomnia: got {insomnia}"):
            ReweightedWakeSleep(2, insomnia)


def test_a_guide_with_a_discrete_and_a_normal_site():
    pair, x = linear(helpers.DiscreteGuide), vectors()
    for objective in (WakeSleep(), ReweightedWakeSleep(3, 0.5)):
        gradient = seeded_loss(pair, objective, x)[1]
        assert min(g.abs().max() for g in gradient.values()) > 1e-6
