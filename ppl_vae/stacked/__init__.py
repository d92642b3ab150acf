"""Runs of one architecture and one objective, trained as one batched computation."""

from ppl_vae.stacked.fit import fit_stacked

__all__ = ["fit_stacked"]
