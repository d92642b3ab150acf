"""Captioned scenes: published places, words and facts, what is held out, exact colours, fresh draws."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.data.dataset import DataError, Dataset
from ppl_vae.data.loaders import load
from ppl_vae.data.scene_facts import PLACES, scaled
from ppl_vae.data.scenes import Scenes, scenes

RED, YELLOW, GREEN, BLUE = range(4)
RGB = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]])
BANNED = (3, 5, 3, 3, 0, 9, 7, 1, 2, 4, 6, 8)


def solid(size: int, grey: float = 1.0) -> Dataset:
    """Ten digits, each a solid block."""
    x, labels = torch.full((10, 1, size, size), grey), torch.arange(10)
    return Dataset(name="solid", train=x, test=x, train_labels=labels, test_labels=labels)


def all_facts(coloured: bool) -> Tensor:
    """Every scene there can be, by loops."""
    rows = []
    for place, a, b in product(range(8), range(10), [*range(10), -1]):
        if (place < 4) != (b >= 0):
            continue
        if not coloured:
            rows.append([place, a, b, -1, -1, -1])
            continue
        for ink, second, ground in product(range(4), range(4) if b >= 0 else [-1], range(4)):
            if ground not in (ink, second):
                rows.append([place, a, b, ink, second, ground])
    return torch.tensor(rows)


def is_banned(place: int, a: int, b: int, banned: tuple[int, ...] = BANNED) -> bool:
    """The rule once more, spelt out."""
    if place >= 4:
        return a == banned[8 + place - 4]
    return a == banned[2 * place] or b == banned[2 * place + 1]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="module")
def plain(digits: Dataset) -> Scenes:
    return scenes(digits, size=20, banned=BANNED, num_train=20_000, num_test=200)


@pytest.fixture(scope="module")
def coloured(digits: Dataset) -> Scenes:
    return scenes(digits, size=20, coloured=True, banned=BANNED, num_train=20_000, num_test=200)


def corners(data: Scenes, place: int, number: int) -> list[tuple[tuple[int, int], ...]]:
    """Top row and left column of the box of each digit, read off the colours of half-grey blocks."""
    two = place < 4
    row = [place, 1, 2 if two else -1, RED, BLUE if two else -1, GREEN]
    x = data.compose(torch.tensor([row]).expand(number, -1))
    found = []
    for scene in x:
        boxes = []
        for channel in (0, 2) if two else (0,):  # a half-grey block over another leaves a quarter: both are seen
            rows, columns = (scene[channel] > 0).nonzero().unbind(1)
            h = data.train_digits.size
            assert len(rows) == h * h and rows.max() - rows.min() == columns.max() - columns.min() == h - 1
            boxes.append((int(rows.min()), int(columns.min())))
        found.append(tuple(boxes))
    return found


MIDDLE, UP, DOWN, LEFT, RIGHT = range(16, 19), range(3), range(30, 33), range(5), range(28, 33)
PUBLISHED = {
    "left": ((MIDDLE, LEFT), (MIDDLE, RIGHT)),
    "right": ((MIDDLE, RIGHT), (MIDDLE, LEFT)),
    "top": ((UP, MIDDLE), (DOWN, MIDDLE)),
    "bottom": ((DOWN, MIDDLE), (UP, MIDDLE)),
    "top left": ((UP, LEFT),),
    "bottom right": ((DOWN, RIGHT),),
    "top right": ((UP, RIGHT),),
    "bottom left": ((DOWN, LEFT),),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_digits_lie_where_they_were_published_to(name: str) -> None:
    """All places of the ranges and no others, by the pixels; of 400 scenes one in 1e35 times a place is missing."""
    place = PLACES.index(name)
    found = corners(scenes(solid(28, 0.5), size=60, coloured=True, num_train=1, num_test=1), place, 400)
    for digit, ranges in enumerate(PUBLISHED[name]):
        for axis, expected in enumerate(ranges):
            assert {boxes[digit][axis] for boxes in found} == set(expected)
    if place < 4:  # the published code draws the middle once for both
        axis = 0 if name in ("left", "right") else 1
        assert all(a[axis] == b[axis] for a, b in found)
        assert len({(a[1 - axis], b[1 - axis]) for a, b in found}) == (25 if axis == 0 else 9), "drawn apart"
    assert len({boxes[0] for boxes in found}) == 15 if place not in (2, 3) else 9, "rows and columns drawn apart"


def test_places_scale_with_the_canvas() -> None:
    data = scenes(solid(8, 0.5), size=20, coloured=True, num_train=1, num_test=1)  # m = 12: columns 0..2, rows 0..1
    assert {boxes[0] for boxes in corners(data, 0, 300)} == set(product((6, 7), (0, 1, 2)))
    assert {boxes[1] for boxes in corners(data, 0, 300)} == set(product((6, 7), (10, 11, 12)))
    assert {boxes[1] for boxes in corners(data, 2, 300)} == set(product((11, 12), (6, 7)))
    assert {boxes[0] for boxes in corners(data, 5, 300)} == set(product((11, 12), (10, 11, 12)))


@pytest.mark.parametrize("kind", ["plain", "coloured"])
def test_words_and_facts_tell_the_same(kind: str, request: pytest.FixtureRequest) -> None:
    data: Scenes = request.getfixturevalue(kind)
    facts = all_facts(data.coloured)
    assert len(facts) == (4 * 100 * 36 + 4 * 10 * 12 if data.coloured else 4 * 100 + 4 * 10)
    texts = data.texts(facts)
    assert len(set(texts)) == len(facts)
    step = 11 if data.coloured else 1  # a caption takes half a millisecond
    assert torch.equal(torch.cat([data.facts_of(text) for text in texts[::step]]), facts[::step])
    captions = data.captions(facts)
    assert torch.equal(captions, data.vocabulary.encode(texts, length=data.caption_length))
    assert data.vocabulary.decode(captions) == texts
    assert data.caption_length == max(len(text.split()) for text in texts)
    assert set(captions.unique().tolist()) | {0} == set(range(len(data.vocabulary)))


def test_captions_read_as_published(plain: Scenes, coloured: Scenes) -> None:
    facts = torch.tensor([[place, 3, 7 if place < 4 else -1, -1, -1, -1] for place in range(8)])
    assert plain.texts(facts) == [
        "the digit three is on the left of the digit seven .",
        "the digit three is on the right of the digit seven .",
        "the digit three is at the top of the digit seven .",
        "the digit three is at the bottom of the digit seven .",
        "the digit three is at the top left of the image .",
        "the digit three is at the bottom right of the image .",
        "the digit three is at the top right of the image .",
        "the digit three is at the bottom left of the image .",
    ]
    assert (plain.captions(facts) > 0).all() and plain.caption_length == 12
    digit_words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    others = ["the", "digit", "is", "on", "at", "left", "right", "bottom", "top", "of", "image", "."]
    assert list(plain.vocabulary.words) == digit_words + others and len(plain.vocabulary.words) == 22
    text = "a red three is on the left of a blue seven on a green field ."
    assert coloured.facts_of(text).tolist() == [[0, 3, 7, RED, BLUE, GREEN]]
    assert coloured.facts_of("A yellow nine is at the top left of a blue field.").tolist() == [[4, 9, -1, 1, -1, 3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the digit thre is at the top left of the image .", "got the word 'thre' in .* nearest .'three'"),
        ("the digit three is on the top left of the image .", "expected one of 'the digit A is on the left of"),
        ("the digit three is at the top left of the image", "put it so"),
        ("the digit the is at the top left of the image .", "put it so"),
        ("", "got the empty caption ''"),
    ],
)
def test_a_text_of_no_scene_is_refused(plain: Scenes, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        plain.facts_of(text)


def test_ink_of_the_field_s_colour_is_refused(coloured: Scenes) -> None:
    for text in ("a red three is at the top left of a red field .", "a red one is on the left of a blue six on a blue"):
        with pytest.raises(DataError, match="a field of another colour than the inks"):
            coloured.facts_of(text.removesuffix(" field .") + " field .")


@pytest.mark.parametrize("kind", ["plain", "coloured"])
def test_what_is_held_out_never_occurs_and_all_else_does(kind: str, request: pytest.FixtureRequest) -> None:
    """By enumeration. Of 20,000 scenes an allowed combination is missing once in 1e10 seeds."""
    data: Scenes = request.getfixturevalue(kind)
    combinations = {tuple(row) for row in all_facts(False)[:, :3].tolist()}
    banned = {row for row in combinations if is_banned(*row)}
    assert len(banned) == 4 * 19 + 4
    assert {tuple(row) for row in data.train[:, :3].tolist()} == combinations - banned
    assert {tuple(row) for row in data.test[:, :3].tolist()} <= combinations - banned
    assert {tuple(row) for row in data.held_out(5_000)[:, :3].tolist()} == banned
    assert torch.equal(data.held_out(5_000)[:7], data.held_out(7))
    assert not torch.equal(data.train[:200], data.test)


def test_all_colours_occur_that_may(coloured: Scenes) -> None:
    for facts in (coloured.train, coloured.held_out(5_000)):
        triples = {tuple(row) for row in facts[facts[:, 0] < 4][:, 3:].tolist()}
        assert triples == {t for t in product(range(4), repeat=3) if t[2] not in t[:2]}
        pairs = {tuple(row) for row in facts[facts[:, 0] >= 4][:, 3:].tolist()}
        assert pairs == {(i, -1, f) for i, f in product(range(4), repeat=2) if i != f}


def test_templates_digits_and_colours_are_equiprobable(coloured: Scenes) -> None:
    """Chi-squared of nine counts, each of which fails once in 1e6 seeds: together once in 1e5."""
    facts = coloured.train
    counts = [torch.bincount(facts[:, 0])]
    for place in range(4):
        first = facts[facts[:, 0] == place, 1]
        counts.append(torch.bincount(first, minlength=10)[torch.arange(10) != BANNED[2 * place]])
    second = facts[facts[:, 0] == 0, 2]
    counts.append(torch.bincount(second, minlength=10)[torch.arange(10) != BANNED[1]])
    two = facts[facts[:, 0] < 4]
    triples = torch.bincount(two[:, 3:] @ torch.tensor([16, 4, 1]), minlength=64)
    counts += [torch.bincount(facts[:, 3]), torch.bincount(facts[:, 5]), triples[triples > 0]]
    assert len(counts) == 9 and len(counts[-1]) == 36 and min(map(len, counts)) >= 4
    assert all(chisquare(count.numpy()).pvalue > 1e-6 for count in counts)


def test_bans_come_from_the_seed_or_the_caller(digits: Dataset) -> None:
    drawn = [scenes(digits, size=16, num_train=2, num_test=2, seed=seed).banned for seed in range(200)]
    assert {digit for banned in drawn for digit in banned} == set(range(10)), "0 to 9, so that each bans something"
    assert drawn[3] == scenes(digits, size=16, num_train=5, num_test=5, seed=3).banned != drawn[4]
    free = scenes(digits, size=16, num_train=20_000, num_test=2, banned=[-1] * 12)
    assert len({tuple(row) for row in free.train.tolist()}) == 440
    with pytest.raises(DataError, match="some digit banned in the templates used"):
        free.held_out(3)
    one = scenes(digits, size=16, num_train=2, num_test=2, banned=[-1, 4] + [-1] * 10)
    assert {tuple(row[:3]) for row in one.held_out(1_000).tolist()} == {(0, a, 4) for a in range(10)}
    with pytest.raises(DataError, match="got 1 training scenes with a banned digit in its slot"):
        replace(one, train=torch.tensor([[0, 4, 4, -1, -1, -1], [1, 4, 4, -1, -1, -1], [4, 4, -1, -1, -1, -1]]))


def test_templates_may_be_chosen(digits: Dataset) -> None:
    data = scenes(digits, size=16, templates=("top right", 1), num_train=2_000, num_test=2)
    assert data.templates == (1, 6) and set(data.train[:, 0].tolist()) == {1, 6}
    assert data.describe()["templates"] == ["right", "top right"]
    corner = scenes(digits, size=16, templates="top left", num_train=20, num_test=2)
    assert set(corner.attributes(corner.train)) == {"place", "digit"}
    assert corner.captions(corner.train).shape == (20, 12)


def labelled(offset: float) -> tuple[Tensor, Tensor]:
    """Three images of each class in mixed order; each a constant that tells the class and which of the three."""
    classes = torch.arange(30) * 7 % 10
    which = torch.arange(30) // 10
    return (offset + classes / 32 + which / 1024)[:, None, None, None].expand(30, 1, 4, 4).clone(), classes


def test_each_digit_is_some_image_of_its_class() -> None:
    """All three of each class, of train or of test; of 600 scenes one is missing once in 1e50 seeds."""
    (train, train_labels), (test, test_labels) = labelled(1 / 64), labelled(1 / 2)
    source = Dataset(name="told", train=train, test=test, train_labels=train_labels, test_labels=test_labels)
    data = scenes(source, size=12, num_train=1, num_test=600, banned=[-1] * 12, templates=("left", "top left"))
    facts = torch.tensor([[0, 3, 8, -1, -1, -1], [4, 6, -1, -1, -1, -1]]).repeat(600, 1)
    for part, offset in ((False, 1 / 64), (True, 1 / 2)):
        x = data.compose(facts, test=part)
        values = [set(scene.unique().tolist()) - {0.0} for scene in x]
        three = {offset + which / 1024 for which in range(3)}
        assert set.union(*values[0::2]) == {v + 3 / 32 for v in three} | {v + 8 / 32 for v in three}
        assert set.union(*values[1::2]) == {v + 6 / 32 for v in three}
        assert len({frozenset(v) for v in values[0::2]}) == 9, "drawn apart"
    grey, _ = replace(data, binarisation="none").test_batch()
    assert grey[grey > 0].min() >= 1 / 2, "the test set is of the test set's digits"


def test_colours_are_exact_at_ink_and_field() -> None:
    data = scenes(solid(28), size=60, coloured=True, num_train=300, num_test=1)
    images = data.compose(data.train)
    for x, (_, _, second, ink, second_ink, ground) in zip(images, data.train.tolist(), strict=True):
        expected = {tuple(RGB[ink].tolist()), tuple((RGB[ground] / 2).tolist())}
        if second >= 0:
            expected.add(tuple(RGB[second_ink].tolist()))
        assert {tuple(pixel) for pixel in x.flatten(1).T.unique(dim=0).tolist()} == expected
    x, _ = data.draw(data.facts_of("a yellow one is at the top left of a blue field ."))
    assert x[0, :, 30, 30].tolist() == [0, 0, 0.5] and x[0, :, 10, 10].tolist() == [1, 1, 0]


def test_greys_mix_ink_and_field(plain: Scenes, coloured: Scenes) -> None:
    facts = coloured.train[coloured.train[:, 0] >= 4][:100]
    bare = torch.cat([facts[:, :3], torch.full((100, 3), -1)], dim=1)
    m = plain.compose(bare, torch.Generator().manual_seed(5))
    x = coloured.compose(facts, torch.Generator().manual_seed(5))
    ink, ground = RGB[facts[:, 3]][..., None, None], RGB[facts[:, 5]][..., None, None] / 2
    assert (x - (ground * (1 - m) + ink * m)).abs().max() < 1e-6
    assert ((m > 0) & (m < 1)).any() and m.sum() > 0


def test_digits_are_shrunk_by_area(digits: Dataset) -> None:
    data = scenes(digits, size=8, digit_size=4, num_train=1, num_test=1, templates=("top left",))
    facts = torch.tensor([[4, 3, -1, -1, -1, -1]]).expand(50, -1)
    assert digits.train_labels is not None
    known = digits.train[digits.train_labels == 3, 0].unflatten(1, (4, 2)).unflatten(3, (4, 2)).mean((2, 4))
    for x in data.compose(facts):  # m = 4: no jitter
        assert not x[0, 4:].any() and not x[0, :, 4:].any()
        assert (known - x[0, :4, :4]).abs().amax((1, 2)).min() < 1e-6
    assert data.levels == 256 and scenes(digits, size=16, num_train=1, num_test=1).levels == 17


def test_draws_are_fresh_bits_and_follow_the_global_stream(plain: Scenes) -> None:
    facts = plain.train[:64]
    torch.manual_seed(1)
    first, captions = plain.draw(facts)
    second, _ = plain.draw(facts)
    torch.manual_seed(1)
    again, _ = plain.draw(facts)
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert first.shape == (64, 1, 20, 20) == (64, *plain.shape) and ((first == 0) | (first == 1)).all()
    assert torch.equal(captions, plain.captions(facts))
    torch.manual_seed(2)
    grey, _ = replace(plain, binarisation="none").draw(facts)
    torch.manual_seed(2)
    assert torch.equal(grey, plain.compose(facts)) and len(grey.unique()) > 5
    certain = plain.compose(facts, torch.Generator().manual_seed(0))
    assert torch.equal(certain, plain.compose(facts, torch.Generator().manual_seed(0)))


def test_the_test_set_is_the_same_in_every_run(plain: Scenes, coloured: Scenes) -> None:
    for data in (plain, coloured):
        x, captions = data.test_batch()
        torch.manual_seed(99)
        state = torch.get_rng_state()
        for same in (data, data.to("cpu"), replace(data, train=data.train[:1])):
            assert torch.equal(same.test_batch()[0], x) and torch.equal(same.test_batch()[1], captions)
        assert torch.equal(torch.get_rng_state(), state), "the global stream must not move"
        assert torch.equal(data.subset(num_test=33).test_batch()[0], x[:33])
        assert not torch.equal(replace(data, seed=1).test_batch()[0], x)
        assert x.shape == (200, *data.shape) and torch.equal(captions, data.captions(data.test))
        binary = bool(((x == 0) | (x == 1)).all())
        assert binary == (data.binarisation == "dynamic") == (not data.coloured)


def test_the_first_scenes_do_not_depend_on_how_many_follow(digits: Dataset, coloured: Scenes) -> None:
    fewer = scenes(digits, size=20, coloured=True, banned=BANNED, num_train=17, num_test=5)
    assert torch.equal(fewer.train, coloured.train[:17]) and torch.equal(fewer.test, coloured.test[:5])
    other = scenes(digits, size=20, coloured=True, banned=BANNED, num_train=17, num_test=5, seed=1)
    assert not torch.equal(fewer.train, other.train) and not torch.equal(fewer.test, other.test)


def test_pixel_means_are_near_those_of_many_draws(plain: Scenes) -> None:
    """By Bernstein's inequality for each of 400 pixels; fails by chance once in 1e5 seeds at most."""
    means = plain.pixel_means
    assert means.shape == plain.shape and torch.equal(means, plain.pixel_means)
    many = plain.compose(plain.train)
    level = torch.tensor(2 * 2 * 400 * 1e5).log()  # of each of the two means
    allowed = torch.stack([(2 * many.var(0) * level / n).sqrt() + level / (3 * n) for n in (2_000, 20_000)]).sum(0)
    assert allowed.max() < 0.1, "means that tell something"
    assert ((means - many.mean(0)).abs() <= allowed).all()


@pytest.mark.parametrize("kind", ["plain", "coloured"])
def test_a_draw_is_recorded_by_the_tracer(kind: str, request: pytest.FixtureRequest) -> None:
    """A word to the host would raise, and one from it, a new constant, would be recorded as `lift_fresh`."""
    data: Scenes = request.getfixturevalue(kind)
    trace = make_fx(lambda facts: data.draw(facts), tracing_mode="fake", _allow_non_fake_inputs=True)
    graph = trace(data.train[:5])
    operations = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    assert "aten.scatter_.src" in operations and not any("lift" in name for name in operations)
    x, captions = graph(data.train[5:10])
    assert x.shape == (5, *data.shape) and torch.equal(captions, data.captions(data.train[5:10]))


def test_uniform_numbers_never_reach_the_end() -> None:
    number = torch.arange(1, 100_000)
    assert torch.equal(scaled(torch.full((99_999,), 1 - 2**-24), number), number - 1)
    assert torch.equal(scaled(torch.full((99_999,), 1 - 2**-53, dtype=torch.float64), number), number - 1)


def test_attributes_are_the_facts_by_name(plain: Scenes, coloured: Scenes) -> None:
    facts = torch.tensor([[0, 3, 7, RED, BLUE, GREEN], [6, 2, -1, BLUE, -1, YELLOW]])
    told = {name: classes.tolist() for name, classes in coloured.attributes(facts).items()}
    assert told == {
        "place": [0, 6],
        "digit": [3, 2],
        "second digit": [7, -1],
        "ink": [RED, BLUE],
        "second ink": [BLUE, -1],
        "field": [GREEN, YELLOW],
    }
    assert list(plain.attributes(plain.test)) == ["place", "digit", "second digit"]


def test_one_attribute_flips_at_a_time(coloured: Scenes) -> None:
    facts = torch.tensor([[0, 3, 7, RED, BLUE, GREEN]])
    assert coloured.flipped(facts, "digit", "nine").tolist() == [[0, 9, 7, RED, BLUE, GREEN]]
    assert coloured.flipped(facts, "second digit", 0).tolist() == [[0, 3, 0, RED, BLUE, GREEN]]
    assert coloured.flipped(facts, "place", "bottom").tolist() == [[3, 3, 7, RED, BLUE, GREEN]]
    assert coloured.flipped(facts, "ink", BLUE).tolist() == [[0, 3, 7, BLUE, BLUE, GREEN]]
    assert coloured.flipped(facts, "field", "yellow").tolist() == [[0, 3, 7, RED, BLUE, YELLOW]]
    assert facts.tolist() == [[0, 3, 7, RED, BLUE, GREEN]], "its argument stays"


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("ink", "green", "a field of another colour than the inks"),
        ("field", BLUE, "a field of another colour than the inks"),
        ("digit", 10, "got digit 10, expected one of zero, one"),
        ("digit", -1, "got digit -1"),
        ("digit", "ten", "got digit 'ten'"),
        ("place", "top left", "a second digit 0 to 9 where there are two"),
        ("size", 1, "got attribute 'size', expected one of place, digit, second digit, ink, second ink, field"),
    ],
)
def test_a_flip_to_no_scene_is_refused(coloured: Scenes, attribute: str, value: int | str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        coloured.flipped(torch.tensor([[0, 3, 7, RED, BLUE, GREEN]]), attribute, value)
    with pytest.raises(DataError, match="in row 1, expected a second digit"):
        coloured.flipped(torch.tensor([[0, 3, 7, 0, 3, 2], [4, 3, -1, 0, -1, 2]]), "second digit", 5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([8, 1, -1, -1, -1, -1], "expected a place 0 to 7"),
        ([-1, 1, -1, -1, -1, -1], "expected a place 0 to 7"),
        ([0, 10, 1, -1, -1, -1], "expected a digit 0 to 9"),
        ([0, 1, -1, -1, -1, -1], "expected a second digit 0 to 9 where there are two"),
        ([4, 1, 1, -1, -1, -1], "else -1"),
        ([4, 1, -1, 0, -1, -1], "expected an ink 0 to 3 if the scenes are coloured, else -1"),
        ([4, 1, -1, -1, -1, 0], "expected a field 0 to 3 if the scenes are coloured, else -1"),
        ([4, 1, -1], r"got facts \(1, 3\) torch.int64, expected \(number, 6\)"),
    ],
)
def test_facts_of_no_scene_are_refused(plain: Scenes, row: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        plain.texts(torch.tensor([row]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 15}, "got a canvas of 15 for digits of 8 .* at most half the canvas"),
        ({"size": True}, "size: got True"),
        ({"size": 16.5}, "size: got 16.5"),
        ({"coloured": 1}, "coloured: got 1, expected True or False"),
        ({"digit_size": 0}, "digit_size: got 0, expected a whole number"),
        ({"num_train": 0}, "num_train: got 0, expected"),
        ({"num_test": -1}, "num_test: got -1, expected"),
        ({"templates": ()}, "got templates .., expected some of left, right"),
        ({"templates": (0, "left")}, "each once"),
        ({"templates": ("middle",)}, "got templates .'middle'."),
        ({"templates": (8,)}, "got templates .8."),
        ({"banned": [10] + [0] * 11}, "expected 12 digits 0 to 9, or -1"),
        ({"banned": [0] * 11}, "expected 12 digits"),
        ({"binarisation": "static"}, "got binarisation 'static'; expected 'dynamic'"),
        ({"seed": 0.5}, "seed: got 0.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(digits: Dataset, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scenes(digits, **({"size": 20, "num_train": 2, "num_test": 2} | fields))  # type: ignore[arg-type]


def test_digits_that_cannot_be_placed_are_refused(digits: Dataset) -> None:
    with pytest.raises(DataError, match=r"train: got the classes \[\], expected some of each of 0 to 9; give labelled"):
        scenes(replace(digits, train_labels=None), size=20)
    with pytest.raises(DataError, match=r"test: got the classes \[7\], expected some of each"):
        scenes(digits.subset(num_test=1), size=20)
    wide = torch.zeros(10, 1, 8, 9)
    with pytest.raises(DataError, match=r"got Tensor \(10, 1, 8, 9\), expected a tensor of square grey images"):
        scenes(replace(digits, train=wide, test=wide, train_labels=None, test_labels=None), size=20)


def test_description_goes_to_json_and_back(plain: Scenes, coloured: Scenes) -> None:
    described = json.loads(json.dumps(coloured.describe()))
    assert described == coloured.describe()
    expected = {"name": "digits-coloured-scenes", "num_train": 20_000, "num_test": 200, "shape": [3, 20, 20]}
    expected |= {"size": 20, "digit_size": 8, "coloured": True, "banned": list(BANNED), "binarisation": "none"}
    expected |= {"templates": list(PLACES), "levels": 256, "seed": 0, "note": load("digits").note}
    assert described == expected
    assert plain.describe()["binarisation"] == "dynamic" and plain.name == "digits-scenes"
    assert repr(plain).startswith("Scenes(name='digits-scenes'") and len(repr(plain)) < 600


def test_subset_is_the_first_so_many_and_says_so(plain: Scenes) -> None:
    small = plain.subset(num_train=10, num_test=200)
    assert torch.equal(small.train, plain.train[:10]) and len(small.test) == 200
    assert small.note.endswith("only the first 10 of 20,000 train scenes")
    with pytest.raises(DataError, match="num_test=201; expected 1 to 200"):
        plain.subset(num_test=201)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_a_gpu_composes_without_waiting_and_inside_a_graph(plain: Scenes, coloured: Scenes) -> None:
    for data in (plain, coloured):
        moved = data.to("cuda")
        x, captions = moved.test_batch()
        assert x.is_cuda and torch.equal(x.cpu(), data.test_batch()[0])
        assert torch.equal(captions.cpu(), data.test_batch()[1]) and moved.held_out(3).is_cuda
        facts = moved.train[:32]
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            moved.draw(facts)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            moved.draw(facts)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            x, captions = moved.draw(facts)
        graph.replay()
        first = x.clone()
        graph.replay()
        assert not torch.equal(first, x) and torch.equal(captions.cpu(), data.captions(facts.cpu()))
