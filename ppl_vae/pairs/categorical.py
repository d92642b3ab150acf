"""A VAE whose latent variables are categorical, with the usual ways to train it."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae.nn import MLP, ConvEncoder, Head, as_shape, as_size
from ppl_vae.pair import Pair
from ppl_vae.pairs import networks
from ppl_vae.pairs.networks import Activation, Likelihood, TrunkName

__all__ = ["CategoricalVAE", "Guide", "OneHotHead", "RelaxedOneHot", "Temperature"]

Guide = Literal["score", "gumbel-softmax", "straight-through"]


class CategoricalVAE(Pair):
    """p(z) = prod_n Cat(1/K);  p(x | z) = decoder(z);  q(z | x) = prod_n Cat(encoder(x)_n), z_n one-hot in {0, 1}^K.

    One site "z" of N one-hot vectors, (B, N, K). In eval mode, and wherever no gradient is recorded, model and guide
    are these discrete ones: every bound, log-likelihood, evaluation and sample is of the discrete model. What `guide`
    chooses is how gradients pass z while training:

    - "score": they don't. For `VIMCO`, `ReweightedWakeSleep`, `Trace_ELBO` (score function: the noisiest),
      `TraceGraph_ELBO` with baselines, and `TraceEnum_ELBO`. The last sums over all K^N states of z, each of which
      goes through the decoder (exact, for K^N times the work of one sample): up to 65,536 states, 4 variables of 10
      categories say. Sites of their own for z_1, ..., z_N would not make it cheaper, as x depends on all of them.
    - "straight-through": z is one-hot, with the gradient of the relaxed sample y that it is the nearest corner to. The
      *value* of a loss is that of the discrete bound; its gradient is biased. For all objectives but `TraceEnum_ELBO`,
      which does not sum it out.
    - "gumbel-softmax": z is y itself, inside of the simplex. For all objectives but `TraceEnum_ELBO`; those that sample
      without gradient (`VIMCO`, wake-sleep) have the discrete guide.

    Relaxed or not, z is scored by the categorical probabilities, log q = sum_nk z_nk log pi_nk and log p = -N log K;
    under `TraceMeanField_ELBO` the KL term is the categorical one in closed form, as Jang et al. have it. With "gumbel-
    softmax" the loss then bounds log p(x) of *no* model, as y tells the decoder more than the KL term pays for, and its
    learning curve does not compare with other guides'. Maddison et al.'s densities for both programs would bound that
    of a relaxed model; but near a uniform q their KL term is K^2 / (K + 1) times the categorical one, whatever the
    temperature, and with 10 categories q then never left p(z) (digits, 10 variables, 4,000 steps: 27.1 nats, KL 0.00).

    Args:
        data_shape: shape of one datum, (1, 28, 28) say.
        variables: N, the number of latent variables.
        categories: K >= 2, the categories of each.
        hidden: units of the encoder's hidden layers (channels, if convolutional); the decoder's reversed.
        guide: "score", "gumbel-softmax" or "straight-through".
        temperature: tau of the last two: a number, or (start, end, rate) for max(end, start exp(-rate step)); by
            default (1.0, 0.5, 1e-4). See `Temperature`. Above 1 the KL term of y, sampled, is far too small.
        trunk, activation, likelihood, variance, levels: as for `VAE`.

    Raises:
        ValueError: an unknown guide, trunk or likelihood; sizes below 1, or a single category; a temperature that is
            not positive, that rises, or that is given for "score".

    References:
        Categorical Reparameterization with Gumbel-Softmax, Jang, Gu & Poole 2017, eq. 1 and 2, section 2.2.
        The Concrete Distribution: A Continuous Relaxation of Discrete Random Variables, Maddison, Mnih & Teh 2017,
        section 3: the densities that are not used here.

    Example:
        >>> pair = CategoricalVAE((1, 28, 28), variables=20, categories=10, guide="straight-through")
        >>> pair.encoder(torch.zeros(5, 1, 28, 28)).event_shape
        torch.Size([20, 10])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        variables: int = 20,
        categories: int = 10,
        hidden: Sequence[int] = (200, 200),
        *,
        guide: Guide = "score",
        temperature: float | Sequence[float] | None = None,
        trunk: TrunkName = "mlp",
        activation: Activation = nn.Tanh,
        likelihood: Likelihood | Head = "bernoulli",
        variance: float | None = None,
        levels: int = 256,
    ) -> None:
        super().__init__()
        shape, hidden = as_shape(data_shape, "data_shape"), as_shape(hidden, "hidden")
        if guide not in get_args(Guide):
            raise ValueError(f"guide: got {guide!r}, expected one of {', '.join(get_args(Guide))}")
        if guide == "score" and temperature is not None:
            raise ValueError(f"temperature: got {temperature} with guide 'score', expected it with the relaxed ones")
        self.data_shape, self.relaxation = shape, guide
        self.variables, self.categories = as_size(variables, "variables"), as_size(categories, "categories")
        if categories < 2:
            raise ValueError(f"categories: got {categories}, expected at least 2: one alone says nothing")
        self.temperature = None if guide == "score" else Temperature.of(temperature)
        head = networks.likelihood_head(likelihood, shape, variance, levels)
        decoder = networks.decoder(trunk, variables * categories, head, hidden[::-1], activation)
        letters = OneHotHead((variables, categories))
        reader = ConvEncoder if trunk == "conv" else MLP
        self.encoder = nn.Sequential(reader(shape, letters.raw_shape, hidden, activation), letters)
        self.decoder = decoder

    def set_output_mean(self, mean: Tensor) -> None:
        """Start p(x | z) at the pixel means of the training data, shape `data_shape`."""
        networks.set_output_mean(self.decoder, mean)

    def model(self, x: Tensor) -> None:
        """p(x, z) for x of shape (B, *data_shape)."""
        with pyro.plate("data", len(x), dim=-1):
            prior = dist.OneHotCategorical(logits=x.new_zeros(self.variables, self.categories))
            z = pyro.sample("z", self._passing_gradients(prior.to_event(1)))
            pyro.sample("x", self.decoder(z.flatten(-2)), obs=x)
        # Here and not in the guide, which some objectives run twice in a step.
        if self._in_training and self.temperature is not None:
            self.temperature.advance()

    def guide(self, x: Tensor) -> None:
        """q(z | x) for x of shape (B, *data_shape)."""
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self._passing_gradients(self.encoder(x)))

    @property
    def _in_training(self) -> bool:
        # A bound looked at during training is run without gradient, and is one of the discrete model.
        return self.training and torch.is_grad_enabled()

    def _passing_gradients(self, law: Any) -> TorchDistribution:
        """The law of z; but for "score", one whose samples have a gradient. They are relaxed in training alone."""
        if self.temperature is None:
            return law
        logits, hard = law.base_dist.logits, self.relaxation == "straight-through" or not self._in_training
        return RelaxedOneHot(self.temperature(logits), logits, hard).to_event(1)


class Temperature(nn.Module):
    """tau(step) = max(end, start exp(-rate step)), with the count of steps in a buffer.

    The step is moved by runs of a model in training mode with gradient alone, as the running averages of `BatchNorm`
    are; it is in checkpoints, and in the record of a compiled loss. An optimiser's step that runs the pair several
    times (particles drawn one by one, a batch in parts) counts as often.

    Args:
        start: tau at step 0.
        end: its lower limit, at most `start`.
        rate: at least 0; 0 is a constant temperature.

    Raises:
        ValueError: an end that is not positive, or above the start; a negative rate; what is not finite.

    References:
        Categorical Reparameterization with Gumbel-Softmax, Jang, Gu & Poole 2017, section 4.1: tau = max(0.5,
        exp(-r t)) with r of 1e-5 or 1e-4, there moved every 500 or 1,000 steps, here at each.

    Example:
        >>> temperature = Temperature(1.0, 0.5, 0.1)
        >>> for _ in range(2):
        ...     temperature.advance()
        >>> round(temperature(torch.zeros(())).item(), 4)  # exp(-0.2)
        0.8187
    """

    step: Tensor

    def __init__(self, start: float = 1.0, end: float = 0.5, rate: float = 1e-4) -> None:
        super().__init__()
        if not (0 < end <= start < math.inf and 0 <= rate < math.inf):
            raise ValueError(
                f"temperature: got {start} to {end} at a rate of {rate}, expected a positive number, or (start, end, "
                "rate) with start >= end > 0 and a rate of at least 0: (1.0, 0.5, 1e-4), say"
            )
        self.start, self.end, self.rate = float(start), float(end), float(rate)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @classmethod
    def of(cls, given: float | Sequence[float] | None) -> "Temperature":
        """From a number, (start, end, rate), or None for the default.

        Raises:
            ValueError: anything else.
        """
        numbers = () if given is None else (given, given, 0.0) if isinstance(given, int | float) else tuple(given)
        if len(numbers) not in (0, 3) or not all(_is_number(n) for n in numbers):
            raise ValueError(f"temperature: got {given!r}, expected a positive number, or (start, end, rate)")
        return cls(*numbers)

    def forward(self, like: Tensor) -> Tensor:
        """tau at the current step, 0-dim, with the dtype and on the device of `like`."""
        return (self.start * torch.exp(-self.rate * self.step.to(like.dtype))).clamp(min=self.end)

    def advance(self) -> None:
        """Go on to the next step."""
        self.step += 1


class OneHotHead(Head):
    """OneHotCategorical(logits) for each of N variables of K categories, with raw parameters (logits,).

    Args:
        shape: (N, K).

    Example:
        >>> OneHotHead((3, 5))(torch.zeros(7, 1, 3, 5)).log_prob(torch.eye(5)[:3]).shape
        torch.Size([7])
    """

    num_parameters = 1

    def distribution(self, parameters: tuple[Tensor, ...]) -> TorchDistribution:
        """Return OneHotCategorical(logits)."""
        (logits,) = parameters
        return dist.OneHotCategorical(logits=logits)

    def raw_for_mean(self, mean: Tensor) -> tuple[Tensor, ...]:
        """Return the logarithm of the mean, clipped to at least 0.001."""
        return (mean.clamp(min=1e-3).log(),)


class RelaxedOneHot(dist.OneHotCategorical):
    """A one-hot categorical law whose samples have the gradient of relaxed ones, y = softmax((logits + noise) / tau).

    The noise is Gumbel's. A sample is y itself, or (`hard`) its nearest corner, which is an exact sample of the
    categorical law. log_prob(z) = sum_k z_k log pi_k: the exact log-probability at corners, linear between them.
    (Pyro's RelaxedOneHotCategoricalStraightThrough scores the density of y instead, and keeps y as an attribute of the
    value: it is lost where an objective passes on a changed or detached value.)

    Args:
        temperature: tau > 0, 0-dim.
        logits: (..., K).
        hard: samples are one-hot.

    References:
        Categorical Reparameterization with Gumbel-Softmax, Jang, Gu & Poole 2017, eq. 1 and 2, section 2.2.

    Example:
        >>> RelaxedOneHot(torch.tensor(0.5), torch.zeros(4, 3), hard=True).rsample().sum(-1)
        tensor([1., 1., 1., 1.])
    """

    support = constraints.simplex
    has_rsample = True
    has_enumerate_support = False
    """Pyro sums over the states of a reparameterised site without their probabilities."""

    def __init__(
        self, temperature: Tensor, logits: Tensor, hard: bool = False, validate_args: bool | None = None
    ) -> None:
        self.temperature, self.hard = temperature, hard
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The law with this batch shape."""
        new: Any = self._get_checked_instance(RelaxedOneHot, _instance)
        new.temperature, new.hard = self.temperature, self.hard
        return super().expand(batch_shape, _instance=new)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Vectors on the simplex, (*sample_shape, ..., K), with a gradient."""
        relaxed = dist.RelaxedOneHotCategorical(self.temperature, logits=self.logits, validate_args=False)
        y = relaxed.rsample(torch.Size(sample_shape))
        if not self.hard:
            return y
        corner = torch.zeros_like(y).scatter(-1, y.argmax(-1, keepdim=True), 1.0)
        return corner + (y - y.detach())  # exactly the corner: the bracket is 0

    def log_prob(self, value: Tensor) -> Tensor:
        """sum_k z_k log pi_k, (...)."""
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.logits).sum(-1)


def _is_number(n: Any) -> bool:
    return isinstance(n, int | float) and not isinstance(n, bool)
