"""One part of MS COCO as it is published: its captions, and its pictures as small squares, kept in a file if wanted."""

import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ppl_vae.data.dataset import DataError
from ppl_vae.data.download import install, torchvision_set
from ppl_vae.data.files import damaged, unread

THREADS = 8
"""At most so many decode at once."""

_UNDECODABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


class CocoFiles:
    """A part of COCO, read through `torchvision.datasets.CocoCaptions`; images come in the order of their ids.

    Args:
        root: the folder with `train2017`, `val2017` and `annotations`.
        part: "train2017", "val2014", ...

    Attributes:
        texts: the captions of each image, as they are in the file.

    Raises:
        DataError: a folder or file is missing or damaged, a field is missing, or pycocotools is not installed.
    """

    def __init__(self, root: Path, part: str) -> None:
        self.part = part
        self.folder, self.annotations = root / part, root / "annotations" / f"captions_{part}.json"
        for path, is_there in ((self.folder, Path.is_dir), (self.annotations, Path.is_file)):
            if not is_there(path):
                year = part[-4:]
                raise DataError(
                    f"coco: got no {path}; expected {root} to hold train{year}, val{year} and annotations, as they are "
                    f"published; unpack train{year}.zip, val{year}.zip and annotations_trainval{year}.zip of "
                    "https://cocodataset.org there, or name another folder"
                )
        self._data = _opened(self.folder, self.annotations)
        try:
            self.texts, self._names = _fields(self._data)
        except (LookupError, TypeError, AttributeError) as error:
            raise _malformed(self.annotations, error) from error

    def pixels(self, images: Sequence[int], size: int, cache: Path | None, progress: bool) -> np.ndarray:
        """Some images as squares, (number, 3, size, size) uint8.

        Args:
            images: their numbers, from 0.
            size: of the squares.
            cache: a folder, made if need be, in which they are kept from call to call, in one file for each part, file
                of captions, choice of images, and size; one that is damaged is made anew.
            progress: show a bar with the time left, where it takes more than two seconds.

        Raises:
            DataError: an image is missing or damaged, or the cache can't be written.
        """
        if cache is None:
            return self._decoded(images, size, progress)
        path = cache / f"coco-{self.part}-{size}-{self._digest(images)}.npy"
        if (kept := _read(path, (len(images), 3, size, size))) is not None:
            return kept
        with _folder_in(cache) as temporary:
            pixels = self._decoded(images, size, progress)
            try:
                np.save(temporary / path.name, pixels)
                install(temporary / path.name, path)
            except OSError as error:
                raise _not_written(cache, error) from error
        return pixels

    def _decoded(self, images: Sequence[int], size: int, progress: bool) -> np.ndarray:
        pixels = np.empty((len(images), 3, size, size), np.uint8)
        pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
        bar = tqdm(total=len(images), desc=self.part, unit="image", delay=2, leave=False, disable=not progress)
        try:
            for row, decoded in enumerate(pool.map(lambda image: self._square(image, size), images)):
                pixels[row] = decoded
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
            bar.close()
        return pixels

    def _square(self, image: int, size: int) -> np.ndarray:
        try:
            return square(self._data[image][0], size)
        except _UNDECODABLE as error:
            raise DataError(
                f"coco: got {unread(error)} on reading {self.folder / self._names[image]}; expected an image that "
                f"can be decoded; fetch it again, or take it out of {self.annotations}"
            ) from error

    def _digest(self, images: Sequence[int]) -> str:
        with self.annotations.open("rb") as file:
            sha = hashlib.file_digest(file, "sha256")
        sha.update("\n".join(self._names[image] for image in images).encode())
        return sha.hexdigest()[:16]


def square(image: Image.Image, size: int) -> np.ndarray:
    """The centre square of an RGB image, resized with antialiasing, (3, size, size) uint8."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box)).transpose(2, 0, 1)


def _opened(folder: Path, annotations: Path) -> Any:
    make = torchvision_set("CocoCaptions")
    try:
        with redirect_stdout(io.StringIO()):  # pycocotools reports each step
            return make(folder, str(annotations))
    except ImportError as error:
        raise DataError(
            f"coco: got {unread(error)}, expected the package pycocotools; pip install 'ppl_vae[coco]'"
        ) from error
    except Exception as error:  # pycocotools checks nothing
        raise _malformed(annotations, error) from error


def _fields(data: Any) -> tuple[list[list[str]], list[str]]:
    """The captions of each image, and its file's name."""
    texts, names = [], []
    for field in ("images", "annotations"):
        data.coco.dataset[field]  # raises where it is missing
    for image in data.ids:
        captions = [annotation["caption"] for annotation in data.coco.imgToAnns.get(image, ())]
        name = data.coco.imgs[image]["file_name"]
        if wrong := [text for text in (*captions, name) if not isinstance(text, str)]:
            raise TypeError(f"got {wrong[0]!r} for a text in image {image}")
        texts.append(captions)
        names.append(name)
    return texts, names


def _malformed(annotations: Path, error: Exception) -> DataError:
    expected = "COCO's captions: images with id and file_name, annotations with id, image_id and caption"
    return damaged(annotations, unread(error), expected)


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """What a file of the cache holds; None where it is not there, or is damaged."""
    try:
        kept = np.load(path, allow_pickle=False)
    except Exception:  # numpy lets through whatever its parsers met
        return None
    return kept if isinstance(kept, np.ndarray) and (kept.shape, kept.dtype) == (shape, np.uint8) else None


@contextmanager
def _folder_in(cache: Path) -> Iterator[Path]:
    """A temporary folder in the cache: what can't be written is known before the images are decoded."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".coco-", dir=cache, ignore_cleanup_errors=True)
    except OSError as error:
        raise _not_written(cache, error) from error
    with folder as temporary:
        yield Path(temporary)


def _not_written(cache: Path, error: OSError) -> DataError:
    return DataError(
        f"cache: got {unread(error)} on writing to {cache}; expected a folder for the resized images; free some space, "
        "or name another"
    )
