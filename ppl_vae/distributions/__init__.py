"""Distributions of pixels that Pyro lacks; each a real `TorchDistribution`."""

from ppl_vae.distributions.discretised_logistic import DiscretisedLogistic, GreyLevels
from ppl_vae.distributions.grey_bernoulli import GreyBernoulli
from ppl_vae.distributions.precision import at_least_float32

__all__ = ["DiscretisedLogistic", "GreyBernoulli", "GreyLevels", "at_least_float32"]
