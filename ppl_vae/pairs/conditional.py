"""The conditional VAE of Sohn, Lee & Yan, and the prediction without latent variables that it is compared with."""

import copy
import math
from collections.abc import Sequence
from typing import Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppl_vae.data.quadrants import UNKNOWN
from ppl_vae.nn import ConvEncoder, Head, OneHot, Rollout, as_shape, as_size
from ppl_vae.pair import Pair
from ppl_vae.pairs import networks
from ppl_vae.pairs.networks import Activation, Likelihood, TrunkName

__all__ = ["ConditionalPair", "ConditionalVAE", "Prediction", "PriorGuided"]


class ConditionalPair(Pair):
    """What pairs of p(y | c) share: the features of c, and which part of y counts. Programs take (y, c).

    Args:
        data_shape: shape of one y.
        given_shape: shape of one c; None where it is a class.
        hidden: units of hidden layers (channels, if convolutional).
        trunk: "mlp" or "conv".
        activation: makes the nonlinearity between layers.
        condition: turns c into features first, see `ConditionalVAE`.
        condition_dim: how many features.
        image_features: how many of an image of the "conv" trunk.
        completion: c is y where it is given, and `UNKNOWN` elsewhere.
        classes: K, where c are classes.

    Raises:
        ValueError: condition without condition_dim, or the reverse; completion where y and c are of unlike shapes;
            classes beside one of these, or neither classes nor given_shape.
    """

    data_site = "y"

    generation: nn.Sequential
    """p(y | c, ...)."""

    def __init__(
        self,
        data_shape: Sequence[int],
        given_shape: Sequence[int] | None,
        hidden: Sequence[int],
        trunk: TrunkName,
        activation: Activation,
        condition: nn.Module | None,
        condition_dim: int | None,
        image_features: int,
        completion: bool,
        classes: int | None,
    ) -> None:
        super().__init__()
        if (classes is None) == (given_shape is None) or (classes is not None and condition is not None):
            raise ValueError(
                f"given_shape: got {given_shape} and classes={classes}, expected one of them: what shape c has, or how "
                "many classes it is one of (which need no condition)"
            )
        if classes is not None:
            condition, condition_dim = OneHot(classes), classes
        self.data_shape = as_shape(data_shape, "data_shape")
        self.given_shape = as_shape(given_shape or (), "given_shape")
        if completion and self.data_shape != self.given_shape:
            raise ValueError(
                f"completion: got data_shape {self.data_shape} and given_shape {self.given_shape}, expected one shape: "
                "c is y where it is given, and UNKNOWN elsewhere"
            )
        if (condition is None) != (condition_dim is None):
            raise ValueError(
                f"condition: got {type(condition).__name__} with condition_dim={condition_dim}, expected both or none; "
                "condition_dim says how many features the network makes of one c"
            )
        self.completion = completion
        if condition is None or condition_dim is None:
            condition, condition_dim = _sight(trunk, self.given_shape, hidden, activation, image_features)
        self.condition, self.condition_dim = condition, as_size(condition_dim, "condition_dim")

    def set_output_mean(self, mean: Tensor) -> None:
        """Start p(y | c, ...) at the means of the training data, shape `data_shape`."""
        networks.set_output_mean(self.generation, mean)

    def features(self, c: Tensor) -> Tensor:
        """What the networks see of c (B, *given_shape): (B, F).

        Raises:
            ValueError: c of another shape or dtype, or a condition that makes another number of features.
        """
        if tuple(c.shape[1:]) != self.given_shape:
            wanted = ", ".join(["B", *map(str, self.given_shape)])
            raise ValueError(f"c: got shape {tuple(c.shape)}, expected ({wanted}); reshape it, or set given_shape")
        found = self.condition(c).flatten(1)
        if found.shape[1] != self.condition_dim or not found.is_floating_point():
            raise ValueError(
                f"condition: got features of shape {tuple(found.shape)} and {found.dtype}, expected "
                f"{self.condition_dim} floats for each c; set condition_dim, or give a condition that makes floats of "
                f"{c.dtype}, such as an embedding"
            )
        return found

    def counted(self, p: TorchDistribution, c: Tensor) -> TorchDistribution:
        """p(y | c, ...) as it is scored: of a completion the unknown part alone, of the others p itself."""
        if not self.completion:
            return p
        if not isinstance(p, dist.Independent):
            raise ValueError(
                f"completion: got {type(p).__name__}, expected a likelihood of one element at a time, so that the "
                "unknown ones can be scored alone; choose another"
            )
        # Before to_event: a mask beyond it would leave out whole data.
        elements: TorchDistribution = p.base_dist
        return elements.mask(c == UNKNOWN).to_event(len(self.data_shape))


class Prediction(ConditionalPair):
    """p(y | c) = generation(condition(c)), without latent variables: an ordinary network, and its log-likelihood.

    The guide is empty, so that the ELBO is log p(y | c), and `fit` trains it. All elements of y are independent
    given c: where several y are right it predicts none of them, but their mean.

    Args:
        data_shape: shape of one y, (1, 28, 28) say.
        given_shape: shape of one c.
        hidden: units of the hidden layers (channels of the encoder, if convolutional; the decoder's reversed).
        trunk, activation, condition, condition_dim, image_features, completion, classes: as of `ConditionalVAE`.
        likelihood, variance, levels: as of `ConditionalVAE`.

    Raises:
        ValueError: as `ConditionalVAE`.

    References:
        Learning structured output representation using deep conditional generative models, Sohn, Lee & Yan 2015,
        section 5.1: the baseline network.

    Example:
        >>> pair = Prediction((1, 28, 28), (1, 28, 28), completion=True)
        >>> [tuple(p.shape) for p in pair.parameters() if p.dim() == 2]
        [(500, 784), (500, 500), (784, 500)]
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        given_shape: Sequence[int] | None = None,
        hidden: Sequence[int] = (500, 500),
        *,
        trunk: TrunkName = "mlp",
        activation: Activation = nn.ReLU,
        likelihood: Likelihood | Head = "bernoulli",
        variance: float | None = None,
        levels: int = 256,
        condition: nn.Module | None = None,
        condition_dim: int | None = None,
        image_features: int = 256,
        completion: bool = False,
        classes: int | None = None,
    ) -> None:
        hidden = as_shape(hidden, "hidden")
        reading = condition, condition_dim, image_features, completion, classes
        super().__init__(data_shape, given_shape, hidden, trunk, activation, *reading)
        head = networks.likelihood_head(likelihood, self.data_shape, variance, levels)
        units = hidden[::-1] if trunk == "conv" else hidden
        self.generation = networks.decoder(trunk, self.condition_dim, head, units, activation)

    def forward(self, c: Tensor) -> TorchDistribution:
        """p(y | c) of all of y, for c of shape (B, *given_shape)."""
        return self.generation(self.features(c))

    def model(self, y: Tensor, c: Tensor) -> None:
        """p(y | c) for y of shape (B, *data_shape) and c of shape (B, *given_shape)."""
        with pyro.plate("data", len(y), dim=-1):
            pyro.sample("y", self.counted(self(c), c), obs=y)

    def guide(self, y: Tensor, c: Tensor) -> None:
        """Nothing: there are no latent sites."""


class ConditionalVAE(ConditionalPair):
    """p(z | c) = prior(f);  p(y | c, z) = generation([z, f]);  q(z | y, c) = recognition([y, f]);  f = condition(c).

    Or generation(z), if not `direct`: what is known of c then goes through z.

    The first argument y of both programs is modelled, the second, c, is conditioned on. Prior and recognition are
    diagonal Normals. Sites "z" and "y".

    With `completion`, c is y where it is given and `UNKNOWN` (-1) elsewhere, as `data.quadrants` makes it, and
    p(y | c, z) is that of the unknown elements: bounds are of log p(unknown part | given part), and y counts nowhere
    else: the recognition network sees c with y filled in.

    With a `baseline`, a frozen copy of that trained prediction makes a first guess y^ = E[y | c]. In a completion f
    is condition(c with y^ filled in), otherwise [condition(c), y^].

    Args:
        data_shape: shape of one y, (1, 28, 28) say.
        given_shape: shape of one c.
        latent_dim: D, the size of z.
        hidden: units of the prior's and the recognition's hidden layers, the generation's reversed; with the "conv"
            trunk, channels of the encoders and, reversed, of the decoder.
        trunk: "mlp"; or "conv": y, and c where it is an image, are first reduced to `image_features`, which a hidden
            layer of as many units joins.
        activation: makes the nonlinearity between layers.
        likelihood: "bernoulli", "grey-bernoulli", "normal", "discretised-logistic", "categorical",
            "logistic-mixture", or a `Head`.
        variance: the constant variance c of the "normal" likelihood; learned for each element if None.
        levels: number of grey levels of the last three.
        condition: (B, *given_shape) -> features, flattened then: a caption's encoder, say. It learns with the three
            networks, and runs once for both programs where gradients are recorded (see `nn.Rollout`). None: c itself,
            or a convolutional encoder with "conv".
        condition_dim: how many features `condition` makes of one c.
        image_features: see trunk.
        completion: see above.
        classes: K, instead of given_shape: c (B,) are classes, whole numbers from 0 to K - 1.
        direct: whether the generation network sees f beside z. With it, a c that tells most of y leaves z unused.
        baseline: see above.

    Raises:
        ValueError: an unknown trunk or likelihood, or sizes below 1; condition without condition_dim, or the reverse;
            completion where y and c are of unlike shapes; both given_shape and classes, or none; a baseline of other
            shapes.

    References:
        Learning structured output representation using deep conditional generative models, Sohn, Lee & Yan 2015,
        sections 4 and 5.1; sizes are those of Pyro's tutorial, which is not direct.

    Example:
        >>> pair = ConditionalVAE((1, 8, 8), (3,), latent_dim=2, hidden=(50,))
        >>> pair.generate(torch.zeros(5, 1, 8, 8), torch.zeros(5, 3)).nodes["y"]["value"].shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        given_shape: Sequence[int] | None = None,
        latent_dim: int = 200,
        hidden: Sequence[int] = (500, 500),
        *,
        trunk: TrunkName = "mlp",
        activation: Activation = nn.ReLU,
        likelihood: Likelihood | Head = "bernoulli",
        variance: float | None = None,
        levels: int = 256,
        condition: nn.Module | None = None,
        condition_dim: int | None = None,
        image_features: int = 256,
        completion: bool = False,
        classes: int | None = None,
        direct: bool = True,
        baseline: Prediction | None = None,
    ) -> None:
        hidden = as_shape(hidden, "hidden")
        reading = condition, condition_dim, image_features, completion, classes
        super().__init__(data_shape, given_shape, hidden, trunk, activation, *reading)
        self.latent_dim = as_size(latent_dim, "latent_dim")
        head = networks.likelihood_head(likelihood, self.data_shape, variance, levels)
        self.baseline = None if baseline is None else self._frozen(baseline)
        seen = self.condition_dim + (math.prod(self.data_shape) if self.baseline and not completion else 0)
        self.sight, size = _sight(trunk, self.data_shape, hidden, activation, image_features)
        units = (image_features,) if trunk == "conv" else hidden
        self.prior = networks.conditional_normal(seen, latent_dim, units, activation)
        self.recognition = networks.conditional_normal(size + seen, latent_dim, units, activation)
        self.direct = direct
        self.generation = networks.decoder(trunk, latent_dim + seen * direct, head, hidden[::-1], activation)
        self.rollout = Rollout()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but the baseline, which stays in eval mode."""
        super().train(mode)
        if self.baseline is not None:
            self.baseline.eval()
        return self

    def features(self, c: Tensor) -> Tensor:
        """f, what the networks see of c (B, *given_shape) and of the baseline's guess: (B, F)."""
        if self.baseline is None:
            return super().features(c)
        guess = self.baseline(c).mean
        if self.completion:
            return super().features(torch.where(c == UNKNOWN, guess, c))
        return torch.cat([super().features(c), guess.flatten(1)], -1)

    def model(self, y: Tensor, c: Tensor) -> None:
        """p(y, z | c) for y of shape (B, *data_shape) and c of shape (B, *given_shape)."""
        self.rollout.begin(self, keep=False)
        with pyro.plate("data", len(y), dim=-1):
            f = self._seen(c)
            z = pyro.sample("z", self.prior(f))
            # z may be of K particles, (K, B, D).
            seen = torch.cat([z, f.expand(*z.shape[:-1], -1)], -1) if self.direct else z
            pyro.sample("y", self.counted(self.generation(seen), c), obs=y)

    def guide(self, y: Tensor, c: Tensor) -> None:
        """q(z | y, c) for y of shape (B, *data_shape) and c of shape (B, *given_shape)."""
        self.rollout.begin(self, keep=True)
        with pyro.plate("data", len(y), dim=-1):
            known = torch.where(c == UNKNOWN, y, c) if self.completion else y
            pyro.sample("z", self.recognition(torch.cat([self.sight(known), self._seen(c)], -1)))

    def _seen(self, c: Tensor) -> Tensor:
        return self.rollout.once("features", (c,), lambda: self.features(c))

    def _frozen(self, baseline: Prediction) -> Prediction:
        got = (baseline.data_shape, baseline.given_shape, baseline.completion)
        wanted = (self.data_shape, self.given_shape, self.completion)
        if got != wanted:
            raise ValueError(
                f"baseline: got (data_shape, given_shape, completion) = {got}, expected {wanted} as of the pair itself"
            )
        return copy.deepcopy(baseline).requires_grad_(False).eval()


class PriorGuided(Pair):
    """A conditional VAE guided by its own prior, q(z | y, c) = p(z | c): its weights are w_k = p(y | c, z_k).

    `evaluation.log_likelihood(PriorGuided(pair), y, c, num_particles=100)` is the Monte Carlo estimate log mean_k
    p(y | c, z_k), z_k ~ p(z | c), of the literature. Of the pair itself it is importance sampling from q(z | y, c).
    Both are below log p(y | c) in expectation; this one is further below where p(z | c) seldom meets the posterior.
    Trained with `Trace_ELBO` it is their Gaussian stochastic network (GSNN).

    Args:
        pair: the model; its parameters are shared.

    References:
        Learning structured output representation using deep conditional generative models, Sohn, Lee & Yan 2015,
        section 4.1.

    Example:
        >>> from ppl_vae.objectives import IWAE
        >>> pair = PriorGuided(ConditionalVAE((4,), (3,), latent_dim=2, hidden=(5,)))
        >>> IWAE(100).bound(pair.model, pair.guide, torch.ones(6, 4), torch.zeros(6, 3)).shape
        torch.Size([6])
    """

    data_site = "y"

    def __init__(self, pair: ConditionalVAE) -> None:
        super().__init__()
        self.pair = pair

    def model(self, y: Tensor, c: Tensor) -> None:
        """p(y, z | c), that of the pair."""
        self.pair.model(y, c)

    def guide(self, y: Tensor, c: Tensor) -> None:
        """p(z | c)."""
        with pyro.plate("data", len(y), dim=-1):
            pyro.sample("z", self.pair.prior(self.pair.features(c)))


def _sight(
    trunk: TrunkName, shape: tuple[int, ...], hidden: Sequence[int], activation: Activation, features: int
) -> tuple[nn.Module, int]:
    """What a network sees of (B, *shape), flat, and how much: with "conv" an image goes through an encoder."""
    if trunk != "conv" or len(shape) != 3:
        return nn.Flatten(), math.prod(shape)
    return nn.Sequential(ConvEncoder(shape, features, hidden, activation), activation()), features
