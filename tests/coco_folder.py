"""A tiny folder in the layout of MS COCO's downloads, made of generated pictures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
TRAIN = [[f"a {name} thing is all there is .", f"all of this picture of a thing is {name} ."] for name in COLOURS]
TEST = TRAIN[:2]
"""Captions of 8 and 9 words, two of each image."""


def solid(colour: tuple[int, int, int], width: int = 40, height: int = 24) -> Image.Image:
    """A picture of one colour."""
    return Image.new("RGB", (width, height), colour)


def write_coco(
    root: Path,
    train: list[list[Any]] = TRAIN,
    test: list[list[Any]] = TEST,
    year: int = 2017,
    pictures: Mapping[int, Image.Image] | None = None,
) -> Path:
    """Write both parts; the captions of each image are given, its ids ascend; some pictures may be given by number."""
    for part, captions in ((f"train{year}", train), (f"val{year}", test)):
        (root / part).mkdir(parents=True)
        for number in range(len(captions)):
            picture = (pictures or {}).get(number) or solid(list(COLOURS.values())[number % len(COLOURS)])
            picture.save(root / part / file_name(number))
        write_annotations(root, part, annotations(captions))
    return root


def file_name(number: int) -> str:
    """Of the image of a number."""
    return f"{100 + number:012d}.png"


def annotations(captions: list[list[Any]]) -> dict[str, Any]:
    """What a file of captions holds; images in another order than that of their ids."""
    images = [{"id": 100 + number, "file_name": file_name(number)} for number in range(len(captions))]
    pairs = [(number, caption) for number, several in enumerate(captions) for caption in several]
    rows = [{"id": i, "image_id": 100 + number, "caption": caption} for i, (number, caption) in enumerate(pairs)]
    return {"info": {}, "licenses": [], "images": images[::-1], "annotations": rows}


def write_annotations(root: Path, part: str, content: Any) -> Path:
    """Write a part's file of captions."""
    path = root / "annotations" / f"captions_{part}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def stripes(size: int) -> Image.Image:
    """Columns of one pixel, black and white in turn."""
    columns = np.arange(size) % 2 * 255
    return Image.fromarray(np.broadcast_to(columns[None, :, None], (size, size, 3)).astype(np.uint8))
