"""How noisy an objective's gradient is: signal-to-noise ratio and variance, for the model and for the guide."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae import terms
from ppl_vae.checks import check_batch
from ppl_vae.evaluation.chunks import require_positive
from ppl_vae.evaluation.latents import Moments
from ppl_vae.objectives import Objective
from ppl_vae.pair import Pair
from ppl_vae.quiet import undisturbed

__all__ = ["GradientMoments", "gradient_moments", "gradient_snr", "gradient_variance", "parameter_groups"]


@dataclass(frozen=True)
class GradientMoments:
    """Mean and variance over S draws of the noise of the gradient of a loss, for one group of parameters.

    The loss is in nats, summed over the batch. A component whose gradient is constant has no noise: it is left
    out of the ratios where it is 0 throughout (a weight that nothing depends on), and infinite otherwise.

    Args:
        mean: parameter name -> mean gradient, in the parameter's shape, float64.
        variance: parameter name -> unbiased variance of one draw's gradient, float64.
        num_samples: S.
    """

    mean: dict[str, Tensor]
    variance: dict[str, Tensor]
    num_samples: int

    @property
    def num_parameters(self) -> int:
        """Number of components of the gradient."""
        return sum(mean.numel() for mean in self.mean.values())

    @property
    def average_variance(self) -> float:
        """Mean over components of the variance; NaN for an empty group."""
        return _flat(self.variance).mean().item()

    @property
    def snr(self) -> float:
        """Mean over components of |E[g]| / sd[g], E and sd being estimates; NaN where no component has a gradient.

        A component without any signal still shows about sqrt(2 / (pi S)): see `snr_rms`.
        """
        return self._squared_ratio().sqrt().mean().item()

    @property
    def snr_rms(self) -> float:
        """Root over the mean over components of (E[g] / sd[g])^2, without the bias of a finite S (above 3).

        For Gaussian g, S E[g]^2 / sd[g]^2 has a noncentral F distribution with 1 and S - 1 degrees of freedom, of
        mean (S - 1) / (S - 3) (1 + S SNR^2), from which SNR^2 follows. 0 where that estimate is negative.
        """
        square = self._shrink * self._squared_ratio().mean() - 1 / self.num_samples
        return square.clamp(min=0).sqrt().item()

    def snr_rms_of(self, quieter: "GradientMoments") -> float:
        """`snr_rms` where another estimator of the same mean gradient tells the mean, and this one the noise.

        For a ratio far below 1 / sqrt(S), whose mean drowns in this estimator's own noise. The two must agree in
        expectation, as DReG's and IWAE's gradients do, and be drawn independently (two seeds).
        """
        variance, signal = _flat(self.variance), _flat(quieter.mean).square()
        squares = (signal - _flat(quieter.variance) / quieter.num_samples) / variance
        square = self._shrink * squares[(signal != 0) | (variance != 0)].mean()
        return square.clamp(min=0).sqrt().item()

    @property
    def _shrink(self) -> float:
        """1 / E[true variance / estimated variance]; NaN where that has no expectation."""
        return (self.num_samples - 3) / (self.num_samples - 1) if self.num_samples > 3 else math.nan

    def _squared_ratio(self) -> Tensor:
        mean, variance = _flat(self.mean), _flat(self.variance)
        return (mean.square() / variance)[(mean != 0) | (variance != 0)]


def gradient_moments(
    pair: Pair,
    objective: Objective,
    *batch: Any,
    num_samples: int = 100,
    batch_size: int | None = None,
    seed: int | None = None,
) -> dict[str, GradientMoments]:
    """Mean and variance of the gradient of an objective's loss, over independent draws of its noise.

    The pair runs in eval mode, so the noise is the estimator's own; its gradients, modes and parameters are left
    as they were. See `parameter_groups` for which parameters are the model's and which the guide's.

    Args:
        pair: any pair.
        objective: any objective of `ppl_vae.objectives`; a scheduled KL weight is that of its current step.
        batch: the data; each tensor has N rows. The gradient is that of all of them.
        num_samples: S >= 2 draws.
        batch_size: data run at once; all by default. The loss is a sum over the data, and so is its gradient.
        seed: of a private random stream; the global one by default.

    Returns:
        {"model": ..., "guide": ...}.

    Raises:
        TypeError: the objective is not one of `ppl_vae.objectives`.
        ValueError: a bad batch (see `check_batch`), num_samples < 2, batch_size < 1, a joint objective with a
            batch_size, a pair without parameters to train; what the objective raises.

    References:
        Tighter Variational Bounds are Not Necessarily Better, Rainforth et al. 2018, eq. 4 and 5.

    Example:
        >>> from ppl_vae.objectives import IWAE
        >>> from ppl_vae.testing import LinearGaussian
        >>> moments = gradient_moments(LinearGaussian(5, 2), IWAE(num_particles=3), torch.ones(4, 5), num_samples=10)
        >>> {name: m.num_parameters for name, m in moments.items()}
        {'model': 16, 'guide': 14}
        >>> moments["guide"].variance["A"].shape
        torch.Size([2, 5])
    """
    _check(pair, objective, batch, num_samples, batch_size)
    parts = _parts(batch, batch_size)
    with undisturbed(pair, seed), torch.enable_grad():
        groups = parameter_groups(pair, *parts[0])
        parameters = {n: p for n, p in pair.named_parameters() if any(n in names for names in groups.values())}
        if not parameters:
            raise ValueError(f"{type(pair).__name__} has no parameter with a gradient: requires_grad is False on all")
        draw = partial(_gradient, pair, objective, parts, list(parameters.values()))
        moments = _moments(draw, num_samples)
    sizes, shapes = [p.numel() for p in parameters.values()], [p.shape for p in parameters.values()]

    def named(flat: Tensor) -> dict[str, Tensor]:
        return {n: g.view(s) for n, g, s in zip(parameters, flat.split(sizes), shapes, strict=True)}

    mean, variance = named(moments.mean), named(moments.variance)
    return {
        group: GradientMoments({n: mean[n] for n in names}, {n: variance[n] for n in names}, num_samples)
        for group, names in groups.items()
    }


def gradient_snr(
    pair: Pair,
    objective: Objective,
    *batch: Any,
    num_samples: int = 100,
    batch_size: int | None = None,
    seed: int | None = None,
) -> dict[str, float]:
    """Mean over components of |E[g]| / sd[g] for "model" and "guide": `GradientMoments.snr`.

    Example:
        >>> from ppl_vae.objectives import IWAE
        >>> from ppl_vae.testing import LinearGaussian
        >>> list(gradient_snr(LinearGaussian(5, 2), IWAE(num_particles=3), torch.ones(4, 5), num_samples=10))
        ['model', 'guide']
    """
    moments = gradient_moments(pair, objective, *batch, num_samples=num_samples, batch_size=batch_size, seed=seed)
    return {group: m.snr for group, m in moments.items()}


def gradient_variance(
    pair: Pair,
    objective: Objective,
    *batch: Any,
    num_samples: int = 100,
    batch_size: int | None = None,
    seed: int | None = None,
) -> dict[str, float]:
    """Mean over components of the gradient's variance for "model" and "guide": `GradientMoments.average_variance`.

    Example:
        >>> from ppl_vae.objectives import STL
        >>> from ppl_vae.testing import LinearGaussian
        >>> pair = LinearGaussian(5, 2).double()
        >>> pair.set_guide_to_posterior()
        >>> variance = gradient_variance(pair, STL(num_particles=1), torch.ones(4, 5).double())
        >>> variance["guide"] < 1e-20 < variance["model"]
        True
    """
    moments = gradient_moments(pair, objective, *batch, num_samples=num_samples, batch_size=batch_size, seed=seed)
    return {group: m.average_variance for group, m in moments.items()}


def parameter_groups(pair: Pair, *batch: Any) -> dict[str, list[str]]:
    """Names of the parameters of the model and of the guide, found by what depends on them.

    A parameter is the guide's if its samples or log q depend on it, the model's if log p at given samples does;
    one that both share is in both groups. A frozen parameter (requires_grad=False) is in neither.

    Args:
        pair: any pair; it runs twice, on the global random stream.
        batch: the data.

    Returns:
        {"model": names, "guide": names}, in the order of `pair.named_parameters()`.

    Example:
        >>> from ppl_vae.testing import LinearGaussian
        >>> parameter_groups(LinearGaussian(5, 2), torch.ones(4, 5))
        {'model': ['W', 'b', 'log_s'], 'guide': ['A', 'c', 'l']}
    """
    trained = {n: p for n, p in pair.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        # The samples too: a Delta's log density does not depend on where it stands.
        guide = terms.draw(pair.model, pair.guide, *batch).draws[0].guide.values()
        model = terms.draw(pair.model, pair.guide, *batch, gradient="score").draws[0].model.values()
        return {
            "model": _reached([s.log_prob for s in model], trained),
            "guide": _reached([t for s in guide for t in (s.log_prob, s.value)], trained),
        }


def _reached(outputs: Iterable[Tensor], parameters: dict[str, nn.Parameter]) -> list[str]:
    """Names of the parameters that any of the outputs depends on; a gradient of 0 is a dependence."""
    differentiable = [t.sum() for t in outputs if t.requires_grad]
    if not differentiable:
        return []
    gradients = torch.autograd.grad(differentiable, list(parameters.values()), allow_unused=True)
    return [n for n, g in zip(parameters, gradients, strict=True) if g is not None]


def _gradient(
    pair: Pair, objective: Objective, parts: Sequence[tuple[Any, ...]], parameters: Sequence[nn.Parameter]
) -> Tensor:
    """One draw of the gradient of the whole batch's loss, (P,) float64; not through `.grad`, which is the user's."""
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64, device=parameters[0].device)
    for part in parts:
        loss = objective.differentiable_loss(pair.model, pair.guide, *part)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        total += torch.cat([g.flatten().double() for g in gradients])
    return total


def _moments(draw: Callable[[], Tensor], num_samples: int) -> Moments:
    total = Moments.of(draw().unsqueeze(0))
    for _ in range(num_samples - 1):
        total = total + Moments.of(draw().unsqueeze(0))
    return total


def _parts(batch: tuple[Any, ...], size: int | None) -> list[tuple[Any, ...]]:
    """The batch cut along its rows; what has no rows goes into every part."""
    rows = next(len(b) for b in batch if isinstance(b, Tensor) and b.dim())
    size = rows if size is None else size
    return [
        tuple(b[i : i + size] if isinstance(b, Tensor) and b.dim() else b for b in batch) for i in range(0, rows, size)
    ]


def _check(pair: Pair, objective: Objective, batch: tuple[Any, ...], num_samples: int, size: int | None) -> None:
    if not isinstance(objective, Objective):
        raise TypeError(f"objective: got {type(objective).__name__}, expected one of ppl_vae.objectives")
    require_positive("num_samples", num_samples)
    if num_samples < 2:
        raise ValueError("num_samples: got 1, expected at least 2: the noise is estimated from their spread")
    if size is not None:
        require_positive("batch_size", size)
        if objective.joint:
            raise ValueError("batch_size: the loss of a joint objective is no sum over the data; leave it out")
    check_batch(pair, *batch)


def _flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([v.flatten() for v in values.values()]) if values else torch.zeros(0, dtype=torch.float64)
