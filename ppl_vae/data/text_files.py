"""Text from files, one sentence a line, or from the grammar that comes with the package."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ppl_vae.data.animals import ANIMALS
from ppl_vae.data.buckets import buckets_of, check_buckets, ending_with
from ppl_vae.data.captions import Split, Vocabulary, tokens
from ppl_vae.data.counts import check_counts
from ppl_vae.data.dataset import DataError
from ppl_vae.data.files import unread
from ppl_vae.data.parts import shortened
from ppl_vae.data.text import Text

GRAMMAR = "grammar"
"""The source that is no folder."""

PARTS = ("train", "valid", "test")

Unit = Literal["words", "characters"]

_SPLITS: Mapping[Unit, Split] = {"words": "spaces", "characters": "characters"}
_NAMES = {"train": ("train",), "valid": ("valid", "dev"), "test": ("test",)}
_SIZES = {"train": 5_000, "valid": 500, "test": 1_000}  # of what is drawn from the grammar


def text(
    source: str | Path | Mapping[str, str | Path] | Sequence[str | Path],
    *,
    words: int = 10_000,
    least: int = 1,
    unit: Unit = "words",
    max_length: int | None = None,
    num_train: int | None = None,
    num_test: int | None = None,
    buckets: Sequence[int] | None = None,
) -> Text:
    """Sentences of files, one a line, or of the grammar of `data.animals`.

    Words are what stands between white space, as it is; "<unk>" among them is the word for all that are not known.
    Lines without a word are skipped.

    Args:
        source: a folder with three files whose names end with .txt and contain "train", "valid" or "dev", and "test",
            as Penn Treebank's `ptb.train.txt`; there may be no second; or paths, as {"train": ..., "valid": ...,
            "test": ...} or in this order; or "grammar" (a folder of that name is "./grammar").
        words: at most so many in the vocabulary besides "<eos>" and "<unk>": the most frequent of the training
            sentences that are used.
        least: words that occur less often in them become "<unk>".
        unit: what counts as a word: "words", or "characters", spaces included ("<unk>" is then five of them).
        max_length: sentences of more words, without the end mark, are left out; None keeps all.
        num_train: the first so many training sentences; of the grammar as many are drawn, 5,000 by default.
        num_test: the same of the test sentences, 1,000 by default.
        buckets: widths of sentences in a batch, end mark included; the longest sentence's is the last, and larger ones
            play no part. By default up to eight, those with the least padding (`buckets_of`).

    Raises:
        DataError: a missing file or one too many, one that is not UTF-8 or has no sentence (of so many words), fewer
            sentences than asked for, "<eos>" in one, or wrong settings.

    References:
        Marcus, Santorini, Marcinkiewicz. Building a large annotated corpus of English: the Penn Treebank.
            Computational Linguistics 1993.
        Mikolov et al. Empirical evaluation and combination of advanced language modeling techniques. Interspeech 2011
            (its files: 10,000 words in lower case, N for numbers, <unk> for the others).

    Example:
        >>> data = text("grammar", num_train=300)
        >>> data.words(data.train[:1]), data.vocabulary.words[:3]
        (['the crows fly and sing quietly'], ('<eos>', '<unk>', 'the'))
    """
    _check(unit, buckets, words=words, least=least, max_length=max_length, num_train=num_train, num_test=num_test)
    split = _SPLITS[unit]
    found = _drawn(num_train, num_test) if source == GRAMMAR else _read(source)
    texts = _not_longer(found, split, max_length)
    if source != GRAMMAR:
        texts = shortened(texts, ("train", "test"), "sentences", num_train, num_test)
    vocabulary = Vocabulary.from_texts(texts.train, least, words, "<unk>", split, "<eos>")
    lengths = _lengths(texts.train, split)
    longest = max(lengths + _lengths(texts.test, split) + _lengths(texts.valid or [], split))
    return Text(
        name=texts.name,
        train=vocabulary.encode(texts.train, longest),
        test=vocabulary.encode(texts.test, longest),
        valid=None if texts.valid is None else vocabulary.encode(texts.valid, longest),
        vocabulary=vocabulary,
        buckets=ending_with(buckets_of(lengths) if buckets is None else buckets, longest),
        note="; ".join([texts.note, _rule(vocabulary, unit, least), "the end mark of each sentence counts as a word"]),
    )


@dataclass(frozen=True)
class _Texts:
    """Sentences as they were found."""

    name: str
    train: list[str]
    test: list[str]
    valid: list[str] | None
    note: str


def _drawn(num_train: int | None, num_test: int | None) -> _Texts:
    sizes = {**_SIZES, "train": num_train or _SIZES["train"], "test": num_test or _SIZES["test"]}
    parts = {part: ANIMALS.draw(sizes[part], seed) for seed, part in enumerate(PARTS)}
    note = f"drawn from a grammar of animals with an entropy of {ANIMALS.entropy():.4f} nats a sentence"
    return _Texts(GRAMMAR, **parts, note=note)


def _read(source: str | Path | Mapping[str, str | Path] | Sequence[str | Path]) -> _Texts:
    paths = _found(Path(source).expanduser()) if isinstance(source, str | Path) else _given(source)
    parts = {part: _sentences(path) for part, path in paths.items()}
    name = paths["train"].resolve().parent.name
    note = f"sentences of {', '.join(path.name for path in paths.values())}"
    return _Texts(name, parts["train"], parts["test"], parts.get("valid"), note)


def _found(folder: Path) -> dict[str, Path]:
    """The files of a folder, by part."""
    if not folder.is_dir():
        raise DataError(
            f"text: got no folder {folder}, expected one with train, valid and test files of text; check the path, or "
            f"take {GRAMMAR!r}, which needs none"
        )
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".txt" and path.is_file())
    paths = {}
    for part, names in _NAMES.items():
        found = [path for path in files if any(name in path.stem.lower() for name in names)]
        if len(found) > 1 or (not found and part != "valid"):
            got, wanted = ", ".join(path.name for path in found) or "none", " or ".join(names)
            raise DataError(
                f"text: got {got} in {folder}, expected one .txt file with {wanted} in its name; rename the files, or "
                "in Python give their paths"
            )
        paths.update(zip([part], found, strict=False))  # none of valid
    return paths


def _given(source: Mapping[str, str | Path] | Sequence[str | Path]) -> dict[str, Path]:
    """The files of paths that someone gives, by part."""
    named = source if isinstance(source, Mapping) else dict(zip(PARTS, source, strict=False))
    if len(source) != len(named) or not {"train", "test"} <= named.keys() <= set(PARTS):
        raise DataError(
            f"text: got {source!r}, expected the paths of {', '.join(PARTS)} in this order, or by these names, of "
            "which 'valid' may be missing"
        )
    return {part: Path(named[part]).expanduser() for part in PARTS if part in named}


def _sentences(path: Path) -> list[str]:
    try:
        content = path.read_text(encoding="utf-8-sig")  # with or without a mark at its beginning
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: got a byte that is not UTF-8 at {error.start:,}, expected text in UTF-8; convert it by iconv"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: got {unread(error)}, expected a file of text; check the path") from error
    found = [line for line in map(str.strip, content.split("\n")) if line]
    if not found:
        raise DataError(f"{path}: got no sentence, expected one a line; fetch the file again")
    return found


def _not_longer(texts: _Texts, split: Split, max_length: int | None) -> _Texts:
    """Without sentences of more words; the note counts them."""
    if max_length is None:
        return texts
    notes, fields = [texts.note], {}
    for part in PARTS:
        if (whole := getattr(texts, part)) is None:
            continue
        fields[part] = [sentence for sentence in whole if len(tokens(sentence, split)) <= max_length]
        if not fields[part]:
            raise DataError(
                f"text: got no {part} sentence of at most {max_length} words, expected some; raise max_length"
            )
        if left_out := len(whole) - len(fields[part]):
            notes.append(f"left out {left_out:,} of {len(whole):,} {part} sentences, of more than {max_length} words")
    return replace(texts, note="; ".join(notes), **fields)


def _lengths(sentences: list[str], split: Split) -> list[int]:
    """With the end mark."""
    return [1 + len(tokens(sentence, split)) for sentence in sentences]


def _rule(vocabulary: Vocabulary, unit: Unit, least: int) -> str:
    often = f" that occur {least} times or more" if least > 1 else ""
    return f"vocabulary: the {len(vocabulary.words) - 2:,} most frequent {unit} of train{often}; all others are <unk>"


def _check(unit: str, buckets: Sequence[int] | None, **numbers: int | None) -> None:
    if unit not in _SPLITS:
        raise DataError(f"unit: got {unit!r}, expected {' or '.join(map(repr, _SPLITS))}; give one of them")
    check_counts(**{name: number for name, number in numbers.items() if number is not None})
    if buckets is not None:
        check_buckets(buckets)
