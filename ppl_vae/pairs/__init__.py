"""The models of the literature: one file each; the class docstring is the model."""

from ppl_vae.pairs.align_draw import AlignDRAW
from ppl_vae.pairs.autoencoder import Autoencoder
from ppl_vae.pairs.categorical import CategoricalVAE
from ppl_vae.pairs.classifier import Classifier
from ppl_vae.pairs.conditional import ConditionalVAE, Prediction
from ppl_vae.pairs.draw import DRAW
from ppl_vae.pairs.helmholtz import HelmholtzMachine
from ppl_vae.pairs.hierarchical import HierarchicalVAE
from ppl_vae.pairs.ladder import LadderVAE
from ppl_vae.pairs.pixels import MADE, PixelCNN, PixelRNN
from ppl_vae.pairs.semi_supervised import SemiSupervisedVAE
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
    "Autoencoder",
    "CategoricalVAE",
    "Classifier",
    "ConditionalVAE",
    "HelmholtzMachine",
    "HierarchicalVAE",
    "LadderVAE",
    "LanguageModel",
    "PixelCNN",
    "PixelRNN",
    "Prediction",
    "SemiSupervisedVAE",
    "TextVAE",
    "VQVAE1d",
]
