"""The checks of `check_pair`, one function each: a line of text where the check holds, `CheckFailed` where not.

Each gets a copy of the pair that it may train, cast and break.
"""

import copy
import io
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae import terms
from ppl_vae.objectives import IWAE, Trace_ELBO
from ppl_vae.pair import Pair
from ppl_vae.sites import GivenValues
from ppl_vae.terms import Draw, Site

__all__ = ["CHECKS", "PREREQUISITES", "Batch", "CheckFailed", "CheckFunction", "require_unlike_rows"]

Batch = Sequence[Any]
CheckFunction = Callable[[Pair, Batch, int], str]

_REPEATS = 32
# Student's t with _REPEATS - 1 degrees of freedom exceeds it with probability 1e-5.
_T_LIMIT = 5.05


class CheckFailed(Exception):
    """A check does not hold."""


def require_unlike_rows(batch: Batch) -> None:
    """Refuse a batch that could not show one row to depend on another.

    Raises:
        ValueError: fewer than two rows, or rows 2i and 2i + 1 equal for all i.
    """
    rows = _rows(batch)
    if rows < 2 or all(b is c or torch.equal(b, c) for b, c in zip(batch, _keep_rows(batch, 0), strict=True)):
        raise ValueError(f"batch: got {rows} rows, rows 0 and 1, 2 and 3, ... equal; expected unlike rows, at least 2")


def sites(pair: Pair, batch: Batch, num_particles: int) -> str:
    """Model and guide have the same latent sites, and no parameter lives in Pyro's store."""
    drawn = terms.draw(pair.model, pair.guide, *batch).draws[0]
    if stored := list(pyro.get_param_store().keys()):
        raise CheckFailed(
            f"got {stored[0]!r} in Pyro's parameter store, expected parameters of plain nn.Modules alone: a second "
            "instance would share it. Replace pyro.param by nn.Parameter, and PyroModule by nn.Module."
        )
    return f"model {list(drawn.model)}, guide {list(drawn.guide)}"


def per_datum(pair: Pair, batch: Batch, num_particles: int) -> str:
    """Every site is in one plate, with a row for each row of the batch, and all share one scale."""
    drawn = terms.draw(pair.model, pair.guide, *batch)
    plate, rows = drawn.draws[0].data_plate, _rows(batch)
    if plate.size != rows:
        raise CheckFailed(
            f"got {plate.size} rows in plate {plate.name!r} for a batch of {rows}, expected as many: take the size "
            'from the batch, pyro.plate("data", len(x), dim=-1)'
        )
    return f"every site is in plate {plate.name!r} (size {plate.size}, dim={plate.dim}), with scale {drawn.scale:g}"


def rows_apart(pair: Pair, batch: Batch, num_particles: int) -> str:
    """The bound of a row stays, with the same noise, when the rows beside it are replaced (training mode)."""
    pair.train()
    before = _bound(pair, batch, num_particles)
    for parity in (0, 1):
        after = _bound(pair, _keep_rows(batch, parity), num_particles)
        moved = (after - before).abs()[parity::2]
        if not bool((moved <= 1e-5 * (1 + before.abs()[parity::2])).all()):
            raise CheckFailed(
                f"got a bound of row {parity + 2 * int(moved.argmax())} that moved by {moved.max():.3g} nats when "
                "other rows were replaced, expected no change: no batch normalisation, nothing summed over rows"
            )
    return "the bound of each row stays when the other rows are replaced"


def gradients(pair: Pair, batch: Batch, num_particles: int) -> str:
    """Every parameter gets a finite gradient, and nothing else does."""
    pair.train()
    loss = Trace_ELBO(num_particles).differentiable_loss(pair.model, pair.guide, *batch)
    wanted = {name: p for name, p in pair.named_parameters() if p.requires_grad}
    if strange := [leaf for leaf in _leaves(loss) if not any(leaf is p for p in wanted.values())]:
        raise CheckFailed(
            f"got a loss that depends on a tensor of shape {tuple(strange[0].shape)} which needs gradient and is not "
            "in pair.parameters(), expected it registered: make it an nn.Parameter, its list an nn.ModuleList"
        )
    if loss.requires_grad:
        loss.backward()
    if missing := [name for name, p in wanted.items() if p.grad is None]:
        raise CheckFailed(f"got no gradient for {missing}, expected one for every parameter: use them, or freeze them")
    if bad := [name for name, p in wanted.items() if p.grad is not None and not p.grad.isfinite().all()]:
        raise CheckFailed(f"got a non-finite gradient for {bad}, expected finite ones: look for log(0) and exp(large)")
    return f"{len(wanted)} parameters, each with a finite gradient"


def state_dict(pair: Pair, batch: Batch, num_particles: int) -> str:
    """A copy with random parameters that loads the state gives the same bound."""
    pair.eval()
    other, file = copy.deepcopy(pair), io.BytesIO()
    for value in other.state_dict().values():
        if value.is_floating_point():
            value.normal_()
    torch.save(pair.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    got, expected = _bound(other, batch, num_particles), _bound(pair, batch, num_particles)
    _compare(got, expected, 1e-5, "the bound of a copy that loaded the state", "keep all state in state_dict()")
    return "a copy with other parameters gives the same bound once it has loaded the state"


def dtypes(pair: Pair, batch: Batch, num_particles: int) -> str:
    """The pair runs in float64 and in float32; for the same latent values their log weights agree."""
    pair.eval()
    latents: dict[str, Tensor] = {}
    log_weights: list[Tensor] = []
    for dtype in (torch.float64, torch.float32):
        cast = copy.deepcopy(pair).to(dtype)
        with torch.no_grad(), GivenValues({name: _cast(value, dtype) for name, value in latents.items()}):
            drawn = terms.draw(cast.model, cast.guide, *[_cast(b, dtype) for b in batch])
        # A point is wherever its precision has it: at another one it has no density.
        sites = drawn.draws[0].guide.items()
        latents = {name: site.value for name, site in sites if not isinstance(site.fn, dist.Delta)}
        log_weights.append(drawn.log_weight())
        if log_weights[-1].dtype != dtype:
            raise CheckFailed(
                f"got log weights in {log_weights[-1].dtype} from a pair and a batch in {dtype}, expected {dtype}: "
                "make constants with x.new_zeros(...) or register_buffer"
            )
    _compare(
        log_weights[1],
        log_weights[0],
        1e-3,
        "log w in float32",
        "look for overflow, and for tensors left in another dtype",
    )
    return "the log weights of the same latent values agree in float32 and float64"


def particles(pair: Pair, batch: Batch, num_particles: int) -> str:
    """K particles in one trace have, value by value, the log weights of K traces."""
    pair.eval()
    with torch.no_grad():
        alone = terms.draw(pair.model, pair.guide, *batch).draws[0]
        together = IWAE(num_particles).terms(pair.model, pair.guide, *batch)
        for k, log_weight in enumerate(together.log_weight()):
            drawn = together.draws[0]
            latent = {name: site for name, site in drawn.guide.items() if not site.observed}
            values = {name: _particle(drawn, site, k, alone.guide[name]) for name, site in latent.items()}
            with GivenValues(values):
                expected = terms.draw(pair.model, pair.guide, *batch).log_weight()[0]
            advice = 'networks must take (K, B, ...); otherwise set particles = "tile" in the class'
            _compare(log_weight, expected, 1e-4, f"log w of particle {k} in one trace ({pair.particles})", advice)
    return f"{num_particles} particles in one trace ({pair.particles}) have the log weights of as many traces"


def bounds(pair: Pair, batch: Batch, num_particles: int) -> str:
    """ELBO <= IWAE, in the mean over the batch."""
    pair.eval()
    objectives = (Trace_ELBO(), IWAE(num_particles))
    means = [[o.bound(pair.model, pair.guide, *batch).mean() for o in objectives] for _ in range(_REPEATS)]
    elbo, iwae = torch.tensor(means, dtype=torch.float64).unbind(-1)
    error = (elbo - iwae).std() / _REPEATS**0.5
    line = f"ELBO {elbo.mean():.4f}, IWAE-{num_particles} {iwae.mean():.4f} nats per datum"
    if not elbo.mean() - iwae.mean() <= _T_LIMIT * error + 1e-6 * (1 + iwae.mean().abs()):
        raise CheckFailed(
            f"got {line}, expected ELBO <= IWAE (standard error of the difference {error:.2g}): one particle and "
            "several must come from the same guide and be weighed by the same model"
        )
    return line


CHECKS: dict[str, CheckFunction] = {
    "sites": sites,
    "per datum": per_datum,
    "rows apart": rows_apart,
    "gradients": gradients,
    "state_dict": state_dict,
    "dtypes": dtypes,
    "particles": particles,
    "bounds": bounds,
}
PREREQUISITES = ("sites", "per datum")
"""Where one of these fails, the checks after it are not run: they would fail for the same reason."""


def _bound(pair: Pair, batch: Batch, num_particles: int) -> Tensor:
    torch.manual_seed(0)
    return Trace_ELBO(num_particles).bound(pair.model, pair.guide, *batch)


def _compare(got: Tensor, expected: Tensor, tolerance: float, what: str, advice: str) -> None:
    error = (got.double() - expected.double()).abs()
    if not bool((error <= tolerance * (1 + expected.abs())).all()):
        worst = int(error.nan_to_num(torch.inf, torch.inf).argmax())
        pair = f"got {got.flatten()[worst]:.6g}, expected {expected.flatten()[worst]:.6g} nats"
        raise CheckFailed(f"{what}: {pair}; {advice}")


def _rows(batch: Batch) -> int:
    return next((len(b) for b in batch if isinstance(b, Tensor) and b.dim()), 0)


def _keep_rows(batch: Batch, parity: int) -> list[Any]:
    """The batch with every other row replaced by its neighbour; the rows of this parity are kept."""
    rows = _rows(batch)
    index = torch.arange(rows)
    kept = index[parity::2]
    index[1 - parity :: 2][: len(kept)] = kept[: len(index[1 - parity :: 2])]
    return [b[index] if isinstance(b, Tensor) and b.dim() and len(b) == rows else b for b in batch]


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _particle(drawn: Draw, site: Site, k: int, alone: Site) -> Tensor:
    """The value of particle k, in the shape it has when it is drawn alone."""
    event = site.fn.event_dim
    if drawn.dim is not None:
        value = site.value.select(drawn.dim - event, k)
    else:
        dim = drawn.data_plate.dim
        assert dim is not None
        value = site.value.unflatten(dim - event, (drawn.size, -1)).select(dim - event - 1, k)
    return value.reshape(alone.value.shape)


def _leaves(loss: Tensor) -> list[Tensor]:
    """The leaf tensors that a backward pass would give a gradient to."""
    seen: set[Any] = set()
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return [node.variable for node in seen if hasattr(node, "variable")]
