"""Numbers of sentences: how like others they are, and how well a model foresees them."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.nn import as_size

__all__ = ["Perplexity", "bleu", "perplexity"]

Sentence = str | Sequence[str]


def bleu(candidates: Sequence[Sentence], references: Sequence[Sequence[Sentence]], n: int = 4) -> float:
    """BLEU of a corpus, in [0, 1]: the geometric mean of k-grams' precisions, k = 1 to n, times a brevity penalty.

    BP * exp(1/n sum_k log p_k),  BP = min(1, exp(1 - r / c)): c is how many words the candidates have together, and r
    that of the references, each time the one whose length is nearest (of two the shorter). In p_k a k-gram counts at
    most as often as in that reference that has it most. Counts are of all candidates together, not smoothed: with no
    k-gram in common, for any k, BLEU is 0, as it is where no candidate has n words.

    Args:
        candidates: sentences: texts, which are split at spaces, or lists of words; without end marks.
        references: for each candidate one or several sentences, a list in any case, all of the candidates' kind.
        n: length of the longest k-grams.

    Raises:
        ValueError: no candidates, another number of references, one without any, texts beside lists of words, or n
            below 1.

    References:
        BLEU: a method for automatic evaluation of machine translation, Papineni et al. 2002, section 2.

    Example:
        >>> references = [["the cat is on the mat", "there is a cat on the mat"]]
        >>> round(bleu(["the the the the the the the"], references, n=1), 4)  # 2/7
        0.2857
    """
    as_size(n, "n")
    _check_corpus(candidates, references)
    matched, total, words, nearest = [0] * n, [0] * n, 0, 0
    for candidate, others in zip(map(_words, candidates), references, strict=True):
        several = [_words(other) for other in others]
        words += len(candidate)
        nearest += min((len(other) for other in several), key=lambda size: (abs(size - len(candidate)), size))
        for k in range(n):
            counts = _ngrams(candidate, k + 1)
            most: Counter[tuple[str, ...]] = Counter()
            for other in several:
                most |= _ngrams(other, k + 1)  # the larger count of each
            matched[k] += (counts & most).total()  # the smaller
            total[k] += counts.total()
    if not all(matched):
        return 0.0
    precision = math.exp(sum(math.log(m / t) for m, t in zip(matched, total, strict=True)) / n)
    return precision * min(1.0, math.exp(1 - nearest / words))


@dataclass(frozen=True)
class Perplexity:
    """exp of the nats for each word, where end marks count as words and where they don't.

    The literature has both, often without saying which. Nats are those of words and end marks together in both, so
    that the second is the higher.

    Args:
        nats: -log p of all sentences together, or an upper bound of it: then these are upper bounds too.
        tokens: all words together, end marks among them.
        sentences: how many, each with one end mark.

    Example:
        >>> print(Perplexity(nats=40.0, tokens=10, sentences=2))
        54.6 per word, end marks counted (10 words); 148.4 per word, end marks not counted (8 words)
    """

    nats: float
    tokens: int
    sentences: int

    @property
    def words(self) -> int:
        """Without the end marks."""
        return self.tokens - self.sentences

    @property
    def with_end(self) -> float:
        """exp(nats / tokens)."""
        return _exp(self.nats / self.tokens)

    @property
    def without_end(self) -> float:
        """exp(nats / words); infinite where no sentence has a word."""
        return _exp(self.nats / self.words) if self.words else math.inf

    def as_dict(self) -> dict[str, float]:
        """Plain values, ready for JSON."""
        return {
            "with_end": self.with_end,
            "without_end": self.without_end,
            "nats": self.nats,
            "tokens": self.tokens,
            "sentences": self.sentences,
        }

    def describe(self) -> str:
        """Both, and what they are divided by."""
        return (
            f"{self.with_end:.1f} per word, end marks counted ({self.tokens} words); "
            f"{self.without_end:.1f} per word, end marks not counted ({self.words} words)"
        )

    def __str__(self) -> str:
        return self.describe()


def perplexity(nll: Tensor, tokens: Tensor) -> Perplexity:
    """Perplexity per word of some sentences.

    Args:
        nll: -log p of each sentence, (N,) nats, or an upper bound of it, as the negative ELBO.
        tokens: words of each sentence, its end mark among them, (N,): `(x != 0).sum(-1)`.

    Raises:
        ValueError: other shapes, no sentences, or one without any word.

    Example:
        >>> round(perplexity(torch.tensor([20.0, 20.0]), torch.tensor([6, 4])).with_end, 3)
        54.598
    """
    if nll.dim() != 1 or nll.shape != tokens.shape or not len(nll):
        raise ValueError(
            f"got nll {tuple(nll.shape)} and tokens {tuple(tokens.shape)}, expected (N,) both, of a sentence at least; "
            "give one number for each sentence"
        )
    if tokens.min() < 1:
        raise ValueError(
            f"tokens: got a sentence of {tokens.min().item()} words, expected 1 at least, its end mark; leave it out"
        )
    return Perplexity(nll.double().sum().item(), int(tokens.sum()), len(tokens))


def _words(sentence: Sentence) -> list[str]:
    return sentence.split() if isinstance(sentence, str) else list(sentence)


def _ngrams(words: list[str], k: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(k)), strict=False))


def _check_corpus(candidates: Sequence[Sentence], references: Sequence[Sequence[Sentence]]) -> None:
    if isinstance(candidates, str) or not len(candidates) or len(candidates) != len(references):
        number = "one text" if isinstance(candidates, str) else f"{len(candidates)} candidates"
        raise ValueError(
            f"got {number} and references of {len(references)}, expected a list of candidates and, for each of them, "
            "a list of references"
        )
    kinds = _kinds(candidates)
    for row, others in enumerate(references):
        if isinstance(others, str) or not len(others):
            raise ValueError(f"references[{row}]: got {others!r}, expected a list of one or more; put it into a list")
        # A list of words would else pass for several references of a word each.
        if len(kinds | _kinds(others)) > 1:
            raise ValueError(
                f"references[{row}]: got texts beside lists of words, expected one kind throughout; a reference that "
                "is a list of words stands in a list as well"
            )


def _kinds(sentences: Iterable[Sentence]) -> set[bool]:
    return {isinstance(sentence, str) for sentence in sentences}


def _exp(nats: float) -> float:
    return torch.tensor(nats, dtype=torch.float64).exp().item()  # math.exp has no inf
