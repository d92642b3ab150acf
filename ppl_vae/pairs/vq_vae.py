"""The vector-quantised VAE: an image, or a sequence, as a grid of codes."""

from collections.abc import Mapping, Sequence
from functools import partial

from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppl_vae.nn import GatedPixelCNN, Head, Quantiser, ResidualDown, ResidualUp, as_shape
from ppl_vae.pairs import networks
from ppl_vae.pairs.networks import Likelihood
from ppl_vae.pairs.quantised import Quantise, QuantisedPair

__all__ = ["VQVAE", "VQVAE1d"]


class VQVAE(QuantisedPair):
    """p(z | c) = prod_i p(z_i | z_<i, c) over a grid;  p(x | z) = decoder(z);  q(z | x) = nearest code of encoder(x).

    Site "z" is a grid of code vectors, (D, H / 2^halvings, W / 2^halvings); see `QuantisedPair`.

    Args:
        data_shape: (C, H, W) of one image, H and W multiples of 2^halvings; see `VQVAE1d` for sequences.
        codes: K.
        code_dim: D.
        hidden: features of encoder and decoder.
        halvings: how often they halve and double the size.
        blocks: residual blocks of each.
        decay: of the codebook's averages; None: codes are learnt by gradient. See `nn.Quantiser`.
        commitment: beta, the weight of ||encoder(x) - sg z||^2 beside -log p(x | z) in nats.
        prior_hidden, prior_layers: of the gated PixelCNN over codes; 0 layers: uniform for good.
        attention: of the prior, after every so many layers, with 4 heads; None for none.
        likelihood, variance, levels: as of `VAE`.
        classes: where each image is given its class; the prior is told.

    Raises:
        ValueError: sizes that can't be halved so often, an unknown likelihood, what `nn.Quantiser` refuses.

    References:
        Neural discrete representation learning, van den Oord, Vinyals & Kavukcuoglu 2017.

    Example:
        >>> import torch
        >>> pair = VQVAE((1, 28, 28), codes=16, code_dim=8, hidden=8, prior_hidden=8, prior_layers=2)
        >>> pair.numbers(pair.codes(torch.zeros(5, 1, 28, 28)))["z"].shape
        torch.Size([5, 7, 7])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        codes: int = 128,
        code_dim: int = 32,
        hidden: int = 64,
        *,
        halvings: int = 2,
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
        self.encoder = ResidualDown(self.data_shape, code_dim, hidden, halvings, blocks)
        up = ResidualUp(self.encoder.out_shape, head.raw_shape, hidden, halvings, blocks)
        self.decoder = nn.Sequential(up, head)
        # A sequence of codes is a picture of one row: its prior goes from left to right.
        grid = (*[1] * (3 - len(self.data_shape)), *self.encoder.out_shape[1:])
        looks = {"context_dim": classes, "attention": attention, "joint": True}
        prior = partial(GatedPixelCNN, hidden=prior_hidden, layers=prior_layers, **looks)
        self.set_codes("z", Quantiser(codes, code_dim, decay, commitment), grid, prior if prior_layers else None)

    def set_output_mean(self, mean: Tensor) -> None:
        """Start p(x | z) at the pixel means of the training data, shape `data_shape`."""
        networks.set_output_mean(self.decoder, mean)

    def read(self, x: Tensor, quantise: Quantise) -> None:
        """One site."""
        z = self.encoder(x)
        quantise("z", z.view(len(z), -1, *self.grids["z"]))

    def decode(self, codes: Mapping[str, Tensor]) -> TorchDistribution:
        """p(x | z) for codes (..., D, H, W), H = 1 of a sequence."""
        return self.decoder(codes["z"].reshape(*codes["z"].shape[:-3], *self.encoder.out_shape))


class VQVAE1d(VQVAE):
    """p(z | c) = prod_i p(z_i | z_<i, c) along a line;  p(x | z) = decoder(z);  q(z | x) = nearest code of encoder(x).

    `VQVAE` of sequences (C, L), such as waveforms: each code stands for 2^halvings samples. Site "z" is (D, 1, L /
    2^halvings). By default x is Gaussian around the decoder, with one variance for each sample and datum.

    Args:
        data_shape: (C, L), L a multiple of 2^halvings.
        codes, code_dim, hidden, halvings, blocks, decay, commitment, prior_hidden, prior_layers, attention, likelihood,
            variance, levels, classes: as of `VQVAE`.

    Raises:
        ValueError: data that are no sequences; as `VQVAE`.

    References:
        Neural discrete representation learning, van den Oord, Vinyals & Kavukcuoglu 2017, section 4.3.

    Example:
        >>> import torch
        >>> pair = VQVAE1d((1, 64), codes=8, code_dim=4, hidden=8, prior_hidden=8, prior_layers=2)
        >>> pair.numbers(pair.codes(torch.zeros(5, 1, 64)))["z"].shape
        torch.Size([5, 1, 8])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        codes: int = 128,
        code_dim: int = 32,
        hidden: int = 64,
        *,
        halvings: int = 3,
        blocks: int = 2,
        decay: float | None = 0.99,
        commitment: float = 0.25,
        prior_hidden: int = 64,
        prior_layers: int = 4,
        attention: int | None = 2,
        likelihood: Likelihood | Head = "normal",
        variance: float | None = None,
        levels: int = 256,
        classes: int | None = None,
    ) -> None:
        if len(as_shape(data_shape, "data_shape")) != 2:
            raise ValueError(f"data_shape: got {tuple(data_shape)}, expected (C, L) of a sequence; VQVAE is of images")
        super().__init__(
            data_shape,
            codes,
            code_dim,
            hidden,
            halvings=halvings,
            blocks=blocks,
            decay=decay,
            commitment=commitment,
            prior_hidden=prior_hidden,
            prior_layers=prior_layers,
            attention=attention,
            likelihood=likelihood,
            variance=variance,
            levels=levels,
            classes=classes,
        )
