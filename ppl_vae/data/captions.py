"""Texts as rows of word ids, and the words they are made of."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import torch
from torch import Tensor

from ppl_vae.data.dataset import DataError

PADDING = 0
"""The id that is no word."""

Split = Literal["caption", "spaces", "characters"]
"""How a text becomes words."""

_TOKEN = re.compile(r"\S+?(?=[.,]*(?:\s|$))")  # a word without the stops at its end, or one of those stops


def tokens(text: str, split: Split = "caption") -> list[str]:
    """The words of a text.

    Args:
        text: one caption, or one sentence.
        split: "caption": in lower case, and each "." and "," at a word's end is a word of its own; "spaces": what
            stands between white space, as it is; "characters": every one, spaces too.

    Example:
        >>> tokens("A red three, 3.5 wide.")
        ['a', 'red', 'three', ',', '3.5', 'wide', '.']
        >>> tokens("mr. N 's", "spaces"), tokens("A b", "characters")
        (['mr.', 'N', "'s"], ['A', ' ', 'b'])
    """
    return _SPLITS[split](text)


_SPLITS: Mapping[Split, Callable[[str], list[str]]] = {
    "caption": lambda text: _TOKEN.findall(text.lower()),
    "spaces": str.split,
    "characters": list,
}


@dataclass(frozen=True)
class Vocabulary:
    """Words and their ids: 0 is padding, the words are 1, 2, ... in the order given.

    Its length is the number of ids, padding included: the rows of an embedding.

    Args:
        words: as `tokens` gives them, each once.
        unknown: the one of `words` that stands for all others; None makes another word an error.
        split: how a text becomes words: see `tokens`.
        end: the one of `words` that stands behind each text, and in none; None has no such mark.

    Raises:
        DataError: no words, one twice, one that `tokens` would never give (of characters `unknown` and `end` may be
            longer), `unknown` or `end` not among them, both the same, or another split.

    Example:
        >>> words = Vocabulary(("a", "red", "seven", "."))
        >>> words.encode(["A red seven.", "a seven"])
        tensor([[1, 2, 3, 4],
                [1, 3, 0, 0]])
        >>> words.decode(torch.tensor([1, 3, 0, 0])), len(words)
        (['a seven'], 5)
        >>> letters = Vocabulary(("<eos>", "a", "b"), split="characters", end="<eos>")
        >>> letters.encode("abba"), letters.decode(letters.encode("abba"))
        (tensor([[2, 3, 3, 2, 1]]), ['abba'])
    """

    words: tuple[str, ...]
    unknown: str | None = None
    split: Split = "caption"
    end: str | None = None

    def __post_init__(self) -> None:
        _check(self)

    @property
    def _has_letters(self) -> bool:
        return self.split == "characters"

    def _is_mark(self, word: str) -> bool:
        return word in (self.unknown, self.end)

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        least: int = 1,
        limit: int | None = None,
        unknown: str | None = None,
        split: Split = "caption",
        end: str | None = None,
    ) -> Self:
        """The words of texts, the most frequent first, those as frequent as each other by the alphabet.

        Args:
            texts: captions, or sentences.
            least: a word that occurs less often is left out.
            limit: at most so many words, besides `unknown` and `end`; None keeps all.
            unknown: stands for all words that are left out, e.g. "<unk>"; it is the first word, or comes behind `end`.
                Where it is in the texts already it is that word, and counts for nothing else.
            split, end: as of the vocabulary; `end` is the first word.

        Raises:
            DataError: `least` or `limit` below 1, no word that occurs often enough, or an `unknown` or `end` that is
                not one word.

        Example:
            >>> Vocabulary.from_texts(["a cat .", "a dog .", "a bird ."], least=2, unknown="<unk>").words
            ('<unk>', '.', 'a')
        """
        for name, value in (("least", least), ("limit", limit)):
            if value is not None and value < 1:
                raise DataError(f"got {name}={value}, expected 1 or more; leave it out to keep all words")
        if isinstance(texts, str):
            texts = (texts,)
        counts = Counter(word for text in texts for word in tokens(text, split))
        marks = tuple(mark for mark in (end, unknown) if mark is not None)
        often = sorted((-count, word) for word, count in counts.items() if count >= least and word not in marks)
        words = tuple(word for _, word in often[:limit])
        if not words:
            raise DataError(f"got no word that occurs {least} times, expected at least one; give more texts")
        return cls((*marks, *words), unknown, split, end)

    def __len__(self) -> int:
        return len(self.words) + 1

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each word."""
        return {word: i for i, word in enumerate(self.words, start=PADDING + 1)}

    def encode(self, texts: str | Sequence[str], length: int | None = None, *, strict: bool = False) -> Tensor:
        """Texts as ids, each with the end mark behind it where there is one.

        Args:
            texts: one caption or sentence, or several; see `tokens` for what counts as a word.
            length: L, of all rows, end mark included; None takes the longest text's.
            strict: refuse an unknown word even where `unknown` could stand for it.

        Returns:
            (B, L) int64, padded on the right with 0.

        Raises:
            DataError: no texts, an empty one, one of more than L words, an unknown word, or the end mark in a text.
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
        words = tokens(text, self.split)
        if not words:
            raise DataError(f"got the empty caption {text!r}, expected at least one word; drop it, and its image")
        if self.end is None:
            return [self._id(word, text, strict) for word in words]
        if self.end in words:
            raise DataError(f"got the end mark {self.end!r} in {text!r}, expected none, since it is added; take it out")
        return [*(self._id(word, text, strict) for word in words), self.ids[self.end]]

    def _id(self, word: str, text: str, strict: bool) -> int:
        if word in self.ids:
            return self.ids[word]
        if self.unknown is not None and not strict:
            return self.ids[self.unknown]
        known = [candidate for candidate in self.words if not self._is_mark(candidate)]
        nearest = ", ".join(map(repr, difflib.get_close_matches(word, known, n=3, cutoff=0.0)))
        otherwise = "" if strict else ", or a vocabulary with a word for the unknown ones"
        raise DataError(
            f"got the word {word!r} in {text!r}, expected one of the {len(known)} words of this vocabulary; "
            f"take one of the nearest ({nearest}){otherwise}"
        )

    def decode(self, ids: Tensor) -> list[str]:
        """Texts of ids: words apart by single spaces, or characters, up to the first end mark, without the padding.

        Args:
            ids: (B, L) int64, or one text (L,).

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
        return [("" if self._has_letters else " ").join(self._words(row)) for row in rows]

    def _words(self, row: list[int]) -> list[str]:
        words = [self.words[i - 1] for i in row if i != PADDING]
        return words[: words.index(self.end)] if self.end in words else words


def _check(vocabulary: Vocabulary) -> None:
    if vocabulary.split not in _SPLITS:
        known = ", ".join(map(repr, _SPLITS))
        raise DataError(f"got split={vocabulary.split!r}, expected one of {known}; give one of them")
    if not vocabulary.words:
        raise DataError("got a vocabulary of no words, expected at least one; give captions that have some")
    marks = {"unknown": vocabulary.unknown, "end": vocabulary.end}
    for word, count in Counter(vocabulary.words).items():
        if count > 1:
            raise DataError(f"got the word {word!r} {count} times, expected each once; drop the others")
        if vocabulary.split != "characters" or word not in marks.values():
            _check_word(word, vocabulary.split)
    for name, mark in marks.items():
        if mark is not None and mark not in vocabulary.words:
            raise DataError(f"got {name}={mark!r}, expected one of the words; add it to them")
    if vocabulary.end is not None and vocabulary.end == vocabulary.unknown:
        raise DataError(f"got {vocabulary.end!r} for unknown and end, expected two words; change one of them")


def _check_word(word: str, split: Split) -> None:
    if (found := tokens(word, split)) != [word]:
        expected = "one word in lower case" if split == "caption" else "one word"
        raise DataError(
            f"got the word {word!r}, which splits into {found}, expected {expected}; give each of these words alone"
        )
