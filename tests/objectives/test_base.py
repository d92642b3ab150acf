"""A new bound is its formula: all else comes with the base class."""

import pyro
import pytest
import torch

from ppl_vae.objectives import Objective
from ppl_vae.testing import LinearGaussian
from tests import helpers
from tests.helpers import assert_same, linear, log_weights, seeded_bound, seeded_loss, vectors


class Best(Objective):
    """The best of K weights, which is no bound on anything."""

    is_bound = False

    def per_datum(self, terms, kl_weight=1.0, factors=False):
        return terms.log_weight(kl_weight, factors).amax(0)


class Penalised(helpers.Subsampled):
    def model(self, x):
        with self.rows(x):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z), obs=x)
            pyro.factor("penalty", -x.square().sum(-1))


def test_bound_loss_and_gradient_follow_from_the_formula():
    pair, x = linear(), vectors()
    best = log_weights(pair, x, 4).amax(0)
    torch.testing.assert_close(seeded_bound(pair, Best(4), x), best.detach())
    assert_same(seeded_loss(pair, Best(4), x), (-best.sum().item(), helpers.gradients_of(pair, -best.sum())))


def test_the_scale_and_the_factors_are_in_the_loss_alone():
    pair, x = linear(Penalised), vectors()
    best = log_weights(pair, x, 4).amax(0)
    torch.testing.assert_close(seeded_bound(pair, Best(4), x), best.detach())
    expected = -50 / 5 * (best - x.square().sum(-1)).sum()
    assert_same(seeded_loss(pair, Best(4), x), (expected.item(), helpers.gradients_of(pair, expected)))


def test_the_kl_weight_is_in_the_loss_alone():
    pair, x = linear(), vectors()
    torch.testing.assert_close(seeded_bound(pair, Best(4, kl_weight=0.0), x), seeded_bound(pair, Best(4), x))
    torch.manual_seed(0)
    z = pair.encode(x).expand(torch.Size((4, 5))).rsample()
    expected = -pair.decode(z).log_prob(x).amax(0).sum().item()
    assert seeded_loss(pair, Best(4, kl_weight=0.0), x)[0] == pytest.approx(expected)


def test_the_loss_of_a_frozen_pair_has_a_value():
    pair, x = linear(), vectors()
    pair.requires_grad_(False)
    assert seeded_loss(pair, Best(4), x)[0] == pytest.approx(-seeded_bound(pair, Best(4), x).sum().item())


def test_one_objective_serves_pairs_of_different_nesting():
    class Pixels(LinearGaussian):
        def model(self, x):
            with pyro.plate("data", len(x), dim=-2):
                z = pyro.sample("z", self.prior())
                with pyro.plate("pixels", 4, dim=-1):
                    pyro.sample("x", self.decode(z.squeeze(-2)).base_dist, obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x), dim=-2):
                pyro.sample("z", self.encode(x.unsqueeze(1)))

    plain, nested, x, objective = linear(), linear(Pixels), vectors(), Best(4)
    nested.load_state_dict(plain.state_dict())
    torch.testing.assert_close(seeded_bound(plain, objective, x), seeded_bound(nested, objective, x))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("num_particles", v) for v in (0, True, 1.5)),
        *(("max_plate_nesting", v) for v in ("a", -1, float("nan"))),
        *(("kl_weight", v) for v in (True, "1", -1, float("nan"), 10**400, torch.nn.ReLU, lambda step: -1.0, None)),
    ],
)
def test_settings_of_another_kind_or_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name}: got"):
        Best(**{name: value})


def test_a_weight_may_be_a_tensor_and_a_schedule_is_called_once():
    calls = []
    Best(kl_weight=torch.tensor(0.5))  # pyright: ignore[reportArgumentType]
    Best(kl_weight=lambda step: calls.append(step) or 1.0)
    assert calls == [0]
