"""Greedy pre-training, one layer after the other with all else untouched; and classifiers that go on from a pair."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_vae import evaluation, fit
from ppl_vae.data import labelled, load, partly_labelled
from ppl_vae.features import features
from ppl_vae.finetune import classifier
from ppl_vae.objectives import IWAE, Trace_ELBO
from ppl_vae.pair import Pair
from ppl_vae.pairs import MADE, VAE, Autoencoder, HelmholtzMachine, HierarchicalVAE
from ppl_vae.pretrain import greedy
from ppl_vae.training import Record

DATA = labelled(load("digits", binarisation="none")).subset(num_train=300, num_test=100)
OPTIONS: dict[str, Any] = {"batch_size": 50, "device": "cpu", "progress": False}
CHANCE = math.log(10)


def autoencoder(**options: Any) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(DATA.shape, 5, (20, 10), **options)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def moved(after: dict[str, Tensor], before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, weight_decay=0.1)


@pytest.mark.parametrize("how", [{}, {"optimiser": sgd}, {"clip_norm": 1.0}], ids=["adam", "sgd", "clipped"])
@pytest.mark.parametrize("options", [{}, {"tied": True}, {"corruption": 0.3}], ids=str)
@pytest.mark.parametrize("supervised", [False, True])
def test_each_step_moves_one_layer_alone(supervised: bool, options: dict[str, Any], how: dict[str, Any]) -> None:
    pair, steps, count = autoencoder(**options), 3, 0
    before, records = state(pair), list[Record]()

    def check(_: int) -> None:
        nonlocal before, count
        now, layer = state(pair), count // steps
        parts = ("encoder",) if supervised else ("encoder", "decoder")
        assert moved(now, before) == {name for name in now if name.startswith(tuple(f"{p}.{layer}." for p in parts))}
        before, count = now, count + 1

    done = greedy(
        pair, DATA, steps=steps, supervised=supervised, on_step=check, on_record=records.append, **how, **OPTIONS
    )
    assert count == 9 and not moved(state(pair), before)
    assert [(name, history.steps) for name, history in done.items()] == [(f"layer {i}", 3) for i in (1, 2, 3)]
    assert records == [record for history in done.values() for record in history.records]


@pytest.mark.parametrize("data", [DATA, DATA.dataset, DATA.train], ids=["labelled", "plain", "tensor"])
def test_it_is_a_run_of_each_layer(data: Any) -> None:
    together, apart = autoencoder(corruption=0.3), autoencoder(corruption=0.3)
    done = greedy(together, data, steps=5, optimiser=sgd, seed=3, **OPTIONS)
    for layer, history in zip(apart.layers(), done.values(), strict=True):
        alone = fit(layer, DATA.train, steps=5, optim=sgd(layer.parameters()), seed=3, **OPTIONS)
        assert history.curve == alone.curve
    assert not moved(state(together), state(apart))


def test_steps_by_hand() -> None:
    """One step of gradient descent of each layer on all data: h -> s(W h + b) -> s(V z + c), cross-entropy."""
    pair, rate = autoencoder(linear_code=False), 1e-4
    weights = {name: value.requires_grad_() for name, value in state(pair).items()}
    h = DATA.train.flatten(1)
    losses = []
    for i in range(3):
        W, b, V, c = (weights[f"{part}.{i}.0.{kind}"] for part in ("encoder", "decoder") for kind in ("weight", "bias"))
        r = torch.sigmoid(h @ W.T + b) @ V.T + c
        loss = F.binary_cross_entropy_with_logits(r, h, reduction="none").sum()
        losses.append(-loss.item() / len(h))
        for w, gradient in zip((W, b, V, c), torch.autograd.grad(loss, (W, b, V, c)), strict=True):
            w.detach().sub_(rate * gradient)
        h = torch.sigmoid(h @ W.T + b).detach()

    def descent(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=rate)

    done = greedy(pair, DATA, steps=1, optimiser=descent, **{**OPTIONS, "batch_size": 300})
    assert [history.records[-1].bound for history in done.values()] == pytest.approx(losses, rel=1e-5)
    for name, value in state(pair).items():
        torch.testing.assert_close(value, weights[name].detach(), rtol=1e-4, atol=1e-6)


def test_supervised_steps_by_hand() -> None:
    """As above, with a linear classifier on each layer, which is thrown away."""
    pair, rate = autoencoder(), 1e-4
    weights = {name: value.requires_grad_() for name, value in state(pair).items()}
    torch.manual_seed(0)  # as `seed` is by default
    heads = [nn.Linear(width, 10) for width in (20, 10, 5)]
    h, y = DATA.train.flatten(1), DATA.dataset.train_labels
    assert y is not None
    losses = []
    for i, head in enumerate(heads):
        W, b = weights[f"encoder.{i}.0.weight"], weights[f"encoder.{i}.0.bias"]

        def layer(h: Tensor, W: Tensor = W, b: Tensor = b, last: bool = i == 2) -> Tensor:
            return h @ W.T + b if last else torch.sigmoid(h @ W.T + b)

        loss = F.cross_entropy(head(layer(h)), y, reduction="sum")
        losses.append(-loss.item() / len(h))
        for w, gradient in zip((W, b), torch.autograd.grad(loss, (W, b)), strict=True):
            w.detach().sub_(rate * gradient)
        h = layer(h).detach()

    def descent(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=rate)

    done = greedy(pair, DATA, steps=1, supervised=True, optimiser=descent, **{**OPTIONS, "batch_size": 300})
    assert [history.records[-1].bound for history in done.values()] == pytest.approx(losses, rel=1e-5)
    for name, value in state(pair).items():
        torch.testing.assert_close(value, weights[name].detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"tied": True}, {"corruption": 0.2}], ids=str)
def test_reconstruction_becomes_better(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    pair, x = Autoencoder(DATA.shape, 10, (40,), **options), DATA.test_batch()[0]
    before = evaluation.bound(pair, Trace_ELBO(), x).mean()
    done = greedy(pair, DATA, steps=80, learning_rate=2e-2, **OPTIONS)
    assert all(history.records[-1].bound > history.records[0].bound for history in done.values())
    means = DATA.train.flatten(1).mean(0).clamp(1e-6, 1 - 1e-6)
    blind = -F.binary_cross_entropy(means.expand(100, -1), x.flatten(1), reduction="none").sum(1).mean()
    assert before < blind < evaluation.bound(pair, Trace_ELBO(), x).mean()


def test_supervised_layers_learn_classes() -> None:
    pair = autoencoder()
    done = greedy(pair, DATA, steps=80, supervised=True, learning_rate=2e-2, **OPTIONS)
    assert all(history.records[-1].bound > -CHANCE / 2 for history in done.values())
    before, after = (evaluation.linear_probe(p, DATA, fractions=(1.0,))[1.0].value for p in (autoencoder(), pair))
    assert after < before


def test_classes_are_asked_for() -> None:
    for data, name in ((DATA.dataset, "Dataset"), (DATA.train, "Tensor")):
        with pytest.raises(ValueError, match=f"data: got {name}, expected data with classes: data.labelled"):
            greedy(autoencoder(), data, steps=1, supervised=True, **OPTIONS)


def test_classes_that_are_not_known_are_refused() -> None:
    data = partly_labelled(DATA.dataset, 20)
    with pytest.raises(ValueError):
        greedy(autoencoder(), data, steps=1, supervised=True, **OPTIONS)
    with pytest.raises(ValueError):
        classifier(VAE(DATA.shape, 2, (5,)), data, steps=1, **OPTIONS)
    # Without classes, nothing is missing.
    assert greedy(autoencoder(), data, steps=1, **OPTIONS).keys() == {"layer 1", "layer 2", "layer 3"}


def test_a_run_with_checkpoints_goes_on(tmp_path: Path) -> None:
    pair, again = autoencoder(), autoencoder()
    options: dict[str, Any] = {**OPTIONS, "steps": 4, "checkpoints": tmp_path, "checkpoint_every": 2}
    greedy(pair, DATA, **options)
    greedy(again, DATA, resume=True, **options)
    assert not moved(state(again), state(pair))


PAIRS: dict[str, tuple[Callable[[], Pair], tuple[str, ...]]] = {
    "vae": (lambda: VAE(DATA.shape, 5, (20,)), ("encoder",)),
    "convolutions": (lambda: VAE(DATA.shape, 5, (4, 4), trunk="conv"), ("encoder",)),
    "hierarchical": (lambda: HierarchicalVAE(DATA.shape, (8, 4), ((20,), (10,))), ("encoder", "up")),
    "autoencoder": (autoencoder, ("encoder",)),
    "tied, denoising": (lambda: autoencoder(tied=True, corruption=0.2), ("encoder",)),
    "helmholtz": (lambda: HelmholtzMachine(DATA.shape, (20, 10)), ("up",)),
}


def pair_of(name: str) -> Pair:
    torch.manual_seed(0)
    return PAIRS[name][0]()


@pytest.mark.parametrize("name", PAIRS)
def test_a_classifier_begins_with_the_pairs_features(name: str) -> None:
    pair, x = pair_of(name), DATA.test_batch()[0]
    found, history = classifier(pair, DATA, steps=0, **OPTIONS)
    assert history.steps == 0 and found.classes == 10 and found.data_shape == tuple(DATA.shape)
    pair.eval()
    found.eval()
    seen = features(pair, x)
    assert torch.equal(found.features(x), seen) and not seen.isnan().any()
    torch.testing.assert_close(found.classify(x).probs, found.head(seen).softmax(-1))
    y = DATA.test_batch()[1]
    expected = -F.cross_entropy(found.head(seen), y, reduction="none").detach()
    for objective in (Trace_ELBO(), Trace_ELBO(3), IWAE(3)):
        torch.testing.assert_close(objective.bound(found.model, found.guide, x, y), expected)


@pytest.mark.parametrize("name", PAIRS)
def test_a_copy_is_trained_from_end_to_end(name: str) -> None:
    pair = pair_of(name)
    before, modes = state(pair), [module.training for module in pair.modules()]
    found, states = None, []
    for steps in (0, 3):
        torch.manual_seed(1)
        found, _ = classifier(pair, DATA, steps=steps, **OPTIONS)
        states.append(state(found))
    assert not moved(state(pair), before) and all(p.grad is None for p in pair.parameters())
    assert [module.training for module in pair.modules()] == modes
    assert found is not None and not {id(p) for p in pair.parameters()} & {id(p) for p in found.parameters()}
    parts = tuple(f"features.pair.{part}." for part in PAIRS[name][1])
    assert moved(states[1], states[0]) == {n for n in states[1] if n.startswith((*parts, "head."))}


@pytest.mark.parametrize("name", PAIRS)
def test_it_learns_the_classes(name: str) -> None:
    found, history = classifier(pair_of(name), DATA, steps=120, learning_rate=1e-2, **OPTIONS)
    assert history.records[-1].bound > history.records[0].bound
    assert evaluation.classification_error(found, *DATA.test_batch()).value < 0.5  # 0.9 by chance


def test_options_are_those_of_fit() -> None:
    pair, x = pair_of("vae"), DATA.test_batch()[0]

    def still(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.0)

    found, _ = classifier(pair, DATA, steps=3, optimiser=still, **OPTIONS)
    assert torch.equal(found.features(x), features(pair, x))
    found, history = classifier(pair, DATA, steps=10, valid=DATA.test_batch(), **OPTIONS)
    assert history.best is not None
    best = max(record.valid for record in history.records if record.valid is not None)
    found_y = found.classify(x).log_prob(DATA.test_batch()[1]).mean().item()
    assert best == pytest.approx(found_y, rel=1e-5)


def test_a_classifier_is_given_clean_data(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    encode = Autoencoder.encode
    monkeypatch.setattr(Autoencoder, "encode", lambda pair, x: seen.append(x) or encode(pair, x))
    classifier(autoencoder(corruption=0.5), DATA, steps=1, **{**OPTIONS, "batch_size": 300})
    ordered = [x.flatten(1).sum(1).sort().values for x in (seen[-1], DATA.train)]
    torch.testing.assert_close(*ordered)


def test_a_guide_that_makes_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="MADE: got a guide without latent sites"):
        classifier(MADE(DATA.shape, (10,)), DATA, steps=1, **OPTIONS)
