"""Codes in colours, images in labelled rows."""

from pathlib import Path

import matplotlib.image
import pytest
import torch

from ppl_vae import report
from ppl_vae.evaluation import CodeUsage, code_usage
from ppl_vae.pairs import VQVAE


def test_maps_have_a_colour_for_each_code() -> None:
    numbers = torch.tensor([[[0, 1], [2, 0]]])
    maps = report.code_maps(numbers, 3, (4, 6))
    assert maps.shape == (1, 3, 4, 6) and maps.min() >= 0 and maps.max() <= 1
    colours = maps[0, :, ::2, ::3]
    assert torch.equal(colours[:, 0, 0], colours[:, 1, 1])
    assert len({tuple(colours[:, i, j].tolist()) for i, j in ((0, 0), (0, 1), (1, 0))}) == 3
    for row in (slice(0, 2), slice(2, 4)):
        for column in (slice(0, 3), slice(3, 6)):
            assert len(maps[0, :, row, column].flatten(1).unique(dim=1).T) == 1
    palette = report.code_maps(torch.arange(512).view(1, 1, 512), 512, (1, 512))[0, :, 0]
    assert len(palette.unique(dim=1).T) > 200  # turbo has 256


def test_rows_stand_one_below_the_other(tmp_path: Path) -> None:
    rows = {"dark": torch.zeros(3, 1, 8, 8), "red": torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 3, 8, 8)}
    picture = matplotlib.image.imread(report.image_rows(rows, tmp_path / "rows.png", title="two rows"))[..., :3]
    is_dark = (picture == 0).all(-1).any(1).nonzero()[0]
    is_red = (picture == (1, 0, 0)).all(-1).any(1).nonzero()[0]
    assert len(is_dark) >= 64 and len(is_red) == 64 and is_red.min() > is_dark.min()
    with pytest.raises(ValueError, match="expected one for all rows"):
        report.image_rows({"a": torch.zeros(3, 1, 8, 8), "b": torch.zeros(3, 1, 4, 4)}, tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()


def test_the_figure_of_a_pair(tmp_path: Path) -> None:
    pair = VQVAE((1, 8, 8), codes=4, code_dim=2, hidden=4, blocks=1, prior_layers=0)
    assert report.code_figure(pair, torch.rand(3, 1, 8, 8).round(), tmp_path / "codes.png").stat().st_size > 0
    assert pair.training


def test_usage_by_hand() -> None:
    usage = CodeUsage(torch.tensor([4, 0, 4, 0]))
    assert (usage.used, usage.total) == (2, 4) and usage.perplexity == pytest.approx(2.0)
    assert CodeUsage(torch.tensor([5, 0])).perplexity == pytest.approx(1.0)
    torch.manual_seed(0)
    pair = VQVAE((1, 8, 8), codes=4, code_dim=2, hidden=4, blocks=1, prior_layers=0)
    x = torch.rand(300, 1, 8, 8).round()  # more than are encoded at once
    counts = torch.bincount(pair.numbers(pair.eval().codes(x))["z"].flatten(), minlength=4)
    assert torch.equal(code_usage(pair, x)["z"].counts, counts)
