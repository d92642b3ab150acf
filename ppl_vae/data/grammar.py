"""Grammars whose sentences can be drawn, weighed and counted: their entropy is known in closed form."""

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ppl_vae.data.dataset import DataError

Rules = Mapping[str, Mapping[tuple[str, ...], float]]
"""Of each symbol: what it becomes, and with which probability. What is no symbol is a word."""


@dataclass(frozen=True)
class Grammar:
    """A probabilistic context-free grammar without recursion, so that its sentences can be counted.

        p(sentence) = product of the probabilities of the rules that make it;  each sentence is made in one way.

    That each sentence is made in one way is up to the rules; the closed forms below rely on it.

    Args:
        rules: see `Rules`.
        start: the symbol that becomes a sentence.

    Raises:
        DataError: probabilities that are not positive or do not add up to 1, or a symbol that may become itself.

    Example:
        >>> coin = Grammar({"S": {("heads",): 0.5, ("tails", "S2"): 0.5}, "S2": {("again",): 0.5, ("end",): 0.5}})
        >>> coin.log_prob("tails again") == math.log(0.25), coin.entropy() == 1.5 * math.log(2)
        (True, True)
    """

    rules: Rules
    start: str = "S"

    def __post_init__(self) -> None:
        for symbol, choices in self.rules.items():
            if min(choices.values()) <= 0 or not math.isclose(sum(choices.values()), 1.0):
                got = list(choices.values())
                raise DataError(f"{symbol}: got probabilities {got}, expected positive ones of sum 1; rescale them")
        self._check_depth(self.start, ())

    def _check_depth(self, symbol: str, above: tuple[str, ...]) -> None:
        if symbol in above:
            path = " -> ".join((*above, symbol))
            raise DataError(f"got the recursive rules {path}, expected none that end where they begin; take one out")
        for children in self.rules.get(symbol, {}):
            for child in children:
                self._check_depth(child, (*above, symbol))

    @property
    def words(self) -> tuple[str, ...]:
        """The words of all sentences, by the alphabet."""
        return tuple(sorted({word for x in self.rules.values() for xs in x for word in xs} - self.rules.keys()))

    def draw(self, number: int, seed: int) -> list[str]:
        """Independent sentences; more of them with the same seed begin with the same."""
        generator = random.Random(seed)  # its random() is the same in every version of Python
        return [" ".join(self._drawn(self.start, generator)) for _ in range(number)]

    def _drawn(self, symbol: str, generator: random.Random) -> Iterator[str]:
        if symbol not in self.rules:
            yield symbol
            return
        for child in _choice(self.rules[symbol], generator.random()):
            yield from self._drawn(child, generator)

    def entropy(self) -> float:
        """H of a sentence in nats: H(A) = sum over A's rules r of p_r (-log p_r + sum of the H of what r makes)."""
        return self._entropy(self.start)

    def _entropy(self, symbol: str) -> float:
        choices = self.rules.get(symbol, {})
        return sum(p * (sum(map(self._entropy, children)) - math.log(p)) for children, p in choices.items())

    def log_prob(self, sentence: str) -> float:
        """log p of a sentence in nats; -inf of one that the grammar never makes."""
        words = sentence.split()
        p = self._ends(self.start, words, 0).get(len(words), 0.0)
        return math.log(p) if p else -math.inf

    def _ends(self, symbol: str, words: list[str], start: int) -> Mapping[int, float]:
        """Where a symbol may end that begins at a word, and how probable it is to become what stands in between."""
        if symbol not in self.rules:
            return {start + 1: 1.0} if start < len(words) and words[start] == symbol else {}
        ends = Counter[int]()
        for children, p in self.rules[symbol].items():
            reached = {start: p}
            for child in children:
                further = Counter[int]()
                for place, q in reached.items():
                    further.update({end: q * r for end, r in self._ends(child, words, place).items()})
                reached = further
            ends.update(reached)
        return ends

    def sentences(self) -> Iterator[tuple[str, float]]:
        """All sentences and their probabilities, each as often as there are ways to make it."""
        for words, p in self._all((self.start,)):
            yield " ".join(words), p

    def _all(self, symbols: tuple[str, ...]) -> list[tuple[tuple[str, ...], float]]:
        if not symbols:
            return [((), 1.0)]
        first, rest = symbols[0], self._all(symbols[1:])
        choices = self.rules.get(first)
        heads = [((first,), 1.0)] if choices is None else self._chosen(choices)
        return [(head + tail, p * q) for head, p in heads for tail, q in rest]

    def _chosen(self, choices: Mapping[tuple[str, ...], float]) -> list[tuple[tuple[str, ...], float]]:
        return [(words, p * q) for children, p in choices.items() for words, q in self._all(children)]


def _choice(choices: Mapping[tuple[str, ...], float], uniform: float) -> tuple[str, ...]:
    """The choice at a quantile."""
    *others, last = choices  # the last takes what rounding may leave of 1
    for children in others:
        uniform -= choices[children]
        if uniform < 0:
            return children
    return last
