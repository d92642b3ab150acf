"""Sentences: a language model, and a VAE that puts what a sentence is about into one vector."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.distributions import Sentence
from ppl_vae.nn import Cell, Summary, Told, WordNetwork, WordReader, as_shape, as_size
from ppl_vae.pair import Pair
from ppl_vae.pairs import networks

__all__ = ["LanguageModel", "TextVAE"]


class TextPair(Pair):
    """Sentences x (B, L) of word ids, padded with 0; `network` has the law of each word.

    Args:
        data_shape: (L,), words of the longest sentence, its end mark among them: draws are cut there.
        network: of p(x_t | x_<t, c).
    """

    def __init__(self, data_shape: Sequence[int], network: WordNetwork) -> None:
        super().__init__()
        self.data_shape = as_shape(data_shape, "data_shape")
        if len(self.data_shape) != 1:
            raise ValueError(f"data_shape: got {tuple(data_shape)}, expected (L,), words of the longest sentence")
        self.network = network

    @torch.no_grad()
    def set_output_mean(self, mean: Tensor) -> None:
        """Start at how often each id is drawn in the training data, (V,); padding never is."""
        self.network.out.bias.copy_(mean[1:].clamp(min=torch.finfo(mean.dtype).tiny).log())


class LanguageModel(TextPair):
    """p(x) = prod_t p(x_t | x_<t), the words of a sentence by a recurrent network; no latent variables, no guide.

    The ELBO is log p(x), exactly, whatever the objective.

    Args:
        data_shape: (L,), words of the longest sentence, its end mark among them.
        vocabulary: V, how many word ids there are, 0 (padding), 1 (end) and 2 (unknown) among them.
        embedding: size of a word's vector.
        hidden: units of the network.
        cell: "lstm" or "gru".
        keep: probability that a word is seen in training; 0 never sees any ("inputless").
        dropout: of words' vectors and of the last layer.

    Raises:
        ValueError: an unknown cell, sizes below 1, or keep outside [0, 1].

    References:
        Generating sentences from a continuous space, Bowman et al. 2016, section 4 (RNNLM).

    Example:
        >>> pair = LanguageModel((6,), vocabulary=9, embedding=3, hidden=4)
        >>> pair.generate(torch.zeros(5, 6)).nodes["x"]["value"].shape
        torch.Size([5, 6])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        vocabulary: int,
        embedding: int = 200,
        hidden: int = 200,
        *,
        cell: Cell = "lstm",
        keep: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        network = WordNetwork(vocabulary, embedding, hidden, cell=cell, keep=keep, dropout=dropout)
        super().__init__(data_shape, network)

    def model(self, x: Tensor) -> None:
        """p(x) for word ids x of shape (B, L), padded with 0."""
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Sentence(self.network, length=x.shape[-1], batch_shape=x.shape[:1]), obs=x)

    def guide(self, x: Tensor) -> None:
        """Nothing: there are no latent sites."""


class TextVAE(TextPair):
    """p(z) = N(0, I);  p(x | z) = prod_t p(x_t | x_<t, z);  q(z | x) = N(mu(h), sigma(h)^2), h = LSTM(x).

    A strong p(x_t | x_<t, z) can do without z, and training from scratch then ends there: q(z | x) = p(z). Against it
    help `keep` below 1, an objective whose KL weight rises (`SigmoidWarmup`, `CyclicalWarmup`), `FreeBits`,
    `fit(aggressive=True)` and `stages.pretrain`.

    Args:
        data_shape: (L,), words of the longest sentence, its end mark among them.
        vocabulary: V, how many word ids there are, 0 (padding), 1 (end) and 2 (unknown) among them.
        latent_dim: D, the size of z.
        embedding: size of a word's vector, in each of the two networks.
        hidden: units of each network.
        cell: "lstm" or "gru", of both.
        told: where the decoder is told z: its "first" state, beside "every" word, or "both".
        keep: probability that the decoder sees a word in training; the others are replaced by the unknown word, and
            none is in evaluation. 0 never sees any, in evaluation neither ("inputless").
        dropout: of words' vectors in both networks, and before the decoder's last layer.
        summary: h is the encoder's "last" state, or the "mean" of its states over all words.
        highway: highway layers behind the encoder, and before the decoder.

    Raises:
        ValueError: an unknown cell or way to be told, sizes below 1, or keep outside [0, 1].

    References:
        Generating sentences from a continuous space, Bowman et al. 2016, sections 2 and 3.

    Example:
        >>> pair = TextVAE((6,), vocabulary=9, latent_dim=2, embedding=3, hidden=4)
        >>> pair.encoder(torch.tensor([[3, 4, 1], [5, 1, 0]])).batch_shape
        torch.Size([2])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        vocabulary: int,
        latent_dim: int = 32,
        embedding: int = 200,
        hidden: int = 200,
        *,
        cell: Cell = "lstm",
        told: Told = "both",
        keep: float = 1.0,
        dropout: float = 0.0,
        summary: Summary = "last",
        highway: int = 0,
    ) -> None:
        latent_dim = as_size(latent_dim, "latent_dim")
        options: dict[str, Any] = {"told": told, "cell": cell, "keep": keep, "dropout": dropout, "highway": highway}
        super().__init__(data_shape, WordNetwork(vocabulary, embedding, hidden, latent_dim, **options))
        self.latent_dim = latent_dim
        options = {"summary": summary, "cell": cell, "dropout": dropout, "highway": highway}
        reader = WordReader(vocabulary, embedding, hidden, **options)
        self.encoder = nn.Sequential(reader, *networks.conditional_normal(hidden, latent_dim, (), nn.Tanh))

    def context(self, z: Tensor) -> Tensor:
        """What `network` is told: z itself, (..., D)."""
        return z

    def model(self, x: Tensor) -> None:
        """p(x, z) for word ids x of shape (B, L), padded with 0."""
        with pyro.plate("data", len(x), dim=-1):
            # Of the weights' type: words are whole numbers.
            z = pyro.sample("z", dist.Normal(self.reference().new_zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", Sentence(self.network, z, length=x.shape[-1]), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z | x) for word ids x of shape (B, L), padded with 0."""
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encoder(x))
