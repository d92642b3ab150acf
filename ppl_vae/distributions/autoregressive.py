"""x_1, x_2, ... each given those before it, as one distribution."""

from collections.abc import Iterator
from typing import Any, ClassVar, Protocol, final

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size

from ppl_vae.distributions.context import batch_of, rows_of

__all__ = ["Autoregressive", "Conditionals"]


class Conditionals(Protocol):
    """All laws p(x_i | x_<i, context) at once, and draws one by one: `nn.CausalNetwork`."""

    @property
    def shape(self) -> torch.Size:
        """Of one datum."""
        ...

    def __call__(self, x: Tensor, context: Tensor | None = None, /) -> TorchDistribution:
        """The law of each element given those of x before it: batch shape (...), event shape `shape`."""
        ...

    def parameters(self) -> Iterator[Tensor]:
        """At least one, of the device and the type of the data."""
        ...

    def draw(
        self,
        number: int,
        context: Tensor | None = None,
        *,
        known: Tensor | None = None,
        given: Tensor | None = None,
        progress: bool = False,
    ) -> Tensor:
        """So many draws, (N, *shape), for context (N, F), of which elements that are given take their known values."""
        ...


@final
class Autoregressive(TorchDistribution):
    """p(x | context) = prod_i p(x_i | x_<i, context), from a causal network.

    `log_prob` is one pass of the network, exact and differentiable in its parameters and in the context. `sample` goes
    element by element, and records no gradient. There is no mean: it would take a sum over all x.

    Args:
        network: the conditionals; its parameters train with the module that owns it.
        context: what else is known, (*batch_shape, F); None for nothing.
        batch_shape: where there is no context.
        validate_args: whether to check values, as in `torch.distributions`.

    Raises:
        ValueError: both a context and a batch shape; with validation on, values outside the conditionals' support.

    References:
        Pixel recurrent neural networks, van den Oord, Kalchbrenner & Kavukcuoglu 2016, eq. 1.

    Example:
        >>> from ppl_vae.nn import BernoulliHead, CausalNetwork, PixelCNN
        >>> head = BernoulliHead((1, 4, 4))
        >>> p = Autoregressive(CausalNetwork(PixelCNN(head.raw_shape, hidden=2, blocks=1), head))
        >>> p.log_prob(p.sample((5,))).shape
        torch.Size([5])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}  # pyright: ignore
    has_rsample = False

    def __init__(
        self,
        network: Conditionals,
        context: Tensor | None = None,
        batch_shape: _size = (),
        validate_args: bool | None = None,
    ) -> None:
        self.network, self.context = network, context
        super().__init__(batch_of(context, batch_shape), network.shape, validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """That of the conditionals, whatever they are given."""
        x, context = next(iter(self.network.parameters())).new_zeros(1, *self.event_shape), self.context
        with torch.no_grad():
            return self.network(x, None if context is None else context.reshape(-1, context.shape[-1])[:1]).support

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value | context), one pass, (...)."""
        law = self.network(value, self.context)
        if self._validate_args:
            law._validate_sample(value)
        log_prob = law.log_prob(value)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Draws, (*sample_shape, *batch_shape, *event_shape)."""
        return self._drawn(torch.Size(sample_shape) + self.batch_shape)

    def complete(self, x: Tensor, given: Tensor, sample_shape: _size = (), *, progress: bool = False) -> Tensor:
        """Draws in which some elements keep their values, (*sample_shape, *batch_shape, *event_shape).

        The others are drawn in order, each given those before it: where all that is given comes before all that is
        not, as the upper half of an image, draws are from the law of the rest given that part.

        Args:
            x: (*batch_shape, *event_shape), of which values that are not given do not count.
            given: which elements are, bool, of a shape that expands to that of x.
            sample_shape: so many draws for each.
            progress: show a bar.
        """
        lead = torch.Size(sample_shape) + self.batch_shape
        shape = lead + self.event_shape
        known, kept = (part.expand(shape).reshape(-1, *self.event_shape) for part in (x, given))
        return self._drawn(lead, known=known, given=kept, progress=progress)

    @torch.no_grad()
    def _drawn(self, lead: torch.Size, **options: Any) -> Tensor:
        drawn = self.network.draw(lead.numel(), rows_of(self.context, lead), **options)
        return drawn.view(*lead, *self.event_shape)

    def expand(self, batch_shape: _size, _instance: None = None) -> "Autoregressive":
        """The same with a larger batch shape (a view)."""
        if self.context is None:
            new = Autoregressive(self.network, batch_shape=batch_shape, validate_args=False)
        else:
            new = Autoregressive(self.network, self.context.expand(*batch_shape, -1), validate_args=False)
        new._validate_args = self._validate_args
        return new
