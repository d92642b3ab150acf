"""Two estimators of Pyro's for discrete latent sites: summed out (`TraceEnum_ELBO`), or score function with baselines.

Enumeration, dependencies and baselines are Pyro's. What is ours: a scalar loss with the right value *and* the right
gradient, a bound per datum, and no state in Pyro's parameter store.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any
from weakref import WeakKeyDictionary

import pyro
import pyro.infer
import torch
from pyro import poutine
from pyro.infer.tracegraph_elbo import _compute_elbo
from pyro.infer.util import is_validation_enabled
from pyro.ops.provenance import detach_provenance
from pyro.params.param_store import ParamStoreDict
from torch import Tensor

from ppl_vae import terms
from ppl_vae.objectives.base import PairLoss, Program
from ppl_vae.objectives.elbo import Trace_ELBO
from ppl_vae.objectives.enumeration import Enumerate, expected, expected_rows, is_latent, plain
from ppl_vae.pair import Pair
from ppl_vae.quiet import unnoticed
from ppl_vae.sites import density_sites, sample_sites
from ppl_vae.terms import Terms

__all__ = ["TraceEnum_ELBO", "TraceGraph_ELBO"]

Traces = Iterator[tuple[Any, Any]]
Averages = dict[str, Tensor]


class TraceEnum_ELBO(Trace_ELBO):
    """The ELBO with its discrete latent sites summed out: E_q over a finite support is a sum, not a sample.

    A site of the guide is summed over its states, weighted by q. A site that the model has and the guide leaves out
    is marginalised inside the logarithm, log sum_k p(k) p(x | k). What is not discrete is sampled, and a pair whose
    latent sites are all discrete has a loss, a gradient and a bound without noise. The value and the gradient are
    those of `pyro.infer.TraceEnum_ELBO`.

    Discrete sites are enumerated in parallel unless they say otherwise: infer={"enumerate": "sequential"} runs the
    pair once for each state, infer={"enumerate": None} samples the site (score-function gradient). Beyond what Pyro
    does, a site of independent discrete dimensions, `Bernoulli(...).to_event(1)`, is enumerated too: D switches are
    one site of 2^D states. The networks must accept values with dimensions to the left of the batch.

    Sampled `terms`, and what is made of them (`per_datum`, the search for a non-finite site), take the place of the
    sums by samples from the guide, and from the model's prior for the sites that it leaves out.

    Args:
        num_particles: K >= 1 samples of the sites that are not enumerated; of no use where there are none.
        max_plate_nesting, vectorize_particles: as for `Objective`.
        strict_enumeration_warning: warn about a pair without a site to enumerate, whose loss is that of `Trace_ELBO`
            (where Pyro's validation is on).

    Raises:
        ValueError: num_particles < 1; the sites of model and guide do not match; a site of independent dimensions has
            more than 65,536 states.
        NotPerDatumError: from `bound` alone, if a site is not per datum.

    References:
        Tensor Variable Elimination for Plated Factor Graphs, Obermeyer et al. 2019.
        DiCE: The Infinitely Differentiable Monte-Carlo Estimator, Foerster et al. 2018, eq. 7.

    Example:
        >>> import pyro.distributions as dist
        >>> from ppl_vae import Pair
        >>> class Mixture(Pair):
        ...     '''p(k) = Bernoulli(sigmoid(a)), p(x | k) = Normal(k, 1); the guide is empty.'''
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a = torch.nn.Parameter(torch.zeros(()))
        ...     def model(self, x):
        ...         with pyro.plate("data", len(x), dim=-1):
        ...             k = pyro.sample("k", dist.Bernoulli(logits=self.a))
        ...             pyro.sample("x", dist.Normal(k, 1.0), obs=x)
        >>> pair, x = Mixture(), torch.tensor([0.0, 1.0, 5.0])
        >>> log_p = torch.stack([dist.Normal(k, 1.0).log_prob(x) for k in (0.0, 1.0)]).logsumexp(0) - math.log(2)
        >>> torch.allclose(TraceEnum_ELBO().bound(pair.model, pair.guide, x), log_p)
        True
    """

    def __init__(
        self,
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
        strict_enumeration_warning: bool = True,
    ) -> None:
        super().__init__(num_particles, max_plate_nesting, vectorize_particles)
        self.strict_enumeration_warning = strict_enumeration_warning

    def differentiable_loss(self, model: Program, guide: Program, *batch: Any) -> Tensor:
        """-ELBO, summed over the batch and scaled."""
        nesting = self._plate_nesting(model, guide, batch)
        parts = [expected(*traces).sum() for traces in self._traces(model, guide, batch, nesting)]
        return -reduce(torch.add, parts) / self.num_particles

    def bound(self, model: Program, guide: Program, *batch: Any) -> Tensor:
        """The ELBO in nats per datum, (B,), without gradient; `pyro.factor` sites and scales do not enter it."""
        nesting = self._plate_nesting(model, guide, batch)
        with torch.no_grad():
            traces = self._traces(plain(model), plain(guide), batch, nesting)
            parts = [expected_rows(*pair) for pair in traces]
        return reduce(torch.add, parts) / self.num_particles

    def terms(self, model: Program, guide: Program, *batch: Any) -> Terms:
        """K particles in place of the sums; a site that the guide leaves out is drawn from its prior."""
        marked = Enumerate()
        # With q(k) = p(k) the site adds log p(k) - log q(k) = 0 to the log weight, as a hidden site does.
        hidden = poutine.block(model, hide_fn=lambda msg: is_latent(msg) and marked.leaves_out(msg))
        return terms.draw(
            hidden,
            marked(guide),
            *batch,
            num_particles=self.num_particles,
            max_plate_nesting=self._plate_nesting(model, guide, batch),
            particles=self._particles(model),
        )

    def _traces(self, model: Program, guide: Program, batch: tuple[Any, ...], nesting: int) -> Traces:
        """Pyro's pairs of enumerated traces, (model, guide)."""
        estimator = pyro.infer.TraceEnum_ELBO(
            self.num_particles,
            nesting,
            vectorize_particles=self.num_particles > 1 and self._particles(model) == "plate",
            strict_enumeration_warning=False,
        )
        marked = Enumerate()
        for model_trace, guide_trace in estimator._get_traces(Enumerate(marked)(model), marked(guide), batch, {}):
            self._check(model_trace, guide_trace)
            yield model_trace, guide_trace

    def _check(self, model_trace: Any, guide_trace: Any) -> None:
        model, guide = density_sites(model_trace), density_sites(guide_trace)
        # A discrete site that the guide leaves out has been summed over in the model.
        summed = [n for n, node in model.items() if n not in guide and "_enumerate_dim" in node["infer"]]
        terms.check_match({n: node for n, node in model.items() if n not in summed}, guide)
        infers = [node["infer"] for node in guide.values()]
        if summed or any("_enumerate_dim" in infer or "_enum_total" in infer for infer in infers):
            return
        if self.strict_enumeration_warning and is_validation_enabled():
            warnings.warn(
                f"{type(self).__name__}: got latent sites {[n for n, s in model.items() if not s['is_observed']]}, "
                "expected one to enumerate: the loss is that of Trace_ELBO. Use Trace_ELBO, or pass "
                "strict_enumeration_warning=False",
                stacklevel=2,
            )

    def _plate_nesting(self, model: Program, guide: Program, batch: tuple[Any, ...]) -> int:
        # The enumerated dimensions stand to the left of the plates, however many particles there are.
        if math.isfinite(self.max_plate_nesting):
            return int(self.max_plate_nesting)
        key = getattr(model, "__func__", model)
        if key not in self._nesting:
            self._nesting[key] = _guess_plate_nesting(model, guide, batch)
        return self._nesting[key]


class TraceGraph_ELBO(Trace_ELBO):
    """The ELBO with a score-function gradient that credits each discrete site with what depends on it, less a baseline.

    Gradient: sum_i grad log q(z_i) * (cost_i - baseline_i) for the sites i that are not reparameterised, where cost_i
    are the terms of log p - log q downstream of z_i in the graph of dependencies. The value is that of `Trace_ELBO`,
    the gradient that of `pyro.infer.TraceGraph_ELBO`, baselines included. A guide site asks for its baseline with
    infer={"baseline": {...}}:

    - "use_decaying_avg_baseline": True, the mean cost so far, with decay "baseline_beta" (0.9);
    - "nn_baseline": a network, and "nn_baseline_input": what it sees. It is trained by the same loss, on the squared
      difference to the cost: make it a module of the pair. Its output has the shape of the cost: that of the site,
      (B,); (K, B) where K > 1 particles are drawn in one trace; () where it would be (1,);
    - "baseline_value": a tensor of that shape, which is trained likewise.

    Pyro keeps the averages in its parameter store, by the site's name alone. Here they belong to the objective, one
    for each pair (and each shape of batch), and begin at 0 with `objective(pair)`: with each `SVI`, each `fit`, each
    copy. A sampled site that is not reparameterised cannot be recorded: a compiled `SVI` goes on eagerly.

    Args:
        num_particles: K >= 1.
        max_plate_nesting, vectorize_particles: as for `Objective`.

    Raises:
        ValueError: num_particles < 1; the sites of model and guide do not match; a baseline has not the shape of the
            cost (torch's RuntimeError, where the two do not broadcast).
        NotImplementedError: a guide site is marked for enumeration.

    References:
        Gradient Estimation Using Stochastic Computation Graphs, Schulman et al. 2015, eq. 4 and corollary 1.
        Neural Variational Inference and Learning in Belief Networks, Mnih & Gregor 2014, eq. 5 to 9 (baselines).

    Example:
        >>> from ppl_vae.testing import LinearGaussian
        >>> pair, x = LinearGaussian(5, 2), torch.ones(3, 5)
        >>> TraceGraph_ELBO(num_particles=4)(pair)(x).shape
        torch.Size([])
    """

    def __init__(
        self, num_particles: int = 1, max_plate_nesting: float = math.inf, vectorize_particles: bool = True
    ) -> None:
        super().__init__(num_particles, max_plate_nesting, vectorize_particles)
        self._averages: WeakKeyDictionary[Any, dict[Any, Averages]] = WeakKeyDictionary()

    def __call__(self, model: Any, guide: Any = None) -> PairLoss:
        """`objective(pair)`, a module whose forward is the loss of a batch; the pair's averages start anew."""
        loss = super().__call__(model, guide)
        self._averages.pop(_owner(loss.guide), None)
        return loss

    def __getstate__(self) -> dict[str, Any]:
        # Averages belong to a run: a copy, in this process or another, begins without.
        return {name: value for name, value in vars(self).items() if name != "_averages"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _averages=WeakKeyDictionary())

    def state_dict(self, pair: Pair) -> dict[str, Any]:
        """The step, and the averages of the pair as (shapes of the batch, average of each site)."""
        averages = self._averages.get(pair, {})
        kept = [([None if s is None else list(s) for s in shapes], dict(v)) for shapes, v in averages.items()]
        return {**super().state_dict(pair), "averages": kept}

    def load_state_dict(self, state: dict[str, Any], pair: Pair) -> None:
        """Go on where `state_dict` was called."""
        super().load_state_dict(state, pair)
        device = pair.reference().device
        self._averages[pair] = {
            tuple(None if s is None else torch.Size(s) for s in shapes): {
                n: v.clone().to(device) for n, v in kept.items()
            }
            for shapes, kept in state["averages"]
        }

    def differentiable_loss(self, model: Program, guide: Program, *batch: Any) -> Tensor:
        """A scalar with the value -ELBO, summed over the batch and scaled, and the gradients of guide and baselines."""
        if not torch.is_grad_enabled():
            return super().differentiable_loss(model, guide, *batch)
        shapes = tuple(b.shape if isinstance(b, Tensor) else None for b in batch)
        averages = self._averages.setdefault(_owner(guide), {}).setdefault(shapes, {})
        values, surrogates = [], []
        for model_trace, guide_trace in self._traces(model, guide, batch):
            with poutine.block(), _private_store(averages):
                elbo, surrogate = _compute_elbo(model_trace, guide_trace)
            values.append(-elbo.detach())
            # The gradient alone: its value holds the baselines' losses. Exactly 0 before it is added.
            surrogates.append(surrogate - surrogate.detach())
        return (reduce(torch.add, values) + reduce(torch.add, surrogates)) / self.num_particles

    def _traces(self, model: Program, guide: Program, batch: tuple[Any, ...]) -> Traces:
        """Pyro's pairs of traces, (model, guide)."""
        vectorised = self.num_particles > 1 and self._particles(model) == "plate"
        nesting = self._plate_nesting(model, guide, batch) if vectorised else math.inf
        estimator = pyro.infer.TraceGraph_ELBO(self.num_particles, nesting, vectorize_particles=vectorised)
        for model_trace, guide_trace in estimator._get_traces(model, guide, batch, {}):
            terms.check_match(density_sites(model_trace), density_sites(guide_trace))
            yield model_trace, guide_trace


def _sizes(shapes: list[list[int] | None]) -> tuple[torch.Size | None, ...]:
    return tuple(None if s is None else torch.Size(s) for s in shapes)


def _guess_plate_nesting(model: Program, guide: Program, batch: tuple[Any, ...]) -> int:
    """As `terms.guess_plate_nesting`, for a guide that may leave sites out."""
    device = next((b.device for b in batch if isinstance(b, Tensor)), torch.device("cpu"))
    with unnoticed(model, guide, device=device), poutine.block():
        guide_trace = poutine.trace(guide).get_trace(*batch)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*batch)
    sites = [*sample_sites(guide_trace).values(), *sample_sites(model_trace).values()]
    return max((-f.dim for s in sites for f in s["cond_indep_stack"] if f.dim is not None), default=0)


def _owner(guide: Program) -> Any:
    """What the averages of a guide are kept for: the pair it belongs to, or the function itself."""
    return getattr(guide, "__self__", guide)


@contextmanager
def _private_store(averages: Averages) -> Iterator[None]:
    """Within, Pyro's parameter store holds these averages and nothing else; what is written there is kept in them."""
    ours, shared = ParamStoreDict(), pyro.get_param_store()
    for name, value in averages.items():
        ours[name] = value.detach()
    # The store is one object that many modules hold: its contents change places. `ParamStoreDict.scope` would drop
    # what a stock SVI needs to know of the parameters it has just seen.
    shared.__dict__, ours.__dict__ = ours.__dict__, shared.__dict__
    try:
        yield
    finally:
        shared.__dict__, ours.__dict__ = ours.__dict__, shared.__dict__
    for name, value in ours.items():
        new = detach_provenance(value).detach()
        # In place: a step captured in a CUDA graph reads and writes the same memory at each replay.
        averages[name] = averages[name].copy_(new) if name in averages else new
