"""Autoencoders: PCA by a linear one, losses and tied gradients by hand, corruption in training alone, layers."""

import copy
import math
from typing import Any

import pyro
import pyro.infer
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import subspace_angles
from scipy.stats import binomtest, chi2
from sklearn.decomposition import PCA
from torch import Tensor, nn

from ppl_vae import evaluation, fit
from ppl_vae.compile import eager_backward, loss_state, record
from ppl_vae.objectives import IWAE, Objective, Trace_ELBO, TraceMeanField_ELBO
from ppl_vae.pair import Pair
from ppl_vae.pairs import Autoencoder
from ppl_vae.pairs.autoencoder import Coder
from ppl_vae.terms import draw
from ppl_vae.testing import check_pair
from tests.helpers import assert_same, gradients_of, seeded_bound, seeded_loss, stock_loss

SHAPE = (2, 3)
SIZES: dict[str, Any] = {"latent_dim": 3, "hidden": (5, 4)}
SQUARED: dict[str, Any] = {"likelihood": "normal", "variance": 0.5}


def autoencoder(**options: Any) -> Autoencoder:
    return Autoencoder(SHAPE, **{**SIZES, **options}).double()


def grey(rows: int = 7) -> Tensor:
    return torch.rand(rows, *SHAPE, dtype=torch.float64)


def affine(linear: nn.Module, h: Tensor, owner: nn.Module | None = None) -> Tensor:
    """W h + b; with an owner W is its weights, transposed."""
    weight, bias = (linear if owner is None else owner).get_parameter("weight"), linear.get_parameter("bias")
    return h @ (weight.T if owner is None else weight) + bias


def output(pair: Autoencoder, x: Tensor, act: Any = torch.sigmoid) -> Tensor:
    """What the decoder's last linear map makes of x, by matrix products: (B, width)."""
    h, top = x.flatten(1), len(pair.encoder) - 1
    for i, layer in enumerate(pair.encoder):
        h = affine(layer.get_submodule("0"), h)
        h = h if i == top else act(h)
    for i in range(top, -1, -1):
        owner = pair.encoder[i].get_submodule("0") if pair.tied else None
        h = affine(pair.decoder[i].get_submodule("0"), h, owner)
        h = h if i == 0 else act(h)
    return h


def squared_error(x: Tensor, r: Tensor) -> Tensor:
    """And the constant of a Normal of variance 1/2: (B,)."""
    return (x.flatten(1) - r).square().sum(1) + r.shape[1] / 2 * math.log(math.pi)


def cross_entropy(x: Tensor, r: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(r, x.flatten(1), reduction="none").sum(1)


LOSSES = {"normal": (SQUARED, squared_error), "grey-bernoulli": ({}, cross_entropy)}


def seen_by_guide(pair: Coder, x: Tensor) -> Tensor:
    """What the first layer is given when the guide runs, (B, D)."""
    seen: list[Tensor] = []
    hook = pair.encoder[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    pair.guide(x)
    hook.remove()
    (result,) = seen
    return result


@pytest.mark.parametrize("tied", [False, True])
def test_a_linear_one_finds_the_principal_components(tied: bool) -> None:
    deviations = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.3, 0.1], dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    x = (torch.randn(200, 6, dtype=torch.float64) * deviations) @ rotation.T
    x = x - x.mean(0)
    pca = PCA(2).fit(x.numpy())
    pair = Autoencoder((6,), 2, hidden=(), linear_code=True, tied=tied, **SQUARED).double()
    settings = {"max_iter": 2000, "max_eval": 5000, "tolerance_grad": 1e-11, "tolerance_change": 1e-15}
    optim = torch.optim.LBFGS(pair.parameters(), history_size=20, line_search_fn="strong_wolfe", **settings)

    def closure() -> float:
        optim.zero_grad()
        loss = Trace_ELBO().differentiable_loss(pair.model, pair.guide, x) / len(x)
        loss.backward()
        return loss.item()

    optim.step(closure)  # type: ignore[arg-type]
    linear = pair.encoder[0].get_submodule("0") if tied else pair.decoder[0].get_submodule("0")
    columns = linear.get_parameter("weight").detach()
    angles = subspace_angles((columns.T if tied else columns).numpy(), pca.components_.T)  # type: ignore[union-attr]
    assert angles.shape == (2,) and angles.max() < 1e-3
    # What is lost is the variance along all other components.
    lost = x.square().sum() / len(x) - pca.explained_variance_.sum() * (len(x) - 1) / len(x)
    assert closure() == pytest.approx(lost.item() + 3 * math.log(math.pi), abs=1e-6)


@pytest.mark.parametrize("objective", [Trace_ELBO(), Trace_ELBO(5), TraceMeanField_ELBO(), IWAE(3)])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_by_hand(name: str, tied: bool, objective: Objective) -> None:
    options, error = LOSSES[name]
    pair, x = autoencoder(tied=tied, **options), grey()
    expected = error(x, output(pair, x))
    bound = objective.bound(pair.model, pair.guide, x)
    torch.testing.assert_close(bound, -expected.detach(), rtol=1e-12, atol=1e-12)
    loss = objective.differentiable_loss(pair.model, pair.guide, x)
    torch.testing.assert_close(loss, expected.sum(), rtol=1e-12, atol=1e-12)
    found = gradients_of(pair, loss)
    torch.testing.assert_close(found, gradients_of(pair, expected.sum()), rtol=1e-10, atol=1e-10)
    assert all(bool(gradient.any()) for gradient in found.values())


def test_the_code_has_no_law() -> None:
    pair, x = autoencoder(), grey()
    terms = draw(pair.model, pair.guide, x, num_particles=4)
    assert list(terms.log_p) == ["z", "x"] and list(terms.log_q) == ["z"]
    assert not terms.log_p["z"].any() and not terms.log_q["z"].any()
    torch.testing.assert_close(terms.draws[0].guide["z"].value, pair.encode(x).expand(4, -1, -1))
    assert terms.log_p["x"].shape == (4, 7)


def test_the_densities_are_where_the_data_are() -> None:
    """On a device without memory: nothing may come from another one."""
    pair, x = autoencoder().to("meta"), grey().to("meta")
    with pyro.validation_enabled(False):
        terms = draw(pair.model, pair.guide, x, num_particles=4)
    assert {part.device.type for part in (*terms.log_p.values(), *terms.log_q.values())} == {"meta"}


@pytest.mark.parametrize("options", [{}, SQUARED, {"tied": True}], ids=str)
def test_stock_pyro(options: dict[str, Any]) -> None:
    pair, x = autoencoder(**options), grey()
    expected = stock_loss(pair, pyro.infer.Trace_ELBO(), x)
    assert_same(seeded_loss(pair, Trace_ELBO(), x), expected)


def test_tied_gradient_by_hand() -> None:
    """h = s(W x + b), r = W' h + c: the loss |x - r|^2 reaches W by both ways."""
    pair = Autoencoder((6,), 3, hidden=(), linear_code=False, tied=True, **SQUARED).double()
    x = torch.randn(7, 6, dtype=torch.float64)
    linear, c = pair.encoder[0].get_submodule("0"), pair.decoder[0].get_submodule("0").get_parameter("bias")
    W, b = linear.get_parameter("weight").detach(), linear.get_parameter("bias").detach()
    h = torch.sigmoid(x @ W.T + b)
    at_r = 2 * (h @ W + c.detach() - x)
    at_a = at_r @ W.T * h * (1 - h)
    expected = {
        "encoder.0.0.weight": h.T @ at_r + at_a.T @ x,
        "encoder.0.0.bias": at_a.sum(0),
        "decoder.0.0.bias": at_r.sum(0),
    }
    found = seeded_loss(pair, Trace_ELBO(), x)[1]
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_tied_weights_are_there_once() -> None:
    pair, free = autoencoder(tied=True), autoencoder()
    names = [f"encoder.{i}.0.{part}" for i in range(3) for part in ("weight", "bias")]
    names += [f"decoder.{i}.0.bias" for i in range(3)]
    assert [name for name, _ in pair.named_parameters()] == names == list(pair.state_dict())
    assert len(list(free.parameters())) == 12
    sizes = [tuple(p.shape) for p in pair.decoder.parameters()]
    assert sizes == [(6,), (5,), (4,)]


def test_tied_weights_stay_tied() -> None:
    """When they are loaded, copied, moved and trained."""
    x, loaded = grey(), autoencoder(tied=True)
    pair = autoencoder(tied=True)
    loaded.load_state_dict(pair.state_dict())
    torch.testing.assert_close(seeded_bound(loaded, Trace_ELBO(), x), seeded_bound(pair, Trace_ELBO(), x))
    before, twin = output(pair, x).detach(), copy.deepcopy(pair)
    for weight in (p for p in twin.parameters() if p.dim() == 2):
        weight.detach().neg_()
    assert torch.equal(output(pair, x), before) and not torch.allclose(output(twin, x), before)
    torch.testing.assert_close(-seeded_bound(twin, Trace_ELBO(), x), cross_entropy(x, output(twin, x)).detach())
    twin = twin.float()
    fit(twin, x.float(), steps=3, batch_size=7, device="cpu", progress=False)
    torch.testing.assert_close(
        -seeded_bound(twin, Trace_ELBO(), x.float()), cross_entropy(x.float(), output(twin, x.float())).detach()
    )


def test_corruption_is_at_the_stated_rate() -> None:
    """Each element by itself; one of the three tests fails with probability 1e-5."""
    pair = Autoencoder((400,), 2, (3,), corruption=0.3)
    x = 0.5 + torch.rand(500, 400)
    seen = seen_by_guide(pair, x)
    is_zero = seen == 0
    assert torch.equal(seen[~is_zero], x[~is_zero])
    assert binomtest(int(is_zero.sum()), is_zero.numel(), 0.3).pvalue > 1e-5 / 3
    for dim in (0, 1):
        number = is_zero.shape[dim]
        z = (is_zero.sum(dim) - 0.3 * number) / math.sqrt(0.3 * 0.7 * number)
        assert chi2.sf(z.square().sum().item(), len(z)) > 1e-5 / 3


@pytest.mark.parametrize("num_particles", [1, 3])
def test_corruption_is_of_what_is_encoded_alone(num_particles: int) -> None:
    pair, x = autoencoder(corruption=0.5), grey()
    objective = Trace_ELBO(num_particles)
    objective.bound(pair.model, pair.guide, x)  # the nesting of plates is known by then
    torch.manual_seed(1)
    seen = seen_by_guide(pair, x)
    assert 0 < int((seen == 0).sum()) < x.numel()
    expected = cross_entropy(x, output(pair, seen))  # of clean data
    torch.testing.assert_close(seeded_bound(pair, objective, x, seed=1), -expected.detach(), rtol=1e-12, atol=1e-12)
    assert not torch.equal(seen_by_guide(pair, x), seen)


def test_corruption_is_of_training_alone() -> None:
    pair, x = autoencoder(corruption=0.5).eval(), grey()
    state = torch.get_rng_state()
    assert torch.equal(seen_by_guide(pair, x), x.flatten(1))
    assert torch.equal(torch.get_rng_state(), state)
    expected = -cross_entropy(x, output(pair, x)).detach()
    torch.testing.assert_close(seeded_bound(pair, Trace_ELBO(), x), expected)
    assert torch.equal(pair.train().encode(x), pair.eval().encode(x))


def test_without_corruption_nothing_is_drawn() -> None:
    pair, x = autoencoder(), grey()
    state = torch.get_rng_state()
    assert torch.equal(seen_by_guide(pair, x), x.flatten(1)) and torch.equal(torch.get_rng_state(), state)


def test_shapes() -> None:
    pair = Autoencoder((1, 4, 5), latent_dim=3, hidden=(6,))
    z = pair.encode(torch.rand(7, 1, 4, 5))
    assert z.shape == (7, 3)
    p = pair.decode(z.expand(2, 7, 3))
    assert p.batch_shape == (2, 7) and p.event_shape == (1, 4, 5) and p.mean.shape == (2, 7, 1, 4, 5)


@pytest.mark.parametrize("linear_code", [False, True])
def test_the_code_is_linear_or_goes_through_the_activation(linear_code: bool) -> None:
    pair, x = autoencoder(linear_code=linear_code, activation=nn.Tanh), 30 * grey()
    h = pair.encoder[:2]
    below = h[1](h[0](x.flatten(1)))
    z = affine(pair.encoder[2].get_submodule("0"), below)
    torch.testing.assert_close(pair.encode(x), z if linear_code else z.tanh())


@pytest.mark.parametrize("options", [{}, SQUARED, {"likelihood": "normal"}, {"tied": True}], ids=str)
def test_output_starts_at_the_means(options: dict[str, Any]) -> None:
    pair, mean = Autoencoder(SHAPE, 3, (), **options), 0.2 + 0.6 * torch.rand(SHAPE)
    pair.set_output_mean(mean)
    torch.testing.assert_close(pair.decode(torch.zeros(4, 3)).mean, mean.expand(4, *SHAPE))


@pytest.mark.parametrize("name", LOSSES)
def test_its_evaluation_says_that_it_is_no_log_likelihood(name: str) -> None:
    options, error = LOSSES[name]
    pair, x = autoencoder(corruption=0.5, **options), grey()
    expected = error(x, output(pair, x)).mean().item()
    found = evaluation.evaluate(pair, x, objective=Trace_ELBO(), num_particles=9, seed=0)
    assert found.label == evaluation.RECONSTRUCTION == "reconstruction, not a log-likelihood (no prior)"
    assert found.bits_per_dim is None and found.num_particles == 1
    assert found.nll == pytest.approx(expected, rel=1e-12) and found.bound == pytest.approx(-expected, rel=1e-12)


def test_no_log_likelihood_is_estimated() -> None:
    for method in ("is", "ais"):
        with pytest.raises(ValueError, match=r"site 'z': got"):
            evaluation.log_likelihood(autoencoder(), grey(), method=method)


def test_fit_has_a_learning_curve_of_data_held_out() -> None:
    pair, x = Autoencoder(SHAPE, 2, (5,), corruption=0.2), torch.rand(40, *SHAPE)
    options: dict[str, Any] = {"batch_size": 8, "device": "cpu", "progress": False, "learning_rate": 1e-2}
    history = fit(pair, x[:32], steps=30, valid=x[32:], **options)
    assert history.best is not None
    best = max(record.valid for record in history.records if record.valid is not None)
    expected = -cross_entropy(x[32:], output(pair, x[32:])).mean().item()
    assert best == pytest.approx(expected, rel=1e-5)


LAYERS: dict[str, Any] = {"sigmoid": (nn.Sigmoid, torch.sigmoid), "linear": (nn.Identity, lambda h: h)}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_losses_of_layers_by_hand(name: str, tied: bool) -> None:
    activation, act = LAYERS[name]
    pair, x = autoencoder(activation=activation, tied=tied, **SQUARED), grey()
    h = x.flatten(1)
    for i, layer in enumerate(pair.layers()):
        linear = pair.encoder[i].get_submodule("0")
        z = affine(linear, h) if i == 2 else act(affine(linear, h))
        r = affine(pair.decoder[i].get_submodule("0"), z, linear if tied else None)
        if i == 0:
            expected = squared_error(x, r)
        elif name == "sigmoid":
            expected = cross_entropy(h, r)
        else:
            expected = (h - r).square().sum(1) / 2 + r.shape[1] / 2 * math.log(2 * math.pi)
        bound = Trace_ELBO(2).bound(layer.model, layer.guide, x)
        torch.testing.assert_close(bound, -expected.detach(), rtol=1e-12, atol=1e-12)
        h = z


@pytest.mark.parametrize("tied", [False, True])
def test_layers_are_those_of_the_whole(tied: bool) -> None:
    pair, x = autoencoder(tied=tied), grey()
    whole = {id(p) for p in pair.parameters()}
    trained = []
    for i, layer in enumerate(pair.layers()):
        assert {id(p) for p in layer.parameters()} <= whole
        pair.zero_grad()
        Trace_ELBO().differentiable_loss(layer.model, layer.guide, x).backward()
        moved = [name for name, p in pair.named_parameters() if p.grad is not None and bool(p.grad.any())]
        assert all(name.split(".")[1] == str(i) for name in moved)
        trained += moved
    assert sorted(trained) == sorted(name for name, _ in pair.named_parameters())


ACTIVATIONS = {"sigmoid": nn.Sigmoid, "linear": nn.Identity, "tanh": nn.Tanh, "relu": nn.ReLU}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_decoders_of_layers_on_each_other_are_that_of_the_whole(name: str) -> None:
    pair, z = autoencoder(activation=ACTIVATIONS[name]), 3 * torch.randn(7, 3, dtype=torch.float64)
    found = z
    for layer in reversed(pair.layers()):
        found = layer.decode(found).mean
    torch.testing.assert_close(found, pair.decode(z).mean)


def test_corruption_of_a_layer_is_of_the_units_below() -> None:
    pair, x = autoencoder(corruption=0.5), grey(50)
    layer = pair.layers()[1]
    h = pair.encoder[0](x.flatten(1)).detach()
    torch.manual_seed(1)
    seen = seen_by_guide(layer, x)
    is_zero = seen == 0
    assert 0 < int(is_zero.sum()) < is_zero.numel() and torch.equal(seen[~is_zero], h[~is_zero])


PAIRS = {
    "whole": lambda: autoencoder(),
    "tied": lambda: autoencoder(tied=True),
    "denoising": lambda: autoencoder(corruption=0.5),
    "second layer": lambda: autoencoder(corruption=0.5).layers()[1],
    "tied third layer": lambda: autoencoder(tied=True).layers()[2],
}


@pytest.mark.parametrize("name", PAIRS)
def test_contract(name: str) -> None:
    pair: Pair = PAIRS[name]().float()
    report = check_pair(pair, grey(6).float())
    # A layer leaves those below alone.
    expected = {"gradients"} if "layer" in name else set[str]()
    assert {check.name for check in report.checks if not check.ok} <= expected, report


@pytest.mark.parametrize("name", PAIRS)
def test_traced_away_is_eager(name: str) -> None:
    pair, x = PAIRS[name](), grey()
    loss = Trace_ELBO(2)(pair)
    recorded = record(loss, x, faster={})
    torch.manual_seed(1)
    noise = recorded.noise()
    value, *found = recorded.graph(*loss_state(loss).values(), torch.ones(()), x, *noise)
    torch.manual_seed(1)
    torch.testing.assert_close(value, eager_backward(loss, x))
    expected = {name: p.grad for name, p in loss.named_parameters() if p.grad is not None}
    torch.testing.assert_close(dict(zip(recorded.trained, found, strict=True)), expected)


def test_nothing_is_drawn_from_it() -> None:
    pair, x = autoencoder(), grey()
    for coder in (pair, *pair.layers()):
        with pytest.raises(ValueError, match=r"expected a pair whose .* train a VAE, or fit a density"):
            coder.generate(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tied": True, "likelihood": "normal"}, "tied: got True with 2 parameters .* of 'normal', .* leave tied out"),
        ({"tied": True, "likelihood": "categorical", "levels": 5}, "tied: got True with 5 parameters"),
        ({"corruption": 1.0}, "corruption: got 1.0, expected a probability, 0 or more and below 1"),
        ({"corruption": -0.1}, "corruption: got -0.1"),
        ({"corruption": math.nan}, "corruption: got nan"),
        ({"likelihood": "mse"}, "likelihood: got 'mse', expected one of bernoulli"),
        ({"variance": 0.5}, "variance: got 0.5 with likelihood 'grey-bernoulli'"),
        ({"hidden": (0,)}, r"hidden: got \(0,\), expected sizes of at least 1"),
        ({"latent_dim": 0}, "latent_dim: got 0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        autoencoder(**options)
