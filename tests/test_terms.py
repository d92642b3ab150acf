"""Terms: shapes, plates, particles, and what is refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vae import Pair, terms
from ppl_vae.objectives import IWAE, Trace_ELBO
from ppl_vae.terms import NotPerDatumError
from ppl_vae.testing import LinearGaussian
from tests import helpers
from tests.helpers import assert_same, linear, log_weights, pixels, seeded_bound, seeded_loss, vectors

K = 4


def draw(pair, *batch, num_particles=K, **options):
    torch.manual_seed(0)
    return terms.draw(pair.model, pair.guide, *batch, num_particles=num_particles, **options)


class PixelsLeft(LinearGaussian):
    """Pixels in a plate of their own, to the left of the data."""

    data_dim, pixel_dim = -1, -2

    def model(self, x):
        data, pixel = pyro.plate("data", len(x), dim=self.data_dim), pyro.plate("pixels", 4, dim=self.pixel_dim)
        with data:
            z = pyro.sample("z", self.prior())
            with pixel:
                loc = sum(z[..., j] * self.W[:, j : j + 1] for j in range(2)) + self.b[:, None]
                pyro.sample("x", dist.Normal(loc, self.log_s.exp()), obs=x.T)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=self.data_dim):
            pyro.sample("z", self.encode(x))


class PixelsLeftAutomatic(PixelsLeft):
    """As before, with dimensions that Pyro allots."""

    data_dim = pixel_dim = None


class PixelsRight(LinearGaussian):
    """Pixels in a plate of their own, to the right of the data."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", self.prior())
            with pyro.plate("pixels", 4, dim=-1):
                loc = sum(z[..., j] * self.W[:, j] for j in range(2)) + self.b
                pyro.sample("x", dist.Normal(loc, self.log_s.exp()), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", self.encode(x.unsqueeze(1)))


class Tiled(LinearGaussian):
    """Takes exactly one batch dimension."""

    particles = "tile"

    def decode(self, z):
        assert z.dim() == 2
        return super().decode(z)


@pytest.mark.parametrize("objective", [Trace_ELBO(K), IWAE(K)])
@pytest.mark.parametrize("cls", [PixelsLeft, PixelsLeftAutomatic, PixelsRight])
def test_a_plate_of_pixels_is_as_good_as_to_event(cls, objective):
    pair, plain, x = linear(cls), linear(), vectors()
    pair.load_state_dict(plain.state_dict())
    torch.testing.assert_close(seeded_bound(pair, objective, x), seeded_bound(plain, objective, x))
    assert_same(seeded_loss(pair, objective, x), seeded_loss(plain, type(objective)(num_particles=K), x))


@pytest.mark.parametrize(("cls", "nesting"), [(PixelsLeft, 2), (PixelsRight, 2), (LinearGaussian, 1)])
def test_guess_of_the_nesting_leaves_the_random_state(cls, nesting):
    pair, x = linear(cls), vectors()
    state = torch.get_rng_state()
    assert terms.guess_plate_nesting(pair.model, pair.guide, x) == nesting
    assert torch.equal(torch.get_rng_state(), state)


def test_guess_of_a_program_without_plates_is_0():
    def model(x):
        pyro.sample("x", dist.Normal(x.new_zeros(len(x)), 1.0).to_event(1), obs=x)

    assert terms.guess_plate_nesting(model, lambda x: None, vectors()[0]) == 0


def test_terms_by_site():
    pair, x = helpers.small_hierarchy(2), pixels()
    drawn = draw(pair, x)
    assert list(drawn.log_p) == ["z2", "z1", "x"] and list(drawn.log_q) == ["z1", "z2"]
    assert drawn.latent == ["z2", "z1"] and drawn.num_particles == K and drawn.scale == 1.0
    site = drawn.draws[0].guide["z1"]
    torch.testing.assert_close(drawn.log_q["z1"], site.fn.log_prob(site.value))
    assert all(term.shape == (K, 5) for term in (*drawn.log_p.values(), *drawn.log_q.values()))
    torch.testing.assert_close(drawn.log_weight(0.5), drawn.log_likelihood() + 0.5 * drawn.log_ratio())


def test_plate_and_tile_weigh_the_same_values_alike():
    pair, x = linear(), vectors()
    expected = log_weights(pair, x, K)
    torch.testing.assert_close(draw(pair, x).log_weight(), expected)
    torch.testing.assert_close(draw(pair, x, particles="tile").log_weight(), expected)


def test_loop_weighs_its_values_as_by_hand():
    pair, x = linear(), vectors()
    drawn = draw(pair, x, particles="loop")
    z = torch.stack([d.guide["z"].value for d in drawn.draws])
    assert z.shape == (K, 5, 2)
    by_hand = pair.prior().log_prob(z) + pair.decode(z).log_prob(x) - pair.encode(x).log_prob(z)
    torch.testing.assert_close(drawn.log_weight(), by_hand)


def test_a_pair_says_that_its_batch_is_tiled():
    pair, plain, x = linear(Tiled), linear(), vectors()
    pair.load_state_dict(plain.state_dict())
    assert_same(seeded_loss(pair, IWAE(K), x), seeded_loss(plain, IWAE(K), x))
    with pytest.raises(AssertionError):
        draw(pair, x, particles="plate")


def test_the_encoder_runs_once_for_each_datum():
    rows = []

    class Counted(LinearGaussian):
        def encode(self, x):
            rows.append(len(x))
            return super().encode(x)

    pair, x = linear(Counted), vectors()
    IWAE(K, max_plate_nesting=1).bound(pair.model, pair.guide, x)
    assert rows == [5]


def test_tiling_repeats_every_tensor_with_as_many_rows():
    class Conditional(LinearGaussian):
        def model(self, x, *conditions):
            label, temperature, name = conditions
            assert len(label) == len(x) and temperature.shape == (1,) and name == "digits"
            super().model(x + label.unsqueeze(-1))

        def guide(self, x, *conditions):
            super().guide(x + conditions[0].unsqueeze(-1))

    pair, x, label = linear(Conditional), vectors(), torch.arange(5.0).double()
    batch = (x, label, torch.ones(1), "digits")
    torch.testing.assert_close(draw(pair, *batch, particles="tile").log_weight(), draw(pair, *batch).log_weight())


def test_a_tiled_plate_must_take_its_size_from_the_batch():
    with pytest.raises(NotPerDatumError, match=r"plate 'data' has size 5 for 20 tiled rows"):

        class FixedSize(LinearGaussian):
            def model(self, x):
                super().model(x[:5])

            def guide(self, x):
                super().guide(x[:5])

        draw(linear(FixedSize), vectors(), particles="tile")


def test_joint_weights_cannot_be_tiled():
    with pytest.raises(ValueError, match=r"joint=True needs particles drawn by a plate or a loop, got 'tile'"):
        draw(linear(), vectors(), particles="tile", joint=True)


def test_deterministic_sites_have_no_density_and_may_stand_anywhere():
    class Recorded(LinearGaussian):
        def model(self, x):
            pyro.deterministic("s", self.log_s.exp())
            super().model(x)

    pair, x = linear(Recorded), vectors()
    torch.testing.assert_close(draw(pair, x).log_weight(), log_weights(pair, x, K))


class Sites(Pair):
    """Programs given as functions."""

    def __init__(self, model, guide):
        super().__init__()
        self.model, self.guide = model, guide


def normals(*names, shape=(), obs=None):
    """A program of standard Normal sites in one plate, and of x where it is observed."""

    def program(x):
        with pyro.plate("data", 5, dim=-1):
            for name in names:
                pyro.sample(name, dist.Normal(torch.zeros(shape), 1.0))
            if obs:
                pyro.sample(obs, dist.Normal(0.0, 1.0), obs=x)

    return program


MODEL = normals("z", obs="x")
MISMATCHES = {
    r"the guide has no site 'z': got guide sites \[\], expected \['z'\]": (MODEL, normals()),
    r"the model has no latent site 'u' that the guide samples: got model sites \['z'\].*is_auxiliary": (
        MODEL,
        normals("z", "u"),
    ),
    r"site 'z' of the guide: its log-probability has shape \(3, 5\), but dimension -2 belongs to no plate.*to_event": (
        MODEL,
        normals("z", shape=(3, 5)),
    ),
    "the model has no sample sites, expected an observed one": (normals(), normals()),
}


@pytest.mark.parametrize("message", MISMATCHES)
def test_programs_that_do_not_match(message):
    pair = Sites(*MISMATCHES[message])
    with pytest.raises(ValueError, match=message):
        seeded_bound(pair, Trace_ELBO(), torch.zeros(5))


def test_two_plates_around_every_site_need_one_named_data():
    def programs(name):
        def guide(x):
            with pyro.plate(name, 5, dim=-1), pyro.plate("pixels", 3, dim=-2):
                pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

        return Sites(guide, guide)

    assert seeded_bound(programs("data"), Trace_ELBO(2), torch.zeros(5)).shape == (5,)
    with pytest.raises(NotPerDatumError, match=r"every site sits in 2 plates \('rows', 'pixels'\).*Name that plate 'd"):
        seeded_bound(programs("rows"), Trace_ELBO(2), torch.zeros(5))


def test_a_value_outside_the_support_is_reported_with_its_site():
    pair = helpers.small_vae()
    with pytest.raises(
        ValueError, match=r"site 'x': got 36 of 36 values outside the support of Bernoulli \(2, for one\)"
    ):
        seeded_bound(pair, Trace_ELBO(), torch.full((3, 1, 3, 4), 2.0).double())
