"""The fixed binarised MNIST, on files of random bits in its layout."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ppl_vae.data import Binarisation, DataError, load
from ppl_vae.data.binarised_mnist import read_amat

LINES = {"train": 50_000, "valid": 10_000, "test": 10_000}
BITS = np.random.default_rng(0).integers(0, 2, (3, 784), dtype=np.uint8)
TEXT = b"".join(b" ".join(b"01"[bit : bit + 1] for bit in row) + b"\n" for row in BITS)


def as_text(bits: np.ndarray) -> bytes:
    """Lines of `bits` (N, 784), much faster than by hand."""
    text = np.full((len(bits), 784, 2), ord(" "), np.uint8)
    text[..., 0] = bits + ord("0")
    text[:, -1, 1] = ord("\n")
    return text.tobytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A root with the three files at full size, and their bits."""
    root, rng = tmp_path_factory.mktemp("root"), np.random.default_rng(1)
    bits = {part: rng.integers(0, 2, (number, 784), dtype=np.uint8) for part, number in LINES.items()}
    (root / "binarised_mnist").mkdir()
    for part, rows in bits.items():
        (root / "binarised_mnist" / f"binarized_mnist_{part}.amat").write_bytes(as_text(rows))
    return root, bits


def is_equal(x: torch.Tensor, bits: np.ndarray) -> bool:
    return x.dtype == torch.float32 and torch.equal(x, torch.from_numpy(bits).reshape(-1, 1, 28, 28).float())


def test_text_of_the_tests_is_the_formats() -> None:
    assert as_text(BITS) == TEXT


def test_the_three_files_become_one_data_set(whole: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, bits = whole
    data = load("binarised-mnist", root=root, seed=3)  # no draw, so that any seed will do
    assert is_equal(data.train, np.concatenate([bits["train"], bits["valid"]])) and is_equal(data.test, bits["test"])
    assert data.train_labels is None and data.test_labels is None and data.shape == (1, 28, 28)
    assert (data.name, data.binarisation, data.levels, data.seed) == ("binarised-mnist", "static", 256, 0)
    assert "Larochelle and Murray (2011); the last 10,000 training images are the official valid" in data.note
    assert data.test_batch() is data.test and data.draw(data.train) is data.train
    left, held_out = data.hold_out(10_000)
    assert is_equal(left.train, bits["train"]) and is_equal(held_out, bits["valid"])


def test_static_may_be_said(whole: tuple[Path, dict[str, np.ndarray]]) -> None:
    assert is_equal(load("binarised-mnist", binarisation="static", root=whole[0]).test, whole[1]["test"])


@pytest.mark.parametrize("binarisation", ["dynamic", "none"])
def test_grey_values_are_gone(tmp_path: Path, binarisation: Binarisation) -> None:
    with pytest.raises(DataError, match=f"binarised-mnist: got binarisation '{binarisation}'; expected 'static'.*gone"):
        load("binarised-mnist", binarisation=binarisation, root=tmp_path)


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "binarised_mnist"
    folder.mkdir()
    (folder / "binarized_mnist_train.amat").write_bytes(TEXT)
    absent = ", ".join(str(folder / f"binarized_mnist_{part}.amat") for part in ("valid", "test"))
    with pytest.raises(DataError, match=rf"got no files \(tried {absent}\).*by hand \(from http://www.cs.toronto.edu"):
        load("binarised-mnist", root=tmp_path)


def test_a_part_of_a_file_is_refused_by_load(tmp_path: Path) -> None:
    (tmp_path / "binarised_mnist").mkdir()
    for part in LINES:
        (tmp_path / "binarised_mnist" / f"binarized_mnist_{part}.amat").write_bytes(TEXT)
    with pytest.raises(DataError, match=r"_train.amat: got 3 lines; expected 50,000, one an image"):
        load("binarised-mnist", root=tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text[:-1],
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"\n", b"\r\n")[:-2],
        lambda text: text + b"\n \r\n",
        lambda text: text.replace(b"\n", b" \n"),
        lambda text: b" " + text.replace(b" ", b"\t", 5),
        lambda text: text.replace(b" ", b"   "),
    ],
    ids=["as published", "no last end", "CRLF", "CRLF, no last end", "blank lines", "space at ends", "tabs", "wide"],
)
def test_any_space_will_do(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    (tmp_path / "x.amat").write_bytes(change(TEXT))
    assert np.array_equal(read_amat(tmp_path / "x.amat", 3), BITS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got 0 lines; expected 3, one an image"),
        (TEXT[: 2 * 1568], "got 2 lines; expected 3, one an image"),
        (TEXT + TEXT, "got more than 3 lines; expected 3, one an image"),
        (TEXT[:-400], "got 584 values in line 3; expected 784, the pixels of an image"),
        (TEXT.replace(b"\n", b" 1\n", 1), "got more than 784 values in line 1; expected 784"),
        (TEXT.replace(b"\n", b" "), "got more than 784 values in line 1; expected 784"),
        (b"\n" + TEXT[:1568] + b"2" + TEXT[1569:], "got the value 2 in line 3; expected zeros and ones alone"),
        (b"10" + TEXT[1:], "got the value 10 in line 1; expected zeros and ones alone"),
        (b"0.5" + TEXT[1:], "got the value 0.5 in line 1; expected zeros and ones alone"),
        (b"\xff" + TEXT[1:], r"got the value \\xff in line 1; expected zeros and ones alone"),
        (b"<!DOCTYPE html>\n" + TEXT, "got 2 values in line 1; expected 784"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.amat").write_bytes(content)
    with pytest.raises(DataError, match=f"damaged file {tmp_path / 'x.amat'}: {message}.*; delete it and fetch"):
        read_amat(tmp_path / "x.amat", 3)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"damaged file {tmp_path}: got IsADirectoryError.*; expected a file"):
        read_amat(tmp_path, 3)
