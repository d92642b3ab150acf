"""COCO in its published layout: the right squares and captions, what is left out and told, the cache, messages."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ppl_vae import data
from ppl_vae.data import CaptionedImages, DataError, coco, load_named
from tests.coco_folder import COLOURS, TEST, TRAIN, annotations, file_name, stripes, write_annotations, write_coco


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


def read(root: Path, **settings: Any) -> CaptionedImages:
    return coco(root, **{"size": 8, "least": 1, "progress": False, **settings})


@pytest.mark.parametrize("year", [2014, 2017])
def test_images_and_captions_are_those_of_the_folder(tmp_path: Path, year: int) -> None:
    found = read(write_coco(tmp_path, year=year), year=year)
    for album, captions in ((found.train_album, TRAIN), (found.test_album, TEST)):
        for number, (colour, expected) in enumerate(zip(COLOURS.values(), captions, strict=False)):
            assert album.images[number].permute(1, 2, 0).reshape(-1, 3).unique(dim=0).tolist() == [list(colour)]
            assert found.vocabulary.decode(album.captions_of(number)) == expected
    described = found.describe()
    assert (described["name"], described["num_train"], described["train_captions"]) == (f"coco{year}", 4, 8)
    assert described["vocabulary"] == len({word for texts in TRAIN for t in texts for word in t.split()}) + 2
    assert "left out" not in described["note"] and f"val{year}" in described["note"]


def test_the_square_is_the_middle_and_smoothed(tmp_path: Path) -> None:
    """At the size of the short side a plain cut, exactly; stripes at half the size are grey, not black or white."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 41, 3), dtype=np.uint8))
    grey = Image.fromarray(np.random.default_rng(1).integers(0, 256, (31, 24), dtype=np.uint8))
    root = write_coco(tmp_path, pictures={0: noise, 1: grey, 2: stripes(48)})
    wide, tall, smooth, _ = read(root, size=24).train_album.images
    assert torch.equal(wide, torch.from_numpy(np.asarray(noise).transpose(2, 0, 1).copy())[:, :, 8:32])
    assert torch.equal(tall, torch.from_numpy(np.asarray(grey).copy())[3:27].expand(3, 24, 24))
    assert int(smooth.min()) > 100 and int(smooth.max()) < 155


def test_jpegs_are_read_in_colour(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    for number, mode in ((0, "L"), (1, "CMYK")):
        Image.new(mode, (30, 20)).save(root / "train2017" / "picture.jpg")
        (root / "train2017" / "picture.jpg").replace(root / "train2017" / file_name(number))
    assert read(root).shape == (3, 8, 8)


def test_captions_of_other_lengths_are_left_out_and_counted(tmp_path: Path) -> None:
    long, short = "a " * 30, "a thing ."
    train = [[TRAIN[0][0], long, ""], [" "], [], [short, TRAIN[3][0], short]]
    root = write_coco(tmp_path, train=train)
    (root / "train2017" / file_name(2)).unlink()  # not read: it has no caption
    found = read(root)
    assert found.vocabulary.decode(found.train_album.captions) == [TRAIN[0][0], TRAIN[3][0]]
    assert found.train_album.images[:, :, 0, 0].tolist() == [[255, 0, 0], [255, 255, 255]]
    expected = (
        "train2017: left out 5 of 7 captions (2 empty, 2 below 7 words, 1 above 29) and 2 of 4 images without captions"
    )
    assert found.note.endswith(f"in train are <unk>; {expected}")
    assert len(read(root, min_words=1, max_words=30).train) == 5


def test_rare_words_are_one(tmp_path: Path) -> None:
    found = read(write_coco(tmp_path), least=3)
    assert found.vocabulary.words[0] == "<unk>" and not set(COLOURS) & set(found.vocabulary.words)
    assert found.vocabulary.decode(found.train_album.captions)[0] == "a <unk> thing is all there is ."
    assert found.describe()["vocabulary"] == len(found.vocabulary)
    with pytest.raises(DataError, match=r"got the word 'rd' .*nearest \('red', "):
        read(tmp_path).read("a rd thing")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (10, 12, 15, 29)),
        ({"buckets": range(7, 30)}, tuple(range(7, 30))),
        ({"buckets": (20, 9, 9), "max_words": 12}, (9, 11)),
        ({"buckets": ()}, (29,)),
        ({"max_words": 10**30}, (10, 12, 15, 40)),
    ],
)
def test_buckets_end_with_the_longest_caption(
    tmp_path: Path, settings: dict[str, Any], expected: tuple[int, ...]
) -> None:
    lengths = (8, 9, 10, 11, 16, 29)
    found = read(write_coco(tmp_path, [["a " * n for n in lengths]], [["a " * 40, "a " * 7]]), **settings)
    assert found.buckets == expected and found.caption_length == expected[-1]
    fit = [n for n in lengths if n <= expected[-1]]
    assert found.widths().tolist() == [min(width for width in expected if width >= n) for n in fit]


def test_the_cache_stands_for_the_pictures(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache"
    first = read(root, cache=cache)
    files = sorted(cache.iterdir())
    assert [path.name.rpartition("-")[0] for path in files] == ["coco-train2017-8", "coco-val2017-8"]
    for part in ("train2017", "val2017"):
        for path in (root / part).iterdir():
            path.unlink()
    again = read(root, cache=str(cache))
    for name in ("train_album", "test_album"):
        assert torch.equal(getattr(first, name).images, getattr(again, name).images)
    with pytest.raises(DataError, match=r"train2017/000000000100\.png; expected an image"):
        read(root, cache=cache, size=9)
    assert sorted(cache.iterdir()) == files, "nothing half made is left"


def test_a_cache_of_other_images_or_damaged_is_made_anew(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = read(root, cache=cache)
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:-7])
    assert torch.equal(read(root, cache=cache).train_album.images, first.train_album.images)
    path = root / "annotations" / "captions_train2017.json"
    content = json.loads(path.read_text())
    content["images"] = content["images"][:2]  # the two with the highest ids
    path.write_text(json.dumps(content))
    assert torch.equal(read(root, cache=cache).train_album.images, first.train_album.images[2:])
    read(root, cache=cache, max_words=8)  # the same images
    assert len(list(cache.glob("coco-train2017-*"))) == 2
    path.write_text(json.dumps(content, indent=1))
    read(root, cache=cache)
    assert len(list(cache.glob("coco-train2017-*"))) == 3, "another file of captions"


def test_a_cache_that_cannot_be_written_is_known_before_the_images_are_read(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (root / "train2017" / file_name(0)).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cache: got .* on writing to .*file/in; expected a folder"):
        read(root, cache=tmp_path / "file" / "in")


def test_nothing_is_said_on_the_way(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(root, progress=True)
    assert capsys.readouterr() == ("", "")


def break_folder(root: Path) -> None:
    for path in (root / "train2017").iterdir():
        path.unlink()
    (root / "train2017").rmdir()


def damage(root: Path, part: str = "train2017", **fields: Any) -> None:
    """Change some fields of a part's file of captions; None takes one out."""
    content = annotations(TRAIN) | fields
    write_annotations(root, part, {name: value for name, value in content.items() if value is not None})


@pytest.mark.parametrize(
    ("harm", "messages"),
    [
        (break_folder, ("got no", "train2017; expected", "unpack train2017.zip")),
        (lambda root: (root / "annotations" / "captions_val2017.json").unlink(), ("got no", "captions_val2017.json")),
        (lambda root: (root / "annotations" / "captions_val2017.json").write_text("{"), ("captions_val2017", "JSON")),
        (lambda root: write_annotations(root, "val2017", []), ("damaged file", "captions_val2017.json")),
        (lambda root: damage(root, images=None), ("captions_train2017.json: got KeyError: 'images'",)),
        (lambda root: damage(root, annotations=None), ("captions_train2017.json: got KeyError: 'annotations'",)),
        (lambda root: damage(root, annotations=[{"id": 1, "image_id": 100}]), ("KeyError: 'caption'",)),
        (lambda root: damage(root, annotations=[{"id": 1, "caption": "a"}]), ("KeyError: 'image_id'",)),
        (lambda root: damage(root, images=[{"id": 100}]), ("KeyError: 'file_name'",)),
        (lambda root: damage(root, images=[{"file_name": "a.png"}]), ("KeyError: 'id'",)),
        (lambda root: damage(root, annotations=[{"id": 1, "image_id": 100, "caption": 3}]), ("got 3 for a text",)),
        (lambda root: damage(root, annotations=[]), ("got no caption of 7 to 29 words in", "captions_train2017.json")),
        (lambda root: (root / "val2017" / file_name(1)).unlink(), ("FileNotFoundError", "000000000101.png")),
        (lambda root: (root / "val2017" / file_name(1)).write_bytes(b"x"), ("UnidentifiedImageError", "101.png; exp")),
    ],
)
def test_what_is_missing_or_damaged_is_named(root: Path, harm: Any, messages: tuple[str, ...]) -> None:
    harm(root)
    with pytest.raises(DataError) as caught:
        read(root)
    message = str(caught.value)
    assert all(part in message for part in messages) and "\n" not in message
    assert "expected" in message and ";" in message.partition("expected")[2], "what to do"


def test_a_truncated_picture_is_named(root: Path) -> None:
    path = root / "train2017" / file_name(2)
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="jpeg")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(
        DataError, match=r"truncated.* on reading .*102\.png; expected an image that can be decoded; fetch"
    ):
        read(root)


def test_a_missing_package_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(DataError, match=r"expected the package pycocotools; pip install 'ppl_vae\[coco\]'"):
        read(root)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size: got 0, expected a whole number from 1"),
        ({"size": 8.5}, "size: got 8.5"),
        ({"size": True}, "size: got True"),
        ({"year": 2015}, "year: got 2015, expected 2014 or 2017"),
        ({"min_words": 0}, "min_words: got 0"),
        ({"least": "many"}, "least: got 'many'"),
        ({"min_words": 9, "max_words": 8}, "got min_words=9 and max_words=8"),
        ({"buckets": 10}, "buckets: got 10, expected numbers of words"),
        ({"buckets": (0, 9)}, "buckets: got"),
        ({"buckets": "abc"}, "buckets: got"),
        ({"progress": 1}, "progress: got 1"),
    ],
)
def test_settings_that_are_none_are_refused(root: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(root, **settings)


def test_a_text_reads_the_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path in quotes, or as it is; absolute, or relative to the working folder or to that of the data."""
    monkeypatch.chdir(root.parent)
    for text, folder in ((f"coco({str(root)!r}, size=8)", None), ("coco('coco')", None), (" coco(coco)", root.parent)):
        found = load_named(text, root=folder)
        assert isinstance(found, CaptionedImages) and found.shape == ((3, 8, 8) if "size" in text else (3, 32, 32))
    monkeypatch.chdir("/")
    assert len(load_named("coco('coco', size=8)", root=root.parent).train) == 8


def test_relative_paths_are_made_absolute(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    text = data.with_absolute_paths("coco(coco, size=8, cache='kept')")
    assert text == f"coco({str(root)!r}, size=8, cache={str(root.parent / 'kept')!r})"
    assert data.with_absolute_paths(text) == text
    assert data.with_absolute_paths("coco(coco)", root="there") == "coco(coco)", "relative to the folder of the data"
    assert data.with_absolute_paths("scenes(digits, size=16)") == "scenes(digits, size=16)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("coco()", r"AssertionError\), expected the folder of COCO's downloads, in quotes"),
        ("coco(/a/b)", "SyntaxError"),
        ("coco('nowhere')", "got no nowhere/train2017"),
        ("coco('nowhere', colour=True)", "no setting 'colour'"),
        ("coco('nowhere', size=open('x'))", "ValueError"),
        ("coco('nowhere', size='a')", "size: got 'a'"),
        ("coco('nowhere', cache=3)", "expected the folder"),
        ("coco('nowhere', **{})", "ValueError|no setting|TypeError"),
        (f"coco('{'x' * 5000}')", "got"),
    ],
)
def test_texts_that_are_no_coco_are_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_named(text)
    with pytest.raises(DataError, match="binarisation 'static', expected 'none'"):
        load_named("coco('nowhere')", binarisation="static")


def test_names_with_hyphens_are_read_as_they_are() -> None:
    """Not as a difference of two names."""
    for text in ("scenes(fashion-nothing, size=60)", "scenes('fashion-nothing', size=60)"):
        with pytest.raises(DataError, match="got data set 'fashion-nothing'"):
            load_named(text)
