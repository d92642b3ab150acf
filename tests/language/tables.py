"""A network whose laws are rows of a random table, and all sentences that it can say."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ppl_vae.language import WordByWord, greedy

END = 1


class Table(nn.Module):
    """Logits of the next word: a row of its own for every beginning, plus what the context says there.

    What is known: which beginning it is, (N,), and the context.
    """

    def __init__(self, vocabulary: int = 4, length: int = 4, context_dim: int | None = None) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.table = nn.Parameter(1.5 * torch.randn(vocabulary**length, vocabulary - 1, dtype=torch.float64))
        self.mixed = torch.randn(vocabulary**length, context_dim or 0, vocabulary - 1, dtype=torch.float64)

    def begin(self, number: int, context: Tensor | None = None) -> tuple[Tensor, ...]:
        return torch.zeros(number, dtype=torch.int64), torch.zeros(number, 0).double() if context is None else context

    def step(self, words: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        beginning, context = state
        beginning = (beginning * self.vocabulary + words) % len(self.table)
        logits = self.table[beginning] + (context.unsqueeze(1) @ self.mixed[beginning]).squeeze(1)
        return logits, (beginning, context)

    @torch.no_grad()
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
        return drawn(self, number, context, length, choose or greedy)


@torch.no_grad()
def drawn(
    network: WordByWord, number: int, context: Tensor | None, length: int, choose: Callable[[Tensor], Tensor]
) -> Tensor:
    """Word after word, (N, L)."""
    words, last, state = [], torch.zeros(number, dtype=torch.int64), network.begin(number, context)
    for _ in range(length):
        logits, state = network.step(last, state)
        chosen = choose(logits) + 1
        last = chosen.where((last != END) & ((last != 0) | (len(words) == 0)), 0)
        words.append(last)
    return torch.stack(words, 1)


@torch.no_grad()
def log_prob(network: WordByWord, words: Tensor, context: Tensor | None = None) -> Tensor:
    """log p(words | context), step by step, (N,) for words (N, L) padded with 0."""
    total, last, state = 0.0, torch.zeros(len(words), dtype=torch.int64), network.begin(len(words), context)
    for word in words.T:
        logits, state = network.step(last, state)
        terms = logits.log_softmax(-1).gather(1, (word - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        total, last = total + terms.where(word != 0, 0.0), word
    assert isinstance(total, Tensor)
    return total


def sentences(vocabulary: int, length: int) -> Tensor:
    """All that end within so many words, and all that are cut there, (S, L)."""
    rows, beginnings = [], [[]]
    for _ in range(length):
        rows += [[*words, END] for words in beginnings]
        beginnings = [[*words, word] for words in beginnings for word in range(2, vocabulary)]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows + beginnings])
