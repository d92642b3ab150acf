"""Numbers of a trained pair: log-likelihood, bounds, active units, KL terms; in nats per datum, for any pair."""

from ppl_vae.evaluation.latents import ActiveUnits, active_units, kl_per_site
from ppl_vae.evaluation.likelihood import ImportanceSampling, bound, importance_sampling, log_likelihood
from ppl_vae.evaluation.summary import GREY, LOG_LIKELIHOOD, Evaluation, evaluate

__all__ = [
    "GREY",
    "LOG_LIKELIHOOD",
    "ActiveUnits",
    "Evaluation",
    "ImportanceSampling",
    "active_units",
    "bound",
    "evaluate",
    "importance_sampling",
    "kl_per_site",
    "log_likelihood",
]
