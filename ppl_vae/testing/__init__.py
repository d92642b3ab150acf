"""Contract checks for pairs, and a pair whose every quantity has a closed form: for tests of one's own."""

from ppl_vae.testing.contract import Check, Report, check_pair
from ppl_vae.testing.linear_gaussian import LinearGaussian

__all__ = ["Check", "LinearGaussian", "Report", "check_pair"]
