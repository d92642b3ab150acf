"""The models of the literature: one file each; the class docstring is the model."""

from ppl_vae.pairs.align_draw import AlignDRAW
from ppl_vae.pairs.categorical import CategoricalVAE
from ppl_vae.pairs.conditional import ConditionalVAE, Prediction
from ppl_vae.pairs.draw import DRAW
from ppl_vae.pairs.hierarchical import HierarchicalVAE
from ppl_vae.pairs.ladder import LadderVAE
from ppl_vae.pairs.pixels import MADE, PixelCNN, PixelRNN
from ppl_vae.pairs.text import LanguageModel, TextVAE
from ppl_vae.pairs.vae import VAE
from ppl_vae.pairs.vq_vae import VQVAE, VQVAE1d
from ppl_vae.pairs.vq_vae_2 import VQVAE2

__all__ = [
    "DRAW",
    "MADE",
    "VAE",
    "VQVAE",
    "VQVAE2",
    "AlignDRAW",
    "CategoricalVAE",
    "ConditionalVAE",
    "HierarchicalVAE",
    "LadderVAE",
    "LanguageModel",
    "PixelCNN",
    "PixelRNN",
    "Prediction",
    "TextVAE",
    "VQVAE1d",
]
