"""Eight templates of scenes of one or two digits: what they tell, in words and in facts."""

import torch
from torch import Tensor

from ppl_vae.data.captions import PADDING, Vocabulary, tokens
from ppl_vae.data.dataset import DataError
from ppl_vae.data.scene_facts import COLOURS, DIGITS, FACTS, PLACES, TWO, check_facts

_CLASSES = tuple(FACTS.values())

_COLUMNS = {"A": 1, "B": 2, "I": 3, "J": 4, "F": 5}  # the capitals in a template's words: which fact stands there
_PLAIN = ("the", "digit", "is", "on", "at", "left", "right", "bottom", "top", "of", "image", ".")
_COLOURED = ("a", "the", "is", "on", "at", "left", "right", "bottom", "top", "of", "field", ".")


def _template(place: str, coloured: bool) -> str:
    at = "on" if place in ("left", "right") else "at"
    two = PLACES.index(place) < TWO
    if coloured:
        return f"a I A is {at} the {place} of {'a J B on ' if two else ''}a F field ."
    return f"the digit A is {at} the {place} of the {'digit B' if two else 'image'} ."


class Wording:
    """The captions of facts, and back.

    Args:
        coloured: whether captions tell the colours.
        device: of the tables.

    Attributes:
        vocabulary: digits, colours if any, then the other words.
        length: L, words of the longest caption.
    """

    def __init__(self, coloured: bool, device: torch.device) -> None:
        self.coloured = coloured
        self.vocabulary = Vocabulary(DIGITS + (COLOURS + _COLOURED if coloured else _PLAIN))
        self._templates = [_template(place, coloured).split() for place in PLACES]
        self.length = max(map(len, self._templates))
        ids = self.vocabulary.ids
        codes = [[-_COLUMNS[word] if word in _COLUMNS else ids[word] for word in words] for words in self._templates]
        padded = [row + [PADDING] * (self.length - len(row)) for row in codes]
        self._codes = torch.tensor(padded, device=device)  # (8, L): an id, or minus the column of a fact
        first = [0, *(ids.get(FACTS[name][0], 0) for name in list(FACTS)[1:])]
        self._first = torch.tensor(first, device=device)  # (6,): the id of class 0 of each column

    def ids(self, facts: Tensor) -> Tensor:
        """Captions of facts, (B, 6) -> (B, L) int64, without a loop or a word to the host."""
        codes = self._codes.to(facts.device).index_select(0, facts[:, 0])
        words = (facts + self._first.to(facts.device)).gather(1, (-codes).clamp(min=0))
        return torch.where(codes < 0, words, codes)

    def texts(self, facts: Tensor) -> list[str]:
        """Captions of facts as text."""
        return [" ".join(self._word(word, row) for word in self._templates[row[0]]) for row in facts.tolist()]

    @staticmethod
    def _word(word: str, row: list[int]) -> str:
        column = _COLUMNS.get(word)
        return word if column is None else _CLASSES[column][row[column]]

    def facts(self, text: str) -> Tensor:
        """The facts of a caption, (1, 6).

        Raises:
            DataError: a text of no template, a word unknown, or ink of the colour of the field.
        """
        self.vocabulary.encode(text)  # an unknown word has a message of its own
        words = tokens(text)
        for template, pattern in enumerate(self._templates):
            if (told := _read(words, pattern)) is not None:
                facts = torch.tensor([[template, *told]])
                check_facts(facts, self.coloured)
                return facts
        known = "; ".join(repr(" ".join(pattern)) for pattern in self._templates)
        raise DataError(
            f"got {text!r}, expected one of {known}, where A and B are digits such as 'three' and I, J and F "
            "colours such as 'red'; put it so"
        )


def _read(words: list[str], pattern: list[str]) -> list[int] | None:
    """The facts after the template in `words`, if they follow the pattern."""
    if len(words) != len(pattern):
        return None
    row = [-1] * len(FACTS)
    for word, slot in zip(words, pattern, strict=True):
        column = _COLUMNS.get(slot)
        if column is None:
            if word != slot:
                return None
        elif word in _CLASSES[column]:
            row[column] = _CLASSES[column].index(word)
        else:
            return None
    return row[1:]
