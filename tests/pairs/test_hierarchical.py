"""HierarchicalVAE: its factorisation by hand, and that one layer is the VAE."""

import pyro.distributions as dist
import pytest
import torch

from ppl_vae.nn import BatchNorm, NormalHead
from ppl_vae.objectives import IWAE, Trace_ELBO
from ppl_vae.pairs import VAE, HierarchicalVAE
from ppl_vae.terms import draw
from ppl_vae.testing import check_pair
from tests import helpers
from tests.helpers import assert_same, pixels, seeded_bound, seeded_loss


def test_factorisation_by_hand():
    """p(z3) p(z2 | z3) p(z1 | z2) p(x | z1) and q(z1 | x) q(z2 | z1) q(z3 | z2)."""
    pair, x = helpers.small_hierarchy(3), pixels()
    terms = draw(pair.model, pair.guide, x, num_particles=4)
    assert list(terms.log_p) == ["z3", "z2", "z1", "x"] and list(terms.log_q) == ["z1", "z2", "z3"]
    z1, z2, z3 = (terms.draws[0].guide[name].value for name in ("z1", "z2", "z3"))
    assert [z.shape[-1] for z in (z1, z2, z3)] == [4, 3, 2]
    prior = dist.Normal(x.new_zeros(2), 1.0).to_event(1)
    log_p = {
        "z3": prior.log_prob(z3),
        "z2": pair.down[1](z3).log_prob(z2),
        "z1": pair.down[0](z2).log_prob(z1),
        "x": pair.decoder(z1).log_prob(x),
    }
    log_q = {
        "z1": pair.encoder(x).log_prob(z1),
        "z2": pair.up[0](z1).log_prob(z2),
        "z3": pair.up[1](z2).log_prob(z3),
    }
    torch.testing.assert_close(terms.log_p, log_p)
    torch.testing.assert_close(terms.log_q, log_q)


def test_loss_and_gradient_by_hand():
    pair, x = helpers.small_hierarchy(3), pixels()
    torch.manual_seed(0)
    q1 = pair.encoder(x)
    z1 = q1.expand(torch.Size((4, 5))).rsample()
    q2 = pair.up[0](z1)
    z2 = q2.rsample()
    q3 = pair.up[1](z2)
    z3 = q3.rsample()
    log_p = dist.Normal(0.0, 1.0).log_prob(z3).sum(-1) + pair.down[1](z3).log_prob(z2)
    log_p = log_p + pair.down[0](z2).log_prob(z1) + pair.decoder(z1).log_prob(x)
    loss = -(log_p - q1.log_prob(z1) - q2.log_prob(z2) - q3.log_prob(z3)).mean(0).sum()
    expected = loss.item(), helpers.gradients_of(pair, loss)
    assert_same(seeded_loss(pair, Trace_ELBO(4), x), expected)


def test_one_layer_is_the_vae():
    pair, vae, x = helpers.small_hierarchy(1), VAE((1, 3, 4), 4, (6,)).double(), pixels()
    pair.load_state_dict(vae.state_dict())
    torch.testing.assert_close(seeded_bound(pair, IWAE(4), x), seeded_bound(vae, IWAE(4), x))
    assert_same(seeded_loss(pair, IWAE(4), x), seeded_loss(vae, IWAE(4), x))
    assert list(draw(pair.model, pair.guide, x).log_p) == ["z1", "x"]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_generate(layers):
    pair = helpers.small_hierarchy(layers)
    nodes = helpers.generate(pair, pixels(6))
    sizes = {f"z{layer}": (6, 5 - layer) for layer in range(1, layers + 1)}
    assert {name: tuple(nodes[name]["value"].shape) for name in sizes} == sizes
    assert nodes["x"]["value"].shape == (6, 1, 3, 4)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_every_parameter_learns(layers):
    pair = helpers.small_hierarchy(layers)
    IWAE(3)(pair)(pixels()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pair.parameters())


def test_batch_norm_and_softplus_are_in_every_network():
    pair = HierarchicalVAE((1, 3, 4), (4, 3, 2), ((8, 7), (6,), (5,)), batch_norm=True, scale="softplus")
    assert sum(isinstance(module, BatchNorm) for module in pair.modules()) == 2 * (2 + 1 + 1)
    heads = [module for module in pair.modules() if isinstance(module, NormalHead)]
    assert len(heads) == 5 and all(head.scale == "softplus" for head in heads)
    report = check_pair(pair, pixels(8).float())
    assert [check.name for check in report.checks if not check.ok] == ["rows apart"]  # of a training batch
    with pytest.raises(ValueError, match="batch_norm: got True with trunk 'conv', expected"):
        HierarchicalVAE((1, 8, 8), (4, 2), ((3, 3), (5,)), trunk="conv", batch_norm=True)


def test_convolutions():
    pair = HierarchicalVAE((1, 8, 8), (4, 2), ((3, 3), (5,)), trunk="conv")
    assert IWAE(4).bound(pair.model, pair.guide, torch.rand(5, 1, 8, 8).round()).shape == (5,)


def test_output_starts_at_the_pixel_means():
    pair, mean = helpers.small_hierarchy(2), 0.2 + 0.6 * torch.rand(1, 3, 4).double()
    for parameter in pair.decoder.parameters():
        parameter.detach().zero_()
    pair.set_output_mean(mean)
    torch.testing.assert_close(pair.decoder(torch.randn(5, 4).double()).mean, mean.expand(5, 1, 3, 4))


def test_defaults_are_the_two_layer_model_of_burda_et_al():
    pair = HierarchicalVAE((1, 28, 28))

    def sizes(module):
        return [tuple(p.shape) for p in module.parameters() if p.dim() == 2]

    assert sizes(pair.encoder) == [(200, 784), (200, 200), (200, 200)]
    assert sizes(pair.up) == [(100, 100), (100, 100), (100, 100)]
    assert sizes(pair.down) == [(100, 50), (100, 100), (200, 100)]
    assert sizes(pair.decoder) == [(200, 100), (200, 200), (784, 200)]


@pytest.mark.parametrize(("latent_dims", "hidden"), [((), ()), ((4, 2), ((6,),)), ((4,), ((6,), (5,)))])
def test_bad_layers(latent_dims, hidden):
    message = f"got {len(latent_dims)} stochastic layers and {len(hidden)} hidden blocks"
    with pytest.raises(ValueError, match=message):
        HierarchicalVAE((1, 3, 4), latent_dims, hidden)
