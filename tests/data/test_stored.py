"""Data on disk: the same numbers as in memory, and what is wrong with a file is told."""

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppl_vae.data import DataError, Dataset, Stored, binarise, from_tensor, load_folder

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (30, 3, 4), dtype=np.uint8)


def save(folder: Path, *arrays: np.ndarray, name: str = "train") -> list[Path]:
    """Each array as a shard."""
    paths = [folder / f"{name}-{i}.npy" for i in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    return paths


@pytest.mark.parametrize(
    "array",
    [
        BYTES,
        BYTES > 100,
        RNG.random((30, 7), dtype=np.float32),
        RNG.random((30, 2, 3, 4)),
        RNG.random((30, 5)).astype(np.float16),
        RNG.random((30, 5)).astype(">f8"),
    ],
    ids=lambda x: f"{x.dtype.str[1:]}{x.ndim}",
)
def test_rows_are_those_in_memory(tmp_path: Path, array: np.ndarray) -> None:
    native = array.astype(array.dtype.newbyteorder("="))  # torch takes no other
    x = from_tensor(native, test=native[:2]).train
    data = Stored(save(tmp_path, array[:11], array[11:12], array[12:]))
    assert data.shape == x.shape and len(data) == 30
    indices = torch.tensor([29, 0, 11, 10, 12, 13, 14, 0])
    assert torch.equal(data.rows(indices), x[indices])
    assert torch.equal(data.rows(range(30)), x) and data.rows(range(30)).dtype == torch.float32
    assert torch.equal(data[-1], x[-1]) and torch.equal(data[3], x[3])
    fetched, is_bytes = data.__getitems__([4, 2]), array.dtype == np.uint8
    assert fetched.dtype == (torch.uint8 if is_bytes else torch.float32)
    assert torch.equal(fetched.float() / (255 if is_bytes else 1), x[[4, 2]])
    part = pickle.loads(pickle.dumps(data[5:25][2:]))
    assert isinstance(part, Stored) and part.shape == x[7:25].shape
    assert torch.equal(part.rows([0, 17, 4]), x[[7, 24, 11]])
    assert torch.equal(torch.stack([part[i] for i in range(18)]), x[7:25]) and len(part.rows([])) == 0


@pytest.mark.parametrize("indices", [[30], [-1]])
def test_rows_that_are_not_there(tmp_path: Path, indices: list[int]) -> None:
    with pytest.raises(IndexError, match="expected 0 to 29"):
        Stored(save(tmp_path, BYTES)).rows(indices)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([np.asfortranarray(BYTES)], "got Fortran order.*expected C order"),
        ([BYTES.astype(np.int64)], "got int64; expected uint8 0..255, bool, or floats"),
        ([np.array([{}, {}])], "got object; expected uint8"),
        ([BYTES[:0]], r"got shape \(0, 3, 4\); expected"),
        ([BYTES[:, 0, 0]], r"got shape \(30,\); expected \(N, D\)"),
        ([np.zeros((9, 8, 8, 3), np.uint8)], r"looks like \(N, H, W, C\)"),
        (
            [BYTES, BYTES[:, :2]],
            r"train-1.npy: got rows of \(2, 4\) uint8; expected \(3, 4\) uint8 as in .*train-0.npy",
        ),
        ([BYTES, BYTES > 5], r"train-1.npy: got rows of \(3, 4\) bool"),
        ([], "got no files"),
    ],
)
def test_arrays_that_are_refused(tmp_path: Path, arrays: list[np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Stored(save(tmp_path, *arrays))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "got no such file"),
        (lambda whole: whole[:-5], "damaged file .*got 483 bytes; expected 488 for shape .30, 3, 4."),
        (lambda whole: whole[:20], "got ValueError: EOF"),
        (lambda whole: b"", "got ValueError: EOF"),
        (lambda whole: b"text, not numbers", "got ValueError: the magic string is not correct.*np.save them"),
        (
            lambda whole: whole.replace(b"'shape'", b"'shade'"),
            "got ValueError: Header does not contain the correct keys",
        ),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    (path,) = save(tmp_path, BYTES)
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content(whole))
    with pytest.raises(DataError, match=f"train-0.npy.*{message}|{message}.*train-0.npy|{message}"):
        Stored([path])


@pytest.mark.parametrize(("bad", "got"), [(np.nan, "NaN"), (1.5, r"values in \[0, 1.5\]"), (-np.inf, r"\[-inf, 0\]")])
def test_floats_are_checked_when_they_are_read(tmp_path: Path, bad: float, got: str) -> None:
    array = np.zeros((30, 4))
    array[[17, 20], 2] = bad
    data = Stored(save(tmp_path, array[:12], array[12:]))
    data.rows(range(17))
    with pytest.raises(DataError, match=rf"train-1.npy, row 5 \(and 1 others of these 3\): got .*{got}; expected"):
        data.rows([3, 17, 20])


def test_a_file_that_changes_during_the_run(tmp_path: Path) -> None:
    first, second = save(tmp_path, BYTES, BYTES)
    data = Stored([first, second])
    os.truncate(second, 128 + 12 * 7 + 5)
    data.rows([3, 36])
    with pytest.raises(DataError, match=r"train-1.npy: got the end of the file in row 7; expected 30 rows"):
        data.rows([3, 37])
    second.unlink()
    with pytest.raises(
        DataError, match=r"train-1.npy: got FileNotFoundError.* on reading rows 3 to 9; expected a file"
    ):
        data.rows([39, 33])
    data.rows([3])


def test_a_folder_is_a_data_set(tmp_path: Path) -> None:
    save(tmp_path, BYTES[:11], BYTES[11:])
    (tmp_path / "LICENSE").write_text("anything")
    data, expected = load_folder(tmp_path), from_tensor(BYTES)
    assert (data.name, data.shape, len(data.train)) == (tmp_path.name, (1, 3, 4), 27)
    assert torch.equal(data.test, expected.test) and torch.equal(data.train.rows(range(27)), expected.train)
    assert data.note == "read from 2 files during training; tests on the last 3 of 30 data"
    assert data.describe() == expected.describe() | {"name": tmp_path.name, "note": data.note}
    torch.testing.assert_close(data.pixel_means, expected.pixel_means)
    np.save(tmp_path / "test.npy", BYTES[:5])
    with_test = load_folder(tmp_path)
    assert len(with_test.train) == 30 and torch.equal(with_test.test, expected.train[:5])
    assert with_test.note == "read from 2 files during training"


def test_held_out_data_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.data.local.MOST_HELD_OUT", 2)
    save(tmp_path, BYTES)
    data = load_folder(tmp_path)
    assert (len(data.train), len(data.test)) == (28, 2) and "last 2 of 30" in data.note


def test_what_a_data_set_does_with_data_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, BYTES)
    data, expected = load_folder(tmp_path), from_tensor(BYTES)
    assert isinstance(data.to("cpu").train, Stored)
    dynamic, in_memory = binarise(data, "dynamic", seed=4), binarise(expected, "dynamic", seed=4)
    rest, held_out = dynamic.hold_out(7)
    assert torch.equal(held_out, in_memory.hold_out(7)[1]) and isinstance(rest.train, Stored) and len(rest.train) == 20
    assert len(data.subset(num_train=9).train) == 9
    monkeypatch.setattr("ppl_vae.data.dataset.MEAN_ROWS", 20)
    torch.testing.assert_close(data.pixel_means, expected.train[:20].mean(0))


def test_fixed_bits_are_bits_on_disk(tmp_path: Path) -> None:
    save(tmp_path, BYTES)
    data = load_folder(tmp_path)
    for make in (
        lambda: binarise(data, "static"),
        lambda: replace(data, test=data.test.round(), binarisation="static"),
    ):
        with pytest.raises(
            DataError, match=r"got 'static' for uint8 values on disk \(.*train-0.npy\); expected 'dynamic'"
        ):
            make()
    bits = Stored(save(tmp_path, BYTES > 100, name="bits"))
    assert Dataset(name="bits", train=bits, test=data.test.round(), binarisation="static").train is bits


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "got neither train.npy nor train-*.npy"),
        (["train", "train-0"], "got train.npy and train-0.npy; expected one or the other"),
        (["train", "test", "test-a"], "got test.npy and test-a.npy"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        np.save(tmp_path / f"{name}.npy", BYTES)
    with pytest.raises(DataError, match=message.replace("*", r"\*")):
        load_folder(tmp_path)
    with pytest.raises(DataError, match="got no such folder"):
        load_folder(tmp_path / "absent")
