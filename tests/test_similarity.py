"""Similarity of images, and where a painter looks in a caption."""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vae import Pair, similarity
from ppl_vae.pairs import VAE, AlignDRAW
from ppl_vae.similarity import attention_mass, ssim
from tests.test_judging import BLUE, GREEN, RED, all_facts, made


def slow_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Over the windows of one image (C, H, W), one at a time."""
    offsets = np.arange(-5, 6)
    w = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    w = w / w.sum()
    values = []
    for c, i, j in product(range(a.shape[0]), range(a.shape[1] - 10), range(a.shape[2] - 10)):
        p, q = a[c, i : i + 11, j : j + 11], b[c, i : i + 11, j : j + 11]
        m, n = (w * p).sum(), (w * q).sum()
        var_p, var_q, cov = (w * (p - m) ** 2).sum(), (w * (q - n) ** 2).sum(), (w * (p - m) * (q - n)).sum()
        values.append((2 * m * n + 1e-4) * (2 * cov + 9e-4) / ((m * m + n * n + 1e-4) * (var_p + var_q + 9e-4)))
    return float(np.mean(values))


def test_ssim_is_that_of_a_loop_over_windows() -> None:
    a = torch.rand(3, 2, 13, 15, dtype=torch.float64)
    b = (a + 0.3 * torch.randn_like(a)).clamp(0, 1)
    expected = torch.tensor([slow_ssim(*pair) for pair in zip(a.numpy(), b.numpy(), strict=True)], dtype=a.dtype)
    found = ssim(a, b)
    assert found.shape == (3,) and (found - expected).abs().max() < 1e-10
    single = ssim(a.float(), b.float())
    assert single.dtype == torch.float32 and (single - expected).abs().max() < 1e-6
    bright, other = (0.98 + 0.02 * x.float() for x in (a, b))  # small variances beside large squares
    assert torch.equal(ssim(bright, other), ssim(bright.double(), other.double()).float())
    assert torch.equal(ssim(b, a), found) and (found < 1).all() and (found > 0.1).all()


def test_ssim_is_at_most_1_and_that_where_images_are_the_same() -> None:
    a, b = torch.rand(40, 1, 11, 14), torch.rand(40, 1, 11, 14)
    assert ssim(a, a).tolist() == [1.0] * 40
    assert (ssim(a, b) < 0.5).all() and (ssim(a, 1 - a) < 0).all() and (ssim(a, 1 - a) > -1).all()
    assert (ssim(a, (a + 1e-3 * b).clamp(max=1)) <= 1).all()


def test_ssim_of_constants_is_the_luminance_alone() -> None:
    m1, m2 = torch.tensor([0.0, 0.2, 0.5, 0.9]), torch.tensor([0.1, 0.7, 0.5, 1.0])
    a, b = (m.double()[:, None, None, None].expand(4, 3, 12, 12) for m in (m1, m2))
    expected = (2 * m1 * m2 + 1e-4) / (m1**2 + m2**2 + 1e-4)
    torch.testing.assert_close(ssim(a, b).float(), expected)


def test_ssim_refuses_what_has_no_window() -> None:
    with pytest.raises(ValueError, match="got images of 10 by 12 pixels, expected at least 11 by 11"):
        ssim(torch.zeros(2, 1, 10, 12), torch.zeros(2, 1, 10, 12))
    with pytest.raises(ValueError, match=r"got images \(2, 1, 12, 12\) and \(1, 1, 12, 12\), expected \(B, C, H, W\)"):
        ssim(torch.zeros(2, 1, 12, 12), torch.zeros(1, 1, 12, 12))


class Seen(NamedTuple):
    alpha: Tensor | None


class Attentive(Pair):
    """Paints nothing, and attends to every word in the first step, to the one word at `place` in the second."""

    data_shape = (1, 8, 8)

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place

    def painting(self, x: Tensor, caption: Tensor) -> Iterator[Seen]:
        assert len(pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))) == len(x) == len(caption)
        there = (caption > 0).float()
        yield Seen(there / there.sum(1, keepdim=True))
        alpha = torch.zeros(caption.shape)
        alpha[:, self.place] = 1
        yield Seen(alpha)


def test_attention_is_measured_against_an_even_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "the digit A is on the left of the digit B .": a place is told by "on" and "left", by two words in corners too.

    One step of two is even: the other adds 12 / 2 to what one word tells alone, and half that to one of two words.
    """
    data, facts = made(), torch.tensor([[0, 3, 7, -1, -1, -1], [3, 2, 2, -1, -1, -1]])
    for place, expected in ((2, (0.5, 6.5, 0.5)), (10, (0.5, 0.5, 6.5)), (4, (3.5, 0.5, 0.5)), (6, (3.5, 0.5, 0.5))):
        found = attention_mass(Attentive(place), data, facts)
        assert found == pytest.approx(dict(zip(("place", "digit", "second digit"), expected, strict=True)), rel=1e-6)
    corners = torch.tensor([[4, 3, -1, -1, -1, -1], [7, 3, -1, -1, -1, -1]])
    found = attention_mass(Attentive(7), data, corners)
    assert found == pytest.approx({"place": 3.5, "digit": 0.5}, rel=1e-6)
    both = torch.cat([facts, corners])
    mixed = attention_mass(Attentive(10), data, both)
    assert mixed == pytest.approx({"place": 0.5, "digit": 0.5, "second digit": 6.5}, rel=1e-6)
    monkeypatch.setattr(similarity, "CHUNK", 3)
    assert attention_mass(Attentive(10), data, both) == pytest.approx(mixed)
    few = made(templates=("left", "right"))
    assert attention_mass(Attentive(4), few, facts[:1])["place"] == pytest.approx(0.5, rel=1e-6), "left or right alone"
    one = made(templates=("left",))
    assert set(attention_mass(Attentive(4), one, facts[:1])) == {"digit", "second digit"}


def test_attention_to_colours_leaves_padding_out() -> None:
    """ "a I A is at the top left of a F field .": 13 words, padded to 16; the other caption has all 16."""
    data = made(True)
    corner = torch.tensor([[4, 3, -1, RED, -1, BLUE]])
    two = torch.tensor([[0, 3, 7, RED, BLUE, GREEN]])
    others = dict.fromkeys(("place", "digit", "field"), 0.5)
    assert attention_mass(Attentive(1), data, corner) == pytest.approx(others | {"ink": 7.0}, rel=1e-6)
    more = others | {"ink": 0.5, "second digit": 0.5}
    assert attention_mass(Attentive(9), data, two) == pytest.approx(more | {"second ink": 8.5}, rel=1e-6)


def test_a_painter_that_does_not_care_has_no_preference_and_is_left_as_it_was() -> None:
    data, facts = made(), all_facts()[::40]
    pair = AlignDRAW(data.shape, len(data.vocabulary), latent_dim=3, hidden=8, steps=3, words=4, align=5, read=3)
    pair.train()
    state, before = torch.get_rng_state(), {name: p.clone() for name, p in pair.named_parameters()}
    found = attention_mass(pair, data, facts)
    assert torch.equal(torch.get_rng_state(), state) and pair.training and pair.painter.training
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in pair.named_parameters())
    assert attention_mass(pair, data, facts) == found != attention_mass(pair, data, facts, seed=1)
    assert set(found) == {"place", "digit", "second digit"} and all(0 < mass < 12 for mass in found.values())
    assert pair.alignment is not None
    with torch.no_grad():
        pair.alignment.score.weight.zero_()
    assert attention_mass(pair, data, facts) == pytest.approx(dict.fromkeys(found, 1.0), rel=1e-6)


def test_attention_is_asked_of_a_pair_that_has_it() -> None:
    data, facts = made(), all_facts()[::100]
    blind = AlignDRAW(data.shape, len(data.vocabulary), latent_dim=3, hidden=8, steps=2, words=4, align=None, read=3)
    for pair in (blind, VAE(data.shape, latent_dim=2, hidden=(4,))):
        with pytest.raises(ValueError, match=f"{type(pair).__name__}: got no weights of words, expected a painting"):
            attention_mass(pair, data, facts)
