"""The classifier: its ELBO is torch's cross-entropy, with its gradient, whatever the objective; and it learns."""

import math
from typing import Any

import pyro.infer
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_vae import evaluation, fit
from ppl_vae.data import labelled, load
from ppl_vae.objectives import IWAE, DReG, Objective, Trace_ELBO, TraceMeanField_ELBO
from ppl_vae.pairs import Classifier
from ppl_vae.testing import check_pair
from tests.helpers import assert_same, generate, gradients_of, seeded_loss, stock_loss

SHAPE = (1, 3, 4)


def on_features() -> Classifier:
    seen = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh())
    return Classifier(SHAPE, 5, features=seen, num_features=7)


PAIRS = {
    "linear": lambda: Classifier(SHAPE, 5, hidden=()),
    "hidden": lambda: Classifier(SHAPE, 5, hidden=(8, 6)),
    "features": on_features,
}


def batch(rows: int = 9) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, *SHAPE, dtype=torch.float64), torch.arange(rows) % 5


def logits(pair: Classifier, x: Tensor) -> Tensor:
    """By matrix products: rectifiers of hidden layers, tanh of features."""
    act = torch.tanh if any(isinstance(module, nn.Tanh) for module in pair.modules()) else torch.relu
    *hidden, last = (module for module in pair.modules() if isinstance(module, nn.Linear))
    h = x.flatten(1)
    for linear in hidden:
        h = act(h @ linear.weight.T + linear.bias)
    return h @ last.weight.T + last.bias


@pytest.mark.parametrize("objective", [Trace_ELBO(), Trace_ELBO(4), TraceMeanField_ELBO(), IWAE(3), DReG(3)])
@pytest.mark.parametrize("name", PAIRS)
def test_the_elbo_is_minus_the_cross_entropy(name: str, objective: Objective) -> None:
    pair, (x, y) = PAIRS[name]().double(), batch()
    expected = F.cross_entropy(logits(pair, x), y, reduction="none")
    bound = objective.bound(pair.model, pair.guide, x, y)
    torch.testing.assert_close(bound, -expected.detach(), rtol=1e-12, atol=1e-12)
    by_hand = expected.sum().item(), gradients_of(pair, expected.sum())
    assert_same(seeded_loss(pair, objective, x, y), by_hand)


def test_stock_pyro() -> None:
    pair, (x, y) = PAIRS["hidden"]().double(), batch()
    assert_same(seeded_loss(pair, Trace_ELBO(), x, y), stock_loss(pair, pyro.infer.Trace_ELBO(), x, y))


@pytest.mark.parametrize("name", PAIRS)
def test_contract(name: str) -> None:
    x, y = batch()
    check_pair(PAIRS[name](), x.float(), y).raise_if_failed()


def test_it_draws_classes() -> None:
    pair, (x, y) = PAIRS["hidden"]().double(), batch()
    node = generate(pair, x, y)[pair.data_site]
    assert node["value"].shape == (9,) and set(node["value"].tolist()) <= set(range(5))
    torch.testing.assert_close(node["fn"].probs, logits(pair, x).softmax(-1).detach())
    torch.testing.assert_close(pair.classify(x).probs, node["fn"].probs)


def test_its_evaluation_is_a_log_likelihood() -> None:
    pair, (x, y) = PAIRS["hidden"]().double(), batch()
    found = evaluation.evaluate(pair, x, y, num_particles=9, seed=0)
    assert found.label == evaluation.LOG_LIKELIHOOD and found.num_particles == 1 and found.kl == {}
    assert found.nll == pytest.approx(F.cross_entropy(logits(pair, x), y).item(), rel=1e-12)


def test_it_learns_digits() -> None:
    data = labelled(load("digits", binarisation="none"))
    torch.manual_seed(0)
    pair = Classifier(data.shape, data.classes, hidden=(50,))
    history = fit(pair, data, steps=300, learning_rate=5e-3, valid=data.test_batch(), device="cpu", progress=False)
    x, y = data.test_batch()
    right = pair.classify(x).probs.argmax(-1) == y
    assert right.double().mean().item() > 0.9
    best = max(record.valid for record in history.records if record.valid is not None)
    assert best == pytest.approx(-F.cross_entropy(pair.classify(x).logits, y).item(), rel=1e-4)
    assert best > -math.log(10) / 2


def test_defaults() -> None:
    sizes = [tuple(p.shape) for p in Classifier((1, 28, 28), 10).parameters()]
    assert sizes == [(500, 784), (500,), (10, 500), (10,)]


@pytest.mark.parametrize("y", [torch.arange(9) % 6, torch.arange(9) % 5 - 1])
def test_classes_that_are_not_there_are_refused(y: Tensor) -> None:
    pair, (x, _) = PAIRS["hidden"]().double(), batch()
    with pytest.raises(ValueError, match=r"site 'y': got . of 9 values outside the support of Categorical"):
        fit(pair, (x, y), steps=1, batch_size=9, device="cpu", progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": nn.Flatten()}, "features: got Flatten with num_features=None, expected both or none"),
        ({"num_features": 3}, "features: got NoneType with num_features=3, expected both or none"),
        ({"features": nn.Flatten(), "num_features": 0}, "num_features: got 0, expected a whole number"),
        ({"classes": 0}, "classes: got 0, expected a whole number of at least 1"),
        ({"hidden": (0,)}, r"hidden: got \(0,\), expected sizes"),
        ({"data_shape": (0, 3)}, r"data_shape: got \(0, 3\), expected sizes"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classifier(**{"data_shape": SHAPE, "classes": 5, **options})
