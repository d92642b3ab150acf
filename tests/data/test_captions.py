"""Words to ids and back: what counts as a word, padding, frequencies, messages."""

import pytest
import torch

from ppl_vae.data.captions import Vocabulary, tokens
from ppl_vae.data.dataset import DataError

WORDS = Vocabulary(("a", "red", "three", "seven", ".", ","))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the Digit THREE .", ["the", "digit", "three", "."]),
        ("a cat, a dog.", ["a", "cat", ",", "a", "dog", "."]),
        ("wait... 3.5, or .5", ["wait", ".", ".", ".", "3.5", ",", "or", ".5"]),
        (" \t two\nlines ", ["two", "lines"]),
        ("., ,", [".", ",", ","]),
        ("don't stop-here", ["don't", "stop-here"]),
        ("  ", []),
    ],
)
def test_words_are_what_white_space_and_final_stops_leave(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


def test_ids_count_from_one_and_zeros_fill_up() -> None:
    assert len(WORDS) == 7
    ids = WORDS.encode(["A red, red three.", "seven"])
    assert ids.dtype == torch.int64 and ids.tolist() == [[1, 2, 6, 2, 3, 5], [4, 0, 0, 0, 0, 0]]
    assert WORDS.encode("seven", length=3).tolist() == [[4, 0, 0]]
    assert WORDS.encode("a red three seven . ,").tolist() == [[1, 2, 3, 4, 5, 6]]


def test_decoding_undoes_encoding() -> None:
    texts = ["a red , red three .", "seven", ". . a"]
    assert WORDS.decode(WORDS.encode(texts, length=9)) == texts
    assert WORDS.decode(WORDS.encode("seven", length=4)[0]) == ["seven"]
    assert WORDS.decode(torch.zeros(2, 3, dtype=torch.int64)) == ["", ""]


def test_an_unknown_word_is_named_with_its_neighbours_or_mapped() -> None:
    with pytest.raises(DataError, match=r"got the word 'sevn' in 'a sevn', expected one of the 6 .*nearest \('seven',"):
        WORDS.encode(["a seven", "a sevn"])
    tolerant = Vocabulary(("<unk>", "a", "seven"), unknown="<unk>")
    assert tolerant.encode("a purple seven <unk>").tolist() == [[2, 1, 3, 1]]
    assert tolerant.decode(tolerant.encode("a purple seven")) == ["a <unk> seven"]


def test_words_of_texts_go_by_frequency_then_by_the_alphabet() -> None:
    texts = ["A cat and a dog.", "A bird, a cat", "zebra"]  # a 4, cat 2, the others once
    assert Vocabulary.from_texts(texts).words == ("a", "cat", ",", ".", "and", "bird", "dog", "zebra")
    assert Vocabulary.from_texts(texts, least=2).words == ("a", "cat")
    assert Vocabulary.from_texts(texts, limit=3).words == ("a", "cat", ",")
    assert Vocabulary.from_texts(reversed(texts)) == Vocabulary.from_texts(texts)
    assert Vocabulary.from_texts("a cat").words == ("a", "cat")
    with_unknown = Vocabulary.from_texts([*texts, "<unk> <unk> <unk>"], limit=1, unknown="<unk>")
    assert with_unknown == Vocabulary(("<unk>", "a"), unknown="<unk>")
    assert with_unknown.encode(texts[:1]).tolist() == [[2, 1, 1, 2, 1, 1]]


@pytest.mark.parametrize(
    ("words", "unknown", "message"),
    [
        ((), None, "no words, expected at least one"),
        (("a", "b", "a"), None, "got the word 'a' 2 times, expected each once"),
        (("a b",), None, r"splits into \['a', 'b'\], expected one word"),
        (("end.",), None, r"splits into \['end', '.'\]"),
        (("Red",), None, r"got the word 'Red', which splits into \['red'\]"),
        (("",), None, r"splits into \[\]"),
        (("a",), "<unk>", "got unknown='<unk>', expected one of the words; add it"),
    ],
)
def test_words_that_could_never_be_found_are_refused(words: tuple[str, ...], unknown: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Vocabulary(words, unknown)


def test_captions_that_cannot_be_encoded_are_refused() -> None:
    with pytest.raises(DataError, match="got no captions, expected at least one"):
        WORDS.encode([])
    with pytest.raises(DataError, match="got the empty caption ' ', expected at least one word"):
        WORDS.encode(["a", " "])
    with pytest.raises(DataError, match=r"got a caption of 4 words, expected at most 3: 'a red seven\.'; shorten it"):
        WORDS.encode(["a", "a red seven."], length=3)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([[1, 7]]), r"got the ids \[7\], expected 0 to 6"),
        (torch.tensor([-1]), r"got the ids \[-1\]"),
        (torch.ones(1, 2), r"got \(1, 2\) torch.float32, expected \(B, L\)"),
        (torch.ones(1, 2, 3, dtype=torch.int64), r"got \(1, 2, 3\)"),
    ],
)
def test_ids_of_no_word_are_refused(ids: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        WORDS.decode(ids)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"least": 0}, "got least=0, expected 1 or more"),
        ({"limit": 0}, "got limit=0, expected 1 or more"),
        ({"least": 3}, "got no word that occurs 3 times"),
        ({"unknown": "no word"}, r"splits into \['no', 'word'\]"),
    ],
)
def test_frequencies_that_leave_nothing_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Vocabulary.from_texts(["a cat", "a dog"], **fields)  # type: ignore[arg-type]
