"""Ways to train a classifier: what the rows of a table of error rates do."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ppl_vae import finetune, pretrain
from ppl_vae.data import Labelled, partly_labelled
from ppl_vae.evaluation import classification_error
from ppl_vae.objectives import Trace_ELBO, TraceEnum_ELBO
from ppl_vae.pair import Pair
from ppl_vae.pairs import Autoencoder, Classifier, SemiSupervisedVAE
from ppl_vae.rates import Cosine
from ppl_vae.training import fit

__all__ = ["M2", "WAYS", "Alone", "Run", "Stack", "Way"]


@dataclass(frozen=True)
class Run:
    """What a way is given.

    Args:
        data: to learn from.
        valid: data and classes to choose by.
        seed: of weights, batches and noise.
        per_pass: from the number of data to steps that count as one pass over them: fewer in a rehearsal.
        batch_size: data per step.
        options: from the name of a stage to options of its `fit`.
    """

    data: Labelled
    valid: tuple[Tensor, Tensor]
    seed: int
    per_pass: Callable[[int], int]
    batch_size: int
    options: Callable[[str], dict[str, Any]]

    def fit(self, stage: str) -> dict[str, Any]:
        """Options of a stage."""
        return {"batch_size": self.batch_size, "seed": self.seed, **self.options(stage)}

    def steps(self, passes: float, number: int | None = None) -> int:
        """Of so many passes over all data, or over this number of them."""
        return max(1, round(passes * self.per_pass(number or len(self.data.train))))


class Way(ABC):
    """Trains a classifier from one seed."""

    @abstractmethod
    def steps(self, run: Run) -> int:
        """How many `train` takes."""

    @abstractmethod
    def train(self, run: Run) -> Pair:
        """A pair that has `classify`."""


@dataclass(frozen=True)
class Stack(Way):
    """A deep net of sigmoid units by gradient descent, its layers pre-trained or not.

    Args:
        layers, hidden: how many hidden layers, of how many units; top: units of the last, if other.
        greedy: how the layers are pre-trained: see `pretrain.greedy`.
        pretraining: passes for each layer.
        passes: of the whole net.
        rates: step sizes, on the mean loss of a batch; the one with the lowest error on the data held out counts.
        reconstruction_rate: that of the autoencoders, whose losses, sums over the pixels, are far larger.

    References:
        Greedy layer-wise training of deep networks, Bengio, Lamblin, Popovici & Larochelle 2007, section 5.
    """

    layers: int = 3
    hidden: int = 500
    top: int | None = None
    greedy: Literal["no", "supervised", "unsupervised"] = "no"
    pretraining: float = 20
    passes: float = 50
    rates: tuple[float, ...] = (0.1, 0.5)
    reconstruction_rate: float = 0.1

    def steps(self, run: Run) -> int:
        """Of all layers and all step sizes."""
        before = 0 if self.greedy == "no" else self.layers * run.steps(self.pretraining)
        return len(self.rates) * (before + run.steps(self.passes))

    def train(self, run: Run) -> Pair:
        """The net of the best step size."""
        tried = [self._trained(run, rate) for rate in self.rates]
        return min(tried, key=lambda pair: classification_error(pair, *run.valid).value)

    def _trained(self, run: Run, rate: float) -> Classifier:
        def descent(rate: float) -> Callable[[Iterable[Tensor]], torch.optim.Optimizer]:
            return partial(torch.optim.SGD, lr=rate / run.batch_size)  # losses are sums over the batch

        torch.manual_seed(run.seed)
        below, top = (self.hidden,) * (self.layers - 1), self.top or self.hidden
        pair = Autoencoder(run.data.shape, top, below, linear_code=False)
        if self.greedy != "no":
            supervised = self.greedy == "supervised"
            first = descent(rate if supervised else self.reconstruction_rate)
            options = {"supervised": supervised, "optimiser": first}
            options |= run.fit(f"step-size-{rate:g}-layers")
            pretrain.greedy(pair, run.data, steps=run.steps(self.pretraining), **options)
        options = {"optimiser": descent(rate), "valid": run.valid, **run.fit(f"step-size-{rate:g}")}
        return finetune.classifier(pair, run.data, steps=run.steps(self.passes), **options)[0]


@dataclass(frozen=True)
class Alone(Way):
    """A classifier of the data whose class is known, by themselves.

    Args:
        labels: how many; the seed chooses them, as many of each class.
        hidden: units of the hidden layer.
        passes: over *all* data, in steps: as many as the rows beside it take.
    """

    labels: int
    hidden: int = 500
    passes: float = 20

    def steps(self, run: Run) -> int:
        """Of the passes."""
        return run.steps(self.passes)

    def train(self, run: Run) -> Pair:
        """With the weights of the best point on the data held out."""
        some = partly_labelled(run.data.dataset, self.labels, choice=run.seed)
        torch.manual_seed(run.seed)
        pair = Classifier(some.shape, some.classes, (self.hidden,))
        options: dict[str, Any] = run.fit("labelled") | {"batch_size": min(run.batch_size, self.labels)}
        fit(pair, some.labelled_only(), steps=self.steps(run), valid=run.valid, **options)
        return pair


@dataclass(frozen=True)
class M2(Way):
    """The VAE with a class, of data of which a few are labelled (`SemiSupervisedVAE`).

    Grey values are scored by the cross-entropy: no log-likelihood of theirs, but the mean of that of their draws, with
    a guide that sees the grey values. What is measured is the classifier.

    Args:
        labels: how many; the seed chooses them, as many of each class.
        weight: of the classification loss.
        summed: whether unlabelled classes are summed out, or drawn (with the score function's gradient).
        repeat: how often a pass comes by each labelled datum.
        latent_dim, hidden: of the pair, of rectifiers as the classifiers beside it.
        learning_rate: of Adam, at first; it falls to 0 by half a cosine.
        passes: over all data.

    References:
        Semi-supervised learning with deep generative models, Kingma, Rezende, Mohamed & Welling 2014, section 4.1.
    """

    labels: int
    weight: float = 50.0
    summed: bool = True
    repeat: int = 1
    latent_dim: int = 50
    hidden: int = 500
    learning_rate: float = 5e-3
    passes: float = 20

    def steps(self, run: Run) -> int:
        """Of the passes; labelled data that come again count as data."""
        return run.steps(self.passes, len(run.data.train) + (self.repeat - 1) * self.labels)

    def train(self, run: Run) -> Pair:
        """After the last step: labels held out would be more than there are to learn from."""
        some = partly_labelled(run.data.dataset, self.labels, repeat=self.repeat, choice=run.seed)
        torch.manual_seed(run.seed)
        sizes = {"latent_dim": self.latent_dim, "hidden": (self.hidden,), "activation": nn.ReLU}
        pair = SemiSupervisedVAE(
            some.shape, some.classes, **sizes, likelihood="grey-bernoulli", classification=self.weight
        )
        pair.set_output_mean(some.pixel_means)
        objective = TraceEnum_ELBO() if self.summed else Trace_ELBO()
        steps = self.steps(run)
        options: dict[str, Any] = {"learning_rate": self.learning_rate, "schedule": Cosine(steps), **run.fit("all")}
        fit(pair, some, objective, steps=steps, **options)
        return pair


WAYS: dict[str, type[Way]] = {"Stack": Stack, "Alone": Alone, "M2": M2}
