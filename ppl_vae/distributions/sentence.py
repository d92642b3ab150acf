"""Sentences, word by word until their end, as one distribution."""

from typing import Any, ClassVar, Protocol, final

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size

from ppl_vae.distributions.context import batch_of, rows_of

__all__ = ["Sentence", "WordLaws"]

PADDING, END = 0, 1


class WordLaws(Protocol):
    """The laws p(x_t | x_<t, c) of words, all at once and one by one: `nn.WordNetwork`."""

    @property
    def vocabulary(self) -> int:
        """V, how many ids there are: 0 is padding, 1 ends a sentence."""
        ...

    def log_prob(self, words: Tensor, context: Tensor | None = None) -> Tensor:
        """log p(x_t | x_<t, c) of each word, 0 of padding, (..., L)."""
        ...

    def draw(self, number: int, context: Tensor | None = None, *, length: int) -> Tensor:
        """So many sentences, (N, length), for context (N, D)."""
        ...


class _Sentences(constraints.Constraint):
    """Rows of ids: one word at least, none behind an end mark, and then padding."""

    is_discrete = True
    event_dim = 1

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each row is one, (...)."""
        is_word = value != PADDING
        may_follow = is_word[..., :-1] & (value[..., :-1] != END)
        in_order = (may_follow | ~is_word[..., 1:]).all(-1)
        return in_order & is_word[..., 0] & ((value >= 0) & (value < self.vocabulary)).all(-1)


@final
class Sentence(TorchDistribution):
    """p(x | c) = prod_t p(x_t | x_<t, c) over the words of a sentence, the mark that ends it among them.

    A value is a row of L ids, padded with 0 behind its words; padding has probability one, so that a row's log_prob
    does not depend on how wide its batch is. A row without an end mark is the beginning of a sentence, and its
    probability that of all sentences that begin so. Ended rows and those cut after L words add up to 1.

    Args:
        laws: of each word; its parameters train with the module that owns it.
        context: c, (*batch_shape, D); None for nothing.
        length: L.
        batch_shape: where there is no context.
        validate_args: whether to check values, as in `torch.distributions`.

    Raises:
        ValueError: both a context and a batch shape; with validation on, ids that are no words, or words behind an end.

    References:
        Generating sentences from a continuous space, Bowman et al. 2016, section 2.1.

    Example:
        >>> from ppl_vae.nn import WordNetwork
        >>> p = Sentence(WordNetwork(9, embedding=3, hidden=4), length=5)
        >>> p.log_prob(p.sample((7,))).shape
        torch.Size([7])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}  # pyright: ignore
    has_rsample = False

    def __init__(
        self,
        laws: WordLaws,
        context: Tensor | None = None,
        *,
        length: int,
        batch_shape: _size = (),
        validate_args: bool | None = None,
    ) -> None:
        self.laws, self.context = laws, context
        super().__init__(batch_of(context, batch_shape), torch.Size([length]), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Rows of words that end."""
        return _Sentences(self.laws.vocabulary)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value | c), one pass, (...)."""
        if self._validate_args:
            self._validate_sample(value)
        log_prob = self.laws.log_prob(value, self.context).sum(-1)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Draws, (*sample_shape, *batch_shape, L)."""
        lead, length = torch.Size(sample_shape) + self.batch_shape, self.event_shape[0]
        return self.laws.draw(lead.numel(), rows_of(self.context, lead), length=length).view(*lead, length)

    def expand(self, batch_shape: _size, _instance: None = None) -> "Sentence":
        """The same with a larger batch shape (a view)."""
        length = self.event_shape[0]
        if self.context is None:
            new = Sentence(self.laws, length=length, batch_shape=batch_shape, validate_args=False)
        else:
            new = Sentence(self.laws, self.context.expand(*batch_shape, -1), length=length, validate_args=False)
        new._validate_args = self._validate_args
        return new
