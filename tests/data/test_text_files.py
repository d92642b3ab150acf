"""Files of sentences become text: words and marks by frequency, what is dropped, and every refusal."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from ppl_vae import data
from ppl_vae.data import DataError, Text, load_named, text
from ppl_vae.data.animals import ANIMALS
from ppl_vae.data.text import num_tokens

TRAIN = " mr. <unk> 's N cats sat \n\n the u.s. cats sat \r\n   \n<unk> the cats\n"
VALID, TEST = "the dogs sat\n", "the dogs sat\nmr. cats"


def folder_of(path: Path, **files: str | bytes) -> Path:
    """A folder with files of these contents, `ptb_train` as ptb.train.txt."""
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else content.encode()
        (path / f"{name.replace('_', '.')}.txt").write_bytes(raw)
    return path


@pytest.fixture
def ptb(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "ptb", ptb_train=TRAIN, ptb_valid=VALID, ptb_test=TEST)


def test_words_are_kept_as_they_are_and_go_by_frequency(ptb: Path) -> None:
    found = text(ptb)
    words = ("<eos>", "<unk>", "cats", "sat", "the", "'s", "N", "mr.", "u.s.")
    assert found.vocabulary.words == words and found.told == {"vocabulary": 10} and found.name == "ptb"
    assert found.train.tolist() == [[8, 2, 6, 7, 3, 4, 1], [5, 9, 3, 4, 1, 0, 0], [2, 5, 3, 1, 0, 0, 0]]
    assert found.words(found.train) == [" ".join(line.split()) for line in TRAIN.split("\n") if line.strip()]
    assert found.valid is not None and found.words(found.valid) == ["the <unk> sat"]
    assert found.words(found.test_batch()[0]) == ["the <unk> sat", "mr. cats"]
    assert found.describe()["unknown_in_test"] == 1 / 5 and found.buckets == (7,)
    assert found.note == (
        "sentences of ptb.train.txt, ptb.valid.txt, ptb.test.txt; vocabulary: the 7 most frequent words of train; all "
        "others are <unk>; the end mark of each sentence counts as a word"
    )


def test_rare_words_become_unknown(ptb: Path) -> None:
    found = text(ptb, words=2)
    assert found.vocabulary.words == ("<eos>", "<unk>", "cats", "sat")
    assert found.words(found.train[:1]) == ["<unk> <unk> <unk> <unk> cats sat"]
    assert text(ptb, least=2).vocabulary.words == ("<eos>", "<unk>", "cats", "sat", "the")
    assert "the 3 most frequent words of train that occur 2 times or more; all others" in text(ptb, least=2).note


def test_the_vocabulary_is_that_of_the_sentences_used(ptb: Path) -> None:
    found = text(ptb, num_train=1, num_test=1)
    assert set(found.vocabulary.words) == {"<eos>", "<unk>", "'s", "N", "cats", "mr.", "sat"}
    assert len(found.train) == len(found.test) == 1 and "only the first 1 of 3 train sentences; only" in found.note
    with pytest.raises(DataError, match="ptb: got num_train=4; expected 1 to 3, the sentences there are"):
        text(ptb, num_train=4)


def test_long_sentences_are_left_out_and_counted(ptb: Path) -> None:
    found = text(ptb, max_length=3, num_train=1)
    assert found.words(found.train) == ["<unk> the cats"] and found.shape == (4,)
    assert "left out 2 of 3 train sentences, of more than 3 words; vocabulary" in found.note
    assert len(text(ptb, max_length=4, num_train=2).train) == 2
    with pytest.raises(DataError, match="got no train sentence of at most 2 words, expected some; raise max_length"):
        text(ptb, max_length=2)


def test_characters_are_words_too(ptb: Path) -> None:
    found = text(ptb, unit="characters")
    assert found.words(found.train) == [line.strip() for line in TRAIN.split("\n") if line.strip()]
    assert found.vocabulary.words[:2] == ("<eos>", "<unk>") and " " in found.vocabulary.words
    assert found.words(found.test) == ["the <unk><unk><unk>s sat", "mr. cats"], "no d, o and g in train"
    assert num_tokens(found.test).tolist() == [13, 9]


def test_buckets_are_as_given_or_of_the_training_lengths(ptb: Path) -> None:
    assert text(ptb, buckets=(9, 5, 5)).buckets == (5, 7)
    long = folder_of(ptb, ptb_test="a " * 9)
    assert text(long).buckets == (7, 10) and text(long).shape == (10,)


def test_paths_may_be_given(ptb: Path) -> None:
    train, valid, test = (ptb / f"ptb.{part}.txt" for part in ("train", "valid", "test"))
    for source in ((train, valid, test), {"test": test, "train": str(train), "valid": valid}, str(ptb)):
        assert torch.equal(text(source).train, text(ptb).train) and text(source).note == text(ptb).note
    assert text({"train": train, "test": test}).valid is None
    valid.rename(ptb / "ptb.dev.txt")
    assert text(ptb).describe()["num_valid"] == 1
    (ptb / "ptb.dev.txt").unlink()
    assert text(ptb).valid is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a_test": TEST}, r"text: got none in .*, expected one \.txt file with train in its name; rename"),
        ({"a_train": TRAIN}, r"got none in .*, expected one \.txt file with test"),
        ({"a_train": TRAIN, "b_train": TRAIN, "a_test": TEST}, r"got a\.train\.txt, b\.train\.txt in "),
        ({"a_train": TRAIN, "a_test": TEST, "dev": VALID, "valid": VALID}, r"dev\.txt, valid\.txt .*with valid or dev"),
        ({"a_train": b"caf\xe9", "a_test": TEST}, r"a\.train\.txt: got a byte that is not UTF-8 at 3, expected text"),
        ({"a_train": TRAIN, "a_test": " \n\n"}, r"a\.test\.txt: got no sentence, expected one a line; fetch"),
        ({"a_train": "<unk>", "a_test": TEST}, "got no word that occurs 1 times"),
        ({"a_train": "a <eos> b", "a_test": TEST}, "got the end mark '<eos>' in 'a <eos> b', expected none"),
    ],
)
def test_folders_of_no_text_are_refused(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        text(folder_of(tmp_path / "a", **files))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "text: got no folder nowhere, expected one with train, valid and test files of text; .*'grammar'"),
        (("a", "b"), r"got \('a', 'b'\), expected the paths of train, valid, test in this order, or by these names"),
        (("a", "b", "c", "d"), "expected the paths"),
        ({"train": "a"}, "expected the paths"),
        ({"train": "a", "test": "b", "extra": "c"}, "expected the paths"),
        (
            {"train": "nowhere", "test": "b"},
            "nowhere: got FileNotFoundError.*, expected a file of text; check the path",
        ),
    ],
)
def test_paths_that_are_not_there_are_refused(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        text(source)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"words": 0}, "words: got 0, expected a whole number from 1"),
        ({"least": 1.5}, "least: got 1.5"),
        ({"max_length": 0}, "max_length: got 0"),
        ({"num_train": "all"}, "num_train: got 'all'"),
        ({"num_test": True}, "num_test: got True"),
        ({"unit": "bytes"}, "unit: got 'bytes', expected 'words' or 'characters'; give one of them"),
        ({"buckets": 10}, "buckets: got 10, expected numbers of words"),
    ],
)
def test_settings_that_are_none_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        text("grammar", **settings)


def test_a_mark_of_the_encoding_is_no_word(tmp_path: Path) -> None:
    found = text(folder_of(tmp_path / "a", train=b"\xef\xbb\xbfone two", test="one"))
    assert found.vocabulary.words == ("<eos>", "<unk>", "one", "two")


def test_the_grammar_is_drawn_anew_each_time_the_same() -> None:
    found = text("grammar")
    assert found.valid is not None and (len(found.train), len(found.valid), len(found.test)) == (5000, 500, 1000)
    assert set(found.vocabulary.words[2:]) == set(ANIMALS.words) and found.describe()["unknown_in_test"] == 0
    assert f"entropy of {ANIMALS.entropy():.4f} nats a sentence" in found.note
    assert all(ANIMALS.log_prob(sentence) > -9e9 for sentence in found.words(found.test))
    small = text("grammar", num_train=60, num_test=20, max_length=6)
    assert "left out" in small.note and max(Counter(num_tokens(small.train).tolist())) <= 7
    again = text("grammar", num_train=60, num_test=20)
    assert again.words(again.train) == found.words(found.train[:60])
    assert again.words(again.test)[:3] != again.words(again.train)[:3], "another seed"


def test_a_command_names_text(ptb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ptb.parent)
    for command, root in (("text('ptb', words=3)", None), (f"text({str(ptb)!r}, words=3)", None), ("text(ptb)", ".")):
        found = load_named(command, root=root)
        assert isinstance(found, Text) and found.levels == (6 if root is None else 10)
    drawn = load_named("text(grammar, num_train=50)", root="/nowhere")
    assert (
        isinstance(drawn, Text) and len(drawn.train) == 50 and "text('data/ptb', words=10000)" in data.composed_names()
    )


def test_relative_folders_are_made_absolute_and_the_grammar_is_none(ptb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ptb.parent)
    absolute = data.with_absolute_paths("text(ptb, words=3)")
    assert absolute == f"text({str(ptb)!r}, words=3)" and data.with_absolute_paths(absolute) == absolute
    for same in ("text(grammar, num_train=50)", "text('grammar')"):
        assert data.with_absolute_paths(same) == same
    assert data.with_absolute_paths("text(ptb)", root="there") == "text(ptb)"


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("text(nowhere)", {}, "data 'text.nowhere.': text: got no folder nowhere"),
        ("text(grammar, size=3)", {}, "no setting 'size'.*expected the folder of three files of text"),
        ("text(grammar, words='a')", {}, "words: got 'a'"),
        ("text()", {}, "AssertionError"),
        ("text(grammar)", {"binarisation": "static"}, "got binarisation 'static', expected 'none' for text; leave it"),
    ],
)
def test_commands_that_are_no_text_are_refused(command: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_named(command, **options)
