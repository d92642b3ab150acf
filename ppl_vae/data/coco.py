"""MS COCO: photographs with five captions each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ppl_vae.data.album import Album
from ppl_vae.data.buckets import check_buckets, ending_with
from ppl_vae.data.captioned import CaptionedImages
from ppl_vae.data.captions import Vocabulary, tokens
from ppl_vae.data.coco_files import CocoFiles
from ppl_vae.data.counts import check_counts
from ppl_vae.data.dataset import DataError

UNKNOWN = "<unk>"
"""The word that rare ones become."""

YEARS = (2014, 2017)


def coco(
    root: str | Path,
    *,
    size: int = 32,
    year: int = 2017,
    min_words: int = 7,
    max_words: int = 29,
    buckets: Sequence[int] = (10, 12, 15),
    least: int = 5,
    cache: str | Path | None = None,
    progress: bool = True,
) -> CaptionedImages:
    """MS COCO's captioned images: its train part to train on, its val part as test set.

    As published for alignDRAW: 32 x 32 images, captions of 7 <= words < 30, and all captions of a batch of one length.
    Here a batch is of one bucket of lengths instead, padded to its width: `buckets=range(7, 30)` is as published.
    Four widths by default: `compile="inductor"` compiles as many. Each bucket needs a batch of captions, or it is never
    trained on (`fit` says so).

    "." and "," at a word's end count as words of their own. Captions of other lengths are left out, and so are images
    without any that is left; the note counts them.

    Decoding the 118,000 images of 2017 (83,000 of 2014) takes minutes, each time unless there is a `cache`.

    Args:
        root: the folder with `train2017`, `val2017`, `annotations/captions_train2017.json` and
            `annotations/captions_val2017.json`, as they are published.
        size: of the images: their centre square, resized with antialiasing, always in colour.
        year: 2017 or 2014.
        min_words, max_words: of a caption, both included.
        buckets: widths of captions in a batch; the longest caption is the last, and larger ones play no part.
        least: words that occur less often in the training captions become "<unk>".
        cache: a folder in which the resized images are kept, a file for each part (360 MB for 2017 at a size of 32).
        progress: show a bar with the time left.

    Raises:
        DataError: a missing or damaged file, named; no captions of such lengths; wrong settings; no pycocotools.

    References:
        Lin et al. Microsoft COCO: common objects in context. ECCV 2014.
        Mansimov, Parisotto, Ba, Salakhutdinov. Generating images from captions with attention. ICLR 2016, section 4.
    """
    whole = {"size": size, "min_words": min_words, "max_words": max_words, "least": least}
    _check(year, buckets, progress, **whole)
    files = [CocoFiles(Path(root).expanduser(), f"{part}{year}") for part in ("train", "val")]
    kept = [_kept(part, min_words, max_words) for part in files]
    vocabulary = Vocabulary.from_texts(kept[0].texts, least=least, unknown=UNKNOWN)
    longest = max(len(tokens(text)) for chosen in kept for text in chosen.texts)
    place = None if cache is None else Path(cache).expanduser()
    albums = []
    for part, chosen in zip(files, kept, strict=True):
        captions, image = vocabulary.encode(chosen.texts, longest), torch.tensor(chosen.image)
        albums.append(Album(torch.from_numpy(part.pixels(chosen.images, size, place, progress)), captions, image))
    lengths = f"COCO {year}, centre squares, tested on val{year}; captions of {min_words} to {max_words} words"
    rare = f"words that occur less than {least} times in train are {UNKNOWN}"
    return CaptionedImages(
        name=f"coco{year}",
        train_album=albums[0],
        test_album=albums[1],
        vocabulary=vocabulary,
        buckets=ending_with(buckets, longest),
        note="; ".join(filter(None, [lengths, rare, *(chosen.note for chosen in kept)])),
    )


class _Kept(NamedTuple):
    """Images that have captions of the right lengths, those captions, the place of the image of each, and the rest."""

    images: list[int]
    texts: list[str]
    image: list[int]
    note: str


def _kept(part: CocoFiles, min_words: int, max_words: int) -> _Kept:
    lengths = [[len(tokens(text)) for text in texts] for texts in part.texts]
    rows = [
        (number, [text for text, words in zip(texts, of_image, strict=True) if min_words <= words <= max_words])
        for number, (texts, of_image) in enumerate(zip(part.texts, lengths, strict=True))
    ]
    rows = [(number, texts) for number, texts in rows if texts]
    if not rows:
        raise DataError(
            f"coco: got no caption of {min_words} to {max_words} words in {part.annotations}, expected at least one; "
            "change min_words or max_words, or fetch the file again"
        )
    return _Kept(
        [number for number, _ in rows],
        [text for _, texts in rows for text in texts],
        [place for place, (_, texts) in enumerate(rows) for _ in texts],
        _left_out(part.part, lengths, len(rows), min_words, max_words),
    )


def _left_out(part: str, lengths: list[list[int]], images: int, min_words: int, max_words: int) -> str:
    """What is not used, in words; nothing where all is."""
    flat = [words for of_image in lengths for words in of_image]
    counts = {
        "empty": sum(words == 0 for words in flat),
        f"below {min_words} words": sum(0 < words < min_words for words in flat),
        f"above {max_words}": sum(words > max_words for words in flat),
    }
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in counts.items() if number)
    captions = f"{sum(counts.values()):,} of {len(flat):,} captions ({reasons})" if reasons else ""
    without = len(lengths) - images
    pictures = f"{without:,} of {len(lengths):,} images without captions" if without else ""
    told = " and ".join(filter(None, [captions, pictures]))
    return f"{part}: left out {told}" if told else ""


def _check(year: Any, buckets: Any, progress: Any, **whole: Any) -> None:
    if year not in YEARS:
        raise DataError(f"year: got {year!r}, expected {' or '.join(map(str, YEARS))}; give one of them")
    check_counts(**whole)
    least, most = whole["min_words"], whole["max_words"]
    if least > most:
        raise DataError(
            f"got min_words={least} and max_words={most}, expected no more at least than at most; swap them"
        )
    check_buckets(buckets)
    if not isinstance(progress, bool):
        raise DataError(f"progress: got {progress!r}, expected True or False; give one of them")
