"""`DReG` and `STL` against hand-written gradients, and in expectation against the bounds' own gradients."""

import math

import pyro.infer
import pytest
import torch
from torch import Tensor

from ppl_vae import Pair
from ppl_vae.compile import loss_state, record
from ppl_vae.objectives import (
    IWAE,
    PIWAE,
    STL,
    VIMCO,
    DReG,
    Objective,
    RenyiELBO,
    ReweightedWakeSleep,
    ThermodynamicELBO,
    Trace_ELBO,
    WakeSleep,
)
from ppl_vae.testing import LinearGaussian
from tests import helpers
from tests.helpers import assert_same, chunk_gradients, farthest, linear, pixels, seeded_bound, seeded_loss, vectors

GUIDE = ("A", "c", "l")


class Tiled(LinearGaussian):
    particles = "tile"


def samples(pair: LinearGaussian, x: Tensor, num_particles: int, mode: str = "plate") -> Tensor:
    """The values that the guide draws after seed 0, (K, B, d), in the order of the way of drawing them."""
    torch.manual_seed(0)
    q = pair.encode(x)
    if mode == "loop":
        return torch.stack([q.rsample() for _ in range(num_particles)])
    return q.expand(torch.Size((num_particles, len(x)))).rsample()


def by_hand(pair: LinearGaussian, x: Tensor, z: Tensor, coefficient, power=1.0, beta=1.0, joint=False):
    """Value and gradients of the loss: sum_k v_k d log p for the model, sum_k coefficient(v)_k d log w / dz for z."""
    point = z.detach().requires_grad_()
    # The guide as a density of constant parameters: log q's gradient is that through z alone.
    loc, scale = (x @ pair.A.T + pair.c).detach(), pair.l.detach().exp()
    log_q = torch.distributions.Normal(loc, scale).log_prob(point).sum(-1)
    log_p = pair.decode(point).log_prob(x) + beta * pair.prior().log_prob(point)
    log_w = log_p - beta * log_q
    total = log_w.detach().sum(1, keepdim=True) if joint else log_w.detach()
    value = -(torch.logsumexp(power * total, 0) - math.log(len(z))).sum() / power
    v = torch.softmax(power * total, 0)
    pair.zero_grad()
    (slope,) = torch.autograd.grad(log_w.sum(), point, retain_graph=True)
    z.backward(-(coefficient(v).unsqueeze(-1) * slope))
    (-(v * log_p).sum()).backward(inputs=[pair.W, pair.b, pair.log_s])
    return value.item(), helpers.gradients(pair)


@pytest.mark.parametrize("mode", ["plate", "tile", "loop"])
@pytest.mark.parametrize(("cls", "coefficient"), [(DReG, lambda v: v**2), (STL, lambda v: v)])
def test_gradient_by_hand(cls, coefficient, mode):
    pair, x = linear(Tiled if mode == "tile" else LinearGaussian), vectors()
    expected = by_hand(pair, x, samples(pair, x, 6, mode), coefficient)
    assert_same(seeded_loss(pair, cls(6, vectorize_particles=mode != "loop"), x), expected)


@pytest.mark.parametrize("vectorised", [True, False])
def test_dreg_of_one_weight_for_the_whole_batch(vectorised):
    pair, x = linear(), vectors()
    z = samples(pair, x, 4, "plate" if vectorised else "loop")
    expected = by_hand(pair, x, z, lambda v: v**2, joint=True)
    assert_same(seeded_loss(pair, DReG(4, vectorize_particles=vectorised, joint=True), x), expected)


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.0), (0.0, 0.5), (-1.0, 0.3)])
def test_dreg_of_any_order_and_kl_weight_by_hand(alpha, beta):
    pair, x, power = linear(), vectors(), 1 - alpha
    z = samples(pair, x, 5)
    expected = by_hand(pair, x, z, lambda v: v * (1 - beta * power * (1 - v)), power, beta)
    assert_same(seeded_loss(pair, DReG(5, alpha, kl_weight=beta), x), expected)


@pytest.mark.parametrize(
    ("ours", "bound"),
    [
        (DReG(4), IWAE(4)),
        (DReG(4, alpha=0.5), RenyiELBO(0.5, 4)),
        (DReG(4, kl_weight=0.5), IWAE(4, kl_weight=0.5)),
        (STL(1), Trace_ELBO()),
    ],
)
def test_unbiased_on_the_linear_pair(ours, bound):
    """Fails by chance with probability 1e-5."""
    pair, x = linear(), vectors(1).expand(4_000, -1)
    assert farthest(chunk_gradients(pair, ours, x) - chunk_gradients(pair, bound, x)) < 1


def test_dreg_is_unbiased_with_two_layers():
    """Fails by chance with probability 1e-5."""
    pair, x = helpers.small_hierarchy(2), pixels(1).expand(1_000, -1, -1, -1)
    ours, bound = chunk_gradients(pair, DReG(4), x), chunk_gradients(pair, IWAE(4), x)
    assert ours.shape[1] > 100
    assert farthest(ours - bound) < 1


def test_stl_of_many_particles_is_biased():
    """As Tucker et al. say of it: E[sum_k w~_k dz_k] is not E[sum_k w~_k^2 dz_k]. The model's is the bound's."""
    pair, x = linear(), vectors(1).expand(4_000, -1)
    ours, bound = chunk_gradients(pair, STL(5), x), chunk_gradients(pair, IWAE(5), x)
    model = sum(p.numel() for name, p in pair.named_parameters() if name not in GUIDE)
    assert (ours - bound)[:, :model].abs().max() < 1e-10
    assert farthest((ours - bound)[:, model:]) > 5


@pytest.mark.parametrize("objective", [STL(1), STL(5), DReG(5)])
def test_no_variance_at_the_posterior(objective):
    pair, x = linear(), vectors()
    pair.set_guide_to_posterior()
    gradient = seeded_loss(pair, objective, x)[1]
    assert max(gradient[name].abs().max() for name in GUIDE) < 1e-12
    assert gradient["W"].abs().max() > 1e-3
    assert seeded_loss(pair, IWAE(5), x)[1]["A"].abs().max() > 1e-3


def test_dreg_of_one_particle_is_stl():
    pair, x = linear(), vectors()
    assert_same(seeded_loss(pair, DReG(1), x), seeded_loss(pair, STL(1), x))
    layers, x = helpers.small_hierarchy(2), pixels()
    assert_same(seeded_loss(layers, DReG(1), x), seeded_loss(layers, STL(1), x))


@pytest.mark.parametrize("objective", [DReG(5), STL(5), PIWAE(2, 2)])
def test_the_bound_is_the_importance_weighted_one(objective):
    pair, x = linear(), vectors()
    expected = seeded_bound(pair, IWAE(objective.num_particles), x)
    torch.testing.assert_close(seeded_bound(pair, objective, x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cls", [DReG, STL])
def test_discrete_sites_are_refused(cls):
    with pytest.raises(
        ValueError, match=rf"guide site 'y': got Bernoulli, which is not reparameterised; {cls.__name__}"
    ):
        seeded_loss(linear(helpers.DiscreteGuide), cls(3), vectors())


@pytest.mark.parametrize("cls", [DReG, STL])
def test_a_guide_without_a_module_is_refused(cls):
    pair, x = linear(), vectors()
    with pytest.raises(ValueError, match=r"guide: got function 'free', expected a method of a Pair.*pair\.guide"):

        def free(x):
            pair.guide(x)

        cls(3).differentiable_loss(pair.model, free, x)


def test_what_was_trained_is_still_trained_and_what_was_frozen_is_still_frozen():
    broken = False

    class Broken(LinearGaussian):
        def guide(self, x):
            super().guide(x)
            if broken and not self.A.requires_grad:
                raise RuntimeError("broken while frozen")

    pair, x = linear(Broken), vectors()
    pair.c.requires_grad_(False)
    before = {name: p.requires_grad for name, p in pair.named_parameters()}
    gradient = seeded_loss(pair, DReG(3), x)[1]
    assert gradient["A"].abs().max() > 0 and gradient["c"].abs().max() == 0
    broken = True
    with pytest.raises(RuntimeError, match="while frozen"):
        seeded_loss(pair, DReG(3), x)
    assert before == {name: p.requires_grad for name, p in pair.named_parameters()}


def test_stock_svi_trains_with_dreg():
    pair, x = linear(), vectors()
    stock = pair.pyro_svi(helpers.pyro_adam(0.0), DReG(4))
    assert isinstance(stock, pyro.infer.SVI)
    pair.zero_grad()
    torch.manual_seed(0)
    loss = stock.loss_and_grads(stock.model, stock.guide, x)
    assert_same((float(loss), helpers.gradients(pair)), seeded_loss(pair, DReG(4), x))


PAIRS = {"linear": lambda: (linear(), vectors()), "two layers": lambda: (helpers.small_hierarchy(2), pixels())}
RECORDED = {
    "dreg": DReG(3),
    "dreg, weighted": DReG(3, alpha=0.5, kl_weight=lambda step: 0.7),
    "dreg, loop": DReG(3, vectorize_particles=False),
    "stl": STL(3),
    "piwae": PIWAE(2, 2),
    "vimco": VIMCO(3),
    "tvo": ThermodynamicELBO(3),
    "rws": ReweightedWakeSleep(3),
    "wake-sleep": WakeSleep(2),
}


@pytest.mark.parametrize("objective", RECORDED.values(), ids=RECORDED)
@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_recorded_equals_eager_on_shared_noise(make, objective: Objective):
    pair: Pair
    pair, x = make()
    if isinstance(objective, WakeSleep) and not isinstance(pair, LinearGaussian):
        pytest.skip("a dreamed Bernoulli is drawn within the record")
    recorded = record(objective(pair), x)
    expected = seeded_loss(pair, objective, x)
    torch.manual_seed(0)
    kl_weight = torch.as_tensor(objective.current_kl_weight, dtype=x.dtype)
    value, *got = recorded.graph(*loss_state(objective(pair)).values(), kl_weight, x, *recorded.noise())
    names = [name.removeprefix("owners.0.") for name in recorded.trained]
    assert set(names) == set(dict(pair.named_parameters()))
    assert_same((value.item(), dict(zip(names, got, strict=True))), expected)
