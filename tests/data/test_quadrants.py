"""Quadrants of an image, by hand."""

import pytest
import torch

from ppl_vae.data import DataError
from ppl_vae.data.quadrants import UNKNOWN, quadrants

IMAGE = torch.arange(16.0).reshape(1, 1, 4, 4) / 16
GIVEN = {
    1: [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]],
    2: [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]],
    3: [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]],
}


@pytest.mark.parametrize("number", (1, 2, 3))
def test_by_hand(number) -> None:
    before = IMAGE.clone()
    y, c = quadrants(IMAGE, number)
    given = torch.tensor(GIVEN[number], dtype=torch.bool)
    assert torch.equal(y, before) and torch.equal(IMAGE, before)  # c is a copy
    assert torch.equal(c[0, 0, given], IMAGE[0, 0, given]) and bool((c[0, 0, ~given] == UNKNOWN).all())
    assert c.shape == IMAGE.shape and c.dtype == IMAGE.dtype


def test_odd_sizes_and_any_leading_dimensions() -> None:
    _, c = quadrants(torch.ones(2, 3, 5, 3, dtype=torch.float64), 1)
    rows, columns = torch.arange(5).unsqueeze(-1) >= 2, torch.arange(3) < 1
    assert torch.equal(c != UNKNOWN, (rows & columns).expand(2, 3, 5, 3))
    assert torch.equal(quadrants(torch.ones(2, 5, 3), 1)[1], c[:, 0].float())


@pytest.mark.parametrize(
    ("x", "number", "message"),
    [
        (IMAGE, 4, "number: got 4; expected 1, 2 or 3"),
        (IMAGE, True, "number: got True; expected 1, 2 or 3"),
        (torch.ones(5, 16), 1, r"x: got shape \(5, 16\); expected images"),
        (torch.ones(5, 1, 1, 4), 1, r"x: got shape \(5, 1, 1, 4\); expected images"),
        (torch.ones(5, 1, 4, 4, dtype=torch.uint8), 1, "x: got torch.uint8; expected floats"),
        (IMAGE - 1, 1, r"x: got values down to -1; expected \[0, 1\]"),
    ],
)
def test_refused(x, number, message) -> None:
    with pytest.raises(DataError, match=message):
        quadrants(x, number)
