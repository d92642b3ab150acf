"""DRAW: an image painted in many steps."""

from collections.abc import Iterator, Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae.nn import Head, Rollout, as_size
from ppl_vae.pair import Pair
from ppl_vae.pairs import networks
from ppl_vae.pairs.networks import Likelihood
from ppl_vae.pairs.painting import Onlooker, Painter, State, image_shape

__all__ = ["DRAW"]


class DRAW(Pair):
    """p(z_t) = N(0, I);  h_t = LSTM(h_{t-1}, z_t);  c_t = c_{t-1} + write(h_t);  p(x | z) = head(c_T);
    q(z_t | x, z_<t) = N(mu(g_t), sigma(g_t)^2),  g_t = LSTM(g_{t-1}, [read(x, x - E p(x | c_{t-1})), h_{t-1}]).

    Sites z1, ..., zT. The guide follows what the model paints, and hands it over (see `nn.Rollout`).

    Args:
        data_shape: (C, H, W) of one image.
        latent_dim: D, the size of each z_t.
        hidden: units of either LSTM.
        steps: T.
        read: side N of what the guide's window reads; None lets it read the whole image.
        write: side N of the patch that is written; None writes the whole image.
        likelihood: as for `VAE`; the canvas holds its raw parameters.
        variance: of the "normal" likelihood; learned for each pixel if None.
        levels: number of grey levels of the last three.

    Raises:
        ValueError: data that are no images, an unknown likelihood, or sizes below 1.

    References:
        DRAW: A recurrent neural network for image generation, Gregor et al. 2015. The defaults are those of
        its binarised MNIST, with attention; sigma = exp(.), first states and canvas learned.

    Example:
        >>> import torch
        >>> pair = DRAW((1, 28, 28), latent_dim=10, hidden=32, steps=3)
        >>> list(pair.generate(torch.zeros(2, 1, 28, 28)).nodes)[2:-1]
        ['z1', 'z2', 'z3', 'x']
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 100,
        hidden: int = 256,
        steps: int = 64,
        *,
        read: int | None = 2,
        write: int | None = 5,
        likelihood: Likelihood | Head = "bernoulli",
        variance: float | None = None,
        levels: int = 256,
    ) -> None:
        super().__init__()
        self.data_shape = image_shape(data_shape)
        self.latent_dim, self.steps = as_size(latent_dim, "latent_dim"), as_size(steps, "steps")
        head = networks.likelihood_head(likelihood, self.data_shape, variance, levels)
        self.painter = Painter(head, latent_dim, as_size(hidden, "hidden"), write)
        self.onlooker = Onlooker(head, hidden, hidden, read)
        self.posterior = networks.conditional_normal(hidden, latent_dim, (), nn.Tanh)
        self.rollout = Rollout()

    def set_output_mean(self, mean: Tensor) -> None:
        """Start the canvas at the pixel means of the training data, shape `data_shape`."""
        self.painter.set_output_mean(mean)

    def model(self, x: Tensor) -> None:
        """p(x, z) for x of shape (B, *data_shape)."""
        self.rollout.begin(self, keep=False)
        with pyro.plate("data", len(x), dim=-1):
            *_, state = self.painting(x)
            pyro.sample("x", self.painter.head(state.canvas), obs=x)

    def painting(self, x: Tensor) -> Iterator[State]:
        """The states of the model's steps, one after the other; within its plate."""
        state = self.painter.start()
        for t in range(1, self.steps + 1):
            z = pyro.sample(f"z{t}", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))
            state = self._painted(t, state, z)
            yield state

    def guide(self, x: Tensor) -> None:
        """q(z | x) for x of shape (B, *data_shape)."""
        self.rollout.begin(self, keep=True)
        with pyro.plate("data", len(x), dim=-1):
            state, memory = self.painter.start(), self.onlooker.start()
            for t in range(1, self.steps + 1):
                memory, _ = self.onlooker(x, state, memory)
                z = pyro.sample(f"z{t}", self.posterior(memory.h))
                state = self._painted(t, state, z)

    def _painted(self, t: int, state: State, z: Tensor) -> State:
        return self.rollout.once(f"step {t}", (z, *(state if t > 1 else ())), lambda: self.painter(state, z))
