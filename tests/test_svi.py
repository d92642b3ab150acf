"""`SVI`: Pyro's steps with one torch optimiser; `objective(pair)` as a module."""

import copy

import pyro.infer
import pytest
import torch

from ppl_vae import SVI
from ppl_vae.objectives import IWAE, PairLoss, Trace_ELBO
from tests import helpers
from tests.helpers import assert_same, gradients_of, linear, pixels, seeded_loss, vectors


def adam(pair, lr=0.01):
    return torch.optim.Adam(pair.parameters(), lr=lr)


@pytest.mark.parametrize("num_particles", [1, 3])
def test_steps_are_those_of_stock_svi(num_particles):
    pair, x = helpers.small_vae(), pixels()
    twin = copy.deepcopy(pair)
    ours = SVI(pair, adam(pair), Trace_ELBO(num_particles, max_plate_nesting=1))
    stock_elbo = pyro.infer.Trace_ELBO(num_particles, max_plate_nesting=1, vectorize_particles=True)
    stock = twin.pyro_svi(helpers.pyro_adam(0.01), stock_elbo)
    for seed in range(4):
        torch.manual_seed(seed)
        loss = ours.step(x)
        torch.manual_seed(seed)
        assert loss == pytest.approx(stock.step(x), rel=1e-10)
    torch.testing.assert_close(dict(pair.named_parameters()), dict(twin.named_parameters()), rtol=1e-9, atol=1e-9)


def test_step_is_a_float_summed_over_the_batch_and_update_a_tensor():
    pair, x = linear(), vectors()
    svi = SVI(pair, torch.optim.SGD(pair.parameters(), lr=0.0), IWAE(3))
    torch.manual_seed(0)
    update = svi.update(x)
    torch.manual_seed(0)
    step = svi.step(x)
    expected = seeded_loss(pair, IWAE(3), x)[0]
    assert isinstance(step, float) and step == pytest.approx(expected)
    assert update.shape == () and not update.requires_grad and update.item() == pytest.approx(expected)


def test_evaluate_loss_changes_nothing():
    pair, x = linear(), vectors()
    before = copy.deepcopy(pair.state_dict())
    svi = SVI(pair, adam(pair), IWAE(3))
    torch.manual_seed(0)
    assert svi.evaluate_loss(x) == pytest.approx(seeded_loss(pair, IWAE(3), x)[0])
    torch.testing.assert_close(pair.state_dict(), before)


def test_the_default_loss_is_the_elbo():
    pair = linear()
    assert isinstance(SVI(pair, adam(pair)).objective, Trace_ELBO)


def test_gradients_of_the_last_step_do_not_linger():
    pair, x = linear(), vectors()
    svi = SVI(pair, torch.optim.SGD(pair.parameters(), lr=0.0))
    for _ in range(2):
        torch.manual_seed(0)
        svi.step(x)
    expected = seeded_loss(copy.deepcopy(pair), Trace_ELBO(), x)[1]
    torch.testing.assert_close(helpers.gradients(pair), expected)


def test_data_outside_the_support_are_refused_at_the_first_step():
    pair = helpers.small_vae()
    svi = SVI(pair, adam(pair))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"site 'x'.*support"):
            svi.step(pixels() + 0.5)


def test_each_shape_of_batch_is_validated_once():
    validated = []

    class Watched(helpers.LinearGaussian):
        def model(self, x):
            validated.append(torch.distributions.Distribution._validate_args)
            super().model(x)

    pair = linear(Watched)
    svi = SVI(pair, adam(pair))
    for rows in (5, 5, 3, 5, 3):
        svi.step(vectors(rows))
    assert validated == [True, False, True, False, False]


def test_arguments_that_are_not_tensors_may_be_of_any_type():
    class Noted(helpers.LinearGaussian):
        def model(self, x, *note):
            super().model(x)

        def guide(self, x, *note):
            super().guide(x)

    pair = linear(Noted)
    assert SVI(pair, adam(pair)).step(vectors(), ["a", "list"]) > 0


def test_a_pyro_optimiser_is_refused():
    with pytest.raises(TypeError, match=r"optim: got PyroOptim, expected a torch.optim.Optimizer.*pair.pyro_svi"):
        SVI(linear(), helpers.pyro_adam(0.1))  # pyright: ignore[reportArgumentType]


def test_a_stock_elbo_is_refused():
    pair = linear()
    with pytest.raises(TypeError, match=r"loss: got RenyiELBO, expected one of ppl_vae.objectives.*pair.pyro_svi"):
        SVI(pair, adam(pair), pyro.infer.RenyiELBO())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("make", [lambda pair: IWAE(3)(pair), lambda pair: IWAE(3)(pair.model, pair.guide)])
def test_an_objective_of_a_pair_is_a_module_with_the_pairs_parameters(make):
    pair, x = helpers.small_hierarchy(2), pixels()
    module = make(pair)
    assert isinstance(module, PairLoss)
    assert {id(p) for p in module.parameters()} == {id(p) for p in pair.parameters()}
    torch.manual_seed(0)
    loss = module(x)
    assert_same((loss.item(), gradients_of(pair, loss)), seeded_loss(pair, IWAE(3), x))


def test_the_loss_module_takes_other_parameters():
    """`torch.func`: value and gradient at other parameters, while those of the pair stay."""
    pair, x = helpers.small_vae(), pixels()
    other = helpers.small_vae()
    module = IWAE(3, max_plate_nesting=1)(pair)
    names = [name for name, _ in module.named_parameters()]
    parameters = {name: p.detach() for name, p in zip(names, other.parameters(), strict=True)}

    def loss(parameters):
        torch.manual_seed(0)
        return torch.func.functional_call(module, parameters, (x,))

    gradients = torch.func.grad(loss)(parameters)
    value, expected = seeded_loss(other, IWAE(3), x)
    assert loss(parameters).item() == pytest.approx(value)
    torch.testing.assert_close(list(gradients.values()), list(expected.values()))
    assert seeded_loss(pair, IWAE(3), x)[0] != pytest.approx(value)
