"""The models of the literature: one file each; the class docstring is the model."""

from ppl_vae.pairs.align_draw import AlignDRAW
from ppl_vae.pairs.conditional import ConditionalVAE, Prediction
from ppl_vae.pairs.draw import DRAW
from ppl_vae.pairs.hierarchical import HierarchicalVAE
from ppl_vae.pairs.ladder import LadderVAE
from ppl_vae.pairs.pixels import MADE, PixelCNN, PixelRNN
from ppl_vae.pairs.vae import VAE

__all__ = [
    "DRAW",
    "MADE",
    "VAE",
    "AlignDRAW",
    "ConditionalVAE",
    "HierarchicalVAE",
    "LadderVAE",
    "PixelCNN",
    "PixelRNN",
    "Prediction",
]
