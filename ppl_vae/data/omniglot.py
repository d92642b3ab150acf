"""OMNIGLOT at 28x28: 1,623 characters of 50 alphabets, each drawn by 20 people."""

import os
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from ppl_vae.data.dataset import Dataset
from ppl_vae.data.download import fetched
from ppl_vae.data.files import classes, damaged, images, missing, read_npz

_NOTE = (
    "our resize (bicubic, from 105x105) and split (drawers 16 to 20 test), not the files of Burda et al. "
    "(2016): not comparable with published figures"
)
_KEYS = ("images", "alphabet", "is_test")


def omniglot(root: Path, download: bool) -> Dataset:
    """OMNIGLOT, (1, 28, 28) with ink high, 24,345 train and 8,115 test images; labels are the 50 alphabets.

    Read from `root/omniglot/omniglot28.npz`. Where that is absent it is made, once, from torchvision's
    drawings (105x105, in `root/omniglot-py` or downloaded), and kept if `root` can be written.

    References:
        Lake, Salakhutdinov, Tenenbaum. Human-level concept learning through probabilistic program induction.
            Science, 2015.
    """
    archive, originals = root / "omniglot" / "omniglot28.npz", root / "omniglot-py"
    if archive.is_file():
        return _dataset(read_npz(archive, _KEYS), archive)
    if originals.is_dir():
        arrays = resized(originals)
    elif download:
        with fetched("Omniglot", root, {"background": True}, {"background": False}) as temporary:
            arrays = resized(temporary / originals.name)
    else:
        raise missing("omniglot", [archive, originals], "allow the download")
    _keep(arrays, archive)
    return _dataset(arrays, archive)


def resized(folder: Path) -> dict[str, np.ndarray]:
    """Torchvision's drawings at 28x28.

    Args:
        folder: holds `images_background` and `images_evaluation`, in them `alphabet/characterNN/NNNN_DD.png`.

    Returns:
        images (N, 28, 28) uint8 with ink 255; alphabet (N,) uint8, in the order of the sorted folders,
        background first; is_test (N,) bool: the drawers 16 to 20 of every character.

    Raises:
        DataError: no such drawings, or one that cannot be read.
    """
    paths = [path for part in ("images_background", "images_evaluation") for path in _drawings(folder / part)]
    alphabets = {path.parents[1]: None for path in paths}  # a dict keeps the order
    number = {alphabet: index for index, alphabet in enumerate(alphabets)}
    return {
        "images": np.stack([_small(path) for path in paths]),
        "alphabet": np.array([number[path.parents[1]] for path in paths], np.uint8),
        "is_test": np.array([int(path.stem.split("_")[1]) > 15 for path in paths]),
    }


def _drawings(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*/*/*_[0-9][0-9].png"))
    if not paths:  # half of the alphabets would pass unseen, and be kept
        raise damaged(folder, "no drawings", "alphabet/character/NNNN_DD.png")
    return paths


def _small(path: Path) -> np.ndarray:
    from PIL import Image, ImageOps  # comes with torchvision

    try:
        with Image.open(path) as drawing:
            ink = ImageOps.invert(drawing.convert("L"))
        return np.asarray(ink.resize((28, 28), Image.Resampling.BICUBIC))
    except (OSError, SyntaxError, ValueError, zlib.error) as error:  # what Pillow raises on damage
        raise damaged(path, f"{type(error).__name__}: {error}", "a PNG drawing") from error


def _keep(arrays: dict[str, np.ndarray], archive: Path) -> None:
    beside = archive.with_name(f".{archive.stem}-{os.getpid()}.npz")
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        beside.replace(archive)  # whole or not at all
    except OSError:  # a read-only root: the drawings are read again next time
        with suppress(OSError):
            beside.unlink()


def _dataset(arrays: dict[str, np.ndarray], archive: Path) -> Dataset:
    x = images(arrays["images"], (1, 28, 28), str(archive))
    is_test, alphabet = arrays["is_test"], classes(arrays["alphabet"])
    if is_test.dtype != bool or is_test.shape != (len(x),) or alphabet.shape != (len(x),):
        got = f"is_test {is_test.shape} {is_test.dtype}, alphabet {tuple(alphabet.shape)}"
        raise damaged(archive, got, f"({len(x)},) bool and ({len(x)},), one a drawing")
    note = _NOTE if len(x) == 32_460 else f"{_NOTE}; a part: {len(x):,} of 32,460 drawings"
    rows = [np.flatnonzero(~is_test), np.flatnonzero(is_test)]
    train, test = (x[index] for index in rows)
    train_labels, test_labels = (alphabet[index] for index in rows)
    return Dataset(
        name="omniglot",
        train=train,
        test=test,
        train_labels=train_labels,
        test_labels=test_labels,
        note=note,
    )
