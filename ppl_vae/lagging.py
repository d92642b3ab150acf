"""Against posterior collapse: train the guide to convergence before each step of the model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_vae.data import LoadedMinibatches, Minibatches
from ppl_vae.pair import Pair
from ppl_vae.quiet import private_stream
from ppl_vae.sites import density_sites
from ppl_vae.svi import SVI

__all__ = ["AggressiveGuide", "guide_parameters"]

MOST, WINDOW = 100, 10
"""At most so many steps of the guide before one of the model; after each so many: do they still help?"""


def guide_parameters(pair: Pair, *batch: Any) -> list[nn.Parameter]:
    """The parameters that what the guide draws depends on, found by one run of it.

    Raises:
        ValueError: there are none.

    Example:
        >>> from ppl_vae.pairs import VAE
        >>> pair = VAE((1, 8, 8), latent_dim=2)
        >>> found = guide_parameters(pair, torch.zeros(3, 1, 8, 8))
        >>> len(found) == len(list(pair.encoder.parameters()))
        True
    """
    trained = [p for p in pair.parameters() if p.requires_grad]
    with torch.enable_grad(), private_stream(0, pair.reference().device):
        nodes = density_sites(poutine.trace(pair.guide).get_trace(*batch)).values()
        said = [node["fn"].log_prob(node["value"].detach()).sum() for node in nodes]
        said += [node["value"].sum() for node in nodes if node["value"].requires_grad]
    said = [part for part in said if part.requires_grad]
    gradients = torch.autograd.grad(said, trained, allow_unused=True) if said else [None] * len(trained)
    found = [p for p, gradient in zip(trained, gradients, strict=True) if gradient is not None]
    if not found:
        raise ValueError(f"{type(pair).__name__}: got a guide without parameters, expected some that can be trained")
    return found


class AggressiveGuide:
    """Steps of the guide alone before each step of the model alone, as long as z tells more and more of x.

    The guide is trained on further minibatches until its loss, averaged over ten of them, no longer falls, 100 steps at
    most; then the model takes one step. `observe` is told the mutual information as training goes on: when it falls for
    the first time, both take their steps together from then on.

    Args:
        svi: takes the steps; eager, for which parameters are trained changes.
        batches: without end.

    Raises:
        ValueError: a step that is compiled; a guide without parameters of its own.

    References:
        Lagging inference networks and posterior collapse in variational autoencoders, He, Spokoyny, Neubig &
        Berg-Kirkpatrick 2019, algorithm 1 (with windows of ten steps, as in the authors' experiments).
    """

    def __init__(self, svi: SVI, batches: Minibatches | LoadedMinibatches) -> None:
        if svi.compile != "off":
            raise ValueError(f"aggressive: got compile={svi.compile!r}, expected 'off': what is trained changes")
        self.svi, self.batches = svi, batches
        start = batches.state_dict()
        of_guide = guide_parameters(svi.pair, *batches.next())
        batches.load_state_dict(start)
        known = {id(p) for p in of_guide}
        self._guide = of_guide
        self._model = [p for p in svi.pair.parameters() if p.requires_grad and id(p) not in known]
        self.is_on, self.last = True, -torch.inf

    @contextmanager
    def before_step(self) -> Iterator[None]:
        """Train the guide; within, a step of `svi` is one of the model alone. When it is off: nothing."""
        if not self.is_on:
            yield
            return
        with _constant(self._model):
            self._converge()
        with _constant(self._guide):
            yield

    def observe(self, mutual_information: float) -> None:
        """The newest mutual information on data held out, nats."""
        self.is_on = self.is_on and mutual_information >= self.last
        self.last = mutual_information

    def state_dict(self) -> dict[str, Any]:
        """Whether it is on, and the last mutual information."""
        return {"is_on": self.is_on, "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called."""
        self.is_on, self.last = state["is_on"], state["last"]

    def _converge(self) -> None:
        before: Tensor | float = torch.inf
        for _ in range(MOST // WINDOW):
            losses = [self.svi.advance(*self.batches.next()) for _ in range(WINDOW)]
            mean = torch.stack(losses).mean()
            if mean >= before:
                return
            before = mean


@contextmanager
def _constant(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
