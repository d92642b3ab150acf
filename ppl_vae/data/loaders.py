"""The named data sets: files in a root folder (or fetched into it) to a `Dataset`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.data.binarised_mnist import binarised_mnist
from ppl_vae.data.dataset import Binarisation, DataError, Dataset, binarise, check_binarisation
from ppl_vae.data.download import fetched, install, torchvision_set
from ppl_vae.data.files import classes, damaged, images, missing, read_idx, read_npz
from ppl_vae.data.local import SUFFIXES, load_file, load_folder
from ppl_vae.data.omniglot import omniglot


def load(
    name: str,
    *,
    binarisation: Binarisation | None = None,
    root: str | Path | None = None,
    seed: int = 0,
    download: bool = True,
) -> Dataset[Any]:
    """A data set by name, or from a file or folder of your own.

    Args:
        name: one of `names()`; or the path of a `.npy`, `.npz` or `.pt` file (see `load_file`), or of a folder whose
            training data stay on disk (see `load_folder`).
        binarisation: None takes the usual one: "dynamic" for digits, MNIST, Fashion-MNIST and OMNIGLOT,
            "none" for CIFAR-10, Frey faces, files and folders, "static" for the binarised MNIST, which has no other.
        root: folder of the files; None takes the environment variable PPL_VAE_DATA, else `default_root()`.
        seed: of the static binarisation and of the one dynamic draw of the test set; the binarised MNIST needs none.
        download: whether absent files may be fetched into `root`.

    Returns:
        The data on the CPU, or on disk; images are (C, H, W) float32 in [0, 1].

    Raises:
        DataError: unknown name or binarisation, missing or damaged files, a download that failed.

    Example:
        >>> digits = load("digits")
        >>> len(digits.train), len(digits.test), digits.shape, digits.binarisation
        (1437, 360, torch.Size([1, 8, 8]), 'dynamic')
    """
    if binarisation is not None:
        check_binarisation(binarisation)
    if name in _LOADERS:
        loader, usual = _LOADERS[name]
        if usual == "static" and binarisation not in (None, usual):
            raise DataError(
                f"{name}: got binarisation {binarisation!r}; expected 'static', for its files hold bits and the grey "
                "values are gone; leave the binarisation out, or load 'mnist'"
            )
        folder = default_root() if root is None else Path(root).expanduser()
        dataset = loader(folder, download)
    elif Path(name).suffix in SUFFIXES:
        usual, dataset = "none", load_file(name)
    elif Path(name).is_dir():
        usual, dataset = "none", load_folder(name)
    else:
        raise DataError(
            f"got data set {name!r}; expected one of {', '.join(names())}, or the path of a "
            f"{', '.join(SUFFIXES)} file or of a folder; check the spelling"
        )
    return dataset if usual == "static" else binarise(dataset, binarisation or usual, seed)  # no second draw of bits


def names() -> tuple[str, ...]:
    """The names that `load` knows."""
    return tuple(_LOADERS)


def default_root() -> Path:
    """The data folder: PPL_VAE_DATA, else `ppl_vae` in XDG_CACHE_HOME, else in `~/.cache`."""
    if named := os.environ.get("PPL_VAE_DATA"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ppl_vae"


def digits(root: Path, download: bool) -> Dataset:
    """scikit-learn's real 8x8 digits, (1, 8, 8), values 0..16 / 16; part of the package, needs no file.

    1,437 train and 360 test data by a shuffle that never changes (the test part of the UCI set has no split).

    References:
        Alpaydin, Kaynak. Optical recognition of handwritten digits. UCI Machine Learning Repository, 1998.
    """
    from sklearn.datasets import load_digits  # on use: a slow import

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(pixels))  # the legacy stream is frozen, torch's is not
    x = torch.from_numpy((pixels[order] / 16).astype(np.float32)).reshape(-1, 1, 8, 8)
    y = classes(labels[order])
    note = "scikit-learn's 8x8 digits, our shuffled split"
    return Dataset(
        name="digits",
        train=x[:1437],
        test=x[1437:],
        train_labels=y[:1437],
        test_labels=y[1437:],
        levels=17,
        note=note,
    )


def mnist(root: Path, download: bool) -> Dataset:
    """MNIST, (1, 28, 28), 60,000 train and 10,000 test images, from `root/MNIST/raw`.

    References:
        LeCun, Bottou, Bengio, Haffner. Gradient-based learning applied to document recognition. 1998.
    """
    return _idx_set("mnist", "MNIST", root, download)


def fashion_mnist(root: Path, download: bool) -> Dataset:
    """Fashion-MNIST, (1, 28, 28), 60,000 train and 10,000 test images, from `root/FashionMNIST/raw`.

    References:
        Xiao, Rasul, Vollgraf. Fashion-MNIST: a novel image dataset for benchmarking. arXiv:1708.07747.
    """
    return _idx_set("fashion-mnist", "FashionMNIST", root, download)


def _idx_set(name: str, torchvision_name: str, root: Path, download: bool) -> Dataset:
    folder = root / torchvision_name / "raw"
    if any(_idx_file(folder, stem) is None for stem in _IDX_STEMS):
        if not download:
            raise missing(name, [folder / f"{stem}[.gz]" for stem in _IDX_STEMS], "allow the download")
        with fetched(torchvision_name, root) as temporary:
            for path in sorted((temporary / torchvision_name / "raw").glob("*.gz")):  # a fifth of the unpacked size
                install(path, folder / path.name)
    train, train_labels = _idx_part(folder, "train")
    test, test_labels = _idx_part(folder, "t10k")
    whole = (len(train), len(test)) == (60_000, 10_000)
    note = "" if whole else f"a part of {torchvision_name}: {len(train):,} + {len(test):,} of 60,000 + 10,000"
    return Dataset(name=name, train=train, test=test, train_labels=train_labels, test_labels=test_labels, note=note)


_IDX_STEMS = tuple(
    f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
)


def _idx_file(folder: Path, stem: str) -> Path | None:
    candidates = (folder / stem, folder / f"{stem}.gz")
    return next((path for path in candidates if path.is_file()), None)


def _idx_part(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    image_file = _idx_file(folder, f"{part}-images-idx3-ubyte")
    label_file = _idx_file(folder, f"{part}-labels-idx1-ubyte")
    if image_file is None or label_file is None:
        raise missing(part, [folder / f"{part}-*-ubyte[.gz]"], "the download did not bring it; place it there by hand")
    x = images(read_idx(image_file, (28, 28)), (1, 28, 28), str(image_file))
    y = classes(read_idx(label_file))
    if len(x) != len(y):
        raise damaged(label_file, f"{len(y):,} labels", f"{len(x):,}, one for each image of {image_file.name}")
    return x, y


def cifar10(root: Path, download: bool) -> Dataset:
    """CIFAR-10, (3, 32, 32): the full set of `root/cifar-10-batches-py`, else a part of it in one npz.

    The part, `root/cifar10_subset/cifar10_5k1k.npz`, goes before any download, and is named `cifar10-subset`.

    References:
        Krizhevsky. Learning multiple layers of features from tiny images. 2009.
    """
    full, part = root / "cifar-10-batches-py", root / "cifar10_subset" / "cifar10_5k1k.npz"
    if not full.is_dir():
        if part.is_file():
            return _cifar10_subset(part)
        if not download:
            raise missing("cifar10", [full, part], "allow the download")
        with fetched("CIFAR10", root) as temporary:
            install(temporary / full.name, full)
    train, train_labels = _cifar10_part(root, train=True)
    test, test_labels = _cifar10_part(root, train=False)
    return Dataset(name="cifar10", train=train, test=test, train_labels=train_labels, test_labels=test_labels)


def _cifar10_part(root: Path, *, train: bool) -> tuple[Tensor, Tensor]:
    try:
        part = torchvision_set("CIFAR10")(root, train=train)  # checks md5 before it unpickles
    except RuntimeError as error:
        raise damaged(root / "cifar-10-batches-py", str(error), "torchvision's files, checksums and all") from error
    x = images(part.data.transpose(0, 3, 1, 2), (3, 32, 32), str(root / "cifar-10-batches-py"))
    return x.contiguous(), torch.tensor(part.targets, dtype=torch.int64)


def _cifar10_subset(path: Path) -> Dataset:
    arrays = read_npz(path, ("train_images", "train_labels", "test_images", "test_labels"))
    train, test = (images(arrays[f"{part}_images"], (3, 32, 32), str(path)) for part in ("train", "test"))
    return Dataset(
        name="cifar10-subset",
        train=train,
        test=test,
        train_labels=classes(arrays["train_labels"]),
        test_labels=classes(arrays["test_labels"]),
        note=f"a part of CIFAR-10, {len(train):,} + {len(test):,} of 50,000 + 10,000: not CIFAR-10 results",
    )


def frey_faces(root: Path, download: bool) -> Dataset:
    """Frey faces, (1, 28, 20): the frames of one film, from an npz (`images`) or the original `.mat` (`ff`).

    There is no official split, and neighbouring frames are near copies, so that a random one would leak: the
    last tenth of the frames, in order, is the test set.

    References:
        Roweis, Saul, Hinton. Global coordination of local linear models. NIPS 2001.
    """
    archive, original = (root / "frey_faces" / file for file in ("frey_faces.npz", "frey_rawface.mat"))
    if archive.is_file():
        x = images(read_npz(archive, ("images",))["images"], (1, 28, 20), str(archive))
    elif original.is_file():
        x = images(_frey_mat(original), (1, 28, 20), str(original))
    else:
        remedy = "place frey_rawface.mat there (it was at https://cs.nyu.edu/~roweis/data/frey_rawface.mat)"
        raise missing("frey-faces", [archive, original], remedy)
    number = max(len(x) // 10, 1)
    note = f"frames of one film, no official split: ours tests on the last {number:,} of {len(x):,} frames"
    return Dataset(name="frey-faces", train=x[:-number], test=x[-number:], note=note)


def _frey_mat(path: Path) -> np.ndarray:
    from scipy.io import loadmat  # comes with scikit-learn

    try:
        return loadmat(path)["ff"].T.reshape(-1, 28, 20)  # (560, N), a column a frame
    except Exception as error:  # scipy lets through whatever the parser met
        raise damaged(path, f"{type(error).__name__}: {error}", "a MATLAB file with ff of (560, number)") from error


_LOADERS: dict[str, tuple[Callable[[Path, bool], Dataset], Binarisation]] = {
    "digits": (digits, "dynamic"),
    "mnist": (mnist, "dynamic"),
    "binarised-mnist": (binarised_mnist, "static"),
    "fashion-mnist": (fashion_mnist, "dynamic"),
    "omniglot": (omniglot, "dynamic"),
    "cifar10": (cifar10, "none"),
    "frey-faces": (frey_faces, "none"),
}
