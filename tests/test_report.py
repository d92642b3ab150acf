"""Figures pixel by pixel; files written whole or not at all."""

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ppl_vae.report import (
    Section,
    environment,
    html_page,
    image_grid,
    kl_curves,
    learning_curves,
    manifold_figure,
    reconstruction_grid,
    side_by_side,
    write_bytes,
    write_csv,
    write_json,
)
from ppl_vae.report import figures as drawing


def pixels(path: Path) -> np.ndarray:
    """(H, W, 3) bytes."""
    return (255 * matplotlib.image.imread(path)[..., :3]).round().astype(np.uint8)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that a test makes."""
    figures: list[Figure] = []
    save = drawing._save
    monkeypatch.setattr(drawing, "_save", lambda figure, path: figures.append(figure) or save(figure, path))
    return figures


def test_a_grid_shows_every_value_enlarged_by_a_whole_factor(tmp_path: Path) -> None:
    x = torch.rand(5, 1, 8, 8)
    shown = pixels(image_grid(x, tmp_path / "x.png", columns=3))
    assert shown.shape == (2 * 66 + 2, 3 * 66 + 2, 3)
    grey = (255 * x).round().byte().numpy()
    for i in range(5):
        top, left = 66 * (i // 3) + 2, 66 * (i % 3) + 2
        tile = shown[top : top + 64, left : left + 64]
        assert (tile == np.kron(grey[i, 0], np.ones((8, 8), np.uint8))[..., None]).all()
    assert (shown[68:, 134:] == 255).all() and (shown[:2] == 255).all() and (shown[:, 66:68] == 255).all()


def test_colours_clipping_and_nan(tmp_path: Path) -> None:
    x = torch.tensor([[-1.0, 2.0], [0.2, torch.nan]]).expand(1, 3, 2, 2).clone()
    x[0, 2, 1, 0] = 1.0
    shown = pixels(image_grid(x, tmp_path / "x.png"))[18::32, 18::32]
    assert shown.tolist() == [[[0, 0, 0], [255, 255, 255]], [[51, 51, 255], [255, 0, 255]]]


@pytest.mark.parametrize(
    ("shape", "size"),
    [((9, 64), (200, 200)), ((10, 1, 28, 28), (3 * 58 + 2, 4 * 58 + 2)), ((2, 90, 70), (94, 2 * 72 + 2))],
)
def test_sizes_of_grids(shape: tuple[int, ...], size: tuple[int, int], tmp_path: Path) -> None:
    assert pixels(image_grid(torch.rand(shape), tmp_path / "x.png")).shape[:2] == size


def test_a_long_title_wraps_inside_the_picture(tmp_path: Path, drawn: list[Figure]) -> None:
    image_grid(torch.rand(1, 1, 8, 8), tmp_path / "x.png", title="A title that is much too long for one picture " * 3)
    figure = drawn[0]
    FigureCanvasAgg(figure).draw()
    box = figure.texts[0].get_window_extent()
    assert "\n" in figure.texts[0].get_text()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 68 and box.y1 <= figure.bbox.height


def test_reconstructions_stand_below_their_originals(tmp_path: Path, drawn: list[Figure]) -> None:
    x, y = torch.zeros(5, 1, 8, 8), torch.full((5, 1, 8, 8), 0.6)
    shown = pixels(reconstruction_grid(x, y, tmp_path / "x.png", columns=4))
    assert shown.shape[0] == 4 * 68 + 8
    left = shown.shape[1] - 4 * 66 + 30
    column = shown[34 + np.array([0, 68, 144, 212]), left, 0]
    assert column.tolist() == [0, 153, 0, 153]
    assert [t.get_text() for t in drawn[0].axes[0].get_yticklabels()] == ["data", "model"] * 2


def test_two_grids_stand_side_by_side(tmp_path: Path) -> None:
    x, y = torch.full((4, 1, 8, 8), 0.2), torch.full((4, 1, 8, 8), 0.6)
    shown = pixels(side_by_side(x, y, tmp_path / "x.png"))
    row = shown[34, :, 0]
    assert shown.shape[0] == 2 * 66 + 2 and row[[34, 100, -34, -100]].tolist() == [51, 51, 153, 153]
    assert (row[shown.shape[1] // 2 - 10 : shown.shape[1] // 2 + 10] == 255).all()
    with pytest.raises(ValueError, match="expected one shape for both"):
        side_by_side(x, y[:3], tmp_path / "y.png")


def test_the_manifold_keeps_its_layout(tmp_path: Path, drawn: list[Figure]) -> None:
    grid = torch.linspace(0, 1, 9).view(3, 3, 1, 1, 1).expand(3, 3, 1, 4, 4)
    path = manifold_figure(grid, tmp_path / "x.png", title="Manifold")
    image = drawn[0].axes[0].images[0].get_array()
    assert image is not None
    tile = (image.shape[0] - 2) // 3
    expected = (255 * grid[..., 0, 0, 0]).round().byte().tolist()
    assert np.asarray(image)[tile // 2 :: tile, tile // 2 :: tile, 0].tolist() == expected
    assert pixels(path).shape[0] > image.shape[0]


def test_learning_curves_show_the_mean_and_range_of_seeds(tmp_path: Path, drawn: list[Figure]) -> None:
    one, two = [(s, float(-s)) for s in range(20)], [(s, 2.0 - s) for s in range(0, 20, 2)]
    learning_curves({"two": [one, two], "one": one}, tmp_path / "x.png", title="Title")
    axes = drawn[0].axes[0]
    lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    assert np.asarray(lines["two"]).tolist() == [[s, 1.0 - s] for s in range(0, 20, 2)]
    assert np.asarray(lines["one"]).tolist() == [list(p) for p in one]
    band = axes.collections[0].get_paths()[0].vertices
    assert {(4.0, -4.0), (4.0, -2.0)} <= set(map(tuple, np.asarray(band).tolist()))


def test_the_legend_lists_lines_from_the_highest(tmp_path: Path, drawn: list[Figure]) -> None:
    curves = {"low": [(0, 1.0), (1, -9.0)], "nan": [(0, 1.0), (1, np.nan)], "high": [(0, -1.0), (1, 5.0)]}
    learning_curves(curves, tmp_path / "x.png")
    assert [t.get_text() for t in drawn[0].legends[0].get_texts()] == ["high", "low", "nan"]


def test_kl_curves_have_a_panel_for_each_run_and_a_colour_for_each_layer(tmp_path: Path, drawn: list[Figure]) -> None:
    runs = {"a": {"z1": [(0, 5.0), (1, 9.0)], "z2": [(0, 0.5), (1, 1e-9)]}, "b": {"z2": [(0, 1.0)]}, "c": {}}
    kl_curves(runs, tmp_path / "x.png", xlabel="data")
    panels = {axes.get_title("left"): axes for axes in drawn[0].axes if axes.get_visible()}
    lines = {name: {line.get_label(): line for line in axes.get_lines()} for name, axes in panels.items()}
    assert list(panels) == ["a", "b", "c"] and all(axes.get_yscale() == "log" for axes in panels.values())
    assert np.asarray(lines["a"]["z2"].get_xydata()).tolist() == [[0, 0.5], [1, 1e-3]]  # less is drawn as so much
    assert lines["a"]["z2"].get_color() == lines["b"]["z2"].get_color() != lines["a"]["z1"].get_color()
    assert [t.get_text() for t in drawn[0].legends[0].get_texts()] == ["z1", "z2"]


def test_first_points_do_not_squash_the_rest(tmp_path: Path, drawn: list[Figure]) -> None:
    curve = [(s, -500.0 if s == 0 else -90 - 1 / s) for s in range(20)]
    learning_curves({"a": curve}, tmp_path / "x.png")
    low, high = drawn[0].axes[0].get_ylim()
    assert -91 < low < -90.5 and -90.1 < high < -89.9
    learning_curves({"flat": [(0, 3.0)], "broken": [(0, np.inf)]}, tmp_path / "y.png", log_x=False)
    assert drawn[1].axes[0].get_ylim() == (2.0, 4.0)


def test_figures_need_no_display_and_leave_pyplot_alone(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from ppl_vae import report;"
        f"report.image_grid(torch.rand(2, 8, 8), {str(tmp_path / 'x.png')!r}, title='T');"
        f"report.learning_curves({{'a': [(0, 1.), (1, 2.)]}}, {str(tmp_path / 'y.png')!r});"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environ = {k: v for k, v in os.environ.items() if k != "DISPLAY"} | {"MPLBACKEND": "TkAgg"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environ)
    assert (tmp_path / "x.png").exists() and (tmp_path / "y.png").exists()


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise OSError("disk full")

    path = image_grid(torch.zeros(1, 8, 8), tmp_path / "x.png")
    before = path.read_bytes()
    monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="disk full"):
        image_grid(torch.ones(1, 8, 8), path)
    with pytest.raises(OSError, match="disk full"):
        write_json({}, tmp_path / "new.json")
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before


def test_a_failed_rendering_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="got object"):
        write_json({"a": object()}, tmp_path / "x.json")
    with pytest.raises(FileNotFoundError):
        html_page("T", [Section("S", figures=[tmp_path / "none.png"])], tmp_path / "x.html")
    assert list(tmp_path.iterdir()) == []


def test_write_bytes_makes_folders_and_keeps_the_usual_permissions(tmp_path: Path) -> None:
    path = write_bytes(b"new", tmp_path / "a" / "b.bin")
    (tmp_path / "plain").touch()
    assert path.read_bytes() == b"new" and path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@dataclass
class Config:
    lr: float
    at: Path


def test_json_comes_back(tmp_path: Path) -> None:
    obj = {
        "t": torch.tensor([1.5, torch.inf]),
        "n": np.float32(0.5),
        "c": Config(0.1, Path("a")),
        "d": torch.device("cpu"),
    }
    with write_json(obj, tmp_path / "x.json").open() as file:
        assert json.load(file) == {"t": [1.5, float("inf")], "n": 0.5, "c": {"lr": 0.1, "at": "a"}, "d": "cpu"}


def test_csv_comes_back(tmp_path: Path) -> None:
    rows = [{"name": "a, b", "nats": torch.tensor(-1.5)}, {"name": 'say "c"', "steps": 3}]
    text = write_csv(rows, tmp_path / "x.csv").read_text()
    assert list(csv.DictReader(io.StringIO(text))) == [
        {"name": "a, b", "nats": "-1.5", "steps": ""},
        {"name": 'say "c"', "nats": "", "steps": "3"},
    ]


def test_a_page_holds_everything_and_escapes_text(tmp_path: Path) -> None:
    class Tags(HTMLParser):
        found: list[tuple[str, dict[str, str | None]]] = []  # noqa: RUF012
        text = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found.append((tag, dict(attrs)))

        def handle_data(self, data: str) -> None:
            self.text += data

    figure = image_grid(torch.rand(1, 8, 8), tmp_path / "x.png")
    table = [{"objective": "<ELBO>", "nats": -86.7634, "steps": 20_000}]
    page = html_page("A & B", [Section("S", "one <p>\n\ntwo", [figure], table)], tmp_path / "x.html").read_text()
    figure.unlink()
    (tags := Tags()).feed(page)
    kinds = [tag for tag, _ in tags.found]
    assert kinds.count("p") == 2 and kinds.count("td") == 3 and "script" not in kinds
    sources = [attrs["src"] or "" for tag, attrs in tags.found if tag == "img"]
    assert len(sources) == 1 and sources[0].startswith("data:image/png;base64,")
    assert all(part in tags.text for part in ("A & B", "one <p>", "<ELBO>", "-86.763", "20,000"))


def test_environment_is_ready_for_json() -> None:
    facts = environment()
    assert {"python", "torch", "pyro", "numpy", "ppl_vae", "platform", "cpu", "threads", "gpu"} <= set(facts)
    assert facts["torch"] in torch.__version__ and facts["gpu"] is None and facts["cpu"]
    assert json.loads(json.dumps(facts)) == facts


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    for shape in [(0, 1, 8, 8), (2, 4, 8, 8), (2, 10), (8,)]:
        with pytest.raises(ValueError, match="got images of shape"):
            image_grid(torch.zeros(shape), path)
    with pytest.raises(ValueError, match="columns: got 0"):
        image_grid(torch.zeros(1, 8, 8), path, columns=0)
    with pytest.raises(ValueError, match="columns: got 0"):
        reconstruction_grid(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8), path, columns=0)
    with pytest.raises(ValueError, match="one shape for both"):
        reconstruction_grid(torch.zeros(2, 1, 8, 8), torch.zeros(2, 64), path)
    with pytest.raises(ValueError, match=r"expected \(size, size"):
        manifold_figure(torch.zeros(3, 2, 1, 8, 8), path)
    with pytest.raises(ValueError, match="got no curves"):
        learning_curves({}, path)
    with pytest.raises(ValueError, match="got no runs"):
        kl_curves({}, path)
    for empty in ([], [[]], [[(0, 1.0)], [(1, 1.0)]]):
        with pytest.raises(ValueError, match="curve 'a': got"):
            learning_curves({"a": empty}, path)
    assert list(tmp_path.iterdir()) == []


def test_the_axes_of_a_manifold_of_oblong_images_end_where_the_images_do(tmp_path: Path, drawn: list[Figure]) -> None:
    manifold_figure(torch.zeros(3, 3, 1, 14, 10), tmp_path / "x.png")
    (axes,) = drawn[0].axes
    (left, right), (low, high) = axes.get_xlim(), sorted(axes.get_ylim())
    assert (axes.get_xticks()[0], axes.get_xticks()[-1]) == (left, right)
    assert (axes.get_yticks()[0], axes.get_yticks()[-1]) == (low, high)
