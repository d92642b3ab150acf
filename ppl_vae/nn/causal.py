"""Networks of p(x_i | x_<i) for all i at once, and draws from them, one by one."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from tqdm import tqdm

from ppl_vae.distributions.context import batch_of, rows_of
from ppl_vae.nn.causal_conv import Place, stepwise
from ppl_vae.nn.heads import Head
from ppl_vae.nn.shapes import as_size
from ppl_vae.nn.trunks import Trunk

Index = tuple[int | slice, ...]

__all__ = ["CausalNetwork", "CausalTrunk", "ImageTrunk", "PixelTrunk", "divisible", "indices"]


class CausalTrunk(Trunk):
    """x (..., *shape) -> raw parameters (..., P, *shape), those at i from what comes before i alone.

    The order is that of the elements, with the channels of an image last: rows, columns, channels.

    Args:
        out_shape: (P, *shape), a head's.
        context_dim: F, of what else is known of each datum; None for nothing.
        joint: of images: parameters of all channels of a pixel from what comes before the pixel, for a joint head.
    """

    def __init__(self, out_shape: tuple[int, ...], context_dim: int | None = None, joint: bool = False) -> None:
        super().__init__(out_shape[1:], out_shape)
        self.context_dim, self.joint = context_dim, joint

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Raw parameters for x (..., *shape) and context (..., F); leading dims are broadcast.

        Raises:
            ValueError: x or context of another shape, or one without the other.
        """
        lead = self._leading(x)
        self._check(context)
        lead = torch.broadcast_shapes(lead, batch_of(context))
        flat = x.expand(*lead, *self.in_shape).reshape(-1, *self.in_shape)
        return self.raw(flat, rows_of(context, lead)).view(*lead, *self.out_shape)

    @abstractmethod
    def raw(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Raw parameters (N, P, *shape) for x (N, *shape) and context (N, F)."""

    def _check(self, context: Tensor | None) -> None:
        got = None if context is None else tuple(context.shape)
        if (got is None) != (self.context_dim is None) or (got is not None and got[-1] != self.context_dim):
            wanted = "None" if self.context_dim is None else f"(..., {self.context_dim})"
            raise ValueError(f"context: got {got}, expected {wanted}; build the trunk with its context_dim")


class ImageTrunk(CausalTrunk):
    """A causal trunk of images (C, H, W)."""

    rows_alone: ClassVar[bool] = True
    """Whether `raw` takes the upper rows of images alone."""

    @torch.no_grad()
    def set_output_bias(self, raw: Tensor) -> None:
        """Write the output bias, one for all pixels: the mean of `raw` (P, C, H, W) over them."""
        self._output_bias().copy_(raw.mean((-1, -2)).transpose(0, 1).flatten())

    def _unblocked(self, features: Tensor) -> Tensor:
        """(N, C P, H, W), the channels in blocks of P, as (N, P, C, H, W)."""
        number, channels = self.out_shape[:2]
        return features.unflatten(1, (channels, number)).transpose(1, 2)


class PixelTrunk(ImageTrunk):
    """One that can go pixel by pixel, by `CausalConv2d`."""

    @abstractmethod
    def pixel(self, place: Place, context: Tensor | None) -> Tensor:
        """Raw parameters (N, P, C) at the place that is next; within `stepwise`."""

    @abstractmethod
    def write(self, x: Tensor) -> None:
        """What is known of the pixel at that place, (N, C, 1, 1); within `stepwise`."""

    def begin_row(self, above: Tensor | None, context: Tensor | None) -> None:
        """A row begins, below the row `above` (N, C, 1, W), None for the first. Nothing to do for most."""


class CausalNetwork(nn.Module):
    """x (..., *shape) and context (..., F) -> the law of all x_i given x_<i and the context, as one distribution.

    Its log_prob(x) is that of x by the chain rule, sum_i log p(x_i | x_<i, context), as long as x is what the network
    was given. See `distributions.Autoregressive`.

    Args:
        trunk: of raw parameters, causal.
        head: of the law of one element; or, if it is joint, of the channels of a pixel.

    Raises:
        ValueError: a joint head with a trunk that is not, or the reverse.
    """

    def __init__(self, trunk: CausalTrunk, head: Head) -> None:
        super().__init__()
        if trunk.joint != head.joint:
            raise ValueError(
                f"got a {type(head).__name__} with joint={head.joint} and a {type(trunk).__name__} with "
                f"joint={trunk.joint}, expected the same; build the trunk with joint={head.joint}"
            )
        self.trunk, self.head = trunk, head

    @property
    def shape(self) -> torch.Size:
        """Of one datum."""
        return torch.Size(self.head.shape)

    def forward(self, x: Tensor, context: Tensor | None = None) -> TorchDistribution:
        """The law of all elements, batch shape (...), event shape `shape`."""
        return self.head(self.trunk(x, context))

    @torch.no_grad()
    def draw(
        self,
        number: int,
        context: Tensor | None = None,
        *,
        known: Tensor | None = None,
        given: Tensor | None = None,
        cached: bool = True,
        progress: bool = False,
    ) -> Tensor:
        """x ~ p(x | context), element by element, each from its law given those before it.

        Elements that are given keep their value, and the others are drawn given those of them that come before: with
        x_i given for i < n that is a draw from p(x_>=n | x_<n), otherwise from the model's law with some elements set.

        Args:
            number: N.
            context: (N, F).
            known: values (N, *shape) of the elements that are given.
            given: which these are, (N, *shape) or (*shape), bool.
            cached: compute at each pixel the features of that pixel alone, where the trunk can; the same draws, up to
                rounding, in a small part of the time.
            progress: show a bar.

        Returns:
            (N, *shape).
        """
        x = torch.zeros(number, *self.shape, **_like(self))
        if known is not None and given is not None:
            given = given.to(x.device).expand_as(x)
            x = torch.where(given, known.to(x), x)
        places = _by_pixel if cached and isinstance(self.trunk, PixelTrunk) else _at_once
        size = self.shape.numel() // (self.shape[0] if self.head.joint else 1)
        for index, law in tqdm(places(self, x, context), total=size, disable=not progress, unit="value", desc="draw"):
            drawn = law.sample()
            x[index] = drawn if given is None else torch.where(given[index], x[index], drawn)
        return x


def _at_once(network: CausalNetwork, x: Tensor, context: Tensor | None) -> Iterator[tuple[Index, TorchDistribution]]:
    """Each element's index and law, the network computed anew for each; of images the rows so far."""
    trunk = network.trunk
    for index in indices(network.shape, network.head.joint):
        so_far = x[:, :, : index[1] + 1] if isinstance(trunk, ImageTrunk) and trunk.rows_alone else x
        raw = trunk.raw(so_far, context)
        yield (slice(None), *index), network.head.law(raw[(slice(None), slice(None), *index)], 1)


def _by_pixel(network: CausalNetwork, x: Tensor, context: Tensor | None) -> Iterator[tuple[Index, TorchDistribution]]:
    """The same, features kept."""
    trunk = network.trunk
    assert isinstance(trunk, PixelTrunk)
    channels, height, width = network.shape
    with stepwise(trunk, len(x), height, width) as place:
        for place.row in range(height):
            trunk.begin_row(x[:, :, place.row - 1, None] if place.row else None, context)
            for place.column in range(width):
                for channel in [slice(None)] if network.head.joint else range(channels):
                    raw = trunk.pixel(place, context)
                    at = (slice(None), channel, place.row, place.column)
                    yield at, network.head.law(raw[:, :, channel], 1)
                    trunk.write(x[:, :, place.row, None, place.column, None])


def indices(shape: torch.Size, joint: bool = False) -> Iterator[tuple[Any, ...]]:
    """Indices in order: rows, columns, then channels, or all channels together."""
    if len(shape) != 3:
        yield from (tuple(i) for i in torch.cartesian_prod(*map(torch.arange, shape)).view(-1, len(shape)).tolist())
        return
    for row in range(shape[1]):
        for column in range(shape[2]):
            for channel in [slice(None)] if joint else range(shape[0]):
                yield channel, row, column


def _like(module: nn.Module) -> dict[str, Any]:
    parameter = next(module.parameters())
    return {"dtype": parameter.dtype, "device": parameter.device}


def divisible(size: int, channels: int, name: str) -> int:
    """The next multiple of the channels: features belong to them in equal blocks.

    Raises:
        ValueError: a size below 1.
    """
    return -(-as_size(size, name) // channels) * channels
