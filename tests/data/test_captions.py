"""Words to ids and back: what counts as a word, padding, frequencies, messages."""

from typing import Any

import pytest
import torch

from ppl_vae.data.captions import Split, Vocabulary, tokens
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
    ("split", "texts"),
    [
        ("caption", ["a red cat .", "red , red"]),
        ("spaces", ["mr. Smith 's N", "<unk> u.s.", "Mr. ,"]),
        ("characters", ["A b, c", " ab ", "a"]),
    ],
)
@pytest.mark.parametrize("end", [None, "<eos>"])
@pytest.mark.parametrize("unknown", [None, "<unk>"])
def test_each_split_comes_back(split: Split, texts: list[str], end: str | None, unknown: str | None) -> None:
    words = Vocabulary.from_texts(texts, unknown=unknown, split=split, end=end)
    ids = words.encode(texts, length=12)
    assert words.decode(ids) == texts and (ids != 0).sum(1).tolist() == [
        len(tokens(text, split)) + (end is not None) for text in texts
    ]
    assert words.words[: len(list(filter(None, (end, unknown))))] == tuple(filter(None, (end, unknown)))


def test_words_between_spaces_stay_whole() -> None:
    assert tokens(" mr.  Smith's N <unk>\tu.s. 's ", "spaces") == ["mr.", "Smith's", "N", "<unk>", "u.s.", "'s"]
    assert tokens("a B.", "characters") == ["a", " ", "B", "."]
    words = Vocabulary.from_texts(["b b <unk> <unk> <unk> B"], unknown="<unk>", split="spaces", end="<eos>")
    assert words.ids == {"<eos>": 1, "<unk>": 2, "b": 3, "B": 4}, "the unknown word counts for nothing else"
    assert words.encode("B x <unk> b").tolist() == [[4, 2, 2, 3, 1]]


def test_an_end_mark_is_added_once_and_cuts_what_follows() -> None:
    words = Vocabulary(("<eos>", "a", "b"), end="<eos>")
    assert words.encode(["a b", "b"]).tolist() == [[2, 3, 1], [3, 1, 0]]
    assert words.decode(torch.tensor([[2, 1, 3, 3], [1, 2, 2, 2], [2, 3, 2, 3]])) == ["a", "", "a b a b"]
    with pytest.raises(DataError, match="got the end mark '<eos>' in 'a <eos> b', expected none, since it is added"):
        words.encode(["a <eos> b"])
    with pytest.raises(DataError, match="got a caption of 3 words, expected at most 2: 'a b'"):
        words.encode("a b", length=2)
    with pytest.raises(
        DataError, match=r"got the word 'c' in 'c', expected one of the 2 words .*nearest \('[ab]', '[ab]'\)"
    ):
        words.encode("c")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"words": ("a",), "end": "<eos>"}, "got end='<eos>', expected one of the words; add it"),
        ({"words": ("a", "<x>"), "end": "<x>", "unknown": "<x>"}, "got '<x>' for unknown and end, expected two words"),
        (
            {"words": ("a b",), "split": "spaces"},
            r"got the word 'a b', which splits into \['a', 'b'\], expected one word;",
        ),
        (
            {"words": ("ab",), "split": "characters"},
            r"got the word 'ab', which splits into \['a', 'b'\], expected one word;",
        ),
        (
            {"words": ("a",), "split": "letters"},
            "got split='letters', expected one of 'caption', 'spaces', 'characters'",
        ),
    ],
)
def test_marks_and_splits_that_are_none_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Vocabulary(**fields)


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
