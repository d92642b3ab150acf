"""OMNIGLOT: from torchvision's drawings, downloaded, and from the archive that is kept."""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from ppl_vae.data import DataError, load


def write_drawings(folder: Path) -> None:
    """Two alphabets of one character; drawer d has a black square of side 5 d on white paper, 105x105."""
    for part, alphabet in (("background", "Greek"), ("evaluation", "Atlantean")):
        character = folder / f"images_{part}" / alphabet / "character01"
        character.mkdir(parents=True)
        for drawer in range(1, 21):
            paper = np.full((105, 105), 255, np.uint8)
            paper[: 5 * drawer, : 5 * drawer] = 0
            Image.fromarray(paper).convert("1").save(character / f"0001_{drawer:02}.png")


def check_omniglot(root: Path, **keywords: bool) -> None:
    data = load("omniglot", root=root, **keywords)  # type: ignore[arg-type]
    assert (data.shape, len(data.train), len(data.test)) == ((1, 28, 28), 30, 10)
    ink = data.test.sum((1, 2, 3))[:5] * (105 / 28) ** 2
    side = torch.tensor([80.0, 85, 90, 95, 100])  # drawers 16 to 20
    torch.testing.assert_close(ink, side**2, rtol=0.02, atol=0)  # resizing keeps the ink
    assert data.test_labels is not None and data.test_labels.tolist() == [0] * 5 + [1] * 5  # background first
    assert "not comparable with published figures; a part: 40 of 32,460" in data.note and data.binarisation == "dynamic"


def test_omniglot_from_torchvisions_drawings(tmp_path: Path) -> None:
    write_drawings(tmp_path / "omniglot-py")
    check_omniglot(tmp_path)
    for part in ("background", "evaluation"):
        (tmp_path / "omniglot-py" / f"images_{part}").rename(tmp_path / part)
    check_omniglot(tmp_path, download=False)  # from the archive that the first call kept


def test_omniglot_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[[Path], str]) -> None:
    mirror = tmp_path / "mirror"
    write_drawings(mirror)
    sums = {}
    for part in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(mirror / f"{part}.zip", "w") as archive:
            for path in (mirror / part).rglob("*.png"):
                archive.write(path, path.relative_to(mirror))
        sums[part] = hashlib.md5((mirror / f"{part}.zip").read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.Omniglot, "download_url_prefix", serve(mirror))
    monkeypatch.setattr(datasets.Omniglot, "zips_md5", sums)
    check_omniglot(tmp_path / "root")
    kept = sorted(str(path.relative_to(tmp_path / "root")) for path in (tmp_path / "root").rglob("*"))
    assert kept == ["omniglot", "omniglot/omniglot28.npz"]


def test_omniglot_that_cannot_be_kept_is_still_read(tmp_path: Path) -> None:
    write_drawings(tmp_path / "omniglot-py")
    (tmp_path / "omniglot").write_text("a file where the folder should go")
    check_omniglot(tmp_path)


def test_damaged_omniglot_is_named(tmp_path: Path) -> None:
    drawings = tmp_path / "omniglot-py"
    drawings.mkdir()
    with pytest.raises(DataError, match=r"images_background: got no drawings"):
        load("omniglot", root=tmp_path)
    write_drawings(drawings)
    (drawings / "images_evaluation").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"images_evaluation: got no drawings"):
        load("omniglot", root=tmp_path)
    (tmp_path / "elsewhere").rename(drawings / "images_evaluation")
    broken = drawings / "images_background" / "Greek" / "character01" / "0001_07.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=f"damaged file {broken}"):
        load("omniglot", root=tmp_path)
    assert not (tmp_path / "omniglot").exists()
    (tmp_path / "omniglot").mkdir()
    whole = {"images": np.zeros((6, 28, 28), np.uint8), "alphabet": np.zeros(6, np.uint8), "is_test": np.zeros(5, bool)}
    np.savez(tmp_path / "omniglot" / "omniglot28.npz", **whole)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"is_test \(5,\) bool"):
        load("omniglot", root=tmp_path)
