"""How well classes are read: an error counted by hand, and a probe that is scikit-learn's regression by hand."""

import copy
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from ppl_vae.data import Dataset, binarise, labelled, load, partly_labelled
from ppl_vae.evaluation import Share, classes, classification_error, linear_probe
from ppl_vae.features import features
from ppl_vae.pair import Pair
from ppl_vae.pairs import MADE, VAE, Autoencoder, Classifier, HierarchicalVAE, SemiSupervisedVAE
from ppl_vae.quiet import private_stream

GREY = load("digits", binarisation="none")
DATA = labelled(GREY).subset(num_train=400, num_test=150)


def vae() -> VAE:
    return VAE(DATA.shape, 6, (20,))


def arrays(pair: Classifier) -> tuple[np.ndarray, np.ndarray]:
    return pair.head.weight.detach().numpy(), pair.head.bias.detach().numpy()


def test_the_error_is_the_share_of_wrong_classes() -> None:
    pair, x, y = Classifier((4,), 3, hidden=()), torch.randn(2500, 4), torch.arange(2500) % 3
    W, b = arrays(pair)
    wrong = sum(int(np.argmax(W @ row + b)) != label for row, label in zip(x.numpy(), y.tolist(), strict=True))
    found = classification_error(pair, x, y)
    assert found.number == 2500 and found.value == pytest.approx(wrong / 2500, abs=1e-12) and 0 < wrong < 2500
    read = pair.classify(x).logits.argmax(-1)
    assert classification_error(pair, x, read) == Share(0.0, 2500)
    assert classification_error(pair, x, (read + 1) % 3).value == 1.0


def test_a_share_and_its_standard_error() -> None:
    found = Share.of(torch.tensor([True, False, False, False]))
    assert found == Share(0.25, 4) and found.se == pytest.approx(math.sqrt(0.25 * 0.75 / 4))
    assert str(found) == "0.250 (0.217)" and Share(1.0, 5).se == 0.0


def test_a_semi_supervised_pair_classifies_too() -> None:
    pair, (x, y) = SemiSupervisedVAE(DATA.shape, 10, latent_dim=2, hidden=(5,)), DATA.test_batch()
    expected = (pair.classify(x).probs.argmax(-1) != y).double().mean().item()
    assert classification_error(pair, x, y) == Share(expected, 150)


def test_classes_are_read_in_eval_mode_and_nothing_changes() -> None:
    torch.manual_seed(0)
    pair = Classifier((4,), 3, features=nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)), num_features=4)
    x, y = 3 + torch.randn(50, 4), torch.arange(50) % 3
    pair.features[1].eval()  # type: ignore[index]
    modes, before, state = [m.training for m in pair.modules()], copy.deepcopy(pair.state_dict()), torch.get_rng_state()
    found = classification_error(pair, x, y)
    assert [m.training for m in pair.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in pair.state_dict().items())
    assert found.value == (pair.eval().classify(x).logits.argmax(-1) != y).double().mean().item()


class Spy(LogisticRegression):
    """Keeps what each regression is fitted to."""

    fitted: list[tuple[np.ndarray, np.ndarray, float]]

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        self.fitted.append((X, y, self.C))
        return super().fit(X, y, sample_weight)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, np.ndarray, float]]:
    Spy.fitted = []
    monkeypatch.setattr("ppl_vae.evaluation.classes.LogisticRegression", Spy)
    return Spy.fitted


def by_hand(seen: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, C: float = 1.0) -> float:
    """Error of a regression on features scaled to mean 0 and variance 1."""
    train = seen.double().numpy()
    mean, deviation = train.mean(0), train.std(0)
    regression = LogisticRegression(C=C, max_iter=2000).fit((train - mean) / deviation, labels.numpy())
    return float((regression.predict((test.double().numpy() - mean) / deviation) != test_labels.numpy()).mean())


@pytest.mark.parametrize("penalty", [1.0, 100.0])
@pytest.mark.parametrize("kind", ["vae", "hierarchical", "denoising"])
def test_the_probe_of_all_labels_is_a_regression_by_hand(kind: str, penalty: float) -> None:
    pair = {
        "vae": vae,
        "hierarchical": lambda: HierarchicalVAE(DATA.shape, (6, 4), ((20,), (10,))),
        "denoising": lambda: Autoencoder(DATA.shape, 6, (20,), corruption=0.5),
    }[kind]()
    (x, y), labels = DATA.test_batch(), DATA.dataset.train_labels
    assert labels is not None
    clean = copy.deepcopy(pair).eval()
    with torch.no_grad():
        expected = by_hand(features(clean, DATA.train), labels, features(clean, x), y, 1 / penalty)
    found = linear_probe(pair, DATA, fractions=(1.0,), penalty=penalty)
    assert list(found) == [1.0] and found[1.0].number == 150
    assert found[1.0].value == pytest.approx(expected, abs=1e-12)
    assert found[1.0].value < 0.9  # even at random, the features say something


def test_training_data_are_binarised_by_the_seed() -> None:
    data = labelled(binarise(GREY, "dynamic")).subset(num_train=400, num_test=150)
    pair, labels = vae(), data.dataset.train_labels
    assert labels is not None
    with private_stream(3, torch.device("cpu")), torch.no_grad():
        seen = pair.encoder(torch.bernoulli(data.train)).mean
    x, y = data.test_batch()
    assert sorted(x.unique().tolist()) == [0.0, 1.0]
    with torch.no_grad():
        expected = by_hand(seen, labels, pair.encoder(x).mean, y)
    assert linear_probe(pair, data, fractions=(1.0,), seed=3)[1.0].value == pytest.approx(expected, abs=1e-12)


def test_of_each_class_the_same_share_is_labelled(spy: list[Any]) -> None:
    labels = DATA.dataset.train_labels
    assert labels is not None
    of_all = Counter(labels.tolist())
    found = linear_probe(vae(), DATA, fractions=(0.001, 0.1, 0.5, 1.0), penalty=4.0)
    assert list(found) == [0.001, 0.1, 0.5, 1.0] and all(share.number == 150 for share in found.values())
    for (X, y, C), fraction in zip(spy, found, strict=True):
        assert Counter(y.tolist()) == {label: max(1, round(fraction * n)) for label, n in of_all.items()}
        assert C == 0.25 and X.shape == (len(y), 6)
        if fraction > 0.1:  # of those with a label, not of all
            np.testing.assert_allclose(X.mean(0), 0, atol=1e-5)
            np.testing.assert_allclose(X.std(0), 1, atol=1e-5)


def test_labels_go_with_their_features(spy: list[Any]) -> None:
    """The features of a pair that copies x: its class, which is written there."""

    labels = torch.arange(60) * 7 % 4
    x = torch.stack([labels / 4, torch.rand(60)], -1)
    data = labelled(Dataset(name="told", train=x, test=x[:9], train_labels=labels, test_labels=labels[:9]))
    pair = Autoencoder((2,), 2, ())
    with torch.no_grad():
        pair.encoder[0].get_submodule("0").get_parameter("weight").copy_(torch.eye(2))
    assert linear_probe(pair, data, fractions=(0.5, 1.0), penalty=1e-4)[1.0].value == 0.0
    for X, y, _ in spy:
        for label in range(4):  # within a class the first feature is one number
            assert np.ptp(X[y == label, 0]) < 1e-5


def test_the_choice_is_the_seeds(spy: list[Any]) -> None:
    pair = vae()
    shares = [linear_probe(pair, DATA, fractions=(0.1,), seed=seed) for seed in (0, 0, 1)]
    rows = [np.sort(X[:, 0]) for X, _, _ in spy]
    assert shares[0] == shares[1] and np.array_equal(rows[0], rows[1]) and not np.array_equal(rows[0], rows[2])


@pytest.mark.parametrize("make", [vae, lambda: Autoencoder(DATA.shape, 3, (5,), corruption=0.5)])
def test_the_pair_and_the_random_stream_stay(make: Any) -> None:
    pair: Pair = make()
    before, state, numpys = copy.deepcopy(pair.state_dict()), torch.get_rng_state(), str(np.random.get_state())
    linear_probe(pair, labelled(binarise(GREY, "dynamic")).subset(100, 50), fractions=(0.5,))
    assert torch.equal(torch.get_rng_state(), state) and str(np.random.get_state()) == numpys
    assert all(torch.equal(value, before[name]) for name, value in pair.state_dict().items())
    assert all(module.training for module in pair.modules()) and all(p.grad is None for p in pair.parameters())


def test_data_without_a_class_are_not_fitted(spy: list[Any]) -> None:
    linear_probe(vae(), partly_labelled(DATA.dataset, 50), fractions=(1.0,))
    ((_, y, _),) = spy
    assert Counter(y.tolist()) == dict.fromkeys(range(10), 5)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, math.nan])
def test_shares_that_are_none_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"fractions: got {fraction}, expected shares .* above 0 and at most 1"):
        linear_probe(vae(), DATA, fractions=(0.1, fraction))


def test_a_guide_without_sites_is_refused() -> None:
    with pytest.raises(ValueError, match="MADE: got a guide without latent sites"):
        linear_probe(MADE(DATA.shape, (5,)), DATA)


def test_the_default_fractions() -> None:
    assert classes.FRACTIONS == (0.01, 0.03, 0.1, 0.3, 1.0)
