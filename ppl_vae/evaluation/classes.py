"""How well classes are read off data: by a classifier, or by a linear map of what a guide makes of them."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.distributions import Categorical

from ppl_vae.data import Labelled
from ppl_vae.evaluation.share import Share
from ppl_vae.features import features
from ppl_vae.pair import Pair
from ppl_vae.quiet import undisturbed

__all__ = ["Classifies", "classification_error", "linear_probe"]

ROWS = 1000
"""Data that are read at once."""

FRACTIONS = (0.01, 0.03, 0.1, 0.3, 1.0)


class Classifies(Protocol):
    """A pair that knows p(y | x): `Classifier` and `SemiSupervisedVAE`."""

    def classify(self, x: Tensor) -> Categorical:
        """p(y | x), batch shape (B,)."""
        ...


def classification_error(pair: Classifies, x: Tensor, y: Tensor) -> Share:
    """The share of data whose most probable class is not theirs.

    Args:
        pair: has `classify`; it reads in eval mode.
        x: (N, *shape).
        y: classes, (N,).

    Example:
        >>> from ppl_vae.pairs import Classifier
        >>> classification_error(Classifier((4,), classes=2), torch.zeros(6, 4), torch.zeros(6).long()).number
        6
    """
    assert isinstance(pair, Pair)
    with undisturbed(pair, 0):
        parts = x.to(pair.reference().device).split(ROWS)
        read = torch.cat([pair.classify(part).logits.argmax(-1) for part in parts])
    return Share.of(read != y.to(read.device))


def linear_probe(
    pair: Pair,
    data: Labelled,
    *,
    fractions: Sequence[float] = FRACTIONS,
    penalty: float = 1.0,
    seed: int = 0,
) -> dict[float, Share]:
    """Classes read off what a guide makes of x by logistic regression, from part of the training labels: the errors.

    The features are the means of the latent sites (see `features`), each scaled to mean 0 and variance 1 over the
    training data that have a label. Of each class the same share is labelled, and one datum at least.

    Args:
        pair: whose guide takes x alone; it stays as it is.
        data: with classes; binarised as they say.
        fractions: of the training data that are labelled, each in (0, 1].
        penalty: of the squared weights, over 2: the inverse of scikit-learn's C.
        seed: of the choice, and of the binarisation of training data.

    Returns:
        Fraction -> share of the test data that is misread.

    Raises:
        ValueError: a fraction outside (0, 1], a penalty that is not positive; data without classes; what `features`
            raises.

    Example:
        >>> from ppl_vae.data import labelled, load
        >>> from ppl_vae.pairs import VAE
        >>> data = labelled(load("digits")).subset(num_train=200)
        >>> list(linear_probe(VAE(data.shape, latent_dim=2), data, fractions=(0.5, 1.0)))
        [0.5, 1.0]
    """
    if wrong := [fraction for fraction in fractions if not 0 < fraction <= 1]:
        raise ValueError(f"fractions: got {wrong[0]}, expected shares of the training data, above 0 and at most 1")
    if not 0 < penalty < math.inf:
        raise ValueError(f"penalty: got {penalty}, expected a finite number above 0; 1.0, say")
    if not isinstance(data, Labelled):
        raise ValueError(f"data: got {type(data).__name__}, expected data with classes: data.labelled(...)")
    device = pair.reference().device
    x, (test, test_labels) = data.train, data.test_batch()
    labels = data.train_labels.cpu()
    with undisturbed(pair, seed):
        seen = [torch.cat([features(pair, data.dataset.draw(p.to(device))) for p in x.split(ROWS)]).cpu()]
        seen += [torch.cat([features(pair, p.to(device)) for p in test.split(ROWS)]).cpu()]
        order = torch.randperm(len(x))
    order = order[labels[order] >= 0]  # of partly labelled data those that are
    found = {}
    for fraction in fractions:
        rows = _per_class(labels[order], order, fraction)
        regression = make_pipeline(StandardScaler(), LogisticRegression(C=1 / penalty, max_iter=2000))
        regression.fit(seen[0][rows].numpy(), labels[rows].numpy())
        read = torch.from_numpy(regression.predict(seen[1].numpy()))
        found[fraction] = Share.of(read != test_labels.cpu())
    return found


def _per_class(labels: Tensor, rows: Tensor, fraction: float) -> Tensor:
    """Rows of the first `fraction` of each class, of labels in the order of these rows."""
    chosen = []
    for label in labels.unique():
        of_class = rows[labels == label]
        chosen.append(of_class[: max(1, round(fraction * len(of_class)))])
    return torch.cat(chosen)
