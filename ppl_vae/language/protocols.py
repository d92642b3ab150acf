"""What this room asks of networks and pairs of sentences: no more than it uses."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from torch import Tensor

__all__ = ["LanguagePair", "TextPair", "WordByWord"]


class WordByWord(Protocol):
    """The law of each word given those before it and a context: `nn.WordNetwork`.

    Ids: 0 is padding and never drawn, 1 ends a sentence, 2 is the unknown word.
    """

    @property
    def vocabulary(self) -> int:
        """V, how many ids there are."""
        ...

    def parameters(self) -> Iterator[Tensor]:
        """At least one, on the device of the words."""
        ...

    def begin(self, number: int, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """What is known before the first word, for N rows and context (N, F): tensors of N rows each."""
        ...

    def step(self, words: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits (N, V - 1) of ids 1 to V - 1, and what is then known, for the last words (N,), 0 before the first."""
        ...

    def draw(
        self,
        number: int,
        context: Tensor | None = None,
        *,
        length: int,
        choose: Callable[[Tensor], Tensor] | None = None,
        given: Tensor | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Sentences (N, length), padded with 0; `choose` takes logits (N, V - 1) to an index each, (N,)."""
        ...


class LanguagePair(Protocol):
    """A `Pair` of sentences (B, L), with or without latent variables."""

    @property
    def network(self) -> WordByWord:
        """The law of each word."""
        ...

    @property
    def data_shape(self) -> Sequence[int]:
        """(L,), words of the longest sentence."""
        ...


class TextPair(LanguagePair, Protocol):
    """One whose guide draws a site "z" of event shape (D,)."""

    def context(self, z: Tensor) -> Tensor:
        """What the network is told, (N, F), for z (N, D)."""
        ...
