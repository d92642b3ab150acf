"""Captions as rows of word ids, and the words they are made of."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from ppl_vae.data.dataset import DataError

PADDING = 0
"""The id that is no word."""

_TOKEN = re.compile(r"\S+?(?=[.,]*(?:\s|$))")  # a word without the stops at its end, or one of those stops


def tokens(text: str) -> list[str]:
    """The words of a caption in lower case; each "." and "," at a word's end is a word of its own.

    Example:
        >>> tokens("A red three, 3.5 wide.")
        ['a', 'red', 'three', ',', '3.5', 'wide', '.']
    """
    return _TOKEN.findall(text.lower())


@dataclass(frozen=True)
class Vocabulary:
    """Words and their ids: 0 is padding, the words are 1, 2, ... in the order given.

    Its length is the number of ids, padding included: the rows of an embedding.

    Args:
        words: as `tokens` gives them, each once.
        unknown: the one of `words` that stands for all others; None makes another word an error.

    Raises:
        DataError: no words, one twice, one that `tokens` would never give, `unknown` not among them.

    Example:
        >>> words = Vocabulary(("a", "red", "seven", "."))
        >>> words.encode(["A red seven.", "a seven"])
        tensor([[1, 2, 3, 4],
                [1, 3, 0, 0]])
        >>> words.decode(torch.tensor([1, 3, 0, 0])), len(words)
        (['a seven'], 5)
    """

    words: tuple[str, ...]
    unknown: str | None = None

    def __post_init__(self) -> None:
        if not self.words:
            raise DataError("got a vocabulary of no words, expected at least one; give captions that have some")
        for word, count in Counter(self.words).items():
            if count > 1:
                raise DataError(f"got the word {word!r} {count} times, expected each once; drop the others")
            if tokens(word) != [word]:
                raise DataError(
                    f"got the word {word!r}, which splits into {tokens(word)}, expected one word in lower case; "
                    "give each of these words alone"
                )
        if self.unknown is not None and self.unknown not in self.words:
            raise DataError(f"got unknown={self.unknown!r}, expected one of the words; add it to them")

    @classmethod
    def from_texts(
        cls, texts: Iterable[str], least: int = 1, limit: int | None = None, unknown: str | None = None
    ) -> Self:
        """The words of captions, the most frequent first, those as frequent as each other by the alphabet.

        Args:
            texts: captions.
            least: a word that occurs less often is left out.
            limit: at most so many words, besides `unknown`; None keeps all.
            unknown: stands for all words that are left out, e.g. "<unk>"; it is the first word.

        Raises:
            DataError: `least` or `limit` below 1, no word that occurs often enough, or an `unknown` that is not
                one word.

        Example:
            >>> Vocabulary.from_texts(["a cat .", "a dog .", "a bird ."], least=2, unknown="<unk>").words
            ('<unk>', '.', 'a')
        """
        for name, value in (("least", least), ("limit", limit)):
            if value is not None and value < 1:
                raise DataError(f"got {name}={value}, expected 1 or more; leave it out to keep all words")
        if isinstance(texts, str):
            texts = (texts,)
        counts = Counter(word for text in texts for word in tokens(text) if word != unknown)
        often = sorted((-count, word) for word, count in counts.items() if count >= least)
        words = tuple(word for _, word in often[:limit])
        if not words:
            raise DataError(f"got no word that occurs {least} times, expected at least one; give more captions")
        return cls(words if unknown is None else (unknown, *words), unknown)

    def __len__(self) -> int:
        return len(self.words) + 1

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each word."""
        return {word: i for i, word in enumerate(self.words, start=PADDING + 1)}

    def encode(self, texts: str | Sequence[str], length: int | None = None, *, strict: bool = False) -> Tensor:
        """Captions as ids.

        Args:
            texts: one caption or several; see `tokens` for what counts as a word.
            length: L, of all rows; None takes the longest caption's.
            strict: refuse an unknown word even where `unknown` could stand for it.

        Returns:
            (B, L) int64, padded on the right with 0.

        Raises:
            DataError: no captions, an empty one, one of more than L words, or an unknown word.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise DataError("got no captions, expected at least one; give a text or a list of them")
        rows = [self._row(text, strict) for text in texts]
        longest = max(rows, key=len)
        length = len(longest) if length is None else length
        if len(longest) > length:
            raise DataError(
                f"got a caption of {len(longest)} words, expected at most {length}: {texts[rows.index(longest)]!r}; "
                "shorten it or raise length"
            )
        return torch.tensor([row + [PADDING] * (length - len(row)) for row in rows])

    def _row(self, text: str, strict: bool) -> list[int]:
        words = tokens(text)
        if not words:
            raise DataError(f"got the empty caption {text!r}, expected at least one word; drop it, and its image")
        return [self._id(word, text, strict) for word in words]

    def _id(self, word: str, text: str, strict: bool) -> int:
        if word in self.ids:
            return self.ids[word]
        if self.unknown is not None and not strict:
            return self.ids[self.unknown]
        known = [candidate for candidate in self.words if candidate != self.unknown]
        nearest = ", ".join(map(repr, difflib.get_close_matches(word, known, n=3, cutoff=0.0)))
        otherwise = "" if strict else ", or a vocabulary with a word for the unknown ones"
        raise DataError(
            f"got the word {word!r} in {text!r}, expected one of the {len(known)} words of this vocabulary; "
            f"take one of the nearest ({nearest}){otherwise}"
        )

    def decode(self, ids: Tensor) -> list[str]:
        """Captions of ids: words apart by single spaces, without the padding.

        Args:
            ids: (B, L) int64, or one caption (L,).

        Raises:
            DataError: another shape or type, or an id that is no word's.
        """
        if ids.dim() not in (1, 2) or ids.dtype != torch.int64:
            raise DataError(f"got {tuple(ids.shape)} {ids.dtype}, expected (B, L) or (L,) torch.int64; convert the ids")
        rows: list[list[int]] = (ids if ids.dim() == 2 else ids[None]).tolist()
        if wrong := sorted({i for row in rows for i in row if not 0 <= i < len(self)}):
            raise DataError(
                f"got the ids {wrong[:5]}, expected 0 to {len(self) - 1}; decode with the vocabulary that encoded them"
            )
        return [" ".join(self.words[i - 1] for i in row if i != PADDING) for row in rows]
