"""A pair: two plain Pyro programs, `model` and `guide`, on one `torch.nn.Module`."""

import itertools
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any, ClassVar, Literal

import pyro
import pyro.infer
import torch
from pyro import poutine
from pyro.optim import PyroOptim
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

__all__ = ["Pair"]

_names = itertools.count()


class Pair(nn.Module):
    """A model/guide pair: `p(x, z)` and `q(z | x)` as two Pyro programs that share one module.

    Subclass it, build the networks in `__init__`, and write both programs with every site inside
    `pyro.plate("data", len(x), dim=-1)`. The networks are plain `nn.Module`s: no `pyro.param`, no
    `PyroModule`, no global state, so that any number of instances can live in one process.

    To draw K particles in one trace, an outer plate adds a dimension on the left: latent values
    then have shape (K, B, ...), and the networks must accept it. A pair whose networks take exactly
    one batch dimension sets `particles = "tile"`; its batch is then repeated K times instead.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> class Coin(Pair):
        ...     '''p(x) = Bernoulli(sigmoid(a)), without latent sites.'''
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a = torch.nn.Parameter(torch.zeros(()))
        ...     def model(self, x):
        ...         with pyro.plate("data", len(x), dim=-1):
        ...             pyro.sample("x", dist.Bernoulli(logits=self.a), obs=x)
        >>> from ppl_vae.objectives import Trace_ELBO
        >>> Trace_ELBO().bound(Coin().model, Coin().guide, torch.ones(2)).tolist()
        [-0.6931471824645996, -0.6931471824645996]
    """

    particles: ClassVar[Literal["plate", "tile"]] = "plate"
    """How K particles are drawn: an outer plate, or the batch tiled K times."""

    data_site: ClassVar[str] = "x"
    """The observed site that pictures are of; what `generation` and `judging` ask for."""

    def model(self, *args: Any, **kwargs: Any) -> Any:
        """The generative program `p(x, z)`; the first tensor of the batch has B rows."""
        raise NotImplementedError(f"{type(self).__name__} has no model(self, *batch): write one")

    def guide(self, *args: Any, **kwargs: Any) -> Any:
        """The recognition program `q(z | x)`; empty by default: the ELBO is then log p(x)."""

    def begin(self, *args: Any, **kwargs: Any) -> None:
        """Look at a first batch before the first step, as codes do that start from data; `fit` calls it.

        Nothing by default. What has begun to learn must stay as it is: a pair may be trained several times.
        """

    def stages(self) -> Mapping[str, "Pair"]:
        """Pairs that share this one's parameters, to be trained one after the other; see `fit_stages`.

        By default the pair itself alone.
        """
        return {"": self}

    def generate(self, *batch: Any) -> Trace:
        """Run the model with its observations removed: one ancestral sample per row of `batch`.

        The values of the observed arguments are ignored, their shapes say how many rows to draw;
        what the model conditions on (labels, captions) is used as given.

        Returns:
            The Pyro trace; `trace.nodes["x"]["value"]` is the sample and `["fn"]` its distribution.
        """
        with torch.no_grad():
            return poutine.trace(poutine.uncondition(self.model)).get_trace(*batch)

    def pyro_svi(self, optim: PyroOptim, loss: pyro.infer.ELBO) -> pyro.infer.SVI:
        """A stock `pyro.infer.SVI` over this pair, for any of Pyro's own ELBOs.

        The parameters are registered in Pyro's parameter store under a name unique to this call,
        because a name shared by two instances would let the store silently train the first alone.
        """
        name = f"{type(self).__name__}.{next(_names)}"

        def registered(program: Callable[..., Any]) -> Callable[..., Any]:
            def run(pair: Pair, *batch: Any) -> Any:
                # An objective may hold all parameters constant while it scores the guide: they are registered by then.
                if any(p.requires_grad for p in pair.parameters()):
                    pyro.module(name, pair)
                return program(*batch)

            # Bound to the pair, as `program` is: objectives look there for how to draw particles.
            return MethodType(run, self)

        return pyro.infer.SVI(registered(self.model), registered(self.guide), optim, loss)

    def reference(self) -> Tensor:
        """Some floating-point parameter: tells the device and dtype that a batch must have."""
        return next((p for p in self.parameters() if p.is_floating_point()), torch.zeros(()))
