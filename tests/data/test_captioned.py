"""Captioned images: exact grey values, batches of one width that lose no word, parts that share no image."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.data import Album, CaptionedImages, DataError, Vocabulary

WORDS = Vocabulary(("<unk>", "a", "b", "c"), unknown="<unk>")
BUCKETS = (2, 4, 7)


def album(number: int, seed: int) -> Album:
    """Images, each of one grey value of its own, with one to three captions of 1 to 7 words."""
    generator = torch.Generator().manual_seed(seed)
    several = torch.randint(1, 4, (number,), generator=generator)
    image = torch.arange(number).repeat_interleave(several)
    captions = torch.randint(1, len(WORDS), (len(image), 7), generator=generator)
    lengths = torch.randint(1, 8, (len(image), 1), generator=generator)
    pixels = (torch.arange(number) + 100 * seed).to(torch.uint8)
    return Album(pixels.view(-1, 1, 1, 1).expand(-1, 3, 4, 4), captions * (torch.arange(7) < lengths), image)


@pytest.fixture(scope="module")
def data() -> CaptionedImages:
    return CaptionedImages(
        name="plain", train_album=album(30, 0), test_album=album(9, 1), vocabulary=WORDS, buckets=BUCKETS
    )


def greys(x: Tensor) -> list[int]:
    """The byte that each image is made of."""
    assert x.dtype == torch.float32 and torch.equal(x, x[:, :1, :1, :1].expand_as(x))
    return (x[:, 0, 0, 0] * 255).round().int().tolist()


def test_bytes_become_exact_grey_values() -> None:
    """All 256 of them, as numpy divides."""
    pixels = torch.arange(256).to(torch.uint8).view(256, 1, 1, 1)
    every = Album(pixels, torch.ones(256, 1, dtype=torch.int64), torch.arange(256))
    expected = torch.from_numpy(pixels.numpy().astype("float32") / 255)
    assert torch.equal(every.grey(), expected) and torch.equal(every.pairs(torch.arange(256))[0], expected)


def test_a_batch_has_one_width_and_all_words(data: CaptionedImages) -> None:
    """Against rows by hand: images of the captions, words up to the padding, the narrowest bucket that fits."""
    batches = data.minibatches(4, seed=1)
    widths = Counter[int]()
    for _ in range(2 * batches.steps_per_pass):
        x, captions = batches.next()
        assert batches.indices is not None
        rows = batches.indices.tolist()
        assert greys(x) == [int(data.train_album.image[row]) for row in rows]
        whole = data.train_album.captions[batches.indices]
        assert data.vocabulary.decode(captions) == data.vocabulary.decode(whole)
        for row in whole:
            words = int((row != 0).sum())
            assert captions.shape[1] == min(width for width in BUCKETS if width >= words)
        widths[captions.shape[1]] += 1
        assert x.shape == (4, 3, 4, 4) and captions.dtype == torch.int64
    counts = Counter(data.widths().tolist())
    assert widths == {width: 2 * (count // 4) for width, count in counts.items()} and set(widths) == set(BUCKETS)


def test_a_draw_is_recorded_by_the_tracer(data: CaptionedImages) -> None:
    """A word to the host would raise, and one from it, a new constant, would be recorded as `lift_fresh`."""
    trace = make_fx(lambda rows: data.draw(rows, 4), tracing_mode="fake", _allow_non_fake_inputs=True)
    assert not any("lift_fresh" in str(node.target) for node in trace(data.train[:5]).graph.nodes)


def test_the_test_set_is_each_image_with_its_first_caption(data: CaptionedImages) -> None:
    x, captions = data.test_batch()
    assert greys(x) == list(range(100, 109)) and captions.shape == (9, data.caption_length)
    for number in range(9):
        several = data.test_album.captions_of(number)
        assert torch.equal(several, data.test_album.captions[data.test_album.image == number])
        assert torch.equal(captions[number], several[0])
    assert sum(len(data.test_album.captions_of(n)) for n in range(9)) == len(data.test_album.captions)
    assert all(torch.equal(a, b) for a, b in zip(data.to("cpu").test_batch(), (x, captions), strict=True))
    assert torch.equal(data.conditions(11), torch.cat([captions, captions[:2]]))
    with pytest.raises(DataError, match="got image 9, expected 0 to 8"):
        data.test_album.captions_of(9)


def test_what_is_held_out_takes_all_its_captions_along(data: CaptionedImages) -> None:
    left, (x, captions) = data.hold_out(10)
    assert greys(x) == list(range(20, 30)) and len(left.train_album) == 20
    assert set(greys(left.draw(left.train)[0])) == set(range(20))
    before, after = Counter(data.train_album.image.tolist()), Counter(left.train_album.image.tolist())
    assert after == {image: count for image, count in before.items() if image < 20}
    assert len(left.train) == sum(after.values())
    for number in range(10):
        assert torch.equal(captions[number], data.train_album.captions_of(20 + number)[0])
    assert left.note == "only the first 20 of 30 train images" and left.vocabulary is data.vocabulary
    with pytest.raises(DataError, match="plain: got 30 images to hold out; expected 1 to 29"):
        data.hold_out(30)


def test_subset_counts_images_and_says_so(data: CaptionedImages) -> None:
    small = replace(data, note="ours").subset(num_train=3, num_test=9)
    assert small.note == "ours; only the first 3 of 30 train images" and len(small.test_album) == 9
    assert torch.equal(small.train, torch.arange(int((data.train_album.image < 3).sum())))
    with pytest.raises(DataError, match="plain: got num_test=10; expected 1 to 9, the images there are"):
        data.subset(num_test=10)


def test_pixel_means_are_exact(data: CaptionedImages) -> None:
    expected = torch.full((3, 4, 4), sum(range(30)) / 30 / 255, dtype=torch.float64)
    assert torch.equal(data.pixel_means, expected.float()) and data.shape == (3, 4, 4)


def test_description_goes_to_json_and_back(data: CaptionedImages) -> None:
    described = json.loads(json.dumps(data.describe()))
    assert described == data.describe() and repr(data).startswith("CaptionedImages(name='plain', num_train=30")
    expected = {"num_train": 30, "num_test": 9, "train_captions": len(data.train), "vocabulary": 5}
    assert expected.items() <= described.items() and described["buckets"] == [2, 4, 7]


def test_what_someone_writes_is_read_word_by_word(data: CaptionedImages) -> None:
    assert data.read("a c B").tolist() == [[2, 4, 3, 0, 0, 0, 0]]
    with pytest.raises(DataError, match=r"got the word 'd' in 'a d', expected one of the 3 words .*nearest \('[abc]'"):
        data.read("a d")
    with pytest.raises(DataError, match="got the empty caption"):
        data.read("")
    with pytest.raises(DataError, match=r"got a caption of 8 words 'a a .*', expected 1 to 7 words; write another"):
        data.read("a " * 8)


PIXELS, ONE = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.ones(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("images", "captions", "image", "message"),
    [
        (PIXELS.float(), ONE, [0, 1], r"images: got \(2, 3, 4, 4\) torch.float32, expected"),
        (PIXELS[..., :3], ONE, [0, 1], r"images: got \(2, 3, 4, 3\)"),
        (PIXELS[:0], ONE, [0, 1], r"images: got \(0, 3, 4, 4\)"),
        (PIXELS, ONE.int(), [0, 1], r"captions: got \(2, 3\) torch.int32, expected"),
        (PIXELS, ONE[0], [0, 1], r"captions: got \(3,\)"),
        (PIXELS, torch.tensor([[1, 0], [0, 0]]), [0, 1], "captions: got 1 that are empty"),
        (PIXELS, torch.tensor([[1, 0, 1], [1, 1, 0]]), [0, 1], "captions: got 1 with padding before a word"),
        (PIXELS, ONE, [0, 0], r"image: got \(2,\) torch.int64, .* ascending from 0 to 1"),
        (PIXELS, ONE, [1, 0], "ascending"),
        (PIXELS, ONE, [0, 1, 1], r"image: got \(3,\)"),
    ],
)
def test_albums_that_are_none_are_refused(images: Tensor, captions: Tensor, image: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Album(images, captions, torch.tensor(image))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"buckets": (2, 4)}, r"plain: got buckets \(2, 4\), expected ascending .* 7"),
        ({"buckets": (4, 2, 7)}, "got buckets"),
        ({"buckets": (0, 7)}, "got buckets"),
        ({"buckets": ()}, "got buckets"),
        ({"vocabulary": Vocabulary(("a",))}, "got word ids 0 to 4 in train, expected 0 to 1"),
        ({"test_album": Album(PIXELS, ONE, torch.arange(2))}, r"\(\(3, 4, 4\), 7\) in train and \(\(3, 4, 4\), 3\)"),
    ],
)
def test_parts_that_do_not_fit_are_refused(data: CaptionedImages, fields: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(data, **fields)  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_a_gpu_draws_the_same(data: CaptionedImages) -> None:
    here, there = data.minibatches(4, seed=3), data.to("cuda").minibatches(4, seed=3)
    for _ in range(here.steps_per_pass):
        assert all(torch.equal(a, b.cpu()) for a, b in zip(here.next(), there.next(), strict=True))
