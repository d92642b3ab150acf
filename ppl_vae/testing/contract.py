"""`check_pair`: does a pair keep the contract that every objective and metric relies on?"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_vae.pair import Pair
from ppl_vae.testing import checks
from ppl_vae.testing.checks import Batch

__all__ = ["Check", "Report", "check_pair"]


@dataclass(frozen=True)
class Check:
    """One line of a report: what was checked, whether it holds, and what was got."""

    name: str
    ok: bool
    message: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'}  {self.name}: {self.message}"


@dataclass(frozen=True)
class Report:
    """The checks of one pair; `str(report)` has a line for each."""

    pair: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    def raise_if_failed(self) -> None:
        """Raise an AssertionError with the report's text if a check failed."""
        if not self.ok:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        return "\n".join([f"{self.pair}:", *(f"  {check}" for check in self.checks)])


def check_pair(pair: Pair, *batch: Any, num_particles: int = 4) -> Report:
    """Check that a pair is what objectives, metrics and training take it for.

    Its sites match; every site is per datum; the bound of a row depends on that row alone; every
    parameter gets a finite gradient; the state loads; float32 and float64 agree; particles drawn in
    one trace are those drawn one by one; ELBO <= IWAE (by chance violated with probability 1e-5).
    The pair, its gradients, Pyro's parameter store and torch's random state stay as they are.

    Args:
        pair: the pair.
        batch: what its programs take, with at least two rows, every other row unlike the one before.
        num_particles: K >= 2 particles.

    Raises:
        ValueError: a batch of one row, or of equal rows; num_particles < 2.

    Example:
        >>> from ppl_vae.pairs import VAE
        >>> report = check_pair(VAE((1, 8, 8), latent_dim=2), torch.rand(4, 1, 8, 8).round())
        >>> report.ok
        True
        >>> report.raise_if_failed()
    """
    if num_particles < 2:
        raise ValueError(f"num_particles: got {num_particles}, expected at least 2")
    checks.require_unlike_rows(batch)
    results: list[Check] = []
    for name, check in checks.CHECKS.items():
        blocking = next((r.name for r in results if not r.ok and r.name in checks.PREREQUISITES), None)
        if blocking is not None:
            results.append(Check(name, False, f"not run; mend {blocking!r} first"))
            continue
        results.append(_run(name, check, pair, batch, num_particles))
    return Report(type(pair).__name__, tuple(results))


def _run(name: str, check: checks.CheckFunction, pair: Pair, batch: Batch, num_particles: int) -> Check:
    with _isolated(batch):
        try:
            return Check(name, True, check(copy.deepcopy(pair), batch, num_particles))
        except checks.CheckFailed as failure:
            return Check(name, False, str(failure))
        except Exception as error:  # A pair may fail in any way: the report says how.
            return Check(name, False, " ".join([f"{type(error).__name__}:", *str(error).splitlines()[:1]]))


@contextmanager
def _isolated(batch: Batch) -> Iterator[None]:
    devices = {b.device for b in batch if isinstance(b, Tensor) and b.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)), pyro.get_param_store().scope():
        torch.manual_seed(0)
        yield
