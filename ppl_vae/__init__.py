"""Variational autoencoders as plain Pyro model/guide pairs."""

from ppl_vae import objectives, pairs
from ppl_vae.pair import Pair
from ppl_vae.svi import SVI

__all__ = ["SVI", "Pair", "objectives", "pairs"]
