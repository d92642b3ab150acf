"""What a pair's model has learned to make: samples, reconstructions, and paths through its latent space.

All of it is `decode`: the model runs with its observations removed and some latent sites given, and the
distribution of the observed site comes out. Arguments that all functions share:

    batch     as model and guide take it, B rows; the model ignores the values of what it observes, and uses
              what it conditions on (labels, captions). Events come back in rows too: (B, *event).
    site      the observed site that is asked for; None takes the pair's own `data_site`.
    mean      True: the mean of p(x | z), which the literature shows; False draws x. None: the mean where p(x | z) knows
              it (an autoregressive one doesn't), otherwise a draw.
    at_means  latent sites take their means, given the means before them; False draws them. Discrete sites
              are always drawn.
    seed      of a private random stream: the same picture every time, and the global stream is left alone.
              None draws from the global stream.

Nothing records gradients, and all modules are in eval mode meanwhile.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae import quiet
from ppl_vae.distributions import Autoregressive
from ppl_vae.pair import Pair
from ppl_vae.seeds import check_seed
from ppl_vae.sites import sample_sites

__all__ = [
    "blank",
    "completions",
    "decode",
    "interpolation",
    "manifold",
    "posterior",
    "reconstructions",
    "samples",
    "traversal",
    "unit_square",
]

Nodes = dict[str, dict[str, Any]]
Values = Mapping[str, Tensor]


MOST, LARGEST = 2**31 - 1, 46_340
"""Pictures asked for at once, and along a side: sizes beyond are a slip, and torch has no words for them."""


def decode(
    pair: Pair, latents: Values, *batch: Any, site: str | None = None, at_means: bool = False, seed: int | None = 0
) -> TorchDistribution:
    """The distribution of a site given some latent sites, p(x | latents); the other sites are drawn.

    Args:
        pair: the model and the guide (which plays no part).
        latents: site name -> value (B, *event); observed sites may be given as well.
        site: the site asked for; it is not drawn.

    Returns:
        A distribution of batch shape (B,).

    Raises:
        ValueError: a name that is no site of the model; a value of another shape than the site's; a site
            without a mean where one is needed.

    Example:
        >>> from ppl_vae.pairs import VAE
        >>> pair = VAE((1, 8, 8), latent_dim=2)
        >>> decode(pair, {"z": torch.zeros(5, 2)}, blank(pair, 5)).mean.shape
        torch.Size([5, 1, 8, 8])
    """
    with _undisturbed(pair, seed):
        return _decode(pair, latents, batch, site, at_means)[1]


def posterior(pair: Pair, *batch: Any, at_means: bool = False, seed: int | None = 0) -> dict[str, Tensor]:
    """One draw of q(z | x) for each row: latent site -> value (B, *event).

    Raises:
        ValueError: a site has no mean, and `at_means` asks for it.
    """
    with _undisturbed(pair, seed):
        return _values(_posterior(pair, batch, at_means))


def blank(pair: Pair, num: int) -> Tensor:
    """A batch of zeros, (num, *pair.data_shape): it only says how many rows the model shall draw.

    Raises:
        ValueError: the pair does not say its `data_shape`; `num` is below 1 or above 2^31 - 1.
    """
    _check_number("num", num, MOST)
    shape = getattr(pair, "data_shape", None)
    if shape is None:
        raise ValueError(
            f"{type(pair).__name__}: got no attribute data_shape, expected the shape of one datum; set it in the "
            "pair's __init__, or pass a batch of the right shape (its values are ignored)"
        )
    return pair.reference().new_zeros(num, *shape)


def samples(
    pair: Pair,
    *batch: Any,
    num: int | None = None,
    site: str | None = None,
    mean: bool | None = None,
    seed: int | None = 0,
) -> Tensor:
    """Ancestral samples, z ~ p(z) then x, one for each row of the batch, (B, *event).

    Args:
        pair: the model and the guide (which plays no part).
        num: how many (64 by default), instead of a batch, where the pair says its `data_shape`.

    Raises:
        ValueError: both a batch and `num`; what `decode` and `blank` raise.
    """
    if batch and num is not None:
        raise ValueError(f"got a batch and num={num}, expected one of them: a batch gives one sample for each row")
    batch = batch or (blank(pair, 64 if num is None else num),)
    with _undisturbed(pair, seed):
        return _output(_decode(pair, {}, batch, site), mean)


def completions(
    pair: Pair,
    *batch: Any,
    given: Tensor,
    num: int = 1,
    site: str | None = None,
    seed: int | None = 0,
    progress: bool = False,
) -> Tensor:
    """Images of which a part is given, and the rest drawn element by element, (B, num, *event).

    Args:
        pair: the model, whose observed site is `distributions.Autoregressive`, and the guide (which plays no part).
        batch: the images first, (B, *event); what is not given of them does not count.
        given: which elements are, bool, of the event's shape: the upper half, say.
        num: so many for each image.
        progress: show a bar.

    Raises:
        ValueError: a site of another law; `given` of another shape or type.
    """
    _check_number("num", num, MOST)
    with _undisturbed(pair, seed):
        name, law = _decode(pair, {}, batch, site)
        if not isinstance(law, Autoregressive):
            raise ValueError(
                f"site {name!r}: got {type(law).__name__}, expected Autoregressive, which draws element by element; "
                "take a pair such as pairs.PixelCNN"
            )
        if given.dtype != torch.bool or given.shape != law.event_shape:
            raise ValueError(
                f"given: got {tuple(given.shape)} {given.dtype}, expected {tuple(law.event_shape)} torch.bool: True "
                "where an element is given"
            )
        drawn = law.complete(batch[0], given.to(batch[0].device), (num,), progress=progress)
    return drawn.transpose(0, 1)


def reconstructions(
    pair: Pair,
    *batch: Any,
    latents: Sequence[str] | None = None,
    site: str | None = None,
    mean: bool | None = None,
    seed: int | None = 0,
) -> Tensor:
    """z ~ q(z | x), then the model's x given z, (B, *event).

    Args:
        pair: the model and the guide.
        latents: the sites that are kept, all by default; the model draws the others, as the details of a VQ-VAE-2
            given its top codes, or the lower layers of a hierarchy.

    Raises:
        ValueError: a pair without latent variables, a name that is no latent site; what `decode` raises.
    """
    with _undisturbed(pair, seed):
        z = _values(_posterior(pair, batch))
        if unknown := [name for name in latents or () if name not in z]:
            raise ValueError(f"latents: got {unknown[0]!r}, expected some of {', '.join(z)}; name those")
        z = {name: value for name, value in z.items() if latents is None or name in latents}
        if not z:
            raise ValueError(
                f"{type(pair).__name__}: got no latent variables, expected some that x is reconstructed from; look at "
                "samples"
            )
        return _output(_decode(pair, z, batch, site), mean)


def unit_square(size: int) -> Tensor:
    """Centres of size x size equal cells of the unit square, (size, size, 2), laid out as a plot.

    Entry [i, j] is (u_1, u_2) = ((j + 1/2) / size, 1 - (i + 1/2) / size): u_1 grows to the right, u_2 upwards.
    """
    u = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    return torch.stack(torch.meshgrid(u, u.flip(0), indexing="xy"), -1)


def manifold(
    pair: Pair, *batch: Any, size: int = 20, site: str | None = None, mean: bool | None = None, seed: int | None = 0
) -> Tensor:
    """The manifold that a 2-D latent space has learned, (size, size, *event); entry [i, j] is row i, column j.

    Equally spaced points of the unit square (`unit_square`) go through the inverse CDF of the prior, so that
    each picture stands for the same prior mass; z_1 grows to the right, z_2 upwards.

    Args:
        pair: the model, whose only latent site has event shape (2,), and the guide (which plays no part).
        batch: one row, which all pictures share; not needed where the pair says its `data_shape`.
        size: pictures to a side.

    Raises:
        ValueError: other latent sites; a prior without an inverse CDF; a batch of several rows; a size below 1.

    References:
        Auto-Encoding Variational Bayes, Kingma & Welling 2013, figure 4.
    """
    _check_number("size", size, LARGEST)
    batch = _repeated(batch, size**2) if batch else (blank(pair, size**2),)
    with _undisturbed(pair, seed):
        name, prior = _planar_prior(pair, batch, site)
        z = _quantile(name, prior, unit_square(size).flatten(0, 1))
        return _output(_decode(pair, {name: z}, batch, site), mean).unflatten(0, (size, size))


def interpolation(
    pair: Pair,
    x0: Tensor | Sequence[Any],
    x1: Tensor | Sequence[Any],
    steps: int = 10,
    *,
    latents: Sequence[str] | None = None,
    site: str | None = None,
    mean: bool | None = None,
    at_means: bool = True,
    seed: int | None = 0,
) -> Tensor:
    """The model along the straight line between the posterior means of two data, (B, steps, *event).

    Args:
        pair: the model and the guide.
        x0: where the lines start, (B, *event), or a tuple of the programs' arguments; what the model
            conditions on is that of x0 all along.
        x1: where they end, B rows as well.
        steps: points on a line, both ends among them, at least 2.
        latents: the sites that are interpolated, all by default; the others follow from the model.

    Raises:
        ValueError: fewer than 2 steps; x0 and x1 of different numbers of rows; a discrete or unknown site.
    """
    if steps < 2:
        raise ValueError(f"steps: got {steps}, expected at least 2, the two ends")
    start, end = ((x,) if isinstance(x, Tensor) else tuple(x) for x in (x0, x1))
    if len(start[0]) != len(end[0]):
        raise ValueError(f"got {len(start[0])} rows in x0 and {len(end[0])} in x1, expected as many: a line each")
    with _undisturbed(pair, seed):
        z0, z1 = (_continuous(_posterior(pair, x, at_means), latents) for x in (start, end))
        points = [{n: torch.lerp(z0[n], z1[n], t) for n in z0} for t in torch.linspace(0, 1, steps).tolist()]
        return torch.stack([_output(_decode(pair, z, start, site, at_means), mean) for z in points], 1)


def traversal(
    pair: Pair,
    *batch: Any,
    latent: str | None = None,
    units: Sequence[int] | None = None,
    low: float = -3.0,
    high: float = 3.0,
    steps: int = 9,
    site: str | None = None,
    mean: bool | None = None,
    at_means: bool = True,
    seed: int | None = 0,
) -> Tensor:
    """The model when one latent unit at a time goes from `low` to `high`, (B, units, steps, *event).

    The site's other units stay at the posterior mean, and so do the latent sites before it in the model;
    the sites after it follow from the model.

    Args:
        pair: the model and the guide.
        latent: the site; needed where the pair has several.
        units: indices of the units to vary (the event flattened), all by default.
        low: first value of the unit, in the units of z.
        high: last value.
        steps: number of values.

    Raises:
        ValueError: a discrete or unknown site, or none named among several; a unit that it does not have.
    """
    with _undisturbed(pair, seed):
        nodes = _posterior(pair, batch, at_means)
        name = _chosen(nodes, latent)
        z, event_dim = _continuous(nodes, [name])[name], nodes[name]["fn"].event_dim
        units = _checked_units(name, units, nodes[name]["fn"].event_shape.numel())
        order = list(_run(pair, batch, _values(nodes), site))
        before = {n: nodes[n]["value"] for n in order[: order.index(name)] if n in nodes}
        values = torch.linspace(low, high, steps).tolist()
        points = [before | {name: _with_unit(z, event_dim, unit, value)} for unit in units for value in values]
        xs = [_output(_decode(pair, point, batch, site, at_means), mean) for point in points]
        return torch.stack(xs, 1).unflatten(1, (len(units), steps))


class _Given(Messenger):
    """Removes observations and gives sites their values; `site` is left as it is, for only its law is asked."""

    def __init__(self, values: Values, site: str | None, at_means: bool) -> None:
        super().__init__()
        self.values, self.site, self.at_means = values, site, at_means

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if not isinstance(fn, TorchDistributionMixin) or isinstance(getattr(fn, "base_dist", fn), dist.Unit):
            return  # the indices of a plate, or a pyro.factor
        if name == self.site and msg["is_observed"]:
            return  # what is asked for: drawing it can be dear (autoregressive pixels)
        if name in self.values:
            msg["value"] = _checked(name, self.values[name], fn)
        elif self.at_means and not _is_discrete(fn):
            msg["value"] = _mean(name, fn)
        elif msg["is_observed"]:
            msg["value"], msg["is_observed"] = None, False
            msg["infer"]["was_observed"] = True


def _undisturbed(pair: Pair, seed: int | None) -> AbstractContextManager[None]:
    if seed is not None:
        check_seed("seed", seed)
    return quiet.undisturbed(pair, seed)


def _check_number(name: str, value: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{name}: got {value!r}, expected a whole number from 1 to {most}")


def _run(pair: Pair, batch: Sequence[Any], values: Values, site: str | None, at_means: bool = False) -> Nodes:
    site = site or pair.data_site
    model = _Given(values, site, at_means)(pair.model)
    nodes = sample_sites(poutine.trace(model).get_trace(*batch))
    for name in (site, *values):
        if name not in nodes:
            raise ValueError(f"the model has no site {name!r}: got {list(nodes)}, expected it there; name one of these")
    return nodes


def _decode(
    pair: Pair, values: Values, batch: Sequence[Any], site: str | None, at_means: bool = False
) -> tuple[str, TorchDistribution]:
    """The observed site that is asked for, and its law."""
    site = site or pair.data_site
    return site, _run(pair, batch, values, site, at_means)[site]["fn"]


def _posterior(pair: Pair, batch: Sequence[Any], at_means: bool = False) -> Nodes:
    guide = _Given({}, None, True)(pair.guide) if at_means else pair.guide
    nodes = sample_sites(poutine.trace(guide).get_trace(*batch))
    return {n: node for n, node in nodes.items() if not node["is_observed"] and not node["infer"].get("is_auxiliary")}


def _values(nodes: Nodes) -> dict[str, Tensor]:
    return {name: node["value"] for name, node in nodes.items()}


def _output(decoded: tuple[str, TorchDistribution], mean: bool | None) -> Tensor:
    site, law = decoded
    if mean is None:
        try:
            return law.mean
        except NotImplementedError:
            return law.sample()
    return _mean(site, law) if mean else law.sample()


def _mean(name: str, fn: TorchDistribution) -> Tensor:
    try:
        return fn.mean
    except NotImplementedError:
        raise ValueError(
            f"site {name!r}: got {type(fn).__name__}, expected a distribution that knows its mean; ask for draws "
            "instead: mean=False for the observed site, at_means=False for latent ones"
        ) from None


def _is_discrete(fn: TorchDistribution) -> bool:
    try:
        return fn.support is not None and fn.support.is_discrete
    except NotImplementedError:  # no support declared
        return False


def _checked(name: str, value: Tensor, fn: TorchDistribution) -> Tensor:
    wanted = fn.batch_shape + fn.event_shape
    if value.shape[max(value.dim() - len(wanted), 0) :] != wanted:
        raise ValueError(f"site {name!r}: got a value of shape {tuple(value.shape)}, expected {tuple(wanted)}")
    return value


def _continuous(nodes: Nodes, names: Sequence[str] | None) -> dict[str, Tensor]:
    """The values of these sites of the guide, or of all."""
    for name in nodes if names is None else names:
        if name not in nodes:
            raise ValueError(f"the guide has no site {name!r}: got {list(nodes)}; name one of these")
        if _is_discrete(nodes[name]["fn"]):
            kind = type(nodes[name]["fn"]).__name__
            raise ValueError(f"site {name!r}: got {kind}, which is discrete, expected a continuous site; name others")
    return {n: nodes[n]["value"] for n in (nodes if names is None else names)}


def _chosen(nodes: Nodes, latent: str | None) -> str:
    if latent is None and len(nodes) != 1:
        raise ValueError(f"latent: got None and the latent sites {list(nodes)}, expected one; name it, latent='z'")
    return next(iter(nodes)) if latent is None else latent


def _checked_units(name: str, units: Sequence[int] | None, size: int) -> Sequence[int]:
    for unit in units or ():
        if not 0 <= unit < size:
            raise ValueError(f"units: got {unit}, expected 0 to {size - 1}, the units of site {name!r}")
    return range(size) if units is None else units


def _with_unit(z: Tensor, event_dim: int, unit: int, value: float) -> Tensor:
    shape = z.shape[: z.dim() - event_dim]
    flat = z.reshape(*shape, -1).clone()
    flat[..., unit] = value
    return flat.view(z.shape)


def _planar_prior(pair: Pair, batch: Sequence[Any], site: str | None) -> tuple[str, TorchDistribution]:
    nodes = _run(pair, batch, {}, site)
    latent = {
        n: node["fn"] for n, node in nodes.items() if not node["is_observed"] and "was_observed" not in node["infer"]
    }
    shapes = {name: tuple(fn.event_shape) for name, fn in latent.items()}
    if list(shapes.values()) != [(2,)]:
        raise ValueError(f"got latent sites of event shapes {shapes}, expected one of (2,); see traversal for others")
    ((name, prior),) = latent.items()
    while isinstance(prior, dist.Independent):
        prior = prior.base_dist
    return name, prior


def _quantile(name: str, prior: TorchDistribution, u: Tensor) -> Tensor:
    try:
        return prior.icdf(u.to(prior.mean))
    except NotImplementedError:
        raise ValueError(f"site {name!r}: got {type(prior).__name__}, expected a prior with an inverse CDF") from None


def _repeated(batch: Sequence[Any], num: int) -> tuple[Any, ...]:
    if len(batch[0]) != 1:
        raise ValueError(f"got a batch of {len(batch[0])} rows, expected one row, which all pictures share; cut it")
    rows = (isinstance(b, Tensor) and b.dim() > 0 and len(b) == 1 for b in batch)
    return tuple(b.expand(num, *b.shape[1:]) if row else b for b, row in zip(batch, rows, strict=True))
