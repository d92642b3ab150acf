"""Films end with the sample, and their states are the papers' equations; pictures pixel by pixel."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ppl_vae import Pair, generation
from ppl_vae.films import Film, film, looks
from ppl_vae.objectives import Trace_ELBO
from ppl_vae.pairs import DRAW, VAE, AlignDRAW
from ppl_vae.quiet import private_stream
from ppl_vae.report import alignment_figure, film_gif, film_strip, flip_grid
from ppl_vae.report import films as drawing

SHAPE = (1, 6, 5)
X = torch.zeros(3, *SHAPE)
CAPTIONS = torch.tensor([[3, 1, 2, 4], [5, 2, 0, 0], [1, 4, 4, 0]])
FRAME = (213, 94, 0)


def shaken(pair: Pair) -> Any:
    """Every parameter away from its start, zeros too."""
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return pair


def plain(size: int | None = 2, **options: Any) -> DRAW:
    return shaken(DRAW(SHAPE, 4, 7, 3, read=size, write=size, **options))


def aligned(align: int | None = 6, size: int | None = 2, shape: tuple[int, ...] = SHAPE) -> AlignDRAW:
    return shaken(AlignDRAW(shape, 6, 4, 7, 3, words=3, align=align, read=size, write=size))


PAIRS: list[Callable[[], tuple[Pair, tuple[Tensor, ...]]]] = [
    lambda: (plain(), (X,)),
    lambda: (plain(None), (X,)),
    lambda: (plain(likelihood="normal"), (X,)),
    lambda: (aligned(), (X, CAPTIONS)),
    lambda: (aligned(None), (X, CAPTIONS)),
    lambda: (aligned(size=None, shape=(3, 6, 5)), (X.expand(-1, 3, -1, -1), CAPTIONS)),
]


@pytest.mark.parametrize("make", PAIRS)
def test_a_film_ends_with_the_sample(make: Callable[[], tuple[Pair, tuple[Tensor, ...]]]) -> None:
    pair, batch = make()
    made = film(pair, *batch, seed=5)
    assert made.canvases.shape == (3, 4, *batch[0].shape[1:]) and not made.canvases.requires_grad
    torch.testing.assert_close(made.canvases[:, -1], generation.samples(pair, *batch, seed=5), rtol=0, atol=0)
    assert not torch.equal(made.canvases, film(pair, *batch, seed=6).canvases)
    assert torch.equal(made.canvases, film(pair, *batch, seed=5).canvases)


def test_canvases_by_hand() -> None:
    """h_t = LSTM(h_{t-1}, z_t), c_t = c_{t-1} + W h_t: Gregor et al. 2015, eq. 7 and 8, without attention."""
    pair = plain(None)
    paint, (linear,) = pair.painter, [m for m in pair.painter.patch.modules() if isinstance(m, torch.nn.Linear)]
    with private_stream(5, torch.device("cpu")):
        z = [torch.randn(3, 4) for _ in range(3)]
    memory, canvas = paint.lstm.start(), paint.canvas.expand(3, -1, -1, -1, -1)
    expected = [canvas]
    for inputs in z:
        memory = paint.lstm(inputs, memory)
        expected.append(expected[-1] + linear(memory.h).view(3, 1, *SHAPE))
    made = film(pair, X, seed=5)
    torch.testing.assert_close(made.canvases, torch.stack(expected, 1)[:, :, 0].sigmoid())
    assert made.windows is None and made.alpha is None and looks(pair, X) is None


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 9, 7)])
def test_windows_cover_the_image_where_they_start(shape: tuple[int, ...]) -> None:
    pair, x = DRAW(shape, 4, 7, 3, read=2, write=5), torch.zeros(3, *shape)
    for part in (pair.painter, pair.onlooker):
        for parameter in part.window.parameters():  # pyright: ignore[reportOptionalMemberAccess]
            torch.nn.init.zeros_(parameter)
    side, (height, width) = max(shape) - 1, shape[1:]
    middle = torch.tensor([height - 1, width - 1, height - 1, width - 1]) / 2
    expected = (middle + torch.tensor([-side, -side, side, side]) / 2).expand(3, 3, 4)
    for windows in (film(pair, x).windows, looks(pair, x)):
        torch.testing.assert_close(windows, expected)


def test_windows_are_those_of_the_steps() -> None:
    """The write windows of the states, and what the guide reads through at the latents that it draws."""
    pair, x = aligned(), torch.rand(3, *SHAPE)
    made, seen = film(pair, x, CAPTIONS, seed=1), looks(pair, x, CAPTIONS, seed=1)
    assert pair.painter.window is not None and pair.onlooker.window is not None
    assert made.windows is not None and seen is not None and made.windows.shape == seen.shape == (3, 3, 4)
    z = generation.posterior(pair, x, CAPTIONS, seed=1)
    with torch.no_grad():
        state = pair.painter.start()
        for t in range(3):
            expected = pair.onlooker.window(state.memory.h).corners().expand(3, 4)
            torch.testing.assert_close(seen[:, t], expected)
            state = pair._stroke(state, z[f"z{t + 1}"], CAPTIONS)
    assert len(set(made.windows.flatten().tolist())) > 30  # they move


def test_weights_are_those_of_the_words() -> None:
    made = film(aligned(), X, CAPTIONS)
    assert made.alpha is not None and made.alpha.shape == (3, 3, 4)
    assert (made.alpha * (CAPTIONS == 0)[:, None] == 0).all()
    torch.testing.assert_close(made.alpha.sum(-1), torch.ones(3, 3))
    assert film(aligned(None), X, CAPTIONS).alpha is None


def test_nothing_is_left_behind() -> None:
    pair, x = plain(), torch.rand(3, *SHAPE).round()
    loss = Trace_ELBO()(pair)
    pair.guide(x)  # which keeps its states for a model to come
    pair.train()
    torch.manual_seed(1)
    before = torch.rand(2)
    torch.manual_seed(1)
    film(pair, x)
    assert not pair.rollout._kept
    looks(pair, x)
    assert not pair.rollout._kept and not pair.onlooker._forward_hooks
    assert torch.equal(torch.rand(2), before) and all(module.training for module in pair.modules())
    loss(x).backward()
    assert all(p.grad is not None for p in pair.parameters())


def test_what_does_not_paint_is_refused() -> None:
    for make in (film, looks):
        with pytest.raises(ValueError, match=r"VAE: got no painting\(\*batch\), expected a pair that paints"):
            make(VAE((1, 8, 8), 2), torch.zeros(2, 1, 8, 8))
        with pytest.raises(ValueError, match="got no batch, expected what the model takes"):
            make(plain())
        with pytest.raises(ValueError, match="seed: got 'one'"):
            make(plain(), X, seed="one")  # pyright: ignore[reportArgumentType]
    pair = plain()

    def fail(x: Tensor) -> None:
        raise RuntimeError("no guide")

    pair.guide = fail
    with pytest.raises(RuntimeError, match="no guide"):
        looks(pair, X)
    assert not pair.onlooker._forward_hooks


# Pictures.


def pixels(path: Path) -> np.ndarray:
    """(H, W, 3) bytes."""
    return (255 * matplotlib.image.imread(path)[..., :3]).round().astype(np.uint8)


def gif(path: Path) -> list[tuple[np.ndarray, int]]:
    """Frames as bytes, and their milliseconds."""
    with Image.open(path) as image:
        frames = []
        for i in range(image.n_frames):  # pyright: ignore[reportAttributeAccessIssue]
            image.seek(i)
            frames.append((np.asarray(image.convert("RGB")), image.info["duration"]))
    return frames


def grey(*levels: float, windows: Tensor | None = None, side: int = 28) -> Film:
    """One image, all of one grey at each time."""
    return Film(torch.tensor(levels).view(1, -1, 1, 1, 1).expand(-1, -1, 1, side, side), windows)


def outline(top: int, left: int, bottom: int, right: int, side: int = 112) -> np.ndarray:
    """A frame of lines of two pixels, by their first pixels."""
    mask = np.zeros((side, side), bool)
    mask[top : bottom + 2, left : right + 2] = True
    mask[top + 2 : bottom, left + 2 : right] = False
    return mask


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that a test makes."""
    figures: list[Figure] = []
    save = drawing._save
    monkeypatch.setattr(drawing, "_save", lambda figure, path: figures.append(figure) or save(figure, path))
    return figures


WINDOWS = [
    # The middle of pixel i is at 4 i + 2, and there the middle of the line.
    ([3.0, 5.0, 10.0, 20.0], (13, 21, 41, 81)),
    ([0.0, 0.0, 27.0, 27.0], (1, 1, 109, 109)),
    ([-9.0, 4.0, 8.0, 99.0], (0, 17, 33, 110)),  # at the edge where it would be outside
    ([-9.0, -9.0, torch.inf, torch.inf], (0, 0, 110, 110)),
]


@pytest.mark.parametrize(("window", "lines"), WINDOWS)
def test_a_frame_is_where_the_window_is(window: list[float], lines: tuple[int, ...], tmp_path: Path) -> None:
    made = grey(0.2, 0.6, windows=torch.tensor([[window]]))
    shown = pixels(film_strip(made, tmp_path / "x.png"))[-114:-2]
    start, end = shown[:, -228:-116], shown[:, -114:-2]
    assert (start == 51).all()
    mask = outline(*lines)
    assert (end[mask] == FRAME).all() and (end[~mask] == 153).all()
    *_, (last, _) = gif(film_gif(made, tmp_path / "x.gif"))
    tile = last[2:114, 2:114]
    assert (tile[mask] == FRAME).all() and (tile[~mask] == 153).all()
    *_, (last, _) = gif(film_gif(made, tmp_path / "y.gif", windows=False))
    assert (last[2:114, 2:114] == 153).all()


def test_no_frame_where_the_window_is_not_a_number(tmp_path: Path) -> None:
    made = grey(0.2, 0.6, windows=torch.tensor([[[3.0, torch.nan, 10.0, 20.0]]]))
    assert (pixels(film_strip(made, tmp_path / "x.png"))[-114:-2, -114:-2] == 153).all()


def test_a_strip_goes_from_the_start_to_the_last(tmp_path: Path, drawn: list[Figure]) -> None:
    made = grey(*(t / 10 for t in range(11)))
    shown = pixels(film_strip(made, tmp_path / "x.png", frames=5, captions=["a seven ."], title="Title"))
    assert shown[-60, -58 - 4 * 114 :: 114, 0].tolist() == [0, 51, 128, 204, 255]  # steps 0, 2, 5, 8 and 10
    axes = drawn[0].axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["start", "step 2", "step 5", "step 8", "step 10"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a seven."]
    assert drawn[0].texts[0].get_text() == "Title"
    film_strip(made, tmp_path / "x.png", frames=99)
    assert len(drawn[1].axes[0].get_xticklabels()) == 11


def test_a_gif_has_a_frame_for_every_canvas(tmp_path: Path) -> None:
    x = torch.rand(5, 5, 1, 8, 8)
    x[:, 3] = x[:, 2]  # a step that changes nothing is a frame too
    frames = gif(film_gif(Film(x), tmp_path / "x.gif"))
    assert [duration for _, duration in frames] == [120] * 4 + [1500]
    for t, (frame, _) in enumerate(frames):
        assert frame.shape == (2 * 114 + 2 + 4, 3 * 114 + 2, 3)
        tile = frame[116:228, 116:228].astype(int)  # the last image, second of the second row
        wanted = (255 * x[4, t, 0]).round().int().repeat_interleave(14, 0).repeat_interleave(14, 1).numpy()
        assert np.abs(tile - wanted[..., None]).max() <= 2  # a palette of 256
        assert (frame[-1, :, 0] < 128).sum() == round(344 * t / 4)
    (frame, _), *_ = frames = gif(film_gif(Film(x), tmp_path / "y.gif", scale=1, milliseconds=50, columns=9))
    assert frame.shape == (8 + 4 + 4, 5 * 10 + 2, 3) and frames[0][1] == 50


def test_a_film_in_colour(tmp_path: Path) -> None:
    colours = torch.tensor([[0.0, 0.0, 0.5], [1.0, 1.0, 0.0]])
    made = Film(colours.view(1, 2, 3, 1, 1).expand(-1, -1, -1, 4, 4), torch.tensor([[[1.0, 1.0, 2.0, 2.0]]]))
    assert pixels(film_strip(made, tmp_path / "x.png"))[-3, [-118, -3]].tolist() == [[0, 0, 128], [255, 255, 0]]
    (first, _), (last, _) = gif(film_gif(made, tmp_path / "x.gif"))
    assert first[3, 3].tolist() == [0, 0, 128] and last[3, 3].tolist() == [255, 255, 0]
    assert tuple(last[2 + 42, 2 + 42]) == FRAME


def test_alignment_shows_the_words_alone(tmp_path: Path, drawn: list[Figure]) -> None:
    alpha = torch.zeros(2, 5, 4)
    alpha[1, :, :3] = torch.rand(5, 3).softmax(-1)
    made = Film(torch.zeros(2, 6, 1, 4, 4), alpha=alpha)
    for words in ("a seven .", ["a", "seven", "."]):
        alignment_figure(made, words, tmp_path / "x.png", row=1)
        axes, bar = drawn[-1].axes
        (image,) = axes.images
        torch.testing.assert_close(torch.tensor(np.asarray(image.get_array())), alpha[1, :, :3].T)
        assert list(image.get_extent()) == [0.5, 5.5, 2.5, -0.5]  # steps from 1; words from the top
        assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "seven", "."]
        assert bar.get_ylabel() == "weight" and axes.get_xlabel() == "step"
    assert pixels(tmp_path / "x.png").ndim == 3


def test_flips_are_a_table(tmp_path: Path, drawn: list[Figure]) -> None:
    x = (torch.arange(6) / 5).view(2, 3, 1, 1, 1).expand(-1, -1, 1, 8, 8)
    shown = pixels(flip_grid(x, tmp_path / "x.png", ["top", "bottom"], ["one", "two", "three"], title="Title"))
    low, right = shown.shape[:2]
    centres = shown[np.ix_([low - 172, low - 58], [right - 286, right - 172, right - 58])]
    assert centres[..., 0].tolist() == [[0, 51, 102], [153, 204, 255]]
    axes = drawn[0].axes[0]
    labels = [[t.get_text() for t in labels] for labels in (axes.get_yticklabels(), axes.get_xticklabels())]
    assert labels == [["top", "bottom"], ["one", "two", "three"]]
    # A tick stands in the middle of its tiles.
    assert axes.get_xticks() == pytest.approx([57.5, 171.5, 285.5], abs=1)
    assert axes.get_yticks() == pytest.approx([57.5, 171.5], abs=1)


def test_labels_are_inside_the_picture_and_off_the_images(tmp_path: Path, drawn: list[Figure]) -> None:
    title, row = "A title that is too long for so small a picture " * 2, "a red three is on the left of a blue seven ."
    path = flip_grid(torch.zeros(1, 1, 1, 8, 8), tmp_path / "x.png", [row], ["bottom right corner"], title=title)
    figure = drawn[0]
    (axes,), height = figure.axes, pixels(path).shape[0]
    inside = axes.get_window_extent()
    assert (round(inside.width), round(inside.height)) == (116, 116)
    (left,), (above,) = axes.get_yticklabels(), axes.get_xticklabels()
    boxes = [text.get_window_extent() for text in (left, above, figure.texts[0])]
    assert boxes[0].x0 >= 0 and boxes[0].x1 <= inside.x0
    assert inside.y1 <= boxes[1].y0 and boxes[1].y1 <= boxes[2].y0 and boxes[2].y1 <= height
    assert boxes[2].x1 <= figure.bbox.width


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    made, path = grey(0.2, 0.6), tmp_path / "x.png"
    with pytest.raises(ValueError, match="frames: got 1, expected at least 2"):
        film_strip(made, path, frames=1)
    with pytest.raises(ValueError, match="got 2 captions and 1 images, expected as many"):
        film_strip(made, path, captions=["a", "b"])
    with pytest.raises(ValueError, match="scale: got 0, expected at least 1"):
        film_gif(made, path, scale=0)
    with pytest.raises(ValueError, match="milliseconds: got 5, expected at least 10"):
        film_gif(made, path, milliseconds=5)
    with pytest.raises(ValueError, match="columns: got 0"):
        film_gif(made, path, columns=0)
    with pytest.raises(ValueError, match="got a film without alpha, expected one of a pair with alignment"):
        alignment_figure(made, "a", path)
    said = Film(made.canvases, alpha=torch.tensor([[[0.5, 0.5, 0.0]]]))
    for words in ("", "a", "a b c d"):
        with pytest.raises(ValueError, match=f"got {len(words.split())} words, expected 2: those of the caption of"):
            alignment_figure(said, words, path)
    with pytest.raises(ValueError, match="row: got 1, expected 0 to 0"):
        alignment_figure(said, "a b", path, row=1)
    for shape in ((2, 3, 1, 4, 4), (1, 2, 4, 4)):
        with pytest.raises(ValueError, match=r"got images .*, 1 rows and 2 columns, expected \(rows, columns"):
            flip_grid(torch.zeros(shape), path, ["a"], ["b", "c"])
    with pytest.raises(ValueError, match="got images of shape"):
        film_strip(Film(torch.zeros(1, 3, 2, 4, 4)), path)
    assert list(tmp_path.iterdir()) == []
