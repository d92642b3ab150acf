"""alignDRAW: an image painted in many steps from a caption."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppl_vae.nn import MLP, Alignment, Head, NormalHead, Rollout, SentenceReader, Words, as_size
from ppl_vae.pair import Pair
from ppl_vae.pairs import networks
from ppl_vae.pairs.networks import Likelihood
from ppl_vae.pairs.painting import Onlooker, Painter, State, image_shape

__all__ = ["AlignDRAW"]


class AlignDRAW(Pair):
    """p(z_1) = N(0, I),  p(z_t | z_<t, y) = N(mu(h_{t-1}), sigma(h_{t-1})^2);
    s_t = sum_k alpha_k(h_{t-1}) w_k over the words of y;  h_t = LSTM(h_{t-1}, [z_t, s_t]);
    c_t = c_{t-1} + write(h_t);  p(x | z, y) = head(c_T);
    q(z_t | x, y, z_<t) = N(mu(g_t), sigma(g_t)^2),  g_t = LSTM(g_{t-1}, [read(x, x - E p(x | c_{t-1})), h_{t-1}]).

    Sites z1, ..., zT; the programs take (x, caption). mu = tanh(.) and sigma = exp(tanh(.)) in the prior, so that sigma
    stays in [1/e, e]; the guide sees the caption through h alone.

    Args:
        data_shape: (C, H, W) of one image.
        vocabulary: how many word numbers there are, 0 (padding) among them.
        latent_dim: D, the size of each z_t.
        hidden: units of the painting and of the looking LSTM.
        steps: T.
        words: units of the caption's LSTM in each direction.
        align: size of the space in which words and h meet; None paints without alignment (noAlignDRAW): s_t is then
            where the caption's two LSTMs ended, at every step.
        read, write, likelihood, variance, levels: as for `DRAW`.

    Raises:
        ValueError: data that are no images, an unknown likelihood, or sizes below 1.

    References:
        Generating images from captions with attention, Mansimov, Parisotto, Ba & Salakhutdinov 2016, sections 3.2 and
        3.3. The defaults are those of its MNIST with captions. Unlike in the authors' code the LSTM from the right
        reads this caption, and windows are centred (see `nn.filter_bank`).

    Example:
        >>> pair = AlignDRAW((1, 20, 20), vocabulary=9, latent_dim=4, hidden=16, steps=2, words=4, align=8)
        >>> batch = torch.zeros(3, 1, 20, 20), torch.tensor([[4, 2, 8], [1, 0, 0], [5, 3, 0]])
        >>> pair.generate(*batch).nodes["x"]["value"].shape
        torch.Size([3, 1, 20, 20])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        vocabulary: int = 23,
        latent_dim: int = 150,
        hidden: int = 300,
        steps: int = 32,
        *,
        words: int = 128,
        align: int | None = 512,
        read: int | None = 8,
        write: int | None = 8,
        likelihood: Likelihood | Head = "bernoulli",
        variance: float | None = None,
        levels: int = 256,
    ) -> None:
        super().__init__()
        self.data_shape = image_shape(data_shape)
        self.latent_dim, self.steps = as_size(latent_dim, "latent_dim"), as_size(steps, "steps")
        head = networks.likelihood_head(likelihood, self.data_shape, variance, levels)
        self.reader = SentenceReader(as_size(vocabulary, "vocabulary"), as_size(words, "words"))
        self.alignment = None if align is None else Alignment(2 * words, hidden, as_size(align, "align"))
        self.painter = Painter(head, latent_dim + 2 * words, as_size(hidden, "hidden"), write)
        self.prior = nn.Sequential(MLP(hidden, (2, latent_dim), hidden=()), nn.Tanh(), NormalHead(latent_dim))
        self.onlooker = Onlooker(head, hidden, hidden, read)
        self.posterior = networks.conditional_normal(hidden, latent_dim, (), nn.Tanh)
        self.rollout = Rollout()

    def set_output_mean(self, mean: Tensor) -> None:
        """Start the canvas at the pixel means of the training data, shape `data_shape`."""
        self.painter.set_output_mean(mean)

    def model(self, x: Tensor, caption: Tensor) -> None:
        """p(x, z | caption) for x of shape (B, *data_shape) and captions (B, L) of word numbers, padded with 0."""
        self.rollout.begin(self, keep=False)
        with pyro.plate("data", len(x), dim=-1):
            *_, state = self.painting(x, caption)
            pyro.sample("x", self.painter.head(state.canvas), obs=x)

    def painting(self, x: Tensor, caption: Tensor) -> Iterator[State]:
        """The states of the model's steps, one after the other; within its plate."""
        state = self.painter.start()
        for t in range(1, self.steps + 1):
            z = pyro.sample(f"z{t}", self._prior(t, state))
            state = self._painted(t, state, z, caption)
            yield state

    def guide(self, x: Tensor, caption: Tensor) -> None:
        """q(z | x, caption) for x of shape (B, *data_shape) and captions (B, L)."""
        self.rollout.begin(self, keep=True)
        with pyro.plate("data", len(x), dim=-1):
            state, memory = self.painter.start(), self.onlooker.start()
            for t in range(1, self.steps + 1):
                memory, _ = self.onlooker(x, state, memory)
                z = pyro.sample(f"z{t}", self.posterior(memory.h))
                state = self._painted(t, state, z, caption)

    def _prior(self, t: int, state: State) -> TorchDistribution:
        if t > 1:
            return self.prior(state.memory.h)
        return dist.Normal(state.memory.h.new_zeros(self.latent_dim), 1.0).to_event(1)

    def _painted(self, t: int, state: State, z: Tensor, caption: Tensor) -> State:
        inputs = (z, caption, *(state if t > 1 else ()))
        return self.rollout.once(f"step {t}", inputs, lambda: self._stroke(state, z, caption))

    def _stroke(self, state: State, z: Tensor, caption: Tensor) -> State:
        said = state.context or self._read(caption)
        alpha, s = None, said.words.whole
        if self.alignment is not None:
            alpha, s = self.alignment(said.words, said.keys, state.memory.h)
        inputs = torch.cat([z, s.expand(*z.shape[:-1], -1)], -1)
        return self.painter(state._replace(alpha=alpha, context=said), inputs)

    def _read(self, caption: Tensor) -> "_Said":
        words = self.reader(caption)
        return _Said(words, None if self.alignment is None else self.alignment.keys(words))


class _Said(NamedTuple):
    """A caption as it was read, and the words as the alignment looks at them."""

    words: Words
    keys: Tensor | None
