"""The vector-quantised VAE of two levels: a coarse grid of codes, and a fine one given it."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppl_vae.nn import GatedPixelCNN, Head, Quantiser, ResidualDown, ResidualUp, as_shape, glorot_
from ppl_vae.pairs import networks
from ppl_vae.pairs.networks import Likelihood
from ppl_vae.pairs.quantised import Quantise, QuantisedPair

__all__ = ["VQVAE2"]


class VQVAE2(QuantisedPair):
    """p(t | c) p(b | t, c) p(x | t, b);  q(t, b | x): t nearest to top(h), b nearest to bottom(h, t), h = encoder(x).

    Sites "top", a grid of code vectors (D, H / 2^(f + g), W / 2^(f + g)), and "bottom", (D, H / 2^f, W / 2^f), with
    f = halvings and g = top_halvings; see `QuantisedPair`. The prior of the top is told the class, that of the bottom
    the class and, through residual blocks, the top's codes at each place.

    Sizes of 28 give grids of 14 and 7, of 32 those of 16 and 8; the paper's 256 give 64 and 32 with halvings=2.

    Args:
        data_shape: (C, H, W) of one image, H and W multiples of 2^(f + g).
        codes: K of each level.
        code_dim: D.
        hidden: features of encoders and decoder.
        halvings: f, of the bottom.
        top_halvings: g, of the top beyond it.
        blocks: residual blocks of each network.
        decay, commitment: as of `VQVAE`.
        prior_hidden, prior_layers: of the two gated PixelCNNs; 0 layers: uniform for good.
        attention: of the top's prior, after every so many layers, with 4 heads; None for none.
        likelihood, variance, levels, classes: as of `VQVAE`.

    Raises:
        ValueError: as `VQVAE`; attention that does not fit.

    References:
        Generating diverse high-fidelity images with VQ-VAE-2, Razavi, van den Oord & Vinyals 2019, algorithms 1 and 2.

    Example:
        >>> import torch
        >>> pair = VQVAE2((1, 8, 8), codes=8, code_dim=4, hidden=8, prior_hidden=8, prior_layers=2)
        >>> {site: tuple(z.shape) for site, z in pair.codes(torch.zeros(5, 1, 8, 8)).items()}
        {'top': (5, 4, 2, 2), 'bottom': (5, 4, 4, 4)}
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        codes: int = 128,
        code_dim: int = 32,
        hidden: int = 64,
        *,
        halvings: int = 1,
        top_halvings: int = 1,
        blocks: int = 2,
        decay: float | None = 0.99,
        commitment: float = 0.25,
        prior_hidden: int = 64,
        prior_layers: int = 6,
        attention: int | None = None,
        likelihood: Likelihood | Head = "bernoulli",
        variance: float | None = None,
        levels: int = 256,
        classes: int | None = None,
    ) -> None:
        super().__init__(as_shape(data_shape, "data_shape"), classes)
        head = networks.likelihood_head(likelihood, self.data_shape, variance, levels)
        self.encoder = ResidualDown(self.data_shape, hidden, hidden, halvings, blocks)
        self.top = ResidualDown(self.encoder.out_shape, code_dim, hidden, top_halvings, blocks)
        fine, coarse = self.encoder.out_shape[1:], self.top.out_shape
        self.from_top = ResidualUp(coarse, (1, code_dim, *fine), hidden, top_halvings, blocks)
        self.bottom = glorot_(nn.Conv2d(hidden + code_dim, code_dim, 1))
        up = ResidualUp((2 * code_dim, *fine), head.raw_shape, hidden, halvings, blocks)
        self.decoder = nn.Sequential(up, head)
        prior = partial(GatedPixelCNN, hidden=prior_hidden, layers=prior_layers, joint=True)
        top = partial(prior, context_dim=classes, attention=attention)
        quantiser = partial(Quantiser, codes, code_dim, decay, commitment)
        self.set_codes("top", quantiser(), coarse[1:], top if prior_layers else None)

        def bottom(raw_shape: tuple[int, ...]) -> GatedPixelCNN:
            reader = CodeReader(coarse, (prior_hidden, *fine), top_halvings, classes)
            return prior(raw_shape, context_dim=reader.size, reader=reader, reader_dim=prior_hidden)

        self.set_codes("bottom", quantiser(), fine, bottom if prior_layers else None)

    def set_output_mean(self, mean: Tensor) -> None:
        """Start p(x | t, b) at the pixel means of the training data, shape `data_shape`."""
        networks.set_output_mean(self.decoder, mean)

    def read(self, x: Tensor, quantise: Quantise) -> None:
        """The top from x, the bottom from x and the top."""
        h = self.encoder(x)
        top = quantise("top", self.top(h))
        quantise("bottom", self.bottom(torch.cat([h, self._refined(top)], 1)))

    def decode(self, codes: Mapping[str, Tensor]) -> TorchDistribution:
        """p(x | t, b) for codes (..., D, H, W) of both."""
        return self.decoder(torch.cat([self._refined(codes["top"]), codes["bottom"]], -3))

    def context(self, site: str, before: Mapping[str, Tensor], c: Tensor | None) -> Tensor | None:
        """Of the top the class; of the bottom the class, then the top's codes, in one vector (..., F)."""
        told = super().context(site, before, c)
        if site == "top":
            return told
        top = before["top"].flatten(-3)
        return top if told is None else torch.cat([told.expand(*top.shape[:-1], -1), top], -1)

    def _refined(self, top: Tensor) -> Tensor:
        """Features of the top's codes (..., D, h, w) on the bottom's grid, (..., D, H, W)."""
        return self.from_top(top).squeeze(-4)


class CodeReader(nn.Module):
    """What each place of a fine grid is told of codes on a coarse one, and of a class: (N, F) -> (N, G, H, W).

    Args:
        coarse: (D, h, w) of the codes.
        out_shape: (G, H, W).
        halvings: between the two.
        classes: K, whose unit vector comes first; None for none.
    """

    def __init__(self, coarse: tuple[int, ...], out_shape: tuple[int, ...], halvings: int, classes: int | None) -> None:
        super().__init__()
        self.coarse, self.classes = coarse, classes or 0
        self.size = self.classes + coarse[0] * coarse[1] * coarse[2]
        self.up = ResidualUp(coarse, (1, *out_shape), out_shape[0], halvings, blocks=1)
        self.label = None if classes is None else glorot_(nn.Linear(classes, out_shape[0], bias=False))

    def forward(self, context: Tensor) -> Tensor:
        """A map (N, G, H, W) of (N, F)."""
        told = self.up(context[:, self.classes :].unflatten(1, self.coarse)).squeeze(1)
        return told if self.label is None else told + self.label(context[:, : self.classes])[..., None, None]
