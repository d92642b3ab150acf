"""Digits on a canvas with a caption each, composed where training runs, as they are asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from ppl_vae.data.captioned import Captioned
from ppl_vae.data.captions import Vocabulary
from ppl_vae.data.dataset import Binarisation, DataError, Dataset
from ppl_vae.data.glyphs import DigitImages, Painter
from ppl_vae.data.minibatch import Minibatches
from ppl_vae.data.scene_facts import (
    DIGITS,
    FACTS,
    PLACES,
    SLOTS,
    TWO,
    check_banned,
    check_facts,
    check_templates,
    combinations,
    draw_facts,
    flipped_at_random,
    slots,
)
from ppl_vae.data.templates import Wording
from ppl_vae.seeds import check_seed, spread_seed

MEAN_SCENES = 2_000
"""Training scenes that `pixel_means` goes by."""

_STREAMS = (
    *("banned", "train", "test", "test images", "test bits", "held out", "means", "flips", "unrestricted"),
    *("held-out images", "held-out bits"),
)
"""Private streams of random numbers, all from one seed."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Scenes(Captioned):
    """Scenes of one or two digits with captions: facts are the data, images are composed from them.

    A row of facts is (place, digit, second digit, ink, second ink, field), classes as in `scene_facts.FACTS`, -1 for
    what a scene lacks; "place" is the template. Which image of a digit and where exactly it lies is drawn afresh
    each time, on the device and without a word to the host.

        x = field;  for each digit in turn: x = x (1 - m) + ink m,   m its grey values, 0 off its box.

    Plain scenes are white ink on black. Two deviations from the published code: digits are uniform over the classes,
    not over the images; and what lies under the other digit's box is not cut off (at 60 and 28 boxes overlap by 4
    columns at most, which are all but empty).

    Held out: in each of 12 slots (two for each template of two digits, one for each corner) one digit never occurs
    in training or ordinary test scenes. Build one by `scenes`.

    Args:
        name: what the data are called in tables.
        train: facts, (N, 6) int64.
        test: facts, (M, 6) int64; composed of the digits of the test set.
        train_digits: to compose from.
        test_digits: to compose `test_batch` from.
        size: S, of the canvas; at least twice the digits'.
        coloured: (3, S, S) and captions that tell inks and field, instead of (1, S, S).
        banned: the digit held out in each slot, -1 for none; 12 of them.
        templates: those of the eight that are used, ascending.
        seed: of the one draw of the test set and of the held-out facts.
        note: provenance and comparability, shown with every number.
        binarisation: "dynamic" draws bits afresh for each batch, "none" keeps grey values.
        levels: number of grey levels of the source.

    Attributes:
        vocabulary: the words of the captions, 22 of plain scenes.

    Raises:
        DataError: facts that are no scene's, banned ones in `train`, sizes that do not fit, an unknown
            binarisation, `banned` or `templates` of another form.

    References:
        Mansimov, Parisotto, Ba, Salakhutdinov. Generating images from captions with attention. ICLR 2016
            ("MNIST with captions": a canvas of 60, digits of 28).

    Example:
        >>> from ppl_vae.data import load
        >>> data = scenes(load("digits"), size=20, coloured=True, num_train=1000, num_test=100)
        >>> facts = data.facts_of("a red three is on the left of a blue seven on a green field .")
        >>> x, captions = data.draw(facts)
        >>> x.shape, data.vocabulary.decode(captions)
        (torch.Size([1, 3, 20, 20]), ['a red three is on the left of a blue seven on a green field .'])
    """

    name: str
    train: Tensor
    test: Tensor
    train_digits: DigitImages
    test_digits: DigitImages
    size: int
    coloured: bool
    banned: tuple[int, ...]
    templates: tuple[int, ...]
    seed: int = 0
    note: str = ""
    binarisation: Binarisation = "dynamic"
    levels: int = 256
    vocabulary: Vocabulary = field(init=False)
    _wording: Wording = field(init=False)
    _painter: Painter = field(init=False)

    parts = ("train", "test")
    unit = "scenes"

    def __post_init__(self) -> None:
        _check(self)
        device = self.train.device
        # made now: a captured step could not move tables to the device
        object.__setattr__(self, "_wording", Wording(self.coloured, device))
        object.__setattr__(self, "vocabulary", self._wording.vocabulary)
        object.__setattr__(self, "_painter", Painter(self.size, self.train_digits.size, self.coloured, device))

    @property
    def caption_length(self) -> int:
        """L, words of the longest caption, whichever templates are used: 12, or 16 with colours."""
        return self._wording.length

    @property
    def shape(self) -> torch.Size:
        """Event shape of an image, (C, S, S)."""
        return torch.Size((3 if self.coloured else 1, self.size, self.size))

    @property
    def pixel_means(self) -> Tensor:
        """Mean grey values of one draw, always the same, of the first 2,000 training scenes: (C, S, S)."""
        here = self.to("cpu")
        return here.compose(here.train[:MEAN_SCENES], self._stream("means")).mean(0).to(self.train.device)

    def captions(self, facts: Tensor) -> Tensor:
        """Captions of facts (B, 6) as word ids, (B, L) int64 on the device of the facts, padded on the right with 0."""
        return self._wording.ids(facts)

    def texts(self, facts: Tensor) -> list[str]:
        """Captions of facts (B, 6) as text.

        Raises:
            DataError: facts that are no scene's.
        """
        check_facts(facts, self.coloured)
        return self._wording.texts(facts)

    def facts_of(self, text: str) -> Tensor:
        """The facts of a caption, (1, 6); those held out have some too.

        Raises:
            DataError: a text of no template, an unknown word, or ink of the colour of the field.
        """
        return self._wording.facts(text).to(self.train.device)

    def compose(self, facts: Tensor, generator: torch.Generator | None = None, test: bool = False) -> Tensor:
        """Images of facts as grey values; which image of a digit, and where exactly, is drawn afresh.

        Args:
            facts: (B, 6), not checked here: that would wait for the device.
            generator: None takes the global stream of the device.
            test: whether digits are of the test set.

        Returns:
            (B, C, S, S) in [0, 1].
        """
        device = facts.device if generator is None else generator.device
        u = torch.rand(len(facts), 2, 3, generator=generator, device=device).to(facts.device)
        return self._painter.paint(facts, u, self.test_digits if test else self.train_digits)

    def draw(self, facts: Tensor) -> tuple[Tensor, Tensor]:
        """A batch as the model sees it in training: images, as bits if "dynamic", and captions.

        All random numbers are from the device's global stream: no host sync.

        Args:
            facts: rows of `train`, (B, 6).

        Returns:
            (B, C, S, S) float32 and (B, L) int64.
        """
        x = self.compose(facts)
        return torch.bernoulli(x) if self.binarisation == "dynamic" else x, self.captions(facts)

    def minibatches(self, batch_size: int, seed: int = 0, part: tuple[int, int] = (0, 1)) -> Minibatches:
        """The training scenes in batches without end, on the device of the data."""
        return Minibatches((self.train,), batch_size, seed, self.draw, part)

    def test_batch(self) -> tuple[Tensor, Tensor]:
        """The test set as evaluation sees it, images and captions: the same at every call, in every run.

        Composed on the CPU, whatever the device, of the digits of the test set; the first m scenes do not depend on
        how many follow.
        """
        here = self.to("cpu")
        x = here.compose(here.test, self._stream("test images"), test=True)
        if self.binarisation == "dynamic":
            x = torch.bernoulli(x, generator=self._stream("test bits"))
        return x.to(self.test.device), self.captions(self.test)

    def conditions(self, number: int) -> Tensor:
        """The captions of `test_batch` from the first, and once more where there are fewer, (number, L) int64."""
        return self.captions(self.test[torch.arange(number) % len(self.test)])

    def held_out(self, number: int) -> Tensor:
        """Facts with a banned digit in at least one slot, (number, 6): always the same.

        Templates are equiprobable, and in each all combinations held out. For their `test_batch`:
        `dataclasses.replace(data, test=data.held_out(1000))`.

        Raises:
            DataError: a number below 1, or nothing is banned.
        """
        groups = [held for template in self.templates if (held := combinations(template, self.banned)[1])]
        if number < 1 or not groups:
            raise DataError(
                f"{self.name}: got {number} held-out scenes to draw with banned={self.banned}, expected 1 or more, and "
                "some digit banned in the templates used; make the scenes with others"
            )
        seed = spread_seed(self.seed, _STREAMS.index("held out"))
        return draw_facts(groups, number, self.coloured, seed).to(self.train.device)

    def unrestricted(self, number: int) -> Tensor:
        """Facts of all combinations, those held out among them, (number, 6): always the same.

        Not to train a model on, but what judges it: a classifier that never saw a digit in some place would read
        another one there.

        Raises:
            DataError: a number below 1.
        """
        if number < 1:
            raise DataError(f"{self.name}: got {number} scenes to draw, expected 1 or more; 1,000, say")
        groups = [combinations(template, [-1] * SLOTS)[0] for template in self.templates]
        seed = spread_seed(self.seed, _STREAMS.index("unrestricted"))
        return draw_facts(groups, number, self.coloured, seed).to(self.train.device)

    def attributes(self, facts: Tensor) -> dict[str, Tensor]:
        """Facts by name, each (B,) int64, -1 where a scene lacks it: what a probe could learn.

        "place" and "digit"; "second digit" if a template of two is used; inks and "field" if coloured.
        """
        return {name: facts[:, list(FACTS).index(name)] for name in self._names()}

    def _names(self) -> list[str]:
        two = any(template < TWO for template in self.templates)
        coloured = [name for name in FACTS if name not in ("ink", "second ink", "field") or self.coloured]
        return [name for name in coloured if two or not name.startswith("second")]

    def flipped(self, facts: Tensor, attribute: str, value: int | str) -> Tensor:
        """The facts with one attribute changed, which may make them held-out ones.

        Args:
            facts: (B, 6).
            attribute: a name of `attributes`.
            value: its class, or the name of that: 7 or "seven".

        Raises:
            DataError: an unknown attribute or value, an attribute that some of the scenes lack, a place for another
                number of digits, or ink of the colour of the field.
        """
        self._check_name(attribute)
        classes = FACTS[attribute]
        number = classes.index(value) if value in classes else value
        if not isinstance(number, int) or not 0 <= number < len(classes):
            raise DataError(f"got {attribute} {value!r}, expected one of {', '.join(classes)}, or its number from 0")
        facts = facts.clone()
        facts[:, list(FACTS).index(attribute)] = number
        check_facts(facts, self.coloured)
        return facts

    def flips(self, facts: Tensor, attribute: str, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Facts with one attribute of each changed at random: uniform over the other values that the scene allows.

        Args:
            facts: (B, 6).
            attribute: a name of `attributes`; a place changes to another with as many digits.
            seed: of the values.

        Returns:
            The changed facts (M, 6), and the rows that they come from, (M,): the others lack the attribute, or have
            no other value.

        Raises:
            DataError: an unknown attribute.
        """
        self._check_name(attribute)
        seed = spread_seed(seed, _STREAMS.index("flips"))
        return flipped_at_random(facts, list(FACTS).index(attribute), self.templates, seed)

    def _check_name(self, attribute: str) -> None:
        if attribute not in (names := self._names()):
            raise DataError(f"got attribute {attribute!r}, expected one of {', '.join(names)}; take one of these")

    def to(self, device: torch.device | str) -> Self:
        """The same data on `device`."""
        parts = ("train", "test", "train_digits", "test_digits")
        return replace(self, **{part: getattr(self, part).to(device) for part in parts})

    def describe(self) -> dict[str, Any]:
        """What a number on these data depends on, ready for JSON."""
        return {
            "name": self.name,
            "num_train": len(self.train),
            "num_test": len(self.test),
            "shape": list(self.shape),
            "size": self.size,
            "digit_size": self.train_digits.size,
            "coloured": self.coloured,
            "templates": [PLACES[template] for template in self.templates],
            "banned": list(self.banned),
            "binarisation": self.binarisation,
            "levels": self.levels,
            "seed": self.seed,
            "note": self.note,
        }

    def _held_out(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """Composed of training digits, on the CPU."""
        x = self.to("cpu").compose(part.cpu(), self._stream("held-out images"))
        if self.binarisation == "dynamic":
            x = torch.bernoulli(x, generator=self._stream("held-out bits"))
        return x.to(part.device), self.captions(part)

    def _stream(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(spread_seed(self.seed, _STREAMS.index(name)))


def scenes(
    digits: Dataset[Any],
    *,
    size: int,
    digit_size: int | None = None,
    coloured: bool = False,
    templates: Iterable[int | str] = range(len(PLACES)),
    num_train: int = 100_000,
    num_test: int = 1_000,
    banned: Sequence[int] | None = None,
    binarisation: Binarisation | None = None,
    seed: int = 0,
    name: str | None = None,
) -> Scenes:
    """Captioned scenes of labelled digits; as published with MNIST and a size of 60.

    Args:
        digits: square grey images of all ten classes in train and test, e.g. of `load("digits")`.
        size: S, of the canvas; at least twice the digits'.
        digit_size: of the digits, by area interpolation; None keeps theirs.
        coloured: coloured inks on a coloured field, all told.
        templates: numbers or names of those used, "left", "right", "top", "bottom" (two digits), "top left",
            "bottom right", "top right", "bottom left" (one).
        num_train: N; the first so many do not depend on how many follow.
        num_test: M, likewise.
        banned: the digit held out in each of the 12 slots: first and second digit of each template of two, then the
            corners; -1 for none. None draws them from the seed.
        binarisation: None takes "dynamic" for plain scenes and "none" for coloured ones.
        seed: of all that is drawn once.
        name: None takes the digits' name and "-scenes" or "-coloured-scenes".

    Raises:
        DataError: digits that cannot be used, sizes that do not fit, and what `Scenes` raises.
        ValueError: a seed that torch could not take.

    Example:
        >>> from ppl_vae.data import load
        >>> data = scenes(load("digits"), size=16, templates=("top left",), banned=[0] * 12, num_train=5)
        >>> data.shape, data.caption_length, len(data.train)
        (torch.Size([1, 16, 16]), 12, 5)
    """
    check_seed("seed", seed)
    chosen = check_templates(templates)
    sizes = {"size": size, "digit_size": 1 if digit_size is None else digit_size}
    for key, number in {**sizes, "num_train": num_train, "num_test": num_test}.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise DataError(f"{key}: got {number!r}, expected a whole number from 1; give another")
    if not isinstance(coloured, bool):
        raise DataError(f"coloured: got {coloured!r}, expected True or False; give one of them")
    if banned is None:
        generator = torch.Generator().manual_seed(spread_seed(seed, _STREAMS.index("banned")))
        banned = torch.randint(len(DIGITS), (SLOTS,), generator=generator).tolist()
    check_banned(banned)
    groups = [combinations(template, banned)[0] for template in chosen]
    train, test = (
        draw_facts(groups, number, coloured, spread_seed(seed, _STREAMS.index(part)))
        for part, number in (("train", num_train), ("test", num_test))
    )
    images = DigitImages.by_class(digits.train, digits.train_labels, digit_size, f"{digits.name}: train")
    as_they_are = not coloured and images.size == digits.shape[-1]
    return Scenes(
        name=name or f"{digits.name}-{'coloured-' if coloured else ''}scenes",
        train=train.to(images.images.device),
        test=test.to(images.images.device),
        train_digits=images,
        test_digits=DigitImages.by_class(digits.test, digits.test_labels, digit_size, f"{digits.name}: test"),
        size=size,
        coloured=coloured,
        banned=tuple(map(int, banned)),
        templates=chosen,
        seed=seed,
        note=digits.note,
        binarisation=binarisation or ("none" if coloured else "dynamic"),
        levels=digits.levels if as_they_are else 256,
    )


def _check(data: Scenes) -> None:
    check_banned(data.banned)
    check_templates(data.templates)
    if data.binarisation not in ("dynamic", "none"):
        raise DataError(
            f"{data.name}: got binarisation {data.binarisation!r}; expected 'dynamic', bits drawn afresh for every "
            "batch, or 'none', grey values; scenes are composed afresh, and so cannot be 'static'"
        )
    digit = data.train_digits.size
    if digit != data.test_digits.size or data.size < 2 * digit:
        raise DataError(
            f"{data.name}: got a canvas of {data.size} for digits of {digit} (train) and {data.test_digits.size} "
            "(test), expected one size of digits, at most half the canvas; give a smaller digit_size or a larger size"
        )
    for part in (data.train, data.test):
        check_facts(part, data.coloured)
    bans = [[data.banned[i] for i in slots(t)] + [-1] * (t >= TWO) for t in range(len(PLACES))]
    table = torch.tensor(bans, device=data.train.device)[data.train[:, 0]]
    if number := int(((data.train[:, 1:3] == table) & (table >= 0)).any(1).sum()):
        raise DataError(
            f"{data.name}: got {number} training scenes with a banned digit in its slot, expected none; "
            "drop them, or change banned"
        )
