"""The named sets, on tiny files of the real layouts; downloads through torchvision from a mirror on disk."""

import gzip
import hashlib
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torchvision import datasets

from ppl_vae.data import DataError, default_root, load, names

RNG = np.random.default_rng(0)
TRAIN, TEST = (RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8) for n in (6, 3))
NAMES = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_mnist(folder: Path) -> Path:
    """The four .gz files in `folder`; labels are the row numbers."""
    folder.mkdir(parents=True)
    arrays = (TRAIN, np.arange(6, dtype=np.uint8), TEST, np.arange(3, dtype=np.uint8))
    for name, array in zip(NAMES, arrays, strict=True):
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    return folder


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def listing(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_sets_are_read_packed_without_writing(tmp_path: Path, name: str, folder: str) -> None:
    raw = write_mnist(tmp_path / folder / "raw")
    before = listing(tmp_path)
    raw.chmod(0o555)
    data = load(name, root=tmp_path)
    raw.chmod(0o755)
    assert listing(tmp_path) == before
    assert torch.equal(data.train[:, 0] * 255, torch.from_numpy(TRAIN).float())
    assert torch.equal(data.test[:, 0] * 255, torch.from_numpy(TEST).float())
    assert data.train_labels is not None and data.train_labels.tolist() == list(range(6))
    assert (data.name, data.shape, data.binarisation) == (name, (1, 28, 28), "dynamic")
    assert f"a part of {folder}: 6 + 3 of 60,000 + 10,000" in data.note


def test_idx_sets_are_read_unpacked_first(tmp_path: Path) -> None:
    raw = write_mnist(tmp_path / "MNIST" / "raw")
    (raw / NAMES[0]).write_bytes(idx(TRAIN[::-1]))
    assert torch.equal(load("mnist", root=tmp_path).train[:, 0] * 255, torch.from_numpy(TRAIN[::-1].copy()).float())


def packed(content: bytes) -> bytes:
    """Without the time, so that a test's name, which has them, is the same in all processes."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("stem", "content", "message"),
    [
        (NAMES[0], packed(idx(TRAIN))[:-400], "EOFError"),
        (NAMES[0], b"no gzip at all", "BadGzipFile"),
        (NAMES[0], b"", "none"),
        (
            NAMES[0],
            packed(b"\0\0\x0d\x03" + idx(TRAIN)[4:]),
            "first bytes 00000d03; expected idx magic 00000803",
        ),
        (NAMES[0], packed(idx(TRAIN)[:-7]), "4,697 data bytes; expected 4,704"),
        (NAMES[0], packed(idx(TRAIN) + b"\0"), "4,705 data bytes; expected 4,704"),
        (NAMES[0], packed(idx(TRAIN[:, :20])), r"shape \(6, 20, 28\)"),
        (NAMES[0], packed(idx(TRAIN[:0])), r"\(0, 28, 28\) uint8; expected"),
        (NAMES[1], packed(idx(np.arange(5, dtype=np.uint8))), "5 labels; expected 6"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path: Path, stem: str, content: bytes, message: str) -> None:
    raw = write_mnist(tmp_path / "MNIST" / "raw")
    (raw / f"{stem}.gz").write_bytes(content)
    with pytest.raises(DataError, match=f"{stem}.*{message}"):
        load("mnist", root=tmp_path)


def test_download_is_moved_in_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[[Path], str]
) -> None:
    mirror = write_mnist(tmp_path / "mirror")
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{serve(mirror)}/"])
    monkeypatch.setattr(datasets.MNIST, "resources", [(f"{n}.gz", md5(mirror / f"{n}.gz")) for n in NAMES])
    root = tmp_path / "new" / "root"
    data = load("mnist", root=root)
    assert torch.equal(data.test[:, 0] * 255, torch.from_numpy(TEST).float())
    assert listing(root) == sorted(["MNIST", "MNIST/raw", *(f"MNIST/raw/{n}.gz" for n in NAMES)])
    assert torch.equal(load("mnist", root=root, download=False).train, data.train)


def test_a_download_that_breaks_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[[Path], str]
) -> None:
    mirror = write_mnist(tmp_path / "mirror")
    resources = [(f"{n}.gz", md5(mirror / f"{n}.gz")) for n in NAMES]
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{serve(mirror)}/"])
    monkeypatch.setattr(datasets.MNIST, "resources", [*resources[:3], (f"{NAMES[3]}.gz", "0" * 32)])
    root = tmp_path / "root"
    with pytest.raises(DataError, match=r"on downloading MNIST .*corrupted.*try again later, or place the files under"):
        load("mnist", root=root)
    assert listing(root) == []


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "omniglot"])
def test_no_network_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    nowhere = "http://127.0.0.1:9"  # the discard port: refused at once
    for idx_set in (datasets.MNIST, datasets.FashionMNIST):
        monkeypatch.setattr(idx_set, "mirrors", [f"{nowhere}/"])
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{nowhere}/c.tar.gz")
    monkeypatch.setattr(datasets.Omniglot, "download_url_prefix", nowhere)
    with pytest.raises(DataError, match="expected network access"):
        load(name, root=tmp_path)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "omniglot", "frey-faces", "binarised-mnist"])
def test_missing_files_say_where_and_what_to_do(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"{name}: got no files .tried {tmp_path}.*PPL_VAE_DATA"):
        load(name, root=tmp_path, download=False)


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"FileExistsError on writing to .*name a writable one"):
        load("mnist", root=tmp_path / "file")


def test_unknown_names_and_binarisations_list_the_known() -> None:
    with pytest.raises(DataError, match="got data set 'minst'; expected one of digits, mnist, binarised-mnist"):
        load("minst")
    with pytest.raises(DataError, match="got binarisation 'fixed'; expected one of 'dynamic'"):
        load("digits", binarisation="fixed")  # type: ignore[arg-type]
    assert names() == ("digits", "mnist", "binarised-mnist", "fashion-mnist", "omniglot", "cifar10", "frey-faces")


def test_the_root_is_the_variable_then_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PPL_VAE_DATA", raising=False)
    assert default_root() == tmp_path / "cache" / "ppl_vae"
    monkeypatch.setenv("PPL_VAE_DATA", str(tmp_path / "mine"))
    assert default_root() == tmp_path / "mine"
    write_mnist(tmp_path / "mine" / "MNIST" / "raw")
    assert len(load("mnist").train) == 6


def write_cifar_mirror(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A tiny cifar-10-python.tar.gz of the real layout, with torchvision told its checksums; (6, 3, 32, 32)."""
    pixels = RNG.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    contents = {f"data_batch_{i + 1}": {"data": pixels[i : i + 1].reshape(1, -1), "labels": [i]} for i in range(5)}
    contents["test_batch"] = {"data": pixels[5:].reshape(1, -1), "labels": [5]}
    contents["batches.meta"] = {"label_names": list("abcdef")}
    for name, content in contents.items():
        (batches / name).write_bytes(pickle.dumps(content))
    with tarfile.open(folder / "c.tar.gz", "w:gz") as tar:
        tar.add(batches, batches.name)
    sums = [[name, md5(batches / name)] for name in contents]
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{url}/c.tar.gz")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(folder / "c.tar.gz"))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", sums[5:6])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums[6][1]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return pixels


def test_full_cifar10_through_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[[Path], str]
) -> None:
    pixels = write_cifar_mirror(tmp_path / "mirror", serve(tmp_path / "mirror"), monkeypatch)
    root = tmp_path / "root"
    data = load("cifar10", root=root)
    assert torch.equal((data.train * 255).round(), torch.from_numpy(pixels[:5]).float())
    assert torch.equal((data.test * 255).round(), torch.from_numpy(pixels[5:]).float())
    assert data.train_labels is not None and data.train_labels.tolist() == [0, 1, 2, 3, 4]
    assert (data.name, data.binarisation, data.note) == ("cifar10", "none", "")
    assert [path.name for path in root.iterdir()] == ["cifar-10-batches-py"]
    (root / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"damaged file .*cifar-10-batches-py"):
        load("cifar10", root=root)


def write_cifar_subset(root: Path, **replaced: np.ndarray | None) -> None:
    arrays: dict[str, np.ndarray | None] = {
        "train_images": RNG.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8),
        "train_labels": np.arange(4, dtype=np.uint8),
        "test_images": RNG.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8),
        "test_labels": np.arange(2, dtype=np.uint8),
    } | replaced
    (root / "cifar10_subset").mkdir(exist_ok=True)
    present = {key: array for key, array in arrays.items() if array is not None}
    np.savez(root / "cifar10_subset" / "cifar10_5k1k.npz", **present)  # type: ignore[arg-type]


def test_a_part_of_cifar10_is_called_one(tmp_path: Path) -> None:
    write_cifar_subset(tmp_path)
    data = load("cifar10", root=tmp_path)
    assert data.name == "cifar10-subset" and "not CIFAR-10 results" in data.note
    assert data.shape == (3, 32, 32) and (len(data.train), len(data.test)) == (4, 2)


def test_damaged_npz_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "cifar10_subset" / "cifar10_5k1k.npz"
    write_cifar_subset(tmp_path, test_labels=None)
    with pytest.raises(DataError, match=f"{file}.*also .'test_labels'"):
        load("cifar10", root=tmp_path)
    write_cifar_subset(tmp_path, train_images=np.zeros((4, 32, 32, 3), np.uint8))
    with pytest.raises(DataError, match=rf"{file}: got \(4, 32, 32, 3\) uint8; expected"):
        load("cifar10", root=tmp_path)
    write_cifar_subset(tmp_path, train_labels=np.array([0, 1, 2, {}], dtype=object))
    with pytest.raises(DataError, match=r"damaged file .*allow_pickle"):
        load("cifar10", root=tmp_path)
    write_cifar_subset(tmp_path)
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(DataError, match=f"damaged file {file}"):
        load("cifar10", root=tmp_path)


@pytest.mark.parametrize("original", [False, True])
def test_frey_faces_test_on_the_last_frames(tmp_path: Path, original: bool) -> None:
    frames = RNG.integers(0, 256, (30, 28, 20), dtype=np.uint8)
    (tmp_path / "frey_faces").mkdir()
    if original:
        savemat(tmp_path / "frey_faces" / "frey_rawface.mat", {"ff": frames.reshape(30, 560).T})
    else:
        np.savez(tmp_path / "frey_faces" / "frey_faces.npz", images=frames)
    data = load("frey-faces", root=tmp_path)
    assert data.shape == (1, 28, 20) and data.train_labels is None and data.binarisation == "none"
    everything = torch.cat([data.train, data.test])  # the order of the film
    assert torch.equal((everything[:, 0] * 255).round(), torch.from_numpy(frames).float())
    assert len(data.test) == 3 and "the last 3 of 30 frames" in data.note


def test_a_damaged_mat_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "frey_faces").mkdir()
    savemat(tmp_path / "frey_faces" / "frey_rawface.mat", {"other": np.zeros(3)})
    with pytest.raises(DataError, match=r"damaged file .*frey_rawface.mat"):
        load("frey-faces", root=tmp_path)
