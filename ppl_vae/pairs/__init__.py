"""The models of the literature: one file each; the class docstring is the model."""

from ppl_vae.pairs.hierarchical import HierarchicalVAE
from ppl_vae.pairs.ladder import LadderVAE
from ppl_vae.pairs.vae import VAE

__all__ = ["VAE", "HierarchicalVAE", "LadderVAE"]
