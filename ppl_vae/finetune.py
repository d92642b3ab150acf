"""A pair's encoder as the beginning of a classifier, trained on as a whole."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ppl_vae.data import Labelled
from ppl_vae.features import Features, features
from ppl_vae.pair import Pair
from ppl_vae.pairs import Classifier
from ppl_vae.pairs.autoencoder import Coder
from ppl_vae.pretrain import with_classes
from ppl_vae.quiet import private_stream, undisturbed
from ppl_vae.training import History, fit

__all__ = ["classifier"]


def classifier(
    pair: Pair,
    data: Labelled,
    *,
    steps: int,
    optimiser: Callable[[Iterable[Tensor]], torch.optim.Optimizer] | None = None,
    **options: Any,
) -> tuple[Classifier, History]:
    """A classifier upon the means of a pair's guide, with all parameters trained: those of the guide too.

    Args:
        pair: whose guide takes x alone; it stays as it is, a copy is trained (of which what only the model has, a
            decoder, is carried along untrained).
        data: with classes.
        steps: how many.
        optimiser: from the parameters to an optimiser; Adam by default.
        options: all others of `fit`; its `valid` is (x, classes), and with it the best point of the run is kept.

    Returns:
        The classifier, and its learning curve: log p(y | x) in nats per datum.

    Raises:
        ValueError: data without classes; what `features` and `fit` raise.

    References:
        Greedy layer-wise training of deep networks, Bengio, Lamblin, Popovici & Larochelle 2007, section 2.3.

    Example:
        >>> from ppl_vae.data import labelled, load
        >>> from ppl_vae.pairs import VAE
        >>> data = labelled(load("digits"))
        >>> found, history = classifier(VAE(data.shape, latent_dim=2), data, steps=2, device="cpu", progress=False)
        >>> found.classify(data.train[:5]).probs.shape, history.steps
        (torch.Size([5, 10]), 2)
    """
    data, pair = with_classes(data), copy.deepcopy(pair)
    if isinstance(pair, Coder):
        pair.corruption = 0.0  # which was to train the code
    with undisturbed(pair, 0):
        width = features(pair, data.train[:1].to(pair.reference().device)).shape[1]
    head: dict[str, Any] = {"features": Features(pair), "num_features": width}
    with private_stream(options.get("seed", 0), torch.device("cpu")):
        found = Classifier(data.shape, data.classes, **head)
    if optimiser is not None:
        options["optim"] = optimiser(found.parameters())
    return found, fit(found, data, steps=steps, **options)
