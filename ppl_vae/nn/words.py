"""Sentences word by word: what is read of one, and the law of each word given those before it."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ppl_vae.distributions import at_least_float32
from ppl_vae.distributions.context import batch_of, rows_of
from ppl_vae.nn.shapes import as_size

__all__ = ["END", "UNKNOWN", "Cell", "Highway", "Summary", "Told", "WordNetwork", "WordReader", "WordState"]

PADDING, END, UNKNOWN = 0, 1, 2
"""Ids that are no words of their own: nothing, the end of a sentence, and the word that stands for all others."""

BLOCK = 2**20
"""So many logits are at hand at once where no gradient asks for all of them."""

Cell = Literal["lstm", "gru"]
Told = Literal["first", "every", "both"]
Summary = Literal["last", "mean"]
WordState = tuple[Tensor, ...]
"""What is known after some words: tensors of N rows each."""


class Highway(nn.Module):
    """x -> g * relu(W x + b) + (1 - g) * x,  g = sigmoid(W' x + b'), so many times.

    Args:
        size: of x.
        layers: how many.

    References:
        Highway networks, Srivastava, Greff & Schmidhuber 2015, eq. 3; gates begin nearly closed, b' = -1.

    Example:
        >>> Highway(4, layers=2)(torch.zeros(3, 4)).shape
        torch.Size([3, 4])
    """

    def __init__(self, size: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, 2 * size) for _ in range(layers))
        for layer in self.layers:
            nn.init.constant_(layer.bias[size:], -1.0)  # pyright: ignore[reportArgumentType, reportIndexIssue]

    def forward(self, x: Tensor) -> Tensor:
        """x of shape (..., size)."""
        for layer in self.layers:
            change, gate = layer(x).chunk(2, -1)
            x = torch.lerp(x, change.relu(), gate.sigmoid())
        return x


class WordReader(nn.Module):
    """Words (B, L), padded with 0 on the right -> what a recurrent network knows of them, (B, H).

    Args:
        vocabulary: V, how many ids there are, that of the padding among them.
        embedding: size of a word's vector.
        hidden: H.
        cell: "lstm" or "gru".
        summary: of the network's states: the "last", behind the last word, or the "mean" over all words.
        dropout: probability that a number of a word's vector is set to 0 in training.
        highway: highway layers behind it.

    Raises:
        ValueError: an unknown cell or summary, or sizes below 1.

    Example:
        >>> WordReader(9, embedding=3, hidden=4)(torch.tensor([[3, 4, 1], [5, 1, 0]])).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        vocabulary: int,
        embedding: int,
        hidden: int,
        *,
        cell: Cell = "lstm",
        summary: Summary = "last",
        dropout: float = 0.0,
        highway: int = 0,
    ) -> None:
        super().__init__()
        if summary not in ("last", "mean"):
            raise ValueError(f"summary: got {summary!r}, expected one of last, mean")
        self.embed = nn.Embedding(as_size(vocabulary, "vocabulary"), as_size(embedding, "embedding"))
        self.cell = _cell(cell)(embedding, as_size(hidden, "hidden"), batch_first=True)
        self.summary, self.dropout, self.highway = summary, nn.Dropout(dropout), Highway(hidden, highway)

    def forward(self, words: Tensor) -> Tensor:
        """Read words (B, L) int64."""
        states = self.cell(self.dropout(self.embed(words)))[0]
        is_word, place = words != PADDING, torch.arange(words.shape[-1], device=words.device)
        number = is_word.sum(-1, keepdim=True)
        weights = is_word.to(states) / number if self.summary == "mean" else (place == number - 1).to(states)
        return self.highway((weights.unsqueeze(-2) @ states).squeeze(-2))


class WordNetwork(nn.Module):
    """p(x_t | x_<t, c) for the words of a sentence, by a recurrent network that is told c.

    Ids: 0 is padding and never drawn, 1 ends a sentence, 2 is the unknown word. In training each word that the network
    sees (never one that it is asked for) is replaced by the unknown one with probability 1 - keep; in evaluation none
    is, but for keep = 0: such a network sees no words at all, ever.

    Args:
        vocabulary: V, how many ids there are.
        embedding: size of a word's vector.
        hidden: H.
        context_dim: D, the size of c; None where there is none.
        told: c sets the "first" state, is an input beside "every" word, or "both".
        cell: "lstm" or "gru".
        keep: probability that a word is seen, in [0, 1].
        dropout: probability that a number is set to 0 in training, in words' vectors and before the last layer.
        highway: highway layers between c and the network.

    Raises:
        ValueError: an unknown cell or way to be told, sizes below 1, keep outside [0, 1].

    References:
        Generating sentences from a continuous space, Bowman et al. 2016, sections 2.1 and 3.1.

    Example:
        >>> network = WordNetwork(9, embedding=3, hidden=4, context_dim=2)
        >>> network(torch.tensor([[3, 4, 1], [5, 1, 0]]), torch.zeros(7, 2, 2)).shape
        torch.Size([7, 2, 3, 8])
    """

    def __init__(
        self,
        vocabulary: int,
        embedding: int,
        hidden: int,
        context_dim: int | None = None,
        *,
        told: Told = "both",
        cell: Cell = "lstm",
        keep: float = 1.0,
        dropout: float = 0.0,
        highway: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= keep <= 1:
            raise ValueError(f"keep: got {keep}, expected a probability, 0 to 1")
        if told not in ("first", "every", "both"):
            raise ValueError(f"told: got {told!r}, expected one of first, every, both")
        self.vocabulary, self.keep, self.context_dim = as_size(vocabulary, "vocabulary"), keep, context_dim
        beside = 0 if context_dim is None or told == "first" else context_dim
        self.embed = nn.Embedding(vocabulary, as_size(embedding, "embedding"))
        self.cell = _cell(cell)(embedding + beside, as_size(hidden, "hidden"), batch_first=True)
        self.highway = Highway(context_dim or 0, highway if context_dim else 0)
        self.first = None
        if context_dim is not None and told != "every":
            self.first = nn.Linear(context_dim, hidden * (2 if cell == "lstm" else 1))
        self.has_beside, self.dropout = beside > 0, nn.Dropout(dropout)
        self.out = nn.Linear(hidden, vocabulary - 1)

    def forward(self, words: Tensor, context: Tensor | None = None) -> Tensor:
        """All laws at once: logits (..., L, V - 1) of ids 1 to V - 1, for words (..., L) and context (..., D).

        Those at t depend on the words before t alone; leading dims are broadcast.

        Raises:
            ValueError: a context of another size, or none where there is one, or the reverse.
        """
        return self.out(self._states(words, context))

    def log_prob(self, words: Tensor, context: Tensor | None = None) -> Tensor:
        """log p(x_t | x_<t, c) of each word, 0 of padding, (..., L), for words (..., L) and context (..., D).

        Without gradients logits are made in blocks, and of padding none at all (on a GPU, where to find the words would
        be to wait for it, of all): sentences by the thousand need little memory.

        Raises:
            ValueError: as `forward`.
        """
        states = self._states(words, context)
        targets = (words - 1).expand(states.shape[:-1])
        if torch.is_grad_enabled():
            return self._scores(states.flatten(0, -2), targets.flatten()).view(targets.shape)
        at = slice(None) if states.is_cuda else targets.flatten() >= 0
        rows, asked = states.flatten(0, -2)[at], targets.flatten()[at]
        size = max(1, BLOCK // self.vocabulary)
        found = [self._scores(*part) for part in zip(rows.split(size), asked.split(size), strict=True)]
        log_prob = states.new_zeros(targets.numel())
        log_prob[at] = torch.cat(found).to(log_prob)
        return log_prob.view(targets.shape)

    def begin(self, number: int, context: Tensor | None = None) -> WordState:
        """What is known before the first word, for N rows and context (N, D)."""
        self._check(context)
        told = None if context is None else self.highway(context)
        parts = 2 if isinstance(self.cell, nn.LSTM) else 1
        if self.first is not None:
            state = self.first(told).chunk(parts, -1)
        else:
            state = self.out.weight.new_zeros(number, parts * self.cell.hidden_size).chunk(parts, -1)
        return (*state, *([told] if self.has_beside and told is not None else []))

    def step(self, words: Tensor, state: WordState) -> tuple[Tensor, WordState]:
        """The law of the next word: logits (N, V - 1) of ids 1 to V - 1, and what is known then.

        Args:
            words: the last ones, (N,); 0 before the first.
            state: what was known before them.
        """
        words = words if self.keep else torch.full_like(words, UNKNOWN)
        states, state = self._run(self.embed(words).unsqueeze(1), state)
        return self.out(self.dropout(states)).squeeze(1), state

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
        """Sentences, word by word until their end, (N, length) int64, padded with 0; longer ones are cut.

        Args:
            number: N.
            context: (N, D).
            length: the most words, the end mark among them.
            choose: from logits (N, V - 1) to an index each, (N,); a draw by default.
            given: the first words of each, (N, P), padded with 0.
            progress: show a bar.
        """
        choose, state = choose or _drawn, self.begin(number, context)
        words = torch.zeros(number, length, dtype=torch.int64, device=self.out.weight.device)
        last, goes_on = words.new_zeros(number), words.new_ones(number, dtype=torch.bool)
        for t in tqdm(range(length), disable=not progress, unit="word", desc="draw"):
            logits, state = self.step(last, state)
            chosen = choose(logits) + 1
            if given is not None and t < given.shape[1]:
                chosen = torch.where(given[:, t] != PADDING, given[:, t].to(chosen), chosen)
            words[:, t] = last = torch.where(goes_on, chosen, PADDING)
            goes_on = goes_on & (last != END)
            if t % 8 == 7 and not goes_on.any():  # seldom: on a GPU it waits for the device
                break
        return words

    def _seen(self, words: Tensor) -> Tensor:
        """What the network sees before each word, (..., L): the word before it, 0 before the first."""
        before = words[..., :-1]
        if self.keep == 0:
            before = torch.full_like(before, UNKNOWN)
        elif self.training and self.keep < 1:
            before = torch.where(torch.rand(before.shape, device=words.device) < self.keep, before, UNKNOWN)
        first = words.new_full((*words.shape[:-1], 1), PADDING if self.keep else UNKNOWN)
        return torch.cat([first, before], -1)

    def _scores(self, states: Tensor, targets: Tensor) -> Tensor:
        """log p of indices (N,), 0 for -1, from states (N, H)."""
        logits = at_least_float32(self.out(states))
        return -F.cross_entropy(logits, targets, ignore_index=-1, reduction="none")

    def _states(self, words: Tensor, context: Tensor | None) -> Tensor:
        """What the last layer sees before each word, (..., L, H)."""
        self._check(context)
        lead = torch.broadcast_shapes(words.shape[:-1], batch_of(context))
        x = self.embed(self._seen(words))
        x = x.expand(*lead, *x.shape[-2:]).reshape(-1, *x.shape[-2:])
        states = self.dropout(self._run(x, self.begin(len(x), rows_of(context, lead)))[0])
        return states.view(*lead, *states.shape[1:])

    def _run(self, x: Tensor, state: WordState) -> tuple[Tensor, WordState]:
        """States (N, L, H) over words' vectors (N, L, E), and what is known at the end."""
        memory, told = (state[:-1], state[-1:]) if self.has_beside else (state, ())
        x = self.dropout(x)
        if told:
            x = torch.cat([x, told[0].unsqueeze(1).expand(-1, x.shape[1], -1)], -1)
        layers = tuple(part.unsqueeze(0).contiguous() for part in memory)
        states, after = self.cell(x, layers if isinstance(self.cell, nn.LSTM) else layers[0])
        after = after if isinstance(after, tuple) else (after,)
        return states, (*(part.squeeze(0) for part in after), *told)

    def _check(self, context: Tensor | None) -> None:
        got = None if context is None else context.shape[-1]
        if got != self.context_dim:
            raise ValueError(f"context: got size {got}, expected {self.context_dim}, the network's context_dim")


def _drawn(logits: Tensor) -> Tensor:
    # By the inverse distribution function: `torch.multinomial` would wait for the device at each word.
    up_to = logits.double().softmax(-1).cumsum(-1)
    u = torch.rand(len(logits), 1, dtype=up_to.dtype, device=up_to.device)
    return (up_to <= u * up_to[:, -1:]).sum(-1)


def _cell(name: Cell) -> Any:
    if name not in ("lstm", "gru"):
        raise ValueError(f"cell: got {name!r}, expected one of lstm, gru")
    return nn.LSTM if name == "lstm" else nn.GRU
