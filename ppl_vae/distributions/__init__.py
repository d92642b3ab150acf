"""Distributions of pixels that Pyro lacks; each a real `TorchDistribution`."""

from ppl_vae.distributions.autoregressive import Autoregressive, Conditionals
from ppl_vae.distributions.discretised_logistic import DiscretisedLogistic, GreyLevels
from ppl_vae.distributions.grey_bernoulli import GreyBernoulli
from ppl_vae.distributions.grey_categorical import GreyCategorical
from ppl_vae.distributions.logistic_mixture import DiscretisedLogisticMixture
from ppl_vae.distributions.precision import at_least_float32

__all__ = [
    "Autoregressive",
    "Conditionals",
    "DiscretisedLogistic",
    "DiscretisedLogisticMixture",
    "GreyBernoulli",
    "GreyCategorical",
    "GreyLevels",
    "at_least_float32",
]
